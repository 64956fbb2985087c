//! A small vocabulary for a text encoder that is trained from nothing: the words of a prompt bank,
//! each a token of its own, over an alphabet of bytes for all others.

use crate::text::words;
use diffaug::{Error, Result};
use serde_json::{Map, Value, json};
use std::{collections::HashMap, path::Path};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};

/// More tokens than any prompt bank has words.
const LARGEST: usize = 16_384;
/// What the end of a word is marked with.
const END: &str = "</w>";

/// Writes a CLIP tokenizer that knows the words of `texts` to `folder`, and returns how many
/// tokens it has. `length` is how many a text becomes.
///
/// # Errors
/// When the folder cannot be written to.
pub fn write(texts: &[String], length: usize, folder: &Path) -> Result<usize> {
    let mut counts: HashMap<String, u64> = HashMap::new();
    for word in words(texts)? {
        *counts.entry(word).or_default() += 1;
    }
    let merges = learn(&counts.into_iter().collect())?;
    let mut tokens: Vec<String> = alphabet();
    tokens.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
    tokens.extend(["<|startoftext|>".to_owned(), "<|endoftext|>".to_owned()]);
    let ids = tokens.iter().enumerate();
    let ids: Map<String, Value> = ids.map(|(id, token)| (token.clone(), json!(id))).collect();
    if ids.len() != tokens.len() {
        return Err(Error::internal("two tokens of a vocabulary are equal"));
    }
    let mut lines = vec!["#version: 0.2".to_owned()];
    lines.extend(merges.iter().map(|(left, right)| format!("{left} {right}")));
    let special = json!({
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    });
    let mut config = special.clone();
    config["tokenizer_class"] = json!("CLIPTokenizer");
    config["model_max_length"] = json!(length);
    diffaug_nn::weights::make_folder(folder)?;
    for (name, text) in [
        ("vocab.json", serde_json::to_string(&ids)?),
        ("merges.txt", lines.join("\n") + "\n"),
        (
            "special_tokens_map.json",
            serde_json::to_string_pretty(&special)?,
        ),
        (
            "tokenizer_config.json",
            serde_json::to_string_pretty(&config)?,
        ),
    ] {
        diffaug_nn::weights::write_atomically(&folder.join(name), text.as_bytes())?;
    }
    Ok(tokens.len())
}

/// Every byte's symbol, inside and at the end of a word, in the order of their codes.
fn alphabet() -> Vec<String> {
    let mut symbols: Vec<char> = (0..=255u8).map(crate::text::symbol).collect();
    symbols.sort_unstable();
    let inside = symbols.iter().map(char::to_string);
    let last = symbols.iter().map(|symbol| format!("{symbol}{END}"));
    inside.chain(last).collect()
}

/// The merges that make one token of each word, in order (Sennrich et al., 2016).
fn learn(counts: &std::collections::BTreeMap<String, u64>) -> Result<Vec<(String, String)>> {
    let trainer = BpeTrainerBuilder::new()
        .vocab_size(LARGEST)
        .min_frequency(1)
        .show_progress(false)
        .end_of_word_suffix(END.to_owned())
        .build();
    let counts = counts
        .iter()
        .map(|(word, count)| (word.as_str().into(), *count))
        .collect();
    let mut model = BPE::default();
    trainer
        .do_train(&counts, &mut model)
        .map_err(Error::internal)?;
    let value = serde_json::to_value(&model)?;
    let merges = value["merges"].as_array().cloned().unwrap_or_default();
    let pair = |merge: &Value| match merge {
        Value::Array(pair) if pair.len() == 2 => {
            let part = |at: usize| pair[at].as_str().unwrap_or_default().to_owned();
            Some((part(0), part(1)))
        }
        Value::String(text) => {
            let (left, right) = text.split_once(' ')?;
            Some((left.to_owned(), right.to_owned()))
        }
        _ => None,
    };
    let pairs: Option<Vec<_>> = merges.iter().map(pair).collect();
    pairs.ok_or_else(|| Error::internal("the merges of a vocabulary cannot be read"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::text::Tokenizer;
    use std::fs;

    #[test]
    fn every_word_becomes_one_token_and_others_are_spelled() {
        let folder = tempfile::tempdir().unwrap();
        let texts = [
            "a large sessile polyp, smooth surface",
            "two small polyps with a smooth surface",
            "pedunculated polyp",
        ];
        let texts = texts.map(str::to_owned);
        let size = write(&texts, 24, folder.path()).unwrap();
        let tokenizer = Tokenizer::open(folder.path()).unwrap();
        assert_eq!(tokenizer.size(), size);
        let count = |text: &str| {
            let ids = tokenizer.encode(text).unwrap().ids;
            assert_eq!(ids.len(), 24);
            ids.iter().filter(|id| (**id as usize) < size - 2).count()
        };
        assert_eq!(count("Pedunculated polyps, two"), 4);
        assert_eq!(count("zzz"), 3);
        assert_eq!(count(""), 0);
        // The same words give the same files.
        let again = tempfile::tempdir().unwrap();
        write(&texts, 24, again.path()).unwrap();
        for name in ["vocab.json", "merges.txt"] {
            let read = |folder: &Path| fs::read(folder.join(name)).unwrap();
            assert_eq!(read(folder.path()), read(again.path()));
        }
    }
}
