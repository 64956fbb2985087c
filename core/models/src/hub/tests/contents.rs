//! What is fetched of models of other kinds, and what their files say.

use super::*;
use candle_core::DType;
use serde_json::json;
use server::tensors;
use std::collections::BTreeMap;

fn model(files: &[(&str, Vec<u8>)]) -> BTreeMap<String, Vec<u8>> {
    files
        .iter()
        .map(|(name, bytes)| ((*name).to_owned(), bytes.clone()))
        .collect()
}

#[test]
fn settings_of_a_model_come_with_it() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let hub = hub(&server, home.path());
    server.change(|shelf| {
        drop(
            shelf
                .files
                .insert("unet/diffaug.json".to_owned(), b"{}".to_vec()),
        )
    });
    let folder = fetch(&hub, "main").unwrap();
    for name in [
        "diffaug.json",
        "unet/diffaug.json",
        "tokenizer/added_tokens.json",
    ] {
        assert!(folder.join(name).is_file(), "{name}");
    }
}

#[test]
fn an_autoencoder_by_itself_is_fetched() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let hub = hub(&server, home.path());
    let weights = "diffusion_pytorch_model.safetensors";
    let files = [
        ("config.json", b"{}".to_vec()),
        (weights, tensors("v", DType::F32)),
        ("diffaug.json", b"{}".to_vec()),
        ("README.md", b"#".to_vec()),
        ("diffusion_pytorch_model.bin", b"x".to_vec()),
    ];
    server.change(|shelf| shelf.files = model(&files));
    let folder = hub.fetch(&id("main"), Wanted::Autoencoder).unwrap();
    assert_eq!(listing(&folder), ["config.json", "diffaug.json", weights]);
    server.asked();
    assert_eq!(hub.fetch(&id(COMMIT), Wanted::Autoencoder).unwrap(), folder);
    assert!(server.asked().is_empty());
    drop(server);
    assert_eq!(hub.fetch(&id("main"), Wanted::Autoencoder).unwrap(), folder);
    fs::remove_file(folder.join(weights)).unwrap();
    let error = hub
        .fetch(&id("main"), Wanted::Autoencoder)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("` has no `diffusion_pytorch_model.safetensors`"),
        "{error}"
    );
}

#[test]
fn an_adapter_that_was_trained_here_is_fetched() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let hub = hub(&server, home.path());
    let weights = "pytorch_lora_weights.safetensors";
    let shelf = |base: serde_json::Value| {
        let base = json!({"base": base, "variant": null})
            .to_string()
            .into_bytes();
        let files = [
            ("base.json", base),
            (weights, tensors("a", DType::F32)),
            ("diffaug.json", b"{}".to_vec()),
            ("README.md", b"#".to_vec()),
        ];
        server.change(|shelf| shelf.files = model(&files));
    };
    shelf(json!("org/model@v1"));
    let folder = fetch(&hub, "main").unwrap();
    assert_eq!(listing(&folder), ["base.json", "diffaug.json", weights]);
    server.asked();
    assert_eq!(fetch(&hub, COMMIT).unwrap(), folder);
    assert!(server.asked().is_empty());
    // Another machine's path would be one of this machine.
    for base in [
        json!("/etc/models"),
        json!("../x"),
        json!("./a/b"),
        json!(7),
        json!("a/b\u{1b}[2J"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let hub = Hub {
            cache: home.path().to_owned(),
            endpoint: hub.endpoint.clone(),
            token: None,
            ..hub
        };
        shelf(base.clone());
        let text = refusal(&hub);
        let shown = words::shown(&base.to_string());
        assert!(
            text.starts_with("`org/tiny` cannot be used: `base` in `"),
            "{text}"
        );
        assert!(
            text.ends_with(&format!(
                "base.json` is {shown}, expected a model of a hub, `org/name`"
            )),
            "{text}"
        );
    }
}

#[test]
fn an_empty_file_is_a_file() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let hub = hub(&server, home.path());
    server.change(|shelf| {
        drop(
            shelf
                .files
                .insert("tokenizer/merges.txt".to_owned(), Vec::new()),
        )
    });
    let folder = fetch(&hub, "main").unwrap();
    assert_eq!(fs::read(folder.join("tokenizer/merges.txt")).unwrap(), b"");
}

#[test]
fn files_that_say_what_a_terminal_would_do_are_shown_plain() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let hub = hub(&server, home.path());
    let class = "x\u{1b}[2J\u{7}\n";
    let index = json!({"_class_name": class}).to_string().into_bytes();
    server.change(|shelf| drop(shelf.files.insert("model_index.json".to_owned(), index)));
    let text = refusal(&hub);
    assert!(
        text.contains("describes a pipeline of class `x\\u{1b}[2J\\u{7}\\n`"),
        "{text}"
    );
    let list = "unet/diffusion_pytorch_model.safetensors.index.json";
    server.change(|shelf| {
        shelf.files = pipeline();
        let text = json!({"weight_map": {"a": "\u{1b}]0;x"}}).to_string();
        shelf.files.insert(list.to_owned(), text.into_bytes());
    });
    let home = tempfile::tempdir().unwrap();
    let text = refusal(&Hub {
        cache: home.path().to_owned(),
        ..hub
    });
    assert!(
        text.contains("expected a safetensors file beside it"),
        "{text}"
    );
}
