//! The network agrees with the reference, and all of it learns.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::fixture::{Fixture, LEARNING, agree, inputs};
use candle_core::{Device, backprop::GradStore};
use diffaug_nn::{
    params::{Params, Shapes},
    segmenter::Architecture as _,
    testing::{self, close, random},
    weights::{self, Renamed},
};
use std::collections::HashMap;

fn narrow() -> Architecture {
    Architecture {
        widths: [4, 6, 6, 8, 12],
        last: 5,
        time: 64,
    }
}

/// A convolution's bias that the normalisation behind it takes off again.
fn is_taken_off(name: &str) -> bool {
    name.ends_with("conv1.bias") || name.ends_with("conv2.bias")
}

fn predict(net: &Net, [images, noisy, t]: &[Tensor; 3], pass: &Pass<'_>) -> Result<Tensor> {
    let condition = net.condition(images, pass)?;
    Ok(net.predict(images, noisy, t, &condition, pass)?.output)
}

#[test]
fn the_published_network_has_its_number_of_parameters() {
    let architecture = Architecture::default();
    let shapes = |masks| Shapes::of(|scope| Net::new(scope, &architecture, masks, (0, 0))).unwrap();
    assert_eq!(shapes(1).parameters(), 13_785_089);
    let of_encoder = |(name, shape): (&String, &Vec<usize>)| {
        let values = shape.iter().product::<usize>();
        name.starts_with("encoder.").then_some(values)
    };
    let encoder: usize = shapes(1).trainable.iter().filter_map(of_encoder).sum();
    assert_eq!(encoder, 4_763_328);
    // The window of each more mask, and its place in the last layer.
    assert_eq!(shapes(2).parameters(), 13_785_089 + 9 * 64 + 65);
    let tiny = Shapes::of(|scope| Net::new(scope, &Architecture::tiny(), 1, (0, 0))).unwrap();
    assert!((200_000..500_000).contains(&tiny.parameters()));
}

#[test]
fn a_wrong_value_names_its_option() {
    let field = |json: &str| {
        let architecture: Architecture = serde_json::from_str(json).unwrap();
        architecture.check().unwrap_err().field.to_string()
    };
    Architecture::default().check().unwrap();
    Architecture::tiny().check().unwrap();
    narrow().check().unwrap();
    for widths in [
        "[0, 1, 2, 2, 2]",
        "[1, 1, 2, 3, 2]",
        "[1, 1, 2, 2, 5000]",
        "[4096, 4096, 4096, 4096, 4096]",
    ] {
        let json = format!(r#"{{"widths": {widths}}}"#);
        assert_eq!(field(&json), "architecture.widths");
    }
    assert_eq!(field(r#"{"last": 0}"#), "architecture.last");
    assert_eq!(field(r#"{"time": 8}"#), "architecture.time");
    assert_eq!(field(r#"{"time": 20}"#), "architecture.time");
    assert!(serde_json::from_str::<Architecture>(r#"{"depth": 1}"#).is_err());
}

#[test]
fn it_agrees_with_the_reference() {
    let fixture = Fixture::open("diff_unet.safetensors");
    let mut params = Params::new(&Device::Cpu, 0);
    let net = Net::new(params.root(), &narrow(), 2, (0, 0)).unwrap();
    let renamed = |tensors| Renamed::new(tensors, |name| narrow().renamed(name)).unwrap();
    weights::fill(renamed(fixture.part("weights").0), &params).unwrap();

    let inputs = ["images", "noisy", "t"].map(|name| fixture[name].clone());
    let condition = net.condition(&inputs[0], &Pass::ANSWER).unwrap();
    close(&condition[4], &fixture["features"], 1e-5);
    let logits = predict(&net, &inputs, &Pass::ANSWER).unwrap();
    close(&logits, &fixture["logits"], 2e-5);

    let expected: HashMap<_, _> = fixture
        .part("gradients")
        .0
        .into_iter()
        .map(|(name, grad)| (narrow().renamed(&name).unwrap(), grad))
        .collect();
    assert_eq!(expected.len(), params.trainable().len());
    let learn = || {
        let logits = predict(&net, &inputs, &LEARNING).unwrap();
        let ours = loss(&logits, &fixture["clean"]).unwrap();
        close(&ours, &fixture["loss"], 1e-6);
        let grads = ours.backward().unwrap();
        for (name, var) in params.trainable().filter(|(name, _)| !is_taken_off(name)) {
            agree(grads.get(var).unwrap(), &expected[name], 1e-4);
        }
    };
    learn();
    // As on other devices.
    ops::composed(learn);
}

#[test]
fn only_names_of_the_reference_are_renamed() {
    let renamed = |name| Architecture::default().renamed(name);
    for name in [
        "conv_0.conv_0.conv.weight",
        "model.conv_1.conv_0.conv.weight",
        "model.upcat_0.convs.conv_0.conv.weight",
        "model.upcat_x.convs.conv_0.conv.weight",
        "model.down_1.conv_0.conv.weight",
        "model.temb.dense.2.weight",
        "model.conv_0.conv_0.weight",
        "model",
    ] {
        assert_eq!(renamed(name), None, "{name}");
    }
}

fn gradients(masks: usize, pass: &Pass<'_>) -> (Params, GradStore) {
    let mut params = Params::new(&Device::Cpu, 0);
    let net = Net::new(params.root(), &narrow(), masks, (0, 0)).unwrap();
    let logits = predict(&net, &inputs(masks, 48, 32), pass).unwrap();
    assert_eq!(logits.dims(), [2, masks, 48, 32]);
    let clean = random("clean", logits.dims()).ge(0.5).unwrap();
    let loss = loss(&logits, &clean.to_dtype(DType::F32).unwrap()).unwrap();
    let grads = recompute::backward(&loss).unwrap();
    (params, grads)
}

#[test]
fn every_parameter_is_trained_but_the_biases_before_a_normalisation() {
    let (params, grads) = gradients(1, &LEARNING);
    let trained = params.trainable().filter(|(name, _)| !is_taken_off(name));
    testing::assert_all_trained(trained, &grads);
    let largest = |var| {
        let grad: &Tensor = grads.get(var).unwrap();
        let largest = grad.abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        largest.to_scalar::<f32>().unwrap()
    };
    let (mut least, mut most) = (f32::MAX, 0f32);
    for (name, var) in params.trainable() {
        match is_taken_off(name) {
            true => most = most.max(largest(var)),
            false => least = least.min(largest(var)),
        }
    }
    assert!(most < 1e-6 && 10.0 * most < least, "{most} and {least}");
}

#[test]
fn what_is_computed_again_is_the_same() {
    let (params, kept) = gradients(2, &LEARNING);
    let recompute = Pass {
        recompute: true,
        ..LEARNING
    };
    let (others, again) = gradients(2, &recompute);
    for ((name, var), (_, other)) in params.trainable().zip(others.trainable()) {
        if !is_taken_off(name) {
            close(again.get(other).unwrap(), kept.get(var).unwrap(), 1e-5);
        }
    }
}

#[test]
fn half_precision_is_near() {
    let mut params = Params::new(&Device::Cpu, 0);
    let net = Net::new(params.root(), &narrow(), 1, (0, 0)).unwrap();
    let [images, noisy, t] = inputs(1, 32, 32);
    let half = [&images, &noisy].map(|x| x.to_dtype(DType::BF16).unwrap());
    let [half_images, half_noisy] = half;
    let ours = predict(&net, &[half_images, half_noisy, t.clone()], &LEARNING).unwrap();
    assert_eq!(ours.dtype(), DType::BF16);
    let exact = predict(&net, &[images, noisy, t], &LEARNING).unwrap();
    let ours = ours.to_dtype(DType::F32).unwrap();
    let off = (ours - &exact).unwrap().abs().unwrap().mean_all().unwrap();
    let size = exact.abs().unwrap().mean_all().unwrap();
    let [off, size] = [off, size].map(|x| x.to_scalar::<f32>().unwrap());
    assert!(off < 0.03 * size, "{off} of {size}");
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut params = Params::new(&Device::Cpu, 0);
    let net = Net::new(params.root(), &narrow(), 1, (0, 0)).unwrap();
    let run = |height, width| predict(&net, &inputs(1, height, width), &Pass::ANSWER);
    run(32, 48).unwrap();
    for (height, width) in [(16, 16), (32, 40), (33, 32), (0, 32)] {
        assert!(run(height, width).is_err());
    }
    assert!(predict(&net, &inputs(2, 32, 32), &Pass::ANSWER).is_err());
    let [images, noisy, t] = inputs(1, 32, 32);
    let condition = net.condition(&images, &Pass::ANSWER).unwrap();
    let predict = |t: &Tensor, condition: &Vec<Tensor>| {
        net.predict(&images, &noisy, t, condition, &Pass::ANSWER)
    };
    predict(&t, &condition).unwrap();
    assert!(predict(&t, &condition[..4].to_vec()).is_err());
    assert!(predict(&t.narrow(0, 0, 1).unwrap(), &condition).is_err());
    assert!(net.condition(&noisy, &Pass::ANSWER).is_err());
}

#[test]
fn steps_are_fused_as_in_the_reference() {
    let fixture = Fixture::open("diff_unet.safetensors");
    let outputs = &fixture["outputs"];
    let run = |run: usize| {
        let run = outputs.get(run).unwrap();
        (0..10).map(|step| run.get(step).unwrap()).collect()
    };
    let runs: Vec<Vec<Tensor>> = (0..4).map(run).collect();
    close(&fuse(&runs).unwrap(), &fixture["fused"], 1e-6);
    assert!(fuse(&[]).is_err());
    assert!(fuse(&[vec![], vec![]]).is_err());
    assert!(fuse(&[runs[0].clone(), runs[1][..9].to_vec()]).is_err());
}
