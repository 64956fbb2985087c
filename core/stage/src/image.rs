//! Images and masks on disk, and their sizes: reading (PNG, JPEG, TIFF, BMP), writing (PNG),
//! resizing and cropping.
//!
//! A file's format is told by its content, since JPEG files named `.png` are common. Its size is
//! read from the header and checked before a pixel is decoded, so that a small file that claims to
//! be huge costs nothing. An EXIF orientation is *not* applied: the masks of a dataset carry none,
//! and an image turned without its mask would train a segmenter on nonsense.

use crate::{
    data::{Image, ImageRef, Mask, MaskRef},
    error::{Error, ErrorKind, Result, ResultExt},
};
use ::image::{
    ColorType, DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageFormat,
    ImageReader, Limits, RgbImage,
    codecs::png::{CompressionType, FilterType as PngFilter, PngEncoder},
};
use std::{
    collections::BTreeMap,
    fmt::Display,
    fs::File,
    io::{BufRead, BufReader, BufWriter, Cursor, Read, Seek, Write},
    path::Path,
};
use tiff::decoder::{Decoder as TiffDecoder, DecodingResult};

/// The largest image, in pixels, that is decoded unless the user says otherwise.
pub const DEFAULT_MAX_PIXELS: u64 = 64_000_000;

/// How the grey values of a mask file become labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MaskRule {
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

impl MaskRule {
    /// Turns grey values into labels; `path` is for the message.
    ///
    /// # Errors
    /// When a value occurs that [`MaskRule::Values`] does not name.
    pub fn apply(&self, mut gray: Mask, path: &Path) -> Result<Mask> {
        let table: [Option<u8>; 256] = match self {
            MaskRule::Above { threshold, label } => std::array::from_fn(|v| {
                Some(if v > usize::from(*threshold) {
                    *label
                } else {
                    0
                })
            }),
            MaskRule::Values(map) => std::array::from_fn(|v| map.get(&(v as u8)).copied()),
        };
        let width = gray.width() as usize;
        for (at, value) in gray.bytes_mut().iter_mut().enumerate() {
            match table[usize::from(*value)] {
                Some(label) => *value = label,
                None => return Err(self.unexpected(*value, at % width, at / width, path)),
            }
        }
        Ok(gray)
    }

    fn unexpected(&self, value: u8, x: usize, y: usize, path: &Path) -> Error {
        let expected = match self {
            MaskRule::Above { .. } => "any value".to_owned(),
            MaskRule::Values(map) => map.keys().map(u8::to_string).collect::<Vec<_>>().join(", "),
        };
        Error::data(format!(
            "mask `{}` has the value {value} at pixel ({x}, {y}), expected one of {expected}",
            path.display()
        ))
    }
}

/// Reads an image as 8-bit RGB; alpha is dropped, 16 bits are scaled to 8.
///
/// # Errors
/// When the file is missing, empty, truncated, of an unknown format or larger than `max_pixels`.
pub fn open_image(path: &Path, max_pixels: u64) -> Result<Image> {
    let rgb = decode(path, max_pixels)?.into_rgb8();
    let (width, height) = rgb.dimensions();
    Image::new(width, height, rgb.into_raw())
}

/// Reads the grey values of a mask; colours are converted by their luminance, which leaves greys
/// as they are.
///
/// 16-bit files are scaled to 8 bits, unless all their values fit into 8 anyway: those are label
/// maps that a tool wrote too wide, and scaling would turn them black.
///
/// # Errors
/// As for [`open_image`].
pub fn open_gray(path: &Path, max_pixels: u64) -> Result<Mask> {
    let gray = match decode(path, max_pixels)? {
        DynamicImage::ImageLuma16(wide) if wide.as_raw().iter().all(|&v| v <= 255) => {
            let (width, height) = wide.dimensions();
            let narrow = wide.into_raw().into_iter().map(|v| v as u8).collect();
            return Mask::new(width, height, narrow);
        }
        other => other.into_luma8(),
    };
    let (width, height) = gray.dimensions();
    Mask::new(width, height, gray.into_raw())
}

/// Reads a mask and turns its grey values into labels.
///
/// # Errors
/// As for [`open_image`], and when `rule` does not know a value.
pub fn open_mask(path: &Path, max_pixels: u64, rule: &MaskRule) -> Result<Mask> {
    rule.apply(open_gray(path, max_pixels)?, path)
}

/// Width and height of an image, from its header alone.
///
/// # Errors
/// When the file is missing, empty, of an unknown format or its header is broken.
pub fn image_size(path: &Path) -> Result<(u32, u32)> {
    let (reader, format) = open(path)?;
    if format == ImageFormat::Tiff {
        return TiffDecoder::new(reader)
            .and_then(|mut tiff| tiff.dimensions())
            .map_err(|e| broken(path, e));
    }
    ImageReader::with_format(reader, format)
        .into_dimensions()
        .map_err(|e| broken(path, e))
}

fn broken(path: &Path, why: impl Display) -> Error {
    // Some decoders answer in several lines.
    let why = why.to_string();
    let why: Vec<&str> = why.split_whitespace().collect();
    Error::data(why.join(" ")).context(format!(
        "cannot decode `{}`, which is truncated, broken or of an unusual kind",
        path.display()
    ))
}

/// Opens a file and tells its format by its first bytes.
fn open(path: &Path) -> Result<(BufReader<File>, ImageFormat)> {
    let name = path.display();
    let cannot = || format!("cannot read `{name}`");
    let file = File::open(path).or_error(ErrorKind::Data, cannot)?;
    if file.metadata().is_ok_and(|meta| meta.is_dir()) {
        return Err(Error::data(format!("`{name}` is a folder, not an image")));
    }
    let mut reader = BufReader::new(file);
    let start = reader.fill_buf().or_error(ErrorKind::Data, cannot)?;
    if start.is_empty() {
        return Err(Error::data(format!("`{name}` is empty")));
    }
    use ImageFormat::{Bmp, Jpeg, Png, Tiff};
    match ::image::guess_format(start) {
        Ok(format @ (Png | Jpeg | Tiff | Bmp)) => Ok((reader, format)),
        _ => Err(Error::data(format!(
            "`{name}` is neither PNG, JPEG, TIFF nor BMP"
        ))),
    }
}

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

fn decode(path: &Path, max_pixels: u64) -> Result<DynamicImage> {
    let (mut reader, format) = open(path)?;
    match format {
        ImageFormat::Jpeg => {
            check_size(path, image_size(path)?, max_pixels)?;
            let mut bytes = Vec::new();
            reader
                .read_to_end(&mut bytes)
                .or_error(ErrorKind::Data, || {
                    format!("cannot read `{}`", path.display())
                })?;
            // The decoder fills what is missing of a JPEG with grey and reports nothing.
            if !jpeg_is_complete(&bytes) {
                return Err(Error::data(format!(
                    "`{}` is truncated: its image data ends early",
                    path.display()
                )));
            }
            decode_from(Cursor::new(bytes), format, path, max_pixels)
        }
        ImageFormat::Tiff => {
            check_size(path, image_size(path)?, max_pixels)?;
            if let Some(rgb) = decode_mislabelled_tiff(&mut reader, path, max_pixels)? {
                return Ok(DynamicImage::ImageRgb8(rgb));
            }
            reader.rewind()?;
            decode_from(reader, format, path, max_pixels)
        }
        _ => decode_from(reader, format, path, max_pixels),
    }
}

fn decode_from(
    reader: impl BufRead + Seek,
    format: ImageFormat,
    path: &Path,
    max_pixels: u64,
) -> Result<DynamicImage> {
    let mut reader = ImageReader::with_format(reader, format);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(max_bytes(max_pixels));
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| broken(path, e))?;
    check_size(path, decoder.dimensions(), max_pixels)?;
    DynamicImage::from_decoder(decoder).map_err(|e| broken(path, e))
}

/// Whether a JPEG goes on to its end marker (EOI), walking segment by segment: the mere bytes of
/// the marker may also occur in an embedded thumbnail.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    const SOI: u8 = 0xD8;
    const EOI: u8 = 0xD9;
    const SOS: u8 = 0xDA;
    let mut rest = bytes;
    let mut in_scan = false;
    // What lies before the next 0xFF is entropy-coded data.
    while let Some(at) = rest.iter().position(|&byte| byte == 0xFF) {
        rest = &rest[at..];
        let Some(marker) = rest.iter().position(|&byte| byte != 0xFF) else {
            return false;
        };
        let kind = rest[marker];
        rest = &rest[marker + 1..];
        match kind {
            EOI => return in_scan,
            // A stuffed 0xFF of the data, and markers without a body (TEM, RST0 to RST7).
            0x00 | 0x01 | SOI | 0xD0..=0xD7 => {}
            kind => {
                in_scan |= kind == SOS;
                let Some(&[high, low]) = rest.first_chunk() else {
                    return false;
                };
                let Some(after) = rest.get(usize::from(u16::from_be_bytes([high, low]))..) else {
                    return false;
                };
                rest = after;
            }
        }
    }
    false
}

/// Reads a TIFF of three (or more) 8-bit samples that calls itself grey: the official files of
/// CVC-ClinicDB say `SamplesPerPixel` 3 with `PhotometricInterpretation` BlackIsZero, and mean RGB.
/// Answers `None` for a TIFF that is what it says.
fn decode_mislabelled_tiff(
    reader: &mut BufReader<File>,
    path: &Path,
    max_pixels: u64,
) -> Result<Option<RgbImage>> {
    let mut tiff = TiffDecoder::new(reader).map_err(|e| broken(path, e))?;
    let samples = match tiff.colortype() {
        Ok(tiff::ColorType::Multiband {
            bit_depth: 8,
            num_samples,
        }) if num_samples >= 3 => usize::from(num_samples),
        _ => return Ok(None),
    };
    let (width, height) = tiff.dimensions().map_err(|e| broken(path, e))?;
    let mut limits = tiff::decoder::Limits::default();
    limits.decoding_buffer_size = usize::try_from(max_bytes(max_pixels)).unwrap_or(usize::MAX);
    let mut tiff = tiff.with_limits(limits);
    let bytes = match tiff.read_image().map_err(|e| broken(path, e))? {
        DecodingResult::U8(bytes) => bytes,
        _ => return Err(broken(path, "samples are not of type U8")),
    };
    if bytes.len() != width as usize * height as usize * samples {
        return Err(broken(path, "separate colour planes are not supported"));
    }
    let rgb = bytes
        .chunks_exact(samples)
        .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])
        .collect();
    Ok(RgbImage::from_raw(width, height, rgb))
}

/// Writes an image as PNG. Equal images give equal files; the file appears whole or not at all.
///
/// # Errors
/// When the file cannot be written.
pub fn save_image(image: ImageRef<'_>, path: &Path) -> Result<()> {
    save(image.pixels(), image.size(), ColorType::Rgb8, path)
}

/// Writes labels or grey values as they are, as an 8-bit grey PNG; otherwise as [`save_image`].
///
/// # Errors
/// When the file cannot be written.
pub fn save_gray(mask: MaskRef<'_>, path: &Path) -> Result<()> {
    save(mask.labels(), mask.size(), ColorType::L8, path)
}

fn save(bytes: &[u8], (width, height): (u32, u32), color: ColorType, path: &Path) -> Result<()> {
    let cannot = || format!("cannot write `{}`", path.display());
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(".partial");
    // Temporary files are private by default; what is kept shall follow the user's umask.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder
        .tempfile_in(folder)
        .or_error(ErrorKind::Data, cannot)?;
    let mut writer = BufWriter::new(file);
    PngEncoder::new_with_quality(&mut writer, CompressionType::Fast, PngFilter::Adaptive)
        .write_image(bytes, width, height, ExtendedColorType::from(color))
        .or_error(ErrorKind::Data, cannot)?;
    writer.flush().or_error(ErrorKind::Data, cannot)?;
    let file = writer
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error);
    file.or_error(ErrorKind::Data, cannot)?
        .persist(path)
        .map(drop)
        .map_err(|e| e.error)
        .or_error(ErrorKind::Data, cannot)
}

/// Unwraps what was made with a buffer of the right length by construction.
fn exact<T>(made: Result<T>) -> T {
    made.unwrap_or_else(|error| unreachable!("{error}"))
}

/// What goes into one row or column of a resized image: the first source index, and the weights
/// of that one and those after it, which sum to 1.
struct Tap {
    first: usize,
    weights: Vec<f32>,
}

/// The triangle filter: linear interpolation where the image grows, and a triangle as wide as two
/// target pixels where it shrinks, so that nothing of the source is skipped.
fn taps(from: u32, to: u32) -> Vec<Tap> {
    let scale = f64::from(from) / f64::from(to);
    let radius = scale.max(1.0);
    (0..to)
        .map(|index| {
            let centre = (f64::from(index) + 0.5) * scale;
            let first = (centre - radius).floor().max(0.0);
            let end = (centre + radius).ceil().min(f64::from(from));
            let weight = |at: f64| (1.0 - ((at + 0.5 - centre) / radius).abs()).max(0.0);
            let count = (end - first) as u32;
            let raw: Vec<f64> = (0..count).map(|i| weight(first + f64::from(i))).collect();
            let sum: f64 = raw.iter().sum();
            Tap {
                first: first as usize,
                weights: raw.iter().map(|weight| (weight / sum) as f32).collect(),
            }
        })
        .collect()
}

/// Resizes by linear interpolation, averaging over the covered area when it shrinks. A side of 0
/// counts as 1.
pub fn resize_image(image: ImageRef<'_>, width: u32, height: u32) -> Image {
    if image.size() == (width, height) {
        return image.to_owned();
    }
    let (width, height) = (width.max(1), height.max(1));
    let columns = taps(image.width(), width);
    let stride = image.width() as usize * 3;
    let mut pixels = Vec::with_capacity(width as usize * height as usize * 3);
    // Rows first: adding whole rows is the bulk of the work and runs as vector instructions, and
    // one row of sums is all the memory that it takes.
    let mut sums = vec![0.0f32; stride];
    for row in taps(image.height(), height) {
        sums.fill(0.0);
        let sources = image.pixels()[row.first * stride..].chunks_exact(stride);
        for (weight, source) in row.weights.iter().zip(sources) {
            for (sum, &value) in sums.iter_mut().zip(source) {
                *sum += weight * f32::from(value);
            }
        }
        for column in &columns {
            let mut pixel = [0.5f32; 3];
            let sources = sums[column.first * 3..].chunks_exact(3);
            for (weight, source) in column.weights.iter().zip(sources) {
                for (sum, value) in pixel.iter_mut().zip(source) {
                    *sum += weight * value;
                }
            }
            // The cast saturates, which matters for sums that rounding took above 255.
            pixels.extend(pixel.map(|value| value as u8));
        }
    }
    exact(Image::new(width, height, pixels))
}

/// Resizes by taking the nearest label, so that no new label appears. A side of 0 counts as 1.
pub fn resize_mask(mask: MaskRef<'_>, width: u32, height: u32) -> Mask {
    if mask.size() == (width, height) {
        return mask.to_owned();
    }
    let (width, height) = (width.max(1), height.max(1));
    // The source pixel under the centre of each target pixel, in integers: no rounding to argue.
    let nearest = |to: u32, from: u32| -> Vec<usize> {
        let (to, from) = (u64::from(to), u64::from(from));
        (0..to)
            .map(|i| ((2 * i + 1) * from / (2 * to)) as usize)
            .collect()
    };
    let columns = nearest(width, mask.width());
    let source = mask.labels();
    let mut labels = Vec::with_capacity(width as usize * height as usize);
    for y in nearest(height, mask.height()) {
        let row = &source[y * mask.width() as usize..][..mask.width() as usize];
        labels.extend(columns.iter().map(|&x| row[x]));
    }
    exact(Mask::new(width, height, labels))
}

/// Cuts `channels` interleaved bytes a pixel out of a buffer.
fn crop(
    bytes: &[u8],
    size: (u32, u32),
    channels: usize,
    (x, y, width, height): (u32, u32, u32, u32),
) -> Result<Vec<u8>> {
    let inside = |start: u32, len: u32, whole: u32| {
        len > 0 && start.checked_add(len).is_some_and(|end| end <= whole)
    };
    if !inside(x, width, size.0) || !inside(y, height, size.1) {
        return Err(Error::data(format!(
            "a crop of {width}x{height} at ({x}, {y}) does not lie inside {}x{} pixels",
            size.0, size.1
        )));
    }
    let (x, y) = (x as usize, y as usize);
    let (width, height, stride) = (width as usize, height as usize, size.0 as usize);
    Ok((y..y + height)
        .flat_map(|row| &bytes[(row * stride + x) * channels..][..width * channels])
        .copied()
        .collect())
}

/// The part of `image` whose top left pixel is (`x`, `y`).
///
/// # Errors
/// When the part is empty or reaches beyond the image.
pub fn crop_image(image: ImageRef<'_>, x: u32, y: u32, width: u32, height: u32) -> Result<Image> {
    let pixels = crop(image.pixels(), image.size(), 3, (x, y, width, height))?;
    Image::new(width, height, pixels)
}

/// The part of `mask` whose top left pixel is (`x`, `y`).
///
/// # Errors
/// When the part is empty or reaches beyond the mask.
pub fn crop_mask(mask: MaskRef<'_>, x: u32, y: u32, width: u32, height: u32) -> Result<Mask> {
    let labels = crop(mask.labels(), mask.size(), 1, (x, y, width, height))?;
    Mask::new(width, height, labels)
}

#[cfg(test)]
mod tests;
