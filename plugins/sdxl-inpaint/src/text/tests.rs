//! Tokenizers and pairs of encoders against transformers and diffusers.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use super::*;
use candle_core::Device;
use diffaug_nn::{
    params::Params,
    testing::{Fixtures, close},
    weights,
};
use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/text")
        .join(name)
}

/// A text and what the reference makes of it, up to the token that ends it.
#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    /// With `!` for padding, where that is not the same.
    ids_2: Option<Vec<u32>>,
}

fn cases(name: &str) -> Vec<Case> {
    serde_json::from_slice(&fs::read(fixture(name)).unwrap()).unwrap()
}

fn agree(cases: &[Case], tokenizer: &Tokenizer, second: bool) {
    let pad = if second {
        0
    } else {
        tokenizer.size() as u32 - 1
    };
    for case in cases {
        let other = case.ids_2.as_ref().filter(|_| second);
        let mut ids = other.unwrap_or(&case.ids).clone();
        ids.resize(77, pad);
        let ours = tokenizer.encode(&case.text).unwrap();
        assert_eq!(ours.ids, ids, "`{}`", case.text);
    }
}

#[test]
fn ids_agree_with_the_reference_in_both_layouts() {
    let cases = cases("tiny.json");
    assert!(cases.len() > 30);
    agree(
        &cases,
        &Tokenizer::open(&fixture("tokenizer")).unwrap(),
        false,
    );
    agree(
        &cases,
        &Tokenizer::open(&fixture("tokenizer_2")).unwrap(),
        true,
    );
}

#[test]
fn ids_agree_with_the_reference_in_the_published_vocabulary() {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../shared/weights/clip-tokenizer"
    );
    let Ok(folder) = fs::canonicalize(folder) else {
        eprintln!("passed over: `{folder}` is not there");
        return;
    };
    let cases = cases("clip.json");
    assert!(cases.len() > 100);
    // Its `model_max_length` is 8192.
    let first = Tokenizer::open(&folder).unwrap();
    assert_eq!((first.length(), first.size()), (8192, 49408));
    agree(&cases, &first.limited(77), false);

    let copy = TempDir::new().unwrap();
    for name in ["vocab.json", "merges.txt"] {
        fs::copy(folder.join(name), copy.path().join(name)).unwrap();
    }
    fs::write(
        copy.path().join("special_tokens_map.json"),
        r#"{"pad_token": "!"}"#,
    )
    .unwrap();
    agree(&cases, &Tokenizer::open(copy.path()).unwrap(), true);
}

#[test]
fn what_did_not_fit_is_told() {
    let tokenizer = Tokenizer::open(&fixture("tokenizer")).unwrap();
    let cut = |text: &str| tokenizer.encode(text).unwrap().cut;
    assert_eq!(cut(&"polyp ".repeat(75)), None);
    let text = "polyp ".repeat(75) + "Smooth, SESSILE é";
    assert_eq!(cut(&text).unwrap(), "smooth , sessile é");
    // The last token that fits is the first half of a character.
    let text = "polyp ".repeat(74) + "é smooth";
    assert_eq!(cut(&text).unwrap(), "smooth");
}

/// The small tokenizer with some files changed; `None` removes one.
fn changed(from: &str, files: &[(&str, Option<&str>)]) -> Result<Tokenizer> {
    let folder = TempDir::new().unwrap();
    for entry in fs::read_dir(fixture(from)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    for (name, text) in files {
        match text {
            Some(text) => fs::write(folder.path().join(name), text).unwrap(),
            None => fs::remove_file(folder.path().join(name)).unwrap(),
        }
    }
    Tokenizer::open(folder.path())
}

#[test]
fn hostile_files_are_refused_with_a_sentence() {
    let refused = |name: &str, text: &str| {
        let error = changed("tokenizer", &[(name, Some(text))])
            .unwrap_err()
            .to_string();
        assert!(error.len() < 2000 && !error.contains('\u{1b}'), "{error}");
        error
    };
    let deep = format!("{{\"pad_token\": {}", "[".repeat(200_000));
    let text = refused("tokenizer_config.json", &deep);
    assert!(text.contains("recursion limit exceeded"), "{text}");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n";
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
        assert!(
            refused(name, pointer).contains("it is a git-lfs pointer"),
            "{name}"
        );
    }
    let long = format!("#\n{} b\n", "a".repeat(5000));
    assert!(refused("merges.txt", &long).contains("a token of 5001 bytes, expected at most 4096"));
    assert!(refused("merges.txt", "#\n\u{1b}[31m\n").contains("expected two tokens"));
    let many: Vec<String> = (0..10_001).map(|i| format!("\"t{i}\": {i}")).collect();
    let many = format!("{{{}}}", many.join(","));
    assert!(refused("added_tokens.json", &many).contains("tokens, expected at most 10000"));
}

#[test]
fn mutated_tokenizers_are_answered() {
    let folder = TempDir::new().unwrap();
    for (from, name, count) in [
        ("tokenizer", "vocab.json", 150),
        ("tokenizer", "merges.txt", 300),
        ("tokenizer", "tokenizer_config.json", 300),
        ("tokenizer_2", "tokenizer.json", 150),
    ] {
        let own = folder.path().join(name);
        fs::create_dir(&own).unwrap();
        for entry in fs::read_dir(fixture(from)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), own.join(entry.file_name())).unwrap();
        }
        let seed = fs::read(own.join(name)).unwrap();
        diffaug::mutate::each(name, &[seed], count, |bytes| {
            fs::write(own.join(name), bytes).unwrap();
            if let Ok(tokenizer) = Tokenizer::open(&own) {
                tokenizer
                    .encode("a Sessile polyp, 12 mm! <|endoftext|> é")
                    .unwrap();
            }
        });
    }
}

#[test]
fn padding_and_length_are_found_wherever_they_are_written() {
    let padded = |files: &[(&str, Option<&str>)]| {
        let tokenizer = changed("tokenizer", files).unwrap();
        (tokenizer.length(), tokenizer.encode("").unwrap().ids[2])
    };
    let (config, map) = ("tokenizer_config.json", "special_tokens_map.json");
    assert_eq!(padded(&[]), (77, 529));
    assert_eq!(padded(&[(config, None), (map, None)]), (77, 529));
    let object = r#"{"pad_token": {"content": "!", "lstrip": false}}"#;
    assert_eq!(padded(&[(config, None), (map, Some(object))]), (77, 0));
    let text = r#"{"pad_token": "\"", "model_max_length": 9}"#;
    assert_eq!(padded(&[(config, Some(text)), (map, None)]), (9, 1));
    assert_eq!(padded(&[(config, Some(text)), (map, Some(object))]), (9, 0));
    let later = r#"{"pad_token": "\"", "added_tokens_decoder": {"2": {"content": "%"}}}"#;
    assert_eq!(
        padded(&[(config, Some(later)), (map, Some(object))]),
        (77, 1)
    );
    let unknown = r#"{"model_max_length": 1000000000000000019884624838656, "pad_token": null}"#;
    assert_eq!(
        padded(&[(config, Some(unknown)), (map, Some("{}"))]),
        (77, 529)
    );
}

#[test]
fn added_tokens_are_one_token_each() {
    let listed = r#"{"added_tokens_decoder": {"530": {"content": "<Lesion>"}}}"#;
    let older = r#"{"<Lesion>": 530}"#;
    for (name, text) in [
        ("tokenizer_config.json", listed),
        ("added_tokens.json", older),
    ] {
        let tokenizer = changed("tokenizer", &[(name, Some(text))]).unwrap();
        let ids = tokenizer.encode("polyp<Lesion> polyp").unwrap().ids;
        assert_eq!(ids[..5], [528, 515, 530, 515, 529]);
        assert_eq!(tokenizer.size(), 531);
    }
}

#[test]
fn broken_tokenizers_are_refused_with_a_sentence() {
    let error =
        |from: &str, files: &[(&str, Option<&str>)]| changed(from, files).unwrap_err().to_string();
    let message = error("tokenizer", &[("merges.txt", None)]);
    assert!(
        message.contains("has no `merges.txt` beside `vocab.json`"),
        "{message}"
    );
    let message = error("tokenizer", &[("vocab.json", None)]);
    assert!(
        message.contains("has no `vocab.json` beside `merges.txt`"),
        "{message}"
    );
    let message = error("tokenizer_2", &[("tokenizer.json", None)]);
    assert!(
        message.contains("has no tokenizer: expected `vocab.json` and"),
        "{message}"
    );

    let message = error("tokenizer", &[("vocab.json", Some(r#"{"p": 0, "#))]);
    assert!(
        message.contains("vocab.json`: at `p`: EOF while"),
        "{message}"
    );
    let vocab = r#"{"p": 0, "o": 1, "po": 2, "<|startoftext|>": 3}"#;
    let files = [
        ("vocab.json", Some(vocab)),
        ("merges.txt", Some("#\np o\n")),
        ("tokenizer_config.json", None),
    ];
    assert!(error("tokenizer", &files).contains("has no token `<|endoftext|>`"));
    let map = r#"{"pad_token": "[PAD]"}"#;
    let files = [
        ("tokenizer_config.json", None),
        ("special_tokens_map.json", Some(map)),
    ];
    assert!(error("tokenizer", &files).contains("has no token `[PAD]`"));

    let message = error(
        "tokenizer",
        &[("merges.txt", Some("#version: 0.2\np o\npoly\n"))],
    );
    assert!(
        message.contains("line 3 of `") && message.contains("is `poly`, expected two"),
        "{message}"
    );
    let message = error("tokenizer", &[("merges.txt", Some("#version: 0.2\np q\n"))]);
    let said = "makes `pq` of `p` and `q`, but `pq` is not in the vocabulary";
    assert!(
        message.contains("line 2 of `") && message.contains(said),
        "{message}"
    );

    let tokenizer = fs::read_to_string(fixture("tokenizer_2/tokenizer.json")).unwrap();
    let broken = tokenizer.replace(r#"["l","y"]"#, r#""l yy""#);
    let message = error("tokenizer_2", &[("tokenizer.json", Some(&broken))]);
    assert!(
        message.contains("merge 1 in `") && message.contains("makes `lyy`"),
        "{message}"
    );
    let other = tokenizer.replace(r#""type":"BPE""#, r#""type":"Unigram""#);
    let message = error("tokenizer_2", &[("tokenizer.json", Some(&other))]);
    assert!(message.contains("is not CLIP's"), "{message}");

    let short = r#"{"model_max_length": 1}"#;
    let message = error("tokenizer", &[("tokenizer_config.json", Some(short))]);
    assert!(
        message.contains("`model_max_length` in `") && message.contains("is 1,"),
        "{message}"
    );
}

fn encoder(tokenizer: &str, folder: &str) -> TextEncoder {
    let config = fs::read(fixture(folder).join("config.json")).unwrap();
    let tensors = weights::read(&fixture(folder).join("model.safetensors")).unwrap();
    let mut params = Params::frozen(&Device::Cpu, tensors);
    let config = serde_json::from_slice(&config).unwrap();
    let clip = ClipText::new(params.root(), &config).unwrap();
    TextEncoder::new(Tokenizer::open(&fixture(tokenizer)).unwrap(), clip).unwrap()
}

fn first() -> TextEncoder {
    encoder("tokenizer", "text_encoder")
}

fn second() -> TextEncoder {
    encoder("tokenizer_2", "text_encoder_2")
}

/// Asserts that no value differs by more than 1e-4 of the standard deviation.
fn near(ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.dims(), theirs.dims());
    let scalar = |t: candle_core::Result<Tensor>| t.unwrap().to_scalar::<f32>().unwrap();
    let flat = theirs.flatten_all().unwrap();
    let deviation = scalar(flat.var(0)).sqrt();
    let largest = scalar((ours - theirs).unwrap().abs().unwrap().max_all());
    assert!(
        largest <= 1e-4 * deviation,
        "off by {largest}, deviation {deviation}"
    );
}

#[test]
fn prompts_become_what_the_pipelines_of_diffusers_make_of_them() {
    let expected = Fixtures::open(fixture("expected.safetensors"));
    let prompts = fs::read(fixture("prompts.json")).unwrap();
    let prompts: Vec<String> = serde_json::from_slice(&prompts).unwrap();
    let both = TextEncoders::new(first(), Some(second())).unwrap();
    let alone = TextEncoders::new(first(), None).unwrap();
    for (i, prompt) in prompts.iter().enumerate() {
        let case = format!("prompt.{i}");
        let ours = both.encode(prompt).unwrap();
        near(&ours.context, expected.get(&case, "context"));
        near(&ours.pooled.unwrap(), expected.get(&case, "pooled"));
        let ours = alone.encode(prompt).unwrap();
        near(&ours.context, expected.get(&case, "alone"));
        assert!(ours.pooled.is_none());
    }
    let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let batch = both.forward(&texts).unwrap();
    for (i, prompt) in prompts.iter().enumerate() {
        let one = both.encode(prompt).unwrap();
        close(&batch.context.narrow(0, i, 1).unwrap(), &one.context, 0.0);
        close(
            &batch.pooled.as_ref().unwrap().narrow(0, i, 1).unwrap(),
            &one.pooled.unwrap(),
            0.0,
        );
    }
}

#[test]
fn no_text_is_zeros_of_the_same_shape() {
    for second in [Some(second()), None] {
        let encoders = TextEncoders::new(first(), second).unwrap();
        let (zeros, some) = (encoders.zeros().unwrap(), encoders.encode("polyp").unwrap());
        close(&zeros.context, &some.context.zeros_like().unwrap(), 0.0);
        assert_eq!(zeros.context.dtype(), some.context.dtype());
        assert_eq!(zeros.pooled.is_some(), some.pooled.is_some());
        if let (Some(zeros), Some(some)) = (zeros.pooled, some.pooled) {
            close(&zeros, &some.zeros_like().unwrap(), 0.0);
        }
    }
}

#[test]
fn the_last_texts_are_remembered_and_no_more() {
    let encoders = TextEncoders::new(first(), Some(second())).unwrap();
    let id = |text: &str| encoders.encode(text).unwrap().context.id();
    let (kept, lost) = (id("kept"), id("lost"));
    for i in 2..Memory::TEXTS {
        id(&i.to_string());
    }
    assert_eq!(id("kept"), kept);
    id("one more");
    assert_eq!(encoders.memory().texts.len(), Memory::TEXTS);
    assert_eq!(id("kept"), kept);
    assert_ne!(id("lost"), lost);
}

/// Collects what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl tracing::field::Visit for Log {
    fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0.lock().unwrap().push(format!("{value:?}"));
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_text_that_is_too_long_is_told_of_once() {
    let encoders = TextEncoders::new(first(), Some(second())).unwrap();
    let text = "polyp ".repeat(75) + "smooth";
    let log = Log::default();
    tracing::subscriber::with_default(log.clone(), || {
        encoders.encode("polyp").unwrap();
        encoders.encode(&text).unwrap();
        encoders.encode(&text).unwrap();
        encoders.forward(&[&text, &text]).unwrap();
    });
    let told = log.0.lock().unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("longer than 77 tokens, and `smooth` is left out"),
        "{told:?}"
    );
}

#[test]
fn encoders_that_do_not_fit_are_refused() {
    let error = TextEncoders::new(second(), Some(first()))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no projection, expected a `CLIPTextModelWithProjection`"),
        "{error}"
    );

    let mut short = second();
    short.tokenizer = short.tokenizer.limited(50);
    let error = TextEncoders::new(first(), Some(short))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("reads 77 tokens and the second 50"),
        "{error}"
    );

    let listed = r#"{"added_tokens_decoder": {"530": {"content": "<Lesion>"}}}"#;
    let larger = changed("tokenizer", &[("tokenizer_config.json", Some(listed))]).unwrap();
    let error = TextEncoder::new(larger, first().clip)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("ids up to 530, but the text encoder's `vocab_size` is 530"),
        "{error}"
    );
}
