//! The segmenter's networks and what they compute: a condition from the image (Eq. 9 and 13), and a
//! mask's latent from noise and condition (Eq. 11).

use crate::{
    denoiser::{Denoiser, timesteps},
    description::{Description, TIMESTEPS},
    options::{Noise, Options, VisionInput},
};
use candle_core::{DType, Device, Tensor};
use diffaug::{Error, ErrorKind, Mask, Result, ResultExt, Segmentation, prelude::ImageRef, rng};
use diffaug_models::Vae;
use diffaug_nn::{
    batch,
    diffusion::{Encoder, scheduler::NoiseSchedule},
    finite::Witnesses,
    fit::WEIGHTS,
    layers::Conv2d,
    noise,
    ops::{self, Dropping},
    params::{Params, Scope},
    recompute, weights,
};
use rayon::prelude::*;
use std::{fmt, path::Path, sync::Arc};

/// The folder of a small autoencoder beside the weights that need it.
pub const VAE: &str = "vae";

/// The networks with their parameters.
pub struct Network {
    /// What they are.
    pub description: Description,
    /// What is trained.
    pub params: Params,
    /// The noise.
    pub schedule: NoiseSchedule,
    /// Pixels to latents and back; stays as it is.
    pub vae: Arc<Vae>,
    vision: Encoder,
    vision_out: Conv2d,
    fusion: Option<Conv2d>,
    denoiser: Denoiser,
}

/// An image as the networks see it.
pub struct Seen {
    /// Its frozen latent, `[n, latent, h, w]`, where that is looked at.
    pub latent: Option<Tensor>,
    /// Its pixels, -1 to 1, where the trainable encoder sees them.
    pub pixels: Option<Tensor>,
}

/// Where a value was made that may be no number.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Condition,
    /// Counted from 1, of so many.
    Step(usize, usize),
    Pixels,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stage::Condition => f.write_str("the condition that the encoders made of it"),
            Stage::Step(step, steps) => write!(f, "denoising step {step} of {steps}"),
            Stage::Pixels => f.write_str("the decoded masks"),
        }
    }
}

/// The networks that are trained.
pub struct Trained {
    vision: Encoder,
    vision_out: Conv2d,
    fusion: Option<Conv2d>,
    denoiser: Denoiser,
}

impl Trained {
    /// Those of `description`, in `root`.
    ///
    /// # Errors
    /// When the description contradicts itself, or a given tensor does not fit.
    pub fn new(mut root: Scope<'_>, description: &Description) -> candle_core::Result<Self> {
        let (features, latent) = (description.vision.features, description.latent);
        let mut scope = root.child("vision");
        let vision = Encoder::new(scope.child("encoder"), &description.encoder())?;
        let vision_out = Conv2d::new(scope.child("out"), 2 * latent, features, 1, true)?;
        let fusion = description
            .fused
            .then(|| Conv2d::new(root.child("fusion"), latent + features, latent, 1, true));
        Ok(Trained {
            vision,
            vision_out,
            fusion: fusion.transpose()?,
            denoiser: Denoiser::new(root.child("denoiser"), &description.denoiser)?,
        })
    }
}

impl Network {
    /// The networks of `description` in `params`, empty or with tensors given.
    ///
    /// # Errors
    /// When the description contradicts itself, or a given tensor does not fit.
    pub fn new(description: Description, mut params: Params, vae: Vae) -> Result<Self> {
        if (vae.factor(), vae.channels()) != (description.factor, description.latent) {
            return Err(Error::model(format!(
                "the autoencoder shrinks images by {} to {} channels, but the segmenter was made for {} and {}",
                vae.factor(),
                vae.channels(),
                description.factor,
                description.latent
            ))
            .at("vae"));
        }
        let schedule = description.noise.schedule()?;
        let built = Trained::new(params.root(), &description);
        let Trained {
            vision,
            vision_out,
            fusion,
            denoiser,
        } = built.or_error(ErrorKind::Model, || {
            "the networks of `latent-seg` cannot be built".to_owned()
        })?;
        Ok(Network {
            description,
            params,
            schedule,
            vae: Arc::new(vae),
            vision,
            vision_out,
            fusion,
            denoiser,
        })
    }

    /// The networks in a folder that training or conversion left, to answer and no more.
    ///
    /// # Errors
    /// When a file is missing or does not fit.
    pub fn load(folder: &Path, options: &Options, device: &Device) -> Result<Self> {
        let description = Description::read(folder)?;
        let vae = open_vae(folder, &description, options, device)?;
        let source = weights::Files::open(&[folder.join(WEIGHTS)])?;
        let source = weights::Cast::new(source, DType::F32);
        let network = Network::new(description, Params::from_source(device, source), vae)?;
        match network.params.left_over().first() {
            None => Ok(network),
            Some(left) => Err(Error::model(format!(
                "tensor `{left}` of `{}` is no part of the networks",
                folder.join(WEIGHTS).display()
            ))),
        }
    }

    /// Where the networks compute.
    pub fn device(&self) -> &Device {
        self.params.device()
    }

    /// Images as the networks see them.
    ///
    /// # Errors
    /// Those of the device.
    pub fn see(&self, images: &[ImageRef<'_>]) -> Result<Seen> {
        let frame = self.description.frame();
        let pixels = batch::images(images, frame, self.device())?.affine(2.0, -1.0)?;
        let of_pixels = self.description.vision.input == VisionInput::Pixel;
        let latent = match self.description.fused || !of_pixels {
            true => Some(self.vae.mode(&self.vae.moments(&pixels)?)?.detach()),
            false => None,
        };
        Ok(Seen {
            latent,
            pixels: of_pixels.then_some(pixels),
        })
    }

    /// What the denoising network is told of the images, `[n, _, h, w]` (Eq. 9 and 13).
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn condition(&self, seen: &Seen, dropping: Option<&Dropping>) -> Result<Tensor> {
        let absent = || Error::internal("the vision encoder has nothing to see");
        let input = match self.description.vision.input {
            VisionInput::Latent => seen.latent.as_ref(),
            VisionInput::Pixel => seen.pixels.as_ref(),
        };
        let input = input.ok_or_else(absent)?;
        let features = match dropping {
            Some(dropping) => self.vision.forward_dropping(input, dropping)?,
            None => self.vision.forward(input)?,
        };
        let features = self.vision_out.forward(&features)?;
        match &self.fusion {
            None => Ok(features),
            Some(fusion) => {
                let latent = seen.latent.as_ref().ok_or_else(absent)?;
                let latent = latent.to_dtype(features.dtype())?;
                Ok(fusion.forward(&Tensor::cat(&[&latent, &features], 1)?)?)
            }
        }
    }

    /// What the denoising network makes of noisy latents at the timesteps `t`, f32.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn predict(
        &self,
        noisy: &Tensor,
        condition: &Tensor,
        t: &[u32],
        dropping: Option<&Dropping>,
    ) -> Result<Tensor> {
        let noisy = noisy.to_dtype(condition.dtype())?;
        let input = Tensor::cat(&[&noisy, condition], 1)?;
        let output = self
            .denoiser
            .forward(&input, &timesteps(t, &input)?, dropping)?;
        Ok(output.to_dtype(DType::F32)?)
    }

    /// Masks' latents from `z`, noise at the last timestep, in `steps` steps: with one, the estimate
    /// of Eq. 11. `watch` is given the number of each step, from 1, and its estimate.
    ///
    /// # Errors
    /// When the shapes do not fit, and those of `watch`.
    pub fn denoise(
        &self,
        z: Tensor,
        condition: &Tensor,
        steps: usize,
        mut watch: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let (mut z, count) = (z, condition.dim(0)?);
        let prediction = self.description.prediction;
        let last = TIMESTEPS as usize - 1;
        for step in 0..steps {
            let t = vec![(last * (steps - step) / steps) as u32; count];
            let output = self.predict(&z, condition, &t, None)?;
            let clean = self.schedule.clean(prediction, &output, &z, &t)?;
            watch(step + 1, &clean)?;
            if step + 1 == steps {
                return Ok(clean);
            }
            let found = self.schedule.noise(prediction, &output, &z, &t)?;
            let next = vec![(last * (steps - step - 1) / steps) as u32; count];
            z = self.schedule.add_noise(&clean, &found, &next)?;
        }
        Ok(z)
    }

    /// How probable each class is at each pixel of the frame, `[n, classes, height, width]`, from
    /// masks' latents: the mean of the decoded channels. With `recompute` nothing of the decoder is kept for
    /// the backward pass.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn probabilities(&self, latents: &Tensor, recompute: bool) -> Result<Tensor> {
        let pixels = match recompute {
            false => self.decoded(latents)?,
            true => {
                let vae = self.vae.clone();
                recompute::checkpointed(&[&self.apart(latents)?], move |latents| {
                    vae.decode(&latents[0]).map_err(candle_core::Error::wrap)
                })?
            }
        };
        grey(&pixels, latents.dim(0)?)
    }

    /// The pixels of masks' latents, `[n * classes, 3, height, width]`.
    fn decoded(&self, latents: &Tensor) -> Result<Tensor> {
        self.vae.decode(&self.apart(latents)?)
    }

    /// Masks' latents `[n, classes * latent, h, w]` one by one, `[n * classes, latent, h, w]`, as the
    /// autoencoder has them.
    fn apart(&self, latents: &Tensor) -> Result<Tensor> {
        let (count, _, height, width) = latents.dims4()?;
        let classes = self.description.classes.len();
        let each = (count * classes, self.description.latent, height, width);
        Ok((latents.reshape(each)? / self.description.scale)?)
    }

    /// What the answer to an image begins with: it depends on the image and the seed alone.
    fn start(
        &self,
        image: ImageRef<'_>,
        shape: &[usize],
        options: &Options,
        seed: u64,
    ) -> Vec<f32> {
        let count = shape.iter().product();
        match options.noise {
            Noise::Zeros => vec![0.0; count],
            Noise::Seeded => {
                let key = image.fingerprint();
                noise::normal(rng::derive(seed, "image", &key), "mask", 0, count)
            }
        }
    }

    /// An answer for each image, of the image's size.
    ///
    /// # Errors
    /// When a value on the way to an answer is no number, and those of the device.
    pub fn segment(
        &self,
        images: &[ImageRef<'_>],
        options: &Options,
        seed: u64,
    ) -> Result<Vec<Segmentation>> {
        self.segment_from(0, images, options, seed)
    }

    /// [`Network::segment`] for images of which the first is number `first` of all.
    ///
    /// # Errors
    /// Those of [`Network::segment`], which name the number of the image.
    pub fn segment_from(
        &self,
        first: usize,
        images: &[ImageRef<'_>],
        options: &Options,
        seed: u64,
    ) -> Result<Vec<Segmentation>> {
        let mut seen = Witnesses::default();
        let condition = self.condition(&self.see(images)?, None)?;
        seen.note(Stage::Condition, &condition)?;
        let (_, _, height, width) = condition.dims4()?;
        let shape = [1, self.description.denoiser.outputs, height, width];
        let starts = images
            .iter()
            .map(|image| self.start(*image, &shape, options, seed));
        let starts: Vec<f32> = starts.flatten().collect();
        let shape = (images.len(), shape[1], height, width);
        let z = Tensor::from_vec(starts, shape, self.device())?;
        let steps = options.steps;
        let latents = self.denoise(z, &condition, steps, |step, clean| {
            Ok(seen.note(Stage::Step(step, steps), clean)?)
        })?;
        let pixels = self.decoded(&latents)?;
        let apart = pixels.reshape((images.len(), ()))?;
        seen.note(Stage::Pixels, &apart)?;
        if let Some((stage, row)) = seen.first()? {
            return Err(Error::model(format!(
                "image {} cannot be segmented: in {stage} a value became NaN or infinite: the weights are broken",
                first + row
            )));
        }
        let planes = grey(&pixels, images.len())?.to_device(&Device::Cpu)?;
        let planes: Vec<Vec<Vec<f32>>> = planes.flatten_from(2)?.to_vec3()?;
        let work = planes.into_par_iter().zip(images);
        work.map(|(planes, image)| self.answer(&planes, *image, options.threshold))
            .collect()
    }

    /// Brings the probabilities to the image's size; the most probable class wins, where it is
    /// probable enough.
    fn answer(
        &self,
        planes: &[Vec<f32>],
        image: ImageRef<'_>,
        threshold: f32,
    ) -> Result<Segmentation> {
        let (frame, size) = (self.description.frame(), image.size());
        let planes: Vec<Vec<f32>> = planes
            .iter()
            .map(|plane| batch::answer(plane, frame, size))
            .collect();
        let labels = self.description.labels();
        let best = |at: usize| {
            let first = (labels[0], planes[0][at]);
            let rest = labels.iter().zip(&planes).skip(1);
            rest.fold(first, |best, (label, plane)| {
                if plane[at] > best.1 {
                    (*label, plane[at])
                } else {
                    best
                }
            })
        };
        let found: Vec<(u8, f32)> = (0..planes[0].len()).map(best).collect();
        let label = |(label, p): &(u8, f32)| if *p > threshold { *label } else { 0 };
        Ok(Segmentation {
            mask: Mask::new(size.0, size.1, found.iter().map(label).collect())?,
            probability: found.iter().map(|(_, p)| *p).collect(),
        })
    }
}

/// How probable each class is, from the `pixels` of masks of `count` images. What is no number is one
/// afterwards. The Dice loss moves a wrong pixel that is blacker than black or whiter than white.
///
/// # Errors
/// When the shapes do not fit.
pub(crate) fn grey(pixels: &Tensor, count: usize) -> Result<Tensor> {
    let (_, _, height, width) = pixels.dims4()?;
    let grey = ops::clamp_leading_back(&pixels.affine(0.5, 0.5)?, 0.0, 1.0)?.mean(1)?;
    Ok(grey.reshape((count, (), height, width))?)
}

/// The autoencoder of a folder of weights: its own, that of the options, or the one it names.
///
/// # Errors
/// When it is not there or does not fit.
pub fn open_vae(
    folder: &Path,
    description: &Description,
    options: &Options,
    device: &Device,
) -> Result<Vae> {
    let own = folder.join(VAE);
    let open = |name: &str| Vae::open(name, DType::F32, device);
    let vae = match (&options.vae, own.is_dir(), &description.vae) {
        (Some(name), ..) => open(name),
        (None, true, _) => open(&own.to_string_lossy()),
        (None, false, Some(name)) => open(name),
        (None, false, None) => Err(Error::model(format!(
            "`{}` has no autoencoder: it has no folder `{VAE}`, and the option `vae` names none",
            folder.display()
        ))),
    };
    vae.map_err(|error| error.at("vae"))
}
