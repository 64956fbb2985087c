//! Images and masks on disk: reading (PNG, JPEG, TIFF, BMP), checking, writing, resizing, cropping,
//! blurring.
//!
//! A file's format is told by its content, since JPEG files named `.png` are common. Its size is
//! read from the header and checked before a pixel is decoded, so that a small file that claims to
//! be huge costs nothing.
//!
//! What is read is what a viewer shows: an EXIF orientation is applied, to images and to masks. A
//! mask that was drawn on the upright picture then fits; one that was drawn on the stored rows has
//! another size, which is an error that names the orientation.
//!
//! | what | from | to |
//! |---|---|---|
//! | an image | palette, grey, RGB, CMYK of 8 bits; alpha is dropped | 8-bit RGB |
//! | an image of 16 bits and more | see [`ReadOptions::bits`] | 8-bit RGB |
//! | a mask | see [`mask`] | one value of 8 bits for each pixel |

pub mod mask;

mod blur;
mod check;
mod decode;
mod jpeg;
mod picture;
mod png;
mod resize;
mod tiff;
mod write;

pub use self::{
    blur::gaussian_blur,
    check::{Header, read_header},
    mask::{MaskFault, MaskRule, MaskValues, open_gray, open_mask, read_values},
    resize::{Filter, Tap, crop_image, crop_mask, overlay_image, resize_image, resize_mask, taps},
    write::{OutputFormat, encode_jpeg, save_gray, save_image},
};

use crate::{
    data::Image,
    error::{Error, ErrorKind, Result, ResultExt},
    files::open_regular,
    stage::Context,
};
use ::image::ImageFormat;
use std::{
    fmt::Display,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

/// The largest image, in pixels, that is decoded unless the user says otherwise.
pub const DEFAULT_MAX_PIXELS: u64 = 64_000_000;

/// How files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// The largest image, in pixels.
    pub max_pixels: u64,
    /// How many bits of a sample are used where a file has 16 or 32 of them, 8 to 16: scanners and
    /// endoscopes store 10 or 12. 0: the largest value of each file tells, which is warned of.
    pub bits: u8,
}

impl Default for ReadOptions {
    fn default() -> Self {
        DEFAULT_MAX_PIXELS.into()
    }
}

impl From<u64> for ReadOptions {
    /// Up to so many pixels.
    fn from(max_pixels: u64) -> Self {
        ReadOptions {
            max_pixels,
            bits: 0,
        }
    }
}

impl From<&Context> for ReadOptions {
    fn from(context: &Context) -> Self {
        ReadOptions {
            max_pixels: context.max_pixels,
            bits: context.bits,
        }
    }
}

/// Reads an image as 8-bit RGB, upright.
///
/// # Errors
/// When the file is missing, empty, truncated, of an unknown format or larger than allowed, or its
/// samples have a range that is no image's.
pub fn open_image(path: &Path, options: impl Into<ReadOptions>) -> Result<Image> {
    let options = options.into();
    picture::to_rgb(
        decode::decode(path, options.max_pixels)?,
        path,
        options.bits,
    )
}

/// Width and height of an image as a viewer shows it, from its header alone.
///
/// # Errors
/// When the file is missing, empty, of an unknown format or its header is broken.
pub fn image_size(path: &Path) -> Result<(u32, u32)> {
    read_header(path).map(|header| header.size())
}

/// An error of a decoder, as one sentence that names the file.
fn broken(path: &Path, why: impl Display) -> Error {
    // Some decoders answer in several lines.
    let why = why.to_string();
    let why: Vec<&str> = why.split_whitespace().collect();
    Error::data(why.join(" ")).context(format!(
        "cannot decode `{}`, which is truncated, broken or of an unusual kind",
        path.display()
    ))
}

/// The formats that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Png,
    Jpeg,
    Tiff,
    Bmp,
}

/// Opens a file and tells its format by its first bytes.
fn open(path: &Path) -> Result<(BufReader<File>, Format)> {
    let name = path.display();
    let cannot = || format!("cannot read `{name}`");
    let mut reader = BufReader::new(open_regular(path).or_error(ErrorKind::Data, cannot)?);
    let start = reader.fill_buf().or_error(ErrorKind::Data, cannot)?;
    if start.is_empty() {
        return Err(Error::data(format!("`{name}` is empty")));
    }
    let format = match ::image::guess_format(start) {
        Ok(ImageFormat::Png) => Format::Png,
        Ok(ImageFormat::Jpeg) => Format::Jpeg,
        Ok(ImageFormat::Tiff) => Format::Tiff,
        Ok(ImageFormat::Bmp) => Format::Bmp,
        // A TIFF with offsets of 64 bits.
        _ if start.starts_with(b"II\x2b\0") || start.starts_with(b"MM\0\x2b") => Format::Tiff,
        _ => {
            return Err(Error::data(format!(
                "`{name}` is neither PNG, JPEG, TIFF nor BMP"
            )));
        }
    };
    Ok((reader, format))
}

/// Checks the size of an image against the limit.
fn check_size(path: &Path, (width, height): (u32, u32), max_pixels: u64) -> Result<()> {
    let name = path.display();
    if width == 0 || height == 0 {
        return Err(Error::data(format!(
            "`{name}` is {width}x{height} pixels, which is no image"
        )));
    }
    if u64::from(width) * u64::from(height) > max_pixels {
        let limit = if max_pixels >= 100_000 {
            format!("{} megapixels", max_pixels as f64 / 1e6)
        } else {
            format!("{max_pixels} pixels")
        };
        return Err(Error::data(format!(
            "`{name}` is {width}x{height} pixels, over the limit of {limit}"
        )));
    }
    Ok(())
}

/// Bytes that decoding may take: up to four samples of four bytes for each pixel.
fn max_bytes(max_pixels: u64) -> u64 {
    max_pixels.saturating_mul(16).max(1 << 20)
}

#[cfg(test)]
mod tests;
