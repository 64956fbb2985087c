//! The segmenters that the validator asks: one or several, alike but for their seeds, trained on all
//! real training images or, cross-fitted, once for each fold of them.

use super::{
    data::Data,
    once::{Fit, Steps},
    wire::Wire,
};
use crate::{failure::Failure, layout, manifest::StageTable, slots::SEGMENTER};
use diffaug::{BoxSegmenter, Dataset, Error, Item, Result, Segmenter, rng, view::Shared};
use rand::RngExt;
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
};

/// Which fold every training image belongs to.
#[derive(Debug)]
pub struct Folds {
    count: usize,
    by_id: HashMap<String, usize>,
}

impl Folds {
    /// Cuts `items` into `count` folds of about equal size; what belongs to one video or patient
    /// stays together.
    ///
    /// # Errors
    /// When there are fewer of those than folds.
    pub fn new(items: &[Item], count: u32, seed: u64) -> Result<Self> {
        let count = count as usize;
        let mut groups: BTreeMap<&str, Vec<&Item>> = BTreeMap::new();
        for item in items {
            let group = match item.group.as_str() {
                "" => item.id.as_str(),
                group => group,
            };
            groups.entry(group).or_default().push(item);
        }
        if groups.len() < count {
            return Err(Error::config(format!(
                "`synthesis.folds` is {count}, but there are {} images or groups to cut",
                groups.len()
            ))
            .at("synthesis.folds"));
        }
        let mut groups: Vec<(&str, Vec<&Item>)> = groups.into_iter().collect();
        let mut draw = rng::stream(seed, "folds", 0);
        for i in (1..groups.len()).rev() {
            groups.swap(i, draw.random_range(0..=i));
        }
        // The largest first, each to the fold that has least; equals stay in the order drawn.
        groups.sort_by_key(|(_, members)| std::cmp::Reverse(members.len()));
        let (mut sizes, mut by_id) = (vec![0; count], HashMap::new());
        for (_, members) in groups {
            let fold = (0..count).min_by_key(|fold| sizes[*fold]).unwrap_or(0);
            sizes[fold] += members.len();
            by_id.extend(members.iter().map(|item| (item.id.to_string(), fold)));
        }
        Ok(Folds { count, by_id })
    }

    /// The fold of a source; one that is no training image may be judged by any.
    pub fn of(&self, source: &str) -> usize {
        let any = || (rng::derive(0, "fold", source) % self.count as u64) as usize;
        self.by_id.get(source).copied().unwrap_or_else(any)
    }
}

/// The validator's segmenters.
pub struct Judges {
    folds: Folds,
    /// By fold.
    members: Vec<Vec<BoxSegmenter>>,
    /// What the first training came to.
    pub first: Option<Fit>,
    /// Where the one segmenter of a plain run, trained on all images, left its weights.
    pub weights: Option<PathBuf>,
}

impl Judges {
    /// Folds whose segmenters are not there yet.
    fn untrained(folds: Folds) -> Self {
        Judges {
            members: (0..folds.count).map(|_| Vec::new()).collect(),
            folds,
            first: None,
            weights: None,
        }
    }

    /// The segmenters that may judge what was painted on `source`.
    pub fn of(&self, source: &str) -> &[BoxSegmenter] {
        &self.members[self.fold(source)]
    }

    /// Whether it has segmenters.
    pub fn asks(&self) -> bool {
        self.members.iter().any(|members| !members.is_empty())
    }

    /// The fold of a source.
    pub fn fold(&self, source: &str) -> usize {
        self.folds.of(source)
    }
}

impl Default for Judges {
    /// No segmenters.
    fn default() -> Self {
        Judges::untrained(Folds {
            count: 1,
            by_id: HashMap::new(),
        })
    }
}

/// Trains or loads the validator's segmenters.
pub struct Training<'a, 'w> {
    /// Builds segmenters.
    pub wire: &'a Wire<'w>,
    /// Does each training once.
    pub steps: &'a Steps<'a>,
    /// The dataset.
    pub data: &'a Data,
    /// How many the validator asks.
    pub members: u32,
}

impl Training<'_, '_> {
    /// The segmenters of every fold, trained or loaded.
    ///
    /// # Errors
    /// When a training fails or the user stops the run.
    pub fn run(&self) -> Result<Judges, Failure> {
        let manifest = self.wire.manifest;
        if self.members > 1 && manifest.segmenter.given_weights().is_some() {
            let error = Error::config(format!(
                "`weights` gives one segmenter, but the validator `{}` asks {} that differ",
                manifest.validator.name, self.members
            ));
            return Err(self.wire.document.failure(SEGMENTER, error.at("weights")));
        }
        let train = self.data.train()?;
        let items: Vec<Item> = train.items()?.into_iter().collect();
        let folds = Folds::new(&items, manifest.synthesis.folds, manifest.seed)
            .map_err(|error| self.wire.document.failure("", error))?;
        let mut judges = Judges::untrained(folds);
        let mut names = layout::segmenters(judges.folds.count as u32, self.members).into_iter();
        for fold in 0..judges.folds.count {
            let part = match judges.folds.count {
                1 => train.clone(),
                _ => self
                    .data
                    .train_where(|item| judges.folds.of(&item.id) != fold)?,
            };
            for (member, name) in (0..self.members).zip(names.by_ref()) {
                let (segmenter, trained) = self.one(&name, part.clone(), member)?;
                if name == layout::SEGMENTER && trained.is_some() {
                    judges.weights = Some(self.steps.store.path(&name));
                }
                judges.first = judges.first.or(trained);
                judges.members[fold].push(segmenter);
            }
        }
        Ok(judges)
    }

    /// One segmenter, trained on `part` where the manifest gives no weights.
    fn one(
        &self,
        name: &str,
        part: Shared,
        member: u32,
    ) -> Result<(BoxSegmenter, Option<Fit>), Failure> {
        let manifest = self.wire.manifest;
        let (table, seed) = (&manifest.segmenter, manifest.seed + u64::from(member));
        let segmenter: BoxSegmenter = self.build(table, &table.json(), seed)?;
        if table.given_weights().is_some() {
            return Ok((segmenter, None));
        }
        let training = self.data.training(part, None, manifest, seed)?;
        let validation = self.data.validation()?;
        let out = self.steps.store.path(name);
        let label = match name {
            layout::SEGMENTER => format!("training {} for the validator", table.name),
            name => format!("training {} for the validator ({name})", table.name),
        };
        let marker = layout::marker(name);
        let trained = self
            .steps
            .fit((&marker, name), &label, |reporter| {
                let out = out.to_string_lossy();
                segmenter.fit(&training, &validation, (&*out).into(), reporter)
            })
            .map_err(|error| self.wire.place(SEGMENTER, table, error))?;
        if trained.is_none() {
            return Ok((segmenter, None));
        }
        let segmenter = self.build(table, &table.with_weights(&out), seed)?;
        Ok((segmenter, trained))
    }

    fn build(
        &self,
        table: &StageTable,
        options: &serde_json::Value,
        seed: u64,
    ) -> Result<BoxSegmenter, Failure> {
        self.wire.build(SEGMENTER, table, options, seed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn items(groups: &[&str]) -> Vec<Item> {
        let item = |(i, group): (usize, &&str)| {
            let mut item = Item::new(&format!("i{i}"));
            item.group = (*group).into();
            item
        };
        groups.iter().enumerate().map(item).collect()
    }

    #[test]
    fn groups_stay_together_and_folds_are_of_about_one_size() {
        let items = items(&["a", "a", "a", "b", "b", "", "", "", ""]);
        let folds = Folds::new(&items, 3, 7).unwrap();
        let of = |i: usize| folds.of(&format!("i{i}"));
        assert!(of(0) == of(1) && of(1) == of(2) && of(3) == of(4));
        for fold in 0..3 {
            assert_eq!((0..9).filter(|i| of(*i) == fold).count(), 3);
        }
        assert!(folds.of("from elsewhere") < 3);
        let again = Folds::new(&items, 3, 7).unwrap();
        assert!((0..9).all(|i| again.of(&format!("i{i}")) == of(i)));
    }

    #[test]
    fn fewer_groups_than_folds_are_refused() {
        let error = Folds::new(&items(&["a", "a"]), 2, 0).unwrap_err();
        assert_eq!(error.field, "synthesis.folds");
    }
}
