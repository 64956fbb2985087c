//! Decoding of a file into its samples, before anything is said of what they mean.

use super::{Format, broken, check_size, jpeg, max_bytes, open, png, tiff};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use ::image::{
    DynamicImage, ImageDecoder, Limits, codecs::bmp::BmpDecoder, codecs::jpeg::JpegDecoder,
    metadata::Orientation,
};
use std::{
    fs::File,
    io::{BufRead, BufReader, Cursor, Read, Seek},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// The samples of an image, row by row, the channels of a pixel side by side.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Samples {
    /// 8 bits; fewer are stretched to the full range, unless they are indices.
    U8(Vec<u8>),
    /// 16 bits.
    U16(Vec<u16>),
    /// Whole numbers of 32 and 64 bits that are not negative and fit.
    U32(Vec<u32>),
    /// Floating-point numbers of any width, all finite.
    F32(Vec<f32>),
}

/// A decoded file, upright.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Raster {
    pub width: u32,
    pub height: u32,
    /// 1 grey (or index), 2 grey and alpha, 3 RGB, 4 RGB and alpha.
    pub channels: usize,
    pub samples: Samples,
    /// The colours, where the samples are indices into them.
    pub palette: Option<Vec<[u8; 3]>>,
    /// Whether values stray from what was stored: JPEG.
    pub lossy: bool,
    /// The largest value that a sample may have, where the file says so.
    pub largest: Option<u32>,
}

/// Decodes the file at `path` and turns it upright.
pub(super) fn decode(path: &Path, max_pixels: u64) -> Result<Raster> {
    // Decoders of others may panic over a file that is broken cleverly enough.
    let decoded = catch_unwind(AssertUnwindSafe(|| decode_unguarded(path, max_pixels)));
    decoded.unwrap_or_else(|_| Err(broken(path, "its decoder failed")))
}

fn decode_unguarded(path: &Path, max_pixels: u64) -> Result<Raster> {
    let (reader, format) = open(path)?;
    let (raster, orientation) = match format {
        Format::Png => png::decode(reader, path, max_pixels)?,
        Format::Jpeg => decode_jpeg(reader, path, max_pixels)?,
        Format::Tiff => tiff::decode(reader, path, max_pixels)?,
        Format::Bmp => decode_bmp(reader, path, max_pixels)?,
    };
    Ok(upright(raster, orientation))
}

fn decode_jpeg(
    mut reader: impl BufRead,
    path: &Path,
    max_pixels: u64,
) -> Result<(Raster, Orientation)> {
    let mut bytes = Vec::new();
    // A JPEG file of noise has less than three bytes for each sample, and segments of any length.
    let limit = max_bytes(max_pixels).saturating_add(64 << 20);
    reader
        .by_ref()
        .take(limit)
        .read_to_end(&mut bytes)
        .or_error(ErrorKind::Data, || {
            format!("cannot read `{}`", path.display())
        })?;
    let mut decoder = JpegDecoder::new(Cursor::new(&bytes)).map_err(|e| broken(path, e))?;
    check_size(path, decoder.dimensions(), max_pixels)?;
    // The decoder fills what is missing of a JPEG with grey and reports nothing.
    if !jpeg::is_complete(&bytes) {
        return Err(jpeg::truncated(path));
    }
    let orientation = decoder.orientation().map_err(|e| broken(path, e))?;
    let mut raster = from_dynamic(decoder, path, max_pixels)?;
    raster.lossy = true;
    Ok((raster, orientation))
}

fn decode_bmp(
    mut reader: BufReader<File>,
    path: &Path,
    max_pixels: u64,
) -> Result<(Raster, Orientation)> {
    let header = BmpDecoder::new(&mut reader).map_err(|e| broken(path, e))?;
    check_size(path, header.dimensions(), max_pixels)?;
    reader.rewind().map_err(|e| broken(path, e))?;
    let limit = max_bytes(max_pixels).saturating_add(1 << 20);
    let mut bytes = read_all(&mut reader, limit, path)?;
    let place = BmpPalette::find(&bytes);
    let palette = place.as_ref().map(|place| place.colours(&bytes));
    // Grey images are stored with a palette too, since BMP has no other way.
    let palette = palette.filter(|colours| !is_grey_ramp(colours));
    if let (Some(_), Some(place)) = (&palette, &place) {
        place.show_indices(&mut bytes);
    }
    let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(|e| broken(path, e))?;
    let mut raster = from_dynamic(decoder, path, max_pixels)?;
    if place.is_some() {
        raster = first_channel(raster);
    }
    raster.palette = palette;
    Ok((raster, Orientation::NoTransforms))
}

/// Where the colours of a BMP with a palette stand.
struct BmpPalette {
    start: usize,
    /// Bytes of a colour: blue, green, red and perhaps one more.
    entry: usize,
    count: usize,
}

impl BmpPalette {
    /// None for a file without a palette, or with one that does not lie in it.
    fn find(bytes: &[u8]) -> Option<Self> {
        /// Length of the file's own header, before the one that describes the image.
        const FILE_HEADER: usize = 14;
        /// Length of the oldest such header, whose colours have three bytes instead of four.
        const CORE_HEADER: usize = 12;
        let number = |at: usize, length: usize| -> Option<usize> {
            let field = bytes.get(at..at + length)?;
            let add = |sum, byte: &u8| sum << 8 | usize::from(*byte);
            Some(field.iter().rev().fold(0, add))
        };
        let header = number(FILE_HEADER, 4)?;
        let (bits, entry, used) = match header {
            CORE_HEADER => (number(24, 2)?, 3, 0),
            _ => (number(28, 2)?, 4, number(46, 4)?),
        };
        if !matches!(bits, 1 | 2 | 4 | 8) {
            return None;
        }
        let start = FILE_HEADER.checked_add(header)?;
        let room = number(10, 4)?.min(bytes.len()).checked_sub(start)? / entry;
        let most = room.min(1 << bits);
        let count = if used == 0 { most } else { used.min(most) };
        (count > 0).then_some(BmpPalette {
            start,
            entry,
            count,
        })
    }

    fn colours(&self, bytes: &[u8]) -> Vec<[u8; 3]> {
        let colours = bytes[self.start..].chunks_exact(self.entry);
        colours
            .take(self.count)
            .map(|c| [c[2], c[1], c[0]])
            .collect()
    }

    /// Makes the colour of each index the index itself, so that decoding gives indices, also where
    /// several of them share a byte or are run-length encoded.
    fn show_indices(&self, bytes: &mut [u8]) {
        let colours = bytes[self.start..].chunks_exact_mut(self.entry);
        for (index, colour) in colours.take(self.count).enumerate() {
            colour[..3].fill(index as u8);
        }
    }
}

/// Whether a palette does nothing but spread indices evenly from black to white.
fn is_grey_ramp(palette: &[[u8; 3]]) -> bool {
    let steps = palette.len().saturating_sub(1);
    matches!(palette.len(), 2 | 4 | 16 | 256)
        && palette
            .iter()
            .enumerate()
            .all(|(index, colour)| *colour == [(index * 255 / steps) as u8; 3])
}

fn first_channel(raster: Raster) -> Raster {
    let samples = match raster.samples {
        Samples::U8(v) => Samples::U8(v.into_iter().step_by(raster.channels).collect()),
        other => other,
    };
    Raster {
        channels: 1,
        samples,
        ..raster
    }
}

fn from_dynamic(mut decoder: impl ImageDecoder, path: &Path, max_pixels: u64) -> Result<Raster> {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(max_bytes(max_pixels));
    decoder.set_limits(limits).map_err(|e| broken(path, e))?;
    let image = DynamicImage::from_decoder(decoder).map_err(|e| broken(path, e))?;
    let (width, height) = (image.width(), image.height());
    let (channels, samples) = match image {
        DynamicImage::ImageLuma8(v) => (1, Samples::U8(v.into_raw())),
        DynamicImage::ImageLumaA8(v) => (2, Samples::U8(v.into_raw())),
        DynamicImage::ImageRgb8(v) => (3, Samples::U8(v.into_raw())),
        DynamicImage::ImageRgba8(v) => (4, Samples::U8(v.into_raw())),
        DynamicImage::ImageLuma16(v) => (1, Samples::U16(v.into_raw())),
        DynamicImage::ImageRgb16(v) => (3, Samples::U16(v.into_raw())),
        other => {
            let what = format!("samples of the kind {:?} are not read", other.color());
            return Err(broken(path, what));
        }
    };
    Ok(Raster {
        width,
        height,
        channels,
        samples,
        palette: None,
        lossy: false,
        largest: None,
    })
}

/// Checks that a decoder gave as many samples as its size demands.
pub(super) fn check_length(raster: &Raster, path: &Path) -> Result<()> {
    let found = match &raster.samples {
        Samples::U8(v) => v.len(),
        Samples::U16(v) => v.len(),
        Samples::U32(v) => v.len(),
        Samples::F32(v) => v.len(),
    };
    let expected = raster.width as usize * raster.height as usize * raster.channels;
    if found == expected {
        return Ok(());
    }
    let error = Error::data(format!("{found} samples, expected {expected}"));
    Err(broken(path, error))
}

fn upright(raster: Raster, orientation: Orientation) -> Raster {
    if orientation == Orientation::NoTransforms {
        return raster;
    }
    let turn = Turn {
        size: (raster.width as usize, raster.height as usize),
        channels: raster.channels,
        orientation,
    };
    let samples = match &raster.samples {
        Samples::U8(v) => Samples::U8(turn.apply(v)),
        Samples::U16(v) => Samples::U16(turn.apply(v)),
        Samples::U32(v) => Samples::U32(turn.apply(v)),
        Samples::F32(v) => Samples::F32(turn.apply(v)),
    };
    let (width, height) = turned_size((raster.width, raster.height), orientation);
    Raster {
        width,
        height,
        samples,
        ..raster
    }
}

/// The size of an image after it was turned upright.
pub(super) fn turned_size((width, height): (u32, u32), orientation: Orientation) -> (u32, u32) {
    // The orientations 5 to 8 exchange rows and columns.
    match orientation.to_exif() {
        5..=8 => (height, width),
        _ => (width, height),
    }
}

struct Turn {
    /// Width and height before.
    size: (usize, usize),
    channels: usize,
    orientation: Orientation,
}

impl Turn {
    fn apply<T: Copy>(&self, samples: &[T]) -> Vec<T> {
        let (width, height) = self.size;
        let (columns, rows) = match self.orientation.to_exif() {
            5..=8 => (height, width),
            _ => (width, height),
        };
        let mut out = Vec::with_capacity(samples.len());
        for y in 0..rows {
            for x in 0..columns {
                let (column, row) = self.source(x, y);
                let at = (row * width + column) * self.channels;
                out.extend_from_slice(&samples[at..at + self.channels]);
            }
        }
        out
    }

    /// Where the pixel (x, y) of the upright image lies in the stored one.
    fn source(&self, x: usize, y: usize) -> (usize, usize) {
        let (right, bottom) = (self.size.0 - 1, self.size.1 - 1);
        match self.orientation {
            Orientation::NoTransforms => (x, y),
            Orientation::FlipHorizontal => (right - x, y),
            Orientation::Rotate180 => (right - x, bottom - y),
            Orientation::FlipVertical => (x, bottom - y),
            Orientation::Rotate90FlipH => (y, x),
            Orientation::Rotate90 => (y, bottom - x),
            Orientation::Rotate270FlipH => (right - y, bottom - x),
            Orientation::Rotate270 => (right - y, x),
        }
    }
}

/// The orientation that an EXIF block tells; upright where it tells none.
pub(super) fn orientation_of(exif: Option<&[u8]>) -> Orientation {
    exif.and_then(Orientation::from_exif_chunk)
        .unwrap_or(Orientation::NoTransforms)
}

/// Reads all of a file, up to `limit` bytes.
pub(super) fn read_all<R: Read>(
    reader: &mut BufReader<R>,
    limit: u64,
    path: &Path,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .or_error(ErrorKind::Data, || {
            format!("cannot read `{}`", path.display())
        })?;
    if bytes.len() as u64 > limit {
        return Err(Error::data(format!(
            "`{}` has more than {limit} bytes, too many for its number of pixels",
            path.display()
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The stored rows of a 3x2 picture for each orientation whose upright form is `a b c / d e f`.
    #[test]
    fn every_orientation_is_turned_upright() {
        let upright_rows = b"abcdef";
        for (exif, size, stored) in [
            (1, (3, 2), b"abcdef"),
            (2, (3, 2), b"cbafed"),
            (3, (3, 2), b"fedcba"),
            (4, (3, 2), b"defabc"),
            (5, (2, 3), b"adbecf"),
            (6, (2, 3), b"cfbead"),
            (7, (2, 3), b"fcebda"),
            (8, (2, 3), b"daebfc"),
        ] {
            let raster = Raster {
                width: size.0,
                height: size.1,
                channels: 1,
                samples: Samples::U8(stored.to_vec()),
                palette: None,
                lossy: false,
                largest: None,
            };
            let turned = upright(raster, Orientation::from_exif(exif).unwrap());
            assert_eq!((turned.width, turned.height), (3, 2), "{exif}");
            assert_eq!(turned.samples, Samples::U8(upright_rows.to_vec()), "{exif}");
        }
    }

    #[test]
    fn grey_ramps_are_told_from_palettes() {
        let ramp =
            |n: usize| -> Vec<[u8; 3]> { (0..n).map(|i| [(i * 255 / (n - 1)) as u8; 3]).collect() };
        for n in [2, 4, 16, 256] {
            assert!(is_grey_ramp(&ramp(n)), "{n}");
        }
        assert!(!is_grey_ramp(&ramp(3)));
        assert!(!is_grey_ramp(&[[255; 3], [0; 3]]));
        assert!(!is_grey_ramp(&[[0; 3], [128, 0, 0]]));
        assert!(!is_grey_ramp(&[]));
    }
}
