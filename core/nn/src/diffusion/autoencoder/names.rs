//! The names that attention had in older checkpoints.

use candle_core::{Result, Tensor, bail};

/// The present name of a tensor of an autoencoder that is called `name` in an older checkpoint;
/// `None` where it is called the same today.
///
/// Until diffusers 0.13 attention between pixels had `query`, `key`, `value` and `proj_attn` for
/// what are `to_q`, `to_k`, `to_v` and `to_out.0` now.
pub fn modern_name(name: &str) -> Option<String> {
    let (block, kind) = name.rsplit_once('.')?;
    let (place, part) = block.rsplit_once('.')?;
    let present = match part {
        "query" => "to_q",
        "key" => "to_k",
        "value" => "to_v",
        "proj_attn" => "to_out.0",
        _ => return None,
    };
    is_attention(place).then(|| format!("{place}.{present}.{kind}"))
}

/// A tensor of an older checkpoint under its present name and in its present shape: attention's
/// maps were 1×1 convolutions in some, `[c, c, 1, 1]` for what is `[c, c]` now. Every other tensor
/// stays as it is.
///
/// # Errors
/// When a map of attention is a convolution with a larger window.
pub fn modernise(name: String, tensor: Tensor) -> Result<(String, Tensor)> {
    let name = modern_name(&name).unwrap_or(name);
    let is_map = |(block, _): (&str, &str)| {
        let parts = ["to_q", "to_k", "to_v", "to_out.0"];
        parts.iter().any(|part| {
            let place = block.strip_suffix(part).and_then(|b| b.strip_suffix('.'));
            place.is_some_and(is_attention)
        })
    };
    if tensor.rank() <= 2 || !name.rsplit_once('.').is_some_and(is_map) {
        return Ok((name, tensor));
    }
    let (outputs, inputs) = (tensor.dim(0)?, tensor.dim(1)?);
    if tensor.elem_count() != outputs * inputs {
        bail!(
            "tensor `{name}` has shape {:?}, expected [{outputs}, {inputs}] or [{outputs}, {inputs}, 1, 1]",
            tensor.dims()
        );
    }
    let tensor = tensor.reshape((outputs, inputs))?;
    Ok((name, tensor))
}

/// Whether `place` is that of an attention block: `decoder.mid_block.attentions.0`.
fn is_attention(place: &str) -> bool {
    place.rsplit_once('.').is_some_and(|(list, index)| {
        let numbered = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
        numbered && (list == "attentions" || list.ends_with(".attentions"))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn old_names_of_attention_become_new_ones() {
        for (old, new) in [
            ("query", "to_q"),
            ("key", "to_k"),
            ("value", "to_v"),
            ("proj_attn", "to_out.0"),
        ] {
            for place in ["attentions.0", "encoder.mid_block.attentions.0"] {
                for kind in ["weight", "bias"] {
                    let modern = modern_name(&format!("{place}.{old}.{kind}"));
                    assert_eq!(modern.unwrap(), format!("{place}.{new}.{kind}"));
                }
            }
        }
        for same in [
            "decoder.mid_block.attentions.0.to_q.weight",
            "decoder.mid_block.attentions.0.group_norm.weight",
            "decoder.mid_block.resnets.0.query.weight",
            "attentions.x.key.weight",
            "key.weight",
            "weight",
        ] {
            assert_eq!(modern_name(same), None, "{same}");
        }
    }

    #[test]
    fn maps_that_were_convolutions_become_linear() {
        let shape_of = |name: &str, shape: &[usize]| {
            let tensor = Tensor::zeros(shape, DType::BF16, &Device::Cpu).unwrap();
            modernise(name.to_owned(), tensor).map(|(name, t)| (name, t.dims().to_vec()))
        };
        let place = "decoder.mid_block.attentions.0";
        let (name, shape) = shape_of(&format!("{place}.query.weight"), &[6, 6, 1, 1]).unwrap();
        assert_eq!((name, shape), (format!("{place}.to_q.weight"), vec![6, 6]));
        let (name, shape) = shape_of(&format!("{place}.to_out.0.weight"), &[6, 6, 1]).unwrap();
        assert_eq!(
            (name, shape),
            (format!("{place}.to_out.0.weight"), vec![6, 6])
        );
        for (name, shape) in [
            ("decoder.mid_block.attentions.0.to_q.weight", vec![6, 6]),
            ("decoder.mid_block.attentions.0.to_q.bias", vec![6]),
            ("decoder.mid_block.resnets.0.conv1.weight", vec![6, 6, 3, 3]),
            ("quant_conv.weight", vec![8, 8, 1, 1]),
        ] {
            let same = (name.to_owned(), shape.clone());
            assert_eq!(shape_of(name, &shape).unwrap(), same);
        }
        let error = shape_of(&format!("{place}.query.weight"), &[6, 6, 3, 3]).unwrap_err();
        assert!(error.to_string().contains("expected [6, 6] or"), "{error}");
    }
}
