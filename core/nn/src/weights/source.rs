//! Where a model's tensors come from: one trait, and what can be put between a file and a model.

use candle_core::{DType, Tensor};
use diffaug::{Error, Result};
use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
};

/// Tensors by name, handed out one at a time, so that a model can be built without all of them
/// being in memory at once.
pub trait Source: Debug + Send + Sync {
    /// Hands out the tensor called `name`, on the processor; `None` if there is none, or no longer.
    ///
    /// # Errors
    /// When it cannot be read or formed.
    fn take(&mut self, name: &str) -> Result<Option<Tensor>>;

    /// The shape that [`Source::take`] would hand out.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// What has not been taken, sorted.
    fn names(&self) -> Vec<String>;
}

impl Source for HashMap<String, Tensor> {
    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        Ok(self.remove(name))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.get(name).map(|tensor| tensor.dims().to_vec())
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.keys().cloned().collect();
        names.sort_unstable();
        names
    }
}

/// Lends its tensors, which share their memory: nothing is ever taken.
impl Source for &HashMap<String, Tensor> {
    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        Ok(self.get(name).cloned())
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        (*self).shape(name)
    }

    fn names(&self) -> Vec<String> {
        (*self).names()
    }
}

impl<S: Source + ?Sized> Source for Box<S> {
    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        (**self).take(name)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        (**self).shape(name)
    }

    fn names(&self) -> Vec<String> {
        (**self).names()
    }
}

/// A source under other names.
#[derive(Debug)]
pub struct Renamed<S> {
    base: S,
    /// Old names by new ones.
    old: BTreeMap<String, String>,
}

impl<S: Source> Renamed<S> {
    /// `rename` gives the new name for an old one, or `None` for a tensor that is to be passed
    /// over.
    ///
    /// # Errors
    /// When two tensors are given one name.
    pub fn new(base: S, rename: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let mut old = BTreeMap::new();
        for name in base.names() {
            let Some(new) = rename(&name) else { continue };
            if let Some(other) = old.insert(new.clone(), name.clone()) {
                return Err(Error::model(format!(
                    "tensors `{other}` and `{name}` both are `{new}`"
                )));
            }
        }
        Ok(Renamed { base, old })
    }
}

impl<S: Source> Source for Renamed<S> {
    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        match self.old.remove(name) {
            Some(old) => self.base.take(&old),
            None => Ok(None),
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.base.shape(self.old.get(name)?)
    }

    fn names(&self) -> Vec<String> {
        self.old.keys().cloned().collect()
    }
}

/// A source whose floating point numbers are of one type; integers stay what they are.
#[derive(Debug)]
pub struct Cast<S> {
    base: S,
    dtype: DType,
}

impl<S: Source> Cast<S> {
    /// The numbers of `base` as `dtype`.
    pub fn new(base: S, dtype: DType) -> Self {
        Cast { base, dtype }
    }
}

impl<S: Source> Source for Cast<S> {
    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        Ok(match self.base.take(name)? {
            Some(tensor) if tensor.dtype().is_float() => Some(tensor.to_dtype(self.dtype)?),
            other => other,
        })
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.base.shape(name)
    }

    fn names(&self) -> Vec<String> {
        self.base.names()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensors() -> HashMap<String, Tensor> {
        let tensor = |n: usize, dtype| Tensor::zeros(n, dtype, &Device::Cpu).unwrap();
        HashMap::from([
            ("a".to_owned(), tensor(2, DType::F32)),
            ("b".to_owned(), tensor(3, DType::F32)),
            ("ids".to_owned(), tensor(1, DType::I64)),
        ])
    }

    #[test]
    fn adapters_stack_and_each_tensor_is_handed_out_once() {
        let rename = |name: &str| (name != "b").then(|| format!("new.{name}"));
        let renamed = Renamed::new(tensors(), rename).unwrap();
        let mut source: Box<dyn Source> = Box::new(Cast::new(renamed, DType::F16));
        assert_eq!(source.names(), ["new.a", "new.ids"]);
        assert_eq!(source.shape("new.a"), Some(vec![2]));
        assert_eq!(source.shape("a"), None);
        let a = source.take("new.a").unwrap().unwrap();
        assert_eq!((a.dims(), a.dtype()), (&[2][..], DType::F16));
        assert!(source.take("new.a").unwrap().is_none());
        assert!(source.take("b").unwrap().is_none());
        let ids = source.take("new.ids").unwrap().unwrap();
        assert_eq!(ids.dtype(), DType::I64);
        assert!(source.names().is_empty());
    }

    #[test]
    fn a_borrowed_map_only_lends() {
        let tensors = tensors();
        let mut source = &tensors;
        assert!(source.take("a").unwrap().is_some());
        assert!(Source::take(&mut source, "a").unwrap().is_some());
        assert_eq!(source.names(), ["a", "b", "ids"]);
    }

    #[test]
    fn two_tensors_of_one_name_are_refused() {
        let error = Renamed::new(tensors(), |_| Some("x".to_owned())).unwrap_err();
        assert_eq!(error.to_string(), "tensors `a` and `b` both are `x`");
    }
}
