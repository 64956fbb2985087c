//! Exports of small runs, read back.

#![allow(clippy::unwrap_used)]

mod common;

use diffaug::{
    Dataset, Silent,
    image::{open_gray, open_image},
    view::Shared,
};
use diffaug_export::{Exported, Format, Options, Size, export};
use diffaug_run::{
    failure::Failure,
    reader::Run,
    session::Session,
    work::reopen::{Part, Reopened},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};
use tempfile::TempDir;

/// A run folder that all tests read.
struct Finished {
    _folder: TempDir,
    root: PathBuf,
}

fn finished(kind: &str) -> Finished {
    let folder = tempfile::tempdir().unwrap();
    let root = common::run(folder.path(), kind, &[]);
    Finished {
        _folder: folder,
        root,
    }
}

static COLON: LazyLock<Finished> = LazyLock::new(|| finished("colon"));
static FUNDUS: LazyLock<Finished> = LazyLock::new(|| finished("fundus"));

fn try_export(root: &Path, options: &Options) -> Result<Exported, Failure> {
    let run = Run::open(root)?;
    let manifest = run.manifest()?;
    export(
        &run,
        &manifest,
        &common::registry(),
        options,
        &Session::new(&Silent),
    )
}

/// Exports a run, and where to.
fn exported(root: &Path, format: Format, change: impl FnOnce(&mut Options)) -> (TempDir, Exported) {
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options::new(format, folder.path().join("out"));
    change(&mut options);
    let exported = try_export(root, &options).unwrap();
    (folder, exported)
}

fn json_of(path: PathBuf) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn lines(path: PathBuf) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Every file below a folder, by its name there.
fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                let name = path
                    .strip_prefix(root)
                    .unwrap()
                    .to_string_lossy()
                    .into_owned();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn reopened(root: &Path) -> Reopened {
    let run = Run::open(root).unwrap();
    let manifest = run.manifest().unwrap();
    Reopened::open(&run, &manifest, &common::registry(), &Session::new(&Silent)).unwrap()
}

fn part(root: &Path, part: Part, native: bool) -> Shared {
    reopened(root).part(part, native).unwrap()
}

#[test]
fn images_and_labels_are_those_of_the_run() {
    let (_folder, exported) = exported(&FUNDUS.root, Format::Nnunet, |_| {});
    let arm = &exported.arms[0];
    assert_eq!(
        (arm.real, arm.synthetic, arm.validation, arm.test),
        (6, 6, 3, 0)
    );
    assert!(arm.folder.ends_with("out/Dataset501_phantom_fundus"));
    for (first, part_of) in [(0, Part::Train), (12, Part::Validation)] {
        let view = part(&FUNDUS.root, part_of, false);
        for index in 0..view.items().unwrap().len() as u64 {
            let sample = view.sample(index).unwrap();
            let name = format!("{:06}", first + index);
            let image = open_image(
                &arm.folder.join(format!("imagesTr/{name}_0000.png")),
                10_000,
            );
            assert_eq!(image.unwrap(), sample.image);
            let label = open_gray(&arm.folder.join(format!("labelsTr/{name}.png")), 10_000);
            assert_eq!(label.unwrap(), sample.mask);
        }
    }
    // Painted images lie in the run folder, with masks to be looked at: 127 is the disc, 255 the cup.
    let records = lines(FUNDUS.root.join("synthetic/metadata.jsonl"));
    for (record, number) in records.iter().zip(6..) {
        let of_run = |field: &str| {
            FUNDUS
                .root
                .join("synthetic")
                .join(record[field].as_str().unwrap())
        };
        let image = open_image(
            &arm.folder.join(format!("imagesTr/{number:06}_0000.png")),
            10_000,
        );
        assert_eq!(
            image.unwrap(),
            open_image(&of_run("file_name"), 10_000).unwrap()
        );
        let label = open_gray(
            &arm.folder.join(format!("labelsTr/{number:06}.png")),
            10_000,
        )
        .unwrap();
        let greys = open_gray(&of_run("mask_file_name"), 10_000).unwrap();
        let expected = greys.labels().iter().map(|grey| match grey {
            0 => 0,
            127 => 1,
            255 => 2,
            other => panic!("a grey of {other}"),
        });
        assert!(label.labels().iter().copied().eq(expected));
        assert_eq!(label.view().classes(), [1, 2]);
    }
}

#[test]
fn nnunet_is_told_classes_counts_and_the_one_fold() {
    let (_folder, exported) = exported(&FUNDUS.root, Format::Nnunet, |o| {
        o.test = true;
        o.dataset_id = 7;
    });
    let folder = &exported.arms[0].folder;
    assert!(folder.ends_with("Dataset007_phantom_fundus"));
    let description = json_of(folder.join("dataset.json"));
    assert_eq!(
        description["labels"],
        json!({ "background": 0, "optic disc": 1, "optic cup": 2 })
    );
    assert_eq!(
        description["channel_names"],
        json!({ "0": "R", "1": "G", "2": "B" })
    );
    assert_eq!(
        (&description["numTraining"], &description["file_ending"]),
        (&json!(15), &json!(".png"))
    );
    let splits = json_of(folder.join("splits_final.json"));
    assert_eq!(splits[0]["train"].as_array().unwrap().len(), 12);
    assert_eq!(splits[0]["val"], json!(["000012", "000013", "000014"]));
    let all = files(folder);
    let count = |start: &str| all.keys().filter(|name| name.starts_with(start)).count();
    let counts = ["imagesTr/", "labelsTr/", "imagesTs/", "labelsTs/"].map(count);
    assert_eq!(counts, [15, 15, 4, 4]);
}

#[test]
fn every_image_says_where_it_comes_from() {
    let (_folder, exported) = exported(&COLON.root, Format::Imagefolder, |_| {});
    let folder = &exported.folder;
    let lines = lines(folder.join("provenance.jsonl"));
    assert_eq!(lines.len(), 15);
    let lock = diffaug::files::hash_file(&COLON.root.join("lock.json")).unwrap();
    let trained = |name: &str| {
        let marker = json_of(COLON.root.join(format!("{name}.json")));
        marker["files"][name].clone()
    };
    let (generator, judge) = (trained("generator"), trained("segmenter"));
    assert!(generator.is_string() && judge.is_string());
    for (number, line) in lines.iter().enumerate() {
        let synthetic = (6..12).contains(&number);
        assert_eq!(line["synthetic"], json!(synthetic));
        assert_eq!(line["lock_sha256"], json!(lock));
        assert_eq!(line["diffaug"], json!(env!("CARGO_PKG_VERSION")));
        let fields = [
            "prompt",
            "seed",
            "score",
            "judge_sha256",
            "digitalSourceType",
            "generator",
        ];
        for field in fields {
            assert_eq!(line.get(field).is_some(), synthetic, "{field} of {line}");
        }
        if synthetic {
            assert_eq!(line["judge_sha256"], json!([judge]));
            assert_eq!(line["generator_sha256"], json!([generator]));
            let kind = line["digitalSourceType"].as_str().unwrap();
            assert!(kind.ends_with("/trainedAlgorithmicMedia"), "{kind}");
        }
        // The file itself says the same, but for the names of files.
        for field in ["file", "label"] {
            let path = folder.join(line[field].as_str().unwrap());
            let file = std::io::BufReader::new(fs::File::open(path).unwrap());
            let reader = png::Decoder::new(file).read_info().unwrap();
            let texts = &reader.info().uncompressed_latin1_text;
            let text = &texts
                .iter()
                .find(|text| text.keyword == "diffaug")
                .unwrap()
                .text;
            let mut facts: Value = serde_json::from_str(text).unwrap();
            facts["file"] = line["file"].clone();
            facts["label"] = line["label"].clone();
            assert_eq!(&facts, line);
        }
    }
}

#[test]
fn test_images_are_exported_only_where_asked_for() {
    let ids: Vec<String> = Run::open(&COLON.root).unwrap().split().unwrap().test;
    for (format, place) in [
        (Format::Nnunet, "imagesTs/"),
        (Format::Coco, "test/"),
        (Format::YoloSeg, "images/test/"),
        (Format::Imagefolder, "test/images/"),
    ] {
        for test in [false, true] {
            let (_folder, exported) = exported(&COLON.root, format, |o| o.test = test);
            let folder = &exported.arms[0].folder;
            let lines = lines(folder.join("provenance.jsonl"));
            let found = lines.iter().filter(|line| line["part"] == "test");
            let found: Vec<&Value> = found.collect();
            assert_eq!(found.len(), if test { 4 } else { 0 }, "{format:?}");
            assert_eq!(exported.arms[0].test, found.len() as u64);
            for line in &lines {
                let is_test = ids.iter().any(|id| line["id"] == id.as_str());
                assert_eq!(is_test, line["part"] == "test");
                assert_eq!(is_test, line["file"].as_str().unwrap().starts_with(place));
            }
            // Nothing lies there that the lists do not name.
            let images = files(folder)
                .into_keys()
                .filter(|name| name.ends_with(".png"));
            let named = |key: &str| lines.iter().filter(|l| l.get(key).is_some()).count();
            assert_eq!(images.count(), named("file") + named("label"));
        }
    }
}

#[test]
fn instances_of_coco_give_the_masks_back() {
    let (_folder, exported) = exported(&FUNDUS.root, Format::Coco, |_| {});
    for (name, count, view) in [
        ("train", 12, part(&FUNDUS.root, Part::Train, false)),
        ("val", 3, part(&FUNDUS.root, Part::Validation, false)),
    ] {
        let list = json_of(
            exported
                .folder
                .join(format!("annotations/instances_{name}.json")),
        );
        let categories =
            json!([{ "id": 1, "name": "optic disc" }, { "id": 2, "name": "optic cup" }]);
        assert_eq!(list["categories"], categories);
        let images = list["images"].as_array().unwrap();
        assert_eq!(images.len(), count);
        let ids = list["annotations"].as_array().unwrap().iter().zip(1..);
        assert!(
            ids.clone()
                .all(|(annotation, id)| annotation["id"] == json!(id))
        );
        let real = view.items().unwrap().len();
        for (index, image) in images.iter().enumerate().take(real) {
            let sample = view.sample(index as u64).unwrap();
            assert_eq!(
                (&image["width"], &image["synthetic"]),
                (&json!(64), &json!(false))
            );
            let mut labels = vec![0; 64 * 64];
            for (annotation, _) in ids.clone().filter(|(a, _)| a["image_id"] == image["id"]) {
                assert_eq!(annotation["iscrowd"], json!(0));
                let mut at = 0;
                let mut area = 0;
                for (turn, run) in annotation["segmentation"]["counts"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .enumerate()
                {
                    for _ in 0..run.as_u64().unwrap() {
                        if turn % 2 == 1 {
                            labels[at % 64 * 64 + at / 64] =
                                annotation["category_id"].as_u64().unwrap() as u8;
                            area += 1;
                        }
                        at += 1;
                    }
                }
                assert_eq!((at, &annotation["area"]), (64 * 64, &json!(area)));
            }
            assert_eq!(labels, sample.mask.labels());
        }
    }
}

#[test]
fn yolo_is_told_classes_from_zero() {
    let (_folder, exported) = exported(&FUNDUS.root, Format::YoloSeg, |_| {});
    let yaml = fs::read_to_string(exported.folder.join("data.yaml")).unwrap();
    assert!(
        yaml.ends_with("val: images/val\nnames:\n  0: \"optic disc\"\n  1: \"optic cup\"\n"),
        "{yaml}"
    );
    let note = exported.arms[0].note.as_ref().unwrap();
    assert!(
        note.contains("IoU of 1.0000 (1.0000 for the worst region)"),
        "{note}"
    );
    let label = fs::read_to_string(exported.folder.join("labels/val/000012.txt")).unwrap();
    let classes: Vec<&str> = label.lines().map(|line| &line[..2]).collect();
    assert_eq!(classes, ["0 ", "1 "]);
    // A frame without a polyp has an empty file.
    let folder = tempfile::tempdir().unwrap();
    let changes = ["dataset.normal=0.5", "synthesis.ratio=0"];
    let root = common::run(folder.path(), "colon", &changes);
    let (_folder, exported) = self::exported(&root, Format::YoloSeg, |_| {});
    let labels = files(&exported.folder.join("labels"));
    assert_eq!(labels.len(), 9);
    let empty = labels.values().filter(|label| label.is_empty()).count();
    let view = [Part::Train, Part::Validation].map(|part| self::part(&root, part, false));
    let samples = view.iter().flat_map(|view| {
        let count = view.items().unwrap().len() as u64;
        (0..count).map(|index| view.sample(index).unwrap())
    });
    let healthy = samples
        .filter(|sample| sample.mask.view().foreground() == 0)
        .count();
    assert!(healthy > 0);
    assert_eq!(empty, healthy);
}

#[test]
fn lines_of_an_imagefolder_have_the_same_types() {
    let (_folder, exported) = exported(&COLON.root, Format::Imagefolder, |_| {});
    for (part, count) in [("train", 12), ("validation", 3)] {
        let lines = lines(exported.folder.join(part).join("metadata.jsonl"));
        assert_eq!(lines.len(), count);
        for line in lines {
            for field in ["file_name", "mask_file_name"] {
                let file = exported
                    .folder
                    .join(part)
                    .join(line[field].as_str().unwrap());
                assert!(file.is_file(), "{line}");
            }
            assert!(line["prompt"].is_string() && line["synthetic"].is_boolean());
            assert_eq!(line["prompt"] == "", line["synthetic"] == false);
        }
    }
    let classes = json_of(exported.folder.join("classes.json"));
    assert_eq!(classes, json!({ "0": "background", "1": "polyp" }));
}

#[test]
fn sizes_and_arms_are_chosen() {
    let (_folder, exported) = exported(&COLON.root, Format::Imagefolder, |o| {
        o.size = Size::Native;
        o.arms = vec!["real".into(), "augmented".into()];
    });
    let [real, augmented] = exported.arms.as_slice() else {
        panic!("{:?}", exported.arms);
    };
    assert_eq!((real.real, real.synthetic), (6, 0));
    assert_eq!((augmented.real, augmented.synthetic), (6, 6));
    assert!(real.folder.ends_with("out/real") && augmented.folder.ends_with("out/augmented"));
    let view = part(&COLON.root, Part::Train, true);
    let image = open_image(&real.folder.join("train/images/000000.png"), 10_000).unwrap();
    assert_eq!(
        (image.size(), &image),
        ((80, 80), &view.sample(0).unwrap().image)
    );
    let painted = open_image(&augmented.folder.join("train/images/000006.png"), 10_000).unwrap();
    assert_eq!(painted.size(), (64, 64));
}

#[test]
fn equal_runs_give_equal_bytes() {
    for format in Format::ALL {
        let (_a, first) = exported(&COLON.root, format, |_| {});
        let (_b, second) = exported(&COLON.root, format, |_| {});
        assert_eq!(files(&first.folder), files(&second.folder));
    }
}

/// A copy of a run folder, changed.
fn copy(change: impl FnOnce(&Path)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files(&COLON.root) {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    change(folder.path());
    folder
}

fn replace(path: PathBuf, from: &str, to: &str) {
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "no {from} in {text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn what_is_not_as_it_was_is_refused_and_nothing_is_left() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 7] = [
        ("on disk is not the one that run", |root| {
            // The phantom of another seed.
            let lock = root.join("lock.json");
            let mut value = json_of(lock.clone());
            value["manifest"]["dataset"]["seed"] = json!(5);
            fs::write(lock, value.to_string()).unwrap();
        }),
        ("lists other images than those of the run", |root| {
            replace(
                root.join("split.json"),
                "colon-train-0002",
                "colon-train-0099",
            );
        }),
        (
            "has not finished painting: it has no synthetic.json",
            |root| {
                fs::remove_file(root.join("synthetic.json")).unwrap();
            },
        ),
        ("images/000001.png` is not what it was", |root| {
            let from = root.join("synthetic/images/000000.png");
            fs::copy(from, root.join("synthetic/images/000001.png")).unwrap();
        }),
        ("metadata.jsonl` is not what it was", |root| {
            replace(
                root.join("synthetic/metadata.jsonl"),
                "images/000000.png",
                "images/000001.png",
            );
        }),
        ("synthetic.sha256` is gone", |root| {
            fs::remove_file(root.join("synthetic.sha256")).unwrap();
        }),
        ("is none of this version", |root| {
            replace(root.join("lock.json"), "\"device\"", "\"divice\"");
        }),
    ];
    for (sentence, change) in changes {
        let root = copy(change);
        let folder = tempfile::tempdir().unwrap();
        let options = Options::new(Format::Coco, folder.path().join("out"));
        let failure = try_export(root.path(), &options).unwrap_err();
        let message = failure.error.to_string();
        assert!(message.contains(sentence), "no `{sentence}` in: {message}");
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            0,
            "{sentence}"
        );
        // The real images are what they were, unless it was them that changed.
        if sentence.contains("painting") {
            assert!(failure.hint.unwrap().contains("--arms real"));
            let real = Options {
                arms: vec!["real".into()],
                ..options
            };
            assert_eq!(try_export(root.path(), &real).unwrap().arms[0].real, 6);
        }
    }
}

#[test]
fn options_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut Options)| {
        let mut options = Options::new(Format::Nnunet, folder.path().join("out"));
        change(&mut options);
        try_export(&COLON.root, &options)
            .unwrap_err()
            .error
            .to_string()
    };
    let error = refused(&|o| o.arms = vec!["mixed".into()]);
    assert_eq!(
        error,
        "no arm is called `mixed`, expected one of `real`, `augmented`"
    );
    let error = refused(&|o| o.arms = vec!["real".into(), "real".into()]);
    assert_eq!(error, "the arm `real` is named twice");
    let error = refused(&|o| o.dataset_id = 1000);
    assert_eq!(error, "the dataset number is 1000, expected 1 to 999");
    let error = refused(&|o| o.output = COLON.root.clone());
    assert!(error.contains("is not empty"), "{error}");
}
