//! Where a hub sends its readers, and what they take along.

use super::{server::Reply, *};

#[test]
fn the_token_stays_with_the_hub() {
    let home = tempfile::tempdir().unwrap();
    let (server, elsewhere) = (Server::start(), Server::start());
    let mut hub = hub(&server, home.path());
    hub.token = Some(Token::parse("hf_secret", "HF_TOKEN").unwrap());
    server.change(|shelf| shelf.token = Some("hf_secret".to_owned()));
    let other = elsewhere.endpoint.clone();
    server.script(move |request, reply| {
        if request.path.ends_with(VAE) && reply.status == 302 {
            reply.set("Location", format!("{other}/cdn/{VAE}"));
        }
    });
    let folder = fetch(&hub, "main").unwrap();
    assert_eq!(fs::read(folder.join(VAE)).unwrap(), pipeline()[VAE]);
    // To the hub in every request, to another port or host in none.
    let tokens = |server: &Server| {
        server
            .asked()
            .into_iter()
            .map(|request| request.token)
            .collect::<Vec<_>>()
    };
    let (own, others) = (tokens(&server), tokens(&elsewhere));
    assert!(
        own.len() > 10
            && own
                .iter()
                .all(|token| token.as_deref() == Some("hf_secret")),
        "{own:?}"
    );
    assert!(
        others.len() == 2 && others.iter().all(Option::is_none),
        "{others:?}"
    );

    // Nor to the same port under another name, nor from there back.
    let home = tempfile::tempdir().unwrap();
    hub.cache = home.path().to_owned();
    let named = server.endpoint.replace("127.0.0.1", "localhost");
    server.script(move |request, reply| {
        if request.path.starts_with("/org/") {
            let place = format!("{named}/x/model_index.json");
            *reply = Reply::new(307).with("Location", place);
        } else if request.path == "/x/model_index.json" {
            *reply = Reply::new(403);
        }
    });
    let text = refusal(&hub);
    assert!(text.contains("status 403"), "{text}");
    assert!(!text.contains("hf_secret"));
    let asked = server.asked();
    let strange: Vec<_> = asked
        .iter()
        .filter(|request| request.path.starts_with("/x/"))
        .collect();
    assert!(!strange.is_empty() && strange.iter().all(|request| request.token.is_none()));
    assert!(!format!("{hub:?}").contains("hf_secret"));
    // No file of the cache has it either.
    for name in listing(home.path()) {
        let text = fs::read(home.path().join(&name)).unwrap();
        assert!(
            !String::from_utf8_lossy(&text).contains("hf_secret"),
            "{name}"
        );
    }
}

#[test]
fn relative_redirects_are_followed_and_keep_the_token() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let mut hub = hub(&server, home.path());
    hub.token = Some(Token::parse("hf_secret", "HF_TOKEN").unwrap());
    // As for a model that was renamed.
    server.script(|request, reply| {
        if let Some(rest) = request.path.strip_prefix("/api/models/org/old/") {
            *reply = Reply::new(307).with("Location", format!("/api/models/org/tiny/{rest}"));
        } else if let Some(rest) = request.path.strip_prefix("/org/old/") {
            *reply = Reply::new(307).with("Location", format!("/org/tiny/{rest}"));
        }
    });
    let id = Id::parse("org/old").unwrap();
    let folder = hub
        .fetch(&id, Wanted::Pipeline(&OpenOptions::default()))
        .unwrap();
    assert!(folder.starts_with(home.path().join("hub/models--org--old")));
    assert!(server.asked().iter().all(|request| request.token.is_some()));
}

#[test]
fn redirects_end() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let hub = hub(&server, home.path());
    server.script(|request, reply| {
        *reply = Reply::new(302).with("Location", format!("{}x", request.path));
    });
    let text = refusal(&hub);
    assert!(
        text.ends_with("the hub sends on more than 10 times"),
        "{text}"
    );
    assert_eq!(server.asked().len(), 11);
    for place in [
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "https://",
        "http://[::1",
        "x y",
    ] {
        server.script(move |_, reply| *reply = Reply::new(302).with("Location", place));
        let text = refusal(&hub);
        assert!(
            text.ends_with("the hub sends on to what is no address of the web"),
            "{place}: {text}"
        );
    }
    server.script(|_, reply| *reply = Reply::new(302));
    let text = refusal(&hub);
    assert!(text.contains("it sends on, but not where to"), "{text}");
}

#[test]
fn a_token_is_read_of_a_file_and_never_repeated() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("token");
    assert!(token_file(&path).unwrap().is_none());
    for text in ["", " \n"] {
        fs::write(&path, text).unwrap();
        assert!(token_file(&path).unwrap().is_none());
    }
    fs::write(&path, "hf_secret\n").unwrap();
    assert!(token_file(&path).unwrap().is_some());
    fs::write(&path, "hf_secret\nhf_secret").unwrap();
    let error = token_file(&path).unwrap_err().to_string();
    let expected = format!(
        "the token in `{}` has a space, a control character or a letter outside ASCII: it is no token",
        path.display()
    );
    assert_eq!(error, expected);
}
