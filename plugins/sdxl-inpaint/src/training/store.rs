//! What training computes again and again, kept on disk: latents of views, embeddings of texts.

use candle_core::{Device, Tensor};
use diffaug::{ErrorKind, Result, ResultExt};
use diffaug_nn::weights;
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// A folder with a file for each key. It belongs to one training, so that keys need not tell with
/// which weights something was computed.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    /// Threads that prepare batches may want the same key at once: one of them writes.
    writing: Arc<Mutex<()>>,
}

impl Store {
    /// Keeps files in `folder`, which is made.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(folder: &Path) -> Result<Self> {
        weights::make_folder(folder)?;
        Ok(Store {
            folder: folder.to_owned(),
            writing: Arc::default(),
        })
    }

    /// The tensors kept under `key` on `device`; `make` is called where there are none, or none
    /// that can be read.
    ///
    /// # Errors
    /// Those of `make`, and when the folder cannot be written to.
    pub fn get(
        &self,
        key: &str,
        device: &Device,
        make: impl FnOnce() -> Result<Vec<(&'static str, Tensor)>>,
    ) -> Result<HashMap<String, Tensor>> {
        let digest = Sha256::digest(key.as_bytes());
        let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = self.folder.join(format!("{name}.safetensors"));
        if let Ok(tensors) = weights::read(&path) {
            let moved = tensors.into_iter().map(|(name, tensor)| {
                let tensor = tensor.to_device(device)?;
                Ok((name, tensor))
            });
            return moved.collect();
        }
        let made = make()?;
        let tensors = made.iter().map(|(name, tensor)| {
            let tensor = tensor.to_device(&Device::Cpu)?.contiguous()?;
            Ok(((*name).to_owned(), tensor))
        });
        let tensors: Vec<(String, Tensor)> = tensors.collect::<Result<_>>()?;
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if weights::read(&path).is_err() {
            weights::cache_tensors(&path, tensors)?;
        }
        Ok(made
            .into_iter()
            .map(|(name, tensor)| (name.to_owned(), tensor))
            .collect())
    }

    /// Removes the folder.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn clear(self) -> Result<()> {
        fs::remove_dir_all(&self.folder).or_error(ErrorKind::Data, || {
            format!("cannot remove the folder `{}`", self.folder.display())
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::Error;
    use diffaug_nn::testing::{close, random};

    #[test]
    fn threads_may_want_the_same_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let x = random("x", &[64, 64]);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for key in 0..20 {
                        let make = || Ok(vec![("x", x.clone())]);
                        let kept = store.get(&key.to_string(), &Device::Cpu, make).unwrap();
                        close(&kept["x"], &x, 0.0);
                    }
                });
            }
        });
    }

    #[test]
    fn what_was_made_once_is_not_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("kept")).unwrap();
        let x = random("x", &[2, 3]);
        let make = || Ok(vec![("x", x.clone())]);
        let never = || Err(Error::internal("made again"));
        close(&store.get("a", &Device::Cpu, make).unwrap()["x"], &x, 0.0);
        close(&store.get("a", &Device::Cpu, never).unwrap()["x"], &x, 0.0);
        assert!(store.get("b", &Device::Cpu, never).is_err());
        // A file that cannot be read is replaced.
        let entry = fs::read_dir(folder.path().join("kept"))
            .unwrap()
            .next()
            .unwrap();
        fs::write(entry.unwrap().path(), "half").unwrap();
        close(&store.get("a", &Device::Cpu, make).unwrap()["x"], &x, 0.0);
        store.clear().unwrap();
        assert!(!folder.path().join("kept").exists());
    }
}
