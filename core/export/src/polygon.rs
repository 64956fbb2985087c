//! Polygons of regions, holes joined to the outline, and how well they cover the region when drawn again.
//!
//! A corner is a pixel of the region that touches what is not of it (Suzuki and Abe, *Topological structural
//! analysis of digitized binary images by border following*, 1985), so the polygon goes through centres of
//! pixels. Drawn as OpenCV's `fillPoly` does, border included, it covers exactly the region: that is how
//! Ultralytics makes masks of polygons. [`Overlap`] measures it.
//!
//! A format without holes is given one polygon all the same: each hole is joined to what lies left of it by a
//! cut of no width along a row of the region. By the even-odd rule, the inside of the hole is outside.

use crate::regions::{AROUND, Region, Regions};
use std::collections::HashMap;

/// A pixel: column and row.
pub type Point = (u32, u32);

/// The index in [`AROUND`] of the neighbour to the right.
const RIGHT: usize = 0;
/// The index in [`AROUND`] of the neighbour to the left.
const LEFT: usize = 4;

/// The polygon of a region, without corners in the middle of straight lines. A small region has one or two
/// corners.
pub fn polygon(regions: &Regions, region: &Region) -> Vec<Point> {
    let mut joined = Joined::default();
    let first = (region.left..region.right)
        .find(|x| regions.holds(region, (*x).into(), region.top.into()))
        .unwrap_or(region.left);
    joined.begin(&border(regions, region, (first, region.top), LEFT));
    for (x, y) in holes(regions, region) {
        // The pixel left of a hole's leftmost one belongs to the region, for a hole has no such neighbour.
        let start = (x - 1, y);
        let hole = border(regions, region, start, RIGHT);
        joined.join(start, &hole);
    }
    straightened(&joined.points())
}

/// Follows a border of the region from `start`, whose neighbour towards `outside` is not of the region, until
/// it comes back. A pixel may occur more than once.
fn border(regions: &Regions, region: &Region, start: Point, outside: usize) -> Vec<Point> {
    let neighbour = |(x, y): Point, direction: usize| {
        let (dx, dy) = AROUND[direction];
        let (x, y) = (i64::from(x) + dx, i64::from(y) + dy);
        // What the region holds is inside the image.
        regions.holds(region, x, y).then_some((x as u32, y as u32))
    };
    let clockwise = (0..8).map(|turn| (outside + turn) % 8);
    let first = clockwise
        .map(|d| (d, neighbour(start, d)))
        .find_map(|(d, p)| Some((d, p?)));
    let Some((mut towards, last)) = first else {
        return vec![start];
    };
    let mut points = Vec::new();
    let mut at = start;
    loop {
        points.push(at);
        // Counter-clockwise from where it came; the way back is the last that is tried.
        let mut turns = (1..=8).map(|turn| (towards + 8 - turn) % 8);
        let Some((direction, next)) = turns.find_map(|d| Some((d, neighbour(at, d)?))) else {
            return points;
        };
        if next == start && at == last {
            return points;
        }
        towards = (direction + 4) % 8;
        at = next;
    }
}

/// The leftmost pixel of each hole, the upper one of several, from left to right. A hole is what is not of
/// the region and cannot be left without crossing it, by steps along rows and columns.
fn holes(regions: &Regions, region: &Region) -> Vec<Point> {
    let mut frame = Frame::around(regions, region);
    frame.fill(0, 0);
    let mut holes = Vec::new();
    for x in 1..frame.width - 1 {
        for y in 1..frame.height - 1 {
            if frame.fill(x, y) {
                holes.push((region.left + x as u32 - 1, region.top + y as u32 - 1));
            }
        }
    }
    holes
}

/// The box around a region and one pixel more on each side, which are outside.
struct Frame {
    width: usize,
    height: usize,
    /// Pixels of the region, and those that were filled.
    taken: Vec<bool>,
}

impl Frame {
    fn around(regions: &Regions, region: &Region) -> Self {
        let rows = i64::from(region.top) - 1..=i64::from(region.bottom);
        let columns = i64::from(region.left) - 1..=i64::from(region.right);
        let row = |y| columns.clone().map(move |x| regions.holds(region, x, y));
        Frame {
            width: (region.right - region.left + 2) as usize,
            height: (region.bottom - region.top + 2) as usize,
            taken: rows.flat_map(row).collect(),
        }
    }

    /// Takes all free pixels that are connected with a pixel; `false` where it is not free.
    fn fill(&mut self, x: usize, y: usize) -> bool {
        if self.taken[y * self.width + x] {
            return false;
        }
        let mut left = vec![(x, y)];
        while let Some((x, y)) = left.pop() {
            let taken = &mut self.taken[y * self.width + x];
            if std::mem::replace(taken, true) {
                continue;
            }
            // Beyond 0 the sum wraps to what is no column and no row.
            let next = [
                (x + 1, y),
                (x.wrapping_sub(1), y),
                (x, y + 1),
                (x, y.wrapping_sub(1)),
            ];
            left.extend(
                next.into_iter()
                    .filter(|(x, y)| *x < self.width && *y < self.height),
            );
        }
        true
    }
}

/// A polygon to which holes are joined: a ring of corners, each with the next.
#[derive(Default)]
struct Joined {
    corners: Vec<(Point, usize)>,
    /// A corner at each pixel that has one.
    at: HashMap<Point, usize>,
}

impl Joined {
    fn begin(&mut self, outline: &[Point]) {
        for (index, point) in outline.iter().enumerate() {
            self.corners.push((*point, index + 1));
            self.at.entry(*point).or_insert(index);
        }
        if let Some((_, next)) = self.corners.last_mut() {
            *next = 0;
        }
    }

    /// Joins a hole whose border begins at `start`, its leftmost neighbour: by a cut to the left, up to the
    /// first corner. All pixels up to there belong to the region, for at what is not of it there is a corner.
    fn join(&mut self, start: Point, hole: &[Point]) {
        let (mut x, y) = start;
        let found = loop {
            match (self.at.get(&(x, y)), x) {
                (Some(found), _) => break *found,
                (None, 0) => return,
                (None, _) => x -= 1,
            }
        };
        let (point, next) = self.corners[found];
        // There and around the hole, back to where it began, and back.
        let ring = hole.iter().copied().chain([start, point]);
        let first = self.corners.len();
        for (offset, corner) in ring.enumerate() {
            self.corners.push((corner, first + offset + 1));
            self.at.entry(corner).or_insert(first + offset);
        }
        self.corners[found].1 = first;
        if let Some((_, last)) = self.corners.last_mut() {
            *last = next;
        }
    }

    fn points(&self) -> Vec<Point> {
        let mut points = Vec::with_capacity(self.corners.len());
        let mut at = 0;
        loop {
            let (point, next) = self.corners[at];
            points.push(point);
            if next == 0 {
                return points;
            }
            at = next;
        }
    }
}

/// A closed polygon without doubled corners and those in the middle of straight lines.
fn straightened(points: &[Point]) -> Vec<Point> {
    let mut distinct: Vec<Point> = points.to_vec();
    distinct.dedup();
    if distinct.len() > 1 && distinct.first() == distinct.last() {
        distinct.pop();
    }
    let n = distinct.len();
    if n < 3 {
        return distinct;
    }
    let goes_on = |at: usize| {
        let step = |from: Point, to: Point| {
            let dx = i64::from(to.0) - i64::from(from.0);
            let dy = i64::from(to.1) - i64::from(from.1);
            // All lines run along rows, columns or diagonals.
            (dx.signum(), dy.signum())
        };
        let (before, after) = (distinct[(at + n - 1) % n], distinct[(at + 1) % n]);
        step(before, distinct[at]) == step(distinct[at], after)
    };
    (0..n)
        .filter(|at| !goes_on(*at))
        .map(|at| distinct[at])
        .collect()
}

/// How well polygons cover the regions that they stand for, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overlap {
    /// Pixels of both.
    pub both: u64,
    /// Pixels of either.
    pub either: u64,
}

impl Overlap {
    /// Draws a polygon as OpenCV's `fillPoly` does, with the even-odd rule and its border, and compares it
    /// with the region.
    pub fn of(polygon: &[Point], regions: &Regions, region: &Region) -> Self {
        let mut both = 0;
        let mut drawn = 0;
        for (y, row) in (region.top..region.bottom).zip(draw(polygon, region)) {
            for (x, inside) in (region.left..region.right).zip(row) {
                drawn += u64::from(inside);
                both += u64::from(inside && regions.holds(region, x.into(), y.into()));
            }
        }
        Overlap {
            both,
            either: drawn + region.area - both,
        }
    }

    /// Adds what another polygon covers.
    pub fn add(&mut self, other: Overlap) {
        self.both += other.both;
        self.either += other.either;
    }

    /// Intersection over union; 1 where there is nothing to cover.
    pub fn iou(&self) -> f64 {
        match self.either {
            0 => 1.0,
            either => self.both as f64 / either as f64,
        }
    }
}

/// The rows of the box of a region, with what a polygon covers.
fn draw(polygon: &[Point], region: &Region) -> Vec<Vec<bool>> {
    let width = (region.right - region.left) as usize;
    let mut rows = vec![vec![false; width]; (region.bottom - region.top) as usize];
    let lines = || polygon.iter().zip(polygon.iter().cycle().skip(1));
    for (y, row) in (region.top..).zip(&mut rows) {
        // Columns where a line crosses this row; a line has its upper end, but not its lower one.
        let crosses = lines().filter(|(a, b)| (a.1.min(b.1)..a.1.max(b.1)).contains(&y));
        let mut crossings: Vec<i64> = crosses.map(|(a, b)| column(*a, *b, y)).collect();
        crossings.sort_unstable();
        for pair in crossings.chunks_exact(2) {
            for x in pair[0]..pair[1] {
                row[(x - i64::from(region.left)) as usize] = true;
            }
        }
    }
    for (a, b) in lines() {
        let length = i64::from(a.0.abs_diff(b.0).max(a.1.abs_diff(b.1)));
        for step in 0..=length {
            let along = |from: u32, to: u32| {
                let way = (i64::from(to) - i64::from(from)) * step;
                i64::from(from) + if length == 0 { 0 } else { way / length }
            };
            let (x, y) = (along(a.0, b.0), along(a.1, b.1));
            let row = &mut rows[(y - i64::from(region.top)) as usize];
            row[(x - i64::from(region.left)) as usize] = true;
        }
    }
    rows
}

/// The column at which a line crosses a row; whole, for lines run along rows, columns or diagonals.
fn column(a: Point, b: Point, y: u32) -> i64 {
    let [ax, ay, bx, by, y] = [a.0, a.1, b.0, b.1, y].map(i64::from);
    ax + (y - ay) * (bx - ax) / (by - ay)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::{Mask, rng};
    use rand::RngExt;

    fn regions(rows: &[&str]) -> Regions {
        let labels = rows
            .iter()
            .flat_map(|row| row.bytes().map(|b| u8::from(b == b'#')));
        let mask = Mask::new(rows[0].len() as u32, rows.len() as u32, labels.collect()).unwrap();
        Regions::of(mask.view())
    }

    fn first(rows: &[&str]) -> Vec<Point> {
        let regions = regions(rows);
        polygon(&regions, &regions.all[0])
    }

    #[test]
    fn corners_are_those_of_the_outline() {
        let square = first(&["....", ".###", ".###", ".###"]);
        assert_eq!(square, [(1, 1), (1, 3), (3, 3), (3, 1)]);
        assert_eq!(first(&["...", ".#.", "..."]), [(1, 1)]);
        assert_eq!(first(&["###"]), [(0, 0), (2, 0)]);
    }

    #[test]
    fn a_hole_is_joined_to_the_outline() {
        let rows = ["#####", "#...#", "#.#.#", "#...#", "#####"];
        let all = regions(&rows);
        let ring = &all.all[0];
        let polygon = polygon(&all, ring);
        let overlap = Overlap::of(&polygon, &all, ring);
        assert_eq!((overlap.both, overlap.either), (16, 16));
        // Without the hole it would cover the square.
        let outline = Overlap::of(&[(0, 0), (0, 4), (4, 4), (4, 0)], &all, ring);
        assert_eq!((outline.both, outline.either), (16, 25));
        assert_eq!(outline.iou(), 0.64);
    }

    #[test]
    fn polygons_cover_any_region_exactly() {
        let mut draw = rng::stream(3, "polygons", 0);
        for round in 0..200 {
            let (width, height) = (1 + round % 13, 1 + round % 17);
            let share = 0.3 + 0.1 * f64::from(round % 7);
            let labels = (0..width * height).map(|_| u8::from(draw.random_bool(share)));
            let mask = Mask::new(width, height, labels.collect()).unwrap();
            let regions = Regions::of(mask.view());
            for region in &regions.all {
                let polygon = polygon(&regions, region);
                let overlap = Overlap::of(&polygon, &regions, region);
                assert_eq!(overlap.both, overlap.either, "round {round}: {region:?}");
                assert_eq!(overlap.both, region.area);
            }
        }
    }

    /// A region as pycocotools, scipy and OpenCV have it; `fixtures/make_regions.py` wrote it.
    #[derive(serde::Deserialize)]
    struct Reference {
        class: u8,
        counts: Vec<u64>,
        area: u64,
        bbox: [u32; 4],
        outline: Vec<Point>,
        filled_area: u64,
        holes: bool,
    }

    #[derive(serde::Deserialize)]
    struct Fixture {
        rows: Vec<String>,
        regions: Vec<Reference>,
    }

    #[test]
    fn regions_are_those_of_pycocotools_and_opencv() {
        let fixtures: Vec<Fixture> =
            serde_json::from_str(include_str!("../fixtures/regions.json")).unwrap();
        let mut holes = 0;
        for Fixture { rows, regions } in fixtures {
            let labels = rows.iter().flat_map(|row| row.bytes().map(|b| b - b'0'));
            let (width, height) = (rows[0].len() as u32, rows.len() as u32);
            let mask = Mask::new(width, height, labels.collect()).unwrap();
            let found = Regions::of(mask.view());
            assert_eq!(found.all.len(), regions.len());
            for (region, expected) in found.all.iter().zip(regions) {
                let size = [region.right - region.left, region.bottom - region.top];
                assert_eq!(region.class, expected.class);
                assert_eq!(region.area, expected.area);
                assert_eq!([region.left, region.top, size[0], size[1]], expected.bbox);
                assert_eq!(found.run_lengths(region), expected.counts);
                let filled = Overlap::of(&expected.outline, &found, region);
                assert_eq!(filled.either, expected.filled_area);
                let joined = polygon(&found, region);
                if !expected.holes {
                    assert_eq!(joined, expected.outline);
                }
                holes += u32::from(expected.holes);
                assert_eq!(Overlap::of(&joined, &found, region).iou(), 1.0);
            }
        }
        assert!(holes > 5, "{holes} regions with holes try little");
    }
}
