//! PyTorch's random numbers, for models whose published numbers begin with `torch.manual_seed`.
//!
//! [`TorchRng`] is the generator of the processor: the Mersenne Twister (Matsumoto & Nishimura,
//! 1998), and PyTorch's ways from its bits to even and to normal numbers. Even numbers are equal to
//! PyTorch's to the last bit; normal ones differ by rounding in logarithm and cosine (PyTorch's
//! depend on the processor, too). [`CudaRng`] is the generator of graphics cards.

mod philox;

pub use philox::{CudaRng, philox4x32};

use std::f64::consts::PI;

const SIZE: usize = 624;
const SHIFT: usize = 397;

/// What `torch.manual_seed(seed)` leaves behind for tensors on the processor.
#[derive(Clone, Debug)]
pub struct TorchRng {
    state: Vec<u32>,
    next: usize,
    /// The second number of the last pair that was drawn one by one.
    spare: Option<f64>,
}

impl TorchRng {
    /// `torch.manual_seed(seed)`; as there, only the lower 32 bits count.
    pub fn new(seed: u64) -> Self {
        let mut state = vec![seed as u32];
        for i in 1..SIZE as u32 {
            let last = state[i as usize - 1];
            let mixed = (last ^ (last >> 30)).wrapping_mul(1_812_433_253);
            state.push(mixed.wrapping_add(i));
        }
        TorchRng {
            state,
            next: SIZE,
            spare: None,
        }
    }

    fn twist(&mut self) {
        for i in 0..SIZE {
            let bits = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % SIZE] & 0x7fff_ffff);
            let odd = if bits & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % SIZE] ^ (bits >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == SIZE {
            self.twist();
        }
        let mut bits = self.state[self.next];
        self.next += 1;
        bits ^= bits >> 11;
        bits ^= (bits << 7) & 0x9d2c_5680;
        bits ^= (bits << 15) & 0xefc6_0000;
        bits ^ (bits >> 18)
    }

    fn next_u64(&mut self) -> u64 {
        let high = u64::from(self.next_u32());
        high << 32 | u64::from(self.next_u32())
    }

    /// An even number from 0 to below 1, of 24 bits.
    fn even_f32(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    /// An even number from 0 to below 1, of 53 bits.
    fn even_f64(&mut self) -> f64 {
        (self.next_u64() & ((1 << 53) - 1)) as f64 / 9_007_199_254_740_992.0
    }

    /// `torch.rand(count)`: from 0 to below 1.
    pub fn rand(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.even_f32()).collect()
    }

    /// `torch.rand(count, dtype=torch.float64)`.
    pub fn rand_f64(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.even_f64()).collect()
    }

    /// `torch.randn(count)`: mean 0, variance 1. The numbers of a tensor depend on how many values
    /// it has, not on its shape.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        if count < 16 {
            return (0..count).map(|_| self.normal() as f32).collect();
        }
        blocks(
            count,
            || self.even_f32(),
            |u, v| {
                let radius = (-2.0 * (1.0 - u).ln()).sqrt();
                let angle = (2.0 * PI) as f32 * v;
                (radius * angle.cos(), radius * angle.sin())
            },
        )
    }

    /// `torch.randn(count, dtype=torch.float64)`.
    pub fn randn_f64(&mut self, count: usize) -> Vec<f64> {
        if count < 16 {
            return (0..count).map(|_| self.normal()).collect();
        }
        blocks(
            count,
            || self.even_f64(),
            |u, v| {
                let radius = (-2.0 * (1.0 - u).ln()).sqrt();
                let angle = 2.0 * PI * v;
                (radius * angle.cos(), radius * angle.sin())
            },
        )
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

/// Even numbers that `pair` makes normal in blocks of 16: the first eight with the last eight. When
/// some are left over, the last 16 are drawn again.
fn blocks<T: Copy>(
    count: usize,
    mut even: impl FnMut() -> T,
    pair: impl Fn(T, T) -> (T, T),
) -> Vec<T> {
    let mut values: Vec<T> = (0..count).map(|_| even()).collect();
    let normal = |block: &mut [T]| {
        let (first, second) = block.split_at_mut(8);
        for (a, b) in first.iter_mut().zip(second) {
            (*a, *b) = pair(*a, *b);
        }
    };
    values.chunks_exact_mut(16).for_each(normal);
    if !count.is_multiple_of(16) {
        let last = &mut values[count - 16..];
        last.fill_with(even);
        normal(last);
    }
    values
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
                if size <= 100 {
                    expect("rand64_", &rng().rand_f64(size), 0.0);
                    expect("randn64_", &rng().randn_f64(size), 1e-13);
                }
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
            check(5, rng.randn_f64(5));
            check(6, wide(rng.randn(700)));
            check(7, wide(rng.randn(4)));
        }
    }
}
