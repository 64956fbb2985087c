//! Beginnings made of weights of latent diffusion and Stable Diffusion, small and with random values.

use super::{Drawings, parsed, with};
use crate::{
    begin::{BEGINNING, begin_with},
    denoiser::{Denoiser, DenoiserConfig},
    description::Description,
    network::Network,
    options::{Init, Options},
    segmenter::{LatentSeg, SdSeg},
    shares::Shares,
};
use candle_core::{Device, Tensor};
use diffaug::{BoxDataset, Dataset, prelude::*, segmenting};
use diffaug_models::{Vae, compressor};
use diffaug_nn::{
    DType,
    diffusion::{Autoencoder, AutoencoderConfig, UNet, UNetConfig, original::Names},
    fit::WEIGHTS,
    ops,
    params::Params,
    testing::{close, random},
    weights,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

type Tensors = BTreeMap<String, Tensor>;

/// Networks as narrow as the checkpoints here.
fn narrow() -> Value {
    json!({
        "size": 16,
        "architecture": {
            "width": 8, "multipliers": [1, 2], "layers": 1, "heads": 2, "attention": [2],
            "groups": 4, "vision": [8], "vision_layers": 1, "features": 3,
        },
    })
}

fn pixels() -> Value {
    with(
        narrow(),
        json!({ "architecture": { "vision": [8, 8], "features": 4 } }),
    )
}

/// Every tensor with random values.
fn filled(params: &Params) -> Tensors {
    let value =
        |(name, var): (&str, &candle_core::Var)| (name.to_owned(), random(name, var.dims()));
    params.all().map(value).collect()
}

fn autoencoder(latent: usize) -> (AutoencoderConfig, Tensors) {
    let config = compressor::architecture(&[8, 8], 1, latent, true, 16);
    let mut params = Params::new(&Device::Cpu, 3);
    Autoencoder::new(params.root(), &config).unwrap();
    (config, filled(&params))
}

/// The autoencoder as a model's file has it.
fn original_autoencoder(tensors: &Tensors) -> Tensors {
    let names = Names::autoencoder(2, 1);
    let stored = tensors.iter().map(|(name, tensor)| {
        let map = name.contains(".attentions.") && tensor.rank() == 2;
        let tensor = match map {
            true => tensor.unsqueeze(2).unwrap().unsqueeze(3).unwrap(),
            false => tensor.clone(),
        };
        let name = names.to_original(name).unwrap();
        (format!("first_stage_model.{name}"), tensor)
    });
    stored.collect()
}

/// The denoising network of latent diffusion, which sees a latent of 4 channels.
fn latent_diffusion() -> Tensors {
    let mut params = Params::new(&Device::Cpu, 3);
    let config = DenoiserConfig {
        inputs: 4,
        outputs: 4,
        width: 8,
        multipliers: vec![1, 2],
        layers: 1,
        heads: 2,
        attention: vec![2],
        groups: 4,
    };
    Denoiser::new(params.root(), &config).unwrap();
    filled(&params)
}

/// As latent diffusion stores it; the running means are what is wanted.
fn stored(denoiser: &Tensors) -> Tensors {
    let mut all = Tensors::new();
    for (name, tensor) in denoiser {
        let attention = name.contains(".qkv.weight") || name.contains(".proj_out.weight");
        let tensor = match attention {
            true => tensor.unsqueeze(2).unwrap(),
            false => tensor.clone(),
        };
        let mean = format!("model_ema.diffusion_model{}", name.replace('.', ""));
        all.insert(
            format!("model.diffusion_model.{name}"),
            (&tensor * 0.0).unwrap(),
        );
        all.insert(mean, tensor);
    }
    all
}

/// A denoising network of Stable Diffusion for inpainting, and its tensors as diffusers has them.
fn stable_diffusion() -> (Value, Tensors) {
    let config = json!({
        "in_channels": 9,
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 6,
        // So that the maps behind transformers have the shape of those behind plain attention.
        "use_linear_projection": true,
        "norm_num_groups": 4,
    });
    let mut params = Params::new(&Device::Cpu, 1);
    let typed: UNetConfig = serde_json::from_value(config.clone()).unwrap();
    UNet::new(params.root(), &typed).unwrap();
    (config, filled(&params))
}

fn save(path: &Path, tensors: impl IntoIterator<Item = (String, Tensor)>) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    weights::save_tensors(path, tensors, &[("format", "pt")]).unwrap();
    path.to_owned()
}

/// What converting left: the tensors, and how many values were taken of how many.
fn left(folder: &Path) -> (HashMap<String, Tensor>, u64, u64) {
    let text = fs::read_to_string(folder.join(BEGINNING)).unwrap();
    let shares: Value = serde_json::from_str(&text).unwrap();
    let sum = |what: &str| {
        let parts = shares["parts"].as_array().unwrap();
        parts.iter().map(|part| part[what].as_u64().unwrap()).sum()
    };
    let tensors = weights::read(&folder.join(WEIGHTS)).unwrap();
    (tensors, sum("taken"), sum("values"))
}

/// Networks for training on drawings.
fn trainable(options: &Options, vae: &Path) -> Network {
    let dataset = BoxDataset::new(Drawings {
        both: false,
        ..Drawings::new(1, 1)
    });
    let targets = segmenting::targets(&dataset.info().unwrap()).unwrap();
    let description = Description::new(options, targets, (16, 16), (2, 4)).unwrap();
    let vae = Vae::open(vae.to_str().unwrap(), DType::F32, &Device::Cpu).unwrap();
    Network::new(description, Params::new(&Device::Cpu, 1), vae).unwrap()
}

#[test]
fn latent_diffusion_becomes_a_beginning_of_the_same_networks() {
    let folder = tempfile::tempdir().unwrap();
    let (denoiser, (_, vae)) = (latent_diffusion(), autoencoder(4));
    let mut all = stored(&denoiser);
    all.extend(original_autoencoder(&vae));
    let from = save(&folder.path().join("ldm.safetensors"), all);
    let (options, to) = (parsed(&narrow()), folder.path().join("out"));
    let said = LatentSeg::convert(&options, &from, &to).unwrap();
    let (tensors, taken, values) = left(&to);

    // All of the denoising network, and nothing else.
    assert_eq!(tensors.len(), denoiser.len());
    for (name, expected) in &denoiser {
        let found = &tensors[&format!("denoiser.{name}")];
        if name != "input_blocks.0.0.weight" {
            close(found, expected, 0.0);
        }
    }
    let first = &tensors["denoiser.input_blocks.0.0.weight"];
    let old = &denoiser["input_blocks.0.0.weight"];
    let (latent, condition) = (random("z", &[2, 4, 8, 8]), random("c", &[2, 4, 8, 8]));
    let both = Tensor::cat(&[&latent, &condition], 1).unwrap();
    let new = ops::conv2d(&both, first, None).unwrap();
    close(&new, &ops::conv2d(&latent, old, None).unwrap(), 1e-6);

    // Shares are of values; the zeros of the first convolution come from nothing.
    let network = trainable(&options, &to.join("vae"));
    let expected: usize = denoiser.values().map(Tensor::elem_count).sum();
    assert_eq!(
        (taken, values),
        (expected as u64, network.params.count() as u64)
    );
    let percent = 100.0 * taken as f64 / values as f64;
    assert!(said.contains(&format!("taken {percent:.1} % of")), "{said}");
    assert!(
        said.contains("from nothing: fusion, vision encoder"),
        "{said}"
    );
    assert!(said.contains("(running means)"), "{said}");

    let shares: Shares = begin_with(&to, Init::All, &network.params).unwrap();
    assert_eq!(shares.values(), values);
    let vars: HashMap<_, _> = network.params.trainable().collect();
    close(vars["denoiser.input_blocks.0.0.weight"], first, 0.0);
    let error = Network::load(&to, &options, &Device::Cpu).err().unwrap();
    assert!(
        error.to_string().contains("by the option `base`"),
        "{error}"
    );
}

#[test]
fn stable_diffusion_in_both_layouts_gives_what_fits() {
    let folder = tempfile::tempdir().unwrap();
    let ((config, unet), (vae_config, vae)) = (stable_diffusion(), autoencoder(4));
    // A folder of a pipeline, of which two networks are enough.
    let pipeline = folder.path().join("pipeline");
    let file = "diffusion_pytorch_model.safetensors";
    save(&pipeline.join("unet").join(file), unet.clone());
    fs::write(pipeline.join("unet/config.json"), config.to_string()).unwrap();
    compressor::save(&pipeline.join("vae"), &vae_config, &vae).unwrap();
    // The same as one file.
    let names = Names::unet(&serde_json::from_value(config).unwrap());
    let mut all = original_autoencoder(&vae);
    for (name, tensor) in &unet {
        let name = names.to_original(name).unwrap();
        all.insert(format!("model.diffusion_model.{name}"), tensor.clone());
    }
    all.insert("cond_stage_model.transformer.x".into(), random("x", &[2]));
    let single = save(&folder.path().join("sd.safetensors"), all);

    let options = parsed(&pixels());
    let convert = |from: &Path, name: &str| {
        let to = folder.path().join(name);
        let said = SdSeg::convert(&options, from, &to).unwrap();
        (said, left(&to), fs::read(to.join(WEIGHTS)).unwrap())
    };
    let (said, (tensors, taken, _), bytes) = convert(&pipeline, "of-folder");
    let (also, _, same) = convert(&single, "of-file");
    assert_eq!((said.as_str(), bytes), (also.as_str(), same));

    for (ours, theirs) in [
        ("time_embed.0.weight", "time_embedding.linear_1.weight"),
        (
            "input_blocks.1.0.in_layers.2.weight",
            "down_blocks.0.resnets.0.conv1.weight",
        ),
        (
            "input_blocks.3.0.skip_connection.weight",
            "down_blocks.1.resnets.0.conv_shortcut.weight",
        ),
        (
            "middle_block.2.0.out_layers.3.bias",
            "mid_block.resnets.1.conv2.bias",
        ),
        (
            "output_blocks.3.0.in_layers.0.weight",
            "up_blocks.1.resnets.1.norm1.weight",
        ),
        ("out.2.weight", "conv_out.weight"),
    ] {
        let ours = ours.replace("middle_block.2.0.", "middle_block.2.");
        close(&tensors[&format!("denoiser.{ours}")], &unet[theirs], 0.0);
    }
    let first = &tensors["denoiser.input_blocks.0.0.weight"];
    let (kept, rest) = (
        first.narrow(1, 0, 4).unwrap(),
        first.narrow(1, 4, 4).unwrap(),
    );
    close(&kept, &unet["conv_in.weight"].narrow(1, 0, 4).unwrap(), 0.0);
    close(&rest, &(&rest * 0.0).unwrap(), 0.0);
    // The encoder of the autoencoder is the beginning of the vision encoder of pixels.
    let name = "encoder.down_blocks.1.resnets.0.conv1.weight";
    close(&tensors[&format!("vision.{name}")], &vae[name], 0.0);
    // Neither transformers nor what does not modulate norms.
    let strange = ["qkv", ".norm.", "proj_out", "emb_layers", "transformer"];
    let found = tensors
        .keys()
        .find(|name| strange.iter().any(|part| name.contains(part)));
    assert_eq!(found, None);
    assert!(
        said.contains("from nothing: timesteps in the blocks, attention"),
        "{said}"
    );
    let zeros = rest.elem_count();
    let expected: usize = tensors.values().map(Tensor::elem_count).sum();
    assert_eq!(taken, (expected - zeros) as u64);
}

#[test]
fn a_checkpoint_of_the_reference_is_a_beginning_for_the_other_preset() {
    let folder = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reference.ckpt");
    let options = with(
        narrow(),
        json!({ "architecture": { "layers": 2, "attention": [1, 2], "features": 4 } }),
    );
    let to = folder.path().join("out");
    let said = LatentSeg::convert(&parsed(&options), &from, &to).unwrap();
    assert!(said.contains("way down 100.0 %"), "{said}");
    assert!(
        said.contains("from nothing: fusion, vision encoder"),
        "{said}"
    );
}

#[test]
fn what_is_no_beginning_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("out");
    let message = |options: &Value, from: &Path| {
        let error = LatentSeg::convert(&parsed(options), from, &to).unwrap_err();
        assert!(!to.exists());
        error.to_string()
    };
    // An autoencoder of three channels, and a network of another width.
    let mut all = stored(&latent_diffusion());
    all.extend(original_autoencoder(&autoencoder(3).1));
    let from = save(&folder.path().join("other.safetensors"), all);
    let wide = with(narrow(), json!({ "architecture": { "width": 24 } }));
    let text = message(&wide, &from);
    assert!(
        text.contains("fits the networks: see the options `architecture.width`"),
        "{text}"
    );
    let denoiser = save(
        &folder.path().join("denoiser.safetensors"),
        stored(&latent_diffusion()),
    );
    let text = message(&narrow(), &denoiser);
    assert!(text.contains("expected an autoencoder"), "{text}");
    fs::create_dir_all(folder.path().join("pipeline/unet")).unwrap();
    let text = message(&narrow(), &folder.path().join("pipeline"));
    assert!(text.contains("config.json"), "{text}");

    let params = Params::new(&Device::Cpu, 0);
    let error = begin_with(folder.path(), Init::All, &params).unwrap_err();
    assert!(
        error.to_string().contains("diffaug convert segmenter"),
        "{error}"
    );
}
