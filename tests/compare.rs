//! Arms of finished runs beside each other.

use crate::util::Sandbox;
use insta::assert_snapshot;
use serde_json::json;

/// A run with the arms `real` and `augmented`, two seeds and twelve test images in groups of `group`.
fn finished(sandbox: &Sandbox, name: &str, gain: f64, steps: u64, group: usize) {
    let lock = json!({
        "diffaug": "0.1.0",
        "manifest": { "images": { "size": 64 }, "evaluate": { "resolution": "working" } },
        "dataset": { "sha256": "d" },
    });
    let ids: Vec<String> = (0..12).map(|i| format!("i{i}")).collect();
    sandbox.write(&format!("{name}/lock.json"), lock.to_string());
    let split = json!({ "train": [], "validation": [], "test": ids });
    sandbox.write(&format!("{name}/split.json"), split.to_string());
    for (arm, gain, steps) in [("real", 0.0, 100), ("augmented", gain, steps)] {
        for seed in 0..2 {
            let folder = format!("{name}/evaluate/{arm}/seed-{seed}");
            let scores = json!({ "seed": seed, "fit": { "steps": steps } });
            sandbox.write(&format!("{folder}/scores.json"), scores.to_string());
            let row = |(i, id): (usize, &String)| {
                let dice = 0.5
                    + gain
                    + 0.01 * (i * 7 % 12) as f64 * (1.0 + 0.1 * gain)
                    + 0.02 * seed as f64;
                format!("{id},video {},{dice}\n", i / group)
            };
            let rows: String = ids.iter().enumerate().map(row).collect();
            let csv = format!("id,group,dice\n{rows}");
            sandbox.write(&format!("{folder}/per_image.csv"), csv);
        }
    }
}

#[test]
fn arms_are_compared_with_an_interval() {
    let sandbox = Sandbox::new();
    finished(&sandbox, "paint", 0.1, 100, 1);
    finished(&sandbox, "paste", -0.05, 100, 1);
    assert_snapshot!(sandbox.run("compare paint paste:augmented"), @r"
    exit 0
    | arm             | seeds |          dice | difference |    95 % interval |      p | p (Holm) | verdict |
    |-----------------|-------|---------------|------------|------------------|--------|----------|---------|
    | paint:real      |     2 | 0.565 ± 0.014 |            |                  |        |          |         |
    | paint:augmented |     2 | 0.666 ± 0.014 |     +0.101 | +0.100 to +0.101 | 0.0005 |   0.0010 |    gain |
    | paste:augmented |     2 | 0.515 ± 0.014 |     -0.050 | -0.050 to -0.050 | 0.0005 |   0.0010 |    loss |
    Differences from the first arm over 12 test images in 12 independent groups, each image the mean of its trainings; interval of 10000 resamples of whole groups; p of the Wilcoxon signed-rank test over the means of groups.
    ");
    let rows = sandbox
        .run("compare paint paste:augmented --json")
        .ok()
        .json();
    assert_eq!(rows[1]["seeds"], json!([0, 1]));
    assert!((rows[1]["mean"].as_f64().unwrap() - 0.66555).abs() < 1e-9);
}

#[test]
fn what_is_less_than_fair_is_warned_of() {
    let sandbox = Sandbox::new();
    finished(&sandbox, "run", 0.1, 250, 4);
    assert_snapshot!(sandbox.run("compare run"), @r"
    exit 0
    | arm           | seeds |          dice | difference |    95 % interval |      p | p (Holm) | verdict |
    |---------------|-------|---------------|------------|------------------|--------|----------|---------|
    | run:real      |     2 | 0.565 ± 0.014 |            |                  |        |          |         |
    | run:augmented |     2 | 0.666 ± 0.014 |     +0.101 | +0.100 to +0.101 | 0.2500 |   0.2500 |    gain |
    Differences from the first arm over 12 test images in 3 independent groups, each image the mean of its trainings; interval of 10000 resamples of whole groups; p of the Wilcoxon signed-rank test over the means of groups.
     WARN `run:augmented` was not trained for as many steps as `run:real`
     WARN there are only 3 independent groups of images: intervals are too narrow
    ");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let sandbox = Sandbox::new();
    finished(&sandbox, "run", 0.1, 100, 1);
    finished(&sandbox, "other", 0.1, 100, 1);
    let lock = sandbox.read("other/lock.json").replace("64", "96");
    sandbox.write("other/lock.json", lock);
    finished(&sandbox, "torn", 0.1, 100, 1);
    sandbox.write(
        "torn/evaluate/real/seed-0/per_image.csv",
        "id,dice\na,0.5\na,0.6\n",
    );
    sandbox.write("empty/note.txt", "");
    assert_snapshot!(sandbox.run("compare run:real"), @r"
    exit 1
    error: there is one arm alone, `run:real`: name another run to compare it with
    ");
    assert_snapshot!(sandbox.run("compare run other"), @r"
    exit 1
    error: `other` cannot be compared with the first run: it has images of another size
    ");
    assert_snapshot!(sandbox.run("compare run:painted run"), @r"
    exit 1
    error: run `run` has no scores of an arm `painted`; those it has: augmented, real
    ");
    assert_snapshot!(sandbox.run("compare empty run"), @r"
    exit 1
    error: `empty` is no folder of a run: it has no lock.json
    ");
    assert_snapshot!(sandbox.run("compare run torn"), @r"
    exit 1
    error: `torn/evaluate/real/seed-0/per_image.csv` is damaged: it names `a` twice
    ");
    assert_snapshot!(sandbox.run("compare run --metric dicey"), @r"
    exit 1
    error: no test image of `run:real` has a figure `dicey`
    ");
}
