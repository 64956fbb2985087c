//! The weighted F-measure: errors count less beside right pixels of the lesion, and more far from it.

use crate::{
    distance::{between, nearest},
    region::Region,
};

/// Half the side of the window over which errors are averaged.
const REACH: isize = 3;

/// Standard deviation of the window's weights, in pixels; also the distance at which an error in the background
/// counts half more.
const SIGMA: f64 = 5.0;

/// The weighted F-measure, beta² = 1, of `map`, values from 0 to 1; 0 of an empty truth.
pub fn f_measure(map: &[f64], truth: &Region) -> f64 {
    let Some(nearest) = nearest(truth) else {
        return 0.0;
    };
    let error = |at: usize| (map[at] - f64::from(u8::from(truth.inside[at]))).abs();
    // In the background the error of the nearest pixel of the lesion stands in, so that its outline is not averaged
    // with what lies beyond.
    let carried: Vec<f64> = nearest.iter().map(|&at| error(at)).collect();
    let (mut inside, mut outside) = (0.0, 0.0);
    let rows = weights();
    for (at, &near) in nearest.iter().enumerate() {
        match truth.inside[at] {
            true => inside += error(at).min(average(&carried, truth, at, &rows)),
            false => {
                let distance = between(truth.width, at, near);
                outside += error(at) * (2.0 - (0.5_f64.ln() / SIGMA * distance).exp());
            }
        }
    }
    let area = truth.area() as f64;
    let right = area - inside;
    let recall = 1.0 - inside / area;
    let precision = right / (right + outside + f64::EPSILON);
    2.0 * recall * precision / (recall + precision + f64::EPSILON)
}

/// Weights of a row of the window; those of a pixel are the products of two, and add up to 1.
fn weights() -> Vec<f64> {
    let weight = |d: isize| (-((d * d) as f64) / (2.0 * SIGMA * SIGMA)).exp();
    let sum: f64 = (-REACH..=REACH).map(weight).sum();
    (-REACH..=REACH).map(|d| weight(d) / sum).collect()
}

/// The weighted sum of `values` around the pixel `at`; beyond the image they are 0.
fn average(values: &[f64], truth: &Region, at: usize, weights: &[f64]) -> f64 {
    let (x, y) = (at % truth.width, at / truth.width);
    let mut sum = 0.0;
    for (dy, row) in (-REACH..=REACH).zip(weights) {
        let Some(v) = y.checked_add_signed(dy).filter(|v| *v < truth.height) else {
            continue;
        };
        for (dx, column) in (-REACH..=REACH).zip(weights) {
            if let Some(u) = x.checked_add_signed(dx).filter(|u| *u < truth.width) {
                sum += row * column * values[v * truth.width + u];
            }
        }
    }
    sum
}
