//! Dropout whose mask is no accident.

use super::{fused, like};
use crate::operation::{Apply, Operand, Operation, with_values};
use candle_core::{Result, Shape, Tensor, bail};
use diffaug::rng;
use diffaug_kernels::dropout::Mask;
use rand::RngExt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Sets a share `p` of the values of `x` (any shape) to 0 and divides the others by 1 - p
/// (Srivastava et al., Dropout, 2014).
///
/// Which values fall out depends on `seed`, `purpose`, `index` and their place in `x` alone, on
/// every device. Give each layer its own `purpose` and each step its own `index`; `x` of a batch is
/// one tensor, so an image's mask depends on its place in the batch.
///
/// # Errors
/// When `p` is not in 0 ≤ p < 1.
pub fn dropout(x: &Tensor, p: f32, seed: u64, purpose: &str, index: u64) -> Result<Tensor> {
    if !(0.0..1.0).contains(&p) {
        bail!("dropout needs a share of at least 0 and below 1, not {p}");
    }
    if p == 0.0 {
        return Ok(x.clone());
    }
    let mask = Mask {
        key: rng::stream(seed, purpose, index).random(),
        share: p,
    };
    if fused(x) {
        return [x].apply(Dropout(mask));
    }
    composed(x, mask)
}

/// The [`dropout`] of a pass through a network: every call is that of another layer, in the order of
/// the calls.
#[derive(Debug)]
pub struct Dropping {
    share: f32,
    seed: u64,
    index: u64,
    layer: AtomicU64,
}

impl Dropping {
    /// Drops a `share` of values; passes are told apart by `index`.
    pub fn new(share: f32, seed: u64, index: u64) -> Self {
        Dropping {
            share,
            seed,
            index,
            layer: AtomicU64::new(0),
        }
    }

    /// [`dropout`] of the next layer.
    ///
    /// # Errors
    /// Those of [`dropout`].
    pub fn next(&self, x: &Tensor) -> Result<Tensor> {
        let layer = self.layer.fetch_add(1, Ordering::Relaxed);
        let purpose = format!("dropout of layer {layer}");
        dropout(x, self.share, self.seed, &purpose, self.index)
    }

    /// Sets a share of the maps of `x`, `[n, channels, height, width]`, to 0 as wholes and divides the others
    /// by what is left (Tompson et al., 2015; PyTorch's `Dropout2d`).
    ///
    /// # Errors
    /// Those of [`dropout`]; when `x` has not four dimensions.
    pub fn next_maps(&self, x: &Tensor) -> Result<Tensor> {
        let (count, channels, _, _) = x.dims4()?;
        let ones = Tensor::ones((count, channels, 1, 1), x.dtype(), x.device())?;
        x.broadcast_mul(&self.next(&ones)?)
    }
}

fn composed(x: &Tensor, mask: Mask) -> Result<Tensor> {
    let factors = mask.factors(x.elem_count());
    let factors = Tensor::from_vec(factors, x.shape(), x.device())?.to_dtype(x.dtype())?;
    // Not by the product alone: 0 times infinity is not 0.
    let kept = factors.ne(0f32)?;
    kept.where_cond(&(x * &factors)?, &factors)
}

struct Dropout(Mask);

impl Operation<1> for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn forward(&self, [x]: [Operand<'_>; 1]) -> Result<(Vec<f32>, Shape)> {
        Ok((self.0.apply(x.values), x.shape.clone()))
    }

    fn backward(&self, [x]: [&Tensor; 1], _: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let dx = with_values([dy], |[dy]| self.0.apply(dy))?;
        Ok([Some(like(dx, x)?)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, random, same};
    use candle_core::{DType, Device};

    const COUNT: usize = 200_000;

    /// Which of many values fall out.
    fn fallen(p: f32, seed: u64, purpose: &str, index: u64) -> Vec<bool> {
        let x = Tensor::ones(COUNT, DType::F32, &Device::Cpu).unwrap();
        let y = dropout(&x, p, seed, purpose, index).unwrap();
        let y = y.to_vec1::<f32>().unwrap();
        assert!(y.iter().all(|v| *v == 0.0 || *v == 1.0 / (1.0 - p)));
        y.iter().map(|v| *v == 0.0).collect()
    }

    fn share(which: impl Iterator<Item = bool>) -> f64 {
        which.filter(|v| *v).count() as f64 / COUNT as f64
    }

    #[test]
    fn fused_and_composed_agree() {
        let x = [random("x", &[2, 3, 5, 7])];
        let mask = Mask {
            key: rng::stream(7, "layer", 3).random(),
            share: 0.3,
        };
        same(
            &x,
            |v| dropout(&v[0], 0.3, 7, "layer", 3),
            |v| composed(&v[0], mask),
        );
        check_gradients(&x, |v| dropout(&v[0], 0.3, 7, "layer", 3));
    }

    #[test]
    fn the_share_is_right_and_neighbours_are_independent() {
        for p in [0.1, 0.5, 0.9] {
            let fallen = fallen(p, 1, "a", 0);
            // Four standard deviations.
            let p = f64::from(p);
            let near = |found: f64, p: f64| {
                assert!(
                    (found - p).abs() < 4.0 * (p / COUNT as f64).sqrt(),
                    "{found}, not {p}"
                );
            };
            near(share(fallen.iter().copied()), p);
            for distance in [1, 2, 64, 1 << 14] {
                let pairs = fallen.iter().zip(fallen.iter().cycle().skip(distance));
                near(share(pairs.map(|(a, b)| *a && *b)), p * p);
            }
        }
    }

    #[test]
    fn every_seed_purpose_and_index_has_a_mask_of_its_own() {
        let first = fallen(0.5, 1, "a", 0);
        assert_eq!(first, fallen(0.5, 1, "a", 0));
        for other in [
            fallen(0.5, 2, "a", 0),
            fallen(0.5, 1, "b", 0),
            fallen(0.5, 1, "a", 1),
        ] {
            let both = share(first.iter().zip(&other).map(|(a, b)| *a && *b));
            assert!((both - 0.25).abs() < 0.005, "{both}");
        }
    }

    #[test]
    fn threads_change_nothing() {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| fallen(0.4, 1, "a", 0))
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn what_falls_out_is_zero_whatever_it_was() {
        let x = Tensor::full(f32::INFINITY, 64, &Device::Cpu).unwrap();
        let mask = Mask { key: 0, share: 0.5 };
        for y in [dropout(&x, 0.5, 0, "a", 0), composed(&x, mask)] {
            let y = y.unwrap().to_vec1::<f32>().unwrap();
            assert!(y.iter().all(|v| *v == 0.0 || *v == f32::INFINITY));
        }
    }

    #[test]
    fn a_share_out_of_range_is_named() {
        let x = random("x", &[3]);
        for p in [-0.1, 1.0, f32::NAN] {
            let error = dropout(&x, p, 0, "a", 0).unwrap_err().to_string();
            assert!(error.contains("below 1, not"), "{error}");
        }
        assert!(dropout(&x, 0.0, 0, "a", 0).is_ok());
    }

    #[test]
    fn maps_fall_out_as_wholes() {
        let x = Tensor::ones((4, 50, 3, 5), DType::F32, &Device::Cpu).unwrap();
        let y = Dropping::new(0.5, 1, 0).next_maps(&x).unwrap();
        let maps: Vec<Vec<f32>> = y.reshape((200, 15)).unwrap().to_vec2().unwrap();
        assert!(maps.iter().all(|map| map.iter().all(|v| *v == map[0])));
        let fallen = maps.iter().filter(|map| map[0] == 0.0).count();
        // Four standard deviations around half.
        assert!((72..=128).contains(&fallen), "{fallen}");
        assert!(maps.iter().all(|map| map[0] == 0.0 || map[0] == 2.0));
    }

    #[test]
    fn each_layer_of_a_pass_drops_others() {
        let x = Tensor::ones(1000, DType::F32, &Device::Cpu).unwrap();
        let pass = |index| {
            let dropping = Dropping::new(0.5, 1, index);
            let layer = || dropping.next(&x).unwrap().to_vec1::<f32>().unwrap();
            [layer(), layer()]
        };
        let [first, second] = pass(0);
        assert_ne!(first, second);
        assert_eq!(pass(0), [first.clone(), second]);
        assert_ne!(pass(1)[0], first);
    }
}
