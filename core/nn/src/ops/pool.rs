//! Maximum and mean over windows.
//!
//! Candle's own gradient of the maximum is wrong: in 2×2 windows the largest value gets a quarter
//! of what it should. Windows that overlap have no gradient there at all.

use super::{fused, like, separable::separable};
use crate::operation::{Apply, Operand, Operation, with_values};
use candle_core::{Result, Shape, Tensor, bail};
use diffaug_kernels::{
    pool::{self, Windows},
    separable::Axis,
};
use std::sync::OnceLock;

/// Halves height and width by the maximum over 2×2 windows; an odd last row or column is left
/// out. The gradient goes to the first largest value of a window.
///
/// # Errors
/// When `x` is not `[batch, channels, height, width]` with a whole window.
pub fn max_pool2x2(x: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    if height < 2 || width < 2 {
        bail!("pooling by 2×2 needs maps of at least that size, not {height}×{width}");
    }
    if fused(x) {
        return [x].apply(MaxPool);
    }
    let x = x
        .narrow(2, 0, height / 2 * 2)?
        .narrow(3, 0, width / 2 * 2)?;
    composed(&x)
}

/// The same of candle's operations.
fn composed(x: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let windows = (batch, channels, height / 2, 2, width / 2, 2);
    let rows = x.reshape(windows)?;
    let pick = |i: usize, j: usize| rows.narrow(3, i, 1)?.narrow(5, j, 1)?.contiguous();
    let upper = larger(pick(0, 0)?, &pick(0, 1)?)?;
    let peaks = larger(larger(upper, &pick(1, 0)?)?, &pick(1, 1)?)?;
    peaks.reshape((batch, channels, height / 2, width / 2))
}

/// The larger of two values at each place, `best` where they are equal or it is NaN. Candle's `maximum`
/// shares the gradient among equal values.
fn larger(best: Tensor, v: &Tensor) -> Result<Tensor> {
    // What is NaN is not its own equal.
    (best.ge(v)? + best.ne(&best)?)?.where_cond(&best, v)
}

/// The largest value of each window of `kernel` (height, width), `stride` apart, on `x` `[batch,
/// channels, height, width]` with `padding` of -∞ on both sides of each axis.
///
/// There are ⌊(side + 2 padding - kernel) / stride⌋ + 1 windows along a side. The gradient goes to
/// the first largest value of a window.
///
/// # Errors
/// When `x` has another number of dimensions or is smaller than a window, kernel or stride are 0,
/// or the padding exceeds half the kernel.
pub fn max_pool2d(
    x: &Tensor,
    kernel: (usize, usize),
    stride: (usize, usize),
    padding: (usize, usize),
) -> Result<Tensor> {
    if (kernel, stride, padding) == ((2, 2), (2, 2), (0, 0)) {
        return max_pool2x2(x);
    }
    let (rows, columns) = windows(x, kernel, stride, padding)?;
    if fused(x) {
        let op = Peaks {
            rows,
            columns,
            places: OnceLock::new(),
        };
        return [x].apply(op);
    }
    composed_peaks(x, rows, columns)
}

/// The mean of each window of `kernel` (height, width), `stride` apart, on `x` `[batch, channels,
/// height, width]` with `padding` on both sides of each axis: zeros that count towards the mean if
/// `count_include_pad`, else nothing.
///
/// # Errors
/// Those of [`max_pool2d`].
pub fn avg_pool2d(
    x: &Tensor,
    kernel: (usize, usize),
    stride: (usize, usize),
    padding: (usize, usize),
    count_include_pad: bool,
) -> Result<Tensor> {
    let (rows, columns) = windows(x, kernel, stride, padding)?;
    let axis = |windows| means(windows, count_include_pad);
    separable(x, axis(rows), axis(columns))
}

/// The windows along both sides of the maps of `x`.
fn windows(
    x: &Tensor,
    kernel: (usize, usize),
    stride: (usize, usize),
    padding: (usize, usize),
) -> Result<(Windows, Windows)> {
    let (_, _, height, width) = x.dims4()?;
    let along = |side, kernel: usize, stride, padding| {
        if kernel == 0 || stride == 0 {
            bail!("pooling needs a kernel and a stride of at least 1, not {kernel} and {stride}");
        }
        if padding > kernel / 2 {
            bail!("pooling by {kernel} needs a padding of at most half of it, not {padding}");
        }
        if side == 0 || side + 2 * padding < kernel {
            bail!(
                "pooling by {kernel} needs a side of that length, not {side} and {padding} around it"
            );
        }
        Ok(Windows {
            side,
            kernel,
            stride,
            padding,
        })
    };
    Ok((
        along(height, kernel.0, stride.0, padding.0)?,
        along(width, kernel.1, stride.1, padding.1)?,
    ))
}

fn means(windows: Windows, count_include_pad: bool) -> Axis {
    let taps = |window| {
        let range = windows.range(window);
        let count = if count_include_pad {
            windows.kernel
        } else {
            range.len()
        };
        range.map(move |at| (at, 1.0 / count as f32))
    };
    Axis::new(windows.side, (0..windows.count()).map(taps))
}

/// [`max_pool2d`] of candle's operations: a running maximum over the places of a window.
fn composed_peaks(x: &Tensor, rows: Windows, columns: Windows) -> Result<Tensor> {
    // A place beyond the border stands for the one at the border, which is in the window, too.
    let places = |windows: Windows, offset: usize| {
        let place = |window: usize| {
            let at = (window * windows.stride + offset).saturating_sub(windows.padding);
            at.min(windows.side - 1) as u32
        };
        Tensor::from_iter((0..windows.count()).map(place), x.device())
    };
    let mut best: Option<Tensor> = None;
    for y in 0..rows.kernel {
        let lines = x.index_select(&places(rows, y)?, 2)?;
        for x in 0..columns.kernel {
            let v = lines.index_select(&places(columns, x)?, 3)?;
            best = Some(match best {
                Some(best) => larger(best, &v)?,
                None => v,
            });
        }
    }
    match best {
        Some(best) => Ok(best),
        None => bail!("pooling needs a kernel of at least 1, not 0"),
    }
}

struct Peaks {
    rows: Windows,
    columns: Windows,
    /// Where the forward pass found the largest values.
    places: OnceLock<Vec<u32>>,
}

impl Operation<1> for Peaks {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn forward(&self, [x]: [Operand<'_>; 1]) -> Result<(Vec<f32>, Shape)> {
        let (batch, channels, ..) = x.shape.dims4()?;
        let (out, places) = pool::peaks(x.values, self.rows, self.columns);
        self.places.get_or_init(|| places);
        let shape = (batch, channels, self.rows.count(), self.columns.count());
        Ok((out, Shape::from(shape)))
    }

    fn backward(&self, [x]: [&Tensor; 1], _: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let Some(places) = self.places.get() else {
            bail!("max_pool2d went backward before it went forward");
        };
        let size = self.rows.side * self.columns.side;
        let count = self.rows.count() * self.columns.count();
        let dx = with_values([dy], |[dy]| pool::scatter(dy, places, size, count))?;
        Ok([Some(like(dx, x)?)])
    }
}

struct MaxPool;

impl Operation<1> for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool2x2"
    }

    fn forward(&self, [x]: [Operand<'_>; 1]) -> Result<(Vec<f32>, Shape)> {
        let (batch, channels, height, width) = x.shape.dims4()?;
        let out = pool::forward(x.values, height, width);
        Ok((out, (batch, channels, height / 2, width / 2).into()))
    }

    fn backward(&self, [x]: [&Tensor; 1], y: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let (_, _, height, width) = x.dims4()?;
        let dx = with_values([x, y, dy], |[x, y, dy]| {
            pool::backward(x, y, dy, height, width)
        })?;
        Ok([Some(like(dx, x)?)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        ops::separable::composed as composed_map,
        testing::{check_gradients, close, random, same},
    };
    use candle_core::{Device, Var};

    /// Kernel, stride, padding, and the shape of the maps.
    type Case = ([(usize, usize); 3], [usize; 4]);

    const CASES: [Case; 6] = [
        ([(3, 3), (2, 2), (1, 1)], [2, 3, 7, 9]),
        ([(2, 3), (1, 2), (1, 0)], [1, 2, 5, 8]),
        ([(2, 2), (3, 3), (0, 0)], [1, 1, 9, 7]),
        ([(3, 2), (3, 2), (0, 1)], [1, 2, 8, 5]),
        ([(1, 1), (1, 1), (0, 0)], [1, 1, 1, 1]),
        ([(5, 5), (1, 1), (2, 2)], [1, 1, 3, 3]),
    ];

    /// Values in random order that differ by at least 0.1, so that small steps change no maximum.
    fn apart(shape: [usize; 4]) -> Tensor {
        let x = random("apart", &shape).flatten_all().unwrap();
        let rank = x.arg_sort_last_dim(true).unwrap();
        let rank = rank.arg_sort_last_dim(true).unwrap();
        let rank = rank.to_dtype(candle_core::DType::F32).unwrap();
        ((rank * 0.1).unwrap() - 1.0)
            .unwrap()
            .reshape(&shape)
            .unwrap()
    }

    #[test]
    fn fused_and_composed_agree() {
        for ([kernel, stride, padding], shape) in CASES {
            let x = [apart(shape)];
            let (rows, columns) = windows(&x[0], kernel, stride, padding).unwrap();
            same(
                &x,
                |v| max_pool2d(&v[0], kernel, stride, padding),
                |v| composed_peaks(&v[0], rows, columns),
            );
            for count in [false, true] {
                same(
                    &x,
                    |v| avg_pool2d(&v[0], kernel, stride, padding, count),
                    |v| composed_map(&v[0], &means(rows, count), &means(columns, count)),
                );
            }
        }
    }

    #[test]
    fn gradients_of_any_windows() {
        for ([kernel, stride, padding], shape) in CASES {
            let x = [apart(shape)];
            check_gradients(&x, |v| max_pool2d(&v[0], kernel, stride, padding));
            let x = [random("x", &shape)];
            for count in [false, true] {
                check_gradients(&x, |v| avg_pool2d(&v[0], kernel, stride, padding, count));
            }
        }
    }

    #[test]
    fn equal_values_and_nan_in_any_window() {
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let map = [1f32, 1., 0., 1., f32::NAN, f32::NEG_INFINITY, 0., 0., 0.];
        let x = Tensor::new(&map, &Device::Cpu).unwrap();
        let x = Var::from_tensor(&x.reshape((1, 1, 3, 3)).unwrap()).unwrap();
        let (rows, columns) = windows(&x, (2, 3), (1, 1), (1, 1)).unwrap();
        let fused = max_pool2d(&x, (2, 3), (1, 1), (1, 1));
        for y in [fused, composed_peaks(&x, rows, columns)] {
            let y = y.unwrap();
            let (finite, nan): (Vec<f32>, Vec<f32>) =
                values(&y).into_iter().partition(|v| !v.is_nan());
            assert_eq!((finite, nan.len()), (vec![1., 1., 1., 0., 0., 0.], 6));
            let grads = y.sum_all().unwrap().backward().unwrap();
            // The windows of the first row: both equal values lie in two, and the first wins.
            let first = y.narrow(2, 0, 1).unwrap().sum_all().unwrap().backward();
            let first = values(first.unwrap().get(&x).unwrap());
            assert_eq!(first, [2., 1., 0., 0., 0., 0., 0., 0., 0.]);
            assert_eq!(values(grads.get(&x).unwrap())[4], 6.0);
        }
    }

    #[test]
    fn windows_that_cannot_be_are_named() {
        let x = random("x", &[1, 1, 3, 1]);
        let message = |y: Result<Tensor>| y.unwrap_err().to_string();
        let error = message(max_pool2d(&x, (4, 1), (1, 1), (0, 0)));
        assert!(error.contains("by 4 needs a side"), "{error}");
        let error = message(avg_pool2d(&x, (3, 1), (1, 1), (2, 0), true));
        assert!(error.contains("at most half of it, not 2"), "{error}");
        let error = message(max_pool2d(&x, (1, 1), (0, 1), (0, 0)));
        assert!(error.contains("not 1 and 0"), "{error}");
        let error = message(max_pool2x2(&x));
        assert!(error.contains("not 3×1"), "{error}");
    }

    #[test]
    fn the_whole_gradient_goes_to_the_largest() {
        let x = Tensor::new(&[1f32, 2., 3., 4.], &Device::Cpu).unwrap();
        let x = Var::from_tensor(&x.reshape((1, 1, 2, 2)).unwrap()).unwrap();
        for pool in [max_pool2x2, composed] {
            let grads = pool(&x).unwrap().sum_all().unwrap().backward().unwrap();
            let grad = grads.get(&x).unwrap().flatten_all().unwrap();
            assert_eq!(grad.to_vec1::<f32>().unwrap(), [0., 0., 0., 1.]);
        }
    }

    #[test]
    fn equal_values_get_the_gradient_once() {
        let x = Var::ones((1, 1, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        for pool in [max_pool2x2, composed] {
            let grads = pool(&x).unwrap().sum_all().unwrap().backward().unwrap();
            let grad = grads.get(&x).unwrap().sum_all().unwrap();
            assert_eq!(grad.to_scalar::<f32>().unwrap(), 1.0);
        }
    }

    #[test]
    fn odd_sides_and_gradients() {
        let x = random("x", &[2, 3, 5, 7]);
        let y = max_pool2x2(&x).unwrap();
        close(&y, &x.max_pool2d(2).unwrap(), 0.0);
        check_gradients(&[x], |v| max_pool2x2(&v[0]));
        check_gradients(&[random("x", &[1, 2, 4, 6])], |v| composed(&v[0]));
    }
}
