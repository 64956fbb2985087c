//! Counts by the size of lesions, and quotas: how many accepted images are wanted of each size.
//!
//! Whether a candidate is still wanted depends on what was accepted among those before it, and on
//! nothing else; so what was painted ahead of its verdicts and turns out not to be wanted is as if it
//! had not been painted.

use super::{candidates::Skipped, record::Record};
use crate::journal::{Entry, Line};
use diffaug::{MaskRef, lesion::SizeGroup};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Acceptance of lesions of one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Size {
    /// What share of the image they cover.
    pub size: String,
    /// How many accepted images are wanted, with quotas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<u64>,
    /// How many were judged.
    pub candidates: u64,
    /// How many were kept.
    pub accepted: u64,
}

impl Size {
    /// Counts one among those of `all` that are called `size`.
    pub fn count(all: &mut [Size], size: &str, accepted: bool) {
        for one in all.iter_mut().filter(|one| one.size == size) {
            one.candidates += 1;
            one.accepted += u64::from(accepted);
        }
    }
}

/// Every size, of which there are none yet.
pub fn sizes() -> Vec<Size> {
    let none = |group: SizeGroup| Size {
        size: group.name().to_owned(),
        wanted: None,
        candidates: 0,
        accepted: 0,
    };
    SizeGroup::ALL.map(none).to_vec()
}

/// The size of the lesion of a mask that holds target labels alone.
pub fn group(mask: MaskRef<'_>) -> SizeGroup {
    SizeGroup::of(mask.foreground() as f64 / mask.labels().len() as f64)
}

/// The size that a record tells.
fn group_of(record: &Record) -> Option<SizeGroup> {
    let name = record.size.as_deref()?;
    SizeGroup::ALL
        .into_iter()
        .find(|group| group.name() == name)
}

/// How many accepted images are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    total: u64,
    each: Option<[u64; 3]>,
}

impl Quota {
    /// `ratio` for each of `real` training images, of whatever size.
    pub fn of_all(ratio: f64, real: usize) -> Self {
        Quota {
            total: (ratio * real as f64).round() as u64,
            each: None,
        }
    }

    /// `ratio` for each real lesion of its size; `real` counts them in the order of [`SizeGroup::ALL`].
    pub fn of_each(ratio: f64, real: [u64; 3]) -> Self {
        let each = real.map(|count| (ratio * count as f64).round() as u64);
        Quota {
            total: each.iter().sum(),
            each: Some(each),
        }
    }

    /// The same without regard to sizes.
    pub fn of_any_size(self) -> Self {
        Quota { each: None, ..self }
    }

    /// Of all sizes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Notes in `sizes` how many are wanted of each, where that is fixed.
    pub fn note(&self, sizes: &mut [Size]) {
        for (size, wanted) in sizes.iter_mut().zip(self.each.iter().flatten()) {
            size.wanted = Some(*wanted);
        }
    }

    /// What was accepted so far.
    pub fn filled(self, entries: &BTreeMap<u64, Entry<Record>>) -> Filled {
        let mut filled = Filled {
            quota: self,
            accepted: Default::default(),
        };
        for entry in entries.values() {
            filled.add(&entry.record);
        }
        filled
    }
}

/// What of a quota is accepted.
#[derive(Debug)]
pub struct Filled {
    quota: Quota,
    /// The numbers of accepted candidates of each size, in ascending order.
    accepted: [Vec<u64>; 3],
}

impl Filled {
    /// Whether enough candidates before `index` were accepted of a size. Once true it stays true,
    /// whatever is added; it may become true late where verdicts are still missing.
    pub fn is_full(&self, size: SizeGroup, index: u64) -> bool {
        let Some(each) = self.quota.each else {
            return false;
        };
        match each[size as usize].checked_sub(1) {
            None => true,
            Some(last) => self.accepted[size as usize]
                .get(last as usize)
                .is_some_and(|last| *last < index),
        }
    }

    /// What remains of a record when all before it are known: the record itself, noted if it was
    /// accepted, or that it was not wanted.
    pub fn settle(&mut self, record: Record) -> Record {
        if let (true, Some(size)) = (record.painted(), group_of(&record))
            && self.is_full(size, record.index)
        {
            let skipped = Skipped::full(record.id, record.source, record.variant, size);
            return Record::skipped(record.index, skipped);
        }
        self.add(&record);
        record
    }

    fn add(&mut self, record: &Record) {
        let Some(size) = group_of(record).filter(|_| record.accepted()) else {
            return;
        };
        let all = &mut self.accepted[size as usize];
        let at = all.partition_point(|index| *index < record.index);
        all.insert(at, record.index);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(index: u64, size: SizeGroup, accepted: bool) -> Record {
        let line = json!({
            "file_name": accepted.then_some("a.png"), "id": format!("a/{index}"), "index": index,
            "source": "a", "variant": 0, "size": size.name(),
        });
        serde_json::from_value(line).unwrap()
    }

    use SizeGroup::{Large, Medium, Small};

    /// Which of some candidates are kept, whatever their order of arrival.
    fn kept(quota: Quota, all: &[(SizeGroup, bool)]) -> Vec<&'static str> {
        let mut filled = quota.filled(&BTreeMap::new());
        let each = (0..).zip(all).map(|(index, (size, accepted))| {
            let settled = filled.settle(record(index, *size, *accepted));
            match (settled.passed_over, settled.accepted()) {
                (true, _) => "full",
                (_, true) => "kept",
                _ => "rejected",
            }
        });
        each.collect()
    }

    #[test]
    fn a_size_that_has_enough_takes_no_more() {
        let quota = Quota::of_each(0.5, [2, 4, 1]);
        // Half of one is rounded up.
        assert_eq!(quota.total(), 1 + 2 + 1);
        let all = [
            (Small, true),
            (Small, true),
            (Medium, false),
            (Medium, true),
            (Small, false),
            (Large, true),
            (Medium, true),
            (Medium, true),
        ];
        let expected = [
            "kept", "full", "rejected", "kept", "full", "kept", "kept", "full",
        ];
        assert_eq!(kept(quota, &all), expected);
        // Of a size that no real lesion has, none is wanted.
        assert_eq!(
            kept(Quota::of_each(1.0, [0, 1, 0]), &all[..2]),
            ["full", "full"]
        );
        assert_eq!(kept(Quota::of_all(1.0, 1), &all[..2]), ["kept", "kept"]);
    }

    #[test]
    fn what_was_lost_is_judged_by_what_came_before_it() {
        let entry = |index, accepted| {
            let entry = Entry {
                record: record(index, Small, accepted),
                files: BTreeMap::new(),
            };
            (index, entry)
        };
        // Of two wanted, the second was lost, and candidate 5 was not wanted any more.
        let left = BTreeMap::from([entry(0, true), entry(1, false)]);
        let mut filled = Quota::of_each(1.0, [2, 0, 0]).filled(&left);
        assert!(!filled.is_full(Small, 3));
        assert!(filled.settle(record(3, Small, true)).accepted());
        assert!(filled.settle(record(5, Small, true)).passed_over);
        assert!(filled.is_full(Small, 4) && !filled.is_full(Small, 3));
    }

    #[test]
    fn counts_go_to_their_size() {
        let mut all = sizes();
        Size::count(&mut all, Medium.name(), true);
        Size::count(&mut all, Medium.name(), false);
        Quota::of_each(2.0, [1, 2, 3]).note(&mut all);
        let figures: Vec<_> = all
            .iter()
            .map(|s| (s.wanted, s.candidates, s.accepted))
            .collect();
        assert_eq!(figures, [(Some(2), 0, 0), (Some(4), 2, 1), (Some(6), 0, 0)]);
    }
}
