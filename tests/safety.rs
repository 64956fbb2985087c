//! What must never happen, whatever is given: nothing of the user's is overwritten, nothing runs that
//! a pin does not allow, nothing damaged is taken for whole, nothing hangs, and no terminal obeys a
//! file's name.

use crate::util::{Output, Sandbox, assert_same, files, misbehave};
use sha2::{Digest, Sha256};
use std::{
    env::consts::DLL_SUFFIX,
    fs,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

/// The stages of `diffaug-misbehave` with their manifest `m.toml`.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.library("diffaug-misbehave", "misbehave.so");
    sandbox.write("m.toml", misbehave());
    sandbox
}

fn sha256(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A manifest that pins a library.
fn pinned(path: &str, sha256: &str) -> String {
    let pin = format!("libraries = [{{ path = \"{path}\", sha256 = \"{sha256}\" }}]");
    misbehave().replace("libraries = [\"./misbehave.so\"]", &pin)
}

/// Whether the code of a library ran.
fn ran(output: &Output) -> bool {
    output.stderr.contains("loaded plugin library")
}

#[test]
fn nothing_runs_before_every_pin_was_checked() {
    let sandbox = Sandbox::new();
    let name = format!("misbehave{DLL_SUFFIX}");
    sandbox.library("diffaug-misbehave", &format!("plugins/{name}"));
    sandbox.library("diffaug-misbehave", &format!("a/{name}"));
    let right = sha256(&fs::read(sandbox.path(&format!("a/{name}"))).unwrap());
    let wrong = "0".repeat(64);
    let check = |path: &str, sha256: &str| {
        sandbox.write("m.toml", pinned(path, sha256));
        sandbox.run("check m.toml -v --plugin-dir plugins")
    };
    // The folder's library is the pinned one, has its name, or is found by it.
    for path in [
        format!("./plugins/{name}"),
        format!("./a/{name}"),
        name.clone(),
    ] {
        let output = check(&path, &wrong);
        output.refused("it is not loaded");
        assert!(!ran(&output), "{output}");
    }
    for sha256 in [right.clone(), right.to_uppercase()] {
        let output = check(&format!("./a/{name}"), &sha256).ok();
        assert!(ran(&output), "{output}");
    }
    // The pin is right, but the folder holds another library of that name.
    let path = sandbox.path(&format!("plugins/{name}"));
    let mut other = fs::read(&path).unwrap();
    other.push(0);
    fs::write(&path, other).unwrap();
    let output = check(&format!("./a/{name}"), &right);
    output.refused("but the manifest pins");
    assert!(!ran(&output), "{output}");
    for sha256 in ["", "abc", &"g".repeat(64), &"0".repeat(65)] {
        let output = check(&format!("./a/{name}"), sha256);
        output.refused("`libraries[0].sha256` must be a SHA-256, 64 hexadecimal digits");
        assert!(output.stderr.contains("m.toml:2:"), "{output}");
    }
}

#[test]
#[cfg(unix)]
fn one_library_of_several_names_is_loaded_once() {
    let sandbox = sandbox();
    let folder = sandbox.path("plugins");
    fs::create_dir(&folder).unwrap();
    let own = sandbox.path("misbehave.so");
    std::os::unix::fs::symlink(&own, folder.join(format!("a{DLL_SUFFIX}"))).unwrap();
    fs::hard_link(&own, folder.join(format!("b{DLL_SUFFIX}"))).unwrap();
    let output = sandbox.run("check m.toml -v --plugin-dir plugins").ok();
    assert_eq!(
        output.stderr.matches("loaded plugin").count(),
        1,
        "{output}"
    );
}

#[test]
#[cfg(target_os = "linux")]
fn what_is_no_whole_library_is_refused_before_it_is_loaded() {
    let sandbox = sandbox();
    let whole = fs::read(sandbox.path("misbehave.so")).unwrap();
    let tried = |bytes: &[u8]| {
        sandbox.write("cut.so", bytes);
        sandbox.run("plugins --library ./cut.so")
    };
    tried(&[]).refused("cannot load `./cut.so`: the file is empty");
    let end = whole.len();
    for length in [
        1,
        4,
        63,
        64,
        500,
        4096,
        end / 4,
        end / 2,
        end / 4 * 3,
        end - 1,
    ] {
        tried(&whole[..length]).refused("cannot load `./cut.so`: the file is truncated: ");
    }
    tried(b"version https://git-lfs.github.com/spec/v1\n").refused("git lfs pull");
    let mut other = whole;
    other[18] ^= 0xff;
    tried(&other).refused("the file is a library for machine");
    fs::create_dir(sandbox.path("folder.so")).unwrap();
    sandbox
        .run("plugins --library ./folder.so")
        .refused("cannot load `./folder.so`: it is a folder");
    pipe(&sandbox, "pipe.so");
    for path in ["./pipe.so", "/dev/zero"] {
        sandbox
            .run(&format!("plugins --library {path}"))
            .refused(", expected a regular file");
    }
    sandbox.write("folder/note.txt", "");
    pipe(&sandbox, "folder/pipe.so");
    sandbox
        .run("plugins --plugin-dir folder")
        .refused("cannot load `folder/pipe.so`");
}

#[cfg(unix)]
fn pipe(sandbox: &Sandbox, name: &str) {
    let made = Command::new("mkfifo").arg(sandbox.path(name)).status();
    assert!(made.unwrap().success());
}

#[test]
fn a_folder_in_use_is_no_run_folder() {
    let sandbox = sandbox();
    sandbox.write("manifest.toml", "mine");
    sandbox.write("split.json", "mine");
    sandbox.write("notes.partial", "mine");
    sandbox.write("data/.abcdef.partial", "mine");
    sandbox.write("lock.json", "{}");
    let before = sandbox.files("", &[]);
    for (output, sentence) in [
        (".", "`./lock.json` is damaged or not of diffaug"),
        ("data", "`data` is no folder of a run and not empty"),
        ("../", "is no folder of a run and not empty"),
        (
            "m.toml",
            "`m.toml` is to become a run folder, but is a file",
        ),
        ("m.toml/below", "cannot"),
    ] {
        for verb in ["run", "generate", "train segmenter"] {
            let args = format!("{verb} m.toml --set output={output}");
            sandbox.run(&args).refused(sentence);
        }
    }
    assert_same(&before, &sandbox.files("", &[]));
    // The folder of another run is refused too, and nothing of it changes but its log.
    sandbox.run("run m.toml -q").ok();
    sandbox.write("runs/m/.abcdef.partial", "half");
    let before = sandbox.files("runs/m", &["log.jsonl"]);
    sandbox
        .run("run m.toml --set seed=5")
        .refused("was begun with `manifest.seed` = 0, now it is 5");
    assert_same(&before, &sandbox.files("runs/m", &["log.jsonl"]));
    // The manifest that a run wrote down may be run from there.
    sandbox.run("run runs/m/manifest.toml -q").ok();
    assert!(!sandbox.path("runs/m/.abcdef.partial").exists());
}

#[test]
#[cfg(unix)]
fn links_in_a_run_folder_are_not_swept() {
    let sandbox = sandbox();
    sandbox.run("run m.toml -q").ok();
    sandbox.write("mine/.abcdef.partial", "mine");
    sandbox.write("mine/model.safetensors.partial", "mine");
    for name in ["generator", "rejected", "linked"] {
        let link = sandbox.path(&format!("runs/m/{name}"));
        if !link.exists() {
            std::os::unix::fs::symlink(sandbox.path("mine"), link).unwrap();
        }
    }
    sandbox.run("run m.toml -q").ok();
    assert_eq!(sandbox.files("mine", &[]).len(), 2);
}

/// What is in a journal by whole lines.
fn lines(sandbox: &Sandbox) -> usize {
    let text = fs::read(sandbox.path("runs/m/synthetic/journal.jsonl")).unwrap_or_default();
    text.iter().filter(|byte| **byte == b'\n').count()
}

#[test]
fn a_damaged_journal_loses_what_is_damaged_and_nothing_else() {
    let args =
        "run m.toml --set dataset.count=40 --set synthesis.batch=4 --set generator.mode=slow";
    let whole = sandbox();
    whole.run(args).ok();
    let cut = sandbox();
    let mut child = cut.start(args);
    while lines(&cut) < 12 && child.try_wait().unwrap().is_none() {
        sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    child.wait().unwrap();
    let journal = "runs/m/synthetic/journal.jsonl";
    assert!(lines(&cut) >= 12, "it was not killed in time");
    // A byte of the second line is no text any more, and an image of the third batch is empty.
    let mut bytes = fs::read(cut.path(journal)).unwrap();
    let second = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 20;
    bytes[second] = 0xff;
    bytes.extend(b"{\"record\":{\"index\":1");
    fs::write(cut.path(journal), bytes).unwrap();
    cut.write("runs/m/synthetic/images/000009.png", "");
    let output = cut.run(args).ok();
    assert!(output.stderr.contains("1 of the lines of"), "{output}");
    assert!(
        output.stderr.contains("the images of 1 candidates"),
        "{output}"
    );
    let times = ["log.jsonl"];
    assert_same(&whole.files("runs/m", &times), &cut.files("runs/m", &times));
}

#[test]
fn a_journal_that_is_gone_is_told() {
    let sandbox = sandbox();
    sandbox.run("run m.toml -q --set synthesis.batch=2").ok();
    fs::remove_file(sandbox.path("runs/m/synthetic.json")).unwrap();
    fs::remove_dir_all(sandbox.path("runs/.steps")).unwrap();
    let output = sandbox.run("run m.toml --set synthesis.batch=2").ok();
    assert!(
        output
            .stderr
            .contains("the journal says nothing of the 7 images"),
        "{output}"
    );
}

/// Of each kind of file that a run leaves, one is emptied, as a power cut does. What is started again
/// then is refused, or makes the very same.
#[test]
#[cfg(feature = "builtin")]
fn an_emptied_file_of_a_finished_run_is_noticed() {
    let sandbox = crate::pipeline::tiny();
    let args = "run m.toml -q --set synthesis.keep_rejected=true";
    sandbox.run(args).ok();
    let times = ["log.jsonl"];
    let before = sandbox.files("runs/tiny", &times);
    let mut kinds = std::collections::BTreeMap::new();
    for name in before.keys() {
        let path = std::path::Path::new(name);
        kinds.insert((path.parent(), path.extension()), name);
    }
    let mut refused = Vec::new();
    let everything = kinds.into_values().map(String::as_str);
    for name in everything.chain(["lock.json", "synthetic.json", "segmenter.json"]) {
        let path = sandbox.path(&format!("runs/tiny/{name}"));
        fs::write(&path, "").unwrap();
        let output = sandbox.run(args);
        match output.code {
            Some(0) => assert_same(&before, &sandbox.files("runs/tiny", &times)),
            _ => {
                output.refused(name);
                refused.push(name.to_owned());
            }
        }
        fs::write(&path, &before[name]).unwrap();
    }
    let has = |word: &str| refused.iter().any(|name| name.contains(word));
    for word in [
        "synthetic/images/",
        "synthetic/masks/",
        "rejected.jsonl",
        "segmenter/",
        "per_image.csv",
    ] {
        assert!(has(word), "{word} in {refused:?}");
    }
    assert_same(&before, &sandbox.files("runs/tiny", &times));
    // Of equal length, so that only its content tells.
    let name = before
        .keys()
        .find(|name| name.ends_with(".safetensors"))
        .unwrap();
    let mut bytes = before[name].clone();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(sandbox.path(&format!("runs/tiny/{name}")), bytes).unwrap();
    sandbox.run(args).refused("is not what it was since");
}

#[test]
#[cfg(feature = "builtin")]
fn files_behind_options_belong_to_a_run() {
    let sandbox = crate::pipeline::tiny();
    // `polyp` is no path to the option `topic`, though it is there.
    for name in [
        "model/a",
        "vae/a",
        "tokens/a",
        "l.safetensors",
        "normal/a.txt",
        "polyp/a",
    ] {
        sandbox.write(name, "one");
    }
    let args = "train segmenter m.toml -q --set prompts.topic=polyp --set generator.use=sdxl-inpaint \
                --set generator.base=model --set generator.vae=vae --set generator.tokenizer=./tokens \
                --set generator.lora=[{path=\"l.safetensors\"}] --set synthesis.external=normal";
    sandbox.run(args).ok();
    let lock = sandbox.read_json("runs/tiny/lock.json");
    let named: Vec<&String> = lock["files"].as_object().unwrap().keys().collect();
    let expected = [
        "generator.base",
        "generator.lora[0].path",
        "generator.tokenizer",
        "generator.vae",
        "synthesis.external",
    ];
    let mut sorted = named.clone();
    sorted.sort();
    assert_eq!(sorted, expected);
    assert_eq!(lock["files"]["generator.lora[0].path"], sha256(b"one"));
    sandbox.write("polyp/a", "two");
    sandbox.run(args).ok();
    for (name, field) in [
        ("model/a", "generator.base"),
        ("vae/a", "generator.vae"),
        ("tokens/a", "generator.tokenizer"),
        ("l.safetensors", "generator.lora[0].path"),
        ("normal/a.txt", "synthesis.external"),
    ] {
        // Of equal length.
        sandbox.write(name, "two");
        // As if it had been begun with them.
        let begun = match field {
            "synthesis.external" => "runs/tiny/synthetic",
            _ => "runs/tiny/generator",
        };
        fs::create_dir(sandbox.path(begun)).unwrap();
        let sentence = format!("was begun with `files.{field}` = ");
        sandbox.run(args).refused(&sentence);
        fs::remove_dir(sandbox.path(begun)).unwrap();
        sandbox.run(args).ok();
        let now = sandbox.read_json("runs/tiny/lock.json");
        assert_ne!(now["files"][field], lock["files"][field]);
        assert_eq!(now["steps"]["segmenter"], lock["steps"]["segmenter"]);
        sandbox.write(name, "one");
        sandbox.run(args).ok();
    }
}

/// A cache with the model `org/tiny`, whose branch `main` is at a commit of that digit.
#[cfg(feature = "builtin")]
fn hub_cache(sandbox: &Sandbox, digit: &str) {
    let model = "cache/hub/models--org--tiny";
    let commit = digit.repeat(40);
    sandbox.write(&format!("{model}/refs/main"), &commit);
    let fixture = crate::util::root().join("plugins/sdxl-inpaint/fixtures/sd");
    for (name, bytes) in files(&fixture) {
        sandbox.write(&format!("{model}/snapshots/{commit}/{name}"), bytes);
    }
}

#[test]
#[cfg(feature = "builtin")]
fn a_branch_of_a_hub_that_moved_is_another_model() {
    let sandbox = crate::pipeline::tiny();
    let args = "train generator m.toml -q --set generator.use=sdxl-inpaint \
                --set generator.weights=org/tiny";
    let run = || {
        let mut command = sandbox.command(args);
        command.env("HF_HOME", "cache").env("HF_HUB_OFFLINE", "1");
        sandbox.finish(command)
    };
    hub_cache(&sandbox, "1");
    run().ok();
    let lock = sandbox.read_json("runs/tiny/lock.json");
    assert_eq!(lock["hub"]["generator.weights"], "1".repeat(40));
    run().ok();
    hub_cache(&sandbox, "2");
    run().refused("was begun with `hub.generator.weights` = 1111");
}

#[test]
#[cfg(all(unix, feature = "builtin"))]
fn weights_with_links_in_circles_and_pipes_come_to_an_end() {
    let sandbox = crate::pipeline::tiny();
    sandbox.run("train segmenter m.toml -q").ok();
    let folder = sandbox.path("runs/tiny/segmenter");
    std::os::unix::fs::symlink(&folder, folder.join("again")).unwrap();
    let args = "run m.toml -q --set output=other --set segmenter.weights=runs/tiny/segmenter";
    sandbox.run(args).ok();
    pipe(&sandbox, "runs/tiny/segmenter/pipe");
    sandbox.run(args).refused("it is a named pipe");
    sandbox
        .run(&args.replace("runs/tiny/segmenter", "runs/tiny/segmenter/pipe"))
        .refused("pipe");
}

#[test]
fn when_nobody_reads_the_talk_work_goes_on_in_silence() {
    let sandbox = sandbox();
    for (args, code) in [
        ("run m.toml -vvv --set validator.mode=log", 0),
        (
            "run m.toml --set generator.mode=panic --set output=other",
            2,
        ),
        ("check nowhere.toml", 1),
        ("frobnicate", 1),
    ] {
        let mut command = sandbox.command(args);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stderr.take());
        assert_eq!(child.wait().unwrap().code(), Some(code), "{args}");
    }
    // Whoever reads results may have seen enough.
    let mut command = sandbox.command("completions bash");
    command.stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
#[cfg(target_os = "linux")]
fn a_result_that_cannot_be_written_is_an_error() {
    let sandbox = sandbox();
    for args in ["plugins", "check m.toml --json", "--version", "--help"] {
        let mut command = sandbox.command(args);
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        command.stdout(full).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args}: {stderr}");
        let sentence = "error: cannot write the result to standard output: No space left";
        assert!(stderr.starts_with(sentence), "{args}: {stderr}");
    }
}

#[test]
#[cfg(unix)]
fn manifests_and_splits_that_have_no_end_are_refused() {
    let sandbox = sandbox();
    pipe(&sandbox, "pipe.toml");
    for path in ["pipe.toml", "/dev/zero", "."] {
        sandbox
            .run(&format!("check {path}"))
            .refused(&format!("cannot read manifest `{path}`: it is a "));
    }
    let args = "run m.toml --set split.file=";
    sandbox
        .run(&format!("{args}pipe.toml"))
        .refused("cannot read the split `pipe.toml`: it is a named pipe");
    sandbox.write("large.json", "");
    let large = fs::File::options()
        .write(true)
        .open(sandbox.path("large.json"));
    large.unwrap().set_len(1 << 30).unwrap();
    sandbox
        .run(&format!("{args}large.json"))
        .refused("cannot read the split `large.json`: it is larger than 256 MiB");
    for (set, sentence) in [
        ("synthesis.variants=20000000", "must be from 1 to 1000"),
        ("synthesis.batch=4000000000", "must be from 1 to 1024"),
        ("evaluate.runs=1000000", "must be from 1 to 1000"),
        ("images.max_megapixels=4000000000", "must be from 1 to 4000"),
        ("images.cache=4000000000", "must be from 0 to 16777216"),
        ("synthesis.ratio=1e300", "must be a number from 0 to 1000"),
    ] {
        let output = sandbox.run(&format!("check m.toml --set {set}"));
        output.refused(sentence);
        output.refused(set.split('=').next().unwrap());
    }
}

#[test]
#[cfg(unix)]
fn no_terminal_obeys_a_name() {
    let sandbox = Sandbox::new();
    let name = "mis\u{1b}]0;x\u{7}\u{9b}2J\r\nerror: \u{202e}.so";
    sandbox.library("diffaug-misbehave", name);
    let shown = r"mis\u{1b}]0;x\u{7}\u{9b}2J\r\nerror: \u{202e}.so";
    let run = |args: &[&str]| {
        let mut command = sandbox.command("");
        command.args(args);
        let output = command.output().unwrap();
        let texts = [output.stdout, output.stderr].map(|t| String::from_utf8(t).unwrap());
        for text in &texts {
            let harmful = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(!text.contains(harmful), "{text:?}");
        }
        texts
    };
    let library = format!("./{name}");
    let [stdout, stderr] = run(&["plugins", "generator", "--library", &library, "-vv"]);
    assert!(
        stdout.contains(shown) && stderr.contains("loaded plugin library"),
        "{stdout}{stderr}"
    );
    let [stdout, _] = run(&["plugins", "generator", "--library", &library, "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let of = |l: &serde_json::Value| l["origin"] == library.as_str();
    assert!(listed.as_array().unwrap().iter().any(of), "{stdout}");
    let [_, stderr] = run(&["plugins", "--library", "./no\u{1b}[2J\nerror: such.so"]);
    assert!(stderr.contains(r"./no\u{1b}[2J"), "{stderr}");
    let errors = stderr.lines().filter(|line| line.starts_with("error"));
    assert_eq!(errors.count(), 1, "{stderr}");
    sandbox.write("m.toml", "name = \"\u{9b}2J\u{202e}\"\nother = 1\n");
    let [_, stderr] = run(&["check", "m.toml"]);
    assert!(stderr.contains("m.toml:2:1"), "{stderr}");
    let [_, stderr] = run(&[
        "check",
        "m.toml",
        "--set",
        "name=\u{1b}[2J",
        "--set",
        "seed=x\u{7}",
    ]);
    assert!(stderr.starts_with("error: "), "{stderr}");
    let [_, stderr] = run(&["frob\u{9b}2J\r\u{202e}"]);
    assert!(stderr.contains(r"frob\u{9b}2J\r\u{202e}"), "{stderr}");
}

/// Makes the nth flush or renaming of the program fail (`FAIL_AT`), writing beyond so many bytes (`ROOM`), or
/// every change from the nth on, as a file system does that was mounted anew to be read only
/// (`READ_ONLY_AT`).
#[cfg(target_os = "linux")]
const BROKEN_DISK: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
static int calls;
static long written;
static int changes;
static int read_only(void) {
    const char *at = getenv("READ_ONLY_AT");
    if (!at || __sync_fetch_and_add(&changes, 1) < atoi(at)) return 0;
    errno = EROFS;
    return 1;
}
static int fails(void) {
    if (read_only()) return 1;
    const char *at = getenv("FAIL_AT");
    if (!at || __sync_fetch_and_add(&calls, 1) != atoi(at)) return 0;
    errno = EIO;
    return 1;
}
int fsync(int file) { return fails() ? -1 : syscall(SYS_fsync, file); }
int fdatasync(int file) { return fails() ? -1 : syscall(SYS_fdatasync, file); }
int rename(const char *from, const char *to) {
    return fails() ? -1 : syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}
int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    int mode = flags & O_CREAT ? va_arg(more, int) : 0;
    va_end(more);
    if (flags & (O_WRONLY | O_RDWR) && read_only()) return -1;
    return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
int mkdir(const char *path, mode_t mode) {
    return read_only() ? -1 : syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}
int unlink(const char *path) {
    return read_only() ? -1 : syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}
ssize_t write(int file, const void *bytes, size_t count) {
    const char *room = getenv("ROOM");
    struct stat is;
    /* Files in memory have no link. */
    int stored = !fstat(file, &is) && S_ISREG(is.st_mode) && is.st_nlink > 0;
    if (stored && read_only()) return -1;
    if (stored && room && __sync_add_and_fetch(&written, (long)count) > atol(room)) {
        errno = ENOSPC;
        return -1;
    }
    return syscall(SYS_write, file, bytes, count);
}
"#;

/// A sandbox with a library that makes the disk fail, to be loaded before all others.
#[cfg(target_os = "linux")]
fn with_broken_disk() -> Sandbox {
    let sandbox = sandbox();
    sandbox.write("disk.c", BROKEN_DISK);
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o", "disk.so", "disk.c"]);
    crate::util::built({
        cc.current_dir(sandbox.path(""));
        cc
    });
    sandbox
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_ends_the_run_and_the_next_goes_on() {
    let whole = sandbox();
    whole.run("run m.toml -q").ok();
    let cut = with_broken_disk();
    let mut failed = 0;
    for size in 0..24u32 {
        let mut command = cut.command("run m.toml -q");
        command.env("LD_PRELOAD", cut.path("disk.so"));
        command.env("ROOM", (size * size * 50).to_string());
        let output = cut.finish(command);
        if output.code != Some(0) {
            output.refused("No space left on device");
            failed += 1;
        }
    }
    assert!(failed > 5, "only {failed} starts failed");
    cut.run("run m.toml -q").ok();
    let times = ["log.jsonl"];
    assert_same(&whole.files("runs/m", &times), &cut.files("runs/m", &times));
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_system_that_turns_read_only_ends_the_run_and_the_next_goes_on() {
    let whole = sandbox();
    whole.run("run m.toml -q").ok();
    let cut = with_broken_disk();
    let mut failed = 0;
    for start in 0..16u32 {
        let mut command = cut.command("run m.toml -q");
        command.env("LD_PRELOAD", cut.path("disk.so"));
        command.env("READ_ONLY_AT", (start * start).to_string());
        let output = cut.finish(command);
        if output.code != Some(0) {
            output.refused("Read-only file system");
            failed += 1;
        }
    }
    assert!(failed > 5, "only {failed} starts failed");
    cut.run("run m.toml -q").ok();
    let times = ["log.jsonl"];
    assert_same(&whole.files("runs/m", &times), &cut.files("runs/m", &times));
}

#[test]
#[cfg(target_os = "linux")]
fn a_disk_that_fails_ends_the_run_and_the_next_goes_on() {
    let whole = sandbox();
    whole.run("run m.toml -q").ok();
    let whole = whole.files("runs/m", &["log.jsonl"]);
    let cut = with_broken_disk();
    let mut failed = 0;
    for at in 0..24 {
        let args = format!("run m.toml -q --set output=cut-{at}/m");
        let mut command = cut.command(&args);
        command.env("LD_PRELOAD", cut.path("disk.so"));
        command.env("FAIL_AT", at.to_string());
        let output = cut.finish(command);
        // What is kept for other runs may fail without harm to this one.
        if output.code != Some(0) {
            output.refused("Input/output error");
            failed += 1;
        }
        cut.run(&args).ok();
        assert_same(&whole, &cut.files(&format!("cut-{at}/m"), &["log.jsonl"]));
    }
    assert!(failed > 5, "only {failed} starts failed");
}

#[test]
fn secrets_are_in_no_log_and_no_folder() {
    let sandbox = sandbox();
    let mut command = sandbox.command("run m.toml -vvv --json");
    command.env("HF_TOKEN", "hf_secretsecret");
    let output = sandbox.finish(command).ok();
    assert!(!output.to_string().contains("hf_secret"), "{output}");
    for (name, bytes) in files(&sandbox.path("runs")) {
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("hf_secret"), "{name}");
    }
}

#[test]
fn what_is_there_is_not_converted_over() {
    let sandbox = Sandbox::new();
    sandbox.write("model.ckpt", "no archive");
    sandbox.write("mine/file", "mine");
    for output in ["mine", "mine/", ".", "mine/file"] {
        let args = format!("convert segmenter sdseg model.ckpt {output}");
        let output = sandbox.run(&args);
        assert_eq!(output.code, Some(1), "{output}");
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("nowhere", sandbox.path("link")).unwrap();
        let output = sandbox.run("convert segmenter sdseg model.ckpt link");
        assert_eq!(output.code, Some(1), "{output}");
        assert!(sandbox.path("link").is_symlink());
    }
    assert_eq!(sandbox.read("mine/file"), "mine");
}
