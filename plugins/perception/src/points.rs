//! Images as points: features of a network, one row an image.

use diffaug::{Error, Result, rng};
use rand::RngExt;
use rayon::prelude::*;

/// Numbers that are added up side by side, for the processor's vectors.
const LANES: usize = 8;

/// Points of equal width, each of an image of a dataset.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Points {
    width: usize,
    values: Vec<f32>,
    of: Vec<u64>,
}

impl Points {
    /// Adds the point of image `of`.
    ///
    /// # Errors
    /// When it has another width than those before it, or none.
    pub fn push(&mut self, row: &[f32], of: u64) -> Result<()> {
        if self.of.is_empty() {
            self.width = row.len();
        }
        if row.is_empty() || row.len() != self.width {
            return Err(Error::internal(format!(
                "a point of {} values beside points of {}",
                row.len(),
                self.width
            )));
        }
        self.values.extend(row);
        self.of.push(of);
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// How many values each has.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The values of the point at `index`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..][..self.width]
    }

    /// The number of the image that the point at `index` is of.
    pub fn of(&self, index: usize) -> u64 {
        self.of[index]
    }

    /// Two halves, drawn by `seed`; of an odd number one is left out.
    pub fn halves(&self, seed: u64) -> (Points, Points) {
        let order = shuffled(self.len(), seed);
        let half = self.len() / 2;
        (self.some(&order[..half]), self.some(&order[half..2 * half]))
    }

    fn some(&self, indices: &[usize]) -> Points {
        Points {
            width: self.width,
            values: indices.iter().flat_map(|i| self.row(*i)).copied().collect(),
            of: indices.iter().map(|i| self.of[*i]).collect(),
        }
    }

    /// What `work` makes of each point, in their order; it is given the point's number and values.
    pub fn each<T: Send>(&self, work: impl Fn(usize, &[f32]) -> T + Sync) -> Vec<T> {
        let rows = (0..self.len()).into_par_iter();
        rows.map(|index| work(index, self.row(index))).collect()
    }
}

/// The numbers below `count` in an order drawn by `seed` (Fisher & Yates).
fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut rng = rng::stream(seed, "halves", 0);
    for last in (1..count).rev() {
        order.swap(last, rng.random_range(0..=last));
    }
    order
}

/// The sum over places of `term`, in f64; its order depends on the length alone.
fn sum(a: &[f32], b: &[f32], term: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let (whole_a, whole_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = whole_a.remainder().iter().zip(whole_b.remainder());
    let rest: f64 = rest.map(|(a, b)| term(f64::from(*a), f64::from(*b))).sum();
    for (a, b) in whole_a.zip(whole_b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += term(f64::from(*a), f64::from(*b));
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// The inner product of two points.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    sum(a, b, |a, b| a * b)
}

/// The squared Euclidean distance of two points: exactly 0 for equal ones.
pub fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    sum(a, b, |a, b| (a - b) * (a - b))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::features;

    #[test]
    fn halves_share_nothing_and_follow_from_the_seed() {
        let points = features(11, 3, 1);
        let (a, b) = points.halves(4);
        assert_eq!((a.len(), b.len(), a.width()), (5, 5, 3));
        let mut all: Vec<u64> = a.of.iter().chain(&b.of).copied().collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 10);
        assert_eq!(a.row(2), points.row(a.of(2) as usize));
        assert_eq!(points.halves(4), (a.clone(), b));
        assert_ne!(points.halves(5).0, a);
        assert_eq!(Points::default().halves(0).0.len(), 0);
    }

    #[test]
    fn sums_take_every_place() {
        for len in [1, 7, 8, 19] {
            let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let b = vec![2.0; len as usize];
            assert_eq!(dot(&a, &b), f64::from(len * (len - 1)));
            let expected: i32 = (0..len).map(|i| (i - 2) * (i - 2)).sum();
            assert_eq!(squared_distance(&a, &b), f64::from(expected));
        }
    }

    #[test]
    fn points_of_other_widths_are_refused() {
        let mut points = features(1, 3, 1);
        assert!(points.push(&[1.0, 2.0], 1).is_err());
        assert!(Points::default().push(&[], 0).is_err());
    }
}
