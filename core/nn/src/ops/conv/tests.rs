//! Convolutions beside sums over windows, and their gradients.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::{check_gradients, close, random};

/// Sizes with odd sides, partial blocks of channels and more than one band of rows.
const SHAPES: [[usize; 6]; 6] = [
    // batch, inputs, outputs, height, width, k
    [2, 3, 5, 7, 9, 3],
    [1, 17, 9, 5, 4, 1],
    [3, 2, 8, 1, 1, 3],
    [1, 1, 2, 60, 50, 5],
    [2, 8, 16, 13, 33, 3],
    [2, 20, 17, 13, 33, 3],
];

#[test]
fn convolution_agrees_with_candle() {
    for [b, ci, co, h, w, k] in SHAPES {
        let x = random("x", &[b, ci, h, w]);
        let weight = random("weight", &[co, ci, k, k]);
        let bias = random("bias", &[co]);
        let ours = conv2d(&x, &weight, Some(&bias)).unwrap();
        let theirs = x.conv2d(&weight, k / 2, 1, 1, 1).unwrap();
        close(&ours, &add_bias(&theirs, Some(&bias)).unwrap(), 1e-5);
        close(&conv2d(&x, &weight, None).unwrap(), &theirs, 1e-5);
    }
}

#[test]
fn convolution_gradients() {
    for [b, ci, co, h, w, k] in [[2, 3, 5, 5, 4, 3], [2, 3, 9, 3, 5, 1], [1, 1, 1, 6, 7, 5]] {
        let x = random("x", &[b, ci, h, w]);
        let weight = random("weight", &[co, ci, k, k]);
        let bias = random("bias", &[co]);
        check_gradients(&[x, weight, bias], |v| conv2d(&v[0], &v[1], Some(&v[2])));
    }
}

#[test]
fn weight_gradient_over_many_tasks_agrees_with_candle() {
    // Large enough to be cut by pixels, with groups of inputs and blocks that are not full.
    let x = candle_core::Var::from_tensor(&random("x", &[3, 18, 37, 41])).unwrap();
    let w = candle_core::Var::from_tensor(&random("w", &[10, 18, 3, 3])).unwrap();
    let dy = random("dy", &[3, 10, 37, 41]);
    let grads = |y: Tensor| (y * &dy).unwrap().sum_all().unwrap().backward().unwrap();
    let ours = grads(conv2d(&x, &w, None).unwrap());
    let theirs = grads(x.conv2d(&w, 1, 1, 1, 1).unwrap());
    close(ours.get(&w).unwrap(), theirs.get(&w).unwrap(), 1e-4);
    close(ours.get(&x).unwrap(), theirs.get(&x).unwrap(), 1e-4);
}

#[test]
fn transposed_convolution_agrees_with_candle() {
    for [b, ci, co, h, w] in [[2, 6, 3, 5, 7], [1, 9, 5, 33, 31], [2, 1, 1, 1, 1]] {
        let x = random("x", &[b, ci, h, w]);
        let weight = random("weight", &[ci, co, 2, 2]);
        let bias = random("bias", &[co]);
        let ours = conv_transpose2x2(&x, &weight, &bias).unwrap();
        let theirs = x.conv_transpose2d(&weight, 0, 0, 2, 1).unwrap();
        close(&ours, &add_bias(&theirs, Some(&bias)).unwrap(), 1e-5);
    }
}

#[test]
fn transposed_convolution_gradients() {
    let inputs = [
        random("x", &[2, 5, 3, 4]),
        random("weight", &[5, 3, 2, 2]),
        random("bias", &[3]),
    ];
    check_gradients(&inputs, |v| conv_transpose2x2(&v[0], &v[1], &v[2]));
}

#[test]
fn packed_weights_of_every_type_hand_gradients_to_their_input() {
    for (x, w) in [([2, 3, 5, 4], [10, 3, 3, 3]), ([1, 9, 3, 7], [3, 9, 1, 1])] {
        let (x, w) = (random("x", &x), random("w", &w));
        let bias = random("bias", &w.dims()[..1]);
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let w = w.to_dtype(dtype).unwrap();
            let packed = match dtype {
                DType::BF16 => PackedConv2d::widened(&w, &bias).unwrap(),
                _ => PackedConv2d::new(&w, Some(&bias)).unwrap(),
            };
            let rounded = w.to_dtype(DType::F32).unwrap();
            let expected = conv2d(&x, &rounded, Some(&bias)).unwrap();
            close(&packed.forward(&x).unwrap(), &expected, 1e-6);
            check_gradients(std::slice::from_ref(&x), |v| packed.forward(&v[0]));
        }
    }
}

#[test]
fn bf16_weights_are_as_close_to_the_widened_as_a_rounded_input() {
    let many = [[1, 200, 20, 9, 8, 3], [2, 5, 9, 70, 90, 3]];
    for [b, ci, co, h, w, k] in SHAPES.into_iter().chain(many) {
        let x = random("x", &[b, ci, h, w]);
        let weight = random("weight", &[co, ci, k, k]);
        let weight = weight.to_dtype(DType::BF16).unwrap();
        let bias = random("bias", &[co]);
        let packed = PackedConv2d::new(&weight, Some(&bias)).unwrap();
        let slow = PackedConv2d::widened(&weight, &bias).unwrap();
        // No product is off by more than 2⁻⁸ of itself.
        let wide = weight.to_dtype(DType::F32).unwrap();
        let sizes = conv2d(&x.abs().unwrap(), &wide.abs().unwrap(), None).unwrap();
        let room = ((sizes * 2f64.powi(-8)).unwrap() + 1e-6).unwrap();
        let off = packed.forward(&x).unwrap() - slow.forward(&x).unwrap();
        let worst = (off.unwrap().abs().unwrap() / room).unwrap();
        let worst = worst.max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst <= 1.0, "{b}x{ci}x{h}x{w} to {co}: {worst}");
        // An input that is in bf16 already loses nothing.
        let narrow = x.to_dtype(DType::BF16).unwrap();
        let narrow = narrow.to_dtype(DType::F32).unwrap();
        let expected = slow.forward(&narrow).unwrap();
        close(&packed.forward(&narrow).unwrap(), &expected, 1e-5);
        let gradient = |packed: &PackedConv2d| {
            let x = candle_core::Var::from_tensor(&x).unwrap();
            let y = packed.forward(&x).unwrap();
            let y = (&y * random("dy", y.dims())).unwrap();
            let grads = y.sum_all().unwrap().backward().unwrap();
            grads.get(&x).unwrap().clone()
        };
        close(&gradient(&packed), &gradient(&slow), 1e-6);
    }
}

#[test]
fn an_image_depends_neither_on_its_neighbours_nor_on_threads() {
    let x = random("x", &[3, 20, 30, 33]);
    let (w, bias) = (random("w", &[40, 20, 3, 3]), random("bias", &[40]));
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let packed = PackedConv2d::new(&w.to_dtype(dtype).unwrap(), Some(&bias)).unwrap();
        let run = |threads: usize, x: &Tensor| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let y = pool.unwrap().install(|| packed.forward(x)).unwrap();
            y.flatten_from(1).unwrap().to_vec2::<f32>().unwrap()
        };
        let whole = run(1, &x);
        assert_eq!(whole, run(5, &x));
        for (image, among) in whole.iter().enumerate() {
            let alone = run(2, &x.narrow(0, image, 1).unwrap());
            assert_eq!(*among, alone[0]);
        }
    }
}

#[test]
fn an_input_that_is_data_gets_no_gradient() {
    let x = random("x", &[1, 2, 4, 4]);
    let w = candle_core::Var::from_tensor(&random("w", &[2, 2, 3, 3])).unwrap();
    let y = conv2d(&x, &w, None).unwrap().sum_all().unwrap();
    let grads = y.backward().unwrap();
    assert!(grads.get(&x).is_none() && grads.get(&w).is_some());
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let run = |threads: usize, channels: usize| {
        let (x, w) = ([4, channels, 40, 40], [channels, channels, 3, 3]);
        let x = candle_core::Var::from_tensor(&random("x", &x)).unwrap();
        let w = candle_core::Var::from_tensor(&random("w", &w)).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(|| {
            let y = conv2d(&x, &w, None).unwrap();
            let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            [&x, &w].map(|var| {
                let grad = grads.get(var).unwrap().flatten_all().unwrap();
                grad.to_vec1::<f32>().unwrap()
            })
        })
    };
    for channels in [8, 40] {
        assert_eq!(run(1, channels), run(5, channels));
    }
}

#[test]
fn a_misfit_is_named() {
    let x = random("x", &[1, 2, 4, 4]);
    let message = |shape: &[usize]| {
        let error = conv2d(&x, &random("w", shape), None).unwrap_err();
        error.to_string()
    };
    assert!(message(&[1, 3, 3, 3]).contains("2 channels"));
    assert!(message(&[1, 2, 2, 2]).contains("odd k"));
}
