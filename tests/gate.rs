//! The gate of a run: folds, several judges, thresholds, previews.

use crate::{
    pipeline::tiny,
    util::{Sandbox, misbehave},
};
use std::fs;

/// What the synthesis of a run came to.
fn summary(sandbox: &Sandbox, run: &str) -> serde_json::Value {
    let path = sandbox.path(&format!("runs/{run}/synthetic.json"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn several_judges_by_fold_are_trained_and_asked() {
    let sandbox = tiny();
    let set = "--set synthesis.folds=2 --set validator.use=ensemble --set validator.members=2 \
               --set validator.agree=1 --set validator.threshold=0.02";
    sandbox.run(&format!("generate m.toml {set}")).ok();
    for name in [
        "fold-0-member-0",
        "fold-0-member-1",
        "fold-1-member-0",
        "fold-1-member-1",
    ] {
        let folder = sandbox.path(&format!("runs/tiny/segmenters/{name}"));
        assert!(folder.join("weights.safetensors").is_file(), "{name}");
    }
    let weights = |name: &str| {
        let path = format!("runs/tiny/segmenters/{name}/weights.safetensors");
        fs::read(sandbox.path(&path)).unwrap()
    };
    // Other data, and other seeds.
    assert_ne!(weights("fold-0-member-0"), weights("fold-1-member-0"));
    assert_ne!(weights("fold-0-member-0"), weights("fold-0-member-1"));
    let summary = summary(&sandbox, "tiny");
    assert_eq!(summary["sweep"].as_array().unwrap().len(), 9);
    let classes = summary["by_class"].as_object().unwrap();
    assert!(
        classes
            .values()
            .all(|class| class["candidates"].as_u64().unwrap() > 0)
    );
    assert_eq!(classes.len(), 1);
    // Nothing is trained again, and the first training of the evaluation is one of its own.
    sandbox.run(&format!("run m.toml {set}")).ok();
    assert!(
        sandbox
            .path("runs/tiny/evaluate/real/seed-0/weights")
            .is_dir()
    );
}

#[test]
fn folds_need_a_segmenter_to_train_and_enough_images() {
    let sandbox = tiny();
    sandbox
        .run("generate m.toml --set synthesis.folds=2 --set segmenter.weights=w")
        .refused("`segmenter.weights` leaves no segmenter to be trained");
    sandbox.write("w/some", "weights");
    sandbox
        .run("generate m.toml --set validator.use=ensemble --set segmenter.weights=w")
        .refused("`weights` gives one segmenter, but the validator `ensemble` asks 3 that differ");
    sandbox
        .run("generate m.toml --set synthesis.folds=9 --set output=runs/nine")
        .refused("`synthesis.folds` is 9, but there are 8 images or groups to cut");
}

#[test]
fn a_sweep_tells_what_other_thresholds_would_accept() {
    let sandbox = tiny();
    let rows = sandbox.run("sweep m.toml --json").ok().json();
    let rows = rows.as_array().unwrap();
    let accepted = |row: &serde_json::Value| row["accepted"].as_u64().unwrap();
    assert_eq!(rows.len(), 9);
    assert!(
        rows.windows(2)
            .all(|pair| accepted(&pair[0]) >= accepted(&pair[1]))
    );
    let summary = summary(&sandbox, "tiny");
    assert_eq!(summary["sweep"], serde_json::Value::Array(rows.clone()));
    sandbox
        .run("sweep m.toml --set validator.use=accept-all --set output=runs/all")
        .refused("the validator `accept-all` compares no IoU with a threshold");
}

#[test]
fn a_generator_without_steps_finishes_what_previews_could_give_up() {
    let sandbox = tiny();
    sandbox.run("generate m.toml").ok();
    let set = "--set synthesis.preview.at=0.5 --set synthesis.preview.below=0.9";
    sandbox
        .run(&format!("generate m.toml {set} --set output=runs/watched"))
        .ok();
    let read = |run: &str| fs::read(sandbox.path(&format!("runs/{run}/rejected.jsonl"))).unwrap();
    assert_eq!(read("tiny"), read("watched"));
    let summary = summary(&sandbox, "watched");
    assert_eq!(summary["preview"]["given_up"], 0);
    sandbox
        .run("check m.toml --set synthesis.preview.at=1")
        .refused("`synthesis.preview.at` must be above 0 and below 1");
}

#[test]
fn candidates_are_given_up_at_their_previews() {
    let sandbox = Sandbox::new();
    sandbox.library("diffaug-misbehave", "misbehave.so");
    sandbox.write("m.toml", misbehave());
    let preview = "--set synthesis.preview.at=0.5 --set synthesis.ratio=100";
    let run = |name: &str, more: &str| {
        let set = format!("{preview} {more} --set output=runs/{name}");
        sandbox.run(&format!("generate m.toml {set}")).ok();
        summary(&sandbox, name)
    };
    let watched = run("watched", "");
    let number = |summary: &serde_json::Value, name: &str| summary[name].as_u64().unwrap();
    let given_up = number(&watched["preview"], "given_up");
    let candidates = number(&watched, "candidates");
    assert!(given_up > 0 && given_up < candidates, "{watched}");
    assert_eq!(number(&watched, "accepted"), candidates - given_up);
    let saved = watched["preview"]["saved"].as_f64().unwrap();
    assert!((saved - given_up as f64 / 2.0 / candidates as f64).abs() < 1e-9);
    let rejected = fs::read_to_string(sandbox.path("runs/watched/rejected.jsonl")).unwrap();
    assert_eq!(rejected.lines().count() as u64, given_up);
    assert!(
        rejected
            .lines()
            .all(|line| line.contains("given up at a preview"))
    );
    // In an audit all are finished, and all of these pass.
    let audit = run("audit", "--set synthesis.preview.audit=true");
    assert_eq!(number(&audit, "accepted"), candidates);
    assert_eq!(number(&audit["preview"], "lost"), given_up);
    let output = sandbox.run(&format!(
        "generate m.toml {preview} --set generator.mode=duplicate-ids --set output=runs/wrong"
    ));
    assert_eq!(output.code, Some(2), "{output}");
    assert!(output.stderr.contains("the generator showed"), "{output}");
}

#[test]
fn a_gate_smaller_than_the_images_judges_them_by_size_and_detail() {
    let sandbox = tiny();
    let gate = r#"
base = "m.toml"
output = "runs/sized"
[images]
size = 64
[segmenter]
use = "unet"
size = 32
[validator]
use = "iou"
threshold = 0.9
tolerance = 1
tolerant_below = 1.0
detail = 10.0
by_size = [{ below = 0.0001, threshold = 0.5 }, { below = 1.0, threshold = 0.0 }]
"#;
    sandbox.write("sized.toml", gate);
    sandbox.run("sweep sized.toml --json").ok();
    let rejected = sandbox.read_lines("runs/sized/rejected.jsonl");
    assert!(!rejected.is_empty());
    // Nothing has ten times the detail around it; what is not found is told with its threshold.
    for record in &rejected {
        let reason = record["reason"].as_str().unwrap();
        let (smooth, missed) = (
            reason.starts_with("too smooth: "),
            reason.contains("not above 0.00, the threshold of lesions below 100 % of the image"),
        );
        assert!(smooth || missed, "{reason}");
        assert!(record["measures"]["detail_ratio"].as_f64().unwrap() < 10.0);
    }
    assert_eq!(
        summary(&sandbox, "sized")["sweep"]
            .as_array()
            .unwrap()
            .len(),
        9
    );
}
