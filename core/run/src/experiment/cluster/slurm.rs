//! A script for Slurm: an array job for each phase.

use super::{Call, Phase, all_quoted, count, quoted};
use crate::experiment::{Experiment, tasks::FOLDER};

/// A script that submits `phases`, and a last job that makes the tables.
pub fn script(experiment: &Experiment, phases: &[Phase], call: &Call<'_>) -> String {
    let count = count(phases);
    let logs = experiment.folder.join(FOLDER);
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
        program = all_quoted(call.words),
        logs = quoted(&logs.to_string_lossy()),
    );
    for Phase { name, steps } in phases {
        text += &format!("submit {name}");
        for step in steps {
            text += &format!(" \\\n    {}", quoted(step));
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
