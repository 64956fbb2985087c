//! The training of the denoising network: pictures with holes, their texts, noise, and the loss
//! (Eq. 7).

use super::{
    holes::inside,
    objective::{Noisy, Objective},
    options::Training,
    prompts::Prompts,
    store::Store,
    views::{View, Views},
};
use crate::{
    picture::latent_mask,
    text::{Embedding, TextEncoders},
};
use candle_core::{DType, Device, Tensor};
use diffaug::{BoxDataset, Dataset, Error, Reporter, Result, Sample, rng};
use diffaug_models::{Moments, Vae};
use diffaug_nn::{
    diffusion::{
        Added, UNet,
        scheduler::{NoiseSchedule, Prediction},
    },
    fit::Learner,
    noise,
    params::Params,
    precision::Precision,
};
use rand::RngExt;

/// Where the texts of training go.
pub enum Texts {
    /// The encoders stay as they are; embeddings are kept on disk.
    Frozen(TextEncoders),
    /// The encoders learn, too.
    Trained(TextEncoders),
}

/// A denoising network in training.
pub struct Denoiser<'a> {
    /// What is trained: the network, its adapters, perhaps the text encoders.
    pub params: Params,
    /// The network.
    pub unet: UNet,
    /// Channels that it takes.
    pub channels: usize,
    /// Whether it wants a pooled text and sizes.
    pub added: bool,
    /// Whether a text that is left out is zeros, not the embedding of an empty text.
    pub force_zeros: bool,
    /// Texts to embeddings.
    pub texts: Texts,
    /// Pixels to latents; stays as it is.
    pub vae: Vae,
    /// The noise.
    pub schedule: NoiseSchedule,
    /// What the network predicts.
    pub prediction: Prediction,
    /// Pictures to views.
    pub views: Views,
    /// Samples to texts.
    pub prompts: Prompts<'a>,
    /// How to train.
    pub training: Training,
    /// What is kept on disk.
    pub store: Store,
    /// All randomness.
    pub seed: u64,
}

/// A batch, ready for the network.
pub struct Batch {
    /// Clean latents, `[n, channels, h, w]`.
    z0: Tensor,
    /// Those of the pictures with their holes cut out.
    masked: Tensor,
    /// The holes, `[n, 1, h, w]`.
    mask: Tensor,
    /// Noise of the shape of `z0`.
    noise: Tensor,
    /// Timesteps.
    t: Vec<u32>,
    /// Texts, one for each.
    texts: Vec<String>,
    /// Their embeddings, where the encoders do not learn.
    embedding: Option<Embedding>,
    /// Height and width in pixels.
    size: (usize, usize),
}

/// A view with its hole, before it is put into a batch.
struct Picture {
    z0: Tensor,
    masked: Tensor,
    mask: Tensor,
    text: String,
    size: (usize, usize),
}

/// The timesteps of validation, as shares of all.
const LEVELS: [f64; 5] = [0.1, 0.3, 0.5, 0.7, 0.9];

impl Denoiser<'_> {
    fn device(&self) -> &Device {
        self.params.device()
    }

    /// The picture of a view with `hole` cut out; `key` tells the draws of its latents apart.
    fn picture(
        &self,
        sample: &Sample,
        (view, index): (&View, u32),
        hole: &[bool],
        text: String,
        key: u64,
    ) -> Result<Picture> {
        let (_, _, height, width) = view.pixels.dims4()?;
        let pixels = view.pixels.to_device(self.device())?;
        let values: Vec<f32> = hole.iter().map(|h| f32::from(u8::from(*h))).collect();
        let hole = Tensor::from_vec(values, (1, 1, height, width), &Device::Cpu)?;
        let mask = latent_mask(&hole, self.vae.factor())?.to_device(self.device())?;
        let hole = hole.to_device(self.device())?;
        let whole = self.kept_moments(sample, index, &pixels)?;
        let kept = pixels.broadcast_mul(&hole.affine(-1.0, 1.0)?)?;
        let cut = self.vae.moments(&kept)?;
        Ok(Picture {
            z0: self.latent(&whole, key, 0)?,
            masked: self.latent(&cut, key, 1)?,
            mask,
            text,
            size: (height, width),
        })
    }

    fn latent(&self, moments: &Moments, key: u64, which: u64) -> Result<Tensor> {
        self.vae.latent(moments, |shape| {
            let values = noise::normal(key, "posterior", which, shape.iter().product());
            Tensor::from_vec(values, shape, self.device())
        })
    }

    /// The moments of a view, from disk where they are.
    fn kept_moments(&self, sample: &Sample, index: u32, pixels: &Tensor) -> Result<Moments> {
        let key = format!("view/{index}/{}", sample.id);
        let mut kept = self.store.get(&key, self.device(), || {
            let Moments { mean, logvar } = self.vae.moments(pixels)?;
            let logvar = logvar.map(|logvar| ("logvar", logvar));
            Ok([("mean", mean)].into_iter().chain(logvar).collect())
        })?;
        let mean = kept.remove("mean");
        Ok(Moments {
            mean: mean.ok_or_else(|| Error::internal("kept moments without a mean"))?,
            logvar: kept.remove("logvar"),
        })
    }

    /// Samples with chance views and holes.
    fn training_pictures(&self, samples: &[Sample], batch: u64) -> Result<Vec<Picture>> {
        let mut views = Vec::with_capacity(samples.len());
        for (i, sample) in samples.iter().enumerate() {
            let index = self.draw_index(batch, i);
            let mut rng = rng::stream(self.seed, "view of a batch", index);
            let view = rng.random_range(0..self.views.count);
            views.push((self.views.view(sample, view)?, view));
        }
        let pairs = samples.iter().zip(&views).enumerate();
        pairs
            .map(|(i, (sample, (view, index)))| {
                let draw = self.draw_index(batch, i);
                let mut rng = rng::stream(self.seed, "hole", draw);
                let other = &views[(i + 1) % views.len()].0;
                let holes = &self.training.holes;
                let hole = holes.draw(view.mask.view(), other.mask.view(), &mut rng);
                let shown = shows_lesion(view, &hole);
                let text = self.prompts.draw(sample, shown, draw)?;
                let key = rng::derive(self.seed, "picture", &draw.to_string());
                self.picture(sample, (view, *index), &hole, text, key)
            })
            .collect()
    }

    fn draw_index(&self, batch: u64, place: usize) -> u64 {
        batch * self.training.batch as u64 + place as u64
    }

    fn batch(&self, pictures: Vec<Picture>, noise: Vec<f32>, t: Vec<u32>) -> Result<Batch> {
        let Some(size) = pictures.first().map(|picture| picture.size) else {
            return Err(Error::internal("a batch without pictures"));
        };
        if let Some(odd) = pictures.iter().find(|picture| picture.size != size) {
            let ((h, w), (height, width)) = (odd.size, size);
            return Err(Error::data(format!(
                "training pictures are {width}x{height} and {w}x{h}: set `images.size`, or `window` and `resolution` of the generator"
            )));
        }
        let join = |of: fn(&Picture) -> &Tensor| {
            let parts: Vec<&Tensor> = pictures.iter().map(of).collect();
            Tensor::cat(&parts, 0)
        };
        let z0 = join(|picture| &picture.z0)?;
        let texts: Vec<String> = pictures
            .iter()
            .map(|picture| picture.text.clone())
            .collect();
        let embedding = match &self.texts {
            Texts::Frozen(encoders) => Some(self.embed(encoders, &texts)?),
            Texts::Trained(_) => None,
        };
        Ok(Batch {
            noise: Tensor::from_vec(noise, z0.shape(), self.device())?,
            masked: join(|picture| &picture.masked)?,
            mask: join(|picture| &picture.mask)?,
            z0,
            t,
            texts,
            embedding,
            size,
        })
    }

    /// Embeddings of texts by encoders that stay as they are.
    fn embed(&self, encoders: &TextEncoders, texts: &[String]) -> Result<Embedding> {
        let one = |text: &String| {
            if text.is_empty() && self.force_zeros {
                return encoders.zeros();
            }
            let mut kept = self.store.get(&format!("text/{text}"), self.device(), || {
                let Embedding { context, pooled } = encoders.encode(text)?;
                let pooled = pooled.map(|pooled| ("pooled", pooled));
                Ok([("context", context)].into_iter().chain(pooled).collect())
            })?;
            let context = kept.remove("context");
            Ok(Embedding {
                context: context.ok_or_else(|| Error::internal("a kept text without context"))?,
                pooled: kept.remove("pooled"),
            })
        };
        let all = texts.iter().map(one).collect::<Result<Vec<_>>>()?;
        let contexts: Vec<&Tensor> = all.iter().map(|one| &one.context).collect();
        let pooled: Option<Vec<&Tensor>> = all.iter().map(|one| one.pooled.as_ref()).collect();
        Ok(Embedding {
            context: Tensor::cat(&contexts, 0)?,
            pooled: pooled.map(|parts| Tensor::cat(&parts, 0)).transpose()?,
        })
    }

    /// The embeddings of a batch; with gradients where the encoders learn.
    fn embedding(&self, batch: &Batch) -> Result<Embedding> {
        match (&self.texts, &batch.embedding) {
            (_, Some(embedding)) => Ok(embedding.clone()),
            (Texts::Trained(encoders) | Texts::Frozen(encoders), None) => {
                let texts: Vec<&str> = batch.texts.iter().map(String::as_str).collect();
                let Embedding { context, pooled } = encoders.forward(&texts)?;
                if !self.force_zeros {
                    return Ok(Embedding { context, pooled });
                }
                // Texts that were left out count nothing.
                let said = texts
                    .iter()
                    .map(|text| f32::from(u8::from(!text.is_empty())));
                let said =
                    Tensor::from_vec(said.collect::<Vec<_>>(), (texts.len(), 1), self.device())?;
                Ok(Embedding {
                    context: context.broadcast_mul(&said.unsqueeze(2)?)?,
                    pooled: pooled
                        .map(|pooled| pooled.broadcast_mul(&said))
                        .transpose()?,
                })
            }
        }
    }

    /// What the network makes of a batch, and the noisy latents that it saw, both f32.
    fn forward(&self, batch: &Batch) -> Result<(Tensor, Tensor)> {
        let precision = self.precision();
        let noisy = self.schedule.add_noise(&batch.z0, &batch.noise, &batch.t)?;
        let input = match self.channels == noisy.dim(1)? {
            true => noisy.clone(),
            false => Tensor::cat(&[&noisy, &batch.mask, &batch.masked], 1)?,
        };
        let t: Vec<f32> = batch.t.iter().map(|t| *t as f32).collect();
        let count = t.len();
        let t = Tensor::from_vec(t, count, self.device())?;
        let Embedding { context, pooled } = self.embedding(batch)?;
        let (height, width) = (batch.size.0 as f32, batch.size.1 as f32);
        let sizes = Tensor::new(&[[height, width, 0.0, 0.0, height, width]], self.device())?;
        let sizes = sizes.repeat((count, 1))?;
        let pooled = pooled.map(|pooled| precision.cast(&pooled)).transpose()?;
        let added = match (&pooled, self.added) {
            (Some(text), true) => Some(Added {
                text,
                sizes: &sizes,
            }),
            _ => None,
        };
        let input = precision.cast(&input)?;
        let output = self
            .unet
            .forward(&input, &t, &precision.cast(&context)?, added)?;
        Ok((output.to_dtype(DType::F32)?, noisy))
    }

    /// The loss of each picture, `[n]`.
    fn losses(&self, batch: &Batch) -> Result<Tensor> {
        let (output, noisy) = self.forward(batch)?;
        let batch = Noisy {
            z0: &batch.z0,
            noise: &batch.noise,
            noisy: &noisy,
            mask: &batch.mask,
            t: &batch.t,
        };
        self.objective().losses(&batch, &output)
    }

    fn objective(&self) -> Objective<'_> {
        Objective {
            training: &self.training,
            prediction: self.prediction,
            schedule: &self.schedule,
        }
    }
}

/// Whether most of the lesion lies in the hole, and so has to be painted.
fn shows_lesion(view: &View, hole: &[bool]) -> bool {
    let lesion = inside(view.mask.view());
    let all = lesion.iter().filter(|inside| **inside).count();
    let cut = lesion
        .iter()
        .zip(hole)
        .filter(|(inside, hole)| **inside && **hole);
    2 * cut.count() > all
}

/// Noise for a batch `[n, channels, area]`: independent, and with `offset` of it equal over a
/// channel of a picture.
fn offset_noise(
    seed: u64,
    batch: u64,
    [count, channels, area]: [usize; 3],
    offset: f64,
) -> Vec<f32> {
    let mut values = noise::normal(seed, "noise", batch, count * channels * area);
    if offset > 0.0 {
        let shifts = noise::normal(seed, "noise offset", batch, count * channels);
        for (plane, shift) in values.chunks_exact_mut(area).zip(shifts) {
            plane
                .iter_mut()
                .for_each(|value| *value += offset as f32 * shift);
        }
    }
    values
}

impl Learner for Denoiser<'_> {
    type Batch = Batch;

    fn params(&self) -> &Params {
        &self.params
    }

    fn prepare(&self, samples: Vec<Sample>, batch: u64) -> Result<Batch> {
        let pictures = self.training_pictures(&samples, batch)?;
        let steps = self.schedule.alpha_bars().len() as u32;
        let t = (0..samples.len()).map(|i| {
            let mut rng = rng::stream(self.seed, "timestep", self.draw_index(batch, i));
            rng.random_range(0..steps)
        });
        let (channels, area) = match pictures.first() {
            Some(first) => (first.z0.dim(1)?, first.z0.elem_count() / first.z0.dim(1)?),
            None => (0, 0),
        };
        let shape = [samples.len(), channels, area];
        let noise = offset_noise(self.seed, batch, shape, self.training.noise_offset);
        self.batch(pictures, noise, t.collect())
    }

    fn loss(&self, batch: Batch, _: u64) -> Result<Tensor> {
        let losses = self.losses(&batch)?;
        let weights = self.objective().weights(&batch.t, self.device())?;
        Ok((losses * weights)?.mean_all()?)
    }

    fn score(&self, validation: &BoxDataset, reporter: &Reporter<'_>) -> Result<f64> {
        let count = validation.items()?.len() as u64;
        let steps = self.schedule.alpha_bars().len() as f64;
        let mut total = 0.0;
        for start in (0..count).step_by(self.training.batch) {
            if reporter.cancelled() {
                return Err(Error::cancelled());
            }
            let (mut pictures, mut t) = (Vec::new(), Vec::new());
            for index in start..(start + self.training.batch as u64).min(count) {
                let sample = validation.sample(index)?;
                // Views of their own, for a validation picture may be called as a training one.
                let view = self.views.view(&sample, 0)?;
                let hole = inside(view.mask.view());
                let text = self.prompts.of(&sample, true, index)?;
                let key = rng::derive(self.seed, "validation", &index.to_string());
                pictures.push(self.picture(&sample, (&view, 0), &hole, text, key)?);
                t.push((steps * LEVELS[index as usize % LEVELS.len()]) as u32);
            }
            let each = pictures.first().map_or(0, |first| first.z0.elem_count());
            let noise = noise::normal(self.seed, "validation noise", start, each * pictures.len());
            let batch = self.batch(pictures, noise, t)?;
            total += f64::from(
                self.losses(&batch)?
                    .detach()
                    .sum_all()?
                    .to_scalar::<f32>()?,
            );
        }
        Ok(-total / count as f64)
    }

    fn metric(&self) -> &str {
        "minus the validation loss"
    }

    fn precision(&self) -> Precision {
        self.training.precision
    }
}
