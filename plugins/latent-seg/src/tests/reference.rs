//! The networks against the reference's own code, and its checkpoints as folders of weights.

use super::parsed;
use crate::{
    convert::as_map,
    denoiser::{Denoiser, DenoiserConfig},
    network::{Network, Seen},
    segmenter::SdSeg,
};
use candle_core::{Device, Tensor};
use diffaug::prelude::*;
use diffaug_models::Vae;
use diffaug_nn::{
    DType,
    params::Params,
    testing::{assert_all_trained, close},
    weights::{self, Pickle, Source},
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

fn expected() -> HashMap<String, Tensor> {
    weights::read(&fixture("reference.safetensors")).unwrap()
}

/// What the reference's narrow network is; its checkpoint tells all but heads and groups.
fn reference() -> Value {
    json!({ "size": 16, "architecture": { "heads": 2, "groups": 4 } })
}

#[test]
fn the_denoiser_agrees_with_the_reference() {
    let config = DenoiserConfig {
        inputs: 8,
        outputs: 4,
        width: 8,
        multipliers: vec![1, 2],
        layers: 2,
        heads: 2,
        attention: vec![1, 2],
        groups: 4,
    };
    let mut source = Pickle::open(&fixture("reference.ckpt")).unwrap();
    let names = source.names();
    let ours = names
        .iter()
        .filter_map(|name| name.strip_prefix("model.diffusion_model."));
    let tensors: HashMap<String, Tensor> = ours
        .map(|name| {
            let mean = format!("model_ema.diffusion_model{}", name.replace('.', ""));
            let tensor = source.take(&mean).unwrap().unwrap();
            (name.to_owned(), as_map(name, tensor).unwrap())
        })
        .collect();
    let rest = expected();
    let mut trainable = Params::new(&Device::Cpu, 0);
    let plain = Denoiser::new(trainable.root(), &config).unwrap();
    weights::fill(&tensors, &trainable).unwrap();
    let mut frozen = Params::frozen(&Device::Cpu, tensors);
    let packed = Denoiser::new(frozen.root(), &config).unwrap();
    assert!(frozen.left_over().is_empty());
    for net in [&plain, &packed] {
        close(
            &net.forward(&rest["x"], &rest["t"], None).unwrap(),
            &rest["y"],
            1e-4,
        );
    }
    let loss = plain.forward(&rest["x"], &rest["t"], None).unwrap();
    let grads = loss.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    // What is added to all keys changes no attention, and keys are a third of these.
    assert_all_trained(trainable.trainable(), &grads);
}

#[test]
fn a_checkpoint_of_the_reference_becomes_a_folder_of_weights() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("out");
    let options = parsed(&reference());
    let found = SdSeg::convert(&options, &fixture("reference.ckpt"), &to).unwrap();
    assert!(
        found.contains("running means") && found.contains("0.125"),
        "{found}"
    );
    let network = Network::load(&to, &options, &Device::Cpu).unwrap();
    let rest = expected();
    let seen = Seen {
        latent: None,
        pixels: Some(rest["image"].clone()),
    };
    let condition = network.condition(&seen, None).unwrap();
    close(&condition, &rest["condition"], 1e-4);
    let clean = network
        .denoise(rest["noise"].clone(), &condition, 1, |_, _| Ok(()))
        .unwrap();
    close(&clean, &rest["clean"], 1e-4);
    let probability = network.probabilities(&clean, false).unwrap();
    close(&probability, &rest["probability"], 1e-4);
    let moments = network.vae.moments(&rest["mask"]).unwrap();
    let both = Tensor::cat(&[&moments.mean, &moments.logvar.unwrap()], 1).unwrap();
    close(&both, &rest["moments"], 1e-4);
}

#[test]
fn an_autoencoder_in_the_original_layout_opens_alone() {
    let path = fixture("reference.ckpt");
    let vae = Vae::open(path.to_str().unwrap(), DType::F32, &Device::Cpu).unwrap();
    assert_eq!((vae.factor(), vae.channels()), (2, 4));
    let rest = expected();
    let moments = vae.moments(&rest["mask"]).unwrap();
    let both = Tensor::cat(&[&moments.mean, moments.logvar.as_ref().unwrap()], 1).unwrap();
    close(&both, &rest["moments"], 1e-4);
    let scaled = (&moments.mean * 0.18215).unwrap();
    close(&vae.mode(&moments).unwrap(), &scaled, 1e-6);
}

#[test]
fn what_cannot_be_converted_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("out");
    let message = |options: &Value, from: &Path| {
        let error = SdSeg::convert(&parsed(options), from, &to).unwrap_err();
        assert!(!to.join("config.json").exists());
        error.to_string()
    };
    let none = message(&reference(), Path::new("nowhere.ckpt"));
    assert_eq!(none, "there is no file `nowhere.ckpt`");
    let other = message(&reference(), &fixture("reference.safetensors"));
    assert!(
        other.contains("no tensor begins with `model.diffusion_model.`"),
        "{other}"
    );
    let text = folder.path().join("text.ckpt");
    fs::write(&text, "no archive").unwrap();
    assert!(message(&reference(), &text).contains("as a PyTorch file"));
    let groups = message(
        &json!({ "architecture": { "groups": 3, "heads": 2, "width": 3 } }),
        &fixture("reference.ckpt"),
    );
    assert!(groups.contains("`groups` 3 does not divide 8"), "{groups}");
}
