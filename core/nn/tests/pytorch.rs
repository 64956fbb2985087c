//! The operations agree with PyTorch, forward and backward, on the fixtures that
//! `fixtures/make_fixtures.py` wrote.

#![allow(clippy::unwrap_used)]

use diffaug_nn::{
    DType, Tensor,
    ops::{self, Activation, Attention, Convolution, Statistics, TransposedConvolution},
    testing::Fixtures,
};
use std::path::Path;

/// What PyTorch answered for a family of operations.
fn open(family: &str) -> Fixtures {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    Fixtures::open(folder.join(family).with_extension("safetensors"))
}

#[test]
fn convolutions() {
    let fixtures = open("convolutions");
    fixtures.check("conv3", &["x", "weight"], |v| {
        ops::conv2d(&v[0], &v[1], None)
    });
    fixtures.check("conv1", &["x", "weight", "bias"], |v| {
        ops::conv2d(&v[0], &v[1], Some(&v[2]))
    });
    fixtures.check("conv_transpose", &["x", "weight", "bias"], |v| {
        ops::conv_transpose2x2(&v[0], &v[1], &v[2])
    });
    fixtures.check("strided", &["x", "weight", "bias"], |v| {
        Convolution::square(2, 1).forward(&v[0], &v[1], Some(&v[2]))
    });
    let uneven = Convolution {
        stride: [2, 1],
        padding: [1, 0],
        dilation: [1, 3],
        groups: 2,
    };
    fixtures.check("grouped", &["x", "weight"], |v| {
        uneven.forward(&v[0], &v[1], None)
    });
    let depthwise = Convolution {
        groups: 6,
        ..Convolution::same(3)
    };
    fixtures.check("depthwise", &["x", "weight", "bias"], |v| {
        depthwise.forward(&v[0], &v[1], Some(&v[2]))
    });
    let transposed = TransposedConvolution {
        stride: [3, 1],
        padding: [1, 0],
        output_padding: [2, 0],
        dilation: [1, 2],
        groups: 2,
    };
    fixtures.check("transposed", &["x", "weight", "bias"], |v| {
        transposed.forward(&v[0], &v[1], Some(&v[2]))
    });
}

#[test]
fn linear() {
    let fixtures = open("linear");
    fixtures.check("linear", &["x", "weight", "bias"], |v| {
        ops::linear(&v[0], &v[1], Some(&v[2]))
    });
    fixtures.check("single", &["x", "weight"], |v| {
        ops::linear(&v[0], &v[1], None)
    });
}

#[test]
fn activations() {
    let fixtures = open("activations");
    fixtures.check("silu", &["x"], |v| ops::silu(&v[0]));
    fixtures.check("gelu", &["x"], |v| ops::gelu(&v[0]));
    fixtures.check("gelu_tanh", &["x"], |v| ops::gelu_tanh(&v[0]));
    fixtures.check("geglu", &["x"], |v| ops::geglu(&v[0]));
}

#[test]
fn attention() {
    let fixtures = open("attention");
    let attend = |heads, causal| {
        let attention = Attention {
            causal,
            ..Attention::new(heads)
        };
        move |v: &[Tensor]| attention.forward(&v[0], &v[1], &v[2])
    };
    fixtures.check("self", &["q", "k", "v"], attend(3, false));
    fixtures.check("cross", &["q", "k", "v"], attend(1, false));
    fixtures.check("causal", &["q", "k", "v"], attend(2, true));
    fixtures.check("softmax", &["x"], |v| ops::softmax(&v[0], 2));
}

#[test]
fn pooling() {
    open("pooling").check("max_pool", &["x"], |v| ops::max_pool2x2(&v[0]));
}

#[test]
fn norms() {
    let fixtures = open("norms");
    fixtures.agree("batch_norm", &["x", "weight", "bias"], |v| {
        Ok(ops::batch_norm(&v[0], &v[1], &v[2], Statistics::Batch, 1e-5, true)?.0)
    });
    let affine = ["x", "weight", "bias"];
    fixtures.check("group_norm", &affine, |v| {
        ops::group_norm(&v[0], 2, &v[1], &v[2], 1e-5, None)
    });
    fixtures.check("group_norm_silu", &affine, |v| {
        ops::group_norm(&v[0], 3, &v[1], &v[2], 1e-6, Some(Activation::Silu))
    });
    fixtures.check("instance_norm", &affine, |v| {
        ops::instance_norm(&v[0], &v[1], &v[2], 1e-5)
    });
    fixtures.check("layer_norm", &affine, |v| {
        ops::layer_norm(&v[0], &v[1], &v[2], 1e-5)
    });
}

#[test]
fn losses() {
    let fixtures = open("losses");
    let targets = fixtures.get("bce", "targets");
    fixtures.check("bce", &["x"], |v| ops::bce_with_logits(&v[0], targets));
    let targets = fixtures.get("dice", "targets");
    fixtures.check("dice", &["x"], |v| ops::dice_with_logits(&v[0], targets));
    let targets = fixtures
        .get("cross_entropy", "targets")
        .to_dtype(DType::U32)
        .unwrap();
    fixtures.check("cross_entropy", &["x"], |v| {
        ops::cross_entropy(&v[0], &targets)
    });
}
