//! What is painted is what diffusers paints: three small models, several samplers, strengths and
//! ways of guidance (`fixtures/make_pipelines.py`).

#![allow(clippy::unwrap_used)]

use diffaug::{
    Context, Image, ImageRef, Job, Mask,
    prelude::*,
    stage::{Silent, Watch, with_reporter, with_watcher},
};
use diffaug_nn::weights;
use diffaug_sdxl_inpaint::{Options, SdxlInpaint};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

const SIDE: u32 = 64;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

struct Scenes(HashMap<String, candle_core::Tensor>);

impl Scenes {
    fn open() -> Self {
        Scenes(weights::read(&fixtures().join("pipelines.safetensors")).unwrap())
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.0[name].flatten_all().unwrap().to_vec1().unwrap()
    }

    fn image(&self, name: &str) -> Image {
        Image::new(SIDE, SIDE, self.bytes(name)).unwrap()
    }

    fn mask(&self) -> Mask {
        let labels = self.bytes("mask").into_iter();
        let labels = labels.map(|grey| u8::from(grey > 127)).collect();
        Mask::new(SIDE, SIDE, labels).unwrap()
    }
}

fn generator(kind: &str, more: Value) -> SdxlInpaint {
    try_generator(&fixtures().join(kind), more).unwrap_or_else(|e| panic!("{e}"))
}

fn try_generator(weights: &Path, more: Value) -> Result<SdxlInpaint> {
    let mut options = json!({
        "weights": weights,
        "steps": 10,
        "guidance": 7.5,
        "rng": "torch-cpu",
        "composite": "none",
    });
    for (name, value) in more.as_object().unwrap() {
        options[name] = value.clone();
    }
    let options: Options = serde_json::from_value(options).unwrap();
    SdxlInpaint::validate(&options)?;
    SdxlInpaint::from_config(options, &Context::default())
}

fn job<'a>(image: &'a Image, mask: &'a Mask, negative: &'a str) -> Job<'a> {
    Job {
        source: "source".into(),
        image: image.view(),
        mask: mask.view(),
        prompt: "sessile polyp, smooth surface".into(),
        negative: negative.into(),
        seed: 1234,
    }
}

fn paint(generator: &SdxlInpaint, jobs: &[Job<'_>]) -> Vec<Image> {
    let painted = with_reporter(&Silent, |r| generator.generate(RSlice::from_slice(jobs), r));
    painted.unwrap_or_else(|e| panic!("{e}")).into()
}

/// Mean and largest difference of pixels.
fn difference(a: &Image, b: &Image) -> (f64, u8) {
    let differences = a
        .pixels()
        .iter()
        .zip(b.pixels())
        .map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = differences.clone().map(u64::from).sum();
    let mean = sum as f64 / a.pixels().len() as f64;
    (mean, differences.max().unwrap())
}

fn check(kind: &str, name: &str, negative: &str, more: Value) {
    let scenes = Scenes::open();
    let (image, mask) = (scenes.image("image"), scenes.mask());
    let painted = paint(&generator(kind, more), &[job(&image, &mask, negative)]);
    let expected = scenes.image(&format!("{kind}.{name}"));
    let (mean, largest) = difference(&painted[0], &expected);
    assert!(
        mean <= 0.2 && largest <= 2,
        "{kind}.{name}: mean {mean}, largest {largest}"
    );
    let (mean, _) = difference(&painted[0], &image);
    assert!(mean > 1.0, "{kind}.{name} is the source");
}

#[test]
fn every_sampler_and_strength_paints_what_diffusers_paints() {
    for sampler in ["euler", "ddim", "dpmpp-2m-karras", "unipc"] {
        for strength in [1.0, 0.6] {
            let name = format!("{sampler}.{strength:.1}");
            let options = json!({"scheduler": sampler, "strength": strength});
            check("xl", &name, "healthy mucosa", options);
        }
    }
}

#[test]
fn models_for_texts_alone_and_with_one_encoder_paint_what_diffusers_paints() {
    for kind in ["xl4", "sd"] {
        for strength in [1.0, 0.6] {
            let name = format!("euler.{strength:.1}");
            check(kind, &name, "healthy mucosa", json!({"strength": strength}));
        }
    }
}

/// What a job's image shows under the mask is what painting begins with, and nothing else: the network
/// is told the image with the hole cut out.
#[test]
fn what_lies_under_the_mask_matters_below_full_strength_alone() {
    let scenes = Scenes::open();
    let (image, mask) = (scenes.image("image"), scenes.mask());
    let mut other = image.clone();
    let pixels = other.bytes_mut().chunks_exact_mut(3).zip(mask.labels());
    for (pixel, _) in pixels.filter(|(_, label)| **label != 0) {
        pixel.copy_from_slice(&[250, 30, 30]);
    }
    let apart = |strength: f64| {
        let generator = generator("xl", json!({"strength": strength, "composite": "hard"}));
        let [first, second] = [&image, &other].map(|image| job(image, &mask, "healthy mucosa"));
        let painted = paint(&generator, &[first, second]);
        difference(&painted[0], &painted[1])
    };
    assert_eq!(apart(1.0), (0.0, 0));
    let ((more, _), (less, _)) = (apart(0.3), apart(0.9));
    assert!(more > less && less > 0.0, "{more} {less}");
}

#[test]
fn without_negative_text_and_with_rescaled_guidance() {
    let options = json!({"guidance_rescale": 0.7, "strength": 0.9999});
    check("xl", "euler.rescaled", "", options);
}

#[test]
fn sizes_are_told_and_without_guidance_there_is_none() {
    let options = json!({
        "guidance": 1.0, "strength": 1.0, "original_size": [96, 80],
        "crop_top_left": [3, 5], "target_size": [72, 64],
    });
    check("xl", "euler.sizes", "healthy mucosa", options);
}

#[test]
fn a_picture_does_not_depend_on_its_batch() {
    let scenes = Scenes::open();
    let (image, mask) = (scenes.image("image"), scenes.mask());
    let mut other = mask.clone();
    other.bytes_mut()[..SIDE as usize * 10].fill(1);
    let first = job(&image, &mask, "healthy mucosa");
    let second = Job {
        mask: other.view(),
        prompt: "large polyp".into(),
        seed: 7,
        ..first
    };
    for rng in ["torch-cpu", "torch-cuda", "native"] {
        let generator = generator("xl", json!({"rng": rng, "steps": 3}));
        let together = paint(&generator, &[second, first, second]);
        let alone = paint(&generator, &[first]);
        assert_eq!(together[1], alone[0], "{rng}");
        assert_eq!(together[0], together[2], "{rng}");
        assert_ne!(together[0], together[1], "{rng}");
    }
}

#[test]
fn pixels_outside_the_mask_stay_unless_all_is_wanted() {
    let scenes = Scenes::open();
    let (image, mask) = (scenes.image("image"), scenes.mask());
    for (composite, window) in [
        ("hard", "full"),
        ("feather", "full"),
        ("feather", "mask"),
        ("poisson", "full"),
        ("poisson", "mask"),
    ] {
        let options = json!({"composite": composite, "window": window, "steps": 2, "margin": 0.1});
        let painted = paint(&generator("sd", options), &[job(&image, &mask, "")]);
        let far = |at: usize| {
            let (x, y) = ((at % 64) as i32, (at / 64) as i32);
            mask.labels().iter().enumerate().all(|(m, label)| {
                let (mx, my) = ((m % 64) as i32, (m / 64) as i32);
                *label == 0 || (mx - x).pow(2) + (my - y).pow(2) > 16
            })
        };
        let pixels = painted[0].pixels().chunks(3).zip(image.pixels().chunks(3));
        for (at, (ours, source)) in pixels.enumerate() {
            let kept = match composite {
                "hard" => mask.labels()[at] == 0,
                _ => far(at),
            };
            assert!(!kept || ours == source, "{composite} {window}: pixel {at}");
        }
        let (mean, _) = difference(&painted[0], &image);
        assert!(mean > 0.5);
    }
}

#[test]
fn any_size_is_painted() {
    let image = Image::new(101, 75, vec![120; 101 * 75 * 3]).unwrap();
    let labels = (0..101 * 75)
        .map(|at| u8::from((30..60).contains(&(at % 101)) && (20..40).contains(&(at / 101))));
    let mask = Mask::new(101, 75, labels.collect()).unwrap();
    for more in [
        json!({}),
        json!({"window": "mask", "resolution": 96}),
        json!({"window": "full", "resolution": 72}),
    ] {
        let mut options = more;
        options["steps"] = json!(2);
        let painted = paint(&generator("xl", options), &[job(&image, &mask, "")]);
        assert_eq!(painted[0].size(), (101, 75));
    }
}

#[test]
fn half_the_memory_paints_nearly_the_same() {
    let scenes = Scenes::open();
    let (image, mask) = (scenes.image("image"), scenes.mask());
    let paint = |dtype: &str| {
        let options = json!({"dtype": dtype, "strength": 1.0, "guidance": 2.0});
        paint(&generator("xl", options), &[job(&image, &mask, "")])
    };
    let exact = paint("f32");
    // The weights are stored in f16, so nothing is lost.
    assert!(difference(&paint("f16")[0], &exact[0]).1 <= 1);
    let (mean, _) = difference(&paint("bf16")[0], &exact[0]);
    assert!(mean < 4.0, "{mean}");
}

#[test]
fn bad_models_are_told_in_a_sentence() {
    let message = |weights: &Path, more: Value| {
        let error = try_generator(weights, more).err().unwrap();
        assert!(!error.is_fault(), "{error}");
        error.to_string()
    };
    let none = message(Path::new("./no/such/folder"), json!({}));
    assert!(
        none.contains("there is no folder or file `./no/such/folder`"),
        "{none}"
    );
    let sampler = message(&fixtures().join("xl"), json!({"vae": "./no"}));
    assert!(sampler.contains("no"), "{sampler}");

    let copied = tempfile::tempdir().unwrap();
    let folder = copied.path().join("xl");
    copy(&fixtures().join("xl"), &folder);
    let unet = folder.join("unet/diffusion_pytorch_model.safetensors");
    let whole = std::fs::read(&unet).unwrap();
    std::fs::write(&unet, &whole[..whole.len() / 2]).unwrap();
    let short = message(&folder, json!({}));
    assert!(
        short.contains("is not a complete safetensors file"),
        "{short}"
    );
    std::fs::write(&unet, b"PK\x03\x04 and so on").unwrap();
    let pickle = message(&folder, json!({}));
    assert!(pickle.contains("is a PyTorch file"), "{pickle}");

    let mut tensors =
        weights::read(&fixtures().join("xl/unet/diffusion_pytorch_model.safetensors")).unwrap();
    let removed = tensors.remove("conv_out.bias").unwrap();
    weights::save_tensors(&unet, tensors.clone(), &[]).unwrap();
    let missing = message(&folder, json!({}));
    assert!(
        missing.contains("tensor `conv_out.bias` is missing"),
        "{missing}"
    );
    tensors.insert(
        "conv_out.bias".into(),
        candle_core::Tensor::cat(&[&removed, &removed], 0).unwrap(),
    );
    weights::save_tensors(&unet, tensors.clone(), &[]).unwrap();
    let misfit = message(&folder, json!({}));
    assert!(
        misfit.contains("`conv_out.bias` has shape [8], expected [4]"),
        "{misfit}"
    );
    tensors.insert("conv_out.bias".into(), removed.clone());
    tensors.insert("stray".into(), removed);
    weights::save_tensors(&unet, tensors, &[]).unwrap();
    let stray = message(&folder, json!({}));
    assert!(stray.contains("tensor `stray` is no part of it"), "{stray}");
    std::fs::write(&unet, whole).unwrap();

    let scheduler = folder.join("scheduler/scheduler_config.json");
    let text = std::fs::read_to_string(&scheduler).unwrap();
    std::fs::write(
        &scheduler,
        text.replace("EulerDiscreteScheduler", "HeunDiscreteScheduler"),
    )
    .unwrap();
    let unknown = message(&folder, json!({}));
    assert!(
        unknown.contains("`HeunDiscreteScheduler`, which is not offered"),
        "{unknown}"
    );
    // Another sampler can be asked for.
    assert!(try_generator(&folder, json!({"scheduler": "euler"})).is_ok());
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Gives up the jobs whose places it holds.
struct GiveUp(&'static [u64]);

impl Watch for GiveUp {
    fn share(&self) -> f64 {
        0.5
    }

    fn look(&self, jobs: &[u64], previews: &[ImageRef<'_>]) -> Result<Vec<bool>> {
        let grey = |image: &ImageRef<'_>| image.pixels().iter().all(|p| *p == image.pixels()[0]);
        assert!(
            previews
                .iter()
                .all(|p| p.size() == (SIDE, SIDE) && !grey(p))
        );
        Ok(jobs.iter().map(|job| !self.0.contains(job)).collect())
    }
}

#[test]
fn what_is_given_up_leaves_the_others_as_they_are() {
    let scenes = Scenes::open();
    let (image, mask) = (scenes.image("image"), scenes.mask());
    let jobs: Vec<Job<'_>> = (0..3)
        .map(|seed| Job {
            seed,
            ..job(&image, &mask, "healthy mucosa")
        })
        .collect();
    for (kind, sampler, guidance) in [
        ("xl", "euler", 7.5),
        ("xl", "unipc", 1.0),
        ("xl4", "dpmpp-2m-karras", 7.5),
        ("sd", "ddpm", 7.5),
    ] {
        let options = json!({"scheduler": sampler, "guidance": guidance, "steps": 4});
        let generator = generator(kind, options);
        let whole = paint(&generator, &jobs);
        for given_up in [&[1][..], &[0, 2], &[], &[0, 1, 2]] {
            let watched = with_watcher(&GiveUp(given_up), |watcher| {
                with_reporter(&Silent, |reporter| {
                    generator.generate_watched(jobs.as_slice().into(), watcher, reporter)
                })
            });
            for (place, (image, whole)) in watched.unwrap().into_iter().zip(&whole).enumerate() {
                match Option::from(image) {
                    None => assert!(given_up.contains(&(place as u64))),
                    Some(image) => {
                        assert!(!given_up.contains(&(place as u64)));
                        let (_, largest) = difference(&image, whole);
                        assert!(largest <= 1, "{kind}, {sampler}: {largest}");
                    }
                }
            }
        }
    }
}
