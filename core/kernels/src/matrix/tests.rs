//! Products of all layouts beside plain sums.

#![allow(clippy::unwrap_used)]

use super::*;
use half::bf16;

fn values(count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0)
        .collect()
}

fn expected(
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
    shape: [usize; 3],
) -> Vec<f64> {
    let [m, k, n] = shape;
    (0..m * n)
        .map(|at| {
            (0..k)
                .map(|k| f64::from(a(at / n, k)) * f64::from(b(k, at % n)))
                .sum()
        })
        .collect()
}

fn assert_close(ours: &[f32], theirs: &[f64], tolerance: f64) {
    for (at, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!(
            (f64::from(*a) - b).abs() <= tolerance * (1.0 + b.abs()),
            "{at}: {a}, expected {b}"
        );
    }
}

/// Odd sizes, more than one panel, depth and block of rows.
const SHAPES: [[usize; 3]; 6] = [
    [1, 1, 1],
    [3, 5, 7],
    [9, 400, 50],
    [77, 64, 130],
    [130, 800, 33],
    [5, 0, 4],
];

#[test]
fn all_layouts_give_the_product() {
    for [m, k, n] in SHAPES {
        let (a, b) = (values(m * k), values(k * n));
        let theirs = expected(|i, d| a[i * k + d], |d, j| b[d * n + j], [m, k, n]);
        let turned: Vec<f32> = (0..k * n).map(|at| b[at % k * n + at / k]).collect();
        let left = Left {
            data: &a,
            row: k,
            depth: 1,
        };
        let rows = || Rows {
            data: &b,
            depth: k,
            columns: n,
            stride: n,
        };
        let columns = || Columns {
            data: &turned,
            depth: k,
            columns: n,
            stride: k,
        };
        let mut out = vec![f32::NAN; m * n];
        multiply(vec![Product {
            left,
            right: rows(),
            start: Start::Zero,
            out: &mut out,
        }]);
        assert_close(&out, &theirs, 1e-5);
        let mut again = vec![0.5; m * n];
        multiply(vec![Product {
            left,
            right: columns(),
            start: Start::Kept,
            out: &mut again,
        }]);
        let shifted: Vec<f64> = theirs.iter().map(|v| v + 0.5).collect();
        assert_close(&again, &shifted, 1e-5);
        let packed = Packed::<f32>::new(&columns());
        let mut third = vec![0.0; m * n];
        multiply(vec![Product {
            left,
            right: packed,
            start: Start::Zero,
            out: &mut third,
        }]);
        assert_eq!(out, third);
        // The left matrix transposed.
        let turned: Vec<f32> = (0..m * k).map(|at| a[at % m * k + at / m]).collect();
        let left = Left {
            data: &turned,
            row: 1,
            depth: m,
        };
        multiply(vec![Product {
            left,
            right: rows(),
            start: Start::Zero,
            out: &mut third,
        }]);
        assert_eq!(out, third);
    }
}

#[test]
fn half_weights_are_the_rounded_weights() {
    let [m, k, n] = [9, 400, 50];
    let (a, b) = (values(m * k), values(k * n));
    let round = |v: f32| bf16::from_f32(v).to_f32();
    let theirs = expected(|i, d| a[i * k + d], |d, j| round(b[d * n + j]), [m, k, n]);
    let rows = Rows {
        data: &b,
        depth: k,
        columns: n,
        stride: n,
    };
    let packed = Packed::<bf16>::new(&rows);
    let mut out = vec![0.0; m * n];
    let left = Left {
        data: &a,
        row: k,
        depth: 1,
    };
    multiply(vec![Product {
        left,
        right: packed,
        start: Start::Zero,
        out: &mut out,
    }]);
    assert_close(&out, &theirs, 1e-5);
}

#[test]
fn threads_do_not_change_the_result() {
    let (a, b) = (values(100 * 500), values(500 * 300));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let mut out = vec![0.0; 100 * 300];
        pool.unwrap().install(|| {
            let left = Left {
                data: &a,
                row: 500,
                depth: 1,
            };
            let right = Rows {
                data: &b,
                depth: 500,
                columns: 300,
                stride: 300,
            };
            multiply(vec![Product {
                left,
                right,
                start: Start::Zero,
                out: &mut out,
            }]);
        });
        out
    };
    assert_eq!(run(1), run(5));
}
