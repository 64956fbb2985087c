//! The memory that the maps of a pass take, counted block by block.
//!
//! What is in use beyond the maps that are kept was calibrated with the memory that processes took at most
//! (`tests/memory.rs`).

use diffaug_nn::{
    budget::F32,
    precision::Precision,
    segmenter::{Activations, Load},
};

/// Values in the maps of a pass, for all images of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Maps {
    /// Those of convolutions that are normalised.
    blocks: u128,
    /// All others that are kept.
    plain: u128,
    /// Of the largest block.
    largest: u128,
}

/// Bytes of a value.
struct Bytes {
    /// In a block of convolution and normalisation.
    block: u64,
    /// In any other map.
    plain: u64,
    /// In use besides, for each value of the largest block.
    besides: u64,
}

impl Maps {
    /// Takes in the maps of a convolution with its normalisation.
    pub fn block(&mut self, values: u128) {
        self.blocks += values;
        self.largest = self.largest.max(values);
    }

    /// Takes in `count` other maps that are kept for the backward pass.
    pub fn plain(&mut self, count: u128, values: u128) {
        self.plain += count * values;
    }

    /// What these maps take.
    pub fn activations(&self, load: &Load) -> Activations {
        Activations {
            training: self.bytes(&Bytes::of_training(load.on_processor, load.precision)),
            answering: self.bytes(&Bytes::of_answering(load.on_processor)),
        }
    }

    fn bytes(&self, bytes: &Bytes) -> u64 {
        let [block, plain, besides] = [bytes.block, bytes.plain, bytes.besides].map(u128::from);
        let all = block * self.blocks + plain * self.plain + besides * self.largest;
        u64::try_from(all).unwrap_or(u64::MAX)
    }
}

impl Bytes {
    /// On a processor in f32 a block is two operations, each of which keeps its result; in other types there
    /// are casts besides, for the statistics are formed in f32. On other devices a normalisation is made of
    /// seven operations.
    fn of_training(on_processor: bool, precision: Precision) -> Self {
        let plain = precision.dtype().size_in_bytes() as u64;
        let casts = if plain == F32 { 0 } else { 2 * plain };
        let fused = on_processor && plain == F32;
        Bytes {
            block: match on_processor {
                true => 2 * F32 + casts,
                false => 8 * F32 + casts,
            },
            plain,
            besides: match fused {
                true => 12 * F32,
                false => 8 * F32 + 18 * plain,
            },
        }
    }

    /// Weights that could be trained keep the maps of an answer, too, until it is given.
    fn of_answering(on_processor: bool) -> Self {
        Bytes {
            block: if on_processor { 2 * F32 } else { 6 * F32 },
            plain: F32,
            besides: if on_processor { F32 } else { 20 * F32 },
        }
    }
}
