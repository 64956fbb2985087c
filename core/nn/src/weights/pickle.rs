//! PyTorch's own files as a [`Source`], for conversion: the zip archives that it writes since 1.6.
//! Their pickles are read as data; nothing in them is executed.

use super::Source;
use candle_core::{Tensor, pickle::PthTensors};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use std::{collections::BTreeSet, fmt, path::Path};

/// The tensors of a PyTorch file.
pub struct Pickle {
    tensors: PthTensors,
    /// Those that have not been taken.
    left: BTreeSet<String>,
}

impl Pickle {
    /// Opens the file at `path`; tensors are those of its dictionary `state_dict` where it has one
    /// (as Lightning's checkpoints do), else its own.
    ///
    /// # Errors
    /// When the file is missing, broken or of another kind.
    pub fn open(path: &Path) -> Result<Self> {
        let open = |key| PthTensors::new(path, key);
        let tensors = match open(Some("state_dict")) {
            Ok(tensors) if !tensors.tensor_infos().is_empty() => tensors,
            _ => open(None).or_error(ErrorKind::Model, || {
                format!(
                    "cannot read `{}` as a PyTorch file (a zip archive with a pickle)",
                    path.display()
                )
            })?,
        };
        let left: BTreeSet<String> = tensors.tensor_infos().keys().cloned().collect();
        if left.is_empty() {
            let shown = path.display();
            return Err(Error::model(format!("`{shown}` holds no tensors")));
        }
        Ok(Pickle { tensors, left })
    }
}

impl fmt::Debug for Pickle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pickle").field("left", &self.left).finish()
    }
}

impl Source for Pickle {
    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        if !self.left.remove(name) {
            return Ok(None);
        }
        let tensor = self.tensors.get(name);
        tensor.or_error(ErrorKind::Model, || format!("cannot read tensor `{name}`"))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let info = self
            .left
            .get(name)
            .and(self.tensors.tensor_infos().get(name))?;
        Some(info.layout.shape().dims().to_vec())
    }

    fn names(&self) -> Vec<String> {
        self.left.iter().cloned().collect()
    }
}
