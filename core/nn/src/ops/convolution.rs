//! Convolutions of every stride, padding, dilation and number of groups.

use super::{
    conv::{add_bias, bias_gradient, check_bias, composed, conv2d, gradients},
    fused,
};
use crate::operation::{Apply, Operand, Operation, with_values};
use candle_core::{Result, Shape, Tensor, bail};
use diffaug_kernels::windows::Windows;

/// How a window moves; pairs are vertical, horizontal, and values mean what they do in PyTorch's
/// `Conv2d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// Pixels from one place to the next.
    pub stride: [usize; 2],
    /// Zeros on either side.
    pub padding: [usize; 2],
    /// Pixels from one tap to the next.
    pub dilation: [usize; 2],
    /// Parts that the channels are cut into, each convolved on its own.
    pub groups: usize,
}

impl Default for Convolution {
    /// Stride 1, no padding, no dilation, one group.
    fn default() -> Self {
        Convolution {
            stride: [1; 2],
            padding: [0; 2],
            dilation: [1; 2],
            groups: 1,
        }
    }
}

impl Convolution {
    /// Stride 1 and as many zeros as keep height and width, for a window of odd `side`.
    pub fn same(side: usize) -> Self {
        Convolution {
            padding: [side / 2; 2],
            ..Convolution::default()
        }
    }

    /// A window of `side` with the given stride and padding, the same both ways.
    pub fn square(stride: usize, padding: usize) -> Self {
        Convolution {
            stride: [stride; 2],
            padding: [padding; 2],
            ..Convolution::default()
        }
    }

    /// Convolves `x` `[batch, inputs, height, width]` with `weight` `[outputs, inputs / groups,
    /// k, l]` and adds `bias` `[outputs]`.
    ///
    /// # Errors
    /// When the shapes do not fit each other, or a window is larger than the padded image.
    pub fn forward(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let windows = self.windows(x.shape(), weight.shape())?;
        check_bias(windows.outputs, bias)?;
        let [k, l] = windows.kernel;
        if *self == Convolution::same(k) && k == l && k % 2 == 1 {
            return conv2d(x, weight, bias);
        }
        if !fused(x) {
            return add_bias(&self.composed(x, weight)?, bias);
        }
        match bias {
            Some(bias) => [x, weight, bias].apply(Op(*self)),
            None => [x, weight].apply(Op(*self)),
        }
    }

    fn windows(&self, x: &Shape, weight: &Shape) -> Result<Windows> {
        let (batch, inputs, height, width) = x.dims4()?;
        let (outputs, per_group, k, l) = weight.dims4()?;
        let groups = self.groups;
        if groups == 0 || per_group * groups != inputs || outputs % groups != 0 {
            bail!(
                "a convolution of {inputs} channels in {groups} groups needs weights of shape [n x {groups}, {inputs} / {groups}, _, _], not {weight:?}"
            );
        }
        let windows = Windows {
            batch,
            inputs,
            outputs,
            groups,
            size: [height, width],
            places: [0; 2],
            kernel: [k, l],
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
        };
        let places = [0, 1].map(|axis| places(&windows, axis));
        match places {
            [Some(down), Some(across)] => Ok(Windows {
                places: [down, across],
                ..windows
            }),
            _ => bail!(
                "a window of {k}x{l} with {self:?} does not fit on a feature map of {height}x{width}"
            ),
        }
    }

    /// Made of candle's operations. Its gradients are wrong where height and width leave
    /// different remainders after the last window, so the map is padded and cut to fit exactly.
    fn composed(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let windows = self.windows(x.shape(), weight.shape())?;
        let mut x = x.clone();
        for axis in 0..2 {
            let reach = self.dilation[axis] * (windows.kernel[axis] - 1) + 1;
            let needed = (windows.places[axis] - 1) * self.stride[axis] + reach;
            x = x.pad_with_zeros(2 + axis, self.padding[axis], self.padding[axis])?;
            x = x.narrow(2 + axis, 0, needed)?;
        }
        let ([stride, across], [dilation, other]) = (self.stride, self.dilation);
        if stride == across && dilation == other {
            return composed(&x, weight, 0, [stride, dilation, self.groups]);
        }
        // candle's strides and dilations are the same both ways: spread the weights, then take
        // every so manieth result.
        let weight = spread(&spread(weight, 2, dilation)?, 3, other)?;
        let mut y = composed(&x.contiguous()?, &weight, 0, [1, 1, self.groups])?;
        for axis in 0..2 {
            let count = windows.places[axis] as u32;
            let stride = self.stride[axis] as u32;
            let taken = Tensor::arange_step(0, count * stride, stride, x.device())?;
            y = y.contiguous()?.index_select(&taken, 2 + axis)?;
        }
        Ok(y)
    }
}

/// The number of places along `axis`, if there is one.
fn places(windows: &Windows, axis: usize) -> Option<usize> {
    let (stride, dilation) = (windows.stride[axis], windows.dilation[axis]);
    let (kernel, room) = (
        windows.kernel[axis],
        windows.size[axis] + 2 * windows.padding[axis],
    );
    if stride == 0 || dilation == 0 || kernel == 0 {
        return None;
    }
    let reach = dilation * (kernel - 1) + 1;
    room.checked_sub(reach).map(|rest| rest / stride + 1)
}

/// `t` with `step` - 1 zeros between neighbours along `dim`.
fn spread(t: &Tensor, dim: usize, step: usize) -> Result<Tensor> {
    if step == 1 {
        return Ok(t.clone());
    }
    let length = t.dim(dim)?;
    let parts = (0..length).map(|at| {
        let part = t.narrow(dim, at, 1)?;
        match at + 1 == length {
            true => Ok(part),
            false => part.pad_with_zeros(dim, 0, step - 1),
        }
    });
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, dim)
}

/// A [`Convolution`] by the processor's kernel.
struct Op(Convolution);

impl Op {
    fn correlate(
        &self,
        x: Operand<'_>,
        weight: Operand<'_>,
        bias: &[f32],
    ) -> Result<(Vec<f32>, Shape)> {
        let windows = self.0.windows(x.shape, weight.shape)?;
        let [height, width] = windows.places;
        let shape = (windows.batch, windows.outputs, height, width);
        let y = windows.correlate(x.values, weight.values, bias);
        Ok((y, Shape::from(shape)))
    }

    /// Gradients of input and weights.
    fn gradients(&self, x: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let windows = self.0.windows(x.shape(), weight.shape())?;
        with_values([dy], |[dy]| gradients(&windows, x, weight, dy))?
    }
}

impl Operation<2> for Op {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn forward(&self, [x, weight]: [Operand<'_>; 2]) -> Result<(Vec<f32>, Shape)> {
        self.correlate(x, weight, &[])
    }

    fn backward(
        &self,
        [x, weight]: [&Tensor; 2],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        self.gradients(x, weight, dy)
    }
}

impl Operation<3> for Op {
    fn name(&self) -> &'static str {
        "convolution with bias"
    }

    fn forward(&self, [x, weight, bias]: [Operand<'_>; 3]) -> Result<(Vec<f32>, Shape)> {
        self.correlate(x, weight, bias.values)
    }

    fn backward(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let [dx, dw] = self.gradients(x, weight, dy)?;
        Ok([dx, dw, Some(bias_gradient(bias, dy)?)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, close, random};
    use candle_core::Var;

    /// Result and gradients of `f`.
    fn all(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Tensor> {
        let vars: Vec<Var> = inputs
            .iter()
            .map(|t| Var::from_tensor(t).unwrap())
            .collect();
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let y = f(&tensors).unwrap();
        let dy = random("dy", y.dims());
        let grads = (&y * dy).unwrap().sum_all().unwrap().backward().unwrap();
        let mut all = vec![y];
        all.extend(vars.iter().map(|var| grads.get(var).unwrap().clone()));
        all
    }

    fn agree(ours: Vec<Tensor>, theirs: Vec<Tensor>) {
        for (ours, theirs) in ours.iter().zip(&theirs) {
            close(ours, theirs, 1e-5);
        }
    }

    /// Uneven everything; groups; remainders that differ between the axes.
    fn specs() -> Vec<([usize; 4], [usize; 4], Convolution)> {
        let spec = |stride, padding, dilation, groups| Convolution {
            stride,
            padding,
            dilation,
            groups,
        };
        vec![
            ([2, 3, 7, 10], [5, 3, 3, 3], spec([2, 2], [1, 1], [1, 1], 1)),
            ([1, 4, 9, 8], [6, 2, 3, 2], spec([2, 1], [1, 0], [1, 3], 2)),
            ([2, 6, 5, 11], [6, 1, 3, 3], spec([1, 1], [1, 1], [1, 1], 6)),
            (
                [1, 2, 20, 21],
                [3, 2, 7, 7],
                spec([4, 4], [3, 3], [1, 1], 1),
            ),
            ([1, 1, 1, 1], [1, 1, 1, 1], spec([1, 1], [1, 2], [1, 1], 1)),
            ([2, 3, 6, 6], [4, 3, 2, 2], spec([2, 2], [0, 0], [2, 2], 1)),
        ]
    }

    #[test]
    fn the_fused_form_agrees_with_the_composed_one() {
        for (x, w, spec) in specs() {
            let inputs = [random("x", &x), random("w", &w), random("b", &w[..1])];
            agree(
                all(&inputs, |v| spec.forward(&v[0], &v[1], Some(&v[2]))),
                all(&inputs, |v| {
                    add_bias(&spec.composed(&v[0], &v[1])?, Some(&v[2]))
                }),
            );
        }
    }

    #[test]
    fn gradients() {
        for (x, w, spec) in specs() {
            let inputs = [random("x", &x), random("w", &w), random("b", &w[..1])];
            check_gradients(&inputs, |v| spec.forward(&v[0], &v[1], Some(&v[2])));
        }
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let inputs = [random("x", &[3, 8, 40, 37]), random("w", &[40, 4, 3, 3])];
        let spec = Convolution {
            groups: 2,
            ..Convolution::square(2, 1)
        };
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let tensors = pool
                .unwrap()
                .install(|| all(&inputs, |v| spec.forward(&v[0], &v[1], None)));
            let flat = tensors
                .iter()
                .map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            flat.collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(5));
    }

    #[test]
    fn a_misfit_is_named() {
        let x = random("x", &[1, 4, 2, 2]);
        let fails = |spec: Convolution, w: &[usize]| {
            let error = spec.forward(&x, &random("w", w), None).unwrap_err();
            error.to_string()
        };
        let spec = Convolution::default();
        assert!(fails(spec, &[2, 3, 1, 1]).contains("4 channels in 1 groups"));
        assert!(fails(spec, &[2, 4, 3, 3]).contains("does not fit"));
        assert!(fails(Convolution::square(0, 0), &[2, 4, 1, 1]).contains("does not fit"));
        let bias = random("b", &[3]);
        let error = spec.forward(&x, &random("w", &[2, 4, 1, 1]), Some(&bias));
        assert!(error.unwrap_err().to_string().contains("shape [2]"));
    }
}
