//! Run folders to make pages of: written from the structures that runs are written from, with drawn pictures.

use diffaug::{
    DatasetInfo, Image,
    image::{encode_jpeg, save_image},
    rng,
};
use diffaug_run::{
    layout::{self, Training},
    work::{
        pool_measures::{Pools, Spread},
        record::{Record, Summary, Tally},
    },
};
use rand::RngExt;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};

/// A text that must never become markup.
pub const HOSTILE: &str = "</script><script>alert(1)</script><img src=x onerror=alert(1)>";
/// The threshold of the sample.
const THRESHOLD: f64 = 0.7;
/// Test images.
const IMAGES: usize = 24;

/// Writes a file and its folders.
pub fn write(root: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A finished run with so many candidates; the augmented arm is better by `gain`.
pub fn finished(root: &Path, name: &str, candidates: u64, gain: f64) {
    begun(root, name, 1.0);
    let summary = painted(root, candidates);
    training(root, "generator", 600, "validation loss");
    training(root, "segmenter", 120, "validation dice");
    let arms = [("real", 0.0), ("augmented", gain)];
    let arms = arms.map(|(arm, gain)| self::arm(root, arm, gain));
    let result = json!({
        "name": name, "synthesis": summary, "arms": arms,
        "weights": {"generator": "ab".repeat(32), "segmenter": {"weights.safetensors": "cd".repeat(32)}},
    });
    write(root, layout::RESULT, result.to_string());
}

/// A run that has begun, of which nothing is done.
pub fn begun(root: &Path, name: &str, ratio: f64) {
    let plugin = |name: &str| json!({"name": name, "version": "0.1.0", "origin": "built in"});
    let lock = json!({
        "diffaug": "0.1.0",
        "manifest": {
            "name": name, "device": "cpu", "seed": 3,
            "images": {"size": 64},
            "synthesis": {"ratio": ratio},
            "evaluate": {"runs": 2, "seeds": null, "resolution": "working"},
        },
        "plugins": {
            "dataset": plugin("phantom"), "generator": plugin("sdxl-inpaint"),
            "validator": plugin("iou"), "segmenter": plugin("unet"),
        },
        "dataset": {"name": "phantom <b>", "samples": 96, "sha256": "12".repeat(32)},
        "split": {"name": "explicit", "sha256": "34".repeat(32)},
        "weights": {}, "files": {},
    });
    write(root, layout::LOCK, lock.to_string());
    let manifest = format!("name = \"{name}\"\n# {HOSTILE}\n\n[synthesis]\nratio = {ratio:?}\n");
    write(root, layout::MANIFEST, manifest);
    let ids = |part: &str, count| {
        (0..count)
            .map(|i| format!("{part}-{i}"))
            .collect::<Vec<_>>()
    };
    let split = json!({
        "train": ids("train", 64), "validation": ids("validation", 8), "test": ids("test", IMAGES),
    });
    write(root, layout::SPLIT, split.to_string());
}

/// The candidates: their lists, their pictures, and what all came to.
fn painted(root: &Path, candidates: u64) -> Summary {
    let mut tally = Tally::new(&DatasetInfo::single_class("phantom", "polyp"), None);
    let [mut accepted, mut rejected] = [String::new(), String::new()];
    let pictures: Vec<Vec<u8>> = (0..12).map(picture).collect();
    for index in 0..candidates {
        let record = record(index);
        tally.add(&record);
        let list = match record.file_name {
            Some(_) => &mut accepted,
            None => &mut rejected,
        };
        *list += &(serde_json::to_string(&record).unwrap() + "\n");
        if let Some(file) = &record.file_name {
            write(root, &format!("synthetic/{file}"), "an image");
        }
        let picture = &pictures[index as usize % pictures.len()];
        write(root, &layout::strip(index), picture);
    }
    write(root, layout::METADATA, accepted);
    write(root, layout::REJECTED_LIST, rejected);
    let sheet = texture(640, 320, 99);
    save_image(sheet.view(), &root.join(layout::CONTACT_SHEET)).unwrap();
    let mut summary = tally.summary(candidates / 2);
    if let Some(Pools { real, .. }) = &mut summary.pools {
        real.images = 64;
        let spread = Spread {
            mean: 6.5,
            std: 1.2,
        };
        real.measures = BTreeMap::from([("detail".to_owned(), spread)]);
    }
    let marker = serde_json::to_string(&summary).unwrap();
    write(root, layout::SYNTHESIS, marker);
    summary
}

/// A candidate, the one of number 3 with texts that would be markup.
pub fn record(index: u64) -> Record {
    let mut draw = rng::stream(1, "record", index);
    let score: f64 = 1.0 - draw.random::<f64>().powi(2);
    let too_smooth = index % 17 == 5;
    let accepted = score > THRESHOLD && !too_smooth;
    let shape = ["sessile", "pedunculated", "flat"][index as usize % 3];
    let size = ["below 2 %", "2 to 10 %", "above 10 %"][index as usize % 3];
    let prompt = match index {
        3 => HOSTILE.to_owned(),
        _ => format!("endoscopic image of a {shape} polyp, smooth surface"),
    };
    let reason = match (accepted, too_smooth) {
        (true, _) => String::new(),
        (_, true) => "too smooth: it has 0.41 of the fine detail around it, not 0.60".to_owned(),
        _ => format!("IoU {score:.2} is not above {THRESHOLD}"),
    };
    let file = |kind: &str| accepted.then(|| format!("{kind}/{}", layout::image(index)));
    let record = json!({
        "file_name": file("images"), "mask_file_name": file("masks"),
        "id": format!("train-{}/{}", index % 64, index / 64), "index": index,
        "source": format!("train-{}", index % 64), "variant": index / 64,
        "size": size,
        "seed": draw.random::<u64>(), "prompt": prompt, "negative": "healthy mucosa",
        "tags": [shape], "score": score, "limit": THRESHOLD, "fails_otherwise": too_smooth,
        "classes": {"1": score}, "reason": reason,
        "measures": {"iou": score, "dice": 2.0 * score / (1.0 + score)},
        "attributes": {"small": index.is_multiple_of(3)},
        "look": {"detail": 5.0 + draw.random::<f64>(), "contrast": 20.0 * draw.random::<f64>()},
    });
    serde_json::from_value(record).unwrap()
}

/// A smooth, slightly noisy picture with two rings in its last tile.
fn picture(seed: u64) -> Vec<u8> {
    let mut image = texture(384, 96, seed);
    for (radius, color) in [
        (28.0, [64, 220, 255]),
        (24.0 + seed as f64 % 5.0, [255, 220, 0]),
    ] {
        for step in 0..600 {
            let angle = f64::from(step) / 600.0 * std::f64::consts::TAU;
            let (x, y) = (336.0 + radius * angle.cos(), 48.0 + radius * angle.sin());
            let at = 3 * (y as usize * 384 + x as usize);
            image.bytes_mut()[at..at + 3].copy_from_slice(&color);
        }
    }
    encode_jpeg(image.view(), 80).unwrap()
}

fn texture(width: u32, height: u32, seed: u64) -> Image {
    let mut draw = rng::stream(2, "texture", seed);
    let phase = seed as f64;
    let mut pixels = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let (x, y) = (f64::from(x % 96), f64::from(y % 96));
            let wave = (x / 17.0 + phase).sin() + (y / 13.0 - phase).cos();
            let noise = 12.0 * draw.random::<f64>();
            let grey = 120.0 + 30.0 * wave + noise;
            pixels
                .extend([grey + 50.0, grey - 10.0, grey - 30.0].map(|v| v.clamp(0.0, 255.0) as u8));
        }
    }
    Image::new(width, height, pixels).unwrap()
}

/// A training with a log and what it came to.
fn training(root: &Path, folder: &str, steps: u64, metric: &str) {
    let mut draw = rng::stream(4, folder, 0);
    let mut log = String::new();
    for step in 1..=steps {
        let share = step as f64 / steps as f64;
        let loss = 0.2 + 1.3 * (-4.0 * share).exp() + 0.1 * draw.random::<f64>();
        let line = json!({"step": step, "epoch": 1, "loss": loss, "lr": 1e-3, "seconds": share});
        log += &format!("{line}\n");
        if step % (steps / 6) == 0 {
            let score = 0.75 * (1.0 - (-3.0 * share).exp());
            log += &format!(
                "{}\n",
                json!({"step": step, "score": score, "seconds": share})
            );
        }
    }
    write(root, &format!("{folder}/{}", layout::TRAINING_LOG), log);
    let fit = json!({
        "steps": steps, "best_step": steps - steps / 6, "loss": 0.25, "metric": metric, "score": 0.71,
    });
    write(root, &layout::fit_of(folder), fit.to_string());
}

/// An arm of two trainings; what `result.json` says of it.
fn arm(root: &Path, name: &str, gain: f64) -> Value {
    for seed in 3..5 {
        let files = Training::new(name, seed);
        training(root, &files.weights(), 120, "validation dice");
        let scores = json!({"seed": seed, "fit": {"steps": 120}});
        write(root, &files.scores(), scores.to_string());
        let mut draw = rng::stream(5, name, seed);
        let mut csv = "id,group,dice,iou,sensitivity,fnr,specificity\n".to_owned();
        for image in 0..IMAGES {
            let base = 0.35 + 0.5 * (image * 7 % IMAGES) as f64 / IMAGES as f64;
            let dice = (base + gain + 0.05 * draw.random::<f64>()).min(1.0);
            let (iou, found) = (dice / (2.0 - dice), 0.5 + dice / 2.0);
            let group = image / 2;
            csv += &format!(
                "test-{image},video {group},{dice},{iou},{found},{},0.98\n",
                1.0 - found
            );
        }
        write(root, &files.per_image(), csv);
    }
    let group =
        |images: u64, dice: f64| json!({"images": images, "per_image_mean": {"dice": dice}});
    json!({
        "name": name,
        "groups": {"small": group(8, 0.4 + gain), "size: 2 to 10 %": group(16, 0.6 + gain)},
    })
}
