//! Checks that every differentiable operation and every model should pass.
//!
//! For tests only: they panic.

pub mod operations;
mod pytorch;

pub use pytorch::{archive, pytorch_file};

use crate::weights;
use candle_core::{Device, Result, Tensor, Var, backprop::GradStore};
use diffaug::rng;
use rand::RngExt;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// Values from -1 to 1 that depend on name and shape alone.
///
/// # Panics
/// Never for a shape that fits into memory.
pub fn random(name: &str, shape: &[usize]) -> Tensor {
    let mut rng = rng::stream(rng::derive(0, "testing", name), "values", 0);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap_or_else(|e| panic!("{e}"))
}

/// `path` in the folder of optional real data and weights, `../shared` beside the workspace; says
/// so and gives `None` where it is absent, so that a test can pass over what needs it.
#[allow(clippy::print_stderr)]
pub fn optional(path: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let path = root.join(path);
    if !path.exists() {
        eprintln!("passed over: there is no `{}`", path.display());
        return None;
    }
    Some(path)
}

/// All values, as f32 on the host.
fn flat(t: &Tensor) -> Vec<f32> {
    let values = t.flatten_all().and_then(|t| t.to_vec1::<f32>());
    values.unwrap_or_else(|e| panic!("{e}"))
}

/// Asserts that no value differs by more than `tolerance` of the largest (at least 1e-3).
///
/// # Panics
/// When shapes or values differ.
pub fn close(ours: &Tensor, theirs: &Tensor, tolerance: f32) {
    assert_eq!(ours.dims(), theirs.dims());
    let (ours, theirs) = (flat(ours), flat(theirs));
    let largest = theirs.iter().fold(1e-3f32, |a, v| a.max(v.abs()));
    for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        // Written so that NaN fails.
        let fits = (a - b).abs() <= tolerance * largest;
        assert!(fits, "value {i} is {a}, expected {b} (largest {largest})");
    }
}

/// What a reference answered: `case.x`, `case.weight` and so on are inputs, `case.y` is the result,
/// `case.dy` a gradient for it, and `case.dx`, `case.dweight` and so on the gradients that follow.
///
/// A new check is three lines: one that opens the file, one that names case and inputs, and one
/// that calls the operation.
#[derive(Debug)]
pub struct Fixtures(HashMap<String, Tensor>);

impl Fixtures {
    /// Reads the safetensors file `path`.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Self {
        Fixtures(weights::read(path.as_ref()).unwrap_or_else(|e| panic!("{e}")))
    }

    /// The tensor `case.name`.
    ///
    /// # Panics
    /// When there is none.
    pub fn get(&self, case: &str, name: &str) -> &Tensor {
        let tensor = self.0.get(&format!("{case}.{name}"));
        tensor.unwrap_or_else(|| panic!("the fixtures have no `{case}.{name}`"))
    }

    /// Asserts that `f` of the inputs of `case` gives the reference's result (to 1e-5 of the
    /// largest value) and gradients (to 1e-4), and that these agree with finite differences.
    ///
    /// # Panics
    /// When it does not.
    pub fn check(&self, case: &str, inputs: &[&str], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
        self.agree(case, inputs, &f);
        check_gradients(&self.inputs(case, inputs), f);
    }

    /// [`Fixtures::check`] without finite differences, for operations that have a kink where the
    /// inputs lie.
    ///
    /// # Panics
    /// When they do not agree.
    pub fn agree(&self, case: &str, inputs: &[&str], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
        self.try_agree(case, inputs, f)
            .unwrap_or_else(|e| panic!("{case}: {e}"));
    }

    fn inputs(&self, case: &str, names: &[&str]) -> Vec<Tensor> {
        names.iter().map(|n| self.get(case, n).clone()).collect()
    }

    fn try_agree(
        &self,
        case: &str,
        names: &[&str],
        f: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<()> {
        let vars = self.inputs(case, names);
        let vars = vars.iter().map(Var::from_tensor);
        let vars = vars.collect::<Result<Vec<Var>>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let y = f(&tensors)?;
        close(&y, self.get(case, "y"), 1e-5);
        let grads = (&y * self.get(case, "dy"))?.sum_all()?.backward()?;
        for (name, var) in names.iter().zip(&vars) {
            let Some(grad) = grads.get(var) else {
                panic!("`{case}.{name}` has no gradient");
            };
            close(grad, self.get(case, &format!("d{name}")), 1e-4);
        }
        Ok(())
    }
}

/// Asserts that the gradients of `f` at `inputs` agree with finite differences to 1 %.
///
/// # Panics
/// When they do not, or `f` fails.
pub fn check_gradients(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    try_check(inputs, f).unwrap_or_else(|e| panic!("{e}"));
}

fn try_check(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
    const STEP: f32 = 1e-2;
    let vars = inputs
        .iter()
        .map(Var::from_tensor)
        .collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors)?;
    // One random direction of the result turns it into a scalar, summed in f64.
    let direction = random("direction", y.dims());
    let grads = (&y * &direction)?.sum_all()?.backward()?;
    let direction = flat(&direction);
    let scalar = |inputs: &[Tensor]| -> Result<f64> {
        let products = flat(&f(inputs)?).into_iter().zip(&direction);
        Ok(products.map(|(a, b)| f64::from(a) * f64::from(*b)).sum())
    };
    for (which, var) in vars.iter().enumerate() {
        let Some(grad) = grads.get(var) else {
            panic!("input {which} has no gradient");
        };
        assert_eq!(grad.dims(), var.dims(), "gradient of input {which}");
        let grad = flat(grad);
        let largest = grad.iter().fold(1e-2f32, |a, v| a.max(v.abs()));
        let values = flat(var);
        // A prime stride visits every place of small inputs and a fair sample of large ones.
        let stride = if values.len() > 300 { 7 } else { 1 };
        for i in (0..values.len()).step_by(stride) {
            let shifted = |by: f32| -> Result<f64> {
                let mut values = values.clone();
                values[i] += by;
                let mut inputs = inputs.to_vec();
                inputs[which] = Tensor::from_vec(values, var.shape(), var.device())?;
                scalar(&inputs)
            };
            let slope = ((shifted(STEP)? - shifted(-STEP)?) / f64::from(2.0 * STEP)) as f32;
            let fits = (slope - grad[i]).abs() <= 1e-2 * largest;
            assert!(
                fits,
                "input {which}[{i}]: gradient {}, slope {slope}",
                grad[i]
            );
        }
    }
    Ok(())
}

/// Asserts that after a backward pass every trainable tensor has a finite gradient that is not
/// all zeros: nothing is cut off from the loss.
///
/// # Panics
/// Naming the tensor that is.
pub fn assert_all_trained<'a>(
    vars: impl IntoIterator<Item = (&'a str, &'a Var)>,
    grads: &GradStore,
) {
    for (name, var) in vars {
        let Some(grad) = grads.get(var) else {
            panic!("`{name}` has no gradient");
        };
        let grad = flat(grad);
        assert!(
            grad.iter().all(|v| v.is_finite()),
            "gradient of `{name}` is not finite"
        );
        assert!(
            grad.iter().any(|&v| v != 0.0),
            "gradient of `{name}` is zero"
        );
    }
}

/// Asserts that two ways to compute one function agree, in values to 1e-5 of the largest and in
/// gradients to 1e-4.
///
/// # Panics
/// When they do not, or one fails.
pub fn same(
    inputs: &[Tensor],
    ours: impl Fn(&[Tensor]) -> Result<Tensor>,
    theirs: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let run = |f: &dyn Fn(&[Tensor]) -> Result<Tensor>| -> Result<(Tensor, Vec<Option<Tensor>>)> {
        let vars = inputs.iter().map(Var::from_tensor);
        let vars = vars.collect::<Result<Vec<Var>>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = f(&tensors)?;
        let dy = random("direction", y.dims());
        let grads = (&y * dy)?.sum_all()?.backward()?;
        Ok((y, vars.iter().map(|v| grads.get(v).cloned()).collect()))
    };
    let (y, grads) = run(&ours).unwrap_or_else(|e| panic!("{e}"));
    let (their_y, their_grads) = run(&theirs).unwrap_or_else(|e| panic!("{e}"));
    close(&y, &their_y, 1e-5);
    for (which, pair) in grads.iter().zip(&their_grads).enumerate() {
        match pair {
            (Some(ours), Some(theirs)) => close(ours, theirs, 1e-4),
            (None, None) => {}
            _ => panic!("only one of the two has a gradient of input {which}"),
        }
    }
}
