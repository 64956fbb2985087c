//! Whole networks with random weights on the device against the processor's kernels: results and the
//! gradients of all parameters.

use crate::{Answer, Failure, Setting};
use candle_core::{DType, Device, Result, Tensor};
use diffaug_nn::{
    diffusion::{
        Added, Autoencoder, AutoencoderConfig, PerBlock, TinyAutoencoder, TinyAutoencoderConfig,
        UNet, UNetConfig,
    },
    ops,
    params::Params,
    recompute,
    testing::{operations::difference, random},
};
use std::collections::HashMap;

/// What a type may be off by, as part of the largest value: of the result, and of the gradients of
/// all parameters together.
fn tolerances(dtype: DType) -> (f32, f32) {
    match dtype {
        DType::BF16 => (0.05, 0.15),
        DType::F16 => (0.01, 0.03),
        _ => (1e-3, 5e-3),
    }
}

/// SDXL's UNet with every kind of block that it has, and sizes that a test can bear.
pub fn unet_config(width: usize) -> UNetConfig {
    let names = |names: [&str; 3]| names.map(str::to_owned).to_vec();
    let (down, up) = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D");
    UNetConfig {
        in_channels: 9,
        block_out_channels: vec![width, 2 * width, 4 * width],
        down_block_types: names(["DownBlock2D", down, down]),
        up_block_types: names([up, up, "UpBlock2D"]),
        transformer_layers_per_block: PerBlock::Each(vec![1, 1, 2]),
        attention_head_dim: PerBlock::Each(vec![1, 2, 4]),
        cross_attention_dim: 40,
        use_linear_projection: true,
        norm_num_groups: 8,
        addition_embed_type: Some("text_time".to_owned()),
        addition_time_embed_dim: Some(8),
        projection_class_embeddings_input_dim: Some(24 + 6 * 8),
        ..UNetConfig::default()
    }
}

fn autoencoder_config() -> AutoencoderConfig {
    let names = |name: &str| vec![name.to_owned(); 3];
    AutoencoderConfig {
        down_block_types: names("DownEncoderBlock2D"),
        up_block_types: names("UpDecoderBlock2D"),
        block_out_channels: vec![16, 24, 32],
        layers_per_block: 1,
        norm_num_groups: 8,
        ..AutoencoderConfig::default()
    }
}

type Network = Box<dyn Fn(&dyn Fn(&str, &[usize]) -> Result<Tensor>) -> Result<Tensor>>;

/// Builds the network called `name`; it is given what makes its inputs.
fn build(name: &str, params: &mut Params) -> std::result::Result<Network, Failure> {
    Ok(match name {
        "unet" | "unet, recomputed" => {
            let net = UNet::new(params.root(), &unet_config(16))?;
            let net = net.checkpointing(name != "unet");
            Box::new(move |draw| {
                // Sides that are no multiples of 8, batch 2.
                let t = draw("t", &[2])?.abs()?.affine(900.0, 1.0)?;
                let added = Added {
                    text: &draw("pooled", &[2, 24])?,
                    sizes: &(draw("sizes", &[2, 6])?.abs()? * 64.0)?,
                };
                let t = t.to_dtype(DType::F32)?;
                net.forward(
                    &draw("x", &[2, 9, 12, 20])?,
                    &t,
                    &draw("context", &[2, 7, 40])?,
                    Some(added),
                )
            })
        }
        "autoencoder" => {
            let net = Autoencoder::new(params.root(), &autoencoder_config())?;
            Box::new(move |draw| {
                let posterior = net.encode(&draw("x", &[1, 3, 20, 28])?)?;
                net.decode(&posterior.sample(&draw("noise", posterior.mode().dims())?)?)
            })
        }
        "tiny autoencoder" => {
            let net = TinyAutoencoder::new(params.root(), &TinyAutoencoderConfig::default())?;
            Box::new(move |draw| net.decode(&net.encode(&draw("x", &[1, 3, 16, 24])?)?))
        }
        _ => return Err(format!("there is no network `{name}`").into()),
    })
}

/// The result and the gradients of all parameters, f32 on the processor.
fn run(
    name: &str,
    dtype: DType,
    device: &Device,
) -> std::result::Result<(Tensor, HashMap<String, Tensor>), Failure> {
    let mut params = Params::new(device, 3);
    let net = build(name, &mut params)?;
    // Inputs are rounded alike in all types.
    let draw = |name: &str, shape: &[usize]| {
        let drawn = random(name, shape).to_dtype(DType::BF16)?;
        drawn.to_dtype(dtype)?.to_device(device)
    };
    let y = net(&draw)?.to_dtype(DType::F32)?;
    let dy = random("dy", y.dims()).to_device(device)?;
    let grads = recompute::backward(&(&y * dy)?.mean_all()?)?;
    let on_host = |t: &Tensor| t.to_dtype(DType::F32)?.to_device(&Device::Cpu);
    let mut found = HashMap::new();
    for (name, var) in params.trainable() {
        let Some(grad) = grads.get(var) else {
            return Err(format!("`{name}` has no gradient").into());
        };
        found.insert(name.to_owned(), on_host(grad)?.flatten_all()?);
    }
    Ok((on_host(&y)?, found))
}

/// The network of that name.
pub fn check(name: &str, setting: &Setting) -> std::result::Result<Answer, Failure> {
    let (y, grads) = run(name, DType::F32, &Device::Cpu)?;
    let mut names: Vec<&String> = grads.keys().collect();
    names.sort();
    let joined = |grads: &HashMap<String, Tensor>| {
        let parts: Vec<&Tensor> = names.iter().filter_map(|name| grads.get(*name)).collect();
        Tensor::cat(&parts, 0)
    };
    let expected = joined(&grads)?;
    let (mut figures, mut wrong) = (Vec::new(), Vec::new());
    for (dtype, label) in [
        (DType::F32, "f32"),
        (DType::BF16, "bf16"),
        (DType::F16, "f16"),
    ] {
        let (found, found_grads) = ops::composed(|| run(name, dtype, &setting.device))?;
        let off = (
            difference(&found, &y)?,
            difference(&joined(&found_grads)?, &expected)?,
        );
        let allowed = tolerances(dtype);
        if !(off.0 <= allowed.0 && off.1 <= allowed.1) {
            wrong.push(format!("{label}: off by {off:?}, allowed are {allowed:?}"));
        }
        figures.push(format!("{label} {:.1e} and {:.1e}", off.0, off.1));
    }
    let figure = format!(
        "result and {} gradients differ by {}",
        names.len(),
        figures.join(", ")
    );
    Ok(Answer { figure, wrong })
}
