//! Tests of manifests that nobody would write by hand.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::manifest::Manifest;
use diffaug::mutate;
use std::fs;

/// A folder with the manifest `m.toml` of that text.
fn written(text: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.toml");
    fs::write(&path, text).unwrap();
    (dir, path)
}

/// What reading a manifest of that text says.
fn refused(text: impl AsRef<[u8]>) -> Failure {
    let (_dir, path) = written(text);
    Document::read(&path, &[]).err().unwrap()
}

#[test]
fn a_mark_in_front_of_a_text_is_passed_over() {
    let (_dir, path) = written("\u{feff}name = 1\nother = ?");
    let failure = Document::read(&path, &[]).err().unwrap();
    assert!(failure.place.unwrap().contains(":2:9"));
    let (_dir, path) = written("\u{feff}name = 1\n");
    let document = Document::read(&path, &[]).unwrap();
    assert_eq!(document.root["name"], 1);
}

#[test]
fn what_is_no_text_is_told() {
    let failure = refused(b"\xff\xfen\0a\0m\0e\0");
    assert!(failure.error.to_string().contains("no text in UTF-8"));
    let (_dir, path) = written(vec![b'#'; MOST_BYTES as usize + 1]);
    let error = Document::read(&path, &[]).err().unwrap().error.to_string();
    assert!(error.ends_with("it is larger than 4.0 MiB"), "{error}");
}

#[test]
fn tables_nest_so_deep_and_no_deeper() {
    let keys = |count| vec!["a"; count].join(".");
    let inline = |count| {
        format!(
            "v = {}1{}",
            "{a.a.a.a.a = ".repeat(count),
            "}".repeat(count)
        )
    };
    for text in [
        format!("{} = 1", keys(MOST_LEVELS + 1)),
        format!("[{}]\nb = 1", keys(79)),
        format!("v = {}{}", "[".repeat(60), "]".repeat(60)),
        format!("{} = {}", keys(70), inline(70).replacen("v = ", "", 1)),
        // The parser has bounds of its own.
        format!("v = {}", "[".repeat(200_000)),
        format!("{} = 1", keys(100_000)),
        inline(5_000),
        "[a.".repeat(50_000),
    ] {
        let failure = refused(&text);
        assert_eq!(failure.exit_code(), 1);
        let named = failure.error.to_string().contains("cannot read manifest");
        assert!(named || failure.place.is_some_and(|place| place.len() < 2_000));
    }
    let (_dir, path) = written(format!("{} = 1", keys(MOST_LEVELS)));
    Document::read(&path, &[]).unwrap();
}

#[test]
fn overrides_are_bounded_too() {
    let (_dir, path) = written("name = 1");
    let read = |set: String| {
        Document::read(&path, &[set])
            .err()
            .unwrap()
            .error
            .to_string()
    };
    let deep = read(format!("{}=1", vec!["a"; 30_000].join(".")));
    assert!(
        deep.contains("more than 32 tables") && deep.len() < 300,
        "{deep}"
    );
    let value = read(format!("a={}1{}", "[".repeat(50), "]".repeat(50)));
    assert!(value.contains("more than 32 tables"), "{value}");
    assert!(read("a..b=1".into()).contains("an empty key"));
}

#[test]
fn manifests_are_based_on_so_many_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = |index: usize| dir.path().join(format!("m{index}.toml"));
    for index in 0..MOST_BASES + 1 {
        fs::write(path(index), format!("base = \"m{}.toml\"", index + 1)).unwrap();
    }
    fs::write(path(MOST_BASES + 1), "name = 1").unwrap();
    let error = Document::read(&path(0), &[]).err().unwrap().error;
    assert!(
        error.message.starts_with("more than 32 manifests"),
        "{error}"
    );
    Document::read(&path(2), &[]).unwrap();
}

#[test]
fn many_values_take_no_long() {
    let lines = (0..60_000).map(|i| format!("k{i} = 1\n"));
    let text: String = lines.collect();
    let (_dir, path) = written(text);
    assert_eq!(Document::read(&path, &[]).unwrap().root.len(), 60_000);
}

#[test]
fn a_long_or_harmful_line_is_shown_in_part_and_escaped() {
    let long = format!("a = \"{}\" ? \"{}\"", "x".repeat(5_000), "y".repeat(5_000));
    let place = refused(long).place.unwrap();
    assert!(place.contains("| …") && place.ends_with('^'), "{place}");
    assert!(place.chars().count() < 800, "{place}");
    let place = refused("a = \"\u{9b}\u{202e}\" ?").place.unwrap();
    assert!(place.contains(r"\u{9b}\u{202e}"), "{place}");
    let lines: Vec<&str> = place.lines().collect();
    let caret = lines[3].find('^').unwrap();
    assert_eq!(lines[2].chars().nth(caret), Some('?'), "{place}");
}

/// A manifest with everything in it that text can hold.
const WHOLE: &str = r#"
name = "m"
seed = 7
libraries = ["a.so", { path = "b.so", sha256 = "0000000000000000000000000000000000000000000000000000000000000000" }]

[dataset]
use = "folder"
classes = { polyp = 1, "other one" = 255 }
root = """
data"""

[prompts]
use = 'medical'
[generator]
use = "paste"
nested.deep = [1, 2.5, -3e4, 0x1f, true, 1979-05-27T07:32:00Z, "\u00e9"]
[validator]
use = "iou"
[segmenter]
use = "unet"
[synthesis]
ratio = 1_0.5
"#;

#[test]
fn mutated_manifests_are_answered() {
    let whole = WHOLE.as_bytes();
    let (dir, path) = written(whole);
    Manifest::read(&path, &[]).map(drop).unwrap();
    mutate::each("manifest", &[whole.to_vec()], 1000, |text| {
        fs::write(&path, text).unwrap();
        let set = String::from_utf8_lossy(&text[..text.len().min(40)]).into_owned();
        for overrides in [Vec::new(), vec![set]] {
            if let Err(failure) = Manifest::read(&path, &overrides) {
                assert_eq!(failure.exit_code(), 1, "{}", failure.error);
            }
        }
    });
    drop(dir);
}
