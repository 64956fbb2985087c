//! Serves the page of runs to the browsers of this machine while they go on.
//!
//! It only reads, answers GET alone, and listens on the loopback. A page of elsewhere that a browser of
//! this machine shows cannot read it: the name of its host, turned to the loopback (DNS rebinding), is not
//! among those that are answered.

use crate::{contents, open, page, page::Kind};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use diffaug_run::reader::Run;
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tiny_http::{Header, Method, Request, Response, Server};

/// How often it is looked whether the server is to end.
const PATIENCE: Duration = Duration::from_millis(200);
/// The names of this machine by which a browser may ask.
const HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// An answer to a request.
#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    kind: &'static str,
    body: Vec<u8>,
}

impl Answer {
    fn text(status: u16, text: &str) -> Self {
        Answer {
            status,
            kind: "text/plain; charset=utf-8",
            body: format!("{text}\n").into_bytes(),
        }
    }
}

/// Runs that are served.
pub struct Watched {
    folders: Vec<PathBuf>,
    /// What was counted last, and the state in which.
    counted: Mutex<Option<(String, Value)>>,
}

impl Watched {
    /// The runs of some folders.
    ///
    /// # Errors
    /// When one is no folder of a run.
    pub fn new(folders: Vec<PathBuf>) -> Result<Self> {
        open(&folders)?;
        Ok(Watched {
            folders,
            counted: Mutex::default(),
        })
    }

    /// The runs as they are now: what they are made of may change when one is taken up.
    fn runs(&self) -> Result<Vec<Run>> {
        open(&self.folders)
    }

    /// Listens on the loopback at `port`, 0 for any that is free; tells the address to `ready`, and answers until
    /// `stopped`.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub fn serve(
        &self,
        port: u16,
        ready: impl FnOnce(SocketAddr),
        stopped: impl Fn() -> bool,
    ) -> Result<()> {
        let server = Server::http((Ipv4Addr::LOCALHOST, port)).map_err(|error| {
            Error::data(format!(
                "cannot listen on port {port} of 127.0.0.1: {error}"
            ))
        })?;
        if let Some(address) = server.server_addr().to_ip() {
            ready(address);
        }
        while !stopped() {
            let request = server.recv_timeout(PATIENCE);
            let failed = || "cannot answer browsers any more".to_owned();
            if let Some(request) = request.or_error(ErrorKind::Data, failed)? {
                self.reply(request);
            }
        }
        Ok(())
    }

    fn reply(&self, request: Request) {
        let host = request
            .headers()
            .iter()
            .find(|header| header.field.equiv("Host"));
        let host = host.map(|header| header.value.as_str());
        let answer = self.answer(request.method(), request.url(), host);
        let policy = Kind::Live(&[], "").policy();
        let mut response = Response::from_data(answer.body).with_status_code(answer.status);
        for (name, value) in [
            ("Content-Type", answer.kind),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", &policy),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Referrer-Policy", "no-referrer"),
        ] {
            if let Ok(header) = Header::from_bytes(name, value) {
                response.add_header(header);
            }
        }
        // Whoever asked may be gone by now.
        let _ = request.respond(response);
    }

    /// The answer to a request for `url` that came to `host`.
    fn answer(&self, method: &Method, url: &str, host: Option<&str>) -> Answer {
        if !host.is_some_and(is_ours) {
            let text = "this page is for browsers of its own machine: ask for localhost";
            return Answer::text(403, text);
        }
        if *method != Method::Get {
            return Answer::text(405, "only GET is answered here");
        }
        let path = url.split(['?', '#']).next().unwrap_or_default();
        let made = match path {
            "/" => self.page(),
            "/state.json" => self.counts().map(|counts| Answer {
                status: 200,
                kind: "application/json",
                body: counts.to_string().into_bytes(),
            }),
            _ => Ok(self.strip(path)),
        };
        made.unwrap_or_else(|error| Answer::text(500, &error.to_string()))
    }

    fn page(&self) -> Result<Answer> {
        let runs = self.runs()?;
        // Before the runs are read: what changes meanwhile is shown by the next page.
        let state = state(&runs);
        let page = page::render(&contents(&runs), Kind::Live(&runs, &state))?;
        Ok(Answer {
            status: 200,
            kind: "text/html; charset=utf-8",
            body: page.into_bytes(),
        })
    }

    /// The small picture at `/strip/RUN/INDEX.jpg`. Both are numbers, so no path leads elsewhere.
    fn strip(&self, path: &str) -> Answer {
        let found = || {
            let (run, file) = path.strip_prefix("/strip/")?.split_once('/')?;
            let index: u64 = file.strip_suffix(".jpg")?.parse().ok()?;
            let folder = self.folders.get(run.parse::<usize>().ok()?)?;
            Run::open(folder).ok()?.strip(index)
        };
        match found() {
            None => Answer::text(404, "there is no such page"),
            Some(body) => Answer {
                status: 200,
                kind: "image/jpeg",
                body,
            },
        }
    }

    /// The state, and for people how far the runs have come.
    fn counts(&self) -> Result<Value> {
        let runs = self.runs()?;
        let state = state(&runs);
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, counts)) = counted.as_ref()
            && *of == state
        {
            return Ok(counts.clone());
        }
        let text: Vec<String> = runs.iter().map(progress).collect();
        let counts = json!({ "state": state, "text": text.join(" | ") });
        *counted = Some((state, counts.clone()));
        Ok(counts)
    }
}

/// What changes when a page would.
fn state(runs: &[Run]) -> String {
    let states: Vec<String> = runs.iter().map(Run::state).collect();
    states.join(" ")
}

/// How far a run has come.
fn progress(run: &Run) -> String {
    let painted = run.painted().ok().flatten().unwrap_or_default();
    let judged = painted.records.iter().filter(|record| record.painted());
    let accepted = painted.records.iter();
    let accepted = accepted.filter(|record| record.file_name.is_some());
    let finished = run.result().is_ok_and(|result| result.is_some());
    format!(
        "{} candidates judged, {} accepted; {}",
        judged.count(),
        accepted.count(),
        if finished { "finished" } else { "not finished" }
    )
}

/// Whether a `Host` header names this machine, with a port or without.
fn is_ours(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    HOSTS.iter().any(|ours| name.eq_ignore_ascii_case(ours))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug_run::layout;
    use std::{
        fs,
        io::{Read, Write},
        net::TcpStream,
        path::Path,
        sync::{
            atomic::{AtomicBool, Ordering},
            mpsc,
        },
        thread,
    };

    fn watched(root: &Path) -> Watched {
        let lock = json!({"manifest": {"name": "begun"}}).to_string();
        fs::write(root.join(layout::LOCK), lock).unwrap();
        fs::create_dir_all(root.join(layout::GALLERY)).unwrap();
        fs::write(root.join(layout::strip(7)), b"\xff\xd8\xffpicture").unwrap();
        Watched::new(vec![root.to_owned()]).unwrap()
    }

    #[test]
    fn hosts_of_elsewhere_are_refused() {
        for host in [
            "localhost",
            "LocalHost:8080",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:65535",
        ] {
            assert!(is_ours(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:80",
            "127.0.0.1.evil.example",
            "localhost.evil.example:8080",
            "",
            ":80",
            "127.0.0.2",
            "::1",
            "localhost:",
            "localhost:80:80",
            "user@localhost",
        ] {
            assert!(!is_ours(host), "{host}");
        }
        let folder = tempfile::tempdir().unwrap();
        let watched = watched(folder.path());
        for host in [None, Some("evil.example:8080")] {
            assert_eq!(watched.answer(&Method::Get, "/", host).status, 403);
        }
    }

    #[test]
    fn what_is_asked_for_is_answered_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let watched = watched(folder.path());
        let get = |url: &str| watched.answer(&Method::Get, url, Some("localhost:1"));
        let page = get("/?x=1");
        assert_eq!((page.status, page.kind), (200, "text/html; charset=utf-8"));
        let text = String::from_utf8(page.body).unwrap();
        assert!(
            text.contains("data-state=") && text.contains("begun"),
            "{text}"
        );
        assert_eq!(get("/strip/0/7.jpg").body, b"\xff\xd8\xffpicture");
        for url in [
            "/strip/1/7.jpg",
            "/strip/0/8.jpg",
            "/strip/0/../7.jpg",
            "/strip/0/%2e%2e",
            "/lock.json",
            "//",
            "/strip/0/-7.jpg",
            "/../../etc/passwd",
            "",
        ] {
            assert_eq!(get(url).status, 404, "{url}");
        }
        for method in [
            Method::Post,
            Method::Put,
            Method::Delete,
            Method::Head,
            Method::Options,
        ] {
            assert_eq!(watched.answer(&method, "/", Some("localhost")).status, 405);
        }
    }

    #[test]
    fn the_state_changes_with_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let watched = watched(folder.path());
        let state = || -> Value {
            let answer = watched.answer(&Method::Get, "/state.json", Some("localhost"));
            serde_json::from_slice(&answer.body).unwrap()
        };
        let before = state();
        assert_eq!(before, state());
        assert_eq!(
            before["text"],
            "0 candidates judged, 0 accepted; not finished"
        );
        fs::write(folder.path().join(layout::RESULT), "{}").unwrap();
        let after = state();
        assert_ne!(before["state"], after["state"]);
        assert_eq!(after["text"], "0 candidates judged, 0 accepted; finished");
    }

    #[test]
    fn a_browser_is_served_until_it_is_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let watched = watched(folder.path());
        let stop = AtomicBool::new(false);
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            let serving = scope.spawn(|| {
                let ready = move |address| tell.send(address).unwrap();
                watched.serve(0, ready, || stop.load(Ordering::SeqCst))
            });
            let address: SocketAddr = told.recv().unwrap();
            assert!(address.ip().is_loopback());
            let ask = |text: &str| {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(text.as_bytes()).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                answer
            };
            let answer = ask("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(
                answer.contains("Content-Security-Policy: default-src 'none'"),
                "{answer}"
            );
            let answer = ask("GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
            assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
            stop.store(true, Ordering::SeqCst);
            serving.join().unwrap().unwrap();
        });
    }
}
