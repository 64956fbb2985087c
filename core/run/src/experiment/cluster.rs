//! Scripts that hand the tasks of an experiment to the scheduler of a cluster. The scheduler distributes and
//! repeats them; nothing of ours does.
//!
//! Each phase begins when the one before it has ended, whether all of it went well or not: what is missing
//! then ends the tasks that need it and no others. A last job makes the tables.

mod kubernetes;
mod slurm;

use super::{Experiment, tasks::Task};
use diffaug::Result;
use std::path::Path;

/// Who distributes the tasks.
pub enum Scheduler {
    /// Slurm.
    Slurm,
    /// Kubernetes.
    Kubernetes {
        /// What tells the jobs of this script from those of others: up to 12 lower-case letters and digits.
        id: String,
    },
}

/// How the program is called on every machine.
pub struct Call<'a> {
    /// The folder in which it runs.
    pub folder: &'a Path,
    /// The program and its arguments up to `--step`.
    pub words: &'a [String],
}

/// The steps of a phase, as `--step` takes them.
struct Phase {
    name: &'static str,
    steps: Vec<String>,
}

impl Scheduler {
    /// A script that submits `phases`.
    ///
    /// # Errors
    /// When the machines of the cluster could not get at the folders of the experiment.
    pub fn script(
        &self,
        experiment: &Experiment,
        phases: &[Vec<Task>],
        call: &Call<'_>,
    ) -> Result<String> {
        let phase = |tasks: &Vec<Task>| {
            Some(Phase {
                name: tasks.first()?.part.phase(),
                steps: tasks.iter().map(|task| task.name(experiment)).collect(),
            })
        };
        let phases: Vec<Phase> = phases.iter().filter_map(phase).collect();
        match self {
            Scheduler::Slurm => Ok(slurm::script(experiment, &phases, call)),
            Scheduler::Kubernetes { id } => kubernetes::script(experiment, &phases, call, id),
        }
    }

    /// What the script has to be called with.
    pub fn options(&self) -> &'static str {
        match self {
            Scheduler::Slurm => "",
            Scheduler::Kubernetes { .. } => " --image IMAGE --claim CLAIM",
        }
    }
}

/// How many steps there are.
fn count(phases: &[Phase]) -> usize {
    phases.iter().map(|phase| phase.steps.len()).sum()
}

/// Words as a shell takes them literally.
fn all_quoted<'a>(words: impl IntoIterator<Item = &'a String>) -> String {
    let words: Vec<String> = words.into_iter().map(|word| quoted(word)).collect();
    words.join(" ")
}

/// A word as a shell takes it literally.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_are_taken_literally() {
        assert_eq!(quoted("a/b-c=1"), "a/b-c=1");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's $x"), r"'it'\''s $x'");
    }
}
