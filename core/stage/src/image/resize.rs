//! Resizing and cropping of images and masks.

use crate::{
    data::{Image, ImageRef, Mask, MaskRef},
    error::{Error, Result},
};
use image::{ImageBuffer, Rgb, imageops};

/// Unwraps what was made with a buffer of the right length by construction.
fn exact<T>(made: Result<T>) -> T {
    made.unwrap_or_else(|error| unreachable!("{error}"))
}

/// How values between pixels are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// A triangle: bilinear when a plane grows, an average over the covered pixels when it shrinks. It
    /// smooths a little, and never goes beyond the values that there are.
    Triangle,
    /// Keys' cubic convolution with a slope of -0.5, as Pillow's `BICUBIC`: sharper than a triangle, and
    /// a little beyond the values on either side of an edge.
    Bicubic,
    /// Lanczos' windowed sinc of three lobes, as Pillow and diffusers resize: it keeps fine detail, and
    /// goes a little beyond the values on either side of an edge.
    Lanczos,
}

impl Filter {
    /// How far a pixel is seen, in pixels of the smaller plane.
    fn reach(self) -> f64 {
        match self {
            Filter::Triangle => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    /// The weight of a pixel at that distance, before weights are brought to a sum of 1.
    fn weight(self, distance: f64) -> f64 {
        let x = distance.abs();
        match self {
            _ if x >= self.reach() => 0.0,
            Filter::Triangle => 1.0 - x,
            Filter::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Filter::Bicubic => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Filter::Lanczos => sinc(x) * sinc(x / 3.0),
        }
    }
}

/// sin(πx) / (πx).
fn sinc(x: f64) -> f64 {
    let angle = std::f64::consts::PI * x;
    if angle == 0.0 {
        1.0
    } else {
        angle.sin() / angle
    }
}

/// What goes into one row or column of a resized plane.
pub struct Tap {
    /// The first source index.
    pub first: usize,
    /// The weights of that one and those after it; they sum to 1.
    pub weights: Vec<f32>,
}

/// What each of `to` rows or columns is made of, out of `from`; the filter is as wide as the pixels of the
/// smaller side, and pixel centres lie at half coordinates.
pub fn taps(from: u32, to: u32, filter: Filter) -> Vec<Tap> {
    let scale = f64::from(from) / f64::from(to);
    let stretch = scale.max(1.0);
    let reach = filter.reach() * stretch;
    let tap = |index: u32| {
        let centre = (f64::from(index) + 0.5) * scale;
        let first = (centre - reach).floor().max(0.0) as u32;
        let end = ((centre + reach).ceil() as u32).min(from);
        let weight = |at: u32| filter.weight((f64::from(at) + 0.5 - centre) / stretch);
        let sum: f64 = (first..end).map(weight).sum();
        Tap {
            first: first as usize,
            weights: (first..end).map(|at| (weight(at) / sum) as f32).collect(),
        }
    };
    (0..to).map(tap).collect()
}

/// Resizes by linear interpolation, averaging over the covered area when it shrinks. A side of 0
/// counts as 1.
pub fn resize_image(image: ImageRef<'_>, width: u32, height: u32) -> Image {
    if image.size() == (width, height) {
        return image.to_owned();
    }
    let (width, height) = (width.max(1), height.max(1));
    let columns = taps(image.width(), width, Filter::Triangle);
    let stride = image.width() as usize * 3;
    let mut pixels = Vec::with_capacity(width as usize * height as usize * 3);
    // Rows first: adding whole rows is the bulk of the work and runs as vector instructions, and
    // one row of sums is all the memory that it takes.
    let mut sums = vec![0.0f32; stride];
    for row in taps(image.height(), height, Filter::Triangle) {
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

/// Copies `image` onto another with its upper left corner at (`x`, `y`); what lies beyond the border is
/// left out.
pub fn overlay_image(onto: &mut Image, image: ImageRef<'_>, x: u32, y: u32) {
    let (width, height) = onto.size();
    let onto = ImageBuffer::<Rgb<u8>, _>::from_raw(width, height, onto.bytes_mut());
    let image = ImageBuffer::<Rgb<u8>, _>::from_raw(image.width(), image.height(), image.pixels());
    if let (Some(mut onto), Some(image)) = (onto, image) {
        imageops::replace(&mut onto, &image, i64::from(x), i64::from(y));
    }
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
