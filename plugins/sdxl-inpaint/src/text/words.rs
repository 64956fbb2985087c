//! Cuts a text into the words that are then spelled in byte pairs.
//!
//! The rules are those of the fast `CLIPTokenizer` in transformers, which diffusers uses: composed
//! characters (NFC), single spaces, lower case, then runs of letters, single digits and runs of
//! everything else. Scripts without spaces are one run; controls and joiners are kept.

use diffaug::{Error, Result};
use tokenizers::{NormalizedString, utils::SysRegex};

/// English endings, letters, single digits, and runs of everything else.
const WORD: &str = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+";

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
    word: SysRegex,
}

impl Words {
    pub(super) fn new() -> Result<Self> {
        let word = SysRegex::new(WORD).map_err(Error::internal)?;
        Ok(Words { word })
    }

    /// The words of a text that is [`cleaned`], each byte of them as its symbol.
    pub(super) fn of(&self, text: &str) -> Vec<String> {
        let spans = self.word.find_iter(text);
        spans.map(|(from, to)| spelled(&text[from..to])).collect()
    }
}

/// `text` in composed lower case, with single spaces.
pub(super) fn cleaned(text: &str) -> String {
    let mut composed = NormalizedString::from(text);
    let mut out = String::with_capacity(text.len());
    let mut spaced = false;
    for c in composed.nfc().get().chars() {
        match c.is_whitespace() {
            true if spaced => {}
            true => out.push(' '),
            // Letter by letter: a final sigma has no form of its own.
            false => out.extend(c.to_lowercase()),
        }
        spaced = c.is_whitespace();
    }
    out
}

/// The words of `texts`, as vocabularies spell them.
///
/// # Errors
/// Never for these rules.
pub(crate) fn words(texts: &[String]) -> Result<Vec<String>> {
    let rules = Words::new()?;
    Ok(texts
        .iter()
        .flat_map(|text| rules.of(&cleaned(text)))
        .collect())
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
            let words = Words::new().unwrap().of(&cleaned(text));
            words.iter().map(|word| read(word)).collect()
        };
        assert_eq!(
            words(" A\u{a0}Polyp,\r\nsoft\u{ad}ly "),
            ["a", "polyp", ",", "soft", "\u{ad}", "ly"]
        );
        assert_eq!(words("it's 12mm!?"), ["it", "'s", "1", "2", "mm", "!?"]);
        assert_eq!(words("cafe\u{301} ΟΔΟΣ"), ["café", "οδοσ"]);
        assert_eq!(words("polyp息肉、大腸"), ["polyp息肉", "、", "大腸"]);
        assert_eq!(words("<|EndOfText|>"), ["<|", "endoftext", "|>"]);
        assert_eq!(words("\u{200b}\0 \t"), ["\u{200b}\0"]);
    }
}
