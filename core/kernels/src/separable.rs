//! Linear maps of feature maps that treat rows and columns apart: interpolation and averages.
//!
//! Each axis is a sparse matrix, so the gradient is the same loop with the matrices transposed:
//! every result gathers what it needs, in an order that the shapes decide.

use super::buffer;
use pulp::Arch;
use rayon::prelude::*;

/// Values that one task takes at least.
const TASK: usize = 1 << 14;

/// What every place along one axis of the result takes from the places of the source.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    inputs: usize,
    /// Where the taps of each result begin, and where the last ones end.
    starts: Vec<usize>,
    /// Place in the source, and its share.
    taps: Vec<(usize, f32)>,
}

impl Axis {
    /// `results` lists the taps of each result; shares of 0 are dropped.
    pub fn new<T: IntoIterator<Item = (usize, f32)>>(
        inputs: usize,
        results: impl IntoIterator<Item = T>,
    ) -> Self {
        let (mut starts, mut taps) = (vec![0], Vec::new());
        for result in results {
            taps.extend(result.into_iter().filter(|(_, share)| *share != 0.0));
            starts.push(taps.len());
        }
        Axis {
            inputs,
            starts,
            taps,
        }
    }

    /// Places of the source.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Places of the result.
    pub fn outputs(&self) -> usize {
        self.starts.len() - 1
    }

    fn results(&self) -> impl Iterator<Item = &[(usize, f32)]> {
        self.starts.windows(2).map(|w| &self.taps[w[0]..w[1]])
    }

    /// The way back: what every place of the source gives to the results.
    pub fn transposed(&self) -> Self {
        let mut turned = vec![Vec::new(); self.inputs];
        for (at, taps) in self.results().enumerate() {
            for (from, share) in taps {
                turned[*from].push((at, *share));
            }
        }
        Axis::new(self.outputs(), turned)
    }

    /// The whole matrix, `[outputs, inputs]`.
    pub fn dense(&self) -> Vec<f32> {
        let mut matrix = vec![0.0; self.outputs() * self.inputs];
        for (row, taps) in matrix.chunks_mut(self.inputs.max(1)).zip(self.results()) {
            for (from, share) in taps {
                row[*from] += share;
            }
        }
        matrix
    }

    /// Every row of `source` through the matrix.
    fn along_rows(&self, source: &[f32], out: &mut [f32]) {
        let rows = out.chunks_mut(self.outputs());
        for (out, row) in rows.zip(source.chunks(self.inputs)) {
            for (out, taps) in out.iter_mut().zip(self.results()) {
                *out = taps
                    .iter()
                    .fold(0.0, |sum, (at, share)| sum + share * row[*at]);
            }
        }
    }

    /// Every column of `source`, whose rows have `width` values, through the matrix.
    fn along_columns(&self, source: &[f32], width: usize, out: &mut [f32]) {
        let row = |at: usize| &source[at * width..(at + 1) * width];
        Arch::new().dispatch(|| {
            for (out, taps) in out.chunks_mut(width).zip(self.results()) {
                let Some(((first, share), more)) = taps.split_first() else {
                    out.fill(0.0);
                    continue;
                };
                for (out, v) in out.iter_mut().zip(row(*first)) {
                    *out = share * v;
                }
                for (at, share) in more {
                    for (out, v) in out.iter_mut().zip(row(*at)) {
                        *out += share * v;
                    }
                }
            }
        });
    }
}

/// Every map of `maps` through both matrices; no axis may be empty.
pub fn apply(maps: &[f32], rows: &Axis, columns: &Axis) -> Vec<f32> {
    let (height, width) = (rows.inputs(), columns.inputs());
    let (to_height, to_width) = (rows.outputs(), columns.outputs());
    // The gathering pass along rows is the slow one: it goes where there are fewer of them.
    let rows_first = height < to_height;
    let between = if rows_first {
        height * to_width
    } else {
        to_height * width
    };
    let mut out = buffer(maps.len() / (height * width) * to_height * to_width);
    out.par_chunks_mut(to_height * to_width)
        .zip(maps.par_chunks(height * width))
        .with_min_len(TASK.div_ceil(height * width + to_height * to_width))
        .for_each_init(
            || buffer(between),
            |between, (out, map)| {
                if rows_first {
                    columns.along_rows(map, between);
                    rows.along_columns(between, to_width, out);
                } else {
                    rows.along_columns(map, width, between);
                    columns.along_rows(between, out);
                }
            },
        );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_axis_is_the_transposed_matrix() {
        let axis = Axis::new(
            3,
            [vec![(0, 0.5), (1, 0.5)], vec![], vec![(1, 2.0), (2, 0.0)]],
        );
        assert_eq!(axis.dense(), [0.5, 0.5, 0., 0., 0., 0., 0., 2., 0.]);
        let turned = axis.transposed();
        assert_eq!((turned.inputs(), turned.outputs()), (3, 3));
        assert_eq!(turned.dense(), [0.5, 0., 0., 0.5, 0., 2., 0., 0., 0.]);
    }

    #[test]
    fn both_orders_of_passes_agree() {
        // Two rows to three, and back again.
        let grow = Axis::new(
            2,
            [vec![(0, 1.0)], vec![(0, 0.5), (1, 0.5)], vec![(1, 1.0)]],
        );
        let sum = Axis::new(2, [vec![(0, 1.0), (1, 1.0)]]);
        let map = [1., 2., 3., 4.];
        assert_eq!(apply(&map, &grow, &sum), [3., 5., 7.]);
        assert_eq!(apply(&map, &sum, &grow), [4., 5., 6.]);
    }
}
