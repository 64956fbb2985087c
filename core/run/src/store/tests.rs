//! Tests of the run folder.

#![allow(clippy::unwrap_used)]

use super::*;
use std::path::PathBuf;

/// A lock as a run writes it.
fn lock(seed: u64) -> Value {
    json!({"diffaug": "0", "manifest": {"seed": seed}, "weights": {}})
}

#[test]
fn the_first_difference_is_named_with_its_path() {
    let old = json!({"a": 1, "b": {"c": 2, "d": 3}});
    let new = json!({"a": 1, "b": {"c": 5, "d": 3}});
    let found = difference("", &old, &new).unwrap();
    assert_eq!(found, ("b.c".into(), "2".into(), "5".into()));
    assert_eq!(difference("", &old, &old), None);
}

#[test]
fn a_folder_is_taken_once() {
    let dir = tempfile::tempdir().unwrap();
    let first = Store::open(dir.path()).unwrap();
    let second = Store::open(dir.path()).err().unwrap().to_string();
    assert!(second.contains("in use by another"), "{second}");
    drop(first);
    Store::open(dir.path()).unwrap();
}

#[test]
fn a_lock_refuses_another_run() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _log) = Store::open(dir.path()).unwrap();
    store.lock("name = 1", &lock(1)).unwrap();
    store.lock("name = 1", &lock(1)).unwrap();
    let error = store.lock("name = 1", &lock(2)).unwrap_err();
    assert!(
        error.message.contains("`manifest.seed` = 1, now it is 2"),
        "{error}"
    );
}

#[test]
fn a_lock_of_an_older_run_says_nothing_of_newer_fields() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _log) = Store::open(dir.path()).unwrap();
    let mut newer = lock(1);
    newer[FILES] = json!({"generator.vae": "ab"});
    store.lock("", &lock(1)).unwrap();
    store.lock("", &newer).unwrap();
    store.write_json(LOCK, &newer).unwrap();
    let error = store.lock("", &lock(1)).unwrap_err();
    assert!(error.message.contains("`files` = {"), "{error}");
}

#[test]
fn the_commit_of_a_model_is_noted_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _log) = Store::open(dir.path()).unwrap();
    store.lock("", &lock(1)).unwrap();
    store.pin("generator.weights", "aaa").unwrap();
    store.pin("generator.weights", "aaa").unwrap();
    store.lock("", &lock(1)).unwrap();
    let error = store.pin("generator.weights", "bbb").unwrap_err();
    let sentence = "`hub.generator.weights` = aaa, now it is bbb";
    assert!(error.message.contains(sentence), "{error}");
}

/// Everything below a folder, with its content.
fn listing(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() && !path.is_symlink() {
            true => all.extend(listing(&path)),
            false => all.push((path.clone(), fs::read(&path).unwrap_or_default())),
        }
    }
    all.sort();
    all
}

#[test]
fn a_folder_of_others_is_refused_and_stays_as_it_is() {
    let begun = r#"{"level":"INFO","fields":{"message":"run"},"target":"diffaug::pipeline"}"#;
    let cases: [&[(&str, &str)]; 9] = [
        &[("m.toml", "name = 1"), ("notes.partial", "mine")],
        &[("manifest.toml", "mine")],
        &[("split.json", "{}")],
        &[(".abcdef.partial", "mine")],
        &[("log.jsonl", "{\"loss\": 1}\n")],
        &[("log.jsonl", begun), ("notes.txt", "mine")],
        &[("lock.json", "")],
        &[("lock.json", "{\"version\": 3}"), ("log.jsonl", begun)],
        &[("synthetic/images/1.png", "mine")],
    ];
    for case in cases {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in case {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let before = listing(dir.path());
        let error = Store::open(dir.path()).err().unwrap();
        assert!(
            error.message.contains("choose another"),
            "{case:?}: {error}"
        );
        assert_eq!(error.field, "output");
        assert_eq!(listing(dir.path()), before, "{case:?}");
    }
}

#[test]
fn a_folder_in_which_a_run_was_begun_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let begun = r#"{"level":"INFO","fields":{"message":"run"},"target":"diffaug::pipeline"}"#;
    for log in ["", begun] {
        fs::write(dir.path().join("log.jsonl"), log).unwrap();
        fs::write(dir.path().join(".abcdef.partial"), "half a lock").unwrap();
        Store::open(dir.path()).unwrap();
    }
    let inner = dir.path().join("new/inner");
    Store::open(&inner).unwrap();
    // A run of an older version, with things of the user's beside it.
    fs::write(inner.join("lock.json"), lock(1).to_string()).unwrap();
    fs::write(inner.join("notes.txt"), "mine").unwrap();
    Store::open(&inner).unwrap();
}

#[test]
fn only_what_runs_leave_half_written_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _log) = Store::open(dir.path()).unwrap();
    let ours = [
        ".abcdef.partial",
        "synthetic/images/.aB3dEf.partial",
        "synthetic/gallery/.aB3dEf.partial",
        "measures/.aB3dEf.partial",
        "segmenter/model.safetensors.partial",
        "evaluate/real/seed-0/weights/config.json.partial",
    ];
    let theirs = [
        "notes.partial",
        "my/.abcdef.partial",
        "synthetic/images/000001.png.partial",
        "segmenter/notes.partial",
    ];
    for name in ours.iter().chain(&theirs) {
        let path = store.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "half").unwrap();
    }
    #[cfg(unix)]
    {
        let (elsewhere, link) = (store.path("my"), store.path("segmenter/link"));
        std::os::unix::fs::symlink(elsewhere, link).unwrap();
        std::os::unix::fs::symlink(store.path("my"), store.path("rejected")).unwrap();
    }
    // Refused: nothing has been touched.
    fs::write(store.path("lock.json"), lock(1).to_string()).unwrap();
    store.lock("", &lock(2)).unwrap_err();
    assert!(store.path(ours[0]).exists() && !store.path("manifest.toml").exists());
    store.lock("name = 1", &lock(1)).unwrap();
    for name in ours {
        assert!(!store.path(name).exists(), "{name}");
    }
    for name in theirs {
        assert!(store.path(name).exists(), "{name}");
    }
}

#[test]
fn what_the_user_made_of_the_manifest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _log) = Store::open(dir.path()).unwrap();
    store.lock("name = 1", &lock(1)).unwrap();
    store.write("manifest.toml", "# mine\nname = 1").unwrap();
    store.lock("name = 1", &lock(1)).unwrap();
    let text = fs::read_to_string(store.path("manifest.toml")).unwrap();
    assert_eq!(text, "# mine\nname = 1");
    store.write("manifest.toml", "").unwrap();
    store.lock("name = 1", &lock(1)).unwrap();
    let text = fs::read_to_string(store.path("manifest.toml")).unwrap();
    assert_eq!(text, "name = 1");
}

#[test]
fn a_marker_vouches_for_what_it_names() {
    type Spoil = fn(&Path);
    let spoil: [(Spoil, &str); 3] = [
        (
            |path| fs::write(path.join("weights"), "").unwrap(),
            "weights` is empty)",
        ),
        (
            |path| fs::write(path.join("weights"), "othr").unwrap(),
            "is not what it was since `fit.json` was written",
        ),
        (|path| fs::remove_dir_all(path).unwrap(), "is gone"),
    ];
    for (spoil, sentence) in spoil {
        let dir = tempfile::tempdir().unwrap();
        let (store, log) = Store::open(dir.path()).unwrap();
        store.write("segmenter/weights", "good").unwrap();
        let value = json!({"steps": 3, "loss": 0.1});
        store
            .write_marker("fit.json", &value, &["segmenter"])
            .unwrap();
        store.lock("", &lock(1)).unwrap();
        let read = |store: &Store| store.read_marker::<Value>("fit.json");
        assert_eq!(read(&store).unwrap(), Some(value));
        drop((store, log));
        spoil(&dir.path().join("segmenter"));
        // Another process: nothing is known yet.
        let (store, _log) = Store::open(dir.path()).unwrap();
        let error = read(&store).unwrap_err().to_string();
        assert!(error.contains(sentence), "{error}");
    }
}

#[test]
fn a_marker_of_an_older_run_or_of_nothing_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _log) = Store::open(dir.path()).unwrap();
    store.write("old.json", "{\"steps\": 3}").unwrap();
    let old: Value = store.read_marker("old.json").unwrap().unwrap();
    assert_eq!(old["steps"], 3);
    store
        .write_marker("none.json", &None::<u8>, &["x"])
        .unwrap();
    let none: Option<Option<u8>> = store.read_marker("none.json").unwrap();
    assert_eq!(none, Some(None));
    assert_eq!(store.read_marker::<Value>("absent.json").unwrap(), None);
    store.write("empty.json", "").unwrap();
    let error = store.read_marker::<Value>("empty.json").unwrap_err();
    assert!(
        error
            .message
            .ends_with("is damaged; remove it to make it anew")
    );
}

#[cfg(unix)]
#[test]
fn a_file_system_without_locks_is_named_as_that() {
    use rustix::io::Errno;
    let refused = |errno: Errno, allowed| {
        let error = io::Error::from_raw_os_error(errno.raw_os_error());
        refuse_lock(Path::new("runs/x"), TryLockError::Error(error), allowed)
    };
    for errno in [Errno::NOLCK, Errno::OPNOTSUPP, Errno::NOSYS] {
        let error = refused(errno, false).unwrap_err().to_string();
        assert!(error.contains("keeps no locks"), "{error}");
        assert!(error.contains("DIFFAUG_NO_LOCK=1"), "{error}");
        refused(errno, true).unwrap();
    }
    // Whatever the user allows, a disk that fails is no file system without locks.
    let error = refused(Errno::IO, true).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot lock run folder `runs/x`"),
        "{error}"
    );
    refuse_lock(Path::new("runs/x"), TryLockError::WouldBlock, true).unwrap_err();
}
