//! Lattice noise: smooth random fields that cost a few integer operations a point and hold no table.

use crate::shade::{lerp, smooth};

/// A random field, fixed by its seed. Coordinates are in lattice cells.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    seed: u32,
    /// After how many cells the field repeats along x; 0 where it never does.
    period: i32,
}

impl Noise {
    /// A field without period.
    pub fn new(seed: u32) -> Self {
        Noise { seed, period: 0 }
    }

    /// A field that repeats after `cells` cells along x, for coordinates that are angles.
    pub fn periodic(seed: u32, cells: u32) -> Self {
        Noise {
            seed,
            period: cells as i32,
        }
    }

    fn hash(&self, x: i32, y: i32) -> u32 {
        let x = if self.period > 0 {
            x.rem_euclid(self.period)
        } else {
            x
        };
        hash(self.seed, x, y)
    }

    /// The four lattice values around a place, and how far it is past the first.
    fn corners(&self, x: f32, y: f32) -> ([f32; 4], f32, f32) {
        let (column, row) = (floor(x), floor(y));
        let corner = |dx, dy| unit(self.hash(column + dx, row + dy));
        (
            [corner(0, 0), corner(1, 0), corner(0, 1), corner(1, 1)],
            x - column as f32,
            y - row as f32,
        )
    }

    /// The value (-1 to 1) at a place and its derivatives along x and y.
    pub fn gradient(&self, x: f32, y: f32) -> [f32; 3] {
        let ([a, b, c, d], fx, fy) = self.corners(x, y);
        let (sx, sy) = (smooth(fx), smooth(fy));
        let (slope_x, slope_y) = (6.0 * fx * (1.0 - fx), 6.0 * fy * (1.0 - fy));
        let twist = a - b - c + d;
        [
            a + (b - a) * sx + (c - a) * sy + twist * sx * sy,
            slope_x * (b - a + twist * sy),
            slope_y * (c - a + twist * sx),
        ]
    }

    /// The value (-1 to 1) at a place.
    pub fn value(&self, x: f32, y: f32) -> f32 {
        let ([a, b, c, d], fx, fy) = self.corners(x, y);
        let sx = smooth(fx);
        lerp(lerp(a, b, sx), lerp(c, d, sx), smooth(fy))
    }

    /// A sum of octaves, each twice as fine and half as strong; within -1 to 1.
    pub fn fractal(&self, x: f32, y: f32, octaves: u32) -> f32 {
        let (mut sum, mut weight, mut total, mut scale) = (0.0, 1.0, 0.0, 1.0);
        for octave in 0..octaves {
            let layer = Noise {
                seed: self.seed.wrapping_add(octave.wrapping_mul(0x9E37_79B9)),
                period: self.period << octave,
            };
            sum += weight * layer.value(x * scale, y * scale);
            total += weight;
            weight *= 0.5;
            scale *= 2.0;
        }
        sum / total
    }

    /// Distance (in cells, at most about 1.2) to the nearest of one random point a cell: round
    /// bumps of irregular arrangement (Worley, "A cellular texture basis function", 1996).
    pub fn cells(&self, x: f32, y: f32) -> f32 {
        let (column, row) = (floor(x), floor(y));
        let mut nearest = f32::MAX;
        for dy in -1..=1 {
            for dx in -1..=1 {
                let bits = self.hash(column + dx, row + dy);
                // Kept away from the cell's border, so that bumps are of similar size.
                let jitter = |b: u32| 0.08 + 0.84 * (b & 0xFFFF) as f32 / 65535.0;
                let px = (column + dx) as f32 + jitter(bits) - x;
                let py = (row + dy) as f32 + jitter(bits >> 16) - y;
                nearest = nearest.min(px * px + py * py);
            }
        }
        nearest.sqrt()
    }
}

/// A slowly varying field, sampled once on a coarse grid over the picture (-1 to 1) so that asking
/// for a pixel costs a blend instead of several octaves.
pub struct Field {
    side: usize,
    values: Vec<f32>,
}

impl Field {
    /// Samples `value` at `side` x `side` places.
    pub fn new(side: usize, value: impl Fn(f32, f32) -> f32) -> Self {
        let place = |i: usize| 2.0 * i as f32 / (side - 1) as f32 - 1.0;
        let values = (0..side * side)
            .map(|i| value(place(i % side), place(i / side)))
            .collect();
        Field { side, values }
    }

    /// The field at a place; beyond the picture, its border.
    pub fn at(&self, x: f32, y: f32) -> f32 {
        let last = (self.side - 1) as f32;
        let split = |v: f32| {
            let place = ((v + 1.0) * 0.5 * last).clamp(0.0, last - 1e-3);
            (place as usize, place - place as usize as f32)
        };
        let ((column, fx), (row, fy)) = (split(x), split(y));
        let upper = &self.values[row * self.side + column..][..2];
        let lower = &self.values[(row + 1) * self.side + column..][..2];
        lerp(
            lerp(upper[0], upper[1], fx),
            lerp(lower[0], lower[1], fx),
            fy,
        )
    }
}

/// The next lower whole number; the library's own is a call on processors of the base level.
pub fn floor(x: f32) -> i32 {
    let whole = x as i32;
    whole - i32::from((whole as f32) > x)
}

/// Scrambles a lattice point; every bit of the result depends on all of the input.
pub fn hash(seed: u32, x: i32, y: i32) -> u32 {
    let mut h = seed
        ^ (x as u32).wrapping_mul(0x9E37_79B1)
        ^ (y as u32).wrapping_mul(0x85EB_CA77).rotate_left(13);
    h = (h ^ (h >> 15)).wrapping_mul(0x2C1B_3C6D);
    h = (h ^ (h >> 12)).wrapping_mul(0x297A_2D39);
    h ^ (h >> 15)
}

/// Maps random bits to -1 to 1.
pub fn unit(bits: u32) -> f32 {
    bits as f32 * (2.0 / 4_294_967_295.0) - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_agree_with_differences() {
        let noise = Noise::new(3);
        let step = 1e-2;
        for i in 0..50 {
            let (x, y) = (i as f32 * 0.37 - 5.0, i as f32 * 0.21);
            let [_, dx, dy] = noise.gradient(x, y);
            let along_x = (noise.value(x + step, y) - noise.value(x - step, y)) / (2.0 * step);
            let along_y = (noise.value(x, y + step) - noise.value(x, y - step)) / (2.0 * step);
            assert!((dx - along_x).abs() < 0.02 && (dy - along_y).abs() < 0.02);
        }
    }

    #[test]
    fn a_field_meets_its_samples_and_its_border() {
        let field = Field::new(9, |x, y| x + 10.0 * y);
        assert!((field.at(0.3, -0.41) - (0.3 - 4.1)).abs() < 1e-3);
        assert!((field.at(5.0, 1.0) - 11.0).abs() < 0.02);
        assert_eq!(floor(-0.5), -1);
        assert_eq!(floor(-2.0), -2);
    }

    #[test]
    fn a_periodic_field_closes_and_values_stay_in_range() {
        let noise = Noise::periodic(8, 5);
        for i in 0..200 {
            let (x, y) = (i as f32 * 0.13 - 9.0, i as f32 * 0.07);
            assert!((noise.value(x, y) - noise.value(x + 5.0, y)).abs() < 1e-4);
            assert!((noise.fractal(x, y, 3) - noise.fractal(x + 5.0, y, 3)).abs() < 1e-3);
            assert!(noise.fractal(x, y, 4).abs() <= 1.0);
            assert!((0.0..1.3).contains(&noise.cells(x, y)));
        }
    }
}
