//! The picture while it is painted, and the camera that turns it into bytes.
//!
//! Painters leave reflectance, light and gloss apart; only the camera multiplies them, so that a
//! lesion can change the colour of the wall without touching its shading, or the reverse.

use crate::{
    noise::{hash, unit},
    shade::{Vec3, luma, shoulder, tint},
};
use diffaug::prelude::*;

/// What one pixel shows, before exposure.
#[derive(Clone, Copy, Debug, Default)]
pub struct Point {
    /// Reflected fraction of red, green and blue.
    pub albedo: Vec3,
    /// Light that arrives; any scale, the exposure evens it out.
    pub light: f32,
    /// Mirrored light, on the scale of the finished image.
    pub gloss: f32,
}

/// A square picture under work.
#[derive(Clone, Debug)]
pub struct Film {
    size: u32,
    points: Vec<Point>,
}

/// How a camera develops a [`Film`].
#[derive(Clone, Copy, Debug)]
pub struct Camera {
    /// Mean brightness (0 to 1) that the automatic exposure aims at.
    pub exposure: f32,
    /// Colour of the lamp.
    pub lamp: Vec3,
    /// How much red gains on green and blue as light fades, as it does in tissue.
    pub warmth: f32,
    /// Standard deviation of the sensor's noise, on a scale of 255.
    pub grain: f32,
    /// How often the picture is softened by a 3x3 kernel.
    pub softness: u32,
    /// Seed of the sensor's noise.
    pub seed: u32,
}

impl Film {
    /// An empty picture of `size` x `size` pixels.
    pub fn new(size: u32) -> Self {
        Film {
            size,
            points: vec![Point::default(); (size * size) as usize],
        }
    }

    /// Pixels along a side.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Where the centre of a column or row lies, with the picture spanning -1 to 1.
    pub fn place(&self, pixel: u32) -> f32 {
        (2.0 * pixel as f32 + 1.0) / self.size as f32 - 1.0
    }

    /// Calls `paint(x, y, column, row, point)` for each pixel in the box that holds everything
    /// within `radius` of `centre`.
    pub fn around(
        &mut self,
        centre: [f32; 2],
        radius: f32,
        mut paint: impl FnMut(f32, f32, &mut Point, usize),
    ) {
        let side = self.size as f32;
        let pixel = |place: f32| (place + 1.0) / 2.0 * side;
        let range = |middle: f32| {
            let low = pixel(middle - radius).floor().clamp(0.0, side) as u32;
            let high = pixel(middle + radius).ceil().clamp(0.0, side) as u32;
            low..high
        };
        for row in range(centre[1]) {
            let y = self.place(row);
            for column in range(centre[0]) {
                let x = self.place(column);
                let index = (row * self.size + column) as usize;
                paint(x, y, &mut self.points[index], index);
            }
        }
    }

    /// Calls `paint(x, y, point)` for every pixel.
    pub fn each(&mut self, mut paint: impl FnMut(f32, f32, &mut Point, usize)) {
        self.around([0.0, 0.0], 1.0, &mut paint);
    }

    /// Exposes, softens and digitises the picture; `visible` says how much of a place the frame
    /// lets through.
    ///
    /// # Errors
    /// Never for a film made by [`Film::new`] with a size above 0.
    pub fn develop(&self, camera: &Camera, visible: impl Fn(f32, f32) -> f32) -> Result<Image> {
        let frame = self.frame(visible);
        let gain = self.gain(camera, &frame);
        let mut rgb: Vec<Vec3> = self
            .points
            .iter()
            .zip(&frame)
            .map(|(point, &open)| camera.expose(point, gain).map(|v| v * open))
            .collect();
        for _ in 0..camera.softness {
            soften(&mut rgb, self.size as usize);
        }
        let bytes = self.digitise(camera, &rgb);
        Image::new(self.size, self.size, bytes)
    }

    fn frame(&self, visible: impl Fn(f32, f32) -> f32) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.points.len());
        for row in 0..self.size {
            for column in 0..self.size {
                out.push(visible(self.place(column), self.place(row)));
            }
        }
        out
    }

    /// The factor that brings the mean brightness of the visible part to the camera's aim.
    fn gain(&self, camera: &Camera, frame: &[f32]) -> f32 {
        let (mut sum, mut weight) = (0.0_f64, 1e-6_f64);
        for (point, &open) in self.points.iter().zip(frame) {
            sum += f64::from(open * point.light * luma(point.albedo));
            weight += f64::from(open);
        }
        (f64::from(camera.exposure) * weight / sum.max(1e-6)) as f32
    }

    fn digitise(&self, camera: &Camera, rgb: &[Vec3]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(rgb.len() * 3);
        for (index, colour) in rgb.iter().enumerate() {
            let bits = hash(camera.seed, index as i32, 0);
            // Sums of two uniforms come close enough to a bell; most of the noise is grey.
            let grey = bell(bits) * camera.grain;
            for (channel, &value) in colour.iter().enumerate() {
                let own = bell(bits.rotate_left(11 * (channel as u32 + 1))) * camera.grain * 0.5;
                bytes.push((value * 255.0 + grey + own + 0.5).clamp(0.0, 255.0) as u8);
            }
        }
        bytes
    }
}

impl Camera {
    fn expose(&self, point: &Point, gain: f32) -> Vec3 {
        let light = point.light * gain;
        let fade = self.warmth * 0.35 / (0.35 + light);
        let lamp = tint(self.lamp, [1.0, 1.0 - 0.45 * fade, 1.0 - 0.6 * fade]);
        [0, 1, 2].map(|k| shoulder(point.albedo[k] * lamp[k] * light + point.gloss))
    }
}

/// Random bits to a bell curve of standard deviation 1.
fn bell(bits: u32) -> f32 {
    (unit(bits << 16) + unit(bits & 0xFFFF_0000)) * 1.225
}

/// A separable 1-2-1 kernel; the border repeats.
fn soften(rgb: &mut [Vec3], size: usize) {
    let weigh = |a: Vec3, b: Vec3, c: Vec3| [0, 1, 2].map(|k| (a[k] + 2.0 * b[k] + c[k]) * 0.25);
    for row in rgb.chunks_exact_mut(size) {
        let mut before = row[0];
        for x in 0..size {
            let here = row[x];
            let after = row[(x + 1).min(size - 1)];
            row[x] = weigh(before, here, after);
            before = here;
        }
    }
    let mut above: Vec<Vec3> = rgb[..size].to_vec();
    for y in 0..size {
        for x in 0..size {
            let here = rgb[y * size + x];
            let below = rgb[(y + 1).min(size - 1) * size + x];
            rgb[y * size + x] = weigh(above[x], here, below);
            above[x] = here;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn camera() -> Camera {
        Camera {
            exposure: 0.4,
            lamp: [1.0; 3],
            warmth: 0.0,
            grain: 0.0,
            softness: 1,
            seed: 0,
        }
    }

    #[test]
    fn exposure_reaches_its_aim_whatever_the_light() {
        for light in [0.01, 7.0] {
            let mut film = Film::new(16);
            film.each(|_, _, point, _| {
                point.albedo = [0.5; 3];
                point.light = light;
            });
            let image = film.develop(&camera(), |_, _| 1.0).unwrap();
            assert!(image.pixels().iter().all(|&v| v == 102));
        }
    }

    #[test]
    fn softening_keeps_the_sum_and_spreads_a_point() {
        let mut rgb = vec![[0.0; 3]; 25];
        rgb[12] = [16.0; 3];
        soften(&mut rgb, 5);
        assert_eq!(rgb[12][0], 4.0);
        assert_eq!(rgb[11][0], 2.0);
        assert_eq!(rgb[6][0], 1.0);
        assert_eq!(rgb.iter().map(|v| v[0]).sum::<f32>(), 16.0);
    }

    #[test]
    fn around_visits_the_box_and_clips_it() {
        let mut film = Film::new(10);
        let mut seen = 0;
        film.around([-1.0, 0.0], 0.2, |x, y, _, _| {
            assert!(x < -0.8 && y.abs() < 0.2);
            seen += 1;
        });
        assert_eq!(seen, 2);
    }
}
