//! The parameters of a model: named, ordered, and with initial values that depend on the seed and
//! each tensor's own name alone, so that neither order of construction nor device changes them.
//!
//! A model that only answers is built from [`Params::from_source`]: each layer takes its tensors out
//! of the file, one at a time, and keeps them in the form that it computes with fastest.

use crate::weights::Source;
use candle_core::{DType, Device, Error, Result, Tensor, Var, bail};
use diffaug::rng;
use rand::RngExt;
use std::collections::{BTreeMap, HashMap};

/// Every tensor of a model.
#[derive(Debug)]
pub struct Params {
    device: Device,
    seed: u64,
    trainable: BTreeMap<String, Var>,
    buffers: BTreeMap<String, Var>,
    frozen: Option<Box<dyn Source>>,
    adapters: Option<Adapters>,
    shapes: Option<Shapes>,
}

/// Names and shapes of a model's tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shapes {
    /// What the optimiser changes.
    pub trainable: BTreeMap<String, Vec<usize>>,
    /// What is stored beside it: running statistics.
    pub buffers: BTreeMap<String, Vec<usize>>,
}

impl Shapes {
    /// Those of the model that `build` makes. No memory is taken for its values, however large it is.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn of<T>(build: impl FnOnce(Scope<'_>) -> Result<T>) -> Result<Self> {
        let mut params = Params {
            shapes: Some(Shapes::default()),
            ..Params::new(&Device::Cpu, 0)
        };
        build(params.root())?;
        Ok(params.shapes.unwrap_or_default())
    }

    /// Number of trainable values.
    pub fn parameters(&self) -> u64 {
        count(&self.trainable)
    }

    /// Number of values that are stored.
    pub fn values(&self) -> u64 {
        self.parameters().saturating_add(count(&self.buffers))
    }
}

/// Values of all shapes.
fn count(shapes: &BTreeMap<String, Vec<usize>>) -> u64 {
    let values = |shape: &Vec<usize>| {
        shape
            .iter()
            .fold(1, |n: u64, &side| n.saturating_mul(side as u64))
    };
    shapes.values().map(values).fold(0, u64::saturating_add)
}

/// A zero seen as a tensor of `shape`.
fn placeholder(shape: &[usize]) -> Result<Tensor> {
    Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(shape)
}

/// Pairs of small matrices beside the weights of layers that stay as they are (LoRA, Hu et al.,
/// 2021): a layer's result changes by `alpha / rank * up(down(x))`.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapters {
    /// Values between `down` and `up`.
    pub rank: usize,
    /// Scale times rank.
    pub alpha: f64,
    /// The layers that get one: those whose names are one of these or end in a dot and one of these.
    pub targets: Vec<String>,
}

impl Adapters {
    /// What the change is multiplied by.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Whether the layer of that name gets one.
    pub fn fits(&self, path: &str) -> bool {
        self.targets.iter().any(|target| {
            let before = path.strip_suffix(target.as_str());
            before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        })
    }
}

impl Params {
    /// [`Params::from_source`] for tensors that are in memory.
    pub fn frozen(device: &Device, tensors: HashMap<String, Tensor>) -> Self {
        Params::from_source(device, tensors)
    }

    /// Parameters that are given and stay as they are, in their own types. On a processor layers
    /// pack f32, bf16 and f16 weights and compute in f32; elsewhere they compute in that type.
    pub fn from_source(device: &Device, source: impl Source + 'static) -> Self {
        Params {
            frozen: Some(Box::new(source)),
            ..Params::new(device, 0)
        }
    }

    /// The names of given tensors that no layer has taken, sorted.
    pub fn left_over(&self) -> Vec<String> {
        self.frozen.iter().flat_map(|given| given.names()).collect()
    }

    /// No parameters yet.
    pub fn new(device: &Device, seed: u64) -> Self {
        Params {
            device: device.clone(),
            seed,
            trainable: BTreeMap::new(),
            buffers: BTreeMap::new(),
            frozen: None,
            adapters: None,
            shapes: None,
        }
    }

    /// The same with adapters beside the layers that are built from now on: these are what is
    /// trained of frozen parameters.
    pub fn with_adapters(mut self, adapters: Adapters, seed: u64) -> Self {
        (self.adapters, self.seed) = (Some(adapters), seed);
        self
    }

    /// Where layers put their parameters.
    pub fn root(&mut self) -> Scope<'_> {
        Scope {
            params: self,
            prefix: String::new(),
            zeroed: false,
        }
    }

    /// Where the tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the optimiser changes, by name.
    pub fn trainable(&self) -> impl ExactSizeIterator<Item = (&str, &Var)> {
        self.trainable
            .iter()
            .map(|(name, var)| (name.as_str(), var))
    }

    /// Everything that has to be stored: what is trained and what is tracked beside it (running
    /// statistics), by name.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Var)> {
        let buffers = self.buffers.iter().map(|(name, var)| (name.as_str(), var));
        self.trainable().chain(buffers)
    }

    /// Number of trainable values.
    pub fn count(&self) -> usize {
        self.trainable.values().map(|var| var.elem_count()).sum()
    }
}

/// A place in the tree of names: `down1.conv1`.
#[derive(Debug)]
pub struct Scope<'a> {
    params: &'a mut Params,
    prefix: String,
    zeroed: bool,
}

impl Scope<'_> {
    /// The place called `name` below this one.
    pub fn child(&mut self, name: &str) -> Scope<'_> {
        let prefix = self.path(name);
        Scope {
            zeroed: self.zeroed,
            params: self.params,
            prefix,
        }
    }

    /// The same place, where what would be drawn is 0: for the last layer of a residual branch.
    pub fn zeroed(mut self) -> Self {
        self.zeroed = true;
        self
    }

    /// Whether parameters are given and stay as they are.
    pub fn is_frozen(&self) -> bool {
        self.params.frozen.is_some()
    }

    /// Takes a given tensor; `None` where parameters are made.
    fn take(&mut self, path: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        let Some(source) = &mut self.params.frozen else {
            return Ok(None);
        };
        match source.shape(path) {
            Some(given) if given != shape => {
                bail!("tensor `{path}` has shape {given:?}, expected {shape:?}")
            }
            _ => match source.take(path).map_err(Error::msg)? {
                Some(tensor) => Ok(Some(tensor.to_device(&self.params.device)?)),
                None => bail!("tensor `{path}` is missing (its shape is {shape:?})"),
            },
        }
    }

    /// The adapters, if the layer at this place is to have one.
    pub fn adapters(&self) -> Option<Adapters> {
        let adapters = self.params.adapters.as_ref();
        adapters.filter(|a| a.fits(&self.prefix)).cloned()
    }

    fn path(&self, name: &str) -> String {
        match self.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}.{name}"),
        }
    }

    /// A trainable tensor with values drawn evenly from `-bound..bound`, or a given one.
    ///
    /// # Errors
    /// When the device has no room for it, or the given one is missing or misshapen.
    pub fn uniform(&mut self, name: &str, shape: &[usize], bound: f32) -> Result<Tensor> {
        let path = self.path(name);
        match self.take(&path, shape)? {
            Some(given) => Ok(given),
            None => self.trained(name, shape, bound),
        }
    }

    /// A trainable tensor, also where all others are given and stay as they are; values drawn
    /// evenly from `-bound..bound`.
    ///
    /// # Errors
    /// When the device has no room for it.
    pub fn trained(&mut self, name: &str, shape: &[usize], bound: f32) -> Result<Tensor> {
        let path = self.path(name);
        if let Some(shapes) = &mut self.params.shapes {
            shapes.trainable.insert(path, shape.to_vec());
            return placeholder(shape);
        }
        let mut rng = rng::stream(
            rng::derive(self.params.seed, "weights", &path),
            "uniform",
            0,
        );
        let bound = if self.zeroed { 0.0 } else { bound };
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| (rng.random::<f32>() * 2.0 - 1.0) * bound)
            .collect();
        let var = Var::from_vec(values, shape, &self.params.device)?;
        Ok(self.insert_trainable(path, var))
    }

    /// A trainable tensor with the values that `draw` makes of a seed, or a given one.
    ///
    /// # Errors
    /// When the device has no room for it, `draw` makes more or fewer values than `shape` has, or the given
    /// one is missing or misshapen.
    pub fn drawn(
        &mut self,
        name: &str,
        shape: &[usize],
        draw: impl FnOnce(u64) -> Vec<f32>,
    ) -> Result<Tensor> {
        let path = self.path(name);
        if let Some(given) = self.take(&path, shape)? {
            return Ok(given);
        }
        if let Some(shapes) = &mut self.params.shapes {
            shapes.trainable.insert(path, shape.to_vec());
            return placeholder(shape);
        }
        let values = match self.zeroed {
            true => vec![0.0; shape.iter().product()],
            false => draw(rng::derive(self.params.seed, "weights", &path)),
        };
        let var = Var::from_vec(values, shape, &self.params.device)?;
        Ok(self.insert_trainable(path, var))
    }

    /// A trainable tensor whose values all are `value`, or a given one.
    ///
    /// # Errors
    /// When the device has no room for it, or the given one is missing or misshapen.
    pub fn constant(&mut self, name: &str, shape: &[usize], value: f32) -> Result<Tensor> {
        let path = self.path(name);
        if let Some(given) = self.take(&path, shape)? {
            return Ok(given);
        }
        if let Some(shapes) = &mut self.params.shapes {
            shapes.trainable.insert(path, shape.to_vec());
            return placeholder(shape);
        }
        let var = self.full(shape, value)?;
        Ok(self.insert_trainable(path, var))
    }

    /// A tensor that is stored with the weights but not trained.
    ///
    /// # Errors
    /// When the device has no room for it, or the given one is missing or misshapen.
    pub fn buffer(&mut self, name: &str, shape: &[usize], value: f32) -> Result<Var> {
        let path = self.path(name);
        if let Some(given) = self.take(&path, shape)? {
            return Var::from_tensor(&given.to_dtype(DType::F32)?);
        }
        if let Some(shapes) = &mut self.params.shapes {
            shapes.buffers.insert(path, shape.to_vec());
            return Var::from_tensor(&placeholder(shape)?);
        }
        let var = self.full(shape, value)?;
        let old = self.params.buffers.insert(path, var.clone());
        debug_assert!(old.is_none(), "two buffers called {name}");
        Ok(var)
    }

    fn full(&self, shape: &[usize], value: f32) -> Result<Var> {
        let device = &self.params.device;
        let values = Tensor::full(value, shape, device)?.to_dtype(DType::F32)?;
        Var::from_tensor(&values)
    }

    fn insert_trainable(&mut self, path: String, var: Var) -> Tensor {
        let tensor = var.as_tensor().clone();
        let old = self.params.trainable.insert(path, var);
        debug_assert!(old.is_none(), "two parameters of one name");
        tensor
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn drawn_values_follow_from_the_seed_and_the_place() {
        let draw = |seed, name: &str| {
            let mut params = Params::new(&Device::Cpu, seed);
            let drawn = |seed| crate::noise::normal(seed, "x", 0, 4);
            let tensor = params.root().drawn(name, &[4], drawn).unwrap();
            tensor.to_vec1::<f32>().unwrap()
        };
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        let mut params = Params::new(&Device::Cpu, 0);
        let few = params.root().drawn("a", &[4], |_| vec![0.0; 3]);
        assert!(few.is_err());
        let zeroed = params.root().zeroed().drawn("b", &[2], |_| vec![1.0; 2]);
        assert_eq!(zeroed.unwrap().to_vec1::<f32>().unwrap(), [0.0, 0.0]);
    }

    #[test]
    fn given_tensors_are_taken_once_and_misfits_are_named() {
        let tensor = |n: usize| Tensor::zeros(n, DType::BF16, &Device::Cpu).unwrap();
        let given = [("a.x", 3), ("a.y", 2), ("z", 1)].map(|(n, s)| (n.to_owned(), tensor(s)));
        let mut params = Params::frozen(&Device::Cpu, given.into());
        let mut root = params.root();
        let mut a = root.child("a");
        assert_eq!(a.uniform("x", &[3], 1.0).unwrap().dtype(), DType::BF16);
        let error = |result: Result<Tensor>| result.unwrap_err().to_string();
        assert!(error(a.uniform("x", &[3], 1.0)).contains("`a.x` is missing"));
        let misfit = error(a.constant("y", &[5], 1.0));
        assert!(
            misfit.contains("`a.y` has shape [2], expected [5]"),
            "{misfit}"
        );
        assert_eq!(params.left_over(), ["a.y", "z"]);
    }

    #[test]
    fn shapes_are_those_of_the_model_and_need_no_memory() {
        let shapes = Shapes::of(|mut scope| {
            scope.uniform("vast", &[1 << 30, 1 << 20], 1.0)?;
            scope.child("a").constant("b", &[3], 1.0)?;
            scope.buffer("mean", &[5], 0.0)
        });
        let shapes = shapes.unwrap();
        assert_eq!(shapes.trainable["a.b"], [3]);
        assert_eq!(shapes.parameters(), (1 << 50) + 3);
        assert_eq!(shapes.values(), (1 << 50) + 8);
    }

    #[test]
    fn adapters_go_where_they_are_wanted() {
        let adapters = Adapters {
            rank: 2,
            alpha: 4.0,
            targets: vec!["to_out.0".to_owned(), "conv_in".to_owned()],
        };
        assert_eq!(adapters.scale(), 2.0);
        for (path, fits) in [
            ("a.to_out.0", true),
            ("conv_in", true),
            ("auto_out.0", false),
            ("conv_in.x", false),
        ] {
            assert_eq!(adapters.fits(path), fits, "{path}");
        }
        let mut params = Params::frozen(&Device::Cpu, HashMap::new()).with_adapters(adapters, 1);
        let mut root = params.root();
        assert!(root.child("other").adapters().is_none());
        let mut place = root.child("conv_in");
        assert!(place.adapters().is_some());
        place.trained("lora_A.weight", &[2, 3], 0.5).unwrap();
        let names: Vec<&str> = params.trainable().map(|(name, _)| name).collect();
        assert_eq!(names, ["conv_in.lora_A.weight"]);
    }

    #[test]
    fn a_zeroed_place_draws_nothing() {
        let mut params = Params::new(&Device::Cpu, 0);
        let mut root = params.root();
        let zero = root.child("a").zeroed().child("b").uniform("x", &[3], 1.0);
        assert!(
            zero.unwrap()
                .to_vec1::<f32>()
                .unwrap()
                .iter()
                .all(|v| *v == 0.0)
        );
        let drawn = root.child("a").uniform("y", &[3], 1.0).unwrap();
        assert!(drawn.to_vec1::<f32>().unwrap().iter().all(|v| *v != 0.0));
    }

    #[test]
    fn initial_values_depend_on_seed_and_name_not_on_order() {
        let draw = |seed: u64, names: [&str; 2]| {
            let mut params = Params::new(&Device::Cpu, seed);
            for name in names {
                let mut root = params.root();
                root.child("a").uniform(name, &[3], 0.5).unwrap();
            }
            let values = params.trainable().map(|(name, var)| {
                let values = var.to_vec1::<f32>().unwrap();
                assert!(values.iter().all(|v| v.abs() <= 0.5));
                (name.to_owned(), values)
            });
            values.collect::<Vec<_>>()
        };
        assert_eq!(draw(1, ["x", "y"]), draw(1, ["y", "x"]));
        assert_ne!(draw(1, ["x", "y"]), draw(2, ["x", "y"]));
        assert_eq!(draw(1, ["x", "y"])[1].0, "a.y");
    }
}
