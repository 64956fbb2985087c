//! The layout of diffusers: what the folder of a pipeline says of itself, and which of a
//! component's files are its weights.

use crate::unshuffle;
use diffaug::{Error, Result};
use diffaug_nn::weights::input;
use serde_json::Value;
use std::{collections::BTreeSet, path::Path};

/// What `model_index.json` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModelIndex {
    pub xl: bool,
    pub force_zeros: bool,
}

impl ModelIndex {
    /// Reads `text`, the contents of `path`.
    pub fn parse(value: &Value, path: &Path) -> Result<Self> {
        let shown = path.display();
        let class = value["_class_name"].as_str().unwrap_or_default();
        let xl = match class {
            "StableDiffusionXLInpaintPipeline"
            | "StableDiffusionXLPipeline"
            | "StableDiffusionXLImg2ImgPipeline" => true,
            "StableDiffusionInpaintPipeline"
            | "StableDiffusionPipeline"
            | "StableDiffusionImg2ImgPipeline" => false,
            other => {
                return Err(Error::unsupported(format!(
                    "`{shown}` describes a pipeline of class `{other}`, expected `StableDiffusionXLInpaintPipeline`, `StableDiffusionInpaintPipeline` or their relatives without inpainting"
                )));
            }
        };
        let index = ModelIndex {
            xl,
            force_zeros: value["force_zeros_for_empty_prompt"]
                .as_bool()
                .unwrap_or(xl),
        };
        if value["requires_aesthetics_score"] == true {
            return Err(Error::unsupported(format!(
                "`{shown}` wants an aesthetics score: it is a refiner, not a model that paints"
            )));
        }
        for (component, class) in index.networks() {
            match value[component][1].as_str() {
                Some(found) if found == *class => {}
                // Of a small model that was trained here without an autoencoder.
                Some(unshuffle::CLASS) if *component == "vae" => {}
                found => {
                    return Err(Error::unsupported(format!(
                        "`{component}` in `{shown}` is `{}`, expected `{class}`",
                        found.unwrap_or("null")
                    )));
                }
            }
        }
        Ok(index)
    }

    /// The networks and their classes.
    pub fn networks(&self) -> &'static [(&'static str, &'static str)] {
        const ALL: [(&str, &str); 4] = [
            ("unet", "UNet2DConditionModel"),
            ("vae", "AutoencoderKL"),
            ("text_encoder", "CLIPTextModel"),
            ("text_encoder_2", "CLIPTextModelWithProjection"),
        ];
        if self.xl { &ALL } else { &ALL[..3] }
    }

    /// The folders of the tokenizers.
    pub fn tokenizers(&self) -> &'static [&'static str] {
        const ALL: [&str; 2] = ["tokenizer", "tokenizer_2"];
        if self.xl { &ALL } else { &ALL[..1] }
    }
}

/// The JSON file at `path`.
///
/// # Errors
/// When it is missing or broken.
pub fn read_json(path: &Path) -> Result<Value> {
    input::json_file(path, input::CONFIG_BYTES)
}

/// Which file of a component's folder stands for its weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chosen {
    /// The weights.
    File(String),
    /// A list of the files that the weights are in.
    Index(String),
}

/// Chooses among `files`, the names in the folder of `component`. With the choice comes the variant
/// that it is of, which may be none where there is no other.
///
/// # Errors
/// When there are no weights, or only such that nobody should open.
pub(crate) fn choose(
    component: &str,
    files: &[String],
    variant: Option<&str>,
) -> Result<(Chosen, Option<String>)> {
    let stem = match component {
        "unet" | "vae" => "diffusion_pytorch_model",
        _ => "model",
    };
    let mut offered: Vec<(Option<String>, Chosen)> =
        files.iter().filter_map(|file| offer(stem, file)).collect();
    // The plain weights first, then halves, which load everywhere; a file before a list.
    offered.sort_by_key(|(variant, chosen)| {
        let rank = match variant.as_deref() {
            None => 0,
            Some("fp16") => 1,
            Some("bf16") => 2,
            Some(_) => 3,
        };
        (rank, variant.clone(), matches!(chosen, Chosen::Index(_)))
    });
    let wanted = variant.and_then(|wanted| {
        offered
            .iter()
            .find(|(variant, _)| variant.as_deref() == Some(wanted))
    });
    if let Some((variant, chosen)) = wanted.or(offered.first()) {
        return Ok((chosen.clone(), variant.clone()));
    }
    let pickle = files.iter().find(|file| {
        [".bin", ".ckpt", ".pt", ".pth"]
            .iter()
            .any(|end| file.ends_with(end))
    });
    Err(match pickle {
        Some(file) => pickled(component, file),
        None => Error::model(format!(
            "`{component}` has no weights: expected `{stem}.safetensors`"
        )),
    })
}

/// The weights of a network are there as a pickle alone.
pub(super) fn pickled(component: &str, file: &str) -> Error {
    Error::model(format!(
        "the weights of `{component}` are `{}`, a pickle, which is not opened: {}",
        file.escape_default(),
        crate::pickled::hint()
    ))
}

/// The weights that `file` stands for and the variant that they are of. The variant stands before
/// the last part of a name, in newer lists of files before the last but one.
fn offer(stem: &str, file: &str) -> Option<(Option<String>, Chosen)> {
    let rest = file.strip_prefix(stem)?.strip_prefix('.')?;
    let variant = |name: &str| {
        let plain = !name.is_empty() && !name.contains('.') && !name.contains("-of-");
        plain.then(|| Some(name.to_owned()))
    };
    if rest == "safetensors" {
        return Some((None, Chosen::File(file.to_owned())));
    }
    if let Some(list) = rest.strip_prefix("safetensors.") {
        let name = match list {
            "index.json" => None,
            _ => {
                let older = list.strip_suffix(".index.json");
                let newer = list
                    .strip_prefix("index.")
                    .and_then(|r| r.strip_suffix(".json"));
                variant(older.or(newer)?)?
            }
        };
        return Some((name, Chosen::Index(file.to_owned())));
    }
    let name = variant(rest.strip_suffix(".safetensors")?)?;
    Some((name, Chosen::File(file.to_owned())))
}

/// The names of the files that the list at `path` names, in order.
///
/// # Errors
/// When it is no such list, or names a file that is not beside it.
pub(crate) fn shards(path: &Path) -> Result<Vec<String>> {
    Ok(read_shard_list(path, ".safetensors")?.1)
}

/// The list at `path`, and the names of the files that it names, all of which have the ending `end`.
///
/// # Errors
/// Those of [`shards`].
pub(crate) fn read_shard_list(path: &Path, end: &str) -> Result<(Value, Vec<String>)> {
    let list: Value = input::json_file(path, input::VOCABULARY_BYTES)?;
    let shown = path.display();
    let map = list["weight_map"].as_object().filter(|map| !map.is_empty());
    let map = map.ok_or_else(|| Error::model(format!("`{shown}` has no `weight_map`")))?;
    let mut files = BTreeSet::new();
    for file in map.values() {
        match file.as_str() {
            Some(file) if input::is_plain_name(file) && file.ends_with(end) => {
                files.insert(file.to_owned());
            }
            _ => {
                let kind = end.trim_start_matches('.');
                return Err(Error::model(format!(
                    "`weight_map` in `{shown}` names {file}, expected a {kind} file beside it"
                )));
            }
        }
    }
    Ok((list, files.into_iter().collect()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn variants_and_lists_are_found_in_both_ways_of_naming() {
        let files = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let choice = |names: &[&str], variant: Option<&str>| {
            let (chosen, variant) = choose("unet", &files(names), variant).unwrap();
            let (Chosen::File(name) | Chosen::Index(name)) = chosen;
            let name = name
                .replace("diffusion_pytorch_model", "m")
                .replace("safetensors", "s");
            (name, variant.unwrap_or_default())
        };
        let (plain, half) = (
            "diffusion_pytorch_model.safetensors",
            "diffusion_pytorch_model.fp16.safetensors",
        );
        let expect = |name: &str, variant: &str| (name.to_owned(), variant.to_owned());
        assert_eq!(choice(&[half, plain], None), expect("m.s", ""));
        assert_eq!(
            choice(&[half, plain], Some("fp16")),
            expect("m.fp16.s", "fp16")
        );
        assert_eq!(choice(&[half, plain], Some("bf16")), expect("m.s", ""));
        let other = "diffusion_pytorch_model.non_ema.safetensors";
        assert_eq!(choice(&[other, half], None), expect("m.fp16.s", "fp16"));

        let part = "diffusion_pytorch_model-00001-of-00002.safetensors";
        let list = "diffusion_pytorch_model.safetensors.index.json";
        assert_eq!(choice(&[part, list], None), expect("m.s.index.json", ""));
        let newer = [
            "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
        ];
        assert_eq!(choice(&newer, None), expect("m.s.index.fp16.json", "fp16"));
        let older = [
            "diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
            "diffusion_pytorch_model.safetensors.fp16.index.json",
        ];
        assert_eq!(
            choice(&older, Some("fp16")),
            expect("m.s.fp16.index.json", "fp16")
        );
    }

    #[test]
    fn no_weights_and_pickles_are_named() {
        let error = |files: &[&str]| {
            let files: Vec<String> = files.iter().map(|f| (*f).to_owned()).collect();
            choose("text_encoder", &files, None)
                .unwrap_err()
                .to_string()
        };
        assert!(error(&["config.json"]).contains("expected `model.safetensors`"));
        assert!(error(&["pytorch_model.bin"]).contains("`pytorch_model.bin`, a pickle"));
    }

    #[test]
    fn a_description_without_end_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(input::CONFIG_BYTES + 1).unwrap();
        let error = read_json(&path).unwrap_err().to_string();
        assert!(error.ends_with("it is larger than 4.0 MiB"), "{error}");
    }
}
