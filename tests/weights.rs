//! The weights that the quickstart uses: that they have the architecture of the manifest beside them,
//! and that texts decide what is painted with them.

use crate::util::{Sandbox, root};
use diffaug::image::{MaskRule, open_image, open_mask};
use std::{collections::VecDeque, fs, path::Path};

/// What the whole folder may take, in bytes.
const LARGEST: u64 = 16_000_000;
/// Images that are painted.
const JOBS: usize = 100;
/// Images that lend a background; some have no part of the size that is free of lesions.
const BACKGROUNDS: usize = 125;
/// Width in pixels of the ring around a lesion that it is compared with.
const RING: u32 = 6;

/// Paints `JOBS` images of the quickstart with its weights, each lesion on a lesion-free part of
/// another image, so that nothing but the text tells its colour.
fn painted(sandbox: &Sandbox) {
    let manifest = root().join("manifests/quickstart.toml");
    let weights = root().join("manifests/weights");
    let args = format!(
        "generate {} -q --set output=run --set generator.weights={} --set segmenter.weights={} \
         --set validator.use=accept-all --set dataset.train={BACKGROUNDS} --set synthesis.variants=1 \
         --set synthesis.ratio={} --set synthesis.background=crop --set dataset.seed=5",
        manifest.display(),
        weights.join("generator").display(),
        weights.join("segmenter").display(),
        JOBS as f64 / BACKGROUNDS as f64,
    );
    sandbox.run(&args).ok();
}

/// How much redder a lesion is than the wall around it: the difference of the mean shares of red.
fn redness(image: &Path, mask: &Path) -> f64 {
    let image = open_image(image, u64::MAX).unwrap();
    let rule = MaskRule::Above {
        threshold: 127,
        label: 1,
    };
    let mask = open_mask(mask, u64::MAX, &rule).unwrap();
    let (width, height) = image.size();
    let distance = distances(mask.labels(), width, height);
    let mean = |wanted: &dyn Fn(u32) -> bool| {
        let pixels = image.pixels().chunks_exact(3).zip(&distance);
        let shares: Vec<f64> = pixels
            .filter(|(_, distance)| wanted(**distance))
            .map(|(rgb, _)| rgb.iter().map(|v| f64::from(*v)).collect::<Vec<_>>())
            // The dark round an endoscope's view has no colour.
            .filter(|rgb| rgb.iter().sum::<f64>() > 60.0)
            .map(|rgb| rgb[0] / rgb.iter().sum::<f64>())
            .collect();
        shares.iter().sum::<f64>() / shares.len().max(1) as f64
    };
    mean(&|d| d == 0) - mean(&|d| (2..=RING).contains(&d))
}

/// Steps from each pixel to the lesion.
fn distances(labels: &[u8], width: u32, height: u32) -> Vec<u32> {
    let mut distance: Vec<u32> = labels
        .iter()
        .map(|label| if *label == 0 { u32::MAX } else { 0 })
        .collect();
    let inside = (0..labels.len()).filter(|at| labels[*at] != 0);
    let mut open: VecDeque<usize> = inside.collect();
    while let Some(at) = open.pop_front() {
        let (x, y) = (at as u32 % width, at as u32 / width);
        let mut reach = |there: bool, next: usize| {
            if there && distance[next] == u32::MAX {
                distance[next] = distance[at] + 1;
                open.push_back(next);
            }
        };
        reach(x > 0, at.wrapping_sub(1));
        reach(x + 1 < width, at + 1);
        reach(y > 0, at.wrapping_sub(width as usize));
        reach(y + 1 < height, at + width as usize);
    }
    distance
}

/// How often one of `high` is above one of `low`: 0.5 by chance, 1 at best.
fn separation(high: &[f64], low: &[f64]) -> f64 {
    let pairs = high.iter().flat_map(|h| low.iter().map(move |l| (h, l)));
    let above = pairs.map(|(h, l)| match h.total_cmp(l) {
        std::cmp::Ordering::Greater => 1.0,
        std::cmp::Ordering::Equal => 0.5,
        std::cmp::Ordering::Less => 0.0,
    });
    above.sum::<f64>() / (high.len() * low.len()) as f64
}

#[test]
fn they_are_small_enough_to_be_carried_along() {
    let folder = root().join("manifests/weights");
    let files = crate::util::files(&folder);
    let bytes: usize = files.values().map(Vec::len).sum();
    assert!((bytes as u64) < LARGEST, "{bytes} bytes");
    for name in ["generator/model_index.json", "segmenter/config.json"] {
        assert!(files.contains_key(name), "{name}");
    }
}

#[test]
fn they_are_of_the_architecture_that_the_manifest_beside_them_trains() {
    let folder = root().join("manifests/weights");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let manifest: toml::Value = toml::from_str(&read("phantom.toml")).unwrap();
    let manifest = serde_json::to_value(manifest).unwrap();
    let json = |name: &str| serde_json::from_str::<serde_json::Value>(&read(name)).unwrap();
    let generator = &manifest["generator"]["train"]["architecture"];
    for (part, name) in [("unet", "unet"), ("vae", "autoencoder")] {
        let config = json(&format!("generator/{part}/config.json"));
        assert_eq!(config["block_out_channels"], generator[name]);
    }
    // Eight channels of latents where the manifest says nothing; the network sees noise, picture and hole.
    let latent = generator["latent"].as_u64().unwrap_or(8);
    let channels = json("generator/vae/config.json")["latent_channels"].clone();
    assert_eq!(channels, latent);
    let seen = json("generator/unet/config.json")["in_channels"].clone();
    assert_eq!(seen, 2 * latent + 1);
    let text = json("generator/text_encoder/config.json");
    assert_eq!(text["hidden_size"], generator["text"]);
    let segmenter = &manifest["segmenter"]["architecture"];
    let vae = json("segmenter/vae/config.json");
    assert_eq!(vae["block_out_channels"], segmenter["autoencoder"]);
    let denoiser = json("segmenter/config.json")["model"]["denoiser"].clone();
    for name in ["width", "multipliers", "layers", "heads"] {
        assert_eq!(denoiser[name], segmenter[name], "{name}");
    }
}

#[test]
#[allow(clippy::print_stdout)] // The figure, for whoever asks with --nocapture.
fn the_colour_follows_the_text() {
    let sandbox = Sandbox::new();
    painted(&sandbox);
    let (mut red, mut pale) = (Vec::new(), Vec::new());
    let folder = sandbox.path("run/synthetic");
    for line in sandbox.read_lines("run/synthetic/metadata.jsonl") {
        let file = |field: &str| folder.join(line[field].as_str().unwrap());
        let said = |tag: &str| line["tags"].as_array().unwrap().iter().any(|t| t == tag);
        let measured = || redness(&file("file_name"), &file("mask_file_name"));
        if said("reddish") {
            red.push(measured());
        } else if said("pale") {
            pale.push(measured());
        }
    }
    assert!(
        red.len() >= 10 && pale.len() >= 5,
        "{} {}",
        red.len(),
        pale.len()
    );
    let follows = separation(&red, &pale);
    println!(
        "of {JOBS} images {} were to be reddish and {} pale; one of the former is redder than one of \
         the latter in {:.1} % of pairs",
        red.len(),
        pale.len(),
        100.0 * follows
    );
    assert!(follows > 0.85, "{follows}");
}
