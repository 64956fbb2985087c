//! All that a page says of a run, read from its folder. What cannot be read is a sentence, and the rest is shown.

use diffaug::{
    Result,
    image::{DEFAULT_MAX_PIXELS, encode_jpeg, open_image},
};
use diffaug_run::{
    layout,
    reader::{Arm, Painted, Run, TrainingLog},
    work::{pool_figures::Outcomes, record::Summary},
};
use serde_json::Value;

/// Quality of the contact sheet on a page, of 100.
const SHEET_QUALITY: u8 = 85;

/// A run as a page shows it.
pub struct Content {
    /// What the page calls the run.
    pub label: String,
    /// `lock.json`.
    pub lock: Value,
    /// The manifest with all defaults.
    pub manifest: Option<String>,
    /// Images to train, to validate and to test.
    pub counts: Option<[usize; 3]>,
    /// `result.json`.
    pub result: Option<Value>,
    /// What the synthesis came to.
    pub summary: Option<Summary>,
    /// The candidates.
    pub painted: Option<Painted>,
    /// What measures say of painted images and of verdicts.
    pub measured: Outcomes,
    /// The contact sheet, as the bytes of a JPEG file.
    pub sheet: Option<Vec<u8>>,
    /// Every training that left a log.
    pub logs: Vec<TrainingLog>,
    /// Every arm that has scores; `real` first.
    pub arms: Vec<Arm>,
    /// What is missing or cannot be read, a sentence each.
    pub missing: Vec<String>,
}

/// What a run is called in its manifest.
pub fn name(run: &Run) -> String {
    let name = run.lock()["manifest"]["name"].as_str();
    name.unwrap_or("run").to_owned()
}

impl Content {
    /// Reads what is there of a run.
    pub fn read(run: &Run, label: String) -> Self {
        let mut missing = Vec::new();
        let logs = run.training_folders().into_iter();
        let logs: Vec<Result<TrainingLog>> = logs.map(|at| run.training_log(&at)).collect();
        let mut content = Content {
            label,
            lock: run.lock().clone(),
            manifest: noted(run.manifest_text(), &mut missing).flatten(),
            counts: run.counts(),
            result: noted(run.result(), &mut missing).flatten(),
            summary: noted(run.summary(), &mut missing).flatten(),
            painted: noted(run.painted(), &mut missing).flatten(),
            measured: noted(run.measured(), &mut missing).unwrap_or_default(),
            sheet: sheet(run, &mut missing),
            logs: logs
                .into_iter()
                .filter_map(|log| noted(log, &mut missing))
                .collect(),
            arms: arms(run, &mut missing),
            missing,
        };
        content.say_what_is_missing(run);
        content
    }

    /// Whether the run is to paint anything.
    pub fn paints(&self) -> bool {
        let ratio = &self.lock["manifest"]["synthesis"]["ratio"];
        ratio.as_f64().is_none_or(|ratio| ratio > 0.0)
    }

    /// The name of the plugin of a stage.
    pub fn plugin(&self, stage: &str) -> &str {
        let plugin = &self.lock["plugins"][stage]["name"];
        plugin.as_str().unwrap_or_default()
    }

    fn say_what_is_missing(&mut self, run: &Run) {
        let mut say = |sentence: &str| self.missing.push(sentence.to_owned());
        if self.manifest.is_none() {
            say("the manifest is not there");
        }
        if self.counts.is_none() {
            say("the images are not divided yet");
        }
        if self.result.is_none() {
            say("the run is not finished: there is no result yet");
        }
        let ratio = &self.lock["manifest"]["synthesis"]["ratio"];
        if ratio.as_f64() == Some(0.0) {
            say("nothing is painted in this run: synthesis.ratio is 0");
        } else {
            match &self.painted {
                None => say("no candidate is painted yet"),
                Some(painted) if !painted.finished => say("the synthesis is not finished"),
                Some(_) if self.sheet.is_none() => say("there is no contact sheet"),
                Some(_) => {}
            }
        }
        if let Some(painted) = &self.painted {
            self.missing.extend(painted.missing.iter().cloned());
            self.missing.extend(without_images(run, painted));
        }
    }
}

/// The value, or nothing and a sentence more.
fn noted<T>(result: Result<T>, missing: &mut Vec<String>) -> Option<T> {
    result.map_err(|error| missing.push(error.to_string())).ok()
}

fn arms(run: &Run, missing: &mut Vec<String>) -> Vec<Arm> {
    let mut names = noted(run.arms(), missing).unwrap_or_default();
    names.sort_by_key(|name| name != layout::REAL);
    let arms = names.into_iter().filter_map(|name| {
        let arm = noted(run.arm(&name), missing)?;
        Some(Arm { name, ..arm })
    });
    arms.collect()
}

fn sheet(run: &Run, missing: &mut Vec<String>) -> Option<Vec<u8>> {
    let path = run.root().join(layout::CONTACT_SHEET);
    if !path.exists() {
        return None;
    }
    let read = || encode_jpeg(open_image(&path, DEFAULT_MAX_PIXELS)?.view(), SHEET_QUALITY);
    noted(read(), missing)
}

/// How many accepted images are no longer there.
fn without_images(run: &Run, painted: &Painted) -> Option<String> {
    let folder = run.root().join(layout::SYNTHETIC);
    let names = painted.records.iter();
    let names = names.filter_map(|record| record.file_name.as_ref());
    let gone = names.filter(|name| !folder.join(name).is_file()).count();
    (gone > 0).then(|| format!("{gone} accepted images are no longer in the run folder"))
}
