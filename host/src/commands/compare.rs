//! `diffaug compare`: arms of finished runs beside each other, image by image.

use crate::{
    cli::CompareArgs,
    ui::{Ui, table},
};
use diffaug::Error;
use diffaug_run::{
    compare::{self, Row},
    failure::Failure,
    reader,
    statistics::RESAMPLES,
};
use serde_json::json;

/// Reads the arms and prints how each differs from the first.
pub fn compare(args: &CompareArgs, ui: Ui) -> Result<(), Failure> {
    let arms = reader::arms(&args.runs)?;
    if arms.len() < 2 {
        return Err(Error::config(format!(
            "there is one arm alone, `{}`: name another run to compare it with",
            arms[0].name
        ))
        .into());
    }
    let rows = compare::compare(&arms, &args.metric, args.seed)?;
    for warning in compare::warnings(&rows) {
        tracing::warn!("{warning}");
    }
    ui.result(|| text(&rows, &args.metric), &json!(rows));
    Ok(())
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
