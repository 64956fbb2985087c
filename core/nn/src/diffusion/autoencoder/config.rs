//! The architecture of an autoencoder and the scale of its latents, as diffusers writes them down.

use crate::limits;
use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

/// The architecture, in the words of diffusers' `config.json`; the defaults are diffusers'.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AutoencoderConfig {
    /// Channels of the image that goes in.
    pub in_channels: usize,
    /// Channels of the image that comes out.
    pub out_channels: usize,
    /// `DownEncoderBlock2D` for each resolution.
    pub down_block_types: Vec<String>,
    /// `UpDecoderBlock2D` for each resolution.
    pub up_block_types: Vec<String>,
    /// Channels at each resolution, from the image's to the latents'.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks at each resolution of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// `silu` or its other name, `swish`.
    pub act_fn: String,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of every normalisation.
    pub norm_num_groups: usize,
    /// Side of the images that it was trained on.
    pub sample_size: SampleSize,
    /// What latents are multiplied by for a diffusion model.
    pub scaling_factor: f64,
    /// What is subtracted from latents before.
    pub shift_factor: Option<f64>,
    /// The mean of each channel of the latents; goes with `latents_std`.
    pub latents_mean: Option<Vec<f64>>,
    /// The standard deviation of each channel of the latents.
    pub latents_std: Option<Vec<f64>>,
    /// Whether f16 does not do for it, so that it has to compute in f32.
    pub force_upcast: bool,
    /// Whether a 1×1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1×1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether pixels attend to each other at the lowest resolution.
    pub mid_block_add_attention: bool,
}

/// One side, or height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SampleSize {
    /// Of a square.
    Square(usize),
    /// Height and width.
    Sides([usize; 2]),
}

impl Default for AutoencoderConfig {
    fn default() -> Self {
        AutoencoderConfig {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec![DOWN.to_owned()],
            up_block_types: vec![UP.to_owned()],
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: "silu".to_owned(),
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: SampleSize::Square(32),
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

const DOWN: &str = "DownEncoderBlock2D";
const UP: &str = "UpDecoderBlock2D";

impl AutoencoderConfig {
    /// Pixels of the image along a side of one of the latents': 2 for every resolution but the
    /// first.
    pub fn downsampling(&self) -> usize {
        let halvings = self.block_out_channels.len().saturating_sub(1);
        2usize.saturating_pow(u32::try_from(halvings).unwrap_or(u32::MAX))
    }

    /// Latents `z` `[batch, latent_channels, _, _]` at the scale of a diffusion model:
    /// `(z - mean) * scaling_factor / std` where the configuration has means and deviations, else
    /// `(z - shift_factor) * scaling_factor`.
    ///
    /// # Errors
    /// When `z` has another number of channels than there are means or deviations.
    pub fn to_latent(&self, z: &Tensor) -> Result<Tensor> {
        if let Some((mean, std)) = self.statistics(z)? {
            let centred = z.broadcast_sub(&mean)?;
            return (centred * self.scaling_factor)?.broadcast_div(&std);
        }
        match self.shift_factor {
            Some(shift) => (z - shift)? * self.scaling_factor,
            None => z * self.scaling_factor,
        }
    }

    /// The reverse of [`AutoencoderConfig::to_latent`].
    ///
    /// # Errors
    /// When `z` has another number of channels than there are means or deviations.
    pub fn from_latent(&self, z: &Tensor) -> Result<Tensor> {
        let factor = Tensor::new(self.scaling_factor, z.device())?.to_dtype(z.dtype())?;
        if let Some((mean, std)) = self.statistics(z)? {
            let spread = z.broadcast_mul(&std)?.broadcast_div(&factor)?;
            return spread.broadcast_add(&mean);
        }
        let z = z.broadcast_div(&factor)?;
        match self.shift_factor {
            Some(shift) => z + shift,
            None => Ok(z),
        }
    }

    /// Means and deviations of the channels, `[1, channels, 1, 1]`, in the type of `z`.
    fn statistics(&self, z: &Tensor) -> Result<Option<(Tensor, Tensor)>> {
        let (Some(mean), Some(std)) = (&self.latents_mean, &self.latents_std) else {
            return Ok(None);
        };
        let row = |values: &Vec<f64>| {
            let values = Tensor::from_slice(values, (1, values.len(), 1, 1), z.device())?;
            values.to_dtype(z.dtype())
        };
        Ok(Some((row(mean)?, row(std)?)))
    }

    /// Checks what serde cannot: that the sizes are such as networks have, and fit each other.
    ///
    /// # Errors
    /// Naming the field and what is expected.
    pub fn check(&self) -> Result<()> {
        let channels = &self.block_out_channels;
        if !channels.is_empty() && !channels.contains(&0) {
            let range = 1..=limits::CHANNELS;
            limits::all_within("block_out_channels", channels, limits::LEVELS, range)?;
        }
        self.check_blocks()?;
        let sizes = [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
            ("layers_per_block", self.layers_per_block),
        ];
        if let Some((field, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            bail!("`{field}` is at least 1, not 0");
        }
        for (field, size, most) in [
            ("in_channels", self.in_channels, limits::CHANNELS),
            ("out_channels", self.out_channels, limits::CHANNELS),
            ("latent_channels", self.latent_channels, limits::CHANNELS),
            ("layers_per_block", self.layers_per_block, limits::LAYERS),
        ] {
            limits::within(field, size, 1..=most)?;
        }
        if !["silu", "swish"].contains(&self.act_fn.as_str()) {
            bail!("`act_fn` is `silu` or `swish`, not `{}`", self.act_fn);
        }
        self.check_scale()
    }

    fn check_blocks(&self) -> Result<()> {
        let levels = self.block_out_channels.len();
        let kinds = [
            ("down_block_types", &self.down_block_types, DOWN),
            ("up_block_types", &self.up_block_types, UP),
        ];
        for (field, types, known) in kinds {
            if levels == 0 || types.len() != levels {
                bail!(
                    "`{field}` needs as many values as `block_out_channels`, which has {levels} and at least one"
                );
            }
            if let Some(other) = types.iter().find(|kind| *kind != known) {
                bail!("`{field}` of an autoencoder are `{known}`, not `{other}`");
            }
        }
        let groups = self.norm_num_groups;
        let uneven =
            |&&channels: &&usize| groups == 0 || channels == 0 || !channels.is_multiple_of(groups);
        match self.block_out_channels.iter().find(uneven) {
            Some(channels) => {
                bail!("`norm_num_groups` {groups} does not divide {channels} channels")
            }
            None => Ok(()),
        }
    }

    fn check_scale(&self) -> Result<()> {
        let factor = self.scaling_factor;
        if !(factor.is_finite() && factor > 0.0) {
            bail!("`scaling_factor` is {factor}, expected a number above 0");
        }
        let means = self.latents_mean.iter().flatten();
        if let Some(shift) = self
            .shift_factor
            .iter()
            .chain(means)
            .find(|v| !v.is_finite())
        {
            bail!("`shift_factor` and `latents_mean` are numbers, not `{shift}`");
        }
        let channels = self.latent_channels;
        match (&self.latents_mean, &self.latents_std) {
            (None, None) => Ok(()),
            (Some(mean), Some(std)) if mean.len() == channels && std.len() == channels => {
                match std.iter().find(|std| !std.is_finite() || **std <= 0.0) {
                    Some(value) => bail!("`latents_std` are above 0, not `{value}`"),
                    None => Ok(()),
                }
            }
            _ => bail!(
                "`latents_mean` and `latents_std` go together, with {channels} values each, as many as `latent_channels`"
            ),
        }
    }
}
