//! Tests of `pairs`.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    data::{Image, Mask},
    image::{DEFAULT_MAX_PIXELS, save_gray, save_image},
};
use tempfile::TempDir;

/// A folder with images `images/ID.png` and masks `masks/ID.png` of the given sides.
fn folder(entries: &[(&str, u32, u32)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for sub in ["images", "masks"] {
        std::fs::create_dir(dir.path().join(sub)).unwrap();
    }
    for (id, image, mask) in entries {
        let (image, mask) = (*image, *mask);
        if image > 0 {
            let pixels = vec![90; (image * image * 3) as usize];
            let image = Image::new(image, image, pixels).unwrap();
            save_image(image.view(), &dir.path().join(format!("images/{id}.png"))).unwrap();
        }
        if mask > 0 {
            let labels = vec![255; (mask * mask) as usize];
            let mask = Mask::new(mask, mask, labels).unwrap();
            save_gray(mask.view(), &dir.path().join(format!("masks/{id}.png"))).unwrap();
        }
    }
    dir
}

fn open(dir: &TempDir, max_pixels: u64) -> Result<Pairs> {
    let files = |sub| list_files(&dir.path().join(sub));
    let pairs = pair_up(files("images")?, files("masks")?)?;
    let pairs = pairs
        .into_iter()
        .map(|(id, image, mask)| Pair::new(&id, image, mask));
    let rule = MaskRule::Above {
        threshold: 127,
        label: 1,
    };
    Pairs::new(
        DatasetInfo::single_class("D", "polyp"),
        pairs.collect(),
        rule,
        max_pixels,
    )
}

fn message(result: Result<impl std::fmt::Debug>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn pairs_come_in_natural_order() {
    let dir = folder(&[("10", 4, 4), ("2", 6, 6), ("1", 5, 5), ("x", 0, 3)]);
    std::fs::write(dir.path().join("images/._1.png"), "AppleDouble").unwrap();
    std::fs::write(dir.path().join("images/Thumbs.db"), "x").unwrap();
    let pairs = open(&dir, DEFAULT_MAX_PIXELS).unwrap();
    let ids: Vec<_> = pairs
        .items()
        .unwrap()
        .into_iter()
        .map(|i| i.id.to_string())
        .collect();
    assert_eq!(ids, ["1", "2", "10"]);
    let sample = pairs.sample(1).unwrap();
    assert_eq!((sample.id.as_str(), sample.image.size()), ("2", (6, 6)));
    assert_eq!(sample.mask.labels(), [1; 36]);
    assert_eq!(message(pairs.sample(3)), "D has 3 samples, none at index 3");
}

#[test]
fn a_mask_of_another_size_is_named() {
    let dir = folder(&[("a", 12, 10)]);
    let message = message(open(&dir, 1000).unwrap().sample(0));
    assert!(
        message.contains("a.png` is 10x10, but its image `"),
        "{message}"
    );
    assert!(message.ends_with("a.png` is 12x12"), "{message}");
}

#[test]
fn an_image_without_mask_is_named() {
    let dir = folder(&[("a", 4, 4), ("b", 4, 0)]);
    let message = message(open(&dir, 1000));
    assert!(message.contains("b.png` has no mask in `"), "{message}");
    assert!(message.ends_with("masks`"), "{message}");
}

#[test]
fn the_pixel_limit_and_broken_files_show_when_read() {
    let dir = folder(&[("a", 4, 4), ("b", 40, 40)]);
    let pairs = open(&dir, 100).unwrap();
    pairs.sample(0).unwrap();
    assert!(message(pairs.sample(1)).contains("40x40 pixels, over the limit of 100 pixels"));
    let mask = dir.path().join("masks/a.png");
    let bytes = std::fs::read(&mask).unwrap();
    std::fs::write(&mask, &bytes[..bytes.len() - 20]).unwrap();
    assert!(message(pairs.sample(0)).contains(&mask.display().to_string()));
}

#[test]
fn two_files_of_one_id_are_named() {
    let dir = folder(&[("a", 4, 4)]);
    std::fs::copy(
        dir.path().join("images/a.png"),
        dir.path().join("images/a.JPG"),
    )
    .unwrap();
    let text = message(open(&dir, 1000));
    assert!(text.contains("a.JPG`") && text.contains("a.png`"), "{text}");
    assert!(text.ends_with("have the same id `a`"), "{text}");
    let twice = ["x", "y"].map(|name| Pair::new("a", name.into(), name.into()));
    let info = DatasetInfo::single_class("D", "polyp");
    let rule = MaskRule::Above {
        threshold: 127,
        label: 1,
    };
    assert_eq!(
        message(Pairs::new(info, twice.into(), rule, 1)),
        "`x` and `y` have the same id `a`"
    );
}

#[test]
fn folders_that_hold_nothing_are_named() {
    let dir = folder(&[]);
    assert!(message(open(&dir, 1)).ends_with("images` holds no images (png, jpg, tif, bmp)"));
    assert!(message(list_files(&dir.path().join("no"))).ends_with("no` does not exist"));
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(message(list_files(&file)).ends_with("file` is not a folder"));
    let info = DatasetInfo::single_class("D", "polyp");
    let rule = MaskRule::Above {
        threshold: 127,
        label: 1,
    };
    assert_eq!(
        message(Pairs::new(info, Vec::new(), rule, 1)),
        "D holds no samples"
    );
}

#[test]
fn tables_bear_quotes_and_foreign_line_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.csv");
    std::fs::write(&path, "\u{feff}ID, Group\r\na,\"x, \"\"y\"\"\"\r\n\r\nb,2").unwrap();
    let table = Table::read(&path).unwrap();
    assert_eq!(
        (table.need(&["id"]).unwrap(), table.column(&["no", "group"])),
        (0, Some(1))
    );
    assert_eq!(table.rows(), [["a", "x, \"y\""], ["b", "2"]]);
    assert!(
        message(table.need(&["no", "nor"])).ends_with("no column `no` or `nor`, but `id`, `group`")
    );
    std::fs::write(&path, "id,group\n\"a\nb\",1\nc\n").unwrap();
    assert!(message(Table::read(&path)).contains("line 4 of"));
    std::fs::write(&path, "\n").unwrap();
    assert!(message(Table::read(&path)).ends_with("t.csv` is empty"));
}

#[test]
fn folders_are_found_however_they_are_spelled() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(find_folder(dir.path(), &["groundtruth"]), None);
    std::fs::write(dir.path().join("groundtruth"), "a file").unwrap();
    assert_eq!(find_folder(dir.path(), &["groundtruth"]), None);
    let folder = dir.path().join("Ground Truth");
    std::fs::create_dir(&folder).unwrap();
    assert_eq!(find_folder(dir.path(), &["x", "groundtruth"]), Some(folder));
}

#[test]
fn names_of_masks_may_have_a_suffix() {
    let dir = folder(&[("a", 4, 0), ("b", 4, 0)]);
    for id in ["a", "b"] {
        let mask = Mask::new(4, 4, vec![255; 16]).unwrap();
        for suffix in ["_segmentation", "_superpixels"] {
            let path = dir.path().join(format!("masks/{id}{suffix}.png"));
            save_gray(mask.view(), &path).unwrap();
        }
    }
    let files = |sub| list_files(&dir.path().join(sub)).unwrap();
    let pair = |suffix, option| {
        pair_up_named(
            files("images"),
            files("masks"),
            MaskNames { suffix, option },
        )
    };
    let error = message(pair("", Some("mask_suffix")));
    assert!(
        error.ends_with(
            "masks` (and 1 more: `b.png`); names of masks end in `_segmentation`, which `mask_suffix` can say"
        ),
        "{error}"
    );
    let pairs = pair("_segmentation", None).unwrap();
    let names: Vec<_> = pairs
        .iter()
        .map(|(id, _, mask)| (id.as_str(), mask.clone()))
        .collect();
    let mask = |id: &str| dir.path().join(format!("masks/{id}_segmentation.png"));
    assert_eq!(names, [("a", mask("a")), ("b", mask("b"))]);
    assert!(message(pair("_x", None)).contains("a.png` has no mask"));
}

#[test]
fn accents_may_be_stored_apart_from_their_letters() {
    let dir = folder(&[("caf\u{e9}", 4, 0), ("cafe\u{301}", 0, 4)]);
    let pairs = open(&dir, 100).unwrap();
    assert_eq!(pairs.sample(0).unwrap().id.as_str(), "caf\u{e9}");
}

#[test]
fn headers_are_checked_without_pixels() {
    let dir = folder(&[("a", 12, 12), ("b", 12, 10), ("c", 40, 40)]);
    let pairs = open(&dir, 200).unwrap();
    pairs.check(0).unwrap();
    assert!(message(pairs.check(1)).contains("b.png` is 10x10, but its image"));
    assert!(message(pairs.check(2)).contains("over the limit of 200 pixels"));
    let image = dir.path().join("images/a.png");
    let bytes = std::fs::read(&image).unwrap();
    std::fs::write(&image, &bytes[..bytes.len() - 5]).unwrap();
    assert!(message(pairs.check(0)).ends_with("is truncated: it ends before its image data"));
    std::fs::write(&image, b"").unwrap();
    assert!(message(pairs.check(0)).ends_with("a.png` is empty"));
}
