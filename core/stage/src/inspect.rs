//! What a stage says of its model before there is one: how large it is, what memory it will take,
//! and what it lacks. `diffaug doctor` prints it.

use abi_stable::{
    StableAbi,
    std_types::{RString, RVec},
};

/// A network of a stage's model: `unet`, `text_encoder`, `vae`.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// What it is called, where its weights lie or in the literature.
    pub name: RString,
    /// Number of its values, running statistics not counted.
    pub parameters: u64,
    /// How many of those training changes.
    pub trainable: u64,
    /// What all its values take, in the type that they are kept in.
    pub bytes: u64,
}

/// What a stage needs to work, as far as that is known without loading anything; the default is
/// that of a stage without a model.
///
/// Figures of memory are those of the device that the [`Context`](crate::Context) names, at their
/// peak and without what the program takes anyway.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// The networks; none where there is no model, or where missing files would tell.
    pub components: RVec<Component>,
    /// Memory that answering takes, estimated; 0 where there is no telling.
    pub run_bytes: u64,
    /// Memory that training takes, estimated; 0 where the stage cannot be trained.
    pub train_bytes: u64,
    /// Sentences for the user, such as how the memory was estimated.
    pub notes: RVec<RString>,
    /// What is not there or cannot be used, a sentence each: ``weights `X` are not there``.
    pub missing: RVec<RString>,
    /// What the plugin was compiled with, in a word each: `cuda`, `cudnn`, `avx512`.
    pub features: RVec<RString>,
}

impl Inspection {
    /// Adds a sentence to the notes.
    pub fn note(&mut self, sentence: impl std::fmt::Display) {
        self.notes.push(sentence.to_string().into());
    }

    /// Adds a sentence to what is missing.
    pub fn miss(&mut self, sentence: impl std::fmt::Display) {
        self.missing.push(sentence.to_string().into());
    }
}

/// Bytes as people write them: `800 B`, `1.5 MiB`, `41 GiB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    // What would be rounded to 1024 belongs to the next unit.
    while value >= 1023.5 {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(value < 9.95);
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_two_digits_at_least() {
        let gib = 1 << 30;
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (41 * gib, "41 GiB"),
            (3 * gib / 2, "1.5 GiB"),
            (gib - 1, "1.0 GiB"),
            (310 << 20, "310 MiB"),
            ((10 << 20) - 1, "10 MiB"),
            (u64::MAX, "16 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
