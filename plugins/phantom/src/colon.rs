//! Colonoscopy frames: a bowel, perhaps polyps, clutter, and an endoscope's camera.

use crate::Part;
use crate::{
    clutter,
    draw::*,
    film::{Camera, Film},
    frame::Frame,
    lesion::{Colour, Lesion, Morphology, Site, Surface, Traits},
    noise::{Field, Noise},
    shade::*,
    tube::{Hit, Tube, View},
    vessels::{Growth, Tip, Veins, grow},
};
use diffaug::{prelude::*, rng::Rng};
use std::f32::consts::TAU;

/// The label of a polyp.
pub const POLYP: u8 = 1;

/// Areas (fraction of the image) of small lesions and of the others; between the two lies the
/// border of [`diffaug::lesion::SMALL_AREA`].
const SMALL: (f32, f32) = (0.0055, 0.0165);
const LARGE: (f32, f32) = (0.028, 0.18);

/// What a frame shows, decided before a pixel is painted.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// The first polyp; `None` in a normal frame.
    lesion: Option<Traits>,
    /// Whether a second one stands beside it.
    second: bool,
}

impl Plan {
    /// Training and validation see few flat and few small polyps; the test part is balanced.
    fn draw(part: Part, index: u64, normal: f64, rng: &mut Rng) -> Self {
        let healthy = chance(rng, normal);
        let (flat, small, bare) = (chance(rng, 0.08), chance(rng, 0.1), chance(rng, 0.6));
        let (morphology, small) = if part == Part::Test {
            let kinds = [
                Morphology::Sessile,
                Morphology::Pedunculated,
                Morphology::Flat,
            ];
            (kinds[(index % 3) as usize], (index / 3).is_multiple_of(3))
        } else if flat {
            (Morphology::Flat, small)
        } else if bare {
            (Morphology::Sessile, small)
        } else {
            (Morphology::Pedunculated, small)
        };
        let traits = Traits {
            morphology,
            surface: surface(morphology, rng),
            colour: one_of(
                rng,
                [Colour::Red, Colour::Red, Colour::Pale, Colour::Similar],
            ),
            area: area(morphology, small, rng),
        };
        Plan {
            lesion: (!healthy).then_some(traits),
            second: chance(rng, 0.1) && !small,
        }
    }
}

fn surface(morphology: Morphology, rng: &mut Rng) -> Surface {
    use Surface::*;
    match morphology {
        Morphology::Sessile => one_of(rng, [Smooth, Smooth, Granular, Lobulated]),
        Morphology::Pedunculated => one_of(rng, [Smooth, Granular, Lobulated]),
        Morphology::Flat => one_of(rng, [Smooth, Granular, Granular]),
    }
}

fn area(morphology: Morphology, small: bool, rng: &mut Rng) -> f32 {
    let (low, high) = if small { SMALL } else { LARGE };
    let high = match morphology {
        Morphology::Flat => high.min(0.12),
        _ => high,
    };
    // Drawing the bounds as well pulls the result to the small end, where most polyps are.
    let t = between(rng, 0.0, 1.0);
    spread(rng, lerp(low, high, 0.25 * t), lerp(low * 1.2, high, t))
}

/// Colours of one patient's bowel and the light on it.
struct Look {
    mucosa: Vec3,
    /// Broad variation of brightness and of redness, finer variation of both.
    tint: [Field; 3],
    texture: Noise,
    moisture: Noise,
    /// Strength of the fine texture.
    grain: f32,
    /// Share of the wall that mirrors the lamp.
    wetness: f32,
    /// Distance at which the light has fallen to half.
    carry: f32,
    /// Place of the lamp in the image plane.
    lamp: [f32; 2],
}

impl Look {
    fn draw(rng: &mut Rng) -> Self {
        const MUCOSAE: [Vec3; 6] = [
            [0.86, 0.52, 0.46],
            [0.88, 0.48, 0.37],
            [0.90, 0.60, 0.36],
            [0.82, 0.60, 0.40],
            [0.84, 0.41, 0.33],
            [0.87, 0.55, 0.39],
        ];
        let (one, other) = (one_of(rng, MUCOSAE), one_of(rng, MUCOSAE));
        let share = between(rng, 0.0, 1.0);
        let noise = Noise::new(seed(rng));
        Look {
            mucosa: mix(one, other, share),
            tint: [
                Field::new(32, |x, y| noise.fractal(x * 1.7 + 9.0, y * 1.7, 3)),
                Field::new(40, |x, y| noise.fractal(x * 2.3, y * 2.3 + 31.0, 3)),
                Field::new(72, |x, y| noise.fractal(x * 8.0 - 77.0, y * 8.0, 2)),
            ],
            texture: Noise::periodic(seed(rng), 48),
            moisture: Noise::new(seed(rng)),
            grain: between(rng, 0.03, 0.09),
            wetness: between(rng, 0.0, 1.0),
            carry: between(rng, 1.35, 2.5),
            lamp: [between(rng, -0.25, 0.25), between(rng, -0.3, 0.1)],
        }
    }

    /// Light on a wall at that distance which faces the camera by `facing`.
    fn light(&self, facing: f32, distance: f32) -> f32 {
        let far = distance / self.carry;
        (0.38 + 0.62 * facing) / (0.35 + far * far)
    }

    /// Colour of the wall without vessels.
    fn wall(&self, x: f32, y: f32) -> Vec3 {
        let [broad, red, fine] = [0, 1, 2].map(|k| self.tint[k].at(x, y));
        let shade = 1.0 + 0.13 * broad + 0.04 * fine;
        let red = red + 0.4 * fine;
        tint(
            self.mucosa,
            [
                shade,
                shade * (1.0 - 0.18 * red),
                shade * (1.0 - 0.22 * red),
            ],
        )
    }

    /// Mirrored light of a wet wall.
    fn gloss(&self, hit: &Hit, x: f32, y: f32) -> f32 {
        let view = normal([self.lamp[0] - x, self.lamp[1] - y, 1.0]);
        let mirror = dot(hit.normal, view);
        if mirror < 0.75 {
            return 0.0;
        }
        // Ripples scatter the reflection into dots; two turned lattices hide their grids.
        let (u, v) = (0.8 * x + 0.6 * y, 0.8 * y - 0.6 * x);
        let [_, ax, ay] = self.moisture.gradient(u * 11.0, v * 11.0);
        let [_, bx, by] = self.moisture.gradient(x * 19.0 + 70.0, y * 19.0);
        let patch = self.moisture.value(x * 3.5 - 40.0, y * 3.5);
        let ripple = 0.1 + 0.12 * self.wetness * step(-0.2, 0.6, patch);
        let wet = normal([
            hit.normal[0] + ripple * (ax + 0.7 * bx),
            hit.normal[1] + ripple * (ay + 0.7 * by),
            hit.normal[2],
        ]);
        let near = 1.0 / (1.0 + hit.distance * hit.distance * 0.12);
        let dry = step(0.55, -0.15, patch);
        1.2 * near * step(0.99 + 0.0085 * dry, 0.997 + 0.0025 * dry, dot(wet, view))
    }
}

/// A finished frame.
pub struct Scene {
    /// The frame.
    pub image: Image,
    /// Label [`POLYP`] where a polyp is.
    pub mask: Mask,
    /// Kind of the polyp; empty in a normal frame.
    pub attributes: Attributes,
}

/// Paints the frame that belongs to `part` and `index`; `rng` is that frame's own stream.
///
/// # Errors
/// Never for a `size` above 0.
pub fn render(size: u32, part: Part, index: u64, normal: f64, rng: &mut Rng) -> Result<Scene> {
    let plan = Plan::draw(part, index, normal, rng);
    let frame = Frame::draw(rng);
    let look = Look::draw(rng);
    let tube = Tube::draw(size, &view(&plan, rng), rng);
    let mut film = Film::new(size);
    wall(&mut film, &tube, &look, &frame, rng);

    let lesions = lesions(&plan, size, &tube, &look, &frame, rng);
    let mut labels = vec![0; (size * size) as usize];
    for lesion in &lesions {
        lesion.paint(&mut film, |pixel, x, y| {
            if frame.shows(x, y) {
                labels[pixel] = POLYP;
            }
        });
    }
    let covered = |x, y| lesions.iter().any(|lesion| lesion.covers(x, y));
    clutter::strew(&mut film, covered, rng);

    let image = film.develop(&camera(size, rng), |x, y| frame.open(x, y))?;
    let attributes = (plan.lesion).map_or_else(Attributes::new, |traits| describe(&traits));
    Ok(Scene {
        image,
        mask: Mask::new(size, size, labels)?,
        attributes,
    })
}

fn view(plan: &Plan, rng: &mut Rng) -> View {
    // A flat lesion needs a stretch of wall that no fold interrupts.
    let flat = (plan.lesion).is_some_and(|traits| traits.morphology == Morphology::Flat);
    // Down the lumen, or along the wall with the lumen at the edge or out of sight.
    let away = if chance(rng, 0.45) && !flat {
        between(rng, 0.05, 0.65)
    } else {
        between(rng, 0.8, 1.5)
    };
    let (sin, cos) = turn(rng).sin_cos();
    View {
        centre: [away * cos, away * sin],
        zoom: between(rng, 0.8, 1.35),
        folds: between(rng, 0.06, 0.3),
        spacing: between(rng, 0.5, 1.15) * if flat { 1.4 } else { 1.0 },
    }
}

fn camera(size: u32, rng: &mut Rng) -> Camera {
    Camera {
        exposure: between(rng, 0.40, 0.52),
        lamp: [1.0, between(rng, 0.96, 1.03), between(rng, 0.92, 1.04)],
        warmth: between(rng, 0.3, 0.8),
        grain: between(rng, 1.0, 3.0),
        softness: if size >= 160 {
            count(rng, 1, 2) as u32
        } else {
            1
        },
        seed: seed(rng),
    }
}

fn wall(film: &mut Film, tube: &Tube, look: &Look, frame: &Frame, rng: &mut Rng) {
    let veins = veins(film.size(), tube, rng);
    film.each(|x, y, point, index| {
        if frame.margin(x, y) < -0.05 {
            return;
        }
        let hit = tube.hit(x, y);
        let (u, v) = (hit.angle / TAU * 48.0, hit.log_depth * 48.0 / TAU);
        let fine = look.texture.fractal(u, v, 2);
        let ink = veins.ink[index];
        let wall = scale(look.wall(x, y), 1.0 + look.grain * fine);
        point.albedo = tint(wall, [1.0 - 0.3 * ink, 1.0 - 0.58 * ink, 1.0 - 0.48 * ink]);
        let crease = 1.0 - (2.0 * hit.recess).clamp(-0.1, 0.38);
        point.light = look.light(hit.facing, hit.distance) * crease;
        point.gloss = look.gloss(&hit, x, y);
    });
}

/// Vessels that shine through the wall, in many frames none.
fn veins(size: u32, tube: &Tube, rng: &mut Rng) -> Veins {
    let mut veins = Veins::new(size);
    if chance(rng, 0.3) {
        return veins;
    }
    let strength = between(rng, 0.15, 0.55);
    let tips = (0..count(rng, 8, 26))
        .map(|_| Tip {
            place: [turn(rng), between(rng, -1.4, 1.0)],
            heading: turn(rng),
            curl: 0.0,
            width: spread(rng, 0.005, 0.013),
        })
        .collect();
    let growth = Growth {
        stride: 0.035,
        wander: 0.2,
        memory: 0.5,
        branching: 0.085,
        taper: 0.984,
        thinnest: 0.002,
        limit: 2600,
    };
    let pixel = 2.0 / size as f32;
    grow(tips, &growth, rng, |from, to, width| {
        let ends = (tube.project(from[0], from[1]), tube.project(to[0], to[1]));
        let (Some((a, near)), Some((b, far))) = ends else {
            return;
        };
        // A step that crosses the edge of a fold would be drawn right across the picture.
        if length([a[0] - b[0], a[1] - b[1]]) < 0.09 * (near + far) + pixel {
            veins.stroke(a, b, width * 0.5 * (near + far), strength);
        }
    });
    veins
}

fn lesions(
    plan: &Plan,
    size: u32,
    tube: &Tube,
    look: &Look,
    frame: &Frame,
    rng: &mut Rng,
) -> Vec<Lesion> {
    let Some(traits) = plan.lesion else {
        return Vec::new();
    };
    let parts: &[f32] = if plan.second { &[0.65, 0.35] } else { &[1.0] };
    let mut out = Vec::new();
    let mut taken: Vec<([f32; 2], f32)> = Vec::new();
    for part in parts {
        let traits = Traits {
            area: traits.area * part,
            ..traits
        };
        let extent = Lesion::extent(&traits);
        let Some(centre) = place(&traits, tube, frame, &taken, rng) else {
            continue;
        };
        taken.push((centre, extent));
        let hit = tube.hit(centre[0], centre[1]);
        let site = Site {
            centre,
            inward: [-hit.angle.cos(), -hit.angle.sin()],
            light: look.light(between(rng, 0.6, 0.78), 0.85 * hit.distance),
            wall: look.wall(centre[0], centre[1]),
            lamp: look.lamp,
        };
        out.push(Lesion::draw(traits, site, size, rng));
    }
    out
}

/// A place where such a lesion can be: inside the frame, on near wall without a fold's edge, apart
/// from those already there. The first lesion always finds one.
fn place(
    traits: &Traits,
    tube: &Tube,
    frame: &Frame,
    taken: &[([f32; 2], f32)],
    rng: &mut Rng,
) -> Option<[f32; 2]> {
    let extent = Lesion::extent(traits);
    let mut best = None;
    let mut least = f32::MAX;
    for _ in 0..60 {
        let spot = [between(rng, -0.85, 0.85), between(rng, -0.85, 0.85)];
        let apart = |(centre, radius): &([f32; 2], f32)| {
            length([spot[0] - centre[0], spot[1] - centre[1]]) > radius + extent
        };
        if !taken.iter().all(apart) {
            continue;
        }
        let hidden = (extent + 0.02 - frame.margin(spot[0], spot[1])).max(0.0);
        let deep = (0.5 - tube.tangent(spot[0], spot[1])).max(0.0);
        let broken = match traits.morphology {
            // A head on a stalk hangs before whatever is behind it.
            Morphology::Pedunculated => 0.0,
            _ => rift(spot, 0.8 * extent, tube),
        };
        let fault = 2.0 * hidden + deep + broken;
        if fault == 0.0 {
            return Some(spot);
        }
        if fault < least {
            (best, least) = (Some(spot), fault);
        }
    }
    best
}

/// How much the wall's depth jumps (in logarithms) within a radius of a place; 0 where it is whole.
fn rift(spot: [f32; 2], radius: f32, tube: &Tube) -> f32 {
    let depth = |x: f32, y: f32| tube.hit(spot[0] + x, spot[1] + y).log_depth;
    let mut worst = 0.0_f32;
    for (x, y) in [(1.0, 0.0), (0.7, 0.7), (0.0, 1.0), (-0.7, 0.7)] {
        let mut before = depth(-radius * x, -radius * y);
        for t in [-0.6, -0.2, 0.2, 0.6, 1.0] {
            let here = depth(t * radius * x, t * radius * y);
            worst = worst.max((here - before).abs());
            before = here;
        }
    }
    (worst - 0.3).max(0.0)
}

fn describe(traits: &Traits) -> Attributes {
    let mut out = Attributes::new();
    out.set_text("morphology", traits.morphology.word());
    out.set_text("surface", traits.surface.word());
    out.set_text("colour", traits.colour.word());
    out.set_flag("flat", traits.morphology == Morphology::Flat);
    out
}
