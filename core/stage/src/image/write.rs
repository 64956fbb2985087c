//! Writing of images and masks, whole or not at all, in the format that the name tells.

use crate::{
    data::{ImageRef, MaskRef},
    error::{Error, ErrorKind, Result, ResultExt},
    files::{parent, partial, sync_folder},
};
use ::image::{
    ExtendedColorType, ImageEncoder,
    codecs::{
        bmp::BmpEncoder,
        jpeg::JpegEncoder,
        png::{CompressionType, FilterType, PngEncoder},
        tiff::TiffEncoder,
    },
};
use std::{
    io::{Cursor, Write},
    path::Path,
};

/// Quality of JPEG files, of 100: artefacts are hardly seen.
const JPEG_QUALITY: u8 = 95;

/// The formats that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputFormat {
    /// `.png`
    Png,
    /// `.jpg`, `.jpeg`: for images, since a mask would come back with stray values.
    Jpeg,
    /// `.tif`, `.tiff`
    Tiff,
    /// `.bmp`
    Bmp,
}

impl OutputFormat {
    /// The format that the extension of `path` tells.
    ///
    /// # Errors
    /// When it tells none that is written.
    pub fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        Ok(match extension.to_ascii_lowercase().as_str() {
            "png" => OutputFormat::Png,
            "jpg" | "jpeg" => OutputFormat::Jpeg,
            "tif" | "tiff" => OutputFormat::Tiff,
            "bmp" => OutputFormat::Bmp,
            _ => {
                return Err(Error::config(format!(
                    "the name `{}` tells no format, expected one that ends in .png, .jpg, .tif or .bmp",
                    path.display()
                )));
            }
        })
    }

    /// As [`OutputFormat::of`], for a mask.
    ///
    /// # Errors
    /// When the extension tells none, or JPEG, which does not keep labels.
    pub fn of_mask(path: &Path) -> Result<Self> {
        match Self::of(path)? {
            OutputFormat::Jpeg => Err(Error::config(format!(
                "`{}` would be a JPEG file, which does not keep the values of a mask: expected a name that ends in .png, .tif or .bmp",
                path.display()
            ))),
            lossless => Ok(lossless),
        }
    }
}

/// Writes an image in the format that the name tells. Equal images give equal files; the file
/// appears whole or not at all, and is on the disk when this returns.
///
/// # Errors
/// When the name tells no format, or the file cannot be written.
pub fn save_image(image: ImageRef<'_>, path: &Path) -> Result<()> {
    let format = OutputFormat::of(path)?;
    save(
        image.pixels(),
        image.size(),
        ExtendedColorType::Rgb8,
        format,
        path,
    )
}

/// An image as the bytes of a JPEG file, colours at full resolution; `quality` is from 1 to 100. Equal images
/// give equal bytes.
///
/// # Errors
/// When it has a side of more than 65,535 pixels.
pub fn encode_jpeg(image: ImageRef<'_>, quality: u8) -> Result<Vec<u8>> {
    let (width, height) = image.size();
    let mut out = Vec::new();
    JpegEncoder::new_with_quality(&mut out, quality)
        .write_image(image.pixels(), width, height, ExtendedColorType::Rgb8)
        .or_error(ErrorKind::Data, || {
            format!("cannot write an image of {width}x{height} pixels as JPEG")
        })?;
    Ok(out)
}

/// Writes labels or grey values as they are, 8 bits each; otherwise as [`save_image`].
///
/// # Errors
/// As for [`save_image`], and when the name tells JPEG.
pub fn save_gray(mask: MaskRef<'_>, path: &Path) -> Result<()> {
    let format = OutputFormat::of_mask(path)?;
    save(
        mask.labels(),
        mask.size(),
        ExtendedColorType::L8,
        format,
        path,
    )
}

fn encode(
    bytes: &[u8],
    (width, height): (u32, u32),
    color: ExtendedColorType,
    format: OutputFormat,
) -> ::image::ImageResult<Vec<u8>> {
    let mut out = Vec::new();
    match format {
        OutputFormat::Png => {
            PngEncoder::new_with_quality(&mut out, CompressionType::Fast, FilterType::Adaptive)
                .write_image(bytes, width, height, color)
        }
        OutputFormat::Jpeg => JpegEncoder::new_with_quality(&mut out, JPEG_QUALITY)
            .write_image(bytes, width, height, color),
        OutputFormat::Tiff => {
            TiffEncoder::new(Cursor::new(&mut out)).write_image(bytes, width, height, color)
        }
        OutputFormat::Bmp => BmpEncoder::new(&mut out).write_image(bytes, width, height, color),
    }?;
    Ok(out)
}

fn save(
    bytes: &[u8],
    size: (u32, u32),
    color: ExtendedColorType,
    format: OutputFormat,
    path: &Path,
) -> Result<()> {
    let cannot = || format!("cannot write `{}`", path.display());
    let bytes = encode(bytes, size, color, format).or_error(ErrorKind::Data, cannot)?;
    let mut file = partial(path).or_error(ErrorKind::Data, cannot)?;
    file.write_all(&bytes).or_error(ErrorKind::Data, cannot)?;
    // In this order a power cut leaves either no file or a whole one.
    file.as_file()
        .sync_all()
        .or_error(ErrorKind::Data, cannot)?;
    file.persist(path)
        .map_err(|e| e.error)
        .or_error(ErrorKind::Data, cannot)?;
    sync_folder(parent(path)).or_error(ErrorKind::Data, cannot)
}
