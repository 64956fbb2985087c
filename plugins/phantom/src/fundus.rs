//! Fundus photographs about the optic disc, with a known ratio of cup to disc.
//!
//! The field is narrower than a screening camera's, so that the disc spans some 80 of 256 pixels
//! and the ratio can be measured from the mask.

use crate::{
    draw::*,
    film::{Camera, Film, Point},
    noise::{Field, Noise},
    shade::*,
    vessels::{Growth, Tip, Veins, grow},
};
use diffaug::{prelude::*, rng::Rng};

/// The label of the optic disc's rim.
pub const DISC: u8 = 1;
/// The label of the optic cup.
pub const CUP: u8 = 2;

/// Vertical ratios of cup to disc that are drawn, each as likely.
pub const RATIOS: (f32, f32) = (0.25, 0.85);

/// A finished photograph.
pub struct Scene {
    /// The photograph.
    pub image: Image,
    /// Labels [`DISC`] and [`CUP`].
    pub mask: Mask,
    /// `cdr`, `glaucoma` and `early_glaucoma`.
    pub attributes: Attributes,
}

/// A closed outline whose highest and lowest points are exactly one vertical radius away.
struct Oval {
    centre: [f32; 2],
    radii: [f32; 2],
    /// Cosine and sine amplitudes of the border's first three harmonics.
    waves: [[f32; 2]; 3],
}

impl Oval {
    fn draw(centre: [f32; 2], radii: [f32; 2], rough: f32, rng: &mut Rng) -> Self {
        Oval {
            centre,
            radii,
            waves: [1.0, 2.0, 3.0]
                .map(|order| [0, 1].map(|_| rough * between(rng, -1.0, 1.0) / order)),
        }
    }

    /// Distance from the centre on a scale where the border is 1.
    fn level(&self, x: f32, y: f32) -> f32 {
        let along = (x - self.centre[0]) / self.radii[0];
        let down = (y - self.centre[1]) / self.radii[1];
        let far = length([along, down]);
        let (cos, sin) = (along / far.max(1e-6), down / far.max(1e-6));
        // Harmonics by the addition theorems.
        let (cos2, sin2) = (cos * cos - sin * sin, 2.0 * cos * sin);
        let (cos3, sin3) = (cos2 * cos - sin2 * sin, sin2 * cos + cos2 * sin);
        let [one, two, three] = &self.waves;
        let wave = one[0] * cos
            + one[1] * sin
            + two[0] * cos2
            + two[1] * sin2
            + three[0] * cos3
            + three[1] * sin3;
        // Vanishes with its slope at the top and bottom, which the ratio is measured between.
        far / (1.0 + wave * cos * cos)
    }
}

/// An eye: where its parts lie and what colours they have.
struct Eye {
    disc: Oval,
    cup: Oval,
    ratio: f32,
    /// 1 if the macula lies to the right of the disc, -1 if to the left.
    temporal: f32,
    macula: [f32; 2],
    retina: Vec3,
    rim: Vec3,
    pit: Vec3,
    /// How visible the cup's border is.
    clarity: f32,
    atrophy: f32,
    choroid: Field,
    texture: Noise,
    /// Slope of the illumination across the picture.
    tilt: [f32; 2],
    field: f32,
}

impl Eye {
    fn draw(rng: &mut Rng) -> Self {
        let ratio = between(rng, RATIOS.0, RATIOS.1);
        let temporal = one_of(rng, [-1.0, 1.0]);
        let centre = [
            -temporal * between(rng, 0.05, 0.35),
            between(rng, -0.12, 0.12),
        ];
        let tall = between(rng, 0.28, 0.36);
        let wide = tall * between(rng, 0.88, 0.97);
        let texture = Noise::new(seed(rng));
        let slack = (1.0 - ratio) * 0.3;
        let pit = [
            centre[0] + temporal * slack * wide * between(rng, 0.0, 0.8),
            centre[1] + slack * tall * between(rng, -0.6, 0.6),
        ];
        let pit_radii = [wide * ratio * between(rng, 0.92, 1.04), tall * ratio];
        Eye {
            disc: Oval::draw(centre, [wide, tall], 0.04, rng),
            cup: Oval::draw(pit, pit_radii, 0.05, rng),
            ratio,
            temporal,
            macula: [
                centre[0] + temporal * tall * between(rng, 3.2, 3.8),
                centre[1] + tall * between(rng, 0.1, 0.5),
            ],
            retina: mix(
                [0.80, 0.36, 0.17],
                [0.66, 0.33, 0.20],
                between(rng, 0.0, 1.0),
            ),
            rim: mix(
                [1.02, 0.60, 0.30],
                [0.98, 0.66, 0.42],
                between(rng, 0.0, 1.0),
            ),
            pit: mix(
                [1.16, 0.98, 0.66],
                [1.14, 0.96, 0.80],
                between(rng, 0.0, 1.0),
            ),
            clarity: between(rng, 0.55, 1.0),
            atrophy: between(rng, -0.6, 0.7).max(0.0),
            choroid: Field::new(64, |x, y| texture.fractal(x * 2.2, y * 2.2, 3)),
            texture,
            tilt: [between(rng, -0.22, 0.22), between(rng, -0.15, 0.15)],
            field: between(rng, 0.98, 1.16),
        }
    }

    /// How much of a place the round field shows.
    fn open(&self, x: f32, y: f32) -> f32 {
        let far = length([x, y]);
        step(self.field + 0.006, self.field - 0.014, far) * (1.0 - 0.3 * step(0.5, 1.2, far))
    }

    /// Paints a pixel and returns its label.
    fn paint(&self, x: f32, y: f32, ink: f32, point: &mut Point) -> u8 {
        let disc = self.disc.level(x, y);
        let cup = self.cup.level(x, y);
        let border = step(1.05, 0.95, disc);
        let mut colour = match border {
            1.0 => self.rim(x, y),
            0.0 => self.ground(x, y, disc),
            part => mix(self.ground(x, y, disc), self.rim(x, y), part),
        };
        // The wall of the cup slopes, so its border is softer than the disc's.
        let pit = step(1.13, 0.8, cup) * self.clarity;
        colour = mix(colour, self.pit, pit);
        let ink = ink * (1.0 - 0.3 * pit);
        point.albedo = tint(
            colour,
            [1.0 - 0.34 * ink, 1.0 - 0.66 * ink, 1.0 - 0.6 * ink],
        );
        point.light = 1.0 + self.tilt[0] * x + self.tilt[1] * y;
        match (cup < 1.0, disc < 1.0) {
            (true, _) => CUP,
            (false, true) => DISC,
            (false, false) => 0,
        }
    }

    /// The retina outside the disc: choroid showing through, macula, nerve fibres, atrophy.
    fn ground(&self, x: f32, y: f32, disc: f32) -> Vec3 {
        let broad = self.choroid.at(x, y);
        let fine = self.texture.fractal(x * 14.0 + 50.0, y * 14.0, 2);
        let mut colour = scale(self.retina, 1.0 + 0.14 * broad + 0.06 * fine);

        let (dx, dy) = (x - self.macula[0], y - self.macula[1]);
        let dark = step(0.55, 0.0, length([dx, dy]));
        colour = tint(colour, mix([1.0; 3], [0.66, 0.52, 0.5], dark));

        let (dx, dy) = (x - self.disc.centre[0], y - self.disc.centre[1]);
        let (near, far) = (step(2.3, 1.0, disc), length([dx, dy]).max(0.05));
        if near > 0.0 {
            let fibre = self.texture.value(angle(dx, dy) * 22.0 + 7.0, disc * 0.8);
            let sheen = near * (0.07 + 0.05 * fibre) * (dy / far).abs();
            colour = add(colour, scale([0.9, 0.8, 0.5], sheen));
        }

        let crescent = self.temporal * dx / far;
        let pale = self.atrophy * step(1.4, 1.12, disc) * step(0.0, 0.8, crescent);
        mix(colour, [0.93, 0.66, 0.42], pale * (0.8 + 0.3 * fine))
    }

    fn rim(&self, x: f32, y: f32) -> Vec3 {
        let blotch = self.texture.fractal(x * 7.0 - 20.0, y * 7.0, 2);
        scale(self.rim, 1.0 + 0.07 * blotch)
    }

    fn veins(&self, size: u32, rng: &mut Rng) -> Veins {
        let mut veins = Veins::new(size);
        let root = [
            self.disc.centre[0] - self.temporal * 0.12 * self.disc.radii[0],
            self.disc.centre[1],
        ];
        let growth = Growth {
            stride: 0.03,
            wander: 0.09,
            memory: 0.75,
            branching: 0.05,
            taper: 0.983,
            thinnest: 0.005,
            limit: 3000,
        };
        // Veins are wider and darker than the arteries that run beside them.
        for (width, strength) in [(0.030, 0.8), (0.021, 0.55)] {
            let tips = self.trunks(root, width, rng);
            grow(tips, &growth, rng, |from, to, width| {
                veins.stroke(from, to, width, strength);
            });
        }
        veins
    }

    /// Arcades above and below that bend round the macula, and thinner trunks on the nasal side.
    fn trunks(&self, root: [f32; 2], width: f32, rng: &mut Rng) -> Vec<Tip> {
        use std::f32::consts::{FRAC_PI_2, PI};
        let mut tips = Vec::new();
        for vertical in [-1.0, 1.0] {
            for (lean, share, bend) in [(0.25, 1.0, 0.02), (-0.7, 0.75, -0.01), (1.15, 0.4, 0.0)] {
                // `lean` turns from straight up (or down) towards the macula.
                let lean = lean + between(rng, -0.3, 0.3);
                let upright = vertical * (FRAC_PI_2 - lean);
                let (heading, bend) = if self.temporal > 0.0 {
                    (upright, -vertical * bend)
                } else {
                    (PI - upright, vertical * bend)
                };
                tips.push(Tip {
                    place: root.map(|v| v + between(rng, -0.03, 0.03)),
                    heading,
                    curl: bend * between(rng, 0.7, 1.6),
                    width: width * share * between(rng, 0.8, 1.2),
                });
            }
        }
        tips
    }
}

/// Paints one photograph from its own stream of draws.
///
/// # Errors
/// Never for a `size` above 0.
pub fn render(size: u32, rng: &mut Rng) -> Result<Scene> {
    let eye = Eye::draw(rng);
    let veins = eye.veins(size, rng);
    let mut film = Film::new(size);
    let mut labels = vec![0; (size * size) as usize];
    film.each(|x, y, point, index| {
        labels[index] = eye.paint(x, y, veins.ink[index], point);
    });
    let camera = Camera {
        exposure: between(rng, 0.36, 0.46),
        lamp: [1.0, between(rng, 0.94, 1.05), between(rng, 0.85, 1.1)],
        warmth: 0.0,
        grain: between(rng, 1.0, 2.5),
        softness: if size >= 160 {
            count(rng, 1, 2) as u32
        } else {
            1
        },
        seed: seed(rng),
    };
    Ok(Scene {
        image: film.develop(&camera, |x, y| eye.open(x, y))?,
        mask: Mask::new(size, size, labels)?,
        attributes: describe(f64::from(eye.ratio)),
    })
}

fn describe(cdr: f64) -> Attributes {
    let mut out = Attributes::new();
    out.set_number("cdr", cdr);
    out.set_flag("glaucoma", cdr > 0.6);
    out.set_flag("early_glaucoma", (0.5..=0.6).contains(&cdr));
    out
}
