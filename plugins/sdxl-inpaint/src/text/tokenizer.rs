//! From texts to the ids that CLIP's text encoders read.

use super::{
    vocabulary::{Vocabulary, WORD_END, Whole},
    words::{self, Words, cleaned},
};
use diffaug::{Error, Result};
use std::path::Path;
use tokenizers::Model;

/// CLIP's byte-level tokenizer; equal to the fast `CLIPTokenizer` in transformers.
#[derive(Debug)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    words: Words,
    length: usize,
}

/// A text as ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// As many as the tokenizer's [length](Tokenizer::length): begin, text, end, padding.
    pub ids: Vec<u32>,
    /// The end of the text, in lower case, where it did not fit.
    pub cut: Option<String>,
}

impl Tokenizer {
    /// Reads `vocab.json` and `merges.txt`, or `tokenizer.json`, in `folder`. The padding token and
    /// the length come from `special_tokens_map.json` and `tokenizer_config.json`; without these a
    /// text has 77 tokens and is padded with the one that ends it.
    ///
    /// # Errors
    /// Naming the file that is missing or broken, the merge that does not fit the vocabulary, or
    /// the special token that is not in it.
    pub fn open(folder: &Path) -> Result<Self> {
        let vocabulary = Vocabulary::read(folder)?;
        Ok(Tokenizer {
            length: vocabulary.length,
            words: Words::new()?,
            vocabulary,
        })
    }

    /// Makes texts no longer than `length` tokens (at least 2).
    #[must_use]
    pub fn limited(mut self, length: usize) -> Self {
        self.length = self.length.min(length.max(2));
        self
    }

    /// Tokens of every text.
    pub fn length(&self) -> usize {
        self.length
    }

    /// One more than the largest id.
    pub fn size(&self) -> usize {
        self.vocabulary.size
    }

    /// The ids of `text`.
    ///
    /// # Errors
    /// None that a text could cause.
    pub fn encode(&self, text: &str) -> Result<Tokens> {
        let mut ids = vec![self.vocabulary.begin];
        // Some tokens are looked for in the text as it is, the others when it is in lower case.
        for part in split(text, &self.vocabulary.whole) {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(text) => {
                    for part in split(&cleaned(text), &self.vocabulary.whole_cleaned) {
                        match part {
                            Part::Token(id) => ids.push(id),
                            Part::Text(text) => self.spell(text, &mut ids)?,
                        }
                    }
                }
            }
        }
        let kept = self.length - 1;
        let cut = (ids.len() > kept).then(|| self.read(&ids[kept..]));
        ids.truncate(kept);
        ids.push(self.vocabulary.end);
        ids.resize(self.length, self.vocabulary.pad);
        Ok(Tokens { ids, cut })
    }

    /// Appends the byte pairs of the words in `text`.
    fn spell(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        for word in self.words.of(text) {
            let pairs = self.vocabulary.bpe.tokenize(&word);
            let pairs = pairs.map_err(Error::internal)?;
            ids.extend(pairs.iter().map(|pair| pair.id));
        }
        Ok(())
    }

    /// The text that `ids` stand for, without the rest of a character that was cut in two.
    fn read(&self, ids: &[u32]) -> String {
        let tokens = ids.iter().map(|&id| self.vocabulary.bpe.id_to_token(id));
        let text = words::read(&tokens.flatten().collect::<String>());
        let text = text.trim_start_matches(char::REPLACEMENT_CHARACTER);
        text.replace(WORD_END, " ").trim().to_owned()
    }
}

/// A part of a text.
enum Part<'a> {
    /// One token.
    Token(u32),
    /// No token in one piece.
    Text(&'a str),
}

/// Cuts `text` at the texts of `whole`, the longest of which come first.
fn split<'a>(text: &'a str, whole: &[Whole]) -> Vec<Part<'a>> {
    let (mut parts, mut from) = (Vec::new(), 0);
    let mut at = 0;
    while let Some(next) = text[at..].chars().next() {
        match whole
            .iter()
            .find(|(token, _)| text[at..].starts_with(token.as_str()))
        {
            Some((token, id)) => {
                parts.extend([Part::Text(&text[from..at]), Part::Token(*id)]);
                at += token.len();
                from = at;
            }
            None => at += next.len_utf8(),
        }
    }
    parts.push(Part::Text(&text[from..]));
    parts
}
