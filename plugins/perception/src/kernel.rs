//! The maximum mean discrepancy of two sets of points (Gretton et al., 2012), with the kernels of KID and
//! of CMMD.

use crate::points::{Points, dot, squared_distance};

/// Width of CMMD's Gaussian kernel, and what its discrepancy is multiplied by.
const SIGMA: f64 = 10.0;
const SCALE: f64 = 1000.0;

/// The squared kernel Inception distance (Binkowski et al., 2018): polynomial kernel (x·y / width + 1)³,
/// the unbiased estimate over all pairs, which is what the mean over drawn subsets estimates with less
/// noise. It may be below 0. `None` where a set has fewer than two points.
pub fn kid(a: &Points, b: &Points) -> Option<f64> {
    if a.len() < 2 || b.len() < 2 {
        return None;
    }
    let width = a.width() as f64;
    let kernel = |x: &[f32], y: &[f32]| (dot(x, y) / width + 1.0).powi(3);
    let within = |x: &Points| pairs_within(x, kernel) / count(x.len(), x.len() - 1);
    let across = pairs_between(a, b, kernel) / count(a.len(), b.len());
    Some(within(a) + within(b) - 2.0 * across)
}

/// CMMD (Jayasumana et al., 2024): a Gaussian kernel of width 10, times 1000, and as there the estimate
/// that counts each point with itself, which is a little above 0 for sets of one distribution. `None`
/// where a set has fewer than two points.
pub fn cmmd(a: &Points, b: &Points) -> Option<f64> {
    if a.len() < 2 || b.len() < 2 {
        return None;
    }
    let kernel = |x: &[f32], y: &[f32]| (-squared_distance(x, y) / (2.0 * SIGMA * SIGMA)).exp();
    let within = |x: &Points| (pairs_within(x, kernel) + x.len() as f64) / count(x.len(), x.len());
    let across = pairs_between(a, b, kernel) / count(a.len(), b.len());
    Some(SCALE * (within(a) + within(b) - 2.0 * across))
}

fn count(a: usize, b: usize) -> f64 {
    a as f64 * b as f64
}

/// The sum of `kernel` over all ordered pairs of two different points.
fn pairs_within(points: &Points, kernel: impl Fn(&[f32], &[f32]) -> f64 + Sync) -> f64 {
    let sums = points.each(|index, row| {
        let before = (0..index).map(|other| kernel(row, points.row(other)));
        before.sum::<f64>()
    });
    2.0 * sums.iter().sum::<f64>()
}

/// The sum of `kernel` over all pairs of a point of `a` and one of `b`.
fn pairs_between(a: &Points, b: &Points, kernel: impl Fn(&[f32], &[f32]) -> f64 + Sync) -> f64 {
    let sums = a.each(|_, row| {
        let all = (0..b.len()).map(|other| kernel(row, b.row(other)));
        all.sum::<f64>()
    });
    sums.iter().sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{distances, features};

    #[test]
    fn both_agree_with_their_references() {
        let near = |found: Option<f64>, expected: f64| {
            let found = found.unwrap();
            let error = (found - expected).abs() / expected.abs();
            assert!(error <= 1e-9, "{found}, expected {expected}");
        };
        for case in distances() {
            near(kid(&case.real, &case.synthetic), case.expected.kid);
            near(cmmd(&case.real, &case.synthetic), case.expected.cmmd);
        }
    }

    #[test]
    fn equal_sets_and_few_points() {
        let points = features(20, 4, 1);
        // Each point is with itself across, and not within.
        assert!(kid(&points, &points).unwrap() < 0.0);
        assert!(cmmd(&points, &points).unwrap().abs() < 1e-9);
        let one = features(1, 4, 1);
        assert_eq!((kid(&one, &points), cmmd(&points, &one)), (None, None));
    }
}
