//! A folder in the layout of diffusers.

use super::{
    Checkpoint, Chosen, Component, Kind, ModelIndex, OpenOptions, Weights, choose, read_json,
    shards,
};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use std::{
    fs,
    path::{Path, PathBuf},
};

pub(super) fn open(folder: &Path, options: &OpenOptions) -> Result<Checkpoint> {
    let path = folder.join("model_index.json");
    if !path.exists() {
        return Err(Error::model(format!(
            "`{}` has no `model_index.json`: expected a folder in the layout of diffusers",
            folder.display()
        )));
    }
    let index = ModelIndex::parse(&read_json(&path)?, &path)?;
    let network = |name: &str, kind: Kind| component(folder, name, kind, options);
    let second = Kind::Clip { projection: true };
    let checkpoint = Checkpoint {
        xl: index.xl,
        force_zeros_for_empty_prompt: index.force_zeros,
        unet: network("unet", Kind::Unet)?,
        vae: network("vae", Kind::Autoencoder)?,
        text_encoder: network("text_encoder", Kind::Clip { projection: false })?,
        text_encoder_2: index
            .xl
            .then(|| network("text_encoder_2", second))
            .transpose()?,
        scheduler: read_json(&folder.join("scheduler/scheduler_config.json"))?,
        tokenizer: tokenizer(folder, "tokenizer")?,
        tokenizer_2: index
            .xl
            .then(|| tokenizer(folder, "tokenizer_2"))
            .transpose()?,
    };
    if let Some(wanted) = &options.variant {
        check_variant(folder, wanted, &checkpoint)?;
    }
    Ok(checkpoint)
}

/// The network `name` of a folder.
pub(super) fn component(
    folder: &Path,
    name: &str,
    kind: Kind,
    options: &OpenOptions,
) -> Result<Component> {
    let place = folder.join(name);
    let config = read_json(&place.join("config.json"))?;
    let shown = place.display();
    let entries =
        fs::read_dir(&place).or_error(ErrorKind::Model, || format!("cannot read `{shown}`"))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    let (chosen, variant) = choose(name, &names, options.variant.as_deref())
        .map_err(|error| error.context(format!("in `{}`", folder.display())))?;
    let files: Vec<PathBuf> = match chosen {
        Chosen::File(file) => vec![place.join(file)],
        Chosen::Index(list) => {
            let list = place.join(list);
            let files = shards(&list)?;
            if let Some(missing) = files.iter().find(|file| !names.contains(file)) {
                return Err(Error::model(format!(
                    "`{shown}` lacks `{missing}`, which `{}` names",
                    list.display()
                )));
            }
            files.iter().map(|file| place.join(file)).collect()
        }
    };
    Ok(Component {
        config,
        variant,
        weights: Weights::Own { files, kind },
    })
}

/// The folder of a tokenizer, if it is there.
pub(super) fn tokenizer(folder: &Path, name: &str) -> Result<PathBuf> {
    let place = folder.join(name);
    if is_tokenizer(&place) {
        return Ok(place);
    }
    Err(Error::model(format!(
        "`{}` has no tokenizer: expected `vocab.json` and `merges.txt`, or `tokenizer.json`",
        place.display()
    )))
}

pub(super) fn is_tokenizer(place: &Path) -> bool {
    let has = |name: &str| place.join(name).is_file();
    has("tokenizer.json") || (has("vocab.json") && has("merges.txt"))
}

/// Checks that the variant that was asked for is that of some network at least; the others may have
/// plain weights only.
fn check_variant(folder: &Path, wanted: &str, checkpoint: &Checkpoint) -> Result<()> {
    let all = checkpoint.components().count();
    let found = checkpoint
        .components()
        .filter(|c| c.variant.as_deref() == Some(wanted))
        .count();
    if found == 0 {
        let error = format!(
            "`{}` has no weights of the variant `{wanted}`",
            folder.display()
        );
        return Err(Error::model(error).at("variant"));
    }
    if found < all {
        tracing::warn!(
            "only {found} of {all} networks have weights of the variant `{wanted}`; the others are used as they are"
        );
    }
    Ok(())
}
