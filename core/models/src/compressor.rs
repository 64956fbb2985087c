//! The training of a small autoencoder (Rombach et al., 2022): absolute errors of pixels and of
//! their gradients, a little divergence from the normal distribution, and perceptual distance where
//! its weights are at hand. What it leaves is in the layout of diffusers.

use candle_core::Tensor;
use diffaug::{BoxDataset, Dataset, Error, Reporter, Result, Sample};
use diffaug_nn::{
    Device,
    diffusion::{Autoencoder, AutoencoderConfig, SampleSize},
    fit::{self, Learner, Settings, WEIGHTS},
    noise, ops,
    optim::Schedule,
    params::Params,
    perceptual::Lpips,
    weights,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Samples over which latents are measured.
const MEASURED: u64 = 512;

/// How a small autoencoder is trained.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AutoencoderTraining {
    /// Steps of the optimizer.
    pub steps: u64,
    /// Pictures of a step.
    pub batch: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Weight of the divergence of a latent value from the normal distribution.
    pub kl: f64,
    /// Weight of the error of horizontal and of vertical differences.
    pub gradient: f64,
    /// Weights of LPIPS (AlexNet), for a loss that minds what is seen; without them it is left out.
    pub lpips: Option<PathBuf>,
    /// Weight of LPIPS.
    pub perceptual: f64,
    /// Steps from one validation to the next.
    pub evaluate_every: u64,
    /// Steps from one checkpoint to the next.
    pub checkpoint_every: u64,
}

impl Default for AutoencoderTraining {
    fn default() -> Self {
        AutoencoderTraining {
            steps: 2000,
            batch: 16,
            lr: 1e-3,
            kl: 1e-4,
            gradient: 0.5,
            lpips: None,
            perceptual: 0.1,
            evaluate_every: 250,
            checkpoint_every: 250,
        }
    }
}

impl AutoencoderTraining {
    /// Checks the numbers; `at` is the place of these options.
    ///
    /// # Errors
    /// Naming the one that is out of range.
    pub fn check(&self, at: &str) -> Result<()> {
        let counts = [("steps", self.steps), ("batch", self.batch as u64)];
        if let Some((name, _)) = counts.iter().find(|(_, value)| *value == 0) {
            return refuse(at, name, 0.0, "at least 1");
        }
        let most = [
            ("steps", self.steps, 1e9),
            ("batch", self.batch as u64, 65_536.0),
        ];
        if let Some((name, value, most)) = most.iter().find(|(_, v, most)| *v as f64 > *most) {
            return refuse(at, name, *value as f64, &format!("at most {most}"));
        }
        if !(self.lr > 0.0 && self.lr.is_finite()) {
            return refuse(at, "lr", self.lr, "a number above 0");
        }
        let weights = [
            ("kl", self.kl),
            ("gradient", self.gradient),
            ("perceptual", self.perceptual),
        ];
        match weights.iter().find(|(_, v)| !(0.0..=1e6).contains(v)) {
            Some((name, value)) => refuse(at, name, *value, "0 to 1000000"),
            None => Ok(()),
        }
    }

    /// How the training loop is to go about it.
    fn settings(&self, seed: u64, tensorboard: bool) -> Settings {
        Settings {
            steps: Some(self.steps),
            batch: self.batch,
            learning_rate: self.lr,
            schedule: Schedule::Cosine {
                last: 0.05 * self.lr,
            },
            warmup: 50,
            clip: 1.0,
            evaluate_every: u64::MAX,
            evaluate_steps: self.evaluate_every,
            checkpoint_every: self.checkpoint_every,
            tensorboard,
            seed,
            ..Settings::default()
        }
    }
}

fn refuse(at: &str, name: &str, value: f64, expected: &str) -> Result<()> {
    let field = format!("{at}.{name}");
    Err(Error::config(format!("`{field}` is {value}, expected {expected}")).at(field))
}

/// Groups of normalisations: the most, up to 32, that divide all of `channels` into at least four
/// channels each.
pub fn groups(channels: &[usize]) -> usize {
    let fits = |groups: &usize| {
        channels
            .iter()
            .all(|c| c.is_multiple_of(*groups) && c / groups >= 4)
    };
    [32, 16, 8, 4, 2].into_iter().find(fits).unwrap_or(1)
}

/// An autoencoder with `channels` at each resolution, `layers` residual blocks there, `latent`
/// channels in the middle, and perhaps attention; `side` is that of its pictures. Its last layer
/// scales latents, so that its scaling factor is 1.
pub fn architecture(
    channels: &[usize],
    layers: usize,
    latent: usize,
    attention: bool,
    side: usize,
) -> AutoencoderConfig {
    AutoencoderConfig {
        down_block_types: vec!["DownEncoderBlock2D".to_owned(); channels.len()],
        up_block_types: vec!["UpDecoderBlock2D".to_owned(); channels.len()],
        block_out_channels: channels.to_vec(),
        layers_per_block: layers,
        latent_channels: latent,
        norm_num_groups: groups(channels),
        sample_size: SampleSize::Square(side),
        scaling_factor: 1.0,
        force_upcast: false,
        mid_block_add_attention: attention,
        ..AutoencoderConfig::default()
    }
}

/// What an autoencoder learns from.
pub trait Pictures: Sync {
    /// A picture of `sample`, `[1, 3, height, width]`, values -1 to 1, for the draw of that number.
    ///
    /// # Errors
    /// When the sample cannot be used.
    fn draw(&self, sample: &Sample, draw: u64) -> Result<Tensor>;

    /// The picture of `sample` by which the autoencoder is judged and its latents are measured.
    ///
    /// # Errors
    /// When the sample cannot be used.
    fn plain(&self, sample: &Sample) -> Result<Tensor>;
}

/// An autoencoder and how it is trained.
pub struct Compression<'a> {
    /// The network.
    pub config: &'a AutoencoderConfig,
    /// How to train.
    pub training: &'a AutoencoderTraining,
    /// The place of `training` among the options, for errors.
    pub field: &'a str,
    /// Where it lives.
    pub device: &'a Device,
    /// All randomness.
    pub seed: u64,
    /// Whether event files for TensorBoard are written.
    pub tensorboard: bool,
    /// What the training loop keeps.
    pub folder: &'a Path,
    /// What is left: a folder in the layout of diffusers.
    pub out: &'a Path,
}

impl Compression<'_> {
    /// Trains, or goes on training, and leaves the autoencoder with latents of mean 0 and variance 1.
    ///
    /// # Errors
    /// Those of the training loop, and when a picture cannot be used.
    pub fn run(
        &self,
        pictures: &impl Pictures,
        train: &BoxDataset,
        validation: &BoxDataset,
        reporter: &Reporter<'_>,
    ) -> Result<()> {
        let mut params = Params::new(self.device, self.seed);
        let net = Autoencoder::new(params.root(), self.config)?;
        let lpips = self.training.lpips.as_deref();
        let lpips = lpips.map(|path| Lpips::open(path, self.device)).transpose();
        let learner = Compressor {
            lpips: lpips.map_err(|error| error.at(format!("{}.lpips", self.field)))?,
            params,
            net,
            pictures,
            training: self.training,
            seed: self.seed,
        };
        let settings = self.training.settings(self.seed, self.tensorboard);
        let model = json!({ "autoencoder": self.config, "train": self.training });
        let folder = self.folder;
        fit::fit(
            &learner, &settings, &model, train, validation, folder, reporter,
        )?;
        weights::load(&folder.join(WEIGHTS), &learner.params)?;
        let count = MEASURED.min(train.items()?.len() as u64);
        let Statistics {
            means,
            deviations,
            noise,
        } = learner.statistics(train, count)?;
        if let Some(warning) = dead_channels(&noise) {
            tracing::warn!("the autoencoder of `{}`: {warning}", self.field);
        }
        if let Some(wrong) = means.iter().chain(&deviations).find(|v| !v.is_finite()) {
            return Err(Error::model(format!(
                "the latents of the trained autoencoder have a mean or deviation of {wrong}"
            ))
            .at(self.field));
        }
        let tensors = learner
            .params
            .all()
            .map(|(name, var)| (name.to_owned(), var.as_detached_tensor()));
        save(
            self.out,
            self.config,
            &normalised(tensors.collect(), &means, &deviations)?,
        )
    }
}

/// Writes an autoencoder in the layout of diffusers.
///
/// # Errors
/// When the folder cannot be written.
pub fn save(
    out: &Path,
    config: &AutoencoderConfig,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<()> {
    weights::make_folder(out)?;
    let tensors = tensors.iter().map(|(name, t)| (name.clone(), t.clone()));
    weights::save_tensors(
        &out.join("diffusion_pytorch_model.safetensors"),
        tensors,
        &[("format", "pt")],
    )?;
    let mut config = serde_json::to_value(config)?;
    config["_class_name"] = json!("AutoencoderKL");
    if let Some(map) = config.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
    let text = serde_json::to_string_pretty(&config)? + "\n";
    weights::write_atomically(&out.join("config.json"), text.as_bytes())
}

/// An autoencoder in training.
struct Compressor<'a, P> {
    params: Params,
    net: Autoencoder,
    pictures: &'a P,
    training: &'a AutoencoderTraining,
    lpips: Option<Lpips>,
    seed: u64,
}

impl<P: Pictures> Compressor<'_, P> {
    fn join(&self, pictures: &[Tensor]) -> Result<Tensor> {
        if let Some(odd) = pictures.iter().find(|p| p.dims() != pictures[0].dims()) {
            let ((_, _, h, w), (_, _, height, width)) = (odd.dims4()?, pictures[0].dims4()?);
            return Err(Error::data(format!(
                "training pictures are {width}x{height} and {w}x{h}: set `images.size`, or the size of the stage's own pictures"
            )));
        }
        Ok(Tensor::cat(pictures, 0)?.to_device(self.params.device())?)
    }

    /// What the channels of the latents are like as they are drawn, over `count` samples.
    fn statistics(&self, train: &BoxDataset, count: u64) -> Result<Statistics> {
        let (mut sums, mut values) = (Vec::<[f64; 3]>::new(), 0.0);
        for index in 0..count {
            let pixels = self.pictures.plain(&train.sample(index)?)?;
            let posterior = self.net.encode(&pixels.to_device(self.params.device())?)?;
            let channels = |x: &Tensor| x.detach().flatten_from(2)?.squeeze(0)?.to_vec2::<f32>();
            let means = channels(&posterior.mean)?;
            let variances = channels(&posterior.logvar.exp()?)?;
            sums.resize(means.len(), [0.0; 3]);
            for (sums, (means, variances)) in sums.iter_mut().zip(means.iter().zip(&variances)) {
                for (mean, variance) in means.iter().zip(variances) {
                    sums[0] += f64::from(*mean);
                    sums[1] += f64::from(*mean).powi(2) + f64::from(*variance);
                    sums[2] += f64::from(*variance);
                }
            }
            values += means.first().map_or(0.0, |channel| channel.len() as f64);
        }
        let mean = |sums: &[f64; 3]| sums[0] / values;
        let deviation = |sums: &[f64; 3]| (sums[1] / values - mean(sums).powi(2)).max(1e-12).sqrt();
        let noise = |sums: &[f64; 3]| (sums[2] / values).sqrt() / deviation(sums);
        Ok(Statistics {
            means: sums.iter().map(mean).collect(),
            deviations: sums.iter().map(deviation).collect(),
            noise: sums.iter().map(noise).collect(),
        })
    }
}

/// What the channels of latents are like.
struct Statistics {
    means: Vec<f64>,
    deviations: Vec<f64>,
    /// The share of the deviation that is the posterior's own noise, 0 to 1.
    noise: Vec<f64>,
}

/// The share of noise in a channel's deviation above which it says little of the picture.
const DEAD: f64 = 0.7;

/// Names the channels that are mostly noise. They are scaled to variance 1 like the others, so a denoising
/// network is trained to predict noise that means nothing.
fn dead_channels(noise: &[f64]) -> Option<String> {
    let dead: Vec<String> = noise
        .iter()
        .enumerate()
        .filter(|(_, share)| **share > DEAD)
        .map(|(channel, share)| format!("{channel} ({share:.2})"))
        .collect();
    (!dead.is_empty()).then(|| {
        format!(
            "noise is more than {DEAD} of the deviation of {} of {} latent channels: {}; a smaller `kl` or fewer `latent` channels help",
            dead.len(),
            noise.len(),
            dead.join(", ")
        )
    })
}

/// Mean absolute error of the differences of neighbours along `dim`.
fn gradient_error(x: &Tensor, y: &Tensor, dim: usize) -> candle_core::Result<Tensor> {
    let step = |x: &Tensor| {
        let length = x.dim(dim)? - 1;
        x.narrow(dim, 1, length)? - x.narrow(dim, 0, length)?
    };
    ops::l1(&step(y)?, &step(x)?)
}

impl<P: Pictures> Learner for Compressor<'_, P> {
    type Batch = Tensor;

    fn params(&self) -> &Params {
        &self.params
    }

    fn prepare(&self, samples: Vec<Sample>, batch: u64) -> Result<Tensor> {
        let first = batch * self.training.batch as u64;
        let pictures = samples.iter().zip(first..);
        let pictures = pictures.map(|(sample, draw)| self.pictures.draw(sample, draw));
        self.join(&pictures.collect::<Result<Vec<_>>>()?)
    }

    fn loss(&self, x: Tensor, batch: u64) -> Result<Tensor> {
        let posterior = self.net.encode(&x)?;
        let shape = posterior.mean.shape();
        let drawn = noise::normal(self.seed, "autoencoder's noise", batch, shape.elem_count());
        let drawn = Tensor::from_vec(drawn, shape, x.device())?;
        let y = self.net.decode(&posterior.sample(&drawn)?)?;
        let mut loss = ops::l1(&y, &x)?;
        for dim in [2, 3] {
            loss = (loss + (gradient_error(&x, &y, dim)? * self.training.gradient)?)?;
        }
        let each = shape.elem_count() as f64 / x.dim(0)? as f64;
        let divergence = (posterior.kl()?.mean_all()? / each)?;
        loss = (loss + (divergence * self.training.kl)?)?;
        if let Some(lpips) = &self.lpips {
            let seen = lpips.distance(&y, &x)?.mean_all()?;
            loss = (loss + (seen * self.training.perceptual)?)?;
        }
        Ok(loss)
    }

    fn score(&self, validation: &BoxDataset, reporter: &Reporter<'_>) -> Result<f64> {
        let count = validation.items()?.len() as u64;
        let mut total = 0.0;
        for index in 0..count {
            if reporter.cancelled() {
                return Err(Error::cancelled());
            }
            let x = self.pictures.plain(&validation.sample(index)?)?;
            let x = x.to_device(self.params.device())?;
            let y = self.net.decode(self.net.encode(&x)?.mode())?;
            let error = (y - x)?.sqr()?.mean_all()?.detach().to_scalar::<f32>()?;
            // Pixels span 2.
            total += 10.0 * (4.0 / f64::from(error).max(1e-10)).log10();
        }
        Ok(total / count as f64)
    }

    fn metric(&self) -> &str {
        "validation psnr"
    }
}

/// The tensors of an autoencoder whose latents are shifted and scaled to mean 0 and variance 1 of
/// each channel.
///
/// diffusers can keep means and deviations in the configuration, too, but its inpainting pipelines
/// mind them when they decode and not when they encode. The 1×1 convolutions between encoder,
/// latents and decoder can do it for every pipeline.
///
/// # Errors
/// When there are no such convolutions.
fn normalised(
    tensors: BTreeMap<String, Tensor>,
    means: &[f64],
    deviations: &[f64],
) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = tensors;
    let channels = means.len();
    let row = |values: Vec<f64>| -> Result<Tensor> {
        let count = values.len();
        let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
        let device = tensors.values().next().map(Tensor::device);
        let device = device.ok_or_else(|| Error::internal("an autoencoder without tensors"))?;
        Ok(Tensor::from_vec(values, count, device)?)
    };
    // Means, then logarithms of variances.
    let twice = |of: &dyn Fn(usize) -> f64, rest: &dyn Fn(usize) -> f64| {
        (0..channels)
            .map(of)
            .chain((0..channels).map(rest))
            .collect::<Vec<_>>()
    };
    let scale = row(twice(&|c| 1.0 / deviations[c], &|_| 1.0))?;
    let shift = row(twice(&|c| -means[c] / deviations[c], &|c| {
        -2.0 * deviations[c].ln()
    }))?;
    let (mean, deviation) = (row(means.to_vec())?, row(deviations.to_vec())?);
    let find = |name: &str| {
        let tensor = tensors.get(name);
        tensor.ok_or_else(|| Error::internal(format!("the autoencoder has no `{name}`")))
    };
    let weight = find("quant_conv.weight")?.broadcast_mul(&scale.reshape(((), 1, 1, 1))?)?;
    let bias = ((find("quant_conv.bias")? * &scale)? + shift)?;
    let old = find("post_quant_conv.weight")?;
    let moved = old
        .flatten_from(1)?
        .broadcast_mul(&mean.reshape((1, ()))?)?
        .sum(1)?;
    let post_bias = (find("post_quant_conv.bias")? + moved)?;
    let post = old.broadcast_mul(&deviation.reshape((1, (), 1, 1))?)?;
    for (name, tensor) in [
        ("quant_conv.weight", weight),
        ("quant_conv.bias", bias),
        ("post_quant_conv.weight", post),
        ("post_quant_conv.bias", post_bias),
    ] {
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(tensors)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug_nn::testing::{close, random};

    #[test]
    fn channels_of_noise_are_named() {
        assert_eq!(dead_channels(&[0.1, 0.5]), None);
        let warning = dead_channels(&[0.1, 0.98, 0.71]).unwrap();
        assert!(
            warning.contains("2 of 3 latent channels: 1 (0.98), 2 (0.71)"),
            "{warning}"
        );
    }

    #[test]
    fn latents_are_shifted_and_scaled_and_images_stay() {
        let config = architecture(&[8, 8], 1, 4, false, 16);
        let mut params = Params::new(&Device::Cpu, 1);
        let plain = Autoencoder::new(params.root(), &config).unwrap();
        let tensors: BTreeMap<String, Tensor> = params
            .all()
            .map(|(name, var)| (name.to_owned(), var.as_detached_tensor()))
            .collect();
        let (means, deviations) = ([0.5, -1.0, 2.0, 0.0], [2.0, 0.5, 1.0, 3.0]);
        let scaled = normalised(tensors, &means, &deviations).unwrap();
        let mut frozen = Params::frozen(&Device::Cpu, scaled.into_iter().collect());
        let scaled = Autoencoder::new(frozen.root(), &config).unwrap();
        let x = random("x", &[1, 3, 16, 16]);
        let (a, b) = (plain.encode(&x).unwrap(), scaled.encode(&x).unwrap());
        let row = |values: [f64; 4]| {
            let values = values.map(|v| v as f32);
            Tensor::new(&values, &Device::Cpu)
                .unwrap()
                .reshape((1, 4, 1, 1))
                .unwrap()
        };
        let expected = a.mean.broadcast_sub(&row(means)).unwrap();
        let expected = expected.broadcast_div(&row(deviations)).unwrap();
        close(&b.mean, &expected, 1e-5);
        let narrower = a
            .logvar
            .broadcast_sub(&(row(deviations).log().unwrap() * 2.0).unwrap());
        close(&b.logvar, &narrower.unwrap(), 1e-5);
        close(
            &scaled.decode(&b.mean).unwrap(),
            &plain.decode(&a.mean).unwrap(),
            1e-5,
        );
    }
}
