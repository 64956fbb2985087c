//! Looking at a file without decoding a pixel: format, size, orientation, and whether it is whole.

use super::{Format, broken, check_size, decode, jpeg, open, tiff};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use ::image::{
    ImageDecoder,
    codecs::{bmp::BmpDecoder, jpeg::JpegDecoder},
    metadata::Orientation,
};
use std::{
    fs::File,
    io::{BufReader, Cursor, Read, Seek, SeekFrom},
    path::Path,
};

/// The most bytes of a JPEG file that are looked at.
const MAX_JPEG: u64 = 1 << 30;

/// What the header of an image file tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Width and height as stored.
    stored: (u32, u32),
    orientation: Orientation,
}

impl Header {
    /// Width and height as a viewer shows the image.
    pub fn size(&self) -> (u32, u32) {
        decode::turned_size(self.stored, self.orientation)
    }

    /// The EXIF orientation, 2 to 8, where it is not upright.
    pub fn orientation(&self) -> Option<u8> {
        let orientation = self.orientation.to_exif();
        (orientation != 1).then_some(orientation)
    }

    /// Checks the size against a limit.
    ///
    /// # Errors
    /// When a side is 0 or there are more than `max_pixels`.
    pub fn check_size(&self, path: &Path, max_pixels: u64) -> Result<()> {
        check_size(path, self.size(), max_pixels)
    }
}

/// Reads what the header of an image file tells, and checks that the file does not end early.
///
/// # Errors
/// When the file is missing, empty, truncated, of an unknown format or its header is broken.
pub fn read_header(path: &Path) -> Result<Header> {
    let (mut reader, format) = open(path)?;
    let (stored, orientation) = match format {
        Format::Png => png_header(&mut reader, path)?,
        Format::Jpeg => jpeg_header(&mut reader, path)?,
        Format::Tiff => tiff_header(&mut reader, path)?,
        Format::Bmp => bmp_header(&mut reader, path)?,
    };
    Ok(Header {
        stored,
        orientation,
    })
}

fn truncated(path: &Path) -> Error {
    Error::data(format!(
        "`{}` is truncated: it ends before its image data",
        path.display()
    ))
}

fn length(reader: &BufReader<File>, path: &Path) -> Result<u64> {
    let meta = reader.get_ref().metadata();
    let meta = meta.or_error(ErrorKind::Data, || {
        format!("cannot read `{}`", path.display())
    })?;
    Ok(meta.len())
}

/// Walks the chunks of a PNG file up to its end.
fn png_header(reader: &mut BufReader<File>, path: &Path) -> Result<((u32, u32), Orientation)> {
    /// More than any tool writes: a file of empty chunks is walked for as long as it is large.
    const MAX_CHUNKS: usize = 1 << 20;
    /// EXIF blocks are held in one JPEG segment, which has at most 64 KiB.
    const MAX_EXIF: u32 = 1 << 16;
    let length = length(reader, path)?;
    let mut at = 8;
    let mut size = None;
    let mut exif = None;
    for _ in 0..MAX_CHUNKS {
        reader
            .seek(SeekFrom::Start(at))
            .map_err(|e| broken(path, e))?;
        let mut head = [0; 8];
        reader.read_exact(&mut head).map_err(|_| truncated(path))?;
        let [a, b, c, d, kind @ ..] = head;
        let bytes = u32::from_be_bytes([a, b, c, d]);
        at += 12 + u64::from(bytes);
        if at > length {
            return Err(truncated(path));
        }
        match &kind {
            b"IHDR" => {
                let mut sides = [0; 8];
                reader.read_exact(&mut sides).map_err(|_| truncated(path))?;
                let [a, b, c, d, e, f, g, h] = sides;
                size = Some((
                    u32::from_be_bytes([a, b, c, d]),
                    u32::from_be_bytes([e, f, g, h]),
                ));
            }
            b"eXIf" if bytes <= MAX_EXIF => {
                let mut block = vec![0; bytes as usize];
                reader.read_exact(&mut block).map_err(|_| truncated(path))?;
                exif = Some(block);
            }
            b"IEND" => {
                let size = size.ok_or_else(|| broken(path, "it has no header chunk"))?;
                return Ok((size, decode::orientation_of(exif.as_deref())));
            }
            _ => {}
        }
    }
    Err(broken(path, "it has too many chunks"))
}

fn jpeg_header(reader: &mut BufReader<File>, path: &Path) -> Result<((u32, u32), Orientation)> {
    let bytes = decode::read_all(reader, MAX_JPEG, path)?;
    let mut decoder = JpegDecoder::new(Cursor::new(&bytes)).map_err(|e| broken(path, e))?;
    if !jpeg::is_complete(&bytes) {
        return Err(jpeg::truncated(path));
    }
    let orientation = decoder.orientation().map_err(|e| broken(path, e))?;
    Ok((decoder.dimensions(), orientation))
}

fn tiff_header(reader: &mut BufReader<File>, path: &Path) -> Result<((u32, u32), Orientation)> {
    let length = length(reader, path)?;
    let header = tiff::header(&mut *reader, path)?;
    reader.rewind().map_err(|e| broken(path, e))?;
    match tiff::data_end(reader) {
        Some(end) if end > length => Err(truncated(path)),
        _ => Ok(header),
    }
}

fn bmp_header(reader: &mut BufReader<File>, path: &Path) -> Result<((u32, u32), Orientation)> {
    let length = length(reader, path)?;
    let mut start = [0; 34];
    let known = reader.read_exact(&mut start).is_ok();
    reader.rewind().map_err(|e| broken(path, e))?;
    let decoder = BmpDecoder::new(reader).map_err(|e| broken(path, e))?;
    let (width, height) = decoder.dimensions();
    let field =
        |at: usize| u32::from_le_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]);
    let (pixels, bits, compression) = (field(10), u64::from(start[28]), field(30));
    // Rows are padded to four bytes; what is run-length encoded has no size to foresee.
    let row = (u64::from(width) * bits).div_ceil(32) * 4;
    let end = u64::from(pixels).saturating_add(row.saturating_mul(height.into()));
    if known && matches!(compression, 0 | 3) && end > length {
        return Err(truncated(path));
    }
    Ok(((width, height), Orientation::NoTransforms))
}
