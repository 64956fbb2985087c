//! The features of LPIPS' AlexNet: averaged over the pixels, and as points whose squared distance is LPIPS.

use super::Extractor;
use candle_core::{Device, Tensor};
use diffaug::{ImageRef, Result};
use diffaug_nn::{
    batch::{self, Frame},
    perceptual::{Features, Lpips},
};
use std::path::Path;

/// Side of images whose features are averaged, in pixels: that of AlexNet's training.
const POOLED_SIDE: u32 = 224;
/// Side of images that are compared place by place, in pixels.
const SIDE: u32 = 64;

/// Averages of features.
pub struct Pooled(Net);

/// Points whose squared distance is LPIPS.
pub struct Points(Net);

struct Net {
    lpips: Lpips,
    device: Device,
}

impl Net {
    fn open(weights: &Path, device: &Device) -> Result<Self> {
        Ok(Net {
            lpips: Lpips::open(weights, device)?,
            device: device.clone(),
        })
    }

    fn features(&self, images: &[ImageRef<'_>], side: u32) -> Result<Features> {
        let pixels = batch::images(images, Frame::padded((side, side), 1), &self.device)?;
        Ok(self.lpips.features(&pixels.affine(2.0, -1.0)?)?)
    }
}

impl Pooled {
    /// Reads LPIPS with AlexNet.
    ///
    /// # Errors
    /// Those of [`Lpips::open`].
    pub fn open(weights: &Path, device: &Device) -> Result<Self> {
        Net::open(weights, device).map(Pooled)
    }
}

impl Points {
    /// Reads LPIPS with AlexNet.
    ///
    /// # Errors
    /// Those of [`Lpips::open`].
    pub fn open(weights: &Path, device: &Device) -> Result<Self> {
        Net::open(weights, device).map(Points)
    }
}

impl Extractor for Pooled {
    fn points(&self, images: &[ImageRef<'_>]) -> Result<Tensor> {
        Ok(self.0.features(images, POOLED_SIDE)?.means()?)
    }
}

impl Extractor for Points {
    fn points(&self, images: &[ImageRef<'_>]) -> Result<Tensor> {
        Ok(self.0.lpips.points(&self.0.features(images, SIDE)?)?)
    }
}
