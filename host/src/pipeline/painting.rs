//! One batch of candidates: painted, looked at on the way if the manifest says so, and judged.

use super::{candidates::Candidate, gate::Gate, overlap::Enough, wire::blame};
use crate::manifest::Preview;
use diffaug::{
    BoxGenerator, BoxPromptBank, BoxValidator, Error, Generator, Image, ImageRef, Job, Progress,
    Reporter, Result, Validator, Verdict, Watch, with_reporter, with_watcher,
};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// The stages at work here.
pub struct Stages {
    /// Draws texts.
    pub bank: BoxPromptBank,
    /// Paints.
    pub generator: BoxGenerator,
    /// Judges.
    pub validator: BoxValidator,
    /// Is asked by the validator.
    pub gate: Gate,
}

/// What became of a candidate.
pub struct Outcome {
    /// `None` where it was given up.
    pub image: Option<Image>,
    /// On the image, or on the preview at which it was given up.
    pub verdict: Verdict,
    /// The score of the preview, where there was one.
    pub preview: Option<f64>,
}

/// A painted candidate.
pub struct Painted {
    /// `None` where it was given up.
    image: Option<Image>,
    /// The verdict on its preview, where there was one.
    seen: Option<Verdict>,
}

/// One call of the generator, which shows previews where `preview` says so.
pub fn paint(
    candidates: &[&Candidate],
    stages: &Stages,
    preview: Option<&Preview>,
    enough: &Enough,
) -> Result<Vec<Painted>> {
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    with_reporter(&Interrupt(enough), |reporter| {
        let look = Look {
            candidates,
            stages,
            options: preview.cloned().unwrap_or_default(),
            seen: candidates.iter().map(|_| Mutex::default()).collect(),
            enough,
        };
        let images = generate(candidates, stages, preview.map(|_| &look), reporter)?;
        let seen = look.seen.into_iter().map(|seen| seen.into_inner());
        let seen = seen.map(|seen| seen.unwrap_or_else(PoisonError::into_inner));
        let painted = images.into_iter().zip(seen);
        Ok(painted
            .map(|(image, seen)| Painted { image, seen })
            .collect())
    })
}

/// One call of the validator, for those of `painted` that were not given up.
pub fn verdicts(
    candidates: &[&Candidate],
    painted: Vec<Painted>,
    stages: &Stages,
    preview: Option<&Preview>,
    enough: &Enough,
) -> Result<Vec<Outcome>> {
    let whole = candidates.iter().zip(&painted);
    let whole = whole.filter_map(|(candidate, p)| Some((*candidate, p.image.as_ref()?.view())));
    let (shown, images): (Vec<&Candidate>, Vec<ImageRef<'_>>) = whole.unzip();
    let found = with_reporter(&Interrupt(enough), |reporter| {
        judge(&shown, &images, stages, reporter)
    });
    let mut found = found?.into_iter();
    let outcome = |Painted { image, seen }| {
        let score = seen.as_ref().map(|verdict| verdict.score);
        let given_up = |(seen, options): (Verdict, &Preview)| options.give_up(seen);
        let verdict = match &image {
            Some(_) => found.next(),
            None => seen.zip(preview).map(given_up),
        };
        let missing = || Error::internal("a candidate without a verdict");
        Ok(Outcome {
            image,
            verdict: verdict.ok_or_else(missing)?,
            preview: score,
        })
    };
    painted.into_iter().map(outcome).collect()
}

impl Preview {
    /// The verdict on a candidate that was given up.
    fn give_up(&self, verdict: Verdict) -> Verdict {
        let reason = format!(
            "given up at a preview: its score {:.2} is below {:.2}",
            verdict.score, self.below
        );
        Verdict {
            accepted: false,
            reason: reason.into(),
            ..verdict
        }
    }
}

/// Shows previews to the validator.
struct Look<'a> {
    candidates: &'a [&'a Candidate],
    stages: &'a Stages,
    options: Preview,
    /// The verdicts on previews.
    seen: Vec<Mutex<Option<Verdict>>>,
    enough: &'a Enough,
}

impl Watch for Look<'_> {
    fn share(&self) -> f64 {
        self.options.at
    }

    fn look(&self, jobs: &[u64], previews: &[ImageRef<'_>]) -> Result<Vec<bool>> {
        let place = |job: &u64| usize::try_from(*job).ok().filter(|p| *p < self.seen.len());
        let places: Option<Vec<usize>> = jobs.iter().map(place).collect();
        let Some(places) = places.filter(|places| places.len() == previews.len()) else {
            return Err(Error::internal(format!(
                "the generator showed {} previews of jobs {jobs:?}, of which there are {}",
                previews.len(),
                self.seen.len()
            )));
        };
        let shown: Vec<&Candidate> = places.iter().map(|&p| self.candidates[p]).collect();
        let verdicts = with_reporter(&Interrupt(self.enough), |reporter| {
            judge(&shown, previews, self.stages, reporter)
        })?;
        let answers = places.into_iter().zip(verdicts).map(|(place, verdict)| {
            let goes_on = self.options.audit || verdict.score >= self.options.below;
            let mut seen = self.seen[place]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *seen = Some(verdict);
            goes_on
        });
        Ok(answers.collect())
    }
}

/// The validator's verdicts; what was painted on sources of one fold is judged in one call.
fn judge(
    candidates: &[&Candidate],
    images: &[ImageRef<'_>],
    stages: &Stages,
    reporter: &Reporter<'_>,
) -> Result<Vec<Verdict>> {
    let mut by_fold: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (place, candidate) in candidates.iter().enumerate() {
        let fold = stages.gate.fold(&candidate.source);
        by_fold.entry(fold).or_default().push(place);
    }
    let mut verdicts: Vec<Option<Verdict>> = candidates.iter().map(|_| None).collect();
    for places in by_fold.into_values() {
        let asked: Vec<diffaug::Candidate<'_>> = places
            .iter()
            .map(|&place| diffaug::Candidate {
                id: candidates[place].id.as_str().into(),
                image: images[place],
                mask: candidates[place].wanted.view(),
            })
            .collect();
        let judges = stages.gate.judges(&candidates[places[0]].source);
        let found = stages
            .validator
            .judge(asked.as_slice().into(), judges.into(), reporter)
            .map_err(|error| blame("the validator or its segmenter", error))?;
        if found.len() != asked.len() {
            return Err(Error::internal(format!(
                "the validator gave {} verdicts on {} candidates",
                found.len(),
                asked.len()
            )));
        }
        for (place, verdict) in places.into_iter().zip(found) {
            verdicts[place] = Some(verdict);
        }
    }
    let missing = || Error::internal("a candidate without a verdict");
    verdicts
        .into_iter()
        .map(|verdict| verdict.ok_or_else(missing))
        .collect()
}

/// One image for each candidate; `None` for those that were given up.
fn generate(
    candidates: &[&Candidate],
    stages: &Stages,
    look: Option<&Look<'_>>,
    reporter: &Reporter<'_>,
) -> Result<Vec<Option<Image>>> {
    let jobs: Vec<Job<'_>> = candidates.iter().map(|c| c.job()).collect();
    let (jobs, generator) = (jobs.as_slice(), &stages.generator);
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
    for (image, candidate) in images.iter().zip(candidates) {
        if let Some(image) = image
            && image.size() != candidate.background.size()
        {
            return Err(Error::internal(format!(
                "the generator made {image:?} of {:?}",
                candidate.background
            )));
        }
    }
    Ok(images)
}

impl Candidate {
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
}

/// Tells a stage when to stop; the batch's progress is the run's.
struct Interrupt<'a>(&'a Enough);

impl Progress for Interrupt<'_> {
    fn progress(&self, _: u64, _: u64, _: &str) {}
    fn cancelled(&self) -> bool {
        self.0.reached()
    }
}
