//! The files of a tokenizer: `vocab.json` with `merges.txt`, or `tokenizer.json`, and beside them
//! `tokenizer_config.json` and `special_tokens_map.json`, which may be missing.

use diffaug::{Error, ErrorKind, Result, ResultExt};
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};
use tokenizers::models::bpe::{BPE, Merges, Vocab};

pub(super) const BEGIN: &str = "<|startoftext|>";
pub(super) const END: &str = "<|endoftext|>";

/// What ends a token that ends a word.
pub(super) const WORD_END: &str = "</w>";

/// Tokens of a text where the files do not say.
const LENGTH: usize = 77;

/// A length from here on means that nobody knew: transformers then writes 1e30.
const UNKNOWN_LENGTH: f64 = 1e6;

/// The reference reads the first line as a title, and no more merges than this.
const MERGES: usize = 49152 - 256 - 2;

/// What a tokenizer knows.
#[derive(Debug)]
pub(super) struct Vocabulary {
    pub(super) bpe: BPE,
    /// Opens every text.
    pub(super) begin: u32,
    /// Closes every text.
    pub(super) end: u32,
    /// Fills up short texts.
    pub(super) pad: u32,
    /// One more than the largest id.
    pub(super) size: usize,
    /// Tokens of a text, those three included.
    pub(super) length: usize,
    /// Texts that are one token each wherever they stand, the longest first.
    pub(super) whole: Vec<(String, u32)>,
}

impl Vocabulary {
    /// Reads the tokenizer in `folder`.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let settings = Settings::read(folder)?;
        let mut pairs = Pairs::read(folder)?;
        let added = settings.added.into_iter().chain(pairs.added.drain(..));
        let mut whole: BTreeMap<String, u32> = added.collect();
        let find = |token: &str| match whole.get(token).or_else(|| pairs.vocab.get(token)) {
            Some(&id) => Ok((token.to_owned(), id)),
            None => Err(Error::model(format!(
                "the vocabulary in `{}` has no token `{token}`",
                folder.display()
            ))),
        };
        let pad = settings.pad.as_deref().unwrap_or(END);
        let special = [find(BEGIN)?, find(END)?, find(pad)?];
        let [begin, end, pad] = special.each_ref().map(|(_, id)| *id);
        whole.extend(special);
        whole.remove("");
        for (token, id) in &whole {
            pairs.vocab.entry(token.clone()).or_insert(*id);
        }
        let mut whole: Vec<(String, u32)> = whole.into_iter().collect();
        whole.sort_by_key(|(token, _)| std::cmp::Reverse(token.len()));
        let largest = pairs.vocab.values().max();
        let size = largest.map_or(0, |&id| id as usize + 1);
        let bpe = BPE::builder()
            .vocab_and_merges(pairs.vocab, pairs.merges)
            .end_of_word_suffix(WORD_END.to_owned())
            .unk_token(END.to_owned())
            .cache_capacity(0);
        Ok(Vocabulary {
            bpe: bpe.build().map_err(Error::internal)?,
            begin,
            end,
            pad,
            size,
            length: settings.length,
            whole,
        })
    }
}

/// Tokens, and which of them become one.
struct Pairs {
    vocab: Vocab,
    merges: Merges,
    added: Vec<(String, u32)>,
}

impl Pairs {
    fn read(folder: &Path) -> Result<Self> {
        let [vocab, merges, whole] =
            ["vocab.json", "merges.txt", "tokenizer.json"].map(|name| folder.join(name));
        match (vocab.is_file(), merges.is_file(), whole.is_file()) {
            (true, true, _) => Pairs::of_two(&vocab, &merges),
            (_, _, true) => Pairs::of_one(&whole),
            (true, false, false) => Err(missing(folder, "`merges.txt` beside `vocab.json`")),
            (false, true, false) => Err(missing(folder, "`vocab.json` beside `merges.txt`")),
            (false, false, false) => Err(missing(
                folder,
                "tokenizer: expected `vocab.json` and `merges.txt`, or `tokenizer.json`",
            )),
        }
    }

    fn of_two(vocab: &Path, merges: &Path) -> Result<Self> {
        let text = fs::read_to_string(merges).or_error(ErrorKind::Model, || {
            format!("cannot read `{}`", merges.display())
        })?;
        let mut pairs = Pairs {
            vocab: json(vocab)?,
            merges: Vec::new(),
            added: Vec::new(),
        };
        for (index, line) in text.trim_end().lines().enumerate().skip(1).take(MERGES) {
            let place = || format!("line {} of `{}`", index + 1, merges.display());
            let mut parts = line.split_whitespace();
            let (Some(left), Some(right), None) = (parts.next(), parts.next(), parts.next()) else {
                return Err(Error::model(format!(
                    "{} is `{line}`, expected two tokens with a space between them",
                    place()
                )));
            };
            pairs.push(left, right, place)?;
        }
        Ok(pairs)
    }

    fn of_one(path: &Path) -> Result<Self> {
        let file: TokenizerFile = json(path)?;
        let model = file.model;
        if model.kind.is_some_and(|kind| kind != "BPE")
            || model.end_of_word_suffix.as_deref() != Some(WORD_END)
        {
            return Err(Error::unsupported(format!(
                "`{}` is not CLIP's: expected a model of type `BPE` with the `end_of_word_suffix` `{WORD_END}`",
                path.display()
            )));
        }
        let added = file.added_tokens.into_iter();
        let mut pairs = Pairs {
            vocab: model.vocab,
            merges: Vec::new(),
            added: added.map(|token| (token.content, token.id)).collect(),
        };
        for (index, merge) in model.merges.iter().enumerate() {
            let place = || format!("merge {index} in `{}`", path.display());
            let (left, right) = match merge {
                Merge::Pair(left, right) => (left.as_str(), right.as_str()),
                Merge::Line(line) => line.split_once(' ').ok_or_else(|| {
                    Error::model(format!("{} is `{line}`, expected two tokens", place()))
                })?,
            };
            pairs.push(left, right, place)?;
        }
        Ok(pairs)
    }

    /// Adds a merge, whose tokens and result have to be in the vocabulary.
    fn push(&mut self, left: &str, right: &str, place: impl Fn() -> String) -> Result<()> {
        let result = format!("{left}{right}");
        for token in [left, right, &result] {
            if !self.vocab.contains_key(token) {
                return Err(Error::model(format!(
                    "{} makes `{result}` of `{left}` and `{right}`, but `{token}` is not in the vocabulary",
                    place()
                )));
            }
        }
        self.merges.push((left.to_owned(), right.to_owned()));
        Ok(())
    }
}

fn missing(folder: &Path, what: &str) -> Error {
    Error::model(format!("`{}` has no {what}", folder.display()))
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let place = || format!("cannot read `{}`", path.display());
    let bytes = fs::read(path).or_error(ErrorKind::Model, place)?;
    serde_json::from_slice(&bytes).or_error(ErrorKind::Model, place)
}

#[derive(Deserialize)]
struct TokenizerFile {
    model: ModelPart,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct ModelPart {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Vocab,
    merges: Vec<Merge>,
    end_of_word_suffix: Option<String>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

/// What is said beside the vocabulary.
struct Settings {
    pad: Option<String>,
    length: usize,
    added: Vec<(String, u32)>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SettingsFile {
    pad_token: Option<Token>,
    model_max_length: Option<f64>,
    added_tokens_decoder: Option<HashMap<u32, Token>>,
}

/// A token by its text alone or with properties.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Object { content: String },
}

impl Token {
    fn text(self) -> String {
        match self {
            Token::Text(text) | Token::Object { content: text } => text,
        }
    }
}

impl Settings {
    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer_config.json");
        let config: SettingsFile = optional(&path)?;
        let map: SettingsFile = optional(&folder.join("special_tokens_map.json"))?;
        let length = match config.model_max_length {
            Some(length) if length < 2.0 => {
                return Err(Error::model(format!(
                    "`model_max_length` in `{}` is {length}, expected at least 2",
                    path.display()
                )));
            }
            Some(length) if length < UNKNOWN_LENGTH => length as usize,
            _ => LENGTH,
        };
        // Files that list their added tokens are of a later kind, in which the map is a copy.
        let pad = match config.added_tokens_decoder.is_some() {
            true => config.pad_token.or(map.pad_token),
            false => map.pad_token.or(config.pad_token),
        };
        let older: HashMap<String, u32> = optional(&folder.join("added_tokens.json"))?;
        let listed = config.added_tokens_decoder.unwrap_or_default().into_iter();
        Ok(Settings {
            pad: pad.map(Token::text),
            length,
            added: older
                .into_iter()
                .chain(listed.map(|(id, token)| (token.text(), id)))
                .collect(),
        })
    }
}

/// What is in the file `path`, or nothing where there is none.
fn optional<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    match path.is_file() {
        true => json(path),
        false => Ok(T::default()),
    }
}
