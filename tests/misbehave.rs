//! Stages that fail, in a library that was loaded: the host survives, says why in a sentence, and
//! tells by the exit code who has to act.

use crate::util::{Output, Sandbox, interrupt, misbehave};
use insta::assert_snapshot;
use std::{fs, thread::sleep, time::Duration};

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.library("diffaug-misbehave", "misbehave.so");
    sandbox.write("m.toml", misbehave());
    sandbox
}

/// Runs the pipeline of `diffaug-misbehave` with one stage in a mode.
fn with(stage: &str, mode: &str) -> Output {
    sandbox().run(&format!("run m.toml -q --set {stage}.mode={mode}"))
}

#[test]
fn a_run_of_loaded_stages_goes_through() {
    let sandbox = sandbox();
    let output = sandbox.run("run m.toml").ok();
    assert_snapshot!(output, @r"
    exit 0
    7 candidates: 7 accepted, 0 rejected

    accepted by size of the lesion: above 10 %: 7 of 7

    1 of 1 real lesions of the validation part pass the same validator: above 10 %: 1 of 1

    | lesions  | images | fine detail | detail in / around |     contrast |    brightness |
    |----------|--------|-------------|--------------------|--------------|---------------|
    | real     |      7 | 8.02 ± 0.16 |        1.47 ± 0.15 | 79.09 ± 0.15 |  83.85 ± 1.84 |
    | accepted |      7 | 7.83 ± 2.18 |        1.47 ± 0.15 | 88.14 ± 1.83 | 82.62 ± 12.82 |
    | rejected |      0 |           - |                  - |            - |             - |

    misbehave on squares, 2 test images (split `random`), mean over images:
    | trained on | images |  Dice |   IoU | sensitivity |   FNR | specificity | Dice (pixels) |
    |------------|--------|-------|-------|-------------|-------|-------------|---------------|
    | real       |      7 | 1.000 | 1.000 |       1.000 | 0.000 |       1.000 |         1.000 |
    | augmented  |     14 | 1.000 | 1.000 |       1.000 | 0.000 |       1.000 |         1.000 |

    | Dice by group    | images |  real | augmented |
    |------------------|--------|-------|-----------|
    | size: above 10 % |      2 | 1.000 |     1.000 |
    reading the dataset: 7 to train, 1 to validate, 2 to test (TIME)
    painting: 7 of 7 accepted (TIME)
    testing on real training: 2 images (TIME)
    testing on augmented training: 2 images (TIME)

    everything is in runs/m
    ");
    let lines = sandbox.read_lines("runs/m/synthetic/metadata.jsonl");
    assert_eq!(lines.len(), 7);
    assert_eq!(lines[0]["prompt"], "a bright square");
}

#[test]
fn a_panic_is_an_error() {
    assert_snapshot!(with("generator", "panic"), @r"
    exit 2
    error: the generator panicked: index 24 is out of range
    ");
    assert_snapshot!(with("dataset", "panic"), @r"
    exit 2
    error: dataset `misbehave` panicked: index 24 is out of range
    ");
    assert_snapshot!(with("validator", "panic"), @r"
    exit 2
    error: the validator or its segmenter panicked: index 24 is out of range
    ");
}

#[test]
fn a_panic_of_a_constructor_is_an_error() {
    assert_snapshot!(with("segmenter", "panic-on-build"), @r"
    exit 2
    error: segmenter `misbehave` panicked: built to panic
    ");
}

#[test]
fn a_panic_is_told_once() {
    let output = sandbox().run("run m.toml --set generator.mode=panic");
    assert_eq!(output.stderr.matches("out of range").count(), 1, "{output}");
}

#[test]
fn a_panic_of_a_plugins_own_thread_is_contained() {
    assert_snapshot!(with("generator", "panic-in-thread"), @r"
    exit 1
    error: the generator: a worker thread panicked
    ");
}

#[test]
fn an_error_keeps_its_cause() {
    assert_snapshot!(with("generator", "missing-file"), @r"
    exit 1
    error: the generator: cannot read `no/such/file`: No such file or directory (os error 2)
    ");
    assert_snapshot!(with("prompts", "missing-file"), @r"
    exit 1
    error: the prompt bank: cannot read `no/such/file`: No such file or directory (os error 2)
    ");
}

#[test]
fn a_broken_promise_is_the_plugins_fault() {
    assert_snapshot!(with("prompts", "fewer-answers"), @r"
    exit 2
    error: the prompt bank drew 4 prompts for 5 queries
    ");
    assert_snapshot!(with("generator", "fewer-answers"), @r"
    exit 2
    error: the generator made 7 images of 8 jobs
    ");
    assert_snapshot!(with("generator", "other-size"), @r"
    exit 2
    error: the generator made Image(25x24) of Image(24x24)
    ");
    assert_snapshot!(with("validator", "fewer-answers"), @r"
    exit 2
    error: the validator gave 7 verdicts on 8 candidates
    ");
    assert_snapshot!(with("segmenter", "fewer-answers"), @r"
    exit 2
    error: the validator gave 7 verdicts on 8 candidates
    ");
    let tested =
        "run m.toml -q --set evaluate.segmenter.use=misbehave --set evaluate.segmenter.mode=";
    assert_snapshot!(sandbox().run(&format!("{tested}fewer-answers")), @r"
    exit 2
    error: evaluate.segmenter `misbehave`: the segmenter gave 1 answers for 2 images
    ");
    assert_snapshot!(sandbox().run(&format!("{tested}other-size")), @r"
    exit 2
    error: evaluate.segmenter `misbehave`: the segmenter answered Mask(25x24) for Image(24x24)
    ");
}

#[test]
fn a_sample_is_checked() {
    with("dataset", "other-size").refused("the mask is 25x24, but the image is 24x24");
    with("dataset", "stray-label")
        .refused("the mask holds label 9, which is no class of the dataset");
    assert_snapshot!(with("dataset", "duplicate-ids"), @r"
    exit 1
    error: dataset `misbehave`: the id `square-0` occurs twice in the dataset
    ");
}

#[test]
fn a_typing_error_in_an_option_is_pointed_at() {
    let sandbox = sandbox();
    sandbox.write(
        "m.toml",
        misbehave().replace("[prompts]", "cuont = 7\n\n[prompts]"),
    );
    assert_snapshot!(sandbox.run("check m.toml"), @r"
    exit 1
    error: unknown field `cuont`, expected `mode` or `count`
     --> m.toml:5:1
      |
    5 | cuont = 7
      | ^^^^^

    hint: did you mean `count`?
    ");
}

#[test]
fn an_option_out_of_range_is_pointed_at() {
    let sandbox = sandbox();
    sandbox.write(
        "m.toml",
        misbehave().replace("[prompts]", "count = 3\n\n[prompts]"),
    );
    assert_snapshot!(sandbox.run("check m.toml"), @r"
    exit 1
    error: `count` must be at least 4
     --> m.toml:5:9
      |
    5 | count = 3
      |         ^
    ");
    assert_snapshot!(sandbox.run("check m.toml --set dataset.count=lots"), @r#"
    exit 1
    error: invalid type: string "lots", expected u64
     --> --set:1:15
      |
    1 | dataset.count=lots
      |               ^^^^
    "#);
    assert_snapshot!(sandbox.run("check m.toml --set dataset.count=9 --set generator.mode=wild"), @r"
    exit 1
    error: unknown variant `wild`, expected one of `well`, `panic-on-build`, `panic-on-inspect`, `fail-on-inspect`, `greedy`, `panic`, `panic-in-thread`, `missing-file`, `fewer-answers`, `other-size`, `stray-label`, `duplicate-ids`, `log`, `slow`, `hang`, `reject`, `stubborn`, `idle`
     --> --set:1:16
      |
    1 | generator.mode=wild
      |                ^^^^
    ");
}

#[test]
fn when_nothing_is_accepted_the_run_says_so() {
    let sandbox = sandbox();
    let output = sandbox.run("run m.toml --set validator.mode=reject").ok();
    assert!(
        output.stderr.contains("only 0 of the 7 images wanted"),
        "{output}"
    );
    assert_eq!(sandbox.read("runs/m/synthetic/metadata.jsonl"), "");
    let rejected = sandbox.read_lines("runs/m/rejected.jsonl");
    assert_eq!(rejected.len(), 35);
    assert_eq!(rejected[0]["reason"], "not convincing");
}

#[test]
fn events_of_a_library_arrive() {
    let sandbox = sandbox();
    let said = |flag: &str| {
        let folder = format!("runs/x{flag}");
        let args = format!(
            "run m.toml --set validator.mode=log --set output={folder} --set store={folder} {flag}"
        );
        let stderr = sandbox.run(&args).ok().stderr;
        let texts = [
            "an error",
            "a warning left=3",
            "some information",
            "a detail",
            "a trifle",
        ];
        let heard = texts.map(|text| stderr.contains(text));
        let log = sandbox.read(&format!("{folder}/log.jsonl"));
        assert!(log.contains("some information"), "{log}");
        heard.into_iter().filter(|heard| *heard).count()
    };
    assert_eq!(said("-q"), 1);
    assert_eq!(said(""), 2);
    assert_eq!(said("-v"), 3);
    assert_eq!(said("-vv"), 4);
    assert_eq!(said("-vvv"), 5);
}

#[test]
fn a_hanging_stage_is_stopped_by_an_interrupt() {
    let sandbox = sandbox();
    let mut child = sandbox.start("run m.toml --set generator.mode=hang");
    let log = sandbox.path("runs/m/log.jsonl");
    while !fs::read_to_string(&log).is_ok_and(|text| text.contains("hanging")) {
        assert_eq!(child.try_wait().unwrap(), None);
        sleep(Duration::from_millis(20));
    }
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// The files of a run that was never disturbed.
const TIMES: [&str; 1] = ["log.jsonl"];

#[test]
fn an_interrupted_run_goes_on_and_ends_alike() {
    let whole = sandbox();
    let args =
        "run m.toml --set dataset.count=40 --set synthesis.batch=4 --set generator.mode=slow";
    whole.run(args).ok();
    let cut = sandbox();
    for _ in 0..3 {
        let mut child = cut.start(args);
        sleep(Duration::from_millis(120));
        interrupt(&child);
        child.wait().unwrap();
    }
    cut.run(args).ok();
    crate::util::assert_same(&whole.files("runs/m", &TIMES), &cut.files("runs/m", &TIMES));
}

#[test]
fn a_killed_run_goes_on_and_ends_alike() {
    let whole = sandbox();
    let args =
        "run m.toml --set dataset.count=40 --set synthesis.batch=4 --set generator.mode=slow";
    whole.run(args).ok();
    let cut = sandbox();
    for wait in [60, 90, 120, 150, 180] {
        let mut child = cut.start(args);
        sleep(Duration::from_millis(wait));
        // An error means that it has ended already.
        let _ = child.kill();
        child.wait().unwrap();
    }
    cut.run(args).ok();
    crate::util::assert_same(&whole.files("runs/m", &TIMES), &cut.files("runs/m", &TIMES));
}
