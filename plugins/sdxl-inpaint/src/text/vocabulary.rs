//! The files of a tokenizer: `vocab.json` with `merges.txt`, or `tokenizer.json`, and beside them
//! `tokenizer_config.json` and `special_tokens_map.json`, which may be missing.

use super::words::cleaned;
use diffaug::{Error, ErrorKind, Result, ResultExt};
use diffaug_nn::weights::input;
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, HashMap},
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

/// The longest token, in bytes.
const LONGEST: usize = 4096;
/// Added tokens, at most: each is looked for at every place of a text.
const MOST_ADDED: usize = 10_000;

/// A text that is one token, and its id.
pub(super) type Whole = (String, u32);

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
    pub(super) whole: Vec<Whole>,
    /// The same of texts that are looked for when all is in lower case.
    pub(super) whole_cleaned: Vec<Whole>,
}

impl Vocabulary {
    /// Reads the tokenizer in `folder`.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let settings = Settings::read(folder)?;
        let mut pairs = Pairs::read(folder)?;
        // Of a token that is listed twice the settings tell.
        let added = pairs.added.drain(..).chain(settings.added);
        let mut whole: BTreeMap<String, Added> = BTreeMap::new();
        for (token, added) in added {
            whole.insert(token, added);
        }
        if whole.len() > MOST_ADDED {
            return Err(Error::model(format!(
                "the tokenizer in `{}` adds {} tokens, expected at most {MOST_ADDED}",
                folder.display(),
                whole.len()
            )));
        }
        let find = |token: &str| {
            let known = whole.get(token).map(|added| added.id);
            match known.or_else(|| pairs.vocab.get(token).copied()) {
                Some(id) => Ok((token.to_owned(), id)),
                None => Err(Error::model(format!(
                    "the vocabulary in `{}` has no token `{}`",
                    folder.display(),
                    token.escape_debug()
                ))),
            }
        };
        let pad = settings.pad.as_deref().unwrap_or(END);
        let special = [find(BEGIN)?, find(END)?, find(pad)?];
        let [begin, end, pad] = special.each_ref().map(|(_, id)| *id);
        for (token, id) in special {
            let cleaned = settings.cleaned.get(&token).copied().unwrap_or(false);
            whole.entry(token).or_insert(Added { id, cleaned });
        }
        whole.remove("");
        for (token, added) in &whole {
            pairs.vocab.entry(token.clone()).or_insert(added.id);
        }
        let chosen = |in_cleaned: bool| {
            let own = whole
                .iter()
                .filter(|(_, added)| added.cleaned == in_cleaned);
            let text = |token: &str| match in_cleaned {
                true => cleaned(token),
                false => token.to_owned(),
            };
            let mut own: Vec<Whole> = own.map(|(token, a)| (text(token), a.id)).collect();
            own.retain(|(token, _)| !token.is_empty());
            own.sort_by_key(|(token, _)| std::cmp::Reverse(token.len()));
            own
        };
        let (whole, whole_cleaned) = (chosen(false), chosen(true));
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
            whole_cleaned,
        })
    }
}

/// An added token.
#[derive(Clone, Copy, Debug)]
struct Added {
    id: u32,
    /// Whether it is looked for when the text is in lower case, and not before.
    cleaned: bool,
}

/// Tokens, and which of them become one.
struct Pairs {
    vocab: Vocab,
    merges: Merges,
    added: Vec<(String, Added)>,
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
        let text = input::read_text(merges, input::VOCABULARY_BYTES)
            .or_error(ErrorKind::Model, || {
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
                    "{} is `{}`, expected two tokens with a space between them",
                    place(),
                    shown(line)
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
            added: added.map(AddedToken::named).collect(),
        };
        for (index, merge) in model.merges.iter().enumerate() {
            let place = || format!("merge {index} in `{}`", path.display());
            let (left, right) = match merge {
                Merge::Pair(left, right) => (left.as_str(), right.as_str()),
                Merge::Line(line) => line.split_once(' ').ok_or_else(|| {
                    let line = shown(line);
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
        if result.len() > LONGEST {
            return Err(Error::model(format!(
                "{} makes a token of {} bytes, expected at most {LONGEST}",
                place(),
                result.len()
            )));
        }
        for token in [left, right, &result] {
            if !self.vocab.contains_key(token) {
                return Err(Error::model(format!(
                    "{} makes `{}` of `{}` and `{}`, but `{}` is not in the vocabulary",
                    place(),
                    shown(&result),
                    shown(left),
                    shown(right),
                    shown(token)
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

/// A text from a file as a message has it: its beginning, without control characters.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    input::read_json(path, input::VOCABULARY_BYTES).or_error(ErrorKind::Model, || {
        format!("cannot read `{}`", path.display())
    })
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
    #[serde(default)]
    normalized: bool,
}

impl AddedToken {
    fn named(self) -> (String, Added) {
        let (id, cleaned) = (self.id, self.normalized);
        (self.content, Added { id, cleaned })
    }
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
    added: Vec<(String, Added)>,
    /// Which special tokens are looked for in lower case.
    cleaned: HashMap<String, bool>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SettingsFile {
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    unk_token: Option<Token>,
    pad_token: Option<Token>,
    model_max_length: Option<f64>,
    added_tokens_decoder: Option<HashMap<u32, Token>>,
}

/// A token by its text alone or with properties.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Object {
        content: String,
        #[serde(default = "yes")]
        normalized: bool,
    },
}

fn yes() -> bool {
    true
}

impl Token {
    /// Its text, and whether it is looked for in lower case.
    fn parts(self) -> (String, bool) {
        match self {
            Token::Text(text) => (text, false),
            Token::Object {
                content,
                normalized,
            } => (content, normalized),
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
        let (first, second) = match config.added_tokens_decoder.is_some() {
            true => (&config, &map),
            false => (&map, &config),
        };
        // Of a text that is several special tokens the last one tells, as in transformers.
        let mut cleaned = HashMap::new();
        for of in [
            |file: &SettingsFile| file.bos_token.clone(),
            |file: &SettingsFile| file.eos_token.clone(),
            |file: &SettingsFile| file.unk_token.clone(),
            |file: &SettingsFile| file.pad_token.clone(),
        ] {
            cleaned.extend(of(first).or_else(|| of(second)).map(Token::parts));
        }
        let pad = first.pad_token.clone().or_else(|| second.pad_token.clone());
        let older: HashMap<String, u32> = optional(&folder.join("added_tokens.json"))?;
        let older = older.into_iter().map(|(token, id)| {
            let cleaned = false;
            (token, Added { id, cleaned })
        });
        let listed = config.added_tokens_decoder.unwrap_or_default().into_iter();
        let listed = listed.map(|(id, token)| {
            let (text, cleaned) = token.parts();
            (text, Added { id, cleaned })
        });
        Ok(Settings {
            pad: pad.map(|token| token.parts().0),
            length,
            added: older.chain(listed).collect(),
            cleaned,
        })
    }
}

/// What is in the file `path`, or nothing where there is none.
fn optional<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    match path.exists() {
        true => json(path),
        false => Ok(T::default()),
    }
}
