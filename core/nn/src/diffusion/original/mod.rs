//! Checkpoints in the layout that Stable Diffusion was published in, as one file of everything
//! (CompVis' latent-diffusion, Stability's generative-models, OpenCLIP), or by an early diffusers,
//! under the names and in the shapes of today's diffusers and transformers.

mod names;

pub use names::Names;

use super::{UNetConfig, autoencoder::modern_name};
use crate::weights::Source;
use candle_core::Tensor;
use diffaug::{Error, Result};
use std::collections::{BTreeMap, HashMap};

/// A source in the original layout, as diffusers would have it. Names that the layout does not know
/// are kept, so that they are found to be left over.
#[derive(Debug)]
pub struct Original<S> {
    base: S,
    /// By new names: what a tensor was called and how it was stored.
    plan: BTreeMap<String, (String, Form)>,
    /// Tensors of which not all thirds have been taken, and how many have not.
    parts: HashMap<String, (Tensor, usize)>,
}

/// How the original stores a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Same,
    /// With two more dimensions, both of one element: a 1×1 convolution that is a linear map.
    Convolution,
    Transposed,
    /// As this third of a larger one: query, key and value in one.
    Third(usize),
}

impl<S: Source> Original<S> {
    /// A UNet, without the prefix `model.diffusion_model.`
    ///
    /// # Errors
    /// When two tensors come to one name.
    pub fn unet(base: S, config: &UNetConfig) -> Result<Self> {
        let names = Names::unet(config);
        Self::new(base, |name| {
            vec![(
                names.to_diffusers(name).unwrap_or_else(|| name.to_owned()),
                Form::Same,
            )]
        })
    }

    /// An autoencoder of `levels` resolutions and `layers` residual blocks at each, without the
    /// prefix `first_stage_model.`; what only its training needs is passed over.
    ///
    /// # Errors
    /// When two tensors come to one name.
    pub fn autoencoder(base: S, levels: usize, layers: usize) -> Result<Self> {
        let names = Names::autoencoder(levels, layers);
        Self::new(base, |name| {
            if name.starts_with("loss.") {
                return Vec::new();
            }
            let new = names.to_diffusers(name).unwrap_or_else(|| name.to_owned());
            vec![pixel_attention(new)]
        })
    }

    /// An autoencoder in the layout of diffusers of any version: up to 0.12 attention had other
    /// names, and files that were converted then may hold its maps as 1×1 convolutions.
    ///
    /// # Errors
    /// When two tensors come to one name.
    pub fn older_autoencoder(base: S) -> Result<Self> {
        Self::new(base, |name| {
            let new = modern_name(name).unwrap_or_else(|| name.to_owned());
            vec![pixel_attention(new)]
        })
    }

    /// The text encoder of an OpenCLIP model with its first `layers` layers and, if wanted, its
    /// `projection`, without the prefix (`conditioner.embedders.1.model.` or
    /// `cond_stage_model.model.`).
    ///
    /// # Errors
    /// When two tensors come to one name.
    pub fn open_clip(base: S, layers: usize, projection: bool) -> Result<Self> {
        Self::new(base, |name| match name {
            "text_projection" if projection => {
                vec![("text_projection.weight".to_owned(), Form::Transposed)]
            }
            "text_projection" | "logit_scale" | "attn_mask" => Vec::new(),
            _ => open_clip(name, layers),
        })
    }

    /// `plan` gives for each tensor of `base` what it becomes.
    fn new(base: S, plan: impl Fn(&str) -> Vec<(String, Form)>) -> Result<Self> {
        let mut planned: BTreeMap<String, (String, Form)> = BTreeMap::new();
        for name in base.names() {
            for (new, form) in plan(&name) {
                if let Some((other, _)) = planned.insert(new.clone(), (name.clone(), form)) {
                    return Err(Error::model(format!(
                        "tensors `{other}` and `{name}` both are `{new}`"
                    )));
                }
            }
        }
        Ok(Original {
            base,
            plan: planned,
            parts: HashMap::new(),
        })
    }

    /// Third `index` of the tensor `name`, which is read once.
    fn third(&mut self, name: &str, index: usize) -> Result<Option<Tensor>> {
        let (whole, left) = match self.parts.remove(name) {
            Some(kept) => kept,
            None => match self.base.take(name)? {
                Some(whole) => (whole, 3),
                None => return Ok(None),
            },
        };
        let height = whole.dim(0)? / 3;
        let third = whole
            .narrow(0, index * height, height)?
            .force_contiguous()?;
        if left > 1 {
            self.parts.insert(name.to_owned(), (whole, left - 1));
        }
        Ok(Some(third))
    }
}

impl<S: Source> Source for Original<S> {
    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        let Some((old, form)) = self.plan.remove(name) else {
            return Ok(None);
        };
        if let Form::Third(index) = form {
            return self.third(&old, index);
        }
        let Some(tensor) = self.base.take(&old)? else {
            return Ok(None);
        };
        Ok(Some(match form {
            Form::Transposed => tensor.t()?.contiguous()?,
            Form::Convolution => tensor.reshape(reformed(form, tensor.dims()))?,
            Form::Same | Form::Third(_) => tensor,
        }))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let (old, form) = self.plan.get(name)?;
        let stored = match self.parts.get(old) {
            Some((whole, _)) => whole.dims().to_vec(),
            None => self.base.shape(old)?,
        };
        Some(reformed(*form, &stored))
    }

    fn names(&self) -> Vec<String> {
        self.plan.keys().cloned().collect()
    }
}

/// A tensor of an autoencoder, whose attention consists of linear maps however they are stored.
fn pixel_attention(name: String) -> (String, Form) {
    let linear = name.contains(".attentions.") && name.ends_with(".weight");
    let form = match linear {
        true => Form::Convolution,
        false => Form::Same,
    };
    (name, form)
}

/// The shape that a tensor of shape `stored` is handed out in.
fn reformed(form: Form, stored: &[usize]) -> Vec<usize> {
    let mut shape = stored.to_vec();
    match form {
        Form::Same => {}
        Form::Convolution if stored.ends_with(&[1, 1]) && stored.len() == 4 => shape.truncate(2),
        Form::Convolution => {}
        Form::Transposed => shape.reverse(),
        Form::Third(_) => shape.iter_mut().take(1).for_each(|height| *height /= 3),
    }
    shape
}

/// What a tensor of OpenCLIP becomes.
fn open_clip(name: &str, layers: usize) -> Vec<(String, Form)> {
    let one = |new: String| vec![(new, Form::Same)];
    let embeddings = "text_model.embeddings";
    match name {
        "positional_embedding" => return one(format!("{embeddings}.position_embedding.weight")),
        "token_embedding.weight" => return one(format!("{embeddings}.token_embedding.weight")),
        _ => {}
    }
    if let Some(rest) = name.strip_prefix("ln_final.") {
        return one(format!("text_model.final_layer_norm.{rest}"));
    }
    let block = name.strip_prefix("transformer.resblocks.");
    let Some((index, rest)) = block.and_then(|block| block.split_once('.')) else {
        return one(name.to_owned());
    };
    if index.parse().is_ok_and(|index: usize| index >= layers) {
        return Vec::new();
    }
    let layer = format!("text_model.encoder.layers.{index}");
    if let Some(kind) = rest.strip_prefix("attn.in_proj_") {
        let third = |(i, part)| {
            (
                format!("{layer}.self_attn.{part}_proj.{kind}"),
                Form::Third(i),
            )
        };
        return ["q", "k", "v"].into_iter().enumerate().map(third).collect();
    }
    for (old, new) in [
        ("attn.out_proj.", "self_attn.out_proj."),
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
    ] {
        if let Some(rest) = rest.strip_prefix(old) {
            return one(format!("{layer}.{new}{rest}"));
        }
    }
    one(name.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{testing::random, weights};
    use serde_json::Value;
    use std::{fs, path::PathBuf};

    fn fixture(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("fixtures")
            .join(name)
    }

    /// Every pair of `case`, as diffusers' own conversion has it, in both directions.
    fn check(names: &Names, case: &Value) {
        let pairs = case["names"].as_object().unwrap();
        assert!(pairs.len() > 40);
        for (original, diffusers) in pairs {
            let diffusers = diffusers.as_str().unwrap();
            let (a, b) = (format!("{original}.weight"), format!("{diffusers}.weight"));
            assert_eq!(names.to_diffusers(&a).as_ref(), Some(&b));
            assert_eq!(names.to_original(&b), Some(a));
        }
    }

    #[test]
    fn every_name_is_the_one_that_diffusers_converts_to() {
        let text = fs::read_to_string(fixture("original.json")).unwrap();
        let cases: Value = serde_json::from_str(&text).unwrap();
        for case in cases["unets"].as_array().unwrap() {
            let config = serde_json::from_value(case["config"].clone()).unwrap();
            check(&Names::unet(&config), case);
        }
        for case in cases["autoencoders"].as_array().unwrap() {
            let size = |name: &str| case[name].as_u64().unwrap() as usize;
            check(&Names::autoencoder(size("levels"), size("layers")), case);
        }
        let names = Names::unet(&UNetConfig::default());
        assert_eq!(names.to_diffusers("middle_block.3.norm"), None);
        assert_eq!(names.to_diffusers("input_blocks.12.0.in_layers.0"), None);
    }

    #[test]
    fn a_text_encoder_is_taken_apart() {
        let tensors = weights::read(&fixture("original.safetensors")).unwrap();
        let under = |prefix: &str| {
            let named = |(name, tensor): (&String, &Tensor)| {
                Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
            };
            tensors.iter().filter_map(named).collect::<HashMap<_, _>>()
        };
        let expected = under("out.");
        let mut source = Original::open_clip(under("in."), 2, true).unwrap();
        assert_eq!(source.names(), expected.names());
        for (name, expected) in &expected {
            assert_eq!(
                source.shape(name).as_deref(),
                Some(expected.dims()),
                "{name}"
            );
            let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let ours = source.take(name).unwrap().unwrap();
            assert_eq!(values(&ours), values(expected), "{name}");
        }
        assert!(source.names().is_empty() && source.parts.is_empty());

        let source = Original::open_clip(under("in."), 1, false).unwrap();
        let layers = source
            .names()
            .into_iter()
            .filter(|name| name.contains(".layers."));
        assert!(layers.clone().all(|name| name.contains(".layers.0.")));
        assert_eq!(layers.count(), 16);
        assert_eq!(source.shape("text_projection.weight"), None);
    }

    #[test]
    fn an_autoencoders_attention_becomes_linear_and_strangers_are_kept() {
        let names = ["encoder.mid.attn_1.q.weight", "decoder.mid.attn_1.q.weight"];
        let [stored, linear] = [random("a", &[4, 4, 1, 1]), random("b", &[4, 4])];
        let mut tensors = HashMap::from([
            (names[0].to_owned(), stored.clone()),
            (names[1].to_owned(), linear),
            ("loss.logvar".to_owned(), stored.clone()),
            ("encoder.stranger".to_owned(), stored.clone()),
        ]);
        let mut source = Original::autoencoder(&tensors, 2, 1).unwrap();
        let [encoder, decoder] =
            ["encoder", "decoder"].map(|part| format!("{part}.mid_block.attentions.0.to_q.weight"));
        assert_eq!(source.names(), [&decoder, &encoder, "encoder.stranger"]);
        assert_eq!(source.shape(&encoder), Some(vec![4, 4]));
        let taken = source.take(&encoder).unwrap().unwrap();
        crate::testing::close(&taken, &stored.reshape((4, 4)).unwrap(), 0.0);
        assert_eq!(source.take(&decoder).unwrap().unwrap().dims(), [4, 4]);

        tensors.insert(encoder, stored);
        let error = Original::autoencoder(tensors, 2, 1)
            .unwrap_err()
            .to_string();
        assert!(error.contains("`encoder.mid.attn_1.q.weight`") && error.contains("both are"));
    }
}
