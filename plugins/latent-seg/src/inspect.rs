//! What a segmenter needs, from its options and the headers of its files.
//!
//! Weights are counted exactly. Activations are estimates, in maps of a network's first level (f32):
//! the denoising network keeps about [`STAGE`] maps of each level for every residual block it
//! trains, the encoders [`RESNET`]; an answer holds [`ANSWER`] of each.

use crate::{
    begin,
    description::Description,
    network::{Trained, VAE},
    options::{Options, VisionInput},
};
use diffaug::{Component, Context, Inspection, Result};
use diffaug_models::{checkpoint, compressor};
use diffaug_nn::{
    budget::{self, F32, TrainingMemory},
    diffusion::{Autoencoder, AutoencoderConfig},
    fit::WEIGHTS,
    params::Shapes,
};

/// Side of the images where nothing tells it.
const ASSUMED: u32 = 256;
/// Maps that a residual block with attention keeps for the backward pass.
const STAGE: u64 = 16;
/// Those of a residual block alone.
const RESNET: u64 = 8;
/// Maps of the first level that are in use at once for an answer.
const ANSWER: u64 = 8;
/// What an autoencoder shrinks images by where it is not trained here: all published ones do.
const PUBLISHED: (usize, usize) = (8, 4);

/// What a segmenter of these options needs.
///
/// # Errors
/// When the networks of the options cannot be.
pub fn inspect(options: &Options, context: &Context) -> Result<Inspection> {
    let mut inspection = budget::inspection(&context.device);
    let side = match (options.size, context.size) {
        (Some(side), _) => side,
        (None, 0) => ASSUMED,
        // Larger ones are no pictures, and their squares no numbers.
        (None, side) => side.min(1 << 16),
    };
    let stored = match &options.weights {
        Some(folder) => match Description::read(folder) {
            Ok(description) => {
                if let Err(error) = budget::stored(&folder.join(WEIGHTS)) {
                    inspection.miss(error);
                }
                if description.vae.is_none() && options.vae.is_none() && !folder.join(VAE).is_dir()
                {
                    inspection.miss(format!(
                        "`{}` has no folder `{VAE}`, and the option `vae` names no autoencoder",
                        folder.display()
                    ));
                }
                Some(description)
            }
            Err(error) => {
                inspection.miss(error);
                None
            }
        },
        None => None,
    };
    if let Some(base) = options.base.as_ref().filter(|_| options.weights.is_none())
        && let Err(error) = begin::check_there(base)
    {
        inspection.miss(error);
    }
    let (description, autoencoder) = match stored {
        Some(description) => (description, own_autoencoder(options)),
        None => {
            inspection.note("counted for one target class; the data may have more");
            planned(options, side)?
        }
    };
    let needs = Needs {
        description,
        autoencoder,
    };
    needs.report(options, &mut inspection)?;
    inspection.note("memory for activations is an estimate from the sizes of the networks");
    Ok(inspection)
}

/// The autoencoder that lies beside the weights, where no other is named. What is wrong with it is told
/// when it is loaded.
fn own_autoencoder(options: &Options) -> Option<AutoencoderConfig> {
    let folder = options.weights.as_ref().filter(|_| options.vae.is_none())?;
    let config = checkpoint::read_json(&folder.join(VAE).join("config.json")).ok()?;
    let config: AutoencoderConfig = serde_json::from_value(config).ok()?;
    config.check().ok().map(|()| config)
}

/// The networks of these options for one target class, and the small autoencoder, where one is trained.
fn planned(options: &Options, side: u32) -> Result<(Description, Option<AutoencoderConfig>)> {
    let a = &options.architecture();
    let autoencoder = options.vae.is_none().then(|| {
        let (channels, layers) = (&a.autoencoder, a.autoencoder_layers);
        compressor::architecture(channels, layers, a.latent, false, side as usize)
    });
    let latents = match &autoencoder {
        Some(config) => (config.downsampling(), config.latent_channels),
        None => PUBLISHED,
    };
    let target = vec![(1, String::new())];
    let description = Description::new(options, target, (side, side), latents)?;
    Ok((description, autoencoder))
}

/// What is counted.
struct Needs {
    description: Description,
    /// The small autoencoder, where one is trained or lies beside the weights.
    autoencoder: Option<AutoencoderConfig>,
}

impl Needs {
    fn report(&self, options: &Options, inspection: &mut Inspection) -> Result<()> {
        let trained = options.weights.is_none();
        let d = &self.description;
        let all = Shapes::of(|scope| Trained::new(scope, d))?.parameters();
        let denoiser = d.denoiser.count()?;
        let mut parts = vec![("vision", all - denoiser), ("denoiser", denoiser)];
        let trainable: u64 = parts.iter().map(|part| part.1).sum();
        if let Some(config) = &self.autoencoder {
            let shapes = Shapes::of(|scope| Autoencoder::new(scope, config))?;
            parts.push(("vae", shapes.parameters()));
        } else {
            inspection.note("the frozen autoencoder is not counted");
        }
        for (name, parameters) in parts {
            inspection.components.push(Component {
                name: name.into(),
                parameters,
                trainable: if trained { parameters } else { 0 },
                bytes: F32 * parameters,
            });
        }
        let weights: u64 = inspection.components.iter().map(|part| part.bytes).sum();
        let pixels = u64::from(d.input.0) * u64::from(d.input.1);
        let latents = pixels / (d.factor as u64).pow(2).max(1);
        // The decoder works at the size of the images.
        let decode = ANSWER * F32 * 128 * pixels;
        let answer =
            ANSWER * F32 * d.denoiser.width as u64 * latents * options.images_at_once as u64;
        inspection.run_bytes = weights + answer + decode * options.images_at_once as u64;
        if trained {
            let settings = options.settings(0);
            let rule = settings.optimizer;
            let memory = TrainingMemory::new(trainable, trainable, &rule, settings.ema.is_some());
            let dice = if options.resolved().lambda_dice > 0.0 {
                4
            } else {
                1
            };
            let maps = self.kept(latents, pixels) * options.budget().batch as u64;
            let maps = maps + dice * decode * options.budget().batch as u64;
            inspection.train_bytes = memory.peak(maps, true);
        }
        Ok(())
    }

    /// What is kept for the backward pass of an image, in bytes.
    fn kept(&self, latents: u64, pixels: u64) -> u64 {
        let d = &self.description;
        let stages = 2 * d.denoiser.layers as u64 + 1;
        let levels = d.denoiser.multipliers.iter().enumerate();
        let denoiser: u64 = levels
            .map(|(level, multiplier)| {
                let channels = (d.denoiser.width * multiplier) as u64;
                STAGE * stages * channels * (latents >> (2 * level))
            })
            .sum();
        let seen = match d.vision.input {
            VisionInput::Latent => latents,
            VisionInput::Pixel => pixels,
        };
        let levels = d.vision.channels.iter().enumerate();
        let vision: u64 = levels
            .map(|(level, channels)| {
                RESNET * d.vision.layers as u64 * *channels as u64 * (seen >> (2 * level))
            })
            .sum();
        F32 * (denoiser + vision)
    }
}
