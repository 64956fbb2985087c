//! Matrices turned over in blocks that stay in the L1 cache.

use super::buffer;
use rayon::prelude::*;

/// Side of a block.
const SIDE: usize = 32;

/// Transposes each of the matrices of `rows` × `columns` that `source` consists of.
pub fn transpose(source: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = buffer(source.len());
    if source.is_empty() {
        return out;
    }
    // A task fills some rows of one result, that is, some columns of its source.
    let matrices = source.chunks_exact(rows * columns);
    let tasks: Vec<_> = matrices
        .zip(out.chunks_exact_mut(rows * columns))
        .flat_map(|(source, out)| {
            let strips = out.chunks_mut(SIDE * rows).enumerate();
            strips.map(move |(strip, out)| (source, strip * SIDE, out))
        })
        .collect();
    tasks.into_par_iter().for_each(|(source, first, out)| {
        for top in (0..rows).step_by(SIDE) {
            let bottom = (top + SIDE).min(rows);
            for (column, out) in out.chunks_exact_mut(rows).enumerate() {
                let from = source[top * columns + first + column..]
                    .iter()
                    .step_by(columns);
                let pairs = out[top..bottom].iter_mut().zip(from);
                pairs.for_each(|(to, from)| *to = *from);
            }
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_finds_its_place() {
        let (rows, columns) = (37, 70);
        let source: Vec<f32> = (0..2 * rows * columns).map(|i| i as f32).collect();
        let turned = transpose(&source, rows, columns);
        for (at, value) in turned.iter().enumerate() {
            let (matrix, place) = (at / (rows * columns), at % (rows * columns));
            let (column, row) = (place / rows, place % rows);
            assert_eq!(
                *value,
                source[matrix * rows * columns + row * columns + column]
            );
        }
        assert!(transpose(&[], 0, 3).is_empty());
    }
}
