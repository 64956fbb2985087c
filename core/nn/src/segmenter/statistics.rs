//! Statistics of batch normalisation formed anew, of real images alone. Those that training leaves are of
//! the images that it saw last, synthetic ones among them, while what is to be segmented is real.

use crate::{
    fit::{Learner, WEIGHTS},
    layers::BatchNorm,
    params::Params,
    weights,
};
use candle_core::{Tensor, Var};
use diffaug::{BoxDataset, Dataset, Error, Result, Sample};
use std::{collections::HashSet, path::Path};

/// Batches that are looked at, at most.
const BATCHES: usize = 64;

/// Gives the weights in the folder `out` statistics of real images of `train`, as training sees them: the
/// means over batches of `batch` images of their means and variances. `forward` computes the network on
/// prepared images as training does, and is given the number of the batch.
///
/// Done again it leaves the same bytes.
///
/// # Errors
/// When no image is real, or one cannot be used.
pub fn of_real<L: Learner>(
    learner: &L,
    train: &BoxDataset,
    batch: usize,
    out: &Path,
    forward: impl Fn(L::Batch, u64) -> Result<()>,
) -> Result<()> {
    let params = learner.params();
    weights::load(&out.join(WEIGHTS), params)?;
    let items = train.items()?;
    let real = items.iter().zip(0u64..).filter(|(item, _)| !item.synthetic);
    let real: Vec<u64> = real.map(|(_, index)| index).collect();
    if real.is_empty() {
        return Err(Error::data(
            "none of the training images is real, so there are no statistics of real ones",
        )
        .at("real_statistics"));
    }
    let count = real.len().min(BATCHES * batch);
    // From all over the set.
    let chosen: Vec<u64> = (0..count).map(|i| real[i * real.len() / count]).collect();
    let buffers = buffers(params);
    let mut sums: Vec<Option<Tensor>> = vec![None; buffers.len()];
    let batches = chosen.chunks(batch);
    let all = batches.len() as f64;
    for (number, indices) in batches.enumerate() {
        let samples = indices.iter().map(|index| train.sample(*index));
        let samples: Vec<Sample> = samples.collect::<Result<_>>()?;
        // From zeros, the running statistics become the momentum's part of the batch's.
        for (_, buffer) in &buffers {
            buffer.set(&buffer.zeros_like()?)?;
        }
        let number = number as u64;
        forward(learner.prepare(samples, number)?, number)?;
        for (sum, (_, buffer)) in sums.iter_mut().zip(&buffers) {
            let found = (buffer.as_detached_tensor() / (BatchNorm::MOMENTUM * all))?;
            *sum = Some(match sum.take() {
                None => found,
                Some(sum) => (sum + found)?,
            });
        }
    }
    for (sum, (_, buffer)) in sums.into_iter().zip(&buffers) {
        if let Some(sum) = sum {
            buffer.set(&sum)?;
        }
    }
    if let Some(name) = weights::not_finite(params.all().map(|(n, var)| (n, var.as_tensor())))? {
        return Err(Error::model(format!(
            "a value of `{name}` became NaN or infinite when it was formed of real images"
        )));
    }
    weights::save(&out.join(WEIGHTS), params)
}

/// What is no trained weight.
fn buffers(params: &Params) -> Vec<(&str, &Var)> {
    let trained: HashSet<&str> = params.trainable().map(|(name, _)| name).collect();
    let all = params.all();
    all.filter(|(name, _)| !trained.contains(name)).collect()
}
