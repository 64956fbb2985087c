//! The state of a training run on disk: one safetensors file with the weights, the optimiser's
//! moments and, as metadata, where the run stands. Equal states give equal bytes.

use crate::{optim::AdamW, params::Params, weights};
use candle_core::{Device, Tensor};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use serde::{Serialize, de::DeserializeOwned};
use std::{collections::HashMap, fs, path::Path};

/// The one metadata key; more than one would be written in random order.
const KEY: &str = "state";
/// Keeps the model's own names apart from the optimiser's.
const MODEL: &str = "model.";

/// Writes model, optimiser and `state`.
pub(crate) fn save(
    path: &Path,
    params: &Params,
    optimiser: &AdamW,
    state: &impl Serialize,
) -> Result<()> {
    let mut tensors = optimiser.state()?;
    for (name, var) in params.all() {
        tensors.push((format!("{MODEL}{name}"), var.as_detached_tensor()));
    }
    let tensors = tensors.into_iter().map(|(name, tensor)| {
        let tensor = tensor.to_device(&Device::Cpu)?;
        Ok((name, tensor))
    });
    let tensors: Vec<(String, Tensor)> = tensors.collect::<Result<_>>()?;
    let state = HashMap::from([(KEY.to_owned(), serde_json::to_string(state)?)]);
    let bytes = safetensors::serialize(tensors, Some(state))?;
    weights::write_atomically(path, &bytes)
}

/// Restores model and optimiser and returns the state.
pub(crate) fn load<S: DeserializeOwned>(
    path: &Path,
    params: &Params,
    optimiser: &mut AdamW,
    steps: impl Fn(&S) -> u64,
) -> Result<S> {
    let broken = || {
        let shown = path.display();
        format!("cannot go on from the checkpoint `{shown}`; remove it to start again")
    };
    let (mut model, mut moments) = (HashMap::new(), HashMap::new());
    for (name, tensor) in weights::read(path).or_error(ErrorKind::Model, broken)? {
        match name.strip_prefix(MODEL) {
            Some(name) => model.insert(name.to_owned(), tensor),
            None => moments.insert(name, tensor),
        };
    }
    let state: S = read_state(path).or_error(ErrorKind::Model, broken)?;
    weights::fill(&model, params).or_error(ErrorKind::Model, broken)?;
    let restored = optimiser.restore(steps(&state), &moments);
    restored.or_error(ErrorKind::Model, broken)?;
    Ok(state)
}

fn read_state<S: DeserializeOwned>(path: &Path) -> Result<S> {
    let bytes = fs::read(path)?;
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes)?;
    let text = metadata.metadata().as_ref().and_then(|map| map.get(KEY));
    let text = text.ok_or_else(|| Error::model("it does not say where the run stood"))?;
    Ok(serde_json::from_str(text)?)
}
