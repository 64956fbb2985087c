//! What passes between the host and a measure.

use super::{Attributes, ImageRef, MaskRef};
use abi_stable::{
    StableAbi,
    std_types::{ROption, RSlice, RStr, RString, RVec},
};

/// What a measure compares.
#[repr(u8)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The masks that a trained segmenter predicts for test images, with their truth.
    Predictions,
    /// A set of synthetic images with the real training images.
    Images,
    /// The verdicts on candidates, with the real training lesions.
    Verdicts,
}

/// Which way a figure improves.
#[repr(u8)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// A larger value is better: Dice.
    Higher,
    /// A smaller value is better: a distance.
    Lower,
    /// Neither: a count, a size.
    Neither,
}

/// A figure that a measure has; it has each of them whatever it looks at.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq, Eq)]
pub struct FigureInfo {
    /// Its name, lower case with `_`: `hd95`.
    pub name: RString,
    /// What it is, in which unit, in a few words.
    pub about: RString,
    /// Which way it improves.
    pub better: Better,
}

impl FigureInfo {
    /// A figure of that name.
    pub fn new(name: &str, better: Better, about: &str) -> Self {
        FigureInfo {
            name: name.into(),
            about: about.into(),
            better,
        }
    }

    /// Figures of these names, which way they improve, and what they are.
    pub fn list(all: &[(&str, Better, &str)]) -> RVec<Self> {
        let figure = |(name, better, about): &(&str, Better, &str)| Self::new(name, *better, about);
        all.iter().map(figure).collect()
    }
}

/// A test image with its truth and what was predicted; all of one size.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct Case<'a> {
    /// The id of the image.
    pub id: RStr<'a>,
    /// The image.
    pub image: ImageRef<'a>,
    /// Its class labels.
    pub truth: MaskRef<'a>,
    /// The predicted class labels.
    pub found: MaskRef<'a>,
    /// The predicted probability (0 to 1) of being a target class for every pixel, or empty where the
    /// segmenter has none.
    pub probability: RSlice<'a, f32>,
    /// The labels that count; all others are background.
    pub targets: RSlice<'a, u8>,
}

/// What a measure says of one test image.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq)]
pub struct Measured {
    /// The value of each figure of [`crate::Measure::figures`]; `RNone` where it is undefined for this image.
    pub figures: RVec<ROption<f64>>,
    /// Numbers that are added up over all images, from which [`crate::Measure::total`] makes its figures;
    /// as many for each image. May be empty.
    pub sums: RVec<f64>,
}

/// A candidate that was judged.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq)]
pub struct Judgement {
    /// Whether it was accepted.
    pub accepted: bool,
    /// The validator's score; `RNone` where the candidate was given up before it was finished.
    pub score: ROption<f64>,
    /// Facts of the wanted lesion (see [`crate::lesion::measure`]).
    pub attributes: Attributes,
}

/// Two images that a measure found worth looking at.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq)]
pub struct ImagePair {
    /// Index of the synthetic image.
    pub synthetic: u64,
    /// Index of the real image.
    pub real: u64,
    /// How far they are apart.
    pub value: f64,
}

/// What a measure says of a set of images or of verdicts.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// The value of each figure of [`crate::Measure::figures`]; `RNone` where it is undefined.
    pub figures: RVec<ROption<f64>>,
    /// Pairs of images to be looked at, the most remarkable first. May be empty.
    pub pairs: RVec<ImagePair>,
    /// What a reader of the figures has to know, in a sentence; may be empty.
    pub note: RString,
}
