//! Activation checkpointing (Chen et al., 2016): a block whose inner results are not kept for the
//! backward pass but computed again there. Memory falls from the sum over all blocks to the largest
//! of them, for one more forward pass.
//!
//! Candle's operations have three inputs at most and give gradients to their inputs alone, while a
//! block has any number of both inputs and parameters. Here each input is tied by a [`Tie`] into a
//! chain of scalars that costs nothing and ends in the block's result ([`Block`]). Backward, the
//! block comes first, builds its graph anew, and leaves the gradients of its inputs and parameters
//! in a store of the thread, where the ties, and in the end [`backward`], fetch them.

use crate::{
    given::Given,
    operation::{ApplyComputed, Computed},
};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, DType, Layout, MetalStorage, Result, Shape, Tensor,
    TensorId, Var, backend::BackendStorage, backprop::GradStore, bail,
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Gradients on their way from blocks to where they belong.
#[derive(Default)]
struct Store {
    /// Of parameters, summed over blocks.
    params: HashMap<TensorId, Tensor>,
    /// Of a block's inputs: by the block's number and the input's place.
    inputs: HashMap<(u64, usize), Tensor>,
}

thread_local! {
    /// There while [`backward`] runs on this thread.
    static STORE: RefCell<Option<Store>> = const { RefCell::new(None) };
    static REPLAYING: Cell<bool> = const { Cell::new(false) };
}

static BLOCKS: AtomicU64 = AtomicU64::new(0);

/// The result of `f` on `inputs`, whose inner results are computed again in the backward pass.
///
/// Gradients flow to inputs of floating point and to every variable that `f` makes use of; they
/// equal those without checkpointing, to the last bit where no parameter serves several blocks.
/// `f` is called twice and must do the same both times: what it draws at random has to come from
/// the inputs, and what it counts or tracks is left alone while [`replaying`].
///
/// The loss has to be differentiated by [`backward`]; candle's own `backward` says so.
///
/// # Errors
/// Those of `f`.
pub fn checkpointed<F>(inputs: &[&Tensor], f: F) -> Result<Tensor>
where
    F: Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
{
    let inputs: Vec<Tensor> = inputs.iter().map(|input| (*input).clone()).collect();
    let detached: Vec<Tensor> = inputs.iter().map(Tensor::detach).collect();
    let result = f(&detached)?.detach();
    let Some(device) = inputs.first().map(Tensor::device) else {
        bail!("a checkpointed block needs at least one input");
    };
    let block = BLOCKS.fetch_add(1, Ordering::Relaxed);
    // A variable of its own makes candle visit the block even where no input has a gradient.
    let mut chain = Var::zeros((), DType::F32, device)?.into_inner();
    let wanted: Vec<bool> = inputs.iter().map(wants_gradient).collect();
    for (place, input) in inputs.iter().enumerate() {
        if wanted[place] {
            chain = chain.apply_op2(input, Tie { block, place })?;
        }
    }
    [&chain].apply_computed(Block {
        block,
        inputs: detached,
        wanted,
        f: Arc::new(f),
        result: Given::new(result),
    })
}

fn wants_gradient(input: &Tensor) -> bool {
    input.dtype().is_float() && input.track_op()
}

/// Whether a checkpointed block is being computed for the second time; what keeps running
/// statistics skips that.
pub fn replaying() -> bool {
    REPLAYING.get()
}

/// The gradients of `loss`, a scalar, with those of parameters inside checkpointed blocks.
///
/// # Errors
/// Those of candle and of the blocks.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    let _restore = Restore(STORE.replace(Some(Store::default())));
    let mut grads = loss.backward()?;
    let store = STORE.take().unwrap_or_default();
    for (id, grad) in store.params {
        let sum = match grads.get_id(id) {
            Some(outside) => (outside + grad)?,
            None => grad,
        };
        grads.insert_id(id, sum);
    }
    Ok(grads)
}

/// Puts back what was in the store, also on failure.
struct Restore(Option<Store>);

impl Drop for Restore {
    fn drop(&mut self) {
        STORE.set(self.0.take());
    }
}

struct Replay(bool);

impl Drop for Replay {
    fn drop(&mut self) {
        REPLAYING.set(self.0);
    }
}

fn with_store<R>(work: impl FnOnce(&mut Store) -> Result<R>) -> Result<R> {
    STORE.with_borrow_mut(|store| match store {
        Some(store) => work(store),
        None => bail!(
            "a loss with checkpointed blocks has to be differentiated by `recompute::backward`"
        ),
    })
}

/// The gradient of a chain: candle wants one for whatever is computed, be it of zeros.
fn onwards(chain: &Tensor) -> Result<Option<Tensor>> {
    match chain.is_variable() {
        true => Ok(None),
        false => chain.zeros_like().map(Some),
    }
}

/// Ties an input to its block; its value is that of the chain before it.
struct Tie {
    block: u64,
    place: usize,
}

impl CustomOp2 for Tie {
    fn name(&self) -> &'static str {
        "checkpointed input"
    }

    fn cpu_fwd(
        &self,
        chain: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((chain.try_clone(layout)?, layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        chain: &CudaStorage,
        layout: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((chain.try_clone(layout)?, layout.shape().clone()))
    }

    fn metal_fwd(
        &self,
        chain: &MetalStorage,
        layout: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        Ok((chain.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(
        &self,
        chain: &Tensor,
        input: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let key = (self.block, self.place);
        let grad = with_store(|store| Ok(store.inputs.remove(&key)))?;
        let grad = grad.map_or_else(|| input.zeros_like(), Ok)?;
        Ok((onwards(chain)?, Some(grad)))
    }
}

type Forward = Arc<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;

/// The block: its argument is the chain, its value what `f` gave.
struct Block {
    block: u64,
    inputs: Vec<Tensor>,
    wanted: Vec<bool>,
    f: Forward,
    result: Given,
}

impl Block {
    /// Computes the block again with its graph and differentiates it.
    fn replay(&self, grad: &Tensor) -> Result<()> {
        let mut leaves = Vec::new();
        let mut inputs = self.inputs.clone();
        for (place, input) in inputs.iter_mut().enumerate() {
            if self.wanted[place] {
                let leaf = Var::from_tensor(input)?;
                *input = leaf.as_tensor().clone();
                leaves.push((place, leaf));
            }
        }
        let result = {
            let _restore = Replay(REPLAYING.replace(true));
            (self.f)(&inputs)?
        };
        // The derivative of this sum by `result` is `grad`, exactly.
        let sum = (&result * grad.detach())?.sum_all()?;
        let mut grads = sum.backward()?;
        let mut found = Vec::new();
        for (place, leaf) in &leaves {
            if let Some(grad) = grads.remove(leaf) {
                found.push(((self.block, *place), grad));
            }
        }
        let variables = sum.sorted_nodes().into_iter().filter(|n| n.is_variable());
        let params: Vec<(TensorId, Tensor)> = variables
            .filter_map(|node| Some((node.id(), grads.remove(node)?)))
            .collect();
        with_store(|store| {
            store.inputs.extend(found);
            for (id, grad) in params {
                let sum = match store.params.remove(&id) {
                    Some(other) => (other + grad)?,
                    None => grad,
                };
                store.params.insert(id, sum);
            }
            Ok(())
        })
    }
}

impl Computed<1> for Block {
    fn name(&self) -> &'static str {
        "checkpointed block"
    }

    fn result(&self) -> &Given {
        &self.result
    }

    fn backward(
        &self,
        [chain]: [&Tensor; 1],
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 1]> {
        with_store(|_| Ok(()))?;
        self.replay(grad)?;
        Ok([onwards(chain)?])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{ops, params::Params, testing::random};
    use candle_core::Device;
    use std::sync::Mutex;

    /// A small residual block with a second input, and how often it was run.
    #[derive(Clone)]
    struct Layer {
        weight: Tensor,
        bias: Tensor,
    }

    impl Layer {
        fn forward(&self, x: &Tensor, time: &Tensor) -> Result<Tensor> {
            let inner = ops::silu(&x.matmul(&self.weight)?.broadcast_add(&self.bias)?)?;
            x + inner.broadcast_mul(time)?
        }
    }

    struct Net {
        params: Params,
        first: Layer,
        second: Layer,
    }

    impl Net {
        fn new() -> Self {
            let mut params = Params::new(&Device::Cpu, 1);
            let mut layer = |name: &str| {
                let mut root = params.root();
                let mut scope = root.child(name);
                Layer {
                    weight: scope.uniform("weight", &[4, 4], 0.5).unwrap(),
                    bias: scope.uniform("bias", &[4], 0.5).unwrap(),
                }
            };
            let (first, second) = (layer("first"), layer("second"));
            Net {
                params,
                first,
                second,
            }
        }

        fn run(&self, layer: &Layer, x: &Tensor, time: &Tensor, often: bool) -> Result<Tensor> {
            if !often {
                return layer.forward(x, time);
            }
            let layer = layer.clone();
            checkpointed(&[x, time], move |inputs| {
                layer.forward(&inputs[0], &inputs[1])
            })
        }
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Gradients of all parameters, and of `x` and `time`.
    fn gradients(net: &Net, shared: bool, checkpoint: bool, vars: &[Var; 2]) -> Vec<Vec<f32>> {
        let [x, time] = vars;
        let second = if shared { &net.first } else { &net.second };
        let y = net.run(&net.first, x, time, checkpoint).unwrap();
        let y = net.run(second, &y, time, checkpoint).unwrap();
        let loss = (y.sqr().unwrap() * random("direction", &[3, 4])).unwrap();
        let loss = loss.sum_all().unwrap();
        let grads = backward(&loss).unwrap();
        let params = net.params.trainable().filter_map(|(_, var)| grads.get(var));
        let mut all: Vec<Vec<f32>> = params.map(values).collect();
        all.extend(vars.iter().map(|var| values(grads.get(var).unwrap())));
        all
    }

    fn vars() -> [Var; 2] {
        [random("x", &[3, 4]), random("time", &[3, 1])].map(|t| Var::from_tensor(&t).unwrap())
    }

    #[test]
    fn two_blocks_in_a_row_have_equal_gradients_to_the_last_bit() {
        let (net, vars) = (Net::new(), vars());
        let plain = gradients(&net, false, false, &vars);
        assert_eq!(plain.len(), 6);
        assert_eq!(plain, gradients(&net, false, true, &vars));
    }

    #[test]
    fn parameters_of_several_blocks_get_the_sum() {
        let (net, vars) = (Net::new(), vars());
        let plain = gradients(&net, true, false, &vars);
        let ours = gradients(&net, true, true, &vars);
        assert_eq!(plain.len(), 4);
        for (a, b) in plain.iter().flatten().zip(ours.iter().flatten()) {
            assert!((a - b).abs() <= 1e-6 * a.abs().max(1.0), "{a} {b}");
        }
    }

    #[test]
    fn parameters_inside_and_outside_of_a_block_get_the_sum() {
        let net = Net::new();
        let (x, time) = (random("x", &[3, 4]), random("time", &[3, 1]));
        let grads = |checkpoint| {
            let y = net.run(&net.first, &x, &time, checkpoint).unwrap();
            let y = net.first.forward(&y, &time).unwrap();
            let grads = backward(&y.sum_all().unwrap()).unwrap();
            let (_, bias) = net.params.trainable().next().unwrap();
            values(grads.get(bias).unwrap())
        };
        for (a, b) in grads(false).into_iter().zip(grads(true)) {
            assert!((a - b).abs() <= 1e-6 * a.abs().max(1.0), "{a} {b}");
        }
    }

    #[test]
    fn inputs_need_no_gradient_and_may_be_integers() {
        let table = Var::from_tensor(&random("table", &[5, 4])).unwrap();
        let rows = Tensor::new(&[1u32, 3, 3], &Device::Cpu).unwrap();
        let grads = |checkpoint: bool| {
            let pick = {
                let table = table.as_tensor().clone();
                move |inputs: &[Tensor]| table.index_select(&inputs[0], 0)?.sqr()
            };
            let y = match checkpoint {
                true => checkpointed(&[&rows], pick).unwrap(),
                false => pick(std::slice::from_ref(&rows)).unwrap(),
            };
            let grads = backward(&y.sum_all().unwrap()).unwrap();
            values(grads.get(&table).unwrap())
        };
        assert_eq!(grads(false), grads(true));
    }

    #[test]
    fn blocks_may_contain_blocks() {
        let net = Net::new();
        let [x, time] = vars();
        let inner = {
            let (first, second) = (net.first.clone(), net.second.clone());
            move |inputs: &[Tensor]| {
                let first = first.clone();
                let y = checkpointed(&[&inputs[0], &inputs[1]], move |inputs| {
                    first.forward(&inputs[0], &inputs[1])
                })?;
                second.forward(&y, &inputs[1])
            }
        };
        let y = checkpointed(&[&x, &time], inner).unwrap();
        let ours = backward(&y.sum_all().unwrap()).unwrap();
        let y = net.first.forward(&x, &time).unwrap();
        let y = net.second.forward(&y, &time).unwrap();
        let plain = backward(&y.sum_all().unwrap()).unwrap();
        let params = net.params.trainable().map(|(_, var)| var);
        for var in params.chain([&x, &time]) {
            let (ours, plain) = (ours.get(var).unwrap(), plain.get(var).unwrap());
            assert_eq!(values(ours), values(plain));
        }
    }

    #[test]
    fn a_block_is_run_once_forward_and_once_backward() {
        let runs = Arc::new(Mutex::new(Vec::new()));
        let x = Var::from_tensor(&random("x", &[3])).unwrap();
        let seen = runs.clone();
        let y = checkpointed(&[&x], move |inputs| {
            seen.lock().unwrap().push(replaying());
            inputs[0].sqr()
        });
        let loss = y.unwrap().sum_all().unwrap();
        backward(&loss).unwrap();
        assert_eq!(*runs.lock().unwrap(), [false, true]);
        assert!(!replaying());
    }

    #[test]
    fn candles_own_backward_says_what_to_call() {
        let x = Var::from_tensor(&random("x", &[3])).unwrap();
        let y = checkpointed(&[&x], |inputs| inputs[0].sqr()).unwrap();
        let error = y.sum_all().unwrap().backward().unwrap_err().to_string();
        assert!(error.contains("`recompute::backward`"), "{error}");
    }
}
