//! Dropout by a hash of each value's place.

use super::buffer;
use pulp::Arch;
use rayon::prelude::*;

/// Values that one task takes.
const CHUNK: usize = 1 << 14;

/// Which values fall out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mask {
    /// What the places are hashed with.
    pub key: u64,
    /// Share of the values that fall out, from 0 to less than 1.
    pub share: f32,
}

impl Mask {
    /// 0 for a value that falls out, and what makes up for it for all others.
    ///
    /// The hash is the output of SplitMix64 (Steele et al., Fast splittable pseudorandom number
    /// generators, 2014) at state `key` + `place` times its increment.
    #[inline(always)]
    fn factor(self, place: usize, limit: u32, scale: f32) -> f32 {
        let state = (place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut hash = self.key.wrapping_add(state);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^= hash >> 31;
        if (hash >> 32) as u32 >= limit {
            scale
        } else {
            0.0
        }
    }

    /// The hashes below it fall out, and the scale of the others.
    fn numbers(self) -> (u32, f32) {
        let share = f64::from(self.share);
        // The cast saturates, but a share below 1 does not get there.
        let limit = (share * f64::from(u32::MAX) + share) as u32;
        (limit, (1.0 / (1.0 - share)) as f32)
    }

    /// The factors of `length` values.
    pub fn factors(self, length: usize) -> Vec<f32> {
        self.apply(&vec![1.0; length])
    }

    /// Every value times its factor; a value that falls out becomes 0, whatever it was.
    pub fn apply(self, values: &[f32]) -> Vec<f32> {
        let (limit, scale) = self.numbers();
        let mut out = buffer(values.len());
        out.par_chunks_mut(CHUNK)
            .zip(values.par_chunks(CHUNK))
            .enumerate()
            .for_each(|(chunk, (out, values))| {
                Arch::new().dispatch(|| {
                    for (at, (out, v)) in out.iter_mut().zip(values).enumerate() {
                        let factor = self.factor(chunk * CHUNK + at, limit, scale);
                        *out = if factor == 0.0 { 0.0 } else { v * factor };
                    }
                });
            });
        out
    }
}
