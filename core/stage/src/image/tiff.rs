//! Decoding of TIFF files, classic and BigTIFF: grey, RGB, CMYK, palettes and JPEG-compressed YCbCr;
//! whole numbers of 1 to 64 bits, floating-point numbers of 16 to 64.

use super::{
    broken, check_size,
    decode::{Raster, Samples, check_length, read_all},
    max_bytes, png,
};
use crate::error::{Error, Result};
use ::image::metadata::Orientation;
use std::{
    fs::File,
    io::{BufReader, Cursor, Read, Seek},
    path::Path,
};
use tiff::{
    ColorType,
    decoder::{Decoder, DecodingResult, Limits},
    tags::{CompressionMethod, PhotometricInterpretation, Tag},
};

/// What a file says of its samples.
struct Layout {
    width: u32,
    height: u32,
    color: ColorType,
    palette: Option<Vec<[u8; 3]>>,
    jpeg: bool,
    largest: Option<u32>,
    orientation: Orientation,
}

pub(super) fn decode(
    mut reader: BufReader<File>,
    path: &Path,
    max_pixels: u64,
) -> Result<(Raster, Orientation)> {
    // The decoder knows no palettes. Called grey, the same file gives its indices.
    let (size, is_palette) = probe(&mut reader, path)?;
    check_size(path, size, max_pixels)?;
    reader.rewind().map_err(|e| broken(path, e))?;
    if is_palette {
        let bytes = read_all(&mut reader, max_bytes(max_pixels), path)?;
        let bytes = call_grey(bytes).ok_or_else(|| broken(path, "its directory is broken"))?;
        return read(Decoder::new(Cursor::new(bytes)), path, max_pixels, true);
    }
    read(Decoder::new(reader), path, max_pixels, false)
}

/// The size that the header tells, upright, for the check of a dataset.
pub(super) fn header(reader: impl Read + Seek, path: &Path) -> Result<((u32, u32), Orientation)> {
    let fail = |error| broken(path, error);
    let mut tiff = Decoder::new(reader).map_err(fail)?;
    let size = tiff.dimensions().map_err(fail)?;
    let orientation = orientation(&mut tiff);
    Ok((size, orientation))
}

/// The last byte, not included, of the pixel data that the header promises; 0 where it tells none.
pub(super) fn data_end(reader: impl Read + Seek) -> Option<u64> {
    let mut tiff = Decoder::new(reader).ok()?;
    let mut numbers = |tag| tiff.find_tag_unsigned_vec::<u64>(tag).ok().flatten();
    let (offsets, counts) = match numbers(Tag::StripOffsets) {
        Some(offsets) => (offsets, numbers(Tag::StripByteCounts)?),
        None => (numbers(Tag::TileOffsets)?, numbers(Tag::TileByteCounts)?),
    };
    let ends = offsets.iter().zip(&counts);
    ends.map(|(offset, count)| offset.saturating_add(*count))
        .max()
}

/// The stored size, and whether the samples are indices into a palette.
fn probe(reader: &mut BufReader<File>, path: &Path) -> Result<((u32, u32), bool)> {
    let fail = |error| broken(path, error);
    let mut tiff = Decoder::new(reader).map_err(fail)?;
    let size = tiff.dimensions().map_err(fail)?;
    let kind = tiff
        .find_tag_unsigned::<u16>(Tag::PhotometricInterpretation)
        .map_err(fail)?;
    let palette = PhotometricInterpretation::RGBPalette.to_u16();
    Ok((size, kind == Some(palette)))
}

fn read<R: Read + Seek>(
    decoder: tiff::TiffResult<Decoder<R>>,
    path: &Path,
    max_pixels: u64,
    is_palette: bool,
) -> Result<(Raster, Orientation)> {
    let fail = |error| broken(path, error);
    let bytes = usize::try_from(max_bytes(max_pixels)).unwrap_or(usize::MAX);
    let mut limits = Limits::default();
    limits.decoding_buffer_size = bytes;
    limits.intermediate_buffer_size = bytes;
    let mut tiff = decoder.map_err(fail)?.with_limits(limits);
    let layout = layout(&mut tiff, path, is_palette)?;
    let mut buffer = DecodingResult::U8(Vec::new());
    let planes = tiff.read_image_to_buffer(&mut buffer).map_err(fail)?;
    let stride = planes.plane_stride.map_or(0, |stride| stride.get());
    if buffer.as_buffer(0).byte_len() < planes.complete_len {
        return Err(broken(path, "its colour planes take too much memory"));
    }
    let samples = samples(buffer, &layout, path)?;
    let stored = usize::from(layout.color.num_samples());
    let samples = match planes.planes > 1 {
        true => interleave(samples, stored, stride, &planes, path)?,
        false => samples,
    };
    let raster = raster(samples, layout.color, &layout, path)?;
    check_length(&raster, path)?;
    Ok((raster, layout.orientation))
}

fn layout<R: Read + Seek>(tiff: &mut Decoder<R>, path: &Path, is_palette: bool) -> Result<Layout> {
    let fail = |error| broken(path, error);
    let (width, height) = tiff.dimensions().map_err(fail)?;
    let color = tiff.colortype().map_err(|error| unusual(path, error))?;
    let compression = tiff
        .find_tag_unsigned::<u16>(Tag::Compression)
        .map_err(fail)?;
    let largest = tiff.find_tag_unsigned_vec::<u32>(Tag::MaxSampleValue);
    let palette = match is_palette {
        true => Some(palette(tiff, path)?),
        false => None,
    };
    Ok(Layout {
        width,
        height,
        color,
        palette,
        jpeg: compression == Some(CompressionMethod::ModernJPEG.to_u16()),
        largest: largest.ok().flatten().and_then(|all| all.into_iter().max()),
        orientation: orientation(tiff),
    })
}

fn orientation<R: Read + Seek>(tiff: &mut Decoder<R>) -> Orientation {
    let tag = tiff.find_tag_unsigned::<u8>(Tag::Orientation);
    tag.ok()
        .flatten()
        .and_then(Orientation::from_exif)
        .unwrap_or(Orientation::NoTransforms)
}

/// The colours of a palette: all reds, then all greens, then all blues, of 16 bits each.
fn palette<R: Read + Seek>(tiff: &mut Decoder<R>, path: &Path) -> Result<Vec<[u8; 3]>> {
    let map = tiff
        .find_tag_unsigned_vec::<u16>(Tag::ColorMap)
        .map_err(|error| broken(path, error))?
        .filter(|map| !map.is_empty() && map.len().is_multiple_of(3))
        .ok_or_else(|| broken(path, "a palette image without a colour map"))?;
    let count = map.len() / 3;
    let colour = |i| [0, 1, 2].map(|channel| (map[channel * count + i] >> 8) as u8);
    Ok((0..count).map(colour).collect())
}

fn unusual(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::data(format!(
        "`{}` is a TIFF of a kind that is not read ({why}): save it as grey or RGB of 8 or 16 bits",
        path.display()
    ))
}

fn samples(buffer: DecodingResult, layout: &Layout, path: &Path) -> Result<Samples> {
    let bits = layout.color.bit_depth();
    let wide = |wide: Option<Vec<u32>>| {
        wide.map(Samples::U32).ok_or_else(|| {
            Error::data(format!(
                "`{}` holds negative or very large whole numbers, expected 0 to {}",
                path.display(),
                u32::MAX
            ))
        })
    };
    let floats = |values: Vec<f32>| match values.iter().all(|value| value.is_finite()) {
        true => Ok(Samples::F32(values)),
        false => Err(Error::data(format!(
            "`{}` holds samples that are not finite numbers",
            path.display()
        ))),
    };
    match (buffer, bits) {
        (DecodingResult::U8(v), 1 | 2 | 4) => Ok(Samples::U8(expand(&v, layout))),
        (DecodingResult::U8(v), 8) => Ok(Samples::U8(v)),
        (DecodingResult::U16(v), 16) => Ok(Samples::U16(v)),
        (DecodingResult::U32(v), 32) => Ok(Samples::U32(v)),
        (DecodingResult::U64(v), 64) => wide(narrow(v)),
        (DecodingResult::I8(v), 8) => wide(narrow(v)),
        (DecodingResult::I16(v), 16) => wide(narrow(v)),
        (DecodingResult::I32(v), 32) => wide(narrow(v)),
        (DecodingResult::I64(v), 64) => wide(narrow(v)),
        (DecodingResult::F16(v), _) => floats(v.into_iter().map(f32::from).collect()),
        (DecodingResult::F32(v), _) => floats(v),
        (DecodingResult::F64(v), _) => floats(v.into_iter().map(|value| value as f32).collect()),
        _ => Err(unusual(path, format_args!("{bits} bits a sample"))),
    }
}

fn narrow<T: Copy + TryInto<u32>>(values: Vec<T>) -> Option<Vec<u32>> {
    values
        .into_iter()
        .map(|value| value.try_into().ok())
        .collect()
}

/// One byte for each sample of 1, 2 or 4 bits: indices as they are, greys stretched to 255.
fn expand(bytes: &[u8], layout: &Layout) -> Vec<u8> {
    let bits = usize::from(layout.color.bit_depth());
    let samples = layout.width as usize * usize::from(layout.color.num_samples());
    let line = (samples * bits).div_ceil(8);
    let values = png::unpack(bytes, line, samples, bits);
    if layout.palette.is_some() {
        return values;
    }
    let stretch = 255 / ((1u16 << bits) - 1);
    values
        .into_iter()
        .map(|value| value * stretch as u8)
        .collect()
}

/// Puts the channels of a pixel side by side that the file has in planes.
fn interleave(
    samples: Samples,
    channels: usize,
    stride: usize,
    planes: &tiff::decoder::BufferLayoutPreference,
    path: &Path,
) -> Result<Samples> {
    if planes.planes < channels || stride == 0 {
        return Err(unusual(path, "colour planes of different sizes"));
    }
    fn weave<T: Copy>(values: &[T], channels: usize, stride: usize) -> Vec<T> {
        let plane = stride / size_of::<T>();
        let pixel = |i| (0..channels).map(move |c| c * plane + i);
        let places = (0..plane).flat_map(pixel);
        places.filter_map(|at| values.get(at).copied()).collect()
    }
    Ok(match samples {
        Samples::U8(v) => Samples::U8(weave(&v, channels, stride)),
        Samples::U16(v) => Samples::U16(weave(&v, channels, stride)),
        Samples::U32(v) => Samples::U32(weave(&v, channels, stride)),
        Samples::F32(v) => Samples::F32(weave(&v, channels, stride)),
    })
}

/// The samples as grey or RGB, with or without alpha.
fn raster(samples: Samples, color: ColorType, layout: &Layout, path: &Path) -> Result<Raster> {
    let (channels, samples) = match (color, samples) {
        (ColorType::Gray(_), samples) => (1, samples),
        (ColorType::GrayA(_), samples) => (2, samples),
        (ColorType::RGB(_), samples) => (3, samples),
        (ColorType::RGBA(_), samples) => (4, samples),
        // The official files of CVC-ClinicDB have three samples and call themselves grey.
        (ColorType::Multiband { num_samples, .. }, samples) => match num_samples {
            2 => (2, samples),
            3 => (3, samples),
            4.. => (3, first_three(samples, usize::from(num_samples))),
            _ => (1, samples),
        },
        (ColorType::CMYK(8), Samples::U8(v)) => (3, Samples::U8(from_cmyk(&v))),
        (ColorType::YCbCr(8), Samples::U8(v)) if layout.jpeg => (3, Samples::U8(from_ycbcr(&v))),
        (other, _) => return Err(unusual(path, format_args!("{other:?}"))),
    };
    let is_index = channels == 1 && matches!(samples, Samples::U8(_));
    if layout.palette.is_some() && !is_index {
        return Err(unusual(
            path,
            "a palette for other samples than one of 8 bits",
        ));
    }
    Ok(Raster {
        width: layout.width,
        height: layout.height,
        channels,
        samples,
        palette: layout.palette.clone(),
        lossy: layout.jpeg,
        largest: layout.largest,
    })
}

fn first_three(samples: Samples, channels: usize) -> Samples {
    fn cut<T: Copy>(values: &[T], channels: usize) -> Vec<T> {
        let pixels = values.chunks_exact(channels);
        pixels
            .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])
            .collect()
    }
    match samples {
        Samples::U8(v) => Samples::U8(cut(&v, channels)),
        Samples::U16(v) => Samples::U16(cut(&v, channels)),
        Samples::U32(v) => Samples::U32(cut(&v, channels)),
        Samples::F32(v) => Samples::F32(cut(&v, channels)),
    }
}

/// Inks to light, without a colour profile: each colour is what its ink and black leave of white.
fn from_cmyk(bytes: &[u8]) -> Vec<u8> {
    let left = |ink: u8, black: u8| {
        let light = (255 - u16::from(ink)) * (255 - u16::from(black));
        ((light + 127) / 255) as u8
    };
    let pixels = bytes.chunks_exact(4);
    pixels
        .flat_map(|p| [left(p[0], p[3]), left(p[1], p[3]), left(p[2], p[3])])
        .collect()
}

/// Brightness and colour differences to RGB as JFIF has them (ITU-R BT.601, full range).
fn from_ycbcr(bytes: &[u8]) -> Vec<u8> {
    let pixels = bytes.chunks_exact(3);
    pixels
        .flat_map(|p| {
            let (y, cb, cr) = (
                f32::from(p[0]),
                f32::from(p[1]) - 128.0,
                f32::from(p[2]) - 128.0,
            );
            [
                y + 1.402 * cr,
                y - 0.344_136 * cb - 0.714_136 * cr,
                y + 1.772 * cb,
            ]
            .map(|value| value.round().clamp(0.0, 255.0) as u8)
        })
        .collect()
}

/// Changes the tag that says "palette" to "grey" in the first directory of a TIFF; none where the
/// directory does not lie inside the file.
fn call_grey(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    const PHOTOMETRIC: u64 = 262;
    let little = bytes.starts_with(b"II");
    let number = |bytes: &[u8], at: usize, length: usize| -> Option<u64> {
        let field = bytes.get(at..at.checked_add(length)?)?;
        let add = |sum, byte: &u8| sum << 8 | u64::from(*byte);
        Some(match little {
            true => field.iter().rev().fold(0, add),
            false => field.iter().fold(0, add),
        })
    };
    let big = number(&bytes, 2, 2)? == 43;
    // Where the first directory's offset stands, and the lengths of its count, entries and values.
    let (at, word, count, entry) = if big { (8, 8, 8, 20) } else { (4, 4, 2, 12) };
    let directory = usize::try_from(number(&bytes, at, word)?).ok()?;
    let entries = usize::try_from(number(&bytes, directory, count)?).ok()?;
    let first = directory.checked_add(count)?;
    let place = (0..entries.min(1 << 16))
        .map_while(|i| first.checked_add(i * entry))
        .find(|&at| number(&bytes, at, 2) == Some(PHOTOMETRIC))?;
    let value = place + entry - word;
    // A short of value 1, BlackIsZero, in the file's order of bytes.
    let grey: [u8; 2] = if little { [1, 0] } else { [0, 1] };
    bytes.get_mut(value..value + 2)?.copy_from_slice(&grey);
    Some(bytes)
}
