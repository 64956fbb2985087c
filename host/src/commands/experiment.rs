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
        jobs::Jobs,
        outlook::{Planned, outlook},
        settings::Until,
        sheets::{self, Parameters, Sheet},
        table::{self, Group, Table},
        tasks::{self, Task},
    },
    failure::Failure,
    runs::Known,
    session::Session,
    steps::Plan,
    work::{
        self, Goal,
        statistics::{self, Statistics, statistics},
    },
};
use serde_json::json;
use std::{path::Path, time::SystemTime};

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
    let until = experiment.settings.goal;
    if until == Until::Data {
        return datasets(&experiment, global, ui);
    }
    check_figures(&experiment, global, ui)?;
    if args.dry_run {
        let plans = plans(&experiment, global, ui)?;
        let (text, json) = dry_run(&outlook(&experiment, &plans, &known(&experiment)?));
        ui.result(|| text, &json);
        return Ok(());
    }
    if let Some((file, scheduler)) = cluster {
        return write_script(file, &scheduler, &experiment, args, global, ui);
    }
    let _lock = experiment.take()?;
    let mut failed = Vec::new();
    if args.jobs > 1 {
        let phases = phases(&experiment, args, global, ui)?;
        let jobs = Jobs {
            experiment: &experiment,
            words: &words(args, global)?,
            at_once: args.jobs as usize,
            session: &Session::new(&ui),
            on_failure: &|name, output, error| {
                let output = output.display();
                ui::tell(format_args!(
                    "`{name}` failed; `{output}` has all of it:\n{error}"
                ));
            },
        };
        failed = jobs.run(&phases)?;
    }
    let mut ours = false;
    let goal = match until {
        Until::Synthesis => Goal::Synthesis,
        _ => Goal::Scores,
    };
    for cell in &experiment.cells {
        if failed.contains(&cell.name()) {
            continue;
        }
        ui.say(format!("\n{}", cell.name()));
        match run(cell, goal, global, ui) {
            Ok(()) => super::report::leave(&cell.manifest.output()),
            Err(failure) if failure.error.kind == ErrorKind::Cancelled => return Err(failure),
            Err(failure) => {
                ui.failure(&failure);
                ours |= failure.exit_code() == 2;
                failed.push(cell.name());
            }
        }
    }
    let parameters = parameters(&experiment, global, ui)?;
    finish(&experiment, &parameters, &failed, ui)?;
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

/// Checks that every cell has the figures that are compared and shown, before any is run for hours. Knowing
/// them computes nothing.
fn check_figures(experiment: &Experiment, global: &Global, ui: Ui) -> Result<(), Failure> {
    let figures = |cell: &Cell| {
        let (manifest, document) = (&cell.manifest, &cell.document);
        let plugins = load(manifest, document, "cpu", global, ui)?;
        work::figures(manifest, document, &plugins.registry)
    };
    let all: Vec<_> = experiment
        .cells
        .iter()
        .map(figures)
        .collect::<Result<_, Failure>>()?;
    experiment.check_figures(&all)
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
    let phases = phases(experiment, args, global, ui)?;
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

/// The tasks that are left to do.
fn phases(
    experiment: &Experiment,
    args: &ExperimentArgs,
    global: &Global,
    ui: Ui,
) -> Result<Vec<Vec<Task>>, Failure> {
    let plans = plans(experiment, global, ui)?;
    let known = known(experiment)?;
    let shards = args.shards.unwrap_or(1);
    Ok(tasks::phases(experiment, &plans, &known, shards))
}

/// What the store of an experiment has.
fn known(experiment: &Experiment) -> Result<Known> {
    Known::of(&experiment.cells[0].manifest.store())
}

/// What there is to do, for people and for programs.
fn dry_run(all: &[Planned]) -> (String, serde_json::Value) {
    let row = |planned: &Planned| {
        let state = if planned.done { "there" } else { "to do" };
        vec![
            planned.cell.clone(),
            planned.place.clone(),
            planned.step.clone(),
            state.to_owned(),
            planned.seconds.map_or_else(String::new, human),
        ]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    let there = all.iter().filter(|planned| planned.done).count();
    let left: f64 = all.iter().filter_map(|planned| planned.seconds).sum();
    let unknown = all
        .iter()
        .filter(|p| !p.done && p.seconds.is_none())
        .count();
    let mut end = format!("{there} of {} steps are there", all.len());
    if left > 0.0 {
        end += &format!(", the others take about {}", human(left));
    }
    if unknown > 0 {
        end += &format!("; of {unknown} nothing tells how long they take");
    }
    let header = ["cell", "leaves", "step", "state", "about"];
    (format!("{}\n{end}", table(&header, &rows)), json!(all))
}

/// Writes and prints the tables.
fn finish(
    experiment: &Experiment,
    parameters: &Parameters,
    failed: &[String],
    ui: Ui,
) -> Result<(), Failure> {
    let all = table::of(experiment, parameters)?;
    let metric = &experiment.settings.metric;
    let markdown = markdown(&all, metric);
    let json = json!({
        "name": experiment.name,
        "figures": all.figures,
        "groups": all.groups,
        "quoted": all.quoted,
        "tables": all.sheets,
        "failed": failed,
    });
    let [md, csv, tex, whole] = table::paths(&experiment.folder);
    files::write_atomic(&md, format!("{markdown}\n").as_bytes())?;
    files::write_atomic(&csv, table::csv(&all)?.as_bytes())?;
    files::write_atomic(&tex, table::latex(&all, metric).as_bytes())?;
    write_sheets(experiment, &all.sheets)?;
    let text = serde_json::to_string_pretty(&json).map_err(Error::internal)?;
    files::write_atomic(&whole, format!("{text}\n").as_bytes())?;
    ui.result(|| markdown, &json);
    ui.say(format!(
        "\neverything is in {}",
        experiment.folder.display()
    ));
    Ok(())
}

fn markdown(all: &Table, metric: &str) -> String {
    let header = all.header(metric);
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let one = |group: &Group| {
        let rows = table(&header, &all.rows(group));
        match group.name.as_str() {
            "" => rows,
            name => format!("**{name}**\n\n{rows}"),
        }
    };
    let mut parts: Vec<String> = all.groups.iter().map(one).collect();
    parts.extend(all.sheets.iter().map(sheet_text));
    parts.extend(Some(all.note()).filter(|note| !note.is_empty()));
    parts.join("\n\n")
}

fn sheet_text(sheet: &Sheet) -> String {
    let header: Vec<&str> = sheet.header.iter().map(String::as_str).collect();
    format!("**{}**\n\n{}", sheet.title, table(&header, &sheet.rows))
}

/// Writes further tables as a CSV file each.
fn write_sheets(experiment: &Experiment, sheets: &[Sheet]) -> Result<()> {
    for sheet in sheets {
        let path = experiment.folder.join(format!("{}.csv", sheet.name));
        files::write_atomic(&path, sheet.csv()?.as_bytes())?;
    }
    Ok(())
}

/// Counts what the dataset of each cell holds, and writes and prints the table.
fn datasets(experiment: &Experiment, global: &Global, ui: Ui) -> Result<(), Failure> {
    let _lock = experiment.take()?;
    let count = |cell: &Cell| {
        let (manifest, document) = (&cell.manifest, &cell.document);
        // Datasets compute nothing.
        let plugins = load(manifest, document, "cpu", global, ui)?;
        statistics(manifest, document, &plugins.registry, &Session::new(&ui))
    };
    let all: Vec<Statistics> = experiment
        .cells
        .iter()
        .map(count)
        .collect::<Result<_, Failure>>()?;
    let sheet = sheets::datasets(experiment, &all);
    let markdown = sheet_text(&sheet);
    let [md, ..] = table::paths(&experiment.folder);
    files::write_atomic(&md, format!("{markdown}\n").as_bytes())?;
    write_sheets(experiment, std::slice::from_ref(&sheet))?;
    ui.result(
        || markdown,
        &json!({ "name": experiment.name, "tables": [sheet] }),
    );
    Ok(())
}

/// The parameters of the stages of every cell, where the tables tell of them.
fn parameters(experiment: &Experiment, global: &Global, ui: Ui) -> Result<Parameters, Failure> {
    let cells = experiment.cells.iter();
    let cells = cells.filter(|_| experiment.settings.cost);
    let of = |cell: &Cell| {
        let (manifest, document) = (&cell.manifest, &cell.document);
        let plugins = load(manifest, document, &manifest.device, global, ui)?;
        statistics::parameters(manifest, document, &plugins.registry)
    };
    cells.map(of).collect()
}
