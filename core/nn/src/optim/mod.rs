//! Optimisers with clipping and parameter groups, the learning rate over a run, and running means
//! of the weights.

mod ema;
mod joined;
mod rule;
mod schedule;

pub use ema::{Decay, Ema};
pub use rule::{Group, Rule};

use rule::fits;
pub use schedule::{Plateau, PlateauState, Schedule};

use crate::{
    operation::{values, with_values},
    ops::has_kernels,
};
use candle_core::{
    CpuStorage, DType, InplaceOp2, Layout, Result, Tensor, Var, backprop::GradStore, bail,
};
use diffaug::Error;
use diffaug_kernels::{adam, descent, sum};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

/// An optimiser: a rule, weight decay, clipping and groups.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// The rule.
    pub rule: Rule,
    /// Weight decay of tensors of two and more dimensions; scales and shifts are left alone.
    pub weight_decay: f64,
    /// Gradients whose norm over all tensors exceeds this are scaled down to it; 0: never.
    pub clip: f64,
    /// What differs from that for some tensors.
    pub groups: Vec<Group>,
}

/// A rule at work on the tensors of a model.
#[derive(Debug)]
pub struct Optimizer {
    rule: Rule,
    entries: Vec<Entry>,
    /// What the last step on a device left for the next.
    joined: Vec<joined::Joined>,
    clip: f64,
    steps: u64,
}

#[derive(Debug)]
struct Entry {
    name: String,
    var: Var,
    slots: Slots,
    rate: f64,
    decay: f64,
}

/// What the rule remembers of a tensor.
#[derive(Debug)]
enum Slots {
    /// On the processor it is updated in place.
    Host(Vec<Vec<f32>>),
    /// Elsewhere it is replaced.
    Device(Vec<Tensor>),
}

impl Slots {
    fn zeros(var: &Var, count: usize) -> Result<Self> {
        if has_kernels(var.device()) && var.dtype() == DType::F32 {
            return Ok(Slots::Host(vec![vec![0.0; var.elem_count()]; count]));
        }
        let zeros = |_| var.zeros_like();
        Ok(Slots::Device((0..count).map(zeros).collect::<Result<_>>()?))
    }

    fn tensors(&self, var: &Var) -> Result<Vec<Tensor>> {
        match self {
            Slots::Host(slots) => slots
                .iter()
                .map(|slot| Tensor::from_slice(slot, var.shape(), var.device()))
                .collect(),
            Slots::Device(slots) => Ok(slots.clone()),
        }
    }
}

impl Optimizer {
    /// An optimiser for `vars`.
    ///
    /// # Errors
    /// When a group's names fit no tensor, and when the device has no room for what is remembered.
    pub fn new<'a>(
        vars: impl IntoIterator<Item = (&'a str, &'a Var)>,
        config: &Config,
    ) -> diffaug::Result<Self> {
        let mut used = vec![false; config.groups.len()];
        let count = config.rule.slots().len();
        let mut entries = Vec::new();
        for (name, var) in vars {
            let fitting = config.groups.iter().position(|g| fits(&g.names, name));
            let group = fitting.map(|index| {
                used[index] = true;
                &config.groups[index]
            });
            if group.is_some_and(|group| group.frozen) {
                continue;
            }
            let decay = if var.rank() > 1 {
                config.weight_decay
            } else {
                0.0
            };
            entries.push(Entry {
                name: name.to_owned(),
                var: var.clone(),
                slots: Slots::zeros(var, count)?,
                rate: group.map_or(1.0, |group| group.rate),
                decay: group.and_then(|group| group.weight_decay).unwrap_or(decay),
            });
        }
        if let Some(index) = used.iter().position(|used| !used) {
            let names = &config.groups[index].names;
            return Err(Error::config(format!(
                "group {index} (`{names}`) is for no tensor of the model that an earlier group leaves"
            ))
            .at("groups"));
        }
        Ok(Optimizer {
            rule: config.rule,
            entries,
            joined: Vec::new(),
            clip: config.clip,
            steps: 0,
        })
    }

    /// Makes one step with learning rate `rate` and returns the norm of all gradients before
    /// clipping. Where that is not finite nothing is changed. Tensors without a gradient stay.
    ///
    /// # Errors
    /// Those of candle.
    pub fn step(&mut self, grads: &GradStore, rate: f64) -> Result<f64> {
        self.step_scaled(grads, rate, 1.0)
    }

    /// [`Optimizer::step`] with gradients that are `loss_scale` times what they should be.
    ///
    /// # Errors
    /// Those of candle.
    pub fn step_scaled(&mut self, grads: &GradStore, rate: f64, loss_scale: f64) -> Result<f64> {
        let alike = self.alike(grads)?;
        let norm = self.norm(grads, &alike)? / loss_scale;
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.steps += 1;
        let clip = if self.clip > 0.0 && norm > self.clip {
            self.clip / norm
        } else {
            1.0
        };
        let scale = clip / loss_scale;
        let (rule, steps) = (self.rule, self.steps);
        let step = |entry: &Entry| Step::new(rule, steps, rate * entry.rate, entry.decay, scale);
        for entry in &mut self.entries {
            let step = step(entry);
            if let (Some(grad), Slots::Host(slots)) = (grads.get(&entry.var), &mut entry.slots) {
                step.on_host(&entry.var, grad, slots)?;
            }
        }
        self.step_joined(alike, step)?;
        Ok(norm)
    }

    /// The norm over all tensors, of which those on devices are joined.
    fn norm(&self, grads: &GradStore, alike: &[joined::Alike]) -> Result<f64> {
        let mut squares = 0.0;
        for entry in &self.entries {
            if let (Some(grad), Slots::Host(_)) = (grads.get(&entry.var), &entry.slots) {
                squares += sum_of_squares(grad)?;
            }
        }
        if !alike.is_empty() {
            // One transfer from a device for all tensors.
            let sums = alike.iter().map(joined::Alike::squares);
            let sums = Tensor::stack(&sums.collect::<Result<Vec<_>>>()?, 0)?;
            squares += sums
                .to_vec1::<f32>()?
                .into_iter()
                .map(f64::from)
                .sum::<f64>();
        }
        Ok(squares.sqrt())
    }

    /// Number of steps made.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The tensors that change, by name; frozen ones are no part of it.
    pub fn vars(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.entries
            .iter()
            .map(|entry| (entry.name.as_str(), &entry.var))
    }

    /// What the rule remembers, to be stored: for AdamW `first.NAME` and `second.NAME`, for SGD
    /// `momentum.NAME`, for RMSprop `square.NAME`, `mean.NAME` and `momentum.NAME`.
    ///
    /// # Errors
    /// Those of candle.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut state = Vec::new();
        for entry in &self.entries {
            let names = self.rule.slots();
            let tensors = entry.slots.tensors(&entry.var)?;
            for (slot, tensor) in names.iter().zip(tensors) {
                state.push((format!("{slot}.{}", entry.name), tensor));
            }
        }
        Ok(state)
    }

    /// Names and shapes of what [`Optimizer::state`] gives.
    pub(crate) fn expected(&self) -> Vec<(String, Vec<usize>)> {
        let names = self.rule.slots();
        let expected = |entry: &Entry| {
            let shape = entry.var.dims().to_vec();
            let pair = |slot: &&str| (format!("{slot}.{}", entry.name), shape.clone());
            names.iter().map(pair).collect::<Vec<_>>()
        };
        self.entries.iter().flat_map(expected).collect()
    }

    /// Takes over what [`Optimizer::state`] gave after `steps` steps; `find` answers for each name.
    pub(crate) fn restore<'t>(
        &mut self,
        steps: u64,
        find: impl Fn(&str) -> Result<&'t Tensor>,
    ) -> Result<()> {
        let names = self.rule.slots();
        for entry in &mut self.entries {
            let tensor = |slot: &&str| find(&format!("{slot}.{}", entry.name));
            let tensors = names.iter().map(tensor).collect::<Result<Vec<_>>>()?;
            match &mut entry.slots {
                Slots::Host(slots) => {
                    for (slot, tensor) in slots.iter_mut().zip(tensors) {
                        *slot = tensor.flatten_all()?.to_vec1()?;
                    }
                }
                Slots::Device(slots) => {
                    for (slot, tensor) in slots.iter_mut().zip(tensors) {
                        *slot = tensor.to_device(entry.var.device())?;
                    }
                }
            }
        }
        self.joined.clear();
        self.steps = steps;
        Ok(())
    }
}

/// Of an f32 tensor on the processor.
fn sum_of_squares(grad: &Tensor) -> Result<f64> {
    with_values([grad], |[values]| {
        let squares = |part: &[f32]| sum([part], |[v]| v * v);
        // Collected before they are added, so that the order is fixed.
        let parts: Vec<f64> = values.par_chunks(1 << 14).map(squares).collect();
        parts.iter().sum()
    })
}

/// The numbers of one step for one tensor.
#[derive(Clone, Copy, Debug)]
enum Step {
    Adam(adam::Step),
    Sgd(descent::Step, bool),
    RmsProp(descent::Step, descent::Rms),
}

impl Step {
    fn new(rule: Rule, steps: u64, rate: f64, decay: f64, scale: f64) -> Self {
        // 1 - beta in f32 would be off by 5e-5.
        let shares = |beta: f64| (beta as f32, (1.0 - beta) as f32);
        let common = |momentum: f64| descent::Step {
            rate: rate as f32,
            decay: decay as f32,
            scale: scale as f32,
            momentum: momentum as f32,
        };
        match rule {
            Rule::AdamW {
                beta1,
                beta2,
                epsilon,
            } => {
                let correction = |beta: f64| (1.0 / (1.0 - beta.powf(steps as f64))) as f32;
                Step::Adam(adam::Step {
                    rate: rate as f32,
                    decay: (rate * decay) as f32,
                    beta1: shares(beta1),
                    beta2: shares(beta2),
                    correction1: correction(beta1),
                    correction2: correction(beta2),
                    epsilon: epsilon as f32,
                    scale: scale as f32,
                })
            }
            Rule::Sgd { momentum, nesterov } => Step::Sgd(common(momentum), nesterov),
            Rule::RmsProp {
                alpha,
                epsilon,
                momentum,
                centered,
            } => {
                let rms = descent::Rms {
                    alpha: shares(alpha),
                    epsilon: epsilon as f32,
                    centered,
                };
                Step::RmsProp(common(momentum), rms)
            }
        }
    }

    /// Changes a tensor on the processor in place.
    fn on_host(self, var: &Var, grad: &Tensor, slots: &mut [Vec<f32>]) -> Result<()> {
        let slots = Mutex::new(slots.iter_mut().map(Vec::as_mut_slice).collect());
        let step = self;
        var.inplace_op2(&grad.contiguous()?, &InPlace { step, slots })
    }

    /// What becomes of `values`; replaces what is remembered.
    fn on_device(self, values: &Tensor, grad: &Tensor, slots: &mut [Tensor]) -> Result<Tensor> {
        match self {
            Step::Adam(step) => adam_on_device(step, values, grad, slots),
            Step::Sgd(step, nesterov) => sgd_on_device(step, nesterov, values, grad, slots),
            Step::RmsProp(step, rms) => rms_on_device(step, rms, values, grad, slots),
        }
    }
}

/// `mean` after `value` was taken into it.
fn average(mean: &Tensor, value: &Tensor, shares: (f32, f32)) -> Result<Tensor> {
    (mean * f64::from(shares.0))? + (value * f64::from(shares.1))?
}

fn adam_on_device(
    step: adam::Step,
    values: &Tensor,
    grad: &Tensor,
    slots: &mut [Tensor],
) -> Result<Tensor> {
    let [first, second] = slots else {
        bail!("adamw needs two moments");
    };
    let scalar = f64::from;
    let grad = (grad * scalar(step.scale))?;
    *first = average(first, &grad, step.beta1)?;
    *second = average(second, &grad.sqr()?, step.beta2)?;
    let root = ((&*second * scalar(step.correction2))?.sqrt()? + scalar(step.epsilon))?;
    let change = (&*first * scalar(step.rate * step.correction1))?.div(&root)?;
    (values * (1.0 - scalar(step.decay)))? - change
}

fn decayed(step: &descent::Step, values: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let grad = (grad * f64::from(step.scale))?;
    match step.decay == 0.0 {
        true => Ok(grad),
        false => grad + (values * f64::from(step.decay))?,
    }
}

fn sgd_on_device(
    step: descent::Step,
    nesterov: bool,
    values: &Tensor,
    grad: &Tensor,
    slots: &mut [Tensor],
) -> Result<Tensor> {
    let mut change = decayed(&step, values, grad)?;
    if let [momentum] = slots {
        *momentum = ((&*momentum * f64::from(step.momentum))? + &change)?;
        change = match nesterov {
            true => (change + (&*momentum * f64::from(step.momentum))?)?,
            false => momentum.clone(),
        };
    }
    values - (change * f64::from(step.rate))?
}

fn rms_on_device(
    step: descent::Step,
    rms: descent::Rms,
    values: &Tensor,
    grad: &Tensor,
    slots: &mut [Tensor],
) -> Result<Tensor> {
    let mut change = decayed(&step, values, grad)?;
    let mut slots = slots.iter_mut();
    if let Some(square) = slots.next() {
        *square = average(square, &change.sqr()?, rms.alpha)?;
        let mut root = square.clone();
        if rms.centered
            && let Some(mean) = slots.next()
        {
            *mean = average(mean, &change, rms.alpha)?;
            root = (root - mean.sqr()?)?.relu()?;
        }
        change = change.div(&(root.sqrt()? + f64::from(rms.epsilon))?)?;
    }
    if let Some(momentum) = slots.next() {
        *momentum = ((&*momentum * f64::from(step.momentum))? + &change)?;
        change = momentum.clone();
    }
    values - (change * f64::from(step.rate))?
}

struct InPlace<'a> {
    step: Step,
    /// Candle hands the operation a shared reference.
    slots: Mutex<Vec<&'a mut [f32]>>,
}

impl InplaceOp2 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "optimiser"
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
            bail!("an optimiser works on contiguous f32 only");
        };
        let var = &mut var[start..end];
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        match (self.step, &mut slots[..]) {
            (Step::Adam(step), [first, second]) => adam::step(step, var, grad, first, second),
            (Step::Adam(_), _) => bail!("adamw needs two moments"),
            (Step::Sgd(step, nesterov), slots) => descent::sgd(step, nesterov, var, grad, slots),
            (Step::RmsProp(step, rms), slots) => descent::rmsprop(step, rms, var, grad, slots),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
