//! Soft Dice with the choices that implementations differ in.

use super::{labels_of, same_shape, wide};
use crate::{
    operation::{Apply, Operand, Operation, with_values},
    ops::{fused, like, softmax},
};
use candle_core::{Result, Shape, Tensor, bail};
use diffaug_kernels::dice::{Overlap, Slope, gradient, overlaps};
use std::sync::OnceLock;

/// 1 - (2 Σ p t + s) / (Σ p + Σ t + s) for probabilities p and targets t, as a mean over channels
/// or classes (Milletari et al., V-Net, 2016).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftDice {
    /// s, more than 0: keeps the loss defined, and 0, where neither has a pixel.
    pub smooth: f64,
    /// Whether the divisor has the squares of p and t, as in V-Net, instead of their values.
    pub squared: bool,
    /// Whether the sums are those of each image, and the loss the mean over images, too; else they
    /// go over the whole batch.
    pub per_image: bool,
}

impl Default for SoftDice {
    fn default() -> Self {
        SoftDice {
            smooth: 1e-5,
            squared: false,
            per_image: false,
        }
    }
}

impl SoftDice {
    /// The loss of sigmoid(`logits`) and `targets` (0 to 1), both `[batch, channels, ..]`; each
    /// channel is a question of its own.
    ///
    /// # Errors
    /// When the shapes differ, there are no values, or `smooth` is not positive.
    pub fn binary(&self, logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
        same_shape(logits, targets)?;
        let p = candle_nn::ops::sigmoid(&wide(logits)?)?;
        self.of(&p, &wide(&targets.detach())?)
    }

    /// The loss of softmax(`logits`), `[batch, classes, ..]`, and `labels`, `[batch, ..]` of whole
    /// numbers.
    ///
    /// # Errors
    /// When the shapes do not fit each other, a label is no class, or `smooth` is not positive.
    pub fn multiclass(&self, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let (batch, classes, labels) = labels_of(logits, labels)?;
        let pixels = labels.len() / batch;
        let known = one_hot(&labels, pixels, classes);
        let known = Tensor::from_vec(known, (batch, classes, pixels), logits.device())?;
        let p = softmax(&wide(logits)?.reshape((batch, classes, pixels))?, 1)?;
        self.of(&p, &known.to_dtype(p.dtype())?)
    }

    /// The loss of probabilities.
    fn of(&self, p: &Tensor, t: &Tensor) -> Result<Tensor> {
        if !(self.smooth > 0.0 && self.smooth.is_finite()) {
            bail!(
                "the smoothing of Dice must be positive, not {}",
                self.smooth
            );
        }
        if p.rank() < 2 {
            bail!("Dice needs `[batch, channels, ..]`, not {:?}", p.dims());
        }
        if !fused(p) {
            return self.composed(p, t);
        }
        let op = Dice {
            options: *self,
            overlaps: OnceLock::new(),
        };
        [p, t].apply(op)
    }

    fn composed(&self, p: &Tensor, t: &Tensor) -> Result<Tensor> {
        let (batch, channels) = (p.dim(0)?, p.dim(1)?);
        let per_group = |t: Tensor| {
            let sums = t.reshape((batch, channels, ()))?.sum(2)?;
            if self.per_image {
                Ok(sums)
            } else {
                sums.sum(0)
            }
        };
        let sizes = if self.squared {
            (p.sqr()? + t.sqr()?)?
        } else {
            (p + t)?
        };
        let shared = ((per_group((p * t)?)? * 2.0)? + self.smooth)?;
        let share = shared.div(&(per_group(sizes)? + self.smooth)?)?;
        share.mean_all()?.affine(-1.0, 1.0)
    }
}

/// 1 where a pixel has the class, else 0: `[batch, classes, pixels]`.
fn one_hot(labels: &[u32], pixels: usize, classes: usize) -> Vec<f32> {
    let planes = labels
        .chunks(pixels)
        .flat_map(|image| (0..classes).map(move |class| (image, class)));
    let known = planes.flat_map(|(image, class)| {
        image
            .iter()
            .map(move |label| f32::from(*label as usize == class))
    });
    known.collect()
}

struct Dice {
    options: SoftDice,
    /// Of each group of planes, by the forward pass.
    overlaps: OnceLock<Vec<Overlap>>,
}

/// Images, channels, and the length of a plane.
fn planes(shape: &Shape) -> (usize, usize, usize) {
    let dims = shape.dims();
    (dims[0], dims[1], dims[2..].iter().product())
}

impl Dice {
    /// The overlaps of planes, joined over images if they are to be.
    fn joined(&self, planes: Vec<Overlap>, channels: usize) -> Vec<Overlap> {
        if self.options.per_image {
            return planes;
        }
        let of = |channel| planes.iter().skip(channel).step_by(channels);
        let join = |channel| of(channel).fold(Overlap::default(), |sum, plane| sum + *plane);
        (0..channels).map(join).collect()
    }

    /// The slope of 1 - (2 shared + s) / (sizes + s), times `factor`.
    fn slope(&self, overlap: Overlap, factor: f64) -> Slope {
        let smooth = self.options.smooth;
        let whole = overlap.sizes + smooth;
        let by_size = factor * (2.0 * overlap.shared + smooth) / (whole * whole);
        let (constant, by_probability) = if self.options.squared {
            (0.0, 2.0 * by_size)
        } else {
            (by_size, 0.0)
        };
        Slope {
            constant: constant as f32,
            by_target: (-2.0 * factor / whole) as f32,
            by_probability: by_probability as f32,
        }
    }
}

impl Operation<2> for Dice {
    fn name(&self) -> &'static str {
        "soft_dice"
    }

    fn forward(&self, [p, t]: [Operand<'_>; 2]) -> Result<(Vec<f32>, Shape)> {
        let (_, channels, size) = planes(p.shape);
        let overlaps = self.overlaps.get_or_init(|| {
            self.joined(
                overlaps(p.values, t.values, size, self.options.squared),
                channels,
            )
        });
        let smooth = self.options.smooth;
        let share = |o: &Overlap| (2.0 * o.shared + smooth) / (o.sizes + smooth);
        let mean = overlaps.iter().map(share).sum::<f64>() / overlaps.len() as f64;
        Ok((vec![(1.0 - mean) as f32], Shape::from(())))
    }

    fn backward(
        &self,
        [p, t]: [&Tensor; 2],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let Some(overlaps) = self.overlaps.get() else {
            bail!("soft_dice went backward before it went forward");
        };
        let (images, channels, size) = planes(p.shape());
        let factor = f64::from(dy.to_scalar::<f32>()?) / overlaps.len() as f64;
        let groups = overlaps.iter().map(|o| self.slope(*o, factor));
        let groups = groups.collect::<Vec<_>>();
        let slopes: Vec<Slope> = groups.into_iter().cycle().take(images * channels).collect();
        let dp = with_values([p, t], |[p, t]| gradient(p, t, size, &slopes))?;
        Ok([Some(like(dp, p)?), None])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, close, random, same};
    use candle_core::{DType, Device};

    fn variants() -> Vec<SoftDice> {
        let plain = SoftDice::default();
        let per_image = SoftDice {
            per_image: true,
            ..plain
        };
        let squared = SoftDice {
            squared: true,
            smooth: 1.0,
            ..plain
        };
        vec![plain, per_image, squared]
    }

    fn targets(shape: &[usize]) -> Tensor {
        let targets = random("targets", shape).ge(0.1).unwrap();
        targets.to_dtype(DType::F32).unwrap()
    }

    fn labels() -> Tensor {
        let labels: Vec<u32> = (0..70).map(|i| [0, 2, 1, 2, 1][i * i % 23 % 5]).collect();
        Tensor::from_vec(labels, (2, 5, 7), &Device::Cpu).unwrap()
    }

    fn in_f64(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        f(&x.to_dtype(DType::F64)?)?.to_dtype(DType::F32)
    }

    #[test]
    fn fused_and_composed_agree() {
        for shape in [vec![2, 3, 5, 7], vec![1, 1, 3, 1], vec![3, 2]] {
            let x = [(random("x", &shape) * 3.0).unwrap()];
            let (t, wide) = (
                targets(&shape),
                targets(&shape).to_dtype(DType::F64).unwrap(),
            );
            for dice in variants() {
                same(
                    &x,
                    |v| dice.binary(&v[0], &t),
                    |v| in_f64(&v[0], |x| dice.binary(x, &wide)),
                );
            }
        }
        let x = [(random("x", &[2, 3, 5, 7]) * 3.0).unwrap()];
        for dice in variants() {
            same(
                &x,
                |v| dice.multiclass(&v[0], &labels()),
                |v| in_f64(&v[0], |x| dice.multiclass(x, &labels())),
            );
        }
    }

    #[test]
    fn gradients() {
        let x = [random("x", &[2, 3, 5, 7])];
        for dice in variants() {
            check_gradients(&x, |v| dice.binary(&v[0], &targets(&[2, 3, 5, 7]))? * 50.0);
            check_gradients(&x, |v| dice.multiclass(&v[0], &labels())? * 50.0);
        }
    }

    #[test]
    fn one_channel_over_the_batch_is_the_plain_loss() {
        let (x, t) = (random("x", &[2, 1, 5, 7]), targets(&[2, 1, 5, 7]));
        let dice = SoftDice {
            smooth: 1e-6,
            ..SoftDice::default()
        };
        let plain = crate::ops::dice_bce_with_logits(&x, &t, 1.0, 0.0).unwrap();
        close(&dice.binary(&x, &t).unwrap(), &plain, 1e-6);
    }

    #[test]
    fn emptiness_is_no_loss() {
        let x = (random("x", &[2, 3, 5, 7]) - 100.0).unwrap();
        let loss = SoftDice::default().binary(&x, &x.zeros_like().unwrap());
        assert!(loss.unwrap().to_scalar::<f32>().unwrap().abs() < 1e-6);
    }

    #[test]
    fn a_label_that_is_no_class_is_named() {
        let x = random("x", &[2, 2, 5, 7]);
        let error = SoftDice::default().multiclass(&x, &labels()).unwrap_err();
        assert!(error.to_string().contains("label 2 at index 1"), "{error}");
    }
}
