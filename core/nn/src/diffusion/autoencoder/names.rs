//! The names that attention had in older checkpoints.

/// The present name of a tensor of an autoencoder that is called `name` in an older checkpoint;
/// `None` where it is called the same today.
///
/// Until diffusers 0.13 attention between pixels had `query`, `key`, `value` and `proj_attn` for
/// what are `to_q`, `to_k`, `to_v` and `to_out.0` now.
pub(in crate::diffusion) fn modern_name(name: &str) -> Option<String> {
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
}
