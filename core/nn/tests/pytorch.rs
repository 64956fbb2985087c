//! The operations agree with PyTorch, forward and backward, on the fixtures that
//! `fixtures/make_fixtures.py` wrote.

#![allow(clippy::unwrap_used)]

use diffaug_nn::{
    DType,
    ops::{self, Statistics},
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
}

#[test]
fn pooling() {
    open("pooling").check("max_pool", &["x"], |v| ops::max_pool2x2(&v[0]));
}

#[test]
fn norms() {
    open("norms").agree("batch_norm", &["x", "weight", "bias"], |v| {
        Ok(ops::batch_norm(&v[0], &v[1], &v[2], Statistics::Batch, 1e-5, true)?.0)
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
