//! Fits a donor's lesion under a wanted outline: an affine map that matches the second moments,
//! followed by a radial correction that takes outline to outline.
//!
//! The affine part is the map of least displacement between two Gaussians (the optimal transport
//! map): a pure stretch. Before it the donor may be turned and mirrored; a turn that needs little
//! stretch is drawn at random.

use crate::shape::{Nearest, Shape};
use diffaug::rng::Rng;
use rand::RngExt;
use std::f64::consts::TAU;

/// Directions in which the radii of outlines are kept.
const BINS: usize = 180;
/// Turns of the donor that are tried, each plain and mirrored.
const TURNS: usize = 16;
/// Turns whose strain (log of the stretch's condition number) is within this of the least.
const EQUAL_STRAIN: f64 = 0.08;
/// Pixels between two looks along a ray.
const RAY_STEP: f64 = 0.5;

type Matrix = [[f64; 2]; 2];
type Point = [f64; 2];

fn times(a: Matrix, b: Matrix) -> Matrix {
    std::array::from_fn(|i| std::array::from_fn(|j| a[i][0] * b[0][j] + a[i][1] * b[1][j]))
}

fn transform(a: Matrix, [x, y]: Point) -> Point {
    [a[0][0] * x + a[0][1] * y, a[1][0] * x + a[1][1] * y]
}

fn transposed(a: Matrix) -> Matrix {
    [[a[0][0], a[1][0]], [a[0][1], a[1][1]]]
}

fn determinant(a: Matrix) -> f64 {
    a[0][0] * a[1][1] - a[0][1] * a[1][0]
}

fn inverse(a: Matrix) -> Matrix {
    let d = determinant(a);
    [[a[1][1] / d, -a[0][1] / d], [-a[1][0] / d, a[0][0] / d]]
}

/// Square root of a symmetric positive definite matrix (closed form by Cayley-Hamilton).
fn root(a: Matrix) -> Matrix {
    let s = determinant(a).max(0.0).sqrt();
    let t = (a[0][0] + a[1][1] + 2.0 * s).sqrt();
    [
        [(a[0][0] + s) / t, a[0][1] / t],
        [a[1][0] / t, (a[1][1] + s) / t],
    ]
}

fn covariance(shape: &Shape) -> Matrix {
    let [xx, xy, yy] = shape.covariance;
    [[xx, xy], [xy, yy]]
}

/// The symmetric matrix that takes a Gaussian of covariance `from` to one of covariance `to`.
fn transport(from: Matrix, to: Matrix) -> Matrix {
    let half = root(from);
    let back = inverse(half);
    times(back, times(root(times(half, times(to, half))), back))
}

/// Log of the ratio of the larger to the smaller stretch.
fn strain(s: Matrix) -> f64 {
    let mean = (s[0][0] + s[1][1]) / 2.0;
    let spread = ((s[0][0] - s[1][1]) / 2.0).hypot(s[0][1]);
    ((mean + spread) / (mean - spread).max(1e-9)).ln()
}

/// Takes positions in the target to positions in the donor.
pub(crate) struct Warp {
    from: Point,
    to: Point,
    matrix: Matrix,
    /// Radius of the target's outline and of the donor's (in the target's frame), by direction.
    radii: Vec<(f64, f64)>,
}

impl Warp {
    /// Fits `donor` under `target`; without `turns` the donor is neither turned nor mirrored.
    pub(crate) fn fit(
        (target, in_target): (&Shape, &dyn Fn(Point) -> bool),
        (donor, in_donor): (&Shape, &dyn Fn(Point) -> bool),
        turns: bool,
        rng: &mut Rng,
    ) -> Self {
        let matrix = if turns {
            turned(target, donor, rng)
        } else {
            transport(covariance(target), covariance(donor))
        };
        let (from, to) = (target.centroid, donor.centroid);
        let back = inverse(matrix);
        let offsets = |shape: &Shape, centre: Point| -> Vec<Point> {
            let offset = |&(x, y): &(usize, usize)| [x as f64 - centre[0], y as f64 - centre[1]];
            shape.pixels.iter().map(offset).collect()
        };
        let reach = |points: &[Point]| points.iter().map(|p| p[0].hypot(p[1])).fold(0.5, f64::max);
        let far = reach(&offsets(target, from));
        let donor_offsets: Vec<Point> = offsets(donor, to)
            .into_iter()
            .map(|p| transform(back, p))
            .collect();
        let donor_far = reach(&donor_offsets);
        let outer = outline(far, |p| in_target([from[0] + p[0], from[1] + p[1]]));
        let inner = outline(donor_far, |p| {
            let [x, y] = transform(matrix, p);
            in_donor([to[0] + x, to[1] + y])
        });
        Warp {
            from,
            to,
            matrix,
            radii: outer.into_iter().zip(inner).collect(),
        }
    }

    /// Where in the donor the colour at a position of the target comes from.
    pub(crate) fn map(&self, [x, y]: Point) -> Point {
        let (dx, dy) = (x - self.from[0], y - self.from[1]);
        let rho = dx.hypot(dy);
        if rho < 1e-9 {
            return self.to;
        }
        let scale = self.radius(rho, dy.atan2(dx)) / rho;
        let [x, y] = transform(self.matrix, [dx * scale, dy * scale]);
        [self.to[0] + x, self.to[1] + y]
    }

    /// The corrected distance from the centre. Outline goes to outline; the correction fades
    /// towards the centre (quadratically, or not at all where that would fold the plane); beyond
    /// the outline distances are kept.
    fn radius(&self, rho: f64, angle: f64) -> f64 {
        let position = angle.rem_euclid(TAU) / TAU * BINS as f64;
        let (i, part) = (position as usize % BINS, position.fract());
        let (a, b) = (self.radii[i], self.radii[(i + 1) % BINS]);
        let outer = a.0 + (b.0 - a.0) * part;
        let inner = a.1 + (b.1 - a.1) * part;
        if rho > outer {
            return inner + rho - outer;
        }
        let (t, q) = (rho / outer, inner / outer);
        let fading = ((q - 0.5) * 4.0).clamp(0.0, 1.0);
        outer * (fading * (t + (q - 1.0) * t * t) + (1.0 - fading) * q * t)
    }
}

/// Turn, mirror and stretch, drawn among those with about the least strain.
fn turned(target: &Shape, donor: &Shape, rng: &mut Rng) -> Matrix {
    let candidate = |i: usize| {
        let (sin, cos) = ((i / 2) as f64 * TAU / TURNS as f64).sin_cos();
        let mirror = if i.is_multiple_of(2) { 1.0 } else { -1.0 };
        let turn = [[cos * mirror, -sin], [sin * mirror, cos]];
        let upright = times(transposed(turn), times(covariance(donor), turn));
        let stretch = transport(covariance(target), upright);
        (strain(stretch), times(turn, stretch))
    };
    let all: Vec<(f64, Matrix)> = (0..2 * TURNS).map(candidate).collect();
    let least = all
        .iter()
        .map(|(strain, _)| *strain)
        .fold(f64::INFINITY, f64::min);
    let mild: Vec<Matrix> = all
        .into_iter()
        .filter(|(strain, _)| *strain <= least + EQUAL_STRAIN)
        .map(|(_, matrix)| matrix)
        .collect();
    mild[rng.random_range(0..mild.len())]
}

/// For each direction the distance from the origin to the outermost point of a set that reaches
/// `far`. A direction that misses the set takes over from its nearest neighbour that does not.
fn outline(far: f64, inside: impl Fn(Point) -> bool) -> Vec<f64> {
    let hit = |bin: usize| -> Option<f64> {
        let (sin, cos) = (bin as f64 / BINS as f64 * TAU).sin_cos();
        let steps = (far / RAY_STEP).ceil() as usize + 1;
        (0..=steps)
            .rev()
            .map(|step| step as f64 * RAY_STEP)
            .find(|rho| inside([rho * cos, rho * sin]))
    };
    let hits: Vec<Option<f64>> = (0..BINS).map(hit).collect();
    let filled: Vec<f64> = (0..BINS)
        .map(|bin| {
            let nearest = (0..=BINS / 2)
                .find_map(|d| hits[(bin + d) % BINS].or(hits[(bin + BINS - d) % BINS]));
            nearest.unwrap_or(far).max(RAY_STEP)
        })
        .collect();
    // Steps of pixels would show as spokes.
    let smooth = |radii: Vec<f64>| -> Vec<f64> {
        let mean = |i: usize| {
            let (before, after) = (radii[(i + BINS - 1) % BINS], radii[(i + 1) % BINS]);
            (before + 2.0 * radii[i] + after) / 4.0
        };
        (0..BINS).map(mean).collect()
    };
    smooth(smooth(smooth(filled)))
}

/// Moves positions that fell beside the lesion onto its nearest pixel, so that nothing but lesion
/// comes to lie under the wanted mask.
pub(crate) fn onto(lesion: &Nearest, size: (usize, usize), [x, y]: Point) -> Point {
    let cell = |v: f64, n: usize| v.round().clamp(0.0, n as f64 - 1.0) as usize;
    let (cx, cy) = (cell(x, size.0), cell(y, size.1));
    match lesion.cell(cx, cy) {
        Some((nx, ny)) if (nx, ny) != (cx, cy) => [nx as f64, ny as f64],
        _ => [x, y],
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::shape::patches;
    use diffaug::{Mask, rng};

    const SIDE: usize = 120;

    fn mask(inside: impl Fn(f64, f64) -> bool) -> Mask {
        let labels = (0..SIDE * SIDE)
            .map(|i| u8::from(inside((i % SIDE) as f64, (i / SIDE) as f64)))
            .collect();
        Mask::new(SIDE as u32, SIDE as u32, labels).unwrap()
    }

    fn ellipse(cx: f64, cy: f64, a: f64, b: f64, turn: f64) -> Mask {
        mask(move |x, y| {
            let (dx, dy) = (x - cx, y - cy);
            let u = (dx * turn.cos() + dy * turn.sin()) / a;
            let v = (dy * turn.cos() - dx * turn.sin()) / b;
            u * u + v * v <= 1.0
        })
    }

    fn star(points: f64, depth: f64) -> Mask {
        mask(move |x, y| {
            let (dx, dy) = (x - 60.0, y - 58.0);
            dx.hypot(dy) <= 35.0 * (1.0 + depth * (points * dy.atan2(dx)).cos())
        })
    }

    fn crescent() -> Mask {
        mask(|x, y| (x - 60.0).hypot(y - 60.0) <= 45.0 && (x - 75.0).hypot(y - 60.0) > 40.0)
    }

    fn contains(mask: &Mask, [x, y]: Point) -> bool {
        let (x, y) = (x.round(), y.round());
        let inside = |v: f64| (0.0..SIDE as f64).contains(&v);
        inside(x) && inside(y) && mask.labels()[y as usize * SIDE + x as usize] != 0
    }

    fn fit(target: &Mask, donor: &Mask, turns: bool) -> (Shape, Warp) {
        let shape = |mask: &Mask| patches(mask.view(), |label| label != 0).remove(0);
        let (t, d) = (shape(target), shape(donor));
        let warp = Warp::fit(
            (&t, &|p| contains(target, p)),
            (&d, &|p| contains(donor, p)),
            turns,
            &mut rng::stream(1, "test", 0),
        );
        (t, warp)
    }

    #[test]
    fn a_shape_maps_onto_itself_unchanged() {
        let blob = star(3.0, 0.2);
        let (shape, warp) = fit(&blob, &blob, false);
        for &(x, y) in &shape.pixels {
            let [mx, my] = warp.map([x as f64, y as f64]);
            assert!((mx - x as f64).hypot(my - y as f64) < 0.5);
        }
    }

    #[test]
    fn ellipses_align_their_axes() {
        let target = ellipse(60.0, 60.0, 40.0, 15.0, 0.3);
        let donor = ellipse(50.0, 62.0, 20.0, 7.5, 1.8);
        let (shape, warp) = fit(&target, &donor, true);
        // Half the size everywhere: turned, but hardly stretched.
        assert!((determinant(warp.matrix).abs().sqrt() - 0.5).abs() < 0.02);
        let inside = shape
            .pixels
            .iter()
            .filter(|&&(x, y)| contains(&donor, warp.map([x as f64, y as f64])))
            .count();
        assert!(
            inside as f64 > 0.97 * shape.area() as f64,
            "{inside} of {}",
            shape.area()
        );
        let end = warp.map([60.0 + 40.0 * 0.3f64.cos(), 60.0 + 40.0 * 0.3f64.sin()]);
        assert!(
            ((end[0] - 50.0).hypot(end[1] - 62.0) - 20.0).abs() < 2.0,
            "{end:?}"
        );
    }

    #[test]
    fn whatever_the_outlines_lesion_comes_under_the_mask() {
        let masks = [
            ellipse(60.0, 60.0, 40.0, 15.0, 0.3),
            star(5.0, 0.3),
            star(2.0, 0.4),
            crescent(),
            mask(|x, y| x == 50.0 && y == 50.0),
            mask(|x, y| (20.0..90.0).contains(&x) && y == 50.0),
        ];
        for target in &masks {
            for donor in &masks {
                let (shape, warp) = fit(target, donor, true);
                let nearest = Nearest::new(SIDE, SIDE, |x, y| donor.labels()[y * SIDE + x] != 0);
                for &(x, y) in &shape.pixels {
                    let at = onto(&nearest, (SIDE, SIDE), warp.map([x as f64, y as f64]));
                    assert!(contains(donor, at), "{at:?}");
                }
            }
        }
    }

    #[test]
    fn outlines_meet_for_star_shapes() {
        let (target, donor) = (star(5.0, 0.2), ellipse(60.0, 60.0, 30.0, 22.0, 0.5));
        let (_, warp) = fit(&target, &donor, false);
        let nearest = Nearest::new(SIDE, SIDE, |x, y| donor.labels()[y * SIDE + x] == 0);
        for bin in 0..90 {
            let angle = bin as f64 / 90.0 * TAU;
            let (sin, cos) = angle.sin_cos();
            let radius = 35.0 * (1.0 + 0.2 * (5.0 * angle).cos()) - 1.0;
            let [x, y] = warp.map([60.0 + radius * cos, 58.0 + radius * sin]);
            let depth = nearest.distance(x.round() as usize, y.round() as usize);
            assert!(depth < 4.0, "{angle}: {depth}");
        }
    }
}
