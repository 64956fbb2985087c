//! The operations agree with PyTorch, forward and backward, on the fixtures that
//! `fixtures/make_fixtures.py` wrote.

#![allow(clippy::unwrap_used)]

use candle_core::{Result, Var};
use diffaug_nn::{
    DType, Tensor,
    ops::{self, Statistics},
    testing::close,
    weights,
};
use std::{collections::HashMap, path::Path};

struct Fixtures(HashMap<String, Tensor>);

impl Fixtures {
    fn open() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ops.safetensors");
        Fixtures(weights::read(&path).unwrap())
    }

    fn get(&self, case: &str, name: &str) -> &Tensor {
        &self.0[&format!("{case}.{name}")]
    }

    /// Runs `f` on the inputs of `case` and compares result and gradients.
    fn check(&self, case: &str, inputs: &[&str], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
        let var = |name: &&str| Var::from_tensor(self.get(case, name)).unwrap();
        let vars: Vec<Var> = inputs.iter().map(var).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let y = f(&tensors).unwrap();
        close(&y, self.get(case, "y"), 1e-5);
        let direction = (&y * self.get(case, "dy")).unwrap().sum_all().unwrap();
        let grads = direction.backward().unwrap();
        for (name, var) in inputs.iter().zip(&vars) {
            close(
                grads.get(var).unwrap(),
                self.get(case, &format!("d{name}")),
                1e-4,
            );
        }
    }
}

#[test]
fn convolutions() {
    let fixtures = Fixtures::open();
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
fn max_pool() {
    Fixtures::open().check("max_pool", &["x"], |v| ops::max_pool2x2(&v[0]));
}

#[test]
fn batch_norm() {
    Fixtures::open().check("batch_norm", &["x", "weight", "bias"], |v| {
        Ok(ops::batch_norm(&v[0], &v[1], &v[2], Statistics::Batch, 1e-5, true)?.0)
    });
}

#[test]
fn losses() {
    let fixtures = Fixtures::open();
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
