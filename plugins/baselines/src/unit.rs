//! Blocks of a network: how they are run, and the values of their maps.

use candle_core::{Result, Tensor};
use diffaug_nn::{
    layers::Mode,
    recompute,
    segmenter::{Load, Pass},
};

/// The block `f` of `maps`, computed again in the backward pass where `pass` says so.
pub(crate) fn run<F>(maps: &[&Tensor], pass: &Pass<'_>, f: F) -> Result<Tensor>
where
    F: Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
{
    match pass.recompute && pass.mode == Mode::Train {
        true => recompute::checkpointed(maps, f),
        false => {
            let maps: Vec<Tensor> = maps.iter().map(|map| (*map).clone()).collect();
            f(&maps)
        }
    }
}

/// Values of `channels` maps that were halved so many times, of all images.
pub(crate) fn values(load: &Load, channels: usize, halved: usize) -> u128 {
    (channels as u128).saturating_mul(load.pixels()) >> (2 * halved)
}
