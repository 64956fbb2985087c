//! Text of others on its way to a terminal: names of files, values of manifests, words of plugins.
//!
//! A terminal obeys control characters: it moves its cursor, changes its title, answers as if the
//! user had typed. They are shown as they are written in source code (`\u{1b}`), and so are those
//! that turn the direction of writing and let a text look like another one.

use std::{borrow::Cow, fmt::Write};

/// Whether a terminal does something else with `c` than to show it.
fn obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// `text` with what `harmful` says of it written by `show`.
fn replaced(
    text: &str,
    harmful: impl Fn(char) -> bool,
    show: impl Fn(&mut String, char),
) -> Cow<'_, str> {
    if !text.contains(&harmful) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match harmful(c) {
            true => show(&mut out, c),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn as_source(out: &mut String, c: char) {
    match c {
        '\n' | '\r' | '\t' => out.extend(c.escape_default()),
        other => out.extend(other.escape_unicode()),
    }
}

/// A name or a value within a line.
pub fn line(text: &str) -> Cow<'_, str> {
    replaced(text, obeyed, as_source)
}

/// Lines of ours, in which each value is within its line.
pub fn text(text: &str) -> Cow<'_, str> {
    replaced(text, |c| obeyed(c) && !"\n\t".contains(c), as_source)
}

/// A sentence. A line that follows is indented, so that it cannot be taken for another message.
pub fn sentence(sentence: &str) -> Cow<'_, str> {
    replaced(
        sentence,
        |c| obeyed(c) && c != '\t',
        |out, c| match c {
            '\n' => out.push_str("\n  "),
            other => as_source(out, other),
        },
    )
}

/// JSON: those characters that may stand in a string of it as they are.
pub fn json(json: &str) -> Cow<'_, str> {
    replaced(
        json,
        |c| obeyed(c) && c != '\n',
        |out, c| {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                // Writing to a string does not fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        },
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Title of a window, a bell, C1 as one character, a carriage return, a turned direction, a tag.
    const HARMFUL: &str = "a\u{1b}]0;x\u{7}b\u{9b}2Jc\rd\u{202e}e\u{7f}\u{e0041}";

    #[test]
    fn what_a_terminal_obeys_is_shown_instead() {
        let shown = r"a\u{1b}]0;x\u{7}b\u{9b}2Jc\rd\u{202e}e\u{7f}\u{e0041}";
        assert_eq!(line(HARMFUL), shown);
        assert_eq!(text(HARMFUL), shown);
        assert_eq!(sentence(HARMFUL), shown);
        assert_eq!(line("a\nb\tc"), r"a\nb\tc");
        assert_eq!(text("a\nb\tc"), "a\nb\tc");
        assert_eq!(sentence("a\nerror: b"), "a\n  error: b");
    }

    #[test]
    fn other_text_stays_as_it_is() {
        for plain in ["größer", "病変", "👩\u{200d}⚕️", "נגע", ""] {
            assert!(matches!(line(plain), Cow::Borrowed(_)), "{plain}");
            assert!(matches!(json(plain), Cow::Borrowed(_)), "{plain}");
        }
    }

    #[test]
    fn json_keeps_its_value() {
        let text = serde_json::to_string(HARMFUL).unwrap();
        let shown = json(&text);
        assert!(!shown.chars().any(obeyed), "{shown}");
        let back: String = serde_json::from_str(&shown).unwrap();
        assert_eq!(back, HARMFUL);
    }
}
