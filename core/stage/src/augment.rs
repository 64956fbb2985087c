//! Augmentation of training samples: flips, rotation, zoom, elastic warp and colour jitter.
//!
//! Lives beside the datasets rather than in a segmenter, so that every trained stage sees the same
//! distribution. Validation and test views are never augmented.

use crate::{appearance::LUMA, data::*, error::*, rng, stage::Dataset};
use abi_stable::std_types::RVec;
use rand::RngExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{ops::RangeInclusive, sync::Arc};

/// How far training samples may be changed. Every amount is a maximum; 0 turns it off.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentOptions {
    /// Whether training samples are changed at all.
    pub enabled: bool,
    /// Probability of a left-right flip, 0 to 1.
    pub flip_horizontal: f64,
    /// Probability of an upside-down flip, 0 to 1.
    pub flip_vertical: f64,
    /// Largest rotation either way, in degrees, 0 to 180.
    pub rotation: f64,
    /// Largest zoom in or out, as a fraction of the size, 0 to 0.5.
    pub scale: f64,
    /// Largest elastic displacement, as a fraction of the shorter side, 0 to 0.1.
    pub elastic: f64,
    /// Largest relative change of brightness, 0 to 1.
    pub brightness: f64,
    /// Largest relative change of contrast, 0 to 1.
    pub contrast: f64,
    /// Largest relative change of saturation, 0 to 1.
    pub saturation: f64,
    /// Largest turn of the hue either way, as a fraction of the colour circle, 0 to 0.5.
    pub hue: f64,
}

impl Default for AugmentOptions {
    fn default() -> Self {
        AugmentOptions {
            enabled: true,
            flip_horizontal: 0.5,
            flip_vertical: 0.5,
            rotation: 15.0,
            scale: 0.1,
            elastic: 0.02,
            brightness: 0.0,
            contrast: 0.0,
            saturation: 0.0,
            hue: 0.0,
        }
    }
}

impl AugmentOptions {
    /// Checks that every amount is in its range.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] at `augment.NAME` for the first amount that is not.
    pub fn validate(&self) -> Result<()> {
        let amounts: [(&str, f64, RangeInclusive<f64>); 9] = [
            ("flip_horizontal", self.flip_horizontal, 0.0..=1.0),
            ("flip_vertical", self.flip_vertical, 0.0..=1.0),
            ("rotation", self.rotation, 0.0..=180.0),
            ("scale", self.scale, 0.0..=0.5),
            ("elastic", self.elastic, 0.0..=0.1),
            ("brightness", self.brightness, 0.0..=1.0),
            ("contrast", self.contrast, 0.0..=1.0),
            ("saturation", self.saturation, 0.0..=1.0),
            ("hue", self.hue, 0.0..=0.5),
        ];
        for (name, value, range) in amounts {
            if !range.contains(&value) {
                return Err(Error::config(format!(
                    "`{name}` is `{value}`, expected {} to {}",
                    range.start(),
                    range.end()
                ))
                .at(format!("augment.{name}")));
            }
        }
        Ok(())
    }
}

/// Draws one change and applies it to an image and its mask, which are of equal size.
///
/// The geometric part is one inverse warp: each output pixel looks up one place of the input,
/// bilinearly in the image, at the nearest pixel in the mask; beyond the border the input is
/// mirrored. So labels stay aligned with what they label and no new label arises. Flips alone move
/// pixels without interpolation, and with everything off the input comes back unchanged.
pub fn augment(
    image: ImageRef<'_>,
    mask: MaskRef<'_>,
    options: &AugmentOptions,
    rng: &mut rng::Rng,
) -> (Image, Mask) {
    let mut out = (image.to_owned(), mask.to_owned());
    if !options.enabled {
        return out;
    }
    let affine = Affine::draw(image.size(), options, rng);
    let colour = ColourDraw::draw(options, rng);
    // Last, since the number of its draws depends on the image.
    let elastic = Elastic::draw(image.size(), options.elastic, rng);

    if affine.moves_pixels() || elastic.is_some() {
        let warp = Warp { affine, elastic };
        warp.image(image, &mut out.0);
        warp.mask(mask, &mut out.1);
    }
    colour.apply(&mut out.0);
    (out.0, out.1)
}

/// Uniform in `-amount..=amount`; draws even for 0, so that the options do not disturb each other.
fn jitter(amount: f64, rng: &mut rng::Rng) -> f64 {
    amount * rng.random_range(-1.0..=1.0)
}

/// Rotation and zoom about the centre, followed by flips.
struct Affine {
    /// Centre of the image, in pixels.
    centre: [f32; 2],
    /// Maps output to input offsets from the centre, row by row.
    matrix: [f32; 4],
}

impl Affine {
    fn draw(size: (u32, u32), options: &AugmentOptions, rng: &mut rng::Rng) -> Self {
        let sign = |flip: bool| if flip { -1.0 } else { 1.0 };
        let flip_x = sign(rng.random_bool(options.flip_horizontal));
        let flip_y = sign(rng.random_bool(options.flip_vertical));
        let (sin, cos) = jitter(options.rotation, rng).to_radians().sin_cos();
        let zoom = 1.0 / (1.0 + jitter(options.scale, rng));
        let centre = |side: u32| (side as f32 - 1.0) / 2.0;
        Affine {
            centre: [centre(size.0), centre(size.1)],
            matrix: [
                flip_x * zoom * cos,
                flip_x * zoom * sin,
                -flip_y * zoom * sin,
                flip_y * zoom * cos,
            ]
            .map(|entry| entry as f32),
        }
    }

    fn moves_pixels(&self) -> bool {
        self.matrix != [1.0, 0.0, 0.0, 1.0]
    }
}

/// A smooth random displacement: a coarse grid of vectors under cubic B-splines.
///
/// Below 0.48 cells a B-spline lattice cannot fold (Choi and Lee, "Injectivity conditions of 2D and
/// 3D uniform cubic B-spline functions", 2000); with [`CELLS`] cells along the shorter side the
/// largest permitted amount, 0.1 of that side, is 0.4 cells.
struct Elastic {
    /// Pixels between two control points.
    cell: f32,
    /// Control points in a row.
    columns: usize,
    /// Displacements in pixels, row by row.
    control: Vec<[f32; 2]>,
}

/// Grid cells along the shorter side.
const CELLS: f32 = 4.0;

impl Elastic {
    fn draw(size: (u32, u32), amount: f64, rng: &mut rng::Rng) -> Option<Self> {
        if amount == 0.0 {
            return None;
        }
        let shorter = size.0.min(size.1);
        let cell = shorter as f32 / CELLS;
        // A spline segment rests on four control points, hence three more than cells.
        let points = |side: u32| (side as f32 / cell).ceil() as usize + 3;
        let (columns, rows) = (points(size.0), points(size.1));
        let reach = amount * f64::from(shorter);
        let control = (0..columns * rows)
            .map(|_| [jitter(reach, rng) as f32, jitter(reach, rng) as f32])
            .collect();
        Some(Elastic {
            cell,
            columns,
            control,
        })
    }

    /// The lattice evaluated along row `y`: one vector a column, still to be blended along x.
    fn row(&self, y: u32) -> Vec<[f32; 2]> {
        let (first, weights) = self.basis(y);
        (0..self.columns)
            .map(|column| {
                blend(&weights, |k| {
                    self.control[(first + k) * self.columns + column]
                })
            })
            .collect()
    }

    fn basis(&self, place: u32) -> (usize, [f32; 4]) {
        let place = place as f32 / self.cell;
        let t = place.fract();
        let (t2, t3, s) = (t * t, t * t * t, 1.0 - t);
        let weights = [
            s * s * s / 6.0,
            (3.0 * t3 - 6.0 * t2 + 4.0) / 6.0,
            (3.0 * (t + t2 - t3) + 1.0) / 6.0,
            t3 / 6.0,
        ];
        (place as usize, weights)
    }
}

fn blend(weights: &[f32; 4], vector: impl Fn(usize) -> [f32; 2]) -> [f32; 2] {
    let mut sum = [0.0; 2];
    for (k, weight) in weights.iter().enumerate() {
        let v = vector(k);
        sum[0] += weight * v[0];
        sum[1] += weight * v[1];
    }
    sum
}

/// Where each output pixel comes from.
struct Warp {
    affine: Affine,
    elastic: Option<Elastic>,
}

impl Warp {
    /// Calls `visit(output index, input x, input y)` for every pixel of a raster of that size.
    fn each(&self, (width, height): (u32, u32), mut visit: impl FnMut(usize, f32, f32)) {
        let Affine { centre, matrix } = &self.affine;
        let mut index = 0;
        for y in 0..height {
            let bent = self.elastic.as_ref().map(|e| (e, e.row(y)));
            for x in 0..width {
                let mut dx = x as f32 - centre[0];
                let mut dy = y as f32 - centre[1];
                if let Some((elastic, row)) = &bent {
                    let (first, weights) = elastic.basis(x);
                    let shift = blend(&weights, |k| row[first + k]);
                    dx += shift[0];
                    dy += shift[1];
                }
                let from_x = centre[0] + matrix[0] * dx + matrix[1] * dy;
                let from_y = centre[1] + matrix[2] * dx + matrix[3] * dy;
                visit(index, from_x, from_y);
                index += 1;
            }
        }
    }

    fn image(&self, from: ImageRef<'_>, to: &mut Image) {
        let (width, height) = from.size();
        let (pixels, out) = (from.pixels(), to.bytes_mut());
        self.each((width, height), |index, x, y| {
            let (left, top) = (x.floor(), y.floor());
            let (fx, fy) = (x - left, y - top);
            let columns = [0, 1].map(|k| mirror(left as i64 + k, width));
            let rows = [0, 1].map(|k| mirror(top as i64 + k, height) * width as usize);
            for channel in 0..3 {
                let at = |row: usize, column: usize| {
                    f32::from(pixels[(rows[row] + columns[column]) * 3 + channel])
                };
                let upper = at(0, 0) + fx * (at(0, 1) - at(0, 0));
                let lower = at(1, 0) + fx * (at(1, 1) - at(1, 0));
                out[index * 3 + channel] = byte(upper + fy * (lower - upper));
            }
        });
    }

    fn mask(&self, from: MaskRef<'_>, to: &mut Mask) {
        let (width, height) = from.size();
        let (labels, out) = (from.labels(), to.bytes_mut());
        self.each((width, height), |index, x, y| {
            let column = mirror((x + 0.5).floor() as i64, width);
            let row = mirror((y + 0.5).floor() as i64, height);
            out[index] = labels[row * width as usize + column];
        });
    }
}

/// Reflects a place beyond the border back inside; the border pixel itself is not repeated.
fn mirror(place: i64, side: u32) -> usize {
    let last = i64::from(side) - 1;
    if last == 0 {
        return 0;
    }
    let folded = place.rem_euclid(2 * last);
    folded.min(2 * last - folded) as usize
}

fn byte(value: f32) -> u8 {
    value.round().clamp(0.0, 255.0) as u8
}

/// Factors and a turn of the hue, drawn but not yet tied to an image.
struct ColourDraw {
    brightness: f32,
    contrast: f32,
    saturation: f32,
    /// In radians.
    hue: f32,
}

impl ColourDraw {
    fn draw(options: &AugmentOptions, rng: &mut rng::Rng) -> Self {
        ColourDraw {
            brightness: 1.0 + jitter(options.brightness, rng) as f32,
            contrast: 1.0 + jitter(options.contrast, rng) as f32,
            saturation: 1.0 + jitter(options.saturation, rng) as f32,
            hue: (jitter(options.hue, rng) * std::f64::consts::TAU) as f32,
        }
    }

    fn changes_nothing(&self) -> bool {
        self.brightness == 1.0 && self.contrast == 1.0 && self.saturation == 1.0 && self.hue == 0.0
    }

    /// Brightness scales, contrast spreads about the image's mean luma, saturation and hue turn
    /// each colour about the grey axis.
    fn apply(&self, image: &mut Image) {
        if self.changes_nothing() {
            return;
        }
        let gain = self.brightness * self.contrast;
        let offset = self.brightness * (1.0 - self.contrast) * mean_luma(image.pixels());
        let chroma = self.chroma();
        for pixel in image.bytes_mut().chunks_exact_mut(3) {
            let rgb = [0, 1, 2].map(|c| gain * f32::from(pixel[c]) + offset);
            for (value, row) in pixel.iter_mut().zip(&chroma) {
                *value = byte(row[0] * rgb[0] + row[1] * rgb[1] + row[2] * rgb[2]);
            }
        }
    }

    /// Saturation and hue as one matrix: a turn about the axis (1, 1, 1) by Rodrigues' formula,
    /// after a blend between each colour and its luma.
    fn chroma(&self) -> [[f32; 3]; 3] {
        let (sin, cos) = self.hue.sin_cos();
        let even = (1.0 - cos) / 3.0;
        let odd = sin / 3.0_f32.sqrt();
        let turn = [
            [cos + even, even - odd, even + odd],
            [even + odd, cos + even, even - odd],
            [even - odd, even + odd, cos + even],
        ];
        let mut out = [[0.0; 3]; 3];
        for (i, row) in out.iter_mut().enumerate() {
            for (j, entry) in row.iter_mut().enumerate() {
                // Each row of a turn about the grey axis sums to 1, so luma passes through it.
                *entry = self.saturation * turn[i][j] + (1.0 - self.saturation) * LUMA[j];
            }
        }
        out
    }
}

fn mean_luma(pixels: &[u8]) -> f32 {
    let mut sums = [0_u64; 3];
    for pixel in pixels.chunks_exact(3) {
        for (sum, &value) in sums.iter_mut().zip(pixel) {
            *sum += u64::from(value);
        }
    }
    let count = (pixels.len() / 3) as f32;
    sums.iter()
        .zip(LUMA)
        .map(|(&s, w)| w * s as f32)
        .sum::<f32>()
        / count
}

/// The training view of a dataset: item `i` in epoch `e`, at index `e * n + i`, is augmented by a
/// draw that depends on the seed and that index alone, whatever the order of the calls.
///
/// Listing, ids and attributes are the inner dataset's; attributes that were measured (area,
/// count) describe the sample before augmentation and may differ slightly from its mask.
pub struct Augmented {
    inner: Arc<dyn Dataset>,
    options: AugmentOptions,
    seed: u64,
    count: u64,
}

impl Augmented {
    /// Augments `inner`.
    ///
    /// # Errors
    /// When an option is out of range or the dataset cannot be listed.
    pub fn new(inner: Arc<dyn Dataset>, options: AugmentOptions, seed: u64) -> Result<Self> {
        options.validate()?;
        let count = inner.items()?.len() as u64;
        Ok(Augmented {
            inner,
            options,
            seed,
            count,
        })
    }
}

impl Dataset for Augmented {
    fn info(&self) -> Result<DatasetInfo> {
        self.inner.info()
    }

    fn items(&self) -> Result<RVec<Item>> {
        self.inner.items()
    }

    fn sample(&self, index: u64) -> Result<Sample> {
        let Some(item) = index.checked_rem(self.count) else {
            return Err(Error::data("there is no sample to augment"));
        };
        let mut sample = self.inner.sample(item)?;
        if sample.image.size() != sample.mask.size() {
            return Err(Error::data(format!(
                "the image of `{}` is {}x{}, but its mask is {}x{}",
                sample.id,
                sample.image.width(),
                sample.image.height(),
                sample.mask.width(),
                sample.mask.height()
            )));
        }
        let mut rng = rng::stream(self.seed, "augment", index);
        let (image, mask) = augment(
            sample.image.view(),
            sample.mask.view(),
            &self.options,
            &mut rng,
        );
        sample.image = image;
        sample.mask = mask;
        Ok(sample)
    }
}

#[cfg(test)]
mod tests;
