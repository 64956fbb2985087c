//! Residual blocks that know the timestep, and the steps between resolutions.

use crate::{
    layers::{Conv2d, GroupNorm, Linear},
    ops::{self, Activation, Convolution, Dropping},
    params::Scope,
};
use candle_core::{Result, Tensor};

/// Twice normalisation, SiLU and a 3×3 convolution, with the timestep added between them and the
/// input at the end (`ResnetBlock2D`).
#[derive(Clone, Debug)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    /// `inputs` to `outputs` channels. `time` is the width of the timestep's embedding; an
    /// autoencoder has none. `groups` and `epsilon` are those of the normalisations.
    ///
    /// # Errors
    /// When the device has no room for it, or a given tensor does not fit.
    pub fn new(
        mut scope: Scope<'_>,
        [inputs, outputs]: [usize; 2],
        time: Option<usize>,
        groups: usize,
        epsilon: f32,
    ) -> Result<Self> {
        let norm1 = GroupNorm::new(scope.child("norm1"), groups, inputs, epsilon)?;
        let conv1 = Conv2d::new(scope.child("conv1"), inputs, outputs, 3, true)?;
        let time =
            time.map(|width| Linear::new(scope.child("time_emb_proj"), width, outputs, true));
        let norm2 = GroupNorm::new(scope.child("norm2"), groups, outputs, epsilon)?;
        let conv2 = Conv2d::new(scope.child("conv2"), outputs, outputs, 3, true)?;
        let shortcut = (inputs != outputs)
            .then(|| Conv2d::new(scope.child("conv_shortcut"), inputs, outputs, 1, true));
        Ok(ResnetBlock {
            norm1,
            conv1,
            time: time.transpose()?,
            norm2,
            conv2,
            shortcut: shortcut.transpose()?,
        })
    }

    /// `x` is `[batch, inputs, height, width]`, `time` the SiLU of the embedding, `[batch, width]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        self.forward_dropping(x, time, None)
    }

    /// [`ResnetBlock::forward`] with dropout before the second convolution.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward_dropping(
        &self,
        x: &Tensor,
        time: Option<&Tensor>,
        dropping: Option<&Dropping>,
    ) -> Result<Tensor> {
        let silu = Some(Activation::Silu);
        let mut h = self.conv1.forward(&self.norm1.forward(x, silu)?)?;
        if let (Some(map), Some(time)) = (&self.time, time) {
            h = ops::shift_channels(&h, &map.forward(time)?)?;
        }
        h = self.norm2.forward(&h, silu)?;
        if let Some(dropping) = dropping {
            h = dropping.next(&h)?;
        }
        let h = self.conv2.forward(&h)?;
        match &self.shortcut {
            Some(shortcut) => ops::add(&shortcut.forward(x)?, &h),
            None => ops::add(x, &h),
        }
    }
}

/// Half the height and width by a 3×3 convolution of stride 2 (`Downsample2D`).
#[derive(Clone, Debug)]
pub struct Downsample {
    conv: Conv2d,
    lopsided: bool,
}

impl Downsample {
    /// Of `channels` channels; `lopsided` puts zeros below and at the right only, as the
    /// autoencoder does, instead of on all sides.
    ///
    /// # Errors
    /// When the device has no room for it, or a given tensor does not fit.
    pub fn new(mut scope: Scope<'_>, channels: usize, lopsided: bool) -> Result<Self> {
        let spec = Convolution::square(2, usize::from(!lopsided));
        let conv = Conv2d::with(scope.child("conv"), [channels; 2], [3, 3], true, spec)?;
        Ok(Downsample { conv, lopsided })
    }

    /// `[batch, channels, height, width]` to half of either side, rounded up (down if lopsided).
    ///
    /// # Errors
    /// When `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.lopsided {
            true => {
                let x = x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?;
                self.conv.forward(&x)
            }
            false => self.conv.forward(x),
        }
    }
}

/// A larger height and width by repeating pixels, then a 3×3 convolution (`Upsample2D`).
#[derive(Clone, Debug)]
pub struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    /// Of `channels` channels.
    ///
    /// # Errors
    /// When the device has no room for it, or a given tensor does not fit.
    pub fn new(mut scope: Scope<'_>, channels: usize) -> Result<Self> {
        let conv = Conv2d::new(scope.child("conv"), channels, channels, 3, true)?;
        Ok(Upsample { conv })
    }

    /// `[batch, channels, _, _]` to `height` × `width`.
    ///
    /// # Errors
    /// When `x` does not fit.
    pub fn forward(&self, x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
        let x = ops::upsample_nearest2d(x, height, width)?;
        self.conv.forward(&x)
    }
}
