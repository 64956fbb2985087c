//! What measures say of painted images and of the verdicts on them.

use super::{
    Run,
    measuring::{Figure, Named},
    once::{Leaves, Steps},
    record::Record,
    scoring::Figures,
    synthesis::Synthesizer,
};
use crate::{failure::Failure, layout};
use diffaug::{
    Attributes, BoxDataset, Dataset, Findings, Judgement, Measure, Result, Subject, view::Shared,
    with_reporter,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The pool of the images that were kept.
const ACCEPTED: &str = "accepted";
/// The pool of the images that were turned down; there where `synthesis.keep_rejected` keeps them.
const REJECTED: &str = "rejected";
/// All candidates that were painted, for measures of verdicts.
pub const CANDIDATES: &str = "candidates";

/// What a measure says of the pools of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Its figures.
    pub figures: Vec<Figure>,
    /// How many real training images it had beside them.
    pub real: u64,
    /// `accepted` and, where they are kept, `rejected` images; or `candidates` for a measure of verdicts.
    pub pools: BTreeMap<String, Pool>,
}

/// What a measure says of a pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pool {
    /// How many images or candidates there are.
    pub images: u64,
    /// The values of the figures.
    pub figures: Figures,
    /// Pairs of images to be looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<PairOf>,
    /// What a reader has to know.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// A pair of images.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PairOf {
    /// The id of the synthetic image.
    pub synthetic: String,
    /// The id of the real image.
    pub real: String,
    /// How far they are apart.
    pub value: f64,
}

/// What every measure says, by its name.
pub type Outcomes = BTreeMap<String, Outcome>;

impl Run<'_> {
    /// Asks each measure of images and of verdicts, once.
    pub(super) fn measure_pools(
        &self,
        steps: &Steps<'_>,
        synthesis: &Synthesizer<'_>,
    ) -> Result<Outcomes, Failure> {
        let mut outcomes = Outcomes::new();
        let all = self.measures.of(Subject::Images);
        for named in all.chain(self.measures.of(Subject::Verdicts)) {
            let marker = layout::measure(&named.name);
            let leaves = Leaves {
                place: &marker,
                marker: &marker,
                parts: &[],
                vouched: &[layout::CHECKSUMS],
            };
            let label = format!("measuring {}", named.name);
            let work = || match named.subject {
                Subject::Images => self.of_images(named, synthesis, &label),
                _ => self.of_verdicts(named, synthesis),
            };
            let outcome = steps.once(&leaves, &label, work)?;
            outcomes.insert(named.name.clone(), outcome);
        }
        Ok(outcomes)
    }

    fn of_images(
        &self,
        named: &Named,
        synthesis: &Synthesizer<'_>,
        label: &str,
    ) -> Result<Outcome, Failure> {
        let train = self.data.train()?;
        let real = ids(&train)?;
        let train = BoxDataset::new(train);
        let mut pools = BTreeMap::new();
        for (pool, list) in [
            (ACCEPTED, layout::METADATA),
            (REJECTED, layout::REJECTED_LIST),
        ] {
            let Some(images) = synthesis.images_of(list, self.reading().max_pixels)? else {
                continue;
            };
            let synthetic = ids(&images)?;
            let images = BoxDataset::new(images);
            let step = self.session.begin(&format!("{label} of {pool} images"));
            let found = self.session.stage(|| {
                with_reporter(&step, |reporter| {
                    named.ask(named.measure().compare(&train, &images, reporter))
                })
            })?;
            step.finish(&format!("{} images", synthetic.len()));
            pools.insert(
                pool.to_owned(),
                named.pool(&found, &synthetic, &real, pool)?,
            );
        }
        Ok(named.outcome(real.len(), pools))
    }

    fn of_verdicts(&self, named: &Named, synthesis: &Synthesizer<'_>) -> Result<Outcome, Failure> {
        let train = self.data.train()?;
        let total = train.items()?.len() as u64;
        let step = self.session.begin("measuring real lesions");
        let mut real = Vec::new();
        for index in 0..total {
            self.session.check_stopped()?;
            real.push(train.sample(index)?.attributes);
            step.progress(index + 1, total, "");
        }
        step.finish(&format!("{total} training images"));
        let (mut judged, mut names) = (Vec::new(), Vec::new());
        for list in [layout::METADATA, layout::REJECTED_LIST] {
            synthesis.each(list, |record| {
                if record.painted() {
                    judged.push(judgement(&record));
                    names.push(record.id);
                }
                Ok(())
            })?;
        }
        let found = self.session.stage(|| {
            let (judged, real) = (judged.as_slice(), real.as_slice());
            named.ask(named.measure().judge(judged.into(), real.into()))
        })?;
        let pool = named.pool(&found, &names, &[], CANDIDATES)?;
        let pools = [(CANDIDATES.to_owned(), pool)].into();
        Ok(named.outcome(real.len(), pools))
    }
}

impl Named {
    fn outcome(&self, real: usize, pools: BTreeMap<String, Pool>) -> Outcome {
        Outcome {
            figures: self.figures.clone(),
            real: real as u64,
            pools,
        }
    }

    /// What was found of a pool, with ids in place of numbers.
    fn pool(
        &self,
        found: &Findings,
        synthetic: &[String],
        real: &[String],
        pool: &str,
    ) -> Result<Pool> {
        let at = |ids: &[String], index: u64| {
            let id = usize::try_from(index).ok().and_then(|index| ids.get(index));
            id.cloned().ok_or_else(|| {
                let message = format!("image {index} of {} in a pair", ids.len());
                self.wrong(&message)
            })
        };
        let pairs = found.pairs.iter().map(|pair| {
            Ok(PairOf {
                synthetic: at(synthetic, pair.synthetic)?,
                real: at(real, pair.real)?,
                value: pair.value,
            })
        });
        Ok(Pool {
            images: synthetic.len() as u64,
            figures: Figures(self.figures_of(found, pool)?),
            pairs: pairs.collect::<Result<_>>()?,
            note: found.note.to_string(),
        })
    }
}

/// The ids of a dataset.
fn ids(dataset: &Shared) -> Result<Vec<String>> {
    let items = dataset.items()?;
    Ok(items.iter().map(|item| item.id.to_string()).collect())
}

fn judgement(record: &Record) -> Judgement {
    Judgement {
        accepted: record.file_name.is_some(),
        score: (!record.given_up).then_some(record.score).into(),
        attributes: attributes(&record.attributes),
    }
}

/// Facts as they were before they were written down.
fn attributes(written: &Map<String, Value>) -> Attributes {
    let mut attributes = Attributes::new();
    for (name, value) in written {
        match value {
            Value::Number(number) => {
                attributes.set_number(name, number.as_f64().unwrap_or(f64::NAN));
            }
            Value::Bool(flag) => attributes.set_flag(name, *flag),
            Value::String(text) => attributes.set_text(name, text),
            _ => {}
        }
    }
    attributes
}
