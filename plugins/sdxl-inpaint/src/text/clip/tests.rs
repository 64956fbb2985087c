//! The encoders against those of transformers.

#![allow(clippy::unwrap_used)]

use super::*;
use candle_core::Var;
use diffaug_nn::{
    params::Params,
    testing::{Fixtures, assert_all_trained, close},
    weights,
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

const FOLDERS: [(&str, &str); 2] = [("first", "text_encoder"), ("second", "text_encoder_2")];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/text")
        .join(name)
}

fn config(folder: &str) -> ClipConfig {
    let text = std::fs::read(fixture(folder).join("config.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn ids(expected: &Fixtures, case: &str) -> Tensor {
    expected.get(case, "ids").to_dtype(DType::U32).unwrap()
}

fn frozen(folder: &str, change: impl Fn(&Tensor) -> Result<Tensor>) -> ClipText {
    let tensors = weights::read(&fixture(folder).join("model.safetensors")).unwrap();
    let tensors = tensors.iter().map(|(k, v)| (k.clone(), change(v).unwrap()));
    let mut params = Params::frozen(&Device::Cpu, tensors.collect());
    let clip = ClipText::new(params.root(), &config(folder)).unwrap();
    assert_eq!(params.left_over(), Vec::<&str>::new());
    clip
}

fn compare(ours: &ClipOutput, expected: impl Fn(&str) -> Tensor, tolerance: f32) {
    close(&ours.penultimate, &expected("penultimate"), tolerance);
    close(&ours.last, &expected("last"), tolerance);
    close(&ours.pooled, &expected("pooled"), tolerance);
}

#[test]
fn frozen_encoders_agree_with_the_reference() {
    let expected = Fixtures::open(fixture("expected.safetensors"));
    for (case, folder) in FOLDERS {
        let ours = frozen(folder, |t| Ok(t.clone()));
        let ours = ours.forward(&ids(&expected, case)).unwrap();
        compare(&ours, |name| expected.get(case, name).clone(), 1e-5);
    }
}

#[test]
fn gradients_agree_with_the_reference() {
    let path = fixture("expected.safetensors");
    let expected = Fixtures::open(&path);
    for (case, folder) in FOLDERS {
        let mut params = Params::new(&Device::Cpu, 0);
        let clip = ClipText::new(params.root(), &config(folder)).unwrap();
        weights::load(&fixture(folder).join("model.safetensors"), &params).unwrap();
        let ours = clip.forward(&ids(&expected, case)).unwrap();
        compare(&ours, |name| expected.get(case, name).clone(), 1e-5);
        let towards = |t: &Tensor, name: &str| (t * expected.get(case, name)).unwrap().sum_all();
        let losses = [
            towards(&ours.penultimate, "d_penultimate").unwrap(),
            towards(&ours.last, "d_last").unwrap(),
            towards(&ours.pooled, "d_pooled").unwrap(),
        ];
        let loss = Tensor::stack(&losses, 0).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        assert_all_trained(params.trainable(), &grads);
        let vars: HashMap<&str, &Var> = params.trainable().collect();
        let prefix = format!("{case}.d.");
        let mut checked = 0;
        for name in weights::read(&path).unwrap().keys() {
            if let Some(name) = name.strip_prefix(&prefix) {
                let theirs = expected.get(case, &format!("d.{name}"));
                close(grads.get(vars[name]).unwrap(), theirs, 1e-4);
                checked += 1;
            }
        }
        assert!(checked >= 9, "{checked} gradients");
    }
}

#[test]
fn half_weights_are_computed_with_in_f32() {
    let expected = Fixtures::open(fixture("expected.safetensors"));
    for (dtype, tolerance) in [(DType::F16, 2e-3), (DType::BF16, 2e-2)] {
        for (case, folder) in FOLDERS {
            let ids = ids(&expected, case);
            let half = frozen(folder, |t| t.to_dtype(dtype)).forward(&ids).unwrap();
            assert_eq!(half.last.dtype(), DType::F32);
            compare(&half, |name| expected.get(case, name).clone(), tolerance);
            let rounded = frozen(folder, |t| t.to_dtype(dtype)?.to_dtype(DType::F32));
            let rounded = rounded.forward(&ids).unwrap();
            let rounded = HashMap::from([
                ("penultimate", rounded.penultimate),
                ("last", rounded.last),
                ("pooled", rounded.pooled),
            ]);
            // Some processors multiply bf16 weights with an input that is rounded, too.
            let tolerance = if dtype == DType::BF16 { 2e-2 } else { 1e-6 };
            compare(&half, |name| rounded[name].clone(), tolerance);
        }
    }
}

/// A small encoder that is trained.
fn small(change: impl Fn(&mut ClipConfig)) -> Result<(Params, ClipText)> {
    let mut config = ClipConfig {
        vocab_size: 50,
        max_position_embeddings: 6,
        hidden_size: 8,
        intermediate_size: 12,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        projection_dim: 4,
        eos_token_id: 49,
        ..ClipConfig::default()
    };
    change(&mut config);
    let mut params = Params::new(&Device::Cpu, 3);
    let clip = ClipText::new(params.root(), &config)?;
    Ok((params, clip))
}

#[test]
fn a_token_that_stands_twice_gathers_both_gradients() {
    let (params, clip) = small(|_| ()).unwrap();
    let grad = |ids: [u32; 4]| {
        let ids = Tensor::new(&[ids], &Device::Cpu).unwrap();
        let embedded = clip.embed(&ids).unwrap();
        // Place i counts i + 1 times.
        let times = Tensor::new(&[1f32, 2., 3., 4.], &Device::Cpu).unwrap();
        let loss = embedded.broadcast_mul(&times.reshape((1, 4, 1)).unwrap());
        let grads = loss.unwrap().sum_all().unwrap().backward().unwrap();
        let table = params
            .trainable()
            .find(|(name, _)| name.contains("token_embedding"));
        let grad = grads.get(table.unwrap().1).unwrap();
        grad.narrow(1, 0, 1)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
    };
    let sums = grad([7, 5, 7, 7]);
    assert_eq!((sums[7], sums[5]), (8.0, 2.0));
    assert_eq!(sums.iter().sum::<f32>(), 10.0);
}

#[test]
fn a_token_does_not_see_those_after_it() {
    let (_, clip) = small(|config| config.num_hidden_layers = 3).unwrap();
    let run = |ids: [u32; 5]| {
        clip.forward(&Tensor::new(&[ids], &Device::Cpu).unwrap())
            .unwrap()
    };
    let (a, b) = (run([1, 2, 3, 49, 49]), run([1, 2, 3, 4, 5]));
    let head = |out: &ClipOutput| out.last.narrow(1, 0, 3).unwrap();
    close(&head(&a), &head(&b), 0.0);
    let tail = |out: &ClipOutput| {
        out.last
            .narrow(1, 3, 1)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
    };
    assert_ne!(tail(&a), tail(&b));
}

#[test]
fn a_text_ends_where_the_reference_says() {
    assert_eq!(end(&[48, 9, 49, 49], 49), 2);
    assert_eq!(end(&[48, 9, 49, 0, 0], 49), 2);
    assert_eq!(end(&[48, 9, 2, 49, 49], 2), 3);
    assert_eq!(end(&[48, 50, 49], 49), 2);
    assert_eq!(end(&[48, 9, 9], 49), 0);
}

#[test]
fn parameters_are_as_many_as_published() {
    for (_, folder) in FOLDERS {
        let config = config(folder);
        let mut params = Params::new(&Device::Cpu, 0);
        ClipText::new(params.root(), &config).unwrap();
        assert_eq!(config.parameters(), params.count());
    }
    let large = ClipConfig {
        hidden_size: 768,
        intermediate_size: 3072,
        num_attention_heads: 12,
        ..ClipConfig::default()
    };
    assert_eq!(large.parameters(), 123_060_480);
    let big = ClipConfig {
        architectures: vec!["CLIPTextModelWithProjection".to_owned()],
        hidden_size: 1280,
        intermediate_size: 5120,
        num_hidden_layers: 32,
        num_attention_heads: 20,
        projection_dim: 1280,
        ..ClipConfig::default()
    };
    assert_eq!(big.parameters(), 694_659_840);
}

#[test]
fn a_config_is_read_and_written() {
    let read = |text: &str| serde_json::from_str::<ClipConfig>(text);
    assert_eq!(read("{}").unwrap(), ClipConfig::default());
    let config = config("text_encoder_2");
    assert!(config.has_projection());
    assert_eq!(
        (config.hidden_act, config.eos_token_id),
        (HiddenAct::Gelu, 529)
    );
    assert_eq!(
        read(&serde_json::to_string(&config).unwrap()).unwrap(),
        config
    );
    let tanh = read(r#"{"hidden_act": "gelu_pytorch_tanh"}"#).unwrap();
    assert_eq!(tanh.hidden_act, HiddenAct::GeluNew);
    let error = read(r#"{"hidden_act": "relu"}"#).unwrap_err().to_string();
    assert!(
        error.contains("unknown variant `relu`, expected one of `quick_gelu`"),
        "{error}"
    );
}

#[test]
fn what_does_not_fit_is_named() {
    let error = |change: fn(&mut ClipConfig)| small(change).unwrap_err().to_string();
    let message = error(|config| config.num_attention_heads = 3);
    assert!(
        message.contains("`num_attention_heads` of a text encoder is 3"),
        "{message}"
    );
    let message = error(|config| config.num_hidden_layers = 0);
    assert!(
        message.contains("`num_hidden_layers` of a text encoder is 0"),
        "{message}"
    );

    let (_, clip) = small(|_| ()).unwrap();
    let error = |ids: &[u32]| {
        let ids = Tensor::new(ids, &Device::Cpu)
            .unwrap()
            .unsqueeze(0)
            .unwrap();
        clip.forward(&ids).unwrap_err().to_string()
    };
    let message = error(&[1; 7]);
    assert!(
        message.contains("6 positions cannot read 1 texts of 7 tokens"),
        "{message}"
    );
    assert!(error(&[50]).contains("50"), "{}", error(&[50]));

    let mut params = Params::frozen(&Device::Cpu, HashMap::new());
    let error = ClipText::new(params.root(), clip.config())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`text_model.") && error.contains("is missing"),
        "{error}"
    );
}
