//! Nearest neighbours among points.

use crate::points::{Points, squared_distance};
use diffaug::metrics::quantile;
use rayon::prelude::*;

/// How much of one set lies among the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Manifolds {
    /// Share of synthetic points that are nearer to a real one than its k-th neighbour (Kynkäänniemi et
    /// al., 2019).
    pub precision: f64,
    /// Share of real points that are nearer to a synthetic one than its k-th neighbour.
    pub recall: f64,
    /// To how many real points a synthetic one is as near as that, on average, over k (Naeem et al., 2020).
    pub density: f64,
    /// Share of real points that have a synthetic one as near as their k-th neighbour.
    pub coverage: f64,
}

/// The four figures with `k` neighbours, which are a point's nearest others of its own set; `None` unless
/// both sets have more than `k` points.
pub fn manifolds(real: &Points, synthetic: &Points, k: usize) -> Option<Manifolds> {
    if k == 0 || real.len() <= k || synthetic.len() <= k {
        return None;
    }
    let (real_radii, synthetic_radii) = (radii(real, k), radii(synthetic, k));
    // For each synthetic point, within how many real radii it lies.
    let within = synthetic.each(|_, row| {
        let near = |i: &usize| squared_distance(row, real.row(*i)) < real_radii[*i];
        (0..real.len()).filter(near).count()
    });
    // For each real point, whether a synthetic radius holds it, and whether its own holds one.
    let reached = real.each(|index, row| {
        let (mut recalled, mut nearest) = (false, f64::INFINITY);
        for (other, radius) in synthetic_radii.iter().enumerate() {
            let distance = squared_distance(row, synthetic.row(other));
            recalled |= distance < *radius;
            nearest = nearest.min(distance);
        }
        (recalled, nearest < real_radii[index])
    });
    let share = |count: usize, of: usize| count as f64 / of as f64;
    let total: usize = within.iter().sum();
    Some(Manifolds {
        precision: share(within.iter().filter(|n| **n > 0).count(), synthetic.len()),
        recall: share(reached.iter().filter(|r| r.0).count(), real.len()),
        density: share(total, synthetic.len()) / k as f64,
        coverage: share(reached.iter().filter(|r| r.1).count(), real.len()),
    })
}

/// The squared distance of each point from its `k`-th nearest other; there are more than `k` points.
fn radii(points: &Points, k: usize) -> Vec<f64> {
    points.each(|index, row| {
        let others = (0..points.len()).filter(|other| *other != index);
        let mut distances: Vec<f64> = others
            .map(|other| squared_distance(row, points.row(other)))
            .collect();
        *distances.select_nth_unstable_by(k - 1, f64::total_cmp).1
    })
}

/// The nearest of a set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nearest {
    /// Its place in the set; of equally near ones the first.
    pub place: usize,
    /// Its squared distance.
    pub squared: f64,
}

/// For each of `points` the nearest of `among`; none if there is none.
pub fn nearest(points: &Points, among: &Points) -> Vec<Nearest> {
    let found = points.each(|_, row| nearest_of(row, among, None));
    found.into_iter().flatten().collect()
}

/// For each of `points` the nearest other one; none if there is but one.
pub fn nearest_others(points: &Points) -> Vec<Nearest> {
    let found = points.each(|index, row| nearest_of(row, points, Some(index)));
    found.into_iter().flatten().collect()
}

fn nearest_of(row: &[f32], among: &Points, besides: Option<usize>) -> Option<Nearest> {
    let others = (0..among.len()).filter(|place| Some(*place) != besides);
    let all = others.map(|place| Nearest {
        place,
        squared: squared_distance(row, among.row(place)),
    });
    all.min_by(|a, b| a.squared.total_cmp(&b.squared))
}

/// The value below which `percent` of all lie, 0 to 100, between neighbours by their distance (NumPy's
/// default); `None` of none.
pub fn percentile(values: &[f64], percent: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.par_sort_unstable_by(f64::total_cmp);
    quantile(&sorted, percent / 100.0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{distances, features};

    #[test]
    fn the_four_figures_are_those_of_prdc() {
        for case in distances() {
            for (k, expected) in case.expected.prdc {
                let found = manifolds(&case.real, &case.synthetic, k).unwrap();
                let pairs = [
                    (found.precision, expected.precision),
                    (found.recall, expected.recall),
                    (found.density, expected.density),
                    (found.coverage, expected.coverage),
                ];
                for (found, expected) in pairs {
                    assert!((found - expected).abs() <= 1e-9, "{found}, {expected}");
                }
            }
        }
    }

    #[test]
    fn as_many_neighbours_as_points_are_too_many() {
        let (few, many) = (features(5, 3, 1), features(9, 3, 2));
        assert_eq!(manifolds(&few, &many, 5), None);
        assert_eq!(manifolds(&many, &few, 5), None);
        assert!(manifolds(&many, &few, 4).is_some());
        assert_eq!(manifolds(&many, &few, 0), None);
    }

    #[test]
    fn the_nearest_is_found_besides_the_point_itself() {
        let points = features(12, 3, 1);
        let own = nearest(&points, &points);
        assert!(
            own.iter()
                .enumerate()
                .all(|(i, n)| n.place == i && n.squared == 0.0)
        );
        let others = nearest_others(&points);
        assert!(others.iter().enumerate().all(|(i, n)| n.place != i));
        for (index, found) in others.iter().enumerate() {
            let other = (0..12).filter(|other| *other != index);
            let distances = other.map(|o| squared_distance(points.row(index), points.row(o)));
            assert_eq!(found.squared, distances.fold(f64::INFINITY, f64::min));
        }
        assert!(nearest_others(&features(1, 3, 1)).is_empty());
        assert!(nearest(&points, &Points::default()).is_empty());
    }

    #[test]
    fn percentiles_are_numpys() {
        let values = [4.0, 1.0, 3.0, 2.0];
        let at = |percent| percentile(&values, percent).unwrap();
        assert_eq!([at(0.0), at(50.0), at(100.0)], [1.0, 2.5, 4.0]);
        assert!((at(1.0) - 1.03).abs() < 1e-12);
        assert_eq!(percentile(&[7.0], 1.0), Some(7.0));
        assert_eq!(percentile(&[], 1.0), None);
    }
}
