//! Steps of an optimiser on devices other than the processor. Tensors that are treated alike are joined
//! end to end, so that a step starts a few kernels for each of them instead of twenty.

use super::{Entry, Optimizer, Slots, Step};
use candle_core::{DType, Result, Tensor, backprop::GradStore};

/// Values that are joined at most, but for tensors that have more: what is joined is copied.
const VALUES: usize = 1 << 24;
/// Values of a row of those that are summed: a device sums rows side by side.
const ROW: usize = 1 << 12;

/// Tensors joined end to end.
#[derive(Debug)]
pub(super) struct Joined {
    /// Places of their entries.
    members: Vec<usize>,
    /// What the rule remembers of them. The entries' own are views of these.
    slots: Vec<Tensor>,
}

/// Entries that take the same step, and their gradients end to end.
pub(super) struct Alike {
    members: Vec<usize>,
    grad: Tensor,
}

impl Alike {
    /// The sum of the squares of the gradients, f32.
    pub fn squares(&self) -> Result<Tensor> {
        let squares = self.grad.to_dtype(DType::F32)?.sqr()?;
        let count = squares.elem_count();
        let whole = count / ROW * ROW;
        let rest = squares.narrow(0, whole, count - whole)?.sum_all()?;
        if whole == 0 {
            return Ok(rest);
        }
        squares
            .narrow(0, 0, whole)?
            .reshape(((), ROW))?
            .sum(1)?
            .sum_all()?
            + rest
    }
}

fn join<'t>(tensors: impl IntoIterator<Item = &'t Tensor>) -> Result<Tensor> {
    let flat = tensors.into_iter().map(Tensor::flatten_all);
    let flat = flat.collect::<Result<Vec<_>>>()?;
    Tensor::cat(&flat, 0)
}

impl Optimizer {
    /// The entries on devices that have a gradient, joined.
    pub(super) fn alike(&self, grads: &GradStore) -> Result<Vec<Alike>> {
        let key = |entry: &Entry| {
            let numbers = [entry.rate, entry.decay].map(f64::to_bits);
            (numbers, entry.var.dtype(), entry.var.device().location())
        };
        let mut groups: Vec<(usize, Vec<usize>)> = Vec::new();
        for (at, entry) in self.entries.iter().enumerate() {
            if matches!(entry.slots, Slots::Host(_)) || grads.get(&entry.var).is_none() {
                continue;
            }
            let (ours, count) = (key(entry), entry.var.elem_count());
            let fits = |(values, members): &&mut (usize, Vec<usize>)| {
                *values + count <= VALUES && key(&self.entries[members[0]]) == ours
            };
            match groups.iter_mut().find(fits) {
                Some((values, members)) => {
                    *values += count;
                    members.push(at);
                }
                None => groups.push((count, vec![at])),
            }
        }
        let joined = groups.into_iter().map(|(_, members)| {
            let grads = members.iter().map(|at| grads.get(&self.entries[*at].var));
            let grad = join(grads.flatten())?;
            Ok(Alike { members, grad })
        });
        joined.collect()
    }

    /// Makes the step that `step` gives for a learning rate and a weight decay.
    pub(super) fn step_joined(
        &mut self,
        alike: Vec<Alike>,
        step: impl Fn(&Entry) -> Step,
    ) -> Result<()> {
        let mut before = std::mem::take(&mut self.joined);
        for Alike { members, grad } in alike {
            let kept = before.iter().position(|joined| joined.members == members);
            let mut slots = match kept {
                Some(place) => before.swap_remove(place).slots,
                None => self.join_slots(&members)?,
            };
            let values: Vec<Tensor> = members
                .iter()
                .map(|at| self.entries[*at].var.as_detached_tensor())
                .collect();
            let values =
                step(&self.entries[members[0]]).on_device(&join(&values)?, &grad, &mut slots)?;
            let mut start = 0;
            for at in &members {
                let entry = &mut self.entries[*at];
                let (shape, count) = (entry.var.shape().clone(), entry.var.elem_count());
                let part = |t: &Tensor| t.narrow(0, start, count)?.reshape(&shape);
                entry.var.set(&part(&values)?)?;
                entry.slots = Slots::Device(slots.iter().map(part).collect::<Result<_>>()?);
                start += count;
            }
            self.joined.push(Joined { members, slots });
        }
        Ok(())
    }

    fn join_slots(&self, members: &[usize]) -> Result<Vec<Tensor>> {
        let slot = |which: usize| {
            let of_entry = |at: &usize| match &self.entries[*at].slots {
                Slots::Device(slots) => slots.get(which),
                Slots::Host(_) => None,
            };
            join(members.iter().filter_map(of_entry))
        };
        (0..self.rule.slots().len()).map(slot).collect()
    }
}
