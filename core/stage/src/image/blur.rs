//! Blur by a Gaussian.

/// The values of a raster (row by row, one a pixel) blurred by a Gaussian of `sigma` pixels, cut off at
/// three `sigma`. Beyond the edge there is nothing: the weights of what is there sum to 1. At a `sigma` of
/// 0 or below the values come back as they are.
pub fn gaussian_blur(values: &[f32], width: usize, height: usize, sigma: f32) -> Vec<f32> {
    if sigma <= 0.0 || width == 0 {
        return values.to_vec();
    }
    let mut across = Vec::with_capacity(values.len());
    let columns = taps(width, sigma);
    for row in values.chunks_exact(width) {
        across.extend(columns.iter().map(|(first, weights)| {
            let taken = weights.iter().zip(&row[*first..]);
            taken.map(|(weight, value)| weight * value).sum::<f32>()
        }));
    }
    let mut out = vec![0.0; values.len()];
    for (row, (first, weights)) in out.chunks_exact_mut(width).zip(taps(height, sigma)) {
        let rows = across[first * width..].chunks_exact(width);
        for (weight, from) in weights.iter().zip(rows) {
            for (sum, value) in row.iter_mut().zip(from) {
                *sum += weight * value;
            }
        }
    }
    out
}

/// For each place along a side: the first place that it takes from, and the weights of that one and those
/// after it, which sum to 1.
fn taps(len: usize, sigma: f32) -> Vec<(usize, Vec<f32>)> {
    let weights: Vec<f32> = (0..=reach(sigma))
        .map(|distance| (-0.5 * (distance as f32 / sigma).powi(2)).exp())
        .collect();
    (0..len)
        .map(|at| {
            let first = at.saturating_sub(reach(sigma));
            let end = (at + reach(sigma) + 1).min(len);
            let taken = (first..end).map(|from| weights[from.abs_diff(at)]);
            let sum: f32 = taken.clone().sum();
            (first, taken.map(|weight| weight / sum).collect())
        })
        .collect()
}

/// How many pixels away a pixel still counts.
fn reach(sigma: f32) -> usize {
    (3.0 * sigma).ceil() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_becomes_a_gaussian_and_nothing_is_lost() {
        let mut point = vec![0.0; 31 * 21];
        point[10 * 31 + 15] = 1000.0;
        let blurred = gaussian_blur(&point, 31, 21, 1.5);
        let centre = blurred[10 * 31 + 15];
        // A sampled Gaussian has about the peak of the continuous one, 1 / (2 pi sigma^2).
        assert!(
            (centre - 1000.0 / (4.5 * std::f32::consts::PI)).abs() < 0.5,
            "{centre}"
        );
        for (dx, dy) in [(1usize, 0usize), (0, 1), (2, 1)] {
            let found = blurred[(10 + dy) * 31 + 15 + dx] / centre;
            let square = (dx * dx + dy * dy) as f32;
            assert!((found - (-square / 4.5).exp()).abs() < 1e-4);
        }
        assert!((blurred.iter().sum::<f32>() - 1000.0).abs() < 0.05);
    }

    #[test]
    fn flat_values_stay_flat_up_to_the_edge() {
        for sigma in [0.3, 1.5, 5.0] {
            let blurred = gaussian_blur(&[7.0; 6 * 4], 6, 4, sigma);
            assert!(blurred.iter().all(|v| (v - 7.0).abs() < 1e-5), "{sigma}");
        }
        assert_eq!(gaussian_blur(&[1.0, 5.0], 2, 1, 0.0), [1.0, 5.0]);
    }
}
