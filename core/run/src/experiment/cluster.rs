//! Scripts that hand the tasks of an experiment to the scheduler of a cluster. The scheduler distributes and
//! repeats them; nothing of ours does.

use super::{Experiment, tasks::Task};
use std::path::Path;

/// How the program is called on every machine.
pub struct Call<'a> {
    /// The folder in which it runs.
    pub folder: &'a Path,
    /// The program and its arguments up to `--step`.
    pub words: &'a [String],
}

/// A script that submits `phases` to Slurm, an array job each, and a last job that makes the tables.
///
/// Each phase begins when the one before it has ended, whether all of it went well or not: what is missing
/// then ends the tasks that need it and no others.
pub fn slurm(experiment: &Experiment, phases: &[Vec<Task>], call: &Call<'_>) -> String {
    let count: usize = phases.iter().map(Vec::len).sum();
    let logs = experiment.folder.join(super::tasks::FOLDER);
    let words: Vec<String> = call.words.iter().map(|word| quoted(word)).collect();
    let mut text = format!(
        r#"#!/bin/bash
# Submits the experiment `{name}` to Slurm: {count} steps in {phases} array jobs, each after the one before
# it, and a job that makes the tables. What is written here are options of sbatch for all of them:
#
#     bash THIS_FILE --partition=gpu --gres=gpu:1 --time=4:00:00
#
# All machines need the same file system, on which renaming and exclusive creation hold for all (local disks,
# NFSv4, Lustre). A step that is killed and requeued goes on where it was.
set -euo pipefail
cd {folder}
program=({program})
options=("$@")
logs={logs}
mkdir -p "$logs"
after=()

# submit NAME STEP...: one array job with a task for each step
submit() {{
    local name=$1 script
    shift
    script=$(
        printf '#!/bin/bash\nsteps=('
        printf ' %q' "$@"
        printf ' )\ncd %q\nexec' "$PWD"
        printf ' %q' "${{program[@]}}"
        printf ' --step "${{steps[$SLURM_ARRAY_TASK_ID]}}"\n'
    )
    send "$name" --array="0-$(($# - 1))" --output="$logs/%x-%a.txt" <<<"$script"
}}

# send NAME OPTION...: the job on standard input, after the one before it
send() {{
    local name=$1 id
    shift
    id=$(sbatch --parsable --requeue --open-mode=append --job-name="{name}-$name" \
        "${{after[@]}}" "$@" "${{options[@]}}")
    after=(--dependency="afterany:${{id%%;*}}")
    echo "$name: job ${{id%%;*}}"
}}

"#,
        name = experiment.name,
        phases = phases.len(),
        folder = quoted(&call.folder.to_string_lossy()),
        program = words.join(" "),
        logs = quoted(&logs.to_string_lossy()),
    );
    for tasks in phases {
        let Some(first) = tasks.first() else { continue };
        text += &format!("submit {}", first.part.phase());
        for task in tasks {
            text += &format!(" \\\n    {}", quoted(&task.name(experiment)));
        }
        text += "\n";
    }
    text += r#"send tables --output="$logs/%x.txt" <<<"$(
    printf '#!/bin/bash\ncd %q\nexec' "$PWD"
    printf ' %q' "${program[@]}"
)"
"#;
    text
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
