//! `diffaug experiment --kubernetes`: the script that it writes, against a stub of kubectl that keeps jobs as
//! files, and a controller that runs their pods here as Kubernetes would.

use crate::{
    pipeline::tiny,
    util::{Sandbox, assert_same, binary},
};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

/// Two arms that are whole, and one whose weights are missing.
const ARMS: &str = r#"
base = "m.toml"
name = "Abl_1"

[experiment]
seeds = [0, 1]

[arms.traditional]
synthesis.ratio = 0

[arms.painted]

[arms.broken]
segmenter.weights = "nowhere"
"#;

/// `jobs/NAME.json` is what was created, `jobs/NAME.state` what the controller says of it, and `jobs/calls` how
/// kubectl was called. The first question is not answered.
const KUBECTL: &str = r#"#!/bin/bash
set -eu
mkdir -p jobs
echo "$*" >>jobs/calls
[ "$1" = --namespace=here ]
case "$2 $3" in
"create --filename=-")
    job=$(cat)
    [[ $job =~ \"name\":\"([^\"]*)\" ]]
    name=${BASH_REMATCH[1]}
    [ ! -e "jobs/$name.json" ]
    echo "$job" >jobs/new
    mv jobs/new "jobs/$name.json"
    echo "job.batch/$name created"
    ;;
"get job")
    [ -e jobs/asked ] || { touch jobs/asked; echo "no answer" >&2; exit 1; }
    [ ! -e "jobs/$4.json" ] || echo "$4$(cat "jobs/$4.state" 2>/dev/null || true) at $(cat "jobs/$4.failed" 2>/dev/null || true)"
    ;;
"delete job")
    rm "jobs/$4.json" "jobs/$4.state" "jobs/$4.failed"
    ;;
*) exit 1 ;;
esac
"#;

fn sandbox() -> Sandbox {
    let sandbox = tiny();
    sandbox.write("x.toml", ARMS);
    sandbox
}

/// A sandbox with a script, the stub, and `diffaug` on the PATH of its pods.
fn cluster() -> Sandbox {
    let sandbox = sandbox();
    let args = "experiment x.toml -q --shards 2 --kubernetes submit.sh --set synthesis.variants=2";
    sandbox.run(args).ok();
    sandbox.write("bin/kubectl", KUBECTL);
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(sandbox.path("bin/kubectl"), mode).unwrap();
    fs::hard_link(binary(), sandbox.path("bin/diffaug")).unwrap();
    sandbox
}

/// A command in the sandbox with its `bin` on the PATH.
fn command(sandbox: &Sandbox, program: &str, args: &[&str]) -> Command {
    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new(program);
    command.args(args).current_dir(sandbox.path(""));
    command.env("PATH", format!("{}:{path}", sandbox.path("bin").display()));
    command.env("NO_COLOR", "1");
    command
}

/// A pod that has ended: the phase of its job, its index, its code.
type Ended = (String, u64, Option<i32>);

/// What Kubernetes does.
struct Controller<'a> {
    sandbox: &'a Sandbox,
    /// The pod that is killed the first time, by phase and index.
    killed: Option<(&'a str, u64)>,
    ended: Vec<Ended>,
}

impl Controller<'_> {
    /// Runs the script, and the jobs that it makes; answers its code and what it said.
    fn run(&mut self) -> (Option<i32>, String) {
        let args = "submit.sh --image repo.example:5000/diffaug@sha256:0a --claim data-1 --gpus 2 --namespace here --every 0.05";
        let args: Vec<&str> = args.split(' ').collect();
        let mut script = command(self.sandbox, "bash", &args);
        script.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut script = script.spawn().unwrap();
        while script.try_wait().unwrap().is_none() {
            self.jobs();
            sleep(Duration::from_millis(20));
        }
        let output = script.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        (output.status.code(), said)
    }

    /// Runs the pods of every job that is new.
    fn jobs(&mut self) {
        let Ok(files) = fs::read_dir(self.sandbox.path("jobs")) else {
            return;
        };
        let files = files.map(|file| file.unwrap().path());
        let new = |path: &PathBuf| {
            path.extension().is_some_and(|e| e == "json") && !path.with_extension("state").exists()
        };
        for path in files.filter(new) {
            let job: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let pods = job["spec"]["completions"].as_u64().unwrap();
            let failed = (0..pods).filter(|index| !self.index(&job, *index));
            let failed: Vec<String> = failed.map(|index| index.to_string()).collect();
            let state = match failed.is_empty() {
                true => " SuccessCriteriaMet Complete",
                false => " FailureTarget Failed",
            };
            fs::write(path.with_extension("failed"), failed.join(",")).unwrap();
            fs::write(path.with_extension("state.new"), state).unwrap();
            fs::rename(
                path.with_extension("state.new"),
                path.with_extension("state"),
            )
            .unwrap();
        }
    }

    /// Runs pods of an index until one ends well, or the index has failed.
    fn index(&mut self, job: &Value, index: u64) -> bool {
        let spec = &job["spec"];
        let name = job["metadata"]["name"].as_str().unwrap();
        let phase = name.rsplit('-').next().unwrap();
        let retries = spec["backoffLimitPerIndex"].as_u64().unwrap();
        let fatal = &spec["podFailurePolicy"]["rules"][1];
        assert_eq!(fatal["action"], "FailIndex");
        let fatal = fatal["onExitCodes"]["values"].as_array().unwrap();
        for _ in 0..=retries {
            let mut pod = pod(self.sandbox, job, index).spawn().unwrap();
            if self.killed == Some((phase, index)) {
                self.killed = None;
                pod.kill().unwrap();
            }
            let code = pod.wait().unwrap().code();
            self.ended.push((phase.to_owned(), index, code));
            match code {
                Some(0) => return true,
                Some(code) if fatal.contains(&code.into()) => return false,
                _ => {}
            }
        }
        false
    }

    fn codes(&self, phase: &str, index: u64) -> Vec<Option<i32>> {
        let ended = self.ended.iter();
        let ended = ended.filter(|(of, at, _)| of == phase && *at == index);
        ended.map(|(_, _, code)| *code).collect()
    }
}

/// The process of a pod, where its claim is mounted already.
fn pod(sandbox: &Sandbox, job: &Value, index: u64) -> Command {
    let spec = &job["spec"]["template"]["spec"];
    let container = &spec["containers"][0];
    assert_eq!(container["image"], "repo.example:5000/diffaug@sha256:0a");
    assert_eq!(container["resources"]["limits"]["nvidia.com/gpu"], "2");
    let claim = &spec["volumes"][0]["persistentVolumeClaim"];
    assert_eq!(claim["claimName"], "data-1");
    let folder = container["workingDir"].as_str().unwrap();
    assert_eq!(
        folder,
        sandbox.path("").to_str().unwrap().trim_end_matches('/')
    );
    assert_eq!(container["volumeMounts"][0]["mountPath"], folder);
    let words = ["command", "args"].map(|field| container[field].as_array().unwrap().clone());
    let words: Vec<String> = words
        .concat()
        .iter()
        .map(|word| word.as_str().unwrap().replace("$$", "$"))
        .collect();
    let args: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
    let mut pod = command(sandbox, &words[0], &args);
    pod.current_dir(folder);
    pod.env("JOB_COMPLETION_INDEX", index.to_string());
    pod.stdout(Stdio::null()).stderr(Stdio::null());
    pod
}

/// How often a job was created.
fn created(sandbox: &Sandbox) -> usize {
    let calls = sandbox.read("jobs/calls");
    calls
        .lines()
        .filter(|call| call.contains(" create "))
        .count()
}

#[test]
fn pods_make_the_same_bytes_as_one_process() {
    let (one, many) = (sandbox(), cluster());
    let alone = one.run("experiment x.toml -q --set synthesis.variants=2");
    assert_eq!(alone.code, Some(1), "{alone}");
    let mut kubernetes = Controller {
        sandbox: &many,
        killed: Some(("train", 2)),
        ended: Vec::new(),
    };
    let (code, said) = kubernetes.run();
    assert_eq!(code, Some(1), "{said}");
    // A pod that was killed is repeated, one that its user has to mend is not; both leave the others.
    assert_eq!(kubernetes.codes("train", 2), [None, Some(0)]);
    let ended = &kubernetes.ended;
    let refused = ended.iter().filter(|(_, _, code)| *code == Some(1));
    let refused: Vec<&str> = refused.map(|(phase, _, _)| phase.as_str()).collect();
    assert!(
        refused.contains(&"train") && refused.contains(&"tables"),
        "{refused:?}"
    );
    assert!(
        ended
            .iter()
            .all(|(_, _, code)| matches!(code, None | Some(0 | 1)))
    );
    assert!(
        said.contains("no answer") && said.contains("-paint: "),
        "{said}"
    );
    assert!(said.contains("-tables: failed at 0"), "{said}");
    for arm in ["traditional", "painted"] {
        let folder = format!("runs/Abl_1/{arm}");
        let without = ["log.jsonl"];
        assert_same(
            &one.files(&folder, &without),
            &many.files(&folder, &without),
        );
    }
    for name in ["table.md", "table.csv", "table.tex", "experiment.json"] {
        let name = format!("runs/Abl_1/{name}");
        assert_eq!(one.read(&name), many.read(&name));
    }

    // Called again, it makes the jobs again that failed, and no others.
    let (before, jobs) = (
        created(&many),
        fs::read_dir(many.path("jobs")).unwrap().count(),
    );
    let failed = said.matches(": failed at").count();
    let (code, again) = kubernetes.run();
    assert_eq!(code, Some(1), "{again}");
    assert_eq!(created(&many), before + failed, "{again}");
    assert_eq!(fs::read_dir(many.path("jobs")).unwrap().count(), jobs);
    assert!(again.contains(": is there"), "{again}");
}

#[test]
fn what_the_script_cannot_pass_on_is_refused() {
    let sandbox = cluster();
    for (args, sentence) in [
        (
            "--claim c",
            "`--image` and `--claim` are needed: bash submit.sh --image IMAGE",
        ),
        (
            "--image a&b --claim c",
            "`--image` is `a&b`, expected what `[A-Za-z0-9]",
        ),
        ("--image a --claim C", "`--claim` is `C`, expected"),
        ("--image a --claim c\",", "`--claim` is `c\",`, expected"),
        (
            "--image a --claim c --gpus 08",
            "`--gpus` is `08`, expected",
        ),
        ("--image a --claim c --gpus", "`--gpus` is ``, expected"),
        ("--image a --claims c", "there is no option `--claims`"),
    ] {
        let mut words = vec!["submit.sh"];
        words.extend(args.split(' '));
        let output = sandbox.finish(command(&sandbox, "bash", &words));
        output.refused(sentence);
    }
    let help = sandbox.finish(command(&sandbox, "bash", &["submit.sh", "--help"]));
    assert!(help.ok().stdout.contains("[--gpus N]"));
    assert!(!sandbox.path("jobs").exists());
    sandbox
        .run("experiment x.toml --kubernetes k.sh --set output=/elsewhere/x")
        .refused("the experiment writes to `/elsewhere");
    let both = sandbox.run("experiment x.toml --kubernetes k.sh --slurm s.sh");
    assert!(both.stderr.contains("cannot be used with"), "{both}");
    assert!(!sandbox.path("k.sh").exists());
}
