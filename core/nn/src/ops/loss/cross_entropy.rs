//! Cross-entropy of several classes with weights, pixels that do not count, smoothed labels, and
//! the focal factor.

use super::{check_gamma, labels_of, power, wide};
use crate::{
    kernels::{
        cross_entropy::{CrossEntropy as Kernel, IGNORED, Left},
        values, with_values,
    },
    ops::{fused, like},
};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use std::sync::OnceLock;

/// The weighted mean over pixels of w(y) (1 - p)^γ (-ln p), where p is the probability
/// softmax(logits) of the label y; the weights sum to the divisor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CrossEntropy {
    /// w, of each class, at least 0; all 1 without.
    pub weights: Option<Vec<f32>>,
    /// The label of pixels that do not count.
    pub ignore: Option<u32>,
    /// From 0 to 1: the label counts 1 less this, and this is spread evenly over all classes, each
    /// with its weight (Szegedy et al., Rethinking the Inception architecture, 2016).
    pub smoothing: f32,
    /// γ, at least 0, of the focal loss (Lin et al., 2017); 0 is cross-entropy. What smoothing
    /// spreads has no such factor.
    pub gamma: f32,
}

impl CrossEntropy {
    /// The loss of `logits` `[batch, classes, ..]` and `labels` `[batch, ..]` of whole numbers; the
    /// result for half precision is f32. Where all weights are 0, or no pixel counts, it is 0.
    ///
    /// The labels are looked at on the host.
    ///
    /// # Errors
    /// When the shapes do not fit each other, a label is no class, or an option is out of range.
    pub fn forward(&self, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let (batch, classes, labels) = labels_of(logits, labels, self.ignore)?;
        let case = Case {
            weights: self.checked(classes)?,
            smoothing: self.smoothing,
            gamma: self.gamma,
            pixels: labels.len() / batch,
            labels,
            left: OnceLock::new(),
        };
        if fused(logits) {
            return logits.contiguous()?.apply_op1(case);
        }
        case.composed(logits)
    }

    /// The weights of the classes.
    fn checked(&self, classes: usize) -> Result<Vec<f32>> {
        check_gamma(self.gamma)?;
        if !(0.0..=1.0).contains(&self.smoothing) {
            bail!(
                "the smoothing of labels must be from 0 to 1, not {}",
                self.smoothing
            );
        }
        let Some(weights) = &self.weights else {
            return Ok(vec![1.0; classes]);
        };
        if weights.len() != classes {
            bail!(
                "{classes} classes need as many weights, not {}",
                weights.len()
            );
        }
        match weights.iter().find(|w| !(**w >= 0.0 && w.is_finite())) {
            Some(weight) => bail!("the weight of a class must be at least 0, not {weight}"),
            None => Ok(weights.clone()),
        }
    }
}

/// Checked options and the labels that they apply to.
struct Case {
    weights: Vec<f32>,
    smoothing: f32,
    gamma: f32,
    pixels: usize,
    labels: Vec<u32>,
    left: OnceLock<Left>,
}

impl Case {
    /// The weight of a label.
    fn weight(&self, label: u32) -> f32 {
        match label {
            IGNORED => 0.0,
            label => self.weights[label as usize],
        }
    }

    /// 1 / the sum of the weights of all labels; 0 if that is 0.
    fn share(&self) -> f64 {
        let total: f64 = self.labels.iter().map(|l| f64::from(self.weight(*l))).sum();
        if total > 0.0 { total.recip() } else { 0.0 }
    }

    fn kernel<'a>(&'a self, logits: &'a [f32]) -> Kernel<'a> {
        Kernel {
            logits,
            labels: &self.labels,
            pixels: self.pixels,
            weights: &self.weights,
            smoothing: self.smoothing,
            gamma: self.gamma,
        }
    }

    /// The same of candle's operations.
    fn composed(&self, logits: &Tensor) -> Result<Tensor> {
        let (classes, device) = (self.weights.len(), logits.device());
        let pixels = |values: Vec<f32>| {
            let values = Tensor::from_vec(values, ((), 1, self.pixels), device)?;
            wide(&values.to_dtype(logits.dtype())?)
        };
        let of_labels =
            |f: &dyn Fn(u32) -> f32| pixels(self.labels.iter().map(|label| f(*label)).collect());
        let logs = wide(logits)?.reshape(((), classes, self.pixels))?;
        let logs = candle_nn::ops::log_softmax(&logs, 1)?;
        // A pixel that does not count asks for class 0, with weight 0.
        let asked = self
            .labels
            .iter()
            .map(|l| if *l == IGNORED { 0 } else { *l });
        let asked = Tensor::from_iter(asked, device)?.reshape(((), 1, self.pixels))?;
        let own = logs.gather(&asked, 1)?;
        let focal = power(&own.exp()?.affine(-1.0, 1.0)?, self.gamma)?;
        let weights = of_labels(&|label| self.weight(label))?;
        let plain = ((focal * own)? * weights)?.sum_all()?;
        let plain = (plain * (f64::from(self.smoothing) - 1.0))?;
        let counts = of_labels(&|label| f32::from(label != IGNORED))?;
        let weights = Tensor::from_slice(&self.weights, (1, classes, 1), device)?;
        let spread = logs.broadcast_mul(&weights.to_dtype(logs.dtype())?)?;
        let spread = spread.sum_keepdim(1)?.mul(&counts)?.sum_all()?;
        let spread = (spread * (-f64::from(self.smoothing) / classes as f64))?;
        (plain + spread)? * self.share()
    }
}

impl CustomOp1 for Case {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (total, left) = self.kernel(values(logits, layout)?).forward();
        self.left.get_or_init(|| left);
        let mean = (total * self.share()) as f32;
        Ok((CpuStorage::F32(vec![mean]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let Some(left) = self.left.get() else {
            bail!("cross_entropy went backward before it went forward");
        };
        let factor = (f64::from(dy.to_scalar::<f32>()?) * self.share()) as f32;
        let dx = with_values(logits, |x| Ok(self.kernel(x).backward(left, factor)))?;
        Ok(Some(like(dx, logits)?))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, close, random, same};
    use candle_core::{DType, Device};

    fn variants() -> Vec<CrossEntropy> {
        let plain = CrossEntropy {
            ignore: Some(9),
            ..CrossEntropy::default()
        };
        let weighted = CrossEntropy {
            weights: Some(vec![0.5, 2.0, 1.0]),
            ..plain.clone()
        };
        vec![
            plain.clone(),
            CrossEntropy {
                smoothing: 0.2,
                ..plain.clone()
            },
            CrossEntropy {
                gamma: 2.0,
                ..plain.clone()
            },
            CrossEntropy {
                smoothing: 0.1,
                gamma: 0.5,
                ..weighted.clone()
            },
            CrossEntropy {
                smoothing: 1.0,
                ..weighted.clone()
            },
            weighted,
        ]
    }

    fn labels(batch: usize, pixels: usize) -> Tensor {
        let labels: Vec<u32> = (0..batch * pixels)
            .map(|i| [0, 2, 1, 9, 1][i * i % 23 % 5])
            .collect();
        Tensor::from_vec(labels, (batch, pixels), &Device::Cpu).unwrap()
    }

    fn logits(shape: &[usize]) -> Tensor {
        (random("logits", shape) * 4.0).unwrap()
    }

    #[test]
    fn fused_and_composed_agree() {
        // The last has several chunks of pixels.
        for (batch, pixels) in [(2, 35), (1, 1), (3, 5001)] {
            let labels = labels(batch, pixels);
            for loss in variants() {
                same(
                    &[logits(&[batch, 3, pixels])],
                    |v| loss.forward(&v[0], &labels),
                    |v| {
                        loss.forward(&v[0].to_dtype(DType::F64)?, &labels)?
                            .to_dtype(DType::F32)
                    },
                );
            }
        }
    }

    #[test]
    fn gradients() {
        for loss in variants() {
            let x = [logits(&[2, 3, 35])];
            check_gradients(&x, |v| loss.forward(&v[0], &labels(2, 35))? * 50.0);
        }
    }

    #[test]
    fn without_options_it_is_the_plain_one() {
        let x = logits(&[2, 3, 5, 7]);
        let labels = (labels(2, 35).eq(1u32).unwrap())
            .to_dtype(DType::U32)
            .unwrap();
        let labels = labels.reshape((2, 5, 7)).unwrap();
        let ours = CrossEntropy::default().forward(&x, &labels).unwrap();
        close(
            &ours,
            &crate::ops::cross_entropy(&x, &labels).unwrap(),
            1e-6,
        );
    }

    #[test]
    fn where_no_pixel_counts_there_is_no_loss() {
        let x = candle_core::Var::from_tensor(&logits(&[1, 3, 4])).unwrap();
        let labels = Tensor::full(9u32, (1, 4), &Device::Cpu).unwrap();
        for loss in variants() {
            let y = loss.forward(&x, &labels).unwrap();
            assert_eq!(y.to_scalar::<f32>().unwrap(), 0.0);
            let grad = y
                .backward()
                .unwrap()
                .get(&x)
                .unwrap()
                .flatten_all()
                .unwrap();
            assert!(grad.to_vec1::<f32>().unwrap().iter().all(|v| *v == 0.0));
        }
    }

    #[test]
    fn large_logits_stay_finite() {
        let x = Tensor::new(&[[[1e4f32, -1e4], [0.0, 0.0], [-1e4, 1e4]]], &Device::Cpu).unwrap();
        let labels = Tensor::new(&[[2u32, 2]], &Device::Cpu).unwrap();
        for loss in variants() {
            let x = candle_core::Var::from_tensor(&x).unwrap();
            let y = loss.forward(&x, &labels).unwrap();
            assert!(y.to_scalar::<f32>().unwrap().is_finite());
            let grad = y
                .backward()
                .unwrap()
                .get(&x)
                .unwrap()
                .flatten_all()
                .unwrap();
            assert!(grad.to_vec1::<f32>().unwrap().iter().all(|v| v.is_finite()));
        }
    }

    #[test]
    fn threads_change_nothing() {
        let (x, labels) = (logits(&[2, 3, 9001]), labels(2, 9001));
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let loss = || variants()[3].forward(&x, &labels).unwrap();
            let loss = pool.build().unwrap().install(loss);
            loss.to_scalar::<f32>().unwrap()
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (x, labels) = (logits(&[1, 2, 35]), labels(1, 35));
        let message =
            |loss: CrossEntropy, labels: &Tensor| loss.forward(&x, labels).unwrap_err().to_string();
        let plain = CrossEntropy::default;
        let error = message(plain(), &labels);
        assert!(error.contains("label 2 at index 1"), "{error}");
        let zeros = labels.zeros_like().unwrap();
        let error = message(
            CrossEntropy {
                weights: Some(vec![1.0]),
                ..plain()
            },
            &zeros,
        );
        assert!(
            error.contains("2 classes need as many weights, not 1"),
            "{error}"
        );
        let error = message(
            CrossEntropy {
                smoothing: 1.5,
                ..plain()
            },
            &zeros,
        );
        assert!(error.contains("from 0 to 1, not 1.5"), "{error}");
        let error = message(
            CrossEntropy {
                gamma: -1.0,
                ..plain()
            },
            &zeros,
        );
        assert!(error.contains("at least 0, not -1"), "{error}");
        let error = message(plain(), &zeros.narrow(1, 0, 3).unwrap());
        assert!(error.contains("[1, 2, 35] and [1, 3]"), "{error}");
    }
}
