//! Connected regions of a mask: what tools that look for objects call instances.
//!
//! Pixels of one class that touch, also at their corners (8-connected), are one region.

use diffaug::MaskRef;

/// A connected region of one class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its class index.
    pub class: u8,
    /// The leftmost column.
    pub left: u32,
    /// The topmost row.
    pub top: u32,
    /// One beyond the rightmost column.
    pub right: u32,
    /// One beyond the lowest row.
    pub bottom: u32,
    /// How many pixels it has.
    pub area: u64,
    /// What its pixels are marked with.
    mark: u32,
}

/// The regions of a mask.
pub struct Regions {
    width: u32,
    height: u32,
    /// The mark of each pixel's region, row by row; 0 for background.
    marks: Vec<u32>,
    /// The regions, in the order of their first pixels, row by row.
    pub all: Vec<Region>,
}

/// The eight neighbours, clockwise from the right one.
pub const AROUND: [(i64, i64); 8] = [
    (1, 0),
    (1, 1),
    (0, 1),
    (-1, 1),
    (-1, 0),
    (-1, -1),
    (0, -1),
    (1, -1),
];

impl Regions {
    /// The regions of class indices; index 0 is background.
    pub fn of(mask: MaskRef<'_>) -> Self {
        let (width, height) = mask.size();
        let mut regions = Regions {
            width,
            height,
            marks: vec![0; mask.labels().len()],
            all: Vec::new(),
        };
        for (at, class) in mask.labels().iter().enumerate() {
            if *class != 0 && regions.marks[at] == 0 {
                let region = regions.grow(mask.labels(), at);
                regions.all.push(region);
            }
        }
        regions
    }

    /// Marks the region of the pixel at `start`.
    fn grow(&mut self, labels: &[u8], start: usize) -> Region {
        let class = labels[start];
        // There are fewer regions than pixels, whose number has 32 bits and more only beyond any image read.
        let mark = self.all.len() as u32 + 1;
        let (x, y) = self.place(start);
        let mut region = Region {
            class,
            left: x,
            top: y,
            right: x + 1,
            bottom: y + 1,
            area: 0,
            mark,
        };
        let mut left = vec![start];
        self.marks[start] = mark;
        while let Some(at) = left.pop() {
            let (x, y) = self.place(at);
            region.left = region.left.min(x);
            region.right = region.right.max(x + 1);
            region.top = region.top.min(y);
            region.bottom = region.bottom.max(y + 1);
            region.area += 1;
            for (dx, dy) in AROUND {
                if let Some(next) = self.at(i64::from(x) + dx, i64::from(y) + dy)
                    && labels[next] == class
                    && self.marks[next] == 0
                {
                    self.marks[next] = mark;
                    left.push(next);
                }
            }
        }
        region
    }

    /// Width and height of the mask in pixels.
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    fn place(&self, at: usize) -> (u32, u32) {
        let width = self.width as usize;
        ((at % width) as u32, (at / width) as u32)
    }

    fn at(&self, x: i64, y: i64) -> Option<usize> {
        let inside =
            (0..i64::from(self.width)).contains(&x) && (0..i64::from(self.height)).contains(&y);
        inside.then(|| y as usize * self.width as usize + x as usize)
    }

    /// Whether a pixel belongs to a region; those beyond the border belong to none.
    pub fn holds(&self, region: &Region, x: i64, y: i64) -> bool {
        self.at(x, y)
            .is_some_and(|at| self.marks[at] == region.mark)
    }

    /// Run lengths of a region as COCO defines them: pixels are counted column by column from the top left,
    /// the first run is background, and the runs add up to all pixels.
    pub fn run_lengths(&self, region: &Region) -> Vec<u64> {
        let height = u64::from(self.height);
        let mut runs = Vec::new();
        let (mut inside, mut begun) = (false, 0);
        for x in region.left..region.right {
            for y in region.top..region.bottom {
                let at = u64::from(x) * height + u64::from(y);
                if self.holds(region, x.into(), y.into()) != inside {
                    runs.push(at - begun);
                    (inside, begun) = (!inside, at);
                }
            }
            // What lies below the region's lowest row or above its topmost one is background.
            let below = u64::from(x) * height + u64::from(region.bottom);
            if inside && (region.top > 0 || region.bottom < self.height) {
                runs.push(below - begun);
                (inside, begun) = (false, below);
            }
        }
        let all = u64::from(self.width) * height;
        if inside {
            let end = u64::from(region.right) * height;
            runs.push(end - begun);
            begun = end;
        }
        if begun < all {
            runs.push(all - begun);
        }
        runs
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::{Mask, rng};
    use rand::RngExt;

    fn mask(rows: &[&str]) -> Mask {
        let labels = rows.iter().flat_map(|row| row.bytes().map(|b| b - b'0'));
        Mask::new(rows[0].len() as u32, rows.len() as u32, labels.collect()).unwrap()
    }

    #[test]
    fn what_touches_at_a_corner_is_one_region() {
        let mask = mask(&["10020", "01022", "00000", "10000"]);
        let regions = Regions::of(mask.view());
        let facts = |r: &Region| (r.class, [r.left, r.top, r.right, r.bottom], r.area);
        let all: Vec<_> = regions.all.iter().map(facts).collect();
        assert_eq!(
            all,
            [
                (1, [0, 0, 2, 2], 2),
                (2, [3, 0, 5, 2], 3),
                (1, [0, 3, 1, 4], 1)
            ]
        );
    }

    #[test]
    fn run_lengths_go_down_the_columns() {
        let runs = |rows: &[&str]| {
            let mask = mask(rows);
            let regions = Regions::of(mask.view());
            regions.run_lengths(&regions.all[0])
        };
        assert_eq!(runs(&["010", "010", "000"]), [3, 2, 4]);
        assert_eq!(runs(&["11", "11"]), [0, 4]);
        assert_eq!(runs(&["01", "01"]), [2, 2]);
        assert_eq!(runs(&["110", "010", "011"]), [0, 1, 2, 3, 2, 1]);
        // From the lowest row on to the top of the next column it is one run.
        assert_eq!(runs(&["01", "10"]), [1, 2, 1]);
    }

    #[test]
    fn run_lengths_give_the_region_back() {
        let mut draw = rng::stream(1, "regions", 0);
        for _ in 0..50 {
            let labels = (0..7 * 9).map(|_| u8::from(draw.random_bool(0.5)));
            let mask = Mask::new(7, 9, labels.collect()).unwrap();
            let regions = Regions::of(mask.view());
            for region in &regions.all {
                let runs = regions.run_lengths(region);
                assert_eq!(runs.iter().sum::<u64>(), 63);
                let pixels = runs.iter().enumerate();
                let pixels = pixels.flat_map(|(i, n)| (0..*n).map(move |_| i % 2 == 1));
                for (at, inside) in pixels.enumerate() {
                    let (x, y) = ((at / 9) as i64, (at % 9) as i64);
                    assert_eq!(inside, regions.holds(region, x, y));
                }
            }
        }
    }
}
