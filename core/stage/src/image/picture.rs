//! Samples of any width as 8-bit RGB, the way a viewer shows them.

use super::decode::{Raster, Samples};
use crate::{
    data::Image,
    error::{Error, Result},
};
use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

/// `bits` as in [`super::ReadOptions`].
pub(super) fn to_rgb(raster: Raster, path: &Path, bits: u8) -> Result<Image> {
    let (width, height, channels) = (raster.width, raster.height, raster.channels);
    let palette = raster.palette.clone();
    let bytes = to_bytes(raster, path, bits)?;
    if let Some(palette) = palette {
        let colour = |index: &u8| {
            palette
                .get(usize::from(*index))
                .copied()
                .unwrap_or_default()
        };
        return Image::new(width, height, bytes.iter().flat_map(colour).collect());
    }
    let pixels = match channels {
        3 => bytes,
        1 | 2 => bytes
            .chunks_exact(channels)
            .flat_map(|p| [p[0]; 3])
            .collect(),
        _ => bytes
            .chunks_exact(channels)
            .flat_map(|p| [p[0], p[1], p[2]])
            .collect(),
    };
    Image::new(width, height, pixels)
}

/// The samples as 8 bits each.
fn to_bytes(raster: Raster, path: &Path, bits: u8) -> Result<Vec<u8>> {
    match raster.samples {
        Samples::U8(bytes) => Ok(bytes),
        Samples::U16(values) => {
            let largest = values.iter().copied().max().unwrap_or(0).into();
            let full = full_range(largest, raster.largest, bits, path)?;
            Ok(values.into_iter().map(|v| scale(v.into(), full)).collect())
        }
        Samples::U32(values) => {
            let largest = values.iter().copied().max().unwrap_or(0);
            if largest > u32::from(u16::MAX) && bits == 0 {
                return Err(out_of_range(path, largest, "65535"));
            }
            let full = full_range(largest, raster.largest, bits, path)?;
            Ok(values.into_iter().map(|v| scale(v, full)).collect())
        }
        Samples::F32(values) => from_floats(&values, path),
    }
}

fn out_of_range(path: &Path, largest: impl std::fmt::Display, limit: &str) -> Error {
    Error::data(format!(
        "`{}` holds samples up to {largest}, expected at most {limit}: save it as 8 or 16 bits",
        path.display()
    ))
}

/// The value that becomes white: by the option, else the file's own word, else by what is found.
fn full_range(largest: u32, said: Option<u32>, bits: u8, path: &Path) -> Result<u32> {
    if bits > 0 {
        let full = (1u32 << bits.min(16)) - 1;
        return match largest > full {
            true => Err(Error::data(format!(
                "`{}` holds samples up to {largest}, but `images.bits` = {bits} allows for {full}",
                path.display()
            ))),
            false => Ok(full),
        };
    }
    let full = u32::from(u16::MAX);
    if let Some(said) = said.filter(|&said| said >= largest && (256..full).contains(&said)) {
        return Ok(said);
    }
    let found = [8u32, 10, 12, 14]
        .into_iter()
        .find(|bits| largest < 1 << bits);
    let Some(found) = found.filter(|_| largest > 0) else {
        return Ok(full);
    };
    warn(path, largest, found);
    Ok((1 << found) - 1)
}

/// Warns of a guessed range, once for each in the life of the process.
fn warn(path: &Path, largest: u32, bits: u32) {
    static WARNED: AtomicU32 = AtomicU32::new(0);
    if WARNED.fetch_or(1 << bits, Ordering::Relaxed) & (1 << bits) == 0 {
        tracing::warn!(
            "`{}` stores 16 bits a sample, but none is above {largest}: it and files like it are \
             read as {bits} bits; `images.bits` says how many are used in all of them",
            path.display()
        );
    }
}

fn scale(value: u32, full: u32) -> u8 {
    ((u64::from(value) * 255 + u64::from(full / 2)) / u64::from(full)).min(255) as u8
}

/// Numbers from 0 to 1 are shares of white, others are taken as 8-bit values.
fn from_floats(values: &[f32], path: &Path) -> Result<Vec<u8>> {
    let (lowest, largest) = values
        .iter()
        .fold((0f32, 0f32), |(low, high), &v| (low.min(v), high.max(v)));
    if lowest < 0.0 {
        return Err(Error::data(format!(
            "`{}` holds negative samples down to {lowest}, expected 0 to 1, or 0 to 255",
            path.display()
        )));
    }
    if largest > 255.0 {
        return Err(out_of_range(path, largest, "1, or 255"));
    }
    let white = if largest <= 1.0 { 255.0 } else { 1.0 };
    Ok(values.iter().map(|v| (v * white).round() as u8).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(samples: Samples, bits: u8) -> Result<Vec<u8>> {
        let raster = Raster {
            width: 2,
            height: 1,
            channels: 1,
            samples,
            palette: None,
            lossy: false,
            largest: None,
        };
        let image = to_rgb(raster, Path::new("x.tif"), bits)?;
        Ok(image.pixels().iter().step_by(3).copied().collect())
    }

    #[test]
    fn the_largest_value_tells_how_many_bits_are_used() {
        for (largest, half) in [
            (255, 128),
            (1023, 512),
            (4095, 2048),
            (16383, 8192),
            (65535, 32768),
        ] {
            let found = read(Samples::U16(vec![half, largest]), 0).unwrap();
            assert_eq!(found, [128, 255], "{largest}");
            let found = read(Samples::U32(vec![half.into(), largest.into()]), 0).unwrap();
            assert_eq!(found, [128, 255], "{largest}");
        }
        assert_eq!(read(Samples::U16(vec![0, 0]), 0).unwrap(), [0, 0]);
        assert_eq!(read(Samples::U16(vec![0, 1023]), 12).unwrap(), [0, 64]);
        assert_eq!(read(Samples::U16(vec![0, 1023]), 16).unwrap(), [0, 4]);
        let error = read(Samples::U16(vec![0, 1024]), 10)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("up to 1024, but `images.bits` = 10 allows for 1023"),
            "{error}"
        );
        let error = read(Samples::U32(vec![0, 70_000]), 0)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("up to 70000, expected at most 65535"),
            "{error}"
        );
    }

    #[test]
    fn numbers_with_a_point_are_shares_or_bytes() {
        assert_eq!(read(Samples::F32(vec![0.0, 1.0]), 0).unwrap(), [0, 255]);
        assert_eq!(read(Samples::F32(vec![0.5, 0.25]), 0).unwrap(), [128, 64]);
        assert_eq!(read(Samples::F32(vec![2.0, 200.4]), 0).unwrap(), [2, 200]);
        for (values, words) in [
            (vec![-1.0, 0.0], "down to -1"),
            (vec![0.0, 256.0], "up to 256"),
        ] {
            let error = read(Samples::F32(values), 0).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_files_own_word_goes_before_what_is_found() {
        let range = |said| full_range(900, said, 0, Path::new("x")).unwrap();
        assert_eq!(range(Some(4095)), 4095);
        assert_eq!(range(Some(800)), 1023);
        assert_eq!(range(Some(65535)), 1023);
        assert_eq!(range(None), 1023);
    }
}
