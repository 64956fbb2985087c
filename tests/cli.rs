//! The command line: what is printed where, and how it exits.

use crate::util::{Sandbox, misbehave};
use diffaug::{
    Image, Mask,
    image::{open_gray, open_image, save_gray, save_image},
};
use insta::assert_snapshot;
use serde_json::json;

/// A grey picture, 4 pixels wide.
fn grey(sandbox: &Sandbox, name: &str, values: &[u8]) {
    sandbox.write(name, "");
    let mask = Mask::new(4, values.len() as u32 / 4, values.to_vec()).unwrap();
    save_gray(mask.view(), &sandbox.path(name)).unwrap();
}

/// Two pairs of masks: Dice 1/2 and 1, IoU 1/3 and 1.
fn masks() -> Sandbox {
    let sandbox = Sandbox::new();
    grey(&sandbox, "truth/a.png", &[255, 255, 0, 0, 0, 0, 0, 0]);
    grey(&sandbox, "pred/a.png", &[255, 0, 0, 255, 0, 0, 0, 0]);
    grey(&sandbox, "truth/b.png", &[0, 0, 0, 0, 255, 255, 255, 255]);
    grey(&sandbox, "pred/b.png", &[0, 0, 0, 0, 255, 255, 255, 255]);
    sandbox
}

const SCORE: &str = "score --pred pred --truth truth";

#[test]
fn scores_are_those_worked_out_by_hand() {
    let report = masks().run(&format!("{SCORE} --json")).ok().json();
    assert_eq!(report["images"], 2);
    let close = |level: &str, figure: &str, expected: f64| {
        let value = report[level][figure].as_f64().unwrap();
        assert!(
            (value - expected).abs() < 1e-12,
            "{level} {figure}: {value}"
        );
    };
    close("per_image_mean", "dice", 0.75);
    close("per_image_mean", "iou", (1.0 / 3.0 + 1.0) / 2.0);
    close("per_image_mean", "sensitivity", 0.75);
    close("per_image_mean", "fnr", 0.25);
    close("per_image_mean", "specificity", (5.0 / 6.0 + 1.0) / 2.0);
    // 5 of 6 true pixels found, 1 false one.
    close("dataset_level", "dice", 10.0 / 12.0);
    close("dataset_level", "iou", 5.0 / 7.0);
}

#[test]
fn scores_are_a_table() {
    assert_snapshot!(masks().run(SCORE), @r"
    exit 0
    2 images
    |                     |   Dice |    IoU | sensitivity |    FNR | specificity |
    |---------------------|--------|--------|-------------|--------|-------------|
    | mean over images    | 0.7500 | 0.6667 |      0.7500 | 0.2500 |      0.9167 |
    | std over images     | 0.3536 | 0.4714 |      0.3536 | 0.3536 |      0.1179 |
    | all pixels together | 0.8333 | 0.7143 |      0.8333 | 0.1667 |      0.9000 |
    ");
}

#[test]
fn scores_of_each_image_are_a_csv_file() {
    let sandbox = masks();
    sandbox
        .run(&format!("{SCORE} --csv out/scores.csv -q"))
        .ok();
    assert_snapshot!(sandbox.read("out/scores.csv"), @r"
    id,dice,iou,sensitivity,fnr,specificity,true_positive,false_positive,false_negative,true_negative
    a,0.5,0.3333333333333333,0.5,0.5,0.8333333333333334,1,1,1,5
    b,1,1,1,0,1,4,0,0,4
    ");
}

#[test]
fn labels_are_scored_by_value() {
    let sandbox = Sandbox::new();
    for folder in ["truth", "pred"] {
        grey(&sandbox, &format!("{folder}/a.png"), &[1, 2, 0, 0]);
    }
    assert_snapshot!(sandbox.run(SCORE), @r"
    exit 1
    error: mask `truth/a.png` has the values 1, 2 besides 0; expected 0 and 255 (white on black, edges may be soft) or 0 and 1: name the labels to score (`--labels 1,2`), or set `--threshold 127` if what is brighter counts
    ");
    let report = sandbox
        .run(&format!("{SCORE} --labels 2 --json"))
        .ok()
        .json();
    assert_eq!(report["per_image_mean"]["dice"], 1.0);
}

#[test]
fn folders_that_do_not_match_are_refused() {
    let sandbox = masks();
    grey(&sandbox, "truth/c.png", &[255; 8]);
    assert_snapshot!(sandbox.run(SCORE), @r"
    exit 1
    error: cannot match `pred` with `truth`: image `truth/c.png` has no mask in `pred`
    ");
    let sandbox = masks();
    grey(&sandbox, "pred/a.png", &[255; 12]);
    assert_snapshot!(sandbox.run(SCORE), @r"
    exit 1
    error: cannot score `a`: the prediction is 4x3, but its truth is 4x2
    ");
    let sandbox = masks();
    sandbox.write("none/readme.txt", "");
    assert_snapshot!(sandbox.run("score --pred none --truth truth"), @r"
    exit 1
    error: `none` holds no images (png, jpg, tif, bmp)
    ");
    assert_snapshot!(sandbox.run("score --pred nowhere --truth truth"), @r"
    exit 1
    error: `nowhere` does not exist
    ");
}

#[test]
fn a_wrong_command_line_is_the_users_to_mend() {
    for args in ["run", "frobnicate", "plugins --colour", "score --pred a"] {
        let output = Sandbox::new().run(args);
        assert_eq!(output.code, Some(1), "{output}");
        assert_eq!(output.stdout, "");
    }
    assert_snapshot!(Sandbox::new().run("check nowhere.toml"), @r"
    exit 1
    error: cannot read manifest `nowhere.toml`: No such file or directory (os error 2)
    ");
}

#[test]
fn help_and_version_are_results() {
    let sandbox = Sandbox::new();
    assert!(sandbox.run("--help").ok().stdout.contains("completions"));
    assert!(
        sandbox
            .run("--version")
            .ok()
            .stdout
            .starts_with("diffaug 0.")
    );
}

#[test]
fn completions_are_a_script() {
    for shell in ["bash", "zsh", "fish"] {
        let script = Sandbox::new()
            .run(&format!("completions {shell}"))
            .ok()
            .stdout;
        assert!(script.contains("plugins"), "{shell}");
    }
}

/// A sandbox with the stages of `diffaug-misbehave`, an image and a mask.
fn stages() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.library("diffaug-misbehave", "misbehave.so");
    sandbox.write("m.toml", misbehave());
    let image = Image::new(4, 2, vec![10; 24]).unwrap();
    save_image(image.view(), &sandbox.path("image.png")).unwrap();
    grey(&sandbox, "mask.png", &[0, 255, 255, 0, 0, 0, 0, 0]);
    sandbox
}

#[test]
fn the_options_of_a_plugin_are_listed() {
    let sandbox = stages();
    let args = "plugins dataset misbehave --library ./misbehave.so";
    let text = sandbox.run(args).ok().stdout;
    assert!(
        text.contains("\n  count (integer, default 10)\n      How many samples"),
        "{text}"
    );
    let schema = sandbox.run(&format!("{args} --json")).ok().json();
    assert_eq!(schema["properties"]["count"]["default"], 10);
}

#[test]
fn a_plugin_or_kind_that_is_not_there_is_guessed_at() {
    let sandbox = stages();
    assert_snapshot!(sandbox.run("plugins datasets"), @r"
    exit 1
    error: no kind of stage is called `datasets`; there are `dataset`, `prompts`, `generator`, `segmenter`, `validator`, `measure`

    hint: did you mean `dataset`?
    ");
    let output = sandbox.run("plugins generator filer --library ./misbehave.so");
    output.refused("no generator is called `filer`; there are ");
    assert!(
        output.stderr.ends_with("\nhint: did you mean `filler`?\n"),
        "{output}"
    );
}

#[test]
fn a_generator_can_be_tried() {
    let sandbox = stages();
    let args = "try generator filler --library ./misbehave.so --image image.png --mask mask.png -o out.png";
    assert_snapshot!(sandbox.run(&format!("{args} --json -q")).ok(), @r#"
    exit 0
    {
      "output": "out.png"
    }
    "#);
    let painted = open_image(&sandbox.path("out.png"), 100).unwrap();
    assert_eq!(painted.pixels()[..6], [10, 10, 10, 220, 0, 30]);
    grey(&sandbox, "mask.png", &[255; 4]);
    assert_snapshot!(sandbox.run(args), @r"
    exit 1
    error: mask `mask.png` is 4x1, but image `image.png` is 4x2
    ");
    assert_snapshot!(sandbox.run(&args.replace("image.png", "nothing.png")), @r"
    exit 1
    error: cannot read `nothing.png`: No such file or directory (os error 2)
    ");
}

#[test]
fn a_segmenter_can_be_tried() {
    let sandbox = stages();
    let bright = Image::new(4, 2, [[10; 12], [200; 12]].concat()).unwrap();
    save_image(bright.view(), &sandbox.path("image.png")).unwrap();
    let args = "try segmenter misbehave --library ./misbehave.so --image image.png -o out.png";
    let facts = sandbox.run(&format!("{args} --json -q")).ok().json();
    assert_eq!(facts, json!({ "foreground": 0.5, "output": "out.png" }));
    let mask = open_gray(&sandbox.path("out.png"), 100).unwrap();
    assert_eq!(mask.labels(), [[0; 4], [255; 4]].concat());
}

#[test]
fn an_answer_of_another_size_is_not_written() {
    let sandbox = stages();
    let common = "--library ./misbehave.so --image image.png -o out.png --set mode=other-size";
    let painted = sandbox.run(&format!("try generator filler --mask mask.png {common}"));
    let found = sandbox.run(&format!("try segmenter misbehave {common}"));
    assert_eq!(
        (painted.code, found.code),
        (Some(2), Some(2)),
        "{painted}{found}"
    );
    assert!(!sandbox.path("out.png").exists());
}

#[test]
fn a_manifest_can_be_checked_with_its_data() {
    let sandbox = stages();
    assert_snapshot!(sandbox.run("check m.toml"), @r"
    exit 0
    m.toml is in order
    ");
    assert_snapshot!(sandbox.run("check m.toml --data --json -q"), @r#"
    exit 0
    {
      "manifest": "m.toml",
      "valid": true,
      "dataset": "squares",
      "train": 7,
      "validation": 1,
      "test": 2,
      "looked_at": "headers"
    }
    "#);
}

#[test]
fn quiet_is_quiet() {
    let output = stages().run("run m.toml -q --json").ok();
    assert_eq!(output.stderr, "");
    assert_eq!(output.json()["arms"][1]["name"], "augmented");
}

#[test]
fn what_cannot_be_converted_is_told() {
    let sandbox = Sandbox::new();
    sandbox.write("model.ckpt", "no archive");
    sandbox
        .run("convert segmenter sdseg model.ckpt out")
        .refused("cannot read `model.ckpt` as a PyTorch file");
    sandbox
        .run("convert segmenter sdseg nowhere.ckpt out")
        .refused("there is no file `nowhere.ckpt`");
    sandbox
        .run("convert segmenter unet model.ckpt out")
        .refused("cannot read `model.ckpt` as a PyTorch file");
    sandbox
        .run("convert generator seamless-paste model.ckpt out")
        .refused("this stage has no files to convert");
    sandbox
        .run("convert dataset phantom model.ckpt out")
        .refused("`dataset` is neither `generator` nor `segmenter`");
    sandbox.write("there/file", "");
    sandbox
        .run("convert segmenter sdseg model.ckpt there")
        .refused("`there` is there already");
    let left: Vec<_> = std::fs::read_dir(sandbox.path("."))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_published_checkpoint_becomes_weights_that_answer() {
    let sandbox = Sandbox::new();
    let fixture = crate::util::root().join("plugins/latent-seg/fixtures/reference.ckpt");
    std::fs::copy(fixture, sandbox.path("model.ckpt")).unwrap();
    let set = "--set size=16 --set architecture.heads=2 --set architecture.groups=4";
    let made = sandbox
        .run(&format!("convert segmenter sdseg model.ckpt out {set}"))
        .ok();
    assert!(made.stdout.contains("running means"), "{made}");
    let image = Image::new(20, 10, vec![90; 600]).unwrap();
    save_image(image.view(), &sandbox.path("image.png")).unwrap();
    sandbox
        .run("try segmenter sdseg --image image.png -o mask.png --set weights=out")
        .ok();
    let found = open_gray(&sandbox.path("mask.png"), 1 << 20).unwrap();
    assert_eq!(found.size(), (20, 10));
}
