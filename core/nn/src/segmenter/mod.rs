//! The frame of trained segmenters. A network states its [`Architecture`], how it is built and its forward
//! pass ([`Network`]); [`Trained`] makes of it a stage that trains, resumes, answers for images of any
//! size, is inspected and reads the weights that others published.
//!
//! ```
//! use diffaug_nn::segmenter::{Activations, Architecture, Direct, Load, Network, Pass, Trained};
//! use diffaug_nn::{Tensor, layers::Conv2d, params::{Params, Scope}};
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! /// The network.
//! #[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
//! #[serde(deny_unknown_fields, default)]
//! pub struct Shape {
//!     /// Channels between the two convolutions.
//!     pub width: usize,
//! }
//!
//! impl Default for Shape {
//!     fn default() -> Self {
//!         Shape { width: 64 }
//!     }
//! }
//!
//! impl Architecture for Shape {
//!     const PLUGIN: &'static str = "two-convolutions";
//!
//!     fn tiny() -> Self {
//!         Shape { width: 4 }
//!     }
//!
//!     fn check(&self) -> diffaug::Result<()> {
//!         Ok(())
//!     }
//!
//!     fn activations(&self, load: &Load) -> Activations {
//!         Activations::of_values(load, (3 + 2 * self.width + load.outputs) as u64)
//!     }
//! }
//!
//! pub struct Net(Conv2d, Conv2d);
//!
//! impl Network for Net {
//!     type Architecture = Shape;
//!
//!     fn new(mut scope: Scope<'_>, shape: &Shape, outputs: usize, _: (u32, u32)) -> candle_core::Result<Self> {
//!         let first = Conv2d::new(scope.child("first"), 3, shape.width, 3, true)?;
//!         Ok(Net(first, Conv2d::new(scope.child("second"), shape.width, outputs, 3, true)?))
//!     }
//!
//!     fn forward(&self, images: &Tensor, _: &Pass<'_>) -> candle_core::Result<Tensor> {
//!         self.1.forward(&self.0.forward(images)?.relu()?)
//!     }
//! }
//!
//! // A stage: `diffaug::export_plugin! { segmenter "two-convolutions" => Trained<Direct<Net>>, "…" }`
//! fn is_a_stage(_: impl diffaug::stage::Segmenter) {}
//! let _ = |stage: Trained<Direct<Net>>| is_a_stage(stage);
//! ```

mod answer;
mod convert;
mod denoising;
mod description;
mod direct;
mod inspect;
mod options;
mod statistics;
mod trained;
mod training;

#[cfg(test)]
mod tests;

pub use answer::decide;
pub use denoising::{Denoising, Diffusion, MaskNetwork, Noised, Predicted, Run, mean};
pub use description::Description;
pub use direct::Direct;
pub use inspect::{Activations, Load};
pub use options::{Fusion, MOVED, Options, Preset, Sampling};
pub use statistics::of_real;
pub use trained::Trained;
pub use training::{Budget, Loss, Optimizer, Recipe, Schedule, Train};

use crate::{
    layers::Mode,
    ops::Dropping,
    params::{Params, Scope},
};
use candle_core::{Device, Result, Tensor};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt::Debug, path::Path};

/// The sizes of a network: the table `architecture` of its options. The default is what was published.
pub trait Architecture:
    Clone
    + Debug
    + Default
    + PartialEq
    + Serialize
    + DeserializeOwned
    + JsonSchema
    + Send
    + Sync
    + 'static
{
    /// The name of its plugin.
    const PLUGIN: &'static str;

    /// One that learns from small images within a minute on a processor.
    fn tiny() -> Self;

    /// Checks what the types alone cannot. A network in which all is as it says can be built.
    ///
    /// # Errors
    /// Naming the field, `architecture.width`, and what it may be.
    fn check(&self) -> diffaug::Result<()>;

    /// What the activations of a pass take.
    fn activations(&self, load: &Load) -> Activations;

    /// What both sides of an image have to be multiples of; others are padded with the border's pixels.
    fn multiple(&self) -> u32 {
        1
    }

    /// The least that both sides have to be; smaller images are padded.
    fn smallest(&self) -> u32 {
        1
    }

    /// How the values of an image, 0 to 1, are scaled.
    fn scaling(&self) -> Scaling {
        Scaling::None
    }

    /// Share of values that are dropped in training where the network drops any.
    fn dropout(&self) -> f32 {
        0.0
    }

    /// The numbers of training that it was published with, on images of that size.
    fn reference(&self) -> Budget {
        Budget::default()
    }

    /// The numbers of training where no recipe is named.
    fn small(&self) -> Budget {
        Budget::default()
    }

    /// The one budget for all networks, with what this network cannot do without.
    fn common(&self) -> Budget {
        Budget::common()
    }

    /// The numbers of training of the preset `tiny`.
    fn tiny_budget(&self) -> Budget {
        Budget {
            steps: Some(300),
            lr: 2e-3,
            patience: 0,
            evaluate_epochs: u64::MAX,
            evaluate_every: 150,
            ..self.small()
        }
    }

    /// The name of the last layer, whose outputs are the classes.
    fn head(&self) -> &'static str {
        "head"
    }

    /// Our name of the tensor that others published as `name`; `None` where it is not looked at.
    fn renamed(&self, name: &str) -> Option<String> {
        Some(name.to_owned())
    }
}

/// How the values of an image are scaled before a network sees them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// They stay 0 to 1.
    None,
    /// To -1 to 1.
    Symmetric,
    /// Less the mean and by the deviation of ImageNet's channels.
    ImageNet,
}

impl Scaling {
    /// Means and deviations of ImageNet's red, green and blue.
    const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

    /// Scales images `[n, 3, height, width]`, 0 to 1.
    ///
    /// # Errors
    /// When there are not three channels.
    pub fn apply(self, images: &Tensor) -> Result<Tensor> {
        let channels = |values: [f32; 3]| {
            let values = Tensor::new(&values, images.device())?.reshape((1, 3, 1, 1))?;
            values.to_dtype(images.dtype())
        };
        match self {
            Scaling::None => Ok(images.clone()),
            Scaling::Symmetric => images.affine(2.0, -1.0),
            Scaling::ImageNet => {
                let (mean, deviation) = Scaling::IMAGENET;
                let centred = images.broadcast_sub(&channels(mean)?)?;
                centred.broadcast_div(&channels(deviation)?)
            }
        }
    }
}

/// A pass through a network.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Whether it learns.
    pub mode: Mode,
    /// What drops values where it learns and drops any.
    pub dropping: Option<&'a Dropping>,
    /// Whether blocks are computed again in the backward pass in place of being kept.
    pub recompute: bool,
}

impl Pass<'_> {
    /// One that answers.
    pub const ANSWER: Pass<'static> = Pass {
        mode: Mode::Eval,
        dropping: None,
        recompute: false,
    };
}

/// What a network is asked with.
#[derive(Clone, Copy)]
pub struct Setting<'a, A> {
    /// What it is.
    pub description: &'a Description<A>,
    /// What else the user said.
    pub options: &'a Options<A>,
    /// All randomness.
    pub seed: u64,
    /// Whether it is a validation while training, for which a quick answer is enough.
    pub validates: bool,
    /// Ends long work with an error once the user wants to stop.
    pub go_on: &'a (dyn Fn() -> diffaug::Result<()> + Sync),
}

/// What a network answers.
#[derive(Clone, Debug)]
pub struct Answer {
    /// How probable the class is at each pixel, `[n, 1, height, width]`; with several classes that of the
    /// background and of each.
    pub probabilities: Tensor,
    /// Values of each image, `[n, ..]`, in which one of the network's that is NaN or infinite shows.
    pub raw: Tensor,
}

/// What a [`Trained`] segmenter is made of: a network with its loss and the way it answers. There is one for
/// networks that answer at once ([`Direct`]), and one for those that denoise masks ([`Denoising`]).
pub trait Learned: Send + Sync + Sized + 'static {
    /// The network's sizes.
    type Architecture: Architecture;

    /// Whether an answer is drawn.
    const DRAWS: bool;

    /// How answers are drawn with these options, to be stored beside the weights.
    fn sampling(_options: &Options<Self::Architecture>) -> Option<Sampling> {
        None
    }

    /// Checks what a folder of weights says of drawing, together with the options.
    ///
    /// # Errors
    /// Naming the option.
    fn check_stored(
        _options: &Options<Self::Architecture>,
        _description: &Description<Self::Architecture>,
    ) -> diffaug::Result<()> {
        Ok(())
    }

    /// The network in `scope`.
    ///
    /// # Errors
    /// When the device has no room for it, or a given tensor does not fit.
    fn new(scope: Scope<'_>, description: &Description<Self::Architecture>) -> Result<Self>;

    /// Checks options that not all segmenters have, after all others.
    ///
    /// # Errors
    /// Naming the option.
    fn check(_options: &Options<Self::Architecture>) -> diffaug::Result<()> {
        Ok(())
    }

    /// The loss of images `[n, 3, height, width]`, scaled, and for each pixel the index of its class, `[n,
    /// height, width]`, 0 for the background. `step` tells passes apart.
    ///
    /// # Errors
    /// Those of the network.
    fn loss(
        &self,
        setting: &Setting<'_, Self::Architecture>,
        images: &Tensor,
        targets: Tensor,
        pass: &Pass<'_>,
        step: u64,
    ) -> diffaug::Result<Tensor>;

    /// The answer to images `[n, 3, height, width]`. What is drawn for an image follows from its seed alone.
    ///
    /// # Errors
    /// Those of the network.
    fn answer(
        &self,
        setting: &Setting<'_, Self::Architecture>,
        images: &Tensor,
        seeds: &[u64],
    ) -> diffaug::Result<Answer>;

    /// [`Network::begin`].
    ///
    /// # Errors
    /// Those of [`Network::begin`].
    fn begin(
        params: &Params,
        architecture: &Self::Architecture,
        file: &Path,
        device: &Device,
    ) -> diffaug::Result<String>;

    /// What a published checkpoint says, whose last layer has so many channels.
    fn outputs(_architecture: &Self::Architecture, channels: usize) -> Outputs {
        Outputs::Logits(channels)
    }
}

/// What the channels of a last layer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// Logits: one of the one class, or one of the background and each class.
    Logits(usize),
    /// A mask of each class.
    Masks(usize),
}

/// The error of a network that begins with no published part, for the `file` of one.
fn no_published_part<A: Architecture>(file: &Path) -> diffaug::Error {
    diffaug::Error::unsupported(format!(
        "`{}` begins with no published weights, so `{}` cannot be used: `diffaug convert` makes a folder for `base` of a whole network's weights",
        A::PLUGIN,
        file.display()
    ))
}

/// A network that maps images to logits: one channel for one target class, and one for the background and
/// each of several.
pub trait Network: Send + Sync + Sized + 'static {
    /// Its sizes.
    type Architecture: Architecture;

    /// The network for images of `size`, width and height, in `scope`.
    ///
    /// # Errors
    /// When the device has no room for it, or a given tensor does not fit.
    fn new(
        scope: Scope<'_>,
        architecture: &Self::Architecture,
        outputs: usize,
        size: (u32, u32),
    ) -> Result<Self>;

    /// Logits `[n, outputs, height, width]` of images `[n, 3, height, width]`, scaled by
    /// [`Architecture::scaling`].
    ///
    /// # Errors
    /// When the sides are no multiples of [`Architecture::multiple`].
    fn forward(&self, images: &Tensor, pass: &Pass<'_>) -> Result<Tensor>;

    /// Begins training with the published weights of a part, say an encoder, in `file`; answers with a
    /// sentence on what was taken.
    ///
    /// # Errors
    /// Where the network has no such part; when the file does not fit.
    fn begin(
        _params: &Params,
        _architecture: &Self::Architecture,
        file: &Path,
        _device: &Device,
    ) -> diffaug::Result<String> {
        Err(no_published_part::<Self::Architecture>(file))
    }
}
