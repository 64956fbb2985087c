//! A small model from nothing: an autoencoder, then a text encoder and a denoising network in its
//! latent space.

use super::{
    Fit,
    architecture::Architecture,
    autoencoder::Compressor,
    denoiser::{Denoiser, Texts},
    export,
    store::Store,
    views::Views,
    vocabulary,
};
use crate::{
    autoencoder::{Autoencoder as Wrapped, Kind},
    text::{ClipConfig, ClipText, TextEncoder, TextEncoders, Tokenizer},
};
use candle_core::DType;
use diffaug::{Dataset, FitReport, Result, rng};
use diffaug_nn::{
    diffusion::{Autoencoder, AutoencoderConfig, UNet, scheduler::NoiseSchedule},
    fit::{self, Learner, WEIGHTS},
    params::Params,
    perceptual::Lpips,
    weights,
};
use serde_json::json;

/// Samples over which latents are measured.
const MEASURED: u64 = 512;

impl Fit<'_, '_> {
    /// Trains everything and leaves a model in the layout of diffusers.
    pub(super) fn scratch(&self) -> Result<FitReport> {
        let architecture = &self.options.train.architecture;
        let views = self.views(architecture.autoencoder(1).downsampling())?;
        let side = views.layout.resolution.unwrap_or(0) as usize;
        let config = architecture.autoencoder(side);
        self.autoencoder(&config, views)?;
        let vocabulary = self.vocabulary(architecture.tokens)?;
        let text = architecture.text(vocabulary);
        export::write_json(&self.out.join("text_encoder/config.json"), &text)?;
        let learner = self.denoiser(&config, views, serde_json::from_value(text)?)?;
        let model = json!({
            "architecture": architecture,
            "vocabulary": vocabulary,
            "train": self.described()?,
        });
        let settings = self.options.train.settings(self.seed);
        let folder = self.folder("denoiser");
        let report = fit::fit(
            &learner,
            &settings,
            &model,
            self.train,
            self.validation,
            &folder,
            self.reporter,
        )?;
        let mut parts = weights::Files::open(&[folder.join(WEIGHTS)])?;
        export::part(
            &mut parts,
            "unet",
            &self.out.join("unet/diffusion_pytorch_model.safetensors"),
        )?;
        let file = self.out.join("text_encoder/model.safetensors");
        match self.options.train.text {
            true => export::part(&mut parts, "text_encoder", &file)?,
            false => weights::save(&file, &self.text_params()?)?,
        }
        export::write_json(
            &self.out.join("unet/config.json"),
            &export::unet_config(&architecture.unet(), side / config.downsampling()),
        )?;
        let scheduler = Architecture::scheduler();
        export::write_json(
            &self.out.join("scheduler/scheduler_config.json"),
            &scheduler,
        )?;
        export::own(self.out, self.options, side)?;
        let scheduler = serde_json::to_value(scheduler)?;
        export::index(self.out, false, false, &scheduler)?;
        learner.store.clear()?;
        Ok(report)
    }

    /// Trains the autoencoder and leaves it in `vae`, with latents of mean 0 and variance 1.
    fn autoencoder(&self, config: &AutoencoderConfig, views: Views) -> Result<()> {
        let folder = self.folder("autoencoder");
        let training = self.options.train.autoencoder.clone();
        let seed = rng::derive(self.seed, "part", "autoencoder");
        let mut params = Params::new(self.device, seed);
        let net = Autoencoder::new(params.root(), config)?;
        let lpips = training.lpips.as_deref();
        let lpips = lpips.map(|path| Lpips::open(path, self.device)).transpose();
        let learner = Compressor {
            lpips: lpips.map_err(|error| error.at("train.autoencoder.lpips"))?,
            params,
            net,
            views,
            training,
            seed,
        };
        let settings = learner
            .training
            .settings(seed, self.options.train.tensorboard);
        let model = json!({ "autoencoder": config, "train": &learner.training });
        let (train, validation) = (self.train, self.validation);
        fit::fit(
            &learner,
            &settings,
            &model,
            train,
            validation,
            &folder,
            self.reporter,
        )?;
        weights::load(&folder.join(WEIGHTS), learner.params())?;
        let count = MEASURED.min(train.items()?.len() as u64);
        let (means, deviations) = learner.statistics(train, count)?;
        let tensors = learner
            .params
            .all()
            .map(|(name, var)| (name.to_owned(), var.as_detached_tensor()));
        let tensors = export::normalised(tensors.collect(), &means, &deviations)?;
        let out = self.out.join("vae");
        std::fs::create_dir_all(&out)?;
        weights::save_tensors(
            &out.join("diffusion_pytorch_model.safetensors"),
            tensors,
            export::METADATA,
        )?;
        export::write_json(
            &out.join("config.json"),
            &export::named(config, "AutoencoderKL")?,
        )
    }

    /// Writes a tokenizer that knows the words of the prompt bank's texts for the training samples.
    fn vocabulary(&self, length: usize) -> Result<usize> {
        let prompts = self.prompts()?;
        let mut texts = Vec::new();
        for index in 0..self.train.items()?.len() as u64 {
            let sample = self.train.sample(index)?;
            for draw in 0..8 {
                texts.push(prompts.of(&sample, true, draw)?);
            }
            texts.push(prompts.of(&sample, false, 0)?);
        }
        vocabulary::write(&texts, length, &self.out.join("tokenizer"))
    }

    /// Parameters of a text encoder that does not learn.
    fn text_params(&self) -> Result<Params> {
        let config = export::read_json(&self.out.join("text_encoder/config.json"))?;
        let mut params = Params::new(self.device, rng::derive(self.seed, "part", "text"));
        ClipText::new(params.root(), &serde_json::from_value(config)?)?;
        Ok(params)
    }

    /// The denoising network with all that it needs, before training.
    fn denoiser(
        &self,
        config: &AutoencoderConfig,
        views: Views,
        text: ClipConfig,
    ) -> Result<Denoiser<'_>> {
        let train = &self.options.train;
        let mut params = Params::new(self.device, rng::derive(self.seed, "part", "denoiser"));
        let unet_config = train.architecture.unet();
        let unet = UNet::new(params.root().child("unet"), &unet_config)?;
        let tokenizer = Tokenizer::open(&self.out.join("tokenizer"))?;
        let texts = match train.text {
            true => {
                let clip = ClipText::new(params.root().child("text_encoder"), &text)?;
                Texts::Trained(TextEncoders::new(TextEncoder::new(tokenizer, clip)?, None)?)
            }
            false => {
                let mut own = Params::new(self.device, rng::derive(self.seed, "part", "text"));
                let clip = ClipText::new(own.root(), &text)?;
                Texts::Frozen(TextEncoders::new(TextEncoder::new(tokenizer, clip)?, None)?)
            }
        };
        let file = self.out.join("vae/diffusion_pytorch_model.safetensors");
        let mut frozen = Params::from_source(self.device, weights::Files::open(&[file])?);
        let net = Autoencoder::new(frozen.root(), config)?;
        let scheduler = Architecture::scheduler();
        Ok(Denoiser {
            params,
            unet: unet.checkpointing(train.checkpointing),
            channels: unet_config.in_channels,
            added: false,
            force_zeros: false,
            texts,
            vae: Wrapped::new(Kind::Full(Box::new(net)), DType::F32, self.device)?,
            schedule: NoiseSchedule::new(&scheduler)?,
            prediction: scheduler.prediction()?,
            views,
            prompts: self.prompts()?,
            training: train.clone(),
            store: Store::open(&self.folder("kept"))?,
            seed: self.seed,
        })
    }
}
