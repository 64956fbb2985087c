//! Which tensors a pickle of PyTorch describes: their types, shapes and places in storages.

use super::machine::{Id, Value, Values};
use diffaug::{Error, Result};
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;

/// Dimensions of a tensor at most, as PyTorch has it.
const MOST_DIMENSIONS: usize = 64;
/// Calls within calls that lead to a tensor, at most: a parameter of a subclass of a tensor.
const DEEPEST: usize = 8;

/// A tensor as a pickle describes it; the numbers have not been held against its storage.
#[derive(Clone, Debug, PartialEq)]
pub struct Described {
    /// The name of the storage.
    pub storage: String,
    /// Its type, or the name of one that is not supported.
    pub dtype: std::result::Result<Dtype, String>,
    /// Where it begins, in numbers of its type.
    pub offset: u64,
    /// Its sides.
    pub shape: Vec<usize>,
    /// Numbers from one place to the next along each side.
    pub strides: Vec<u64>,
}

/// The tensors of the pickle's dictionary `state_dict`, where it has one with tensors (as Lightning's
/// checkpoints do), else its own.
///
/// # Errors
/// Naming the tensor that is described in a way that makes no sense.
pub fn described(values: &Values<'_>) -> Result<BTreeMap<String, Described>> {
    let own = entries(values, values.root);
    let nested = own
        .iter()
        .find(|(key, _)| values.text(*key) == Some("state_dict"));
    if let Some((_, nested)) = nested {
        let tensors = tensors(values, &entries(values, *nested))?;
        if !tensors.is_empty() {
            return Ok(tensors);
        }
    }
    tensors(values, &own)
}

/// The entries of the dictionary at `id`; nothing of another value.
fn entries(values: &Values<'_>, id: Id) -> Vec<(Id, Id)> {
    match values.get(id) {
        Value::Dict(entries) => entries.clone(),
        // An ordered dictionary that is made of pairs.
        Value::Call(function, arguments)
            if values.global(*function) == Some(("collections", "OrderedDict")) =>
        {
            let pairs = items(values, *arguments).first().copied();
            let pairs = pairs.map(|pairs| items(values, pairs)).unwrap_or_default();
            let pair = |pair: &Id| match items(values, *pair) {
                [key, value] => Some((*key, *value)),
                _ => None,
            };
            pairs.iter().filter_map(pair).collect()
        }
        _ => Vec::new(),
    }
}

fn items<'a>(values: &'a Values<'_>, id: Id) -> &'a [Id] {
    match values.get(id) {
        Value::Tuple(items) | Value::List(items) => items,
        _ => &[],
    }
}

fn tensors(values: &Values<'_>, entries: &[(Id, Id)]) -> Result<BTreeMap<String, Described>> {
    let mut tensors = BTreeMap::new();
    for (key, value) in entries {
        let Some(name) = values.text(*key) else {
            continue;
        };
        let found = tensor(values, *value, 0).map_err(|error| {
            error.context(format!("tensor `{}` cannot be read", name.escape_default()))
        })?;
        if let Some(described) = found {
            tensors.insert(name.to_owned(), described);
        }
    }
    Ok(tensors)
}

/// The tensor that the call at `id` makes, if it makes one.
fn tensor(values: &Values<'_>, id: Id, depth: usize) -> Result<Option<Described>> {
    let Value::Call(function, arguments) = values.get(id) else {
        return Ok(None);
    };
    let arguments = items(values, *arguments);
    let inner = |values: &Values<'_>, id: Option<&Id>| match id {
        Some(id) if depth < DEEPEST => tensor(values, *id, depth + 1),
        _ => Ok(None),
    };
    let Some((module, name)) = values.global(*function) else {
        return Ok(None);
    };
    match (module, name) {
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
            rebuilt(values, arguments, None).map(Some)
        }
        ("torch._utils", "_rebuild_tensor_v3") => {
            let dtype = arguments.get(6).and_then(|id| values.global(*id));
            let dtype = dtype.map(|(_, name)| name).ok_or_else(|| broken("type"))?;
            rebuilt(values, arguments, Some(dtype)).map(Some)
        }
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            inner(values, arguments.first())
        }
        // The function, the type, the arguments and the state.
        ("torch._tensor", "_rebuild_from_type_v2") => {
            let [function, _, own, ..] = arguments else {
                return Ok(None);
            };
            match values.global(*function) {
                Some(("torch._utils", "_rebuild_tensor_v2")) => {
                    rebuilt(values, items(values, *own), None).map(Some)
                }
                _ => Ok(None),
            }
        }
        _ => Ok(None),
    }
}

fn broken(what: &str) -> Error {
    Error::model(format!("its {what} is not described as PyTorch does"))
}

/// The tensor of the arguments storage, offset, shape and strides.
fn rebuilt(values: &Values<'_>, arguments: &[Id], dtype: Option<&str>) -> Result<Described> {
    let [storage, offset, shape, strides, ..] = arguments else {
        return Err(broken("storage"));
    };
    let Value::Outside(storage) = values.get(*storage) else {
        return Err(broken("storage"));
    };
    // The word `storage`, the class, the name, the device and the count of its numbers.
    let [word, class, key, ..] = items(values, *storage) else {
        return Err(broken("storage"));
    };
    let (Some("storage"), Some((_, class)), Some(key)) =
        (values.text(*word), values.global(*class), values.text(*key))
    else {
        return Err(broken("storage"));
    };
    let numbers = |id: Id, what: &str| {
        let number = |id: &Id| match values.get(*id) {
            Value::Int(n) => u64::try_from(*n).map_err(|_| broken(what)),
            _ => Err(broken(what)),
        };
        items(values, id)
            .iter()
            .map(number)
            .collect::<Result<Vec<u64>>>()
    };
    let offset = match values.get(*offset) {
        Value::Int(n) => u64::try_from(*n).map_err(|_| broken("offset"))?,
        _ => return Err(broken("offset")),
    };
    let (shape, strides) = (numbers(*shape, "shape")?, numbers(*strides, "strides")?);
    if shape.len() != strides.len() || shape.len() > MOST_DIMENSIONS {
        return Err(broken("shape"));
    }
    let shape = shape
        .into_iter()
        .map(|side| usize::try_from(side).map_err(|_| broken("shape")));
    Ok(Described {
        storage: key.to_owned(),
        dtype: match dtype {
            Some(name) => named(name),
            None => stored(class),
        },
        offset,
        shape: shape.collect::<Result<_>>()?,
        strides,
    })
}

/// The type of the numbers of a storage of that class.
fn stored(class: &str) -> std::result::Result<Dtype, String> {
    Ok(match class {
        "DoubleStorage" => Dtype::F64,
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        other => return Err(other.to_owned()),
    })
}

/// The type that PyTorch calls `name`.
fn named(name: &str) -> std::result::Result<Dtype, String> {
    Ok(match name {
        "float64" => Dtype::F64,
        "float32" => Dtype::F32,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "int64" => Dtype::I64,
        "int32" => Dtype::I32,
        "int16" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint8" => Dtype::U8,
        "uint16" => Dtype::U16,
        "uint32" => Dtype::U32,
        "bool" => Dtype::BOOL,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        other => return Err(other.to_owned()),
    })
}
