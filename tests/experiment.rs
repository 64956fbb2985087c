//! Experiments of the linked-in plugins, tiny: arms, seeds, several processes, failures.

use crate::{
    pipeline::tiny,
    util::{Sandbox, assert_same},
};
use insta::assert_snapshot;
use std::fs;

const TIMES: [&str; 1] = ["log.jsonl"];

const ARMS: &str = r#"
base = "m.toml"
name = "abl"

[experiment]
seeds = [0, 1]
primary = ["traditional", "painted"]

[arms.traditional]
synthesis.ratio = 0

[arms.painted]

[arms.unjudged]
validator.use = "accept-all"
"#;

fn sandbox() -> Sandbox {
    let sandbox = tiny();
    sandbox.write("x.toml", ARMS);
    sandbox
}

/// How many steps of a dry run are there, and how many to do.
fn steps(sandbox: &Sandbox, args: &str) -> (usize, usize) {
    let steps = sandbox.run(&format!("experiment x.toml --dry-run --json {args}"));
    let steps = steps.ok().json();
    let steps = steps.as_array().unwrap();
    let done = steps.iter().filter(|step| step["done"] == true).count();
    (done, steps.len() - done)
}

#[test]
fn arms_share_what_they_have_in_common() {
    let sandbox = sandbox();
    let (there, left) = steps(&sandbox, "");
    // Generator, judge, which is the first training on real images too, two sets of synthetic images; five
    // other trainings and six scores.
    assert_eq!((there, left), (0, 15));
    assert!(!sandbox.path("runs").exists());
    let output = sandbox.run("experiment x.toml").ok();
    assert!(output.stdout.contains("| painted (primary) |"), "{output}");
    assert_eq!(steps(&sandbox, ""), (15, 0));

    let table = sandbox.read("runs/abl/table.md");
    assert_eq!(table.trim(), output.stdout.trim());
    let lines = sandbox.read("runs/abl/table.csv");
    let arms: Vec<&str> = lines
        .lines()
        .skip(1)
        .map(|l| l.split(',').nth(1).unwrap())
        .collect();
    assert_eq!(arms, ["traditional", "painted", "unjudged"]);
    assert!(
        sandbox
            .read("runs/abl/table.tex")
            .contains("\\begin{tabular}{lrrrrrrrrrrrr}")
    );

    // A cell is the run that it would be by itself, but for its name.
    let alone = tiny();
    let args = "run m.toml -q --set output=runs/x --set name=abl --set evaluate.seeds=[0,1] --set evaluate.baseline=false";
    alone.run(args).ok();
    assert_same(
        &alone.files("runs/x", &TIMES),
        &sandbox.files("runs/abl/painted", &TIMES),
    );
    let row = sandbox.read_json("runs/abl/experiment.json")["groups"][0]["arms"][1].clone();
    let arm = alone.read_json("runs/x/result.json")["arms"][0].clone();
    assert_eq!(row["figures"][0][1], arm["mean"]["dice"]);
    assert_eq!(row["images"], arm["training_images"]);
    let compared = alone.run("compare runs/x --json");
    assert_eq!(compared.code, Some(1), "one arm alone cannot be compared");
}

#[test]
fn another_seed_or_arm_costs_itself_alone() {
    let sandbox = sandbox();
    sandbox.run("experiment x.toml -q").ok();
    let more = "--set experiment.seeds=[0,1,2]";
    assert_eq!(steps(&sandbox, more), (15, 6));
    let output = sandbox.run(&format!("experiment x.toml {more}")).ok();
    let trained = output
        .stderr
        .lines()
        .filter(|line| line.starts_with("training") && !line.contains("done before"));
    assert_eq!(trained.count(), 3, "{output}");
    sandbox.write(
        "x.toml",
        format!("{ARMS}\n[arms.half]\nsynthesis.ratio = 0.5\n"),
    );
    assert_eq!(steps(&sandbox, more).1, 7);
}

#[test]
fn several_processes_make_the_same_tables() {
    let (one, many) = (sandbox(), sandbox());
    one.run("experiment x.toml -q").ok();
    many.run("experiment x.toml -q --jobs 3 --shards 2").ok();
    for arm in ["traditional", "painted", "unjudged"] {
        let folder = format!("runs/abl/{arm}");
        assert_same(&one.files(&folder, &TIMES), &many.files(&folder, &TIMES));
    }
    for name in ["table.md", "table.csv", "table.tex", "experiment.json"] {
        let name = format!("runs/abl/{name}");
        assert_eq!(one.read(&name), many.read(&name));
    }
    assert!(!many.path("runs/abl/.tasks").exists());
}

#[test]
fn a_step_can_be_done_by_itself() {
    let sandbox = sandbox();
    for step in [
        "painted:generator",
        "painted:segmenter",
        "painted:synthetic",
        "traditional:seed-1",
    ] {
        sandbox
            .run(&format!("experiment x.toml -q --step {step}"))
            .ok();
    }
    let (there, left) = steps(&sandbox, "");
    assert_eq!(there, 5, "{left} are left");
    sandbox
        .run("experiment x.toml --step nowhere:seed-0")
        .refused("there is no cell `nowhere`; those of the experiment are painted, traditional, unjudged");
    // What tasks made belongs to the experiment before its cells have run.
    let none = sandbox.run("prune").ok();
    assert_eq!(none.stdout.trim(), "every kept result belongs to a run");
    assert!(sandbox.run("runs").ok().stdout.starts_with("no runs"));
    sandbox
        .run("experiment x.toml --shards 2")
        .refused("`--shards` is for several processes");
    for step in ["painted:seed-7", "traditional:generator", "painted"] {
        sandbox
            .run(&format!("experiment x.toml --step {step}"))
            .refused("expected");
    }
}

#[test]
fn a_script_submits_what_is_left_to_slurm() {
    let sandbox = sandbox();
    sandbox
        .run("experiment x.toml -q --step painted:generator")
        .ok();
    let args = "experiment x.toml -q --shards 2 --slurm submit.sh --set experiment.seeds=[0]";
    sandbox.run(args).ok();
    let script = sandbox.read("submit.sh");
    let submitted = script.split_once("\nsubmit models").unwrap().1;
    assert_snapshot!(format!("submit models{submitted}"), @r#"
    submit models \
        painted:segmenter
    submit paint \
        painted:shard-0-of-2 \
        painted:shard-1-of-2 \
        unjudged:shard-0-of-2 \
        unjudged:shard-1-of-2
    submit merge \
        painted:merged \
        unjudged:merged
    submit train \
        painted:seed-0 \
        traditional:seed-0 \
        unjudged:seed-0
    send tables --output="$logs/%x.txt" <<<"$(
        printf '#!/bin/bash\ncd %q\nexec' "$PWD"
        printf ' %q' "${program[@]}"
    )"
    "#);
    let program = script
        .lines()
        .find(|line| line.starts_with("program=("))
        .unwrap();
    assert!(
        program.ends_with("experiment x.toml --color never --set 'experiment.seeds=[0]')"),
        "{program}"
    );
    // What Slurm would be given.
    sandbox.write(
        "bin/sbatch",
        "#!/bin/sh\necho \"$@\" >>sbatch.txt\ncat >>sbatch.txt\necho 7\n",
    );
    let mut bash = std::process::Command::new("bash");
    bash.args(["submit.sh", "--partition=gpu"])
        .current_dir(sandbox.path(""));
    let path = std::env::var("PATH").unwrap();
    bash.env("PATH", format!("{}:{path}", sandbox.path("bin").display()));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(sandbox.path("bin/sbatch"), mode).unwrap();
        crate::util::built(bash);
        let given = sandbox.read("sbatch.txt");
        assert!(
            given.contains("--job-name=abl-train --dependency=afterany:7 --array=0-2"),
            "{given}"
        );
        assert!(given.contains("--partition=gpu"), "{given}");
        assert!(
            given.contains("--step \"${steps[$SLURM_ARRAY_TASK_ID]}\""),
            "{given}"
        );
    }
}

#[test]
fn a_failure_leaves_the_others() {
    for jobs in ["", "--jobs 2"] {
        let sandbox = sandbox();
        sandbox.write(
            "x.toml",
            format!("{ARMS}\n[arms.broken]\nsegmenter.weights = \"nowhere\"\n"),
        );
        let output = sandbox.run(&format!("experiment x.toml -q {jobs}"));
        assert_eq!(output.code, Some(1), "{output}");
        assert!(
            output.stderr.contains("1 of 4 cells failed: broken"),
            "{output}"
        );
        assert!(output.stderr.contains("nowhere"), "{output}");
        let arms = sandbox.read_json("runs/abl/experiment.json")["groups"][0]["arms"].clone();
        assert_eq!(arms.as_array().unwrap().len(), 3);
    }
}

#[test]
fn a_matrix_makes_groups() {
    let sandbox = sandbox();
    let text = format!("{ARMS}\n[matrix]\n\"dataset.size\" = [32, 40]\n");
    sandbox.write("x.toml", text.replace("seeds = [0, 1]", "seeds = [0]"));
    let output = sandbox.run("experiment x.toml -q").ok();
    assert!(
        output.stdout.contains("**32**") && output.stdout.contains("**40**"),
        "{output}"
    );
    assert!(sandbox.path("runs/abl/40/painted/result.json").exists());
    // All of it belongs to runs.
    let none = sandbox.run("prune").ok();
    assert_eq!(none.stdout.trim(), "every kept result belongs to a run");
    let listed = sandbox.run("runs --json").ok().json();
    assert_eq!(listed["runs"].as_array().unwrap().len(), 6);
}

#[test]
fn an_experiment_is_no_run_and_a_run_no_experiment() {
    let sandbox = sandbox();
    sandbox
        .run("run x.toml")
        .refused("`x.toml` is an experiment");
    sandbox
        .run("experiment m.toml")
        .refused("`m.toml` has no arms, so it is no experiment");
}

#[test]
fn the_experiments_of_the_repository_are_right() {
    let folder = crate::util::root().join("manifests/experiments");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let sandbox = Sandbox::new();
        let mut command = sandbox.command(&format!("experiment {} --dry-run -q", path.display()));
        if fs::read_to_string(&path)
            .unwrap()
            .contains("root = \"data/")
        {
            // The data set is not part of the repository.
            let phantom = r#"dataset={use="phantom",size=32,train=8,validation=4,test=4}"#;
            command.args(["--set", phantom, "--set", r#"split={use="parts"}"#]);
        }
        command.current_dir(crate::util::root());
        sandbox.finish(command).ok();
    }
}

/// SIGKILL at random moments: as often as `DIFFAUG_KILLS` says, or 20 times.
#[test]
#[cfg(unix)]
fn killed_at_random_an_experiment_ends_with_the_same_bytes() {
    use rand::RngExt;
    let kills = std::env::var("DIFFAUG_KILLS").map_or(20, |kills| kills.parse().unwrap());
    let text = ARMS.replace("[arms.unjudged]\nvalidator.use = \"accept-all\"\n", "");
    let args = "experiment x.toml -q --set segmenter.train.checkpoint_every=1";
    let (whole, cut) = (sandbox(), sandbox());
    for sandbox in [&whole, &cut] {
        sandbox.write("x.toml", &text);
    }
    whole.run(args).ok();
    let expected = whole.files("runs/abl", &TIMES);
    let mut rng = diffaug::rng::stream(0, "kills", 0);
    let (mut killed, mut finished) = (0u32, 0u32);
    while killed < kills || finished == 0 {
        let mut child = cut.start(args);
        let patience = std::time::Duration::from_millis(rng.random_range(0..400));
        std::thread::sleep(patience);
        child.kill().unwrap();
        let status = child.wait().unwrap();
        killed += u32::from(status.code().is_none());
        if status.success() {
            assert_same(&expected, &cut.files("runs/abl", &TIMES));
            fs::remove_dir_all(cut.path("runs")).unwrap();
            finished += 1;
        } else {
            assert!(status.code().is_none(), "{status}");
        }
    }
}
