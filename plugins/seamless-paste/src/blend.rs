//! Pastes one donor lesion under one wanted outline: warp, colour, Poisson blending, contrast.

use crate::{
    frame,
    shape::{Nearest, Shape, patches},
    warp::{self, Warp},
};
use diffaug::{
    Error, Image, Mask, Result, image,
    poisson::{self, Limits, Problem},
    rng::Rng,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Width in pixels of the ring around the blended part that stands for "the surroundings".
const RING: f64 = 6.0;
/// A donor that is larger than the wanted lesion by more than this is shrunk before it is warped,
/// since the warp takes single samples and would alias.
const SHRINK_FROM: f64 = 1.2;
/// Limits of the factor by which a colour channel is damped or amplified; amplified contrast
/// soon looks painted.
const GAIN: (f32, f32) = (0.5, 1.25);
/// The most grey levels by which the background at the seam may differ from what the donor leads to
/// expect; what goes beyond (a dark lumen, an instrument, a highlight) is taken for another object.
const MAX_PULL: f32 = 45.0;
/// The background shines through over this many pixels at the seam, which hides what
/// [`MAX_PULL`] left.
const SEAM: f64 = 3.0;
/// Nine tenths of a lesion's pixels are kept within these grey levels…
const RANGE: (f32, f32) = (4.0, 248.0);
/// …as long as this share of their contrast remains.
const LEAST_KEPT: f32 = 0.5;
/// The most grey levels that are given back to a lesion that lost contrast.
const MAX_RESTORED: f32 = 40.0;

type Colour = [f32; 3];

/// Which gradients the pasted region keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Blend {
    /// The donor's alone.
    #[default]
    Source,
    /// Whichever of donor and background changes more, per pixel and channel: folds and vessels
    /// of the background shine through.
    Mixed,
}

/// A lesion cut out with its surroundings.
pub(crate) struct Patch {
    pub(crate) image: Image,
    /// Not 0 where the lesion is.
    pub(crate) lesion: Mask,
}

/// How to blend; the fields are those of [`crate::Options`].
#[derive(Clone, Copy)]
pub(crate) struct Style {
    pub(crate) blend: Blend,
    pub(crate) colour: f32,
    pub(crate) keep_contrast: f32,
    pub(crate) feather: u32,
    pub(crate) rotate: bool,
    pub(crate) limits: Limits,
}

/// The part of the image around the wanted lesion, and what is where in it.
struct Scene {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
    background: Vec<Colour>,
    /// Where the lesion is wanted.
    wanted: Vec<bool>,
    /// The wanted cells and a margin around them: all that may change.
    sought: Vec<bool>,
    /// The surroundings: close to the sought cells, but not one of them.
    ring: Vec<bool>,
    /// Cells that show nothing: no lesion goes there, and they say nothing of the surroundings.
    frame: Vec<bool>,
}

/// The donor as seen through the warp.
struct Seen {
    colours: Vec<Colour>,
    /// Cells where there is nothing to be seen: beyond the donor's image or in its frame.
    blank: Vec<bool>,
}

impl Scene {
    /// `taken` marks the pixels of the image that belong to other wanted lesions.
    fn new(
        canvas: &Image,
        target: &Shape,
        taken: impl Fn(usize, usize) -> bool,
        feather: u32,
    ) -> Self {
        let (full_width, full_height) = (canvas.width() as usize, canvas.height() as usize);
        let margin = feather as usize + RING as usize + 2;
        let [x0, y0, x1, y1] = target.bounds();
        let (left, top) = (x0.saturating_sub(margin), y0.saturating_sub(margin));
        let width = (x1 + margin).min(full_width) - left;
        let height = (y1 + margin).min(full_height) - top;
        let mut wanted = vec![false; width * height];
        for &(x, y) in &target.pixels {
            wanted[(y - top) * width + x - left] = true;
        }
        let whole = frame::frame(canvas);
        let mut frame: Vec<bool> = (0..width * height)
            .map(|i| whole[(top + i / width) * full_width + left + i % width])
            .collect();
        // A lesion that is wanted in the dark is not to be found in a frame.
        let lost = frame
            .iter()
            .zip(&wanted)
            .filter(|(f, w)| **f && **w)
            .count();
        if 2 * lost > target.area() {
            frame.fill(false);
        }
        let nearest = Nearest::new(width, height, |x, y| wanted[y * width + x]);
        let within = |from: f64, to: f64| -> Vec<bool> {
            (0..width * height)
                .map(|i| {
                    let (x, y) = (i % width, i / width);
                    let distance = nearest.distance(x, y);
                    let free = !frame[i] && !taken(left + x, top + y);
                    from <= distance && distance <= to && free
                })
                .collect()
        };
        let reach = f64::from(feather);
        let background = (0..width * height)
            .map(|i| ((top + i / width) * full_width + left + i % width) * 3)
            .map(|at| std::array::from_fn(|c| f32::from(canvas.pixels()[at + c])))
            .collect();
        Scene {
            left,
            top,
            width,
            height,
            background,
            sought: within(0.0, reach),
            ring: within(reach + 0.5, reach + RING),
            wanted,
            frame,
        }
    }

    /// Looks at the donor through the warp.
    fn project(&self, patch: &Patch, target: &Shape, style: &Style, rng: &mut Rng) -> Result<Seen> {
        let patch = shrunk(patch, target.area());
        let size = (patch.image.width() as usize, patch.image.height() as usize);
        let framed = frame::frame(&patch.image);
        let donor = visible_lesion(&patch, &framed)?;
        let mut lesion = vec![false; size.0 * size.1];
        for &(x, y) in &donor.pixels {
            lesion[y * size.0 + x] = true;
        }
        let on_lesion = |x: usize, y: usize| lesion[y * size.0 + x];
        let target = self.local(target);
        let warp = Warp::fit(
            (&target, &|p| self.cell(p).is_some_and(|i| self.wanted[i])),
            (&donor, &|[x, y]| {
                let (x, y) = (x.round(), y.round());
                x >= 0.0
                    && y >= 0.0
                    && (x as usize) < size.0
                    && (y as usize) < size.1
                    && on_lesion(x as usize, y as usize)
            }),
            style.rotate,
            rng,
        );
        let nearest = Nearest::new(size.0, size.1, on_lesion);
        let look = |i: usize| {
            let at = warp.map([(i % self.width) as f64, (i / self.width) as f64]);
            if self.wanted[i] {
                let at = warp::onto(&nearest, size, at);
                return (sample(&patch.image, at), false);
            }
            let [x, y] = at.map(f64::round);
            let inside = x >= 0.0 && y >= 0.0 && x < size.0 as f64 && y < size.1 as f64;
            let blank = !inside || framed[y as usize * size.0 + x as usize];
            (sample(&patch.image, at), blank)
        };
        let (colours, blank) = (0..self.wanted.len()).map(look).unzip();
        Ok(Seen { colours, blank })
    }

    /// The wanted shape in this part's coordinates.
    fn local(&self, target: &Shape) -> Shape {
        Shape {
            pixels: target
                .pixels
                .iter()
                .map(|&(x, y)| (x - self.left, y - self.top))
                .collect(),
            centroid: [
                target.centroid[0] - self.left as f64,
                target.centroid[1] - self.top as f64,
            ],
            covariance: target.covariance,
        }
    }

    fn cell(&self, [x, y]: [f64; 2]) -> Option<usize> {
        let (x, y) = (x.round(), y.round());
        let inside = x >= 0.0 && y >= 0.0 && x < self.width as f64 && y < self.height as f64;
        inside.then(|| y as usize * self.width + x as usize)
    }

    fn quantile(&self, image: &[Colour], chosen: &[bool], share: f64) -> Option<Colour> {
        let colours = image.iter().zip(chosen).filter(|(_, c)| **c);
        quantile(colours.map(|(v, _)| *v), share)
    }

    /// Median colour of the chosen cells; `None` if there are none.
    fn median(&self, image: &[Colour], chosen: &[bool]) -> Option<Colour> {
        self.quantile(image, chosen, 0.5)
    }

    /// The cells of the ring in which the donor can be seen.
    fn common_ring(&self, seen: &Seen) -> Vec<bool> {
        let common = self.ring.iter().zip(&seen.blank);
        common.map(|(ring, blank)| *ring && !blank).collect()
    }

    /// The blended colours of all cells.
    fn blend(&self, seen: &Seen, style: &Style) -> Vec<Colour> {
        let offset = self.typical_offset(seen);
        let mut out = self.background.clone();
        for channel in 0..3 {
            let given: Vec<f32> = self.background.iter().map(|c| c[channel]).collect();
            let guide: Vec<f32> = seen.colours.iter().map(|c| c[channel]).collect();
            // The donor, raised to the level of its new surroundings, is almost the answer; where
            // they would pull it far from there, an edge is better than a tinge.
            let level = |i: usize| guide[i] + offset[channel];
            let values: Vec<f32> = (0..given.len())
                .map(|i| match (self.sought[i], seen.blank[i]) {
                    (true, _) => level(i),
                    (false, true) => given[i],
                    (false, false) => given[i].clamp(level(i) - MAX_PULL, level(i) + MAX_PULL),
                })
                .collect();
            let problem = Problem {
                width: self.width,
                height: self.height,
                sought: &self.sought,
                outside: &self.frame,
                values: &values,
            };
            let guidance = |p: usize, q: usize| {
                let blank = seen.blank[p] || seen.blank[q];
                let new = if blank { 0.0 } else { guide[p] - guide[q] };
                let old = given[p] - given[q];
                let keep_old = style.blend == Blend::Mixed && old.abs() > new.abs();
                if keep_old { old } else { new }
            };
            let solution = poisson::solve(&problem, guidance, style.limits);
            if solution.residual > style.limits.tolerance {
                tracing::debug!(
                    iterations = solution.iterations,
                    residual = solution.residual,
                    "the blending did not reach its tolerance"
                );
            }
            for (out, value) in out.iter_mut().zip(solution.values) {
                out[channel] = value;
            }
        }
        out
    }

    /// Background less donor in the ring.
    fn typical_offset(&self, seen: &Seen) -> Colour {
        let difference: Vec<Colour> = seen
            .colours
            .iter()
            .zip(&self.background)
            .map(|(d, b)| std::array::from_fn(|c| b[c] - d[c]))
            .collect();
        self.median(&difference, &self.common_ring(seen))
            .unwrap_or_default()
    }

    /// Moves the donor's light and tint towards that of the background by scaling each channel, so
    /// that the surroundings agree (von Kries). An offset would do nothing: only gradients count.
    fn adapt(&self, seen: &mut Seen, amount: f32) {
        let (Some(here), Some(there)) = (
            self.median(&self.background, &self.ring),
            self.median(&seen.colours, &self.common_ring(seen)),
        ) else {
            return;
        };
        let gain: Colour = std::array::from_fn(|c| {
            let full = (here[c] + 1.0) / (there[c] + 1.0);
            1.0 + amount * (full.clamp(GAIN.0, GAIN.1) - 1.0)
        });
        for colour in &mut seen.colours {
            *colour = std::array::from_fn(|c| colour[c] * gain[c]);
        }
    }

    /// Gives back `amount` of the contrast between lesion and surroundings that the blending lost,
    /// and tones down what would leave the range of a byte. Both fade out towards the seam, where
    /// the background's own pixels take over.
    fn finish(&self, blended: &mut [Colour], seen: &Seen, area: usize, amount: f32) {
        let Some(here) = self.median(&self.background, &self.ring) else {
            return;
        };
        let missing = self.missing(blended, seen, here, amount);
        let keep = self.headroom(blended, here, missing);
        let at = |x: usize, y: usize| y * self.width + x;
        let seam = Nearest::new(self.width, self.height, |x, y| {
            !self.sought[at(x, y)] && !self.frame[at(x, y)]
        });
        let fade = (0.25 * (area as f64).sqrt()).clamp(2.0, 14.0);
        let rise = |distance: f64, over: f64| {
            let t = (distance / over).min(1.0);
            (t * t * (3.0 - 2.0 * t)) as f32
        };
        for (i, colour) in blended
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| self.sought[*i])
        {
            let depth = seam.distance(i % self.width, i / self.width);
            let (share, cover) = (rise(depth, fade), rise(depth, SEAM));
            *colour = std::array::from_fn(|c| {
                let raised = colour[c] + share * missing[c];
                let toned = here[c] + (1.0 - cover * (1.0 - keep)) * (raised - here[c]);
                let old = self.background[i][c];
                old + cover * (toned - old)
            });
        }
    }

    /// How far each channel has to be raised to restore `amount` of the lost contrast to the
    /// surroundings, whose colour is `here`.
    fn missing(&self, blended: &[Colour], seen: &Seen, here: Colour, amount: f32) -> Colour {
        let lost = || -> Option<Colour> {
            let was = self.median(&seen.colours, &self.wanted)?;
            let around = self.median(&seen.colours, &self.common_ring(seen))?;
            let is = self.median(blended, &self.wanted)?;
            Some(std::array::from_fn(|c| {
                (was[c] - around[c]) - (is[c] - here[c])
            }))
        };
        lost()
            .unwrap_or_default()
            .map(|lost| (amount * lost).clamp(-MAX_RESTORED, MAX_RESTORED))
    }

    /// The factor by which the differences from `here` must shrink for [`RANGE`] to hold. One factor
    /// for all channels: cutting off a single one would turn a bright red into cyan.
    fn headroom(&self, blended: &[Colour], here: Colour, missing: Colour) -> f32 {
        let extreme = |share| self.quantile(blended, &self.wanted, share);
        let (Some(low), Some(high)) = (extreme(0.05), extreme(0.95)) else {
            return 1.0;
        };
        let room = |limit: f32, here: f32, value: f32| {
            let beyond = (value - limit) * (limit - here) > 0.0;
            if beyond {
                (limit - here) / (value - here)
            } else {
                1.0
            }
        };
        let keep = (0..3).fold(1.0, |keep: f32, c| {
            keep.min(room(RANGE.0, here[c], low[c] + missing[c]))
                .min(room(RANGE.1, here[c], high[c] + missing[c]))
        });
        // Surroundings that are almost white themselves leave no room; better white than flat.
        keep.max(LEAST_KEPT)
    }

    fn write(&self, blended: &[Colour], canvas: &mut Image) {
        let full_width = canvas.width() as usize;
        let bytes = canvas.bytes_mut();
        for (i, colour) in blended.iter().enumerate().filter(|(i, _)| self.sought[*i]) {
            let at = ((self.top + i / self.width) * full_width + self.left + i % self.width) * 3;
            for c in 0..3 {
                bytes[at + c] = colour[c].round().clamp(0.0, 255.0) as u8;
            }
        }
    }
}

/// Median colour around a wanted lesion; `None` where it leaves no surroundings.
pub(crate) fn surroundings(canvas: &Image, target: &Shape, feather: u32) -> Option<Colour> {
    let scene = Scene::new(canvas, target, |_, _| false, feather);
    scene.median(&scene.background, &scene.ring)
}

/// Pastes `patch` into `canvas` under `target`; pixels of other wanted lesions (`taken`) stay.
pub(crate) fn paste(
    canvas: &mut Image,
    target: &Shape,
    taken: impl Fn(usize, usize) -> bool,
    patch: &Patch,
    style: &Style,
    rng: &mut Rng,
) -> Result<()> {
    let scene = Scene::new(canvas, target, taken, style.feather);
    let mut seen = scene.project(patch, target, style, rng)?;
    scene.adapt(&mut seen, style.colour);
    let mut blended = scene.blend(&seen, style);
    scene.finish(&mut blended, &seen, target.area(), style.keep_contrast);
    scene.write(&blended, canvas);
    Ok(())
}

/// The largest part of the lesion that does not lie in the frame; all of it if there is none.
fn visible_lesion(patch: &Patch, framed: &[bool]) -> Result<Shape> {
    let mut visible = patch.lesion.clone();
    for (label, framed) in visible.bytes_mut().iter_mut().zip(framed) {
        if *framed {
            *label = 0;
        }
    }
    let largest = |mask: &Mask| {
        let parts = patches(mask.view(), |label| label != 0);
        parts.into_iter().max_by_key(Shape::area)
    };
    largest(&visible)
        .or_else(|| largest(&patch.lesion))
        .ok_or_else(|| Error::internal("a donor without a lesion was chosen"))
}

/// The patch at about the scale at which it will be seen, if it is larger.
fn shrunk(patch: &Patch, wanted: usize) -> Patch {
    let area = patch.lesion.view().foreground() as f64;
    let scale = (area / wanted as f64).sqrt();
    let side = |n: u32| ((f64::from(n) / scale).round() as u32).max(1);
    let (width, height) = patch.image.size();
    let (width, height) = if scale > SHRINK_FROM {
        (side(width), side(height))
    } else {
        (width, height)
    };
    let lesion = image::resize_mask(patch.lesion.view(), width, height);
    // A lesion as thin as a hair may fall between the samples.
    if lesion.view().foreground() == 0 {
        return Patch {
            image: patch.image.clone(),
            lesion: patch.lesion.clone(),
        };
    }
    Patch {
        image: image::resize_image(patch.image.view(), width, height),
        lesion,
    }
}

/// Linear interpolation between the four pixels around a position; beyond the image its edge goes
/// on.
fn sample(image: &Image, [x, y]: [f64; 2]) -> Colour {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (x, y) = (
        x.clamp(0.0, width as f64 - 1.0),
        y.clamp(0.0, height as f64 - 1.0),
    );
    let (x0, y0) = (x as usize, y as usize);
    let (x1, y1) = ((x0 + 1).min(width - 1), (y0 + 1).min(height - 1));
    let (u, v) = (x.fract() as f32, y.fract() as f32);
    let pixel = |x: usize, y: usize, c: usize| f32::from(image.pixels()[(y * width + x) * 3 + c]);
    std::array::from_fn(|c| {
        let upper = pixel(x0, y0, c) * (1.0 - u) + pixel(x1, y0, c) * u;
        let lower = pixel(x0, y1, c) * (1.0 - u) + pixel(x1, y1, c) * u;
        upper * (1.0 - v) + lower * v
    })
}

/// The quantile of each channel; `None` without colours.
pub(crate) fn quantile(colours: impl Iterator<Item = Colour>, share: f64) -> Option<Colour> {
    let mut colours: Vec<Colour> = colours.collect();
    if colours.is_empty() {
        return None;
    }
    let rank = (share * (colours.len() - 1) as f64).round() as usize;
    Some(std::array::from_fn(|c| {
        colours
            .select_nth_unstable_by(rank, |a, b| a[c].total_cmp(&b[c]))
            .1[c]
    }))
}
