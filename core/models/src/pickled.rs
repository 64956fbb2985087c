//! PyTorch's files of weights (`.bin`, `.ckpt`) made into safetensors: those of a pipeline or of one
//! network in the layout of diffusers, whole or in shards, and single files. Pickles are read as data.

use crate::checkpoint::{Checkpoint, ModelIndex, OpenOptions, read_json, read_shard_list};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use diffaug_nn::weights::{self, Pickle, Source, input};
use serde_json::{Value, json};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// What PyTorch's readers want to see in a safetensors file.
const METADATA: &[(&str, &str)] = &[("format", "pt")];
/// The ends of names of PyTorch's files.
const ENDS: [&str; 4] = ["bin", "ckpt", "pt", "pth"];
/// What the files of weights in the folder of a network, or of a LoRA, begin with.
const STEMS: [&str; 4] = [
    "diffusion_pytorch_model",
    "pytorch_model",
    "adapter_model",
    "pytorch_lora_weights",
];

/// What converting made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// Tensors that were written.
    pub tensors: usize,
    /// Files that they are in.
    pub files: usize,
}

impl fmt::Display for Converted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tensors, files) = (self.tensors, self.files);
        write!(f, "{tensors} tensors as safetensors in {files} files")
    }
}

/// Whether `from` is a file of PyTorch's, or a folder of a pipeline or a network some of whose weights
/// are in such files alone.
pub fn is_pickled(from: &Path) -> bool {
    if !from.is_dir() {
        return from
            .extension()
            .is_some_and(|end| ENDS.iter().any(|known| *known == end));
    }
    let networks = ["unet", "vae", "text_encoder", "text_encoder_2"];
    let folders = networks.iter().map(|name| from.join(name));
    folders.chain([from.to_owned()]).any(|folder| {
        let names = names(&folder).unwrap_or_default();
        let plain = names.iter().any(|name| name.ends_with(".safetensors"));
        !plain && names.iter().any(|name| is_weights(name))
    })
}

/// Makes the folder `to` of what [`is_pickled`] knows, in the layout that it was in.
///
/// # Errors
/// Naming what is missing or broken, and when `to` cannot be written.
pub fn convert(from: &Path, to: &Path) -> Result<Converted> {
    let mut converted = Converted::default();
    weights::make_folder(to)?;
    if !from.is_dir() {
        let stem = from.file_stem().unwrap_or_default().to_string_lossy();
        file(
            from,
            &to.join(format!("{stem}.safetensors")),
            &mut converted,
        )?;
    } else if from.join("model_index.json").exists() {
        pipeline(from, to, &mut converted)?;
    } else {
        network(from, to, &mut converted)?;
    }
    Ok(converted)
}

/// All that a pipeline is loaded from.
fn pipeline(from: &Path, to: &Path, converted: &mut Converted) -> Result<()> {
    let path = from.join("model_index.json");
    let mut description = read_json(&path)?;
    let index = ModelIndex::parse(&description, &path)?;
    for (name, _) in index.networks() {
        network(&from.join(name), &to.join(name), converted)?;
    }
    for name in index.tokenizers().iter().chain(&["scheduler"]) {
        copy(&from.join(name), &to.join(name))?;
    }
    // What is left out here is not to be looked for.
    for name in ["safety_checker", "feature_extractor", "image_encoder"] {
        if description.get(name).is_some() {
            description[name] = json!([null, null]);
        }
    }
    write_json(&to.join("model_index.json"), &description)?;
    for component in Checkpoint::open(to, &OpenOptions::default())?.components() {
        component.source()?;
    }
    Ok(())
}

/// The folder of one network.
fn network(from: &Path, to: &Path, converted: &mut Converted) -> Result<()> {
    weights::make_folder(to)?;
    let names = names(from)?;
    let has = |name: &str| names.iter().any(|known| known == name);
    for name in names.iter().filter(|name| is_weights(name)) {
        let new = renamed(name);
        if !has(&new) {
            file(&from.join(name), &to.join(new), converted)?;
        }
    }
    for name in names.iter().filter(|name| name.ends_with(".safetensors")) {
        weights::copy_file(&from.join(name), &to.join(name))?;
    }
    for name in names.iter().filter(|name| name.ends_with(".json")) {
        match is_list(name) && !has(&renamed(name)) {
            true => list(&from.join(name), &to.join(renamed(name)), &names)?,
            false if is_list(name) => {}
            false => drop(weights::copy_file(&from.join(name), &to.join(name))?),
        }
    }
    Ok(())
}

/// A list of shards, with the names that the shards have now.
fn list(from: &Path, to: &Path, names: &[String]) -> Result<()> {
    let (mut list, files) = read_shard_list(from, ".bin")?;
    if let Some(missing) = files.iter().find(|file| !names.contains(file)) {
        let shown = from.display();
        return Err(Error::model(format!(
            "`{shown}` names `{missing}`, which is not there"
        )));
    }
    let map = list["weight_map"].as_object_mut().into_iter().flatten();
    for (_, file) in map {
        *file = json!(renamed(file.as_str().unwrap_or_default()));
    }
    write_json(to, &list)
}

/// One file of tensors.
fn file(from: &Path, to: &Path, converted: &mut Converted) -> Result<()> {
    let mut source = Pickle::open(from)?;
    let mut tensors = Vec::new();
    for name in source.names() {
        let tensor = source
            .take(&name)
            .map_err(|error| error.context(format!("in `{}`", from.display())))?;
        tensors.extend(tensor.map(|tensor| (name, tensor)));
    }
    converted.tensors += tensors.len();
    converted.files += 1;
    weights::save_tensors(to, tensors, METADATA)
}

/// Whether a file in the folder of a network is of its weights.
fn is_weights(name: &str) -> bool {
    name.ends_with(".bin") && STEMS.iter().any(|stem| name.starts_with(stem))
}

/// Whether a file in the folder of a network lists shards of PyTorch's.
fn is_list(name: &str) -> bool {
    name.contains(".bin.") && name.ends_with(".json")
}

/// What diffusers and transformers call the same as safetensors.
fn renamed(name: &str) -> String {
    let bare = match name.strip_prefix("pytorch_model") {
        Some(rest) => format!("model{rest}"),
        None => name.to_owned(),
    };
    bare.replace(".bin", ".safetensors")
}

/// The names in a folder that are plain, in order.
fn names(folder: &Path) -> Result<Vec<String>> {
    let cannot = || format!("cannot read the folder `{}`", folder.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).or_error(ErrorKind::Model, cannot)? {
        let entry = entry.or_error(ErrorKind::Model, cannot)?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.retain(|name| input::is_plain_name(name));
    names.sort_unstable();
    Ok(names)
}

/// Copies the files of a folder, but not its folders.
fn copy(from: &Path, to: &Path) -> Result<()> {
    weights::make_folder(to)?;
    let paths = names(from)?
        .into_iter()
        .map(|name| (from.join(&name), to.join(name)));
    let mut files = paths.filter(|(from, _): &(PathBuf, PathBuf)| !from.is_dir());
    files.try_for_each(|(from, to)| weights::copy_file(&from, &to).map(drop))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    weights::write_atomically(path, text.as_bytes())
}

/// How to make safetensors of files that are not opened as they are.
pub(crate) fn hint() -> &'static str {
    "`diffaug convert generator sdxl-inpaint FROM TO` reads it as data and makes a folder with safetensors"
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::checkpoint::Component;
    use diffaug_nn::testing::{close, pytorch_file, random};

    #[test]
    fn names_become_those_of_safetensors() {
        for (old, new) in [
            (
                "diffusion_pytorch_model.bin",
                "diffusion_pytorch_model.safetensors",
            ),
            (
                "diffusion_pytorch_model.fp16.bin",
                "diffusion_pytorch_model.fp16.safetensors",
            ),
            ("pytorch_model.bin", "model.safetensors"),
            ("adapter_model.bin", "adapter_model.safetensors"),
            (
                "pytorch_lora_weights.bin",
                "pytorch_lora_weights.safetensors",
            ),
            (
                "pytorch_model-00001-of-00002.bin",
                "model-00001-of-00002.safetensors",
            ),
            (
                "pytorch_model.bin.index.json",
                "model.safetensors.index.json",
            ),
            (
                "diffusion_pytorch_model.bin.index.fp16.json",
                "diffusion_pytorch_model.safetensors.index.fp16.json",
            ),
        ] {
            assert_eq!(renamed(old), new);
        }
    }

    #[test]
    fn one_network_and_one_file_are_converted() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        fs::create_dir(&from).unwrap();
        let (x, y) = (random("x", &[2, 3]), random("y", &[4]));
        fs::write(from.join("config.json"), "{}").unwrap();
        fs::write(
            from.join("diffusion_pytorch_model.bin"),
            pytorch_file([("quant_conv.weight", &x), ("y", &y)]),
        )
        .unwrap();
        assert!(is_pickled(&from) && is_pickled(&from.join("a.ckpt")));
        let error = Component::autoencoder(&from).unwrap_err().to_string();
        assert!(
            error.contains("`diffusion_pytorch_model.bin`, a pickle"),
            "{error}"
        );
        assert!(
            error.contains("`diffaug convert generator sdxl-inpaint"),
            "{error}"
        );
        let to = folder.path().join("to");
        let found = convert(&from, &to).unwrap();
        assert_eq!(found.to_string(), "2 tensors as safetensors in 1 files");
        assert!(!is_pickled(&to));
        let mut source = Component::autoencoder(&to).unwrap().source().unwrap();
        close(&source.take("y").unwrap().unwrap(), &y, 0.0);
        let single = folder.path().join("model.ckpt");
        fs::rename(from.join("diffusion_pytorch_model.bin"), &single).unwrap();
        convert(&single, &folder.path().join("single")).unwrap();
        let read = weights::read(&folder.path().join("single/model.safetensors")).unwrap();
        close(&read["quant_conv.weight"], &x, 0.0);
    }

    #[test]
    fn shards_keep_their_list() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        fs::create_dir(&from).unwrap();
        let shards = [
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model-00002-of-00002.bin",
        ];
        for (i, shard) in shards.iter().enumerate() {
            let (name, tensor) = (format!("x{i}"), random(shard, &[i + 1]));
            fs::write(from.join(shard), pytorch_file([(name.as_str(), &tensor)])).unwrap();
        }
        let list = from.join("pytorch_model.bin.index.json");
        let map = json!({"x0": shards[0], "x1": shards[1]});
        let text = json!({"metadata": {"total_size": 12}, "weight_map": map}).to_string();
        fs::write(&list, text).unwrap();
        let to = folder.path().join("to");
        assert_eq!(convert(&from, &to).unwrap().files, 2);
        let written = read_json(&to.join("model.safetensors.index.json")).unwrap();
        assert_eq!(
            written["weight_map"]["x1"],
            "model-00002-of-00002.safetensors"
        );
        assert_eq!(written["metadata"]["total_size"], 12);
        for wrong in ["../x.bin", "/etc/passwd", "x.bin", "a\u{1b}.bin"] {
            let text = json!({"weight_map": {"x0": wrong}}).to_string();
            fs::write(&list, text).unwrap();
            let error = convert(&from, &folder.path().join("again"))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("names") && !error.contains('\u{1b}'),
                "{error}"
            );
        }
    }
}
