//! What a folder of weights says of the network in it.

use super::{Architecture, Learned, Sampling};
use crate::{
    batch::Frame,
    budget,
    fit::CONFIG,
    params::{Params, Scope, Shapes},
    weights::input,
};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a network is: with its weights, all that answering needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound = "A: Architecture")]
pub struct Description<A> {
    /// The plugin's name, so that the weights of another are not taken for ours.
    pub plugin: String,
    /// The network.
    pub architecture: A,
    /// Width and height that images are resized to.
    pub input: (u32, u32),
    /// The target classes: label and name. With one the network says how probable it is; with
    /// several it chooses among them and background.
    pub classes: Vec<(u8, String)>,
    /// How answers were drawn when weights were chosen, where they are drawn; what the options say counts
    /// before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
}

impl<A: Architecture> Description<A> {
    /// The network that finds `classes` in images of that size.
    pub fn new(architecture: A, classes: Vec<(u8, String)>, input: (u32, u32)) -> Self {
        Description {
            plugin: A::PLUGIN.to_owned(),
            architecture,
            input,
            classes,
            sampling: None,
        }
    }

    /// What the folder `weights` says about the network in it.
    ///
    /// # Errors
    /// When it is not a folder that training left.
    pub fn read(weights: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct File {
            model: serde_json::Value,
        }
        let path = weights.join(CONFIG);
        let file: Result<File> = input::json_file(&path, input::CONFIG_BYTES);
        let (shown, plugin) = (weights.display(), A::PLUGIN);
        let file = file.or_error(ErrorKind::Model, || {
            format!("`{shown}` is no folder that training `{plugin}` left")
        })?;
        let found = file.model["plugin"].as_str().unwrap_or_default();
        if found != plugin {
            return Err(Error::model(format!(
                "`{shown}` holds a network of the plugin `{found}`, not of `{plugin}`"
            )));
        }
        let model: Description<A> =
            serde_json::from_value(file.model).or_error(ErrorKind::Model, || {
                format!(
                    "`{}` does not describe a network of the plugin `{plugin}`",
                    path.display()
                )
            })?;
        let sound = (1..=4096).contains(&model.input.0)
            && (1..=4096).contains(&model.input.1)
            && (1..=255).contains(&model.classes.len());
        if !sound {
            return Err(Error::model(format!(
                "`{}` does not describe a network of the plugin `{plugin}`",
                path.display()
            )));
        }
        model.architecture.check().or_error(ErrorKind::Model, || {
            format!("`{}` cannot be used", path.display())
        })?;
        Ok(model)
    }

    /// Names and shapes of the tensors of the network that this describes.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn shapes<L: Learned<Architecture = A>>(&self) -> Result<Shapes> {
        Ok(Shapes::of(|scope| self.build::<L>(scope))?)
    }

    /// The network in `scope`.
    ///
    /// # Errors
    /// When the device has no room for it, or a given tensor does not fit.
    pub fn build<L: Learned<Architecture = A>>(&self, scope: Scope<'_>) -> candle_core::Result<L> {
        L::new(scope, self)
    }

    /// The network in `params`.
    ///
    /// # Errors
    /// When the device has no room for it, or a given tensor does not fit.
    pub fn network<L: Learned<Architecture = A>>(&self, params: &mut Params) -> Result<L> {
        let built = self.build(params.root());
        built.or_error(ErrorKind::Model, || {
            format!("the network of `{}` cannot be built", A::PLUGIN)
        })
    }

    /// Checks that the file at `path` holds as many values as the network has, before there is one.
    ///
    /// # Errors
    /// When it does not, or cannot be read.
    pub fn check_stored<L: Learned<Architecture = A>>(&self, path: &Path) -> Result<()> {
        let (stored, expected) = (budget::stored(path)?.values, self.shapes::<L>()?.values());
        match stored == expected {
            true => Ok(()),
            false => Err(Error::model(format!(
                "`{}` holds {stored} values, but the network has {expected}",
                path.display()
            ))),
        }
    }

    /// Number of channels of the network's answer.
    pub fn outputs(&self) -> usize {
        match self.classes.len() {
            1 => 1,
            several => several + 1,
        }
    }

    /// The labels of the target classes.
    pub fn labels(&self) -> Vec<u8> {
        self.classes.iter().map(|class| class.0).collect()
    }

    /// How images are laid out for it.
    pub fn frame(&self) -> Frame {
        let multiple = self.architecture.multiple();
        let frame = Frame::padded(self.input, multiple);
        let smallest = self.architecture.smallest().next_multiple_of(multiple);
        let (width, height) = frame.whole;
        Frame {
            whole: (width.max(smallest), height.max(smallest)),
            ..frame
        }
    }
}
