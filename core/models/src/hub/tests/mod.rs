//! Models fetched from a hub on the loopback, which behaves and which does not.

#![allow(clippy::unwrap_used)]

mod answers;
mod cached;
mod contents;
mod redirects;
mod server;
mod untrusted;

use super::*;
use crate::checkpoint::Checkpoint;
use server::{COMMIT, Server, VAE, pipeline, sha256};
use std::fs;

/// Patience for a server nearby that answers in its own time, and no pauses.
fn patience() -> Patience {
    Patience {
        pause: Duration::from_millis(1),
        longest_pause: Duration::from_secs(2),
        lock: Duration::from_millis(300),
        ..Patience::default()
    }
}

fn hub(server: &Server, home: &Path) -> Hub {
    Hub {
        endpoint: server.endpoint.clone(),
        cache: home.join("hub"),
        token: None,
        offline: false,
        patience: patience(),
    }
}

fn id(revision: &str) -> Id {
    Id::parse(&format!("org/tiny@{revision}")).unwrap()
}

/// Fetches the pipeline.
fn fetch(hub: &Hub, revision: &str) -> Result<PathBuf> {
    hub.fetch(&id(revision), Wanted::Pipeline(&OpenOptions::default()))
}

/// What fetching the pipeline is refused with.
#[track_caller]
fn refusal(hub: &Hub) -> String {
    let error = fetch(hub, "main").unwrap_err();
    assert!(!error.is_fault(), "{error}");
    let text = error.to_string();
    assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
    text
}

/// The folder of the model in the cache.
fn place(home: &Path) -> PathBuf {
    home.join("hub/models--org--tiny")
}

/// All files below `folder`, by their names in it.
fn listing(folder: &Path) -> Vec<String> {
    fn add(folder: &Path, prefix: &str, names: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{prefix}{}", path.file_name().unwrap().to_string_lossy());
            match path.is_dir() {
                true => add(&path, &format!("{name}/"), names),
                false => names.push(name),
            }
        }
    }
    let mut names = Vec::new();
    add(folder, "", &mut names);
    names.sort_unstable();
    names
}

#[test]
fn what_is_needed_is_fetched_once_and_found_without_the_hub() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let hub = hub(&server, home.path());
    let plain = OpenOptions::default();
    let folder = fetch(&hub, "main").unwrap();
    assert!(folder.ends_with(Path::new("snapshots").join(COMMIT)));
    let mut expected: Vec<String> = pipeline().into_keys().collect();
    expected.retain(|name| {
        !name.contains("fp16")
            && !name.contains(".bin")
            && !name.contains("safety")
            && !name.contains("empty")
    });
    assert_eq!(listing(&folder), expected);
    for name in expected {
        assert_eq!(
            fs::read(folder.join(&name)).unwrap(),
            pipeline()[&name],
            "{name}"
        );
    }
    let checkpoint = Checkpoint::open(&folder, &plain).unwrap();
    assert_eq!(checkpoint.unet.source().unwrap().names(), ["a", "b"]);

    // A branch may have moved, a commit cannot have.
    server.asked();
    assert_eq!(fetch(&hub, "main").unwrap(), folder);
    assert_eq!(server.paths(), ["/api/models/org/tiny/revision/main"]);
    assert_eq!(fetch(&hub, COMMIT).unwrap(), folder);
    assert_eq!(fetch(&hub, &COMMIT.to_uppercase()).unwrap(), folder);
    assert!(server.asked().is_empty());

    let half = OpenOptions {
        variant: Some("fp16".to_owned()),
        tokenizer: None,
    };
    let wanted = Wanted::Pipeline(&half);
    assert_eq!(hub.fetch(&id(COMMIT), wanted).unwrap(), folder);
    let asked = server.paths();
    let fetched = asked
        .iter()
        .filter(|path| path.starts_with("/org/tiny/resolve"));
    assert!(fetched.clone().count() > 0);
    assert!(
        fetched
            .clone()
            .all(|path| path.ends_with("unet/diffusion_pytorch_model.fp16.safetensors"))
    );

    drop(server);
    for revision in ["main", COMMIT] {
        assert_eq!(fetch(&hub, revision).unwrap(), folder);
    }
    let error = fetch(&hub, "other").unwrap_err().to_string();
    let sentence = "cannot reach the hub for `org/tiny@other`: give a folder, or download it elsewhere and set HF_HOME: ";
    assert!(error.starts_with(sentence), "{error}");
}

#[test]
fn the_cache_has_the_layout_of_the_other_clients() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let folder = fetch(&hub(&server, home.path()), "main").unwrap();
    let place = place(home.path());
    assert_eq!(fs::read_to_string(place.join("refs/main")).unwrap(), COMMIT);
    let etag = sha256(&pipeline()[VAE]);
    let link = fs::read_link(folder.join(VAE)).unwrap();
    assert_eq!(link, Path::new("../../../blobs").join(&etag));
    let link = fs::read_link(folder.join("model_index.json")).unwrap();
    let index = server::git(&pipeline()["model_index.json"]);
    assert_eq!(link, Path::new("../../blobs").join(index));
    // Nothing half done stays.
    let names = listing(&place);
    assert!(
        names
            .iter()
            .all(|name| !name.contains(".part") && !name.contains(".new")),
        "{names:?}"
    );

    // Another commit with the same files costs links.
    server.asked();
    let other = "f".repeat(40);
    let commit = other.clone();
    server.script(move |request, reply| {
        if request.path.starts_with("/api/") {
            let files = pipeline();
            reply.status = 200;
            reply.body = server::described(
                &commit,
                &files.keys().map(String::as_str).collect::<Vec<_>>(),
            );
        } else if let Some(name) = request.path.split(&format!("/resolve/{commit}/")).nth(1) {
            let file = &pipeline()[name];
            *reply = server::Reply::new(206)
                .with("x-repo-commit", commit.clone())
                .with("Content-Range", format!("bytes 0-0/{}", file.len()))
                .with(
                    "ETag",
                    match name.ends_with(".safetensors") {
                        true => sha256(file),
                        false => server::git(file),
                    },
                );
            reply.body = file[..1].to_vec();
        }
    });
    let hub = hub(&server, home.path());
    let moved = fetch(&hub, "main").unwrap();
    assert!(moved.ends_with(&other));
    assert!(
        server
            .asked()
            .iter()
            .all(|request| request.range.as_deref().unwrap_or("0-0") == "0-0")
    );
    assert_eq!(listing(&moved), listing(&folder));
    // The older one is still there, and the branch is at the new one.
    assert_eq!(fetch(&hub, COMMIT).unwrap(), folder);
    let found = hub.resolved(&id("main")).unwrap().unwrap();
    assert_eq!((found.folder, found.commit), (moved, other));
    assert_eq!(hub.resolved(&id(COMMIT)).unwrap().unwrap().commit, COMMIT);
    assert_eq!(hub.resolved(&id("v2")).unwrap(), None);
    assert_eq!(hub.resolved(&id(&"e".repeat(40))).unwrap(), None);
}

#[test]
fn a_refusal_is_one_sentence() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let mut hub = hub(&server, home.path());
    let error = fetch(&hub, "v9").unwrap_err().to_string();
    assert_eq!(error, "the hub has no revision `v9` of `org/tiny`");
    server.change(|shelf| shelf.token = Some("secret".to_owned()));
    let text = refusal(&hub);
    assert!(
        text.contains("refuses `org/tiny` (status 401): it is gated"),
        "{text}"
    );
    assert!(text.contains("set HF_TOKEN"), "{text}");
    hub.token = Some(Token::parse("secret", "HF_TOKEN").unwrap());
    server.change(|shelf| drop(shelf.files.remove("model_index.json")));
    let text = refusal(&hub);
    assert!(
        text.contains("has no `model_index.json`: it is no pipeline"),
        "{text}"
    );
    server.change(|shelf| {
        shelf.files = pipeline();
        shelf.files.remove(VAE);
    });
    let text = refusal(&hub);
    assert!(
        text.contains("`org/tiny` cannot be used: `vae` has no weights"),
        "{text}"
    );
    server.change(|shelf| shelf.token = None);
    let missing = "diffusion_pytorch_model-00002-of-00002.safetensors";
    server.change(|shelf| {
        shelf.files = pipeline();
        shelf.files.remove(&format!("unet/{missing}"));
    });
    let text = refusal(&hub);
    let expected = format!("`org/tiny` has no file `unet/{missing}` on the hub");
    assert_eq!(text, expected);
    hub.offline = true;
    server.asked();
    assert!(refusal(&hub).ends_with("HF_HUB_OFFLINE is set"));
    assert!(server.asked().is_empty());
}

#[test]
fn paths_and_names_are_told_apart() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().to_str().unwrap();
    assert_eq!(
        locate(folder, &OpenOptions::default()).unwrap(),
        place.path()
    );
    assert_eq!(resolved(folder).unwrap(), None);
    let model = |name: &str| match Name::parse(name).unwrap() {
        Name::Model(id) => (id.repo, id.revision),
        Name::Path(path) => panic!("{name} is the path {}", path.display()),
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(model("org/name-1.0"), pair("org/name-1.0", "main"));
    assert_eq!(model("org/name@refs/pr/1"), pair("org/name", "refs/pr/1"));
    assert_eq!(model(&format!("a/b@{COMMIT}")), pair("a/b", COMMIT));
    let long = format!("org/{}", "a".repeat(129));
    for name in [
        "name",
        "./name",
        "/org/name",
        "../name",
        "a/b/c",
        "org/x.safetensors",
        "org/",
        "a/b@",
        "a/b@../c",
        "C:\\a",
        "a b/c",
        "a/b@c\u{1b}[2J",
        &long,
    ] {
        let error = Name::parse(name).unwrap_err();
        assert_eq!(error.field, "weights");
        let expected = format!("no folder or file `{}`", words::shown(name));
        assert!(error.message.contains(&expected), "{error}");
    }
}
