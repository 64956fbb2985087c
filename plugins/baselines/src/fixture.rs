//! What the tests of all networks share: answers of a reference, and checks of any network.

#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Result, Tensor, backprop::GradStore};
use diffaug_nn::{
    layers::Mode,
    ops,
    params::Params,
    precision::Precision,
    recompute,
    segmenter::{Architecture, Load, Pass},
    testing::{close, random},
    weights::{self, Renamed},
};
use std::{collections::HashMap, ops::Deref, path::Path};

/// Tensors of a reference.
pub(crate) struct Fixture(pub HashMap<String, Tensor>);

impl Deref for Fixture {
    type Target = HashMap<String, Tensor>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Fixture {
    /// Those in a file among the fixtures.
    pub fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        Fixture(weights::read(&folder.join(name)).unwrap())
    }

    /// Those whose names begin with `prefix` and a dot, without both.
    pub fn part(&self, prefix: &str) -> Fixture {
        let named = self.iter().filter_map(|(name, tensor)| {
            let name = name.strip_prefix(prefix)?.strip_prefix('.')?;
            Some((name.to_owned(), tensor.clone()))
        });
        Fixture(named.collect())
    }

    /// Fills a network with the part `weights`, by the names that the reference has.
    pub fn fill(&self, architecture: &impl Architecture, params: &Params) {
        let weights = Renamed::new(self.part("weights").0, |name| architecture.renamed(name));
        weights::fill(weights.unwrap(), params).unwrap();
    }

    /// Asserts that gradients are those of the part `gradients`, which has several.
    pub fn compare_gradients(&self, params: &Params, grads: &GradStore, tolerance: f32) {
        let expected = self.part("gradients");
        let mut seen = 0;
        for (name, var) in params.trainable() {
            if let Some(expected) = expected.get(name) {
                close(grads.get(var).unwrap(), expected, tolerance);
                seen += 1;
            }
        }
        assert!(seen > 5 && seen == expected.len(), "{seen} gradients");
    }
}

/// A pass that learns, without dropout.
pub(crate) const LEARNING: Pass<'static> = Pass {
    mode: Mode::Train,
    ..Pass::ANSWER
};

/// [`close`] with a tolerance of the largest value, however small that is.
pub(crate) fn agree(ours: &Tensor, theirs: &Tensor, tolerance: f32) {
    let largest = theirs.abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    let factor = 1.0 / f64::from(largest.to_scalar::<f32>().unwrap());
    close(
        &(ours * factor).unwrap(),
        &(theirs * factor).unwrap(),
        tolerance,
    );
}

/// Random images, noisy masks and their timesteps.
pub(crate) fn inputs(masks: usize, height: usize, width: usize) -> [Tensor; 3] {
    [
        random("images", &[2, 3, height, width]),
        random("noisy", &[2, masks, height, width]),
        Tensor::new(&[3f32, 700.0], &Device::Cpu).unwrap(),
    ]
}

/// [`LEARNING`], with blocks computed again or not.
pub(crate) fn learning(recompute: bool) -> Pass<'static> {
    Pass {
        recompute,
        ..LEARNING
    }
}

/// Asserts that gradients are the same where blocks are computed again, but for the order of sums.
pub(crate) fn same_when_recomputed<F>(build: impl Fn() -> (Params, F))
where
    F: Fn(&Pass<'_>) -> Result<Tensor>,
{
    let run = |recompute: bool| {
        let (params, forward) = build();
        let answer = forward(&learning(recompute)).unwrap();
        let loss = answer.sqr().unwrap().mean_all().unwrap();
        let grads = recompute::backward(&loss).unwrap();
        (params, grads)
    };
    let ((kept, grads), (again, others)) = (run(false), run(true));
    for ((name, var), (_, other)) in kept.trainable().zip(again.trainable()) {
        let (ours, theirs) = (grads.get(var), others.get(other));
        assert!(ours.is_some() && theirs.is_some(), "{name}");
        close(theirs.unwrap(), ours.unwrap(), 1e-5);
    }
}

/// Asserts that other devices, whose operations are candle's, compute the same answers and gradients.
pub(crate) fn same_elsewhere(params: &Params, forward: impl Fn(&Pass<'_>) -> Result<Tensor>) {
    // Before statistics follow what is learned from.
    let answer = || forward(&Pass::ANSWER).unwrap();
    close(&ops::composed(answer), &answer(), 1e-4);
    let gradients = || {
        let loss = forward(&learning(false)).unwrap().sqr().unwrap();
        loss.mean_all().unwrap().backward().unwrap()
    };
    let (grads, others) = (gradients(), ops::composed(gradients));
    for (name, var) in params.trainable() {
        let (ours, theirs) = (grads.get(var), others.get(var));
        assert!(ours.is_some() && theirs.is_some(), "{name}");
        close(theirs.unwrap(), ours.unwrap(), 1e-3);
    }
}

/// A load that no memory has room for.
pub(crate) fn vast() -> Load {
    Load {
        outputs: 256,
        size: (1 << 16, 1 << 16),
        batch: usize::MAX,
        on_processor: false,
        precision: Precision::F32,
    }
}

/// Asserts that the answer in bf16 is that type's and near the one in f32.
pub(crate) fn wide_and_narrow(images: &Tensor, forward: impl Fn(&Tensor) -> Result<Tensor>) {
    let wide = forward(images).unwrap();
    let narrow = forward(&images.to_dtype(DType::BF16).unwrap()).unwrap();
    assert_eq!(narrow.dtype(), DType::BF16);
    close(&narrow.to_dtype(DType::F32).unwrap(), &wide, 0.1);
}
