//! Statistics of a comparison of two trainings over the same test images: paired differences, a bootstrap
//! interval that keeps images of one patient or video together, the Wilcoxon signed-rank test, and Holm's
//! correction for several tests.

use diffaug::{Error, Result, metrics::quantile, rng};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Resamples of a bootstrap interval.
pub const RESAMPLES: usize = 10_000;
/// The level of a bootstrap interval.
pub const LEVEL: f64 = 0.95;
/// The most differences whose signed-rank distribution is computed exactly.
const MOST_EXACT: usize = 50;

/// The difference of two arms over the same images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Images that both have.
    pub images: usize,
    /// Groups of images that were resampled together.
    pub clusters: usize,
    /// Mean over images of the first arm less the second.
    pub difference: f64,
    /// Lower end of the bootstrap interval of `difference` ([`LEVEL`]).
    pub low: f64,
    /// Upper end of the same.
    pub high: f64,
    /// Two-sided p of the Wilcoxon signed-rank test over the means of clusters; `None` where none differs.
    pub p: Option<f64>,
}

impl Comparison {
    /// Compares pairs of scores of the same images; `clusters` names the group of each.
    ///
    /// Interval and test regard clusters as independent, and not the images of one. With few clusters (below
    /// about ten) the interval is too narrow.
    ///
    /// # Errors
    /// When there is no pair, the lengths differ, or a score is not finite.
    pub fn of(pairs: &[(f64, f64)], clusters: &[String], seed: u64) -> Result<Self> {
        let differences: Vec<f64> = pairs.iter().map(|(one, other)| one - other).collect();
        let sums = by_cluster(&differences, clusters)?;
        let (low, high) = bootstrap(&sums, seed);
        let means: Vec<f64> = sums.iter().map(|(sum, count)| sum / count).collect();
        Ok(Comparison {
            images: pairs.len(),
            clusters: sums.len(),
            difference: mean(&differences),
            low,
            high,
            p: wilcoxon(&means).map(|test| test.p),
        })
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The sum and the number of the values of each cluster: all that resamples of whole clusters need.
///
/// # Errors
/// When there is no value, a value is not finite, or `clusters` has another length.
fn by_cluster(values: &[f64], clusters: &[String]) -> Result<Vec<(f64, f64)>> {
    if values.is_empty() || values.len() != clusters.len() {
        return Err(Error::data(format!(
            "a bootstrap wants a cluster for each of at least one value, not {} for {}",
            clusters.len(),
            values.len()
        )));
    }
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(Error::data(format!("value {at} is not finite")));
    }
    let mut sums: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (value, cluster) in values.iter().zip(clusters) {
        let sum = sums.entry(cluster).or_default();
        *sum = (sum.0 + value, sum.1 + 1.0);
    }
    Ok(sums.into_values().collect())
}

/// The percentile interval of the mean over all values at [`LEVEL`], from [`RESAMPLES`] resamples of whole
/// clusters, each given by the sum and the number of its values.
fn bootstrap(sums: &[(f64, f64)], seed: u64) -> (f64, f64) {
    let mut rng = rng::stream(seed, "bootstrap", 0);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn = (0..sums.len()).map(|_| sums[rng.random_range(0..sums.len())]);
            let (sum, count) = drawn.fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
            sum / count
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let tail = (1.0 - LEVEL) / 2.0;
    // There are always resamples.
    let end = |at| quantile(&means, at).unwrap_or(f64::NAN);
    (end(tail), end(1.0 - tail))
}

/// The outcome of a Wilcoxon signed-rank test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignedRank {
    /// The smaller of the rank sums of positive and negative differences.
    pub statistic: f64,
    /// Two-sided p.
    pub p: f64,
    /// Whether `p` is exact, or of the normal approximation.
    pub exact: bool,
}

/// The two-sided Wilcoxon signed-rank test of paired differences; `None` where all are zero.
///
/// Differences of zero are left out. Up to 50 differences of which none are equal in size are tested by
/// the exact distribution, others by the normal approximation with the variance corrected for ties and
/// without correction for continuity, as `scipy.stats.wilcoxon` does.
pub fn wilcoxon(differences: &[f64]) -> Option<SignedRank> {
    let mut nonzero: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    nonzero.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let count = nonzero.len();
    if count == 0 {
        return None;
    }
    let (mut positive, mut ties) = (0.0, 0.0);
    let mut first = 0;
    for tied in nonzero.chunk_by(|a, b| a.abs() == b.abs()) {
        let size = tied.len() as f64;
        // Equal ones share the mean of their ranks, which begin at 1.
        let rank = first as f64 + (size + 1.0) / 2.0;
        positive += rank * tied.iter().filter(|d| **d > 0.0).count() as f64;
        ties += size.powi(3) - size;
        first += tied.len();
    }
    let n = count as f64;
    let statistic = positive.min(n * (n + 1.0) / 2.0 - positive);
    let exact = ties == 0.0 && count <= MOST_EXACT;
    let p = if exact {
        exact_p(statistic as usize, count)
    } else {
        let variance = n * (n + 1.0) * (2.0 * n + 1.0) / 24.0 - ties / 48.0;
        let z = (statistic - n * (n + 1.0) / 4.0) / variance.sqrt();
        libm::erfc(z.abs() / std::f64::consts::SQRT_2)
    };
    Some(SignedRank {
        statistic,
        p,
        exact,
    })
}

/// Twice the probability of a rank sum of at most `statistic` among `count` untied differences.
fn exact_p(statistic: usize, count: usize) -> f64 {
    // Ways to reach each rank sum by a choice of signs, as a share of all choices.
    let mut ways = vec![0.0f64; count * (count + 1) / 2 + 1];
    ways[0] = 1.0;
    for rank in 1..=count {
        for sum in (0..ways.len()).rev() {
            let with = if sum >= rank { ways[sum - rank] } else { 0.0 };
            ways[sum] = (ways[sum] + with) / 2.0;
        }
    }
    (2.0 * ways[..=statistic].iter().sum::<f64>()).min(1.0)
}

/// Holm's correction: the p of each test, adjusted for there being several.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut adjusted = vec![0.0; p.len()];
    let mut least = 0.0f64;
    for (done, &test) in order.iter().enumerate() {
        let left = (p.len() - done) as f64;
        least = least.max(left * p[test]).min(1.0);
        adjusted[test] = least;
    }
    adjusted
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Made by `fixtures/statistics.py` with SciPy, NumPy and statsmodels.
    fn reference() -> Value {
        serde_json::from_str(include_str!("../fixtures/statistics.json")).unwrap()
    }

    fn numbers(value: &Value) -> Vec<f64> {
        let all = value.as_array().unwrap().iter();
        all.map(|value| value.as_f64().unwrap()).collect()
    }

    #[test]
    fn the_signed_rank_test_agrees_with_scipy() {
        let cases = reference()["wilcoxon"].as_array().unwrap().clone();
        assert_eq!(cases.len(), 6);
        for case in cases {
            let found = wilcoxon(&numbers(&case["differences"])).unwrap();
            let wanted = |name: &str| case[name].as_f64().unwrap();
            assert_eq!(found.exact, case["exact"].as_bool().unwrap());
            assert!((found.statistic - wanted("statistic")).abs() < 1e-9);
            assert!(
                (found.p - wanted("p")).abs() < 1e-9,
                "{found:?} and {}",
                wanted("p")
            );
        }
        assert_eq!(wilcoxon(&[0.0, 0.0]), None);
        assert_eq!(wilcoxon(&[]), None);
    }

    #[test]
    fn quantiles_agree_with_numpy() {
        let case = &reference()["quantile"];
        let values = numbers(&case["values"]);
        for (at, wanted) in numbers(&case["at"]).iter().zip(numbers(&case["quantiles"])) {
            assert!((quantile(&values, *at).unwrap() - wanted).abs() < 1e-9);
        }
        assert_eq!(quantile(&[3.0], 0.975), Some(3.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn holm_agrees_with_statsmodels() {
        let case = &reference()["holm"];
        let found = holm(&numbers(&case["p"]));
        for (found, wanted) in found.iter().zip(numbers(&case["adjusted"])) {
            assert!((found - wanted).abs() < 1e-9);
        }
        assert!(holm(&[]).is_empty());
    }

    fn interval(values: &[f64], clusters: &[String], seed: u64) -> (f64, f64, usize) {
        let sums = by_cluster(values, clusters).unwrap();
        let (low, high) = bootstrap(&sums, seed);
        (low, high, sums.len())
    }

    fn names(count: usize, each: usize) -> Vec<String> {
        (0..count).map(|i| (i / each).to_string()).collect()
    }

    #[test]
    fn the_interval_is_that_of_the_normal_distribution_for_many_values() {
        let mut rng = rng::stream(1, "test", 0);
        let values: Vec<f64> = (0..2000).map(|_| rng.random_range(-1.0..1.0)).collect();
        let (low, high, clusters) = interval(&values, &names(2000, 1), 3);
        assert_eq!(clusters, 2000);
        // A uniform value between -1 and 1 has a deviation of 1 / sqrt(3).
        let half = 1.96 / (3.0f64 * 2000.0).sqrt();
        assert!(
            ((high - low) / 2.0 - half).abs() < 0.05 * half,
            "{low} {high}"
        );
        assert!(((low + high) / 2.0 - mean(&values)).abs() < 0.1 * half);
        assert_eq!(interval(&values, &names(2000, 1), 3).0, low);
    }

    #[test]
    fn images_of_a_cluster_count_as_one_draw() {
        // Ten equal images in each cluster tell no more than one of each.
        let of_each: Vec<f64> = (0..40).map(|i| f64::from(i % 7)).collect();
        let repeated: Vec<f64> = (0..400).map(|i| of_each[i / 10]).collect();
        let (low, high, _) = interval(&of_each, &names(40, 1), 5);
        let (clustered_low, clustered_high, clusters) = interval(&repeated, &names(400, 10), 5);
        let (alone_low, alone_high, _) = interval(&repeated, &names(400, 1), 5);
        assert_eq!(clusters, 40);
        let (wide, narrow) = (clustered_high - clustered_low, alone_high - alone_low);
        assert!((wide - (high - low)).abs() < 0.15 * wide, "{wide}");
        assert!(narrow < 0.5 * wide, "{narrow} {wide}");
    }

    #[test]
    fn a_comparison_is_of_pairs() {
        let pairs: Vec<(f64, f64)> = (0..30)
            .map(|i| (0.5 + 0.01 * f64::from(i), 0.4 + 0.0099 * f64::from(i)))
            .collect();
        let found = Comparison::of(&pairs, &names(30, 1), 0).unwrap();
        assert_eq!((found.images, found.clusters), (30, 30));
        assert!((found.difference - 0.10145).abs() < 1e-9);
        assert!(found.low > 0.1 && found.high < 0.103);
        assert!(found.p.unwrap() < 1e-6);
        // Images of one video are one observation to the test as well.
        let videos = Comparison::of(&pairs, &names(30, 10), 0).unwrap();
        assert_eq!((videos.clusters, videos.p), (3, Some(0.25)));
        assert!(Comparison::of(&[], &[], 0).is_err());
        assert!(Comparison::of(&[(f64::NAN, 0.0)], &names(1, 1), 0).is_err());
        assert!(Comparison::of(&pairs, &names(3, 1), 0).is_err());
    }
}
