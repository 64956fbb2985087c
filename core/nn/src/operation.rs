//! Operations with gradients of their own: what candle's `CustomOp1`, `CustomOp2` and `CustomOp3` ask
//! for, written once.

use crate::given::Given;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, MetalStorage, Result, Shape,
    Storage, Tensor, bail,
};

/// The values of an operand, f32 on the processor, and their shape.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub values: &'a [f32],
    pub shape: &'a Shape,
}

/// An operation of `N` contiguous f32 operands that a kernel of the processor computes.
pub(crate) trait Operation<const N: usize>: Send + Sync + 'static {
    /// What errors call it.
    fn name(&self) -> &'static str;

    /// The result and its shape.
    fn forward(&self, operands: [Operand<'_>; N]) -> Result<(Vec<f32>, Shape)>;

    /// The gradients of the operands, given the result `y` and its gradient `dy`.
    fn backward(
        &self,
        operands: [&Tensor; N],
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; N]>;
}

/// An operation whose result, on whatever device, was computed outside the graph.
pub(crate) trait Computed<const N: usize>: Send + Sync + 'static {
    /// What errors call it.
    fn name(&self) -> &'static str;

    /// The result.
    fn result(&self) -> &Given;

    /// The gradients of the operands, given the result `y` and its gradient `dy`.
    fn backward(
        &self,
        operands: [&Tensor; N],
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; N]>;
}

/// Tensors that an [`Operation`] of as many operands can be applied to.
pub(crate) trait Apply<O> {
    /// The result, as a node of the graph.
    fn apply(self, operation: O) -> Result<Tensor>;
}

/// Tensors that a [`Computed`] operation of as many operands can be applied to.
pub(crate) trait ApplyComputed<O> {
    /// The result, as a node of the graph.
    fn apply_computed(self, operation: O) -> Result<Tensor>;
}

/// An [`Operation`] as candle takes it.
struct Kernel<O>(O);

/// A [`Computed`] operation as candle takes it.
struct Known<O>(O);

/// Implements candle's trait for so many operands, by the method that applies it; `$each` is what candle
/// takes the gradients as.
macro_rules! custom_op {
    ($count:literal, $custom:ident, $method:ident, $first:ident $first_layout:ident $($x:ident $layout:ident)*, $gradients:ty, $each:expr) => {
        impl<O: Operation<$count>> $custom for Kernel<O> {
            fn name(&self) -> &'static str {
                self.0.name()
            }

            fn cpu_fwd(
                &self,
                $first: &CpuStorage,
                $first_layout: &Layout,
                $($x: &CpuStorage, $layout: &Layout,)*
            ) -> Result<(CpuStorage, Shape)> {
                let operands = [operand($first, $first_layout)?, $(operand($x, $layout)?),*];
                let (y, shape) = self.0.forward(operands)?;
                Ok((CpuStorage::F32(y), shape))
            }

            fn bwd(
                &self,
                $first: &Tensor,
                $($x: &Tensor,)*
                y: &Tensor,
                dy: &Tensor,
            ) -> Result<$gradients> {
                let [$first, $($x),*] = self.0.backward([$first, $($x),*], y, dy)?;
                Ok($each)
            }
        }

        impl<O: Operation<$count>> Apply<O> for [&Tensor; $count] {
            fn apply(self, operation: O) -> Result<Tensor> {
                let [$first, $($x),*] = self;
                $first.contiguous()?.$method($(&$x.contiguous()?,)* Kernel(operation))
            }
        }

        #[allow(unused_variables)]
        impl<O: Computed<$count>> $custom for Known<O> {
            fn name(&self) -> &'static str {
                self.0.name()
            }

            fn cpu_fwd(
                &self,
                $first: &CpuStorage,
                $first_layout: &Layout,
                $($x: &CpuStorage, $layout: &Layout,)*
            ) -> Result<(CpuStorage, Shape)> {
                self.0.result().cpu()
            }

            fn cuda_fwd(
                &self,
                $first: &CudaStorage,
                $first_layout: &Layout,
                $($x: &CudaStorage, $layout: &Layout,)*
            ) -> Result<(CudaStorage, Shape)> {
                self.0.result().cuda()
            }

            fn metal_fwd(
                &self,
                $first: &MetalStorage,
                $first_layout: &Layout,
                $($x: &MetalStorage, $layout: &Layout,)*
            ) -> Result<(MetalStorage, Shape)> {
                self.0.result().metal()
            }

            fn bwd(
                &self,
                $first: &Tensor,
                $($x: &Tensor,)*
                y: &Tensor,
                dy: &Tensor,
            ) -> Result<$gradients> {
                let [$first, $($x),*] = self.0.backward([$first, $($x),*], y, dy)?;
                Ok($each)
            }
        }

        impl<O: Computed<$count>> ApplyComputed<O> for [&Tensor; $count] {
            fn apply_computed(self, operation: O) -> Result<Tensor> {
                let [$first, $($x),*] = self;
                $first.$method($($x,)* Known(operation))
            }
        }
    };
}

custom_op!(1, CustomOp1, apply_op1, a a_layout, Option<Tensor>, a);
custom_op!(
    2,
    CustomOp2,
    apply_op2,
    a a_layout b b_layout,
    (Option<Tensor>, Option<Tensor>),
    (a, b)
);
custom_op!(
    3,
    CustomOp3,
    apply_op3,
    a a_layout b b_layout c c_layout,
    (Option<Tensor>, Option<Tensor>, Option<Tensor>),
    (a, b, c)
);

fn operand<'a>(storage: &'a CpuStorage, layout: &'a Layout) -> Result<Operand<'a>> {
    Ok(Operand {
        values: values(storage, layout)?,
        shape: layout.shape(),
    })
}

/// The values of a contiguous f32 operand.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a fused operation needs a contiguous operand"),
    }
}

/// Lends the values of f32 tensors on the processor.
pub(crate) fn with_values<const N: usize, R>(
    tensors: [&Tensor; N],
    work: impl FnOnce([&[f32]; N]) -> R,
) -> Result<R> {
    let tensors: Vec<Tensor> = tensors
        .iter()
        .map(|tensor| tensor.contiguous())
        .collect::<Result<_>>()?;
    let storages: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let mut lent: [&[f32]; N] = [&[]; N];
    for (lent, (storage, layout)) in lent.iter_mut().zip(&storages) {
        *lent = match &**storage {
            Storage::Cpu(storage) => values(storage, layout)?,
            _ => bail!("a fused operation needs an operand on the processor"),
        };
    }
    Ok(work(lent))
}
