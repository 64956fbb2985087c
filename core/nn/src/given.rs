//! A result that was computed outside the graph and becomes that of an operation in it, which then
//! has a gradient of its own.

use candle_core::{
    CpuStorage, CudaStorage, Layout, MetalStorage, Result, Shape, Storage, Tensor,
    backend::BackendStorage, bail,
};
use std::sync::{Mutex, PoisonError};

/// The result, until the operation's forward pass hands it over.
pub(crate) struct Given(Mutex<Option<Tensor>>);

impl Given {
    pub fn new(result: Tensor) -> Self {
        Given(Mutex::new(Some(result)))
    }

    /// The result's storage on the processor.
    pub fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        self.hand_over(|storage, layout| match storage {
            Storage::Cpu(storage) => storage.try_clone(layout),
            _ => elsewhere(),
        })
    }

    /// The result's storage on a CUDA device.
    pub fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        self.hand_over(|storage, layout| match storage {
            Storage::Cuda(storage) => storage.try_clone(layout),
            _ => elsewhere(),
        })
    }

    /// The result's storage on a Metal device.
    pub fn metal(&self) -> Result<(MetalStorage, Shape)> {
        self.hand_over(|storage, layout| match storage {
            Storage::Metal(storage) => storage.try_clone(layout),
            _ => elsewhere(),
        })
    }

    /// A copy: storage cannot be taken out of a tensor.
    fn hand_over<S>(
        &self,
        take: impl FnOnce(&Storage, &Layout) -> Result<S>,
    ) -> Result<(S, Shape)> {
        let mut result = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(result) = result.take() else {
            bail!("an operation whose result was given was run forward twice");
        };
        // What is handed over is read from its beginning.
        let whole = result.is_contiguous() && result.layout().start_offset() == 0;
        let result = match whole {
            true => result,
            false => result.force_contiguous()?,
        };
        let (storage, layout) = result.storage_and_layout();
        Ok((take(&storage, layout)?, result.shape().clone()))
    }
}

fn elsewhere<S>() -> Result<S> {
    bail!("the result of an operation is on another device than its inputs")
}
