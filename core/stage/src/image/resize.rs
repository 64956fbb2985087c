//! Resizing and cropping of images and masks.

use crate::{
    data::{Image, ImageRef, Mask, MaskRef},
    error::{Error, Result},
};

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
