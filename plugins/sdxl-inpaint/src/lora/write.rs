//! LoRA files as diffusers' `save_lora_weights` writes them.

use super::Part;
use candle_core::Tensor;
use diffaug::{Error, Result};
use diffaug_nn::weights::save_tensors;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, path::Path};

/// The two factors of one layer's change.
#[derive(Clone, Debug)]
pub struct LoraLayer {
    /// Whose layer it is.
    pub part: Part,
    /// Its name in diffusers or transformers: `mid_block.attentions.0.proj_in`.
    pub module: String,
    /// `[rank, inputs]`, or `[rank, inputs, k, k]` of a convolution.
    pub a: Tensor,
    /// `[outputs, rank]`, or `[outputs, rank, 1, 1]`.
    pub b: Tensor,
    /// The change is `alpha` / rank · `b` · `a`.
    pub alpha: f64,
}

impl LoraLayer {
    fn rank(&self) -> usize {
        self.a.dims().first().copied().unwrap_or(0)
    }
}

/// Writes `layers` so that `load_lora_weights` of a pipeline of diffusers reads them. Equal layers
/// give equal bytes, whatever their order.
///
/// # Errors
/// When the factors of a layer do not fit each other, or the file cannot be written.
pub fn save_lora(path: &Path, layers: impl IntoIterator<Item = LoraLayer>) -> Result<()> {
    let mut parts: BTreeMap<Part, Vec<LoraLayer>> = BTreeMap::new();
    for layer in layers {
        if layer.rank() == 0 || layer.b.dims().get(1) != Some(&layer.rank()) {
            return Err(Error::internal(format!(
                "the factors of `{}` have shapes {:?} and {:?}, which do not fit each other",
                layer.module,
                layer.b.dims(),
                layer.a.dims()
            )));
        }
        parts.entry(layer.part).or_default().push(layer);
    }
    let mut config = Map::new();
    for (part, layers) in &mut parts {
        layers.sort_by(|x, y| x.module.cmp(&y.module));
        describe(*part, layers, &mut config);
    }
    // diffusers sorts the keys.
    config.sort_keys();
    let config = serde_json::to_string_pretty(&config)?;
    let tensors = parts.into_values().flatten().flat_map(|layer| {
        let name = format!("{}.{}", layer.part, layer.module);
        [
            (format!("{name}.lora_A.weight"), layer.a),
            (format!("{name}.lora_B.weight"), layer.b),
        ]
    });
    save_tensors(
        path,
        tensors,
        &[("format", "pt"), ("lora_adapter_metadata", &config)],
    )
}

/// Adds what PEFT has to know of the layers of `part`: rank and alpha, with the exceptions.
fn describe(part: Part, layers: &[LoraLayer], config: &mut Map<String, Value>) {
    let Some(first) = layers.first() else { return };
    let (rank, alpha) = (first.rank(), first.alpha);
    let name = |layer: &LoraLayer| format!("^{}", layer.module);
    let ranks: Map<_, _> = layers
        .iter()
        .filter(|layer| layer.rank() != rank)
        .map(|layer| (name(layer), json!(layer.rank())))
        .collect();
    let alphas: Map<_, _> = layers
        .iter()
        .filter(|layer| layer.alpha != alpha)
        .map(|layer| (name(layer), json!(layer.alpha)))
        .collect();
    let targets: Vec<&str> = layers.iter().map(|layer| layer.module.as_str()).collect();
    for (key, value) in [
        ("r", json!(rank)),
        ("lora_alpha", json!(alpha)),
        ("rank_pattern", Value::Object(ranks)),
        ("alpha_pattern", Value::Object(alphas)),
        ("target_modules", json!(targets)),
        ("bias", json!("none")),
        ("lora_dropout", json!(0.0)),
        ("use_dora", json!(false)),
        ("use_rslora", json!(false)),
        ("peft_type", json!("LORA")),
    ] {
        config.insert(format!("{part}.{key}"), value);
    }
}
