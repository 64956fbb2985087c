//! The stages: training, and answering for images of any size.

use crate::{
    begin::{self, begin_with},
    description::Description,
    network::{Network, VAE},
    options::{MOVED, Options, Preset},
    training::{ImagesAndMasks, Trainee, mask_scale},
};
use candle_core::{DType, Device};
use diffaug::{Class, Context, prelude::*, rng, segmenting, stage::Segmenter as Stage};
use diffaug_models::{
    Vae,
    compressor::{self, Compression},
};
use diffaug_nn::{batch::Frame, device, fit, params::Params};
use serde_json::json;
use std::path::Path;

/// The segmenter `latent-seg`.
pub struct LatentSeg {
    options: Options,
    device: Device,
    seed: u64,
    trained: Option<Network>,
}

/// The segmenter `sdseg`: the same networks with the other preset.
pub struct SdSeg(LatentSeg);

/// Options of `sdseg`: those of `latent-seg` with another preset.
fn sdseg(options: &Options) -> Options {
    let preset = match options.preset {
        None => Preset::SdSeg,
        Some(Preset::Tiny) => Preset::SdSegTiny,
        Some(preset) => preset,
    };
    Options {
        preset: Some(preset),
        ..options.clone()
    }
}

impl FromConfig for LatentSeg {
    type Config = Options;

    fn moved() -> &'static [(&'static str, &'static str)] {
        MOVED
    }

    fn validate(options: &Options) -> Result<()> {
        options.check()
    }

    fn from_config(options: Options, context: &Context) -> Result<Self> {
        let device = device::open(&context.device)?;
        let seed = options.seed.unwrap_or(context.seed);
        let load = |folder| Network::load(folder, &options, &device);
        let trained = options.weights.as_deref().map(load).transpose();
        Ok(LatentSeg {
            trained: trained.map_err(|error| match error.field.is_empty() {
                true => error.at("weights"),
                false => error,
            })?,
            options,
            device,
            seed,
        })
    }

    fn inspect(options: &Options, context: &Context) -> Result<Inspection> {
        crate::inspect::inspect(options, context)
    }

    fn convert(options: &Options, from: &Path, to: &Path) -> Result<String> {
        crate::convert::convert(options, from, to)
    }
}

impl FromConfig for SdSeg {
    type Config = Options;

    fn moved() -> &'static [(&'static str, &'static str)] {
        MOVED
    }

    fn validate(options: &Options) -> Result<()> {
        sdseg(options).check()
    }

    fn from_config(options: Options, context: &Context) -> Result<Self> {
        LatentSeg::from_config(sdseg(&options), context).map(SdSeg)
    }

    fn inspect(options: &Options, context: &Context) -> Result<Inspection> {
        crate::inspect::inspect(&sdseg(options), context)
    }

    fn convert(options: &Options, from: &Path, to: &Path) -> Result<String> {
        crate::convert::convert(&sdseg(options), from, to)
    }
}

impl Stage for LatentSeg {
    fn classes(&self) -> Result<RVec<Class>> {
        let classes = self.trained.iter();
        let classes = classes.flat_map(|n| segmenting::classes(&n.description.classes));
        Ok(classes.collect())
    }

    fn segment(
        &self,
        images: RSlice<'_, ImageRef<'_>>,
        reporter: &Reporter<'_>,
    ) -> Result<RVec<Segmentation>> {
        let Some(network) = &self.trained else {
            return Err(Error::model(
                "the segmenter `latent-seg` has no weights: train it or set `weights`",
            )
            .at("weights"));
        };
        let mut first = 0;
        segmenting::in_batches(&images, self.options.images_at_once, reporter, |part| {
            let answers = network.segment_from(first, part, &self.options, self.seed)?;
            first += part.len();
            Ok(answers)
        })
    }

    fn fit(
        &self,
        train: &BoxDataset,
        validation: &BoxDataset,
        out: RStr<'_>,
        reporter: &Reporter<'_>,
    ) -> Result<FitReport> {
        let fit = Fit {
            options: &self.options,
            device: &self.device,
            seed: self.seed,
            train,
            validation,
            out: Path::new(out.as_str()),
            reporter,
        };
        fit.run()
    }
}

impl Stage for SdSeg {
    fn classes(&self) -> Result<RVec<Class>> {
        self.0.classes()
    }

    fn segment(
        &self,
        images: RSlice<'_, ImageRef<'_>>,
        reporter: &Reporter<'_>,
    ) -> Result<RVec<Segmentation>> {
        self.0.segment(images, reporter)
    }

    fn fit(
        &self,
        train: &BoxDataset,
        validation: &BoxDataset,
        out: RStr<'_>,
        reporter: &Reporter<'_>,
    ) -> Result<FitReport> {
        self.0.fit(train, validation, out, reporter)
    }
}

/// A training.
struct Fit<'a, 'r> {
    options: &'a Options,
    device: &'a Device,
    seed: u64,
    train: &'a BoxDataset,
    validation: &'a BoxDataset,
    out: &'a Path,
    reporter: &'a Reporter<'r>,
}

impl Fit<'_, '_> {
    fn run(&self) -> Result<FitReport> {
        if let (None, Some(base)) = (&self.options.weights, &self.options.base) {
            begin::check_there(base).map_err(|error| error.at("base"))?;
        }
        let targets = segmenting::targets(&self.train.info()?)?;
        let input = segmenting::input_size(self.train, self.options.size)?;
        let labels: Vec<u8> = targets.iter().map(|(label, _)| *label).collect();
        let vae = self.vae(input, &labels)?;
        let latents = (vae.factor(), vae.channels());
        let mut description = Description::new(self.options, targets, input, latents)?;
        let frame = description.frame();
        description.scale = mask_scale(&vae, self.train, frame, &labels, self.device)?;
        let params = Params::new(self.device, self.seed);
        let learner = Trainee {
            network: Network::new(description, params, vae)?,
            options: self.options,
            seed: self.seed,
        };
        if let Some(folder) = self
            .options
            .weights
            .as_deref()
            .or(self.options.base.as_deref())
        {
            let field = if self.options.weights.is_some() {
                "weights"
            } else {
                "base"
            };
            let shares = begin_with(folder, self.options.init, &learner.network.params)
                .map_err(|error| error.at(field))?;
            tracing::info!("`{field}`: {shares}");
        }
        let settings = self.options.settings(self.seed);
        let mut model = serde_json::to_value(&learner.network.description)?;
        model["train"] = self.described()?;
        fit::fit(
            &learner,
            &settings,
            &model,
            self.train,
            self.validation,
            self.out,
            self.reporter,
        )
    }

    /// The frozen autoencoder: that of the options, or a small one that is trained now and left
    /// beside the weights.
    fn vae(&self, image: (u32, u32), labels: &[u8]) -> Result<Vae> {
        if let Some(name) = &self.options.vae {
            let vae = Vae::open(name, DType::F32, self.device);
            return vae.map_err(|error| error.at("vae"));
        }
        let (a, options) = (&self.options.architecture(), self.options);
        let side = image.0.max(image.1) as usize;
        let config =
            compressor::architecture(&a.autoencoder, a.autoencoder_layers, a.latent, false, side);
        let seed = rng::derive(self.seed, "part", "autoencoder");
        let multiple = config.downsampling() << (a.multipliers.len() - 1);
        let compression = Compression {
            config: &config,
            training: &options.autoencoder(),
            field: "autoencoder",
            device: self.device,
            seed,
            tensorboard: options.train.tensorboard,
            folder: &self.out.join("autoencoder"),
            out: &self.out.join(VAE),
        };
        let pictures = ImagesAndMasks {
            frame: Frame::padded(image, multiple as u32),
            labels: labels.to_vec(),
            masks: options.autoencoder_masks,
            seed,
        };
        compression.run(&pictures, self.train, self.validation, self.reporter)?;
        Vae::open(
            &self.out.join(VAE).to_string_lossy(),
            DType::F32,
            self.device,
        )
    }

    /// What the result depends on besides the networks, for the folder, which serves one training.
    fn described(&self) -> Result<serde_json::Value> {
        let objective = &self.options.objective();
        Ok(json!({
            "preset": self.options.preset(),
            "dropout": self.options.architecture().dropout,
            "lambda_latent": objective.lambda_latent,
            "lambda_dice": self.options.resolved().lambda_dice,
            "dice_every": objective.dice_every,
            "last": objective.last,
            "base": self.options.base,
            "init": self.options.init,
        }))
    }
}
