//! The free-response curve: sensitivity against false positives an image, from histograms of scores.
//!
//! Scores are counted in [`BINS`] bins that are equally wide in log odds, because networks are sure of most of what
//! they find: equal steps of probability would put nearly all components into one bin. The curve has a point for each
//! lower end of a bin, begins at (0, 0), and is linear in between; beyond its last point it stays as high as there
//! (LUNA16's evaluation; Setio et al. 2017, doi:10.1016/j.media.2017.06.015).

/// How many bins scores are counted in.
pub const BINS: usize = 512;

/// The log odds of 1 - 2^-24, above which `f32` has no probability but 1; bins go from minus this to this.
const MOST: f64 = 24.0 * std::f64::consts::LN_2;

/// False positives an image at which the sensitivity is told, with what the figure is called.
pub const RATES: [(f64, &str); 7] = [
    (0.125, "sensitivity_at_0_125"),
    (0.25, "sensitivity_at_0_25"),
    (0.5, "sensitivity_at_0_5"),
    (1.0, "sensitivity_at_1"),
    (2.0, "sensitivity_at_2"),
    (4.0, "sensitivity_at_4"),
    (8.0, "sensitivity_at_8"),
];

/// The bin of a score, which is a probability from 0 to 1.
pub fn bin(score: f32) -> usize {
    let score = f64::from(score);
    let odds = (score / (1.0 - score)).ln();
    let place = (odds + MOST) / (2.0 * MOST) * BINS as f64;
    // A cast saturates: a score of 0 is in the first bin, one of 1 in the last.
    (place as usize).min(BINS - 1)
}

/// Sensitivity at each of [`RATES`], from how many components of each bin are matched with a lesion and how many are
/// not, over `images` images with `lesions` lesions; `None` without images or lesions.
pub fn sensitivities(
    matched: &[f64],
    unmatched: &[f64],
    lesions: f64,
    images: f64,
) -> Option<[f64; RATES.len()]> {
    if images <= 0.0 || lesions <= 0.0 {
        return None;
    }
    let mut curve = vec![(0.0, 0.0)];
    let (mut found, mut invented) = (0.0, 0.0);
    for (matched, unmatched) in matched.iter().zip(unmatched).rev() {
        found += matched;
        invented += unmatched;
        curve.push((invented / images, found / lesions));
    }
    Some(RATES.map(|(rate, _)| interpolate(&curve, rate)))
}

/// The height of a rising `curve` at `x`: where it rises straight up, that of the top; beyond its end, that of the end.
fn interpolate(curve: &[(f64, f64)], x: f64) -> f64 {
    let after = curve.partition_point(|point| point.0 <= x);
    match (curve[..after].last(), curve.get(after)) {
        (Some(a), Some(b)) => a.1 + (b.1 - a.1) * (x - a.0) / (b.0 - a.0),
        (Some(end), None) => end.1,
        (None, _) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_rise_with_the_score_and_hold_every_probability() {
        let scores = [
            0.0, 1e-30, 1e-7, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999, 0.999_999, 1.0,
        ];
        let bins = scores.map(bin);
        assert!(bins.is_sorted(), "{bins:?}");
        assert_eq!((bins[0], bins[5], bins[10]), (0, BINS / 2, BINS - 1));
        let sure = bins[6..].windows(2);
        assert!(sure.clone().all(|pair| pair[0] < pair[1]), "{bins:?}");
    }

    #[test]
    fn the_curve_is_linear_and_ends_flat() {
        let curve = [(0.0, 0.0), (0.0, 0.2), (1.0, 0.6), (1.0, 0.8)];
        let at = |x| interpolate(&curve, x);
        assert_eq!((at(0.0), at(1.0), at(3.0)), (0.2, 0.8, 0.8));
        assert!((at(0.5) - 0.4).abs() < 1e-15);
    }

    #[test]
    fn without_lesions_there_is_no_curve() {
        assert_eq!(sensitivities(&[0.0], &[1.0], 0.0, 1.0), None);
        let all = sensitivities(&[1.0], &[0.0], 2.0, 1.0);
        assert_eq!(all, Some([0.5; RATES.len()]));
    }
}
