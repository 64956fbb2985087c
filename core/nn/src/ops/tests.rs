//! Every operation that has a fused form, at f64, which none of those takes: what other devices
//! compute with has to be there, and to agree in results and gradients.
//!
//! A device cannot be had here; f64 on a processor goes the same way.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::{close, random};
use candle_core::Var;

/// The result of `op` and its gradients, from inputs of `shapes`.
fn run(
    dtype: DType,
    shapes: &[&[usize]],
    op: &dyn Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let input = |(i, shape): (usize, &&[usize])| {
        Var::from_tensor(&random(&i.to_string(), shape).to_dtype(dtype)?)
    };
    let vars = shapes.iter().enumerate().map(input);
    let vars = vars.collect::<Result<Vec<Var>>>()?;
    let inputs: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = op(&inputs)?;
    let dy = random("dy", y.dims()).to_dtype(dtype)?;
    let grads = (&y * dy)?.sum_all()?.backward()?;
    let grads = vars.iter().map(|var| grads.get(var).unwrap().clone());
    std::iter::once(y)
        .chain(grads)
        .map(|t| t.to_dtype(DType::F32))
        .collect()
}

fn agree(shapes: &[&[usize]], op: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let fused = run(DType::F32, shapes, &op).unwrap();
    let composed = run(DType::F64, shapes, &op).unwrap();
    for (fused, composed) in fused.iter().zip(&composed) {
        close(fused, composed, 1e-4);
    }
}

#[test]
fn activations() {
    for op in [relu, sigmoid, silu, gelu, gelu_tanh, geglu] {
        agree(&[&[3, 4, 10]], |v| op(&v[0]));
    }
}

#[test]
fn attention() {
    agree(&[&[2, 5, 3]], |v| softmax(&v[0], 1));
    for causal in [false, true] {
        let attention = Attention {
            causal,
            ..Attention::new(2)
        };
        let keys: &[usize] = &[2, 7, 6];
        agree(&[&[2, 5, 6], keys, keys], |v| {
            attention.forward(&v[0], &v[1], &v[2])
        });
    }
}

#[test]
fn convolutions() {
    let (x, weight): (&[usize], &[usize]) = (&[2, 3, 6, 5], &[4, 3, 3, 3]);
    agree(&[x, weight], |v| conv2d(&v[0], &v[1], None));
    agree(&[x, weight, &[4]], |v| conv2d(&v[0], &v[1], Some(&v[2])));
    agree(&[x, &[3, 4, 2, 2], &[4]], |v| {
        conv_transpose2x2(&v[0], &v[1], &v[2])
    });
    agree(&[x, weight, &[4], &[4]], |v| {
        Ok(conv_batch_norm_relu(&v[0], &v[1], &v[2], &v[3], 1e-5)?.0)
    });
    agree(&[x], |v| max_pool2x2(&v[0]));
}

#[test]
fn linear_maps() {
    let (x, weight): (&[usize], &[usize]) = (&[2, 3, 6], &[4, 6]);
    agree(&[x, weight], |v| linear(&v[0], &v[1], None));
    agree(&[x, weight, &[4]], |v| linear(&v[0], &v[1], Some(&v[2])));
}

#[test]
fn norms() {
    let x: &[usize] = &[2, 6, 4, 3];
    agree(&[x, &[6], &[6]], |v| {
        Ok(batch_norm(&v[0], &v[1], &v[2], Statistics::Batch, 1e-5, true)?.0)
    });
    agree(&[x, &[6], &[6]], |v| {
        group_norm(&v[0], 3, &v[1], &v[2], 1e-5, Some(Activation::Silu))
    });
    agree(&[x, &[6], &[6]], |v| {
        instance_norm(&v[0], &v[1], &v[2], 1e-5)
    });
    agree(&[x, &[3], &[3]], |v| layer_norm(&v[0], &v[1], &v[2], 1e-5));
}

#[test]
fn losses() {
    agree(&[&[2, 1, 5, 4]], |v| {
        let targets = random("targets", v[0].dims())
            .abs()?
            .to_dtype(v[0].dtype())?;
        dice_bce_with_logits(&v[0], &targets, 0.4, 0.6)
    });
}
