//! Taking tensors that others published for a part of a network.

use candle_core::{DType, Device, Tensor, Var};
use diffaug::{Error, Result};
use diffaug_nn::{params::Params, weights::Source};

/// Values that are about to be those of parameters.
pub(crate) struct Taken<'a>(Vec<(&'a Var, Tensor)>);

impl Taken<'_> {
    /// Makes them so; the number of values.
    ///
    /// # Errors
    /// Those of the device.
    pub fn set(self) -> Result<usize> {
        for (var, tensor) in &self.0 {
            var.set(tensor)?;
        }
        Ok(self.0.iter().map(|(var, _)| var.elem_count()).sum())
    }
}

/// Takes out of `source` all parameters of which `theirs` knows a name there. Shapes are compared before
/// anything is read.
///
/// # Errors
/// Naming the first tensor that is missing or has another shape; when one cannot be read.
pub(crate) fn take<'a>(
    params: &'a Params,
    source: &mut dyn Source,
    theirs: impl Fn(&str) -> Option<String>,
    device: &Device,
) -> Result<Taken<'a>> {
    let wanted = params
        .all()
        .filter_map(|(name, var)| Some((theirs(name)?, var)));
    let wanted: Vec<(String, &Var)> = wanted.collect();
    for (name, var) in &wanted {
        let expected = var.dims();
        match source.shape(name) {
            Some(shape) if shape == expected => {}
            Some(shape) => {
                return Err(Error::model(format!(
                    "tensor `{name}` has shape {shape:?}, expected {expected:?}"
                )));
            }
            None => {
                return Err(Error::model(format!(
                    "tensor `{name}` is missing, expected with shape {expected:?}"
                )));
            }
        }
    }
    let mut taken = Vec::with_capacity(wanted.len());
    for (name, var) in wanted {
        let Some(tensor) = source.take(&name)? else {
            return Err(Error::model(format!("tensor `{name}` is missing")));
        };
        taken.push((var, tensor.to_dtype(DType::F32)?.to_device(device)?));
    }
    Ok(Taken(taken))
}
