//! A folder to run `diffaug` in, and plugin libraries to load there.

use std::{
    collections::{BTreeMap, HashMap},
    env::consts::{DLL_PREFIX, DLL_SUFFIX},
    fmt, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{LazyLock, Mutex},
};

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The binary under test.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_diffaug"))
}

/// Where cargo builds: the binary lies in `TARGET/PROFILE/`.
pub fn target_dir() -> &'static Path {
    binary().parent().unwrap().parent().unwrap()
}

/// What a run of `diffaug` came to. Paths are those of [`Sandbox::clean`].
#[derive(Debug)]
pub struct Output {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Results.
    pub stdout: String,
    /// Talk.
    pub stderr: String,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => writeln!(f, "exit {code}")?,
            None => writeln!(f, "killed")?,
        }
        for text in [&self.stdout, &self.stderr] {
            f.write_str(text)?;
        }
        Ok(())
    }
}

impl Output {
    /// Asserts that all went well.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self}");
        self
    }

    /// stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// Asserts that the user is told what to mend: exit code 1 and `sentence` in one `error: ` line.
    #[track_caller]
    pub fn refused(&self, sentence: &str) {
        assert_eq!(self.code, Some(1), "{self}");
        let mut errors = self.stderr.lines().filter(|l| l.starts_with("error: "));
        let line = errors.next().unwrap_or_default();
        assert!(line.contains(sentence), "no `{sentence}` in: {self}");
        assert_eq!(errors.next(), None, "{self}");
        assert!(!self.stderr.contains("panic"), "{self}");
    }
}

/// A temporary folder in which `diffaug` runs without the user's environment.
pub struct Sandbox {
    dir: tempfile::TempDir,
    binary: PathBuf,
}

impl Sandbox {
    /// An empty folder.
    pub fn new() -> Self {
        Self::with(binary().to_owned())
    }

    /// An empty folder for another build of the binary.
    pub fn with(binary: PathBuf) -> Self {
        // The program speaks of itself by its real path.
        let base = fs::canonicalize(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let dir = tempfile::tempdir_in(base).unwrap();
        Sandbox { dir, binary }
    }

    /// An empty folder but for the binary itself, `bin/diffaug`, so that files can lie beside it.
    pub fn with_program() -> Self {
        let mut sandbox = Self::new();
        sandbox.write("bin/README", "");
        sandbox.binary = sandbox.path("bin/diffaug");
        fs::hard_link(binary(), &sandbox.binary).unwrap();
        sandbox
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file, and its folders where needed.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Reads a text file.
    #[track_caller]
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Reads a JSON file.
    #[track_caller]
    pub fn read_json(&self, name: &str) -> serde_json::Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }

    /// Reads a file of one JSON value a line.
    #[track_caller]
    pub fn read_lines(&self, name: &str) -> Vec<serde_json::Value> {
        let text = self.read(name);
        text.lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect()
    }

    /// Puts the library of a package of the workspace into the folder as `name`.
    pub fn library(&self, package: &str, name: &str) {
        let to = self.path(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(library(package), to).unwrap();
    }

    /// The command `diffaug ARGS`, to be run in the folder.
    pub fn command(&self, args: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(args.split_whitespace())
            .current_dir(self.dir.path());
        command
            .env("NO_COLOR", "1")
            .env_remove("DIFFAUG_PLUGIN_PATH");
        command
    }

    /// Runs `diffaug ARGS` to its end.
    pub fn run(&self, args: &str) -> Output {
        self.finish(self.command(args))
    }

    /// Runs a command to its end.
    pub fn finish(&self, mut command: Command) -> Output {
        let output = command.output().unwrap();
        Output {
            code: output.status.code(),
            stdout: self.clean(&output.stdout),
            stderr: self.clean(&output.stderr),
        }
    }

    /// Starts `diffaug ARGS` and leaves it running.
    pub fn start(&self, args: &str) -> Child {
        let mut command = self.command(args);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    /// Text without what differs between machines: folders, libraries' suffix, durations.
    pub fn clean(&self, text: &[u8]) -> String {
        let text = String::from_utf8_lossy(text).into_owned();
        let tmp = self.dir.path().display().to_string();
        let text = text.replace(&tmp, "[TMP]");
        let text = text.replace(&root().display().to_string(), "[ROOT]");
        let text = text.replace(DLL_SUFFIX, ".so");
        let lines = text.lines().map(without_duration);
        lines.map(|line| line + "\n").collect()
    }

    /// Every file below a folder with its content, the named ones left out.
    pub fn files(&self, folder: &str, without: &[&str]) -> BTreeMap<String, Vec<u8>> {
        let mut all = files(&self.path(folder));
        let left_out = |name: &str| without.iter().any(|file| Path::new(name).ends_with(file));
        all.retain(|name, _| !left_out(name));
        all
    }
}

/// Every file below a folder, by its path from there, with its content.
pub fn files(base: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![base.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(base).unwrap().display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else {
                all.insert(name, fs::read(path).unwrap());
            }
        }
    }
    all
}

/// Asserts that two folders hold the same files; says which differ, not what is in them.
#[track_caller]
pub fn assert_same(left: &BTreeMap<String, Vec<u8>>, right: &BTreeMap<String, Vec<u8>>) {
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(left), names(right));
    let differing: Vec<&String> = left
        .keys()
        .filter(|name| left[*name] != right[*name])
        .collect();
    assert!(differing.is_empty(), "{differing:?} differ");
}

/// `painting: 3 of 4 accepted (0.2 s)` takes another time everywhere.
fn without_duration(line: &str) -> String {
    match line.rfind(" (") {
        Some(at) if line.ends_with(" s)") => format!("{} (TIME)", &line[..at]),
        _ => line.to_owned(),
    }
}

/// Asks a running process to stop, as Ctrl-C does.
pub fn interrupt(child: &Child) {
    let id = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &id]).status().unwrap();
    assert!(sent.success());
}

/// The library of a package of the workspace, built once a process.
pub fn library(package: &str) -> PathBuf {
    static BUILT: LazyLock<Mutex<HashMap<String, PathBuf>>> = LazyLock::new(Mutex::default);
    let mut built = BUILT.lock().unwrap();
    let build = || build_library(&root().join("Cargo.toml"), package);
    built
        .entry(package.to_owned())
        .or_insert_with(build)
        .clone()
}

/// Builds a package as a `cdylib` beside the tested binary and answers where it lies.
pub fn build_library(manifest: &Path, package: &str) -> PathBuf {
    let mut command = cargo("rustc", manifest, target_dir());
    command.args(["--package", package, "--lib", "--crate-type", "cdylib"]);
    built(command);
    let name = package.replace('-', "_");
    let profile = binary().parent().unwrap();
    profile.join(format!("{DLL_PREFIX}{name}{DLL_SUFFIX}"))
}

/// A cargo command that builds into a target folder, in the tested binary's profile.
pub fn cargo(verb: &str, manifest: &Path, target: &Path) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.arg(verb).arg("--manifest-path").arg(manifest);
    command.arg("--target-dir").arg(target);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    command
}

/// Runs a cargo command that has to succeed.
#[track_caller]
pub fn built(mut command: Command) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{text}");
}

/// A manifest of the stages of `diffaug-misbehave`, whose library is `./misbehave.so` of the
/// sandbox.
pub fn misbehave() -> String {
    let stage = |name: &str| format!("[{name}]\nuse = \"misbehave\"\n");
    let stages: String = ["dataset", "prompts", "generator", "segmenter", "validator"]
        .map(stage)
        .concat();
    format!("name = \"m\"\nlibraries = [\"./misbehave.so\"]\n{stages}")
}
