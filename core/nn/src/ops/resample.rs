//! Feature maps at another height and width, by the nearest pixel or between four.
//!
//! Which pixels and shares those are is what PyTorch's `interpolate` does for a given size.

use super::{fused, separable::separable};
use candle_core::{Result, Tensor, bail};
use diffaug_kernels::separable::Axis;

/// `x` `[batch, channels, _, _]` at `height` × `width`: each pixel is the one of `x` at its upper
/// left corner's place.
///
/// # Errors
/// When `x` has another number of dimensions, or a side of `x` or of the result is 0.
pub fn upsample_nearest2d(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (rows, columns) = sides(x, height, width)?;
    if !fused(x) && height.is_multiple_of(rows) && width.is_multiple_of(columns) {
        return repeated(x, height / rows, width / columns);
    }
    separable(x, nearest(rows, height), nearest(columns, width))
}

/// Every pixel `down` times below and `across` times beside itself, of candle's operations: a copy,
/// where a product with a matrix would cost a multiplication for each row and column.
fn repeated(x: &Tensor, down: usize, across: usize) -> Result<Tensor> {
    let (batch, channels, rows, columns) = x.dims4()?;
    x.reshape((batch * channels, rows, 1, columns, 1))?
        .broadcast_as((batch * channels, rows, down, columns, across))?
        .reshape((batch, channels, rows * down, columns * across))
}

/// `x` `[batch, channels, _, _]` at `height` × `width`: each pixel is mixed from the four of `x`
/// around its place; a smaller result is not smoothed beforehand.
///
/// With `align_corners`, the centres of the corner pixels stay in place, else their outer borders.
///
/// # Errors
/// When `x` has another number of dimensions, or a side of `x` or of the result is 0.
pub fn upsample_bilinear2d(
    x: &Tensor,
    height: usize,
    width: usize,
    align_corners: bool,
) -> Result<Tensor> {
    let (rows, columns) = sides(x, height, width)?;
    let axis = |from, to| linear(from, to, align_corners);
    separable(x, axis(rows, height), axis(columns, width))
}

/// Height and width of `x`.
fn sides(x: &Tensor, height: usize, width: usize) -> Result<(usize, usize)> {
    let (_, _, rows, columns) = x.dims4()?;
    if rows.min(columns).min(height).min(width) == 0 {
        bail!("resampling needs sides of at least 1, not {rows}×{columns} to {height}×{width}");
    }
    Ok((rows, columns))
}

fn nearest(from: usize, to: usize) -> Axis {
    // In f32 as PyTorch does it, whose rounding decides between neighbours now and then.
    let step = from as f32 / to as f32;
    let place = |at: usize| match () {
        () if from == to => at,
        () if to == 2 * from => at / 2,
        () => ((at as f32 * step) as usize).min(from - 1),
    };
    Axis::new(from, (0..to).map(|at| [(place(at), 1.0)]))
}

fn linear(from: usize, to: usize, align_corners: bool) -> Axis {
    let place = |at: usize| match (align_corners, to) {
        (true, 1) => 0.0,
        (true, _) => at as f32 * ((from - 1) as f32 / (to - 1) as f32),
        (false, _) => ((at as f32 + 0.5) * (from as f32 / to as f32) - 0.5).max(0.0),
    };
    let taps = |at: usize| {
        let place = place(at);
        let lower = (place as usize).min(from - 1);
        let upper = (lower + 1).min(from - 1);
        let share = place - lower as f32;
        if upper == lower {
            [(lower, 1.0), (lower, 0.0)]
        } else {
            [(lower, 1.0 - share), (upper, share)]
        }
    };
    Axis::new(from, (0..to).map(taps))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{super::separable::composed, *};
    use crate::ops;
    use crate::testing::{check_gradients, random, same};

    const SIZES: [[usize; 4]; 7] = [
        [5, 7, 10, 14],
        [5, 7, 13, 9],
        [6, 8, 3, 4],
        [7, 5, 3, 2],
        [1, 1, 4, 3],
        [4, 3, 1, 1],
        [3, 4, 3, 4],
    ];

    #[test]
    fn fused_and_composed_agree() {
        for (batch, [h, w, to_h, to_w]) in (1..).zip(SIZES) {
            let x = random("x", &[batch % 2 + 1, 2, h, w]);
            same(
                std::slice::from_ref(&x),
                |v| upsample_nearest2d(&v[0], to_h, to_w),
                |v| composed(&v[0], &nearest(h, to_h), &nearest(w, to_w)),
            );
            same(
                std::slice::from_ref(&x),
                |v| upsample_nearest2d(&v[0], to_h, to_w),
                |v| ops::composed(|| upsample_nearest2d(&v[0], to_h, to_w)),
            );
            for align in [false, true] {
                same(
                    std::slice::from_ref(&x),
                    |v| upsample_bilinear2d(&v[0], to_h, to_w, align),
                    |v| composed(&v[0], &linear(h, to_h, align), &linear(w, to_w, align)),
                );
            }
        }
    }

    #[test]
    fn gradients() {
        for [h, w, to_h, to_w] in SIZES {
            let x = [random("x", &[1, 2, h, w])];
            check_gradients(&x, |v| upsample_nearest2d(&v[0], to_h, to_w));
            check_gradients(&x, |v| upsample_bilinear2d(&v[0], to_h, to_w, false));
            check_gradients(&x, |v| upsample_bilinear2d(&v[0], to_h, to_w, true));
        }
    }

    #[test]
    fn an_input_used_twice_gets_both_gradients() {
        check_gradients(&[random("x", &[1, 1, 3, 3])], |v| {
            upsample_nearest2d(&v[0], 6, 6)? + upsample_nearest2d(&v[0].sqr()?, 6, 6)?
        });
    }

    #[test]
    fn the_same_size_is_the_same_map() {
        let x = random("x", &[1, 2, 3, 4]);
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for y in [
            upsample_nearest2d(&x, 3, 4),
            upsample_bilinear2d(&x, 3, 4, false),
            upsample_bilinear2d(&x, 3, 4, true),
        ] {
            assert_eq!(values(y.unwrap()), values(x.clone()));
        }
    }

    #[test]
    fn an_empty_side_is_named() {
        let x = random("x", &[1, 1, 3, 3]);
        let error = upsample_nearest2d(&x, 0, 3).unwrap_err().to_string();
        assert!(error.contains("3×3 to 0×3"), "{error}");
    }
}
