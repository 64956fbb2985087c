//! Loading libraries: what is accepted, what is refused, and in which words.

use crate::util::{Sandbox, build_library, built, files, library, misbehave, root};
use insta::assert_snapshot;
use sha2::{Digest, Sha256};
use std::{
    env::consts::DLL_SUFFIX,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A sandbox with `misbehave.so` and a manifest `m.toml` for it.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.library("diffaug-misbehave", "misbehave.so");
    sandbox.write("m.toml", misbehave());
    sandbox
}

#[test]
fn a_library_offers_its_stages() {
    let sandbox = sandbox();
    let listed = sandbox
        .run("plugins generator --library ./misbehave.so --json")
        .ok();
    let of_library = |entry: &&serde_json::Value| entry["origin"] == "./misbehave.so";
    let listed = listed.json();
    let names = listed.as_array().unwrap().iter().filter(of_library);
    let names: Vec<&str> = names.map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["filler", "misbehave"]);
}

#[test]
fn a_missing_library_is_named() {
    let output = Sandbox::new().run("plugins --library ./missing.so");
    assert_snapshot!(output, @r"
    exit 1
    error: cannot open plugin library `./missing.so`: No such file or directory (os error 2)
    ");
}

#[test]
fn a_text_file_is_no_library() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "notes.so",
        "these are notes, long enough for the header of a library: \n".repeat(9),
    );
    sandbox
        .run("plugins --library ./notes.so")
        .refused("cannot load `./notes.so`: ");
}

#[test]
fn a_library_need_not_be_a_plugin() {
    let sandbox = Sandbox::new();
    sandbox.write("empty.rs", "");
    let mut rustc = Command::new("rustc");
    rustc.args(["--crate-type", "cdylib", "-o", "empty.so", "empty.rs"]);
    rustc.current_dir(sandbox.path(""));
    built(rustc);
    assert_snapshot!(sandbox.run("plugins --library ./empty.so"), @r"
    exit 1
    error: `./empty.so` is a library, but not a diffaug plugin
    ");
}

#[test]
fn a_bare_name_is_not_searched_in_the_current_folder() {
    let sandbox = sandbox();
    assert_snapshot!(sandbox.run("plugins --library misbehave.so"), @r"
    exit 1
    error: plugin library `misbehave.so` was not found: no folder is given by --plugin-dir or DIFFAUG_PLUGIN_PATH (write `./misbehave.so` for the current folder)
    ");
    sandbox.write("elsewhere/empty.txt", "");
    assert_snapshot!(sandbox.run("plugins --library misbehave.so --plugin-dir elsewhere"), @r"
    exit 1
    error: plugin library `misbehave.so` was not found: it is not in `elsewhere` (write `./misbehave.so` for the current folder)
    ");
}

#[test]
fn a_bare_name_is_searched_in_plugin_folders() {
    let sandbox = Sandbox::new();
    sandbox.library("diffaug-misbehave", "plugins/misbehave.so");
    sandbox.write(
        "m.toml",
        misbehave().replace("./misbehave.so", "misbehave.so"),
    );
    sandbox.run("check m.toml --plugin-dir plugins").ok();
    let mut command = sandbox.command("check m.toml");
    command.env("DIFFAUG_PLUGIN_PATH", "plugins");
    sandbox.finish(command).ok();
}

#[test]
fn every_library_of_a_plugin_folder_is_loaded() {
    let sandbox = Sandbox::new();
    sandbox.library(
        "diffaug-misbehave",
        &format!("plugins/misbehave{DLL_SUFFIX}"),
    );
    sandbox.write("plugins/README.txt", "not a library");
    let listed = sandbox.run("plugins generator --plugin-dir plugins").ok();
    assert!(listed.stdout.contains("plugins/misbehave.so"), "{listed}");
}

#[test]
fn a_missing_plugin_folder_is_named() {
    assert_snapshot!(Sandbox::new().run("plugins --plugin-dir nowhere"), @r"
    exit 1
    error: cannot read plugin folder `nowhere`: No such file or directory (os error 2)
    ");
}

#[test]
fn one_name_from_two_files_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.library("diffaug-misbehave", &format!("plugins/a{DLL_SUFFIX}"));
    sandbox.library("diffaug-misbehave", &format!("plugins/b{DLL_SUFFIX}"));
    assert_snapshot!(sandbox.run("plugins --plugin-dir plugins"), @r"
    exit 1
    error: two plugins offer the dataset `misbehave`: one is plugins/a.so, the other plugins/b.so
    ");
}

#[test]
fn one_file_may_be_named_twice() {
    let sandbox = sandbox();
    sandbox.library("diffaug-misbehave", &format!("misbehave{DLL_SUFFIX}"));
    sandbox.write("m.toml", misbehave().replace(".so", DLL_SUFFIX));
    sandbox.run("check m.toml --plugin-dir .").ok();
}

#[test]
fn a_stage_of_another_kind_is_pointed_out() {
    let sandbox = sandbox();
    sandbox.write(
        "m.toml",
        misbehave().replace(
            "[dataset]\nuse = \"misbehave\"",
            "[dataset]\nuse = \"filler\"",
        ),
    );
    let output = sandbox.run("check m.toml");
    assert_eq!(output.code, Some(1));
    let first = output.stderr.lines().next().unwrap();
    assert!(
        first.starts_with("error: `filler` is a generator, not a dataset; there are "),
        "{output}"
    );
    assert!(output.stderr.contains("m.toml:4:7"), "{output}");
}

#[test]
fn a_pinned_library_is_loaded_only_if_it_is_the_one() {
    let sandbox = sandbox();
    let pin = |sha256: &str| {
        let pinned =
            format!("libraries = [{{ path = \"./misbehave.so\", sha256 = \"{sha256}\" }}]");
        misbehave().replace("libraries = [\"./misbehave.so\"]", &pinned)
    };
    let sha256: String = {
        let hash = Sha256::digest(fs::read(sandbox.path("misbehave.so")).unwrap());
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    sandbox.write("m.toml", pin(&sha256));
    sandbox.run("check m.toml").ok();
    sandbox.write("m.toml", pin(&"0".repeat(64)));
    let output = sandbox
        .run("check m.toml")
        .to_string()
        .replace(&sha256, "[HASH]");
    assert_snapshot!(output, @r"
    exit 1
    error: `./misbehave.so` has the sha256 [HASH], but the manifest pins 0000000000000000000000000000000000000000000000000000000000000000: it is not loaded
    ");
}

#[test]
fn without_a_library_the_places_to_look_are_named() {
    let sandbox = sandbox();
    sandbox.write("m.toml", misbehave().replace("libraries", "# libraries"));
    let output = sandbox.run("check m.toml");
    output.refused("no dataset is called `misbehave`");
}

/// Builds `diffaug-misbehave` against a copy of `core/stage` that `change` has been at; the copy is
/// a workspace of its own, with this one's lock file and target folder, so that nothing but the two
/// crates is compiled.
fn built_against(name: &str, change: impl Fn(&str, String) -> String) -> PathBuf {
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let put = |file: &str, text: String| {
        let path = copy.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Cargo goes by the time of a file; an unchanged one keeps it and is not compiled again.
        if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            fs::write(path, text).unwrap();
        }
    };
    let read = |file: &str| fs::read_to_string(root().join(file)).unwrap();
    // Cargo tells packages of one target folder apart by their place in their workspace, so the
    // copy must not lie in `core/stage`.
    let workspace = read("Cargo.toml").replace("\"core/stage\"", &format!("\"{name}\""));
    let lines = workspace
        .lines()
        .map(|line| match line.split(" = ").next() {
            Some("members") => format!("members = [\"{name}\", \"plugin\"]\n"),
            Some("exclude") => String::new(),
            _ => format!("{line}\n"),
        });
    put("Cargo.toml", change("Cargo.toml", lines.collect()));
    if !copy.join("Cargo.lock").exists() {
        put("Cargo.lock", read("Cargo.lock"));
    }
    let mut stage: toml::Table = read("core/stage/Cargo.toml").parse().unwrap();
    stage.retain(|table, _| table != "bench" && table != "dev-dependencies");
    put(&format!("{name}/Cargo.toml"), stage.to_string());
    for (file, text) in files(&root().join("core/stage/src")) {
        let file = format!("src/{file}");
        let text = String::from_utf8(text).unwrap();
        put(&format!("{name}/{file}"), change(&file, text));
    }
    let manifest = read("tests/fixtures/misbehave/Cargo.toml");
    put(
        "plugin/Cargo.toml",
        manifest.replace("diffaug-misbehave", name),
    );
    put(
        "plugin/src/lib.rs",
        read("tests/fixtures/misbehave/src/lib.rs"),
    );
    build_library(&copy.join("Cargo.toml"), name)
}

fn load(built: &Path) -> crate::util::Output {
    let sandbox = Sandbox::new();
    fs::copy(built, sandbox.path("other.so")).unwrap();
    sandbox.run("plugins generator --library ./other.so")
}

#[test]
fn another_layout_of_this_version_is_refused() {
    let other = built_against("abi-other-layout", |file, text| match file {
        "src/registry.rs" => {
            let more = "pub enum Backend {\n    /// Not in this host.\n    Abacus,";
            let changed = text.replace("pub enum Backend {", more);
            assert_ne!(changed, text);
            changed
        }
        _ => text,
    });
    assert_snapshot!(load(&other), @r"
    exit 1
    error: `./other.so` was built against another revision of diffaug 0.1.0: rebuild it
    ");
}

fn of_version(name: &str, version: &str) -> PathBuf {
    built_against(name, |file, text| match file {
        "Cargo.toml" => text.replace("version = \"0.1.0\"", &format!("version = \"{version}\"")),
        _ => text,
    })
}

#[test]
fn the_next_minor_version_is_refused() {
    assert_snapshot!(load(&of_version("abi-next-minor", "0.2.0")), @r"
    exit 1
    error: `./other.so` was built against diffaug 0.2.0, but this host has 0.1.0: rebuild it
    ");
}

#[test]
fn the_next_patch_version_is_loaded() {
    let listed = load(&of_version("abi-next-patch", "0.1.1")).ok();
    assert!(listed.stdout.contains("./other.so"), "{listed}");
}

#[test]
fn a_library_does_not_export_more_than_its_root_module() {
    let library = library("diffaug-misbehave");
    let Ok(output) = Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(library)
        .output()
    else {
        return; // No binutils here.
    };
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2));
    let roots = names.filter(|name| name.contains("root_bmodule_bloader"));
    assert_eq!(roots.count(), 1, "{text}");
}

#[test]
#[cfg(feature = "builtin")]
fn every_plugin_of_the_repository_is_linked_in() {
    let listed = Sandbox::new().run("plugins --json").ok().json();
    let mut kinds = std::collections::BTreeMap::new();
    for entry in listed.as_array().unwrap() {
        assert_eq!(entry["origin"], "built in");
        *kinds.entry(entry["kind"].as_str().unwrap()).or_insert(0) += 1;
    }
    let listed: Vec<String> = kinds
        .iter()
        .map(|(kind, n)| format!("{kind} {n}"))
        .collect();
    assert_snapshot!(listed.join(", "), @"dataset 5, generator 2, measure 12, prompts 3, segmenter 10, validator 3");
}

/// The numbers of the papers and of their code, for one class and images of 256x256; the small autoencoders that
/// `sdseg` and `latent-seg` train first are counted as well.
#[test]
fn segmenters_are_listed_with_their_parameters() {
    let listed = Sandbox::new().run("plugins segmenter --json").ok().json();
    let count = |name: &str| {
        let entries = listed.as_array().unwrap().iter();
        let entry = entries.clone().find(|entry| entry["name"] == name);
        entry.unwrap()["parameters"].as_u64().unwrap()
    };
    assert_eq!(count("unet"), 31_037_633);
    assert_eq!(count("unet-resnet50"), 32_521_105);
    assert_eq!(count("transunet"), 105_322_001);
    assert_eq!(count("medsegdiff-v1"), 130_527_814 + 246_272);
    assert_eq!(count("medsegdiff-v2"), 138_163_367);
    assert_eq!(count("diff-unet"), 13_785_089);
    assert_eq!(count("diff-trans"), 58_647_164);
    assert_eq!(count("mean-mask"), 256 * 256);
    let autoencoder = count("latent-seg") - 296_237_140;
    assert_eq!(count("sdseg"), 294_973_828 + 34_163_628 + autoencoder);
}
