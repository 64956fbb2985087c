//! A small model from nothing: an autoencoder, then a text encoder and a denoising network in its
//! latent space.

use super::{
    Fit,
    architecture::{Fixed, Latents},
    denoiser::{Denoiser, Texts},
    export,
    holes::inside,
    store::Store,
    views::Views,
    vocabulary,
};
use crate::text::{ClipConfig, ClipText, TextEncoder, TextEncoders, Tokenizer};
use candle_core::{DType, Device, Tensor};
use diffaug::{Dataset, FitReport, Result, Sample, rng};
use diffaug_models::{
    Vae,
    checkpoint::Component,
    compressor::{Compression, Pictures},
    unshuffle::{self, Unshuffle},
};
use diffaug_nn::{
    diffusion::{AutoencoderConfig, UNet, scheduler::NoiseSchedule},
    fit::{self, WEIGHTS},
    params::Params,
    weights,
};
use rand::RngExt;
use serde_json::json;

impl Fit<'_, '_> {
    /// Trains everything and leaves a model in the layout of diffusers.
    pub(super) fn scratch(&self) -> Result<FitReport> {
        let architecture = &self.options.train.architecture;
        let views = self.views(architecture.downsampling())?;
        let side = views.layout.resolution.unwrap_or(0) as usize;
        match architecture.autoencoder(side) {
            Some(config) => self.autoencoder(&config, views.clone())?,
            None => self.blocks(&views)?,
        }
        let vocabulary = self.vocabulary(architecture.tokens)?;
        let text = architecture.text(vocabulary);
        export::write_json(&self.out.join("text_encoder/config.json"), &text)?;
        let learner = self.denoiser(views, serde_json::from_value(text)?)?;
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
            &export::unet_config(&architecture.unet(), side / architecture.downsampling()),
        )?;
        let scheduler = architecture.scheduler()?;
        export::write_json(
            &self.out.join("scheduler/scheduler_config.json"),
            &scheduler,
        )?;
        export::own(self.out, self.options, side)?;
        let scheduler = serde_json::to_value(scheduler)?;
        let vae = match architecture.autoencoder {
            Latents::Network(_) => export::AUTOENCODER,
            Latents::Fixed(Fixed::Unshuffle) => export::UNSHUFFLE,
        };
        export::index(self.out, (false, false), vae, &scheduler)?;
        learner.store.clear()?;
        Ok(report)
    }

    /// Trains the autoencoder and leaves it in `vae`.
    fn autoencoder(&self, config: &AutoencoderConfig, views: Views) -> Result<()> {
        let train = &self.options.train;
        let seed = rng::derive(self.seed, "part", "autoencoder");
        let compression = Compression {
            config,
            training: &train.autoencoder,
            field: "train.autoencoder",
            device: self.device,
            seed,
            tensorboard: train.tensorboard,
            folder: &self.folder("autoencoder"),
            out: &self.out.join("vae"),
        };
        let cut = train.cut;
        let pictures = Seen { views, cut, seed };
        compression.run(&pictures, self.train, self.validation, self.reporter)
    }

    /// Measures blocks of pixels in place of training an autoencoder, and leaves them in `vae`.
    fn blocks(&self, views: &Views) -> Result<()> {
        let out = self.out.join("vae");
        // Measured once, like an autoencoder that is trained once.
        if out.join("config.json").exists() {
            return Ok(());
        }
        let block = self.options.train.architecture.block;
        let pictures = unshuffle::plain(self.train, |sample| Ok(views.view(sample, 0)?.pixels))?;
        Unshuffle::measured(block, pictures, self.device)?.save(&out)
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
    fn denoiser(&self, views: Views, text: ClipConfig) -> Result<Denoiser<'_>> {
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
        let vae = Component::autoencoder(&self.out.join("vae"))?;
        let scheduler = train.architecture.scheduler()?;
        Ok(Denoiser {
            params,
            unet: unet.checkpointing(train.checkpointing),
            channels: unet_config.in_channels,
            added: false,
            force_zeros: false,
            texts,
            vae: Vae::of(&vae, DType::F32, self.device)?,
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

/// What the autoencoder learns from: chance views, perhaps with their lesion cut out.
struct Seen {
    views: Views,
    cut: f64,
    seed: u64,
}

impl Pictures for Seen {
    fn draw(&self, sample: &Sample, draw: u64) -> Result<Tensor> {
        let mut rng = rng::stream(self.seed, "autoencoder's view", draw);
        let view = self
            .views
            .view(sample, rng.random_range(0..self.views.count))?;
        if rng.random::<f64>() >= self.cut {
            return Ok(view.pixels);
        }
        let kept = inside(view.mask.view());
        let kept: Vec<f32> = kept.iter().map(|cut| f32::from(u8::from(!cut))).collect();
        let (_, _, height, width) = view.pixels.dims4()?;
        let kept = Tensor::from_vec(kept, (1, 1, height, width), &Device::Cpu)?;
        Ok(view.pixels.broadcast_mul(&kept)?)
    }

    fn plain(&self, sample: &Sample) -> Result<Tensor> {
        Ok(self.views.view(sample, 0)?.pixels)
    }
}
