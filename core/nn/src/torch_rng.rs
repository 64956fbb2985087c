//! PyTorch's random numbers, for models whose published numbers begin with `torch.manual_seed`.
//!
//! [`TorchRng`] is the generator of the processor: the Mersenne Twister (Matsumoto & Nishimura,
//! 1998), and PyTorch's ways from its bits to even and to normal numbers. Even numbers are equal to
//! PyTorch's to the last bit; normal ones differ by rounding in logarithm and cosine (PyTorch's
//! depend on the processor, too). [`CudaRng`] is the generator of graphics cards.

mod philox;

pub use philox::{CudaRng, philox4x32};

use rand_mt::Mt;
use std::f64::consts::PI;

/// What `torch.manual_seed(seed)` leaves behind for tensors on the processor.
#[derive(Clone, Debug)]
pub struct TorchRng {
    bits: Mt,
    /// The second number of the last pair that was drawn one by one.
    spare: Option<f64>,
}

impl TorchRng {
    /// `torch.manual_seed(seed)`; as there, only the lower 32 bits count.
    pub fn new(seed: u64) -> Self {
        TorchRng {
            bits: Mt::new(seed as u32),
            spare: None,
        }
    }

    /// An even number from 0 to below 1, of 24 bits.
    fn even_f32(&mut self) -> f32 {
        (self.bits.next_u32() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    /// An even number from 0 to below 1, of 53 bits.
    fn even_f64(&mut self) -> f64 {
        (self.bits.next_u64() & ((1 << 53) - 1)) as f64 / 9_007_199_254_740_992.0
    }

    /// `torch.rand(count)`: from 0 to below 1.
    pub fn rand(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.even_f32()).collect()
    }

    /// `torch.randn(count)`: mean 0, variance 1. The numbers of a tensor depend on how many values
    /// it has, not on its shape.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        if count < BLOCK {
            return (0..count).map(|_| self.normal() as f32).collect();
        }
        let mut values = self.rand(count);
        values.chunks_exact_mut(BLOCK).for_each(make_normal);
        if !count.is_multiple_of(BLOCK) {
            let last = &mut values[count - BLOCK..];
            last.fill_with(|| self.even_f32());
            make_normal(last);
        }
        values
    }

    /// A normal number of its own. Box & Muller (1958) make two at once; the second waits, also
    /// while larger tensors are drawn.
    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (u, v) = (self.even_f64(), self.even_f64());
        let radius = (-2.0 * (-v).ln_1p()).sqrt();
        let angle = 2.0 * PI * u;
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

/// Larger tensors are drawn in blocks of so many values; when some are left over, the last block is
/// drawn again.
const BLOCK: usize = 16;

/// Makes the even numbers of a block normal: the first half with the second.
fn make_normal(block: &mut [f32]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * (1.0 - *a).ln()).sqrt();
        let angle = (2.0 * PI) as f32 * *b;
        (*a, *b) = (radius * angle.cos(), radius * angle.sin());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::Fixtures;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/random.safetensors");
    const SEEDS: [u64; 4] = [0, 1, 42, 123_456_789_012];
    const SIZES: [usize; 8] = [1, 5, 15, 16, 17, 31, 100, 1000];

    fn expect(fixtures: &Fixtures, case: &str, name: &str, ours: &[f64], tolerance: f64) {
        let theirs = fixtures.get(case, name).to_dtype(candle_core::DType::F64);
        let theirs = theirs.unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(ours.len(), theirs.len());
        for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            assert!(
                (a - b).abs() <= tolerance,
                "{case}.{name}[{i}]: {a}, expected {b}"
            );
        }
    }

    fn wide(values: Vec<f32>) -> Vec<f64> {
        values.into_iter().map(f64::from).collect()
    }

    #[test]
    fn every_size_is_pytorchs() {
        let fixtures = Fixtures::open(FIXTURES);
        for seed in SEEDS {
            let case = format!("seed{seed}");
            for size in SIZES {
                let rng = || TorchRng::new(seed);
                let name = |kind: &str| format!("{kind}{size}");
                let expect = |kind: &str, ours: &[f64], tolerance| {
                    expect(&fixtures, &case, &name(kind), ours, tolerance);
                };
                expect("rand", &wide(rng().rand(size)), 0.0);
                expect("randn", &wide(rng().randn(size)), 1e-6);
            }
        }
    }

    #[test]
    fn one_call_follows_another_as_in_pytorch() {
        let fixtures = Fixtures::open(FIXTURES);
        for seed in SEEDS {
            let case = format!("sequence{seed}");
            let mut rng = TorchRng::new(seed);
            let check = |index: usize, ours: Vec<f64>| {
                expect(&fixtures, &case, &index.to_string(), &ours, 1e-6);
            };
            // Odd counts leave a number behind that comes up calls later.
            check(0, wide(rng.randn(3)));
            check(1, wide(rng.randn(17)));
            check(2, wide(rng.rand(5)));
            check(3, wide(rng.randn(1)));
            check(4, wide(rng.randn(2)));
            check(5, (0..5).map(|_| rng.normal()).collect());
            check(6, wide(rng.randn(700)));
            check(7, wide(rng.randn(4)));
        }
    }
}
