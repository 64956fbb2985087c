//! Measures in whole runs: their figures stand wherever Dice does, and one that fails is told of.

use crate::util::{Sandbox, misbehave};
use std::fs;

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.library("diffaug-misbehave", "misbehave.so");
    let measures = "[evaluate.measures.misbehave]\nuse = \"misbehave\"\n\
                    [evaluate.measures.again]\nuse = \"misbehave\"\n";
    sandbox.write("m.toml", misbehave() + measures);
    sandbox
}

#[test]
fn figures_of_measures_stand_beside_dice() {
    let sandbox = sandbox();
    let output = sandbox.run("run m.toml").ok();
    assert!(
        output.stdout.contains("| found, mean over images "),
        "{output}"
    );
    let table = sandbox.read("runs/m/evaluate/real/seed-0/per_image.csv");
    let header: Vec<&str> = table.lines().next().unwrap().split(',').collect();
    let place = |name: &str| header.iter().position(|cell| *cell == name).unwrap();
    assert!(place("specificity") < place("again.found") && place("found") < place("true_positive"));
    // The segmenter is right everywhere, so what it found is what is there.
    for line in table.lines().skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        let number = |name: &str| cells[place(name)].parse::<f64>().unwrap();
        assert!(number("found") > 0.0);
        assert_eq!(
            number("found"),
            number("true_positive") + number("false_positive")
        );
        assert_eq!(number("found"), number("again.found"));
    }
    let result = sandbox.read_json("runs/m/result.json");
    let figures = result["figures"].as_array().unwrap();
    let names: Vec<&str> = figures
        .iter()
        .map(|f| f["name"].as_str().unwrap())
        .collect();
    assert_eq!(names[5..], ["again.found", "found"]);
    assert!(result["arms"][0]["mean"]["found"].as_f64().unwrap() > 0.0);

    let compared = sandbox
        .run("compare runs/m --metric found --json")
        .ok()
        .json();
    assert_eq!(compared[1]["better"], "neither");
    sandbox
        .run("compare runs/m --metric lost")
        .refused("has a figure `lost`");
}

#[test]
fn another_measure_trains_nothing() {
    let sandbox = sandbox();
    sandbox.write("plain.toml", misbehave().replace("\"m\"", "\"plain\""));
    sandbox.run("run plain.toml").ok();
    let output = sandbox.run("run m.toml").ok();
    let painting = output
        .stderr
        .lines()
        .find(|line| line.starts_with("painting"));
    assert_eq!(painting, Some("painting: done before (TIME)"), "{output}");
    let testing = output
        .stderr
        .lines()
        .filter(|line| line.starts_with("testing on"));
    assert!(
        testing.clone().all(|line| !line.contains("done before")),
        "{output}"
    );
    assert_eq!(testing.count(), 2);
}

#[test]
fn measures_are_added_to_a_finished_run() {
    let sandbox = sandbox();
    let plain = misbehave();
    sandbox.write("plain.toml", &plain);
    sandbox.run("run plain.toml").ok();
    let before = sandbox.read_json("runs/m/result.json");
    let output = sandbox.run("run m.toml").ok();
    assert!(!output.stderr.contains("painting"), "{output}");
    let after = sandbox.read_json("runs/m/result.json");
    let dice = |result: &serde_json::Value| result["arms"][0]["mean"]["dice"].clone();
    assert_eq!(dice(&before), dice(&after));
    assert!(before["arms"][0]["mean"]["found"].is_null());
    assert!(after["arms"][0]["mean"]["found"].as_f64().unwrap() > 0.0);
    // And taken away again: the scores are those of before.
    sandbox.run("run plain.toml").ok();
    assert_eq!(sandbox.read_json("runs/m/result.json"), before);
    // Whatever else would give other scores is refused, as ever.
    sandbox
        .run("run m.toml --set evaluate.resolution=native")
        .refused("was begun with");
    assert!(
        sandbox
            .path("runs/m/evaluate/real/seed-0/scores.json")
            .exists()
    );
}

#[test]
fn figures_of_other_options_are_not_compared() {
    let sandbox = sandbox();
    for (output, count) in [("one", 10), ("two", 12)] {
        let set = format!("--set output=runs/{output} --set evaluate.measures.again.count={count}");
        sandbox.run(&format!("run m.toml -q {set}")).ok();
    }
    sandbox
        .run("compare runs/one:real runs/two:real --metric found")
        .ok();
    sandbox
        .run("compare runs/one:real runs/two:real --metric again.found")
        .refused("`again.found` of `runs/one:real` was measured by");
    let text = misbehave() + "[evaluate.measures.again]\nuse = \"misbehave\"\n";
    let arms = "[experiment]\nmetric = \"again.found\"\n[arms.a]\n\
                [arms.b]\nevaluate.measures.again.count = 12\n";
    sandbox.write("x.toml", text + arms);
    sandbox
        .run("check x.toml")
        .refused("`again.found` is measured with other options in `b`");
}

/// Every measure that needs no weights of others, in one run.
#[test]
#[cfg(feature = "builtin")]
fn the_measures_that_come_along_run() {
    let sandbox = crate::pipeline::tiny();
    let names = ["surface", "detection", "polyp", "calibration", "sizes"];
    let set = names.map(|name| format!("--set evaluate.measures.{name}.use={name} "));
    let output = sandbox.run(&format!("run m.toml {}", set.concat())).ok();
    for line in [
        "| hd95, mean over images",
        "| lesion_sensitivity, mean over images",
        "| lesion_sensitivity, of all images",
        "| ece, of all images",
        "| max_dice, of all images",
        "| area_accepted",
    ] {
        assert!(output.stdout.contains(line), "no `{line}` in {output}");
    }
    let sizes = sandbox.read_json("runs/tiny/measures/sizes.json");
    let summary = sandbox.read_json("runs/tiny/synthetic.json");
    let figures = &sizes["pools"]["candidates"]["figures"];
    assert_eq!(figures["acceptance"], summary["acceptance"]);
    assert_eq!(figures["score_rejected"], summary["score_rejected"]);
    let page = sandbox.read("runs/tiny/report.html");
    assert!(page.contains("sizes: beside 8 real training images"));
}

#[test]
fn a_measure_that_fails_is_told_of() {
    let with = |mode: &str| {
        let set = format!("evaluate.measures.again.mode={mode}");
        sandbox().run(&format!("run m.toml -q --set {set}"))
    };
    let output = with("panic");
    assert_eq!(output.code, Some(2), "{output}");
    assert!(
        output.stderr.contains("the measure `again` panicked"),
        "{output}"
    );
    let output = with("fewer-answers");
    assert_eq!(output.code, Some(2), "{output}");
    assert!(
        output
            .stderr
            .contains("the measure `again` gave 1 answers for 2 images"),
        "{output}"
    );
}

#[test]
fn names_of_measures_and_figures_are_checked() {
    let sandbox = sandbox();
    sandbox
        .run("check m.toml --set evaluate.measures.x.use=nobody")
        .refused("nobody");
    sandbox
        .run("check m.toml --set evaluate.measures.again.size=3")
        .refused("unknown field `size`");
    let text = fs::read_to_string(sandbox.path("m.toml")).unwrap();
    let arms = "[experiment]\nmetric = \"fond\"\n[arms.a]\n";
    sandbox.write("x.toml", text + arms);
    sandbox
        .run("experiment x.toml")
        .refused("`experiment.metric` is `fond`, expected one of dice");
    assert!(!sandbox.path("runs").exists());
}
