//! Tests of `image`.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::data::{Image, Mask};
use ::image::{DynamicImage, GrayAlphaImage, ImageBuffer, Luma, Rgb, RgbImage, Rgba};
use ::tiff::{
    encoder::{TiffEncoder, colortype},
    tags::Tag,
};
use std::{io::Cursor, path::PathBuf};
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A picture without symmetry, so that a swap of axes or channels shows.
fn picture(width: u32, height: u32) -> Image {
    let pixels = (0..height)
        .flat_map(|y| (0..width).flat_map(move |x| [x * 9, y * 13, x + y * 2]))
        .map(|v| v as u8)
        .collect();
    Image::new(width, height, pixels).unwrap()
}

fn as_dynamic(image: &Image) -> DynamicImage {
    let (width, height) = image.size();
    let raw = RgbImage::from_raw(width, height, image.pixels().to_vec()).unwrap();
    DynamicImage::ImageRgb8(raw)
}

fn write(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn message(result: Result<impl std::fmt::Debug>) -> String {
    result.unwrap_err().to_string()
}

/// A TIFF with `samples` 8-bit samples a pixel that calls itself grey (BlackIsZero).
fn gray_tiff(width: u32, height: u32, samples: u16, pixels: &[u8]) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let mut encoder = TiffEncoder::new(&mut bytes).unwrap();
    let mut tags = encoder.image_directory().unwrap();
    // Two strips, as in files of scanners.
    let rows = height.div_ceil(2);
    let strip = rows as usize * width as usize * usize::from(samples);
    let mut offsets = Vec::new();
    let mut counts = Vec::new();
    for strip in pixels.chunks(strip) {
        offsets.push(tags.write_data(strip).unwrap() as u32);
        counts.push(strip.len() as u32);
    }
    tags.write_tag(Tag::ImageWidth, width).unwrap();
    tags.write_tag(Tag::ImageLength, height).unwrap();
    let bits = vec![8u16; usize::from(samples)];
    tags.write_tag(Tag::BitsPerSample, &bits[..]).unwrap();
    tags.write_tag(Tag::Compression, 1u16).unwrap();
    tags.write_tag(Tag::PhotometricInterpretation, 1u16)
        .unwrap();
    tags.write_tag(Tag::SamplesPerPixel, samples).unwrap();
    tags.write_tag(Tag::RowsPerStrip, rows).unwrap();
    tags.write_tag(Tag::StripOffsets, &offsets[..]).unwrap();
    tags.write_tag(Tag::StripByteCounts, &counts[..]).unwrap();
    tags.finish().unwrap();
    bytes.into_inner()
}

#[test]
fn lossless_formats_are_read_by_content() {
    let dir = folder();
    let image = picture(11, 7);
    for format in [ImageFormat::Png, ImageFormat::Tiff, ImageFormat::Bmp] {
        let path = write(&dir, "x.jpg", &encode(&as_dynamic(&image), format));
        assert_eq!(open_image(&path, 77).unwrap(), image, "{format:?}");
        assert_eq!(image_size(&path).unwrap(), (11, 7));
    }
}

#[test]
fn a_jpeg_named_png_is_a_jpeg() {
    let dir = folder();
    let image = Image::new(16, 8, [200, 100, 50].repeat(16 * 8)).unwrap();
    let path = write(
        &dir,
        "x.png",
        &encode(&as_dynamic(&image), ImageFormat::Jpeg),
    );
    let read = open_image(&path, DEFAULT_MAX_PIXELS).unwrap();
    assert_eq!(read.size(), (16, 8));
    for (a, b) in read.pixels().iter().zip(image.pixels()) {
        assert!(a.abs_diff(*b) <= 4, "{a} {b}");
    }
}

#[test]
fn other_depths_become_eight_bit_rgb() {
    let dir = folder();
    let wide = ImageBuffer::from_pixel(3, 2, Rgb([65535u16, 32896, 0]));
    let alpha = ImageBuffer::from_pixel(3, 2, Rgba([255u8, 128, 0, 7]));
    let gray = GrayAlphaImage::from_pixel(3, 2, ::image::LumaA([9, 1]));
    for (image, pixel) in [
        (DynamicImage::ImageRgb16(wide), [255, 128, 0]),
        (DynamicImage::ImageRgba8(alpha), [255, 128, 0]),
        (DynamicImage::ImageLumaA8(gray), [9, 9, 9]),
    ] {
        let path = write(&dir, "x.png", &encode(&image, ImageFormat::Png));
        assert_eq!(open_image(&path, 100).unwrap().pixels(), pixel.repeat(6));
    }
}

#[test]
fn a_tiff_of_three_samples_that_calls_itself_grey_is_rgb() {
    let dir = folder();
    let image = picture(5, 4);
    let path = write(&dir, "1.tif", &gray_tiff(5, 4, 3, image.pixels()));
    assert_eq!(open_image(&path, 20).unwrap(), image);
    assert!(message(open_image(&path, 19)).contains("5x4 pixels, over the limit of 19 pixels"));
    let four: Vec<u8> = image
        .pixels()
        .chunks(3)
        .flat_map(|p| [p[0], p[1], p[2], 77])
        .collect();
    let path = write(&dir, "2.tif", &gray_tiff(5, 4, 4, &four));
    assert_eq!(open_image(&path, 20).unwrap(), image);
    let plain = write(&dir, "3.tif", &gray_tiff(5, 4, 1, &image.pixels()[..20]));
    assert_eq!(
        open_gray(&plain, 20).unwrap().labels(),
        &image.pixels()[..20]
    );
}

#[test]
fn greys_of_a_mask_stay_as_they_are() {
    let dir = folder();
    let values: Vec<u8> = (0..=255).collect();
    let rgb = values.iter().flat_map(|&v| [v, v, v]).collect();
    let rgb = DynamicImage::ImageRgb8(RgbImage::from_raw(16, 16, rgb).unwrap());
    let gray = DynamicImage::ImageLuma8(ImageBuffer::from_raw(16, 16, values.clone()).unwrap());
    let wide = values.iter().map(|&v| u16::from(v)).collect();
    let narrow = DynamicImage::ImageLuma16(ImageBuffer::from_raw(16, 16, wide).unwrap());
    let wide = values.iter().map(|&v| u16::from(v) * 257).collect();
    let scaled = DynamicImage::ImageLuma16(ImageBuffer::from_raw(16, 16, wide).unwrap());
    for image in [rgb, gray, narrow, scaled] {
        let path = write(&dir, "m.png", &encode(&image, ImageFormat::Png));
        assert_eq!(open_gray(&path, 256).unwrap().labels(), values);
    }
}

#[test]
fn the_size_is_checked_before_decoding() {
    let dir = folder();
    // Only the header is there: whoever decoded would find the file truncated.
    let mut png = encode(&as_dynamic(&picture(4, 4)), ImageFormat::Png);
    png.truncate(41);
    png[16..24].copy_from_slice(&[0, 0, 0x9C, 0x40, 0, 0, 0x9C, 0x40]);
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    let path = write(&dir, "x.png", &png);
    assert_eq!(
        message(open_image(&path, DEFAULT_MAX_PIXELS)),
        format!(
            "`{}` is 40000x40000 pixels, over the limit of 64 megapixels",
            path.display()
        )
    );
    for format in [ImageFormat::Jpeg, ImageFormat::Tiff, ImageFormat::Bmp] {
        let path = write(&dir, "y", &encode(&as_dynamic(&picture(30, 40)), format));
        assert!(message(open_image(&path, 1199)).contains("is 30x40 pixels, over the limit"));
        open_image(&path, 1200).unwrap();
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[test]
fn truncated_files_are_errors_wherever_they_end() {
    let dir = folder();
    let image = as_dynamic(&picture(40, 30));
    for format in [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::Tiff,
        ImageFormat::Bmp,
    ] {
        let bytes = encode(&image, format);
        for end in (0..64)
            .chain((64..bytes.len().min(400)).step_by(9))
            .chain([bytes.len() / 2, bytes.len() * 9 / 10])
        {
            let path = write(&dir, "x", &bytes[..end]);
            let message = message(open_image(&path, 10_000));
            assert!(
                message.contains(&path.display().to_string()),
                "{format:?}: {message}"
            );
            assert!(!message.contains('\n'), "{format:?}: {message}");
            // The pixels of a TIFF come before what describes them, so its header is what is lost.
            let header = read_header(&path);
            assert!(header.is_err(), "{format:?} cut at {end}: {header:?}");
        }
    }
    let jpeg = encode(&image, ImageFormat::Jpeg);
    let path = write(&dir, "x", &jpeg[..jpeg.len() - 2]);
    assert!(message(open_image(&path, 10_000)).contains("is truncated"));
}

#[test]
fn a_thumbnail_does_not_hide_that_a_jpeg_is_truncated() {
    let jpeg = encode(&as_dynamic(&picture(40, 30)), ImageFormat::Jpeg);
    // An APP1 segment that holds a whole small JPEG, end marker included.
    let inner = encode(&as_dynamic(&picture(8, 8)), ImageFormat::Jpeg);
    let mut outer = vec![0xFF, 0xD8, 0xFF, 0xE1];
    outer.extend(((inner.len() + 2) as u16).to_be_bytes());
    outer.extend(inner);
    outer.extend(&jpeg[2..]);
    assert!(jpeg::is_complete(&outer));
    assert!(!jpeg::is_complete(&outer[..outer.len() - 2]));
    outer.extend(b"trailing bytes of a camera");
    assert!(jpeg::is_complete(&outer));
}

#[test]
fn what_is_no_image_is_named() {
    let dir = folder();
    let empty = write(&dir, "empty.png", b"");
    assert!(message(open_image(&empty, 9)).ends_with("empty.png` is empty"));
    let text = write(&dir, "text.png", b"not an image at all");
    assert!(message(open_image(&text, 9)).ends_with("is neither PNG, JPEG, TIFF nor BMP"));
    let gif = write(&dir, "x.gif", b"GIF89a\x01\0\x01\0");
    assert!(message(image_size(&gif)).ends_with("is neither PNG, JPEG, TIFF nor BMP"));
    assert!(
        message(open_image(dir.path(), 9)).ends_with("it is a folder, expected a regular file")
    );
    let missing = dir.path().join("no.png");
    assert!(message(open_gray(&missing, 9)).contains("no.png`: No such file"));
}

#[test]
fn flipped_bits_never_panic() {
    let dir = folder();
    let image = as_dynamic(&picture(24, 16));
    for format in [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::Tiff,
        ImageFormat::Bmp,
    ] {
        let bytes = encode(&image, format);
        for at in (0..bytes.len()).step_by(bytes.len() / 150 + 1) {
            let mut broken = bytes.clone();
            broken[at] ^= 0xA5;
            let path = write(&dir, "x", &broken);
            if let Err(error) = open_image(&path, 100_000) {
                assert!(
                    error.to_string().contains(&path.display().to_string()),
                    "{error}"
                );
            }
        }
    }
}

#[test]
fn what_is_saved_is_read_again() {
    let dir = folder();
    let image = picture(31, 17);
    let (a, b) = (dir.path().join("a.png"), dir.path().join("b.png"));
    save_image(image.view(), &a).unwrap();
    save_image(image.view(), &b).unwrap();
    assert_eq!(open_image(&a, 1000).unwrap(), image);
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    let mask = Mask::new(5, 3, (0..15).collect()).unwrap();
    save_gray(mask.view(), &a).unwrap();
    assert_eq!(open_gray(&a, 1000).unwrap(), mask);
    for name in ["c.tif", "d.BMP"] {
        let other = dir.path().join(name);
        save_image(image.view(), &other).unwrap();
        assert_eq!(open_image(&other, 1000).unwrap(), image, "{name}");
        save_gray(mask.view(), &other).unwrap();
        assert_eq!(open_gray(&other, 1000).unwrap(), mask, "{name}");
        std::fs::remove_file(other).unwrap();
    }
    // No temporary file stays behind, not even when the target cannot be written.
    save_image(image.view(), dir.path()).unwrap_err();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    let nowhere = dir.path().join("no/such/x.png");
    assert!(message(save_image(image.view(), &nowhere)).contains("cannot write `"));
}

#[test]
fn resizing_agrees_with_the_image_crate() {
    let image = picture(23, 31);
    for (width, height) in [(11, 7), (40, 60), (23, 9), (12, 62)] {
        let ours = resize_image(image.view(), width, height);
        let filter = ::image::imageops::FilterType::Triangle;
        let theirs = as_dynamic(&image)
            .resize_exact(width, height, filter)
            .into_rgb8();
        for (a, b) in ours.pixels().iter().zip(theirs.as_raw()) {
            assert!(a.abs_diff(*b) <= 1, "{width}x{height}: {a} {b}");
        }
    }
}

#[test]
fn resizing_keeps_means_and_labels() {
    let image = picture(8, 6);
    assert_eq!(resize_image(image.view(), 8, 6), image);
    // Alternating columns of 0 and 200 shrink to their mean, not to one of them.
    let stripes = (0..64 * 4).flat_map(|i| [if i % 2 == 0 { 0 } else { 200 }; 3]);
    let stripes = Image::new(64, 4, stripes.collect()).unwrap();
    let shrunk = resize_image(stripes.view(), 16, 4);
    for x in 2..14 {
        assert!(shrunk.pixels()[x * 3].abs_diff(100) <= 3);
    }
    // Twice as large: the known weights 3/4 and 1/4, and constants stay constant.
    let ramp = Image::new(2, 1, vec![0, 0, 9, 100, 200, 9]).unwrap();
    let grown = resize_image(ramp.view(), 4, 2);
    assert_eq!(
        grown.pixels()[..12],
        [0, 0, 9, 25, 50, 9, 75, 150, 9, 100, 200, 9]
    );
    assert_eq!(grown.pixels()[..12], grown.pixels()[12..]);
    for (width, height) in [(1, 1), (7, 3), (31, 90), (200, 2)] {
        let white = Image::new(30, 17, vec![255; 30 * 17 * 3]).unwrap();
        let resized = resize_image(white.view(), width, height);
        assert!(resized.pixels().iter().all(|&value| value == 255));
    }
    let mask = Mask::new(2, 2, vec![0, 1, 2, 3]).unwrap();
    let grown = resize_mask(mask.view(), 4, 6);
    assert_eq!(&grown.labels()[..4], [0, 0, 1, 1]);
    assert_eq!(&grown.labels()[20..], [2, 2, 3, 3]);
    assert_eq!(resize_mask(grown.view(), 2, 2), mask);
    assert_eq!(resize_image(image.view(), 0, 3).size(), (1, 3));
    assert_eq!(resize_mask(mask.view(), 5, 0).size(), (5, 1));
}

#[test]
fn crops_lie_inside() {
    let image = picture(6, 5);
    let part = crop_image(image.view(), 4, 2, 2, 3).unwrap();
    assert_eq!(part.size(), (2, 3));
    assert_eq!(&part.pixels()[..3], &image.pixels()[(2 * 6 + 4) * 3..][..3]);
    assert_eq!(&part.pixels()[15..], &image.pixels()[(4 * 6 + 5) * 3..]);
    let mask = Mask::new(3, 2, vec![0, 1, 2, 3, 4, 5]).unwrap();
    assert_eq!(
        crop_mask(mask.view(), 1, 0, 2, 2).unwrap().labels(),
        [1, 2, 4, 5]
    );
    for (x, y, w, h) in [
        (4, 2, 3, 3),
        (0, 3, 1, 3),
        (0, 0, 0, 1),
        (u32::MAX, 0, 2, 1),
    ] {
        crop_image(image.view(), x, y, w, h).unwrap_err();
    }
}

#[test]
fn luma_of_sixteen_bit_colour_is_scaled() {
    let dir = folder();
    let wide: ImageBuffer<Luma<u16>, Vec<u16>> = ImageBuffer::from_pixel(2, 2, Luma([65535]));
    let path = write(
        &dir,
        "m.png",
        &encode(&DynamicImage::ImageLuma16(wide), ImageFormat::Png),
    );
    assert_eq!(open_gray(&path, 4).unwrap().labels(), [255; 4]);
}

#[test]
fn the_format_of_a_written_file_follows_its_name() {
    let dir = folder();
    let image = picture(16, 8);
    for (name, start) in [
        ("a.png", &b"\x89PNG"[..]),
        ("a.jpg", b"\xff\xd8"),
        ("a.JPEG", b"\xff\xd8"),
        ("a.tiff", b"II*\0"),
        ("a.bmp", b"BM"),
    ] {
        let path = dir.path().join(name);
        save_image(image.view(), &path).unwrap();
        assert!(std::fs::read(&path).unwrap().starts_with(start), "{name}");
    }
    let mask = Mask::new(1, 1, vec![3]).unwrap();
    let jpeg = message(save_gray(mask.view(), &dir.path().join("m.jpg")));
    assert!(
        jpeg.contains("does not keep the values of a mask"),
        "{jpeg}"
    );
    for name in ["a", "a.gif", ".png"] {
        let unknown = message(save_image(image.view(), &dir.path().join(name)));
        assert!(unknown.contains("tells no format"), "{unknown}");
    }
}

/// A palette PNG of `bits` bits a pixel, its indices packed by the encoder's caller.
fn palette_png(
    width: u32,
    height: u32,
    bits: ::png::BitDepth,
    packed: &[u8],
    colours: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(::png::ColorType::Indexed);
    encoder.set_depth(bits);
    encoder.set_palette(colours.to_vec());
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(packed).unwrap();
    writer.finish().unwrap();
    bytes
}

/// A palette TIFF of 8-bit indices.
fn palette_tiff(
    width: u32,
    height: u32,
    indices: &[u8],
    colours: &[[u8; 3]],
    big: bool,
) -> Vec<u8> {
    fn write<W: std::io::Write + std::io::Seek, K: ::tiff::encoder::TiffKind>(
        mut encoder: TiffEncoder<W, K>,
        (width, height): (u32, u32),
        indices: &[u8],
        map: &[u16],
    ) {
        let mut tags = encoder.image_directory().unwrap();
        let offset = tags.write_data(indices).unwrap();
        tags.write_tag(Tag::ImageWidth, width).unwrap();
        tags.write_tag(Tag::ImageLength, height).unwrap();
        tags.write_tag(Tag::BitsPerSample, 8u16).unwrap();
        tags.write_tag(Tag::Compression, 1u16).unwrap();
        tags.write_tag(Tag::PhotometricInterpretation, 3u16)
            .unwrap();
        tags.write_tag(Tag::SamplesPerPixel, 1u16).unwrap();
        tags.write_tag(Tag::RowsPerStrip, height).unwrap();
        tags.write_tag(Tag::StripOffsets, offset as u32).unwrap();
        tags.write_tag(Tag::StripByteCounts, indices.len() as u32)
            .unwrap();
        tags.write_tag(Tag::ColorMap, map).unwrap();
        tags.finish().unwrap();
    }
    let mut map = vec![0u16; 768];
    for (i, colour) in colours.iter().enumerate() {
        for (c, value) in colour.iter().enumerate() {
            map[c * 256 + i] = u16::from(*value) << 8;
        }
    }
    let mut bytes = Cursor::new(Vec::new());
    match big {
        true => write(
            TiffEncoder::new_big(&mut bytes).unwrap(),
            (width, height),
            indices,
            &map,
        ),
        false => write(
            TiffEncoder::new(&mut bytes).unwrap(),
            (width, height),
            indices,
            &map,
        ),
    }
    bytes.into_inner()
}

/// A palette BMP of 8 bits a pixel, rows from the bottom up.
fn palette_bmp(width: u32, height: u32, indices: &[u8], colours: &[[u8; 3]]) -> Vec<u8> {
    let offset = 54 + 4 * colours.len() as u32;
    let stride = width.div_ceil(4) * 4;
    let mut bytes = b"BM".to_vec();
    for value in [offset + stride * height, 0, offset, 40, width, height] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([1, 0, 8, 0]);
    for value in [0, stride * height, 2835, 2835, colours.len() as u32, 0] {
        bytes.extend(value.to_le_bytes());
    }
    for [r, g, b] in colours {
        bytes.extend([*b, *g, *r, 0]);
    }
    for row in indices.chunks(width as usize).rev() {
        bytes.extend(row);
        bytes.resize(bytes.len() + (stride - width) as usize, 0);
    }
    bytes
}

#[test]
fn palette_masks_are_indices_and_palette_images_are_colours() {
    let dir = folder();
    let indices = [0u8, 1, 2, 1, 0, 2];
    let colours = [[0, 0, 0], [128, 0, 0], [0, 128, 0]];
    let flat = colours.concat();
    // 2 bits a pixel: rows of one byte.
    let packed = [0b0001_1000, 0b0100_1000];
    for (name, bytes) in [
        (
            "8.png",
            palette_png(3, 2, ::png::BitDepth::Eight, &indices, &flat),
        ),
        (
            "2.png",
            palette_png(3, 2, ::png::BitDepth::Two, &packed, &flat),
        ),
        ("a.tif", palette_tiff(3, 2, &indices, &colours, false)),
        ("b.tif", palette_tiff(3, 2, &indices, &colours, true)),
        ("a.bmp", palette_bmp(3, 2, &indices, &colours)),
    ] {
        let path = write(&dir, name, &bytes);
        let found = read_values(&path, 6).unwrap();
        assert_eq!(found.values.labels(), indices, "{name}");
        assert!(found.indexed && !found.lossy, "{name}");
        let shown: Vec<u8> = indices
            .iter()
            .flat_map(|&i| colours[usize::from(i)])
            .collect();
        assert_eq!(open_image(&path, 6).unwrap().pixels(), shown, "{name}");
        assert!(
            message(read_values(&path, 5)).contains("over the limit of 5 pixels"),
            "{name}"
        );
        assert_eq!(read_header(&path).unwrap().size(), (3, 2), "{name}");
    }
    // Several indices in a byte, from the highest bits on; the lower row comes first.
    for (bits, colours_used, rows, values) in [
        (
            1u8,
            2,
            [[0b1010_0000, 0], [0b0110_0000, 0]],
            [0u8, 1, 1, 1, 0, 1],
        ),
        (4, 3, [[0x21, 0x00], [0x01, 0x20]], [0, 1, 2, 2, 1, 0]),
    ] {
        let mut bytes = palette_bmp(4, 2, &[0; 8], &colours);
        let pixels = bytes.len() - 8;
        (bytes[18], bytes[28], bytes[46]) = (3, bits, colours_used);
        for (row, packed) in rows.iter().enumerate() {
            bytes[pixels + 4 * row..][..2].copy_from_slice(packed);
        }
        let path = write(&dir, "few.bmp", &bytes);
        let found = read_values(&path, 6).unwrap();
        assert_eq!(found.values.labels(), values, "{bits} bits");
        assert!(found.indexed, "{bits} bits");
    }
    // White as a colour does not make an index 255.
    let white = palette_png(
        3,
        2,
        ::png::BitDepth::Eight,
        &[0, 1, 1, 0, 0, 0],
        &[0, 0, 0, 255, 255, 255],
    );
    let path = write(&dir, "white.png", &white);
    assert_eq!(open_gray(&path, 6).unwrap().labels(), [0, 1, 1, 0, 0, 0]);
    // BMP stores grey pictures with a palette, having no other way.
    let ramp: Vec<[u8; 3]> = (0..=255).map(|v| [v; 3]).collect();
    let path = write(
        &dir,
        "grey.bmp",
        &palette_bmp(3, 2, &[0, 128, 255, 7, 0, 255], &ramp),
    );
    let found = read_values(&path, 6).unwrap();
    assert_eq!(found.values.labels(), [0, 128, 255, 7, 0, 255]);
    assert!(!found.indexed);
}

#[test]
fn a_palette_without_its_colours_is_an_error() {
    let dir = folder();
    let mut bytes = palette_tiff(3, 2, &[0; 6], &[[0; 3]], false);
    // The tag of the colour map becomes one that nobody knows.
    let at = bytes
        .windows(2)
        .rposition(|pair| pair == [0x40, 1])
        .unwrap();
    bytes[at..at + 2].copy_from_slice(&[0x39, 0x80]);
    let path = write(&dir, "a.tif", &bytes);
    assert!(message(open_image(&path, 6)).contains("a palette image without a colour map"));
}

/// An EXIF block that tells nothing but an orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let mut block = b"II*\0\x08\0\0\0\x01\0".to_vec();
    block.extend([0x12, 1, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0]);
    block.extend([0; 4]);
    block
}

#[test]
fn an_exif_orientation_is_applied_in_every_format() {
    let dir = folder();
    let upright = picture(6, 4);
    // Rotated so that a viewer that turns it by 90 degrees clockwise (6) shows it upright.
    let stored = as_dynamic(&upright).rotate270();
    let mut png = Vec::new();
    let mut info = ::png::Info::with_size(4, 6);
    info.color_type = ::png::ColorType::Rgb;
    info.exif_metadata = Some(exif(6).into());
    let encoder = ::png::Encoder::with_info(&mut png, info).unwrap();
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(stored.as_bytes()).unwrap();
    writer.finish().unwrap();
    let mut tif = Cursor::new(Vec::new());
    let mut encoder = TiffEncoder::new(&mut tif).unwrap();
    let mut image = encoder.new_image::<colortype::RGB8>(4, 6).unwrap();
    image.encoder().write_tag(Tag::Orientation, 6u16).unwrap();
    image.write_data(stored.as_bytes()).unwrap();
    for (name, bytes) in [("a.png", png), ("a.tif", tif.into_inner())] {
        let path = write(&dir, name, &bytes);
        assert_eq!(open_image(&path, 24).unwrap(), upright, "{name}");
        let header = read_header(&path).unwrap();
        assert_eq!(
            (header.size(), header.orientation()),
            ((6, 4), Some(6)),
            "{name}"
        );
    }
    let jpeg = encode(&stored, ImageFormat::Jpeg);
    let mut turned = vec![0xFF, 0xD8, 0xFF, 0xE1];
    turned.extend((exif(6).len() as u16 + 8).to_be_bytes());
    turned.extend(b"Exif\0\0");
    turned.extend(exif(6));
    turned.extend(&jpeg[2..]);
    let path = write(&dir, "a.jpg", &turned);
    let plain = write(&dir, "plain.jpg", &jpeg);
    let shown = as_dynamic(&open_image(&plain, 24).unwrap()).rotate90();
    assert_eq!(open_image(&path, 24).unwrap().pixels(), shown.as_bytes());
    assert_eq!(read_header(&path).unwrap().orientation(), Some(6));
    assert_eq!(read_header(&plain).unwrap().orientation(), None);
    assert_eq!(image_size(&path).unwrap(), (6, 4));
}

/// A TIFF of one colour type, classic or with offsets of 64 bits.
fn tiff_of<C: colortype::ColorType>(
    width: u32,
    height: u32,
    samples: &[C::Inner],
    big: bool,
) -> Vec<u8>
where
    [C::Inner]: ::tiff::encoder::TiffValue,
{
    let mut bytes = Cursor::new(Vec::new());
    match big {
        true => TiffEncoder::new_big(&mut bytes)
            .unwrap()
            .write_image::<C>(width, height, samples),
        false => TiffEncoder::new(&mut bytes)
            .unwrap()
            .write_image::<C>(width, height, samples),
    }
    .unwrap();
    bytes.into_inner()
}

#[test]
fn tiffs_of_every_width_are_read() {
    use colortype::{
        Gray8, Gray16, Gray32, Gray32Float, Gray64, Gray64Float, GrayI8, GrayI16, GrayI32, RGB8,
        RGB16,
    };
    let dir = folder();
    let labels = [0u8, 1, 2, 255, 0, 7];
    let wide = |scale: u64| labels.map(|v| u64::from(v) * scale);
    let read =
        |bytes: Vec<u8>| open_gray(&write(&dir, "m.tif", &bytes), 6).map(|m| m.labels().to_vec());
    for (name, bytes) in [
        ("big", tiff_of::<Gray8>(3, 2, &labels, true)),
        (
            "u16",
            tiff_of::<Gray16>(3, 2, &wide(1).map(|v| v as u16), false),
        ),
        (
            "u16 full",
            tiff_of::<Gray16>(3, 2, &wide(257).map(|v| v as u16), true),
        ),
        (
            "u32",
            tiff_of::<Gray32>(3, 2, &wide(1).map(|v| v as u32), false),
        ),
        (
            "u32 full",
            tiff_of::<Gray32>(3, 2, &wide(0x0101_0101).map(|v| v as u32), false),
        ),
        ("u64", tiff_of::<Gray64>(3, 2, &wide(1), false)),
        (
            "i16",
            tiff_of::<GrayI16>(3, 2, &wide(1).map(|v| v as i16), false),
        ),
        (
            "i32",
            tiff_of::<GrayI32>(3, 2, &wide(1).map(|v| v as i32), true),
        ),
        (
            "f32",
            tiff_of::<Gray32Float>(3, 2, &wide(1).map(|v| v as f32), false),
        ),
        (
            "f64",
            tiff_of::<Gray64Float>(3, 2, &wide(1).map(|v| v as f64), false),
        ),
    ] {
        assert_eq!(read(bytes).unwrap(), labels, "{name}");
    }
    let shares = tiff_of::<Gray32Float>(2, 1, &[0.5, 1.0], false);
    assert_eq!(read(shares).unwrap(), [128, 255]);
    for (bytes, words) in [
        (
            tiff_of::<GrayI8>(2, 1, &[-1, 1], false),
            "negative or very large whole numbers",
        ),
        (
            tiff_of::<GrayI32>(2, 1, &[-1, 1], false),
            "negative or very large whole numbers",
        ),
        (
            tiff_of::<Gray16>(2, 1, &[1, 300], false),
            "holds values from 1 to 300 besides 0",
        ),
        (
            tiff_of::<Gray16>(3, 1, &[0, 1, 65535], false),
            "holds values from 1 to 65535 besides 0",
        ),
        (
            tiff_of::<Gray32Float>(2, 1, &[f32::NAN, 1.0], false),
            "not finite numbers",
        ),
        (
            tiff_of::<Gray32Float>(2, 1, &[0.5, 7.0], false),
            "floating-point values from 0 to 7",
        ),
    ] {
        let error = read(bytes).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("m.tif`"), "{error}");
    }
    let image = picture(3, 2);
    let big = write(&dir, "p.tif", &tiff_of::<RGB8>(3, 2, image.pixels(), true));
    assert_eq!(open_image(&big, 6).unwrap(), image);
    let sixteen: Vec<u16> = image.pixels().iter().map(|&v| u16::from(v) * 257).collect();
    let path = write(&dir, "p.tif", &tiff_of::<RGB16>(3, 2, &sixteen, false));
    let bits = ReadOptions {
        max_pixels: 6,
        bits: 16,
    };
    assert_eq!(open_image(&path, bits).unwrap(), image);
}

#[test]
fn twelve_bits_are_the_full_range() {
    let dir = folder();
    let values: Vec<u16> = vec![0, 2048, 4095, 100];
    let image: ImageBuffer<Luma<u16>, Vec<u16>> = ImageBuffer::from_raw(2, 2, values).unwrap();
    let png = encode(&DynamicImage::ImageLuma16(image), ImageFormat::Png);
    let path = write(&dir, "x.png", &png);
    let red: Vec<u8> = open_image(&path, 4)
        .unwrap()
        .pixels()
        .iter()
        .step_by(3)
        .copied()
        .collect();
    assert_eq!(red, [0, 128, 255, 6]);
    let bits = ReadOptions {
        max_pixels: 4,
        bits: 16,
    };
    assert_eq!(open_image(&path, bits).unwrap().pixels()[3], 8);
}

#[test]
fn a_large_colour_profile_is_not_unpacked() {
    let dir = folder();
    let mut bytes = Vec::new();
    let mut info = ::png::Info::with_size(2, 1);
    info.color_type = ::png::ColorType::Grayscale;
    info.icc_profile = Some(vec![7; 50 << 20].into());
    let encoder = ::png::Encoder::with_info(&mut bytes, info).unwrap();
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[3, 4]).unwrap();
    writer.finish().unwrap();
    assert!(bytes.len() < 1 << 20, "{}", bytes.len());
    // A picture of two pixels may take a megabyte, so unpacking 50 would be an error.
    let path = write(&dir, "x.png", &bytes);
    assert_eq!(open_gray(&path, 2).unwrap().labels(), [3, 4]);
}

#[test]
fn headers_are_looked_at_without_decoding() {
    let dir = folder();
    let image = as_dynamic(&picture(40, 30));
    for format in [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::Tiff,
        ImageFormat::Bmp,
    ] {
        let path = write(&dir, "x", &encode(&image, format));
        let header = read_header(&path).unwrap();
        assert_eq!(header.size(), (40, 30), "{format:?}");
        assert!(message(header.check_size(&path, 1199)).contains("over the limit"));
    }
}

/// Small valid files of every format and kind that is read.
fn small_files() -> Vec<Vec<u8>> {
    let image = as_dynamic(&picture(12, 9));
    let formats = [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::Tiff,
        ImageFormat::Bmp,
    ];
    let mut files: Vec<Vec<u8>> = formats.map(|format| encode(&image, format)).into();
    files.push(encode(
        &DynamicImage::ImageLuma8(image.to_luma8()),
        ImageFormat::Png,
    ));
    files.push(encode(
        &DynamicImage::ImageLumaA8(image.to_luma_alpha8()),
        ImageFormat::Png,
    ));
    files.push(encode(
        &DynamicImage::ImageRgb16(image.to_rgb16()),
        ImageFormat::Png,
    ));
    let colours = [[0; 3], [128, 0, 0], [0, 128, 0]];
    files.push(palette_png(
        3,
        2,
        ::png::BitDepth::Two,
        &[24, 72],
        &colours.concat(),
    ));
    files.push(palette_bmp(3, 2, &[0, 1, 2, 1, 0, 2], &colours));
    files
}

/// TIFF files of every kind that is read.
fn small_tiffs() -> Vec<Vec<u8>> {
    let image = picture(5, 4);
    let colours = [[0; 3], [128, 0, 0], [0, 128, 0]];
    vec![
        encode(&as_dynamic(&image), ImageFormat::Tiff),
        gray_tiff(5, 4, 3, image.pixels()),
        palette_tiff(3, 2, &[0, 1, 2, 1, 0, 2], &colours, false),
        palette_tiff(3, 2, &[0, 1, 2, 1, 0, 2], &colours, true),
        tiff_of::<colortype::Gray32>(3, 1, &[0, 1, 2], true),
        tiff_of::<colortype::Gray64Float>(3, 1, &[0.0, 0.5, 1.0], false),
        tiff_of::<colortype::RGB16>(5, 4, &[7; 60], false),
    ]
}

/// Reads bytes in every way there is; each has to answer one line or none.
fn read_all_ways(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    let options = 10_000;
    let texts = [
        open_image(path, options).err(),
        read_values(path, options).err(),
        open_mask(path, options, &MaskRule::Auto { label: 1 }).err(),
        read_header(path).err(),
    ];
    for text in texts.into_iter().flatten().map(|error| error.to_string()) {
        assert!(text.contains(&path.display().to_string()), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}

#[test]
fn mutated_images_and_masks_are_answered() {
    let dir = folder();
    let path = dir.path().join("x");
    crate::mutate::each("images", &small_files(), 700, |bytes| {
        read_all_ways(&path, bytes)
    });
}

#[test]
fn mutated_tiffs_are_answered() {
    let dir = folder();
    let path = dir.path().join("x");
    crate::mutate::each("tiffs", &small_tiffs(), 1500, |bytes| {
        read_all_ways(&path, bytes)
    });
}
