//! Fine-tuning of a model that there is: adapters beside its denoising network, or all of it.

use super::{
    Fit, Method,
    denoiser::{Denoiser, Texts},
    export,
    store::Store,
};
use crate::{
    loader::{self, ADAPTER, Found},
    lora::{LoraLayer, Loras, Part, save_lora},
};
use candle_core::DType;
use diffaug::{Error, FitReport, Result, rng};
use diffaug_models::unshuffle::Unshuffle;
use diffaug_nn::{
    diffusion::{UNet, UNetConfig, original::Names, scheduler::NoiseSchedule},
    fit::{self, Learner, WEIGHTS},
    params::{Adapters, Params},
    weights::{self, Cast, Source},
};
use serde_json::json;
use std::{fs, path::Path};

/// What stands in `pytorch_lora_weights.safetensors` beside it: the model that it belongs to.
pub const BASE: &str = "base.json";

impl Fit<'_, '_> {
    /// Trains and leaves an adapter, or a model in the layout of diffusers.
    pub(super) fn finetune(&self) -> Result<FitReport> {
        let Some(base) = &self.options.base else {
            return Err(Error::config(
                "there is nothing to fine-tune: set `base` to a model, `train.init = \"scratch\"` to train a small one from nothing, or `weights` to use one as it is",
            )
            .at("base"));
        };
        let found = loader::find(base, "base", self.options)?;
        let mut loras = Loras::open(&found.loras).map_err(|error| error.at("lora"))?;
        let learner = self.learner(&found, &mut loras)?;
        let settings = self.options.train.settings(self.seed);
        let model = json!({ "base": base, "train": self.described()? });
        let folder = self.folder("denoiser");
        let (train, validation) = (self.train, self.validation);
        let report = fit::fit(
            &learner,
            &settings,
            &model,
            train,
            validation,
            &folder,
            self.reporter,
        )?;
        weights::load(&folder.join(WEIGHTS), learner.params())?;
        match self.options.train.method {
            Method::Lora => self.save_adapter(&learner, base)?,
            Method::Full => self.save_model(&learner, &found)?,
        }
        learner.store.clear()?;
        Ok(report)
    }

    fn learner(&self, found: &Found, loras: &mut Loras) -> Result<Denoiser<'_>> {
        let (options, device) = (self.options, self.device);
        let train = &options.train;
        let checkpoint = &found.checkpoint;
        let texts = loader::text(checkpoint, loras, options.dtype.dtype(), device)?;
        let config = loader::unet_config(checkpoint)?;
        let source = loras.fuse(
            Part::Unet,
            checkpoint.unet.source()?,
            Some(&Names::unet(&config)),
        )?;
        let (params, unet) = match train.method {
            Method::Lora => self.adapted(source, &config)?,
            Method::Full => self.whole(source, &config)?,
        };
        let vae = loader::autoencoder(checkpoint, options, device)?;
        let scheduler = options.scheduler(loader::scheduler(checkpoint)?);
        Ok(Denoiser {
            params,
            unet: unet.checkpointing(train.checkpointing),
            channels: config.in_channels,
            added: config.addition_embed_type.is_some(),
            force_zeros: checkpoint.force_zeros_for_empty_prompt,
            texts: Texts::Frozen(texts),
            schedule: NoiseSchedule::new(&scheduler)?,
            prediction: scheduler.prediction()?,
            views: self.views(vae.factor())?,
            vae,
            prompts: self.prompts()?,
            training: train.clone(),
            store: Store::open(&self.folder("kept"))?,
            seed: self.seed,
        })
    }

    /// The network as it is, with adapters.
    fn adapted(
        &self,
        source: impl Source + 'static,
        config: &UNetConfig,
    ) -> Result<(Params, UNet)> {
        let train = &self.options.train;
        let adapters = Adapters {
            rank: train.rank,
            alpha: train.alpha.unwrap_or(train.rank as f64),
            targets: train.targets.clone(),
        };
        let source = Cast::new(source, self.options.dtype.dtype());
        let seed = rng::derive(self.seed, "part", "adapters");
        let mut params = Params::from_source(self.device, source).with_adapters(adapters, seed);
        let unet = UNet::new(params.root(), config)?;
        if params.count() == 0 {
            let message = format!(
                "`train.targets` {:?} name no layer of the model",
                train.targets
            );
            return Err(Error::config(message).at("train.targets"));
        }
        Ok((params, unet))
    }

    /// All of the network.
    fn whole(&self, source: impl Source, config: &UNetConfig) -> Result<(Params, UNet)> {
        check_channels(&source, config)?;
        let mut params = Params::new(self.device, self.seed);
        let unet = UNet::new(params.root(), config)?;
        weights::fill(source, &params)?;
        Ok((params, unet))
    }

    fn save_adapter(&self, learner: &Denoiser<'_>, base: &str) -> Result<()> {
        let train = &self.options.train;
        let vars: std::collections::BTreeMap<_, _> = learner.params.trainable().collect();
        let layers = vars.iter().filter_map(|(name, a)| {
            let module = name.strip_suffix(".lora_A.weight")?;
            let b = vars.get(format!("{module}.lora_B.weight").as_str())?;
            Some(LoraLayer {
                part: Part::Unet,
                module: module.to_owned(),
                a: a.as_detached_tensor(),
                b: b.as_detached_tensor(),
                alpha: train.alpha.unwrap_or(train.rank as f64),
            })
        });
        save_lora(&self.out.join(ADAPTER), layers.collect::<Vec<_>>())?;
        export::own(self.out, self.options, self.side())?;
        // Last of all: with it the folder is a model.
        let base = json!({ "base": base, "variant": self.options.variant });
        export::write_json(&self.out.join(BASE), &base)
    }

    /// Side of the pictures that were trained on, if it was set.
    fn side(&self) -> usize {
        self.options.resolution.unwrap_or(0) as usize
    }

    /// Copies what was not trained and writes the network.
    fn save_model(&self, learner: &Denoiser<'_>, found: &Found) -> Result<()> {
        let checkpoint = &found.checkpoint;
        let out = self.out;
        let components = [
            (
                "vae",
                Some(&checkpoint.vae),
                "diffusion_pytorch_model.safetensors",
            ),
            (
                "text_encoder",
                Some(&checkpoint.text_encoder),
                "model.safetensors",
            ),
            (
                "text_encoder_2",
                checkpoint.text_encoder_2.as_ref(),
                "model.safetensors",
            ),
        ];
        for (name, component, file) in components {
            let Some(component) = component else { continue };
            let folder = out.join(name);
            weights::make_folder(&folder)?;
            let mut source = component.source()?;
            let names = source.names();
            let tensors = names.into_iter().map(|name| match source.take(&name)? {
                Some(tensor) => Ok((name, tensor)),
                None => Err(Error::internal(format!("tensor `{name}` is gone"))),
            });
            let tensors = tensors.collect::<Result<Vec<_>>>()?;
            weights::save_tensors(&folder.join(file), tensors, export::METADATA)?;
            export::write_json(&folder.join("config.json"), &component.config)?;
        }
        copy(&checkpoint.tokenizer, &out.join("tokenizer"))?;
        if let Some(tokenizer) = &checkpoint.tokenizer_2 {
            copy(tokenizer, &out.join("tokenizer_2"))?;
        }
        let tensors = learner
            .params
            .all()
            .map(|(name, var)| (name.to_owned(), var.as_detached_tensor()));
        let dtype = self.options.dtype.dtype();
        let tensors = tensors.map(|(name, tensor)| match dtype {
            DType::F32 => Ok((name, tensor)),
            dtype => Ok((name, tensor.to_dtype(dtype)?)),
        });
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        let folder = out.join("unet");
        weights::make_folder(&folder)?;
        weights::save_tensors(
            &folder.join("diffusion_pytorch_model.safetensors"),
            tensors,
            export::METADATA,
        )?;
        export::write_json(&folder.join("config.json"), &checkpoint.unet.config)?;
        export::write_json(
            &out.join("scheduler/scheduler_config.json"),
            &checkpoint.scheduler,
        )?;
        export::own(out, self.options, self.side())?;
        export::index(
            out,
            (checkpoint.xl, checkpoint.force_zeros_for_empty_prompt),
            match Unshuffle::is(&checkpoint.vae.config) {
                true => export::UNSHUFFLE,
                false => export::AUTOENCODER,
            },
            &checkpoint.scheduler,
        )
    }
}

/// Checks that the weights have the channels and layers that `config` claims, before memory is taken for
/// all of them.
fn check_channels(source: &impl Source, config: &UNetConfig) -> Result<()> {
    for (level, channels) in config.block_out_channels.iter().enumerate() {
        let last = config.layers_per_block - 1;
        let name = format!("down_blocks.{level}.resnets.{last}.conv2.weight");
        let shape = source.shape(&name).unwrap_or_default();
        if shape != [*channels, *channels, 3, 3] {
            return Err(Error::model(format!(
                "tensor `{name}` has shape {shape:?}, expected {:?}",
                [*channels, *channels, 3, 3]
            ))
            .context("the weights of `unet` do not fit its configuration"));
        }
    }
    Ok(())
}

/// Copies the files of a folder, but not its folders.
fn copy(from: &Path, to: &Path) -> Result<()> {
    weights::make_folder(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.path().is_file() {
            weights::copy_file(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
