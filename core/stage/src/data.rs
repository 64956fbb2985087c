//! What stages hand to each other: pixels, labels, samples, prompts, jobs and verdicts.
//!
//! Every type is `repr(C)` with abi_stable's layout, owned buffers carry the allocator that made
//! them, and the `…Ref` types borrow, so that an image crosses the border without a copy.

mod measures;

pub use measures::*;

use crate::error::{Error, Result};
use abi_stable::{
    StableAbi,
    std_types::{ROption, RSlice, RStr, RString, RVec},
};
use sha2::{Digest, Sha256};

/// An 8-bit RGB image: rows from top to bottom, three interleaved bytes a pixel.
#[repr(C)]
#[derive(StableAbi, Clone, PartialEq, Eq)]
pub struct Image {
    width: u32,
    height: u32,
    pixels: RVec<u8>,
}

/// A borrowed [`Image`].
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct ImageRef<'a> {
    width: u32,
    height: u32,
    pixels: RSlice<'a, u8>,
}

/// A map of class labels, one byte a pixel; label 0 is background.
#[repr(C)]
#[derive(StableAbi, Clone, PartialEq, Eq)]
pub struct Mask {
    width: u32,
    height: u32,
    labels: RVec<u8>,
}

/// A borrowed [`Mask`].
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct MaskRef<'a> {
    width: u32,
    height: u32,
    labels: RSlice<'a, u8>,
}

/// Checks that a buffer of `len` bytes holds `width` x `height` x `channels`.
fn check_len(what: &str, width: u32, height: u32, channels: u64, len: usize) -> Result<()> {
    let want = u64::from(width) * u64::from(height) * channels;
    if width == 0 || height == 0 {
        return Err(Error::data(format!("{what} of {width}x{height} is empty")));
    }
    if want != len as u64 {
        return Err(Error::data(format!(
            "{what} of {width}x{height} needs {want} bytes, not {len}"
        )));
    }
    Ok(())
}

macro_rules! raster {
    ($owned:ident, $borrowed:ident, $field:ident, $channels:literal, $what:literal) => {
        impl $owned {
            #[doc = concat!("Makes ", $what, " from its bytes.")]
            ///
            /// # Errors
            /// When a side is zero or the buffer has another length than the size demands.
            pub fn new(width: u32, height: u32, $field: Vec<u8>) -> Result<Self> {
                check_len($what, width, height, $channels, $field.len())?;
                Ok(Self {
                    width,
                    height,
                    $field: $field.into(),
                })
            }

            /// The borrowed form, which crosses the plugin border without a copy.
            pub fn view(&self) -> $borrowed<'_> {
                $borrowed {
                    width: self.width,
                    height: self.height,
                    $field: self.$field.as_rslice(),
                }
            }

            /// Width in pixels.
            pub fn width(&self) -> u32 {
                self.width
            }

            /// Height in pixels.
            pub fn height(&self) -> u32 {
                self.height
            }

            /// Width and height in pixels.
            pub fn size(&self) -> (u32, u32) {
                (self.width, self.height)
            }

            /// The bytes, row by row.
            pub fn $field(&self) -> &[u8] {
                self.$field.as_slice()
            }

            /// The bytes, row by row, to be changed in place.
            pub fn bytes_mut(&mut self) -> &mut [u8] {
                self.$field.as_mut_slice()
            }
        }

        impl<'a> $borrowed<'a> {
            /// Borrows bytes that are laid out row by row.
            ///
            /// # Errors
            /// When a side is zero or the slice has another length than the size demands.
            pub fn new(width: u32, height: u32, $field: &'a [u8]) -> Result<Self> {
                check_len($what, width, height, $channels, $field.len())?;
                Ok(Self {
                    width,
                    height,
                    $field: $field.into(),
                })
            }

            /// Width in pixels.
            pub fn width(&self) -> u32 {
                self.width
            }

            /// Height in pixels.
            pub fn height(&self) -> u32 {
                self.height
            }

            /// Width and height in pixels.
            pub fn size(&self) -> (u32, u32) {
                (self.width, self.height)
            }

            /// The bytes, row by row.
            pub fn $field(&self) -> &'a [u8] {
                self.$field.as_slice()
            }

            /// An owned copy.
            pub fn to_owned(&self) -> $owned {
                $owned {
                    width: self.width,
                    height: self.height,
                    $field: self.$field.to_rvec(),
                }
            }
        }

        impl std::fmt::Debug for $owned {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(
                    f,
                    concat!(stringify!($owned), "({}x{})"),
                    self.width, self.height
                )
            }
        }

        impl std::fmt::Debug for $borrowed<'_> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(
                    f,
                    concat!(stringify!($borrowed), "({}x{})"),
                    self.width, self.height
                )
            }
        }
    };
}

raster!(Image, ImageRef, pixels, 3, "an RGB image");

impl ImageRef<'_> {
    /// What identifies an image: the SHA-256 of its width, 32 bits, lowest byte first, and its pixels, in
    /// hexadecimal.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.width().to_le_bytes());
        hash.update(self.pixels());
        let digest = hash.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
raster!(Mask, MaskRef, labels, 1, "a mask");

impl MaskRef<'_> {
    /// The labels that occur, background excluded, in rising order.
    pub fn classes(&self) -> Vec<u8> {
        let mut seen = [false; 256];
        for &label in self.labels() {
            seen[label as usize] = true;
        }
        (1..=255).filter(|&label| seen[label as usize]).collect()
    }

    /// How many pixels are not background.
    pub fn foreground(&self) -> u64 {
        self.labels().iter().filter(|&&label| label != 0).count() as u64
    }
}

/// What an [`Attribute`] holds.
#[repr(u8)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttributeKind {
    /// A measurement, in [`Attribute::number`].
    Number,
    /// A yes or no: [`Attribute::number`] is 1 or 0.
    Flag,
    /// A word, in [`Attribute::text`].
    Text,
}

/// A named fact about a sample: `area` = 0.031, `small` = no, `sequence` = "7".
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq)]
pub struct Attribute {
    /// Which fact; lower case.
    pub name: RString,
    /// Which of the two values below counts.
    pub kind: AttributeKind,
    /// The number, or 1/0 of a flag; 0 for text.
    pub number: f64,
    /// The word; empty unless `kind` is [`AttributeKind::Text`].
    pub text: RString,
}

/// Facts about a sample, in the order in which they were stated; a name occurs once.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, Default, PartialEq)]
pub struct Attributes {
    entries: RVec<Attribute>,
}

impl Attributes {
    /// No facts.
    pub fn new() -> Self {
        Self::default()
    }

    fn set(&mut self, name: &str, kind: AttributeKind, number: f64, text: &str) {
        let entry = Attribute {
            name: name.into(),
            kind,
            number,
            text: text.into(),
        };
        match self.entries.iter_mut().find(|e| e.name.as_str() == name) {
            Some(old) => *old = entry,
            None => self.entries.push(entry),
        }
    }

    /// States a measurement, replacing what stood under that name.
    pub fn set_number(&mut self, name: &str, value: f64) {
        self.set(name, AttributeKind::Number, value, "");
    }

    /// States a yes or no, replacing what stood under that name.
    pub fn set_flag(&mut self, name: &str, value: bool) {
        self.set(name, AttributeKind::Flag, f64::from(u8::from(value)), "");
    }

    /// States a word, replacing what stood under that name.
    pub fn set_text(&mut self, name: &str, value: &str) {
        self.set(name, AttributeKind::Text, 0.0, value);
    }

    /// Every fact.
    pub fn iter(&self) -> std::slice::Iter<'_, Attribute> {
        self.entries.as_slice().iter()
    }

    /// The fact of that name.
    pub fn get(&self, name: &str) -> Option<&Attribute> {
        self.iter().find(|e| e.name.as_str() == name)
    }

    /// The measurement of that name; a flag counts as 1 or 0.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.get(name)
            .filter(|e| e.kind != AttributeKind::Text)
            .map(|e| e.number)
    }

    /// The yes or no of that name.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.get(name)
            .filter(|e| e.kind == AttributeKind::Flag)
            .map(|e| e.number != 0.0)
    }

    /// The word of that name.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)
            .filter(|e| e.kind == AttributeKind::Text)
            .map(|e| e.text.as_str())
    }

    /// Takes over every fact of `other`, replacing those of the same name.
    pub fn extend(&mut self, other: &Attributes) {
        for e in other.iter() {
            self.set(&e.name, e.kind, e.number, &e.text);
        }
    }
}

/// A class of the masks of a dataset.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// The label in the mask; never 0, which is background.
    pub label: u8,
    /// What it is called: `polyp`, `optic cup`.
    pub name: RString,
    /// Whether this class is what is generated, validated and scored.
    pub target: bool,
}

/// How the sizes of a [`NamedSplit`] are to be filled.
#[repr(u8)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitRule {
    /// Samples in natural order of their ids, shuffled once by a fixed seed.
    Shuffled,
    /// Whole groups (videos, patients) go to one side; the sizes are aims.
    Grouped,
    /// The dataset's own parts: [`Item::part`] is `train`, `validation` or `test`.
    Parts,
}

/// A division of a dataset that its literature uses.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq, Eq)]
pub struct NamedSplit {
    /// What a manifest calls it: `paper`, `pranet`, `sequence`.
    pub name: RString,
    /// How the sizes are filled.
    pub rule: SplitRule,
    /// Number of training samples, validation excluded if `validation` is given.
    pub train: u32,
    /// Number of validation samples; 0 where the literature has none (one is carved from train).
    pub validation: u32,
    /// Number of test samples.
    pub test: u32,
}

/// What a dataset is.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq, Eq)]
pub struct DatasetInfo {
    /// What to call it in reports, variant included: `CVC-ClinicDB (PNG)`.
    pub name: RString,
    /// Its classes, background excluded; at least one is a target.
    pub classes: RVec<Class>,
    /// The divisions that its literature uses; the first is the default. May be empty.
    pub splits: RVec<NamedSplit>,
}

impl DatasetInfo {
    /// A dataset with one class (label 1), which is the target, and no named splits.
    pub fn single_class(name: &str, class: &str) -> Self {
        DatasetInfo {
            name: name.into(),
            classes: RVec::from(vec![Class {
                label: 1,
                name: class.into(),
                target: true,
            }]),
            splits: RVec::new(),
        }
    }

    /// The labels that are generated, validated and scored, in rising order.
    pub fn targets(&self) -> Vec<u8> {
        let mut labels: Vec<u8> = self
            .classes
            .iter()
            .filter(|class| class.target)
            .map(|class| class.label)
            .collect();
        labels.sort_unstable();
        labels
    }
}

/// A sample's entry in the listing of a dataset: what is known without decoding pixels.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Unique in the dataset and stable between machines; becomes part of file names.
    pub id: RString,
    /// The video or patient it belongs to, or empty.
    pub group: RString,
    /// The dataset's own part (`train`, `validation`, `test`), or empty.
    pub part: RString,
    /// Whether it was generated; the host says so of the images that it adds.
    pub synthetic: bool,
}

impl Item {
    /// An entry of a real sample with neither group nor part.
    pub fn new(id: &str) -> Self {
        Item {
            id: id.into(),
            group: RString::new(),
            part: RString::new(),
            synthetic: false,
        }
    }
}

/// An image with its mask and what is known of it.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq)]
pub struct Sample {
    /// The id of its [`Item`].
    pub id: RString,
    /// The image.
    pub image: Image,
    /// Class labels, of the image's size.
    pub mask: Mask,
    /// Facts; those of [`crate::lesion::measure`] and [`crate::appearance::Appearance`] are added by
    /// the host, where none of that name is stated.
    pub attributes: Attributes,
}

/// What a prompt has to describe.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct PromptQuery<'a> {
    /// Name of the target class: `polyp`, `optic cup`.
    pub target: RStr<'a>,
    /// Facts of the mask that will be painted (`area`, `elongation`, `count`, `cdr`, …).
    pub attributes: &'a Attributes,
}

/// A text that describes a lesion, and what the image must not show.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// What to paint.
    pub positive: RString,
    /// What to avoid.
    pub negative: RString,
    /// Names of the properties that the text speaks of: `sessile`, `granular`, `small`.
    pub tags: RVec<RString>,
}

/// One image to be generated.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Id of the image that lends the background, or empty.
    pub source: RStr<'a>,
    /// The image to paint into.
    pub image: ImageRef<'a>,
    /// Where to paint: every pixel that is not background; the labels say what.
    pub mask: MaskRef<'a>,
    /// What to paint.
    pub prompt: RStr<'a>,
    /// What to avoid; may be empty.
    pub negative: RStr<'a>,
    /// All randomness of this job; equal jobs give equal images in any order and batch.
    pub seed: u64,
}

/// A generated image that awaits its verdict.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its id, unique in the run.
    pub id: RStr<'a>,
    /// The generated image.
    pub image: ImageRef<'a>,
    /// The mask that was asked for.
    pub mask: MaskRef<'a>,
}

/// What a validator found.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Whether the candidate may be used for training.
    pub accepted: bool,
    /// The figure that decided (for `iou`, the IoU of the worst class); larger is better.
    pub score: f64,
    /// What the score had to be above, if that is how it decided.
    pub limit: ROption<f64>,
    /// Whether it failed for another reason, whatever its score: no other limit would let it pass.
    pub fails_otherwise: bool,
    /// The score of each class that was compared, if it looked at classes.
    pub classes: RVec<ClassScore>,
    /// Why it was turned down, in a few words; empty when accepted.
    pub reason: RString,
    /// Further measurements (`dice`, `area`).
    pub measures: Attributes,
    /// What a segmenter found in the image, of the image's size, where one was asked; of several, the
    /// first one's answer. It is shown to people beside the wanted mask.
    pub found: ROption<Mask>,
}

impl Verdict {
    /// Whether the candidate would have been accepted, had its score had to be above `limit` instead;
    /// `None` where no limit decided.
    pub fn accepted_above(&self, limit: f64) -> Option<bool> {
        self.limit.into_option()?;
        Some(self.score > limit && !self.fails_otherwise)
    }
}

/// How well one class of a candidate was found.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq)]
pub struct ClassScore {
    /// The class.
    pub label: u8,
    /// Its score (IoU); larger is better.
    pub score: f64,
}

/// A segmenter's answer for one image.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq)]
pub struct Segmentation {
    /// Class labels, of the image's size.
    pub mask: Mask,
    /// Probability (0 to 1) of being a target class for every pixel, or empty where the segmenter
    /// has none.
    pub probability: RVec<f32>,
}

/// What a training run achieved.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq)]
pub struct FitReport {
    /// Optimiser steps taken; 0 for a stage that only collects.
    pub steps: u64,
    /// The step whose weights were kept.
    pub best_step: u64,
    /// Mean training loss of the last epoch (0 where there is none).
    pub loss: f64,
    /// What `score` measures: `validation dice`.
    pub metric: RString,
    /// The best value of that metric.
    pub score: f64,
}
