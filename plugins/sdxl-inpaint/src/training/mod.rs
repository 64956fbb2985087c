//! Training: adapters or all of a denoising network, or a small model from nothing, through the
//! one training loop.
//!
//! The folder that training is given becomes a model in the layout of diffusers (or, for adapters,
//! the file that diffusers loads and the name of the model they belong to). `training/` in it
//! holds what the training loop keeps.

pub mod architecture;
mod denoiser;
mod export;
mod finetune;
mod holes;
mod objective;
mod options;
mod prompts;
mod scratch;
mod store;
mod views;
mod vocabulary;

pub use finetune::BASE;
pub use options::{Init, Method, Training};

use crate::options::{Options, Window};
use crate::picture::Layout;
use candle_core::Device;
use diffaug::{BoxDataset, BoxPromptBank, Dataset, FitReport, Reporter, Result};
use prompts::Prompts;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use views::Views;

/// The folder in a model's own that holds what only going on with its training needs.
pub const TRAINING: &str = "training";
/// Side of the windows of a small model, where none is set.
const SMALL: u32 = 64;

/// A training.
pub struct Fit<'a, 'r> {
    /// What to train and how.
    pub options: &'a Options,
    /// Where.
    pub device: &'a Device,
    /// All randomness.
    pub seed: u64,
    /// What to learn from.
    pub train: &'a BoxDataset,
    /// What to choose weights by.
    pub validation: &'a BoxDataset,
    /// Where texts come from.
    pub bank: &'a BoxPromptBank,
    /// The folder that becomes the model.
    pub out: &'a Path,
    /// Takes progress.
    pub reporter: &'a Reporter<'r>,
}

impl Fit<'_, '_> {
    /// Trains.
    ///
    /// # Errors
    /// When a sample or the model cannot be used, those of the training loop, and of the disk.
    pub fn run(&self) -> Result<FitReport> {
        match self.options.train.init {
            Init::Scratch => self.scratch(),
            Init::Base => self.finetune(),
        }
    }

    /// The folder of a part's training.
    fn folder(&self, part: &str) -> PathBuf {
        self.out.join(TRAINING).join(part)
    }

    /// Views for a model whose autoencoder shrinks sides by `factor`.
    fn views(&self, factor: usize) -> Result<Views> {
        let options = self.options;
        let train = &options.train;
        let resolution = match (options.window(), train.init) {
            (Window::Mask, Init::Scratch) => Some(options.resolution.unwrap_or(SMALL)),
            _ => options.resolution,
        };
        Ok(Views {
            layout: Layout {
                window: options.window(),
                margin: options.margin(),
                smallest: options.min_window(resolution),
                resolution,
                multiple: factor as u32,
            },
            count: train.views,
            flip: train.flip,
            targets: self.train.info()?.targets(),
            jitter: train.jitter,
            seed: self.seed,
        })
    }

    fn prompts(&self) -> Result<Prompts<'_>> {
        let info = self.train.info()?;
        let dropout = self.options.train.prompt_dropout;
        Ok(Prompts::new(self.bank, &info, dropout, self.seed))
    }

    /// What the result depends on, for the training folder, which serves one such training.
    fn described(&self) -> Result<Value> {
        let options = self.options;
        let mut train = serde_json::to_value(&options.train)?;
        if let Some(map) = train.as_object_mut() {
            // What may change from start to start, and what is told elsewhere.
            for name in [
                "autoencoder",
                "architecture",
                "checkpoint_every",
                "tensorboard",
                "seed",
            ] {
                map.remove(name);
            }
        }
        Ok(json!({
            "options": train,
            "window": options.window(),
            "margin": options.margin(),
            "min_window": options.min_window,
            "resolution": options.resolution,
        }))
    }
}
