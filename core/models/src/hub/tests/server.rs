//! A hub on the loopback, which a test can make say what it wants.

use candle_core::{DType, Tensor};
use diffaug_nn::weights::save_tensors;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The one file of the autoencoder of [`pipeline`], and its name there.
pub const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    /// What stands behind `bytes=`.
    pub range: Option<String>,
    pub token: Option<String>,
}

impl Request {
    /// Whether it asks what the file `name` is.
    pub fn asks(&self, name: &str) -> bool {
        self.path.ends_with(name) && self.range.as_deref() == Some("0-0")
    }

    /// Whether it asks the hub itself for the bytes of the file `name`.
    pub fn loads(&self, name: &str) -> bool {
        self.path.contains("/resolve/")
            && self.path.ends_with(name)
            && self.range.as_deref() != Some("0-0")
    }

    /// Whether it asks for the bytes of the large file `name` where the hub keeps those.
    pub fn loads_large(&self, name: &str) -> bool {
        self.path == format!("/cdn/{name}") && self.range.as_deref() != Some("0-0")
    }

    fn from(&self) -> usize {
        let range = self.range.as_deref().unwrap_or("0-");
        range.split('-').next().unwrap().parse().unwrap()
    }
}

/// An answer that a test may change before it is sent.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// The length that the answer claims, if not that of its body.
    pub length: Option<usize>,
    /// Instead of all that.
    pub raw: Option<Vec<u8>>,
    /// Whether nothing more comes, but the connection stays.
    pub stalls: bool,
    /// Whether what was given so far comes again and again.
    pub endless: bool,
    /// The time between two bytes of the body.
    pub drips: Option<Duration>,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Reply {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            length: None,
            raw: None,
            stalls: false,
            endless: false,
            drips: None,
        }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.set(name, value);
        self
    }

    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value.into()));
    }

    pub fn drop(&mut self, name: &str) {
        self.headers.retain(|(other, _)| *other != name);
    }

    fn send(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        let mut out = match &self.raw {
            Some(raw) => raw.clone(),
            None => {
                let length = self.length.unwrap_or(self.body.len());
                let mut head = format!(
                    "HTTP/1.1 {} X\r\nContent-Length: {length}\r\nConnection: close\r\n",
                    self.status
                );
                for (name, value) in &self.headers {
                    head += &format!("{name}: {value}\r\n");
                }
                let body = self.drips.map_or(self.body.as_slice(), |_| &[]);
                [head.as_bytes(), b"\r\n", body].concat()
            }
        };
        stream.write_all(&out)?;
        if let Some(pause) = self.drips {
            for byte in &self.body {
                std::thread::sleep(pause);
                stream.write_all(&[*byte])?;
            }
        }
        if self.endless {
            out = out.repeat(1 + (1 << 16) / out.len().max(1));
            loop {
                stream.write_all(&out)?;
            }
        }
        Ok(())
    }
}

type Script = Box<dyn FnMut(&Request, &mut Reply) + Send>;

/// What the server has and how it behaves.
#[derive(Default)]
pub struct Shelf {
    pub files: BTreeMap<String, Vec<u8>>,
    /// The word without which no file is given out; the model is described to everybody.
    pub token: Option<String>,
    script: Option<Script>,
    asked: Vec<Request>,
    stalled: Vec<TcpStream>,
    closed: bool,
}

/// A hub with one model `org/tiny` whose branch `main` is at [`COMMIT`]. As the real one it sends the
/// readers of large files elsewhere, and names files by their hashes.
pub struct Server {
    pub endpoint: String,
    shelf: Arc<Mutex<Shelf>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shelf = Arc::new(Mutex::new(Shelf {
            files: pipeline(),
            ..Shelf::default()
        }));
        let (own, root) = (shelf.clone(), endpoint.clone());
        let serve = move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                if own.lock().unwrap().closed {
                    break;
                }
                let Ok(request) = read(&stream) else {
                    continue;
                };
                let mut shelf = own.lock().unwrap();
                let mut reply = respond(&shelf, &root, &request);
                shelf.asked.push(request.clone());
                if let Some(script) = &mut shelf.script {
                    script(&request, &mut reply);
                }
                if reply.stalls {
                    reply.send(&mut stream).ok();
                    shelf.stalled.push(stream);
                    continue;
                }
                drop(shelf);
                // A client that goes away is its own business.
                std::thread::spawn(move || reply.send(&mut stream).ok());
            }
        };
        Server {
            endpoint,
            shelf,
            thread: Some(std::thread::spawn(serve)),
        }
    }

    pub fn change(&self, change: impl FnOnce(&mut Shelf)) {
        change(&mut self.shelf.lock().unwrap());
    }

    /// Has `script` look at every answer before it is sent.
    pub fn script(&self, script: impl FnMut(&Request, &mut Reply) + Send + 'static) {
        self.change(|shelf| shelf.script = Some(Box::new(script)));
    }

    pub fn unscript(&self) {
        self.change(|shelf| shelf.script = None);
    }

    /// What was asked for since the last call.
    pub fn asked(&self) -> Vec<Request> {
        std::mem::take(&mut self.shelf.lock().unwrap().asked)
    }

    /// The paths of that.
    pub fn paths(&self) -> Vec<String> {
        self.asked()
            .into_iter()
            .map(|request| request.path)
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.change(|shelf| shelf.closed = true);
        TcpStream::connect(self.endpoint.trim_start_matches("http://")).ok();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn read(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream.take(1 << 16)).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let mut request = Request {
        path: first.split(' ').nth(1).unwrap_or_default().to_owned(),
        range: None,
        token: None,
    };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        match name.to_lowercase().as_str() {
            "range" => request.range = value.strip_prefix("bytes=").map(str::to_owned),
            "authorization" => request.token = value.strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
    Ok(request)
}

fn respond(shelf: &Shelf, root: &str, request: &Request) -> Reply {
    let path = &request.path;
    if let Some(revision) = path.strip_prefix("/api/models/org/tiny/revision/") {
        if revision != "main" && revision != COMMIT {
            return Reply::new(404);
        }
        let mut reply = Reply::new(200);
        reply.body = described(
            COMMIT,
            &shelf.files.keys().map(String::as_str).collect::<Vec<_>>(),
        );
        return reply;
    }
    if shelf.token.is_some() && shelf.token != request.token {
        return Reply::new(401);
    }
    let resolve = format!("/org/tiny/resolve/{COMMIT}/");
    let (name, elsewhere) = match path.strip_prefix("/cdn/") {
        Some(name) => (name, true),
        None => (path.strip_prefix(&resolve).unwrap_or_default(), false),
    };
    let Some(file) = shelf.files.get(name) else {
        return Reply::new(404);
    };
    if elsewhere {
        return part(file, request).with("ETag", "\"elsewhere\"");
    }
    if name.ends_with(".safetensors") {
        return Reply::new(302)
            .with("ETag", "\"pointer\"")
            .with("x-repo-commit", COMMIT)
            .with("X-Linked-Etag", format!("\"{}\"", sha256(file)))
            .with("X-Linked-Size", file.len().to_string())
            .with("Location", format!("{root}/cdn/{name}"));
    }
    part(file, request)
        .with("ETag", format!("\"{}\"", git(file)))
        .with("x-repo-commit", COMMIT)
}

/// The description of a model.
pub fn described(commit: &str, files: &[&str]) -> Vec<u8> {
    let files: Vec<Value> = files
        .iter()
        .map(|name| json!({"rfilename": name}))
        .collect();
    json!({"sha": commit, "siblings": files})
        .to_string()
        .into_bytes()
}

/// The bytes of `file` that are asked for.
fn part(file: &[u8], request: &Request) -> Reply {
    let (from, size) = (request.from(), file.len());
    if from >= size {
        return Reply::new(416).with("Content-Range", format!("bytes */{size}"));
    }
    let end = match request.range.as_deref() {
        None => {
            let mut reply = Reply::new(200);
            reply.body = file.to_vec();
            return reply;
        }
        Some("0-0") => 1,
        Some(_) => size,
    };
    let mut reply = Reply::new(206);
    reply.body = file[from..end].to_vec();
    reply.with("Content-Range", format!("bytes {from}-{}/{size}", end - 1))
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The name that git gives a file.
pub fn git(bytes: &[u8]) -> String {
    let head = format!("blob {}\0", bytes.len());
    hex(&Sha1::digest([head.as_bytes(), bytes].concat()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A whole pipeline, the UNet in two files and in two variants, and what nobody needs.
pub fn pipeline() -> BTreeMap<String, Vec<u8>> {
    let class = |library: &str, class: &str| json!([library, class]);
    let mut files = BTreeMap::new();
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
    json("tokenizer/vocab.json", json!({"a": 1}));
    json("tokenizer/merges.txt", json!({}));
    json("tokenizer/added_tokens.json", json!({"b": 2}));
    json("diffaug.json", json!({"margin": 0.25}));
    for network in ["unet", "vae", "text_encoder"] {
        json(&format!("{network}/config.json"), json!({"of": network}));
    }
    let part = |i: usize| format!("diffusion_pytorch_model-0000{i}-of-00002.safetensors");
    json(
        "unet/diffusion_pytorch_model.safetensors.index.json",
        json!({"weight_map": {"a": part(1), "b": part(2)}}),
    );
    files.insert("empty.txt".to_owned(), Vec::new());
    let mut weights = |name: &str, tensor: &str, dtype: DType| {
        files.insert(name.to_owned(), tensors(tensor, dtype));
    };
    weights(&format!("unet/{}", part(1)), "a", DType::F32);
    weights(&format!("unet/{}", part(2)), "b", DType::F32);
    weights(
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "a",
        DType::F16,
    );
    weights(VAE, "v", DType::F32);
    weights("text_encoder/model.safetensors", "t", DType::F32);
    weights("unet/diffusion_pytorch_model.bin", "a", DType::F32);
    weights("safety_checker/model.safetensors", "a", DType::F32);
    files
}

/// A file with one tensor of 2000 zeros.
pub fn tensors(name: &str, dtype: DType) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w");
    let values = Tensor::zeros(2000, dtype, &candle_core::Device::Cpu).unwrap();
    save_tensors(&path, [(name.to_owned(), values)], &[]).unwrap();
    fs::read(&path).unwrap()
}
