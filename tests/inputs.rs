//! Files as people have them: what is read, and what is refused with a sentence that helps.

use crate::util::{Sandbox, misbehave};
use diffaug::{
    Image, Mask,
    image::{save_gray, save_image},
};
use insta::assert_snapshot;
use std::fs;

const SIDE: u32 = 16;

/// A square lesion in a picture of [`SIDE`] pixels; `on` is its value in the mask.
fn labels(id: u32, on: u8) -> Vec<u8> {
    let inside = |i: u32| (3 + id % 4..10).contains(&i);
    (0..SIDE * SIDE)
        .map(|i| {
            if inside(i % SIDE) && inside(i / SIDE) {
                on
            } else {
                0
            }
        })
        .collect()
}

/// A folder `data` of six images, `write` makes their masks.
fn data(write: impl Fn(&Sandbox, u32)) -> Sandbox {
    let sandbox = Sandbox::new();
    for folder in ["images", "masks"] {
        fs::create_dir_all(sandbox.path(&format!("data/{folder}"))).unwrap();
    }
    for id in 0..6 {
        let pixels = labels(id, 60)
            .iter()
            .flat_map(|v| [150 + v, 80, 70])
            .collect();
        let image = Image::new(SIDE, SIDE, pixels).unwrap();
        save_image(
            image.view(),
            &sandbox.path(&format!("data/images/{id}.png")),
        )
        .unwrap();
        write(&sandbox, id);
    }
    manifest(&sandbox, "");
    sandbox
}

/// A manifest on `data` with more options of the dataset.
fn manifest(sandbox: &Sandbox, options: &str) {
    sandbox.library("diffaug-misbehave", "misbehave.so");
    let dataset = format!("[dataset]\nuse = \"folder\"\nroot = \"data\"\n{options}\n");
    let text = misbehave().replace("[dataset]\nuse = \"misbehave\"\n", &dataset);
    sandbox.write("m.toml", text);
}

fn mask(sandbox: &Sandbox, name: &str, values: Vec<u8>) {
    let mask = Mask::new(SIDE, SIDE, values).unwrap();
    save_gray(
        mask.view(),
        &sandbox.path(&format!("data/masks/{name}.png")),
    )
    .unwrap();
}

/// A PNG of palette indices; index 1 is dark red.
fn palette(indices: &[u8], width: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, indices.len() as u32 / width);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_palette(vec![0, 0, 0, 128, 0, 0, 0, 128, 0]);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(indices).unwrap();
    writer.finish().unwrap();
    bytes
}

#[test]
fn palette_masks_are_scored_by_their_indices() {
    let sandbox = Sandbox::new();
    sandbox.write("truth/0.png", palette(&[1, 1, 0, 0, 2, 0, 0, 0], 4));
    sandbox.write("pred/0.png", palette(&[1, 0, 0, 1, 2, 0, 0, 0], 4));
    let dice = |args: &str| {
        let report = sandbox.run(&format!("score --pred pred --truth truth --json {args}"));
        report.ok().json()["per_image_mean"]["dice"]
            .as_f64()
            .unwrap()
    };
    assert_eq!(dice("--labels 1"), 0.5);
    assert_eq!(dice("--labels 2"), 1.0);
    assert_eq!(dice("--threshold 0"), 2.0 / 3.0);
}

#[test]
fn a_label_that_no_file_holds_is_not_scored() {
    let sandbox = Sandbox::new();
    for folder in ["truth", "pred"] {
        fs::create_dir_all(sandbox.path(folder)).unwrap();
        let mask = Mask::new(2, 2, vec![0, 255, 255, 0]).unwrap();
        save_gray(mask.view(), &sandbox.path(&format!("{folder}/0.png"))).unwrap();
    }
    assert_snapshot!(sandbox.run("score --pred pred --truth truth --labels 1"), @r"
    exit 1
    error: no mask of either folder holds the label 1; the values found besides 0 are 255
    ");
    sandbox
        .run("score --pred pred --truth truth --labels 255")
        .ok();
}

#[test]
fn predictions_may_have_a_suffix() {
    let sandbox = Sandbox::new();
    let mask = Mask::new(2, 2, vec![0, 255, 255, 0]).unwrap();
    for name in ["truth/a.png", "pred/a_pred.png"] {
        sandbox.write(name, "");
        save_gray(mask.view(), &sandbox.path(name)).unwrap();
    }
    assert_snapshot!(sandbox.run("score --pred pred --truth truth"), @r"
    exit 1
    error: cannot match `pred` with `truth`: image `truth/a.png` has no mask in `pred`; names of masks end in `_pred`, which `--suffix` can say
    ");
    sandbox
        .run("score --pred pred --truth truth --suffix _pred")
        .ok();
}

#[test]
fn masks_of_zero_and_one_are_masks() {
    let sandbox = data(|s, id| mask(s, &id.to_string(), labels(id, [1, 255][id as usize % 2])));
    let trained = sandbox.run("run m.toml -q --json").ok().json();
    let full = sandbox
        .run("check m.toml --data=full --json -q")
        .ok()
        .json();
    assert_eq!(full["looked_at"], "pixels");
    // The fixture's segmenter calls everything a lesion, so Dice is that of the lesions' share.
    let dice = &trained["arms"][0]["mean"]["dice"];
    assert!(dice.as_f64().unwrap() > 0.1, "{trained}");
}

#[test]
fn values_that_say_nothing_are_named_with_the_line_to_write() {
    let sandbox = data(|s, id| {
        let mut values = labels(id, 1);
        values[0] = 2;
        mask(s, &id.to_string(), values);
    });
    let output = sandbox.run("run m.toml");
    output.refused("mask `data/masks/0.png` has the values 1, 2 besides 0; expected 0 and 255");
    output.refused(
        "write `classes = { class1 = 1, class2 = 2 }`, with names of yours, or `threshold = 127`",
    );
    manifest(&sandbox, "classes = { class1 = 1, class2 = 2 }");
    sandbox.run("check m.toml --data=full").ok();
    manifest(&sandbox, "threshold = 127");
    sandbox
        .run("run m.toml")
        .refused("has the values 1, 2 besides 0, none of them above the threshold 127");
}

#[test]
fn a_class_that_no_mask_holds_is_named() {
    let sandbox = data(|s, id| mask(s, &id.to_string(), labels(id, 255)));
    manifest(&sandbox, "classes = { polyp = 255, vessel = 9 }");
    let sentence = "none of the 6 masks of data holds the class `vessel`";
    sandbox.run("run m.toml").refused(sentence);
    let output = sandbox.run("check m.toml --data=full");
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stdout.contains(sentence), "{output}");
}

#[test]
fn palette_masks_have_classes_by_index() {
    let sandbox = data(|s, id| {
        s.write(
            &format!("data/masks/{id}.png"),
            palette(&labels(id, 1), SIDE),
        );
    });
    manifest(&sandbox, "classes = { polyp = 1 }");
    sandbox.run("check m.toml --data=full").ok();
    manifest(&sandbox, "");
    sandbox.run("check m.toml --data=full").ok();
    manifest(&sandbox, "classes = { polyp = 255 }");
    sandbox
        .run("run m.toml")
        .refused("has the value 1 at pixel (3, 3), expected one of 0, 255 (indices of a palette)");
}

#[test]
fn jpeg_masks_are_told_what_helps() {
    let sandbox = data(|s, id| {
        let grey = Mask::new(SIDE, SIDE, labels(id, 255)).unwrap();
        let pixels = grey.labels().iter().flat_map(|&v| [v; 3]).collect();
        let image = Image::new(SIDE, SIDE, pixels).unwrap();
        save_image(image.view(), &s.path(&format!("data/masks/{id}.jpg"))).unwrap();
    });
    sandbox.run("check m.toml --data=full").ok();
    manifest(&sandbox, "classes = { polyp = 255 }");
    sandbox
        .run("run m.toml")
        .refused("since JPEG values stray: add `threshold = 127`");
    manifest(&sandbox, "classes = { polyp = 255 }\nthreshold = 127");
    sandbox.run("check m.toml --data=full").ok();
}

#[test]
fn masks_with_a_suffix_are_found_by_an_option() {
    let sandbox = data(|s, id| mask(s, &format!("{id}_segmentation"), labels(id, 255)));
    sandbox
        .run("check m.toml --data")
        .refused("names of masks end in `_segmentation`, which `mask_suffix` can say");
    manifest(&sandbox, "mask_suffix = \"_segmentation\"");
    sandbox.run("check m.toml --data=full").ok();
}

#[test]
fn every_fault_of_a_dataset_is_listed() {
    let sandbox = data(|s, id| mask(s, &id.to_string(), labels(id, 255)));
    sandbox.write("data/images/1.png", "");
    let whole = fs::read(sandbox.path("data/masks/2.png")).unwrap();
    sandbox.write("data/masks/2.png", &whole[..whole.len() - 20]);
    let small = Mask::new(4, 4, vec![255; 16]).unwrap();
    save_gray(small.view(), &sandbox.path("data/masks/4.png")).unwrap();
    // Broken pixels, which only a look at them shows.
    let mut bytes = fs::read(sandbox.path("data/images/5.png")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 8].fill(0x55);
    sandbox.write("data/images/5.png", &bytes);
    assert_snapshot!(sandbox.run("check m.toml --data -q"), @r"
    exit 1
    1: `data/images/1.png` is empty
    2: `data/masks/2.png` is truncated: it ends before its image data
    4: mask `data/masks/4.png` is 4x4, but its image `data/images/4.png` is 16x16
    error: data has 3 faults
    ");
    let full = sandbox.run("check m.toml --data=full --json -q");
    assert_eq!(full.code, Some(1), "{full}");
    let faults = full.json()["faults"].as_array().unwrap().clone();
    let ids: Vec<_> = faults.iter().map(|fault| fault["id"].clone()).collect();
    assert_eq!(ids, ["1", "2", "4", "5"]);
    assert!(
        faults[3]["error"]
            .as_str()
            .unwrap()
            .contains("data/images/5.png")
    );
}

/// A JPEG of `width` x `height` that tells viewers to turn it by 90 degrees.
fn turned_jpeg(sandbox: &Sandbox, name: &str, width: u32, height: u32) {
    let pixels = (0..width * height).flat_map(|i| [100 + (i % 50) as u8, 60, 50]);
    let image = Image::new(width, height, pixels.collect()).unwrap();
    let path = sandbox.path(name);
    save_image(image.view(), &path).unwrap();
    let jpeg = fs::read(&path).unwrap();
    let mut bytes = b"\xff\xd8\xff\xe1\0\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    bytes.extend(&jpeg[2..]);
    fs::write(path, bytes).unwrap();
}

#[test]
fn an_orientation_is_applied_and_named_where_a_mask_does_not_fit() {
    let sandbox = data(|s, id| mask(s, &id.to_string(), labels(id, 255)));
    fs::remove_file(sandbox.path("data/images/3.png")).unwrap();
    turned_jpeg(&sandbox, "data/images/3.jpg", 10, 24);
    let upright = Mask::new(24, 10, vec![255; 240]).unwrap();
    save_gray(upright.view(), &sandbox.path("data/masks/3.png")).unwrap();
    sandbox.run("check m.toml --data=full").ok();
    let stored = Mask::new(10, 24, vec![255; 240]).unwrap();
    save_gray(stored.view(), &sandbox.path("data/masks/3.png")).unwrap();
    sandbox.run("run m.toml").refused(
        "mask `data/masks/3.png` is 10x24, but its image `data/images/3.jpg` is 24x10 \
         (`data/images/3.jpg` carries the EXIF orientation 6, which is applied as viewers do)",
    );
}

#[test]
fn an_output_that_cannot_be_written_is_refused_before_the_work() {
    let sandbox = data(|s, id| mask(s, &id.to_string(), labels(id, 255)));
    let generator = |output: &str| {
        sandbox.run(&format!(
            "try generator filler --library ./misbehave.so --image data/images/0.png --mask data/masks/0.png -o {output}"
        ))
    };
    generator("no/such/folder/o.png").refused("there is no folder `no/such/folder`");
    generator("o.gif").refused("the name `o.gif` tells no format");
    generator("data").refused("the name `data` tells no format");
    generator("data/images/0.png").refused("is the file `data/images/0.png` that is read");
    generator("o.jpg").ok();
    assert!(
        fs::read(sandbox.path("o.jpg"))
            .unwrap()
            .starts_with(b"\xff\xd8")
    );
    let segmenter = "try segmenter misbehave --library ./misbehave.so --image data/images/0.png";
    sandbox
        .run(&format!("{segmenter} -o m.jpg"))
        .refused("does not keep the values of a mask");
    sandbox.run(&format!("{segmenter} -o m.tif")).ok();
}

#[test]
fn a_hole_of_zero_and_one_is_painted() {
    let sandbox = data(|s, id| mask(s, &id.to_string(), labels(id, 1)));
    let common = "--library ./misbehave.so --image data/images/0.png -o o.png";
    sandbox
        .run(&format!(
            "try generator filler --mask data/masks/0.png {common}"
        ))
        .ok();
    let painted = diffaug::image::open_image(&sandbox.path("o.png"), 1000).unwrap();
    let before = diffaug::image::open_image(&sandbox.path("data/images/0.png"), 1000).unwrap();
    let at = (5 * SIDE as usize + 5) * 3;
    assert_eq!(painted.pixels()[..3], before.pixels()[..3]);
    assert_ne!(painted.pixels()[at..at + 3], before.pixels()[at..at + 3]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_fifo_is_not_waited_for() {
    let sandbox = data(|s, id| mask(s, &id.to_string(), labels(id, 255)));
    fs::remove_file(sandbox.path("data/masks/2.png")).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(sandbox.path("data/masks/2.png"))
        .status();
    assert!(made.unwrap().success());
    // It is no file to the listing, so its image has no mask.
    sandbox
        .run("check m.toml --data")
        .refused("image `data/images/2.png` has no mask");
}

#[test]
fn twelve_bits_are_warned_of_and_can_be_stated() {
    let sandbox = data(|s, id| mask(s, &id.to_string(), labels(id, 255)));
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, SIDE, SIDE);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Sixteen);
    let mut writer = encoder.write_header().unwrap();
    let samples = (0..SIDE * SIDE).flat_map(|i| ((i * 16) as u16).to_be_bytes());
    writer
        .write_image_data(&samples.collect::<Vec<u8>>())
        .unwrap();
    writer.finish().unwrap();
    sandbox.write("data/images/0.png", &bytes);
    let warned = sandbox.run("check m.toml --data=full").ok().stderr;
    assert!(
        warned.contains("read as 12 bits; `images.bits` says how many"),
        "{warned}"
    );
    let stated = sandbox
        .run("check m.toml --data=full --set images.bits=12")
        .ok();
    assert!(!stated.stderr.contains("bits"), "{stated}");
    sandbox
        .run("check m.toml --data --set images.bits=7")
        .refused("`images.bits` is 7, must be from 8 to 16");
    let listed = sandbox.run("check m.toml --data=full --set images.bits=10");
    assert!(
        listed.stdout.contains("`images.bits` = 10 allows for 1023"),
        "{listed}"
    );
}
