//! Activations and their slopes, in vectors.
//!
//! The exponential is a polynomial of degree 6 on half an octave around 0 (relative error below
//! 2e-7), scaled by a power of two that is built from its bits.

use super::assemble;
use pulp::{Arch, Simd, WithSimd};

/// Values that are computed at once: with their sources they stay in the L1 cache.
const CHUNK: usize = 1 << 11;

/// e^x for x that is not NaN; beyond ±87 the result stays at its value there.
#[inline(always)]
pub fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    // ln 2 in two parts, the first of which has few bits, so that its multiples are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const TERMS: [f32; 6] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];
    let splat = |v: f32| simd.splat_f32s(v);
    let x = simd.min_f32s(simd.max_f32s(x, splat(-87.0)), splat(87.0));
    let magic = splat(MAGIC);
    let shifted = simd.mul_add_e_f32s(x, splat(std::f32::consts::LOG2_E), magic);
    let octaves = simd.sub_f32s(shifted, magic);
    let rest = simd.mul_add_e_f32s(octaves, splat(-LN2_HIGH), x);
    let rest = simd.mul_add_e_f32s(octaves, splat(-LN2_LOW), rest);
    let mut sum = splat(TERMS[0]);
    for term in &TERMS[1..] {
        sum = simd.mul_add_e_f32s(sum, rest, splat(*term));
    }
    sum = simd.mul_add_e_f32s(sum, rest, splat(1.0));
    let bits = simd.transmute_u32s_f32s(shifted);
    let exponent = simd.add_u32s(bits, simd.splat_u32s(127));
    let exponent = simd.wrapping_dyn_shl_u32s(exponent, simd.splat_u32s(23));
    simd.mul_f32s(sum, simd.transmute_f32s_u32s(exponent))
}

/// A function of one number and its slope.
pub trait Activation: Copy + Sync {
    /// f(x).
    fn value<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s;
    /// f'(x).
    fn slope<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s;
}

/// x.
#[derive(Clone, Copy)]
pub struct Identity;

impl Activation for Identity {
    #[inline(always)]
    fn value<S: Simd>(self, _: S, x: S::f32s) -> S::f32s {
        x
    }

    #[inline(always)]
    fn slope<S: Simd>(self, simd: S, _: S::f32s) -> S::f32s {
        simd.splat_f32s(1.0)
    }
}

/// x / (1 + e^-x).
#[derive(Clone, Copy)]
pub struct Silu;

#[inline(always)]
fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    simd.div_f32s(one, simd.add_f32s(one, exp(simd, simd.neg_f32s(x))))
}

impl Activation for Silu {
    #[inline(always)]
    fn value<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        simd.mul_f32s(x, sigmoid(simd, x))
    }

    #[inline(always)]
    fn slope<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        // s + x s (1 - s)
        let share = sigmoid(simd, x);
        let rest = simd.sub_f32s(simd.splat_f32s(1.0), share);
        simd.mul_add_e_f32s(simd.mul_f32s(x, share), rest, share)
    }
}

/// x times the share of the normal distribution below x, by the error function.
#[derive(Clone, Copy)]
pub struct Gelu;

impl Gelu {
    /// Share of the normal distribution below x, and e^(-x²/2).
    ///
    /// Abramowitz & Stegun, Handbook of Mathematical Functions, 7.1.26: error below 1.5e-7.
    #[inline(always)]
    fn below<S: Simd>(simd: S, x: S::f32s) -> (S::f32s, S::f32s) {
        const P: f32 = 0.327_591_1;
        const TERMS: [f32; 5] = [
            1.061_405_4,
            -1.453_152_1,
            1.421_413_8,
            -0.284_496_72,
            0.254_829_6,
        ];
        let splat = |v: f32| simd.splat_f32s(v);
        let size = simd.mul_f32s(simd.abs_f32s(x), splat(std::f32::consts::FRAC_1_SQRT_2));
        let bell = exp(simd, simd.neg_f32s(simd.mul_f32s(size, size)));
        let t = simd.div_f32s(splat(1.0), simd.mul_add_e_f32s(size, splat(P), splat(1.0)));
        let mut sum = splat(TERMS[0]);
        for term in &TERMS[1..] {
            sum = simd.mul_add_e_f32s(sum, t, splat(*term));
        }
        // The share beyond |x|.
        let tail = simd.mul_f32s(simd.mul_f32s(simd.mul_f32s(sum, t), bell), splat(0.5));
        let negative = simd.less_than_f32s(x, splat(0.0));
        let below = simd.select_f32s(negative, tail, simd.sub_f32s(splat(1.0), tail));
        (below, bell)
    }
}

impl Activation for Gelu {
    #[inline(always)]
    fn value<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        simd.mul_f32s(x, Self::below(simd, x).0)
    }

    #[inline(always)]
    fn slope<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        // Φ(x) + x φ(x)
        let (below, bell) = Self::below(simd, x);
        let density = simd.mul_f32s(bell, simd.splat_f32s(0.398_942_3));
        simd.mul_add_e_f32s(x, density, below)
    }
}

/// x where it is above 0, else x times a number.
#[derive(Clone, Copy)]
pub struct LeakyRelu(pub f32);

impl LeakyRelu {
    /// `above` where x is above 0, else `below`.
    #[inline(always)]
    fn pick<S: Simd>(simd: S, x: S::f32s, above: S::f32s, below: S::f32s) -> S::f32s {
        let positive = simd.less_than_f32s(simd.splat_f32s(0.0), x);
        simd.select_f32s(positive, above, below)
    }
}

impl Activation for LeakyRelu {
    #[inline(always)]
    fn value<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        let below = simd.mul_f32s(x, simd.splat_f32s(self.0));
        Self::pick(simd, x, x, below)
    }

    #[inline(always)]
    fn slope<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        Self::pick(simd, x, simd.splat_f32s(1.0), simd.splat_f32s(self.0))
    }
}

/// The approximation x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2.
#[derive(Clone, Copy)]
pub struct GeluTanh;

const ROOT: f32 = 0.797_884_6;
const CUBE: f32 = 0.044_715;

impl GeluTanh {
    /// (1 + tanh(u)) / 2, which is the logistic function of 2u.
    #[inline(always)]
    fn share<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        let splat = |v: f32| simd.splat_f32s(v);
        let inner = simd.mul_add_e_f32s(
            simd.mul_f32s(x, x),
            splat(2.0 * ROOT * CUBE),
            splat(2.0 * ROOT),
        );
        sigmoid(simd, simd.mul_f32s(x, inner))
    }
}

impl Activation for GeluTanh {
    #[inline(always)]
    fn value<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        simd.mul_f32s(x, Self::share(simd, x))
    }

    #[inline(always)]
    fn slope<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        let splat = |v: f32| simd.splat_f32s(v);
        let share = Self::share(simd, x);
        let steep = simd.mul_f32s(share, simd.sub_f32s(splat(1.0), share));
        let inner = simd.mul_add_e_f32s(
            simd.mul_f32s(x, x),
            splat(6.0 * ROOT * CUBE),
            splat(2.0 * ROOT),
        );
        simd.mul_add_e_f32s(simd.mul_f32s(x, steep), inner, share)
    }
}

/// `f` of every place of N sources of one length, written to M results.
pub trait Map<const N: usize, const M: usize>: Sync {
    /// The results at one place.
    fn at<S: Simd>(&self, simd: S, values: [S::f32s; N]) -> [S::f32s; M];
}

/// A [`Map`] of one row.
pub struct Run<'a, 'b, F, const N: usize, const M: usize> {
    /// The map.
    pub f: &'a F,
    /// What it reads, of one length.
    pub sources: [&'a [f32]; N],
    /// What it writes, of that length.
    pub outs: [&'b mut [f32]; M],
}

impl<F: Map<N, M>, const N: usize, const M: usize> WithSimd for Run<'_, '_, F, N, M> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let length = self.outs[0].len();
        let whole = length / S::F32_LANES;
        let vectors = self
            .sources
            .map(|source| &S::as_simd_f32s(source).0[..whole]);
        let mut outs = self
            .outs
            .each_mut()
            .map(|out| &mut S::as_mut_simd_f32s(out).0[..whole]);
        for at in 0..whole {
            let results = self.f.at(simd, vectors.map(|source| source[at]));
            for (out, result) in outs.iter_mut().zip(results) {
                out[at] = result;
            }
        }
        let rest = whole * S::F32_LANES..length;
        if rest.is_empty() {
            return;
        }
        let values = self
            .sources
            .map(|source| simd.partial_load_f32s(&source[rest.clone()]));
        for (out, result) in self.outs.iter_mut().zip(self.f.at(simd, values)) {
            simd.partial_store_f32s(&mut out[rest.clone()], result);
        }
    }
}

/// One row, on this thread.
pub fn map_row<const N: usize, const M: usize>(
    f: &impl Map<N, M>,
    sources: [&[f32]; N],
    outs: [&mut [f32]; M],
) {
    Arch::new().dispatch(Run { f, sources, outs });
}

/// f of every value.
pub fn forward(f: impl Activation, x: &[f32]) -> Vec<f32> {
    assemble(x.len(), CHUNK, |at, out| {
        map_row(&Value(f), [&x[at * CHUNK..][..out.len()]], [out]);
    })
    .0
}

/// The gradient of x: `dy` times the slope.
pub fn backward(f: impl Activation, x: &[f32], dy: &[f32]) -> Vec<f32> {
    assemble(x.len(), CHUNK, |at, out| {
        let sources = [x, dy].map(|source| &source[at * CHUNK..][..out.len()]);
        map_row(&Slope(f), sources, [out]);
    })
    .0
}

struct Value<F>(F);

impl<F: Activation> Map<1, 1> for Value<F> {
    #[inline(always)]
    fn at<S: Simd>(&self, simd: S, [x]: [S::f32s; 1]) -> [S::f32s; 1] {
        [self.0.value(simd, x)]
    }
}

struct Slope<F>(F);

impl<F: Activation> Map<2, 1> for Slope<F> {
    #[inline(always)]
    fn at<S: Simd>(&self, simd: S, [x, dy]: [S::f32s; 2]) -> [S::f32s; 1] {
        [simd.mul_f32s(dy, self.0.slope(simd, x))]
    }
}

/// The first half of each row of `2 * width` values times f of the second half.
pub fn gated(f: impl Activation, x: &[f32], width: usize) -> Vec<f32> {
    assemble(x.len() / 2, width, |row, out| {
        let (values, gates) = x[2 * row * width..][..2 * width].split_at(width);
        map_row(&Gated(f), [values, gates], [out]);
    })
    .0
}

/// The gradient of the input of [`gated`].
pub fn gated_backward(f: impl Activation, x: &[f32], dy: &[f32], width: usize) -> Vec<f32> {
    assemble(x.len(), 2 * width, |row, out| {
        let (values, gates) = x[2 * row * width..][..2 * width].split_at(width);
        let (dvalues, dgates) = out.split_at_mut(width);
        let dy = &dy[row * width..][..width];
        map_row(&Gated(f), [values, gates, dy], [dvalues, dgates]);
    })
    .0
}

struct Gated<F>(F);

impl<F: Activation> Map<2, 1> for Gated<F> {
    #[inline(always)]
    fn at<S: Simd>(&self, simd: S, [value, gate]: [S::f32s; 2]) -> [S::f32s; 1] {
        [simd.mul_f32s(value, self.0.value(simd, gate))]
    }
}

impl<F: Activation> Map<3, 2> for Gated<F> {
    #[inline(always)]
    fn at<S: Simd>(&self, simd: S, [value, gate, dy]: [S::f32s; 3]) -> [S::f32s; 2] {
        let by_value = simd.mul_f32s(dy, self.0.value(simd, gate));
        let by_gate = simd.mul_f32s(simd.mul_f32s(dy, value), self.0.slope(simd, gate));
        [by_value, by_gate]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp;

    impl Map<1, 1> for Exp {
        fn at<S: Simd>(&self, simd: S, [x]: [S::f32s; 1]) -> [S::f32s; 1] {
            [exp(simd, x)]
        }
    }

    #[test]
    fn the_exponential_is_right_over_its_range() {
        let x: Vec<f32> = (-870..=870).map(|i| i as f32 / 10.0).collect();
        let mut y = vec![0.0; x.len()];
        map_row(&Exp, [&x], [&mut y]);
        for (x, y) in x.iter().zip(y) {
            let expected = f64::from(*x).exp();
            assert!(
                (f64::from(y) / expected - 1.0).abs() < 5e-7,
                "{x}: {y}, expected {expected}"
            );
        }
    }

    #[test]
    fn large_values_stay_finite() {
        let x = [-1e30f32, -200.0, 200.0, 1e30];
        for y in [forward(Silu, &x), forward(Gelu, &x), forward(GeluTanh, &x)] {
            assert_eq!(y[2..], x[2..]);
            assert!(y[..2].iter().all(|v| v.abs() < 1e-6), "{y:?}");
        }
        for dy in [backward(Silu, &x, &[1.0; 4]), backward(Gelu, &x, &[1.0; 4])] {
            assert!(dy.iter().all(|v| v.is_finite()), "{dy:?}");
        }
    }

    #[test]
    fn a_leak_is_linear_on_both_sides() {
        let x = [-4.0, -0.5, 0.0, 0.5, 4.0];
        assert_eq!(forward(LeakyRelu(0.25), &x), [-1.0, -0.125, 0.0, 0.5, 4.0]);
        let dx = backward(LeakyRelu(0.25), &x, &[2.0; 5]);
        assert_eq!(dx, [0.5, 0.5, 0.5, 2.0, 2.0]);
    }

    #[test]
    fn a_nan_is_not_hidden() {
        assert!(forward(Silu, &[f32::NAN])[0].is_nan());
        assert!(forward(Gelu, &[f32::NAN])[0].is_nan());
        assert!(forward(LeakyRelu(0.1), &[f32::NAN])[0].is_nan());
    }
}
