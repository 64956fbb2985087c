//! Checkpoints that are broken, hostile or in other files than safetensors: no picture is painted from
//! numbers that are none, and every refusal is a sentence.

#![allow(clippy::unwrap_used)]

use diffaug::{
    Context, Error, Image, Job, Mask,
    prelude::*,
    stage::{Silent, Watch, with_reporter, with_watcher},
};
use diffaug_nn::{testing::pytorch_file, weights};
use diffaug_sdxl_inpaint::{Options, SdxlInpaint};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

const SIDE: u32 = 64;
const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

fn fixture(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(kind)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// A copy of a fixture, to be changed.
fn copied(kind: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture(kind), folder.path());
    folder
}

/// A copy in which a tensor is multiplied by `factor`.
fn multiplied(kind: &str, file: &str, name: &str, factor: f64) -> TempDir {
    let folder = copied(kind);
    let path = folder.path().join(file);
    let mut tensors = weights::read(&path).unwrap();
    let tensor = tensors.get_mut(name).unwrap();
    let product = (tensor.to_dtype(candle_core::DType::F32).unwrap() * factor).unwrap();
    *tensor = product;
    weights::save_tensors(&path, tensors, &[]).unwrap();
    folder
}

fn generator(weights: &Path, more: Value) -> Result<SdxlInpaint> {
    let mut options = json!({"weights": weights, "steps": 4});
    for (name, value) in more.as_object().unwrap() {
        options[name] = value.clone();
    }
    let options: Options = serde_json::from_value(options).unwrap();
    SdxlInpaint::validate(&options)?;
    SdxlInpaint::from_config(options, &Context::default())
}

struct Scene {
    image: Image,
    mask: Mask,
}

impl Scene {
    fn new() -> Self {
        let pixels = (0..SIDE * SIDE * 3).map(|at| (at % 251) as u8).collect();
        let inside = |at: u32| (20..44).contains(&(at % SIDE)) && (20..44).contains(&(at / SIDE));
        let labels = (0..SIDE * SIDE).map(|at| u8::from(inside(at))).collect();
        Scene {
            image: Image::new(SIDE, SIDE, pixels).unwrap(),
            mask: Mask::new(SIDE, SIDE, labels).unwrap(),
        }
    }

    fn job<'a>(&'a self, name: &'a str) -> Job<'a> {
        Job {
            source: name.into(),
            image: self.image.view(),
            mask: self.mask.view(),
            prompt: "polyp".into(),
            negative: "healthy".into(),
            seed: 1,
        }
    }
}

fn paint(generator: &SdxlInpaint) -> Result<Vec<Image>> {
    let scene = Scene::new();
    let jobs = [scene.job("a"), scene.job("b")];
    let painted = with_reporter(&Silent, |r| generator.generate(jobs.as_slice().into(), r));
    painted.map(Into::into)
}

/// The error that painting ends in, which is the user's to mend.
fn refused(weights: &Path, more: Value) -> String {
    let error = generator(weights, more)
        .and_then(|generator| paint(&generator))
        .unwrap_err();
    assert!(!error.is_fault(), "{error}");
    error.to_string()
}

#[test]
fn the_stage_of_the_first_value_that_is_no_number_is_named() {
    for factor in [f64::NAN, f64::INFINITY] {
        for (kind, file, name, stage) in [
            (
                "sd",
                "text_encoder/model.safetensors",
                "text_model.final_layer_norm.weight",
                "in text encoder 1 a",
            ),
            (
                "xl",
                "text_encoder_2/model.safetensors",
                "text_projection.weight",
                "in text encoder 2 a",
            ),
            ("sd", UNET, "conv_out.weight", "in denoising step 1 of 3 a"),
            ("xl4", UNET, "conv_out.weight", "in denoising step 1 of 3 a"),
            (
                "sd",
                VAE,
                "encoder.conv_in.weight",
                "in the latents that the autoencoder's encoder made a",
            ),
            (
                "sd",
                VAE,
                "decoder.conv_out.weight",
                "in the decoded pixels, after 3 denoising steps a",
            ),
        ] {
            let folder = multiplied(kind, file, name, factor);
            let text = refused(folder.path(), json!({}));
            assert!(text.starts_with("image `a` cannot be painted: "), "{text}");
            assert!(text.contains(stage), "{text}");
            assert!(text.contains("`dtype` (`f32` or `bf16`)"), "{text}");
            let vae = file == VAE;
            assert_eq!(text.contains("sdxl-vae-fp16-fix"), vae, "{text}");
        }
    }
}

#[test]
fn an_autoencoder_that_overflows_paints_nothing() {
    for name in ["decoder.conv_in.weight", "encoder.conv_in.weight"] {
        let folder = multiplied("xl", VAE, name, 1e38);
        let text = refused(folder.path(), json!({}));
        let told = text.contains("a value became NaN or infinite");
        assert!(told, "{name}: {text}");
    }
}

#[test]
fn a_preview_that_is_no_number_is_an_error_and_not_given_up() {
    struct Never;
    impl Watch for Never {
        fn share(&self) -> f64 {
            0.5
        }
        fn look(&self, _: &[u64], _: &[ImageRef<'_>]) -> Result<Vec<bool>> {
            Err(Error::internal("looked at what is no picture"))
        }
    }
    let folder = multiplied("sd", VAE, "decoder.conv_out.weight", f64::NAN);
    let generator = generator(folder.path(), json!({})).unwrap();
    let scene = Scene::new();
    let jobs = [scene.job("a")];
    let watched = with_watcher(&Never, |watcher| {
        with_reporter(&Silent, |reporter| {
            generator.generate_watched(jobs.as_slice().into(), watcher, reporter)
        })
    });
    let text = watched.unwrap_err().to_string();
    assert!(
        text.contains("in the preview that was decoded after step"),
        "{text}"
    );
}

#[test]
fn one_step_is_painted_where_no_strength_was_set() {
    let scene = Scene::new();
    for sampler in ["euler", "ddim", "ddpm", "dpmpp-2m", "unipc"] {
        for kind in ["sd", "xl4"] {
            let options = json!({"steps": 1, "scheduler": sampler, "timestep_spacing": "trailing"});
            let painted = paint(&generator(&fixture(kind), options).unwrap()).unwrap();
            assert_ne!(painted[0], scene.image, "{sampler}, {kind}");
        }
    }
    let text = refused(&fixture("sd"), json!({"steps": 1, "strength": 0.9999}));
    assert!(
        text.contains("`strength` is 0.9999, expected 0 or at least 1 / `steps`"),
        "{text}"
    );
}

/// Makes PyTorch's files of all weights of a pipeline.
fn pickled(folder: &Path) {
    for (network, from, to) in [
        ("unet", "diffusion_pytorch_model", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model", "diffusion_pytorch_model"),
        ("text_encoder", "model", "pytorch_model"),
        ("text_encoder_2", "model", "pytorch_model"),
    ] {
        let path = folder.join(network).join(format!("{from}.safetensors"));
        if path.exists() {
            let tensors = weights::read(&path).unwrap();
            let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
            fs::write(
                path.with_file_name(format!("{to}.bin")),
                pytorch_file(named),
            )
            .unwrap();
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn a_pipeline_of_pytorch_files_is_converted_and_paints_the_same() {
    for kind in ["sd", "xl"] {
        let folder = copied(kind);
        pickled(folder.path());
        let text = refused(folder.path(), json!({}));
        assert!(text.contains("a pickle, which is not opened"), "{text}");
        assert!(
            text.contains("`diffaug convert generator sdxl-inpaint FROM TO`"),
            "{text}"
        );
        let to = folder.path().join("converted");
        let said = SdxlInpaint::convert(&Options::default(), folder.path(), &to).unwrap();
        assert!(said.contains("tensors as safetensors in"), "{said}");
        let ours = paint(&generator(&to, json!({})).unwrap()).unwrap();
        let theirs = paint(&generator(&fixture(kind), json!({})).unwrap()).unwrap();
        assert_eq!(ours, theirs, "{kind}");
    }
}

#[test]
fn configurations_beyond_all_networks_name_their_field() {
    for (file, field, value, expected) in [
        (
            "unet",
            "layers_per_block",
            json!(1_000_000_000),
            "`layers_per_block` is 1000000000, expected 1 to 64",
        ),
        (
            "unet",
            "block_out_channels",
            json!([4_294_967_296u64, 8]),
            "`block_out_channels[0]` is 4294967296",
        ),
        (
            "unet",
            "block_out_channels",
            json!(vec![8; 1000]),
            "`block_out_channels` has 1000 values",
        ),
        (
            "unet",
            "transformer_layers_per_block",
            json!(1_000_000),
            "`transformer_layers_per_block` is 1000000",
        ),
        (
            "unet",
            "attention_head_dim",
            json!(0),
            "`attention_head_dim` is 0",
        ),
        (
            "unet",
            "cross_attention_dim",
            json!(1e9 as u64),
            "`cross_attention_dim` is 1000000000",
        ),
        ("unet", "in_channels", json!(-1), "`in_channels` is -1"),
        ("unet", "norm_eps", json!(-1.0), "`norm_eps` is -1"),
        (
            "unet",
            "sample_size",
            json!(4_294_967_295u64),
            "`sample_size` of `unet` is 4294967295",
        ),
        (
            "vae",
            "layers_per_block",
            json!(1_000_000_000),
            "`layers_per_block` is 1000000000",
        ),
        (
            "vae",
            "scaling_factor",
            json!(0.0),
            "`scaling_factor` is 0, expected a number above 0",
        ),
        (
            "vae",
            "scaling_factor",
            json!(-0.2),
            "`scaling_factor` is -0.2",
        ),
        (
            "vae",
            "latent_channels",
            json!(1_000_000_000),
            "`latent_channels` is 1000000000",
        ),
        (
            "text_encoder",
            "num_hidden_layers",
            json!(1_000_000_000),
            "`num_hidden_layers` is 1000000000",
        ),
        (
            "text_encoder",
            "vocab_size",
            json!(u64::MAX),
            "`vocab_size` is 18446744073709551615",
        ),
        (
            "text_encoder",
            "hidden_size",
            json!("x"),
            "`hidden_size` is \"x\"",
        ),
        (
            "scheduler",
            "num_train_timesteps",
            json!(1_000_000_000_000u64),
            "`num_train_timesteps` is 1000000000000",
        ),
        (
            "scheduler",
            "steps_offset",
            json!(u64::MAX),
            "`steps_offset`",
        ),
        ("scheduler", "beta_end", json!(-1), "`beta_end` is -1"),
    ] {
        let folder = copied("sd");
        let name = if file == "scheduler" {
            "scheduler_config"
        } else {
            "config"
        };
        let path = folder.path().join(file).join(format!("{name}.json"));
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[field] = value;
        fs::write(&path, config.to_string()).unwrap();
        let text = refused(folder.path(), json!({"window": "mask"}));
        assert!(text.contains(expected), "{file}.{field}: {text}");
    }
    let folder = copied("sd");
    let path = folder.path().join("vae/config.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["scaling_factor"] = json!("HERE");
    for number in ["1e400", "NaN", "Infinity"] {
        fs::write(&path, config.to_string().replace("\"HERE\"", number)).unwrap();
        let text = refused(folder.path(), json!({}));
        assert!(text.contains("at `scaling_factor`: "), "{number}: {text}");
    }
    fs::write(&path, format!("{{\"a\": {}", "[".repeat(1 << 20))).unwrap();
    assert!(refused(folder.path(), json!({})).contains("recursion limit exceeded"));
    fs::write(&path, format!("{{\"a\": \"{}\"}}", "x".repeat(5 << 20))).unwrap();
    assert!(refused(folder.path(), json!({})).contains("it is larger than 4.0 MiB"));
}

#[test]
fn how_a_model_wants_to_be_used_is_checked() {
    for (own, expected) in [
        (json!({"margin": 1e30}), "`margin` in `diffaug.json` is"),
        (json!({"margin": -1}), "`margin` in `diffaug.json` is -1"),
        (
            json!({"resolution": 4_294_967_295u32}),
            "`resolution` in `diffaug.json` is 4294967295",
        ),
        (json!({"resolution": "x"}), "`resolution` is \"x\""),
    ] {
        let folder = copied("sd");
        fs::write(folder.path().join("diffaug.json"), own.to_string()).unwrap();
        let text = refused(folder.path(), json!({}));
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn pointers_of_git_lfs_are_told_wherever_they_are() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 334643276\n";
    for file in [
        "model_index.json",
        "unet/config.json",
        UNET,
        VAE,
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
    ] {
        let folder = copied("sd");
        fs::write(folder.path().join(file), pointer).unwrap();
        let text = refused(folder.path(), json!({}));
        assert!(
            text.contains(file) && text.contains("is a git-lfs pointer"),
            "{file}: {text}"
        );
        assert!(text.contains("`git lfs pull`"), "{text}");
    }
    let folder = copied("sd");
    let path = folder.path().join("lora.safetensors");
    fs::write(&path, pointer).unwrap();
    let text = refused(folder.path(), json!({"lora": [{"path": path}]}));
    assert!(
        text.contains("lora.safetensors") && text.contains("is a git-lfs pointer"),
        "{text}"
    );
}

#[cfg(unix)]
#[test]
fn only_regular_files_are_opened() {
    for file in [
        UNET,
        "unet/config.json",
        "tokenizer/vocab.json",
        "scheduler/scheduler_config.json",
    ] {
        let folder = copied("sd");
        let path = folder.path().join(file);
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let text = refused(folder.path(), json!({}));
        let told = text.contains("it is a named pipe") || text.contains("has no tokenizer");
        assert!(told, "{file}: {text}");
    }
    let folder = copied("sd");
    let pipe = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let text = refused(&pipe, json!({}));
    assert!(text.contains("it is a named pipe"), "{text}");
    // A folder that holds itself is of no concern: only known names are opened.
    std::os::unix::fs::symlink(folder.path(), folder.path().join("unet/loop")).unwrap();
    paint(&generator(folder.path(), json!({})).unwrap()).unwrap();
}
