//! The networks whose features images are compared by: how they are opened, and what they need.

pub mod clip;
mod config;
pub mod dinov2;
pub mod inception;
mod layout;
mod lpips;
mod vit;

use candle_core::{Device, Tensor};
use diffaug::{Context, ImageRef, Inspection, Result, inspect::Component};
use diffaug_nn::{
    budget,
    params::Shapes,
    perceptual::{Backbone, Lpips},
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Features that images are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// The last pooling of Inception-v3, 2048 values: a file of pytorch-fid, `pt_inception-2015-12-05`.
    Inception,
    /// The class token of a DINOv2: a folder with `config.json` and `model.safetensors` as transformers
    /// writes them.
    Dinov2,
    /// The embedding of a CLIP, at length 1: such a folder.
    Clip,
    /// The features of LPIPS' AlexNet averaged over the pixels, 1152 values: a file of LPIPS.
    Alexnet,
    /// LPIPS by AlexNet at 64x64 pixels, where distances are LPIPS themselves: a file of LPIPS.
    Lpips,
}

/// A network that makes points of images.
pub trait Extractor: Send + Sync {
    /// One row for each image, of any size: `[n, values]`, f32. There is one image at least.
    ///
    /// # Errors
    /// When the device has no room for it.
    fn points(&self, images: &[ImageRef<'_>]) -> Result<Tensor>;
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Space::Inception => "features of Inception",
            Space::Dinov2 => "features of DINOv2",
            Space::Clip => "embeddings of CLIP",
            Space::Alexnet => "features of AlexNet",
            Space::Lpips => "LPIPS",
        })
    }
}

impl Space {
    /// Reads the weights.
    ///
    /// # Errors
    /// When they are not there or of another network; the message names the file.
    pub fn open(self, weights: &Path, device: &Device) -> Result<Box<dyn Extractor>> {
        Ok(match self {
            Space::Inception => Box::new(inception::Inception::open(weights, device)?),
            Space::Dinov2 => Box::new(dinov2::Dinov2::open(weights, device)?),
            Space::Clip => Box::new(clip::Clip::open(weights, device)?),
            Space::Alexnet => Box::new(lpips::Pooled::open(weights, device)?),
            Space::Lpips => Box::new(lpips::Points::open(weights, device)?),
        })
    }

    /// What a squared Euclidean distance of points is as a distance: LPIPS is one already.
    pub fn distance(self, squared: f64) -> f64 {
        match self {
            Space::Lpips => squared,
            _ => squared.sqrt(),
        }
    }

    /// What it needs, for [`FromConfig::inspect`](diffaug::FromConfig::inspect): no weights are read.
    ///
    /// # Errors
    /// When the network cannot be laid out.
    pub fn inspect(self, weights: &Path, context: &Context) -> Result<Inspection> {
        let (name, shapes) = match self {
            Space::Inception => (
                "inception",
                inception::Inception::shapes().map_err(Into::into),
            ),
            Space::Dinov2 => ("dinov2", dinov2::Dinov2::shapes(weights)),
            Space::Clip => ("clip", clip::Clip::shapes(weights)),
            Space::Alexnet | Space::Lpips => {
                return inspect_lpips(Backbone::Alex, weights, context);
            }
        };
        let files = match self {
            Space::Inception => vec![weights.to_owned()],
            _ => config::files(weights).to_vec(),
        };
        Ok(inspect(name, &files, shapes, context))
    }
}

/// What LPIPS needs.
///
/// # Errors
/// When the network cannot be laid out.
pub fn inspect_lpips(backbone: Backbone, weights: &Path, context: &Context) -> Result<Inspection> {
    let shapes = Lpips::shapes(backbone)?;
    Ok(inspect("lpips", &[weights.to_owned()], Ok(shapes), context))
}

fn inspect(name: &str, files: &[PathBuf], shapes: Result<Shapes>, context: &Context) -> Inspection {
    let mut inspection = budget::inspection(&context.device);
    let absent: Vec<&PathBuf> = files.iter().filter(|file| !file.is_file()).collect();
    for file in &absent {
        inspection.miss(format!("there is no file `{}`", file.display()));
    }
    match shapes {
        Ok(shapes) => inspection.components.push(Component {
            name: name.into(),
            parameters: shapes.parameters(),
            trainable: 0,
            bytes: shapes.values() * budget::F32,
        }),
        // A configuration that is not there has been told of.
        Err(error) if absent.is_empty() => inspection.miss(error),
        Err(_) => {}
    }
    inspection
}
