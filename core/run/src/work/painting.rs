//! One batch of candidates, painted: begun by the start generator where there is one, finished by the
//! generator, looked at on the way if the manifest says so, and given its decoys.

use super::{
    candidates::PlannedCandidate, judges::Judges, judging::Look, overlap::StopFlag, wire::blame,
};
use crate::manifest::{Preview, Synthesis};
use diffaug::{
    BoxGenerator, BoxPromptBank, BoxValidator, Error, Generator, Image, ImageRef, Job, Progress,
    Prompt, Reporter, Result, Verdict, bands, prelude::RStr, rng, with_reporter, with_watcher,
};

/// The stages at work here.
pub struct Stages {
    /// Draws texts.
    pub bank: BoxPromptBank,
    /// Paints what the generator begins with, where the manifest names one.
    pub start: Option<BoxGenerator>,
    /// Paints.
    pub generator: BoxGenerator,
    /// Judges.
    pub validator: BoxValidator,
    /// Is asked by the validator.
    pub judges: Judges,
}

/// How candidates are painted, besides by which stages.
#[derive(Clone, Copy)]
pub struct How<'a> {
    /// When to look at what is being painted.
    pub preview: Option<&'a Preview>,
    /// Standard deviation in pixels that parts the bands of a hybrid; 0 for none.
    pub detail: f64,
}

impl<'a> How<'a> {
    /// As the manifest says.
    pub fn of(options: &'a Synthesis) -> Self {
        How {
            preview: options.preview.as_ref(),
            detail: options.detail,
        }
    }

    /// The same without a look at what is being painted.
    pub fn unseen(options: &'a Synthesis) -> Self {
        How {
            preview: None,
            ..How::of(options)
        }
    }
}

/// A painted candidate.
pub struct Painted {
    /// `None` where it was given up.
    pub image: Option<Image>,
    /// The verdict on its preview, where there was one.
    pub seen: Option<Verdict>,
}

/// Paints candidates. A preview shows the lesion alone: bands and decoys come after it.
///
/// # Errors
/// Those of the generators, and when they answer with other images than were asked for.
pub fn paint(
    candidates: &[&PlannedCandidate],
    stages: &Stages,
    how: How<'_>,
    stop: &StopFlag<'_>,
) -> Result<Vec<Painted>> {
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    with_reporter(&Interrupt(stop), |reporter| {
        let starts = starts(candidates, stages, reporter)?;
        let starts = starts.as_deref();
        let look = how
            .preview
            .map(|preview| Look::new(candidates, stages, preview, stop));
        let jobs = candidates.iter().enumerate().map(|(place, candidate)| Job {
            image: starts.map_or(candidate.background.view(), |all| all[place].view()),
            ..candidate.job()
        });
        let jobs: Vec<Job<'_>> = jobs.collect();
        let mut images = generate(&stages.generator, &jobs, look.as_ref(), reporter)?;
        if let Some(starts) = starts.filter(|_| how.detail > 0.0) {
            let all = images.iter_mut().zip(starts).zip(candidates);
            for ((image, start), candidate) in all {
                let Some(image) = image else { continue };
                let mask = candidate.wanted.view();
                *image = bands::mix(image.view(), start.view(), mask, how.detail)?;
            }
        }
        decoys(candidates, &mut images, stages, reporter)?;
        let seen = look.map_or_else(|| vec![None; images.len()], Look::verdicts);
        let painted = images.into_iter().zip(seen);
        Ok(painted
            .map(|(image, seen)| Painted { image, seen })
            .collect())
    })
}

/// What the generator begins with, for each candidate.
fn starts(
    candidates: &[&PlannedCandidate],
    stages: &Stages,
    reporter: &Reporter<'_>,
) -> Result<Option<Vec<Image>>> {
    let Some(generator) = &stages.start else {
        return Ok(None);
    };
    let jobs = candidates.iter().map(|candidate| Job {
        seed: rng::derive(candidate.seed, "start", ""),
        ..candidate.job()
    });
    let jobs: Vec<Job<'_>> = jobs.collect();
    let images = generate(generator, &jobs, None, reporter)
        .map_err(|error| error.context("`synthesis.start`"))?;
    Ok(Some(images.into_iter().flatten().collect()))
}

/// Paints the healthy holes of each image, one after the other, for they may lie far apart.
fn decoys(
    candidates: &[&PlannedCandidate],
    images: &mut [Option<Image>],
    stages: &Stages,
    reporter: &Reporter<'_>,
) -> Result<()> {
    for candidate in candidates.iter().filter(|c| !c.decoys.is_empty()) {
        healthy(&candidate.prompt)?;
    }
    let most = candidates.iter().map(|c| c.decoys.len()).max();
    for round in 0..most.unwrap_or(0) {
        let some = candidates.iter().enumerate();
        let some = some.filter(|(_, candidate)| candidate.decoys.len() > round);
        let open: Vec<(usize, Image)> = some
            .filter_map(|(place, _)| Some((place, images[place].take()?)))
            .collect();
        let jobs = open.iter().map(|(place, image)| {
            let candidate = candidates[*place];
            candidate.decoy_job(round, image.view())
        });
        let jobs: Vec<Job<'_>> = jobs.collect();
        let painted = generate(&stages.generator, &jobs, None, reporter)?;
        let painted = open.iter().map(|(place, _)| *place).zip(painted);
        painted.for_each(|(place, image)| images[place] = image);
    }
    Ok(())
}

/// What the prompt bank calls a healthy place: what a lesion's prompt is to avoid. Generators that are
/// trained here learn that text for holes without a lesion.
///
/// # Errors
/// When the bank has no such text.
pub fn healthy(prompt: &Prompt) -> Result<RStr<'_>> {
    match prompt.negative.as_str() {
        "" => Err(Error::config(
            "the prompt bank gives no negative text, which would tell the generator what a healthy \
             place looks like: give it one, or leave out `synthesis.decoys` and \
             `synthesis.background = \"pseudo-normal\"`",
        )),
        _ => Ok(prompt.negative.as_rstr()),
    }
}

/// One image for each job, of its size; `None` for those that `look` gave up.
///
/// # Errors
/// Those of the generator, and when it answers with other images than were asked for.
pub fn generate(
    generator: &BoxGenerator,
    jobs: &[Job<'_>],
    look: Option<&Look<'_>>,
    reporter: &Reporter<'_>,
) -> Result<Vec<Option<Image>>> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let images: Result<Vec<Option<Image>>> = match look {
        None => generator
            .generate(jobs.into(), reporter)
            .map(|images| images.into_iter().map(Some).collect()),
        Some(look) => with_watcher(look, |watcher| {
            let images = generator.generate_watched(jobs.into(), watcher, reporter);
            images.map(|images| images.into_iter().map(Option::from).collect())
        }),
    };
    let images = images.map_err(|error| blame("the generator", error))?;
    if images.len() != jobs.len() {
        return Err(Error::internal(format!(
            "the generator made {} images of {} jobs",
            images.len(),
            jobs.len()
        )));
    }
    for (image, job) in images.iter().zip(jobs) {
        if let Some(image) = image
            && image.size() != job.image.size()
        {
            return Err(Error::internal(format!(
                "the generator made {image:?} of {:?}",
                job.image.to_owned()
            )));
        }
    }
    Ok(images)
}

impl PlannedCandidate {
    /// The candidate as a generator takes it.
    pub fn job(&self) -> Job<'_> {
        Job {
            source: self.source.as_str().into(),
            image: self.background.view(),
            mask: self.wanted.view(),
            prompt: self.prompt.positive.as_rstr(),
            negative: self.prompt.negative.as_rstr(),
            seed: self.seed,
        }
    }

    /// A healthy hole in the painted image: the texts change sides.
    fn decoy_job<'a>(&'a self, which: usize, image: ImageRef<'a>) -> Job<'a> {
        Job {
            source: self.source.as_str().into(),
            image,
            mask: self.decoys[which].view(),
            prompt: self.prompt.negative.as_rstr(),
            negative: self.prompt.positive.as_rstr(),
            seed: rng::derive(self.seed, "decoy", &which.to_string()),
        }
    }
}

/// Tells a stage when to stop; the batch's progress is the run's.
pub struct Interrupt<'a>(pub &'a StopFlag<'a>);

impl Progress for Interrupt<'_> {
    fn progress(&self, _: u64, _: u64, _: &str) {}
    fn cancelled(&self) -> bool {
        self.0.is_set()
    }
}
