//! Tests of `image`.

#![allow(clippy::unwrap_used)]

use super::*;
use ::image::{DynamicImage, GrayAlphaImage, ImageBuffer, Luma, Rgb, Rgba};
use std::path::PathBuf;
use tempfile::TempDir;
use tiff::{encoder::TiffEncoder, tags::Tag};

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
fn rules_turn_greys_into_labels() {
    let path = Path::new("m.png");
    let gray = || Mask::new(4, 1, vec![0, 127, 128, 255]).unwrap();
    let above = MaskRule::Above {
        threshold: 127,
        label: 1,
    };
    assert_eq!(above.apply(gray(), path).unwrap().labels(), [0, 0, 1, 1]);
    let values = MaskRule::Values([(0, 2), (127, 9), (128, 1), (255, 0)].into());
    assert_eq!(values.apply(gray(), path).unwrap().labels(), [2, 9, 1, 0]);
}

#[test]
fn an_unexpected_value_is_located() {
    let rule = MaskRule::Values([(0, 0), (255, 1)].into());
    let mask = Mask::new(3, 2, vec![0, 0, 255, 255, 7, 9]).unwrap();
    assert_eq!(
        message(rule.apply(mask, Path::new("m.png"))),
        "mask `m.png` has the value 7 at pixel (1, 1), expected one of 0, 255"
    );
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
    assert!(jpeg_is_complete(&outer));
    assert!(!jpeg_is_complete(&outer[..outer.len() - 2]));
    outer.extend(b"trailing bytes of a camera");
    assert!(jpeg_is_complete(&outer));
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
    assert!(message(open_image(dir.path(), 9)).ends_with("is a folder, not an image"));
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
