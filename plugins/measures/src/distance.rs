//! Exact distances between pixels of a grid: to the nearest pixel of a region, and into its depth.

use crate::region::Region;

/// A column whose nearest pixel of the region is the nearest of all from the column `start` on.
struct Site {
    column: i64,
    start: i64,
}

/// For every pixel, the index of the pixel of `region` that is nearest to its centre, in Euclidean distance;
/// of equally near ones that in the leftmost column, then the upper one. `None` of an empty region.
///
/// The exact transform by lower envelopes of parabolas, first along columns, then along rows (Meijster, Roerdink and
/// Hesselink 2000; Felzenszwalb and Huttenlocher 2012), in whole numbers.
pub fn nearest(region: &Region) -> Option<Vec<usize>> {
    if region.is_empty() {
        return None;
    }
    let rows = nearest_in_columns(region);
    let mut found = Vec::with_capacity(region.inside.len());
    for (y, row) in rows.chunks_exact(region.width).enumerate() {
        let sites = envelope(row, y as i64);
        let mut last = 0;
        for x in 0..region.width as i64 {
            while sites.get(last + 1).is_some_and(|next| next.start <= x) {
                last += 1;
            }
            let column = sites[last].column as usize;
            // A site is a column with a pixel of the region.
            let nearest = row[column].unwrap_or(y);
            found.push(nearest * region.width + column);
        }
    }
    Some(found)
}

/// The row of the nearest pixel of `region` in the same column, for every pixel; the upper of two.
fn nearest_in_columns(region: &Region) -> Vec<Option<usize>> {
    let (width, height) = (region.width, region.height);
    let mut rows: Vec<Option<usize>> = vec![None; width * height];
    for at in 0..width * height {
        rows[at] = match region.inside[at] {
            true => Some(at / width),
            false => at.checked_sub(width).and_then(|above| rows[above]),
        };
    }
    let mut below: Vec<Option<usize>> = vec![None; width];
    for at in (0..width * height).rev() {
        let (x, y) = (at % width, at / width);
        if region.inside[at] {
            below[x] = Some(y);
        }
        rows[at] = match (rows[at], below[x]) {
            (Some(above), Some(below)) if below - y < y - above => Some(below),
            (None, below) => below,
            (above, _) => above,
        };
    }
    rows
}

/// The lower envelope along the row `y` of the parabolas over the nearest pixels in each column.
fn envelope(row: &[Option<usize>], y: i64) -> Vec<Site> {
    // Squared height of the parabola of a column; a column without any is no site.
    let height = |column: i64| row[column as usize].map_or(0, |row| (row as i64 - y).pow(2));
    let cost = |x: i64, column: i64| (x - column).pow(2) + height(column);
    let mut sites: Vec<Site> = Vec::new();
    for column in (0..row.len()).filter(|&x| row[x].is_some()) {
        let column = column as i64;
        while let Some(last) = sites.last() {
            if cost(last.start, last.column) <= cost(last.start, column) {
                break;
            }
            sites.pop();
        }
        let start = match sites.last() {
            None => 0,
            Some(last) => {
                let rise =
                    column.pow(2) - last.column.pow(2) + height(column) - height(last.column);
                // Where both are equally near the earlier column is kept.
                1 + rise.div_euclid(2 * (column - last.column))
            }
        };
        if start < row.len() as i64 {
            sites.push(Site { column, start });
        }
    }
    sites
}

/// Euclidean distance between the centres of two pixels of a grid `width` wide, in pixels.
pub fn between(width: usize, a: usize, b: usize) -> f64 {
    let x = (a % width).abs_diff(b % width) as f64;
    let y = (a / width).abs_diff(b / width) as f64;
    (x * x + y * y).sqrt()
}

/// How deep each pixel lies inside: the number of steps, diagonal ones included, to the nearest pixel that is
/// outside `region` or beyond the image; 0 outside.
pub fn depth(region: &Region) -> Vec<u32> {
    let (width, height) = (region.width, region.height);
    let mut depth: Vec<u32> = vec![0; width * height];
    let step = |depth: &[u32], at: usize, dx: isize, dy: isize| {
        let x = (at % width).checked_add_signed(dx).filter(|x| *x < width);
        let y = (at / width).checked_add_signed(dy).filter(|y| *y < height);
        x.zip(y).map_or(1, |(x, y)| depth[y * width + x] + 1)
    };
    for at in (0..width * height).filter(|&at| region.inside[at]) {
        let before = [(-1, 0), (-1, -1), (0, -1), (1, -1)];
        let steps = before.map(|(dx, dy)| step(&depth, at, dx, dy));
        depth[at] = steps.into_iter().min().unwrap_or(1);
    }
    for at in (0..width * height).rev().filter(|&at| region.inside[at]) {
        let after = [(1, 0), (1, 1), (0, 1), (-1, 1)];
        let steps = after.map(|(dx, dy)| step(&depth, at, dx, dy));
        depth[at] = steps.into_iter().fold(depth[at], u32::min);
    }
    depth
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Regions of any shape and density from a small generator of draws.
    fn scattered(width: usize, height: usize, seed: u64, share: u64) -> Region {
        let mut state = seed;
        let mut draw = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) % 100 < share
        };
        Region {
            width,
            height,
            inside: (0..width * height).map(|_| draw()).collect(),
        }
    }

    #[test]
    fn nearest_agrees_with_looking_everywhere() {
        let sizes = [(1, 1), (1, 9), (9, 1), (13, 7), (8, 21)];
        let mut compared = 0;
        for (seed, (width, height)) in (0..60).zip(sizes.into_iter().cycle()) {
            let region = scattered(width, height, seed, [2, 10, 40][seed as usize % 3]);
            let Some(found) = nearest(&region) else {
                assert!(region.is_empty());
                continue;
            };
            for (at, found) in found.into_iter().enumerate() {
                let squared = |other: usize| {
                    let x = (at % width).abs_diff(other % width);
                    let y = (at / width).abs_diff(other / width);
                    x * x + y * y
                };
                let pixels = (0..width * height).filter(|&other| region.inside[other]);
                let best = pixels.min_by_key(|&p| (squared(p), p % width, p / width));
                assert_eq!(
                    found,
                    best.unwrap(),
                    "{width}x{height}, seed {seed}, pixel {at}"
                );
                compared += 1;
            }
        }
        assert!(compared > 1000, "{compared}");
    }

    #[test]
    fn depth_counts_steps_to_the_outside() {
        let region = scattered(17, 11, 5, 90);
        let (width, height) = (17, 11);
        let found = depth(&region);
        for (at, &steps_in) in found.iter().enumerate() {
            let (x, y) = ((at % width) as i64, (at / width) as i64);
            let outside = |x: i64, y: i64| {
                let beyond = x < 0 || y < 0 || x >= width as i64 || y >= height as i64;
                beyond || !region.inside[(y * width as i64 + x) as usize]
            };
            let places =
                (-1..=height as i64).flat_map(|v| (-1..=width as i64).map(move |u| (u, v)));
            let steps = places.filter(|&(u, v)| outside(u, v));
            let best = steps.map(|(u, v)| (u - x).abs().max((v - y).abs())).min();
            assert_eq!(i64::from(steps_in), best.unwrap(), "pixel {at}");
        }
        assert!(found.iter().any(|depth| *depth > 1));
    }

    #[test]
    fn distances_are_between_centres() {
        assert_eq!(between(10, 0, 43), 5.0);
        assert_eq!(between(10, 43, 0), 5.0);
    }
}
