//! What the tensors of a LoRA file are called, and which layers they mean.

use super::Part;
use diffaug::{Error, Result};
use diffaug_nn::{diffusion::original::Names, weights::Source};
use serde_json::Value;
use std::{collections::HashMap, fmt};

/// The name of a layer as a LoRA file has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Key {
    /// diffusers': `down_blocks.1.attentions.0.proj_in`.
    Dotted(String),
    /// kohya's, in which dots have become underscores: `down_blocks_1_attentions_0_proj_in`, or
    /// `input_blocks_4_1_proj_in` by the names of the original layout.
    Flat(String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Key::Dotted(name) | Key::Flat(name)) = self;
        f.write_str(name)
    }
}

/// What a tensor is to its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// From the inputs to the few values between (A).
    Down,
    /// From those to the outputs (B).
    Up,
    /// The number whose share of the rank the change is multiplied by.
    Alpha,
}

/// Ends of names in files of diffusers, of several ages, and of kohya.
const ENDS: [(&str, Role); 13] = [
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

/// Parts of names that betray another method.
const OTHER_METHODS: [(&str, &str); 8] = [
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    (
        "lora_mid",
        "LoRA of convolutions with a third factor (Tucker decomposition)",
    ),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("oft_", "OFT"),
    (".diff", "full differences"),
    ("lora_B.bias", "LoRA with biases"),
];

/// What PEFT puts in front of the names of a model that it has wrapped.
pub(super) const WRAPPED: &str = "base_model.model.";

/// Whose tensor `name` is, of which layer, and what it is to it. Names that do not say whose they are
/// are of `alone`, or by what they begin with.
pub(super) fn parse(name: &str, alone: Option<Part>) -> Result<(Part, Key, Role)> {
    let name = name.strip_prefix(WRAPPED).unwrap_or(name);
    if let Some((_, method)) = OTHER_METHODS.iter().find(|(part, _)| name.contains(part)) {
        return Err(Error::unsupported(format!(
            "`{}` is of {method}, which is not supported: fuse it into the weights with the tool that made it",
            name.escape_default()
        )));
    }
    let ends = ENDS
        .iter()
        .find_map(|(end, role)| Some((name.strip_suffix(end)?, *role)));
    let Some((layer, role)) = ends else {
        let name = name.escape_default();
        return Err(Error::model(format!("`{name}` is no tensor of a LoRA")));
    };
    for (prefix, part) in [
        ("lora_unet_", Part::Unet),
        ("lora_te_", Part::TextEncoder),
        ("lora_te1_", Part::TextEncoder),
        ("lora_te2_", Part::TextEncoder2),
    ] {
        if let Some(layer) = layer.strip_prefix(prefix) {
            return Ok((part, Key::Flat(layer.to_owned()), role));
        }
    }
    let prefixes = [Part::Unet, Part::TextEncoder, Part::TextEncoder2];
    let own = prefixes.iter().find_map(|part| {
        let layer = layer.strip_prefix(part.name())?.strip_prefix('.')?;
        Some((*part, layer))
    });
    // The oldest files are of the UNet alone and do not say so; PEFT's are of any one network.
    let text = ["text_model.", "encoder.layers.", "text_projection"];
    let (part, layer) = own.unwrap_or_else(|| {
        let guess = match text.iter().any(|start| layer.starts_with(start)) {
            true => Part::TextEncoder,
            false => Part::Unet,
        };
        (alone.unwrap_or(guess), layer)
    });
    let old = name.ends_with("_lora.down.weight") || name.ends_with("_lora.up.weight");
    Ok((
        part,
        Key::Dotted(if old {
            processor(layer, part)
        } else {
            layer.to_owned()
        }),
        role,
    ))
}

/// The layer that the oldest files mean by `attn1.processor.to_q` and `attn1.processor.to_out`.
fn processor(layer: &str, part: Part) -> String {
    let layer = layer.replace(".processor.", ".");
    let Some((place, own)) = layer.rsplit_once('.') else {
        return layer;
    };
    let own = match (part, own) {
        (Part::Unet, "to_out") => "to_out.0",
        (Part::Unet, other) => other,
        (_, "to_q") => "q_proj",
        (_, "to_k") => "k_proj",
        (_, "to_v") => "v_proj",
        (_, "to_out") => "out_proj",
        (_, other) => other,
    };
    format!("{place}.{own}")
}

/// The weights of every layer of `base`, by all the names that a LoRA may have for the layer.
pub(super) fn layers(base: &impl Source, original: Option<&Names>) -> HashMap<Key, String> {
    let mut layers = HashMap::new();
    for weight in base.names() {
        let Some(module) = weight.strip_suffix(".weight") else {
            continue;
        };
        if base.shape(&weight).is_none_or(|shape| shape.len() < 2) {
            continue;
        }
        let flat = |name: &str| Key::Flat(name.replace('.', "_"));
        layers.insert(Key::Dotted(module.to_owned()), weight.clone());
        layers.insert(flat(module), weight.clone());
        if let Some(original) = original.and_then(|names| names.to_original(module)) {
            layers.insert(flat(&original), weight.clone());
        }
        // Since transformers 5.6 text encoders have no module of this name.
        if let Some(bare) = module.strip_prefix("text_model.") {
            layers.insert(Key::Dotted(bare.to_owned()), weight.clone());
        }
    }
    layers
}

/// A configuration of PEFT.
#[derive(Debug)]
pub(super) enum Config {
    /// diffusers' metadata: fields begin with the name of the network and a dot.
    OfParts(Value),
    /// PEFT's own `adapter_config.json`, of one network.
    Own(Value),
}

impl Config {
    fn field(&self, part: Part, name: &str) -> &Value {
        match self {
            Config::OfParts(value) => &value[format!("{part}.{name}")],
            Config::Own(value) => &value[name],
        }
    }

    /// The network that it says it is of, if it does.
    pub(super) fn part(&self) -> Option<Part> {
        let Config::Own(value) = self else {
            return None;
        };
        match value["auto_mapping"]["base_model_class"].as_str()? {
            "UNet2DConditionModel" => Some(Part::Unet),
            "CLIPTextModel" => Some(Part::TextEncoder),
            "CLIPTextModelWithProjection" => Some(Part::TextEncoder2),
            _ => None,
        }
    }

    /// What the change of a layer of `rank` is multiplied by.
    pub(super) fn scaling(&self, part: Part, key: &Key, rank: f64) -> Result<f64> {
        let entry = |name: &str| self.field(part, name);
        if entry("use_dora") == &Value::Bool(true) {
            return Err(Error::unsupported(
                "its configuration says that it is of DoRA, which is not supported",
            ));
        }
        if let Some(other) = entry("peft_type").as_str().filter(|kind| *kind != "LORA") {
            let other = other.escape_default();
            return Err(Error::unsupported(format!(
                "its `peft_type` is `{other}`, expected `LORA`"
            )));
        }
        let mut alpha = match (entry("lora_alpha"), self) {
            (Value::Null, Config::OfParts(_)) => return Ok(1.0),
            (value, _) => number("lora_alpha", value)?,
        };
        let Key::Dotted(layer) = key else {
            return Ok(1.0);
        };
        for (pattern, own) in entry("alpha_pattern").as_object().into_iter().flatten() {
            let own = number("alpha_pattern", own)?;
            if matches(pattern, layer)? {
                alpha = own;
                break;
            }
        }
        let rank_stabilised = entry("use_rslora") == &Value::Bool(true);
        Ok(alpha / if rank_stabilised { rank.sqrt() } else { rank })
    }

    /// Checks the rank of a layer against what it says.
    pub(super) fn check_rank(&self, part: Part, key: &Key, rank: usize) -> Result<()> {
        let (Config::Own(_), Key::Dotted(layer)) = (self, key) else {
            return Ok(());
        };
        let mut expected = self.field(part, "r").as_u64();
        for (pattern, own) in self
            .field(part, "rank_pattern")
            .as_object()
            .into_iter()
            .flatten()
        {
            if matches(pattern, layer)? {
                expected = own.as_u64();
                break;
            }
        }
        match expected {
            Some(expected) if expected != rank as u64 => Err(Error::model(format!(
                "`{key}` has rank {rank}, but its configuration says {expected}"
            ))),
            _ => Ok(()),
        }
    }
}

/// A number of a configuration.
fn number(field: &str, value: &Value) -> Result<f64> {
    let number = value.as_f64().filter(|number| number.is_finite());
    number.ok_or_else(|| Error::model(format!("`{field}` is {value}, expected a number")))
}

/// Whether a pattern of PEFT, the end of a layer's name or after `^` all of it, means `layer`.
fn matches(pattern: &str, layer: &str) -> Result<bool> {
    let (whole, name) = match pattern.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    if !name.chars().all(plain) {
        return Err(Error::unsupported(format!(
            "a pattern is the regular expression `{}`, expected names of layers",
            pattern.escape_default()
        )));
    }
    Ok(match layer.strip_suffix(name) {
        Some("") => true,
        Some(rest) => !whole && rest.ends_with('.'),
        None => false,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_layout_is_read() {
        let dotted = |name: &str| Key::Dotted(name.to_owned());
        let expect = |name: &str, part, key: Key, role| {
            assert_eq!(parse(name, None).unwrap(), (part, key, role), "{name}");
        };
        let (place, te) = ("down_blocks.1.attentions.0", "text_model.encoder.layers.0");
        for (end, layer, role) in [
            ("attn1.to_q.lora_A.weight", "attn1.to_q", Role::Down),
            ("attn1.to_q.lora.up.weight", "attn1.to_q", Role::Up),
            (
                "attn1.processor.to_q_lora.down.weight",
                "attn1.to_q",
                Role::Down,
            ),
            (
                "attn1.processor.to_out_lora.up.weight",
                "attn1.to_out.0",
                Role::Up,
            ),
            ("attn1.to_out.0.alpha", "attn1.to_out.0", Role::Alpha),
        ] {
            let key = dotted(&format!("{place}.{layer}"));
            expect(
                &format!("unet.{place}.{end}"),
                Part::Unet,
                key.clone(),
                role,
            );
            expect(&format!("{place}.{end}"), Part::Unet, key, role);
        }
        for (end, layer) in [
            (
                "self_attn.q_proj.lora_linear_layer.down.weight",
                "self_attn.q_proj",
            ),
            ("self_attn.to_out_lora.down.weight", "self_attn.out_proj"),
            ("mlp.fc1.lora_A.weight", "mlp.fc1"),
        ] {
            let key = dotted(&format!("{te}.{layer}"));
            let name = format!("text_encoder_2.{te}.{end}");
            expect(&name, Part::TextEncoder2, key.clone(), Role::Down);
            expect(
                &format!("text_encoder.{te}.{end}"),
                Part::TextEncoder,
                key,
                Role::Down,
            );
        }
        let wrapped = |rest: &str| format!("base_model.model.{rest}.lora_A.weight");
        let (q, text) = (format!("{place}.attn1.to_q"), format!("{te}.mlp.fc1"));
        expect(&wrapped(&q), Part::Unet, dotted(&q), Role::Down);
        expect(
            &wrapped(&text),
            Part::TextEncoder,
            dotted(&text),
            Role::Down,
        );
        let own = wrapped(&format!("text_encoder_2.{text}"));
        expect(&own, Part::TextEncoder2, dotted(&text), Role::Down);
        let (part, key, _) = parse(&wrapped(&text), Some(Part::TextEncoder2)).unwrap();
        assert_eq!((part, key), (Part::TextEncoder2, dotted(&text)));
        let flat = Key::Flat("input_blocks_4_1_proj_in".to_owned());
        let name = "lora_unet_input_blocks_4_1_proj_in";
        expect(
            &format!("{name}.lora_down.weight"),
            Part::Unet,
            flat.clone(),
            Role::Down,
        );
        expect(&format!("{name}.alpha"), Part::Unet, flat, Role::Alpha);
        let flat = Key::Flat("text_projection".to_owned());
        expect(
            "lora_te2_text_projection.lora_up.weight",
            Part::TextEncoder2,
            flat,
            Role::Up,
        );
    }

    #[test]
    fn other_methods_are_refused_by_name() {
        let error = |name: &str| parse(name, None).unwrap_err().to_string();
        assert!(error("lora_unet_x.dora_scale").contains("is of DoRA"));
        assert!(error("unet.x.lora_magnitude_vector").contains("is of DoRA"));
        assert!(error("lora_unet_x.hada_w1_a").contains("is of LoHa"));
        assert!(error("lora_unet_x.lokr_w1").contains("is of LoKr"));
        assert!(error("lora_unet_x.lora_mid.weight").contains("third factor"));
        assert!(error("unet.x.lora_B.bias").contains("with biases"));
        assert!(error("unet.conv_in.weight").contains("is no tensor of a LoRA"));
    }

    #[test]
    fn alpha_comes_from_the_metadata() {
        let config = json!({
            "unet.lora_alpha": 8,
            "unet.alpha_pattern": {"to_k": 2, "^a.to_v": 4},
            "text_encoder.lora_alpha": 8.0,
            "text_encoder.use_rslora": true,
            "text_encoder_2.use_dora": true,
        });
        let config = Config::OfParts(config);
        let scaling = |part, layer: &str| config.scaling(part, &Key::Dotted(layer.to_owned()), 4.0);
        assert_eq!(scaling(Part::Unet, "a.to_q").unwrap(), 2.0);
        assert_eq!(scaling(Part::Unet, "a.to_k").unwrap(), 0.5);
        assert_eq!(scaling(Part::Unet, "a.not_to_k").unwrap(), 2.0);
        assert_eq!(scaling(Part::Unet, "a.to_v").unwrap(), 1.0);
        assert_eq!(scaling(Part::Unet, "b.a.to_v").unwrap(), 2.0);
        assert_eq!(scaling(Part::TextEncoder, "a").unwrap(), 4.0);
        assert!(scaling(Part::TextEncoder2, "a").is_err());
        let error = matches("to_[kv]", "a.to_k").unwrap_err().to_string();
        assert!(error.contains("regular expression `to_[kv]`"), "{error}");
    }
}
