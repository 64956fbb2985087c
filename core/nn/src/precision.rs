//! Mixed precision: weights are kept and updated in f32, a model computes in bf16 or f16.
//!
//! A model that computes in another type casts its *inputs* ([`Precision::enter`]); the layers of
//! [`crate::layers`] cast their weights to the type of what they are given ([`like`]), inside the
//! graph, so that gradients come back as f32 for the f32 weights. Statistics of normalisation and
//! losses are formed in f32. With f16, small gradients would vanish: the loss is multiplied by a
//! [`LossScale`] that adapts, and the gradients are divided by it before they are used.
//!
//! The code is the same on every device. In f32 all casts are no-ops: the same tensors, the same
//! bytes. On a processor bf16 and f16 work wherever candle has the operation, slowly, since the
//! fused operations are for f32; they are of use there for tests only. CUDA and Metal run candle's
//! kernels in the type of the inputs.

use candle_core::{DType, Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The type that a model computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits, as the weights.
    #[default]
    F32,
    /// 16 bits with the range of f32 and 8 bits of precision.
    Bf16,
    /// 16 bits with 11 bits of precision, from 6e-8 to 65504.
    F16,
}

impl Precision {
    /// The type for tensors.
    pub fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
            Precision::F16 => DType::F16,
        }
    }

    /// `x` in this type: for what goes into a model.
    ///
    /// # Errors
    /// Those of candle.
    pub fn cast(self, x: &Tensor) -> Result<Tensor> {
        x.to_dtype(self.dtype())
    }

    /// Whether the loss has to be scaled.
    pub fn scales_loss(self) -> bool {
        self == Precision::F16
    }
}

/// `weight` in the type of `x`, within the graph; the very tensor where that is its own.
///
/// # Errors
/// Those of candle.
pub fn like(weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    weight.to_dtype(x.dtype())
}

/// What the loss is multiplied by so that gradients fit f16; the rules are those of PyTorch's
/// `GradScaler`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    scale: f64,
    /// Steps since it last changed.
    good: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        LossScale {
            scale: 65536.0,
            good: 0,
        }
    }
}

impl LossScale {
    const INTERVAL: u64 = 2000;

    /// The present factor, a power of two.
    pub fn factor(&self) -> f64 {
        self.scale
    }

    /// Takes in whether the gradients of a step were finite: the factor is halved if not (and the
    /// step is left out), doubled after 2000 steps that were. False when halving no longer helps.
    pub fn observe(&mut self, finite: bool) -> bool {
        if finite {
            self.good += 1;
            if self.good == Self::INTERVAL {
                self.scale *= 2.0;
                self.good = 0;
            }
            return true;
        }
        self.scale /= 2.0;
        self.good = 0;
        self.scale >= 1.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{recompute::backward, testing::random};
    use candle_core::Var;

    #[test]
    fn in_f32_nothing_is_cast() {
        let (x, w) = (random("x", &[2, 3]), random("w", &[3, 3]));
        assert_eq!(Precision::F32.cast(&x).unwrap().id(), x.id());
        assert_eq!(like(&w, &x).unwrap().id(), w.id());
    }

    #[test]
    fn gradients_of_f32_weights_come_back_in_f32() {
        let (x, start) = (random("x", &[4, 8]), random("w", &[8, 8]));
        let w = Var::from_tensor(&start).unwrap();
        let grad = |precision: Precision| {
            let x = precision.cast(&x).unwrap();
            let y = x.matmul(&like(&w, &x).unwrap()).unwrap();
            assert_eq!(y.dtype(), precision.dtype());
            let loss = y.to_dtype(DType::F32).unwrap().sqr().unwrap();
            let grads = backward(&loss.mean_all().unwrap()).unwrap();
            grads.get(&w).unwrap().clone()
        };
        let exact = grad(Precision::F32);
        for (precision, tolerance) in [(Precision::Bf16, 0.03), (Precision::F16, 0.004)] {
            let ours = grad(precision);
            assert_eq!(ours.dtype(), DType::F32);
            crate::testing::close(&ours, &exact, tolerance);
        }
    }

    #[test]
    fn the_scale_follows_what_it_sees() {
        let mut scale = LossScale::default();
        assert!(scale.observe(false));
        assert_eq!(scale.factor(), 32768.0);
        for _ in 0..LossScale::INTERVAL {
            assert!(scale.observe(true));
        }
        assert_eq!(scale.factor(), 65536.0);
        assert!((0..16).all(|_| scale.observe(false)));
        assert_eq!(scale.factor(), 1.0);
        assert!(!scale.observe(false));
    }
}
