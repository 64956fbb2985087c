//! Philox 4x32-10 (Salmon et al., 2011), and what `torch.randn(..., device="cuda")` makes of it.
//!
//! PyTorch starts blocks of 256 threads, one thread for a value but no more blocks than the card
//! holds at once, and thread `i` draws from stream `i` of the seed, four values at a time. The `k`th
//! of the four goes to place `i + k * threads`, and after four rounds of places the thread draws
//! again. Up to one value a thread (221 184 on a card of 108 multiprocessors with room for 2048
//! threads each) the result is the same on every card; beyond that it depends on their number.
//!
//! Compared with the algorithm's published test vectors, and with numbers printed from a card: the
//! first call after seed 0 (64 values, four digits) and, through a sum, the two calls after it. NOT
//! compared with a card: tensors of more values than threads, other seeds, digits beyond the
//! fourth, and [`CudaRng::rand`]. On cards sine and cosine are approximations, so the last digits
//! do differ.

/// The ten rounds: 128 random bits that depend on `counter` and `key` alone.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    let product = |a: u32, b: u32| {
        let product = u64::from(a) * u64::from(b);
        ((product >> 32) as u32, product as u32)
    };
    for _ in 0..10 {
        let (high0, low0) = product(0xd251_1f53, counter[0]);
        let (high1, low1) = product(0xcd9e_8d57, counter[2]);
        counter = [
            high1 ^ counter[1] ^ key[0],
            low1,
            high0 ^ counter[3] ^ key[1],
            low0,
        ];
        key = [
            key[0].wrapping_add(0x9e37_79b9),
            key[1].wrapping_add(0xbb67_ae85),
        ];
    }
    counter
}

/// What `torch.manual_seed(seed)` leaves behind for tensors on an NVIDIA card.
#[derive(Clone, Debug)]
pub struct CudaRng {
    seed: u64,
    /// Draws of four that every stream has behind it.
    drawn: u64,
    /// Blocks that the card holds at once.
    blocks: u64,
}

/// Threads of a block.
const BLOCK: u64 = 256;

impl CudaRng {
    /// For a card with that many multiprocessors (A100: 108, H100 SXM: 132, RTX 3090: 82,
    /// RTX 4090: 128) and room for that many threads on each (2048 on A100 and H100, 1536 on RTX
    /// 3090 and 4090).
    pub fn new(seed: u64, multiprocessors: u32, threads_each: u32) -> Self {
        let blocks = u64::from(multiprocessors) * (u64::from(threads_each) / BLOCK);
        CudaRng {
            seed,
            drawn: 0,
            blocks: blocks.max(1),
        }
    }

    /// `torch.randn(count, device="cuda")`: mean 0, variance 1.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        self.fill(count, |[a, b, c, d]| {
            let ((a, b), (c, d)) = (normal(a, b), normal(c, d));
            [a, b, c, d]
        })
    }

    /// `torch.rand(count, device="cuda")`: from 0 to below 1.
    pub fn rand(&mut self, count: usize) -> Vec<f32> {
        self.fill(count, |bits| {
            // The card's numbers are from above 0 to 1, and PyTorch turns 1 into 0.
            bits.map(|bits| match share(bits) {
                1.0 => 0.0,
                share => share,
            })
        })
    }

    fn fill(&mut self, count: usize, convert: impl Fn([u32; 4]) -> [f32; 4]) -> Vec<f32> {
        let threads = BLOCK * self.blocks.min((count as u64).div_ceil(BLOCK)).max(1);
        let draws = (count as u64).div_ceil(4 * threads);
        let mut values = vec![0.0; count];
        for draw in 0..draws {
            for thread in 0..threads {
                let first = draw * 4 * threads + thread;
                if first >= count as u64 {
                    break;
                }
                let four = convert(self.bits(thread, self.drawn + draw));
                for (place, value) in (first..).step_by(threads as usize).zip(four) {
                    if let Some(slot) = values.get_mut(place as usize) {
                        *slot = value;
                    }
                }
            }
        }
        self.drawn += draws;
        values
    }

    /// Draw `draw` of stream `thread`.
    fn bits(&self, thread: u64, draw: u64) -> [u32; 4] {
        let halves = |x: u64| [x as u32, (x >> 32) as u32];
        let ([a, b], [c, d]) = (halves(draw), halves(thread));
        philox4x32([a, b, c, d], halves(self.seed))
    }
}

/// 2^-32.
const UNIT: f32 = 2.328_306_4e-10;

/// From above 0 to 1.
fn share(bits: u32) -> f32 {
    bits as f32 * UNIT + UNIT / 2.0
}

/// Box & Muller (1958), sine first.
fn normal(x: u32, y: u32) -> (f32, f32) {
    const TURN: f32 = UNIT * 6.283_185_5;
    let radius = (-2.0 * share(x).ln()).sqrt();
    let (sin, cos) = (y as f32 * TURN + TURN / 2.0).sin_cos();
    (radius * sin, radius * cos)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors that come with the authors' library Random123.
    #[test]
    fn the_algorithm_gives_the_published_numbers() {
        let all = u32::MAX;
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([all; 4], [all; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(
            philox4x32(pi, [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    /// Rows of a `torch.randn((8, 8), device="cuda")` after `torch.manual_seed(0)`, and of
    /// max(that + half of a second such tensor + a row of eight more, 0), as printed on a card.
    #[test]
    fn seed_0_gives_what_was_printed_from_a_card() {
        let first = [
            [
                -0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284,
            ],
            [
                -1.0745, -0.3631, -1.6711, 2.2655, 0.3117, -0.1842, 1.2866, 1.1820,
            ],
            [
                -0.1271, 1.2169, 1.4353, 1.0605, -0.4941, -1.4244, -0.7244, -1.2973,
            ],
            [
                0.0697, -0.0074, 1.8969, 0.6878, -0.0779, -0.8373, 1.3506, -0.2879,
            ],
            [
                -0.5965, -0.3283, -0.9086, -0.8059, -0.7407, -0.0504, 0.5435, 1.5150,
            ],
            [
                0.0141, 0.4532, 1.6349, 0.7124, -0.1806, 1.0252, -1.4622, -0.7554,
            ],
            [
                -0.1836, 0.3824, 0.3918, -0.0830, 0.8971, -1.1123, 0.1116, 0.4863,
            ],
            [
                -0.5499, -0.3231, -0.5469, 0.9049, 0.2837, 0.1210, 0.4730, -1.0823,
            ],
        ];
        let then = [
            [1.7098, 0.0, 0.0, 0.0, 0.67049, 0.0, 0.34424, 0.011223],
            [1.8750, 0.0, 0.0, 2.2105, 0.66808, 0.0, 1.8445, 1.9246],
            [2.2614, 1.3964, 0.51802, 2.0114, 0.0, 0.0, 0.27715, 0.0],
        ];
        let mut rng = CudaRng::new(0, 108, 2048);
        let (x, y, z) = (rng.randn(64), rng.randn(64), rng.randn(8));
        for (i, expected) in first.as_flattened().iter().enumerate() {
            assert!(
                (x[i] - expected).abs() < 6e-5,
                "{}, expected {expected}",
                x[i]
            );
        }
        for (i, expected) in then.as_flattened().iter().enumerate() {
            let ours = (x[i] + 0.5 * y[i] + z[i % 8]).max(0.0);
            assert!(
                (ours - expected).abs() < 1e-4,
                "{ours}, expected {expected}"
            );
        }
    }

    #[test]
    fn up_to_a_value_a_thread_the_card_does_not_matter() {
        let draw = |multiprocessors| CudaRng::new(3, multiprocessors, 2048).randn(10_000);
        assert_eq!(draw(108), draw(132));
        let short = CudaRng::new(3, 108, 2048).randn(700);
        assert_eq!(short, draw(108)[..700]);
    }

    #[test]
    fn more_values_than_threads_are_dealt_round() {
        // One block: 256 threads. Thread 0 fills 0, 256, 512, 768, and then 1024.
        let mut rng = CudaRng::new(5, 1, 256);
        let values = rng.randn(1100);
        let bits = |draw| philox4x32([draw, 0, 0, 0], [5, 0]);
        let four = |[a, b, c, d]: [u32; 4]| [normal(a, b), normal(c, d)];
        let [(a, b), (c, d)] = four(bits(0));
        assert_eq!(
            [values[0], values[256], values[512], values[768]],
            [a, b, c, d]
        );
        assert_eq!(values[1024], four(bits(1))[0].0);
        // The next call goes on where this one, with two draws a thread, left off.
        assert_eq!(rng.randn(1)[0], four(bits(2))[0].0);
    }

    #[test]
    fn they_are_spread_as_they_should() {
        let mut rng = CudaRng::new(9, 108, 2048);
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
        let normal = rng.randn(100_000);
        let squares: Vec<f32> = normal.iter().map(|v| v * v).collect();
        assert!(mean(&normal).abs() < 0.02 && (mean(&squares) - 1.0).abs() < 0.02);
        let even = rng.rand(100_000);
        assert!((mean(&even) - 0.5).abs() < 0.01);
        assert!(even.iter().all(|v| (0.0..1.0).contains(v)));
    }
}
