//! One-to-one matching of predicted components and lesions.

use crate::components::Components;
use std::collections::BTreeMap;

/// For each component of `found` the lesions of `truth` that it overlaps with an intersection over union of at least
/// `iou`, the best first.
pub fn partners(found: &Components, truth: &Components, iou: f64) -> Vec<Vec<usize>> {
    let mut common: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for (found, truth) in found.member.iter().zip(&truth.member) {
        if let (Some(found), Some(truth)) = (found, truth) {
            *common.entry((*found, *truth)).or_default() += 1;
        }
    }
    let mut partners: Vec<Vec<(f64, usize)>> = vec![Vec::new(); found.len()];
    for ((component, lesion), common) in common {
        let union = found.areas[component] + truth.areas[lesion] - common;
        let share = common as f64 / union as f64;
        if share >= iou {
            partners[component].push((share, lesion));
        }
    }
    let ordered = partners.into_iter().map(|mut lesions| {
        lesions.sort_by(|a, b| b.0.total_cmp(&a.0));
        lesions.into_iter().map(|(_, lesion)| lesion).collect()
    });
    ordered.collect()
}

/// A matching that grows by one component at a time.
struct Matching<'a> {
    partners: &'a [Vec<usize>],
    /// The component that each lesion is matched with.
    owner: Vec<Option<usize>>,
    /// The lesion that each component is matched with.
    held: Vec<Option<usize>>,
}

impl Matching<'_> {
    /// Matches `component` as well, where some lesion is free when others change theirs (an augmenting path, breadth
    /// first); whether it could be.
    fn add(&mut self, component: usize) -> bool {
        let mut reached_by: Vec<Option<usize>> = vec![None; self.owner.len()];
        let mut queue = vec![component];
        let mut next = 0;
        while let Some(&component) = queue.get(next) {
            next += 1;
            for &lesion in &self.partners[component] {
                if reached_by[lesion].is_some() {
                    continue;
                }
                reached_by[lesion] = Some(component);
                match self.owner[lesion] {
                    Some(other) => queue.push(other),
                    None => {
                        self.hand_over(lesion, &reached_by);
                        return true;
                    }
                }
            }
        }
        false
    }

    /// Gives the free `lesion` to the component that reached it, and what that held before to whom reached it.
    fn hand_over(&mut self, lesion: usize, reached_by: &[Option<usize>]) {
        let mut free = Some(lesion);
        while let Some(lesion) = free {
            self.owner[lesion] = reached_by[lesion];
            free = reached_by[lesion].and_then(|by| self.held[by].replace(lesion));
        }
    }
}

/// Whether each component is matched with one of `lesions` lesions, no two with the same, when components are taken in
/// the given `order`: after each of them as many are matched as can be (a maximum matching of those up to there).
///
/// A component once matched stays so, though perhaps with another lesion; hence in the order of falling scores
/// those matched down to any score are a maximum matching at that threshold.
pub fn matched(partners: &[Vec<usize>], order: &[usize], lesions: usize) -> Vec<bool> {
    let mut matching = Matching {
        partners,
        owner: vec![None; lesions],
        held: vec![None; partners.len()],
    };
    let mut matched = vec![false; partners.len()];
    for &component in order {
        matched[component] = !partners[component].is_empty() && matching.add(component);
    }
    matched
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matching_is_as_large_as_can_be() {
        // The first two want lesion 0 most; the third must push one of them on.
        let partners = vec![vec![0, 1], vec![0, 2], vec![0], vec![0, 1, 2], vec![]];
        assert_eq!(
            matched(&partners, &[0, 1, 2, 3, 4], 3),
            [true, true, true, false, false]
        );
        assert_eq!(
            matched(&partners, &[4, 3, 2, 1, 0], 3),
            [false, true, true, true, false]
        );
    }

    #[test]
    fn no_lesion_is_matched_twice() {
        let partners = vec![vec![0], vec![0]];
        assert_eq!(matched(&partners, &[1, 0], 1), [false, true]);
    }
}
