//! What a hub says is not trusted: whatever may become a name on disk is checked here, and whatever
//! is shown is made plain.

use diffaug::Error;
use std::path::{Component, Path};

/// Bytes of the longest name of a blob.
const LONGEST_ETAG: usize = 128;
/// Bytes of the longest name of a file with its folders, and of each part of it.
const LONGEST_NAME: usize = 1024;
const LONGEST_PART: usize = 255;
/// Folders that a file of a model may lie in, one in another, and itself.
const DEEPEST: usize = 16;
/// Characters of the hub that a sentence repeats.
const SHOWN: usize = 200;
/// Endings of the files that lie beside blobs while they are fetched.
const RESERVED: [&str; 3] = [".part", ".lock", ".incomplete"];

/// A commit, 40 hexadecimal digits, in lower case.
pub(super) fn commit(text: &str) -> Option<String> {
    let is_commit = text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_commit.then(|| text.to_ascii_lowercase())
}

/// The name of a blob that a header `ETag` stands for: without quotes and the mark of a weak one.
pub(super) fn etag(text: &str) -> Option<String> {
    let text = text.strip_prefix("W/").unwrap_or(text);
    let quoted = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    let name = quoted.unwrap_or(text);
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let usable = (1..=LONGEST_ETAG).contains(&name.len())
        && name.bytes().all(plain)
        && !name.starts_with('.')
        && !RESERVED.iter().any(|end| name.ends_with(end));
    usable.then(|| name.to_owned())
}

/// Whether `name` is that of a file inside the folder of a model, wherever that lies.
pub(super) fn is_file_name(name: &str) -> bool {
    let part = |part: &str| {
        (1..=LONGEST_PART).contains(&part.len())
            && part != "."
            && part != ".."
            && !part.contains(|c: char| c == '\\' || is_odd(c))
    };
    let normal = |part: Component<'_>| matches!(part, Component::Normal(_));
    name.len() <= LONGEST_NAME
        && name.split('/').count() <= DEEPEST
        && name.split('/').all(part)
        && Path::new(name).components().all(normal)
}

/// Whether a terminal may do something else with `c` than show it: control characters, and those
/// that change the direction of the text.
fn is_odd(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns
}

/// `text` as it may be shown: odd characters escaped, what is too long cut.
pub(super) fn shown(text: &str) -> String {
    let mut plain = escaped(&text.chars().take(SHOWN).collect::<String>());
    if text.chars().nth(SHOWN).is_some() {
        plain.push('…');
    }
    plain
}

fn escaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match is_odd(c) {
            true => plain.extend(c.escape_default()),
            false => plain.push(c),
        }
    }
    plain
}

/// An error whose sentences may repeat a file of the hub, with its odd characters escaped.
pub(super) fn plain(mut error: Error) -> Error {
    error.message = escaped(&error.message).into();
    for cause in error.causes.iter_mut() {
        *cause = escaped(cause).into();
    }
    error
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_of_blobs_are_names_and_no_paths() {
        let long = "a".repeat(128);
        for (text, name) in [
            ("\"abc\"", "abc"),
            ("W/\"abc-1_2.3\"", "abc-1_2.3"),
            ("abc", "abc"),
            (&long, &long),
        ] {
            assert_eq!(etag(text).unwrap(), name);
        }
        let longer = "a".repeat(129);
        let refused = [
            "",
            "\"\"",
            ".",
            "..",
            "/etc/passwd",
            "\"../x\"",
            "a/b",
            "a\\b",
            ".hidden",
            "a b",
            "a\0",
            "a\n",
            "ä",
            "\"a",
            "x.part",
            "x.lock",
            "x.incomplete",
            "W/",
            &longer,
        ];
        for text in refused {
            assert_eq!(etag(text), None, "{text:?}");
        }
    }

    #[test]
    fn commits_are_forty_digits() {
        let text = "0123456789ABCDEF0123456789abcdef01234567";
        assert_eq!(commit(text).unwrap(), text.to_lowercase());
        for text in [
            "",
            "main",
            &text[1..],
            "../../../../../../../../../../../../../x",
            "/",
        ] {
            assert_eq!(commit(text), None);
        }
    }

    #[test]
    fn names_of_files_stay_in_their_folder() {
        for name in [
            "config.json",
            "unet/a b (1).json",
            "a/..b/c",
            ".gitattributes",
            "größe.txt",
        ] {
            assert!(is_file_name(name), "{name}");
        }
        let (long, deep) = ("a".repeat(256), "a/".repeat(16) + "a");
        let refused = [
            "",
            ".",
            "..",
            "/",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            "./a",
            "a\\b",
            "a\0b",
            "a\u{1b}[2Jb",
            "a\nb",
            "a\u{202e}b",
            &long,
            &deep,
        ];
        for name in refused {
            assert!(!is_file_name(name), "{name:?}");
        }
    }

    #[test]
    fn what_is_shown_cannot_steer_a_terminal() {
        assert_eq!(
            shown("a\u{1b}[2J\r\n\u{202e}ß"),
            "a\\u{1b}[2J\\r\\n\\u{202e}ß"
        );
        assert_eq!(shown(&"x".repeat(201)), "x".repeat(200) + "…");
        let error = plain(Error::model("a\u{7}").context("b\u{9b}"));
        assert_eq!(error.to_string(), "b\\u{9b}: a\\u{7}");
    }
}
