//! Views of a training picture: the window that is looked at, and whether it is mirrored. A picture
//! has a fixed number of them, so that what the autoencoder makes of each can be kept on disk.

use crate::{
    options::Window,
    picture::{Layout, Part, Plan, around, bounds, frame, pixels},
};
use candle_core::{Device, Tensor};
use diffaug::image::crop_mask;
use diffaug::{Error, Image, Mask, Result, Sample, image::resize_mask, rng};
use diffaug_nn::batch::Frame;
use rand::RngExt;

/// How views are made.
#[derive(Clone, Debug)]
pub struct Views {
    /// The window and its size.
    pub layout: Layout,
    /// Views of a picture.
    pub count: u32,
    /// Whether they may be mirrored.
    pub flip: bool,
    /// The labels of what is painted; others are background here, as they are in painting.
    pub targets: Vec<u8>,
    /// How far the margin of a window may differ, as a share of it.
    pub jitter: f64,
    /// Of the draws.
    pub seed: u64,
}

/// A view of a picture.
pub struct View {
    /// `[1, 3, height, width]`, values -1 to 1, on the processor.
    pub pixels: Tensor,
    /// The target labels, of that size.
    pub mask: Mask,
}

impl Views {
    /// View `index` of a sample; index 0 is the plain one.
    ///
    /// # Errors
    /// When the sample has no lesion where one is needed.
    pub fn view(&self, sample: &Sample, index: u32) -> Result<View> {
        let key = rng::derive(self.seed, "view", &sample.id);
        let mut rng = rng::stream(key, "view", u64::from(index));
        let mut layout = self.layout;
        let mut shift = (0.0, 0.0);
        if index > 0 {
            layout.margin *= 1.0 + self.jitter * rng.random_range(-1.0..1.0);
            // The lesion need not lie in the middle.
            let mut off = || 0.5 * self.jitter * layout.margin * rng.random_range(-1.0..1.0);
            shift = (off(), off());
        }
        let flips = [0, 1].map(|_| index > 0 && self.flip && rng.random::<bool>());
        let targets = targets_alone(&sample.mask, &self.targets);
        let part = part(sample, &targets, &layout, shift)?;
        let plan = Plan {
            part,
            frame: square(frame(part, &layout), &layout),
        };
        let (image, mask) = (
            mirrored(&sample.image, flips),
            mirrored_mask(&targets, flips)?,
        );
        let plan = Plan {
            part: mirrored_part(part, sample.image.size(), flips),
            ..plan
        };
        Ok(View {
            pixels: pixels(image.view(), &plan, &Device::Cpu)?,
            mask: framed(&mask, &plan)?,
        })
    }
}

/// The window of a sample whose lesion is `targets`, moved by shares of the lesion's longer side.
fn part(sample: &Sample, targets: &Mask, layout: &Layout, shift: (f64, f64)) -> Result<Part> {
    let (width, height) = sample.image.size();
    if layout.window == Window::Full {
        return Ok(Part {
            x: 0,
            y: 0,
            width,
            height,
        });
    }
    let Some(mut lesion) = bounds(targets.view()) else {
        return Err(Error::data(format!(
            "sample `{}` has no lesion to put a window around",
            sample.id
        )));
    };
    let longer = f64::from(lesion.width.max(lesion.height));
    let moved = |start: u32, by: f64| (f64::from(start) + by * longer).max(0.0) as u32;
    lesion.x = moved(lesion.x, shift.0);
    lesion.y = moved(lesion.y, shift.1);
    Ok(around(lesion, layout, (width, height)))
}

/// The mask with labels other than `targets` as background: what the generator is asked to paint is a
/// mask of target labels, so training must cut out the same (an eye's cup, not its disc).
fn targets_alone(mask: &Mask, targets: &[u8]) -> Mask {
    let mut alone = mask.clone();
    for label in alone.bytes_mut() {
        if !targets.contains(label) {
            *label = 0;
        }
    }
    alone
}

/// Windows of one training are all of one size: what is cut off at the border of a picture is
/// padded.
fn square(frame: Frame, layout: &Layout) -> Frame {
    match (layout.window, layout.resolution) {
        (Window::Mask, Some(side)) => {
            let side = side.next_multiple_of(layout.multiple);
            Frame {
                whole: (side, side),
                ..frame
            }
        }
        _ => frame,
    }
}

/// The labels under the plan, at its size.
fn framed(mask: &Mask, plan: &Plan) -> Result<Mask> {
    let Part {
        x,
        y,
        width,
        height,
    } = plan.part;
    let part = crop_mask(mask.view(), x, y, width, height)?;
    let (content, whole) = (plan.frame.content, plan.frame.whole);
    let content = resize_mask(part.view(), content.0, content.1);
    let mut labels = vec![0; whole.0 as usize * whole.1 as usize];
    let rows = content.labels().chunks_exact(content.width() as usize);
    for (to, from) in labels.chunks_exact_mut(whole.0 as usize).zip(rows) {
        to[..from.len()].copy_from_slice(from);
    }
    Mask::new(whole.0, whole.1, labels)
}

/// Mirrors left and right, up and down.
fn mirrored(image: &Image, flips: [bool; 2]) -> Image {
    let mut out = image.clone();
    mirror(
        image.pixels(),
        out.bytes_mut(),
        image.width() as usize,
        3,
        flips,
    );
    out
}

fn mirrored_mask(mask: &Mask, flips: [bool; 2]) -> Result<Mask> {
    let mut out = mask.clone();
    mirror(
        mask.labels(),
        out.bytes_mut(),
        mask.width() as usize,
        1,
        flips,
    );
    Ok(out)
}

fn mirror(from: &[u8], to: &mut [u8], width: usize, channels: usize, [across, down]: [bool; 2]) {
    let row = width * channels;
    let rows = from.len() / row;
    for (y, to) in to.chunks_exact_mut(row).enumerate() {
        let y = if down { rows - 1 - y } else { y };
        let from = &from[y * row..(y + 1) * row];
        for (x, to) in to.chunks_exact_mut(channels).enumerate() {
            let x = if across { width - 1 - x } else { x };
            to.copy_from_slice(&from[x * channels..(x + 1) * channels]);
        }
    }
}

fn mirrored_part(part: Part, (width, height): (u32, u32), [across, down]: [bool; 2]) -> Part {
    Part {
        x: if across {
            width - part.x - part.width
        } else {
            part.x
        },
        y: if down {
            height - part.y - part.height
        } else {
            part.y
        },
        ..part
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::Attributes;

    fn sample() -> Sample {
        let (width, height) = (100u32, 80u32);
        let inside = |at: u32| (60..80).contains(&(at % width)) && (20..36).contains(&(at / width));
        let labels: Vec<u8> = (0..width * height).map(|at| u8::from(inside(at))).collect();
        // Lesions are white on black, so that a view's pixels tell where its mask must lie.
        let pixels = labels.iter().flat_map(|label| [label * 255; 3]).collect();
        Sample {
            id: "a".into(),
            image: Image::new(width, height, pixels).unwrap(),
            mask: Mask::new(width, height, labels).unwrap(),
            attributes: Attributes::new(),
        }
    }

    fn views(window: Window, resolution: Option<u32>) -> Views {
        Views {
            layout: Layout {
                window,
                margin: 0.5,
                smallest: 64,
                resolution,
                multiple: 8,
            },
            count: 8,
            flip: true,
            targets: vec![1],
            jitter: 0.5,
            seed: 3,
        }
    }

    #[test]
    fn pixels_and_mask_move_together() {
        for (window, resolution) in [(Window::Full, None), (Window::Mask, Some(64))] {
            let views = views(window, resolution);
            let mut different = std::collections::BTreeSet::new();
            for index in 0..8 {
                let view = views.view(&sample(), index).unwrap();
                let (_, _, height, width) = view.pixels.dims4().unwrap();
                assert_eq!(
                    (width, height),
                    (view.mask.width() as usize, view.mask.height() as usize)
                );
                let red: Vec<f32> = view
                    .pixels
                    .flatten_from(2)
                    .unwrap()
                    .to_vec3::<f32>()
                    .unwrap()[0][0]
                    .clone();
                let wrong = red
                    .iter()
                    .zip(view.mask.labels())
                    .filter(|(value, label)| (**value > 0.0) != (**label != 0));
                // Edges of a scaled view may differ by a pixel.
                let wrong = wrong.count();
                assert!(wrong <= 4 * 64, "{wrong} pixels of view {index}");
                assert!(view.mask.view().foreground() > 100);
                different.insert(view.mask.labels().to_vec());
            }
            // Of a whole picture there are no more than its four mirror images.
            assert!(different.len() >= 3, "{}", different.len());
        }
    }

    #[test]
    fn a_view_is_the_same_every_time() {
        let views = views(Window::Mask, Some(64));
        let draw = |index| views.view(&sample(), index).unwrap().mask.labels().to_vec();
        assert_eq!(draw(3), draw(3));
    }

    #[test]
    fn a_cup_is_cut_out_and_not_its_disc() {
        let mut eye = sample();
        // The target is label 2, within the 20x16 of label 1.
        for y in 24..30 {
            for x in 66..74 {
                eye.mask.bytes_mut()[y * 100 + x] = 2;
            }
        }
        for (window, resolution) in [(Window::Full, None), (Window::Mask, Some(64))] {
            let mut views = views(window, resolution);
            views.targets = vec![2];
            views.layout.smallest = 16;
            for index in 0..4 {
                let view = views.view(&eye, index).unwrap();
                assert_eq!(view.mask.view().classes(), [2]);
                let (_, _, height, width) = view.pixels.dims4().unwrap();
                let share = view.mask.view().foreground() as f64 / (width * height) as f64;
                // 8 of 100 by 6 of 80 pixels, or 8x6 in a window of about twice the longer side.
                let wanted = if window == Window::Full { 0.006 } else { 0.19 };
                assert!((share / wanted).ln().abs() < 0.8, "{share} for {wanted}");
            }
        }
    }

    #[test]
    fn a_window_needs_a_lesion() {
        let mut empty = sample();
        empty.mask.bytes_mut().fill(0);
        let error = views(Window::Mask, None).view(&empty, 0);
        assert_eq!(
            error.err().unwrap().to_string(),
            "sample `a` has no lesion to put a window around"
        );
    }
}
