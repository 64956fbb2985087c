//! Trains segmenters with and without the synthetic images and scores them on the test part.

use super::{
    data::Data,
    measuring::{Figure, Measures, Sums, Values},
    once::{Fit, Leaves, Steps},
    pool_figures::Outcomes,
    scoring::{self, Figures, GroupReport, Report, Scored},
    wire::Wire,
};
use crate::{
    failure::Failure,
    layout,
    manifest::{Manifest, Resolution, StageTable},
    results::Part,
    slots::{DOWNSTREAM, SEGMENTER},
};
use diffaug::{
    BoxSegmenter, Case, Dataset, Error, ImageRef, Result, Sample, Segmentation, Segmenter,
    metrics::{mean, std_dev},
    view::Shared,
    with_reporter,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::PathBuf, time::Instant};

/// Test images in one call of the segmenter.
const BATCH: usize = 8;

/// A training and its scores.
#[derive(Debug, Serialize, Deserialize)]
struct Trained {
    seed: u64,
    fit: Option<Fit>,
    #[serde(flatten)]
    report: Report,
    /// The figures of measures, where there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    figures: Vec<Figure>,
}

/// The scores of an arm: all trainings, and mean and spread over them.
#[derive(Debug, Serialize)]
pub struct Arm {
    /// `real` or `augmented`.
    pub name: &'static str,
    /// How many training images there were, real and synthetic.
    pub training_images: usize,
    /// Mean over trainings of the per-image mean.
    pub mean: Figures,
    /// Sample standard deviation over trainings.
    pub std: Figures,
    /// Mean over trainings of the dataset-level figures.
    pub dataset_level: Figures,
    /// Mean over trainings of each group.
    pub groups: BTreeMap<String, GroupReport>,
    /// Every training.
    runs: Vec<Trained>,
}

/// The evaluation of a run.
pub struct Evaluation<'a> {
    /// Builds segmenters.
    pub wire: &'a Wire<'a>,
    /// Does each training and each scoring once.
    pub steps: &'a Steps<'a>,
    /// The dataset.
    pub data: &'a Data,
    /// What is measured besides the five figures of every run.
    pub measures: &'a Measures,
    /// The accepted images, if any.
    pub synthetic: Option<Shared>,
    /// Where the validator's segmenter left its weights, if it was trained in this run: with equal
    /// options and seed it *is* the first training on real images alone.
    pub judge: Option<PathBuf>,
}

impl Evaluation<'_> {
    fn manifest(&self) -> &Manifest {
        self.wire.manifest
    }

    /// Trains and scores every arm.
    ///
    /// # Errors
    /// When a training or a test image fails, or the user stops the run.
    pub fn run(&self) -> Result<Vec<Arm>, Failure> {
        let mut arms = Vec::new();
        if self.manifest().evaluate.baseline {
            arms.push(self.arm(layout::REAL, None)?);
        }
        if let Some(synthetic) = &self.synthetic {
            arms.push(self.arm(layout::AUGMENTED, Some(synthetic.clone()))?);
        } else if self.manifest().paints() {
            tracing::warn!("no synthetic image was accepted, so there is nothing to augment with");
        }
        Ok(arms)
    }

    fn arm(&self, name: &'static str, more: Option<Shared>) -> Result<Arm, Failure> {
        let synthetic = match &more {
            Some(more) => more.items()?.len(),
            None => 0,
        };
        let seeds = self.manifest().seeds().into_iter();
        let runs: Vec<Trained> = seeds
            .map(|seed| self.train_and_score(name, more.clone(), seed))
            .collect::<Result<_, Failure>>()?;
        let per_image: Vec<&Figures> = runs.iter().map(|r| &r.report.per_image_mean).collect();
        let dataset_level = runs.iter().map(|r| &r.report.dataset_level);
        Ok(Arm {
            name,
            training_images: self.data.counts()[0] + synthetic,
            mean: Figures::fold(per_image.iter().copied(), mean),
            std: Figures::fold(per_image.iter().copied(), std_dev),
            dataset_level: Figures::fold(dataset_level, mean),
            groups: mean_groups(&runs),
            runs,
        })
    }

    fn train_and_score(
        &self,
        arm: &str,
        more: Option<Shared>,
        seed: u64,
    ) -> Result<Trained, Failure> {
        let manifest = self.manifest();
        let table = manifest.downstream();
        let at = match manifest.evaluate.segmenter {
            Some(_) => DOWNSTREAM,
            None => SEGMENTER,
        };
        let files = layout::Training::new(arm, seed);
        let csv = files.per_image();
        let (scores, fit, weights) = (files.scores(), files.fit(), files.weights());
        let part = Part {
            name: layout::PER_IMAGE,
            place: &csv,
            listed: None,
        };
        let leaves = Leaves {
            place: &scores,
            marker: &scores,
            parts: &[part],
            vouched: &[&csv, &fit, &weights],
        };
        if let Some(done) = self.steps.finished(&leaves)? {
            return Ok(done);
        }
        let (trained, weights) = match self.shared(arm, seed) {
            Some(weights) => {
                let marker = layout::marker(layout::SEGMENTER);
                (self.steps.store.read_marker(&marker)?, weights.clone())
            }
            None => self.train((at, table), arm, seed, more)?,
        };
        let label = format!("testing on {arm} training");
        self.steps.once(&leaves, &label, || {
            let options = match &trained {
                Some(_) => table.with_weights(&weights),
                None => table.json(),
            };
            let segmenter: BoxSegmenter = self.wire.build(at, table, &options, seed)?;
            let (scored, totals) = self
                .test(&segmenter, &label)
                .map_err(|error| self.wire.place(at, table, error))?;
            scoring::write_csv(&self.steps.store.path(&csv), &scored)?;
            Ok(Trained {
                seed,
                fit: trained,
                report: scoring::report(&scored, totals),
                figures: self.measures.figures().0,
            })
        })
    }

    /// The weights of the validator's segmenter, where it is the training that is asked for.
    fn shared(&self, arm: &str, seed: u64) -> Option<&PathBuf> {
        let manifest = self.manifest();
        let alike = arm == layout::REAL
            && seed == manifest.seed
            && *manifest.downstream() == manifest.segmenter;
        self.judge.as_ref().filter(|_| alike)
    }

    /// A training of an arm, and where it left its weights.
    fn train(
        &self,
        (at, table): (&str, &StageTable),
        arm: &str,
        seed: u64,
        more: Option<Shared>,
    ) -> Result<(Option<Fit>, PathBuf), Failure> {
        let segmenter: BoxSegmenter = self.wire.build(at, table, &table.json(), seed)?;
        let real = self.data.train()?;
        let training = self.data.training(real, more, self.manifest(), seed)?;
        let validation = self.data.validation()?;
        let files = layout::Training::new(arm, seed);
        let folder = files.weights();
        let weights = self.steps.store.path(&folder);
        let label = format!("training {} on {arm} images, seed {seed}", table.name);
        let trained = self
            .steps
            .fit((&files.fit(), &folder), &label, |reporter| {
                let out = weights.to_string_lossy();
                segmenter.fit(&training, &validation, (&*out).into(), reporter)
            })
            .map_err(|error| self.wire.place(at, table, error))?;
        Ok((trained, weights))
    }

    /// Segments and compares every test image; besides, the figures that measures have of all together.
    fn test(&self, segmenter: &BoxSegmenter, label: &str) -> Result<(Vec<Scored>, Values)> {
        let native = self.manifest().evaluate.resolution == Resolution::Native;
        let test = self.data.test(native)?;
        let targets = self.data.targets();
        let items = test.items()?;
        let total = items.len() as u64;
        let step = self.steps.session.begin(label);
        let mut scored = Vec::new();
        let mut sums = Sums::default();
        for start in (0..total).step_by(BATCH) {
            self.steps.session.check_stopped()?;
            let end = (start + BATCH as u64).min(total);
            let samples: Vec<Sample> = (start..end)
                .map(|index| self.test_sample(&test, index, native))
                .collect::<Result<_>>()?;
            let begun = Instant::now();
            let found = self.steps.session.stage(|| segment(segmenter, &samples))?;
            self.steps.count(end - start, begun.elapsed());
            let measured = self.measure(&samples, &found, &targets, &mut sums)?;
            let items = &items[start as usize..end as usize];
            let answers = samples.into_iter().zip(found).zip(measured);
            for (((sample, found), measured), item) in answers.zip(items) {
                let mut one = scoring::score(
                    &sample.id,
                    sample.mask.view(),
                    found.mask.view(),
                    &targets,
                    sample.attributes,
                )?;
                one.group = item.group.to_string();
                one.measured = measured;
                scored.push(one);
            }
            step.progress(end, total, "");
        }
        step.finish(&format!("{total} images"));
        Ok((scored, self.measures.total(&sums)?))
    }

    /// What measures say of some predictions.
    fn measure(
        &self,
        samples: &[Sample],
        found: &[Segmentation],
        targets: &[u8],
        sums: &mut Sums,
    ) -> Result<Vec<Values>> {
        let cases = samples.iter().zip(found).map(|(sample, found)| Case {
            id: sample.id.as_rstr(),
            image: sample.image.view(),
            truth: sample.mask.view(),
            found: found.mask.view(),
            probability: found.probability.as_rslice(),
            targets: targets.into(),
        });
        let cases: Vec<Case<'_>> = cases.collect();
        self.steps
            .session
            .stage(|| self.measures.score(&cases, sums))
    }

    fn test_sample(&self, test: &Shared, index: u64, native: bool) -> Result<Sample> {
        let mut sample = test.sample(index)?;
        if native {
            // The working view measures masks; at native size that is still to be done.
            let mut facts = diffaug::lesion::measure(sample.mask.view(), &self.data.targets());
            facts.extend(&sample.attributes);
            sample.attributes = facts;
        }
        Ok(sample)
    }

    /// Every figure of an image, in the order of tables.
    fn figures(&self) -> Vec<Figure> {
        let mut figures = scoring::basic();
        figures.extend(self.measures.figures().0);
        figures
    }

    /// `result.json`: everything that was measured, nothing that depends on time.
    pub fn result(
        &self,
        synthesis: &Value,
        measured: &Outcomes,
        arms: &[Arm],
        weights: &Value,
    ) -> Value {
        let data = self.data;
        let [train, validation, test] = data.counts();
        let targets = data.info.classes.iter().filter(|c| c.target);
        json!({
            "name": self.manifest().name,
            "dataset": data.info.name.as_str(),
            "targets": targets.map(|c| c.name.to_string()).collect::<Vec<_>>(),
            "split": {
                "name": data.split.name,
                "sha256": data.split.sha256(),
                "train": train,
                "validation": validation,
                "test": test,
            },
            "size": self.manifest().images.size,
            "resolution": self.manifest().evaluate.resolution,
            "segmenter": self.manifest().downstream().name,
            "synthesis": synthesis,
            "measures": measured,
            "figures": self.figures(),
            "arms": arms,
            "weights": weights,
        })
    }
}

/// Asks a segmenter about samples and checks that it answers as it promised.
pub fn segment(segmenter: &BoxSegmenter, samples: &[Sample]) -> Result<Vec<Segmentation>> {
    let images: Vec<ImageRef<'_>> = samples.iter().map(|s| s.image.view()).collect();
    let found = with_reporter(&diffaug::Silent, |reporter| {
        segmenter.segment(images.as_slice().into(), reporter)
    })?;
    if found.len() != samples.len() {
        return Err(Error::internal(format!(
            "the segmenter gave {} answers for {} images",
            found.len(),
            samples.len()
        )));
    }
    for (found, sample) in found.iter().zip(samples) {
        if found.mask.size() != sample.image.size() {
            return Err(Error::internal(format!(
                "the segmenter answered {:?} for {:?}",
                found.mask, sample.image
            )));
        }
    }
    Ok(found.into_iter().collect())
}

fn mean_groups(runs: &[Trained]) -> BTreeMap<String, GroupReport> {
    let Some(first) = runs.first() else {
        return BTreeMap::new();
    };
    first
        .report
        .groups
        .iter()
        .map(|(name, group)| {
            let all = runs.iter().filter_map(|r| r.report.groups.get(name));
            let report = GroupReport {
                images: group.images,
                per_image_mean: Figures::fold(all.map(|g| &g.per_image_mean), mean),
            };
            (name.clone(), report)
        })
        .collect()
}
