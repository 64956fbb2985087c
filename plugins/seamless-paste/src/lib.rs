//! Generator `seamless-paste`: moves real lesions into other images.
//!
//! Under every wanted outline goes a lesion of another training image: warped so that its outline
//! becomes the wanted one, tinted towards the light of its new surroundings, blended in by
//! matching gradients (Pérez, Gangnet, Blake 2003), and given back the contrast that this costs.
//! It needs no network and no text; it is the honest baseline that a diffusion model has to beat,
//! and lets a whole pipeline run on a laptop. Prompts are ignored.
//!
//! `fit` collects the donors; nothing is learnt.

#![forbid(unsafe_code)]

mod blend;
mod donors;
mod frame;
mod shape;
mod warp;

use blend::Style;
use diffaug::{poisson::Limits, prelude::*, rng};
use donors::{Donors, Wanted};
use rayon::prelude::*;
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

pub use blend::Blend;

diffaug::export_plugin! {
    generator "seamless-paste" => SeamlessPaste, "real lesions of other images, pasted by Poisson blending"
}

/// The options of `seamless-paste`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Folder of donors: made by `fit`, or any with `images/` and `masks/` (white on black).
    pub weights: Option<PathBuf>,
    /// Which gradients the pasted part keeps: the donor's (`source`) or, pixel by pixel, the
    /// stronger of donor and background (`mixed`).
    pub blend: Blend,
    /// How far the donor's light and tint move towards the background's, 0 to 1.
    pub colour: f64,
    /// How much of the contrast to its surroundings that blending costs the lesion is given back,
    /// 0 to 1.
    pub keep_contrast: f64,
    /// How many pixels beyond the mask the blending reaches, 1 to 64. The donor's own edge has to
    /// fit in, so that too little makes the lesion fade.
    pub feather: u32,
    /// Whether donors may be turned and mirrored; switch it off for anatomy with a fixed
    /// orientation.
    pub rotate: bool,
    /// Largest residual of the blending equation, in grey levels.
    pub tolerance: f64,
    /// Most iterations of the solver for a lesion and colour channel.
    pub max_iterations: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            weights: None,
            blend: Blend::Source,
            colour: 0.5,
            keep_contrast: 0.6,
            feather: 4,
            rotate: true,
            tolerance: 1e-3,
            max_iterations: 4000,
        }
    }
}

/// Pastes real lesions of other images.
pub struct SeamlessPaste {
    donors: Option<Donors>,
    style: Style,
}

impl FromConfig for SeamlessPaste {
    type Config = Options;

    fn validate(options: &Options) -> Result<()> {
        for (field, value) in [
            ("colour", options.colour),
            ("keep_contrast", options.keep_contrast),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(
                    Error::config(format!("`{field}` is {value}, expected 0 to 1")).at(field),
                );
            }
        }
        if !(1..=64).contains(&options.feather) {
            let message = format!("`feather` is {}, expected 1 to 64 pixels", options.feather);
            return Err(Error::config(message).at("feather"));
        }
        // Below this, single precision cannot tell progress from rounding.
        if !(1e-4..=10.0).contains(&options.tolerance) {
            let message = format!(
                "`tolerance` is {}, expected 0.0001 to 10",
                options.tolerance
            );
            return Err(Error::config(message).at("tolerance"));
        }
        if options.max_iterations == 0 {
            return Err(
                Error::config("`max_iterations` is 0, expected at least 1").at("max_iterations")
            );
        }
        Ok(())
    }

    fn from_config(options: Options, context: &Context) -> Result<Self> {
        let open = |folder: &PathBuf| Donors::open(folder, context.into());
        Ok(SeamlessPaste {
            donors: options.weights.as_ref().map(open).transpose()?,
            style: Style {
                blend: options.blend,
                colour: options.colour as f32,
                keep_contrast: options.keep_contrast as f32,
                feather: options.feather,
                rotate: options.rotate,
                limits: Limits {
                    tolerance: options.tolerance,
                    max_iterations: options.max_iterations,
                },
            },
        })
    }
}

impl SeamlessPaste {
    fn paint(&self, donors: &Donors, job: &Job<'_>) -> Result<Image> {
        let name = if job.source.is_empty() {
            "an unnamed image"
        } else {
            job.source.as_str()
        };
        if job.image.size() != job.mask.size() {
            return Err(Error::data(format!(
                "the mask for `{name}` is {}x{}, the image {}x{}",
                job.mask.width(),
                job.mask.height(),
                job.image.width(),
                job.image.height()
            )));
        }
        let targets = shape::patches(job.mask, |label| label != 0);
        if targets.is_empty() {
            return Err(Error::data(format!(
                "the mask for `{name}` is empty, so there is nowhere to paste"
            )));
        }
        let mut canvas = job.image.to_owned();
        for (index, target) in targets.iter().enumerate() {
            self.paint_one(donors, job, &mut canvas, target, index as u64)?;
        }
        Ok(canvas)
    }

    /// Pastes a donor of its own under one patch of the mask.
    fn paint_one(
        &self,
        donors: &Donors,
        job: &Job<'_>,
        canvas: &mut Image,
        target: &shape::Shape,
        index: u64,
    ) -> Result<()> {
        let mut rng = rng::stream(job.seed, "donor", index);
        let wanted = Wanted {
            source: &job.source,
            shape: target,
            size: job.image.size(),
            surroundings: blend::surroundings(canvas, target, self.style.feather),
        };
        let patch = donors.patch(donors.choose(&wanted, &mut rng)?)?;
        let width = job.mask.width() as usize;
        let own: std::collections::HashSet<(usize, usize)> =
            target.pixels.iter().copied().collect();
        let taken =
            |x: usize, y: usize| job.mask.labels()[y * width + x] != 0 && !own.contains(&(x, y));
        blend::paste(canvas, target, taken, &patch, &self.style, &mut rng)
    }
}

impl Generator for SeamlessPaste {
    fn generate(&self, jobs: RSlice<'_, Job<'_>>, reporter: &Reporter<'_>) -> Result<RVec<Image>> {
        let donors = self.donors.as_ref().ok_or_else(|| {
            Error::config(
                "`seamless-paste` has no donors: run `fit` (any pipeline does) or set `weights` to a folder with images and masks",
            )
            .at("weights")
        })?;
        let done = AtomicU64::new(0);
        let painted: Vec<Result<Image>> = jobs
            .as_slice()
            .par_iter()
            .map(|job| {
                if reporter.cancelled() {
                    return Err(Error::cancelled());
                }
                let image = self.paint(donors, job)?;
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                reporter.step(done, jobs.len() as u64, "")?;
                Ok(image)
            })
            .collect();
        // In the order of the jobs, so that which of several errors is told is no accident.
        painted.into_iter().collect()
    }

    fn follows_texts(&self) -> Result<bool> {
        Ok(false)
    }

    fn fit(
        &self,
        train: &BoxDataset,
        _validation: &BoxDataset,
        _prompts: &BoxPromptBank,
        out: RStr<'_>,
        reporter: &Reporter<'_>,
    ) -> Result<FitReport> {
        let donors = donors::collect(train, Path::new(out.as_str()), reporter)?;
        Ok(FitReport {
            steps: 0,
            best_step: 0,
            loss: 0.0,
            metric: "donors".into(),
            score: donors as f64,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
