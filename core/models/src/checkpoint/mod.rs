//! A pipeline on disk: its configurations, its tokenizers and, read when they are taken, its
//! weights. A folder in the layout of diffusers or one file in the original layout.

mod families;
mod folder;
mod layout;
mod single;

pub use layout::read_json;
pub(crate) use layout::{Chosen, ModelIndex, choose, read_shard_list, shards};

use diffaug::{Error, ErrorKind, Result, ResultExt};
use diffaug_nn::{
    diffusion::{AutoencoderConfig, UNetConfig, original::Original},
    limits,
    weights::{Files, Renamed, Source, input},
};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What a checkpoint leaves open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Which of several sets of weights in a folder: `fp16` takes `model.fp16.safetensors`. Without,
    /// the plain ones, and where there are none those that there are.
    pub variant: Option<String>,
    /// The folder with the tokenizers of a single file, which brings none: a pipeline's folder, or
    /// for a model with one text encoder the tokenizer's own.
    pub tokenizer: Option<PathBuf>,
}

/// A pipeline on disk.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Whether it is an SDXL model, with two text encoders; else a Stable Diffusion 1.x or 2.x.
    pub xl: bool,
    /// Whether an absent negative prompt stands for zeros instead of the empty text.
    pub force_zeros_for_empty_prompt: bool,
    /// `scheduler_config.json`, `_class_name` included.
    pub scheduler: Value,
    /// The folder of the tokenizer of the first text encoder.
    pub tokenizer: PathBuf,
    /// That of the second.
    pub tokenizer_2: Option<PathBuf>,
    /// The first text encoder (`CLIPTextModel`).
    pub text_encoder: Component,
    /// The second (`CLIPTextModelWithProjection`).
    pub text_encoder_2: Option<Component>,
    /// The denoising network (`UNet2DConditionModel`).
    pub unet: Component,
    /// The autoencoder (`AutoencoderKL`).
    pub vae: Component,
}

/// A network of a [`Checkpoint`].
#[derive(Clone, Debug)]
pub struct Component {
    /// Its `config.json`.
    pub config: Value,
    /// The variant that its weights are of (`fp16`); plain ones are of none.
    pub variant: Option<String>,
    weights: Weights,
}

#[derive(Clone, Debug)]
enum Weights {
    /// Files of nothing else, in the layout of diffusers or transformers.
    Own { files: Vec<PathBuf>, kind: Kind },
    /// What begins with `prefix` in a file in the original layout.
    Part {
        file: PathBuf,
        prefix: &'static str,
        kind: Kind,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unet,
    Autoencoder,
    /// A text encoder under the names of transformers.
    Clip {
        projection: bool,
    },
    /// A text encoder under the names of OpenCLIP, of which `layers` are used.
    OpenClip {
        layers: usize,
        projection: bool,
    },
}

impl Checkpoint {
    /// Reads the configurations of the pipeline at `path`, a folder or a `.safetensors` file, and
    /// finds its weights without reading them.
    ///
    /// # Errors
    /// Naming what is missing, broken or of another kind.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        if path.is_dir() {
            return folder::open(path, options);
        }
        if !path.exists() {
            let shown = path.display();
            return Err(Error::model(format!("there is no checkpoint `{shown}`")));
        }
        single::open(path, options)
    }

    /// All of its networks.
    pub fn components(&self) -> impl Iterator<Item = &Component> {
        let all = [&self.unet, &self.vae, &self.text_encoder];
        all.into_iter().chain(&self.text_encoder_2)
    }
}

impl Component {
    /// Its tensors, under the names of diffusers or transformers. What the networks here have no
    /// use for (positions of tokens, temperatures) is passed over.
    ///
    /// # Errors
    /// When a file is missing, cut short or no safetensors file.
    pub fn source(&self) -> Result<Box<dyn Source>> {
        match &self.weights {
            Weights::Own { files, kind } => {
                let files = Files::open(files)?;
                Ok(match kind {
                    Kind::Unet => Box::new(files),
                    Kind::Autoencoder => Box::new(Original::older_autoencoder(files)?),
                    Kind::Clip { projection } | Kind::OpenClip { projection, .. } => {
                        Box::new(Renamed::new(files, |name| clip_name(name, *projection))?)
                    }
                })
            }
            Weights::Part { file, prefix, kind } => self.part(file, prefix, *kind),
        }
    }

    fn part(&self, file: &Path, prefix: &str, kind: Kind) -> Result<Box<dyn Source>> {
        let strip = |name: &str| name.strip_prefix(prefix).map(str::to_owned);
        let own = Renamed::new(Files::open(&[file])?, strip)?;
        Ok(match kind {
            Kind::Unet => Box::new(Original::unet(own, &self.unet_config()?)?),
            Kind::Autoencoder => {
                let config: AutoencoderConfig = input::typed(&self.config)?;
                let (levels, layers) = (config.block_out_channels.len(), config.layers_per_block);
                limits::within("layers_per_block", layers, 1..=limits::LAYERS)?;
                Box::new(Original::autoencoder(own, levels, layers)?)
            }
            Kind::Clip { projection } => {
                Box::new(Renamed::new(own, |name| clip_name(name, projection))?)
            }
            Kind::OpenClip { layers, projection } => {
                Box::new(Original::open_clip(own, layers, projection)?)
            }
        })
    }

    /// An autoencoder by itself, in a folder in the layout of diffusers.
    ///
    /// # Errors
    /// When `config.json` is missing or broken.
    pub fn autoencoder(folder: &Path) -> Result<Self> {
        let files = vec![folder.join("diffusion_pytorch_model.safetensors")];
        let pickle = "diffusion_pytorch_model.bin";
        if !files[0].exists() && folder.join(pickle).exists() {
            return Err(layout::pickled("vae", pickle));
        }
        Ok(Component {
            config: read_json(&folder.join("config.json"))?,
            variant: None,
            weights: Weights::Own {
                files,
                kind: Kind::Autoencoder,
            },
        })
    }

    /// The denoising network in a pipeline's folder in the layout of diffusers; the rest of the folder
    /// is not looked at.
    ///
    /// # Errors
    /// When its configuration or its weights are missing.
    pub fn unet_of(folder: &Path) -> Result<Self> {
        folder::component(folder, "unet", Kind::Unet, &OpenOptions::default())
    }

    /// The autoencoder in a pipeline's folder, likewise.
    ///
    /// # Errors
    /// Those of [`Component::unet_of`].
    pub fn vae_of(folder: &Path) -> Result<Self> {
        folder::component(folder, "vae", Kind::Autoencoder, &OpenOptions::default())
    }

    /// Its `config.json` as that of a UNet, whose sizes are such as networks have.
    ///
    /// # Errors
    /// When it is another's; the field is named.
    pub fn unet_config(&self) -> Result<UNetConfig> {
        let cannot = || "the configuration of `unet` cannot be used".to_owned();
        let config: UNetConfig = input::typed(&self.config).or_error(ErrorKind::Model, cannot)?;
        config.check().or_error(ErrorKind::Model, cannot)?;
        Ok(config)
    }

    /// Its `config.json` as that of an autoencoder, whose sizes are such as networks have.
    ///
    /// # Errors
    /// When it is another's; the field is named.
    pub fn autoencoder_config(&self) -> Result<AutoencoderConfig> {
        let cannot = || "the configuration of `vae` cannot be used".to_owned();
        let config: AutoencoderConfig =
            input::typed(&self.config).or_error(ErrorKind::Model, cannot)?;
        config.check().or_error(ErrorKind::Model, cannot)?;
        Ok(config)
    }

    /// The files that its weights are in.
    pub fn files(&self) -> Vec<&Path> {
        match &self.weights {
            Weights::Own { files, .. } => files.iter().map(PathBuf::as_path).collect(),
            Weights::Part { file, .. } => vec![file],
        }
    }
}

/// Leaves out what is no weight of a text encoder. Files from before 2022 and of transformers since
/// 5.6 lack the module `text_model`.
fn clip_name(name: &str, projection: bool) -> Option<String> {
    if name.ends_with("position_ids") || name == "logit_scale" {
        return None;
    }
    if let Some(rest) = name.strip_prefix("text_projection") {
        return projection.then(|| format!("text_projection{rest}"));
    }
    let bare = name.strip_prefix("text_model.").unwrap_or(name);
    Some(format!("text_model.{bare}"))
}

#[cfg(test)]
mod tests;
