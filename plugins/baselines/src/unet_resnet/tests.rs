//! The network against the library, and with published weights.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::fixture::{
    Fixture, learning, same_elsewhere, same_when_recomputed, vast, wide_and_narrow,
};
use diffaug_nn::params::Shapes;
use diffaug_nn::testing;
use std::fs;

fn shapes(architecture: &Architecture, outputs: usize) -> Shapes {
    Shapes::of(|scope| UNet::new(scope, architecture, outputs, (0, 0))).unwrap()
}

fn of(encoder: Encoder) -> Architecture {
    Architecture {
        encoder,
        ..Architecture::default()
    }
}

fn narrow(encoder: Encoder) -> (Architecture, usize) {
    let architecture = Architecture {
        encoder,
        width: 2,
        decoder: [8, 8, 4, 4, 4],
    };
    let outputs = match encoder {
        Encoder::ResNet50 => 2,
        _ => 1,
    };
    (architecture, outputs)
}

#[test]
fn the_published_configurations_have_their_numbers_of_parameters() {
    for (encoder, count) in [
        (Encoder::ResNet18, 14_328_209),
        (Encoder::ResNet34, 24_436_369),
        (Encoder::ResNet50, 32_521_105),
    ] {
        assert_eq!(shapes(&of(encoder), 1).parameters(), count);
    }
}

#[test]
fn a_wrong_value_names_its_option() {
    let field = |json: &str| {
        let architecture: Architecture = serde_json::from_str(json).unwrap();
        architecture.check().unwrap_err().field.to_string()
    };
    Architecture::default().check().unwrap();
    Architecture::tiny().check().unwrap();
    assert_eq!(field(r#"{"width": 0}"#), "architecture.width");
    assert_eq!(field(r#"{"width": 513}"#), "architecture.width");
    let vast = r#"{"width": 512, "decoder": [16384, 16384, 16384, 16384, 16384]}"#;
    assert_eq!(field(vast), "architecture.width");
    let decoder = r#"{"decoder": [8, 8, 0, 8, 8]}"#;
    assert_eq!(field(decoder), "architecture.decoder");
    let few = serde_json::from_str::<Architecture>(r#"{"decoder": [8, 8]}"#);
    assert!(few.is_err());
}

#[test]
fn the_network_agrees_with_the_library() {
    let fixture = Fixture::open("unet_resnet.safetensors");
    for (name, encoder) in [
        ("resnet18", Encoder::ResNet18),
        ("resnet50", Encoder::ResNet50),
    ] {
        let case = fixture.part(name);
        let (architecture, outputs) = narrow(encoder);
        let mut params = Params::new(&Device::Cpu, 0);
        let net = UNet::new(params.root(), &architecture, outputs, (64, 64)).unwrap();
        case.fill(&architecture, &params);
        let images = &fixture["images"];
        let answer = net.forward(images, &Pass::ANSWER).unwrap();
        testing::close(&answer, &case["eval"], 1e-5);
        let logits = net.forward(images, &learning(false)).unwrap();
        testing::close(&logits, &case["train"], 1e-4);
        let targets = images.narrow(1, 0, 1).unwrap().gt(0.5).unwrap();
        let targets = targets.to_dtype(logits.dtype()).unwrap();
        let targets = targets.broadcast_as(logits.shape()).unwrap();
        let loss = ops::bce_with_logits(&logits, &targets.contiguous().unwrap()).unwrap();
        testing::close(&loss, &case["loss"], 1e-5);
        case.compare_gradients(&params, &loss.backward().unwrap(), 1e-4);
        let after = case.part("after");
        let mut seen = 0;
        for (name, var) in params.all() {
            if let Some(expected) = after.get(name) {
                testing::close(var, expected, 1e-4);
                seen += 1;
            }
        }
        assert!(seen > 0);
    }
}

#[test]
fn every_parameter_is_trained() {
    for encoder in [Encoder::ResNet18, Encoder::ResNet34, Encoder::ResNet50] {
        let (architecture, outputs) = narrow(encoder);
        let mut params = Params::new(&Device::Cpu, 0);
        let net = UNet::new(params.root(), &architecture, outputs, (64, 32)).unwrap();
        let images = testing::random("images", &[4, 3, 32, 64]);
        let logits = net.forward(&images, &learning(false)).unwrap();
        assert_eq!(logits.dims(), [4, outputs, 32, 64]);
        let target = testing::random("target", logits.dims());
        let loss = (logits - target).unwrap().sqr().unwrap();
        let grads = loss.mean_all().unwrap().backward().unwrap();
        testing::assert_all_trained(params.trainable(), &grads);
    }
}

#[test]
fn what_is_computed_again_is_the_same() {
    let images = testing::random("images", &[2, 3, 64, 32]);
    same_when_recomputed(|| {
        let mut params = Params::new(&Device::Cpu, 0);
        let (architecture, outputs) = narrow(Encoder::ResNet18);
        let net = UNet::new(params.root(), &architecture, outputs, (32, 64)).unwrap();
        let images = images.clone();
        (params, move |pass: &Pass<'_>| net.forward(&images, pass))
    });
}

#[test]
fn half_precision_is_near() {
    let mut params = Params::new(&Device::Cpu, 0);
    let (architecture, outputs) = narrow(Encoder::ResNet18);
    let net = UNet::new(params.root(), &architecture, outputs, (64, 64)).unwrap();
    Fixture::open("unet_resnet.safetensors")
        .part("resnet18")
        .fill(&architecture, &params);
    wide_and_narrow(&testing::random("images", &[1, 3, 64, 64]), |images| {
        net.forward(images, &Pass::ANSWER)
    });
}

#[test]
fn sides_that_do_not_fit_are_an_error() {
    let mut params = Params::new(&Device::Cpu, 0);
    let (architecture, outputs) = narrow(Encoder::ResNet18);
    let net = UNet::new(params.root(), &architecture, outputs, (64, 64)).unwrap();
    for shape in [[1, 3, 64, 48], [1, 3, 31, 64], [1, 3, 0, 32]] {
        let images = Tensor::zeros(&shape, diffaug_nn::DType::F32, &Device::Cpu).unwrap();
        let error = net.forward(&images, &Pass::ANSWER).unwrap_err().to_string();
        assert!(error.contains("multiples of 32, not"), "{error}");
    }
    let images = testing::random("images", &[1, 4, 32, 32]);
    assert!(net.forward(&images, &Pass::ANSWER).is_err());
}

type Named = Vec<(String, Tensor)>;

/// The encoder's tensors of a narrow network, as torchvision names them, with a classifier.
fn published(seed: u64) -> Named {
    let mut params = Params::new(&Device::Cpu, seed);
    let (architecture, outputs) = narrow(Encoder::ResNet18);
    UNet::new(params.root(), &architecture, outputs, (64, 64)).unwrap();
    let bare = |(name, var): (&str, &candle_core::Var)| {
        let name = name.strip_prefix("encoder.")?;
        Some((name.to_owned(), var.as_detached_tensor()))
    };
    let mut tensors: Vec<_> = params.all().filter_map(bare).collect();
    tensors.push(("fc.weight".into(), testing::random("fc", &[7, 16])));
    let count = testing::random("count", &[1]);
    tensors.push(("layer1.0.bn1.num_batches_tracked".into(), count));
    tensors
}

/// What beginning with these tensors says, and the values of the network's first tensor of the encoder.
fn begun(tensors: &[(String, Tensor)], pickled: bool) -> diffaug::Result<(String, Vec<f32>)> {
    let folder = tempfile::tempdir()?;
    let file = folder
        .path()
        .join(if pickled { "w.pth" } else { "w.safetensors" });
    let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    match pickled {
        true => fs::write(&file, testing::pytorch_file(named))?,
        false => weights::save_tensors(&file, tensors.iter().cloned(), &[])?,
    }
    let mut params = Params::new(&Device::Cpu, 5);
    let (architecture, outputs) = narrow(Encoder::ResNet18);
    UNet::new(params.root(), &architecture, outputs, (64, 64))?;
    let said = UNet::begin(&params, &architecture, &file, &Device::Cpu)?;
    let conv = params
        .all()
        .find(|(name, _)| *name == "encoder.conv1.weight");
    Ok((said, conv.unwrap().1.flatten_all()?.to_vec1()?))
}

#[test]
fn the_encoder_begins_with_published_weights() {
    let tensors = published(9);
    let values = |name: &str| {
        let found = tensors.iter().find(|(other, _)| other == name).unwrap();
        found.1.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let parts = tensors
        .iter()
        .filter(|(name, _)| !name.starts_with("fc") && !name.ends_with("tracked"));
    let count: usize = parts.map(|(_, tensor)| tensor.elem_count()).sum();
    for prefix in ["", "encoder."] {
        for pickled in [false, true] {
            let named = tensors
                .iter()
                .map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone()))
                .collect::<Vec<_>>();
            let (said, conv) = begun(&named, pickled).unwrap();
            assert_eq!(said, format!("the encoder resnet18, {count} values"));
            assert_eq!(conv, values("conv1.weight"));
        }
    }
}

#[test]
fn files_that_do_not_fit_are_named_with_the_tensor() {
    let error = |change: &dyn Fn(&mut Named)| {
        let mut tensors = published(9);
        change(&mut tensors);
        begun(&tensors, false).unwrap_err().to_string()
    };
    let text = error(&|tensors| tensors.retain(|(name, _)| name != "layer3.0.conv1.weight"));
    assert!(text.contains("does not fit the encoder resnet18: tensor `layer3.0.conv1.weight` is missing, expected with shape [8, 4, 3, 3]"), "{text}");
    let text = error(&|tensors| {
        let bn = tensors.iter_mut().find(|(name, _)| name == "bn1.bias");
        bn.unwrap().1 = testing::random("x", &[5]);
    });
    assert!(
        text.contains("`bn1.bias` has shape [5], expected [2]"),
        "{text}"
    );
    let text = error(&|tensors| {
        tensors.push(("layer1.2.bn1.bias".into(), testing::random("x", &[2])));
    });
    assert!(
        text.contains("tensor `layer1.2.bn1.bias` is not part of it"),
        "{text}"
    );
    let text = error(&|tensors| tensors.retain(|(name, _)| name.starts_with("fc")));
    assert!(text.contains("`conv1.weight` is missing"), "{text}");
}

#[test]
fn other_devices_compute_the_same() {
    let fixture = Fixture::open("unet_resnet.safetensors");
    let (architecture, outputs) = narrow(Encoder::ResNet50);
    let mut params = Params::new(&Device::Cpu, 0);
    let net = UNet::new(params.root(), &architecture, outputs, (64, 64)).unwrap();
    fixture.part("resnet50").fill(&architecture, &params);
    same_elsewhere(&params, |pass| net.forward(&fixture["images"], pass));
}

#[test]
fn memory_is_estimated_for_any_load() {
    let needs = Architecture::default().activations(&vast());
    assert_eq!((needs.training, needs.answering), (u64::MAX, u64::MAX));
}
