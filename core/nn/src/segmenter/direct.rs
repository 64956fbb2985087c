//! Networks that answer with a mask at once: their losses, and probabilities of logits.

use super::{Answer, Architecture, Description, Learned, Network, Pass, Setting};
use crate::{
    ops,
    params::{Params, Scope},
};
use candle_core::{DType, Device, Tensor};
use diffaug::{Error, Result};
use std::path::Path;

/// The Dice part of the loss: over the whole batch.
const DICE: ops::SoftDice = ops::SoftDice {
    smooth: 1e-6,
    squared: false,
    per_image: false,
};

/// A network that answers with a mask at once.
pub struct Direct<N>(N);

impl<N: Network> Learned for Direct<N> {
    type Architecture = N::Architecture;
    const DRAWS: bool = false;

    fn new(
        scope: Scope<'_>,
        description: &Description<N::Architecture>,
    ) -> candle_core::Result<Self> {
        let size = description.frame().whole;
        N::new(
            scope,
            &description.architecture,
            description.outputs(),
            size,
        )
        .map(Direct)
    }

    fn check(options: &super::Options<N::Architecture>) -> Result<()> {
        match options.sampling.is_some() {
            true => Err(Error::config(format!(
                "`sampling` is for segmenters that denoise masks; `{}` answers at once",
                N::Architecture::PLUGIN
            ))
            .at("sampling")),
            false => Ok(()),
        }
    }

    fn loss(
        &self,
        setting: &Setting<'_, N::Architecture>,
        images: &Tensor,
        targets: Tensor,
        pass: &Pass<'_>,
        _step: u64,
    ) -> Result<Tensor> {
        let frame = setting.description.frame();
        let logits = self.0.forward(images, pass)?;
        let (mut logits, mut targets) = (logits.to_dtype(DType::F32)?, targets);
        if frame.whole != frame.content {
            // Padding is not judged.
            let (width, height) = (frame.content.0 as usize, frame.content.1 as usize);
            logits = logits.narrow(2, 0, height)?.narrow(3, 0, width)?;
            targets = targets
                .narrow(1, 0, height)?
                .narrow(2, 0, width)?
                .contiguous()?;
        }
        let loss = setting.options.loss();
        let (dice, cross_entropy) = loss.weights();
        let squared = loss.squared();
        if setting.description.outputs() > 1 {
            let dice_loss = ops::SoftDice { squared, ..DICE };
            let dice_part = (dice_loss.multiclass(&logits, &targets)? * f64::from(dice))?;
            let entropy_part = (ops::cross_entropy(&logits, &targets)? * f64::from(cross_entropy))?;
            return Ok((dice_part + entropy_part)?);
        }
        let targets = targets.unsqueeze(1)?.to_dtype(logits.dtype())?;
        if !squared {
            return Ok(ops::dice_bce_with_logits(
                &logits,
                &targets,
                dice,
                cross_entropy,
            )?);
        }
        let dice_loss = ops::SoftDice { squared, ..DICE };
        let dice_part = (dice_loss.binary(&logits, &targets)? * f64::from(dice))?;
        let entropy_part = (ops::bce_with_logits(&logits, &targets)? * f64::from(cross_entropy))?;
        Ok((dice_part + entropy_part)?)
    }

    fn answer(
        &self,
        setting: &Setting<'_, N::Architecture>,
        images: &Tensor,
        _seeds: &[u64],
    ) -> Result<Answer> {
        let raw = self.0.forward(images, &Pass::ANSWER)?;
        let probabilities = match setting.description.outputs() {
            1 => ops::sigmoid(&raw)?,
            _ => softmax(&raw)?,
        };
        Ok(Answer { probabilities, raw })
    }

    fn begin(
        params: &Params,
        architecture: &N::Architecture,
        file: &Path,
        device: &Device,
    ) -> Result<String> {
        N::begin(params, architecture, file, device)
    }
}

/// Softmax over the channels.
fn softmax(logits: &Tensor) -> Result<Tensor> {
    let largest = logits.max_keepdim(1)?;
    let powers = logits.broadcast_sub(&largest)?.exp()?;
    Ok(powers.broadcast_div(&powers.sum_keepdim(1)?)?)
}
