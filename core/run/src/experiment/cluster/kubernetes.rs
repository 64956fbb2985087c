//! A script for Kubernetes: an Indexed Job for each phase, which the script waits for.
//!
//! A Job cannot wait for another, and pods that waited would hold their GPUs. A failed index leaves the
//! others (`backoffLimitPerIndex`, stable since Kubernetes 1.33): one that ends with code 1, which is for
//! the user to mend, is not repeated, and a pod that its node lost or gave up does not count.
//!
//! The objects are JSON. Image, claim and GPUs are left to the script, which puts them in place of whole
//! fields: text in quotes, as no string of JSON can hold it.

use super::{Call, Phase, all_quoted, count};
use crate::experiment::Experiment;
use diffaug::{Error, Result};
use serde_json::{Value, json};
use std::path::{Component, Path};

/// The part of the script that is the same for all.
const FUNCTIONS: &str = include_str!("kubernetes.sh");
/// The program, on the PATH of the image.
const PROGRAM: &str = "diffaug";
/// Most steps of a job. Each of its pods holds the names of all, which the server has to keep, and no list of
/// arguments may be longer than about 2 MB.
const MOST_STEPS: usize = 200;
/// How often a step is repeated after it was killed or failed by our fault.
const RETRIES: u32 = 3;
/// Characters of an experiment's name in those of jobs. These end in the id, a phase, the number of the job
/// and, for pods, that of the step, and must not be longer than 63 together.
const MOST_NAME: usize = 24;
/// The code of the program for what the user has to mend.
const MENDABLE: i32 = 1;

/// A script that submits `phases` and waits for each, and a last job that makes the tables.
///
/// # Errors
/// When pods could not get at the folders of the experiment.
pub fn script(
    experiment: &Experiment,
    phases: &[Phase],
    call: &Call<'_>,
    id: &str,
) -> Result<String> {
    let jobs = Jobs {
        name: format!("{}-{id}", label(&experiment.name)),
        folder: mounted(experiment, call.folder)?,
        program: format!("{PROGRAM} {}", all_quoted(call.words.iter().skip(1))),
    };
    let mut text = format!(
        r#"#!/bin/bash
# Submits the experiment `{experiment}` to Kubernetes 1.33 or newer: {count} steps in {phases} phases, each an
# Indexed Job (or several, of {MOST_STEPS} steps), one phase after the other, and a Job that makes the tables.
#
#     bash THIS_FILE --image IMAGE --claim CLAIM [--gpus N] [--namespace NAMESPACE] [--every SECONDS]
#
# IMAGE has `diffaug` on its PATH. The root of CLAIM, a persistent volume claim that many pods may write to, is
# the folder in which this file was written; pods see it under the same path and nothing else of this machine.
# Renaming and exclusive creation must hold for all of them (NFSv4, Lustre, CephFS).
#
# The script may be stopped and called again: jobs that are at work or complete stay as they are, failed ones
# are made again, and what their steps left before is used. What else pods need (memory, tolerations) can be
# written into the objects below, one a line. This removes all jobs:
#
#     kubectl delete jobs --selector=app.kubernetes.io/instance={name}
"#,
        experiment = experiment.name,
        count = count(phases),
        phases = phases.len(),
        name = jobs.name,
    );
    text += FUNCTIONS;
    for phase in phases {
        text += &jobs.phase(phase)?;
    }
    text += &jobs.submit("tables", &[])?;
    text += &format!(
        "finish {}-tables\n[[ $ended == complete ]] || exit 1\n",
        jobs.name
    );
    Ok(text)
}

/// What all jobs have in common.
struct Jobs<'a> {
    /// How their names begin.
    name: String,
    /// Where the claim is mounted.
    folder: &'a str,
    /// The program and its arguments up to `--step`, for a shell.
    program: String,
}

impl Jobs<'_> {
    /// The part of the script that submits a phase and waits for it.
    fn phase(&self, phase: &Phase) -> Result<String> {
        let mut text = String::new();
        let mut names = String::new();
        for (i, steps) in phase.steps.chunks(MOST_STEPS).enumerate() {
            let name = match phase.steps.len() > MOST_STEPS {
                true => format!("{}-{i}", phase.name),
                false => phase.name.to_owned(),
            };
            text += &self.submit(&name, steps)?;
            names += &format!(" {}-{name}", self.name);
        }
        Ok(format!("{text}finish{names}\n"))
    }

    /// The part of the script that submits a job.
    fn submit(&self, name: &str, steps: &[String]) -> Result<String> {
        let name = format!("{}-{name}", self.name);
        let job = serde_json::to_string(&self.job(&name, steps)).map_err(Error::internal)?;
        Ok(format!("begin {name} <<'JOB'\n{job}\nJOB\n"))
    }

    /// A job with a pod for each of `steps`; without any, a pod for the whole experiment.
    fn job(&self, name: &str, steps: &[String]) -> Value {
        let script = match steps {
            [] => format!("exec {}", self.program),
            _ => format!(
                "shift \"$JOB_COMPLETION_INDEX\"\nexec {} --step \"$1\"",
                self.program
            ),
        };
        let steps: Vec<String> = steps.iter().map(|step| literal(step)).collect();
        let pods = steps.len().max(1);
        let labels = json!({
            "app.kubernetes.io/name": PROGRAM,
            "app.kubernetes.io/instance": self.name,
        });
        json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": { "name": name, "labels": labels },
            "spec": {
                "completionMode": "Indexed",
                "completions": pods,
                "parallelism": pods,
                "backoffLimitPerIndex": RETRIES,
                "podFailurePolicy": { "rules": [
                    {
                        "action": "Ignore",
                        "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }],
                    },
                    {
                        "action": "FailIndex",
                        "onExitCodes": {
                            "containerName": PROGRAM, "operator": "In", "values": [MENDABLE],
                        },
                    },
                ] },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": {
                        "restartPolicy": "Never",
                        "automountServiceAccountToken": false,
                        "containers": [{
                            "name": PROGRAM,
                            "image": "IMAGE",
                            "command": ["sh", "-c", literal(&script), PROGRAM],
                            "args": steps,
                            "workingDir": self.folder,
                            "resources": {},
                            "volumeMounts": [{ "name": "folder", "mountPath": self.folder }],
                        }],
                        "volumes": [{
                            "name": "folder",
                            "persistentVolumeClaim": { "claimName": "CLAIM" },
                        }],
                    },
                },
            },
        })
    }
}

/// A word of a command as Kubernetes leaves it: it replaces `$(NAME)`, and `$$` by `$`.
fn literal(word: &str) -> String {
    word.replace('$', "$$")
}

/// What a DNS label can hold of a name.
fn label(name: &str) -> String {
    let plain = |c: char| match c.is_ascii_alphanumeric() {
        true => c.to_ascii_lowercase(),
        false => '-',
    };
    let name: String = name.chars().map(plain).collect();
    let name: String = name.trim_matches('-').chars().take(MOST_NAME).collect();
    match name.trim_end_matches('-') {
        "" => "experiment".to_owned(),
        name => name.to_owned(),
    }
}

/// The folder as the path of a mount, when what pods write into the experiment's folders lands below it.
fn mounted<'a>(experiment: &Experiment, folder: &'a Path) -> Result<&'a str> {
    let stores = experiment.cells.iter().map(|cell| cell.manifest.store());
    for path in stores.chain([experiment.folder.clone()]) {
        let above = path.components().any(|part| part == Component::ParentDir);
        if above || !folder.join(&path).starts_with(folder) {
            return Err(Error::config(format!(
                "the experiment writes to `{}`, expected a folder below `{}` without `..`: pods see no other",
                path.display(),
                folder.display()
            )));
        }
    }
    let mountable = |path: &&str| !path.contains(':') && *path != "/";
    folder.to_str().filter(mountable).ok_or_else(|| {
        Error::config(format!(
            "the current folder is `{}`, expected one that a claim can be mounted at: not `/`, in Unicode, \
             without `:`",
            folder.display()
        ))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{experiment::settings::Settings, manifest::Document};

    fn experiment(name: &str) -> Experiment {
        Experiment {
            name: name.to_owned(),
            folder: "runs/x".into(),
            settings: Settings::default(),
            cells: Vec::new(),
            document: Document::default(),
        }
    }

    fn call(words: &[&str], phases: &[Phase]) -> String {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let folder = Path::new("/data/it's here");
        let call = Call {
            folder,
            words: &words,
        };
        script(&experiment("Abl_1"), phases, &call, "0a1b").unwrap()
    }

    fn phase(steps: usize) -> Phase {
        Phase {
            name: "train",
            steps: (0..steps).map(|i| format!("arm:seed-{i}")).collect(),
        }
    }

    /// The jobs in a script.
    fn jobs(script: &str) -> Vec<Value> {
        let objects = script.lines().filter(|line| line.starts_with('{'));
        objects
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn a_job_has_a_pod_for_each_step() {
        let words = [
            "/here/diffaug",
            "experiment",
            "a b.toml",
            "--set",
            "x=$(HOME)$$",
        ];
        let script = call(&words, &[phase(2)]);
        let [train, tables] = &jobs(&script)[..] else {
            panic!("{script}")
        };
        let labels = json!({
            "app.kubernetes.io/name": "diffaug",
            "app.kubernetes.io/instance": "abl-1-0a1b",
        });
        let program = "exec diffaug experiment 'a b.toml' --set 'x=$$(HOME)$$$$'";
        let expected = json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": { "name": "abl-1-0a1b-train", "labels": labels },
            "spec": {
                "completionMode": "Indexed",
                "completions": 2,
                "parallelism": 2,
                "backoffLimitPerIndex": 3,
                "podFailurePolicy": { "rules": [
                    {
                        "action": "Ignore",
                        "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }],
                    },
                    {
                        "action": "FailIndex",
                        "onExitCodes": {
                            "containerName": "diffaug", "operator": "In", "values": [1],
                        },
                    },
                ] },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": {
                        "restartPolicy": "Never",
                        "automountServiceAccountToken": false,
                        "containers": [{
                            "name": "diffaug",
                            "image": "IMAGE",
                            "command": [
                                "sh",
                                "-c",
                                format!(
                                    "shift \"$$JOB_COMPLETION_INDEX\"\n{program} --step \"$$1\""
                                ),
                                "diffaug",
                            ],
                            "args": ["arm:seed-0", "arm:seed-1"],
                            "workingDir": "/data/it's here",
                            "resources": {},
                            "volumeMounts": [{ "name": "folder", "mountPath": "/data/it's here" }],
                        }],
                        "volumes": [{
                            "name": "folder",
                            "persistentVolumeClaim": { "claimName": "CLAIM" },
                        }],
                    },
                },
            },
        });
        assert_eq!(*train, expected);
        assert_eq!(tables["metadata"]["name"], "abl-1-0a1b-tables");
        assert_eq!(tables["spec"]["completions"], 1);
        let container = &tables["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["command"][2], program);
        assert_eq!(container["args"], json!([]));
        assert!(script.contains("\nfinish abl-1-0a1b-train\nbegin abl-1-0a1b-tables "));
    }

    #[test]
    fn large_phases_are_several_jobs_that_are_waited_for_together() {
        let script = call(&["diffaug", "experiment"], &[phase(401)]);
        let names: Vec<Value> = jobs(&script)
            .iter()
            .map(|job| json!([job["metadata"]["name"], job["spec"]["completions"]]))
            .collect();
        let expected = json!([
            ["abl-1-0a1b-train-0", 200],
            ["abl-1-0a1b-train-1", 200],
            ["abl-1-0a1b-train-2", 1],
            ["abl-1-0a1b-tables", 1],
        ]);
        assert_eq!(json!(names), expected);
        let waits = "\nfinish abl-1-0a1b-train-0 abl-1-0a1b-train-1 abl-1-0a1b-train-2\n";
        assert!(script.contains(waits), "{script}");
    }

    #[test]
    fn fields_for_the_script_occur_once_in_a_job_whatever_words_hold() {
        let fields = [
            r#""image":"IMAGE""#,
            r#""claimName":"CLAIM""#,
            r#""resources":{}"#,
        ];
        let mut words = vec!["diffaug"];
        words.extend(fields);
        let script = call(&words, &[phase(1)]);
        for job in script.lines().filter(|line| line.starts_with('{')) {
            for field in fields {
                assert_eq!(job.matches(field).count(), 1, "{job}");
            }
        }
    }

    #[test]
    fn names_are_labels_whatever_the_experiment_is_called() {
        for (name, expected) in [
            ("abl", "abl"),
            ("Kvasir_SEG.v2", "kvasir-seg-v2"),
            ("_.-", "experiment"),
            ("-9-", "9"),
        ] {
            assert_eq!(label(name), expected);
        }
        let long = label(&"a.".repeat(90));
        assert!(long.len() <= MOST_NAME && !long.ends_with('-'), "{long}");
        // A pod of the last job of the largest experiment, with the longest id.
        let pod = format!(
            "{}-{}-models-99999-199",
            "a".repeat(MOST_NAME),
            "0".repeat(12)
        );
        assert!(pod.len() <= 63, "{}", pod.len());
    }

    #[test]
    fn what_pods_write_must_be_below_the_folder() {
        let refused = |output: &str, folder: &str| {
            let mut experiment = experiment("x");
            experiment.folder = output.into();
            mounted(&experiment, Path::new(folder)).unwrap_err().message
        };
        assert_eq!(mounted(&experiment("x"), Path::new("/a")).unwrap(), "/a");
        for output in ["../runs/x", "/b/x", "/a/../b"] {
            let message = refused(output, "/a");
            assert!(
                message.contains("expected a folder below `/a`"),
                "{message}"
            );
        }
        for folder in ["/", "/a:b"] {
            let message = refused("runs/x", folder);
            assert!(message.contains("can be mounted at"), "{message}");
        }
    }
}
