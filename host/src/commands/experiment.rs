//! `diffaug experiment`: every arm of an experiment, in this process or several, and its tables.

use super::{load, overrides};
use crate::{
    cli::{ExperimentArgs, Global},
    ui::{self, Ui, human, table},
};
use diffaug::{Error, ErrorKind, Result, files};
use diffaug_run::{
    experiment::{
        Cell, Experiment,
        cluster::{Call, Scheduler},
        table::{self, Group},
        tasks::{self, Task},
    },
    failure::Failure,
    layout,
    runs::Known,
    session::{Monitor, Session},
    steps::Plan,
    work::{self, Goal},
};
use serde_json::json;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, SystemTime},
};

/// How often it is looked whether a process has ended.
const PATIENCE: Duration = Duration::from_millis(100);
/// Variables that say how many threads a process may use.
const THREADS: &str = "RAYON_NUM_THREADS";
/// Most bytes of the talk of a process that are read when it failed.
const MOST_TALK: u64 = 1 << 20;

/// Runs what was asked for of an experiment.
pub fn experiment(args: &ExperimentArgs, global: &Global, ui: Ui) -> Result<(), Failure> {
    let experiment = Experiment::read(&args.args.manifest, &overrides(&args.args, global))?;
    let cluster = scheduler(args);
    if args.shards.is_some() && args.jobs == 1 && cluster.is_none() {
        let message =
            "`--shards` is for several processes: it needs `--jobs`, `--slurm` or `--kubernetes`";
        return Err(Error::config(message).into());
    }
    if let Some(name) = &args.step {
        let task = Task::find(&experiment, name)?;
        let cell = task.cell(&experiment);
        return run(&cell, task.part.goal(), global, ui);
    }
    if args.dry_run {
        let plans = plans(&experiment, global, ui)?;
        let known = known(&experiment)?;
        let (text, json) = dry_run(&experiment, &plans, &known);
        ui.result(|| text, &json);
        return Ok(());
    }
    if let Some((file, scheduler)) = cluster {
        return write_script(file, &scheduler, &experiment, args, global, ui);
    }
    let _lock = experiment.take()?;
    let mut failed = Vec::new();
    if args.jobs > 1 {
        let plans = plans(&experiment, global, ui)?;
        let jobs = Jobs {
            experiment: &experiment,
            args,
            global,
            ui,
        };
        failed = jobs.all(&plans)?;
    }
    let mut ours = false;
    for cell in &experiment.cells {
        if failed.contains(&cell.name()) {
            continue;
        }
        ui.say(format!("\n{}", cell.name()));
        match run(cell, Goal::Scores, global, ui) {
            Ok(()) => {}
            Err(failure) if failure.error.kind == ErrorKind::Cancelled => return Err(failure),
            Err(failure) => {
                ui.failure(&failure);
                ours |= failure.exit_code() == 2;
                failed.push(cell.name());
            }
        }
    }
    finish(&experiment, &failed, ui)?;
    let message = format!(
        "{} of {} cells failed: {}",
        failed.len(),
        experiment.cells.len(),
        failed.join(", ")
    );
    match (failed.is_empty(), ours) {
        (true, _) => Ok(()),
        (false, false) => Err(Error::data(message).into()),
        (false, true) => Err(Error::internal(message).into()),
    }
}

/// Who shall distribute the steps, and the script to write for it.
fn scheduler(args: &ExperimentArgs) -> Option<(&Path, Scheduler)> {
    let slurm = args.slurm.as_deref().map(|file| (file, Scheduler::Slurm));
    let kubernetes = args.kubernetes.as_deref().map(|file| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let id = format!("{:x}", now.unwrap_or_default().as_secs());
        (file, Scheduler::Kubernetes { id })
    });
    slurm.or(kubernetes)
}

/// Writes a script that submits what is left to do.
fn write_script(
    file: &Path,
    scheduler: &Scheduler,
    experiment: &Experiment,
    args: &ExperimentArgs,
    global: &Global,
    ui: Ui,
) -> Result<(), Failure> {
    let plans = plans(experiment, global, ui)?;
    let shards = args.shards.unwrap_or(1);
    let phases = tasks::phases(experiment, &plans, &known(experiment)?, shards);
    let call = Call {
        folder: &std::env::current_dir().map_err(Error::from)?,
        words: &words(args, global)?,
    };
    let script = scheduler.script(experiment, &phases, &call)?;
    files::write_atomic(file, script.as_bytes())?;
    ui.say(format!(
        "`bash {}{}` submits the steps",
        file.display(),
        scheduler.options()
    ));
    Ok(())
}

/// Runs a cell up to `goal`.
fn run(cell: &Cell, goal: Goal, global: &Global, ui: Ui) -> Result<(), Failure> {
    let Cell {
        manifest, document, ..
    } = cell;
    let plugins = load(manifest, document, &manifest.device, global, ui)?;
    let session = Session::new(&ui);
    work::run(manifest, document, &plugins.registry, goal, &session).map(drop)
}

/// This program and its arguments for the same experiment in another process.
fn words(args: &ExperimentArgs, global: &Global) -> Result<Vec<String>> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut words = vec![
        text(&std::env::current_exe()?),
        "experiment".to_owned(),
        text(&args.args.manifest),
        "--color".to_owned(),
        "never".to_owned(),
    ];
    let mut add = |option: &str, value: &str| words.extend([option.to_owned(), value.to_owned()]);
    args.args.set.iter().for_each(|set| add("--set", set));
    global
        .plugin_dir
        .iter()
        .for_each(|folder| add("--plugin-dir", &text(folder)));
    global
        .device
        .iter()
        .for_each(|device| add("--device", device));
    Ok(words)
}

/// The steps of every cell.
fn plans(experiment: &Experiment, global: &Global, ui: Ui) -> Result<Vec<Plan>, Failure> {
    let plan = |cell: &Cell| {
        let Cell {
            manifest, document, ..
        } = cell;
        let plugins = load(manifest, document, &manifest.device, global, ui)?;
        work::plan(manifest, document, &plugins.registry, &Session::new(&ui))
    };
    experiment.cells.iter().map(plan).collect()
}

/// What the store of an experiment has.
fn known(experiment: &Experiment) -> Result<Known> {
    Known::of(&experiment.cells[0].manifest.store())
}

/// What there is to do, for people and for programs.
fn dry_run(experiment: &Experiment, plans: &[Plan], known: &Known) -> (String, serde_json::Value) {
    let mut seen = std::collections::BTreeSet::new();
    let (mut rows, mut steps) = (Vec::new(), Vec::new());
    let (mut there, mut left, mut unknown) = (0, 0.0, 0);
    for (cell, plan) in experiment.cells.iter().zip(plans) {
        for (place, step) in plan.steps() {
            // A pool of painted images has no end, and belongs to the synthesis.
            if place == layout::POOL || !seen.insert(step.key.clone()) {
                continue;
            }
            let done = known.has(step);
            let seconds = known.seconds(step).filter(|_| !done);
            there += u32::from(done);
            left += seconds.unwrap_or(0.0);
            unknown += u32::from(!done && seconds.is_none());
            rows.push(vec![
                cell.name(),
                place.to_owned(),
                step.kind().to_owned(),
                if done { "there" } else { "to do" }.to_owned(),
                seconds.map_or_else(String::new, human),
            ]);
            steps.push(json!({
                "cell": cell.name(), "place": place, "step": step.kind(), "key": step.key,
                "done": done, "seconds": seconds,
            }));
        }
    }
    let total = rows.len();
    let mut end = format!("{there} of {total} steps are there");
    if left > 0.0 {
        end += &format!(", the others take about {}", human(left));
    }
    if unknown > 0 {
        end += &format!("; of {unknown} nothing tells how long they take");
    }
    let header = ["cell", "leaves", "step", "state", "about"];
    (format!("{}\n{end}", table(&header, &rows)), json!(steps))
}

/// The processes of an experiment.
struct Jobs<'a> {
    experiment: &'a Experiment,
    args: &'a ExperimentArgs,
    global: &'a Global,
    ui: Ui,
}

impl Jobs<'_> {
    fn tasks(&self, plans: &[Plan]) -> Result<Vec<Vec<Task>>> {
        let known = known(self.experiment)?;
        Ok(tasks::phases(
            self.experiment,
            plans,
            &known,
            self.args.shards.unwrap_or(1),
        ))
    }

    /// Does all tasks, phase by phase; answers the cells of those that failed.
    fn all(&self, plans: &[Plan]) -> Result<Vec<String>> {
        let mut failed = Vec::new();
        for tasks in self.tasks(plans)? {
            let names: Vec<String> = tasks
                .iter()
                .map(|task| task.name(self.experiment))
                .collect();
            let shown = self.ui.begin(&format!("{} steps", names.len()));
            for cell in self.phase(names, &*shown)? {
                if !failed.contains(&cell) {
                    failed.push(cell);
                }
            }
            shown.finish("done");
        }
        if failed.is_empty() {
            // What they made is in the store.
            let folder = self.experiment.folder.join(tasks::FOLDER);
            let _ = fs::remove_dir_all(folder);
        }
        Ok(failed)
    }

    /// Does the tasks of a phase, so many at once.
    fn phase(
        &self,
        names: Vec<String>,
        shown: &dyn diffaug_run::session::Step,
    ) -> Result<Vec<String>> {
        let total = names.len() as u64;
        let mut left = names.into_iter();
        let mut at_work: Vec<(String, Child, PathBuf)> = Vec::new();
        let (mut failed, mut done) = (Vec::new(), 0);
        loop {
            let stopped = self.ui.stopped();
            while !stopped && at_work.len() < self.args.jobs as usize {
                let Some(name) = left.next() else { break };
                let (child, talk) = self.start(&name)?;
                at_work.push((name, child, talk));
            }
            if at_work.is_empty() {
                break;
            }
            thread::sleep(PATIENCE);
            let mut still = Vec::new();
            for (name, mut child, talk) in at_work {
                match child.try_wait()? {
                    None => still.push((name, child, talk)),
                    Some(status) => {
                        done += 1;
                        shown.progress(done, total, &name);
                        if !status.success() && !stopped {
                            Self::tell(&name, &talk);
                            failed.push(
                                name.rsplit_once(':')
                                    .map_or("", |(cell, _)| cell)
                                    .to_owned(),
                            );
                        }
                    }
                }
            }
            at_work = still;
        }
        match self.ui.stopped() {
            true => Err(Error::cancelled()),
            false => Ok(failed),
        }
    }

    /// Starts the process of a task, and answers where its talk goes.
    fn start(&self, name: &str) -> Result<(Child, PathBuf)> {
        let file = name.replace(['/', ':'], "-") + ".txt";
        let talk = self.experiment.folder.join(tasks::FOLDER).join(file);
        files::make_folder(files::parent(&talk))?;
        let words = words(self.args, self.global)?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["--step", name]);
        if std::env::var_os(THREADS).is_none() {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            let threads = (cores / self.args.jobs as usize).max(1);
            command.env(THREADS, threads.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&talk)?);
        Ok((command.spawn()?, talk))
    }

    /// Shows what a process said last.
    fn tell(name: &str, talk: &Path) {
        let text = files::read_text(talk, MOST_TALK).unwrap_or_default();
        let error = text
            .rfind("error: ")
            .map_or(text.as_str(), |at| &text[at..]);
        ui::tell(format_args!(
            "`{name}` failed; `{}` has all of it:
{}",
            talk.display(),
            error.trim()
        ));
    }
}

/// Writes and prints the tables.
fn finish(experiment: &Experiment, failed: &[String], ui: Ui) -> Result<(), Failure> {
    let groups = table::groups(experiment)?;
    let metric = &experiment.settings.metric;
    let markdown = markdown(&groups, metric);
    let json = json!({ "name": experiment.name, "groups": groups, "failed": failed });
    let [md, csv, tex, all] = table::paths(&experiment.folder);
    files::write_atomic(&md, format!("{markdown}\n").as_bytes())?;
    files::write_atomic(&csv, table::csv(&groups)?.as_bytes())?;
    files::write_atomic(&tex, table::latex(&groups, metric).as_bytes())?;
    let text = serde_json::to_string_pretty(&json).map_err(Error::internal)?;
    files::write_atomic(&all, format!("{text}\n").as_bytes())?;
    ui.result(|| markdown, &json);
    ui.say(format!(
        "\neverything is in {}",
        experiment.folder.display()
    ));
    Ok(())
}

fn markdown(groups: &[Group], metric: &str) -> String {
    let header = table::header(metric);
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let one = |group: &Group| {
        let rows = table(&header, &table::rows(group));
        match group.name.as_str() {
            "" => rows,
            name => format!("**{name}**\n\n{rows}"),
        }
    };
    let all: Vec<String> = groups.iter().map(one).collect();
    all.join("\n\n")
}
