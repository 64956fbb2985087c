//! The network.

use candle_core::{Result, Tensor};
use diffaug_nn::{
    layers::{BatchNorm, Conv2d, ConvTranspose2x2, Mode},
    ops,
    params::Scope,
};

/// Twice: 3×3 convolution without bias, batch normalisation, ReLU.
struct DoubleConv {
    first: (Conv2d, BatchNorm),
    second: (Conv2d, BatchNorm),
}

impl DoubleConv {
    fn new(mut scope: Scope<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        let mut layer = |index: usize, inputs| {
            let conv = scope.child(&format!("conv{index}"));
            let conv = Conv2d::new(conv, inputs, outputs, 3, false)?;
            let norm = BatchNorm::new(scope.child(&format!("norm{index}")), outputs)?;
            Ok::<_, candle_core::Error>((conv, norm))
        };
        Ok(DoubleConv {
            first: layer(1, inputs)?,
            second: layer(2, outputs)?,
        })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = self.first.1.forward_after(&self.first.0, x, mode)?;
        self.second.1.forward_after(&self.second.0, &x, mode)
    }
}

/// A U-Net: `depth` times halved and doubled again, with the maps of each level handed across.
pub struct UNet {
    entry: DoubleConv,
    down: Vec<DoubleConv>,
    up: Vec<(ConvTranspose2x2, DoubleConv)>,
    head: Conv2d,
}

impl UNet {
    /// From 3 to `outputs` channels; the first level has `width`.
    ///
    /// # Errors
    /// When the device has no room for the weights.
    pub fn new(mut scope: Scope<'_>, outputs: usize, width: usize, depth: usize) -> Result<Self> {
        let channels = |level: usize| width << level;
        let entry = DoubleConv::new(scope.child("entry"), 3, width)?;
        let mut down = Vec::with_capacity(depth);
        let mut up = Vec::with_capacity(depth);
        for level in 1..=depth {
            let scope = scope.child(&format!("down{level}"));
            down.push(DoubleConv::new(
                scope,
                channels(level - 1),
                channels(level),
            )?);
        }
        for level in (0..depth).rev() {
            let mut scope = scope.child(&format!("up{level}"));
            let (below, here) = (channels(level + 1), channels(level));
            let grow = ConvTranspose2x2::new(scope.child("grow"), below, here)?;
            up.push((grow, DoubleConv::new(scope, 2 * here, here)?));
        }
        let head = Conv2d::new(scope.child("head"), width, outputs, 1, true)?;
        Ok(UNet {
            entry,
            down,
            up,
            head,
        })
    }

    /// Number of parameters and of running statistics, without building it.
    pub fn count(outputs: usize, width: usize, depth: usize) -> (u64, u64) {
        let (outputs, width) = (outputs as u64, width as u64);
        let channels = |level: usize| width << level;
        let norm = |channels: u64| 2 * channels;
        let double = |from: u64, to: u64| 9 * from * to + norm(to) + 9 * to * to + norm(to);
        let mut parameters = double(3, width) + width * outputs + outputs;
        let mut statistics = 2 * norm(width);
        for level in 0..depth {
            let (here, below) = (channels(level), channels(level + 1));
            let grow = 4 * below * here + here;
            parameters += double(here, below) + grow + double(2 * here, here);
            statistics += 2 * norm(below) + 2 * norm(here);
        }
        (parameters, statistics)
    }

    /// Logits for `[batch, 3, height, width]`; both sides are multiples of 2^depth.
    ///
    /// # Errors
    /// When they are not.
    pub fn forward(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut x = self.entry.forward(images, mode)?;
        let mut skips = Vec::with_capacity(self.down.len());
        for level in &self.down {
            let smaller = ops::max_pool2x2(&x)?;
            skips.push(x);
            x = level.forward(&smaller, mode)?;
        }
        for ((grow, level), skip) in self.up.iter().zip(skips.iter().rev()) {
            let grown = grow.forward(&x)?;
            x = level.forward(&Tensor::cat(&[skip, &grown], 1)?, mode)?;
        }
        self.head.forward(&x)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug_nn::{Device, params::Params, testing};

    #[test]
    fn the_reference_configuration_has_the_reference_number_of_parameters() {
        for (outputs, count) in [(1, 31_037_633), (2, 31_037_698)] {
            let mut params = Params::new(&Device::Cpu, 0);
            UNet::new(params.root(), outputs, 64, 4).unwrap();
            assert_eq!(params.count(), count);
        }
    }

    #[test]
    fn counting_needs_no_network() {
        for (outputs, width, depth) in [(1, 64, 4), (3, 5, 1), (1, 1, 5), (2, 12, 3)] {
            let mut params = Params::new(&Device::Cpu, 0);
            UNet::new(params.root(), outputs, width, depth).unwrap();
            let all: usize = params.all().map(|(_, var)| var.elem_count()).sum();
            let (parameters, statistics) = UNet::count(outputs, width, depth);
            assert_eq!(parameters, params.count() as u64);
            assert_eq!(parameters + statistics, all as u64);
        }
    }

    #[test]
    fn every_parameter_is_trained() {
        let mut params = Params::new(&Device::Cpu, 0);
        let net = UNet::new(params.root(), 1, 4, 3).unwrap();
        let images = testing::random("images", &[2, 3, 24, 16]);
        let logits = net.forward(&images, Mode::Train).unwrap();
        assert_eq!(logits.dims(), [2, 1, 24, 16]);
        let targets = testing::random("targets", &[2, 1, 24, 16]).ge(0.5).unwrap();
        let targets = targets.to_dtype(logits.dtype()).unwrap();
        let loss = ops::dice_bce_with_logits(&logits, &targets, 1.0, 1.0).unwrap();
        testing::assert_all_trained(params.trainable(), &loss.backward().unwrap());
    }
}
