//! The dataset on small folders of every layout.
#![allow(clippy::unwrap_used)]

use super::*;
use diffaug::{
    image::{save_gray, save_image},
    split::{SplitOptions, split},
};
use std::path::Path;
use tempfile::TempDir;

const SIDE: u32 = 12;

/// Grey values of background, rim and cup in the official coding.
const REFUGE: [u8; 3] = [255, 128, 0];

/// A disc over rows 2 to 9 and columns 1 to 4, with a cup over `rows` of its column 2.
fn eye([background, rim, cup]: [u8; 3], rows: std::ops::Range<u32>) -> Mask {
    let gray = |x: u32, y: u32| match (x, y) {
        (2, y) if rows.contains(&y) => cup,
        (1..=4, 2..=9) => rim,
        _ => background,
    };
    let pixels = (0..SIDE).flat_map(|y| (0..SIDE).map(move |x| (x, y)));
    Mask::new(SIDE, SIDE, pixels.map(|(x, y)| gray(x, y)).collect()).unwrap()
}

fn write_image(path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let pixels = (0..SIDE * SIDE).flat_map(|at| [(at % SIDE) as u8, (at / SIDE) as u8, 9]);
    let image = Image::new(SIDE, SIDE, pixels.collect()).unwrap();
    save_image(image.view(), path).unwrap();
}

fn write_mask(path: &Path, mask: &Mask) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    save_gray(mask.view(), path).unwrap();
}

fn tree(images: &[&str], masks: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for image in images {
        write_image(&dir.path().join(image));
    }
    for mask in masks {
        write_mask(&dir.path().join(mask), &eye(REFUGE, 4..8));
    }
    dir
}

fn open(root: &Path, mut json: serde_json::Value) -> Result<Refuge2> {
    json["root"] = root.display().to_string().into();
    let options: Options = serde_json::from_value(json).unwrap();
    Refuge2::validate(&options)?;
    Refuge2::from_config(options, &Context::default())
}

fn plain(dir: &TempDir) -> Result<Refuge2> {
    open(dir.path(), serde_json::json!({}))
}

/// Ids with part and glaucoma of every sample.
fn listing(dataset: &Refuge2) -> Vec<(String, String, Option<bool>)> {
    let items = dataset.items().unwrap();
    (0..)
        .zip(&items)
        .map(|(index, item)| {
            let sample = dataset.sample(index).unwrap();
            let glaucoma = sample.attributes.flag("glaucoma");
            (item.id.to_string(), item.part.to_string(), glaucoma)
        })
        .collect()
}

fn entry(id: &str, part: &str, glaucoma: Option<bool>) -> (String, String, Option<bool>) {
    (id.into(), part.into(), glaucoma)
}

#[test]
fn the_official_layout_is_found() {
    let dir = tree(
        &[
            "Training400/Glaucoma/g0001.jpg",
            "Training400/Non-Glaucoma/n0001.jpg",
            "Training400/AMD/A0001.jpg",
            "REFUGE-Validation400/REFUGE-Validation400/V0001.jpg",
            "Test400/T0001.jpg",
            "Test400/T0002.jpg",
        ],
        &[
            "Annotation-Training400/Annotation-Training400/Disc_Cup_Masks/Glaucoma/g0001.bmp",
            "Annotation-Training400/Annotation-Training400/Disc_Cup_Masks/Non-Glaucoma/n0001.bmp",
            "REFUGE-Validation400-GT/Disc_Cup_Masks/V0001.bmp",
            "REFUGE-Test-GT/Disc_Cup_Masks/G/T0001.bmp",
            "REFUGE-Test-GT/Disc_Cup_Masks/N/T0002.bmp",
        ],
    );
    let dataset = plain(&dir).unwrap();
    let mut found = listing(&dataset);
    found.sort();
    let want = [
        entry("T0001", "test", Some(true)),
        entry("T0002", "test", Some(false)),
        entry("V0001", "validation", None),
        entry("g0001", "train", Some(true)),
        entry("n0001", "train", Some(false)),
    ];
    assert_eq!(found, want);
    let names: Vec<_> = dataset
        .info()
        .unwrap()
        .splits
        .iter()
        .map(|s| s.name.to_string())
        .collect();
    assert_eq!(names, ["paper", "official"]);
}

#[test]
fn packs_that_count_anew_get_distinct_ids() {
    let dir = tree(
        &[
            "train/images/1.jpg",
            "val/images/1.jpg",
            "test/images/1.png",
        ],
        &["train/mask/1.bmp", "val/mask/1.bmp", "test/mask/1.png"],
    );
    let mut found = listing(&plain(&dir).unwrap());
    found.sort();
    let want = ["test", "train", "validation"].map(|part| entry(&format!("{part}-1"), part, None));
    assert_eq!(found, want);
}

#[test]
fn a_single_part_has_no_named_splits() {
    let dir = tree(
        &["images/T0001.jpg", "images/g0002.jpg"],
        &["masks/T0001.png", "masks/G0002.png"],
    );
    let dataset = plain(&dir).unwrap();
    let want = [entry("T0001", "", None), entry("g0002", "", Some(true))];
    assert_eq!(listing(&dataset), want);
    assert!(dataset.info().unwrap().splits.is_empty());
}

#[test]
fn parts_make_the_splits_of_the_literature() {
    let parts = ["train", "validation", "test"];
    let items: Vec<Item> = (0..1200)
        .map(|i| {
            let mut item = Item::new(&format!("{i}"));
            item.part = parts[i / 400].into();
            item
        })
        .collect();
    let options: Options = serde_json::from_value(serde_json::json!({"root": "x"})).unwrap();
    let sizes = |name: Option<&str>| {
        let split_options = SplitOptions {
            name: name.map(str::to_owned),
            ..SplitOptions::default()
        };
        let drawn = split(&info(&options, true), &items, &split_options).unwrap();
        assert!(
            drawn
                .test
                .iter()
                .all(|id| id.parse::<u32>().unwrap() >= 800)
        );
        [drawn.train.len(), drawn.validation.len(), drawn.test.len()]
    };
    assert_eq!(sizes(None), [720, 80, 400]);
    assert_eq!(sizes(Some("official")), [400, 400, 400]);
}

#[test]
fn codings_agree() {
    for (coding, grays) in [
        ("refuge", REFUGE),
        ("labels", [0, 1, 2]),
        ("inverted", [0, 128, 255]),
    ] {
        let dir = tree(&["images/a.png"], &[]);
        write_mask(&dir.path().join("masks/a.png"), &eye(grays, 4..8));
        let sample = open(dir.path(), serde_json::json!({"coding": coding}))
            .unwrap()
            .sample(0)
            .unwrap();
        assert_eq!(sample.mask, eye([0, RIM, CUP], 4..8), "{coding}");
    }
    let dir = tree(&["images/a.png"], &["masks/a.png"]);
    let wrong = open(dir.path(), serde_json::json!({"coding": "labels"})).unwrap();
    let error = wrong.sample(0).unwrap_err().to_string();
    assert!(
        error.contains("value 255 at pixel (0, 0), expected one of 0, 1, 2"),
        "{error}"
    );
}

#[test]
fn a_coding_that_cannot_be_is_refused_and_another_suggested() {
    let dir = tree(&["images/a.png"], &[]);
    let path = dir.path().join("masks/a.png");
    let inverted: [u8; 3] = [0, 128, 255];
    write_mask(&path, &eye(inverted, 4..8));
    let sample = |coding: &str| {
        let dataset = open(dir.path(), serde_json::json!({"coding": coding}));
        dataset.unwrap().sample(0)
    };
    let error = sample("refuge").unwrap_err();
    assert_eq!(error.field.as_str(), "coding");
    let text = error.to_string();
    assert!(
        text.ends_with(
            "a.png` cannot have the coding `refuge`: disc and cup would cover 100 % of the border; \
             `coding = \"inverted\"` fits"
        ),
        "{text}"
    );
    sample("inverted").unwrap();
    let text = sample("labels").unwrap_err().to_string();
    assert!(
        text.contains("value 128 at pixel (1, 2), expected one of 0, 1, 2"),
        "{text}"
    );
    assert!(
        text.contains("its values are those of `coding = \"refuge\"`"),
        "{text}"
    );
    // Rim and cup exchanged.
    write_mask(&path, &eye([0, 2, 1], 4..8));
    let text = sample("labels").unwrap_err().to_string();
    assert!(text.contains("the cup would lie around the rim"), "{text}");
}

#[test]
fn the_ratio_is_vertical() {
    for (rows, ratio, early) in [(4..8, 0.5, true), (4..4, 0.0, false), (3..9, 0.75, false)] {
        let dir = tree(&["images/a.png"], &[]);
        write_mask(&dir.path().join("masks/a.png"), &eye(REFUGE, rows));
        let facts = plain(&dir).unwrap().sample(0).unwrap().attributes;
        assert_eq!(facts.number("cdr"), Some(ratio));
        assert_eq!(facts.flag("early_glaucoma"), Some(early));
    }
    let dir = tree(&["images/a.png"], &[]);
    write_mask(&dir.path().join("masks/a.png"), &eye([255; 3], 0..0));
    let facts = plain(&dir).unwrap().sample(0).unwrap().attributes;
    assert_eq!(facts.number("cdr"), None);
}

#[test]
fn a_disc_is_rim_and_cup() {
    let dir = tree(&["images/a.png"], &["masks/a.png"]);
    let targets = |target: &str| {
        let dataset = open(dir.path(), serde_json::json!({"target": target})).unwrap();
        dataset.info().unwrap().targets()
    };
    assert_eq!(targets("cup"), [CUP]);
    assert_eq!(targets("disc"), [RIM, CUP]);
}

#[test]
fn crops_are_centred_on_the_disc_and_padded() {
    let dir = tree(&["images/a.png"], &["masks/a.png"]);
    let dataset = open(dir.path(), serde_json::json!({"crop": 8, "name": "R"})).unwrap();
    assert_eq!(
        dataset.info().unwrap().name.as_str(),
        "R (disc crops of 8 pixels)"
    );
    let sample = dataset.sample(0).unwrap();
    assert_eq!((sample.image.size(), sample.mask.size()), ((8, 8), (8, 8)));
    // The disc's centre is (2.5, 5.5), so the window begins at (3 - 4, 6 - 4).
    let pixel = |x: usize, y: usize| &sample.image.pixels()[(y * 8 + x) * 3..][..3];
    assert_eq!(pixel(0, 0), [0, 0, 0]);
    assert_eq!(pixel(1, 0), [0, 2, 9]);
    assert_eq!(pixel(7, 7), [6, 9, 9]);
    assert_eq!(sample.mask.labels()[..8], [0, 0, 1, 1, 1, 1, 0, 0]);
    assert_eq!(sample.attributes.number("cdr"), Some(0.5));
    // Larger than the image: all of it, with black around.
    let whole = open(dir.path(), serde_json::json!({"crop": 40})).unwrap();
    let sample = whole.sample(0).unwrap();
    assert_eq!(sample.mask.view().foreground(), 32);
    assert_eq!(
        sample.image.pixels().iter().filter(|&&v| v == 9).count(),
        144 + 24
    );
    for (crop, words) in [(0, "shows nothing"), (20_000, "over the limit")] {
        let error = open(dir.path(), serde_json::json!({"crop": crop})).unwrap_err();
        assert_eq!(error.field.as_str(), "crop");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_window_may_miss_the_image() {
    for left in [-9, -4, 2, 7] {
        let window = Window {
            left,
            top: 0,
            side: 4,
            size: (2, 1),
        };
        assert_eq!(window.cut(&[7, 8], 1), [0; 16], "{left}");
    }
    let window = Window {
        left: 1,
        top: -1,
        side: 2,
        size: (2, 1),
    };
    assert_eq!(window.cut(&[7, 8], 1), [0, 0, 8, 0]);
}

#[test]
fn what_does_not_fit_is_named() {
    let fails = |images: &[&str], masks: &[&str], words: &str| {
        let error = plain(&tree(images, masks)).unwrap_err();
        assert_eq!(error.field.as_str(), "root", "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    fails(&[], &[], "holds no images with masks");
    fails(&["images/a.png"], &[], "holds no images with masks");
    fails(
        &["images/a.png", "images/b.png"],
        &["masks/a.png"],
        "b.png` has no mask",
    );
    fails(
        &["images/a.png"],
        &["masks/a.png", "gts/a.bmp"],
        "could be the mask of one image",
    );
    let error = open(Path::new("no/such"), serde_json::json!({})).unwrap_err();
    assert_eq!(error.to_string(), "`no/such` is not a folder");
}
