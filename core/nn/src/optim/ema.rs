//! The running mean of a model's weights: what diffusion models are judged and stored with.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, Var, bail};
use diffaug_kernels::descent;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How slowly the mean follows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Decay {
    /// By `1 - decay` of the difference in every step.
    Fixed {
        /// From 0 to below 1.
        decay: f64,
    },
    /// The decay of update `n` (from 1) is `min(decay, (1 + n) / (10 + n))`, so that early weights
    /// are forgotten soon.
    Warmup {
        /// From 0 to below 1.
        decay: f64,
    },
    /// The decay of update `n` (from 1) is `min(decay, 1 - (1 + (n - 1) / inv_gamma)^-power)`, as in
    /// diffusers' `EMAModel` with `use_ema_warmup`: the first update takes the weights over.
    Power {
        /// From 0 to below 1.
        decay: f64,
        /// Above 0; diffusers' default is 1.
        inv_gamma: f64,
        /// Above 0; diffusers' default is 2/3.
        power: f64,
    },
}

impl Decay {
    /// The share of the old mean that update `n` (from 1) keeps.
    pub fn at(&self, n: u64) -> f64 {
        let n = n as f64;
        match *self {
            Decay::Fixed { decay } => decay,
            Decay::Warmup { decay } => decay.min((1.0 + n) / (10.0 + n)),
            Decay::Power {
                decay,
                inv_gamma,
                power,
            } => decay.min(1.0 - (1.0 + (n - 1.0) / inv_gamma).powf(-power)),
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// Naming the one that is out of range as `ema.NAME`.
    pub fn check(&self) -> diffaug::Result<()> {
        let (Decay::Fixed { decay } | Decay::Warmup { decay } | Decay::Power { decay, .. }) = *self;
        let mut wrong = None;
        if !(0.0..1.0).contains(&decay) {
            wrong = Some(("ema.decay", decay, "a number from 0 to below 1"));
        }
        if let Decay::Power {
            inv_gamma, power, ..
        } = *self
        {
            for (field, value) in [("ema.inv_gamma", inv_gamma), ("ema.power", power)] {
                if !(value > 0.0 && value.is_finite()) {
                    wrong = Some((field, value, "a number above 0"));
                }
            }
        }
        match wrong {
            None => Ok(()),
            Some((field, value, expected)) => Err(diffaug::Error::config(format!(
                "`{field}` is {value}, expected {expected}"
            ))
            .at(field)),
        }
    }
}

/// The running mean of the tensors of a model that change. Running statistics are no part of it:
/// they are means already.
#[derive(Debug)]
pub struct Ema {
    decay: Decay,
    updates: u64,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    var: Var,
    mean: Var,
}

impl Ema {
    /// Starts from the present values of `vars`.
    ///
    /// # Errors
    /// When the device has no room for the means.
    pub fn new<'a>(
        vars: impl IntoIterator<Item = (&'a str, &'a Var)>,
        decay: Decay,
    ) -> Result<Self> {
        let entry = |(name, var): (&str, &Var)| {
            Ok(Entry {
                name: name.to_owned(),
                var: var.clone(),
                mean: Var::from_tensor(&var.as_detached_tensor().copy()?)?,
            })
        };
        Ok(Ema {
            decay,
            updates: 0,
            entries: vars.into_iter().map(entry).collect::<Result<_>>()?,
        })
    }

    /// Lets the means follow the weights after a step.
    ///
    /// # Errors
    /// Those of candle.
    pub fn update(&mut self) -> Result<()> {
        self.updates += 1;
        let share = 1.0 - self.decay.at(self.updates);
        let mut entries = self.entries.iter();
        entries.try_for_each(|entry| follow(&entry.mean, &entry.var, share))
    }

    /// Updates made.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The means, by the names of their tensors.
    pub fn means(&self) -> impl Iterator<Item = (&str, &Var)> {
        let entries = self.entries.iter();
        entries.map(|entry| (entry.name.as_str(), &entry.mean))
    }

    /// Runs `work` while the means stand in the model's place; the weights come back to the last
    /// bit, whatever `work` returns.
    ///
    /// # Errors
    /// Those of `work` and of candle.
    pub fn in_place<T>(&self, work: impl FnOnce() -> diffaug::Result<T>) -> diffaug::Result<T> {
        let copy = |entry: &Entry| entry.var.as_detached_tensor().copy();
        let kept: Vec<Tensor> = self.entries.iter().map(copy).collect::<Result<_>>()?;
        for Entry { var, mean, .. } in &self.entries {
            var.set(&mean.as_detached_tensor())?;
        }
        let outcome = work();
        for (entry, tensor) in self.entries.iter().zip(&kept) {
            entry.var.set(tensor)?;
        }
        outcome
    }

    /// Takes over what [`Ema::means`] gave after `updates` updates: `find` answers for each name.
    pub(crate) fn restore<'t>(
        &mut self,
        updates: u64,
        find: impl Fn(&str) -> Result<&'t Tensor>,
    ) -> Result<()> {
        for Entry { name, mean, .. } in &self.entries {
            mean.set(&find(name)?.to_device(mean.device())?)?;
        }
        self.updates = updates;
        Ok(())
    }
}

fn follow(mean: &Var, var: &Var, share: f64) -> Result<()> {
    let values = var.as_detached_tensor();
    if crate::ops::has_kernels(mean.device()) && mean.dtype() == candle_core::DType::F32 {
        return mean.inplace_op2(&values.contiguous()?, &Follow(share as f32));
    }
    let old = mean.as_detached_tensor();
    mean.set(&(&old - ((&old - values)? * share)?)?)
}

struct Follow(f32);

impl InplaceOp2 for Follow {
    fn name(&self) -> &'static str {
        "ema"
    }

    fn cpu_fwd(
        &self,
        mean: &mut CpuStorage,
        mean_layout: &Layout,
        values: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let values = crate::operation::values(values, layout)?;
        let (CpuStorage::F32(mean), Some((start, end))) = (mean, mean_layout.contiguous_offsets())
        else {
            bail!("a running mean works on contiguous f32 only");
        };
        descent::follow(&mut mean[start..end], values, self.0);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{params::Params, testing::Fixtures};
    use candle_core::Device;

    const FIXTURES: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/optimisers.safetensors"
    );

    #[test]
    fn the_mean_follows_as_the_reference_does() {
        let fixtures = Fixtures::open(FIXTURES);
        let forms = [
            ("fixed", Decay::Fixed { decay: 0.9 }),
            ("warmup", Decay::Warmup { decay: 0.3 }),
            (
                "power",
                Decay::Power {
                    decay: 0.8,
                    inv_gamma: 1.0,
                    power: 0.75,
                },
            ),
        ];
        for (name, decay) in forms {
            let mut params = Params::new(&Device::Cpu, 0);
            params.root().constant("w", &[3, 4], 0.0).unwrap();
            let var = params.trainable().next().unwrap().1.clone();
            let values = fixtures.get("ema", "values");
            var.set(&values.get(0).unwrap()).unwrap();
            let mut ema = Ema::new(params.trainable(), decay).unwrap();
            for step in 1..values.dim(0).unwrap() {
                var.set(&values.get(step).unwrap()).unwrap();
                ema.update().unwrap();
            }
            let mean = ema.means().next().unwrap().1;
            crate::testing::close(mean, fixtures.get("ema", name), 1e-6);
        }
    }

    #[test]
    fn weights_come_back_even_from_a_failure() {
        let mut params = Params::new(&Device::Cpu, 0);
        params.root().uniform("w", &[5], 1.0).unwrap();
        let var = params.trainable().next().unwrap().1.clone();
        let ema = Ema::new(params.trainable(), Decay::Fixed { decay: 0.5 }).unwrap();
        let values = || var.to_vec1::<f32>().unwrap();
        let old = values();
        var.set(&var.affine(1.0, 0.3).unwrap()).unwrap();
        let present = values();
        let outcome: diffaug::Result<()> = ema.in_place(|| {
            assert_eq!(values(), old);
            Err(diffaug::Error::cancelled())
        });
        assert!(outcome.is_err());
        assert_eq!(values(), present);
    }
}
