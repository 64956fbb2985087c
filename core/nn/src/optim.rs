//! AdamW with clipping, and the learning rate over a run.

use crate::kernels::{adam, sum, values, with_values};
use candle_core::{
    CpuStorage, DType, InplaceOp2, Layout, Result, Tensor, Var, backprop::GradStore, bail,
};
use rayon::prelude::*;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// The optimiser AdamW (Loshchilov & Hutter, 2019) with betas 0.9 and 0.999.
///
/// Weight decay acts on tensors of two and more dimensions; scales and shifts are left alone.
#[derive(Debug)]
pub struct AdamW {
    entries: Vec<Entry>,
    decay: f64,
    clip: f64,
    steps: u64,
}

#[derive(Debug)]
struct Entry {
    name: String,
    var: Var,
    moments: Moments,
}

/// Running means of the gradient and its square.
#[derive(Debug)]
enum Moments {
    /// On the processor they are updated in place.
    Host(Vec<f32>, Vec<f32>),
    /// Elsewhere they are replaced.
    Device(Tensor, Tensor),
}

impl Moments {
    fn zeros(var: &Var) -> Result<Self> {
        if var.device().is_cpu() && var.dtype() == DType::F32 {
            let zeros = vec![0.0; var.elem_count()];
            return Ok(Moments::Host(zeros.clone(), zeros));
        }
        let zeros = var.zeros_like()?;
        Ok(Moments::Device(zeros.clone(), zeros))
    }

    fn tensors(&self, var: &Var) -> Result<[Tensor; 2]> {
        match self {
            Moments::Host(first, second) => Ok([
                Tensor::from_slice(first, var.shape(), var.device())?,
                Tensor::from_slice(second, var.shape(), var.device())?,
            ]),
            Moments::Device(first, second) => Ok([first.clone(), second.clone()]),
        }
    }
}

impl AdamW {
    /// An optimiser for `vars` with weight decay `decay`; gradients whose norm over all tensors
    /// exceeds `clip` are scaled down to it (0: never).
    ///
    /// # Errors
    /// When the device has no room for the moments.
    pub fn new<'a>(
        vars: impl IntoIterator<Item = (&'a str, &'a Var)>,
        decay: f64,
        clip: f64,
    ) -> Result<Self> {
        let entry = |(name, var): (&str, &Var)| {
            Ok(Entry {
                name: name.to_owned(),
                var: var.clone(),
                moments: Moments::zeros(var)?,
            })
        };
        Ok(AdamW {
            entries: vars.into_iter().map(entry).collect::<Result<_>>()?,
            decay,
            clip,
            steps: 0,
        })
    }

    /// Makes one step with learning rate `rate` and returns the norm of all gradients before
    /// clipping. Where that is not finite nothing is changed. Tensors without a gradient stay.
    ///
    /// # Errors
    /// Those of candle.
    pub fn step(&mut self, grads: &GradStore, rate: f64) -> Result<f64> {
        let mut squares = 0.0;
        for entry in &self.entries {
            if let Some(grad) = grads.get(&entry.var) {
                squares += sum_of_squares(grad)?;
            }
        }
        let norm = squares.sqrt();
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.steps += 1;
        let scale = if self.clip > 0.0 && norm > self.clip {
            self.clip / norm
        } else {
            1.0
        };
        let power = |beta: f64| 1.0 / (1.0 - beta.powf(self.steps as f64));
        let (correction1, correction2) = (power(BETA1), power(BETA2));
        for entry in &mut self.entries {
            let Some(grad) = grads.get(&entry.var) else {
                continue;
            };
            let decayed = entry.var.rank() > 1;
            let step = adam::Step {
                rate: rate as f32,
                decay: if decayed {
                    (rate * self.decay) as f32
                } else {
                    0.0
                },
                // 1 - beta in f32 would be off by 5e-5.
                beta1: (BETA1 as f32, (1.0 - BETA1) as f32),
                beta2: (BETA2 as f32, (1.0 - BETA2) as f32),
                correction1: correction1 as f32,
                correction2: correction2 as f32,
                epsilon: EPSILON as f32,
                scale: scale as f32,
            };
            update(&entry.var, grad, &mut entry.moments, step)?;
        }
        Ok(norm)
    }

    /// Number of steps made.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The moments, to be stored: `first.NAME` and `second.NAME`.
    ///
    /// # Errors
    /// Those of candle.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut state = Vec::new();
        for Entry { name, var, moments } in &self.entries {
            let [first, second] = moments.tensors(var)?;
            state.push((format!("first.{name}"), first));
            state.push((format!("second.{name}"), second));
        }
        Ok(state)
    }

    /// Takes over what [`AdamW::state`] gave after `steps` steps.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn restore(&mut self, steps: u64, state: &HashMap<String, Tensor>) -> Result<()> {
        for Entry { name, var, moments } in &mut self.entries {
            let find = |prefix: &str| match state.get(&format!("{prefix}.{name}")) {
                Some(tensor) if tensor.shape() == var.shape() => tensor.to_device(var.device()),
                _ => bail!("the optimiser's state of `{name}` is missing or has another shape"),
            };
            let (first, second) = (find("first")?, find("second")?);
            *moments = match moments {
                Moments::Host(..) => {
                    let values = |t: Tensor| t.flatten_all()?.to_vec1();
                    Moments::Host(values(first)?, values(second)?)
                }
                Moments::Device(..) => Moments::Device(first, second),
            };
        }
        self.steps = steps;
        Ok(())
    }
}

fn sum_of_squares(grad: &Tensor) -> Result<f64> {
    if !grad.device().is_cpu() || grad.dtype() != DType::F32 {
        let sum = grad.to_dtype(DType::F32)?.sqr()?.sum_all()?;
        return Ok(f64::from(sum.to_scalar::<f32>()?));
    }
    with_values(grad, |values| {
        let squares = |part: &[f32]| sum([part], |[v]| v * v);
        // Collected before they are added, so that the order is fixed.
        let parts: Vec<f64> = values.par_chunks(1 << 14).map(squares).collect();
        Ok(parts.iter().sum())
    })
}

fn update(var: &Var, grad: &Tensor, moments: &mut Moments, step: adam::Step) -> Result<()> {
    match moments {
        Moments::Host(first, second) => {
            let moments = Mutex::new((&mut first[..], &mut second[..]));
            var.inplace_op2(&grad.contiguous()?, &InPlace { step, moments })
        }
        Moments::Device(first, second) => {
            let scalar = f64::from;
            let grad = (grad * scalar(step.scale))?;
            *first = ((&*first * BETA1)? + (&grad * (1.0 - BETA1))?)?;
            *second = ((&*second * BETA2)? + (grad.sqr()? * (1.0 - BETA2))?)?;
            let root = ((&*second * scalar(step.correction2))?.sqrt()? + EPSILON)?;
            let change = (&*first * scalar(step.rate * step.correction1))?.div(&root)?;
            let kept = (var.as_detached_tensor() * (1.0 - scalar(step.decay)))?;
            var.set(&(kept - change)?)
        }
    }
}

struct InPlace<'a> {
    step: adam::Step,
    /// Candle hands the operation a shared reference.
    moments: Mutex<(&'a mut [f32], &'a mut [f32])>,
}

impl InplaceOp2 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        var: &mut CpuStorage,
        var_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<()> {
        let grad = values(grad, grad_layout)?;
        let (CpuStorage::F32(var), Some((start, end))) = (var, var_layout.contiguous_offsets())
        else {
            bail!("adamw works on contiguous f32 only");
        };
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, second) = &mut *moments;
        adam::step(self.step, &mut var[start..end], grad, first, second);
        Ok(())
    }
}

/// The learning rate of `step` (from 0) of `total`: from near 0 up to `peak` over the first
/// `warmup` steps, then along half a cosine down to 0.
pub fn cosine_rate(step: u64, total: u64, warmup: u64, peak: f64) -> f64 {
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let share = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    peak * 0.5 * (1.0 + (std::f64::consts::PI * share.min(1.0)).cos())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{close, random};
    use candle_core::Device;

    fn gradient(var: &Var, grad: &Tensor) -> GradStore {
        (var.as_tensor() * grad)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap()
    }

    #[test]
    fn agrees_with_the_published_algorithm() {
        let var = Var::from_tensor(&random("v", &[3, 4])).unwrap();
        let mut optimiser = AdamW::new([("v", &var)], 0.1, 0.0).unwrap();
        let (mut m, mut v) = ([0f64; 12], [0f64; 12]);
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let mut expected: Vec<f64> = flat(&var).into_iter().map(f64::from).collect();
        for t in 1..=5 {
            let grad = random(&format!("g{t}"), &[3, 4]);
            optimiser.step(&gradient(&var, &grad), 0.01).unwrap();
            for (i, g) in flat(&grad).into_iter().map(f64::from).enumerate() {
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let (mh, vh) = (m[i] / (1. - 0.9f64.powi(t)), v[i] / (1. - 0.999f64.powi(t)));
                expected[i] -= 0.01 * 0.1 * expected[i] + 0.01 * mh / (vh.sqrt() + 1e-8);
            }
        }
        let expected: Vec<f32> = expected.into_iter().map(|v| v as f32).collect();
        close(
            &var,
            &Tensor::from_vec(expected, (3, 4), &Device::Cpu).unwrap(),
            1e-5,
        );
    }

    #[test]
    fn both_kinds_of_moments_agree() {
        let start = random("v", &[5, 2]);
        let [host, device] = [false, true].map(|on_device| {
            let var = Var::from_tensor(&start).unwrap();
            let mut optimiser = AdamW::new([("v", &var)], 0.1, 0.5).unwrap();
            if on_device {
                let zeros = var.zeros_like().unwrap();
                optimiser.entries[0].moments = Moments::Device(zeros.clone(), zeros);
            }
            for t in 0..4 {
                let grad = random(&format!("g{t}"), &[5, 2]);
                optimiser.step(&gradient(&var, &grad), 0.1).unwrap();
            }
            var
        });
        close(&host, &device, 1e-6);
    }

    #[test]
    fn clipping_scales_all_gradients_alike() {
        let var = Var::zeros(4, DType::F32, &Device::Cpu).unwrap();
        let mut optimiser = AdamW::new([("v", &var)], 0.0, 1.0).unwrap();
        let grad = Tensor::new(&[3f32, 4., 0., 0.], &Device::Cpu).unwrap();
        assert_eq!(optimiser.step(&gradient(&var, &grad), 0.1).unwrap(), 5.0);
        let Moments::Host(first, _) = &optimiser.entries[0].moments else {
            panic!("moments are not on the host");
        };
        assert!((first[0] - 0.06).abs() < 1e-6 && (first[1] - 0.08).abs() < 1e-6);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let var = Var::ones(2, DType::F32, &Device::Cpu).unwrap();
        let mut optimiser = AdamW::new([("v", &var)], 0.1, 1.0).unwrap();
        let grad = Tensor::new(&[f32::NAN, 1.], &Device::Cpu).unwrap();
        assert!(
            optimiser
                .step(&gradient(&var, &grad), 0.1)
                .unwrap()
                .is_nan()
        );
        assert_eq!(var.to_vec1::<f32>().unwrap(), [1.0, 1.0]);
        assert_eq!(optimiser.steps(), 0);
    }

    #[test]
    fn the_rate_rises_and_falls() {
        let rate = |step| cosine_rate(step, 110, 10, 1.0);
        assert_eq!(rate(0), 0.1);
        assert_eq!(rate(9), 1.0);
        assert_eq!(rate(10), 1.0);
        assert!((rate(60) - 0.5).abs() < 1e-12);
        assert!(rate(109) < 1e-3 && rate(109) > 0.0);
        assert_eq!(cosine_rate(0, 0, 0, 1.0), 1.0);
    }
}
