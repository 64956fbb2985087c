//! `diffaug compare`: arms of finished runs beside each other, image by image.

use crate::{
    cli::CompareArgs,
    ui::{Ui, table},
};
use diffaug::{Error, Result};
use diffaug_run::{
    compare::{self, Row},
    failure::Failure,
    reader::{Arm, Run},
    statistics::RESAMPLES,
};
use serde_json::json;
use std::path::Path;

/// With fewer groups than this an interval of resampled groups is too narrow.
const FEW_GROUPS: usize = 10;

/// Reads the arms and prints how each differs from the first.
pub fn compare(args: &CompareArgs, ui: Ui) -> Result<(), Failure> {
    let arms = arms(&args.runs)?;
    if arms.len() < 2 {
        return Err(Error::config(format!(
            "there is one arm alone, `{}`: name another run to compare it with",
            arms[0].name
        ))
        .into());
    }
    let rows = compare::compare(&arms, &args.metric, args.seed)?;
    for warning in warnings(&rows) {
        tracing::warn!("{warning}");
    }
    ui.result(|| text(&rows, &args.metric), &json!(rows));
    Ok(())
}

/// The arms that were asked for; of a run without an arm's name all, in the order of their names but
/// `real` first.
fn arms(wanted: &[String]) -> Result<Vec<Arm>> {
    let mut first: Option<Run> = None;
    let mut arms = Vec::new();
    for name in wanted {
        let (folder, arm) = match name.rsplit_once(':') {
            Some((folder, arm)) if !Path::new(name).exists() => (folder, Some(arm)),
            _ => (name.as_str(), None),
        };
        let run = Run::open(Path::new(folder))?;
        if let Some(what) = first.as_ref().and_then(|first| first.differs(&run)) {
            return Err(Error::data(format!(
                "`{folder}` cannot be compared with the first run: it has {what}"
            )));
        }
        match arm {
            Some(arm) => arms.push(run.arm(arm)?),
            None => {
                let mut names = run.arms()?;
                names.sort_by_key(|name| name != "real");
                if names.is_empty() {
                    let message = format!("run `{folder}` has no scores yet");
                    return Err(Error::data(message));
                }
                for name in names {
                    arms.push(run.arm(&name)?);
                }
            }
        }
        first.get_or_insert(run);
    }
    Ok(arms)
}

/// What makes a comparison less than fair.
fn warnings(rows: &[Row]) -> Vec<String> {
    let mut warnings = Vec::new();
    let first = &rows[0];
    for row in &rows[1..] {
        let steps = |row: &Row| row.steps.first().copied().flatten();
        let uneven = row.steps.iter().any(|&s| s != steps(row)) || steps(row) != steps(first);
        if uneven {
            warnings.push(format!(
                "`{}` was not trained for as many steps as `{}`",
                row.arm, first.arm
            ));
        }
        if row.seeds != first.seeds {
            warnings.push(format!(
                "`{}` has trainings of other seeds than `{}`",
                row.arm, first.arm
            ));
        }
    }
    let groups = rows.iter().filter_map(|row| row.against_first.as_ref());
    if let Some(few) = groups
        .map(|found| found.clusters)
        .min()
        .filter(|n| *n < FEW_GROUPS)
    {
        warnings.push(format!(
            "there are only {few} independent groups of images: intervals are too narrow"
        ));
    }
    warnings
}

fn text(rows: &[Row], metric: &str) -> String {
    let cells = |row: &Row| {
        let mut cells = vec![
            row.arm.clone(),
            row.seeds.len().to_string(),
            compare::shown(row.mean, row.std, row.seeds.len()),
        ];
        cells.extend(row.cells());
        cells
    };
    let columns = compare::columns();
    let mut header = vec!["arm", "seeds", metric];
    header.extend(columns.iter().map(String::as_str));
    let sizes = rows.iter().find_map(|row| row.against_first.as_ref());
    let sizes = sizes.map_or(String::new(), |found| {
        format!(
            "\nDifferences from the first arm over {} test images in {} independent groups, each image the \
             mean of its trainings; interval of {RESAMPLES} resamples of whole groups; p of the Wilcoxon \
             signed-rank test over the means of groups.",
            found.images, found.clusters
        )
    });
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    format!("{}{sizes}", table(&header, &rows))
}
