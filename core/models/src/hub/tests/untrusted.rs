//! Hubs that say what would become a path, or what is too large.

use super::{server::described, *};

#[test]
fn an_etag_that_is_a_path_never_becomes_a_file() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let victim = home.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let absolute = victim.to_str().unwrap().to_owned();
    let long = "a".repeat(500);
    for header in ["ETag", "X-Linked-Etag"] {
        for etag in [
            absolute.as_str(),
            "../../../../victim",
            "a/b",
            "a\\b",
            "..",
            ".",
            "",
            ".x",
            "x.part",
            "\u{7f}é",
            &long,
        ] {
            let (said, shown) = (etag.to_owned(), words::shown(etag));
            server.script(move |request, reply| {
                if request.asks(VAE) && reply.status == 302 {
                    reply.drop("X-Linked-Etag");
                    reply.set(header, format!("\"{said}\""));
                } else if request.path.starts_with("/cdn/") {
                    reply.drop("ETag");
                }
            });
            let text = refusal(&hub(&server, home.path()));
            // A control character in a header is no HTTP.
            let expected = format!(
                "the hub sends `{VAE}` of `org/tiny` with the ETag `\"{}`, which is no name for a file",
                words::shown(&format!("{shown}\""))
            );
            let odd = etag.contains('\u{7f}') && text.contains("cannot fetch");
            assert!(
                odd || etag == long || text == expected,
                "{text} instead of {expected}"
            );
        }
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert!(!place(home.path()).join("refs").exists());
    let beside: Vec<String> = listing(home.path())
        .into_iter()
        .filter(|name| !name.starts_with("hub/"))
        .collect();
    assert_eq!(beside, ["victim"]);
}

#[test]
fn another_commit_than_the_resolved_one_is_refused_in_every_answer() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let other = "f".repeat(40);
    for said in ["../../../x", "/tmp/x", "", "main", "\\", &other] {
        for asks in [true, false] {
            let commit = said.to_owned();
            server.script(move |request, reply| {
                let matches = if asks {
                    request.asks(VAE)
                } else {
                    request.loads(VAE)
                };
                if matches {
                    reply.set("x-repo-commit", commit.clone());
                }
            });
            let text = refusal(&hub(&server, home.path()));
            let expected = format!(
                "the hub sends `{VAE}` of `org/tiny` at `{said}`, expected the commit `{COMMIT}`"
            );
            assert_eq!(text, expected);
        }
    }
    for header in ["x-repo-commit", "ETag"] {
        server.script(move |request, reply| {
            if request.asks("model_index.json") || request.asks(VAE) {
                reply.drop(header);
                reply.drop("X-Linked-Etag");
            }
        });
        let home = tempfile::tempdir().unwrap();
        let text = refusal(&hub(&server, home.path()));
        assert!(
            text.contains(&format!("has no `{header}`, which a hub of models sends")),
            "{text}"
        );
    }
    // The etag of the bytes has to be that of the question.
    server.script(|request, reply| {
        if request.loads(VAE) {
            reply.set("X-Linked-Etag", "a".repeat(64));
        }
    });
    let text = refusal(&hub(&server, home.path()));
    assert_eq!(
        text,
        format!("the hub changed `{VAE}` of `org/tiny` while it was fetched")
    );
}

#[test]
fn a_description_with_paths_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    for name in [
        "../../x.json",
        "/etc/x",
        "unet/../../../x.safetensors",
        "a\\b",
        "a\u{1b}[2J",
    ] {
        server.script(move |request, reply| {
            if request.path.starts_with("/api") {
                reply.body = described(COMMIT, &["model_index.json", name]);
            }
        });
        let text = refusal(&hub(&server, home.path()));
        let expected = format!(
            "the hub lists a file `{}` of `org/tiny`, expected a name inside its folder",
            words::shown(name)
        );
        assert_eq!(text, expected);
    }
    for sha in ["../../x", "\u{1b}]0;x\u{7}"] {
        server.script(move |request, reply| {
            if request.path.starts_with("/api") {
                reply.body = described(sha, &[]);
            }
        });
        let text = refusal(&hub(&server, home.path()));
        assert_eq!(
            text,
            format!(
                "the hub says that `org/tiny` is at `{}`, expected a commit of 40 digits",
                words::shown(sha)
            )
        );
    }
    assert!(!home.path().join("hub").exists());
}

/// A list of shards is a file of the hub too.
#[test]
fn shards_that_are_no_names_or_too_many_are_refused() {
    let server = Server::start();
    let list = "unet/diffusion_pytorch_model.safetensors.index.json";
    let refused = |map: serde_json::Value| {
        server.change(|shelf| {
            let text = serde_json::json!({"weight_map": map}).to_string();
            shelf.files.insert(list.to_owned(), text.into_bytes());
        });
        let home = tempfile::tempdir().unwrap();
        refusal(&hub(&server, home.path()))
    };
    for name in [
        "../x.safetensors",
        "/x.safetensors",
        "a\\x.safetensors",
        "x\u{1b}[2J\0.safetensors",
    ] {
        let text = refused(serde_json::json!({"a": name}));
        assert!(
            text.contains("expected a safetensors file beside it"),
            "{text}"
        );
    }
    let many: serde_json::Map<_, _> = (0..1025)
        .map(|i| (i.to_string(), format!("{i}.safetensors").into()))
        .collect();
    let text = refused(many.into());
    assert!(
        text.contains("names 1025 files, expected at most 1024"),
        "{text}"
    );
}

#[test]
fn sizes_are_bounded() {
    let server = Server::start();
    let home = tempfile::tempdir().unwrap();
    let hub = hub(&server, home.path());
    for (file, header, largest) in [
        ("model_index.json", "Content-Range", 64u64 << 20),
        (VAE, "X-Linked-Size", 1 << 40),
    ] {
        for size in [largest + 1, u64::MAX] {
            server.script(move |request, reply| {
                if request.asks(file) && reply.status != 404 {
                    let range = if header == "Content-Range" {
                        "bytes 0-0/"
                    } else {
                        ""
                    };
                    reply.set(header, format!("{range}{size}"));
                }
            });
            let text = refusal(&hub);
            assert_eq!(
                text,
                format!("`{file}` of `org/tiny` has {size} bytes, expected at most {largest}")
            );
        }
        server.unscript();
    }
    // An answer that is longer than the hub said is not taken, nor read to its end.
    server.script(|request, reply| {
        if request.loads_large(VAE) {
            reply.raw = Some(b"HTTP/1.1 206 X\r\n\r\n0".to_vec());
            reply.endless = true;
        }
    });
    let text = refusal(&hub);
    let size = pipeline()[VAE].len();
    assert_eq!(
        text,
        format!(
            "`{VAE}` of `org/tiny` came broken: more than the {size} bytes came that the hub said that it has"
        )
    );
    server.script(|request, reply| {
        if request.loads("model_index.json") {
            reply.set("Content-Encoding", "gzip");
        }
    });
    let other = tempfile::tempdir().unwrap();
    let text = refusal(&Hub {
        cache: other.path().to_owned(),
        ..hub
    });
    assert_eq!(
        text,
        "the hub sends `model_index.json` of `org/tiny` compressed, which nobody asked for"
    );
}
