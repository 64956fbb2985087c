//! The network beside that of diffusers.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::{params::Params, testing::close, weights};
use candle_core::{Device, Var};
use std::{collections::HashMap, fs, path::PathBuf};

/// What `fixtures/make_unet_fixture.py` wrote: the configuration, weights, and the rest.
fn fixture() -> (UNetConfig, HashMap<String, Tensor>, HashMap<String, Tensor>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let config = fs::read_to_string(folder.join("unet.json")).unwrap();
    let tensors = weights::read(&folder.join("unet.safetensors")).unwrap();
    let is_weight = |name: &String| !name.starts_with("in.") && !name.starts_with("out.");
    let (weights, rest) = tensors.into_iter().partition(|(name, _)| is_weight(name));
    (serde_json::from_str(&config).unwrap(), weights, rest)
}

fn run(net: &UNet, x: &Tensor, rest: &HashMap<String, Tensor>) -> Tensor {
    let added = Added {
        text: &rest["in.text"],
        sizes: &rest["in.sizes"],
    };
    net.forward(x, &rest["in.t"], &rest["in.context"], Some(added))
        .unwrap()
}

#[test]
fn it_agrees_with_diffusers() {
    let (config, weights, rest) = fixture();
    let mut params = Params::new(&Device::Cpu, 0);
    let net = UNet::new(params.root(), &config).unwrap();
    weights::fill(&weights, &params).unwrap();
    let x = Var::from_tensor(&rest["in.x"]).unwrap();
    let y = run(&net, &x, &rest);
    close(&y, &rest["out.y"], 1e-5);
    let loss = (y * &rest["in.dy"]).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    close(grads.get(&x).unwrap(), &rest["out.dx"], 1e-4);
    let vars: HashMap<&str, &Var> = params.trainable().collect();
    let expected = rest.iter().filter(|(name, _)| name.starts_with("out.d"));
    for (name, expected) in expected.filter(|(name, _)| *name != "out.dx") {
        close(grads.get(vars[&name[5..]]).unwrap(), expected, 1e-4);
    }
    crate::testing::assert_all_trained(params.trainable(), &grads);
}

#[test]
fn a_text_told_once_is_as_good_as_told_each_time() {
    let (config, weights, rest) = fixture();
    let mut params = Params::frozen(&Device::Cpu, weights);
    let net = UNet::new(params.root(), &config).unwrap();
    let cached = net.cache_text(&rest["in.context"]).unwrap();
    let added = Added {
        text: &rest["in.text"],
        sizes: &rest["in.sizes"],
    };
    for _ in 0..2 {
        let y = cached.forward(&rest["in.x"], &rest["in.t"], Some(added));
        close(&y.unwrap(), &run(&net, &rest["in.x"], &rest), 1e-7);
    }
    assert!(net.cache_text(&rest["in.x"]).is_err());
}

#[test]
fn computing_blocks_again_changes_nothing() {
    let (config, weights, rest) = fixture();
    let grads = |on: bool| {
        let mut params = Params::new(&Device::Cpu, 0);
        let net = UNet::new(params.root(), &config).unwrap().checkpointing(on);
        weights::fill(&weights, &params).unwrap();
        let y = run(&net, &rest["in.x"], &rest);
        let loss = (y * &rest["in.dy"]).unwrap().sum_all().unwrap();
        let grads = recompute::backward(&loss).unwrap();
        let vars = params.trainable();
        let grads = vars.map(|(name, var)| (name.to_owned(), grads.get(var).unwrap().clone()));
        grads.collect::<HashMap<String, Tensor>>()
    };
    let (kept, again) = (grads(false), grads(true));
    for (name, grad) in &kept {
        close(&again[name], grad, 1e-6);
    }
}

#[test]
fn frozen_it_gives_the_same_and_in_half_the_memory_nearly_the_same() {
    let (config, weights, rest) = fixture();
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 2e-3), (DType::BF16, 2e-2)] {
        let narrow = weights.iter().map(|(name, tensor)| {
            let tensor = tensor.to_dtype(dtype).unwrap();
            (name.clone(), tensor)
        });
        let mut params = Params::frozen(&Device::Cpu, narrow.collect());
        let net = UNet::new(params.root(), &config).unwrap();
        assert!(params.left_over().is_empty());
        close(&run(&net, &rest["in.x"], &rest), &rest["out.y"], tolerance);
    }
}

#[test]
fn a_configuration_that_contradicts_itself_is_named() {
    let (config, ..) = fixture();
    let fails = |change: fn(&mut UNetConfig)| {
        let mut config = config.clone();
        change(&mut config);
        let mut params = Params::new(&Device::Cpu, 0);
        UNet::new(params.root(), &config).unwrap_err().to_string()
    };
    assert!(fails(|c| c.up_block_types.truncate(1)).contains("up_block_types"));
    assert!(fails(|c| c.norm_num_groups = 3).contains("`norm_num_groups` 3"));
    assert!(fails(|c| c.attention_head_dim = PerBlock::All(3)).contains("divide 8"));
    let unknown = fails(|c| c.down_block_types[0] = "AttnDownBlock2D".to_owned());
    assert!(
        unknown.contains("`AttnDownBlock2D` is neither"),
        "{unknown}"
    );
    assert!(fails(|c| c.addition_time_embed_dim = None).contains("addition_time_embed_dim"));
}
