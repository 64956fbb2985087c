//! Polyps: height fields over the image plane, lit like the wall they grow on.
//!
//! The outline alone decides the mask, so the mask is exact by construction.

use crate::{
    draw::*,
    film::{Film, Point},
    noise::Noise,
    shade::*,
};
use diffaug::rng::Rng;

/// How a polyp sits on the wall (Paris classification, reduced).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Morphology {
    /// A dome on a broad base (0-Is).
    Sessile,
    /// A head on a stalk (0-Ip); both belong to the lesion.
    Pedunculated,
    /// Hardly raised (0-IIa).
    Flat,
}

/// What a polyp's surface looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// Even and shiny.
    Smooth,
    /// Covered with small bumps.
    Granular,
    /// Made of a few large bumps.
    Lobulated,
}

/// A polyp's colour beside that of the wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Redder.
    Red,
    /// Paler.
    Pale,
    /// Hardly different.
    Similar,
}

impl Morphology {
    /// The word in the attributes.
    pub fn word(self) -> &'static str {
        match self {
            Morphology::Sessile => "sessile",
            Morphology::Pedunculated => "pedunculated",
            Morphology::Flat => "flat",
        }
    }
}

impl Surface {
    /// The word in the attributes.
    pub fn word(self) -> &'static str {
        match self {
            Surface::Smooth => "smooth",
            Surface::Granular => "granular",
            Surface::Lobulated => "lobulated",
        }
    }
}

impl Colour {
    /// The word in the attributes.
    pub fn word(self) -> &'static str {
        match self {
            Colour::Red => "red",
            Colour::Pale => "pale",
            Colour::Similar => "similar",
        }
    }
}

/// What kind of polyp to draw.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// How it sits on the wall.
    pub morphology: Morphology,
    /// Its surface.
    pub surface: Surface,
    /// Its colour.
    pub colour: Colour,
    /// Fraction of the image that it covers.
    pub area: f32,
}

/// The wall around a polyp, as far as the polyp's look depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Where the polyp's centre lies.
    pub centre: [f32; 2],
    /// Direction of the vanishing point, towards which the wall faces.
    pub inward: [f32; 2],
    /// Light on a surface there that faces the camera.
    pub light: f32,
    /// Colour of the wall, vessels left out.
    pub wall: Vec3,
    /// Place of the lamp in the image plane.
    pub lamp: [f32; 2],
}

/// Share of light that reaches a surface whichever way it faces, scattered by the walls.
const AMBIENT: f32 = 0.38;

/// Points of the outline's table, all the way round.
const OUTLINE: usize = 256;

/// A polyp with its place and shape.
pub struct Lesion {
    traits: Traits,
    site: Site,
    /// Half the geometric mean of the head's axes.
    radius: f32,
    /// Square root of the ratio of the axes.
    stretch: f32,
    axis: [f32; 2],
    /// Distance of the border from the centre, in radii, by angle.
    outline: Vec<f32>,
    stalk: Option<Stalk>,
    relief: Relief,
    bumps: Noise,
    mottle: Noise,
    colour: Vec3,
    gloss: f32,
}

struct Stalk {
    foot: [f32; 2],
    /// Half width at the head and at the foot.
    widths: [f32; 2],
}

/// A place beside a stalk.
struct OnStalk {
    /// Distance from the axis on a scale where the border is 1.
    across: f32,
    /// Half width of the stalk there.
    width: f32,
    /// 1 where the stalk stands free, 0 where it has become wall.
    free: f32,
}

/// Heights, in radii.
struct Relief {
    dome: f32,
    bump: f32,
    /// Size of a bump.
    cell: f32,
    /// How dark the wall gets at the polyp's foot.
    shadow: f32,
}

impl Lesion {
    /// Radius of a circle that holds a polyp of these traits, in image units.
    pub fn extent(traits: &Traits) -> f32 {
        let radius = (4.0 * traits.area / std::f32::consts::PI).sqrt();
        match traits.morphology {
            Morphology::Pedunculated => radius * 1.45,
            _ => radius * 1.3,
        }
    }

    /// Draws the polyp's shape and look. `size` is that of the image, in pixels.
    pub fn draw(traits: Traits, site: Site, size: u32, rng: &mut Rng) -> Self {
        let stalked = traits.morphology == Morphology::Pedunculated;
        // The stalk takes its share of the area.
        let share = if stalked { 0.82 } else { 1.0 };
        let radius = (4.0 * share * traits.area / std::f32::consts::PI).sqrt();
        let stretch: f32 = match traits.morphology {
            Morphology::Flat => between(rng, 1.1, 1.9),
            _ => between(rng, 1.0, 1.5),
        };
        let turn = turn(rng);
        Lesion {
            traits,
            site,
            radius,
            stretch: stretch.sqrt(),
            axis: [turn.cos(), turn.sin()],
            outline: outline(&traits, rng),
            stalk: stalked.then(|| Stalk::draw(&site, radius, rng)),
            relief: Relief::draw(&traits, radius, size, rng),
            bumps: Noise::new(seed(rng)),
            mottle: Noise::new(seed(rng)),
            colour: colour(&traits, &site, rng),
            gloss: between(rng, 0.5, 1.3),
        }
    }

    /// Distance from the head's centre on a scale where the border is 1.
    fn level(&self, x: f32, y: f32) -> f32 {
        let (dx, dy) = (x - self.site.centre[0], y - self.site.centre[1]);
        let along = (dx * self.axis[0] + dy * self.axis[1]) / self.stretch;
        let across = (dy * self.axis[0] - dx * self.axis[1]) * self.stretch;
        let turn = angle(along, across) / std::f32::consts::TAU + 1.0;
        let place = turn.fract() * OUTLINE as f32;
        let i = place as usize % OUTLINE;
        let border = lerp(
            self.outline[i],
            self.outline[(i + 1) % OUTLINE],
            place.fract(),
        );
        length([along, across]) / (border * self.radius)
    }

    /// Whether a place belongs to the polyp: this is the mask.
    pub fn covers(&self, x: f32, y: f32) -> bool {
        self.level(x, y) < 1.0 || self.stalk_level(x, y) < 1.0
    }

    fn stalk_level(&self, x: f32, y: f32) -> f32 {
        (self.stalk.as_ref()).map_or(f32::MAX, |stalk| stalk.level(self.site.centre, x, y).across)
    }

    /// Height above the wall in image units.
    fn height(&self, x: f32, y: f32, level: f32) -> f32 {
        let head = if level < 1.0 {
            self.head(x, y, level)
        } else {
            0.0
        };
        let Some(stalk) = &self.stalk else {
            return head;
        };
        let on = stalk.level(self.site.centre, x, y);
        let stem = 0.7 * on.width * on.free * (1.0 - on.across * on.across).max(0.0);
        head.max(stem)
    }

    fn head(&self, x: f32, y: f32, level: f32) -> f32 {
        let inner = 1.0 - level * level;
        let dome = match self.traits.morphology {
            // A plateau with a rounded rim.
            Morphology::Flat => step(1.0, 0.62, level),
            Morphology::Sessile => inner * (1.6 - 0.6 * inner),
            Morphology::Pedunculated => inner.sqrt(),
        };
        let bump = if self.relief.bump > 0.0 {
            let near = self.bump(x, y).min(1.0);
            self.relief.bump * (1.0 - near * near) * step(1.02, 0.75, level)
        } else {
            0.0
        };
        self.radius * (self.relief.dome * dome + bump)
    }

    /// Half the side of a box that holds the polyp and its shadow.
    fn bound(&self) -> f32 {
        let head = 1.6 * self.radius * self.stretch;
        let foot = self.stalk.as_ref().map_or(0.0, |stalk| {
            let [x, y] = [0, 1].map(|k| stalk.foot[k] - self.site.centre[k]);
            length([x, y]) + stalk.widths[1]
        });
        head.max(foot)
    }

    /// Paints the polyp and its shadow and calls `mark(pixel)` for every pixel that it covers.
    pub fn paint(&self, film: &mut Film, mut mark: impl FnMut(usize, f32, f32)) {
        let step = 2.0 / film.size() as f32;
        let bound = self.bound() + 2.0 * step;
        film.around(self.site.centre, bound, |x, y, point, index| {
            let level = self.level(x, y);
            let across = self.stalk_level(x, y);
            if level >= 1.0 && across >= 1.0 {
                self.shadow(x, y, level, point);
                return;
            }
            mark(index, x, y);
            let here = self.height(x, y, level);
            let right = self.height(x + step, y, self.level(x + step, y));
            let below = self.height(x, y + step, self.level(x, y + step));
            let slope = [(here - right) / step, (here - below) / step];
            self.skin(x, y, level, slope, here, point);
        });
    }

    /// Darkens the wall beside the polyp, more on the side away from the lamp.
    fn shadow(&self, x: f32, y: f32, level: f32, point: &mut Point) {
        let away = [
            self.site.centre[0] - self.site.lamp[0],
            self.site.centre[1] - self.site.lamp[1],
        ];
        let far = length(away).max(0.2);
        let shift = 0.16 * self.radius * self.relief.dome / far;
        let cast = self.level(x - away[0] * shift, y - away[1] * shift);
        let near = 1.0 - ((level - 1.0) / 0.22).clamp(0.0, 1.0);
        let cast = 1.0 - ((cast - 0.92) / 0.3).clamp(0.0, 1.0);
        point.light *= 1.0 - self.relief.shadow * (0.45 * near * near + 0.55 * cast * cast);
        point.gloss *= 1.0 - near;
    }

    /// Colours and lights a covered pixel whose surface rises by `slope`.
    fn skin(&self, x: f32, y: f32, level: f32, slope: [f32; 2], height: f32, point: &mut Point) {
        let steep = length(slope);
        let limit = if steep > 1.8 { 1.8 / steep } else { 1.0 };
        let n = self.normal([slope[0] * limit, slope[1] * limit]);
        let flat = self.normal([0.0, 0.0]);
        let to_lamp = normal([self.site.lamp[0] - x, self.site.lamp[1] - y, 1.1]);
        let lit = (AMBIENT + (1.0 - AMBIENT) * dot(n, to_lamp)).max(0.1);

        let wall = point.light;
        let own = self.site.light * lit * (1.0 + 0.5 * height);
        // What hardly rises keeps the light of the wall and only modulates it.
        let free = match self.traits.morphology {
            Morphology::Flat => 0.0,
            Morphology::Sessile => lerp(0.45, 0.9, step(1.0, 0.5, level)),
            Morphology::Pedunculated => self.rooted(x, y, level),
        };
        let kept = wall * lit / (AMBIENT + (1.0 - AMBIENT) * dot(flat, to_lamp)).max(0.1);
        point.light = lerp(kept, own, free);

        let cover = match self.traits.morphology {
            Morphology::Flat => 0.9 * step(1.0, 0.86, level),
            Morphology::Sessile => lerp(0.8, 1.0, step(1.0, 0.8, level)),
            Morphology::Pedunculated => self.rooted(x, y, level),
        };
        point.albedo = mix(point.albedo, self.pigment(x, y, level), cover);
        let shine = match self.traits.morphology {
            // A flat lesion mirrors like the wall around it.
            Morphology::Flat => point.gloss * cover,
            _ if level < 1.0 => cover * self.shine(x, y, n, to_lamp),
            // Light that grazes along a stalk would turn into stray sparks.
            _ => 0.0,
        };
        point.gloss = point.gloss * (1.0 - cover) + shine;
    }

    /// Distance to the middle of the nearest bump, in bumps; along the head's own axes, bent a
    /// little, so that no grid shows.
    fn bump(&self, x: f32, y: f32) -> f32 {
        let cell = self.relief.cell * self.radius;
        let (dx, dy) = (x - self.site.centre[0], y - self.site.centre[1]);
        let u = (dx * self.axis[0] + dy * self.axis[1]) / cell;
        let v = (dy * self.axis[0] - dx * self.axis[1]) / cell;
        let bend = self.mottle.value(u * 0.6, v * 0.6);
        self.bumps.cells(u + 0.5 * bend, v - 0.5 * bend)
    }

    /// 1 on the head and the upper stalk, falling to 0 where the stalk leaves the wall.
    fn rooted(&self, x: f32, y: f32, level: f32) -> f32 {
        match &self.stalk {
            Some(stalk) if level >= 1.0 => stalk.level(self.site.centre, x, y).free,
            _ => 1.0,
        }
    }

    fn normal(&self, slope: [f32; 2]) -> Vec3 {
        let lean = 0.35;
        normal([
            lean * self.site.inward[0] + slope[0],
            lean * self.site.inward[1] + slope[1],
            1.0,
        ])
    }

    fn pigment(&self, x: f32, y: f32, level: f32) -> Vec3 {
        if level >= 1.0 {
            // The stalk is mucosa like the wall.
            return mix(self.site.wall, self.colour, 0.25);
        }
        let coarse = 2.4 / self.radius;
        let blotch = self.mottle.fractal(x * coarse, y * coarse, 3);
        let mut colour = scale(self.colour, 1.0 + 0.1 * blotch);
        colour[1] *= 1.0 - 0.07 * blotch;
        if self.relief.bump > 0.0 {
            let near = self.bump(x, y);
            let groove = step(0.35, 0.8, near);
            colour = tint(colour, mix([1.0; 3], [0.93, 0.82, 0.84], groove * 0.8));
        }
        colour
    }

    /// Reflections of the lamp, broken up by a film of moisture.
    fn shine(&self, x: f32, y: f32, n: Vec3, to_lamp: Vec3) -> f32 {
        let fine = 7.0 / self.radius.max(0.12);
        let [_, gx, gy] = self.mottle.gradient(x * fine, y * fine);
        let wet = normal([n[0] + 0.13 * gx, n[1] + 0.13 * gy, n[2]]);
        let half = normal([to_lamp[0], to_lamp[1] - 0.25, to_lamp[2] + 0.9]);
        let mirror = dot(wet, half);
        self.gloss * (step(0.982, 0.996, mirror) + 0.05 * step(0.8, 1.0, mirror))
    }
}

impl Stalk {
    fn draw(site: &Site, radius: f32, rng: &mut Rng) -> Self {
        // Polyps hang into the lumen, so the foot lies on the wall's side.
        let lean = between(rng, -0.9, 0.9);
        let (sin, cos) = lean.sin_cos();
        let out = [-site.inward[0], -site.inward[1]];
        let reach = radius * between(rng, 1.8, 2.4);
        Stalk {
            foot: [
                site.centre[0] + reach * (out[0] * cos - out[1] * sin),
                site.centre[1] + reach * (out[0] * sin + out[1] * cos),
            ],
            widths: [
                radius * between(rng, 0.22, 0.34),
                radius * between(rng, 0.36, 0.55),
            ],
        }
    }

    fn level(&self, head: [f32; 2], x: f32, y: f32) -> OnStalk {
        let along = [self.foot[0] - head[0], self.foot[1] - head[1]];
        let (dx, dy) = (x - head[0], y - head[1]);
        let square = along[0] * along[0] + along[1] * along[1];
        let t = ((dx * along[0] + dy * along[1]) / square).clamp(0.0, 1.0);
        let width = lerp(self.widths[0], self.widths[1], t * t);
        let distance = length([dx - t * along[0], dy - t * along[1]]);
        OnStalk {
            across: distance / width,
            width,
            free: step(1.0, 0.7, t),
        }
    }
}

impl Relief {
    fn draw(traits: &Traits, radius: f32, size: u32, rng: &mut Rng) -> Self {
        let dome = match traits.morphology {
            Morphology::Flat => between(rng, 0.07, 0.14),
            Morphology::Sessile => between(rng, 0.35, 0.6),
            Morphology::Pedunculated => between(rng, 0.75, 1.0),
        };
        let rise = if traits.morphology == Morphology::Flat {
            0.4
        } else {
            1.0
        };
        let (bump, cell) = match traits.surface {
            Surface::Smooth => (0.0, 1.0),
            Surface::Granular => (between(rng, 0.035, 0.06), between(rng, 0.2, 0.3)),
            Surface::Lobulated => (between(rng, 0.1, 0.19), between(rng, 0.6, 0.9)),
        };
        // Bumps finer than a few pixels would only be noise.
        let finest = 9.0 / size as f32 / radius;
        Relief {
            dome,
            bump: bump * rise,
            cell: cell.max(finest),
            shadow: match traits.morphology {
                Morphology::Flat => between(rng, 0.0, 0.12),
                Morphology::Sessile => between(rng, 0.15, 0.4),
                Morphology::Pedunculated => between(rng, 0.3, 0.55),
            },
        }
    }
}

/// The border's distance from the centre by angle, of mean square 1, so that it changes the shape
/// but not the area.
fn outline(traits: &Traits, rng: &mut Rng) -> Vec<f32> {
    let lobes = if traits.surface == Surface::Lobulated {
        count(rng, 4, 7)
    } else {
        0
    };
    let rough = match traits.morphology {
        Morphology::Flat => 0.09,
        Morphology::Sessile => 0.05,
        Morphology::Pedunculated => 0.03,
    };
    let waves: Vec<(f32, f32, f32)> = (2..=6)
        .map(|order| {
            let order = order as f32;
            (
                order,
                rough * between(rng, 0.3, 1.5) * 2.0 / order,
                turn(rng),
            )
        })
        .collect();
    let (depth, phase) = (between(rng, 0.06, 0.15), turn(rng));
    let mut border: Vec<f32> = (0..OUTLINE)
        .map(|i| {
            let angle = i as f32 / OUTLINE as f32 * std::f32::consts::TAU;
            let wave: f32 = waves
                .iter()
                .map(|(k, a, p)| a * (k * angle + p).cos())
                .sum();
            // Absolute sines meet in notches, as neighbouring lobes do.
            let lobe = (lobes as f32 * 0.5 * angle + phase).sin().abs();
            let lobe = if lobes > 0 {
                depth * (lobe - 0.64)
            } else {
                0.0
            };
            1.0 + wave + lobe
        })
        .collect();
    let square = border.iter().map(|b| b * b).sum::<f32>() / OUTLINE as f32;
    for b in &mut border {
        *b /= square.sqrt();
    }
    border
}

fn colour(traits: &Traits, site: &Site, rng: &mut Rng) -> Vec3 {
    let strength = match traits.morphology {
        Morphology::Flat => between(rng, 0.45, 0.85),
        _ => between(rng, 0.25, 1.0),
    };
    let full = match traits.colour {
        Colour::Red => tint(site.wall, [1.04, 0.66, 0.70]),
        Colour::Pale => mix(site.wall, [1.0, 0.78, 0.66], 0.6),
        Colour::Similar => tint(site.wall, [1.03, 0.90, 0.92]),
    };
    mix(site.wall, full, strength)
}

#[cfg(test)]
mod tests {
    use super::*;
    use diffaug::rng;

    fn site() -> Site {
        Site {
            centre: [0.1, -0.05],
            inward: [1.0, 0.0],
            light: 1.0,
            wall: [0.8, 0.5, 0.4],
            lamp: [0.0, 0.0],
        }
    }

    #[test]
    fn the_outline_keeps_the_area() {
        for (i, morphology) in [
            Morphology::Sessile,
            Morphology::Pedunculated,
            Morphology::Flat,
        ]
        .into_iter()
        .enumerate()
        {
            for (j, surface) in [Surface::Smooth, Surface::Granular, Surface::Lobulated]
                .into_iter()
                .enumerate()
            {
                let traits = Traits {
                    morphology,
                    surface,
                    colour: Colour::Red,
                    area: 0.05,
                };
                let mut rng = rng::stream(4, "lesion", (i * 3 + j) as u64);
                let lesion = Lesion::draw(traits, site(), 200, &mut rng);
                let mut film = Film::new(200);
                let mut pixels = 0;
                lesion.paint(&mut film, |_, _, _| pixels += 1);
                let area = pixels as f32 / 40_000.0;
                assert!((area / 0.05 - 1.0).abs() < 0.12, "{traits:?}: {area}");
            }
        }
    }

    #[test]
    fn a_stalk_leads_away_from_the_lumen() {
        let traits = Traits {
            morphology: Morphology::Pedunculated,
            surface: Surface::Smooth,
            colour: Colour::Similar,
            area: 0.03,
        };
        let lesion = Lesion::draw(traits, site(), 100, &mut rng::stream(2, "lesion", 0));
        let foot = lesion.stalk.as_ref().map(|stalk| stalk.foot);
        assert!(foot.is_some_and(|foot| foot[0] < 0.1 && lesion.covers(foot[0], foot[1])));
    }
}
