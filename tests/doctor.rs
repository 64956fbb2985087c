//! `diffaug doctor`: what a manifest needs is told, and what of that is missing.

use crate::util::{Output, Sandbox, misbehave};
use insta::assert_snapshot;

/// The report without what differs between machines.
fn stable(output: &Output) -> String {
    let text = output.to_string();
    let lines = text.lines().map(|line| {
        let mut line = line.to_owned();
        for name in ["processor   ", "memory   ", "CUDA plugins", "program"] {
            if let Some(rest) = line.strip_prefix(&format!("  {name}")) {
                let blanks = rest.len() - rest.trim_start().len();
                line = format!("  {name}{}…", &rest[..blanks]);
            }
        }
        for name in ["avx512", "avx2", "neon"] {
            line = line.replace(&format!("features: {name}"), "features: [SIMD]");
        }
        line + "\n"
    });
    lines.collect()
}

/// A manifest whose stages need no weights, in the sandbox.
#[cfg(feature = "builtin")]
fn pasting(sandbox: &Sandbox) {
    let path = crate::util::root().join("tests/fixtures/pasting.toml");
    sandbox.write("pasting.toml", std::fs::read(path).unwrap());
}

/// A sandbox with `misbehave.so` and a manifest `m.toml` for it.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.library("diffaug-misbehave", "misbehave.so");
    sandbox.write("m.toml", misbehave());
    sandbox
}

/// An `nvidia-smi` that prints `text` and exits with `code`; runs `diffaug ARGS` with no other.
#[cfg(target_os = "linux")]
fn with_nvidia_smi(sandbox: &Sandbox, text: &str, code: u8, args: &str) -> Output {
    use std::{fs, os::unix::fs::PermissionsExt};
    sandbox.write("smi/answer", text);
    let answer = sandbox.path("smi/answer").display().to_string();
    // Nothing but what the shell itself has, for it is alone on the path.
    let script =
        format!("#!/bin/sh\nwhile read -r line; do echo \"$line\"; done <{answer}\nexit {code}\n");
    sandbox.write("smi/nvidia-smi", script);
    let tool = sandbox.path("smi/nvidia-smi");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = sandbox.command(args);
    command.env("PATH", sandbox.path("smi"));
    command.env_remove("CUDA_VISIBLE_DEVICES");
    sandbox.finish(command)
}

#[test]
#[cfg(feature = "builtin")]
fn a_manifest_that_can_run_lacks_nothing() {
    let sandbox = Sandbox::new();
    pasting(&sandbox);
    assert_snapshot!(stable(&sandbox.run("doctor pasting.toml")), @r#"
    exit 0
    machine
      processor     …
      memory        …
      device        cpu
      CUDA plugins  …
      program       …

    stages
      dataset    phantom 0.1.0 for cpu, built in
      prompts    medical 0.1.0 for cpu, built in
      generator  seamless-paste 0.1.0 for cpu, built in
      validator  iou 0.1.0 for cpu, built in
      segmenter  unet 0.1.0 for cpu, built in, features: [SIMD]

    data
      phantom colon  120 to train, 30 to validate, 60 to test

    weights
      generator  made by the run in runs/pasting/generator (not yet)
      segmenter  made by the run in runs/pasting/segmenter (not yet)

    | model     | part | parameters | trainable | weights | to run | to train |
    |-----------|------|------------|-----------|---------|--------|----------|
    | segmenter | unet |    121,177 |   121,177 | 476 KiB | 50 MiB |   38 MiB |

    notes
      segmenter: counted for one target class; the data may have more
      segmenter: memory is that of weights, gradients, optimizer and maps for 4 images of 96x96 at once
      dataset: prepared samples take up to 2.0 GiB of the machine's memory besides (`images.cache`)

    nothing is missing
    "#);
}

#[test]
#[cfg(feature = "builtin")]
fn missing_weights_are_named() {
    let sandbox = Sandbox::new();
    pasting(&sandbox);
    let args = "doctor pasting.toml --set generator.weights=nowhere --set segmenter.weights=away";
    let output = sandbox.run(args);
    output.refused("`pasting.toml` cannot run here: 2 things are missing");
    let (_, missing) = output.stdout.split_once("\nmissing\n").unwrap();
    assert_snapshot!(missing, @r"
      generator: weights `nowhere` are not there
      segmenter: weights `away` are not there
    ");
    assert!(output.stdout.contains("| unet | "), "{output}");
}

#[test]
#[cfg(feature = "builtin")]
fn what_a_run_has_trained_is_there() {
    let sandbox = Sandbox::new();
    pasting(&sandbox);
    let small = "--set dataset.size=48 --set images.size=48 --set dataset.train=8 \
        --set dataset.validation=2 --set dataset.test=2 --set segmenter.train.epochs=1 \
        --set segmenter.architecture.width=2 --set segmenter.architecture.depth=1";
    sandbox
        .run(&format!("train segmenter pasting.toml -q {small}"))
        .ok();
    let told = sandbox
        .run(&format!("doctor pasting.toml --json {small}"))
        .ok();
    let weights = |at: usize| told.json()["stages"][at]["weights"].clone();
    assert_eq!(weights(2)["there"], false);
    assert_eq!(weights(4)["there"], true);
    assert_eq!(weights(4)["path"], "runs/pasting/segmenter");
    // As weights of another run they tell of their own network, not of the manifest's.
    let given = "doctor pasting.toml --json --set segmenter.weights=runs/pasting/segmenter";
    let told = sandbox.run(given).ok().json();
    let stage = &told["stages"][4];
    assert_eq!(stage["weights"]["from_run"], false);
    assert_eq!(stage["components"][0]["parameters"], 483);
    assert_eq!(stage["is_trained"], true);
}

#[test]
#[cfg(feature = "builtin")]
fn data_that_is_not_there_is_named() {
    let sandbox = Sandbox::new();
    pasting(&sandbox);
    let args = "doctor pasting.toml --set dataset.use=kvasir-seg --set dataset.root=nowhere \
        --set synthesis.external=elsewhere --set synthesis.background=external";
    let output = sandbox.run(args);
    output.refused("2 things are missing");
    let (_, missing) = output.stdout.split_once("\nmissing\n").unwrap();
    assert_snapshot!(missing, @r#"
    dataset: `nowhere/images` does not exist
    synthesis: folder `elsewhere` is not there
    "#);
}

#[test]
fn the_report_is_json() {
    let output = sandbox().run("doctor m.toml --json --set segmenter.mode=greedy");
    assert_eq!(output.code, Some(1));
    let report = output.json();
    assert_eq!(report["manifest"], "m.toml");
    assert_eq!(report["data"]["name"], "squares");
    assert_eq!(report["data"]["train"], 7);
    assert!(report["machine"]["cores"].as_u64() > Some(0));
    let stage = &report["stages"][4];
    assert_eq!(stage["stage"], "segmenter");
    assert_eq!(stage["origin"], "./misbehave.so");
    assert_eq!(stage["components"][0]["parameters"], 1_u64 << 48);
    assert_eq!(stage["components"][0]["trainable"], 1_u64 << 47);
    assert_eq!(stage["run_bytes"], 1_u64 << 51);
    assert_eq!(stage["features"][0], "beads");
    assert_eq!(report["missing"][0]["about"], "segmenter");
    assert_eq!(report["missing"][0]["text"], "an abacus is not there");
}

#[test]
#[cfg(target_os = "linux")]
fn what_does_not_fit_is_told_stage_by_stage() {
    let sandbox = sandbox();
    let greedy = "doctor m.toml --set generator.mode=greedy --set segmenter.mode=greedy --set images.size=64";
    let output = sandbox.run(greedy);
    output.refused("4 things are missing");
    assert!(
        output
            .stdout
            .contains("\n  generator: needs 8.0 PiB to train, this machine has ")
    );
    assert!(
        output
            .stdout
            .contains("\n  segmenter: needs 8.0 PiB to train, this machine has ")
    );
    let args = format!("{greedy} --device cuda:1");
    let gpus = "0, NVIDIA A, 81559, 81000, 550.54\n1, NVIDIA B, 4096, 2048, 550.54\n";
    assert_snapshot!(stable(&with_nvidia_smi(&sandbox, gpus, 0, &args)), @r#"
    exit 1
    machine
      processor     …
      memory        …
      device        cuda:1
      GPU           NVIDIA B, 4.0 GiB, 2.0 GiB of it free, driver 550.54
      CUDA plugins  …
      program       …

    stages
      dataset    misbehave 0.1.0 for cpu, ./misbehave.so
      prompts    misbehave 0.1.0 for cpu, ./misbehave.so
      generator  misbehave 0.1.0 for cpu, ./misbehave.so, features: beads
      validator  misbehave 0.1.0 for cuda, ./misbehave.so
      segmenter  misbehave 0.1.0 for cpu, ./misbehave.so, features: beads

    data
      squares  7 to train, 1 to validate, 2 to test

    weights
      generator  made by the run in runs/m/generator (not yet)
      segmenter  made by the run in runs/m/segmenter (not yet)

    | model     |  part |          parameters |           trainable | weights |  to run | to train |
    |-----------|-------|---------------------|---------------------|---------|---------|----------|
    | generator | giant | 281,474,976,710,656 | 140,737,488,355,328 | 1.0 PiB |         |          |
    | generator | dwarf |               1,000 |                 500 | 3.9 KiB |         |          |
    | generator |   all | 281,474,976,711,656 | 140,737,488,355,828 | 1.0 PiB | 2.0 PiB |  8.0 PiB |
    | segmenter | giant | 281,474,976,710,656 | 140,737,488,355,328 | 1.0 PiB |         |          |
    | segmenter | dwarf |               1,000 |                 500 | 3.9 KiB |         |          |
    | segmenter |   all | 281,474,976,711,656 | 140,737,488,355,828 | 1.0 PiB | 2.0 PiB |  8.0 PiB |

    notes
      generator: images are 64x64
      segmenter: images are 64x64
      dataset: prepared samples take up to 2.0 GiB of the machine's memory besides (`images.cache`)

    missing
      generator: an abacus is not there
      segmenter: an abacus is not there
      generator: needs 8.0 PiB to train, this GPU has 4.0 GiB
      segmenter: needs 8.0 PiB to train, this GPU has 4.0 GiB
    error: `m.toml` cannot run here: 4 things are missing
    "#);
}

#[test]
#[cfg(target_os = "linux")]
fn a_gpu_that_is_not_there_is_named() {
    let sandbox = sandbox();
    let missing = |text: &str, code| {
        let output = with_nvidia_smi(&sandbox, text, code, "doctor m.toml --device cuda:1");
        output.refused("1 thing is missing");
        let (_, missing) = output.stdout.split_once("\nmissing\n").unwrap();
        missing.trim().to_owned()
    };
    assert_eq!(
        missing("0, NVIDIA A, 81559, 81000, 550.54\n", 0),
        "device: `cuda:1` is not among what `nvidia-smi` lists (1)"
    );
    assert_eq!(
        missing("No devices were found\n", 6),
        "device: `nvidia-smi` says `No devices were found`"
    );
    let mut command = sandbox.command("doctor m.toml --device cuda");
    command.env("PATH", sandbox.path("nothing"));
    let output = sandbox.finish(command).ok();
    assert!(
        output.stdout.contains("`nvidia-smi` is not there"),
        "{output}"
    );
}

#[test]
#[cfg(all(feature = "builtin", not(feature = "cuda")))]
fn without_plugins_for_cuda_the_rest_is_still_told() {
    let sandbox = Sandbox::with_program();
    pasting(&sandbox);
    let mut command = sandbox.command("doctor pasting.toml --device cuda");
    command.env("PATH", sandbox.path("nothing"));
    let output = sandbox.finish(command);
    output.refused("`pasting.toml` cannot run here: 2 things are missing");
    let (_, missing) = output.stdout.split_once("\nmissing\n").unwrap();
    assert_snapshot!(missing, @r#"
    device: device `cuda` needs plugins that are built for CUDA, but none is loaded and `[TMP]/bin/libdiffaug_cuda.so` does not exist
    segmenter: device `cuda` needs a build with the feature `cuda`
    "#);
    assert!(output.stdout.contains("| segmenter | unet | "), "{output}");
}

#[test]
#[cfg(feature = "builtin")]
fn several_segmenters_lie_in_a_folder_of_their_own() {
    let sandbox = Sandbox::new();
    pasting(&sandbox);
    let place = |args: &str| {
        let output = sandbox
            .run(&format!("doctor pasting.toml --json {args}"))
            .ok();
        let stages = output.json()["stages"].as_array().unwrap().clone();
        let segmenter = stages.iter().find(|stage| stage["stage"] == "segmenter");
        segmenter.unwrap()["weights"]["path"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(place(""), "runs/pasting/segmenter");
    assert_eq!(place("--set synthesis.folds=3"), "runs/pasting/segmenters");
    assert_eq!(
        place("--set validator.use=ensemble"),
        "runs/pasting/segmenters"
    );
    let nobody = "--set validator.use=accept-all --set synthesis.folds=2";
    let report = sandbox.run(&format!("doctor pasting.toml {nobody}")).ok();
    assert!(
        report.stdout.contains("runs/pasting/segmenters (not yet)"),
        "{report}"
    );
}

#[test]
fn a_panic_of_an_inspection_is_a_fault() {
    let output = sandbox().run("doctor m.toml --set generator.mode=panic-on-inspect");
    assert_snapshot!(output, @r"
    exit 2
    error: generator `misbehave` panicked: inspected to panic
    ");
}

#[test]
fn a_stage_that_cannot_tell_lacks_something() {
    let output = sandbox().run("doctor m.toml --set dataset.mode=fail-on-inspect");
    output.refused("1 thing is missing");
    assert!(
        output
            .stdout
            .ends_with("\nmissing\n  dataset: nothing can be said\n"),
        "{output}"
    );
}

#[test]
fn a_wrong_manifest_is_pointed_at() {
    assert_snapshot!(sandbox().run("doctor m.toml --set dataset.count=3"), @r"
    exit 1
    error: `count` must be at least 4
     --> --set:1:15
      |
    1 | dataset.count=3
      |               ^
    ");
}
