//! From a job to what the model sees, and from what it paints back to an image: windows around
//! lesions, working sizes, masks.

use crate::{
    options::{Composite, Window},
    seam::Seam,
};
use candle_core::{Device, Tensor};
use diffaug::{
    Error, Image, ImageRef, Job, MaskRef, Result,
    image::{Filter, crop_image, crop_mask},
};
use diffaug_nn::batch::{self, Frame};

/// The shortest side of an image that is painted into, in pixels.
pub const SHORTEST: u32 = 64;

/// The least side of a window for models that paint at `resolution`, where nothing else is said: half of
/// it, so that a small lesion is enlarged by two and not drawn on a few latent cells.
pub fn smallest_window(resolution: Option<u32>) -> u32 {
    resolution.map_or(SHORTEST, |side| (side / 2).max(1))
}

/// A rectangle of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Left edge.
    pub x: u32,
    /// Upper edge.
    pub y: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// Where a job is painted, and at which size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The part of the image that the model sees.
    pub part: Part,
    /// Its size for the model, padded to a multiple of the autoencoder's factor.
    pub frame: Frame,
}

/// How a model wants its input.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// What the model sees.
    pub window: Window,
    /// Share of the lesion's longer side that a window shows on every side of it.
    pub margin: f64,
    /// Least side of a window, in pixels of the image.
    pub smallest: u32,
    /// The longer side that the part is brought to; without it the part keeps its size.
    pub resolution: Option<u32>,
    /// What heights and widths have to be a multiple of.
    pub multiple: u32,
}

/// Checks a job and plans it.
///
/// # Errors
/// When image and mask differ in size, the image is too small, or the mask is empty or leaves
/// nothing to see.
pub fn plan(job: &Job<'_>, layout: &Layout) -> Result<Plan> {
    let name = name(job);
    let (width, height) = job.image.size();
    if job.mask.size() != (width, height) {
        let (w, h) = job.mask.size();
        return Err(Error::data(format!(
            "the mask for `{name}` is {w}x{h}, the image {width}x{height}"
        )));
    }
    if width.min(height) < SHORTEST {
        return Err(Error::data(format!(
            "image `{name}` is {width}x{height}, expected at least {SHORTEST} pixels on either side"
        )));
    }
    let Some(bounds) = bounds(job.mask) else {
        return Err(Error::data(format!(
            "the mask for `{name}` is empty, so there is nowhere to paint"
        )));
    };
    if job.mask.foreground() == u64::from(width) * u64::from(height) {
        return Err(Error::data(format!(
            "the mask for `{name}` covers the whole image, so nothing is left to paint into"
        )));
    }
    let part = match layout.window {
        Window::Full => Part {
            x: 0,
            y: 0,
            width,
            height,
        },
        Window::Mask => around(bounds, layout, (width, height)),
    };
    Ok(Plan {
        part,
        frame: frame(part, layout),
    })
}

/// What a job is called in messages.
pub fn name(job: &Job<'_>) -> String {
    match job.source.as_str() {
        "" => "an unnamed image".to_owned(),
        name => name.to_owned(),
    }
}

/// The smallest rectangle around all that is not background.
pub fn bounds(mask: MaskRef<'_>) -> Option<Part> {
    let width = mask.width() as usize;
    let (mut left, mut right, mut top, mut bottom) = (width, 0, usize::MAX, 0);
    for (y, row) in mask.labels().chunks_exact(width).enumerate() {
        let Some(first) = row.iter().position(|&label| label != 0) else {
            continue;
        };
        let last = row.iter().rposition(|&label| label != 0).unwrap_or(first);
        (left, right) = (left.min(first), right.max(last + 1));
        (top, bottom) = (top.min(y), y + 1);
    }
    (right > left).then(|| Part {
        x: left as u32,
        y: top as u32,
        width: (right - left) as u32,
        height: (bottom - top) as u32,
    })
}

/// A square around `bounds` with the layout's margin and of its least side or more, moved and, if need
/// be, cut so that it lies in an image of that size.
pub fn around(bounds: Part, layout: &Layout, (width, height): (u32, u32)) -> Part {
    let side = f64::from(bounds.width.max(bounds.height)) * (1.0 + 2.0 * layout.margin);
    let side = (side.round() as u32).max(layout.smallest);
    let place = |start: u32, length: u32, whole: u32| {
        let side = side.min(whole);
        let middle = i64::from(start) + i64::from(length) / 2;
        let first = (middle - i64::from(side) / 2).clamp(0, i64::from(whole - side));
        (first as u32, side)
    };
    let (x, wide) = place(bounds.x, bounds.width, width);
    let (y, high) = place(bounds.y, bounds.height, height);
    Part {
        x,
        y,
        width: wide,
        height: high,
    }
}

/// The size at which `part` is painted.
pub fn frame(part: Part, layout: &Layout) -> Frame {
    let content = match layout.resolution {
        None => (part.width, part.height),
        Some(longer) => {
            let scale = f64::from(longer) / f64::from(part.width.max(part.height));
            let scaled = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
            (scaled(part.width), scaled(part.height))
        }
    };
    Frame::padded(content, layout.multiple)
}

/// The part of the image as `[1, 3, height, width]`, values -1 to 1.
///
/// # Errors
/// Those of the device.
pub fn pixels(image: ImageRef<'_>, plan: &Plan, device: &Device) -> Result<Tensor> {
    let Part {
        x,
        y,
        width,
        height,
    } = plan.part;
    let part = crop_image(image, x, y, width, height)?;
    let values = batch::resized_images(&[part.view()], plan.frame, Filter::Lanczos, device)?;
    Ok(values.affine(2.0, -1.0)?)
}

/// The part of the mask as `[1, 1, height, width]`: 1 where is to be painted, else 0.
///
/// # Errors
/// Those of the device.
pub fn hole(mask: MaskRef<'_>, plan: &Plan, device: &Device) -> Result<Tensor> {
    let Part {
        x,
        y,
        width,
        height,
    } = plan.part;
    let part = crop_mask(mask, x, y, width, height)?;
    let labels = batch::labels(part.view(), plan.frame);
    let values = labels.iter().map(|&label| f32::from(u8::from(label != 0)));
    let shape = (
        1,
        1,
        plan.frame.whole.1 as usize,
        plan.frame.whole.0 as usize,
    );
    Ok(Tensor::from_vec(values.collect::<Vec<_>>(), shape, device)?)
}

/// A mask `[1, 1, height, width]` at the size of the latent: the nearest pixel, as diffusers takes
/// it; every place that the mask touches where that leaves nothing of it. Whether it does is asked of
/// the device: in a loop, give a mask on the processor.
///
/// # Errors
/// When a side is no multiple of `factor`.
pub fn latent_mask(mask: &Tensor, factor: usize) -> Result<Tensor> {
    let (_, _, height, width) = mask.dims4()?;
    let (h, w) = (height / factor, width / factor);
    let cells = mask.reshape((h, factor, w, factor))?;
    let nearest = cells.narrow(1, 0, 1)?.narrow(3, 0, 1)?;
    let nearest = nearest.contiguous()?.reshape((1, 1, h, w))?;
    if nearest.sum_all()?.to_scalar::<f32>()? > 0.0 {
        return Ok(nearest);
    }
    Ok(cells.max(3)?.max(1)?.reshape((1, 1, h, w))?)
}

/// Puts what was painted, `[1, 3, height, width]` with values -1 to 1, into the image of the job.
///
/// # Errors
/// When the painting does not fit the plan.
pub fn put_back(
    job: &Job<'_>,
    plan: &Plan,
    painted: &Tensor,
    composite: Composite,
    feather: u32,
) -> Result<Image> {
    let Part {
        x,
        y,
        width,
        height,
    } = plan.part;
    let planes = painted.to_device(&Device::Cpu)?.flatten_from(2)?;
    let planes: Vec<Vec<f32>> = planes.squeeze(0)?.to_vec2()?;
    let mask = crop_mask(job.mask, x, y, width, height)?;
    let seam = Seam::new(mask.view(), composite, feather);
    let mut image = job.image.to_owned();
    let row = image.width() as usize;
    let places: Vec<usize> = (0..(width * height) as usize)
        .map(|at| (at / width as usize, at % width as usize))
        .map(|(line, column)| (y as usize + line) * row + x as usize + column)
        .collect();
    let bytes = image.bytes_mut();
    for (channel, plane) in planes.iter().enumerate() {
        let plane = batch::crop(plane, plan.frame);
        let plane = match plan.frame.content == (width, height) {
            true => plane,
            false => batch::resize_by(&plane, plan.frame.content, (width, height), Filter::Lanczos),
        };
        let level = |value: &f32| (value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0;
        let painted: Vec<f32> = plane.iter().map(level).collect();
        let own = places.iter().map(|at| f32::from(bytes[3 * at + channel]));
        let joined = seam.join(&own.collect::<Vec<_>>(), &painted);
        for (at, value) in places.iter().zip(joined) {
            bytes[3 * at + channel] = value.round_ties_even() as u8;
        }
    }
    Ok(image)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::Mask;

    fn layout(window: Window, resolution: Option<u32>) -> Layout {
        Layout {
            window,
            margin: 0.5,
            smallest: 64,
            resolution,
            multiple: 8,
        }
    }

    fn mask(size: (u32, u32), part: Part) -> Mask {
        let inside = |at: u32| {
            let (x, y) = (at % size.0, at / size.0);
            let (across, down) = (x.wrapping_sub(part.x), y.wrapping_sub(part.y));
            u8::from(across < part.width && down < part.height)
        };
        let labels = (0..size.0 * size.1).map(inside).collect();
        Mask::new(size.0, size.1, labels).unwrap()
    }

    fn grey(size: (u32, u32)) -> Image {
        let count = 3 * size.0 * size.1;
        Image::new(
            size.0,
            size.1,
            (0..count).map(|i| (i % 251) as u8).collect(),
        )
        .unwrap()
    }

    fn job<'a>(image: &'a Image, mask: &'a Mask) -> Job<'a> {
        Job {
            source: "a".into(),
            image: image.view(),
            mask: mask.view(),
            prompt: "".into(),
            negative: "".into(),
            seed: 0,
        }
    }

    const LESION: Part = Part {
        x: 70,
        y: 10,
        width: 20,
        height: 12,
    };

    #[test]
    fn a_window_is_a_square_around_the_lesion_inside_the_image() {
        assert_eq!(bounds(mask((100, 80), LESION).view()), Some(LESION));
        let large = Part {
            width: 40,
            ..LESION
        };
        let mut layout = layout(Window::Mask, Some(64));
        let part = around(large, &layout, (200, 150));
        assert_eq!((part.width, part.height), (80, 80));
        assert_eq!((part.x, part.y), (50, 0));
        // Larger than the image is high: cut there.
        let part = around(
            Part {
                width: 100,
                ..LESION
            },
            &layout,
            (400, 150),
        );
        assert_eq!((part.width, part.height, part.y), (200, 150, 0));
        // A small lesion has a window of the least side, which is not that of the painting.
        let small = Part {
            width: 6,
            height: 6,
            ..LESION
        };
        assert_eq!(around(small, &layout, (200, 150)).width, 64);
        layout.smallest = smallest_window(layout.resolution);
        assert_eq!(around(small, &layout, (200, 150)).width, 32);
        assert_eq!(around(large, &layout, (200, 150)).width, 80);
    }

    #[test]
    fn sizes_are_scaled_and_padded() {
        let (image, hole_mask) = (grey((100, 75)), mask((100, 75), LESION));
        let job = job(&image, &hole_mask);
        let whole = plan(&job, &layout(Window::Full, None)).unwrap();
        assert_eq!(whole.frame.content, (100, 75));
        assert_eq!(whole.frame.whole, (104, 80));
        let scaled = plan(&job, &layout(Window::Full, Some(200))).unwrap();
        assert_eq!(scaled.frame.content, (200, 150));
        let window = plan(&job, &layout(Window::Mask, Some(128))).unwrap();
        assert_eq!(window.frame.whole, (128, 128));
        let pixels = pixels(job.image, &window, &Device::Cpu).unwrap();
        assert_eq!(pixels.dims(), [1, 3, 128, 128]);
        let hole = hole(job.mask, &window, &Device::Cpu).unwrap();
        let share = hole.mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((share - 20.0 * 12.0 / 64.0 / 64.0).abs() < 0.01, "{share}");
    }

    #[test]
    fn what_is_painted_comes_back_where_it_was_taken() {
        let (image, hole_mask) = (grey((100, 75)), mask((100, 75), LESION));
        let job = job(&image, &hole_mask);
        for window in [Window::Full, Window::Mask] {
            let plan = plan(&job, &layout(window, None)).unwrap();
            let same = pixels(job.image, &plan, &Device::Cpu).unwrap();
            let back = put_back(&job, &plan, &same, Composite::None, 0).unwrap();
            assert_eq!(back, image);
            let white = same.ones_like().unwrap();
            let back = put_back(&job, &plan, &white, Composite::Hard, 0).unwrap();
            for (at, label) in hole_mask.labels().iter().enumerate() {
                let pixel = &back.pixels()[3 * at..3 * at + 3];
                let expected = match label {
                    0 => &image.pixels()[3 * at..3 * at + 3],
                    _ => &[255; 3],
                };
                assert_eq!(pixel, expected);
            }
        }
    }

    #[test]
    fn a_small_mask_does_not_vanish_from_the_latent() {
        let values = |mask: &Tensor| mask.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let mut pixels = vec![0.0f32; 16 * 16];
        pixels[3 * 16 + 12] = 1.0;
        let lone = Tensor::from_vec(pixels.clone(), (1, 1, 16, 16), &Device::Cpu).unwrap();
        assert_eq!(values(&latent_mask(&lone, 8).unwrap()), [0., 1., 0., 0.]);
        pixels[8 * 16] = 1.0;
        let seen = Tensor::from_vec(pixels, (1, 1, 16, 16), &Device::Cpu).unwrap();
        assert_eq!(values(&latent_mask(&seen, 8).unwrap()), [0., 0., 1., 0.]);
    }

    #[test]
    fn what_cannot_be_painted_is_told_in_a_sentence() {
        let refuse = |size: (u32, u32), part: Part, mask_size: (u32, u32)| {
            let (image, hole) = (grey(size), mask(mask_size, part));
            let error = plan(&job(&image, &hole), &layout(Window::Full, None)).unwrap_err();
            error.to_string()
        };
        let size = (100, 80);
        assert_eq!(
            refuse(size, LESION, (50, 80)),
            "the mask for `a` is 50x80, the image 100x80"
        );
        assert_eq!(
            refuse((100, 40), LESION, (100, 40)),
            "image `a` is 100x40, expected at least 64 pixels on either side"
        );
        let empty = Part { width: 0, ..LESION };
        assert_eq!(
            refuse(size, empty, size),
            "the mask for `a` is empty, so there is nowhere to paint"
        );
        let whole = Part {
            x: 0,
            y: 0,
            width: 100,
            height: 80,
        };
        assert_eq!(
            refuse(size, whole, size),
            "the mask for `a` covers the whole image, so nothing is left to paint into"
        );
    }
}
