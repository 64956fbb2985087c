//! Cuts a text into the words that are then spelled in byte pairs.
//!
//! The rules are those of `CLIPTokenizer` in transformers, as it runs without `ftfy`.
//! `CLIPTokenizerFast` has the same rules but for a few characters, where this follows the former:
//! controls and joiners (soft hyphen, zero-width space, the joints of composed emoji) are dropped,
//! Chinese characters stand alone, a final sigma has its own small form, and the special tokens
//! are known in capitals, too.

use diffaug::{Error, Result};
use tokenizers::{NormalizedString, utils::SysRegex};

/// Controls, joiners, private and unassigned characters, and the sign for broken text.
const UNWANTED: &str = r"[\p{C}\x{FFFD}&&[^\t\n\r]]+";

/// Special tokens, English endings, letters, single digits, and runs of everything else.
const WORD: &str =
    r"(?i:<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+";

/// The character that stands for each byte in a vocabulary: the byte's own where that is printed,
/// else one from 256 on.
const SYMBOLS: [char; 256] = symbols();

const fn symbols() -> [char; 256] {
    let mut symbols = ['\0'; 256];
    let mut next = 256u32;
    let mut byte = 0;
    while byte < 256 {
        let printed = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if printed { byte as u32 } else { next };
        next += !printed as u32;
        if let Some(symbol) = char::from_u32(code) {
            symbols[byte] = symbol;
        }
        byte += 1;
    }
    symbols
}

/// The rules, compiled.
#[derive(Debug)]
pub(super) struct Words {
    unwanted: SysRegex,
    word: SysRegex,
}

impl Words {
    pub(super) fn new() -> Result<Self> {
        let compiled = |pattern: &str| SysRegex::new(pattern).map_err(Error::internal);
        Ok(Words {
            unwanted: compiled(UNWANTED)?,
            word: compiled(WORD)?,
        })
    }

    /// The words of `text` in lower case, each byte of them as its symbol.
    pub(super) fn of(&self, text: &str) -> Vec<String> {
        let text = self.cleaned(text);
        let spans = self.word.find_iter(&text);
        spans.map(|(from, to)| spelled(&text[from..to])).collect()
    }

    /// `text` in composed lower case, with single spaces.
    fn cleaned(&self, text: &str) -> String {
        let mut kept = String::with_capacity(text.len());
        let mut from = 0;
        for (start, end) in self.unwanted.find_iter(text) {
            kept.push_str(&text[from..start]);
            from = end;
        }
        kept.push_str(&text[from..]);
        let mut composed = NormalizedString::from(spaced(&kept));
        let words = composed.nfc().get().split_whitespace();
        words.map(str::to_lowercase).collect::<Vec<_>>().join(" ")
    }
}

/// `text` with spaces around Chinese characters.
fn spaced(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match is_chinese(c) {
            true => out.extend([' ', c, ' ']),
            false => out.push(c),
        }
    }
    out
}

/// Whether `c` is in one of Unicode's blocks of unified or compatible ideographs.
fn is_chinese(c: char) -> bool {
    matches!(
        u32::from(c),
        0x3400..=0x4DBF
            | 0x4E00..=0x9FFF
            | 0xF900..=0xFAFF
            | 0x20000..=0x2A6DF
            | 0x2A700..=0x2CEAF
            | 0x2F800..=0x2FA1F
    )
}

/// The words of `texts`, as vocabularies spell them.
///
/// # Errors
/// Never for these rules.
pub(crate) fn words(texts: &[String]) -> Result<Vec<String>> {
    let rules = Words::new()?;
    Ok(texts.iter().flat_map(|text| rules.of(text)).collect())
}

/// The character that stands for `byte` in a vocabulary.
pub(crate) fn symbol(byte: u8) -> char {
    SYMBOLS[usize::from(byte)]
}

/// Each byte of `word` as its symbol.
fn spelled(word: &str) -> String {
    word.bytes()
        .map(|byte| SYMBOLS[usize::from(byte)])
        .collect()
}

/// The text that was [`spelled`]; what is no symbol is left out.
pub(super) fn read(symbols: &str) -> String {
    let byte = |c: char| SYMBOLS.iter().position(|&symbol| symbol == c);
    let bytes = symbols.chars().filter_map(byte).map(|byte| byte as u8);
    String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_symbol_of_its_own() {
        let distinct: std::collections::HashSet<char> = SYMBOLS.into();
        assert_eq!(distinct.len(), 256);
        assert!(
            SYMBOLS
                .iter()
                .all(|c| !c.is_whitespace() && !c.is_control())
        );
        assert_eq!((SYMBOLS[65], SYMBOLS[0], SYMBOLS[32]), ('A', 'Ā', 'Ġ'));
        assert_eq!(read(&spelled("naïve 息 🙂")), "naïve 息 🙂");
    }

    #[test]
    fn words_are_clean() {
        let words = |text: &str| -> Vec<String> {
            let words = Words::new().unwrap().of(text);
            words.iter().map(|word| read(word)).collect()
        };
        assert_eq!(
            words(" A\u{a0}Polyp,\r\nsoft\u{ad}ly "),
            ["a", "polyp", ",", "softly"]
        );
        assert_eq!(words("it's 12mm!?"), ["it", "'s", "1", "2", "mm", "!?"]);
        assert_eq!(words("cafe\u{301} ΟΔΟΣ"), ["café", "οδος"]);
        assert_eq!(words("polyp息肉"), ["polyp", "息", "肉"]);
        assert_eq!(words("<|EndOfText|>"), ["<|endoftext|>"]);
        assert!(words("\u{200b}\0\u{fffd} \t").is_empty());
    }
}
