//! Masks on disk: the values that a file holds, and what they mean.
//!
//! The **value** of a pixel is what numerical tools see:
//!
//! | file | value |
//! |---|---|
//! | palette (PNG, TIFF, BMP) | the index, whatever its colour |
//! | grey of 8 bits, or RGB with equal channels | the grey value |
//! | 16 or 32 bits, all at most 255 | the number |
//! | 16 or 32 bits, full range (multiples of 257, or up to the largest number) | scaled to 8 bits |
//! | floating point from 0 to 1 | 0 and 1 as they are, shares scaled to 255 |
//! | one colour on black (a red drawing) | the strength of that colour |
//! | the same colour everywhere, or transparency alone | alpha |
//!
//! Anything else (several colours, larger numbers) is an error that names what was found.
//!
//! What a value **means** is said by a [`MaskRule`]. Where nothing is stated ([`MaskRule::Auto`])
//! the values decide: 0 and 255, 0 and 1, or white on black with soft edges. A file that is none of
//! these is an error with its values, never a silent healthy image.

use super::{
    ReadOptions,
    decode::{Raster, Samples, decode},
};
use crate::{
    data::Mask,
    error::{Error, Result},
};
use std::{collections::BTreeMap, fmt, path::Path};

/// The largest value that is background in a mask that is white on black.
pub const THRESHOLD: u8 = 127;

/// How the values of a mask file become labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MaskRule {
    /// Nothing was stated: the values of each file decide, or are an error.
    Auto {
        /// The label of what is not background; not 0.
        label: u8,
    },
    /// Values above `threshold` get `label`, all others 0. Bears JPEG noise and soft edges.
    Above {
        /// The largest value that is still background.
        threshold: u8,
        /// The label of what lies above; not 0.
        label: u8,
    },
    /// Each value has its label (0 for background); any other value is an error.
    Values(BTreeMap<u8, u8>),
}

/// The values of a mask file.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskValues {
    /// One value for each pixel.
    pub values: Mask,
    /// Whether values stray from what was meant: JPEG.
    pub lossy: bool,
    /// Whether the values are indices into a palette.
    pub indexed: bool,
}

/// Why the values of a mask file do not fit a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskFault {
    /// What is wrong, as a sentence without the file's name.
    pub message: String,
    /// The values found other than 0, in rising order.
    pub values: Vec<u8>,
    /// As [`MaskValues::lossy`].
    pub lossy: bool,
}

impl MaskFault {
    /// As an error that names the file.
    pub fn at(&self, path: &Path) -> Error {
        Error::data(format!("mask `{}` {}", path.display(), self.message))
    }
}

/// Values as text, the middle of many left out: `1, 2, 3 … 254`.
pub fn list_values(values: &[u8]) -> String {
    struct Shown<'a>(&'a [u8]);
    impl fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            for (i, value) in self.0.iter().enumerate() {
                let comma = if i == 0 { "" } else { ", " };
                write!(f, "{comma}{value}")?;
            }
            Ok(())
        }
    }
    match values {
        [] => "none".to_owned(),
        [first @ .., last] if first.len() > 8 => format!("{} … {last}", Shown(&first[..6])),
        few => Shown(few).to_string(),
    }
}

impl MaskRule {
    /// Turns the values of a file into labels.
    ///
    /// # Errors
    /// When the values do not fit the rule.
    pub fn apply(&self, found: MaskValues) -> Result<Mask, MaskFault> {
        let count = histogram(found.values.labels());
        let table: [u8; 256] = match self {
            MaskRule::Auto { label } => {
                let threshold = threshold_of(&found, &count)?;
                above(threshold, *label)
            }
            MaskRule::Above { threshold, label } => {
                check_threshold(*threshold, &found, &count)?;
                above(*threshold, *label)
            }
            MaskRule::Values(map) => {
                check_values(map, &found, &count)?;
                std::array::from_fn(|value| map.get(&(value as u8)).copied().unwrap_or(0))
            }
        };
        let mut mask = found.values;
        for value in mask.bytes_mut() {
            *value = table[usize::from(*value)];
        }
        Ok(mask)
    }
}

/// How often each value occurs.
fn histogram(values: &[u8]) -> [u64; 256] {
    let mut count = [0; 256];
    for value in values {
        count[usize::from(*value)] += 1;
    }
    count
}

fn above(threshold: u8, label: u8) -> [u8; 256] {
    std::array::from_fn(|value| {
        if value > usize::from(threshold) {
            label
        } else {
            0
        }
    })
}

/// The values that occur, 0 left out.
fn occurring(count: &[u64; 256]) -> Vec<u8> {
    (1..=u8::MAX)
        .filter(|value| count[usize::from(*value)] > 0)
        .collect()
}

fn fault(message: String, found: &MaskValues, count: &[u64; 256]) -> MaskFault {
    let indexed = if found.indexed {
        " (indices of a palette)"
    } else {
        ""
    };
    MaskFault {
        message: message + indexed,
        values: occurring(count),
        lossy: found.lossy,
    }
}

fn check_values(
    map: &BTreeMap<u8, u8>,
    found: &MaskValues,
    count: &[u64; 256],
) -> Result<(), MaskFault> {
    let mut labels = found.values.labels().iter();
    let Some(at) = labels.position(|value| !map.contains_key(value)) else {
        return Ok(());
    };
    let width = found.values.width() as usize;
    let expected: Vec<u8> = map.keys().copied().collect();
    let message = format!(
        "has the value {} at pixel ({}, {}), expected one of {}",
        found.values.labels()[at],
        at % width,
        at / width,
        list_values(&expected)
    );
    Err(fault(message, found, count))
}

/// Refuses a lossless file whose few values all lie below a stated threshold: it is a map of
/// labels, not a healthy image.
fn check_threshold(threshold: u8, found: &MaskValues, count: &[u64; 256]) -> Result<(), MaskFault> {
    const FEW: usize = 4;
    let values = occurring(count);
    let none_above = values.last().is_some_and(|&largest| largest <= threshold);
    if found.lossy || !none_above || values.len() > FEW {
        return Ok(());
    }
    let message = format!(
        "has the values {} besides 0, none of them above the threshold {threshold}",
        list_values(&values)
    );
    Err(fault(message, found, count))
}

/// The largest value that is background, for a file of which nothing was stated.
fn threshold_of(found: &MaskValues, count: &[u64; 256]) -> Result<u8, MaskFault> {
    /// JPEG stores even black only to within a few steps.
    const NOISE: u8 = 31;
    let values = occurring(count);
    match (values.as_slice(), found.lossy) {
        ([] | [255], _) => return Ok(THRESHOLD),
        ([1], false) => return Ok(0),
        ([constant], true) if count[0] == 0 && *constant <= NOISE => return Ok(THRESHOLD),
        _ => {}
    }
    let expected = "expected 0 and 255 (white on black, edges may be soft) or 0 and 1";
    let refuse = |what: String| Err(fault(format!("{what}; {expected}"), found, count));
    let largest = values.last().copied().unwrap_or(0);
    if largest <= THRESHOLD {
        return refuse(format!("has the values {} besides 0", list_values(&values)));
    }
    // Two values may be black and white, or nearly so. Three are classes, or a mask and what to
    // ignore; a soft edge has more.
    let different = values.len() + usize::from(count[0] > 0);
    let extreme = |value: &u8| *value <= NOISE || *value >= 255 - NOISE;
    if different <= 2 && values.iter().all(extreme) {
        return Ok(THRESHOLD);
    }
    if !found.lossy && different <= 3 {
        return refuse(format!("has the values {} besides 0", list_values(&values)));
    }
    match plateau(found, values.len()) {
        Some(value) => refuse(format!(
            "has the value {value} over whole areas, as if it were a class of its own"
        )),
        None => Ok(THRESHOLD),
    }
}

/// A value between black and white that fills a square of 5x5 pixels somewhere. Soft edges and
/// JPEG noise do not; maps of labels do.
fn plateau(found: &MaskValues, different: usize) -> Option<u8> {
    const SIDE: usize = 5;
    /// With more different values, those near black and white are noise of an earlier JPEG file.
    const FEW: usize = 16;
    let clean = !found.lossy && different <= FEW;
    let between = |value: u8| match clean {
        true => (1..=254).contains(&value),
        false => (32..=223).contains(&value),
    };
    let (width, height) = (
        found.values.width() as usize,
        found.values.height() as usize,
    );
    let values = found.values.labels();
    let square = |x: usize, y: usize| {
        let value = values[y * width + x];
        let row = |y: usize| &values[y * width + x..][..SIDE];
        (y..y + SIDE).all(|y| row(y).iter().all(|&other| other == value))
    };
    let (columns, rows) = (width.checked_sub(SIDE - 1)?, height.checked_sub(SIDE - 1)?);
    (0..rows)
        .flat_map(|y| (0..columns).map(move |x| (x, y)))
        .find(|&(x, y)| between(values[y * width + x]) && square(x, y))
        .map(|(x, y)| values[y * width + x])
}

/// Reads the values of a mask file; see the [module](self) for what they are.
///
/// # Errors
/// As for [`super::open_image`], and when the file holds several colours or numbers of an unusual
/// range.
pub fn read_values(path: &Path, options: impl Into<ReadOptions>) -> Result<MaskValues> {
    let raster = decode(path, options.into().max_pixels)?;
    let (width, height) = (raster.width, raster.height);
    let (lossy, indexed) = (raster.lossy, raster.palette.is_some());
    let channels = raster.channels;
    let bytes = to_bytes(raster, path)?;
    let values = match channels {
        1 => bytes,
        2 => with_alpha(&bytes, 1, lossy, path)?,
        3 => one_channel(&bytes, lossy, path)?,
        _ => with_alpha(&bytes, 3, lossy, path)?,
    };
    Ok(MaskValues {
        values: Mask::new(width, height, values)?,
        lossy,
        indexed,
    })
}

/// Reads the values of a mask file as a grey picture.
///
/// # Errors
/// As for [`read_values`].
pub fn open_gray(path: &Path, options: impl Into<ReadOptions>) -> Result<Mask> {
    read_values(path, options).map(|found| found.values)
}

/// Reads a mask and turns its values into labels.
///
/// # Errors
/// As for [`read_values`], and when the values do not fit `rule`.
pub fn open_mask(path: &Path, options: impl Into<ReadOptions>, rule: &MaskRule) -> Result<Mask> {
    let found = read_values(path, options)?;
    rule.apply(found).map_err(|fault| fault.at(path))
}

/// Samples of any width as 8 bits, if that loses nothing.
fn to_bytes(raster: Raster, path: &Path) -> Result<Vec<u8>> {
    match raster.samples {
        Samples::U8(bytes) => Ok(bytes),
        Samples::U16(values) => {
            let full = u32::from(u16::MAX);
            narrow(values.into_iter().map(u32::from).collect(), full, path)
        }
        Samples::U32(values) => narrow(values, u32::MAX, path),
        Samples::F32(values) => from_floats(&values, path),
    }
}

fn unusual(path: &Path, what: impl fmt::Display) -> Error {
    Error::data(format!(
        "mask `{}` {what}: save it with values from 0 to 255",
        path.display()
    ))
}

/// Values of at most 255 stay; those of the full range are scaled, if none but 0 becomes 0.
fn narrow(values: Vec<u32>, full: u32, path: &Path) -> Result<Vec<u8>> {
    let largest = values.iter().copied().max().unwrap_or(0);
    if largest <= 255 {
        return Ok(values.into_iter().map(|v| v as u8).collect());
    }
    let step = full / 255;
    let exact = values.iter().all(|v| v.is_multiple_of(step));
    let smallest = values.iter().copied().filter(|&v| v > 0).min();
    if !exact && (largest < full || smallest < Some(step)) {
        let smallest = smallest.unwrap_or(0);
        return Err(unusual(
            path,
            format_args!("holds values from {smallest} to {largest} besides 0"),
        ));
    }
    let scale = |v: u32| ((u64::from(v) * 255 + u64::from(full / 2)) / u64::from(full)) as u8;
    Ok(values.into_iter().map(scale).collect())
}

fn from_floats(values: &[f32], path: &Path) -> Result<Vec<u8>> {
    let (lowest, largest) = values
        .iter()
        .fold((0f32, 0f32), |(low, high), &v| (low.min(v), high.max(v)));
    let whole = values.iter().all(|v| v.fract() == 0.0);
    match (lowest >= 0.0, whole) {
        (true, true) if largest <= 255.0 => Ok(values.iter().map(|&v| v as u8).collect()),
        (true, false) if largest <= 1.0 => {
            Ok(values.iter().map(|&v| (v * 255.0).round() as u8).collect())
        }
        _ => Err(unusual(
            path,
            format_args!("holds floating-point values from {lowest} to {largest}"),
        )),
    }
}

/// Values of pixels with alpha: `colours` bytes, then alpha.
fn with_alpha(bytes: &[u8], colours: usize, lossy: bool, path: &Path) -> Result<Vec<u8>> {
    let pixels = || bytes.chunks_exact(colours + 1);
    let alpha = || pixels().map(|pixel| pixel[colours]);
    let opaque: Vec<u8> = pixels()
        .flat_map(|pixel| &pixel[..colours])
        .copied()
        .collect();
    let first_alpha = alpha().next().unwrap_or(u8::MAX);
    if alpha().all(|a| a == first_alpha) {
        return match colours {
            1 => Ok(opaque),
            _ => one_channel(&opaque, lossy, path),
        };
    }
    // Where nothing but transparency varies among what can be seen, that is the mask.
    let mut visible = pixels()
        .filter(|pixel| pixel[colours] > 0)
        .map(|p| &p[..colours]);
    let first = visible.next().unwrap_or_default();
    if visible.all(|colour| colour == first) {
        return Ok(alpha().collect());
    }
    Err(unusual(
        path,
        "has both different colours and transparency, so it does not tell which is meant",
    ))
}

/// The value of RGB pixels that are grey, or of one colour on black.
fn one_channel(bytes: &[u8], lossy: bool, path: &Path) -> Result<Vec<u8>> {
    /// JPEG files of grey pictures have a little colour.
    const TINT: u8 = 24;
    let pixels = || bytes.chunks_exact(3).map(|p| [p[0], p[1], p[2]]);
    let spread = |p: [u8; 3]| p.iter().max().zip(p.iter().min()).map_or(0, |(a, b)| a - b);
    let tint = if lossy { TINT } else { 0 };
    if pixels().all(|p| spread(p) <= tint) {
        return Ok(pixels().map(luma).collect());
    }
    // Which channels take part is the same everywhere, and they are equal: red, yellow, white …
    let used: [bool; 3] = std::array::from_fn(|c| pixels().any(|p| p[c] > 0));
    let strength = |p: [u8; 3]| p.into_iter().max().unwrap_or(0);
    let of_the_colour = |p: [u8; 3]| (0..3).all(|c| !used[c] || p[c] == strength(p));
    if pixels().all(of_the_colour) {
        return Ok(pixels().map(strength).collect());
    }
    // A drawing in any other single colour, with hard edges.
    let mut colours = pixels().filter(|p| *p != [0; 3]);
    let first = colours.next().unwrap_or_default();
    if colours.all(|p| p == first) {
        return Ok(pixels().map(|p| if p == first { 255 } else { 0 }).collect());
    }
    Err(unusual(
        path,
        "has several colours, which say nothing of classes",
    ))
}

/// Brightness of a pixel (ITU-R BT.709, as the `image` crate has it); greys stay as they are.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    let sum = 2126 * u32::from(r) + 7152 * u32::from(g) + 722 * u32::from(b);
    (sum / 10_000) as u8
}

#[cfg(test)]
mod tests;
