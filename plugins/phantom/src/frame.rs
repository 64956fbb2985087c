//! The part of the picture that the optics show: full, cut at the corners, or rounded.

use crate::{draw::*, shade::step};
use diffaug::rng::Rng;

/// What lies outside is black.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Half width and half height.
    half: [f32; 2],
    /// Largest sum of the offsets from the centre; 2 or more cuts nothing.
    corner: f32,
    /// Radius of the round picture; 1.5 or more cuts nothing.
    round: f32,
    /// How dark the corners of the visible part get.
    vignette: f32,
}

impl Frame {
    /// Draws one of the shapes that endoscopes show.
    pub fn draw(rng: &mut Rng) -> Self {
        let shape = count(rng, 0, 9);
        let inset = between(rng, 0.0, 0.06);
        Frame {
            half: if shape == 0 {
                [1.1, 1.1]
            } else {
                [1.0 - inset * 0.5, 1.0 - inset]
            },
            corner: if (1..=6).contains(&shape) {
                between(rng, 1.28, 1.62)
            } else {
                9.0
            },
            round: if shape >= 7 {
                between(rng, 1.02, 1.2)
            } else {
                9.0
            },
            vignette: between(rng, 0.0, 0.35),
        }
    }

    /// Distance to the nearest edge in image units; below 0 outside.
    pub fn margin(&self, x: f32, y: f32) -> f32 {
        let (x, y) = (x.abs(), y.abs());
        let sides = (self.half[0] - x).min(self.half[1] - y);
        let corner = (self.corner - x - y) * std::f32::consts::FRAC_1_SQRT_2;
        let round = self.round - (x * x + y * y).sqrt();
        sides.min(corner).min(round)
    }

    /// Whether a place is shown.
    pub fn shows(&self, x: f32, y: f32) -> bool {
        self.margin(x, y) > 0.0
    }

    /// How much light of a place arrives: 0 outside, less than 1 near the corners.
    pub fn open(&self, x: f32, y: f32) -> f32 {
        // About a pixel of 256: a harder edge would show stairs.
        let edge = (self.margin(x, y) * 125.0).clamp(0.0, 1.0);
        edge * (1.0 - self.vignette * step(0.5, 1.35, (x * x + y * y).sqrt()))
    }
}
