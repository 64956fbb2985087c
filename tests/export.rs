//! `diffaug export` and `diffaug dataset verify`: what is printed, and what is refused.

use crate::{pipeline::tiny, util::Sandbox};
use diffaug::{
    Image, Mask,
    image::{save_gray, save_image},
};
use serde_json::json;

/// [`tiny`], painted.
fn painted() -> Sandbox {
    let sandbox = tiny();
    sandbox
        .run("generate m.toml -q --set validator.use=accept-all")
        .ok();
    sandbox
}

#[test]
fn a_run_is_exported_once_and_in_every_format() {
    let sandbox = painted();
    for format in ["nnunet", "coco", "yolo-seg", "imagefolder"] {
        let export = format!("export runs/tiny --to {format} --output out/{format}");
        let found = sandbox.run(&format!("{export} --json")).ok().json();
        let arm = &found["arms"][0];
        let lines = sandbox.read_lines(&format!(
            "{}/provenance.jsonl",
            arm["folder"].as_str().unwrap()
        ));
        let count = |name: &str| arm[name].as_u64().unwrap();
        let split = sandbox.read_json("runs/tiny/split.json");
        assert_eq!(
            count("real") as usize,
            split["train"].as_array().unwrap().len()
        );
        assert_eq!(
            count("validation") as usize,
            split["validation"].as_array().unwrap().len()
        );
        assert!(count("synthetic") > 0 && count("test") == 0);
        let total = count("real") + count("synthetic") + count("validation");
        assert_eq!(lines.len() as u64, total);
        sandbox.run(&export).refused("is not empty");
    }
    let shown = sandbox
        .run("export runs/tiny --to yolo-seg --output again")
        .ok();
    assert!(shown.stdout.contains("| augmented |"), "{shown}");
    assert!(
        shown
            .stdout
            .contains("cover the masks with an IoU of 1.0000"),
        "{shown}"
    );
}

#[test]
fn what_cannot_be_exported_is_said() {
    let sandbox = painted();
    let export = "export runs/tiny --output out";
    sandbox
        .run(&format!("{export} --to nnunnet"))
        .refused("did you mean `nnunet`?");
    sandbox
        .run("export out --output x --to coco")
        .refused("`out` is no folder of a run");
    sandbox
        .run(&format!("{export} --to coco --arms fake"))
        .refused("no arm is called `fake`");
    assert!(!sandbox.path("out").exists());
}

/// The start of a copy of Kvasir-SEG.
fn kvasir() -> Sandbox {
    let sandbox = Sandbox::new();
    for id in 0..3 {
        sandbox.write("data/images/x", "");
        sandbox.write("data/masks/x", "");
        let image = Image::new(4, 4, vec![90; 48]).unwrap();
        let mask = Mask::new(4, 4, vec![255; 16]).unwrap();
        save_image(
            image.view(),
            &sandbox.path(&format!("data/images/{id}.png")),
        )
        .unwrap();
        save_gray(mask.view(), &sandbox.path(&format!("data/masks/{id}.png"))).unwrap();
    }
    sandbox
}

#[test]
fn a_copy_of_a_dataset_is_compared_with_what_was_published() {
    let sandbox = kvasir();
    let verify = "dataset verify kvasir-seg data";
    let found = sandbox.run(verify);
    assert!(
        found
            .stdout
            .starts_with("Kvasir-SEG: 3 images with masks\n"),
        "{found}"
    );
    assert!(
        found
            .stdout
            .contains("https://datasets.simula.no/kvasir-seg/"),
        "{found}"
    );
    found.refused("Kvasir-SEG has 1 fault");
    let hashes = |sandbox: &Sandbox| {
        let found = sandbox.run(&format!("{verify} --json")).json();
        (
            found["listing_sha256"].clone(),
            found["files_sha256"].clone(),
            found["faults"].clone(),
        )
    };
    let (listing, files, faults) = hashes(&sandbox);
    let sentence = "there are 3 images, but 1000 were published";
    assert_eq!(faults, json!([{ "id": "Kvasir-SEG", "error": sentence }]));
    sandbox.write("data/images/1.png", "");
    let (again, other, faults) = hashes(&sandbox);
    assert_eq!(again, listing);
    assert_ne!(other, files);
    assert_eq!(faults[0]["id"], "1");
    assert_eq!(faults.as_array().unwrap().len(), 2);
    sandbox
        .run("dataset verify phantom data")
        .refused("reads no folder: it has no option `root`");
    sandbox
        .run("dataset verify kvasir-seg none")
        .refused("`none` is no folder");
}
