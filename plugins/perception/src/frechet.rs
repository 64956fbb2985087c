//! The Frechet distance of two sets of points, each taken for a normal distribution.
//!
//! |m - n|² + tr A + tr B - 2 tr (A B)^½ with the means m and n and the covariances A and B (over one less
//! than the number of points), Dowson & Landau (1982). With A = XᵀX and B = YᵀY, where X and Y hold the
//! centred points, the last trace is the sum of the singular values of X Yᵀ: of a matrix with as many
//! rows as there are points and not features, and without the root of a matrix that is singular where
//! there are fewer points than features. Where there are more, X is replaced by the triangle of its QR
//! decomposition, which has the same covariance.

use crate::points::Points;
use diffaug::{Error, Result};
use nalgebra::{DMatrix, DVector};

/// A set of points as a normal distribution.
struct Spread {
    mean: DVector<f64>,
    /// A matrix X with the covariance XᵀX.
    factor: DMatrix<f64>,
    /// The trace of the covariance.
    trace: f64,
}

/// The squared distance of Frechet; `None` where a set has fewer than two points.
///
/// # Errors
/// When the singular values cannot be found.
pub fn frechet(a: &Points, b: &Points) -> Result<Option<f64>> {
    if a.len() < 2 || b.len() < 2 {
        return Ok(None);
    }
    let (a, b) = (Spread::of(a), Spread::of(b));
    let product = &a.factor * b.factor.transpose();
    let most = 100 * product.nrows().max(product.ncols());
    let Some(svd) = product.try_svd_unordered(false, false, 5.0 * f64::EPSILON, most) else {
        return Err(Error::internal(
            "the singular values of a Frechet distance were not found",
        ));
    };
    let shift = (a.mean - b.mean).norm_squared();
    let distance = shift + a.trace + b.trace - 2.0 * svd.singular_values.sum();
    // Equal sets come out at 0 but for rounding.
    Ok(Some(distance.max(0.0)))
}

impl Spread {
    fn of(points: &Points) -> Self {
        let (count, width) = (points.len(), points.width());
        let mut factor = DMatrix::from_fn(count, width, |row, column| {
            f64::from(points.row(row)[column])
        });
        let mean = factor.row_mean();
        let scale = 1.0 / ((count - 1) as f64).sqrt();
        for (mut column, mean) in factor.column_iter_mut().zip(mean.iter()) {
            column
                .iter_mut()
                .for_each(|value| *value = (*value - mean) * scale);
        }
        let trace = factor.norm_squared();
        if count > width {
            factor = factor.qr().r();
        }
        Spread {
            mean: mean.transpose(),
            factor,
            trace,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{DistanceCase, distances, features};

    #[test]
    fn it_agrees_with_pytorch_fid() {
        for DistanceCase {
            real,
            synthetic,
            expected,
        } in distances()
        {
            for found in [frechet(&real, &synthetic), frechet(&synthetic, &real)] {
                let (found, expected) = (found.unwrap().unwrap(), expected.frechet);
                let error = (found - expected).abs() / expected;
                assert!(error <= 1e-8, "{found}, expected {expected}");
            }
        }
    }

    #[test]
    fn equal_sets_are_at_nothing_and_few_points_have_no_distance() {
        let points = features(30, 12, 3);
        assert!(frechet(&points, &points).unwrap().unwrap() < 1e-9);
        assert_eq!(frechet(&points, &features(1, 12, 4)).unwrap(), None);
        assert_eq!(frechet(&features(1, 12, 4), &points).unwrap(), None);
    }
}
