//! Manifests: those of the repository are right, and wrong ones are told what is wrong, where, and
//! what was probably meant.

use crate::util::{Sandbox, root};
use std::{env::consts::DLL_SUFFIX, fs, path::PathBuf};

fn tomls(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut tomls: Vec<PathBuf> = paths
        .filter(|p| p.extension().is_some_and(|e| e == "toml"))
        .collect();
    tomls.sort();
    tomls
}

/// Every `fixtures/cases/NAME.toml` is checked, with the arguments of its first line if that is
/// `# args: …`; stderr must be `NAME.stderr`. `UPDATE_CASES=1` writes those files.
#[test]
fn wrong_manifests_are_explained() {
    let sandbox = Sandbox::new();
    sandbox.library("diffaug-misbehave", &format!("misbehave{DLL_SUFFIX}"));
    let mut wrong = Vec::new();
    for case in tomls("tests/fixtures/cases") {
        let name = case.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&case).unwrap();
        let args = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("# args: "));
        let mut command = sandbox.command(&format!("check {name} {}", args.unwrap_or_default()));
        command.current_dir(case.parent().unwrap());
        command.env("DIFFAUG_PLUGIN_PATH", sandbox.path(""));
        let output = sandbox.finish(command);
        assert_eq!(output.code, Some(1), "{name}: {output}");
        if output.stderr.contains("; there are ") && !cfg!(feature = "builtin") {
            continue; // The expected answer lists the plugins that are linked in.
        }
        let expected = case.with_extension("stderr");
        if std::env::var_os("UPDATE_CASES").is_some() {
            fs::write(&expected, &output.stderr).unwrap();
        }
        if fs::read_to_string(&expected).unwrap_or_default() != output.stderr {
            wrong.push(format!("{name}\n{}", output.stderr));
        }
    }
    assert!(
        wrong.is_empty(),
        "other than expected:\n{}",
        wrong.join("\n")
    );
}

#[test]
#[cfg(feature = "builtin")]
fn the_manifests_of_the_repository_are_right() {
    let folders = ["", "/baselines", "/experiments", "/paper"];
    let all = folders.map(|folder| tomls(&format!("manifests{folder}")));
    for manifest in all.into_iter().flatten() {
        let sandbox = Sandbox::new();
        sandbox.run(&format!("check {}", manifest.display())).ok();
    }
}

#[test]
#[cfg(feature = "builtin")]
fn a_manifest_for_another_machine_can_be_right() {
    let sandbox = Sandbox::with_program();
    let manifest = root().join("manifests/paper/cvc.toml");
    let output = sandbox.run(&format!("check {}", manifest.display())).ok();
    assert!(
        output
            .stdout
            .contains("is in order\nbut it cannot run here: device `cuda` needs")
    );
    let output = sandbox
        .run(&format!("check {} --json", manifest.display()))
        .ok();
    assert!(
        output.json()["missing"]
            .as_str()
            .unwrap()
            .starts_with("device `cuda`")
    );
}

#[test]
fn the_schema_knows_the_options_of_the_plugins() {
    let sandbox = Sandbox::new();
    sandbox.library(
        "diffaug-misbehave",
        &format!("plugins/misbehave{DLL_SUFFIX}"),
    );
    let schema = sandbox
        .run("manifest schema --plugin-dir plugins")
        .ok()
        .json();
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    let choices = schema["properties"]["generator"]["oneOf"]
        .as_array()
        .unwrap();
    let ours = choices
        .iter()
        .find(|choice| choice["title"] == "filler")
        .unwrap();
    assert_eq!(ours["properties"]["use"]["const"], "filler");
    assert_eq!(ours["properties"]["count"]["default"], 10);
    assert_eq!(ours["additionalProperties"], false);
    for table in [
        "dataset",
        "prompts",
        "generator",
        "synthesis/properties/start",
        "validator",
        "segmenter",
        "evaluate/properties/segmenter",
    ] {
        let choices = schema.pointer(&format!("/properties/{table}/oneOf"));
        let choices = choices.and_then(|choices| choices.as_array());
        assert!(choices.is_some_and(|c| !c.is_empty()), "{table}");
    }
}

#[test]
fn a_base_may_be_changed_from_the_command_line() {
    let sandbox = Sandbox::new();
    sandbox.library("diffaug-misbehave", "misbehave.so");
    sandbox.write("base.toml", crate::util::misbehave());
    sandbox.write("m.toml", "base = \"base.toml\"\n[synthesis]\nratio = 0.5\n");
    sandbox
        .run("run m.toml -q --set seed=9 --set output=out")
        .ok();
    let lock = sandbox.read_json("out/lock.json");
    assert_eq!(lock["manifest"]["synthesis"]["ratio"], 0.5);
    assert_eq!(lock["manifest"]["seed"], 9);
    assert_eq!(lock["manifest"]["generator"]["use"], "misbehave");
}

#[test]
fn the_resolved_manifest_runs_alike() {
    let sandbox = Sandbox::new();
    sandbox.library("diffaug-misbehave", "misbehave.so");
    sandbox.write("m.toml", crate::util::misbehave());
    sandbox
        .run("run m.toml -q --set synthesis.ratio=0.5 --set seed=4 --set output=first")
        .ok();
    sandbox
        .run("run first/manifest.toml -q --set output=second")
        .ok();
    let [first, second] = ["first", "second"].map(|name| sandbox.files(name, &["log.jsonl"]));
    crate::util::assert_same(&first, &second);
}
