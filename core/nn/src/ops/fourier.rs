//! The two-dimensional Fourier transform of real maps and its inverse.
//!
//! A real map's spectrum is its own mirrored conjugate, so only the columns 0 to width / 2 are
//! kept. All of them but the first and, for an even width, the last stand for two; the gradients
//! count them so.

use super::{fused, like};
use crate::operation::{Apply, Operand, Operation, with_values};
use candle_core::{D, Error, Result, Shape, Tensor, bail};
use diffaug_kernels::fourier::{self, Factors, Size};
use std::f64::consts::TAU;

/// Where the division by the number of values is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FourierNorm {
    /// By its root in both directions, which keeps lengths.
    Ortho,
    /// In the inverse alone.
    Backward,
}

impl FourierNorm {
    /// What the transform and its inverse are multiplied by.
    fn factors(self, size: Size) -> (f64, f64) {
        let count = (size.height * size.width) as f64;
        match self {
            FourierNorm::Ortho => (count.sqrt().recip(), count.sqrt().recip()),
            FourierNorm::Backward => (1.0, count.recip()),
        }
    }
}

/// The real and imaginary parts of the spectra Σ x(m, n) e^(-2πi (km / height + ln / width)) of the
/// last two dimensions of `x`: `[.., height, width]` to `[.., height, width / 2 + 1]` each.
///
/// # Errors
/// When `x` has fewer than two dimensions, or one of the last two is 0.
pub fn rfft2(x: &Tensor, norm: FourierNorm) -> Result<(Tensor, Tensor)> {
    let (height, width) = last_two(x)?;
    let size = Size { height, width };
    if height == 0 || width == 0 {
        bail!("a Fourier transform needs sides of at least 1, not {height}×{width}");
    }
    let factor = norm.factors(size).0;
    if !fused(x) {
        return composed(x, size, factor);
    }
    let parts = [x].apply(Forward {
        size,
        factor: factor as f32,
    })?;
    Ok((parts.get(0)?, parts.get(1)?))
}

/// The real maps of `[.., height, width]` whose spectra have the real parts `re` and the imaginary
/// parts `im`, `[.., height, width / 2 + 1]` each: the inverse of [`rfft2`].
///
/// Imaginary parts that no real map has are passed over.
///
/// # Errors
/// When the two differ in shape, or are not the spectra of maps of that width.
pub fn irfft2(re: &Tensor, im: &Tensor, width: usize, norm: FourierNorm) -> Result<Tensor> {
    let (height, half) = last_two(re)?;
    let size = Size { height, width };
    if re.dims() != im.dims() {
        bail!(
            "a spectrum needs real and imaginary parts of one shape, not {:?} and {:?}",
            re.dims(),
            im.dims()
        );
    }
    if height == 0 || width == 0 || half != size.half() {
        bail!(
            "a map of width {width} needs a spectrum of at least 1 row and {} columns, not {height}×{half}",
            size.half()
        );
    }
    let factor = norm.factors(size).1;
    if !fused(re) {
        return composed_inverse(re, im, size, factor);
    }
    let op = Inverse {
        size,
        factor: factor as f32,
    };
    [re, im].apply(op)
}

fn last_two(x: &Tensor) -> Result<(usize, usize)> {
    if x.rank() < 2 {
        bail!(
            "a Fourier transform needs at least two dimensions, not {:?}",
            x.dims()
        );
    }
    Ok((x.dim(D::Minus2)?, x.dim(D::Minus1)?))
}

/// `dims` with another last dimension.
fn with_last(dims: &[usize], last: usize) -> Vec<usize> {
    let mut dims = dims.to_vec();
    dims.pop();
    dims.push(last);
    dims
}

/// cos and sin of 2π k n / `period` times `factor(n)`, as `[rows, columns]` matrices like `like`.
fn waves(
    like: &Tensor,
    (rows, columns): (usize, usize),
    period: usize,
    factor: impl Fn(usize) -> f64,
) -> Result<(Tensor, Tensor)> {
    let matrix = |wave: fn(f64) -> f64| {
        let value = |at: usize| {
            let (k, n) = (at / columns, at % columns);
            // The remainder first: large angles lose digits.
            wave(TAU * (k * n % period) as f64 / period as f64) * factor(k)
        };
        let values: Vec<f64> = (0..rows * columns).map(value).collect();
        // Cast on the host: not every device knows f64.
        Tensor::from_vec(values, (rows, columns), &candle_core::Device::Cpu)?
            .to_dtype(like.dtype())?
            .to_device(like.device())
    };
    Ok((matrix(f64::cos)?, matrix(f64::sin)?))
}

/// The transform as products with matrices of waves.
fn composed(x: &Tensor, size: Size, factor: f64) -> Result<(Tensor, Tensor)> {
    let Size { height, width } = size;
    let rows = x.contiguous()?.reshape(((), width))?;
    let (cos, sin) = waves(x, (width, size.half()), width, |_| factor)?;
    let maps = |t: Tensor| t.reshape(((), height, size.half()));
    let (a, b) = (maps(rows.matmul(&cos)?)?, maps(rows.matmul(&sin)?)?);
    // (cos - i sin) (a - i b)
    let (cos, sin) = waves(x, (height, height), height, |_| 1.0)?;
    let re = (cos.broadcast_matmul(&a)? - sin.broadcast_matmul(&b)?)?;
    let im = (cos.broadcast_matmul(&b)? + sin.broadcast_matmul(&a)?)?.neg()?;
    let dims = with_last(x.dims(), size.half());
    Ok((re.reshape(dims.as_slice())?, im.reshape(dims.as_slice())?))
}

/// The inverse as products with matrices of waves.
fn composed_inverse(re: &Tensor, im: &Tensor, size: Size, factor: f64) -> Result<Tensor> {
    let Size { height, width } = size;
    let maps = |t: &Tensor| t.contiguous()?.reshape(((), height, size.half()));
    let (a, b) = (maps(re)?, maps(im)?);
    // (cos + i sin) (a + i b)
    let (cos, sin) = waves(re, (height, height), height, |_| 1.0)?;
    let real = (cos.broadcast_matmul(&a)? - sin.broadcast_matmul(&b)?)?;
    let imaginary = (cos.broadcast_matmul(&b)? + sin.broadcast_matmul(&a)?)?;
    let count = |x| if size.doubled(x) { 2.0 } else { 1.0 };
    let (cos, sin) = waves(re, (size.half(), width), width, |x| factor * count(x))?;
    let rows = |t: Tensor| t.reshape(((), size.half()));
    let out = (rows(real)?.matmul(&cos)? - rows(imaginary)?.matmul(&sin)?)?;
    out.reshape(with_last(re.dims(), width).as_slice())
}

struct Forward {
    size: Size,
    factor: f32,
}

impl Operation<1> for Forward {
    fn name(&self) -> &'static str {
        "rfft2"
    }

    fn forward(&self, [x]: [Operand<'_>; 1]) -> Result<(Vec<f32>, Shape)> {
        let factors = Factors {
            single: self.factor,
            double: self.factor,
        };
        let out = fourier::forward(x.values, self.size, factors).map_err(failed)?;
        let mut dims = with_last(x.shape.dims(), self.size.half());
        dims.insert(0, 2);
        Ok((out, Shape::from(dims)))
    }

    fn backward(&self, [x]: [&Tensor; 1], _: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        // The inverse counts most columns twice, but each was computed once.
        let factors = Factors {
            single: self.factor,
            double: self.factor / 2.0,
        };
        let dx = with_values([dy], |[dy]| {
            let (re, im) = dy.split_at(dy.len() / 2);
            fourier::inverse(re, im, self.size, factors)
        })?;
        Ok([Some(like(dx.map_err(failed)?, x)?)])
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Msg(format!("a Fourier transform failed: {error}"))
}

struct Inverse {
    size: Size,
    factor: f32,
}

impl Operation<2> for Inverse {
    fn name(&self) -> &'static str {
        "irfft2"
    }

    fn forward(&self, [re, im]: [Operand<'_>; 2]) -> Result<(Vec<f32>, Shape)> {
        let factors = Factors {
            single: self.factor,
            double: self.factor,
        };
        let out = fourier::inverse(re.values, im.values, self.size, factors).map_err(failed)?;
        let dims = with_last(re.shape.dims(), self.size.width);
        Ok((out, Shape::from(dims)))
    }

    fn backward(
        &self,
        [re, im]: [&Tensor; 2],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let factors = Factors {
            single: self.factor,
            double: self.factor * 2.0,
        };
        let spectrum = with_values([dy], |[dy]| fourier::forward(dy, self.size, factors))?;
        let mut dre = spectrum.map_err(failed)?;
        let dim = dre.split_off(dre.len() / 2);
        Ok([Some(like(dre, re)?), Some(like(dim, im)?)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, close, random, same};

    const SHAPES: [[usize; 4]; 7] = [
        [2, 3, 6, 8],
        [1, 2, 5, 7],
        [1, 1, 4, 9],
        [1, 1, 1, 1],
        [1, 1, 1, 6],
        [1, 1, 7, 1],
        [1, 1, 3, 2],
    ];
    const NORMS: [FourierNorm; 2] = [FourierNorm::Ortho, FourierNorm::Backward];

    fn stacked((re, im): (Tensor, Tensor)) -> Result<Tensor> {
        Tensor::stack(&[re, im], 0)
    }

    fn spectrum([batch, channels, height, width]: [usize; 4]) -> [Tensor; 2] {
        ["re", "im"].map(|part| random(part, &[batch, channels, height, width / 2 + 1]))
    }

    #[test]
    fn fused_and_composed_agree() {
        for shape in SHAPES {
            let [.., height, width] = shape;
            let size = Size { height, width };
            for norm in NORMS {
                let (there, back) = norm.factors(size);
                same(
                    &[random("x", &shape)],
                    |v| stacked(rfft2(&v[0], norm)?),
                    |v| stacked(composed(&v[0], size, there)?),
                );
                same(
                    &spectrum(shape),
                    |v| irfft2(&v[0], &v[1], width, norm),
                    |v| composed_inverse(&v[0], &v[1], size, back),
                );
            }
        }
    }

    #[test]
    fn gradients() {
        for shape in SHAPES {
            for norm in NORMS {
                check_gradients(&[random("x", &shape)], |v| stacked(rfft2(&v[0], norm)?));
                check_gradients(&spectrum(shape), |v| irfft2(&v[0], &v[1], shape[3], norm));
            }
        }
    }

    #[test]
    fn there_and_back() {
        for shape in SHAPES {
            // Any number of leading dimensions.
            let x = random("x", &shape)
                .squeeze(0)
                .unwrap_or(random("x", &shape));
            for norm in NORMS {
                let (re, im) = rfft2(&x, norm).unwrap();
                close(&irfft2(&re, &im, shape[3], norm).unwrap(), &x, 1e-5);
            }
        }
    }

    #[test]
    fn a_misfit_is_named() {
        let [re, im] = spectrum([1, 1, 4, 6]);
        let error = irfft2(&re, &im, 5, NORMS[0]).unwrap_err().to_string();
        assert!(error.contains("3 columns, not 4×4"), "{error}");
        let error = rfft2(&random("x", &[3]), NORMS[0]).unwrap_err().to_string();
        assert!(error.contains("two dimensions, not [3]"), "{error}");
    }
}
