//! The weights of `R50+ViT-B_16` as Google published them: a `.npz` of JAX, with kernels whose channels come
//! last, and one place more among the positions, that of the class.

use crate::begin;
use candle_core::{DType, Device, Tensor};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use diffaug_nn::{
    ops,
    params::Params,
    weights::{Npz, Source},
};
use std::path::Path;

/// Google's name of the positions.
const POSITIONS: &str = "Transformer/posembed_input/pos_embedding";

/// Takes the residual network and the transformer out of `file`.
///
/// # Errors
/// When the file is of another kind, or does not fit: the first tensor that does not is named.
pub(super) fn begin(params: &Params, file: &Path, device: &Device) -> Result<String> {
    let shown = file.display();
    if file.extension().is_none_or(|kind| kind != "npz") {
        return Err(Error::unsupported(format!(
            "`transunet` begins with Google's `R50+ViT-B_16.npz`, not with `{shown}`: `diffaug convert` makes a folder for `base` of a whole network's weights"
        )));
    }
    let grid = |(name, var): (&str, &candle_core::Var)| {
        let positions = name.ends_with("position_embeddings");
        positions.then(|| var.dims().get(1).copied().unwrap_or(0).isqrt())
    };
    let grid = params.all().find_map(grid).unwrap_or(0);
    let mut source = Google(Npz::open(file)?, grid);
    let taken = begin::take(params, &mut source, theirs, device);
    let taken = taken.or_error(ErrorKind::Model, || {
        format!("`{shown}` does not fit the network")
    })?;
    // Of a network with fewer layers there would be more of them.
    let left = source.0.names().into_iter().find(|name| is_layer(name));
    if let Some(left) = left {
        return Err(Error::model(format!(
            "`{shown}` does not fit the network: it has no place for array `{left}`"
        )));
    }
    let values = taken.set()?;
    Ok(format!(
        "the residual network and the transformer, {values} values"
    ))
}

/// Whether an array of that name is one of the layers that networks have different numbers of.
fn is_layer(name: &str) -> bool {
    name.starts_with("Transformer/encoderblock_")
        || (name.starts_with("block") && name.contains("/unit"))
}

/// Google's name of our tensor; `None` for those of the way up.
fn theirs(ours: &str) -> Option<String> {
    let name = ours.strip_prefix("transformer.")?;
    let (place, kind) = name.rsplit_once('.')?;
    if kind == "position_embeddings" {
        return Some(POSITIONS.to_owned());
    }
    let (place, norm) = if let Some(place) = place.strip_prefix("embeddings.hybrid_model.") {
        residual(place)?
    } else if place == "embeddings.patch_embeddings" {
        ("embedding".to_owned(), false)
    } else {
        encoder(place.strip_prefix("encoder.")?)?
    };
    let kind = match (kind, norm) {
        ("weight", true) => "scale",
        ("weight", false) => "kernel",
        (other, _) => other,
    };
    Some(format!("{place}/{kind}"))
}

/// Google's name of a layer of the residual network, and whether it normalises.
fn residual(place: &str) -> Option<(String, bool)> {
    if let Some(layer) = place.strip_prefix("root.") {
        return Some((format!("{layer}_root"), layer == "gn"));
    }
    let (unit, layer) = place.strip_prefix("body.")?.rsplit_once('.')?;
    let layer = if layer == "downsample" {
        "conv_proj"
    } else {
        layer
    };
    let unit = unit.replace('.', "/");
    Some((format!("{unit}/{layer}"), layer.starts_with("gn")))
}

/// Google's name of a layer of the transformer, and whether it normalises.
fn encoder(place: &str) -> Option<(String, bool)> {
    if place == "encoder_norm" {
        return Some(("Transformer/encoder_norm".to_owned(), true));
    }
    let (block, layer) = place.strip_prefix("layer.")?.split_once('.')?;
    let (layer, norm) = match layer {
        "attention_norm" => ("LayerNorm_0".to_owned(), true),
        "ffn_norm" => ("LayerNorm_2".to_owned(), true),
        "ffn.fc1" => ("MlpBlock_3/Dense_0".to_owned(), false),
        "ffn.fc2" => ("MlpBlock_3/Dense_1".to_owned(), false),
        _ => {
            let part = layer.strip_prefix("attn.")?;
            (format!("MultiHeadDotProductAttention_1/{part}"), false)
        }
    };
    Some((format!("Transformer/encoderblock_{block}/{layer}"), norm))
}

/// The arrays under Google's names in our shapes, for positions on a grid of that side.
#[derive(Debug)]
struct Google(Npz, usize);

impl Source for Google {
    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        let form = self.0.shape(name).map(|shape| Form::of(name, &shape));
        let (Some(form), Some(tensor)) = (form, self.0.take(name)?) else {
            return Ok(None);
        };
        form.apply(&tensor, self.1).map(Some)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let shape = self.0.shape(name)?;
        Some(Form::of(name, &shape).shape(&shape, self.1))
    }

    fn names(&self) -> Vec<String> {
        self.0.names()
    }
}

/// What becomes of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Height, width, inputs, outputs to outputs, inputs, height, width.
    Window,
    /// Inputs by outputs to outputs by inputs; either may be cut into heads. So many of the sides belong to
    /// the inputs.
    Linear(usize),
    /// All values in a row.
    Row,
    /// Positions on a grid of this side, with that many places before them.
    Positions { side: usize, before: usize },
    /// It stays.
    Same,
}

impl Form {
    fn of(name: &str, shape: &[usize]) -> Self {
        match shape {
            [1, places, _] if name == POSITIONS => Form::positions(*places),
            [_, _, _, _] if name.ends_with("/kernel") => Form::Window,
            [_, _, _] if name.ends_with("/out/kernel") => Form::Linear(2),
            [_, _, ..] if name.ends_with("/kernel") && shape.len() < 4 => Form::Linear(1),
            _ if name.ends_with("/scale") || name.ends_with("/bias") => Form::Row,
            _ => Form::Same,
        }
    }

    /// A square, or one behind the place of the class.
    fn positions(places: usize) -> Self {
        let square = |places: usize| Some(places.isqrt()).filter(|side| side * side == places);
        match (square(places), square(places.saturating_sub(1))) {
            (Some(side), _) => Form::Positions { side, before: 0 },
            (None, Some(side)) => Form::Positions { side, before: 1 },
            (None, None) => Form::Same,
        }
    }

    /// The shape that [`Form::apply`] makes of `shape`.
    fn shape(self, shape: &[usize], grid: usize) -> Vec<usize> {
        let product = |sides: &[usize]| sides.iter().product::<usize>();
        match (self, shape) {
            (Form::Window, &[height, width, inputs, outputs]) => {
                vec![outputs, inputs, height, width]
            }
            (Form::Linear(inputs), _) => {
                vec![product(&shape[inputs..]), product(&shape[..inputs])]
            }
            (Form::Row, _) => vec![product(shape)],
            (Form::Positions { .. }, &[one, _, hidden]) => vec![one, grid * grid, hidden],
            _ => shape.to_vec(),
        }
    }

    fn apply(self, tensor: &Tensor, grid: usize) -> Result<Tensor> {
        let shape = self.shape(tensor.dims(), grid);
        let formed = match self {
            Form::Window => tensor.permute((3, 2, 0, 1))?.contiguous()?,
            Form::Linear(_) => {
                let [outputs, inputs] = [shape[0], shape[1]];
                tensor.reshape((inputs, outputs))?.t()?.contiguous()?
            }
            Form::Row => tensor.flatten_all()?,
            Form::Positions { side, before } => {
                let places = tensor.to_dtype(DType::F32)?;
                let places = places.narrow(1, before, side * side)?.contiguous()?;
                let maps = ops::tokens_to_pixels(&places, side, side)?;
                let maps = ops::upsample_bilinear2d(&maps, grid, grid, true)?;
                ops::pixels_to_tokens(&maps)?
            }
            Form::Same => tensor.clone(),
        };
        Ok(formed)
    }
}
