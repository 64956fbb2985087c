//! From images and masks to tensors and back: scaling, resizing, padding.

use candle_core::{Device, Result, Tensor};
use diffaug::{
    ImageRef, MaskRef,
    image::{Filter, Tap, resize_mask, taps},
};

/// How an image is laid out for a network: resized to the content's size, then repeated at the
/// right and lower border up to the whole size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Width and height of the content.
    pub content: (u32, u32),
    /// Width and height of the tensor; at least those of the content.
    pub whole: (u32, u32),
}

impl Frame {
    /// A frame for content of that size whose sides are multiples of `multiple`.
    pub fn padded(content: (u32, u32), multiple: u32) -> Self {
        let up = |side: u32| side.next_multiple_of(multiple.max(1));
        Frame {
            content,
            whole: (up(content.0), up(content.1)),
        }
    }
}

/// Images as `[batch, 3, height, width]`, values 0 to 1, brought to their size by a triangle.
///
/// # Errors
/// When the device has no room for it.
pub fn images(images: &[ImageRef<'_>], frame: Frame, device: &Device) -> Result<Tensor> {
    resized_images(images, frame, Filter::Triangle, device)
}

/// Images as `[batch, 3, height, width]`, values 0 to 1, brought to their size by `filter`.
///
/// # Errors
/// When the device has no room for it.
pub fn resized_images(
    images: &[ImageRef<'_>],
    frame: Frame,
    filter: Filter,
    device: &Device,
) -> Result<Tensor> {
    let (width, height) = (frame.whole.0 as usize, frame.whole.1 as usize);
    let mut values = vec![0.0; images.len() * 3 * width * height];
    for (image, out) in images
        .iter()
        .zip(values.chunks_exact_mut(3 * width * height))
    {
        let (from, to) = (image.size(), frame.content);
        for (channel, out) in out.chunks_exact_mut(width * height).enumerate() {
            let pixels = image.pixels().iter().skip(channel).step_by(3);
            let plane: Vec<f32> = pixels.map(|&value| f32::from(value) / 255.0).collect();
            let plane = if from == to {
                plane
            } else {
                let mut plane = resize_by(&plane, from, to, filter);
                plane.iter_mut().for_each(|v| *v = v.clamp(0.0, 1.0));
                plane
            };
            pad(&plane, to.0 as usize, out, width);
        }
    }
    Tensor::from_vec(values, (images.len(), 3, height, width), device)
}

/// The labels of a mask at the frame's size, row by row: nearest pixel, background as padding.
pub fn labels(mask: MaskRef<'_>, frame: Frame) -> Vec<u8> {
    let (width, height) = frame.content;
    let (width, whole) = (width as usize, frame.whole.0 as usize);
    let content = resize_mask(mask, frame.content.0, height);
    let mut out = vec![0; whole * frame.whole.1 as usize];
    let rows = out.chunks_exact_mut(whole);
    for (out, row) in rows.zip(content.labels().chunks_exact(width)) {
        out[..width].copy_from_slice(row);
    }
    out
}

/// Repeats the last column and row of `plane` until `out` is full.
fn pad(plane: &[f32], width: usize, out: &mut [f32], out_width: usize) {
    let last = plane.len() / width - 1;
    for (y, out) in out.chunks_exact_mut(out_width).enumerate() {
        let row = &plane[y.min(last) * width..][..width];
        out[..width].copy_from_slice(row);
        out[width..].fill(row[width - 1]);
    }
}

/// The content of a plane of the frame's whole size.
pub fn crop(plane: &[f32], frame: Frame) -> Vec<f32> {
    let rows = plane.chunks_exact(frame.whole.0 as usize);
    let rows = rows.take(frame.content.1 as usize);
    rows.flat_map(|row| &row[..frame.content.0 as usize])
        .copied()
        .collect()
}

/// The content of a plane of the frame's whole size, at the size of the image that it belongs to.
pub fn answer(plane: &[f32], frame: Frame, size: (u32, u32)) -> Vec<f32> {
    let plane = crop(plane, frame);
    match size == frame.content {
        true => plane,
        false => resize(&plane, frame.content, size),
    }
}

/// Resizes a plane with a triangle filter: bilinear when it grows, an average over the covered
/// pixels when it shrinks (no aliasing). Pixel centres lie at half coordinates.
pub fn resize(plane: &[f32], from: (u32, u32), to: (u32, u32)) -> Vec<f32> {
    resize_by(plane, from, to, Filter::Triangle)
}

/// Resizes a plane by `filter`, which is as wide as the pixels of the smaller one. Pixel centres lie at
/// half coordinates.
pub fn resize_by(plane: &[f32], from: (u32, u32), to: (u32, u32), filter: Filter) -> Vec<f32> {
    let columns = taps(from.0, to.0, filter);
    let rows = taps(from.1, to.1, filter);
    let width = to.0 as usize;
    let mut narrow: Vec<f32> = Vec::with_capacity(width * from.1 as usize);
    for row in plane.chunks_exact(from.0 as usize) {
        for Tap { first, weights } in &columns {
            let pixels = row[*first..].iter().zip(weights);
            narrow.push(pixels.map(|(v, w)| v * w).sum::<f32>());
        }
    }
    let mut out = vec![0.0; width * to.1 as usize];
    for (out, Tap { first, weights }) in out.chunks_exact_mut(width).zip(&rows) {
        for (row, weight) in narrow.chunks_exact(width).skip(*first).zip(weights) {
            for (out, value) in out.iter_mut().zip(row) {
                *out += value * weight;
            }
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::{Image, Mask};

    #[test]
    fn an_image_is_scaled_split_into_channels_and_padded() {
        let image = Image::new(2, 1, vec![255, 0, 51, 0, 102, 204]).unwrap();
        let frame = Frame::padded((2, 1), 2);
        let tensor = images(&[image.view()], frame, &Device::Cpu).unwrap();
        assert_eq!(tensor.dims(), [1, 3, 2, 2]);
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        let expected = [1., 0., 1., 0., 0., 0.4, 0., 0.4, 0.2, 0.8, 0.2, 0.8];
        assert_eq!(values, expected);
        let frame = Frame::padded((3, 5), 4);
        assert_eq!(frame.whole, (4, 8));
        let plane: Vec<f32> = (0..32).map(|i| i as f32).collect();
        assert_eq!(crop(&plane, frame)[3..6], [4., 5., 6.]);
    }

    #[test]
    fn masks_take_the_nearest_label() {
        let mask = Mask::new(4, 2, vec![1, 1, 2, 2, 3, 3, 4, 4]).unwrap();
        let at = |content| labels(mask.view(), Frame::padded(content, 1));
        assert_eq!(at((2, 2)), [1, 2, 3, 4]);
        assert_eq!(at((4, 2)), mask.labels());
        assert_eq!(at((4, 4))[..8], [1, 1, 2, 2, 1, 1, 2, 2]);
        let padded = labels(mask.view(), Frame::padded((4, 2), 8));
        assert_eq!((padded.len(), padded[3], padded[4]), (64, 2, 0));
    }

    #[test]
    fn resizing_keeps_constants_and_means() {
        assert!(
            resize(&[0.5; 12], (4, 3), (7, 5))
                .iter()
                .all(|v| (v - 0.5).abs() < 1e-6)
        );
        assert_eq!(resize(&[1., 2., 3., 4.], (2, 2), (2, 2)), [1., 2., 3., 4.]);
        // Twice the width: quarter and three-quarter points between the centres.
        assert_eq!(resize(&[0., 1.], (2, 1), (4, 1)), [0., 0.25, 0.75, 1.]);
        let halved = resize(&[0., 0., 1., 1.], (4, 1), (2, 1));
        assert!((halved[0] + halved[1] - 1.0).abs() < 1e-6 && halved[0] < 0.2);
    }

    #[test]
    fn a_windowed_sinc_keeps_what_a_triangle_smooths() {
        let size = (32, 32);
        let wave = |at: u32| ((at % 32) as f32 * 1.1).sin() * ((at / 32) as f32 * 0.9).cos();
        let plane: Vec<f32> = (0..32 * 32).map(wave).collect();
        // How much comes back from a plane of one and a half times the side.
        let kept = |filter: Filter| {
            let grown = resize_by(&plane, size, (48, 48), filter);
            let back = resize_by(&grown, (48, 48), size, filter);
            let energy = |values: &[f32]| values.iter().map(|v| v * v).sum::<f32>();
            energy(&back) / energy(&plane)
        };
        let (triangle, lanczos) = (kept(Filter::Triangle), kept(Filter::Lanczos));
        assert!(triangle < 0.75 && lanczos > 0.9, "{triangle} {lanczos}");
        let constant = resize_by(&[0.5; 12], (4, 3), (7, 5), Filter::Lanczos);
        assert!(constant.iter().all(|v| (v - 0.5).abs() < 1e-6));
    }
}
