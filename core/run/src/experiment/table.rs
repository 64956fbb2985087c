//! What an experiment came to: every arm of every group, and how it differs from the group's first.

use super::{
    Cell, Experiment,
    settings::Quoted,
    sheets::{self, Parameters, Sheet},
};
use crate::{
    compare::{self, Row},
    reader::{Arm, Run},
    work::{measuring::Figure, scoring},
};
use diffaug::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

/// Seed of the resamples of intervals.
const RESAMPLING: u64 = 0;

/// Every arm of an experiment that is finished.
#[derive(Debug, Serialize)]
pub struct Table {
    /// The figures that any of them has, in the order of the columns.
    pub figures: Vec<Figure>,
    /// The arms, group by group.
    pub groups: Vec<Group>,
    /// Figures that others published, set beside ours.
    pub quoted: Option<Quoted>,
    /// Further tables.
    pub sheets: Vec<Sheet>,
}

/// The arms of a group.
#[derive(Debug, Serialize)]
pub struct Group {
    /// Its name; empty without a matrix.
    pub name: String,
    /// Its arms that are finished; the first is what the others are compared with.
    pub arms: Vec<Line>,
}

/// An arm.
#[derive(Debug, Serialize)]
pub struct Line {
    /// Its name.
    pub arm: String,
    /// Whether its comparison with the first was decided on beforehand.
    pub primary: bool,
    /// Training images, real and synthetic.
    pub images: u64,
    /// Mean and sample standard deviation over trainings of each of [`Table::figures`].
    pub figures: Vec<(String, Option<f64>, Option<f64>)>,
    /// The figure that is compared.
    pub compared: Row,
}

/// The arms of every group that are finished; `parameters` are those of the cells' stages.
///
/// # Errors
/// When a file of a run is damaged.
pub fn of(experiment: &Experiment, parameters: &Parameters) -> Result<Table> {
    let mut figures = scoring::basic();
    let mut read = Vec::new();
    for name in experiment.groups() {
        let (mut cells, mut arms) = (Vec::new(), Vec::new());
        for cell in experiment.of_group(name) {
            let Some(scored) = cell.result()? else {
                continue;
            };
            let arm = Run::open(&cell.manifest.output())?.arm(cell.scored())?;
            for figure in &arm.figures {
                if !figures.iter().any(|known| known.name == figure.name) {
                    figures.push(figure.clone());
                }
            }
            cells.push((cell, scored));
            arms.push(arm);
        }
        read.push((name, cells, arms));
    }
    let columns = &experiment.settings.columns;
    if !columns.is_empty() {
        let named = |name: &String| figures.iter().find(|figure| figure.name == *name);
        figures = columns.iter().filter_map(named).cloned().collect();
    }
    let read = read.into_iter().filter(|(_, cells, _)| !cells.is_empty());
    let groups = read.map(|(name, cells, arms)| group(experiment, name, &cells, &arms, &figures));
    let groups = groups.collect::<Result<_>>()?;
    let further = [
        sheets::groups(experiment, &figures)?,
        sheets::pools(experiment)?,
        sheets::cost(experiment, parameters)?,
    ];
    let mut sheets: Vec<Sheet> = further.into_iter().flatten().collect();
    for sheet in &mut sheets {
        if let Some(quoted) = &experiment.settings.quoted {
            sheet.quote(quoted);
        }
    }
    Ok(Table {
        groups,
        quoted: experiment.settings.quoted.clone(),
        sheets,
        figures,
    })
}

fn group(
    experiment: &Experiment,
    name: &str,
    cells: &[(&Cell, Value)],
    arms: &[Arm],
    figures: &[Figure],
) -> Result<Group> {
    let rows = compare::compare(arms, &experiment.settings.metric, RESAMPLING)?;
    let primary = experiment.settings.primary.as_ref();
    let lines = cells.iter().zip(rows).map(|((cell, arm), mut row)| {
        row.arm.clone_from(&cell.arm);
        let figure = |figure: &Figure| {
            let of = |kind: &str| arm[kind][&figure.name].as_f64();
            (figure.name.clone(), of("mean"), of("std"))
        };
        Line {
            arm: cell.arm.clone(),
            primary: primary.is_some_and(|[_, second]| *second == cell.arm),
            images: arm["training_images"].as_u64().unwrap_or_default(),
            figures: figures.iter().map(figure).collect(),
            compared: row,
        }
    });
    Ok(Group {
        name: name.to_owned(),
        arms: lines.collect(),
    })
}

impl Table {
    /// The header of the tables of a metric.
    pub fn header(&self, metric: &str) -> Vec<String> {
        let mut header = vec!["arm".to_owned(), "images".to_owned(), "n".to_owned()];
        for figure in &self.figures {
            header.push(figure.name.clone());
            if self.quotes(&figure.name) {
                header.push(format!("{} (quoted)", figure.name));
            }
        }
        let mut columns = compare::columns();
        columns[0] += &format!(" in {metric}");
        header.extend(columns);
        header
    }

    /// Whether anything is quoted of a figure.
    fn quotes(&self, figure: &str) -> bool {
        let quoted = self.quoted.iter();
        let mut arms = quoted.flat_map(|quoted| quoted.figures.values());
        arms.any(|figures| figures.contains_key(figure))
    }

    /// What is quoted of a figure for an arm of a group; empty where nothing is.
    fn quoted(&self, group: &str, arm: &str, figure: &str) -> String {
        let Some(quoted) = &self.quoted else {
            return String::new();
        };
        let full = format!("{group}/{arm}");
        let own = quoted
            .figures
            .get(&full)
            .or_else(|| quoted.figures.get(arm));
        let value = own.and_then(|figures| figures.get(figure));
        value.cloned().unwrap_or_default()
    }

    /// The rows of a group, for people: three digits, mean ± deviation.
    pub fn rows(&self, group: &Group) -> Vec<Vec<String>> {
        let rows = group.arms.iter();
        rows.map(|line| self.row(&group.name, line)).collect()
    }

    fn row(&self, group: &str, line: &Line) -> Vec<String> {
        let n = line.compared.seeds.len();
        let mut cells = vec![
            match line.primary {
                true => format!("{} (primary)", line.arm),
                false => line.arm.clone(),
            },
            line.images.to_string(),
            n.to_string(),
        ];
        for (name, mean, std) in &line.figures {
            cells.push(compare::shown(*mean, std.unwrap_or(0.0), n));
            if self.quotes(name) {
                cells.push(self.quoted(group, &line.arm, name));
            }
        }
        cells.extend(line.compared.cells());
        cells
    }

    /// What has to stand below the tables; empty where nothing has.
    pub fn note(&self) -> String {
        let quoted = self.quoted.as_ref();
        quoted.map_or_else(String::new, |quoted| {
            format!(
                "Quoted figures are those of {}; they were not measured here.",
                quoted.source
            )
        })
    }
}

/// All groups as one CSV file, with all digits.
///
/// # Errors
/// When it cannot be made.
pub fn csv(table: &Table) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut header = vec![
        "group".to_owned(),
        "arm".into(),
        "images".into(),
        "n".into(),
    ];
    for figure in &table.figures {
        let name = &figure.name;
        header.extend([name.clone(), format!("{name}_std")]);
    }
    header.extend(
        [
            "difference",
            "low",
            "high",
            "p",
            "p_holm",
            "verdict",
            "primary",
        ]
        .map(str::to_owned),
    );
    writer.write_record(&header).map_err(Error::internal)?;
    let shown = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    for group in &table.groups {
        for line in &group.arms {
            let mut row = vec![
                group.name.clone(),
                line.arm.clone(),
                line.images.to_string(),
                line.compared.seeds.len().to_string(),
            ];
            for (_, mean, std) in &line.figures {
                row.extend([shown(*mean), shown(*std)]);
            }
            let found = line.compared.against_first.as_ref();
            row.extend([
                shown(found.map(|found| found.difference)),
                shown(found.map(|found| found.low)),
                shown(found.map(|found| found.high)),
                shown(found.and_then(|found| found.p)),
                shown(line.compared.adjusted_p),
                line.compared.verdict().to_owned(),
                line.primary.to_string(),
            ]);
            writer.write_record(&row).map_err(Error::internal)?;
        }
    }
    let bytes = writer.into_inner().map_err(Error::internal)?;
    String::from_utf8(bytes).map_err(Error::internal)
}

/// All tables as LaTeX, a `tabular` each, for the package `booktabs`.
pub fn latex(table: &Table, metric: &str) -> String {
    let mut text = String::new();
    for group in &table.groups {
        tabular(
            &mut text,
            &group.name,
            &table.header(metric),
            &table.rows(group),
        );
    }
    for sheet in &table.sheets {
        tabular(&mut text, &sheet.title, &sheet.header, &sheet.rows);
    }
    if !table.note().is_empty() {
        text += &format!("% {}\n", table.note());
    }
    text
}

fn tabular(text: &mut String, title: &str, header: &[String], rows: &[Vec<String>]) {
    let line = |cells: &[String]| -> String {
        let cells: Vec<String> = cells.iter().map(|cell| escaped(cell)).collect();
        format!("{} \\\\\n", cells.join(" & "))
    };
    if !title.is_empty() {
        *text += &format!("% {title}\n");
    }
    *text += &format!(
        "\\begin{{tabular}}{{l{}}}\n\\toprule\n",
        "r".repeat(header.len() - 1)
    );
    *text += &line(header);
    *text += "\\midrule\n";
    *text += &rows.iter().map(|row| line(row)).collect::<String>();
    *text += "\\bottomrule\n\\end{tabular}\n";
}

/// A text as LaTeX.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '±' => out += "$\\pm$",
            '<' => out += "$<$",
            '_' | '%' | '&' | '#' | '$' | '{' | '}' => {
                out.push('\\');
                out.push(c);
            }
            '\\' => out += "\\textbackslash{}",
            c => out.push(c),
        }
    }
    out
}

/// Where the tables of an experiment are written.
pub fn paths(folder: &Path) -> [std::path::PathBuf; 4] {
    ["table.md", "table.csv", "table.tex", "experiment.json"].map(|name| folder.join(name))
}
