//! Linear maps of the last dimension, with weights as they are trained and with weights packed
//! once for inference.

use super::{fused, has_kernels, like, stretch::add_stretched};
use crate::operation::{Apply, Operand, Operation, with_values};
use candle_core::{DType, Result, Shape, Tensor, bail};
#[cfg(target_arch = "x86_64")]
use diffaug_kernels::bf16::matrix::{self as pairs, Paired};
use diffaug_kernels::{
    buffer, column_sums,
    matrix::{Columns, Left, Packed, Product, Right, Rows, Start, Stored, Turned, multiply},
};
use half::{bf16, f16};
use std::sync::Arc;

/// x Wᵀ + b: `x` is `[.., inputs]`, `weight` `[outputs, inputs]`, `bias` `[outputs]`.
///
/// # Errors
/// When the shapes do not fit each other.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    check(x.shape(), inputs, outputs, bias)?;
    if !fused(x) {
        return composed(x, weight, bias);
    }
    match bias {
        Some(bias) => [x, weight, bias].apply(Linear),
        None => [x, weight].apply(Linear),
    }
}

fn check(x: &Shape, inputs: usize, outputs: usize, bias: Option<&Tensor>) -> Result<()> {
    if x.dims().last() != Some(&inputs) {
        bail!("a linear map of {inputs} values needs an input of shape [.., {inputs}], not {x:?}");
    }
    match bias.map(Tensor::dims) {
        Some(dims) if dims != [outputs] => {
            bail!(
                "a linear map to {outputs} values needs a bias of shape [{outputs}], not {dims:?}"
            )
        }
        _ => Ok(()),
    }
}

fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let y = x.reshape(((), inputs))?.matmul(&weight.t()?)?;
    let y = y.reshape(with_last(x.shape(), outputs))?;
    match bias {
        Some(bias) => {
            let mut shape = vec![1; y.rank()];
            shape[y.rank() - 1] = outputs;
            add_stretched(&y, &bias.reshape(shape)?)
        }
        None => Ok(y),
    }
}

fn with_last(shape: &Shape, last: usize) -> Shape {
    let mut dims = shape.dims().to_vec();
    if let Some(end) = dims.last_mut() {
        *end = last;
    }
    Shape::from(dims)
}

/// The rows of `x` times `right`, plus a bias that may be empty.
fn product(x: &[f32], right: impl Right, bias: &[f32]) -> Vec<f32> {
    let inputs = right.depth();
    let mut out = buffer(x.len() / inputs.max(1) * right.columns());
    multiply(vec![Product {
        left: Left {
            data: x,
            row: inputs,
            depth: 1,
        },
        right,
        start: if bias.is_empty() {
            Start::Zero
        } else {
            Start::Columns(bias)
        },
        out: &mut out,
    }]);
    out
}

struct Linear;

impl Linear {
    fn product(x: Operand<'_>, weight: Operand<'_>, bias: &[f32]) -> Result<(Vec<f32>, Shape)> {
        let (outputs, inputs) = weight.shape.dims2()?;
        let right = Columns {
            data: weight.values,
            depth: inputs,
            columns: outputs,
            stride: inputs,
        };
        let y = product(x.values, right, bias);
        Ok((y, with_last(x.shape, outputs)))
    }

    /// Gradients of input and weights.
    fn gradients(x: &Tensor, weight: &Tensor, dy: &[f32]) -> Result<[Option<Tensor>; 2]> {
        let (outputs, inputs) = weight.dims2()?;
        let dx = x.track_op().then(|| {
            let dx = with_values([weight], |[weight]| {
                let right = Rows {
                    data: weight,
                    depth: outputs,
                    columns: inputs,
                    stride: inputs,
                };
                product(dy, right, &[])
            })?;
            like(dx, x)
        });
        let dw = weight.track_op().then(|| {
            let mut dw = buffer(outputs * inputs);
            with_values([x], |[x]| {
                multiply(vec![Product {
                    left: Left {
                        data: dy,
                        row: 1,
                        depth: outputs,
                    },
                    right: Rows {
                        data: x,
                        depth: x.len() / inputs.max(1),
                        columns: inputs,
                        stride: inputs,
                    },
                    start: Start::Zero,
                    out: &mut dw,
                }]);
            })?;
            like(dw, weight)
        });
        Ok([dx.transpose()?, dw.transpose()?])
    }
}

impl Operation<2> for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, [x, weight]: [Operand<'_>; 2]) -> Result<(Vec<f32>, Shape)> {
        Linear::product(x, weight, &[])
    }

    fn backward(
        &self,
        [x, weight]: [&Tensor; 2],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        with_values([dy], |[dy]| Linear::gradients(x, weight, dy))?
    }
}

impl Operation<3> for Linear {
    fn name(&self) -> &'static str {
        "linear with bias"
    }

    fn forward(&self, [x, weight, bias]: [Operand<'_>; 3]) -> Result<(Vec<f32>, Shape)> {
        Linear::product(x, weight, bias.values)
    }

    fn backward(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        with_values([dy], |[dy]| {
            let [dx, dw] = Linear::gradients(x, weight, dy)?;
            let sums = column_sums(dy, bias.elem_count());
            Ok([dx, dw, Some(like(sums, bias)?)])
        })?
    }
}

/// A linear map whose weights do not change: on a processor they are kept in the order in which
/// they are read, in the type that they came in, so that bf16 and f16 take half the memory. Sums
/// are formed in f32. Gradients flow to the input, as adapters on frozen weights need.
///
/// Where the processor multiplies bf16 numbers itself (AVX512-BF16), bf16 weights meet an input
/// that is rounded to bf16, too: each product then differs by up to 2⁻⁹ of itself from that with
/// the input in f32, which f32 and f16 weights get everywhere. A row's result depends neither on
/// the rows beside it nor on the number of threads, on one machine.
#[derive(Clone)]
pub struct PackedLinear {
    weight: Weight,
    bias: Option<Tensor>,
}

#[derive(Clone)]
enum Weight {
    Packed(Arc<dyn Map>),
    /// On another device, as it is.
    Tensor(Tensor),
}

/// Packed weights.
trait Map: Send + Sync {
    fn inputs(&self) -> usize;

    fn outputs(&self) -> usize;

    /// The rows of `x` times the weights, plus a bias that may be empty.
    fn forward(&self, x: &[f32], bias: &[f32]) -> Vec<f32>;

    /// The gradient of the input.
    fn backward(&self, dy: &[f32]) -> Vec<f32>;
}

impl<T: Stored> Map for Packed<T> {
    fn inputs(&self) -> usize {
        self.depth()
    }

    fn outputs(&self) -> usize {
        self.columns()
    }

    fn forward(&self, x: &[f32], bias: &[f32]) -> Vec<f32> {
        product(x, self, bias)
    }

    fn backward(&self, dy: &[f32]) -> Vec<f32> {
        product(dy, Turned(self), &[])
    }
}

#[cfg(target_arch = "x86_64")]
impl Map for Paired {
    fn inputs(&self) -> usize {
        self.depth()
    }

    fn outputs(&self) -> usize {
        self.columns()
    }

    fn forward(&self, x: &[f32], bias: &[f32]) -> Vec<f32> {
        self.multiply(x, bias)
    }

    fn backward(&self, dy: &[f32]) -> Vec<f32> {
        product(dy, pairs::Turned(self), &[])
    }
}

/// bf16 weights as this processor multiplies them fastest.
fn narrow(source: &impl Right) -> Arc<dyn Map> {
    #[cfg(target_arch = "x86_64")]
    if let Some(paired) = Paired::new(source) {
        return Arc::new(paired);
    }
    Arc::new(Packed::<bf16>::new(source))
}

impl std::fmt::Debug for PackedLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedLinear").finish_non_exhaustive()
    }
}

impl PackedLinear {
    /// Packs `weight` (`[outputs, inputs]`; f32, bf16 or f16); `bias` is `[outputs]`.
    ///
    /// # Errors
    /// When the shapes do not fit each other or the type is another.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        check(&Shape::from(inputs), inputs, outputs, bias)?;
        if !has_kernels(weight.device()) {
            return Ok(PackedLinear {
                weight: Weight::Tensor(weight.clone()),
                bias: bias.cloned(),
            });
        }
        let bias = bias.map(|bias| bias.to_dtype(DType::F32)?.contiguous());
        let wide = weight.to_dtype(DType::F32)?;
        let weight = with_values([&wide], |[data]| {
            let source = Columns {
                data,
                depth: inputs,
                columns: outputs,
                stride: inputs,
            };
            Ok(Weight::Packed(match weight.dtype() {
                DType::F32 => Arc::new(Packed::<f32>::new(&source)),
                DType::BF16 => narrow(&source),
                DType::F16 => Arc::new(Packed::<f16>::new(&source)),
                other => bail!("weights of a linear map are f32, bf16 or f16, not {other:?}"),
            }))
        })??;
        Ok(PackedLinear {
            weight,
            bias: bias.transpose()?,
        })
    }

    /// `[.., inputs]` to `[.., outputs]`; on a processor `x` is f32.
    ///
    /// # Errors
    /// When `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed(weight) => {
                check(x.shape(), weight.inputs(), weight.outputs(), None)?;
                let bias = match &self.bias {
                    Some(bias) => bias.to_vec1()?,
                    None => Vec::new(),
                };
                let weight = weight.clone();
                [x].apply(Frozen { weight, bias })
            }
            Weight::Tensor(weight) => {
                check(x.shape(), weight.dim(1)?, weight.dim(0)?, None)?;
                composed(x, weight, self.bias.as_ref())
            }
        }
    }
}

struct Frozen {
    weight: Arc<dyn Map>,
    bias: Vec<f32>,
}

impl Operation<1> for Frozen {
    fn name(&self) -> &'static str {
        "packed linear"
    }

    fn forward(&self, [x]: [Operand<'_>; 1]) -> Result<(Vec<f32>, Shape)> {
        let y = self.weight.forward(x.values, &self.bias);
        Ok((y, with_last(x.shape, self.weight.outputs())))
    }

    fn backward(&self, [x]: [&Tensor; 1], _: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let dx = with_values([dy], |[dy]| self.weight.backward(dy))?;
        Ok([Some(like(dx, x)?)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, close, random};

    #[test]
    fn fused_and_composed_agree() {
        for [rows, inputs, outputs] in [[1, 3, 5], [77, 130, 65], [3, 1, 1]] {
            let x = random("x", &[2, rows, inputs]);
            let (w, b) = (random("w", &[outputs, inputs]), random("b", &[outputs]));
            let ours = linear(&x, &w, Some(&b)).unwrap();
            close(&ours, &composed(&x, &w, Some(&b)).unwrap(), 1e-5);
            let packed = PackedLinear::new(&w, Some(&b)).unwrap();
            close(&packed.forward(&x).unwrap(), &ours, 0.0);
        }
    }

    /// bf16 weights widened as they are read, as on a processor without an instruction for them.
    fn widened(weight: &Tensor) -> PackedLinear {
        let (columns, depth) = weight.dims2().unwrap();
        let wide = weight.to_dtype(DType::F32).unwrap();
        let packed = with_values([&wide], |[data]| {
            Packed::<bf16>::new(&Columns {
                data,
                depth,
                columns,
                stride: depth,
            })
        });
        PackedLinear {
            weight: Weight::Packed(Arc::new(packed.unwrap())),
            bias: None,
        }
    }

    fn gradient(packed: &PackedLinear, x: &Tensor, dy: &Tensor) -> Tensor {
        let x = candle_core::Var::from_tensor(x).unwrap();
        let y = (packed.forward(&x).unwrap() * dy).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        grads.get(&x).unwrap().clone()
    }

    #[test]
    fn packed_weights_of_every_type_hand_gradients_to_their_input() {
        let (x, w) = (random("x", &[5, 9]), random("w", &[70, 9]));
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let w = w.to_dtype(dtype).unwrap();
            let packed = match dtype {
                DType::BF16 => widened(&w),
                _ => PackedLinear::new(&w, None).unwrap(),
            };
            let rounded = w.to_dtype(DType::F32).unwrap();
            let expected = composed(&x, &rounded, None).unwrap();
            close(&packed.forward(&x).unwrap(), &expected, 1e-5);
            check_gradients(std::slice::from_ref(&x), |v| packed.forward(&v[0]));
        }
        // More outputs and inputs than a panel and a block are deep.
        let (x, w) = (random("x", &[3, 450]), random("w", &[500, 450]));
        let packed = PackedLinear::new(&w, None).unwrap();
        let dy = random("dy", &[3, 500]);
        close(&gradient(&packed, &x, &dy), &dy.matmul(&w).unwrap(), 1e-5);
    }

    /// Every remainder of rows, columns and depth, more than one block, panel and task of each.
    const SHAPES: [[usize; 3]; 6] = [
        // rows, inputs, outputs
        [1, 1, 1],
        [5, 7, 17],
        [8, 31, 49],
        [77, 514, 130],
        [134, 300, 65],
        [3, 256, 64],
    ];

    #[test]
    fn bf16_weights_are_as_close_to_the_widened_as_a_rounded_input() {
        for [rows, inputs, outputs] in SHAPES {
            let x = random("x", &[rows, inputs]);
            let w = random("w", &[outputs, inputs]);
            let bias = random("bias", &[outputs]);
            let w = w.to_dtype(DType::BF16).unwrap();
            let packed = PackedLinear::new(&w, Some(&bias)).unwrap();
            let slow = widened(&w);
            let ours = packed.forward(&x).unwrap();
            let exact = (slow.forward(&x).unwrap().broadcast_add(&bias)).unwrap();
            // No product is off by more than 2⁻⁸ of itself.
            let wide = w.to_dtype(DType::F32).unwrap();
            let sizes = composed(&x.abs().unwrap(), &wide.abs().unwrap(), None).unwrap();
            let room = ((sizes * 2f64.powi(-8)).unwrap() + 1e-6).unwrap();
            let off = (&ours - &exact).unwrap().abs().unwrap();
            let worst = (off / room).unwrap().max_all().unwrap();
            let worst = worst.to_scalar::<f32>().unwrap();
            assert!(worst <= 1.0, "{rows}x{inputs}x{outputs}: {worst}");
            // An input that is in bf16 already loses nothing.
            let narrow = x.to_dtype(DType::BF16).unwrap();
            let narrow = narrow.to_dtype(DType::F32).unwrap();
            let exact = (slow.forward(&narrow).unwrap().broadcast_add(&bias)).unwrap();
            close(&packed.forward(&narrow).unwrap(), &exact, 1e-5);
            let dy = random("dy", &[rows, outputs]);
            let expected = gradient(&slow, &x, &dy);
            close(&gradient(&packed, &x, &dy), &expected, 1e-6);
        }
    }

    #[test]
    fn a_row_depends_neither_on_its_neighbours_nor_on_threads() {
        let (x, w) = (random("x", &[200, 300]), random("w", &[150, 300]));
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let packed = PackedLinear::new(&w.to_dtype(dtype).unwrap(), None).unwrap();
            let run = |threads: usize, x: &Tensor| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                pool.unwrap().install(|| packed.forward(x)).unwrap()
            };
            let whole = run(1, &x).to_vec2::<f32>().unwrap();
            assert_eq!(whole, run(5, &x).to_vec2::<f32>().unwrap());
            for row in [0, 7, 199] {
                let alone = run(2, &x.narrow(0, row, 1).unwrap());
                assert_eq!(whole[row], alone.to_vec2::<f32>().unwrap()[0]);
            }
        }
    }

    #[test]
    fn a_misfit_is_named() {
        let (x, w) = (random("x", &[2, 3]), random("w", &[5, 4]));
        let error = linear(&x, &w, None).unwrap_err().to_string();
        assert!(error.contains("[.., 4], not [2, 3]"), "{error}");
        let error = PackedLinear::new(&w, Some(&random("b", &[4]))).unwrap_err();
        assert!(
            error.to_string().contains("bias of shape [5], not [4]"),
            "{error}"
        );
    }
}
