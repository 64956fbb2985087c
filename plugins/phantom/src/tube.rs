//! The bowel: a tube of varying radius seen from inside, with folds that hide what lies behind.
//!
//! In polar coordinates about the vanishing point every ray stays at one angle, so the visible
//! surface is found by walking each angle outwards once and keeping the nearest wall, as old
//! terrain renderers did with columns of the screen. No ray is marched.

use crate::{
    draw::*,
    noise::floor,
    shade::{Vec3, angle, length, lerp, normal},
};
use diffaug::rng::Rng;
use std::f32::consts::TAU;

/// Depth (in mean radii) of the nearest and farthest part of the tube.
const NEAR: f32 = 0.16;
const FAR: f32 = 11.0;

/// A jump of the depth's logarithm by more than this is the edge of a fold.
const EDGE: f32 = 0.09;

/// Tangent from which outwards the tube is straight.
const STRAIGHT: f32 = 1.3;

/// The wall that a place of the image shows.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    /// Direction from the vanishing point, as an angle.
    pub angle: f32,
    /// Logarithm of the depth: with the angle, a conformal map of the wall.
    pub log_depth: f32,
    /// Distance from the camera in mean radii.
    pub distance: f32,
    /// Outward normal; x to the right, y down, z towards the camera.
    pub normal: Vec3,
    /// Cosine between the normal and the direction of the camera.
    pub facing: f32,
    /// How far the wall lies behind its surroundings, in mean radii; below 0 on a fold.
    pub recess: f32,
}

/// A tube and what of it can be seen.
pub struct Tube {
    /// Vanishing point of the near part.
    centre: [f32; 2],
    /// How far the vanishing point wanders with depth.
    bend: [f32; 2],
    /// Image units to tangents of the view angle.
    zoom: f32,
    columns: usize,
    rows: usize,
    bins: usize,
    /// Largest tangent in the image.
    reach: f32,
    /// Growth of the logarithm of the depth from row to row.
    pitch: f32,
    /// Depths of the rows.
    depth: Vec<f32>,
    /// Radius at each angle and depth.
    radius: Vec<f32>,
    /// Radius less its mean along a stretch of the tube.
    recess: Vec<f32>,
    /// Visible row at each angle and tangent.
    surface: Vec<f32>,
}

/// A fold of the wall, perhaps only part of the way round.
struct Fold {
    depth: f32,
    width: f32,
    height: f32,
    tilt: f32,
    tilt_turn: f32,
    arcs: f32,
    arc_depth: f32,
    arc_turn: f32,
    /// Count of small waves round the crest, their size and their angle.
    ripple: (f32, f32, f32),
}

impl Fold {
    fn draw(depth: f32, strength: f32, shape: &Section, rng: &mut Rng) -> Self {
        Fold {
            depth,
            width: between(rng, 0.09, 0.2) * (0.7 + 0.3 * depth.min(3.0)),
            height: strength * between(rng, 0.5, 1.2),
            tilt: between(rng, 0.0, 0.13),
            tilt_turn: turn(rng),
            arcs: shape.arcs,
            arc_depth: between(rng, 0.3, 1.0),
            arc_turn: shape.arc_turn + between(rng, -0.7, 0.7),
            ripple: (
                one_of(rng, [4.0, 5.0, 7.0]),
                between(rng, 0.0, 1.0),
                turn(rng),
            ),
        }
    }

    /// Where the fold's crest lies, and how high it is, at one angle.
    fn crest(&self, angle: f32) -> (f32, f32) {
        let wave = (self.arcs * (angle - self.arc_turn)).cos();
        let (count, size, phase) = self.ripple;
        let ripple = size * (count * angle + phase).cos();
        let arc = 1.0 - self.arc_depth * (0.5 + 0.5 * wave);
        let height = self.height * arc * (1.0 + 0.22 * ripple);
        let tilt = self.tilt * (angle - self.tilt_turn).cos();
        let place = self.depth * (1.0 + tilt - 0.06 * wave + 0.03 * ripple);
        (place, height)
    }
}

/// The tube's cross-section, which is anything between round and triangular.
struct Section {
    oval: f32,
    oval_turn: f32,
    arcs: f32,
    arc_size: f32,
    arc_turn: f32,
}

impl Section {
    fn draw(rng: &mut Rng) -> Self {
        Section {
            oval: between(rng, 0.0, 0.16),
            oval_turn: turn(rng),
            arcs: one_of(rng, [2.0, 3.0, 3.0]),
            arc_size: between(rng, 0.02, 0.13),
            arc_turn: turn(rng),
        }
    }

    fn radius(&self, angle: f32) -> f32 {
        1.0 + self.oval * (2.0 * (angle - self.oval_turn)).cos()
            + self.arc_size * (self.arcs * (angle - self.arc_turn)).cos()
    }
}

/// How the camera looks into the tube.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Vanishing point in image units; beyond about 1 only wall is seen.
    pub centre: [f32; 2],
    /// Image units to tangents of the view angle.
    pub zoom: f32,
    /// Height of folds in mean radii.
    pub folds: f32,
    /// Distance between folds in mean radii.
    pub spacing: f32,
}

impl Tube {
    /// Builds the tube and finds what can be seen, at a resolution for images of `size` pixels.
    pub fn draw(size: u32, view: &View, rng: &mut Rng) -> Self {
        let rows = (size as usize * 5 / 4).max(96);
        let pitch = (FAR / NEAR).ln() / (rows - 1) as f32;
        let bend_turn = turn(rng);
        let bend_size = between(rng, 0.0, 0.3);
        let mut tube = Tube {
            centre: view.centre,
            bend: [bend_size * bend_turn.cos(), bend_size * bend_turn.sin()],
            zoom: view.zoom,
            columns: (size as usize * 3 / 2).max(128),
            rows,
            bins: (size as usize * 3 / 2).max(96),
            reach: (length(view.centre) + bend_size + 1.45) * view.zoom,
            pitch,
            depth: (0..rows).map(|j| NEAR * (j as f32 * pitch).exp()).collect(),
            radius: Vec::new(),
            recess: Vec::new(),
            surface: Vec::new(),
        };
        tube.shape(view, rng);
        tube.hollow();
        tube.look();
        tube
    }

    fn angle_of(&self, column: usize) -> f32 {
        column as f32 / self.columns as f32 * TAU
    }

    /// The row (with fraction) of a depth.
    fn row_of(&self, depth: f32) -> f32 {
        ((depth / NEAR).ln() / self.pitch).clamp(0.0, (self.rows - 1) as f32)
    }

    fn shape(&mut self, view: &View, rng: &mut Rng) {
        let section = Section::draw(rng);
        let folds = folds(view, &section, rng);
        // Broad waves: separable products, so that they cost a multiplication a point.
        let waves: Vec<(Vec<f32>, Vec<f32>)> = (1..=4).map(|order| self.wave(order, rng)).collect();
        self.radius = Vec::with_capacity(self.columns * self.rows);
        for column in 0..self.columns {
            let angle = self.angle_of(column);
            let base = section.radius(angle);
            let first = self.radius.len();
            for j in 0..self.rows {
                let wave: f32 = waves
                    .iter()
                    .map(|(round, along)| round[column] * along[j])
                    .sum();
                self.radius.push(base + wave);
            }
            for fold in &folds {
                self.press(fold, angle, first);
            }
        }
    }

    fn wave(&self, order: u32, rng: &mut Rng) -> (Vec<f32>, Vec<f32>) {
        let (order, phase, start) = (order as f32, turn(rng), turn(rng));
        let size = between(rng, 0.015, 0.05) / order.sqrt();
        let pitch = between(rng, 2.0, 5.0) * order.sqrt();
        (
            (0..self.columns)
                .map(|i| size * (order * self.angle_of(i) + phase).cos())
                .collect(),
            (self.depth.iter().map(|z| (pitch * z.ln() + start).cos())).collect(),
        )
    }

    /// Narrows the tube by one fold along the column that starts at `first`.
    fn press(&mut self, fold: &Fold, angle: f32, first: usize) {
        let (crest, height) = fold.crest(angle);
        let low = self.row_of((crest - fold.width).max(NEAR)).ceil() as usize;
        let high = self.row_of(crest + fold.width).floor() as usize;
        for j in low..=high.min(self.rows - 1) {
            let t = (self.depth[j] - crest) / fold.width;
            let bump = (1.0 - t * t).max(0.0);
            self.radius[first + j] -= height * bump * bump;
        }
    }

    /// Fills `recess` with the radius less its mean over a stretch, by a running sum.
    fn hollow(&mut self) {
        let half = self.rows / 18;
        self.recess = vec![0.0; self.radius.len()];
        for (radius, recess) in
            (self.radius.chunks(self.rows)).zip(self.recess.chunks_mut(self.rows))
        {
            let mut sums = Vec::with_capacity(self.rows + 1);
            sums.push(0.0);
            let mut sum = 0.0;
            for &r in radius {
                sum += r;
                sums.push(sum);
            }
            for (j, out) in recess.iter_mut().enumerate() {
                let (low, high) = (j.saturating_sub(half), (j + half + 1).min(self.rows));
                *out = radius[j] - (sums[high] - sums[low]) / (high - low) as f32;
            }
        }
    }

    /// Fills `surface`: along each angle, from the largest tangent inwards, the nearest row.
    fn look(&mut self) {
        let last = (self.rows - 1) as f32;
        self.surface = vec![last; self.columns * self.bins];
        let per_tangent = self.bins as f32 / self.reach;
        for (radius, bins) in
            (self.radius.chunks(self.rows)).zip(self.surface.chunks_mut(self.bins))
        {
            let tangent = |j: usize| radius[j] / self.depth[j] * per_tangent;
            let mut open = self.bins;
            let mut before = tangent(0);
            while open > 0 && (open - 1) as f32 > before {
                open -= 1;
                bins[open] = 0.0;
            }
            for j in 1..self.rows {
                let here = tangent(j);
                while open > 0 && (open - 1) as f32 > here {
                    open -= 1;
                    let part = (before - open as f32) / (before - here);
                    bins[open] = (j - 1) as f32 + part.clamp(0.0, 1.0);
                }
                before = here;
            }
        }
    }

    /// The vanishing point for a tangent: farther parts of the tube lie off to one side.
    fn centre_at(&self, tangent: f32) -> [f32; 2] {
        let far = (1.0 - tangent / STRAIGHT).max(0.0);
        [0, 1].map(|k| self.centre[k] + self.bend[k] * far * far)
    }

    /// Offset of a place in the image from the vanishing point of its depth, and its tangent.
    fn offset(&self, x: f32, y: f32) -> ([f32; 2], f32) {
        let mut offset = [x - self.centre[0], y - self.centre[1]];
        let mut tangent = length(offset) * self.zoom;
        // The vanishing point depends on the tangent; few rounds suffice as it moves slowly, and
        // none are needed where it stands still.
        for _ in 0..if tangent > STRAIGHT { 1 } else { 3 } {
            let centre = self.centre_at(tangent);
            offset = [x - centre[0], y - centre[1]];
            tangent = length(offset) * self.zoom;
        }
        (offset, tangent)
    }

    /// How steeply a place is seen: 0 at the vanishing point, about 1 where the wall is as far
    /// ahead as it is aside.
    pub fn tangent(&self, x: f32, y: f32) -> f32 {
        self.offset(x, y).1
    }

    fn column_of(&self, angle: f32) -> f32 {
        let turns = angle / TAU;
        // Rounding can lift a tiny negative angle to a whole turn.
        let part = (turns - floor(turns) as f32).min(0.999_999);
        part * self.columns as f32
    }

    /// The visible row at an angle and tangent; blended, except across the edge of a fold.
    fn visible_row(&self, angle: f32, tangent: f32) -> f32 {
        let column = self.column_of(angle);
        let bin = (tangent / self.reach * self.bins as f32).min((self.bins - 2) as f32);
        let (c, b) = (column as usize, bin as usize);
        let (fc, fb) = (column.fract(), bin.fract());
        let next = self.wrap(c + 1);
        let at = |column: usize, bin: usize| self.surface[column * self.bins + bin];
        let corners = [at(c, b), at(next, b), at(c, b + 1), at(next, b + 1)];
        let low = corners.iter().copied().fold(f32::MAX, f32::min);
        let high = corners.iter().copied().fold(f32::MIN, f32::max);
        if (high - low) * self.pitch > EDGE {
            return corners[usize::from(fc > 0.5) + 2 * usize::from(fb > 0.5)];
        }
        lerp(
            lerp(corners[0], corners[1], fc),
            lerp(corners[2], corners[3], fc),
            fb,
        )
    }

    /// What a place of the image shows.
    pub fn hit(&self, x: f32, y: f32) -> Hit {
        let (offset, tangent) = self.offset(x, y);
        let angle = angle(offset[0], offset[1]);
        let row = self.visible_row(angle, tangent);
        let column = self.column_of(angle) as usize;
        let j = (row as usize).clamp(1, self.rows - 3);
        let part = (row - j as f32).clamp(0.0, 1.0);
        let depth = lerp(self.depth[j], self.depth[j + 1], part);

        let r = &self.radius[column * self.rows..][..self.rows];
        let slope = |j: usize| (r[j + 1] - r[j - 1]) / (self.depth[j + 1] - self.depth[j - 1]);
        let along = lerp(slope(j), slope(j + 1), part);
        let radius = lerp(r[j], r[j + 1], part);
        let round = self.slope_round(column, j) / radius;

        // The offset of a wall point from the axis has the direction of the angle.
        let spread = self.zoom / tangent.max(1e-4);
        let (dx, dy) = (offset[0] * spread, offset[1] * spread);
        let normal = normal([-dx - round * dy, -dy + round * dx, -along]);
        let distance = (radius * radius + depth * depth).sqrt();
        let steep = (1.0 + round * round + along * along).sqrt();
        Hit {
            angle,
            log_depth: NEAR.ln() + row * self.pitch,
            distance,
            normal,
            facing: ((radius - depth * along) / (steep * distance)).clamp(0.0, 1.0),
            recess: self.recess[column * self.rows + j],
        }
    }

    /// A column up to one turn too far, brought back.
    fn wrap(&self, column: usize) -> usize {
        if column >= self.columns {
            column - self.columns
        } else {
            column
        }
    }

    fn slope_round(&self, column: usize, j: usize) -> f32 {
        // A wide difference: neighbouring columns alone would show the sampling.
        const WIDE: usize = 2;
        let at = |c: usize| self.radius[self.wrap(c) * self.rows + j];
        let width = 2.0 * WIDE as f32 * TAU / self.columns as f32;
        (at(column + WIDE) - at(column + self.columns - WIDE)) / width
    }

    /// Where a wall point (angle, logarithm of depth) appears, with its tangent; `None` behind a
    /// fold or outside the depths that the tube has.
    pub fn project(&self, angle: f32, log_depth: f32) -> Option<([f32; 2], f32)> {
        let depth = log_depth.exp();
        if !(NEAR..FAR).contains(&depth) {
            return None;
        }
        let row = self.row_of(depth);
        let column = self.column_of(angle) as usize;
        let tangent = self.radius[column * self.rows + row as usize] / depth;
        if tangent >= self.reach
            || (self.visible_row(angle, tangent) - row).abs() * self.pitch > EDGE
        {
            return None;
        }
        let centre = self.centre_at(tangent);
        let spread = tangent / self.zoom;
        let place = [
            centre[0] + spread * angle.cos(),
            centre[1] + spread * angle.sin(),
        ];
        Some((place, tangent))
    }
}

fn folds(view: &View, section: &Section, rng: &mut Rng) -> Vec<Fold> {
    let mut folds = Vec::new();
    let mut depth = between(rng, 0.35, 0.9);
    while depth < FAR {
        folds.push(Fold::draw(depth, view.folds, section, rng));
        // Farther folds stand in for the many that one cannot tell apart.
        depth += view.spacing * between(rng, 0.7, 1.35) * (0.75 + 0.25 * depth);
    }
    folds
}

#[cfg(test)]
mod tests {
    use super::*;
    use diffaug::rng;

    fn tube(folds: f32) -> Tube {
        let view = View {
            centre: [0.2, -0.1],
            zoom: 1.0,
            folds,
            spacing: 0.6,
        };
        Tube::draw(96, &view, &mut rng::stream(1, "tube", 0))
    }

    #[test]
    fn depth_grows_towards_the_vanishing_point() {
        let tube = tube(0.0);
        let mut before = 0.0;
        for i in 0..20 {
            let hit = tube.hit(0.95 - i as f32 * 0.035, -0.1);
            assert!(hit.distance > before, "step {i}");
            before = hit.distance;
            assert!((0.0..=1.0).contains(&hit.facing));
        }
    }

    #[test]
    fn folds_hide_wall_and_face_the_camera() {
        let (smooth, folded) = (tube(0.0), tube(0.3));
        let hidden = |tube: &Tube| {
            (0..400)
                .filter(|i| {
                    tube.project(*i as f32 * 0.1, -0.5 + *i as f32 * 0.005)
                        .is_none()
                })
                .count()
        };
        let (none, some) = (hidden(&smooth), hidden(&folded));
        assert!(none < 10 && some > 30, "{none} and {some} of 400");
        let best = |tube: &Tube| {
            (0..100)
                .map(|i| tube.hit(-0.9 + i as f32 * 0.018, 0.3).facing)
                .fold(0.0, f32::max)
        };
        assert!(best(&folded) > best(&smooth));
    }

    #[test]
    fn projecting_undoes_looking() {
        let tube = tube(0.2);
        let mut seen = 0;
        for i in 0..60 {
            let place = [(i % 9) as f32 * 0.2 - 0.8, (i % 7) as f32 * 0.25 - 0.75];
            let hit = tube.hit(place[0], place[1]);
            if let Some((back, _)) = tube.project(hit.angle, hit.log_depth) {
                assert!((back[0] - place[0]).abs() < 0.05 && (back[1] - place[1]).abs() < 0.05);
                seen += 1;
            }
        }
        assert!(seen > 40, "{seen}");
    }
}
