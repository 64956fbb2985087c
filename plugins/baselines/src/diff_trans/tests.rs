//! The network agrees with a second writing of it, and all of it learns.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::fixture::{Fixture, LEARNING, agree, inputs};
use candle_core::{DType, Device, backprop::GradStore};
use diffaug_nn::{
    params::{Params, Shapes},
    recompute,
    segmenter::Architecture as _,
    testing::{self, close, random},
    weights::{self, Renamed},
};

/// On maps of 12×10 tokens some windows reach over the edge, and some shrink.
fn narrow() -> Architecture {
    Architecture {
        patch: 2,
        width: 8,
        depths: vec![2, 2],
        heads: 2,
        windows: vec![3, 8],
    }
}

fn predict(net: &Net, [images, noisy, t]: &[Tensor; 3], pass: &Pass<'_>) -> Result<Tensor> {
    let condition = net.condition(images, pass)?;
    Ok(net.predict(images, noisy, t, &condition, pass)?.output)
}

#[test]
fn it_has_its_number_of_parameters() {
    let parameters = |architecture: &Architecture, masks| {
        let shapes = Shapes::of(|scope| Net::new(scope, architecture, masks, (0, 0)));
        shapes.unwrap().parameters()
    };
    let whole = Architecture::default();
    assert_eq!(parameters(&whole, 1), 58_647_164);
    // The windows of each more mask, and its place in the last layer.
    assert_eq!(
        parameters(&whole, 3),
        58_647_164 + 2 * (16 * 96 + 9 * 48 + 49)
    );
    let tiny = parameters(&Architecture::tiny(), 1);
    assert!((200_000..600_000).contains(&tiny), "{tiny}");
}

#[test]
fn a_wrong_value_names_its_option() {
    let field = |json: &str| {
        let architecture: Architecture = serde_json::from_str(json).unwrap();
        let error = architecture.check().unwrap_err();
        error.field.to_string()
    };
    Architecture::default().check().unwrap();
    Architecture::tiny().check().unwrap();
    narrow().check().unwrap();
    for (name, values) in [
        ("patch", ["0", "17"].as_slice()),
        ("width", &["0", "97", "1026"]),
        ("heads", &["0", "5", "2", "400"]),
        ("depths", &["[]", "[0]", "[65]", "[1, 1, 1, 1, 1, 1, 1]"]),
        ("windows", &["[]", "[1]", "[65]"]),
    ] {
        for value in values {
            let json = format!(r#"{{"{name}": {value}}}"#);
            assert_eq!(field(&json), format!("architecture.{name}"), "{json}");
        }
    }
    assert_eq!(field(r#"{"windows": [4, 8]}"#), "architecture.heads");
    let vast = r#"{"width": 1024, "heads": 64, "windows": [4], "depths": [1, 1, 1, 1, 1, 64]}"#;
    assert_eq!(field(vast), "architecture.width");
    assert!(serde_json::from_str::<Architecture>(r#"{"depth": 1}"#).is_err());
}

#[test]
fn it_agrees_with_a_second_writing() {
    let fixture = Fixture::open("diff_trans.safetensors");
    let mut params = Params::new(&Device::Cpu, 0);
    let net = Net::new(params.root(), &narrow(), 2, (0, 0)).unwrap();
    let tensors = fixture.part("weights").0;
    let renamed = Renamed::new(tensors, |name| narrow().renamed(name)).unwrap();
    weights::fill(renamed, &params).unwrap();

    let inputs = ["images", "noisy", "t"].map(|name| fixture[name].clone());
    let condition = net.condition(&inputs[0], &Pass::ANSWER).unwrap();
    close(&condition[1], &fixture["features"], 1e-5);
    let expected = fixture.part("gradients").0;
    assert_eq!(expected.len(), params.trainable().len());
    let learn = || {
        let predicted = predict(&net, &inputs, &LEARNING).unwrap();
        close(&predicted, &fixture["predicted"], 1e-5);
        let loss = ops::mse(&predicted, &fixture["noise"]).unwrap();
        close(&loss, &fixture["loss"], 1e-6);
        let grads = loss.backward().unwrap();
        for (name, var) in params.trainable() {
            agree(grads.get(var).unwrap(), &expected[name], 1e-4);
        }
    };
    learn();
    // As on other devices.
    ops::composed(learn);
}

fn gradients(pass: &Pass<'_>) -> (Params, GradStore) {
    let mut params = Params::new(&Device::Cpu, 0);
    let net = Net::new(params.root(), &narrow(), 1, (0, 0)).unwrap();
    let predicted = predict(&net, &inputs(1, 20, 24), pass).unwrap();
    assert_eq!(predicted.dims(), [2, 1, 20, 24]);
    let noise = random("noise", predicted.dims());
    let grads = recompute::backward(&ops::mse(&predicted, &noise).unwrap()).unwrap();
    (params, grads)
}

#[test]
fn every_parameter_is_trained() {
    let (params, grads) = gradients(&LEARNING);
    testing::assert_all_trained(params.trainable(), &grads);
}

#[test]
fn what_is_computed_again_is_the_same() {
    let (params, kept) = gradients(&LEARNING);
    let recompute = Pass {
        recompute: true,
        ..LEARNING
    };
    let (others, again) = gradients(&recompute);
    for ((_, var), (_, other)) in params.trainable().zip(others.trainable()) {
        close(again.get(other).unwrap(), kept.get(var).unwrap(), 1e-5);
    }
}

#[test]
fn half_precision_is_near() {
    let mut params = Params::new(&Device::Cpu, 0);
    let net = Net::new(params.root(), &narrow(), 1, (0, 0)).unwrap();
    let [images, noisy, t] = inputs(1, 24, 20);
    let [half_images, half_noisy] = [&images, &noisy].map(|x| x.to_dtype(DType::BF16).unwrap());
    let ours = predict(&net, &[half_images, half_noisy, t.clone()], &LEARNING).unwrap();
    assert_eq!(ours.dtype(), DType::BF16);
    let loss = ours.to_dtype(DType::F32).unwrap().sqr().unwrap();
    let grads = loss.mean_all().unwrap().backward().unwrap();
    testing::assert_all_trained(params.trainable(), &grads);
    let exact = predict(&net, &[images, noisy, t], &LEARNING).unwrap();
    let ours = ours.to_dtype(DType::F32).unwrap();
    let off = (ours - &exact).unwrap().abs().unwrap().mean_all().unwrap();
    let size = exact.abs().unwrap().mean_all().unwrap();
    let [off, size] = [off, size].map(|x| x.to_scalar::<f32>().unwrap());
    assert!(off < 0.03 * size, "{off} of {size}");
}

#[test]
fn an_image_does_not_depend_on_those_beside_it() {
    let mut params = Params::new(&Device::Cpu, 0);
    let net = Net::new(params.root(), &narrow(), 1, (0, 0)).unwrap();
    let both = inputs(1, 24, 20);
    let together = predict(&net, &both, &Pass::ANSWER).unwrap();
    let second = both.each_ref().map(|x| x.narrow(0, 1, 1).unwrap());
    let alone = predict(&net, &second, &Pass::ANSWER).unwrap();
    close(&alone, &together.narrow(0, 1, 1).unwrap(), 1e-6);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut params = Params::new(&Device::Cpu, 0);
    let net = Net::new(params.root(), &narrow(), 1, (0, 0)).unwrap();
    let run = |height, width| predict(&net, &inputs(1, height, width), &Pass::ANSWER);
    run(4, 4).unwrap();
    run(4, 36).unwrap();
    for (height, width) in [(6, 8), (8, 9), (0, 4)] {
        assert!(run(height, width).is_err());
    }
    assert!(predict(&net, &inputs(2, 8, 8), &Pass::ANSWER).is_err());
    let [images, noisy, t] = inputs(1, 8, 8);
    let condition = net.condition(&images, &Pass::ANSWER).unwrap();
    let predict = |t: &Tensor, condition: &Vec<Tensor>| {
        net.predict(&images, &noisy, t, condition, &Pass::ANSWER)
    };
    predict(&t, &condition).unwrap();
    assert!(predict(&t, &condition[..1].to_vec()).is_err());
    assert!(predict(&t.narrow(0, 0, 1).unwrap(), &condition).is_err());
    let other = net.condition(&random("images", &[2, 3, 8, 12]), &Pass::ANSWER);
    assert!(predict(&t, &other.unwrap()).is_err());
    assert!(net.condition(&noisy, &Pass::ANSWER).is_err());
}
