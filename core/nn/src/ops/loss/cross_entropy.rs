//! Cross-entropy of several classes.

use super::{labels_of, wide};
use crate::{
    operation::{Apply, Operand, Operation, with_values},
    ops::{fused, like},
};
use candle_core::{Result, Shape, Tensor, bail};
use diffaug_kernels::cross_entropy::CrossEntropy as Kernel;
use std::sync::OnceLock;

/// The mean over pixels of -ln p, where p is the probability softmax(`logits`) of the label: of
/// `logits` `[batch, classes, ..]` and `labels` `[batch, ..]` of whole numbers. The result for half
/// precision is f32.
///
/// The labels are looked at on the host.
///
/// # Errors
/// When the shapes do not fit each other, or a label is no class.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let (batch, classes, labels) = labels_of(logits, labels)?;
    let op = CrossEntropy {
        classes,
        pixels: labels.len() / batch,
        labels,
        logs: OnceLock::new(),
    };
    match fused(logits) {
        true => [logits].apply(op),
        false => op.composed(logits),
    }
}

struct CrossEntropy {
    classes: usize,
    /// Of an image.
    pixels: usize,
    labels: Vec<u32>,
    /// The logarithm of the sum of exponentials of each pixel, by the forward pass.
    logs: OnceLock<Vec<f32>>,
}

impl CrossEntropy {
    fn kernel<'a>(&'a self, logits: &'a [f32]) -> Kernel<'a> {
        Kernel {
            logits,
            labels: &self.labels,
            pixels: self.pixels,
            classes: self.classes,
        }
    }

    /// The same of candle's operations.
    fn composed(&self, logits: &Tensor) -> Result<Tensor> {
        let logs = wide(logits)?.reshape(((), self.classes, self.pixels))?;
        let logs = candle_nn::ops::log_softmax(&logs, 1)?;
        let labels = Tensor::from_slice(&self.labels, ((), 1, self.pixels), logits.device())?;
        logs.gather(&labels, 1)?.mean_all()?.neg()
    }
}

impl Operation<1> for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn forward(&self, [logits]: [Operand<'_>; 1]) -> Result<(Vec<f32>, Shape)> {
        let (total, logs) = self.kernel(logits.values).forward();
        self.logs.get_or_init(|| logs);
        let mean = total / self.labels.len() as f64;
        Ok((vec![mean as f32], Shape::from(())))
    }

    fn backward(
        &self,
        [logits]: [&Tensor; 1],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 1]> {
        let Some(logs) = self.logs.get() else {
            bail!("cross_entropy went backward before it went forward");
        };
        let factor = dy.to_scalar::<f32>()? / self.labels.len() as f32;
        let dx = with_values([logits], |[x]| self.kernel(x).backward(logs, factor))?;
        Ok([Some(like(dx, logits)?)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, random, same};
    use candle_core::{DType, Device};

    fn labels(batch: usize, pixels: usize) -> Tensor {
        let labels: Vec<u32> = (0..batch * pixels)
            .map(|i| [0, 2, 1, 2, 1][i * i % 23 % 5])
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
            same(
                &[logits(&[batch, 3, pixels])],
                |v| cross_entropy(&v[0], &labels),
                |v| cross_entropy(&v[0].to_dtype(DType::F64)?, &labels)?.to_dtype(DType::F32),
            );
        }
    }

    #[test]
    fn gradients() {
        let x = [logits(&[2, 3, 35])];
        check_gradients(&x, |v| cross_entropy(&v[0], &labels(2, 35))? * 50.0);
    }

    #[test]
    fn large_logits_stay_finite() {
        let x = Tensor::new(&[[[1e4f32, -1e4], [0.0, 0.0], [-1e4, 1e4]]], &Device::Cpu).unwrap();
        let labels = Tensor::new(&[[2u32, 2]], &Device::Cpu).unwrap();
        let x = candle_core::Var::from_tensor(&x).unwrap();
        let y = cross_entropy(&x, &labels).unwrap();
        assert!(y.to_scalar::<f32>().unwrap().is_finite());
        let grads = y.backward().unwrap();
        let grad = grads.get(&x).unwrap().flatten_all().unwrap();
        assert!(grad.to_vec1::<f32>().unwrap().iter().all(|v| v.is_finite()));
    }

    #[test]
    fn threads_change_nothing() {
        let (x, labels) = (logits(&[2, 3, 9001]), labels(2, 9001));
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let loss = || cross_entropy(&x, &labels).unwrap();
            let loss = pool.build().unwrap().install(loss);
            loss.to_scalar::<f32>().unwrap()
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (x, labels) = (logits(&[1, 2, 35]), labels(1, 35));
        let message = |labels: &Tensor| cross_entropy(&x, labels).unwrap_err().to_string();
        let error = message(&labels);
        assert!(error.contains("label 2 at index 1"), "{error}");
        let error = message(&labels.narrow(1, 0, 3).unwrap());
        assert!(error.contains("[1, 2, 35] and [1, 3]"), "{error}");
    }
}
