//! What the validator says: of painted candidates, of previews of them, and of real lesions.

use super::{
    candidates::PlannedCandidate,
    overlap::StopFlag,
    painting::{How, Interrupt, Painted, Stages},
    placing::only,
    record::Real,
    wire::blame,
};
use crate::manifest::Preview;
use diffaug::{
    BoxDataset, Dataset, Error, Image, ImageRef, Mask, MaskRef, Reporter, Result, Sample,
    Validator, Verdict, Watch, with_reporter,
};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// What became of a candidate.
pub struct Judged {
    /// `None` where it was given up.
    pub image: Option<Image>,
    /// On the image, or on the preview at which it was given up.
    pub verdict: Verdict,
    /// The score of the preview, where there was one.
    pub preview: Option<f64>,
}

/// An image that is to be judged.
struct Question<'a> {
    id: &'a str,
    /// The image that lent the background; says which segmenters may be asked.
    source: &'a str,
    image: ImageRef<'a>,
    mask: MaskRef<'a>,
}

impl<'a> Question<'a> {
    fn of(candidate: &'a PlannedCandidate, image: ImageRef<'a>) -> Self {
        Question {
            id: &candidate.id,
            source: &candidate.source,
            image,
            mask: candidate.wanted.view(),
        }
    }
}

/// One call of the validator, for those of `painted` that were not given up.
///
/// # Errors
/// Those of the validator and its segmenters.
pub fn verdicts(
    candidates: &[&PlannedCandidate],
    painted: Vec<Painted>,
    stages: &Stages,
    how: How<'_>,
    stop: &StopFlag<'_>,
) -> Result<Vec<Judged>> {
    let whole = candidates.iter().zip(&painted);
    let whole: Vec<Question<'_>> = whole
        .filter_map(|(candidate, p)| Some(Question::of(candidate, p.image.as_ref()?.view())))
        .collect();
    let found = with_reporter(&Interrupt(stop), |reporter| judge(&whole, stages, reporter));
    let mut found = found?.into_iter();
    let outcome = |Painted { image, seen }| {
        let score = seen.as_ref().map(|verdict: &Verdict| verdict.score);
        let given_up = |(seen, options): (Verdict, &Preview)| options.give_up(seen);
        let verdict = match &image {
            Some(_) => found.next(),
            None => seen.zip(how.preview).map(given_up),
        };
        let missing = || Error::internal("a candidate without a verdict");
        Ok(Judged {
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
pub struct Look<'a> {
    candidates: &'a [&'a PlannedCandidate],
    stages: &'a Stages,
    options: &'a Preview,
    /// The verdicts on previews.
    seen: Vec<Mutex<Option<Verdict>>>,
    stop: &'a StopFlag<'a>,
}

impl<'a> Look<'a> {
    /// Nothing was shown yet.
    pub fn new(
        candidates: &'a [&'a PlannedCandidate],
        stages: &'a Stages,
        options: &'a Preview,
        stop: &'a StopFlag<'a>,
    ) -> Self {
        Look {
            candidates,
            stages,
            options,
            seen: candidates.iter().map(|_| Mutex::default()).collect(),
            stop,
        }
    }

    /// The verdicts on previews, where there were any.
    pub fn verdicts(self) -> Vec<Option<Verdict>> {
        let seen = self.seen.into_iter().map(Mutex::into_inner);
        seen.map(|seen| seen.unwrap_or_else(PoisonError::into_inner))
            .collect()
    }
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
        let shown = places.iter().zip(previews);
        let shown: Vec<Question<'_>> = shown
            .map(|(&place, preview)| Question::of(self.candidates[place], *preview))
            .collect();
        let verdicts = with_reporter(&Interrupt(self.stop), |reporter| {
            judge(&shown, self.stages, reporter)
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

/// How many of the real lesions of `samples`, which no segmenter was trained on, pass the same validator;
/// `batch` of them are judged at once.
///
/// # Errors
/// When a sample cannot be read, and those of the validator and its segmenters.
pub fn real(
    samples: &BoxDataset,
    stages: &Stages,
    batch: usize,
    stop: &StopFlag<'_>,
) -> Result<Real> {
    let targets = samples.info()?.targets();
    let count = samples.items()?.len() as u64;
    let mut real = Real::default();
    for start in (0..count).step_by(batch.max(1)) {
        let some = (start..count).take(batch.max(1));
        let some = some.map(|index| samples.sample(index));
        let some: Vec<Sample> = some.collect::<Result<_>>()?;
        let wanted = some.iter().map(|sample| only(&sample.mask, &targets));
        let wanted: Vec<Mask> = wanted.collect();
        let shown = some.iter().zip(&wanted);
        let shown = shown.filter(|(_, mask)| mask.view().foreground() > 0);
        let shown: Vec<Question<'_>> = shown
            .map(|(sample, mask)| Question {
                id: sample.id.as_str(),
                source: sample.id.as_str(),
                image: sample.image.view(),
                mask: mask.view(),
            })
            .collect();
        let verdicts = with_reporter(&Interrupt(stop), |reporter| judge(&shown, stages, reporter))?;
        for (question, verdict) in shown.iter().zip(verdicts) {
            real.add(question.mask, verdict.accepted);
        }
    }
    Ok(real)
}

/// The validator's verdicts; what was painted on sources of one fold is judged in one call.
fn judge(
    questions: &[Question<'_>],
    stages: &Stages,
    reporter: &Reporter<'_>,
) -> Result<Vec<Verdict>> {
    let mut by_fold: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (place, question) in questions.iter().enumerate() {
        let fold = stages.judges.fold(question.source);
        by_fold.entry(fold).or_default().push(place);
    }
    let mut verdicts: Vec<Option<Verdict>> = questions.iter().map(|_| None).collect();
    for places in by_fold.into_values() {
        let asked = places.iter().map(|&place| {
            let Question {
                id, image, mask, ..
            } = questions[place];
            let id = id.into();
            diffaug::Candidate { id, image, mask }
        });
        let asked: Vec<diffaug::Candidate<'_>> = asked.collect();
        let judges = stages.judges.of(questions[places[0]].source);
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
            check_found(&questions[place], &verdict)?;
            verdicts[place] = Some(verdict);
        }
    }
    let missing = || Error::internal("a candidate without a verdict");
    verdicts
        .into_iter()
        .map(|verdict| verdict.ok_or_else(missing))
        .collect()
}

/// Checks that what was found is of the image's size, for it is drawn on it.
fn check_found(question: &Question<'_>, verdict: &Verdict) -> Result<()> {
    let size = question.image.size();
    match verdict.found.as_ref().into_option() {
        Some(found) if found.size() != size => Err(Error::internal(format!(
            "the validator's verdict on `{}` holds {found:?} for an image of {}x{} pixels",
            question.id, size.0, size.1
        ))),
        _ => Ok(()),
    }
}
