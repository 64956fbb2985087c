//! Hubs that stall, break off, answer otherwise than asked, or are not there.

use super::{
    server::{Reply, Request},
    *,
};
use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Patience that is soon at its end, for servers that stall.
fn hasty(server: &Server, home: &Path) -> Hub {
    let mut hub = hub(server, home);
    hub.patience.answer = Duration::from_secs(1);
    hub
}

#[test]
fn a_stalled_answer_is_given_up_and_the_cache_is_used() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let hub = hasty(&server, home.path());
    let stall = |_: &Request, reply: &mut Reply| {
        reply.raw = Some(Vec::new());
        reply.stalls = true;
    };
    server.script(stall);
    let text = refusal(&hub);
    let expected = "cannot reach the hub for `org/tiny`: give a folder, or download it elsewhere and set HF_HOME: cannot ask for `org/tiny`: `127.0.0.1`: no answer within 1 s";
    assert_eq!(text, expected);
    assert!(server.asked().len() <= hub.patience.tries);
    server.unscript();
    let folder = fetch(&hub, "main").unwrap();
    server.script(stall);
    server.asked();
    assert_eq!(fetch(&hub, "main").unwrap(), folder);
    assert_eq!(server.asked().len(), hub.patience.tries_if_cached);
}

#[test]
fn a_body_that_stalls_or_breaks_off_is_taken_up_where_it_was() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let hub = hasty(&server, home.path());
    for stalls in [true, false] {
        let home = tempfile::tempdir().unwrap();
        let hub = Hub {
            cache: home.path().join("hub"),
            patience: hub.patience,
            endpoint: hub.endpoint.clone(),
            token: None,
            offline: false,
        };
        server.asked();
        server.script(move |request, reply| {
            if request.loads_large(VAE) && request.range.as_deref() == Some("0-") {
                reply.length = Some(reply.body.len());
                reply.body.truncate(1000);
                reply.stalls = stalls;
            }
        });
        let folder = fetch(&hub, "main").unwrap();
        assert_eq!(fs::read(folder.join(VAE)).unwrap(), pipeline()[VAE]);
        let asked = server.asked();
        let ranges: Vec<_> = asked
            .iter()
            .filter(|r| r.loads_large(VAE))
            .filter_map(|r| r.range.clone())
            .collect();
        assert_eq!(ranges, ["0-", "1000-"]);
    }

    // What came is kept when it breaks off for good.
    server.script(|request, reply| {
        if request.loads_large(VAE) {
            reply.length = Some(reply.body.len());
            reply.body.truncate(10);
        }
    });
    let text = refusal(&hub);
    assert!(
        text.starts_with("cannot reach the hub for `org/tiny`"),
        "{text}"
    );
    assert!(
        text.contains(&format!(
            "cannot fetch `{VAE}` of `org/tiny`: the answer broke off"
        )),
        "{text}"
    );
    let part = place(home.path())
        .join("blobs")
        .join(sha256(&pipeline()[VAE]) + ".part");
    assert_eq!(
        fs::metadata(&part).unwrap().len(),
        10 * hub.patience.tries as u64
    );
    server.unscript();
    server.asked();
    fetch(&hub, "main").unwrap();
    let first = server
        .asked()
        .into_iter()
        .find(|request| request.loads_large(VAE));
    assert_eq!(first.unwrap().range.unwrap(), "40-");
    assert!(!part.exists());
}

#[test]
fn an_answer_that_drips_is_not_waited_for() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let mut slow = hasty(&server, home.path());
    slow.patience.answer = Duration::from_millis(200);
    server.script(|request, reply| {
        if request.path.starts_with("/api/") {
            reply.drips = Some(Duration::from_millis(20));
        }
    });
    let text = refusal(&slow);
    assert!(text.starts_with("cannot reach the hub"), "{text}");
}

#[test]
fn a_busy_hub_is_asked_again_and_keeps_what_was_fetched() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let hub = hub(&server, home.path());
    let part = place(home.path())
        .join("blobs")
        .join(sha256(&pipeline()[VAE]) + ".part");
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    fs::write(&part, &pipeline()[VAE][..1000]).unwrap();
    server.script(|request, reply| {
        if request.loads_large(VAE) {
            *reply = Reply::new(503);
        }
    });
    let text = refusal(&hub);
    assert!(
        text.ends_with(&format!(
            "cannot fetch `{VAE}` of `org/tiny`: the hub answered with status 503 for `org/tiny`"
        )),
        "{text}"
    );
    assert_eq!(fs::read(&part).unwrap(), pipeline()[VAE][..1000]);

    let failures = Arc::new(AtomicUsize::new(0));
    let count = failures.clone();
    server.script(move |request, reply| {
        if request.loads_large(VAE) && count.fetch_add(1, Ordering::SeqCst) < 2 {
            *reply = Reply::new(429).with("Retry-After", "0");
        }
    });
    let folder = fetch(&hub, "main").unwrap();
    assert_eq!(failures.load(Ordering::SeqCst), 3);
    assert_eq!(fs::read(folder.join(VAE)).unwrap(), pipeline()[VAE]);

    // With all of it in the cache that is taken, even if the hub would like to be asked next week.
    for status in [429, 500, 502, 503, 504, 304, 300, 418] {
        server.script(move |_, reply| *reply = Reply::new(status).with("Retry-After", "604800"));
        assert_eq!(fetch(&hub, "main").unwrap(), folder, "{status}");
    }
    server.script(|_, reply| *reply = Reply::new(429).with("Retry-After", "604800"));
    server.asked();
    let other = tempfile::tempdir().unwrap();
    let hub = Hub {
        cache: other.path().to_owned(),
        ..hub
    };
    let text = refusal(&hub);
    assert!(
        text.ends_with(
            "the hub asks to come back in 604800 s: the hub answered with status 429 for `org/tiny`"
        ),
        "{text}"
    );
    assert_eq!(server.asked().len(), 1);
    server.script(|_, reply| *reply = Reply::new(304));
    let text = refusal(&hub);
    assert!(
        text.ends_with(
            "it sends on, but not where to: the hub answered with status 304 for `org/tiny`"
        ),
        "{text}"
    );
}

#[test]
fn a_range_that_is_ignored_or_wrong_gives_the_right_file() {
    let server = Server::start();
    let file = pipeline()[VAE].clone();
    let etag = sha256(&file);
    let size = file.len();
    type Change = fn(&Request, &mut Reply);
    let changes: [(&str, Change); 5] = [
        ("the whole", |_, reply| {
            reply.status = 200;
            reply.drop("Content-Range");
            reply.body = pipeline()[VAE].clone();
        }),
        ("from the start", |_, reply| {
            reply.body = pipeline()[VAE].clone();
            let size = reply.body.len();
            reply.set("Content-Range", format!("bytes 0-{}/{size}", size - 1));
        }),
        ("elsewhere", |request, reply| {
            if request.range.as_deref() != Some("0-") {
                reply.set(
                    "Content-Range",
                    format!("bytes 2000-2999/{}", pipeline()[VAE].len()),
                );
            }
        }),
        ("another size", |request, reply| {
            if request.range.as_deref() != Some("0-") {
                reply.set("Content-Range", "bytes 1000-1999/2000");
            }
        }),
        ("none", |request, reply| {
            if request.range.as_deref() != Some("0-") {
                *reply = Reply::new(416);
            }
        }),
    ];
    for (name, change) in changes {
        let home = tempfile::tempdir().unwrap();
        let hub = hub(&server, home.path());
        let part = place(home.path())
            .join("blobs")
            .join(format!("{etag}.part"));
        fs::create_dir_all(part.parent().unwrap()).unwrap();
        fs::write(&part, &file[..1000]).unwrap();
        server.script(move |request, reply| {
            if request.loads_large(VAE) {
                change(request, reply);
            }
        });
        let folder = fetch(&hub, "main").unwrap();
        assert_eq!(fs::read(folder.join(VAE)).unwrap(), file, "{name}");
    }
    let home = tempfile::tempdir().unwrap();
    server.script(move |request, reply| {
        if request.loads_large(VAE) {
            reply.set("Content-Range", format!("bytes 5-{}/{size}", size - 1));
        }
    });
    let text = refusal(&hub(&server, home.path()));
    assert!(
        text.ends_with(&format!(
            "the hub sends other bytes than those from 0 on of {size}: bytes 5-{}/{size}",
            size - 1
        )),
        "{text}"
    );
}

#[test]
fn what_is_no_answer_is_no_hub() {
    let server = Server::start();
    let home = tempfile::tempdir().unwrap();
    let hub = hasty(&server, home.path());
    let answers: [(&str, &str); 7] = [
        ("", "127.0.0.1"),
        ("garbage\r\n\r\n", "the answer is no HTTP"),
        ("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "127.0.0.1"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "the answer broke off",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{}",
            "the answer broke off",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            "the hub's description of `org/tiny` cannot be used: missing field `sha`",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"sha\":7}",
            "invalid type",
        ),
    ];
    for (raw, said) in answers {
        server.script(move |_, reply| reply.raw = Some(raw.as_bytes().to_vec()));
        let text = refusal(&hub);
        assert!(
            text.starts_with("cannot reach the hub for `org/tiny`") && text.contains(said),
            "{raw:?}: {text}"
        );
    }
    // Without end.
    let endless = [
        "HTTP/1.1 200 OK\r\nX-A: ",
        "HTTP/1.1 200 OK\r\n\r\n\"",
        "HTTP/1.1 100 Continue\r\n\r\n",
    ];
    for raw in endless {
        server.script(move |_, reply| {
            reply.raw = Some(raw.as_bytes().to_vec());
            reply.endless = true;
        });
        let text = refusal(&hub);
        assert!(
            text.starts_with("cannot reach the hub for `org/tiny`"),
            "{raw:?}: {text}"
        );
    }
    let text = "x".repeat(1 << 20);
    server.script(move |_, reply| reply.set("X-Long", text.clone()));
    assert!(refusal(&hub).contains("the header of the answer is too long"));
    let body = vec![b' '; (16 << 20) + 1];
    server.script(move |_, reply| reply.body = body.clone());
    assert!(refusal(&hub).contains("the answer has more than 16777216 bytes"));
}

#[test]
fn a_hub_that_is_not_there_is_one_sentence() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let mut hub = hub(&server, home.path());
    hub.patience.connect = Duration::from_millis(500);
    // A port that nobody listens on.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    hub.endpoint = format!("http://user:secret@{}", listener.local_addr().unwrap());
    drop(listener);
    let text = refusal(&hub);
    assert!(
        text.contains("cannot ask for `org/tiny`: `127.0.0.1`: "),
        "{text}"
    );
    assert!(!text.contains("secret"), "{text}");
    hub.endpoint = "http://nobody.invalid".to_owned();
    let text = refusal(&hub);
    assert!(
        text.contains("cannot ask for `org/tiny`: `nobody.invalid`: "),
        "{text}"
    );
}
