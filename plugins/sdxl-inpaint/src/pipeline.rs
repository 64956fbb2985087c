//! From pixels, a mask and texts to what is painted under the mask: the inpainting pipelines of
//! diffusers (`StableDiffusionXLInpaintPipeline`, `StableDiffusionInpaintPipeline`), draw by draw.

use crate::{
    autoencoder::Autoencoder,
    noise::Source,
    options::Noise,
    picture::latent_mask,
    stages::{self, Seen, Stage},
    text::{Embedding, TextEncoders},
};
use candle_core::{DType, Device, Tensor};
use diffaug::{Error, Result};
use diffaug_nn::diffusion::{
    Added, CachedTextUNet, UNet,
    scheduler::{Sampler, SchedulerConfig},
};

/// A loaded model.
pub struct Pipeline {
    /// Text to embedding.
    pub text: TextEncoders,
    /// Pixels to latents and back.
    pub vae: Autoencoder,
    /// What removes noise.
    pub unet: UNet,
    /// Channels that it takes: 9 for inpainting, 4 where what is kept is put in at every step.
    pub channels: usize,
    /// Whether it wants a pooled text and sizes.
    pub added: bool,
    /// Whether no negative text means zeros, not the embedding of an empty text.
    pub force_zeros: bool,
    /// The sampler.
    pub scheduler: SchedulerConfig,
    /// Where all of it lives.
    pub device: Device,
    /// The type that the network computes in.
    pub dtype: DType,
}

/// How to paint.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Steps of the sampler.
    pub steps: usize,
    /// Guidance scale.
    pub guidance: f64,
    /// How far the contrast that guidance exaggerates is brought back.
    pub rescale: f64,
    /// How much of the source is forgotten.
    pub strength: f64,
    /// Sizes that SDXL is told: original height and width, top and left of the crop, target
    /// height and width. `None` stands for the painted size.
    pub original: Option<[u32; 2]>,
    /// See `original`.
    pub crop: [u32; 2],
    /// See `original`.
    pub target: Option<[u32; 2]>,
    /// Where noise comes from.
    pub noise: Noise,
}

/// One picture to be painted.
pub struct Scene<'a> {
    /// What it is called in messages.
    pub name: String,
    /// `[1, 3, height, width]`, values -1 to 1.
    pub pixels: Tensor,
    /// `[1, 1, height, width]`, 1 where to paint.
    pub hole: Tensor,
    /// What to paint.
    pub prompt: &'a str,
    /// What to avoid; empty for nothing.
    pub negative: &'a str,
    /// All randomness.
    pub seed: u64,
}

/// Is given the places of scenes and previews of them, `[1, 3, height, width]`, and says for each
/// whether to go on.
pub type Look<'a> = dyn FnMut(&[usize], &[Tensor]) -> Result<Vec<bool>> + 'a;

/// A look at what is being painted.
pub struct Watch<'a> {
    /// After which share of the steps.
    pub share: f64,
    /// What looks.
    pub look: &'a mut Look<'a>,
}

/// What the network is told besides the noisy latent, for a batch.
struct Condition {
    /// The network, told the texts.
    unet: CachedTextUNet,
    /// The texts, `[batch, tokens, width]`; with guidance the negative ones come first.
    context: Tensor,
    pooled: Option<Tensor>,
    sizes: Tensor,
    /// Mask and masked image, `[batch, 5, h, w]`, for networks of 9 channels.
    inpaint: Option<Tensor>,
    guided: bool,
}

/// The latents that painting begins with.
struct Start {
    latents: Tensor,
    noise: Tensor,
    /// Of the source, where they are needed.
    image: Option<Tensor>,
    /// Of the source with the hole cut out, where they are needed.
    masked: Option<Tensor>,
    /// At the size of the latents.
    mask: Tensor,
}

impl Pipeline {
    /// Paints scenes of one size; the results have their shape, values about -1 to 1. `progress` is
    /// called after every step with the number of steps done and their total. Scenes that `watch`
    /// gives up are `None`.
    ///
    /// # Errors
    /// When the scenes do not fit each other or the model, those of the device, and what `progress`
    /// returns.
    pub fn paint(
        &self,
        scenes: &[Scene<'_>],
        style: &Style,
        mut watch: Option<Watch<'_>>,
        mut progress: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Vec<Option<Tensor>>> {
        if style.strength == 0.0 {
            return self.reconstruct(scenes);
        }
        let mut sampler = Sampler::new(&self.scheduler, style.steps)?;
        let total = sampler.timesteps().len();
        // One step is left, however small the strength and few the steps.
        let first = sampler
            .start_at(style.strength)
            .min(total.saturating_sub(1));
        sampler.begin(first);
        let mut seen = Seen::default();
        let mut sources: Vec<Source> = scenes
            .iter()
            .map(|scene| Source::new(style.noise, scene.seed))
            .collect();
        let mut start = self.start(scenes, &mut sources, &sampler, (first, style.strength))?;
        for latents in start.image.iter().chain(&start.masked) {
            seen.note((Stage::Encoded, 0), latents)?;
        }
        let mut condition = self.condition(scenes, style, &start, &mut seen)?;
        let pause = watch
            .as_ref()
            .map(|watch| first + ((total - first) as f64 * watch.share).round() as usize)
            .filter(|pause| (first + 1..total).contains(pause));
        // The scenes that are still being painted.
        let mut places: Vec<usize> = (0..scenes.len()).collect();
        let mut x = start.latents.clone();
        for i in first..total {
            let predicted = self.predict(&sampler, i, &x, &condition, style)?;
            let shape = [&[1], &x.dims()[1..]].concat();
            let draw = || {
                let each = sources.iter_mut().map(|s| s.draw(&shape, &self.device));
                Tensor::cat(&each.collect::<candle_core::Result<Vec<_>>>()?, 0)
            };
            let step = sampler.step(&predicted, i, &x, draw)?;
            x = step.x;
            if let (4, Some(image)) = (self.channels, &start.image) {
                let kept = match i + 1 < total {
                    true => sampler.noised(image, &start.noise, i + 1)?,
                    false => image.clone(),
                };
                x = blend(&start.mask, &x, &kept)?;
            }
            seen.note((Stage::Step(i + 1 - first, total - first), 0), &x)?;
            progress(i + 1 - first, total - first)?;
            if let (true, Some(watch)) = (pause == Some(i + 1), &mut watch) {
                let previews = self.decoded(&step.z0)?;
                for (row, preview) in previews.iter().enumerate() {
                    seen.note((Stage::Preview(i + 1 - first, total - first), row), preview)?;
                }
                stages::check(&mut seen, |row| name(scenes, &places, row))?;
                let kept = look(watch, &places, &previews)?;
                if kept.len() < places.len() {
                    places = kept.iter().map(|at| places[*at]).collect();
                    sources = retain(sources, &kept);
                    if kept.is_empty() {
                        break;
                    }
                    let rows = rows(&kept, &self.device)?;
                    sampler.keep(&rows)?;
                    x = x.index_select(&rows, 0)?;
                    start = start.keep(&rows)?;
                    condition = self.narrowed(condition, &rows)?;
                }
            }
        }
        let decoded = match places.is_empty() {
            true => Vec::new(),
            false => self.decoded(&x)?,
        };
        for (row, pixels) in decoded.iter().enumerate() {
            seen.note((Stage::Pixels(total - first), row), pixels)?;
        }
        stages::check(&mut seen, |row| name(scenes, &places, row))?;
        let mut painted: Vec<Option<Tensor>> = scenes.iter().map(|_| None).collect();
        for (place, pixels) in places.into_iter().zip(decoded) {
            painted[place] = Some(pixels);
        }
        Ok(painted)
    }

    /// The scenes as the autoencoder gives them back, from their likeliest latents.
    fn reconstruct(&self, scenes: &[Scene<'_>]) -> Result<Vec<Option<Tensor>>> {
        let mut seen = Seen::default();
        let mut painted = Vec::with_capacity(scenes.len());
        for (place, scene) in scenes.iter().enumerate() {
            let latents = self.vae.mode(&self.vae.moments(&scene.pixels)?)?;
            seen.note((Stage::Encoded, place), &latents)?;
            let pixels = self.vae.decode(&latents)?;
            seen.note((Stage::Pixels(0), place), &pixels)?;
            painted.push(Some(pixels));
        }
        stages::check(&mut seen, |place| {
            scenes
                .get(place)
                .map(|scene| scene.name.clone())
                .unwrap_or_default()
        })?;
        Ok(painted)
    }

    /// The pixels of each row of latents.
    fn decoded(&self, latents: &Tensor) -> Result<Vec<Tensor>> {
        let rows = (0..latents.dim(0)?).map(|row| latents.narrow(0, row, 1)?.contiguous());
        rows.map(|latent| self.vae.decode(&latent?)).collect()
    }

    /// The condition of those scenes whose rows are kept.
    fn narrowed(&self, condition: Condition, rows: &Tensor) -> Result<Condition> {
        let both = match condition.guided {
            true => {
                let count = (condition.context.dim(0)? / 2) as f64;
                let positive = (rows.to_dtype(DType::F64)? + count)?.to_dtype(DType::U32)?;
                Tensor::cat(&[rows, &positive], 0)?
            }
            false => rows.clone(),
        };
        let some =
            |x: Option<Tensor>, rows: &Tensor| x.map(|x| x.index_select(rows, 0)).transpose();
        let context = condition.context.index_select(&both, 0)?;
        Ok(Condition {
            unet: self.unet.cache_text(&context)?,
            context,
            pooled: some(condition.pooled, &both)?,
            sizes: condition.sizes.index_select(&both, 0)?,
            inpaint: some(condition.inpaint, rows)?,
            guided: condition.guided,
        })
    }

    /// Draws noise and encodes the source, each scene by itself, in the order of diffusers: the
    /// source's latents, the noise, the masked source's latents.
    fn start(
        &self,
        scenes: &[Scene<'_>],
        sources: &mut [Source],
        sampler: &Sampler,
        (first, strength): (usize, f64),
    ) -> Result<Start> {
        // A strength of 1 begins with noise alone; below, with the source under noise.
        let pure = strength == 1.0;
        let factor = self.vae.factor();
        let (mut images, mut noises) = (Vec::new(), Vec::new());
        let (mut maskeds, mut masks) = (Vec::new(), Vec::new());
        for (scene, source) in scenes.iter().zip(sources) {
            let (_, _, height, width) = scene.pixels.dims4()?;
            let shape = [1, self.vae.channels(), height / factor, width / factor];
            if !pure || self.channels == 4 {
                images.push(self.vae.encode(&scene.pixels, source)?);
            }
            noises.push(source.draw(&shape, &self.device)?);
            // diffusers encodes the masked image for every network, and so draws for it.
            let kept = scene.hole.affine(-1.0, 1.0)?;
            let masked = scene.pixels.broadcast_mul(&kept)?;
            maskeds.push(self.vae.encode(&masked, source)?);
            masks.push(latent_mask(&scene.hole, factor)?);
        }
        let join = |parts: &[Tensor]| match parts {
            [] => Ok(None),
            parts => Tensor::cat(parts, 0).map(Some),
        };
        let noise = Tensor::cat(&noises, 0)?;
        let image = join(&images)?;
        let latents = match &image {
            Some(image) if !pure => sampler.noised(image, &noise, first)?,
            _ => (&noise * sampler.init_noise_sigma())?,
        };
        Ok(Start {
            latents,
            noise,
            image,
            masked: join(&maskeds)?.filter(|_| self.channels != 4),
            mask: Tensor::cat(&masks, 0)?,
        })
    }

    fn condition(
        &self,
        scenes: &[Scene<'_>],
        style: &Style,
        start: &Start,
        seen: &mut Seen,
    ) -> Result<Condition> {
        let guided = style.guidance > 1.0;
        // Without guidance at all nothing is said: what the empty text stands for.
        let positive = scenes.iter().map(|scene| match style.guidance == 0.0 {
            true if self.force_zeros => self.text.zeros(),
            true => self.text.encode(""),
            false => self.text.encode(scene.prompt),
        });
        let positive = positive.collect::<Result<Vec<_>>>()?;
        let negative = scenes.iter().filter(|_| guided).map(|scene| {
            match self.force_zeros && scene.negative.is_empty() {
                true => self.text.zeros(),
                false => self.text.encode(scene.negative),
            }
        });
        let all: Vec<Embedding> = negative
            .chain(positive.into_iter().map(Ok))
            .collect::<Result<_>>()?;
        for (row, one) in all.iter().enumerate() {
            self.note_text(one, row % scenes.len(), seen)?;
        }
        let contexts: Vec<&Tensor> = all.iter().map(|one| &one.context).collect();
        let pooled: Option<Vec<&Tensor>> = all.iter().map(|one| one.pooled.as_ref()).collect();
        let pooled = match pooled {
            Some(pooled) if self.added => Some(Tensor::cat(&pooled, 0)?.to_dtype(self.dtype)?),
            None if self.added => {
                return Err(Error::model(
                    "the denoising network wants a pooled text, but the text encoder gives none",
                ));
            }
            _ => None,
        };
        let inpaint = match &start.masked {
            Some(masked) => Some(Tensor::cat(&[&start.mask, masked], 1)?),
            None => None,
        };
        let context = Tensor::cat(&contexts, 0)?.to_dtype(self.dtype)?;
        Ok(Condition {
            unet: self.unet.cache_text(&context)?,
            context,
            pooled,
            sizes: self.sizes(scenes, style, all.len())?,
            inpaint,
            guided,
        })
    }

    /// Notes what each text encoder made of a text.
    fn note_text(&self, text: &Embedding, place: usize, seen: &mut Seen) -> Result<()> {
        let mut from = 0;
        for (which, encoder) in self.text.encoders().enumerate() {
            let width = encoder.clip().config().hidden_size;
            let own = text.context.narrow(2, from, width)?;
            seen.note((Stage::Text(which + 1), place), &own)?;
            from += width;
            // The pooled text is the last one's.
            if let (true, Some(pooled)) = (from == text.context.dim(2)?, &text.pooled) {
                seen.note((Stage::Text(which + 1), place), pooled)?;
            }
        }
        Ok(())
    }

    /// `[count, 6]`: original height and width, top and left, target height and width.
    fn sizes(&self, scenes: &[Scene<'_>], style: &Style, count: usize) -> Result<Tensor> {
        let Some(scene) = scenes.first() else {
            return Err(Error::internal("a batch without scenes"));
        };
        let (_, _, height, width) = scene.pixels.dims4()?;
        let own = [height as u32, width as u32];
        let (original, target) = (style.original.unwrap_or(own), style.target.unwrap_or(own));
        let sizes: Vec<f32> = [original, style.crop, target]
            .concat()
            .into_iter()
            .map(|side| side as f32)
            .collect();
        let sizes = Tensor::from_vec(sizes, (1, 6), &self.device)?;
        Ok(sizes.repeat((count, 1))?)
    }

    /// What the network says of `x` at step `i`, guided.
    fn predict(
        &self,
        sampler: &Sampler,
        i: usize,
        x: &Tensor,
        condition: &Condition,
        style: &Style,
    ) -> Result<Tensor> {
        let mut input = sampler.scale_input(x, i)?;
        if let Some(inpaint) = &condition.inpaint {
            input = Tensor::cat(&[&input, inpaint], 1)?;
        }
        if condition.guided {
            input = Tensor::cat(&[&input, &input], 0)?;
        }
        let input = input.to_dtype(self.dtype)?;
        let t = Tensor::new(&[sampler.timesteps()[i] as f32], &self.device)?;
        let added = condition.pooled.as_ref().map(|text| Added {
            text,
            sizes: &condition.sizes,
        });
        let predicted = condition.unet.forward(&input, &t, added)?;
        let predicted = predicted.to_dtype(DType::F32)?;
        match condition.guided {
            true => guide(&predicted, style.guidance, style.rescale),
            false => Ok(predicted),
        }
    }
}

impl Start {
    /// Of those scenes whose rows are kept.
    fn keep(self, rows: &Tensor) -> candle_core::Result<Self> {
        let some = |x: Option<Tensor>| x.map(|x| x.index_select(rows, 0)).transpose();
        Ok(Start {
            latents: self.latents.index_select(rows, 0)?,
            noise: self.noise.index_select(rows, 0)?,
            image: some(self.image)?,
            masked: some(self.masked)?,
            mask: self.mask.index_select(rows, 0)?,
        })
    }
}

/// The places among `previews` that are worth going on with.
fn look(watch: &mut Watch<'_>, places: &[usize], previews: &[Tensor]) -> Result<Vec<usize>> {
    let goes_on = (watch.look)(places, previews)?;
    if goes_on.len() != places.len() {
        return Err(Error::internal(format!(
            "{} answers to {} previews",
            goes_on.len(),
            places.len()
        )));
    }
    Ok((0..places.len()).filter(|row| goes_on[*row]).collect())
}

/// What the scene of a row is called; `places` are those of the rows among `scenes`.
fn name(scenes: &[Scene<'_>], places: &[usize], row: usize) -> String {
    let scene = places.get(row).and_then(|place| scenes.get(*place));
    scene.map(|scene| scene.name.clone()).unwrap_or_default()
}

/// Rows as an index.
fn rows(kept: &[usize], device: &Device) -> candle_core::Result<Tensor> {
    let rows: Vec<u32> = kept.iter().map(|row| *row as u32).collect();
    Tensor::from_vec(rows, kept.len(), device)
}

/// Those of `all` whose places are kept.
fn retain<T>(all: Vec<T>, kept: &[usize]) -> Vec<T> {
    let all = all.into_iter().enumerate();
    all.filter(|(place, _)| kept.contains(place))
        .map(|(_, one)| one)
        .collect()
}

/// Eq. 8: `both` holds the predictions for the negative texts, then those for the positive ones.
fn guide(both: &Tensor, scale: f64, rescale: f64) -> Result<Tensor> {
    let count = both.dim(0)? / 2;
    let (negative, positive) = (both.narrow(0, 0, count)?, both.narrow(0, count, count)?);
    let guided = (&negative + ((&positive - &negative)? * scale)?)?;
    if rescale == 0.0 {
        return Ok(guided);
    }
    // Lin et al. (2023), section 3.4: the deviation of the text's prediction is kept.
    let factor = deviations(&positive)?.div(&deviations(&guided)?)?;
    let calm = guided.broadcast_mul(&factor)?;
    Ok(((calm * rescale)? + (guided * (1.0 - rescale))?)?)
}

/// Standard deviations over all but the first dimension, `[n, 1, 1, 1]`.
fn deviations(x: &Tensor) -> Result<Tensor> {
    let rows = x.flatten_from(1)?;
    let count = rows.dim(1)? as f64;
    let centred = rows.broadcast_sub(&rows.mean_keepdim(1)?)?;
    let variance = (centred.sqr()?.sum_keepdim(1)? / (count - 1.0))?;
    Ok(variance.sqrt()?.reshape(((), 1, 1, 1))?)
}

/// `inside` under the mask, `outside` elsewhere.
fn blend(mask: &Tensor, inside: &Tensor, outside: &Tensor) -> Result<Tensor> {
    let kept = mask.affine(-1.0, 1.0)?;
    Ok((outside.broadcast_mul(&kept)? + inside.broadcast_mul(mask)?)?)
}
