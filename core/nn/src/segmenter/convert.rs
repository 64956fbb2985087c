//! Folders of weights made of the checkpoints that others published, by names and shapes.

use super::{Architecture, Description, Learned, Options, Outputs};
use crate::{
    fit::{CONFIG, WEIGHTS},
    params::Params,
    weights::{self, Renamed, Source},
};
use candle_core::{DType, Device, Tensor};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

/// Side of the images where the options say none.
const SIDE: u32 = 256;
/// What some put before all names: a model in parallel, or in a trainer.
const WRAPPERS: [&str; 4] = ["module.", "model.", "net.", "network."];

/// Makes the folder `to` of the checkpoint `from`, whose network the options tell.
///
/// # Errors
/// When the file is of another kind, its tensors are not those of the network, or `to` cannot be written.
pub fn convert<L: Learned>(
    options: &Options<L::Architecture>,
    from: &Path,
    to: &Path,
) -> Result<String> {
    let plugin = L::Architecture::PLUGIN;
    if from.is_dir() {
        return Err(Error::unsupported(format!(
            "`{}` is a folder: `{plugin}` converts files of published weights",
            from.display()
        )));
    }
    let name = || format!("in `{}`", from.display());
    let architecture = options.architecture();
    let mut tensors =
        renamed(&architecture, weights::open(from)?).or_error(ErrorKind::Model, name)?;
    let channels = channels(&architecture, &tensors).or_error(ErrorKind::Model, name)?;
    let classes = match L::outputs(&architecture, channels) {
        Outputs::Logits(1) => 1,
        Outputs::Logits(2) => {
            single_channel(architecture.head(), &mut tensors)?;
            1
        }
        Outputs::Logits(several) => several - 1,
        Outputs::Masks(masks) => masks,
    };
    let classes = classes_of(classes).or_error(ErrorKind::Model, name)?;
    let side = options.size.unwrap_or(SIDE);
    let description = Description::new(architecture, classes, (side, side));
    let mut params = Params::frozen(&Device::Cpu, tensors.clone());
    let built = description
        .network::<L>(&mut params)
        .or_error(ErrorKind::Model, name)?;
    drop(built);
    if let Some(left) = params.left_over().first() {
        return Err(Error::model(format!(
            "in `{}`: tensor `{left}` is no part of the network",
            from.display()
        )));
    }
    let count: usize = tensors.values().map(Tensor::elem_count).sum();
    let sorted: BTreeMap<String, Tensor> = tensors.into_iter().collect();
    weights::make_folder(to)?;
    weights::save_tensors(&to.join(WEIGHTS), sorted, &[])?;
    let config = serde_json::to_string_pretty(&json!({ "model": description }))? + "\n";
    // Last of all: with it the folder is one of weights.
    weights::write_atomically(&to.join(CONFIG), config.as_bytes())?;
    Ok(format!(
        "{count} values for {} target class{} at {side}x{side}",
        description.classes.len(),
        if description.classes.len() == 1 {
            ""
        } else {
            "es"
        }
    ))
}

/// All tensors under our names, f32.
fn renamed<A: Architecture>(
    architecture: &A,
    source: Box<dyn Source>,
) -> Result<HashMap<String, Tensor>> {
    let names = source.names();
    let wrapper = WRAPPERS
        .into_iter()
        .find(|prefix| names.iter().all(|name| name.starts_with(prefix)));
    let mut source = Renamed::new(source, |name| {
        let bare = wrapper.map_or(name, |prefix| &name[prefix.len()..]);
        // PyTorch counts the batches of a normalisation; nothing here asks for it.
        match bare.ends_with("num_batches_tracked") {
            true => None,
            false => architecture.renamed(bare),
        }
    })?;
    let mut tensors = HashMap::new();
    for name in source.names() {
        if let Some(tensor) = source.take(&name)? {
            tensors.insert(name, tensor.to_dtype(DType::F32)?.contiguous()?);
        }
    }
    Ok(tensors)
}

/// Channels of the answer, from the shape of the last layer.
fn channels<A: Architecture>(architecture: &A, tensors: &HashMap<String, Tensor>) -> Result<usize> {
    let name = format!("{}.weight", architecture.head());
    match tensors.get(&name).map(|head| head.dims()) {
        Some([channels, ..]) => Ok(*channels),
        _ => Err(Error::model(format!("tensor `{name}` is missing"))),
    }
}

/// So many target classes, which a checkpoint has no names for.
fn classes_of(count: usize) -> Result<Vec<(u8, String)>> {
    match count {
        1 => Ok(vec![(1, "target".to_owned())]),
        2..=255 => Ok((1..=count)
            .map(|class| (class as u8, format!("class {class}")))
            .collect()),
        _ => Err(Error::model(format!(
            "the last layer has channels for {count} classes, expected 1 to 255"
        ))),
    }
}

/// Makes the last layer one of one channel: of background and one class the probability is that of the
/// difference of their logits.
fn single_channel(head: &str, tensors: &mut HashMap<String, Tensor>) -> Result<()> {
    for part in ["weight", "bias"] {
        let name = format!("{head}.{part}");
        if let Some(both) = tensors.get(&name) {
            let one = (both.narrow(0, 1, 1)? - both.narrow(0, 0, 1)?)?;
            tensors.insert(name, one);
        }
    }
    Ok(())
}
