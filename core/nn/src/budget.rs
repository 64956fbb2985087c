//! What a model will need before there is one: for [`FromConfig::inspect`](diffaug::FromConfig).
//!
//! A plugin counts its parameters from its options or from the headers of its files ([`stored`]),
//! and estimates its activations; what training keeps besides ([`TrainingMemory`]) is the same for all that
//! are trained by [`crate::fit`].

use crate::{
    optim::Rule,
    weights::{Files, Source},
};
use diffaug::{
    Inspection, Result,
    prelude::{RString, RVec},
};
use std::{collections::BTreeMap, path::Path};

/// Bytes of an f32 value.
pub const F32: u64 = 4;

/// The beginning of every inspection: what this build has, and whether `device` can be used by it.
pub fn inspection(device: &str) -> Inspection {
    let mut inspection = Inspection {
        features: features(),
        ..Inspection::default()
    };
    if let Err(error) = crate::device::check(device) {
        inspection.miss(error);
    }
    inspection
}

/// The features that this build has, and its vectors.
fn features() -> RVec<RString> {
    let compiled = [
        ("cuda", cfg!(feature = "cuda")),
        ("cudnn", cfg!(feature = "cudnn")),
        ("flash-attn", cfg!(feature = "flash-attn")),
        ("metal", cfg!(feature = "metal")),
        ("mkl", cfg!(feature = "mkl")),
    ];
    let compiled = compiled.into_iter().filter(|(_, there)| *there);
    let names = compiled
        .map(|(name, _)| name)
        .chain([diffaug_kernels::simd()]);
    names.map(RString::from).collect()
}

/// What a training by [`crate::fit`] keeps besides activations, in bytes; all of it is f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainingMemory {
    /// Weights, what the optimiser remembers of them, and their running mean.
    pub lasting: u64,
    /// Gradients, while a step is made.
    pub gradients: u64,
    /// Copies, while a checkpoint is written: they are in the machine's memory, whatever the device.
    pub checkpoint: u64,
}

impl TrainingMemory {
    /// For `values` that are stored, of which `rule` changes `trainable`; with a running mean if
    /// `averaged`.
    pub fn new(values: u64, trainable: u64, rule: &Rule, averaged: bool) -> Self {
        let states = rule.slots().len() as u64 * trainable;
        let mean = u64::from(averaged) * trainable;
        let lasting = F32 * (values + states + mean);
        TrainingMemory {
            lasting,
            gradients: F32 * trainable,
            // The optimiser's are made tensors before the file is put together.
            checkpoint: F32 * states + lasting,
        }
    }

    /// The largest amount of memory of the device that is in use at once, with `activations` for a
    /// step.
    pub fn peak(&self, activations: u64, on_processor: bool) -> u64 {
        let step = activations.saturating_add(self.lasting + self.gradients);
        let checkpoint = match on_processor {
            true => self.lasting + self.checkpoint,
            false => 0,
        };
        step.max(checkpoint)
    }
}

/// What the header of a safetensors file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Shapes by name.
    pub tensors: BTreeMap<String, Vec<usize>>,
    /// Number of values of all tensors.
    pub values: u64,
    /// What they take in the file.
    pub bytes: u64,
}

/// Reads the header of a safetensors file, and compares the file's length with it.
///
/// # Errors
/// When the file cannot be read, is of another kind, or is shorter or longer than its header says.
pub fn stored(path: &Path) -> Result<Stored> {
    let files = Files::open(&[path])?;
    let shaped = |name: String| Some((files.shape(&name)?, name));
    let shapes = files.names().into_iter().filter_map(shaped);
    let tensors: BTreeMap<_, _> = shapes.map(|(shape, name)| (name, shape)).collect();
    // A header may tell of anything.
    let count = |shape: &Vec<usize>| {
        shape
            .iter()
            .fold(1, |n: u64, &side| n.saturating_mul(side as u64))
    };
    Ok(Stored {
        values: tensors.values().map(count).fold(0, u64::saturating_add),
        bytes: files.bytes(),
        tensors,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{params::Params, weights};
    use candle_core::Device;
    use std::fs;

    #[test]
    fn the_vectors_are_those_that_the_processor_has() {
        #[cfg(target_arch = "x86_64")]
        let wide = std::arch::is_x86_feature_detected!("avx2");
        #[cfg(not(target_arch = "x86_64"))]
        let wide = false;
        assert_eq!(matches!(diffaug_kernels::simd(), "avx2" | "avx512"), wide);
        assert!(features().contains(&RString::from(diffaug_kernels::simd())));
    }

    #[test]
    fn memory_counts_what_each_rule_remembers() {
        let of = |rule: &Rule, averaged| TrainingMemory::new(110, 100, rule, averaged);
        let adam = of(&Rule::default(), false);
        assert_eq!((adam.lasting, adam.gradients), (1240, 400));
        assert_eq!(adam.checkpoint, 800 + 1240);
        assert_eq!(of(&Rule::default(), true).lasting, 1640);
        assert_eq!(of(&Rule::sgd(0.0), false).lasting, 440);
        assert_eq!(of(&Rule::sgd(0.9), false).lasting, 840);
        // Wide networks on small images take most for their checkpoint, but not on a device.
        assert_eq!(adam.peak(0, true), 1240 + 2040);
        assert_eq!(adam.peak(0, false), 1640);
        assert_eq!(adam.peak(9000, true), 10640);
    }

    #[test]
    fn a_header_tells_what_a_file_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let mut params = Params::new(&Device::Cpu, 0);
        params.root().uniform("a", &[3, 2], 1.0).unwrap();
        params.root().buffer("b", &[5], 1.0).unwrap();
        weights::save(&path, &params).unwrap();
        let stored = stored(&path).unwrap();
        assert_eq!((stored.values, stored.bytes), (11, 44));
        assert_eq!(stored.tensors["a"], [3, 2]);
    }

    #[test]
    fn what_is_no_whole_file_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let message = || stored(&path).unwrap_err().to_string();
        assert!(message().starts_with("cannot read the weights `"));
        let mut params = Params::new(&Device::Cpu, 0);
        params.root().uniform("a", &[3, 2], 1.0).unwrap();
        weights::save(&path, &params).unwrap();
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 4]).unwrap();
        assert!(message().contains("is not a complete safetensors file"));
    }
}
