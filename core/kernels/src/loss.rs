//! Binary cross-entropy plus Dice from logits, forward and backward in one pass each.

use super::sum;
use pulp::Arch;
use rayon::prelude::*;

/// Values that one task takes.
const CHUNK: usize = 1 << 13;

/// What both losses need to know of a whole batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    /// Binary cross-entropy, summed.
    pub cross_entropy: f64,
    /// Probability times target.
    pub overlap: f64,
    /// Probability plus target.
    pub total: f64,
}

/// e^x for x <= 0, to about 2 units in the last place: range reduction to |r| <= ln 2 / 2 and the
/// Taylor polynomial of degree 7, which the compiler can turn into vector code.
#[inline(always)]
pub fn exp_of_negative(x: f32) -> f32 {
    let x = if x < -87.0 { -87.0 } else { x };
    // Adding and taking away 1.5 * 2^23 rounds to whole numbers; no library call.
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let power = shifted - 12_582_912.0;
    // ln 2 in two parts, so that the difference stays exact.
    let r = x - power * 0.693_359_4 + power * 2.121_944_4e-4;
    let mut sum = 1.0 / 5040.0;
    for factor in [720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0] {
        sum = sum * r + 1.0 / factor;
    }
    let exponent = (shifted.to_bits() as i32).wrapping_sub(12_582_912.0f32.to_bits() as i32);
    sum * f32::from_bits((exponent.wrapping_add(127) << 23) as u32)
}

/// ln(1 + u) for 0 <= u <= 1, to about 2e-7: the series of 2 artanh(u / (2 + u)).
#[inline(always)]
pub fn ln_1p(u: f32) -> f32 {
    let s = u / (2.0 + u);
    let square = s * s;
    let mut sum = 1.0 / 15.0;
    for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        sum = sum * square + 1.0 / odd;
    }
    2.0 * s * sum
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let small = exp_of_negative(-x.abs());
    let inverse = 1.0 / (1.0 + small);
    if x < 0.0 { small * inverse } else { inverse }
}

/// The sums over a batch.
pub fn sums(logits: &[f32], targets: &[f32]) -> Sums {
    let parts: Vec<Sums> = logits
        .par_chunks(CHUNK)
        .zip(targets.par_chunks(CHUNK))
        .map(|(logits, targets)| {
            let sources = [logits, targets];
            Sums {
                // max(x, 0) - x t + ln(1 + e^-|x|) never overflows.
                cross_entropy: sum(sources, |[x, t]| {
                    let positive = if x < 0.0 { 0.0 } else { x };
                    positive - x * t + ln_1p(exp_of_negative(-x.abs()))
                }),
                overlap: sum(sources, |[x, t]| sigmoid(x) * t),
                total: sum(sources, |[x, t]| sigmoid(x) + t),
            }
        })
        .collect();
    // In order, whichever thread was first.
    parts.iter().fold(Sums::default(), |sum, part| Sums {
        cross_entropy: sum.cross_entropy + part.cross_entropy,
        overlap: sum.overlap + part.overlap,
        total: sum.total + part.total,
    })
}

/// The gradient of `cross_entropy * mean BCE + dice * (1 - Dice)` with respect to the logits.
pub fn gradient(
    logits: &[f32],
    targets: &[f32],
    sums: Sums,
    (cross_entropy, dice): (f32, f32),
    epsilon: f64,
) -> Vec<f32> {
    let by_mean = cross_entropy / logits.len() as f32;
    // d(1 - (2 I + e) / (T + e)) / dp = -2 t / (T + e) + (2 I + e) / (T + e)^2
    let whole = sums.total + epsilon;
    let by_target = (-2.0 / whole) as f32 * dice;
    let by_total = ((2.0 * sums.overlap + epsilon) / (whole * whole)) as f32 * dice;
    let mut out = vec![0.0; logits.len()];
    out.par_chunks_mut(CHUNK)
        .zip(logits.par_chunks(CHUNK).zip(targets.par_chunks(CHUNK)))
        .for_each(|(out, (logits, targets))| {
            Arch::new().dispatch(|| {
                for (out, (x, t)) in out.iter_mut().zip(logits.iter().zip(targets)) {
                    let p = sigmoid(*x);
                    let slope = p * (1.0 - p);
                    *out = by_mean * (p - t) + slope * (by_target * t + by_total);
                }
            });
        });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_agree_with_the_library() {
        for i in -2000..=0 {
            let x = i as f32 * 0.05;
            let (ours, exact) = (exp_of_negative(x), x.max(-87.0).exp());
            assert!((ours / exact - 1.0).abs() < 3e-7, "e^{x}: {ours} {exact}");
        }
        for i in 0..=1000 {
            let u = i as f32 * 1e-3;
            let (ours, exact) = (ln_1p(u), u.ln_1p());
            assert!((ours - exact).abs() <= 3e-7 * exact.max(1e-3), "{u}");
        }
        assert_eq!(sigmoid(0.0), 0.5);
        assert!(sigmoid(-200.0) >= 0.0 && sigmoid(200.0) == 1.0);
        assert!(sigmoid(f32::NAN).is_nan());
    }
}
