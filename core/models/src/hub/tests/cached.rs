//! What lies in the cache: damaged files, links that lead elsewhere, other processes.

use super::*;
use server::{git, tensors};

/// A cache with all of the model, and the folder of the snapshot.
fn filled(server: &Server, home: &Path) -> (Hub, PathBuf) {
    let hub = hub(server, home);
    let folder = fetch(&hub, "main").unwrap();
    (hub, folder)
}

/// Another file of the same size as `bytes`, and whole as far as its header tells.
fn forged(bytes: &[u8]) -> Vec<u8> {
    let mut forged = bytes.to_vec();
    *forged.last_mut().unwrap() ^= 1;
    forged
}

#[test]
fn a_part_with_a_wrong_tail_is_fetched_anew() {
    let server = Server::start();
    let file = pipeline()[VAE].clone();
    for wrong in [
        forged(&file[..5000]),
        forged(&file),
        [file.clone(), vec![0]].concat(),
        vec![0; 100],
    ] {
        let home = tempfile::tempdir().unwrap();
        let hub = hub(&server, home.path());
        let part = place(home.path())
            .join("blobs")
            .join(sha256(&file) + ".part");
        fs::create_dir_all(part.parent().unwrap()).unwrap();
        fs::write(&part, wrong).unwrap();
        let folder = fetch(&hub, "main").unwrap();
        assert_eq!(fs::read(folder.join(VAE)).unwrap(), file);
        assert!(!part.exists());
    }
}

#[test]
fn a_file_that_comes_broken_twice_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let hub = hub(&server, home.path());
    server.script(|request, reply| {
        if request.loads_large(VAE) {
            *reply.body.last_mut().unwrap() ^= 1;
        }
    });
    let text = refusal(&hub);
    let file = pipeline()[VAE].clone();
    let expected = format!(
        "`{VAE}` of `org/tiny` came broken: its SHA-256 is `{}`, expected `{}`",
        sha256(&forged(&file)),
        sha256(&file)
    );
    assert_eq!(text, expected);
    let loads = server
        .asked()
        .into_iter()
        .filter(|request| request.loads_large(VAE))
        .count();
    assert_eq!(loads, 2);
    // Nothing vouches for it.
    let names = listing(&place(home.path()));
    assert!(
        !names
            .iter()
            .any(|name| name.contains(&sha256(&file)) || name.starts_with("refs")),
        "{names:?}"
    );

    // The same for small files, which git's hash names.
    server.script(|request, reply| {
        if request.loads("unet/config.json") {
            *reply.body.last_mut().unwrap() = b' ';
        }
    });
    let home = tempfile::tempdir().unwrap();
    let text = refusal(&Hub {
        cache: home.path().to_owned(),
        ..hub
    });
    assert!(
        text.starts_with("`unet/config.json` of `org/tiny` came broken: its git hash is `"),
        "{text}"
    );
    server.unscript();
}

#[test]
fn without_a_hash_size_and_header_have_to_do() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let hub = hub(&server, home.path());
    let plain = |request: &server::Request, reply: &mut server::Reply| {
        if request.path.ends_with(VAE) && reply.status == 302 {
            reply.set("X-Linked-Etag", "\"v-1.0\"");
        }
    };
    server.script(plain);
    let mut file = pipeline()[VAE].clone();
    file[8..].fill(b'x');
    server.change(|shelf| drop(shelf.files.insert(VAE.to_owned(), file)));
    let text = refusal(&hub);
    assert!(
        text.contains("came broken: `") && text.contains("not a complete safetensors file"),
        "{text}"
    );
    server.change(|shelf| shelf.files = pipeline());
    let folder = fetch(&hub, "main").unwrap();
    assert_eq!(fs::read(folder.join(VAE)).unwrap(), pipeline()[VAE]);

    // A file that was broken later is fetched again too.
    let blob = fs::canonicalize(folder.join(VAE)).unwrap();
    assert!(blob.ends_with("blobs/v-1.0"));
    fs::write(&blob, b"short").unwrap();
    fetch(&hub, COMMIT).unwrap();
    assert_eq!(fs::read(folder.join(VAE)).unwrap(), pipeline()[VAE]);
}

#[test]
fn a_file_that_changed_in_the_cache_is_fetched_anew() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let (mut hub, folder) = filled(&server, home.path());
    for name in [
        VAE,
        "unet/config.json",
        "diffaug.json",
        "tokenizer/vocab.json",
    ] {
        let blob = fs::canonicalize(folder.join(name)).unwrap();
        let times = fs::metadata(&blob).unwrap().modified().unwrap();
        let right = pipeline()[name].clone();
        for revision in ["main", COMMIT] {
            fs::write(&blob, forged(&right)).unwrap();
            File::options()
                .write(true)
                .open(&blob)
                .unwrap()
                .set_modified(times)
                .unwrap();
            assert_eq!(fetch(&hub, revision).unwrap(), folder);
            assert_eq!(fs::read(folder.join(name)).unwrap(), right, "{name}");
        }
    }
    // Without the hub it is not used.
    let blob = fs::canonicalize(folder.join(VAE)).unwrap();
    let right = pipeline()[VAE].clone();
    fs::write(&blob, forged(&right)).unwrap();
    hub.offline = true;
    let text = refusal(&hub);
    let expected = format!(
        "`org/tiny` in the cache cannot be used, and the hub cannot be reached (HF_HUB_OFFLINE is set): `{}` is damaged: its SHA-256 is `{}`, expected `{}`",
        folder.join(VAE).display(),
        sha256(&forged(&right)),
        sha256(&right)
    );
    assert_eq!(text, expected);
    assert_eq!(fs::read(&blob).unwrap(), forged(&right));
}

#[test]
fn a_large_file_is_compared_once_unless_it_changes() {
    let home = tempfile::tempdir().unwrap();
    let repo = Repo::new(home.path(), &id("main"));
    let bytes = vec![7; 5 << 20];
    let name = sha256(&bytes);
    let blobs = home.path().join("models--org--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let blob = blobs.join(&name);
    fs::write(&blob, &bytes).unwrap();
    repo.verify(&blob).unwrap();
    let mark = home.path().join("models--org--tiny/.diffaug").join(&name);
    let first = fs::read_to_string(&mark).unwrap();
    // A mark is what spares the comparing: with one of ours a file that is another passes.
    let times = fs::metadata(&blob).unwrap().modified().unwrap();
    fs::write(&blob, forged(&bytes)).unwrap();
    File::options()
        .write(true)
        .open(&blob)
        .unwrap()
        .set_modified(times)
        .unwrap();
    let error = repo.verify(&blob).unwrap_err().to_string();
    assert!(error.starts_with("its SHA-256 is `"), "{error}");
    assert_eq!(fs::read_to_string(&mark).unwrap(), first);
    repo.mark(&blob);
    repo.verify(&blob).unwrap();
    fs::write(&mark, "5242880").unwrap();
    assert!(repo.verify(&blob).is_err());
}

#[cfg(unix)]
mod links {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A folder outside of the cache with a file in it that has to stay as it is.
    fn outside(home: &Path) -> (PathBuf, PathBuf) {
        let folder = home.join("outside");
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("precious.safetensors");
        fs::write(&file, "precious").unwrap();
        (folder, file)
    }

    #[track_caller]
    fn untouched(folder: &Path, file: &Path) {
        assert_eq!(fs::read_to_string(file).unwrap(), "precious");
        assert_eq!(listing(folder), ["precious.safetensors"]);
    }

    #[test]
    fn a_file_that_leads_out_of_the_cache_is_not_used() {
        let server = Server::start();
        for blob in [true, false] {
            let home = tempfile::tempdir().unwrap();
            let (mut hub, folder) = filled(&server, home.path());
            let (beside, file) = outside(home.path());
            let link = match blob {
                true => fs::canonicalize(folder.join(VAE)).unwrap(),
                false => folder.join(VAE),
            };
            fs::remove_file(&link).unwrap();
            symlink(&file, &link).unwrap();
            for offline in [false, true] {
                hub.offline = offline;
                let text = refusal(&hub);
                let expected = format!(
                    "` leads out of the cache, to `{}`: it is not used; remove it",
                    file.display()
                );
                assert!(text.contains(&expected), "{text}");
                untouched(&beside, &file);
            }
            // Where it leads to does not matter if nothing is there: nothing is made there.
            fs::remove_file(&link).unwrap();
            symlink(beside.join("new"), &link).unwrap();
            hub.offline = false;
            fetch(&hub, "main").unwrap();
            assert_eq!(fs::read(folder.join(VAE)).unwrap(), pipeline()[VAE]);
            untouched(&beside, &file);
        }
    }

    #[test]
    fn folders_that_are_links_are_not_followed() {
        let server = Server::start();
        for name in [
            "",
            "blobs",
            "snapshots",
            "refs",
            ".locks",
            &format!("snapshots/{COMMIT}"),
            &format!("snapshots/{COMMIT}/vae"),
        ] {
            let home = tempfile::tempdir().unwrap();
            let hub = hub(&server, home.path());
            let (beside, file) = outside(home.path());
            let link = match name {
                ".locks" => home.path().join("hub/.locks"),
                _ => place(home.path()).join(name),
            };
            let link = PathBuf::from(link.to_str().unwrap().trim_end_matches('/'));
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(&beside, &link).unwrap();
            let text = refusal(&hub);
            let expected = format!("`{}` ", link.display());
            assert!(text.contains(&expected), "{name}: {text}");
            assert!(
                text.contains("is a link or a file, expected a folder")
                    || text.contains("leads out of the cache")
                    || text.contains("is no file"),
                "{name}: {text}"
            );
            untouched(&beside, &file);
        }
    }

    #[test]
    fn parts_and_notes_that_are_links_are_replaced() {
        let home = tempfile::tempdir().unwrap();
        let server = Server::start();
        let mut hub = hub(&server, home.path());
        let (beside, file) = outside(home.path());
        let place = place(home.path());
        let etag = sha256(&pipeline()[VAE]);
        fs::create_dir_all(place.join("blobs")).unwrap();
        let part = place.join("blobs").join(format!("{etag}.part"));
        symlink(&file, &part).unwrap();
        // A file of another name, by its number.
        let other = sha256(&pipeline()["text_encoder/model.safetensors"]);
        fs::hard_link(&file, place.join("blobs").join(format!("{other}.part"))).unwrap();
        let folder = fetch(&hub, "main").unwrap();
        assert_eq!(fs::read(folder.join(VAE)).unwrap(), pipeline()[VAE]);
        untouched(&beside, &file);
        assert!(
            fs::symlink_metadata(fs::canonicalize(folder.join(VAE)).unwrap())
                .unwrap()
                .is_file()
        );

        let noted = place.join("refs/main");
        fs::remove_file(&noted).unwrap();
        symlink(&file, &noted).unwrap();
        hub.offline = true;
        let text = refusal(&hub);
        let expected = format!("`{}` is no file: remove it", noted.display());
        assert!(text.contains(&expected), "{text}");
        hub.offline = false;
        fetch(&hub, "main").unwrap();
        assert_eq!(fs::read_to_string(&noted).unwrap(), COMMIT);
        untouched(&beside, &file);
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let home = tempfile::tempdir().unwrap();
        let server = Server::start();
        let (hub, folder) = filled(&server, home.path());
        let path = folder.join("unet/config.json");
        fs::remove_file(&path).unwrap();
        // Reading it would wait for a writer.
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let text = refusal(&hub);
        assert!(
            text.contains(&format!("`{}` is no file: remove it", path.display())),
            "{text}"
        );
    }
}

#[test]
fn a_note_of_a_branch_is_a_commit() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let (mut hub, folder) = filled(&server, home.path());
    let noted = place(home.path()).join("refs/main");
    for text in [
        "../../../outside",
        "",
        "/",
        "main",
        "\u{1b}[2J",
        &"a".repeat(1000),
    ] {
        fs::write(&noted, text).unwrap();
        hub.offline = true;
        let shown = words::shown(&text[..text.len().min(256)]);
        let expected = format!(
            "`{}` holds `{shown}`, expected a commit of 40 digits: remove it",
            noted.display()
        );
        let text = refusal(&hub);
        assert!(text.contains(&expected), "{text}");
        assert!(hub.resolved(&id("main")).is_err());
        // The hub knows better.
        hub.offline = false;
        assert_eq!(fetch(&hub, "main").unwrap(), folder);
        assert_eq!(fs::read_to_string(&noted).unwrap(), COMMIT);
    }
}

#[test]
fn a_file_that_another_process_fetches_is_waited_for() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let hub = hub(&server, home.path());
    let name = format!(".locks/models--org--tiny/{}.lock", sha256(&pipeline()[VAE]));
    let path = home.path().join("hub").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let held = File::create(&path).unwrap();
    held.lock().unwrap();
    let text = refusal(&hub);
    let expected = format!(
        "another process holds `{}` and does not get on: stop it, or try again later",
        path.display()
    );
    assert_eq!(text, expected);
    drop(held);
    fetch(&hub, "main").unwrap();
}

#[test]
fn what_another_process_fetched_is_taken() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let hub = hub(&server, home.path());
    let blobs = place(home.path()).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let small = "unet/config.json";
    fs::write(blobs.join(sha256(&pipeline()[VAE])), &pipeline()[VAE]).unwrap();
    fs::write(
        blobs.join(git(&pipeline()[small])),
        forged(&pipeline()[small]),
    )
    .unwrap();
    let folder = fetch(&hub, "main").unwrap();
    let asked = server.asked();
    assert!(!asked.iter().any(|request| request.loads_large(VAE)));
    assert!(asked.iter().any(|request| request.loads(small)));
    assert_eq!(fs::read(folder.join(small)).unwrap(), pipeline()[small]);
    assert_eq!(tensors("v", candle_core::DType::F32), pipeline()[VAE]);
}
