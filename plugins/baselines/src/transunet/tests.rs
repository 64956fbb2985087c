//! The network against the code of its authors, and with the weights that Google published.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::fixture::{
    Fixture, learning, same_elsewhere, same_when_recomputed, vast, wide_and_narrow,
};
use diffaug_nn::params::Shapes;
use diffaug_nn::{
    layers::Mode,
    ops::Dropping,
    testing::{self, close},
    weights::{self, Source},
};
use std::{collections::HashMap, fs, path::PathBuf};

const FIXTURE: &str = "transunet.safetensors";

/// The network of the fixture.
fn narrow() -> Architecture {
    Architecture {
        width: 8,
        groups: 4,
        units: [2, 1, 1],
        hidden: 16,
        heads: 2,
        mlp: 24,
        blocks: 2,
        bridge: 12,
        decoder: [8, 8, 4, 4],
        dropout: 0.0,
    }
}

fn built(architecture: &Architecture, side: u32) -> (Params, TransUNet) {
    let mut params = Params::new(&Device::Cpu, 0);
    let net = TransUNet::new(params.root(), architecture, 2, (side, side)).unwrap();
    (params, net)
}

fn google() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    folder.join("google.npz")
}

#[test]
fn the_published_configuration_has_its_number_of_parameters() {
    for (outputs, side, count) in [
        (1, 256, 105_322_001),
        (2, 256, 105_322_146),
        (9, 224, 105_277_081),
    ] {
        let architecture = Architecture::default();
        let shapes =
            Shapes::of(|scope| TransUNet::new(scope, &architecture, outputs, (side, side)));
        assert_eq!(shapes.unwrap().parameters(), count);
    }
}

#[test]
fn a_wrong_value_names_its_option() {
    let error = |json: &str| {
        let architecture: Architecture = serde_json::from_str(json).unwrap();
        let error = architecture.check().unwrap_err();
        (error.field.to_string(), error.to_string())
    };
    Architecture::default().check().unwrap();
    Architecture::tiny().check().unwrap();
    narrow().check().unwrap();
    for (json, name) in [
        (r#"{"width": 0}"#, "width"),
        (r#"{"width": 40}"#, "width"),
        (r#"{"groups": 0}"#, "groups"),
        (r#"{"units": [3, 0, 9]}"#, "units"),
        (r#"{"hidden": 100}"#, "hidden"),
        (r#"{"hidden": 100000}"#, "hidden"),
        (r#"{"heads": 0}"#, "heads"),
        (r#"{"mlp": 0}"#, "mlp"),
        (r#"{"blocks": 1000}"#, "blocks"),
        (r#"{"bridge": 0}"#, "bridge"),
        (r#"{"decoder": [256, 128, 0, 16]}"#, "decoder"),
        (r#"{"dropout": 1.0}"#, "dropout"),
        (r#"{"hidden": 12288, "mlp": 49152}"#, "hidden"),
    ] {
        let (field, text) = error(json);
        assert_eq!(field, format!("architecture.{name}"), "{text}");
        assert!(text.contains(&format!("`{field}` is ")), "{text}");
    }
    let (_, text) = error(r#"{"width": 40}"#);
    assert!(
        text.ends_with("expected a multiple of `groups`, 32"),
        "{text}"
    );
}

#[test]
fn the_network_agrees_with_the_reference() {
    let fixture = Fixture::open(FIXTURE);
    let (params, net) = built(&narrow(), 64);
    fixture.fill(&narrow(), &params);
    let images = &fixture["images"];
    let answer = net.forward(images, &Pass::ANSWER).unwrap();
    close(&answer, &fixture["eval"], 1e-5);
    let logits = net.forward(images, &learning(false)).unwrap();
    close(&logits, &fixture["train"], 1e-5);
    let targets = images.narrow(1, 0, 1).unwrap().gt(0.5).unwrap();
    let targets = targets.squeeze(1).unwrap();
    let targets = targets.to_dtype(diffaug_nn::DType::U32).unwrap();
    let loss = ops::cross_entropy(&logits, &targets).unwrap();
    close(&loss, &fixture["loss"], 1e-5);
    fixture.compare_gradients(&params, &loss.backward().unwrap(), 1e-4);
}

#[test]
fn it_begins_with_the_weights_that_google_published() {
    let fixture = Fixture::open(FIXTURE);
    let (params, net) = built(&narrow(), 64);
    fixture.fill(&narrow(), &params);
    let said = TransUNet::begin(&params, &narrow(), &google(), &Device::Cpu).unwrap();
    let values: usize = params
        .all()
        .filter(|(name, _)| name.starts_with("transformer."))
        .map(|(_, var)| var.elem_count())
        .sum();
    let expected = format!("the residual network and the transformer, {values} values");
    assert_eq!(said, expected);
    let answer = net.forward(&fixture["images"], &Pass::ANSWER).unwrap();
    close(&answer, &fixture["begun"], 1e-5);
}

#[test]
fn files_that_do_not_fit_are_named_with_the_tensor() {
    let error = |architecture: &Architecture, file: &Path| {
        let (params, _) = built(architecture, 32);
        let before: Vec<Vec<f32>> = values(&params);
        let error = TransUNet::begin(&params, architecture, file, &Device::Cpu).unwrap_err();
        assert_eq!(values(&params), before, "nothing is changed by halves");
        error.to_string()
    };
    let deeper = Architecture {
        blocks: 3,
        ..narrow()
    };
    let text = error(&deeper, &google());
    assert!(
        text.contains("google.npz` does not fit the network: tensor `Transformer/encoderblock_2/")
            && text.contains("` is missing, expected with shape [16]"),
        "{text}"
    );
    let wider = Architecture {
        mlp: 32,
        ..narrow()
    };
    let text = error(&wider, &google());
    assert!(
        text.contains("Dense_0/bias` has shape [24], expected [32]"),
        "{text}"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    fs::write(&path, "x").unwrap();
    let text = error(&narrow(), &path);
    assert!(text.contains("begins with Google's"), "{text}");
    let path = folder.path().join("w.npz");
    fs::write(&path, "x").unwrap();
    let text = error(&narrow(), &path);
    assert!(text.contains("as an archive of NumPy"), "{text}");
}

fn values(params: &Params) -> Vec<Vec<f32>> {
    let flat = |(_, var): (&str, &candle_core::Var)| var.flatten_all()?.to_vec1();
    params.all().map(flat).collect::<Result<_>>().unwrap()
}

#[test]
fn a_published_checkpoint_loads_by_its_names() {
    let fixture = Fixture::open(FIXTURE);
    let tensors: HashMap<String, Tensor> = fixture.part("weights").iter().map(own).collect();
    let names = tensors.names();
    let (params, _) = built(&narrow(), 64);
    weights::fill(tensors, &params).unwrap();
    let mut ours: Vec<&str> = params.all().map(|(name, _)| name).collect();
    ours.sort_unstable();
    assert_eq!(ours, names);
}

fn own((name, tensor): (&String, &Tensor)) -> (String, Tensor) {
    (name.clone(), tensor.clone())
}

#[test]
fn every_parameter_is_trained() {
    let (params, net) = built(&narrow(), 48);
    let images = testing::random("images", &[3, 3, 48, 48]);
    let dropping = Dropping::new(0.1, 1, 2);
    let pass = Pass {
        mode: Mode::Train,
        dropping: Some(&dropping),
        recompute: false,
    };
    let logits = net.forward(&images, &pass).unwrap();
    assert_eq!(logits.dims(), [3, 2, 48, 48]);
    let target = testing::random("target", logits.dims());
    let loss = (logits - target).unwrap().sqr().unwrap();
    let grads = loss.mean_all().unwrap().backward().unwrap();
    testing::assert_all_trained(params.trainable(), &grads);
}

#[test]
fn what_is_computed_again_is_the_same() {
    let images = testing::random("images", &[2, 3, 48, 48]);
    for share in [0.0, 0.3] {
        same_when_recomputed(|| {
            let (params, net) = built(&narrow(), 48);
            let images = images.clone();
            (params, move |pass: &Pass<'_>| {
                let dropping = Dropping::new(share, 1, 2);
                let pass = Pass {
                    dropping: (share > 0.0).then_some(&dropping),
                    ..*pass
                };
                net.forward(&images, &pass)
            })
        });
    }
}

#[test]
fn values_are_dropped_in_training_alone() {
    let (_, net) = built(&narrow(), 32);
    let images = testing::random("images", &[2, 3, 32, 32]);
    let run = |mode, share| {
        let dropping = Dropping::new(share, 1, 2);
        let pass = Pass {
            mode,
            dropping: Some(&dropping),
            recompute: false,
        };
        let answer = net.forward(&images, &pass).unwrap();
        answer.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(run(Mode::Eval, 0.0), run(Mode::Eval, 0.5));
    assert_eq!(run(Mode::Train, 0.5), run(Mode::Train, 0.5));
    assert_ne!(run(Mode::Train, 0.0), run(Mode::Train, 0.5));
}

#[test]
fn half_precision_is_near() {
    let (params, net) = built(&narrow(), 64);
    let fixture = Fixture::open(FIXTURE);
    fixture.fill(&narrow(), &params);
    wide_and_narrow(&fixture["images"], |images| {
        net.forward(images, &Pass::ANSWER)
    });
}

#[test]
fn sizes_that_do_not_fit_are_an_error() {
    for size in [(64, 48), (40, 40), (0, 0)] {
        let mut params = Params::new(&Device::Cpu, 0);
        let error = TransUNet::new(params.root(), &narrow(), 1, size).map(|_| ());
        let text = error.unwrap_err().to_string();
        let (width, height) = size;
        let expected = format!(
            "`transunet` is for square images whose side is a multiple of 16, not {width}x{height}: set the option `size`"
        );
        assert!(text.contains(&expected), "{text}");
    }
    let (_, net) = built(&narrow(), 32);
    for shape in [[1, 3, 64, 64], [1, 3, 32, 48], [1, 4, 32, 32]] {
        let images = testing::random("images", &shape);
        assert!(net.forward(&images, &Pass::ANSWER).is_err());
    }
}

#[test]
fn other_devices_compute_the_same() {
    let (params, net) = built(&narrow(), 64);
    let fixture = Fixture::open(FIXTURE);
    fixture.fill(&narrow(), &params);
    same_elsewhere(&params, |pass| net.forward(&fixture["images"], pass));
}

#[test]
fn memory_is_estimated_for_any_load() {
    let needs = Architecture::default().activations(&vast());
    assert_eq!((needs.training, needs.answering), (u64::MAX, u64::MAX));
}
