//! The stage: jobs in, images out.

use crate::{
    loader::{self, Model},
    options::{Options, Window},
    picture::{self, Layout, Plan},
    pipeline::{Scene, Style, Watch},
    training::Fit,
};
use candle_core::{Device, Tensor};
use diffaug::{Context, Inspection, prelude::*};
use diffaug_nn::device;
use std::{collections::BTreeMap, path::Path};

/// A job with its place among the others and its plan.
type Planned<'a> = (usize, &'a Job<'a>, Plan);

/// Paints by Stable Diffusion.
pub struct SdxlInpaint {
    options: Options,
    device: Device,
    seed: u64,
    model: Option<Model>,
}

impl FromConfig for SdxlInpaint {
    type Config = Options;

    fn validate(options: &Options) -> Result<()> {
        options.check()
    }

    fn from_config(options: Options, context: &Context) -> Result<Self> {
        let device = device::open(&context.device)?;
        let seed = options.train.seed.unwrap_or(context.seed);
        let open = |weights: &String| loader::load(weights, &options, &device);
        let model = options.weights.as_ref().map(open).transpose()?;
        Ok(SdxlInpaint {
            options,
            device,
            seed,
            model,
        })
    }

    fn inspect(options: &Options, context: &Context) -> Result<Inspection> {
        crate::inspect::inspect(options, context)
    }

    fn convert(_: &Options, from: &Path, to: &Path) -> Result<String> {
        loader::convert(from, to)
    }
}

impl SdxlInpaint {
    fn style(&self) -> Style {
        let options = &self.options;
        Style {
            steps: options.steps,
            guidance: options.guidance,
            rescale: options.guidance_rescale,
            strength: options.strength(),
            original: options.original_size,
            crop: options.crop_top_left,
            target: options.target_size,
            noise: options.rng,
        }
    }

    fn layout(&self, model: &Model) -> Layout {
        let options = &self.options;
        let window = options.window.or(model.own.window);
        let window = window.unwrap_or(options.window());
        let own = model.own.resolution.or(model.side);
        let resolution = match window {
            Window::Full => options.resolution,
            Window::Mask => options.resolution.or(own),
        };
        Layout {
            window,
            margin: options
                .margin
                .or(model.own.margin)
                .unwrap_or(options.margin()),
            smallest: options
                .min_window
                .or(model.own.min_window)
                .unwrap_or_else(|| options.min_window(resolution)),
            resolution,
            multiple: model.pipeline.vae.factor() as u32,
        }
    }

    fn paint(
        &self,
        model: &Model,
        jobs: &[Planned<'_>],
        watcher: Option<&Watcher<'_>>,
        mut step: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Vec<(usize, Option<Image>)>> {
        let scenes = jobs.iter().map(|(_, job, plan)| {
            Ok(Scene {
                name: picture::name(job),
                pixels: picture::pixels(job.image, plan, &self.device)?,
                hole: picture::hole(job.mask, plan, &self.device)?,
                prompt: job.prompt.as_str(),
                negative: job.negative.as_str(),
                seed: job.seed,
            })
        });
        let scenes = scenes.collect::<Result<Vec<_>>>()?;
        let (composite, feather) = (self.options.composite, self.options.feather);
        let whole = |place: usize, painted: &Tensor| {
            let (_, job, plan) = &jobs[place];
            picture::put_back(job, plan, painted, composite, feather)
        };
        let mut look = |places: &[usize], previews: &[Tensor]| {
            let Some(watcher) = watcher else {
                return Ok(vec![true; places.len()]);
            };
            let previews = places.iter().zip(previews);
            let images = previews.map(|(place, preview)| whole(*place, preview));
            let images: Vec<Image> = images.collect::<Result<_>>()?;
            let numbers: Vec<u64> = places.iter().map(|place| jobs[*place].0 as u64).collect();
            watcher.look(&numbers, &images)
        };
        let watch = watcher.map(|watcher| Watch {
            share: watcher.share(),
            look: &mut look,
        });
        let painted = model
            .pipeline
            .paint(&scenes, &self.style(), watch, &mut step)?;
        let results = painted.iter().enumerate().map(|(place, painted)| {
            let image = painted.as_ref().map(|painted| whole(place, painted));
            Ok((jobs[place].0, image.transpose()?))
        });
        results.collect()
    }

    fn all(
        &self,
        jobs: &[Job<'_>],
        watcher: Option<&Watcher<'_>>,
        reporter: &Reporter<'_>,
    ) -> Result<Vec<Option<Image>>> {
        let Some(model) = &self.model else {
            return Err(Error::model(
                "the generator `sdxl-inpaint` has no weights: train it (`train.init = \"scratch\"` needs no other model) or set `weights`",
            )
            .at("weights"));
        };
        let layout = self.layout(model);
        // What is painted at once has one size.
        let mut sizes: BTreeMap<(u32, u32), Vec<Planned<'_>>> = BTreeMap::new();
        for (index, job) in jobs.iter().enumerate() {
            let plan = picture::plan(job, &layout)?;
            sizes
                .entry(plan.frame.whole)
                .or_default()
                .push((index, job, plan));
        }
        let batches = sizes
            .values()
            .flat_map(|jobs| jobs.chunks(self.options.batch));
        let batches: Vec<_> = batches.collect();
        let mut painted = Vec::with_capacity(jobs.len());
        for (done, batch) in batches.iter().enumerate() {
            painted.extend(self.paint(model, batch, watcher, |step, steps| {
                let (done, total) = (done * steps + step, batches.len() * steps);
                reporter.step(done as u64, total as u64, "")
            })?);
        }
        painted.sort_by_key(|(index, _)| *index);
        Ok(painted.into_iter().map(|(_, image)| image).collect())
    }
}

impl Generator for SdxlInpaint {
    fn generate(&self, jobs: RSlice<'_, Job<'_>>, reporter: &Reporter<'_>) -> Result<RVec<Image>> {
        let painted = self.all(&jobs, None, reporter)?;
        // Without anybody who looks, nothing is given up.
        Ok(painted.into_iter().flatten().collect())
    }

    fn generate_watched(
        &self,
        jobs: RSlice<'_, Job<'_>>,
        watcher: &Watcher<'_>,
        reporter: &Reporter<'_>,
    ) -> Result<RVec<ROption<Image>>> {
        let painted = self.all(&jobs, Some(watcher), reporter)?;
        Ok(painted.into_iter().map(ROption::from).collect())
    }

    fn fit(
        &self,
        train: &BoxDataset,
        validation: &BoxDataset,
        prompts: &BoxPromptBank,
        out: RStr<'_>,
        reporter: &Reporter<'_>,
    ) -> Result<FitReport> {
        let fit = Fit {
            options: &self.options,
            device: &self.device,
            seed: self.seed,
            train,
            validation,
            bank: prompts,
            out: Path::new(out.as_str()),
            reporter,
        };
        fit.run()
    }
}
