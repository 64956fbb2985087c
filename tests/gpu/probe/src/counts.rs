//! Tensors that are made in a step, views among them: each is an allocation or a kernel's start.

use crate::{Answer, Failure, Setting, networks::unet_config};
use candle_core::{DType, Device, Result, Tensor};
use diffaug_nn::{
    diffusion::UNet,
    layers::{BatchNorm, Conv2d, Mode},
    ops,
    optim::{Config, Optimizer},
    params::Params,
    recompute,
    testing::random,
};

/// The number of tensors that this process has made.
fn made() -> Result<u64> {
    // Candle numbers all tensors in one row and shows the number in debug output alone.
    let tensor = Tensor::zeros((), DType::F32, &Device::Cpu)?;
    let shown = format!("{:?}", tensor.id());
    let digits: String = shown.chars().filter(char::is_ascii_digit).collect();
    digits
        .parse()
        .map_err(|_| candle_core::Error::Msg(format!("unexpected tensor id `{shown}`")))
}

fn counted(work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let before = made()?;
    work()?;
    Ok(made()? - before - 1)
}

/// A step of each kind.
pub fn check(setting: &Setting) -> std::result::Result<Answer, Failure> {
    let figures = ops::composed(|| counts(&setting.device))?;
    Ok(Answer::measured(figures))
}

fn counts(device: &Device) -> Result<String> {
    let on_device = |name: &str, shape: &[usize]| random(name, shape).to_device(device);
    let failed = |error: diffaug::Error| candle_core::Error::Msg(error.to_string());
    let mut params = Params::new(device, 0);
    let net = UNet::new(params.root(), &unet_config_without_added())?;
    let (x, context) = (on_device("x", &[1, 9, 8, 8])?, on_device("c", &[1, 7, 40])?);
    let t = Tensor::new(&[10f32], device)?;
    let mut loss = None;
    let forward = counted(|| {
        loss = Some(net.forward(&x, &t, &context, None)?.sqr()?.mean_all()?);
        Ok(())
    })?;
    let cached = net.cache_text(&context)?;
    let cached = counted(|| cached.forward(&x, &t, None).map(drop))?;
    let mut grads = None;
    let backward = counted(|| {
        if let Some(loss) = &loss {
            grads = Some(recompute::backward(loss)?);
        }
        Ok(())
    })?;
    let tensors = params.trainable().len();
    let mut optimizer = Optimizer::new(params.trainable(), &Config::default()).map_err(failed)?;
    let step = counted(|| {
        if let Some(grads) = &grads {
            optimizer.step(grads, 1e-4)?;
        }
        Ok(())
    })?;
    let mut params = Params::new(device, 0);
    let conv = Conv2d::new(params.root().child("conv"), 3, 8, 3, false)?;
    let norm = BatchNorm::new(params.root().child("norm"), 8)?;
    let x = on_device("x", &[2, 3, 8, 8])?;
    let block = counted(|| norm.forward_after(&conv, &x, Mode::Train).map(drop))?;
    Ok(format!(
        "small SDXL UNet ({tensors} tensors): forward {forward}, with the text heard before {cached}, \
         backward {backward}, AdamW step {step}; convolution with batch norm and ReLU {block}"
    ))
}

fn unet_config_without_added() -> diffaug_nn::diffusion::UNetConfig {
    diffaug_nn::diffusion::UNetConfig {
        addition_embed_type: None,
        ..unet_config(16)
    }
}
