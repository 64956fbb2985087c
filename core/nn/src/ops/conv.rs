//! Convolution and its transpose.

use super::{fused, has_kernels, like, stretch::add_stretched, wide};
use crate::operation::{Apply, Operand, Operation, with_values};
use candle_core::{DType, Result, Shape, Tensor, bail};
#[cfg(target_arch = "x86_64")]
use diffaug_kernels::bf16::conv::Paired;
use diffaug_kernels::{
    buffer, channel_sums,
    conv::{correlate, write_phases, write_rows},
    conv_packed::Packed,
    conv_weights::weight_gradient,
    matrix::Stored,
    strips::{Geometry, Maps},
    windows::Windows,
};
use half::{bf16, f16};
use std::sync::Arc;

/// Convolves with stride 1 and as many zeros around as keep height and width.
///
/// `x` is `[batch, inputs, height, width]`; `weight` is `[outputs, inputs, k, k]` with odd k; `bias`
/// is `[outputs]`.
///
/// # Errors
/// When the shapes do not fit each other or k is even.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let side = kernel_side(x.shape(), weight.shape())?;
    if !fused(x) {
        let y = composed(x, weight, side / 2, [1; 3])?;
        return add_bias(&y, bias);
    }
    match bias {
        Some(bias) => [x, weight, bias].apply(Conv),
        None => [x, weight].apply(Conv),
    }
}

/// Candle's own convolution with the given padding, stride, dilation and groups.
pub(super) fn composed(
    x: &Tensor,
    weight: &Tensor,
    padding: usize,
    [stride, dilation, groups]: [usize; 3],
) -> Result<Tensor> {
    if on_processor_bf16(x) {
        let y = wide(x)?.conv2d(&wide(weight)?, padding, stride, dilation, groups)?;
        return y.to_dtype(DType::BF16);
    }
    x.conv2d(weight, padding, stride, dilation, groups)
}

/// Whether candle has no convolution for `x`: it has none of bf16 on a processor.
fn on_processor_bf16(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::BF16
}

/// Doubles height and width: every pixel becomes 2×2 pixels (a transposed convolution with a 2×2
/// window and stride 2).
///
/// `x` is `[batch, inputs, height, width]`; `weight` is `[inputs, outputs, 2, 2]`; `bias` is
/// `[outputs]`.
///
/// # Errors
/// When the shapes do not fit each other.
pub fn conv_transpose2x2(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (inputs, expected) = (x.dim(1)?, weight.dims4()?);
    if (expected.0, expected.2, expected.3) != (inputs, 2, 2) {
        bail!(
            "a 2x2 transposed convolution of {inputs} channels needs weights of shape [{inputs}, _, 2, 2], not {:?}",
            weight.dims()
        );
    }
    if !fused(x) {
        let y = match on_processor_bf16(x) {
            true => wide(x)?
                .conv_transpose2d(&wide(weight)?, 0, 0, 2, 1)?
                .to_dtype(DType::BF16)?,
            false => x.conv_transpose2d(weight, 0, 0, 2, 1)?,
        };
        return add_bias(&y, Some(bias));
    }
    [x, weight, bias].apply(ConvTranspose)
}

pub(super) fn add_bias(y: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => add_stretched(y, &bias.reshape((1, (), 1, 1))?),
        None => Ok(y.clone()),
    }
}

pub(super) fn kernel_side(x: &Shape, weight: &Shape) -> Result<usize> {
    let (_, inputs, _, _) = x.dims4()?;
    let (_, expected, side, other) = weight.dims4()?;
    if expected != inputs || side != other || side % 2 == 0 {
        bail!(
            "a convolution of {inputs} channels needs weights of shape [_, {inputs}, k, k] with odd k, not {weight:?}"
        );
    }
    Ok(side)
}

pub(super) fn check_bias(outputs: usize, bias: Option<&Tensor>) -> Result<()> {
    match bias.map(Tensor::dims) {
        Some(dims) if dims != [outputs] => {
            bail!(
                "a convolution to {outputs} channels needs a bias of shape [{outputs}], not {dims:?}"
            )
        }
        _ => Ok(()),
    }
}

fn geometry(x: &Shape, pad: usize) -> Result<Geometry> {
    let (batch, _, height, width) = x.dims4()?;
    Ok(Geometry {
        batch,
        height,
        width,
        pad,
        margin: pad,
    })
}

pub(super) struct Conv;

impl Conv {
    /// The result and its shape; the bias may be empty.
    pub(super) fn forward(
        x: Operand<'_>,
        weight: Operand<'_>,
        bias: &[f32],
    ) -> Result<(Vec<f32>, Shape)> {
        let (batch, _, height, width) = x.shape.dims4()?;
        let shape = Shape::from((batch, weight.shape.dims()[0], height, width));
        let side = kernel_side(x.shape, weight.shape)?;
        if side == 1 {
            let windows = pointwise(x.shape, weight.shape)?;
            return Ok((windows.correlate(x.values, weight.values, bias), shape));
        }
        let packed = Conv::pack::<f32>(weight.values, weight.shape)?;
        let maps = Maps::new(x.values, packed.inputs());
        Ok((
            convolve(maps, geometry(x.shape, side / 2)?, &packed, bias),
            shape,
        ))
    }

    fn pack<T: Stored>(weight: &[f32], shape: &Shape) -> Result<Packed<T>> {
        let (outputs, inputs, side, _) = shape.dims4()?;
        Ok(Packed::new([outputs, inputs, side * side], weight))
    }

    /// Gradients of input and weights.
    pub(super) fn backward(x: &Tensor, weight: &Tensor, dy: &[f32]) -> Result<[Option<Tensor>; 2]> {
        let (outputs, inputs, side, _) = weight.dims4()?;
        if side == 1 {
            return gradients(&pointwise(x.shape(), weight.shape())?, x, weight, dy);
        }
        let (geometry, taps) = (geometry(x.shape(), side / 2)?, side * side);
        let dx = x.track_op().then(|| {
            // The same sum with inputs and outputs exchanged and the window turned by 180 degrees.
            let packed = with_values([weight], |[weight]| {
                Packed::<f32>::turned([inputs, outputs, taps], weight)
            })?;
            like(convolve(Maps::new(dy, outputs), geometry, &packed, &[]), x)
        });
        let dw = weight.track_op().then(|| {
            let dw = with_values([x], |[x]| {
                weight_gradient(geometry, Maps::new(x, inputs), Maps::new(dy, outputs))
            })?;
            like(dw, weight)
        });
        Ok([dx.transpose()?, dw.transpose()?])
    }
}

fn pointwise(x: &Shape, weight: &Shape) -> Result<Windows> {
    let (batch, inputs, height, width) = x.dims4()?;
    let channels = [inputs, weight.dims()[0]];
    Ok(Windows::pointwise(batch, channels, height * width))
}

/// Gradients of input and weights, where they are wanted.
pub(super) fn gradients(
    windows: &Windows,
    x: &Tensor,
    weight: &Tensor,
    dy: &[f32],
) -> Result<[Option<Tensor>; 2]> {
    let dx = x.track_op().then(|| {
        let dx = with_values([weight], |[w]| windows.scatter(dy, w, &[]))?;
        like(dx, x)
    });
    let dw = weight.track_op().then(|| {
        let dw = with_values([x], |[x]| windows.weight_gradient(x, dy))?;
        like(dw, weight)
    });
    Ok([dx.transpose()?, dw.transpose()?])
}

/// `x` holds as many channels as `weights` takes.
fn convolve<T: Stored>(
    x: Maps<'_>,
    geometry: Geometry,
    weights: &Packed<T>,
    bias: &[f32],
) -> Vec<f32> {
    let Geometry {
        batch,
        height,
        width,
        ..
    } = geometry;
    let mut out = buffer(batch * weights.outputs() * height * width);
    correlate(geometry, x, weights, (&mut out, 1), |out, band| {
        write_rows(out, band, width, bias);
    });
    out
}

impl Operation<2> for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn forward(&self, [x, weight]: [Operand<'_>; 2]) -> Result<(Vec<f32>, Shape)> {
        Conv::forward(x, weight, &[])
    }

    fn backward(
        &self,
        [x, weight]: [&Tensor; 2],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        with_values([dy], |[dy]| Conv::backward(x, weight, dy))?
    }
}

impl Operation<3> for Conv {
    fn name(&self) -> &'static str {
        "conv2d with bias"
    }

    fn forward(&self, [x, weight, bias]: [Operand<'_>; 3]) -> Result<(Vec<f32>, Shape)> {
        Conv::forward(x, weight, bias.values)
    }

    fn backward(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let [dx, dw] = with_values([dy], |[dy]| Conv::backward(x, weight, dy))??;
        Ok([dx, dw, Some(bias_gradient(bias, dy)?)])
    }
}

pub(super) fn bias_gradient(bias: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (_, channels, height, width) = dy.dims4()?;
    let sums = with_values([dy], |[dy]| channel_sums(dy, channels, height * width))?;
    like(sums, bias)
}

/// [`conv2d`] with weights that do not change: on a processor they are kept in the order in which
/// they are read, in the type that they came in, so that bf16 and f16 take half the memory. Sums
/// are formed in f32. Gradients flow to the input, as adapters on frozen weights need.
///
/// Where the processor multiplies bf16 numbers itself, bf16 weights meet an input that is rounded
/// to bf16, as in [`PackedLinear`](super::PackedLinear).
#[derive(Clone)]
pub struct PackedConv2d {
    weight: Weight,
    bias: Option<Tensor>,
    side: usize,
}

#[derive(Clone)]
enum Weight {
    Packed(Arc<dyn Kernel>),
    /// On another device, as it is.
    Tensor(Tensor),
}

/// Packed weights.
trait Kernel: Send + Sync {
    fn inputs(&self) -> usize;

    fn outputs(&self) -> usize;

    /// Convolves maps of the given geometry and adds a bias that may be empty.
    fn forward(&self, x: &[f32], geometry: Geometry, bias: &[f32]) -> Vec<f32>;

    /// The gradient of the input.
    fn backward(&self, dy: &[f32], geometry: Geometry) -> Vec<f32>;
}

impl<T: Stored> Kernel for Packed<T> {
    fn inputs(&self) -> usize {
        self.inputs()
    }

    fn outputs(&self) -> usize {
        self.outputs()
    }

    fn forward(&self, x: &[f32], geometry: Geometry, bias: &[f32]) -> Vec<f32> {
        convolve(Maps::new(x, self.inputs()), geometry, self, bias)
    }

    fn backward(&self, dy: &[f32], geometry: Geometry) -> Vec<f32> {
        self.turn().forward(dy, geometry, &[])
    }
}

#[cfg(target_arch = "x86_64")]
impl Kernel for Paired {
    fn inputs(&self) -> usize {
        self.inputs()
    }

    fn outputs(&self) -> usize {
        self.outputs()
    }

    fn forward(&self, x: &[f32], geometry: Geometry, bias: &[f32]) -> Vec<f32> {
        self.convolve(x, geometry, bias)
    }

    fn backward(&self, dy: &[f32], geometry: Geometry) -> Vec<f32> {
        self.turned().forward(dy, geometry, &[])
    }
}

/// bf16 weights as this processor multiplies them fastest.
fn narrow(weight: &[f32], shape: &Shape) -> Result<Arc<dyn Kernel>> {
    #[cfg(target_arch = "x86_64")]
    {
        let (outputs, inputs, side, _) = shape.dims4()?;
        let taps = side * side;
        let paired = Paired::new([outputs, inputs, taps], |output, input, tap| {
            weight[(output * inputs + input) * taps + tap]
        });
        if let Some(paired) = paired {
            return Ok(Arc::new(paired));
        }
    }
    Ok(Arc::new(Conv::pack::<bf16>(weight, shape)?))
}

impl std::fmt::Debug for PackedConv2d {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedConv2d").finish_non_exhaustive()
    }
}

impl PackedConv2d {
    /// Packs `weight` (`[outputs, inputs, k, k]` with odd k; f32, bf16 or f16); `bias` is
    /// `[outputs]`.
    ///
    /// # Errors
    /// When the shapes do not fit each other or the type is another.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (outputs, inputs, side, _) = weight.dims4()?;
        kernel_side(&Shape::from((1, inputs, 1, 1)), weight.shape())?;
        check_bias(outputs, bias)?;
        if !has_kernels(weight.device()) {
            return Ok(PackedConv2d {
                weight: Weight::Tensor(weight.clone()),
                bias: bias.cloned(),
                side,
            });
        }
        let bias = bias.map(|bias| bias.to_dtype(DType::F32)?.contiguous());
        let (dtype, shape) = (weight.dtype(), weight.shape());
        let weight = with_values([&weight.to_dtype(DType::F32)?], |[weight]| {
            Ok(Weight::Packed(match dtype {
                DType::F32 => Arc::new(Conv::pack::<f32>(weight, shape)?),
                DType::BF16 => narrow(weight, shape)?,
                DType::F16 => Arc::new(Conv::pack::<f16>(weight, shape)?),
                other => bail!("weights of a convolution are f32, bf16 or f16, not {other:?}"),
            }))
        })??;
        Ok(PackedConv2d {
            weight,
            bias: bias.transpose()?,
            side,
        })
    }

    /// `[batch, inputs, height, width]` to `[batch, outputs, height, width]`; on a processor `x`
    /// is f32.
    ///
    /// # Errors
    /// When `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = match &self.weight {
            Weight::Packed(weight) => weight.clone(),
            Weight::Tensor(weight) => return conv2d(x, weight, self.bias.as_ref()),
        };
        let (expected, channels) = (weight.inputs(), x.dim(1)?);
        if channels != expected {
            bail!("a convolution of {expected} channels cannot take {channels}");
        }
        let bias = match &self.bias {
            Some(bias) => bias.to_vec1()?,
            None => Vec::new(),
        };
        [x].apply(Frozen {
            weight,
            bias,
            pad: self.side / 2,
        })
    }
}

struct Frozen {
    weight: Arc<dyn Kernel>,
    bias: Vec<f32>,
    pad: usize,
}

impl Operation<1> for Frozen {
    fn name(&self) -> &'static str {
        "packed conv2d"
    }

    fn forward(&self, [x]: [Operand<'_>; 1]) -> Result<(Vec<f32>, Shape)> {
        let (batch, _, height, width) = x.shape.dims4()?;
        let geometry = geometry(x.shape, self.pad)?;
        let y = self.weight.forward(x.values, geometry, &self.bias);
        let shape = (batch, self.weight.outputs(), height, width);
        Ok((y, Shape::from(shape)))
    }

    fn backward(&self, [x]: [&Tensor; 1], _: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let geometry = geometry(x.shape(), self.pad)?;
        let dx = with_values([dy], |[dy]| self.weight.backward(dy, geometry))?;
        Ok([Some(like(dx, x)?)])
    }
}

/// A 1×1 convolution to four times the outputs, whose results are dealt out to 2×2 pixels.
struct ConvTranspose;

impl Operation<3> for ConvTranspose {
    fn name(&self) -> &'static str {
        "conv_transpose2x2"
    }

    fn forward(&self, [x, weight, bias]: [Operand<'_>; 3]) -> Result<(Vec<f32>, Shape)> {
        let geometry = geometry(x.shape, 0)?;
        let (inputs, outputs, _, _) = weight.shape.dims4()?;
        let packed = Packed::<f32>::turned([4 * outputs, inputs, 1], weight.values);
        let Geometry {
            batch,
            height,
            width,
            ..
        } = geometry;
        let mut out = buffer(batch * outputs * 4 * height * width);
        let maps = Maps::new(x.values, inputs);
        correlate(geometry, maps, &packed, (&mut out, 4), |out, band| {
            write_phases(out, band, width, bias.values);
        });
        let shape = (batch, outputs, 2 * height, 2 * width);
        Ok((out, Shape::from(shape)))
    }

    fn backward(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let (inputs, outputs, _, _) = weight.dims4()?;
        let geometry = geometry(x.shape(), 0)?;
        let dx = x.track_op().then(|| {
            let dx = with_values([weight, dy], |[weight, dy]| {
                let packed = Packed::<f32>::new([inputs, 4 * outputs, 1], weight);
                convolve(Maps::phases(dy, outputs), geometry, &packed, &[])
            })?;
            like(dx, x)
        });
        // With the roles exchanged the result is [input][output][phase], as the weights are.
        let dw = with_values([dy, x], |[dy, x]| {
            weight_gradient(geometry, Maps::phases(dy, outputs), Maps::new(x, inputs))
        })?;
        let dw = like(dw, weight)?;
        Ok([dx.transpose()?, Some(dw), Some(bias_gradient(bias, dy)?)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, close, random};

    /// Sizes with odd sides, partial blocks of channels and more than one band of rows.
    const SHAPES: [[usize; 6]; 6] = [
        // batch, inputs, outputs, height, width, k
        [2, 3, 5, 7, 9, 3],
        [1, 17, 9, 5, 4, 1],
        [3, 2, 8, 1, 1, 3],
        [1, 1, 2, 60, 50, 5],
        [2, 8, 16, 13, 33, 3],
        [2, 20, 17, 13, 33, 3],
    ];

    #[test]
    fn convolution_agrees_with_candle() {
        for [b, ci, co, h, w, k] in SHAPES {
            let x = random("x", &[b, ci, h, w]);
            let weight = random("weight", &[co, ci, k, k]);
            let bias = random("bias", &[co]);
            let ours = conv2d(&x, &weight, Some(&bias)).unwrap();
            let theirs = x.conv2d(&weight, k / 2, 1, 1, 1).unwrap();
            close(&ours, &add_bias(&theirs, Some(&bias)).unwrap(), 1e-5);
            close(&conv2d(&x, &weight, None).unwrap(), &theirs, 1e-5);
        }
    }

    #[test]
    fn convolution_gradients() {
        for [b, ci, co, h, w, k] in [[2, 3, 5, 5, 4, 3], [2, 3, 9, 3, 5, 1], [1, 1, 1, 6, 7, 5]] {
            let x = random("x", &[b, ci, h, w]);
            let weight = random("weight", &[co, ci, k, k]);
            let bias = random("bias", &[co]);
            check_gradients(&[x, weight, bias], |v| conv2d(&v[0], &v[1], Some(&v[2])));
        }
    }

    #[test]
    fn weight_gradient_over_many_tasks_agrees_with_candle() {
        // Large enough to be cut by pixels, with groups of inputs and blocks that are not full.
        let x = candle_core::Var::from_tensor(&random("x", &[3, 18, 37, 41])).unwrap();
        let w = candle_core::Var::from_tensor(&random("w", &[10, 18, 3, 3])).unwrap();
        let dy = random("dy", &[3, 10, 37, 41]);
        let grads = |y: Tensor| (y * &dy).unwrap().sum_all().unwrap().backward().unwrap();
        let ours = grads(conv2d(&x, &w, None).unwrap());
        let theirs = grads(x.conv2d(&w, 1, 1, 1, 1).unwrap());
        close(ours.get(&w).unwrap(), theirs.get(&w).unwrap(), 1e-4);
        close(ours.get(&x).unwrap(), theirs.get(&x).unwrap(), 1e-4);
    }

    #[test]
    fn transposed_convolution_agrees_with_candle() {
        for [b, ci, co, h, w] in [[2, 6, 3, 5, 7], [1, 9, 5, 33, 31], [2, 1, 1, 1, 1]] {
            let x = random("x", &[b, ci, h, w]);
            let weight = random("weight", &[ci, co, 2, 2]);
            let bias = random("bias", &[co]);
            let ours = conv_transpose2x2(&x, &weight, &bias).unwrap();
            let theirs = x.conv_transpose2d(&weight, 0, 0, 2, 1).unwrap();
            close(&ours, &add_bias(&theirs, Some(&bias)).unwrap(), 1e-5);
        }
    }

    #[test]
    fn transposed_convolution_gradients() {
        let inputs = [
            random("x", &[2, 5, 3, 4]),
            random("weight", &[5, 3, 2, 2]),
            random("bias", &[3]),
        ];
        check_gradients(&inputs, |v| conv_transpose2x2(&v[0], &v[1], &v[2]));
    }

    /// bf16 weights widened as they are read, as on a processor without an instruction for them.
    fn widened(weight: &Tensor, bias: &Tensor) -> PackedConv2d {
        let wide = weight.to_dtype(DType::F32).unwrap();
        let packed = with_values([&wide], |[values]| {
            Conv::pack::<bf16>(values, weight.shape())
        });
        PackedConv2d {
            weight: Weight::Packed(Arc::new(packed.unwrap().unwrap())),
            bias: Some(bias.clone()),
            side: weight.dims()[2],
        }
    }

    #[test]
    fn packed_weights_of_every_type_hand_gradients_to_their_input() {
        for (x, w) in [([2, 3, 5, 4], [10, 3, 3, 3]), ([1, 9, 3, 7], [3, 9, 1, 1])] {
            let (x, w) = (random("x", &x), random("w", &w));
            let bias = random("bias", &w.dims()[..1]);
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let w = w.to_dtype(dtype).unwrap();
                let packed = match dtype {
                    DType::BF16 => widened(&w, &bias),
                    _ => PackedConv2d::new(&w, Some(&bias)).unwrap(),
                };
                let rounded = w.to_dtype(DType::F32).unwrap();
                let expected = conv2d(&x, &rounded, Some(&bias)).unwrap();
                close(&packed.forward(&x).unwrap(), &expected, 1e-6);
                check_gradients(std::slice::from_ref(&x), |v| packed.forward(&v[0]));
            }
        }
    }

    #[test]
    fn bf16_weights_are_as_close_to_the_widened_as_a_rounded_input() {
        let many = [[1, 200, 20, 9, 8, 3], [2, 5, 9, 70, 90, 3]];
        for [b, ci, co, h, w, k] in SHAPES.into_iter().chain(many) {
            let x = random("x", &[b, ci, h, w]);
            let weight = random("weight", &[co, ci, k, k]);
            let weight = weight.to_dtype(DType::BF16).unwrap();
            let bias = random("bias", &[co]);
            let packed = PackedConv2d::new(&weight, Some(&bias)).unwrap();
            let slow = widened(&weight, &bias);
            // No product is off by more than 2⁻⁸ of itself.
            let wide = weight.to_dtype(DType::F32).unwrap();
            let sizes = conv2d(&x.abs().unwrap(), &wide.abs().unwrap(), None).unwrap();
            let room = ((sizes * 2f64.powi(-8)).unwrap() + 1e-6).unwrap();
            let off = packed.forward(&x).unwrap() - slow.forward(&x).unwrap();
            let worst = (off.unwrap().abs().unwrap() / room).unwrap();
            let worst = worst.max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(worst <= 1.0, "{b}x{ci}x{h}x{w} to {co}: {worst}");
            // An input that is in bf16 already loses nothing.
            let narrow = x.to_dtype(DType::BF16).unwrap();
            let narrow = narrow.to_dtype(DType::F32).unwrap();
            let expected = slow.forward(&narrow).unwrap();
            close(&packed.forward(&narrow).unwrap(), &expected, 1e-5);
            let gradient = |packed: &PackedConv2d| {
                let x = candle_core::Var::from_tensor(&x).unwrap();
                let y = packed.forward(&x).unwrap();
                let y = (&y * random("dy", y.dims())).unwrap();
                let grads = y.sum_all().unwrap().backward().unwrap();
                grads.get(&x).unwrap().clone()
            };
            close(&gradient(&packed), &gradient(&slow), 1e-6);
        }
    }

    #[test]
    fn an_image_depends_neither_on_its_neighbours_nor_on_threads() {
        let x = random("x", &[3, 20, 30, 33]);
        let (w, bias) = (random("w", &[40, 20, 3, 3]), random("bias", &[40]));
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let packed = PackedConv2d::new(&w.to_dtype(dtype).unwrap(), Some(&bias)).unwrap();
            let run = |threads: usize, x: &Tensor| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let y = pool.unwrap().install(|| packed.forward(x)).unwrap();
                y.flatten_from(1).unwrap().to_vec2::<f32>().unwrap()
            };
            let whole = run(1, &x);
            assert_eq!(whole, run(5, &x));
            for (image, among) in whole.iter().enumerate() {
                let alone = run(2, &x.narrow(0, image, 1).unwrap());
                assert_eq!(*among, alone[0]);
            }
        }
    }

    #[test]
    fn an_input_that_is_data_gets_no_gradient() {
        let x = random("x", &[1, 2, 4, 4]);
        let w = candle_core::Var::from_tensor(&random("w", &[2, 2, 3, 3])).unwrap();
        let y = conv2d(&x, &w, None).unwrap().sum_all().unwrap();
        let grads = y.backward().unwrap();
        assert!(grads.get(&x).is_none() && grads.get(&w).is_some());
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let run = |threads: usize, channels: usize| {
            let (x, w) = ([4, channels, 40, 40], [channels, channels, 3, 3]);
            let x = candle_core::Var::from_tensor(&random("x", &x)).unwrap();
            let w = candle_core::Var::from_tensor(&random("w", &w)).unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap().install(|| {
                let y = conv2d(&x, &w, None).unwrap();
                let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
                [&x, &w].map(|var| {
                    let grad = grads.get(var).unwrap().flatten_all().unwrap();
                    grad.to_vec1::<f32>().unwrap()
                })
            })
        };
        for channels in [8, 40] {
            assert_eq!(run(1, channels), run(5, channels));
        }
    }

    #[test]
    fn a_misfit_is_named() {
        let x = random("x", &[1, 2, 4, 4]);
        let message = |shape: &[usize]| {
            let error = conv2d(&x, &random("w", shape), None).unwrap_err();
            error.to_string()
        };
        assert!(message(&[1, 3, 3, 3]).contains("2 channels"));
        assert!(message(&[1, 2, 2, 2]).contains("odd k"));
    }
}
