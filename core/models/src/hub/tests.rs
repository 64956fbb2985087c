#![allow(clippy::unwrap_used)]

use super::*;
use crate::checkpoint::Checkpoint;
use candle_core::{DType, Tensor};
use diffaug_nn::weights::save_tensors;
use hf_hub::Cache;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has and how it behaves.
#[derive(Default)]
struct Shelf {
    files: HashMap<String, Vec<u8>>,
    /// The word without which no file is given out; the model is described to everybody.
    token: Option<String>,
    /// A file of which the last byte is withheld.
    short: Option<String>,
    /// Paths that were asked for.
    asked: Vec<String>,
    closed: bool,
}

/// A hub on the loopback, with one model `org/tiny` whose branch `main` is at [`COMMIT`]. As the
/// real one it sends the readers of large files elsewhere.
struct Server {
    endpoint: String,
    shelf: Arc<Mutex<Shelf>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shelf = Arc::new(Mutex::new(Shelf {
            files: pipeline(),
            ..Shelf::default()
        }));
        let (own, root) = (shelf.clone(), endpoint.clone());
        let serve = move || {
            for stream in listener.incoming() {
                let mut shelf = own.lock().unwrap();
                if shelf.closed {
                    break;
                }
                // A client that goes away is its own business.
                answer(&mut shelf, &root, stream.unwrap()).ok();
            }
        };
        Server {
            endpoint,
            shelf,
            thread: Some(std::thread::spawn(serve)),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Shelf)) {
        change(&mut self.shelf.lock().unwrap());
    }

    /// What was asked for since the last call.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shelf.lock().unwrap().asked)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.change(|shelf| shelf.closed = true);
        TcpStream::connect(self.endpoint.trim_start_matches("http://")).ok();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn answer(shelf: &mut Shelf, root: &str, stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(&stream).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    let (mut from, mut token) = (None, None);
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        match name.to_lowercase().as_str() {
            "range" => {
                from = value
                    .trim_start_matches("bytes=")
                    .split('-')
                    .next()
                    .map(str::to_owned)
            }
            "authorization" => token = value.strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
        if value == "bytes=0-0" {
            from = Some("head".to_owned());
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    shelf.asked.push(path.clone());
    let (status, headers, body) = respond(shelf, root, &path, from.as_deref(), token);
    let mut out = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n",
        body.len()
    );
    for (name, value) in headers {
        out += &format!("{name}: {value}\r\n");
    }
    let mut stream = stream;
    stream.write_all(out.as_bytes())?;
    stream.write_all(b"\r\n")?;
    stream.write_all(&body)
}

type Response = (&'static str, Vec<(&'static str, String)>, Vec<u8>);

fn respond(
    shelf: &Shelf,
    root: &str,
    path: &str,
    from: Option<&str>,
    token: Option<String>,
) -> Response {
    let none = |status| (status, Vec::new(), Vec::new());
    if let Some(revision) = path.strip_prefix("/api/models/org/tiny/revision/") {
        if revision != "main" && revision != COMMIT {
            return none("404 Not Found");
        }
        let files: Vec<Value> = shelf
            .files
            .keys()
            .map(|name| json!({"rfilename": name}))
            .collect();
        let info = json!({"sha": COMMIT, "siblings": files});
        return ("200 OK", Vec::new(), info.to_string().into_bytes());
    }
    if shelf.token.is_some() && shelf.token != token {
        return none("401 Unauthorized");
    }
    let resolve = format!("/org/tiny/resolve/{COMMIT}/");
    let (name, elsewhere) = match path.strip_prefix("/cdn/") {
        Some(name) => (name, true),
        None => (path.strip_prefix(&resolve).unwrap_or_default(), false),
    };
    let Some(file) = shelf.files.get(name) else {
        return none("404 Not Found");
    };
    let mut headers = vec![
        ("ETag", format!("\"{}\"", name.replace('/', "-"))),
        ("x-repo-commit", COMMIT.to_owned()),
    ];
    if name.ends_with(".safetensors") && !elsewhere {
        headers.push(("Location", format!("{root}/cdn/{name}")));
        return ("302 Found", headers, Vec::new());
    }
    let body = match from {
        Some("head") => file[..1].to_vec(),
        Some(start) => {
            let end = file.len() - usize::from(shelf.short.as_deref() == Some(name));
            file[start.parse::<usize>().unwrap().min(end)..end].to_vec()
        }
        None => file.clone(),
    };
    headers.push(("Content-Range", format!("bytes 0-0/{}", file.len())));
    ("206 Partial Content", headers, body)
}

/// A whole pipeline, the UNet in two files and in two variants, and what nobody needs.
fn pipeline() -> HashMap<String, Vec<u8>> {
    let class = |library: &str, class: &str| json!([library, class]);
    let mut files = HashMap::new();
    let mut json = |name: &str, value: Value| {
        files.insert(name.to_owned(), value.to_string().into_bytes());
    };
    json(
        "model_index.json",
        json!({
            "_class_name": "StableDiffusionInpaintPipeline",
            "unet": class("diffusers", "UNet2DConditionModel"),
            "vae": class("diffusers", "AutoencoderKL"),
            "text_encoder": class("transformers", "CLIPTextModel"),
        }),
    );
    json("scheduler/scheduler_config.json", json!({}));
    json("tokenizer/vocab.json", json!({}));
    json("tokenizer/merges.txt", json!({}));
    for network in ["unet", "vae", "text_encoder"] {
        json(&format!("{network}/config.json"), json!({}));
    }
    let part = |i: usize| format!("diffusion_pytorch_model-0000{i}-of-00002.safetensors");
    json(
        "unet/diffusion_pytorch_model.safetensors.index.json",
        json!({"weight_map": {"a": part(1), "b": part(2)}}),
    );
    let folder = tempfile::tempdir().unwrap();
    let mut weights = |name: &str, tensor: &str, dtype: DType| {
        let path = folder.path().join("w");
        let values = Tensor::zeros(3, dtype, &candle_core::Device::Cpu).unwrap();
        save_tensors(&path, [(tensor.to_owned(), values)], &[]).unwrap();
        files.insert(name.to_owned(), fs::read(&path).unwrap());
    };
    weights(&format!("unet/{}", part(1)), "a", DType::F32);
    weights(&format!("unet/{}", part(2)), "b", DType::F32);
    weights(
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "a",
        DType::F16,
    );
    weights("vae/diffusion_pytorch_model.safetensors", "v", DType::F32);
    weights("text_encoder/model.safetensors", "t", DType::F32);
    weights("unet/diffusion_pytorch_model.bin", "a", DType::F32);
    weights("safety_checker/model.safetensors", "a", DType::F32);
    files
}

fn hub(server: &Server, cache: &Path) -> Hub {
    Hub {
        endpoint: server.endpoint.clone(),
        cache: Cache::new(cache.join("hub")),
        token: None,
        offline: false,
    }
}

fn id(revision: &str) -> Id {
    Id {
        repo: "org/tiny".to_owned(),
        revision: revision.to_owned(),
    }
}

/// All files below `folder`, by their names in it.
fn listing(folder: &Path, prefix: &str, names: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_string_lossy());
        match path.is_dir() {
            true => listing(&path, &format!("{name}/"), names),
            false => names.push(name),
        }
    }
    names.sort_unstable();
}

#[test]
fn what_is_needed_is_fetched_once_and_found_without_the_hub() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let hub = hub(&server, home.path());
    let plain = Options::default();
    let folder = hub.fetch(&id("main"), &plain).unwrap();
    assert!(folder.ends_with(Path::new("snapshots").join(COMMIT)));
    let mut names = Vec::new();
    listing(&folder, "", &mut names);
    let mut expected: Vec<String> = pipeline().into_keys().collect();
    expected.retain(|name| {
        !name.contains("fp16") && !name.contains(".bin") && !name.contains("safety")
    });
    expected.sort_unstable();
    assert_eq!(names, expected);
    let checkpoint = Checkpoint::open(&folder, &plain).unwrap();
    assert_eq!(checkpoint.unet.source().unwrap().names(), ["a", "b"]);

    // A branch may have moved, a commit cannot have.
    server.asked();
    assert_eq!(hub.fetch(&id("main"), &plain).unwrap(), folder);
    assert_eq!(server.asked(), ["/api/models/org/tiny/revision/main"]);
    assert_eq!(hub.fetch(&id(COMMIT), &plain).unwrap(), folder);
    assert!(server.asked().is_empty());

    let half = Options {
        variant: Some("fp16".to_owned()),
        tokenizer: None,
    };
    assert_eq!(hub.fetch(&id(COMMIT), &half).unwrap(), folder);
    let asked = server.asked();
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
        assert_eq!(hub.fetch(&id(revision), &plain).unwrap(), folder);
    }
    let error = hub.fetch(&id("other"), &plain).unwrap_err().to_string();
    let sentence = "cannot reach the hub for `org/tiny@other`: give a folder, or download it elsewhere and set HF_HOME: ";
    assert!(error.starts_with(sentence), "{error}");
}

#[test]
fn a_file_that_came_short_is_refused_and_fetched_anew() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let hub = hub(&server, home.path());
    let name = "vae/diffusion_pytorch_model.safetensors";
    server.change(|shelf| shelf.short = Some(name.to_owned()));
    let error = hub.fetch(&id("main"), &Options::default()).unwrap_err();
    let size = pipeline()[name].len();
    let expected = format!(
        "`{name}` of `org/tiny` came broken: it has {} bytes, expected {size}",
        size - 1
    );
    assert_eq!(error.to_string(), expected);
    // As long as it should be, but no safetensors file.
    server.change(|shelf| {
        shelf.short = None;
        let file = shelf.files.get_mut(name).unwrap();
        file[8..].fill(b'x');
    });
    let error = hub
        .fetch(&id("main"), &Options::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("came broken: `") && error.contains("not a complete safetensors file"),
        "{error}"
    );
    server.change(|shelf| shelf.files = pipeline());
    let folder = hub.fetch(&id("main"), &Options::default()).unwrap();

    // A file that was broken later is fetched again too.
    let blob = fs::canonicalize(folder.join(name)).unwrap();
    fs::write(&blob, b"short").unwrap();
    hub.fetch(&id(COMMIT), &Options::default()).unwrap();
    assert_eq!(fs::read(folder.join(name)).unwrap(), pipeline()[name]);
}

#[test]
fn a_refusal_is_one_sentence() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let mut hub = hub(&server, home.path());
    let error = |hub: &Hub, revision: &str| {
        hub.fetch(&id(revision), &Options::default())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error(&hub, "v9"),
        "the hub has no revision `v9` of `org/tiny`"
    );
    server.change(|shelf| shelf.token = Some("secret".to_owned()));
    let text = error(&hub, "main");
    assert!(
        text.contains("refuses `org/tiny` (status 401): it is gated"),
        "{text}"
    );
    assert!(text.contains("set HF_TOKEN"), "{text}");
    hub.token = Some("secret".to_owned());
    server.change(|shelf| drop(shelf.files.remove("model_index.json")));
    let text = error(&hub, "main");
    assert!(
        text.contains("has no `model_index.json`: it is no pipeline"),
        "{text}"
    );
    server.change(|shelf| {
        shelf.files = pipeline();
        shelf
            .files
            .remove("vae/diffusion_pytorch_model.safetensors");
    });
    let text = error(&hub, "main");
    assert!(
        text.contains("`org/tiny` cannot be used: `vae` has no weights"),
        "{text}"
    );
    server.change(|shelf| shelf.token = None);
    // What was fetched so far would be taken from the cache.
    let other = tempfile::tempdir().unwrap();
    hub.cache = Cache::new(other.path().join("hub"));
    let missing = "diffusion_pytorch_model-00002-of-00002.safetensors";
    server.change(|shelf| {
        shelf.files = pipeline();
        shelf.files.remove(&format!("unet/{missing}"));
    });
    let text = error(&hub, "main");
    let expected = format!("`org/tiny` has no file `unet/{missing}` on the hub");
    assert_eq!(text, expected);
    hub.offline = true;
    server.asked();
    assert!(error(&hub, "main").ends_with("HF_HUB_OFFLINE is set"));
    assert!(server.asked().is_empty());
}

#[test]
fn paths_and_names_are_told_apart() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().to_str().unwrap();
    assert_eq!(locate(folder, &Options::default()).unwrap(), place.path());
    let model = |name: &str| match Name::parse(name).unwrap() {
        Name::Model(id) => (id.repo, id.revision),
        Name::Path(path) => panic!("{name} is the path {}", path.display()),
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(model("org/name-1.0"), pair("org/name-1.0", "main"));
    assert_eq!(model("org/name@refs/pr/1"), pair("org/name", "refs/pr/1"));
    assert_eq!(model(&format!("a/b@{COMMIT}")), pair("a/b", COMMIT));
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
    ] {
        let error = Name::parse(name).unwrap_err();
        assert_eq!(error.field, "weights");
        assert!(
            error
                .message
                .contains(&format!("no folder or file `{name}`")),
            "{error}"
        );
    }
}
