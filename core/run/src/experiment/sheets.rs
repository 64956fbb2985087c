//! Further tables of an experiment: by groups of test images, of pools of painted images, of what each arm
//! took, of the datasets themselves.

use super::{Cell, Experiment, settings::Quoted};
use crate::{
    compare::shown,
    layout,
    reader::Run,
    results::{Cost, Results},
    work::{
        measuring::Figure,
        pool_figures::{CANDIDATES, Outcomes},
        pool_measures::SHOWN,
        statistics::Statistics,
    },
};
use diffaug::{
    Error, Result, ResultExt,
    error::ErrorKind,
    files,
    metrics::{mean, std_dev},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{collections::BTreeMap, path::Path};

/// The further tables that figures may be quoted for.
pub const NAMES: [&str; 3] = ["groups", "pools", "cost"];
/// No file of results is larger.
const MOST_BYTES: u64 = 1 << 30;
/// What stands in the place of a value that there is not.
const NONE: &str = "-";

/// A further table of an experiment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sheet {
    /// What its files are called: `groups`, `pools`, `cost`, `datasets`.
    pub name: String,
    /// What stands above it.
    pub title: String,
    /// Its columns.
    pub header: Vec<String>,
    /// Its rows, for people.
    pub rows: Vec<Vec<String>>,
}

impl Sheet {
    fn new(name: &str, title: &str, header: &[&str]) -> Self {
        Sheet {
            name: name.to_owned(),
            title: title.to_owned(),
            header: header.iter().map(|&cell| cell.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Sets what others published beside the columns; what none of them has gets a column of its own.
    pub fn quote(&mut self, quoted: &Quoted) {
        let Some(rows) = quoted.tables.get(&self.name) else {
            return;
        };
        let there: Vec<String> = self.rows.iter().map(|row| row[..2].join(" / ")).collect();
        for key in rows.keys().filter(|key| !there.contains(key)) {
            let table = &self.name;
            tracing::warn!(
                "figures are quoted for `{key}` of table `{table}`, which has no such row yet"
            );
        }
        let mut columns: Vec<&String> = rows.values().flat_map(BTreeMap::keys).collect();
        columns.sort();
        columns.dedup();
        for column in columns {
            let place = self.header.iter().position(|name| name == column);
            let place = place.map_or(self.header.len(), |place| place + 1);
            self.header.insert(place, format!("{column} (quoted)"));
            for row in &mut self.rows {
                let key = row[..2].join(" / ");
                let value = rows.get(&key).and_then(|row| row.get(column));
                row.insert(place, value.cloned().unwrap_or_default());
            }
        }
    }

    /// The table as a CSV file.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn csv(&self) -> Result<String> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        for row in std::iter::once(&self.header).chain(&self.rows) {
            writer.write_record(row).map_err(Error::internal)?;
        }
        let bytes = writer.into_inner().map_err(Error::internal)?;
        String::from_utf8(bytes).map_err(Error::internal)
    }
}

/// Parameters of the stages of each cell, by their tables.
pub type Parameters = Vec<BTreeMap<String, u64>>;

/// Reads a file of a run; `None` where it is not there.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.is_file() {
        return Ok(None);
    }
    let damaged = || format!("`{}` is damaged; remove it to make it anew", path.display());
    let text = files::read_text(path, MOST_BYTES).or_error(ErrorKind::Data, damaged)?;
    let value = serde_json::from_str(&text).or_error(ErrorKind::Data, damaged)?;
    Ok(Some(value))
}

/// The scores of each cell on the test images of the wanted groups; relative to the first arm of its own
/// group of cells.
///
/// # Errors
/// When a file of a run is damaged.
pub fn groups(experiment: &Experiment, figures: &[Figure]) -> Result<Option<Sheet>> {
    let wanted = &experiment.settings.groups;
    if wanted.is_empty() {
        return Ok(None);
    }
    let mut sheet = Sheet::new(
        "groups",
        "By groups of test images",
        &["group", "arm", "images"],
    );
    sheet
        .header
        .extend(figures.iter().map(|figure| figure.name.clone()));
    let reduces = figures.iter().any(|figure| figure.name == FNR);
    if reduces {
        sheet.header.push("relative FNR reduction".to_owned());
    }
    for of in experiment.groups() {
        let cells = experiment.of_group(of);
        let mut scored = Vec::new();
        for cell in &cells {
            if let Some(arm) = cell.result()? {
                scored.push((*cell, arm));
            }
        }
        for group in wanted {
            // The first arm, and no other where that one is not finished.
            let first = scored.first().filter(|(cell, _)| cell.arm == cells[0].arm);
            let first = first.and_then(|(_, arm)| fnr(arm, group));
            for (cell, arm) in &scored {
                let mut row = vec![group.clone(), cell.name()];
                let images = arm["groups"][group]["images"].as_u64();
                row.push(images.map_or(NONE.to_owned(), |n| n.to_string()));
                row.extend(
                    figures
                        .iter()
                        .map(|figure| of_group(arm, group, &figure.name)),
                );
                if reduces {
                    let is_first = cell.arm == cells[0].arm;
                    let against = first.filter(|first| !is_first && *first > 0.0);
                    let reduction = against.zip(fnr(arm, group));
                    row.push(reduction.map_or(NONE.to_owned(), |(first, own)| {
                        format!("{:.1} %", 100.0 * (first - own) / first)
                    }));
                }
                sheet.rows.push(row);
            }
        }
    }
    Ok(Some(sheet))
}

/// The figure that is set beside the first arm's.
const FNR: &str = "fnr";

/// Mean over trainings of the false negative rate within a group.
fn fnr(arm: &Value, group: &str) -> Option<f64> {
    mean(&of_trainings(arm, group, FNR))
}

/// A figure of each training, the mean over the images of a group.
fn of_trainings(arm: &Value, group: &str, figure: &str) -> Vec<f64> {
    let runs = arm["runs"].as_array().into_iter().flatten();
    runs.filter_map(|run| run["groups"][group]["per_image_mean"][figure].as_f64())
        .collect()
}

fn of_group(arm: &Value, group: &str, figure: &str) -> String {
    let values = of_trainings(arm, group, figure);
    shown(mean(&values), std_dev(&values).unwrap_or(0.0), values.len())
}

/// What was painted for each cell: how much was accepted, how it looks, and what measures say of it.
///
/// # Errors
/// When a file of a run is damaged.
pub fn pools(experiment: &Experiment) -> Result<Option<Sheet>> {
    if !experiment.settings.pools {
        return Ok(None);
    }
    let title = "Painted images: accepted and rejected";
    let header = ["arm", "pool", "images", "share", "mean score"];
    let mut sheet = Sheet::new("pools", title, &header);
    sheet
        .header
        .extend(SHOWN.map(|(_, title)| title.to_owned()));
    let mut outcomes = Vec::new();
    for cell in experiment
        .cells
        .iter()
        .filter(|cell| cell.manifest.paints())
    {
        let own = match Run::open(&cell.manifest.output()) {
            Ok(run) => run.measured()?,
            // It has not begun.
            Err(_) => Outcomes::new(),
        };
        for name in own
            .values()
            .flat_map(|one| one.figures.iter().map(|f| &f.name))
        {
            if !sheet.header.contains(name) {
                sheet.header.push(name.clone());
            }
        }
        outcomes.push((cell, own));
    }
    let fixed = header.len() + SHOWN.len();
    for (cell, own) in outcomes {
        let Some(summary) = read::<Value>(&cell.manifest.output().join(layout::SYNTHESIS))? else {
            continue;
        };
        let candidates = own.values().any(|one| one.pools.contains_key(CANDIDATES));
        let last = candidates.then_some(CANDIDATES);
        for pool in ["real", "accepted", "rejected"].into_iter().chain(last) {
            let mut row = vec![cell.name(), pool.to_owned()];
            row.extend(of_pool(&summary, pool));
            for name in &sheet.header[fixed..] {
                let values = own.values().filter_map(|one| one.pools.get(pool));
                let value = values.filter_map(|pool| pool.figures.get(name)).next();
                row.push(value.map_or(NONE.to_owned(), |value| format!("{value:.4}")));
            }
            sheet.rows.push(row);
        }
    }
    Ok(Some(sheet))
}

/// Images, share, score and looks of a pool.
fn of_pool(summary: &Value, pool: &str) -> Vec<String> {
    let looks = &summary["pools"][pool];
    let count = |value: &Value| value.as_u64().map_or(NONE.to_owned(), |n| n.to_string());
    let mut cells = match pool {
        "real" => vec![count(&looks["images"]), NONE.to_owned(), NONE.to_owned()],
        CANDIDATES => vec![count(&summary[pool]), NONE.to_owned(), NONE.to_owned()],
        _ => {
            let (part, all) = (summary[pool].as_f64(), summary["candidates"].as_f64());
            let share = part.zip(all).filter(|(_, all)| *all > 0.0);
            let score = summary[&format!("score_{pool}")].as_f64();
            vec![
                count(&summary[pool]),
                share.map_or(NONE.to_owned(), |(part, all)| {
                    format!("{:.1} %", 100.0 * part / all)
                }),
                score.map_or(NONE.to_owned(), |score| format!("{score:.3}")),
            ]
        }
    };
    cells.extend(SHOWN.iter().map(|(name, _)| {
        let (mean, std) = (looks[name]["mean"].as_f64(), looks[name]["std"].as_f64());
        let both = mean.zip(std);
        both.map_or(NONE.to_owned(), |(mean, std)| {
            format!("{mean:.2} ± {std:.2}")
        })
    }));
    cells
}

/// What training and running each cell took, as it was measured by the process that did it.
///
/// # Errors
/// When a file of a run is damaged.
pub fn cost(experiment: &Experiment, parameters: &Parameters) -> Result<Option<Sheet>> {
    if !experiment.settings.cost {
        return Ok(None);
    }
    let title = "What it took";
    let header = [
        "arm",
        "stage",
        "parameters",
        "training",
        "memory of training",
        "images/s",
    ];
    let mut sheet = Sheet::new("cost", title, &header);
    for (cell, parameters) in experiment.cells.iter().zip(parameters) {
        let Ok(run) = Run::open(&cell.manifest.output()) else {
            continue;
        };
        let results = Results::of(&cell.manifest.store());
        let cost = |place: &str| run.key(place).and_then(|key| results.cost(key));
        let trainings = cell.manifest.seeds().into_iter();
        let trainings = trainings.map(|seed| layout::Training::new(cell.scored(), seed));
        let (fits, tests): (Vec<Option<Cost>>, Vec<Option<Cost>>) = trainings
            .map(|files| (cost(&files.weights()), cost(&files.scores())))
            .unzip();
        let segmenter = cell.manifest.downstream().name.clone();
        let own = parameters.get(match cell.manifest.evaluate.segmenter {
            Some(_) => crate::slots::DOWNSTREAM,
            None => crate::slots::SEGMENTER,
        });
        sheet.rows.push(row(cell, &segmenter, own, &fits, &tests));
        if cell.manifest.paints() {
            let own = parameters.get(crate::slots::GENERATOR);
            let fit = [cost(layout::GENERATOR)];
            let painted = [cost(layout::SYNTHETIC)];
            let generator = format!("{} (painting)", cell.manifest.generator.name);
            sheet.rows.push(row(cell, &generator, own, &fit, &painted));
        }
    }
    Ok(Some(sheet))
}

fn row(
    cell: &Cell,
    stage: &str,
    parameters: Option<&u64>,
    fits: &[Option<Cost>],
    answers: &[Option<Cost>],
) -> Vec<String> {
    let seconds: Vec<f64> = fits.iter().flatten().map(|cost| cost.seconds).collect();
    let memory = fits.iter().flatten().map(|cost| cost.memory).max();
    let images: u64 = answers.iter().flatten().map(|cost| cost.images).sum();
    let time: f64 = answers
        .iter()
        .flatten()
        .map(|cost| cost.image_seconds)
        .sum();
    let none = || NONE.to_owned();
    vec![
        cell.name(),
        stage.to_owned(),
        parameters.map_or_else(none, u64::to_string),
        mean(&seconds)
            .filter(|s| *s > 0.0)
            .map_or_else(none, |s| format!("{s:.0} s")),
        memory
            .filter(|bytes| *bytes > 0)
            .map_or_else(none, diffaug::human_bytes),
        match images > 0 && time > 0.0 {
            true => format!("{:.2}", images as f64 / time),
            false => none(),
        },
    ]
}

/// The dataset of each cell.
pub fn datasets(experiment: &Experiment, all: &[Statistics]) -> Sheet {
    let header = [
        "arm",
        "dataset",
        "target",
        "train",
        "with target",
        "validation",
        "test",
    ];
    let mut sheet = Sheet::new("datasets", "Datasets", &header);
    let sizes = all.first().map_or(Vec::new(), |one| one.sizes.clone());
    sheet
        .header
        .extend(sizes.iter().map(|(name, _)| name.clone()));
    for (cell, one) in experiment.cells.iter().zip(all) {
        let share = 100.0 * one.with_target as f64 / one.counts[0].max(1) as f64;
        let [train, validation, test] = one.counts.map(|count| count.to_string());
        let with = format!("{} ({share:.0} %)", one.with_target);
        let mut row = vec![cell.name(), one.name.clone(), one.targets.join(", ")];
        row.extend([train, with, validation, test]);
        row.extend(one.sizes.iter().map(|(_, count)| count.to_string()));
        sheet.rows.push(row);
    }
    sheet
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cells(row: &[&str]) -> Vec<String> {
        row.iter().map(|&cell| cell.to_owned()).collect()
    }

    #[test]
    fn what_is_quoted_stands_beside_its_column_and_its_row() {
        let mut sheet = Sheet::new("pools", "Pools", &["arm", "pool", "fid", "images"]);
        sheet.rows.push(cells(&["a", "accepted", "12.5", "3"]));
        sheet.rows.push(cells(&["a", "rejected", "20.5", "4"]));
        let quoted: Quoted = serde_json::from_value(json!({
            "source": "x",
            "tables": { "pools": { "a / accepted": { "fid": "32.4", "lpips": "0.245" } } },
        }))
        .unwrap();
        sheet.quote(&quoted);
        let header = [
            "arm",
            "pool",
            "fid",
            "fid (quoted)",
            "images",
            "lpips (quoted)",
        ];
        assert_eq!(sheet.header, cells(&header));
        assert_eq!(
            sheet.rows[0],
            cells(&["a", "accepted", "12.5", "32.4", "3", "0.245"])
        );
        assert_eq!(
            sheet.rows[1],
            cells(&["a", "rejected", "20.5", "", "4", ""])
        );
        assert!(
            sheet
                .csv()
                .unwrap()
                .starts_with("arm,pool,fid,fid (quoted),")
        );
    }

    #[test]
    fn a_pool_tells_its_share_and_looks() {
        let summary = json!({
            "candidates": 8, "accepted": 6, "rejected": 2,
            "score_accepted": 0.81, "score_rejected": null,
            "pools": { "accepted": { "images": 6, "detail": { "mean": 7.5, "std": 1.0 } } },
        });
        let row = of_pool(&summary, "accepted");
        assert_eq!(row[..4], cells(&["6", "75.0 %", "0.810", "7.50 ± 1.00"]));
        assert_eq!(
            of_pool(&summary, "rejected")[..3],
            cells(&["2", "25.0 %", "-"])
        );
        assert_eq!(of_pool(&summary, "real")[..2], cells(&["-", "-"]));
    }

    #[test]
    fn figures_of_a_group_are_over_trainings() {
        let run = |fnr: f64| json!({ "groups": { "small": { "per_image_mean": { "fnr": fnr } } } });
        let arm = json!({ "runs": [run(0.2), run(0.4)] });
        assert!((fnr(&arm, "small").unwrap() - 0.3).abs() < 1e-12);
        assert_eq!(of_group(&arm, "small", "fnr"), "0.300 ± 0.141");
        assert_eq!(
            (fnr(&arm, "flat"), of_group(&arm, "flat", "fnr")),
            (None, "-".to_owned())
        );
    }
}
