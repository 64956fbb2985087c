//! Blood vessels: branching strokes that taper, on the bowel's wall or in the retina.

use crate::{draw::*, shade::step};
use diffaug::rng::Rng;

/// Darkness (0 to 1) that vessels leave on each pixel of a square picture.
pub struct Veins {
    size: u32,
    /// One value a pixel, row by row.
    pub ink: Vec<f32>,
}

impl Veins {
    /// No vessels.
    pub fn new(size: u32) -> Self {
        Veins {
            size,
            ink: vec![0.0; (size * size) as usize],
        }
    }

    /// Draws a round-ended stroke; `width` is its half width in image units.
    pub fn stroke(&mut self, from: [f32; 2], to: [f32; 2], width: f32, strength: f32) {
        let side = self.size as f32;
        let pixel = |v: f32| (v + 1.0) * 0.5 * side - 0.5;
        let (a, b) = (from.map(pixel), to.map(pixel));
        // Thinner than a pixel, a vessel gets fainter rather than thinner.
        let half = (width * 0.5 * side).max(0.5);
        let strength = strength * (width * side).clamp(0.25, 1.0);
        let margin = half + 1.0;
        let range = |k: usize| {
            let low = (a[k].min(b[k]) - margin).ceil().clamp(0.0, side) as u32;
            let high = (a[k].max(b[k]) + margin + 1.0).floor().clamp(0.0, side) as u32;
            low..high
        };
        let along = [b[0] - a[0], b[1] - a[1]];
        let square = (along[0] * along[0] + along[1] * along[1]).max(1e-6);
        for y in range(1) {
            for x in range(0) {
                let (px, py) = (x as f32 - a[0], y as f32 - a[1]);
                let t = ((px * along[0] + py * along[1]) / square).clamp(0.0, 1.0);
                let (dx, dy) = (px - t * along[0], py - t * along[1]);
                let distance = (dx * dx + dy * dy).sqrt();
                let ink = strength * step(half + 0.9, half - 0.7, distance);
                let old = &mut self.ink[(y * self.size + x) as usize];
                *old = old.max(ink);
            }
        }
    }
}

/// A growing end of a vessel. Angle and log depth on a wall, or plain image coordinates.
#[derive(Clone, Copy, Debug)]
pub struct Tip {
    /// Where it is.
    pub place: [f32; 2],
    /// Where it grows, as an angle.
    pub heading: f32,
    /// How strongly the heading keeps turning.
    pub curl: f32,
    /// Half width.
    pub width: f32,
}

/// How vessels grow.
#[derive(Clone, Copy, Debug)]
pub struct Growth {
    /// Length of one step.
    pub stride: f32,
    /// Random change of the heading at each step, in radians.
    pub wander: f32,
    /// Share of the curl that lasts from step to step.
    pub memory: f32,
    /// Probability of a branch at each step.
    pub branching: f64,
    /// Factor on the width at each step.
    pub taper: f32,
    /// A vessel ends below this half width.
    pub thinnest: f32,
    /// No more steps than these in all.
    pub limit: usize,
}

/// Grows `tips` to their ends and hands each step to `draw(from, to, half width)`.
pub fn grow(
    mut tips: Vec<Tip>,
    growth: &Growth,
    rng: &mut Rng,
    mut draw: impl FnMut([f32; 2], [f32; 2], f32),
) {
    let mut steps = 0;
    while let Some(mut tip) = tips.pop() {
        while tip.width > growth.thinnest && steps < growth.limit {
            steps += 1;
            tip.curl = tip.curl * growth.memory + between(rng, -1.0, 1.0) * growth.wander * 0.5;
            tip.heading += tip.curl + between(rng, -1.0, 1.0) * growth.wander * 0.5;
            let (sin, cos) = tip.heading.sin_cos();
            let next = [
                tip.place[0] + growth.stride * cos,
                tip.place[1] + growth.stride * sin,
            ];
            draw(tip.place, next, tip.width);
            tip.place = next;
            tip.width *= growth.taper;
            if chance(rng, growth.branching) {
                tips.push(tip.branch(rng));
            }
        }
    }
}

impl Tip {
    /// Splits a thinner branch off; the stem swerves the other way and thins a little.
    fn branch(&mut self, rng: &mut Rng) -> Tip {
        let side = one_of(rng, [-1.0, 1.0]);
        let lean = between(rng, 0.4, 0.95) * side;
        let child = Tip {
            heading: self.heading + lean,
            curl: 0.0,
            width: self.width * between(rng, 0.55, 0.8),
            ..*self
        };
        self.heading -= lean * 0.3;
        self.width *= 0.93;
        child
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use diffaug::rng;

    #[test]
    fn a_stroke_is_dark_on_its_line_and_nowhere_else() {
        let mut veins = Veins::new(64);
        veins.stroke([-0.5, 0.0], [0.5, 0.0], 0.05, 0.8);
        let at = |x: usize, y: usize| veins.ink[y * 64 + x];
        assert!((at(32, 32) - 0.8).abs() < 1e-3);
        assert_eq!(at(32, 40), 0.0);
        assert_eq!(at(5, 32), 0.0);
        veins.stroke([9.0, 9.0], [12.0, 9.0], 0.1, 1.0);
    }

    #[test]
    fn growth_ends_at_the_limit_and_tapers() {
        let growth = Growth {
            stride: 0.1,
            wander: 0.2,
            memory: 0.9,
            branching: 0.5,
            taper: 1.0,
            thinnest: 0.0,
            limit: 40,
        };
        let tip = Tip {
            place: [0.0; 2],
            heading: 0.0,
            curl: 0.0,
            width: 1.0,
        };
        let mut steps = 0;
        grow(
            vec![tip],
            &growth,
            &mut rng::stream(0, "grow", 0),
            |from, to, width| {
                steps += 1;
                let length = (to[0] - from[0]).hypot(to[1] - from[1]);
                assert!((length - 0.1).abs() < 1e-4 && width <= 1.0);
            },
        );
        assert_eq!(steps, 40);
    }
}
