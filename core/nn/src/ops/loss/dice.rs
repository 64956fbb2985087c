//! Soft Dice with the choices that implementations differ in.

use super::{labels_of, same_shape, wide};
use crate::{
    kernels::{
        cross_entropy::IGNORED,
        dice::{Overlap, Slope, gradient, overlaps},
        values, with_values,
    },
    ops::{fused, like, softmax},
};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
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
    /// Whether class 0 of several counts.
    pub background: bool,
    /// The label of pixels that do not count.
    pub ignore: Option<u32>,
}

impl Default for SoftDice {
    fn default() -> Self {
        SoftDice {
            smooth: 1e-5,
            squared: false,
            per_image: false,
            background: true,
            ignore: None,
        }
    }
}

impl SoftDice {
    /// The loss of sigmoid(`logits`) and `targets` (0 to 1), both `[batch, channels, ..]`; each
    /// channel is a question of its own. `background` and `ignore` have no effect.
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
    /// When the shapes do not fit each other, a label is no class, there is no class to count, or
    /// `smooth` is not positive.
    pub fn multiclass(&self, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let (batch, classes, labels) = labels_of(logits, labels, self.ignore)?;
        let first = usize::from(!self.background);
        if classes == first {
            bail!("Dice needs a class besides the background");
        }
        let pixels = labels.len() / batch;
        let known = (batch, classes - first, pixels);
        let known = Tensor::from_vec(
            one_hot(&labels, pixels, first..classes),
            known,
            logits.device(),
        )?;
        let p = softmax(&wide(logits)?.reshape((batch, classes, pixels))?, 1)?;
        let mut p = p.narrow(1, first, classes - first)?;
        if self.ignore.is_some() {
            let counts = labels.iter().map(|label| f32::from(*label != IGNORED));
            let counts = Tensor::from_iter(counts, logits.device())?;
            let counts = counts.reshape((batch, 1, pixels))?.to_dtype(p.dtype())?;
            p = p.broadcast_mul(&counts)?;
        }
        let known = known.to_dtype(p.dtype())?;
        self.of(&p, &known)
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
        p.contiguous()?.apply_op2(&t.contiguous()?, op)
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
fn one_hot(labels: &[u32], pixels: usize, classes: std::ops::Range<usize>) -> Vec<f32> {
    let mut known = Vec::with_capacity(labels.len() * classes.len());
    for image in labels.chunks(pixels) {
        for class in classes.clone() {
            known.extend(
                image
                    .iter()
                    .map(|label| f32::from(*label as usize == class)),
            );
        }
    }
    known
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

impl CustomOp2 for Dice {
    fn name(&self) -> &'static str {
        "soft_dice"
    }

    fn cpu_fwd(
        &self,
        p: &CpuStorage,
        p_layout: &Layout,
        t: &CpuStorage,
        t_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, channels, size) = planes(p_layout.shape());
        let (p, t) = (values(p, p_layout)?, values(t, t_layout)?);
        let overlaps = self
            .overlaps
            .get_or_init(|| self.joined(overlaps(p, t, size, self.options.squared), channels));
        let smooth = self.options.smooth;
        let share = |o: &Overlap| (2.0 * o.shared + smooth) / (o.sizes + smooth);
        let mean = overlaps.iter().map(share).sum::<f64>() / overlaps.len() as f64;
        Ok((CpuStorage::F32(vec![(1.0 - mean) as f32]), Shape::from(())))
    }

    fn bwd(
        &self,
        p: &Tensor,
        t: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(overlaps) = self.overlaps.get() else {
            bail!("soft_dice went backward before it went forward");
        };
        let (images, channels, size) = planes(p.shape());
        let factor = f64::from(dy.to_scalar::<f32>()?) / overlaps.len() as f64;
        let groups = overlaps.iter().map(|o| self.slope(*o, factor));
        let groups = groups.collect::<Vec<_>>();
        let slopes: Vec<Slope> = groups.into_iter().cycle().take(images * channels).collect();
        let dp = with_values(p, |p| with_values(t, |t| Ok(gradient(p, t, size, &slopes))))?;
        Ok((Some(like(dp, p)?), None))
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
        let foreground = SoftDice {
            background: false,
            ignore: Some(9),
            per_image: true,
            ..plain
        };
        vec![plain, per_image, squared, foreground]
    }

    fn targets(shape: &[usize]) -> Tensor {
        let targets = random("targets", shape).ge(0.1).unwrap();
        targets.to_dtype(DType::F32).unwrap()
    }

    fn labels() -> Tensor {
        let labels: Vec<u32> = (0..70).map(|i| [0, 2, 1, 9, 1][i * i % 23 % 5]).collect();
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
        for dice in variants().into_iter().map(|d| SoftDice {
            ignore: Some(9),
            ..d
        }) {
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
        for dice in variants().into_iter().map(|d| SoftDice {
            ignore: Some(9),
            ..d
        }) {
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
        let plain = crate::ops::dice_with_logits(&x, &t).unwrap();
        close(&dice.binary(&x, &t).unwrap(), &plain, 1e-6);
    }

    #[test]
    fn ignored_pixels_have_no_gradient_and_emptiness_no_loss() {
        let x = candle_core::Var::from_tensor(&random("x", &[2, 3, 5, 7])).unwrap();
        let dice = SoftDice {
            ignore: Some(9),
            ..SoftDice::default()
        };
        let nothing = Tensor::full(9u32, (2, 5, 7), &Device::Cpu).unwrap();
        let loss = dice.multiclass(&x, &nothing).unwrap();
        assert_eq!(loss.to_scalar::<f32>().unwrap(), 0.0);
        let grads = loss.backward().unwrap();
        let grad = grads.get(&x).unwrap().flatten_all().unwrap();
        assert!(grad.to_vec1::<f32>().unwrap().iter().all(|v| *v == 0.0));
    }

    #[test]
    fn a_label_that_is_no_class_is_named() {
        let x = random("x", &[2, 3, 5, 7]);
        let error = SoftDice::default().multiclass(&x, &labels()).unwrap_err();
        assert!(error.to_string().contains("9"), "{error}");
    }
}
