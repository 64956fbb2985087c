//! The table `experiment` of a manifest.

use crate::{failure::Failure, manifest::Document};
use diffaug::Error;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The table `experiment` of a manifest.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The seeds of the trainings of every arm; those of generator and judge are the manifest's.
    pub seeds: Vec<u64>,
    /// The two arms whose comparison was decided on beforehand: the second against the first.
    pub primary: Option<[String; 2]>,
    /// The figure that is compared: dice, iou, sensitivity, fnr, specificity, or one of a measure of
    /// predictions.
    pub metric: String,
    /// How far every cell goes.
    pub goal: Until,
    /// The figures that tables show, in this order; without it all of them.
    pub columns: Vec<String>,
    /// Groups of test images, such as `small` or `size: below 2 %`, of which a further table has the scores.
    pub groups: Vec<String>,
    /// Whether a further table tells of the painted images: acceptance, looks and measures of images.
    pub pools: bool,
    /// Whether a further table tells what each arm took: parameters, time and memory of training, images a
    /// second.
    pub cost: bool,
    /// Figures that others published, set beside ours.
    pub quoted: Option<Quoted>,
}

/// How far the cells of an experiment go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Until {
    /// Their datasets are opened and counted; nothing is trained.
    Data,
    /// Images are painted and judged.
    Synthesis,
    /// Segmenters are trained and scored.
    #[default]
    Scores,
}

/// Figures that others published.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Quoted {
    /// Where they stand.
    pub source: String,
    /// By the name of the arm (`GROUP/ARM` with a matrix) and that of the figure, as they are to be printed.
    #[serde(default)]
    pub figures: BTreeMap<String, BTreeMap<String, String>>,
    /// The same for further tables (`groups`, `pools`, `cost`): by the table, the first two cells of a row
    /// (`small / unet`) and the column.
    #[serde(default)]
    pub tables: BTreeMap<String, BTreeMap<String, BTreeMap<String, String>>>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            seeds: vec![0],
            primary: None,
            metric: "dice".to_owned(),
            goal: Until::default(),
            columns: Vec::new(),
            groups: Vec::new(),
            pools: false,
            cost: false,
            quoted: None,
        }
    }
}

/// The settings of a document; the defaults where it has none.
///
/// # Errors
/// With the place of what is wrong.
pub(super) fn settings(document: &Document) -> Result<Settings, Failure> {
    let Some(value) = document.value("experiment") else {
        return Ok(Settings::default());
    };
    let failure = |error: Error| document.failure("experiment", error);
    let settings: Settings = serde_json::from_value(value.clone())
        .map_err(|error| failure(Error::config(error.to_string())))?;
    let distinct: BTreeSet<&u64> = settings.seeds.iter().collect();
    if settings.seeds.is_empty() || distinct.len() < settings.seeds.len() {
        let error = Error::config("`experiment.seeds` must be one or more seeds that differ");
        return Err(failure(error.at("seeds")));
    }
    Ok(settings)
}
