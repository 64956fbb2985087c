//! The S-measure: how alike a map and the truth are in structure, as objects and by quarters of the image.

use crate::region::Region;
use std::ops::Range;

/// The share of the object part; the rest is that of the regions.
const ALPHA: f64 = 0.5;

/// The S-measure of `map`, values from 0 to 1.
pub fn s_measure(map: &[f64], truth: &Region) -> f64 {
    let pixels = map.len() as f64;
    let mean = map.iter().sum::<f64>() / pixels;
    match truth.area() {
        0 => 1.0 - mean,
        area if area == map.len() => mean,
        area => {
            let object = objects(map, truth, area as f64 / pixels);
            let score = ALPHA * object + (1.0 - ALPHA) * regions(map, truth);
            score.max(0.0)
        }
    }
}

/// The object part: how evenly bright the lesion is and how evenly dark the rest, weighted by their sizes.
fn objects(map: &[f64], truth: &Region, share: f64) -> f64 {
    let side = |wanted: bool| {
        let pixels = map.iter().zip(&truth.inside);
        let inside = pixels.filter(move |(_, inside)| **inside == wanted);
        inside.map(|(value, _)| *value)
    };
    let lesion: Vec<f64> = side(true).collect();
    let rest: Vec<f64> = side(false).map(|value| 1.0 - value).collect();
    share * evenness(&lesion) + (1.0 - share) * evenness(&rest)
}

fn evenness(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let spread = match values.len() {
        1 => 0.0,
        _ => (squares / (count - 1.0)).sqrt(),
    };
    2.0 * mean / (mean * mean + 1.0 + spread + f64::EPSILON)
}

/// The region part: the structural similarity of the four quarters around the centre of the lesion, weighted by
/// their areas; the truth has a lesion.
fn regions(map: &[f64], truth: &Region) -> f64 {
    let (width, height) = (truth.width, truth.height);
    let (mut sum_x, mut sum_y) = (0, 0);
    let area = truth.area();
    for at in (0..map.len()).filter(|&at| truth.inside[at]) {
        sum_x += at % width;
        sum_y += at / width;
    }
    // The quarters on the left and on top hold the centre's column and row.
    let place = |sum: usize| (sum as f64 / area as f64).round_ties_even() as usize + 1;
    let (x, y) = (place(sum_x), place(sum_y));
    let quarters = [
        (0..x, 0..y),
        (x..width, 0..y),
        (0..x, y..height),
        (x..width, y..height),
    ];
    let score = |(columns, rows): (Range<usize>, Range<usize>)| {
        let pixels = columns.len() * rows.len();
        match pixels {
            0 => 0.0,
            pixels => similarity(map, truth, columns, rows) * pixels as f64 / map.len() as f64,
        }
    };
    quarters.into_iter().map(score).sum()
}

/// The structural similarity of map and truth in a rectangle that is not empty.
fn similarity(map: &[f64], truth: &Region, columns: Range<usize>, rows: Range<usize>) -> f64 {
    let places = || {
        let columns = columns.clone();
        rows.clone()
            .flat_map(move |y| columns.clone().map(move |x| y * truth.width + x))
    };
    let pairs = || places().map(|at| (map[at], f64::from(u8::from(truth.inside[at]))));
    let count = (columns.len() * rows.len()) as f64;
    let first = map[rows.start * truth.width + columns.start];
    // The mean of equal values is that value, which a sum may miss by a rounding that decides below.
    let x = match pairs().all(|(value, _)| value == first) {
        true => first,
        false => pairs().map(|(value, _)| value).sum::<f64>() / count,
    };
    let y = pairs().map(|(_, inside)| inside).sum::<f64>() / count;
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (value, inside) in pairs() {
        xx += (value - x).powi(2);
        yy += (inside - y).powi(2);
        xy += (value - x) * (inside - y);
    }
    let divisor = count - 1.0 + f64::EPSILON;
    let alpha = 4.0 * x * y * (xy / divisor);
    let beta = (x * x + y * y) * (xx / divisor + yy / divisor);
    if alpha != 0.0 {
        alpha / (beta + f64::EPSILON)
    } else if beta == 0.0 {
        1.0
    } else {
        0.0
    }
}
