//! `diffaug runs` and `diffaug prune`: what a folder of runs holds.

use crate::ui::{Ui, human, table};
use diffaug::{Error, Result, human_bytes};
use diffaug_run::{
    failure::Failure,
    runs::{self, Held, Unused},
};
use serde_json::json;
use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// Lists the runs of `store`.
pub fn runs(store: &Path, ui: Ui) -> Result<(), Failure> {
    check(store)?;
    let held = runs::list(store)?;
    ui.result(|| text(&held), &json!(held));
    Ok(())
}

/// Lists the results that no run of `store` refers to, and with `yes` removes them.
pub fn prune(store: &Path, yes: bool, ui: Ui) -> Result<(), Failure> {
    check(store)?;
    let (unused, bytes) = runs::unused(store)?;
    let removed = match yes {
        true => Some(runs::remove(store, &unused)?),
        false => None,
    };
    let json = json!({ "unused": unused, "bytes": bytes, "removed": removed });
    ui.result(|| pruned(&unused, bytes, removed), &json);
    Ok(())
}

fn check(store: &Path) -> Result<()> {
    match store.is_dir() {
        true => Ok(()),
        false => Err(Error::data(format!(
            "there is no folder `{}`",
            store.display()
        ))),
    }
}

fn text(held: &Held) -> String {
    let kept = format!(
        "{} results of steps are kept for other runs, {} beyond what the runs hold",
        held.results,
        human_bytes(held.bytes)
    );
    if held.runs.is_empty() {
        return format!("no runs; {kept}");
    }
    let rows = held.runs.iter().map(|run| {
        let arms = run.arms.iter().map(|(arm, n)| format!("{arm} {n}"));
        let arms: Vec<String> = arms.collect();
        vec![
            run.folder.display().to_string(),
            run.dataset.clone(),
            if run.finished { "finished" } else { "begun" }.to_owned(),
            arms.join(", "),
            human_bytes(run.bytes),
            age(run.written),
        ]
    });
    let header = ["run", "dataset", "state", "trainings", "size", "written"];
    let rows: Vec<Vec<String>> = rows.collect();
    format!("{}\n{kept}", table(&header, &rows))
}

fn pruned(unused: &[Unused], bytes: u64, removed: Option<usize>) -> String {
    if unused.is_empty() {
        return "every kept result belongs to a run".to_owned();
    }
    let rows = unused.iter().map(|one| {
        let step = match one.step.as_str() {
            "" => "cut short",
            step => step,
        };
        vec![one.key.clone(), step.to_owned(), age(one.made)]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let list = table(&["result", "step", "made"], &rows);
    let (count, bytes) = (unused.len(), human_bytes(bytes));
    let end = match removed {
        None => format!("{count} results, {bytes}: `--yes` removes them"),
        Some(removed) if removed == count => format!("removed {count} results, {bytes}"),
        Some(removed) => format!("removed {removed} of {count} results; the others are in use"),
    };
    format!("{list}\n{end}")
}

/// How long ago a time was, given in seconds since 1970.
fn age(then: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(then, |now| now.as_secs());
    format!("{} ago", human(now.saturating_sub(then) as f64))
}
