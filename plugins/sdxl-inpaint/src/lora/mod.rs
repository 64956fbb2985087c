//! Low-rank adaptations (LoRA): files in the layouts of diffusers, of PEFT and of kohya, added to
//! the weights while these are loaded, and written in the layout of diffusers.

mod names;
mod write;

pub use write::{LoraLayer, save_lora};

use candle_core::{DType, Tensor};
use diffaug::{Error, Result};
use diffaug_nn::{
    diffusion::original::Names,
    weights::{Files, Source, input},
};
use names::{Config, Key, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
};

/// The file in which PEFT keeps what an adapter is.
const CONFIG: &str = "adapter_config.json";

/// A LoRA to be added to the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraFile {
    /// The safetensors file, or the folder that PEFT or diffusers saved it in.
    pub path: PathBuf,
    /// How much of it: 1 is all, 0 nothing.
    #[serde(default = "whole")]
    pub scale: f64,
}

fn whole() -> f64 {
    1.0
}

/// A network that a LoRA may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The denoising network.
    Unet,
    /// The first text encoder.
    TextEncoder,
    /// The second.
    TextEncoder2,
}

impl Part {
    /// What diffusers calls it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Unet => "unet",
            Part::TextEncoder => "text_encoder",
            Part::TextEncoder2 => "text_encoder_2",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The two factors of one layer's change, and whose they are.
#[derive(Debug)]
struct Pair {
    part: Part,
    key: Key,
    /// The file and the tensor that it was found by, for messages.
    found: String,
    delta: Delta,
}

/// A change of weights: `factor` · `up` · `down`.
#[derive(Debug)]
struct Delta {
    /// `[rank, ..]`
    down: Tensor,
    /// `[outputs, rank, ..]`
    up: Tensor,
    factor: f64,
}

/// The LoRAs that are to be added to a model's weights.
#[derive(Debug, Default)]
pub struct Loras {
    pairs: Vec<Pair>,
}

impl Loras {
    /// Reads `files`.
    ///
    /// # Errors
    /// Naming the file and the tensor, when it holds something else than plain LoRA (DoRA, LoHa,
    /// LoKr and others are refused), or a factor lacks the other.
    pub fn open(files: &[LoraFile]) -> Result<Self> {
        let mut pairs = Vec::new();
        for file in files {
            let shown = file.path.display();
            read(file, &mut pairs)
                .map_err(|error| error.context(format!("the LoRA `{shown}` cannot be used")))?;
        }
        Ok(Loras { pairs })
    }

    /// Whether nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The weights `base` of `part` with the changes that are meant for it. `original` are the
    /// names that kohya's files use for a UNet of SDXL.
    ///
    /// # Errors
    /// Naming the tensor that fits no layer of `part`, or not in shape.
    pub fn fuse<S: Source>(
        &mut self,
        part: Part,
        base: S,
        original: Option<&Names>,
    ) -> Result<Fused<S>> {
        let layers = names::layers(&base, original);
        let (own, others) = std::mem::take(&mut self.pairs)
            .into_iter()
            .partition(|pair| pair.part == part);
        self.pairs = others;
        let mut deltas: HashMap<String, Vec<Delta>> = HashMap::new();
        let own: Vec<Pair> = own;
        for pair in own {
            let Some(weight) = layers.get(&pair.key) else {
                return Err(Error::model(format!(
                    "{} fits no layer of `{part}`",
                    pair.found
                )));
            };
            let shape = base.shape(weight).unwrap_or_default();
            pair.delta.check(&shape).map_err(|error| {
                error.context(format!("{} does not fit `{part}.{weight}`", pair.found))
            })?;
            deltas.entry(weight.clone()).or_default().push(pair.delta);
        }
        Ok(Fused { base, deltas })
    }

    /// To be called when the weights of every network have been fused.
    ///
    /// # Errors
    /// Naming a tensor that is meant for a network that this model has not.
    pub fn finish(self) -> Result<()> {
        match self.pairs.first() {
            None => Ok(()),
            Some(pair) => Err(Error::model(format!(
                "{} is meant for `{}`, which this model has not",
                pair.found, pair.part
            ))),
        }
    }
}

/// Adds what is in `file` to `pairs`.
fn read(file: &LoraFile, pairs: &mut Vec<Pair>) -> Result<()> {
    #[derive(Default)]
    struct Found {
        name: String,
        down: Option<Tensor>,
        up: Option<Tensor>,
        alpha: Option<f64>,
    }
    let path = located(&file.path);
    let mut files = Files::open(&[&path])?;
    let config = config(&path, &files)?;
    let alone = config.as_ref().and_then(Config::part);
    let mut found: BTreeMap<(Part, Key), Found> = BTreeMap::new();
    for name in files.names() {
        let (part, key, role) = names::parse(&name, alone)?;
        let Some(tensor) = files.take(&name)? else {
            continue;
        };
        let entry = found.entry((part, key)).or_default();
        let place = match role {
            Role::Alpha => {
                let alpha = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
                entry.alpha = alpha.first().copied();
                continue;
            }
            Role::Down => &mut entry.down,
            Role::Up => &mut entry.up,
        };
        if place.replace(tensor).is_some() {
            return Err(Error::model(format!("`{name}` is there in two layouts")));
        }
        entry.name = name;
    }
    for ((part, key), found) in found {
        let (Some(down), Some(up)) = (found.down, found.up) else {
            return Err(Error::model(format!("`{}` lacks its other factor", key)));
        };
        let rank = down.dims().first().copied().unwrap_or(0);
        let scaling = match (found.alpha, &config) {
            (Some(alpha), _) => alpha / rank as f64,
            (None, Some(config)) => {
                config.check_rank(part, &key, rank)?;
                config.scaling(part, &key, rank as f64)?
            }
            (None, None) => 1.0,
        };
        let factor = file.scale * scaling;
        if !factor.is_finite() {
            return Err(Error::model(format!(
                "the scale of `{key}` is {factor}, no number"
            )));
        }
        pairs.push(Pair {
            part,
            key,
            found: format!("`{}` in `{}`", found.name, file.path.display()),
            delta: Delta { down, up, factor },
        });
    }
    Ok(())
}

/// The file of a LoRA, which may be the folder that PEFT or diffusers saved.
fn located(path: &Path) -> PathBuf {
    // The last two are refused, by what they are.
    let names = [
        "adapter_model.safetensors",
        "pytorch_lora_weights.safetensors",
        "adapter_model.bin",
        "pytorch_lora_weights.bin",
    ];
    let inside = names
        .iter()
        .map(|name| path.join(name))
        .find(|file| file.exists());
    inside.unwrap_or_else(|| path.to_owned())
}

/// What is said of the scale of a file's changes: in its metadata, as diffusers does, or in PEFT's
/// `adapter_config.json` beside it.
fn config(path: &Path, files: &Files) -> Result<Option<Config>> {
    if let Some(text) = files.metadata().get("lora_adapter_metadata") {
        return Ok(Some(Config::OfParts(serde_json::from_str(text)?)));
    }
    let beside = path.with_file_name(CONFIG);
    let wrapped = files
        .names()
        .iter()
        .any(|name| name.starts_with(names::WRAPPED));
    match (wrapped, beside.exists()) {
        (false, _) => Ok(None),
        (true, true) => {
            let config = input::json_file(&beside, input::CONFIG_BYTES)?;
            Ok(Some(Config::Own(config)))
        }
        (true, false) => Err(Error::model(format!(
            "its names are PEFT's, whose scale stands in `{CONFIG}`, which is not beside it"
        ))),
    }
}

impl Delta {
    /// Checks that it changes weights of `shape`.
    fn check(&self, shape: &[usize]) -> Result<()> {
        let (down, up) = (self.down.dims(), self.up.dims());
        let inner = |dims: &[usize]| dims.iter().skip(1).product::<usize>();
        let rank = down.first().copied().unwrap_or(0);
        let fits = rank > 0
            && shape.first() == up.first()
            && inner(up) == rank
            && inner(down) == inner(shape);
        match fits {
            true => Ok(()),
            false => Err(Error::model(format!(
                "its factors have shapes {up:?} and {down:?}, the weights {shape:?}"
            ))),
        }
    }

    /// `weights` with the change, in their own type; the sum is formed in f32.
    fn add_to(&self, weights: &Tensor) -> Result<Tensor> {
        let (rank, outputs) = (self.down.dim(0)?, self.up.dim(0)?);
        let down = self.down.to_dtype(DType::F32)?.reshape((rank, ()))?;
        let up = self.up.to_dtype(DType::F32)?.reshape((outputs, rank))?;
        let change = (up.matmul(&down)? * self.factor)?.reshape(weights.dims())?;
        let sum = (weights.to_dtype(DType::F32)? + change)?;
        Ok(sum.to_dtype(weights.dtype())?)
    }
}

/// A source whose weights have been changed by LoRAs.
#[derive(Debug)]
pub struct Fused<S> {
    base: S,
    deltas: HashMap<String, Vec<Delta>>,
}

impl<S: Source> Source for Fused<S> {
    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        let Some(mut weights) = self.base.take(name)? else {
            return Ok(None);
        };
        for delta in self.deltas.remove(name).unwrap_or_default() {
            weights = delta.add_to(&weights)?;
        }
        Ok(Some(weights))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.base.shape(name)
    }

    fn names(&self) -> Vec<String> {
        self.base.names()
    }
}

#[cfg(test)]
mod tests;
