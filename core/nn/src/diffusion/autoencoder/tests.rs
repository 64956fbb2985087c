//! Against what `fixtures/make_autoencoder_fixture.py` wrote, and on its own.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    diffusion::original::Original,
    params::Params,
    recompute,
    testing::{assert_all_trained, close, random},
    weights,
};
use candle_core::{Device, Var, backprop::GradStore};
use std::{collections::HashMap, fs, path::PathBuf};

const CASES: [&str; 3] = ["two", "four", "bare"];

/// A case: its configuration, weights, inputs (`in.`) and results (`out.`).
struct Fixture {
    config: AutoencoderConfig,
    weights: HashMap<String, Tensor>,
    rest: HashMap<String, Tensor>,
}

fn fixture(case: &str) -> Fixture {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let configs = fs::read_to_string(folder.join("autoencoder.json")).unwrap();
    let mut configs: HashMap<String, AutoencoderConfig> = serde_json::from_str(&configs).unwrap();
    let (mut weights, mut rest) = (HashMap::new(), HashMap::new());
    for (name, tensor) in weights::read(&folder.join("autoencoder.safetensors")).unwrap() {
        let Some(name) = name.strip_prefix(&format!("{case}.")) else {
            continue;
        };
        match name.strip_prefix("w.") {
            Some(name) => weights.insert(name.to_owned(), tensor),
            None => rest.insert(name.to_owned(), tensor),
        };
    }
    let config = configs.remove(case).unwrap();
    Fixture {
        config,
        weights,
        rest,
    }
}

impl Fixture {
    fn trainable(&self) -> (Params, Autoencoder) {
        let mut params = Params::new(&Device::Cpu, 0);
        let net = Autoencoder::new(params.root(), &self.config).unwrap();
        weights::fill(&self.weights, &params).unwrap();
        (params, net)
    }

    fn frozen(&self, dtype: DType) -> Autoencoder {
        let narrow = self.weights.iter().map(|(name, tensor)| {
            let tensor = tensor.to_dtype(dtype).unwrap();
            (name.clone(), tensor)
        });
        let mut params = Params::frozen(&Device::Cpu, narrow.collect());
        let net = Autoencoder::new(params.root(), &self.config).unwrap();
        assert!(params.left_over().is_empty());
        net
    }

    /// Posterior, sample and image, and the loss that the gradients are of.
    fn run(&self, net: &Autoencoder, x: &Tensor) -> (Posterior, Tensor, Tensor, Tensor) {
        let posterior = net.encode(x).unwrap();
        let sample = posterior.sample(&self.rest["in.noise"]).unwrap();
        let latent = net.to_latent(&sample).unwrap();
        let y = net.decode(&net.from_latent(&latent).unwrap()).unwrap();
        let sum = |a: &Tensor, b: &str| (a * &self.rest[b]).unwrap().sum_all().unwrap();
        let kl = sum(&posterior.kl().unwrap(), "in.dkl");
        let loss = (sum(&y, "in.dy") + kl).unwrap();
        (posterior, latent, y, loss)
    }

    fn check_results(&self, net: &Autoencoder, tolerance: f32) {
        let (posterior, latent, y, _) = self.run(net, &self.rest["in.x"]);
        close(&posterior.mean, &self.rest["out.mean"], tolerance);
        close(&posterior.logvar, &self.rest["out.logvar"], tolerance);
        close(&posterior.kl().unwrap(), &self.rest["out.kl"], tolerance);
        close(&latent, &self.rest["out.latent"], tolerance);
        close(&y, &self.rest["out.y"], tolerance);
    }

    fn check_gradients(&self, params: &Params, x: &Var, grads: &GradStore) {
        close(grads.get(x).unwrap(), &self.rest["out.dx"], 1e-4);
        let vars: HashMap<&str, &Var> = params.trainable().collect();
        let expected = self.rest.iter().filter_map(|(name, tensor)| {
            let var = vars.get(name.strip_prefix("out.d")?)?;
            Some((var, tensor))
        });
        let mut compared = 0;
        for (var, expected) in expected {
            close(grads.get(var).unwrap(), expected, 1e-4);
            compared += 1;
        }
        assert!(compared >= 5, "{compared}");
    }
}

#[test]
fn it_agrees_with_diffusers() {
    for case in CASES {
        let fixture = fixture(case);
        let (params, net) = fixture.trainable();
        fixture.check_results(&net, 1e-5);
        let x = Var::from_tensor(&fixture.rest["in.x"]).unwrap();
        let (.., loss) = fixture.run(&net, &x);
        let grads = loss.backward().unwrap();
        fixture.check_gradients(&params, &x, &grads);
        // What is added to all keys changes no attention.
        let moved = params.trainable();
        let moved = moved.filter(|(name, _)| !name.ends_with("to_k.bias"));
        assert_all_trained(moved, &grads);
    }
}

#[test]
fn frozen_it_gives_the_same_and_in_half_the_memory_nearly_the_same() {
    for case in CASES {
        let fixture = fixture(case);
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 3e-3), (DType::BF16, 3e-2)] {
            fixture.check_results(&fixture.frozen(dtype), tolerance);
        }
    }
}

#[test]
fn a_frozen_decoder_passes_gradients_on() {
    let fixture = fixture("two");
    let (params, net) = fixture.trainable();
    let decoder = fixture.frozen(DType::F32);
    let grads = |decoder: &Autoencoder| {
        let mean = net.encode(&fixture.rest["in.x"]).unwrap().mean;
        let y = decoder.decode(&mean).unwrap();
        y.sqr().unwrap().sum_all().unwrap().backward().unwrap()
    };
    let (ours, all) = (grads(&decoder), grads(&net));
    for (name, var) in params.trainable() {
        match name.starts_with("decoder.") || name.starts_with("post_quant_conv.") {
            true => assert!(ours.get(var).is_none(), "{name}"),
            false => close(ours.get(var).unwrap(), all.get(var).unwrap(), 1e-4),
        }
    }
}

#[test]
fn checkpointing_changes_no_gradient() {
    let fixture = fixture("two");
    let (params, net) = fixture.trainable();
    let x = Var::from_tensor(&fixture.rest["in.x"]).unwrap();
    let grads = |net: &Autoencoder| {
        let (.., loss) = fixture.run(net, &x);
        let grads = recompute::backward(&loss).unwrap();
        let vars = params.trainable().map(|(_, var)| var).chain([&x]);
        let values = vars.map(|var| {
            let grad = grads.get(var).unwrap().flatten_all().unwrap();
            grad.to_vec1::<f32>().unwrap()
        });
        values.collect::<Vec<_>>()
    };
    let plain = grads(&net);
    assert_eq!(plain, grads(&net.clone().checkpointing(true)));
    let (.., loss) = fixture.run(&net.checkpointing(true), &x);
    let error = loss.backward().unwrap_err().to_string();
    assert!(error.contains("`recompute::backward`"), "{error}");
}

#[test]
fn halves_made_alone_are_those_of_the_whole() {
    let fixture = fixture("two");
    let (_, whole) = fixture.trainable();
    let half = |prefix: &str| {
        let own = fixture.weights.iter().filter_map(|(name, tensor)| {
            Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
        });
        Params::frozen(&Device::Cpu, own.collect())
    };
    let mut params = half("encoder.");
    let encoder = Encoder::new(params.root(), &fixture.config).unwrap();
    assert!(params.left_over().is_empty());
    let x = &fixture.rest["in.x"];
    let moments = encoder.forward(x).unwrap();
    assert_eq!(moments.dims(), [2, 8, 4, 7]);
    close(&moments, &whole.encoder.forward(x).unwrap(), 1e-5);
    let mut params = half("decoder.");
    let decoder = Decoder::new(params.root(), &fixture.config).unwrap();
    assert!(params.left_over().is_empty());
    let z = random("z", &[1, 4, 3, 5]);
    close(
        &decoder.forward(&z).unwrap(),
        &whole.decoder.forward(&z).unwrap(),
        1e-5,
    );
}

#[test]
fn logarithms_of_variances_are_cut_off() {
    let moments = Tensor::new(&[0.5f32, -1.0, 35.0, -31.0], &Device::Cpu).unwrap();
    let moments = Var::from_tensor(&moments.reshape((1, 4, 1, 1)).unwrap()).unwrap();
    let posterior = Posterior::new(&moments).unwrap();
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values(posterior.mode()), [0.5, -1.0]);
    assert_eq!(values(&posterior.logvar), [20.0, -30.0]);
    let grads = posterior.kl().unwrap().sum_all().unwrap().backward();
    let grads = values(grads.unwrap().get(&moments).unwrap());
    assert_eq!(grads, [0.5, -1.0, 0.0, 0.0]);
    let odd = Posterior::new(&moments.narrow(1, 0, 3).unwrap());
    let error = odd.unwrap_err().to_string();
    assert!(error.contains("even number of channels, not 3"), "{error}");
}

#[test]
fn old_checkpoints_load() {
    let fixture = fixture("two");
    let parts = [
        ("to_q", "query"),
        ("to_k", "key"),
        ("to_v", "value"),
        ("to_out.0", "proj_attn"),
    ];
    for convolutions in [false, true] {
        let old = fixture.weights.iter().map(|(name, tensor)| {
            let mut old = name.clone();
            for (new, name) in parts {
                old = old.replace(new, name);
            }
            let map = old != *name && tensor.rank() == 2;
            let tensor = match map && convolutions {
                true => tensor.unsqueeze(2).unwrap().unsqueeze(3).unwrap(),
                false => tensor.clone(),
            };
            (old, tensor)
        });
        let old: HashMap<String, Tensor> = old.collect();
        let source = Original::older_autoencoder(old).unwrap();
        let mut params = Params::from_source(&Device::Cpu, Box::new(source));
        let net = Autoencoder::new(params.root(), &fixture.config).unwrap();
        assert!(params.left_over().is_empty());
        fixture.check_results(&net, 1e-5);
    }
}

/// The configuration of SDXL's autoencoder.
fn sdxl() -> AutoencoderConfig {
    let config = r#"{
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.20.0.dev0",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "force_upcast": true,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]
    }"#;
    serde_json::from_str(config).unwrap()
}

#[test]
fn at_full_size_it_has_the_parameters_of_the_original() {
    let config = sdxl();
    assert_eq!(config.downsampling(), 8);
    let mut params = Params::new(&Device::Cpu, 0);
    Autoencoder::new(params.root(), &config).unwrap();
    assert_eq!(params.count(), 83_653_863);
    let encoder = params.trainable();
    let encoder = encoder.filter(|(name, _)| name.starts_with("encoder."));
    let encoder: usize = encoder.map(|(_, var)| var.elem_count()).sum();
    assert_eq!(encoder, 34_163_592);
}

#[test]
fn a_configuration_is_written_as_it_was_read() {
    for case in CASES {
        let config = fixture(case).config;
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(
            serde_json::from_str::<AutoencoderConfig>(&text).unwrap(),
            config
        );
    }
    assert_eq!(
        fixture("four").config.sample_size,
        SampleSize::Sides([16, 24])
    );
    let empty: AutoencoderConfig = serde_json::from_str("{}").unwrap();
    assert_eq!(empty, AutoencoderConfig::default());
    assert!(empty.force_upcast && empty.downsampling() == 1);
}

#[test]
fn latents_come_back_from_their_scale() {
    let (two, four, bare) = (fixture("two"), fixture("four"), fixture("bare"));
    for (config, channels) in [(two.config, 4), (four.config, 3), (bare.config, 5)] {
        let z = random("z", &[2, channels, 3, 2]);
        let there = config.to_latent(&z).unwrap();
        close(&config.from_latent(&there).unwrap(), &z, 1e-6);
    }
}

#[test]
fn a_configuration_that_contradicts_itself_is_named() {
    let config = fixture("two").config;
    let fails = |change: fn(&mut AutoencoderConfig)| {
        let mut config = config.clone();
        change(&mut config);
        let mut params = Params::new(&Device::Cpu, 0);
        let error = Autoencoder::new(params.root(), &config).unwrap_err();
        let alone = Decoder::new(params.root(), &config).unwrap_err();
        let [error, alone] = [error, alone].map(|error| error.to_string());
        assert_eq!(error.lines().next(), alone.lines().next());
        error
    };
    assert!(fails(|c| c.up_block_types.truncate(1)).contains("`up_block_types` needs as many"));
    assert!(fails(|c| c.block_out_channels.clear()).contains("which has 0 and at least one"));
    assert!(fails(|c| c.norm_num_groups = 3).contains("`norm_num_groups` 3 does not divide 8"));
    assert!(fails(|c| c.norm_num_groups = 0).contains("`norm_num_groups` 0"));
    let other = fails(|c| c.down_block_types[1] = "AttnDownEncoderBlock2D".to_owned());
    assert!(
        other.contains("`DownEncoderBlock2D`, not `AttnDownEncoderBlock2D`"),
        "{other}"
    );
    assert!(fails(|c| c.act_fn = "relu".to_owned()).contains("`silu` or `swish`, not `relu`"));
    assert!(fails(|c| c.layers_per_block = 0).contains("`layers_per_block` is at least 1"));
    assert!(fails(|c| c.scaling_factor = 0.0).contains("`scaling_factor`"));
    assert!(fails(|c| c.latents_mean = Some(vec![0.0; 4])).contains("go together"));
    let uneven = fails(|c| {
        c.latents_mean = Some(vec![0.0; 4]);
        c.latents_std = Some(vec![1.0; 3]);
    });
    assert!(uneven.contains("with 4 values each"), "{uneven}");
    let flat = fails(|c| {
        c.latents_mean = Some(vec![0.0; 4]);
        c.latents_std = Some(vec![1.0, 0.0, 1.0, 1.0]);
    });
    assert!(flat.contains("above 0, not `0`"), "{flat}");
}

#[test]
fn an_image_that_does_not_fit_is_refused() {
    let (_, net) = fixture("two").trainable();
    assert!(net.encode(&random("x", &[1, 4, 8, 8])).is_err());
    assert!(net.encode(&random("x", &[1, 3, 1, 8])).is_err());
    assert!(net.decode(&random("z", &[1, 3, 8, 8])).is_err());
}
