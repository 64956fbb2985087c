//! The largest sizes of networks that are built: what a configuration claims beyond them is a mistake,
//! or made to fill memory. They lie far above all published models and far below what overflows.

use candle_core::{Result, bail};
use std::{fmt::Display, ops::RangeInclusive};

/// Channels of a map, or width of a token.
pub const CHANNELS: usize = 16_384;
/// Width of a text's token, or inside the map behind an attention.
pub const WIDTH: usize = 65_536;
/// Resolutions of a network.
pub const LEVELS: usize = 8;
/// Blocks at one resolution.
pub const LAYERS: usize = 64;
/// Blocks of a transformer, or layers of a text encoder.
pub const DEPTH: usize = 256;
/// Heads of an attention.
pub const HEADS: usize = 1024;
/// Parameters of a network that is made here and not read from a file.
pub const PARAMETERS: u128 = 4_000_000_000;

/// Checks that the number `value` of the configuration's field lies in `range`.
///
/// # Errors
/// Naming the field and what is expected.
pub fn within<T: PartialOrd + Display>(
    field: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<()> {
    match range.contains(&value) {
        true => Ok(()),
        false => bail!(
            "`{field}` is {value}, expected {} to {}",
            range.start(),
            range.end()
        ),
    }
}

/// Checks that each of `values` lies in `range`, and that there are 1 to `most`.
///
/// # Errors
/// Naming the field and what is expected.
pub fn all_within(
    field: &str,
    values: &[usize],
    most: usize,
    range: RangeInclusive<usize>,
) -> Result<()> {
    if values.is_empty() || values.len() > most {
        bail!(
            "`{field}` has {} values, expected 1 to {most}",
            values.len()
        );
    }
    values
        .iter()
        .enumerate()
        .try_for_each(|(i, value)| within(&format!("{field}[{i}]"), *value, range.clone()))
}

/// More parameters than a network of convolutions has with these `channels` at its resolutions and
/// `layers` blocks at each, on the way down and up.
pub fn at_most(channels: &[usize], layers: usize) -> u128 {
    let largest = channels.iter().copied().max().unwrap_or(0) as u128;
    let blocks = 2 * channels.len() as u128 * (layers as u128 + 2);
    // Two convolutions of 3x3, the first of which may see two maps, and what goes with them.
    blocks
        .saturating_mul(40)
        .saturating_mul(largest.saturating_mul(largest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_field_and_the_range_are_named() {
        within("layers", 64, 1..=LAYERS).unwrap();
        let says = |result: Result<()>, text: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.starts_with(text), "{error}");
        };
        let many = within("layers", 1_000_000_000, 1..=LAYERS);
        says(many, "`layers` is 1000000000, expected 1 to 64");
        says(
            within("eps", f64::NAN, 0.0..=1.0),
            "`eps` is NaN, expected 0 to 1",
        );
        says(
            all_within("c", &[1, 0], 8, 1..=9),
            "`c[1]` is 0, expected 1 to 9",
        );
        says(
            all_within("c", &[1; 9], 8, 1..=9),
            "`c` has 9 values, expected 1 to 8",
        );
        assert_eq!(at_most(&[usize::MAX], usize::MAX), u128::MAX);
        assert!(at_most(&[320, 640, 1280, 1280], 2) > 860_000_000);
    }
}
