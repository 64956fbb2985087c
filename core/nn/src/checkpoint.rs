//! The state of a training run on disk: one safetensors file with the weights, what the optimiser
//! remembers, the running means and, as metadata, where the run stands. Equal states give equal
//! bytes.

use crate::{
    optim::{Ema, Optimizer},
    params::Params,
    weights::{self, Files, Source},
};
use candle_core::{Device, Tensor, Var, bail};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use serde::{Serialize, de::DeserializeOwned};
use std::{collections::HashMap, path::Path};

/// The one metadata key; more than one would be written in random order.
const KEY: &str = "state";
/// Keeps the model's own names apart from the others'.
const MODEL: &str = "model.";
const MEANS: &str = "ema.";

/// What a checkpoint is loaded into.
pub(crate) struct Parts<'a> {
    pub params: &'a Params,
    pub optimizer: &'a mut Optimizer,
    pub ema: Option<&'a mut Ema>,
}

/// Writes model, optimiser, running means and `state`.
pub(crate) fn save(
    path: &Path,
    params: &Params,
    optimizer: &Optimizer,
    ema: Option<&Ema>,
    state: &impl Serialize,
) -> Result<()> {
    let mut tensors = optimizer.state()?;
    let mut add = |prefix: &str, (name, var): (&str, &Var)| {
        tensors.push((format!("{prefix}{name}"), var.as_detached_tensor()));
    };
    params.all().for_each(|pair| add(MODEL, pair));
    let means = ema.iter().flat_map(|ema| ema.means());
    means.for_each(|pair| add(MEANS, pair));
    let tensors = tensors.into_iter().map(|(name, tensor)| {
        let tensor = tensor.to_device(&Device::Cpu)?;
        Ok((name, tensor))
    });
    let tensors: Vec<(String, Tensor)> = tensors.collect::<Result<_>>()?;
    let state = HashMap::from([(KEY.to_owned(), serde_json::to_string(state)?)]);
    let bytes = safetensors::serialize(tensors, Some(state))?;
    weights::write_atomically(path, &bytes)
}

/// Restores everything and returns the state, which `accept` looks at first: it says how many steps
/// the optimiser and how many updates the running means have behind them. Nothing is changed unless
/// all of it fits.
pub(crate) fn load<S: DeserializeOwned>(
    path: &Path,
    parts: Parts<'_>,
    accept: impl FnOnce(&S) -> Result<(u64, u64)>,
) -> Result<S> {
    let load = || {
        let mut files = Files::open(&[path])?;
        let state: S = read_state(&files)?;
        let mut tensors = HashMap::new();
        for name in files.names() {
            if let Some(tensor) = files.take(&name)? {
                tensors.insert(name, tensor);
            }
        }
        let (steps, averaged) = accept(&state)?;
        restore(&tensors, parts, steps, averaged)?;
        Ok(state)
    };
    load().map_err(|error: Error| {
        let shown = path.display();
        error.context(format!(
            "cannot go on from the checkpoint `{shown}`; remove it to start again"
        ))
    })
}

fn restore(
    tensors: &HashMap<String, Tensor>,
    parts: Parts<'_>,
    steps: u64,
    averaged: u64,
) -> Result<()> {
    let Parts {
        params,
        optimizer,
        ema,
    } = parts;
    let shaped =
        |prefix: &str, (name, var): (&str, &Var)| (format!("{prefix}{name}"), var.dims().to_vec());
    let mut expected = optimizer.expected();
    expected.extend(params.all().map(|pair| shaped(MODEL, pair)));
    let means = ema.iter().flat_map(|ema| ema.means());
    expected.extend(means.map(|pair| shaped(MEANS, pair)));
    weights::compare(tensors, &expected)?;

    let find = |name: &str| match tensors.get(name) {
        Some(tensor) => Ok(tensor),
        None => bail!("tensor `{name}` is missing"),
    };
    for (name, var) in params.all() {
        let tensor = find(&format!("{MODEL}{name}"))?;
        var.set(&tensor.to_dtype(var.dtype())?.to_device(var.device())?)?;
    }
    optimizer.restore(steps, find)?;
    if let Some(ema) = ema {
        ema.restore(averaged, |name| find(&format!("{MEANS}{name}")))?;
    }
    Ok(())
}

fn read_state<S: DeserializeOwned>(files: &Files) -> Result<S> {
    let text = files.metadata().get(KEY);
    let text = text.ok_or_else(|| Error::model("it does not say where the run stood"))?;
    serde_json::from_str(text).or_error(ErrorKind::Model, || {
        "what it says about where the run stood cannot be read".to_owned()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::optim::{Config, Decay};
    use std::fs;

    /// Tensors of a model with a tensor of each of these names and heights.
    fn parts(tensors: &[(&str, usize)]) -> (Params, Optimizer, Ema) {
        let mut params = Params::new(&Device::Cpu, 0);
        for (name, height) in tensors {
            params.root().uniform(name, &[*height, 2], 1.0).unwrap();
        }
        let optimizer = Optimizer::new(params.trainable(), &Config::default()).unwrap();
        let ema = Ema::new(params.trainable(), Decay::Fixed { decay: 0.5 }).unwrap();
        (params, optimizer, ema)
    }

    fn message(path: &Path, tensors: &[(&str, usize)], average: bool) -> String {
        let (params, mut optimizer, mut ema) = parts(tensors);
        let parts = Parts {
            params: &params,
            optimizer: &mut optimizer,
            ema: average.then_some(&mut ema),
        };
        load(path, parts, |_: &u64| Ok((1, 1)))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn what_does_not_fit_is_named_with_its_shapes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last.safetensors");
        let (params, optimizer, ema) = parts(&[("a", 3), ("b", 1)]);
        save(&path, &params, &optimizer, Some(&ema), &5u64).unwrap();
        let text = message(&path, &[("a", 3), ("b", 4)], true);
        assert!(text.contains("cannot go on from the checkpoint"), "{text}");
        assert!(text.contains("has shape [1, 2], expected [4, 2]"), "{text}");
        let text = message(&path, &[("a", 3), ("b", 1), ("c", 2)], true);
        assert!(
            text.contains("`first.c` is missing, expected with shape [2, 2]"),
            "{text}"
        );
        let text = message(&path, &[("a", 3)], true);
        assert!(
            text.contains("`ema.b` with shape [1, 2] is not part of it"),
            "{text}"
        );
        let text = message(&path, &[("a", 3), ("b", 1)], false);
        assert!(
            text.contains("`ema.a` with shape [3, 2] is not part of it"),
            "{text}"
        );
        fs::write(&path, "x").unwrap();
        assert!(message(&path, &[], false).contains("not a complete safetensors file"));
    }

    #[test]
    fn weights_are_no_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last.safetensors");
        weights::save(&path, &parts(&[("a", 3)]).0).unwrap();
        let text = message(&path, &[("a", 3)], false);
        assert!(text.contains("does not say where the run stood"), "{text}");
    }
}
