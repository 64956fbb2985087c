//! Decoding of PNG files: indices of palette images stay indices, and nothing but pixels is read
//! of what may be compressed without bounds (colour profiles, texts).

use super::{
    broken, check_size,
    decode::{Raster, Samples, check_length, orientation_of},
    max_bytes,
};
use crate::error::Result;
use ::image::metadata::Orientation;
use png::{BitDepth, ColorType, DecodeOptions, Decoder, Transformations};
use std::{
    io::{BufRead, Seek},
    path::Path,
};

pub(super) fn decode(
    reader: impl BufRead + Seek,
    path: &Path,
    max_pixels: u64,
) -> Result<(Raster, Orientation)> {
    let fail = |error| broken(path, error);
    let mut options = DecodeOptions::default();
    options.set_ignore_text_chunk(true);
    options.set_ignore_iccp_chunk(true);
    let mut decoder = Decoder::new_with_options(reader, options);
    decoder.set_limits(png::Limits {
        bytes: usize::try_from(max_bytes(max_pixels)).unwrap_or(usize::MAX),
    });
    let header = decoder.read_header_info().map_err(fail)?;
    check_size(path, (header.width, header.height), max_pixels)?;
    let indexed = header.color_type == ColorType::Indexed;
    decoder.set_transformations(match indexed {
        true => Transformations::IDENTITY,
        // Fewer than 8 bits become 8, and a transparent colour becomes alpha.
        false => Transformations::EXPAND,
    });
    let mut reader = decoder.read_info().map_err(fail)?;
    let size = reader.output_buffer_size();
    let size = size.ok_or_else(|| broken(path, "its size overflows"))?;
    let mut bytes = vec![0; size];
    let frame = reader.next_frame(&mut bytes).map_err(fail)?;
    bytes.truncate(frame.buffer_size());
    // What follows the pixels may tell the orientation, and shows whether the file is whole.
    reader.finish().map_err(fail)?;
    let info = reader.info();
    let orientation = orientation_of(info.exif_metadata.as_deref());
    let palette = info.palette.as_ref().filter(|_| indexed).map(|colours| {
        let colours = colours.chunks_exact(3);
        colours.map(|c| [c[0], c[1], c[2]]).collect()
    });
    let samples = match frame.bit_depth {
        BitDepth::Sixteen => Samples::U16(
            bytes
                .chunks_exact(2)
                .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
                .collect(),
        ),
        BitDepth::Eight => Samples::U8(bytes),
        few => Samples::U8(unpack(
            &bytes,
            frame.line_size,
            frame.width as usize,
            few as usize,
        )),
    };
    let raster = Raster {
        width: frame.width,
        height: frame.height,
        channels: frame.color_type.samples(),
        samples,
        palette,
        lossy: false,
        largest: None,
    };
    check_length(&raster, path)?;
    Ok((raster, orientation))
}

/// Values of `bits` bits (1, 2 or 4), packed from the highest bit on, rows of `line` bytes.
pub(super) fn unpack(bytes: &[u8], line: usize, width: usize, bits: usize) -> Vec<u8> {
    let in_byte = 8 / bits;
    let value = |row: &[u8], x: usize| {
        let shift = 8 - bits * (x % in_byte + 1);
        (row[x / in_byte] >> shift) & ((1 << bits) - 1) as u8
    };
    bytes
        .chunks_exact(line.max(1))
        .flat_map(|row| (0..width).map(move |x| value(row, x)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_values_come_from_the_highest_bit_on() {
        assert_eq!(unpack(&[0b1010_0000], 1, 3, 1), [1, 0, 1]);
        assert_eq!(
            unpack(&[0b0001_1011, 0b1100_0000], 2, 5, 2),
            [0, 1, 2, 3, 3]
        );
        assert_eq!(
            unpack(&[0x1f, 0x20, 0x34, 0x50], 2, 3, 4),
            [1, 15, 2, 3, 4, 5]
        );
    }
}
