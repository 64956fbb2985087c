//! Plugins for CUDA: where they are looked for, and what is said where they or NVIDIA's libraries
//! are missing. No GPU is needed; `.ci/cuda-check` does the same with the library itself.

use crate::util::{Sandbox, built, misbehave};
use insta::assert_snapshot;
use std::{fs, process::Command};

/// Puts a library there as `name` that depends on `dependency`, which nobody has.
fn depending(sandbox: &Sandbox, name: &str, dependency: &str) {
    sandbox.write("empty.c", "");
    let cc = |args: &[&str]| {
        let mut command = Command::new("cc");
        command.args(["-shared", "-nostdlib", "-Wl,--no-as-needed"]);
        command.args(args).current_dir(sandbox.path(""));
        built(command);
    };
    let soname = format!("-Wl,-soname,{dependency}");
    cc(&["-o", dependency, "empty.c", &soname]);
    cc(&["-o", name, "empty.c", &format!("./{dependency}")]);
    fs::remove_file(sandbox.path(dependency)).unwrap();
}

#[test]
fn a_missing_driver_is_named() {
    let sandbox = Sandbox::new();
    // A version that no driver has: the test must find nothing where there is a driver, too.
    depending(&sandbox, "fast.so", "libcuda.so.0");
    assert_snapshot!(sandbox.run("plugins --library ./fast.so"), @r#"
    exit 1
    error: `./fast.so` is built for CUDA and needs `libcuda.so.0` of NVIDIA's driver, which was not found

    hint: install NVIDIA's driver (LD_LIBRARY_PATH names more folders to search), or compute on the processor: `device = "cpu"`, without this library
    "#);
}

#[test]
fn what_is_missing_of_the_toolkit_is_named() {
    let sandbox = Sandbox::new();
    depending(&sandbox, "fast.so", "libcublasLt.so.0");
    let output = sandbox.run("plugins --library ./fast.so");
    output.refused("needs `libcublasLt.so.0` of NVIDIA's CUDA toolkit, which was not found");
    depending(&sandbox, "fast.so", "libcudnn.so.0");
    let output = sandbox.run("plugins --library ./fast.so");
    output.refused("needs `libcudnn.so.0` of NVIDIA's cuDNN, which was not found");
}

#[test]
fn any_other_missing_dependency_is_named() {
    let sandbox = Sandbox::new();
    depending(&sandbox, "odd.so", "libnobody-has-this.so.3");
    assert_snapshot!(sandbox.run("plugins --library ./odd.so"), @r"
    exit 1
    error: `./odd.so` needs the library `libnobody-has-this.so.3`, which was not found
    ");
}

const BESIDE: &str = "bin/libdiffaug_cuda.so";

#[test]
fn without_plugins_for_cuda_the_place_for_them_is_named() {
    let sandbox = Sandbox::with_program();
    assert_snapshot!(sandbox.run("plugins --device cuda:1"), @r#"
    exit 1
    error: device `cuda:1` needs plugins that are built for CUDA, but none is loaded and `[TMP]/bin/libdiffaug_cuda.so` does not exist

    hint: the README, section CUDA, tells how to build that file; `device = "cpu"` does without it
    "#);
    let manifest = misbehave().replace("libraries = [\"./misbehave.so\"]", "device = \"cuda\"");
    sandbox.write("m.toml", manifest);
    assert_snapshot!(sandbox.run("run m.toml"), @r#"
    exit 1
    error: device `cuda` needs plugins that are built for CUDA, but none is loaded and `[TMP]/bin/libdiffaug_cuda.so` does not exist
     --> m.toml:2:10
      |
    2 | device = "cuda"
      |          ^^^^^^

    hint: the README, section CUDA, tells how to build that file; `device = "cpu"` does without it
    "#);
}

#[test]
fn plugins_for_cuda_are_found_beside_the_program() {
    let sandbox = Sandbox::with_program();
    sandbox.library("diffaug-misbehave", BESIDE);
    let origins = |args: &str| {
        let listed = sandbox
            .run(&format!("plugins validator {args} --json"))
            .ok();
        let listed = listed.json();
        let ours = listed.as_array().unwrap().iter();
        let ours = ours.filter(|entry| entry["name"] == "misbehave");
        ours.map(|e| format!("{} {}", e["backend"], e["origin"]))
            .collect::<Vec<_>>()
    };
    assert_eq!(origins(""), [""; 0]);
    assert_snapshot!(origins("--device cuda").join("\n"), @r#"
    "cpu" "[TMP]/bin/libdiffaug_cuda.so"
    "cuda" "[TMP]/bin/libdiffaug_cuda.so"
    "#);
    // One that was asked for takes its place.
    sandbox.library("diffaug-misbehave", "libdiffaug_cuda.so");
    let asked = origins("--device cuda --library ./libdiffaug_cuda.so");
    assert_snapshot!(asked.join("\n"), @r#"
    "cpu" "./libdiffaug_cuda.so"
    "cuda" "./libdiffaug_cuda.so"
    "#);
}

#[test]
#[cfg(feature = "builtin")]
fn a_library_beside_the_program_has_to_be_built_for_cuda() {
    let sandbox = Sandbox::with_program();
    sandbox.library("diffaug-phantom", BESIDE);
    let output = sandbox.run("plugins --device cuda");
    output.refused("two plugins offer the dataset `phantom`: one is built in, the other ");
}

#[test]
fn a_stage_that_is_built_for_two_devices_is_one_choice() {
    let sandbox = Sandbox::new();
    sandbox.library("diffaug-misbehave", "misbehave.so");
    sandbox.write("m.toml", misbehave());
    sandbox.run("run m.toml -q --device cuda").ok();
    let output = sandbox.run("plugins validator nothing --library ./misbehave.so");
    output.refused("there are ");
    assert_eq!(output.stderr.matches("`misbehave`").count(), 1, "{output}");
    sandbox.library("diffaug-misbehave", "plugins/misbehave.so");
    let schema = sandbox.run("manifest schema --plugin-dir plugins").ok();
    let schema = schema.json();
    let choices = &schema["properties"]["validator"]["oneOf"];
    let choices = choices.as_array().unwrap().iter();
    let ours = choices.filter(|choice| choice["title"] == "misbehave");
    assert_eq!(ours.count(), 1);
}

#[test]
fn a_processor_needs_no_plugins_for_cuda() {
    let sandbox = Sandbox::with_program();
    sandbox.library("diffaug-misbehave", "misbehave.so");
    sandbox.write("m.toml", misbehave());
    depending(&sandbox, BESIDE, "libcuda.so.0");
    let output = sandbox.run("run m.toml -q --device cuda");
    output.refused("libdiffaug_cuda.so` is built for CUDA and needs `libcuda.so.0`");
    assert!(!sandbox.path("runs").exists());
    sandbox.run("run m.toml -q").ok();
}
