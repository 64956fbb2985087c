//! The tiny autoencoder for previews and fast work (TAESD, by Ollin Boer Bohan; `AutoencoderTiny`):
//! it goes straight to, and comes straight from, the latents that a large autoencoder has.
//!
//! It keeps to the ranges of [`super::Autoencoder`]: pixels are -1 to 1 (its own layers see 0 to
//! 1). Its latents are at the scale of a diffusion model, those of
//! [`super::Autoencoder::to_latent`]: they are not multiplied by anything.

mod files;

use crate::{
    layers::Conv2d,
    limits,
    ops::{self, Convolution},
    params::Scope,
};
use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

/// The architecture, in the words of diffusers' `config.json`; the defaults are diffusers', and
/// those of TAESD and TAESDXL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TinyAutoencoderConfig {
    /// Channels of the image that goes in.
    pub in_channels: usize,
    /// Channels of the image that comes out.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels at each resolution of the encoder, all the same.
    pub encoder_block_out_channels: Vec<usize>,
    /// Channels at each resolution of the decoder, all the same.
    pub decoder_block_out_channels: Vec<usize>,
    /// Residual blocks at each resolution of the encoder, from the image's to the latents'.
    pub num_encoder_blocks: Vec<usize>,
    /// Residual blocks at each resolution of the decoder, from the latents' to the image's.
    pub num_decoder_blocks: Vec<usize>,
    /// The activation; there is none but `relu`.
    pub act_fn: String,
    /// How maps grow; there is no way but `nearest`.
    pub upsample_fn: String,
    /// By how much they grow; always 2.
    pub upsampling_scaling_factor: usize,
}

impl Default for TinyAutoencoderConfig {
    fn default() -> Self {
        TinyAutoencoderConfig {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            encoder_block_out_channels: vec![64; 4],
            decoder_block_out_channels: vec![64; 4],
            num_encoder_blocks: vec![1, 3, 3, 3],
            num_decoder_blocks: vec![3, 3, 3, 1],
            act_fn: "relu".to_owned(),
            upsample_fn: "nearest".to_owned(),
            upsampling_scaling_factor: 2,
        }
    }
}

impl TinyAutoencoderConfig {
    /// Checks what serde cannot.
    fn check(&self) -> Result<()> {
        let halves = [
            (
                "encoder",
                &self.encoder_block_out_channels,
                &self.num_encoder_blocks,
            ),
            (
                "decoder",
                &self.decoder_block_out_channels,
                &self.num_decoder_blocks,
            ),
        ];
        for (half, channels, blocks) in halves {
            let same = channels.windows(2).all(|pair| pair[0] == pair[1]);
            if channels.is_empty() || channels[0] == 0 || !same || channels.len() != blocks.len() {
                bail!(
                    "`{half}_block_out_channels` are all the same and as many as `num_{half}_blocks`, at least one, not {channels:?} and {blocks:?}"
                );
            }
        }
        for (field, blocks) in [
            ("num_encoder_blocks", &self.num_encoder_blocks),
            ("num_decoder_blocks", &self.num_decoder_blocks),
        ] {
            limits::all_within(field, blocks, limits::LEVELS, 0..=limits::LAYERS)?;
        }
        for (field, size) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
            (
                "encoder_block_out_channels",
                self.encoder_block_out_channels[0],
            ),
            (
                "decoder_block_out_channels",
                self.decoder_block_out_channels[0],
            ),
        ] {
            limits::within(field, size, 0..=limits::CHANNELS)?;
        }
        if self.in_channels == 0 || self.out_channels == 0 || self.latent_channels == 0 {
            bail!("`in_channels`, `out_channels` and `latent_channels` are at least 1, not 0");
        }
        let factor = self.upsampling_scaling_factor;
        if self.act_fn != "relu" || self.upsample_fn != "nearest" || factor != 2 {
            bail!(
                "`act_fn`, `upsample_fn` and `upsampling_scaling_factor` of a tiny autoencoder are `relu`, `nearest` and 2, not `{}`, `{}` and {factor}",
                self.act_fn,
                self.upsample_fn
            );
        }
        Ok(())
    }
}

/// A small encoder and a small decoder, without any normalisation or chance.
#[derive(Clone, Debug)]
pub struct TinyAutoencoder {
    encoder: Vec<Layer>,
    decoder: Vec<Layer>,
}

impl TinyAutoencoder {
    /// With the tensor names of diffusers (`encoder.layers.0.weight`).
    ///
    /// # Errors
    /// When `config` contradicts itself or asks for what this network does not have, the device
    /// has no room for it, or a given tensor does not fit.
    pub fn new(mut scope: Scope<'_>, config: &TinyAutoencoderConfig) -> Result<Self> {
        config.check()?;
        Ok(TinyAutoencoder {
            encoder: encoder(scope.child("encoder"), config)?,
            decoder: decoder(scope.child("decoder"), config)?,
        })
    }

    /// `x` `[batch, in_channels, height, width]`, values -1 to 1, as latents at a diffusion
    /// model's scale, half the height and width (rounded up) for every resolution but the first:
    /// `[batch, latent_channels, height / 8, width / 8]`, about -3 to 3.
    ///
    /// # Errors
    /// When `x` does not fit.
    pub fn encode(&self, x: &Tensor) -> Result<Tensor> {
        run(&self.encoder, &x.affine(0.5, 0.5)?)
    }

    /// Latents at a diffusion model's scale, `[batch, latent_channels, height, width]`, as images
    /// `[batch, out_channels, 8 height, 8 width]`, values about -1 to 1. Latents beyond -3 to 3
    /// are bent back to that range.
    ///
    /// # Errors
    /// When `z` does not fit.
    pub fn decode(&self, z: &Tensor) -> Result<Tensor> {
        let bent = ((z / 3.0)?.tanh()? * 3.0)?;
        run(&self.decoder, &bent)?.affine(2.0, -1.0)
    }
}

fn encoder(mut scope: Scope<'_>, config: &TinyAutoencoderConfig) -> Result<Vec<Layer>> {
    let mut layers = Layers::new(&mut scope);
    let width = config.encoder_block_out_channels[0];
    for (i, &blocks) in config.num_encoder_blocks.iter().enumerate() {
        match i {
            0 => layers.conv([config.in_channels, width], true)?,
            _ => layers.halve(width)?,
        }
        layers.blocks(width, blocks)?;
    }
    layers.conv([width, config.latent_channels], true)?;
    Ok(layers.done)
}

fn decoder(mut scope: Scope<'_>, config: &TinyAutoencoderConfig) -> Result<Vec<Layer>> {
    let mut layers = Layers::new(&mut scope);
    let width = config.decoder_block_out_channels[0];
    layers.conv([config.latent_channels, width], true)?;
    layers.push(Layer::Relu);
    for (i, &blocks) in config.num_decoder_blocks.iter().enumerate() {
        layers.blocks(width, blocks)?;
        if i + 1 < config.num_decoder_blocks.len() {
            layers.push(Layer::Double);
            layers.conv([width, width], false)?;
        } else {
            layers.conv([width, config.out_channels], true)?;
        }
    }
    Ok(layers.done)
}

/// One layer of a sequence.
#[derive(Clone, Debug)]
enum Layer {
    Conv(Conv2d),
    Relu,
    Double,
    /// Three convolutions with ReLU between them, added to what came in, and a ReLU.
    Block(Box<[Conv2d; 3]>),
}

fn run(layers: &[Layer], x: &Tensor) -> Result<Tensor> {
    let mut x = x.clone();
    for layer in layers {
        x = layer.forward(&x)?;
    }
    Ok(x)
}

impl Layer {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Layer::Conv(conv) => conv.forward(x),
            Layer::Relu => ops::relu(x),
            Layer::Double => {
                let (_, _, height, width) = x.dims4()?;
                ops::upsample_nearest2d(x, 2 * height, 2 * width)
            }
            Layer::Block(block) => {
                let [first, second, third] = block.as_ref();
                let h = ops::relu(&first.forward(x)?)?;
                let h = ops::relu(&second.forward(&h)?)?;
                ops::relu(&(third.forward(&h)? + x)?)
            }
        }
    }
}

/// Layers in the making: each is called by its place in the sequence.
struct Layers<'a, 'b> {
    scope: &'a mut Scope<'b>,
    done: Vec<Layer>,
}

impl<'a, 'b> Layers<'a, 'b> {
    fn new(scope: &'a mut Scope<'b>) -> Self {
        Layers {
            scope,
            done: Vec::new(),
        }
    }

    fn push(&mut self, layer: Layer) {
        self.done.push(layer);
    }

    /// The place of the next layer.
    fn next(&mut self) -> Scope<'_> {
        let place = format!("layers.{}", self.done.len());
        self.scope.child(&place)
    }

    fn conv(&mut self, [inputs, outputs]: [usize; 2], bias: bool) -> Result<()> {
        let conv = Conv2d::new(self.next(), inputs, outputs, 3, bias)?;
        self.push(Layer::Conv(conv));
        Ok(())
    }

    fn halve(&mut self, width: usize) -> Result<()> {
        let spec = Convolution::square(2, 1);
        let conv = Conv2d::with(self.next(), [width; 2], [3, 3], false, spec)?;
        self.push(Layer::Conv(conv));
        Ok(())
    }

    fn blocks(&mut self, width: usize, count: usize) -> Result<()> {
        for _ in 0..count {
            let mut scope = self.next();
            let mut conv =
                |i| Conv2d::new(scope.child(&format!("conv.{i}")), width, width, 3, true);
            let block = [conv(0)?, conv(2)?, conv(4)?];
            self.push(Layer::Block(Box::new(block)));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        batch::{self, Frame},
        params::Params,
        testing::{assert_all_trained, close, optional},
        weights,
    };
    use candle_core::{DType, Device, Var};
    use diffaug::image::open_image;
    use std::{collections::HashMap, fs, path::PathBuf};

    /// What `fixtures/make_autoencoder_fixture.py` wrote: the configuration, weights, and the rest.
    fn fixture() -> (
        TinyAutoencoderConfig,
        HashMap<String, Tensor>,
        HashMap<String, Tensor>,
    ) {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        let config = fs::read_to_string(folder.join("tiny_autoencoder.json")).unwrap();
        let tensors = weights::read(&folder.join("tiny_autoencoder.safetensors")).unwrap();
        let (mut own, mut rest) = (HashMap::new(), HashMap::new());
        for (name, tensor) in tensors {
            match name.strip_prefix("w.") {
                Some(name) => own.insert(name.to_owned(), tensor),
                None => rest.insert(name, tensor),
            };
        }
        (serde_json::from_str(&config).unwrap(), own, rest)
    }

    #[test]
    fn it_agrees_with_diffusers() {
        let (config, own, rest) = fixture();
        let mut params = Params::new(&Device::Cpu, 0);
        let net = TinyAutoencoder::new(params.root(), &config).unwrap();
        weights::fill(&own, &params).unwrap();
        let x = Var::from_tensor(&rest["in.x"]).unwrap();
        let latent = net.encode(&x).unwrap();
        close(&latent, &rest["out.latent"], 1e-5);
        let y = net.decode(&(latent * 12.0).unwrap()).unwrap();
        close(&y, &rest["out.y"], 1e-5);
        let loss = (y * &rest["in.dy"]).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        close(grads.get(&x).unwrap(), &rest["out.dx"], 1e-4);
        for (name, var) in params.trainable() {
            if let Some(expected) = rest.get(&format!("out.d{name}")) {
                close(grads.get(var).unwrap(), expected, 1e-4);
            }
        }
        assert_all_trained(params.trainable(), &grads);
    }

    #[test]
    fn frozen_it_gives_the_same_and_in_half_the_memory_nearly_the_same() {
        let (config, own, rest) = fixture();
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 3e-3), (DType::BF16, 3e-2)] {
            let narrow = own.iter().map(|(name, tensor)| {
                let tensor = tensor.to_dtype(dtype).unwrap();
                (name.clone(), tensor)
            });
            let mut params = Params::frozen(&Device::Cpu, narrow.collect());
            let net = TinyAutoencoder::new(params.root(), &config).unwrap();
            assert!(params.left_over().is_empty());
            let latent = net.encode(&rest["in.x"]).unwrap();
            close(&latent, &rest["out.latent"], tolerance);
            let y = net.decode(&(&rest["out.latent"] * 12.0).unwrap()).unwrap();
            close(&y, &rest["out.y"], tolerance);
        }
    }

    /// What is left of real images, in dB of the largest value.
    #[test]
    fn real_images_survive() {
        let (Some(weights), Some(images)) = (
            optional("weights/taesdxl"),
            optional("data/CVC-ClinicDB/PNG/Original"),
        ) else {
            return;
        };
        let net = TinyAutoencoder::open(&weights, &Device::Cpu).unwrap();
        let mut ratios = Vec::new();
        for name in ["1", "100", "200", "400", "600"] {
            let image = open_image(&images.join(name).with_extension("png"), 1 << 20).unwrap();
            let frame = Frame::padded((256, 256), 1);
            let x = batch::images(&[image.view()], frame, &Device::Cpu).unwrap();
            let latent = net.encode(&x.affine(2.0, -1.0).unwrap()).unwrap();
            assert_eq!(latent.dims(), [1, 4, 32, 32]);
            let y = net.decode(&latent).unwrap().affine(0.5, 0.5).unwrap();
            let error = (y.clamp(0.0, 1.0).unwrap() - x).unwrap().sqr().unwrap();
            let error = error.mean_all().unwrap().to_scalar::<f32>().unwrap();
            ratios.push(-10.0 * error.log10());
        }
        let mean = ratios.iter().sum::<f32>() / ratios.len() as f32;
        assert!(mean > 29.0, "mean {mean} of {ratios:?}");
    }
}
