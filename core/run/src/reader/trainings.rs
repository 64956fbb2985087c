//! How the trainings of a run went: the curves that each of them logs in its folder of weights.

use super::{MOST_BYTES, Run, folders, read_json_if_there};
use crate::{layout, work::Fit};
use diffaug::{Result, files};
use serde::Deserialize;

/// Folders of weights lie so deep below those of `layout::TRAINED`, with the parts of a model below them.
const MOST_LEVELS: usize = 4;

/// A value after a step of a training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Steps made so far, this one included.
    pub step: u64,
    /// Loss, or score on the validation part.
    pub value: f64,
}

/// What a training logged.
#[derive(Clone, Debug)]
pub struct TrainingLog {
    /// The folder of what was trained, below the run folder.
    pub folder: String,
    /// The loss of each step.
    pub loss: Vec<Point>,
    /// The score of each evaluation; larger is better.
    pub score: Vec<Point>,
    /// What it came to, where it is done and tells.
    pub fit: Option<Fit>,
    /// Whether it is done, or that of which it is a part.
    pub done: bool,
}

/// A line of a log: a step, which has a loss, or an evaluation, which has a score.
#[derive(Deserialize)]
struct Line {
    step: u64,
    loss: Option<f64>,
    score: Option<f64>,
}

impl Run {
    /// The folders of the trainings that have a log, by name.
    pub fn training_folders(&self) -> Vec<String> {
        let mut found = Vec::new();
        for folder in layout::TRAINED {
            self.add_folders(folder.to_owned(), MOST_LEVELS, &mut found);
        }
        found
    }

    fn add_folders(&self, folder: String, levels: usize, found: &mut Vec<String>) {
        let path = self.root().join(&folder);
        // What cannot be listed may be removed just now.
        let below = folders(&path).unwrap_or_default();
        if path.join(layout::TRAINING_LOG).is_file() {
            found.push(folder.clone());
        }
        let below = below.into_iter().filter(|_| levels > 0);
        for name in below {
            self.add_folders(format!("{folder}/{name}"), levels - 1, found);
        }
    }

    /// Whether a folder lies below that of a training that is done.
    fn is_part_of_done(&self, folder: &str) -> bool {
        let ends = folder.match_indices('/').map(|(end, _)| &folder[..end]);
        let mut above = ends.map(layout::fit_of);
        above.any(|marker| self.root().join(marker).is_file())
    }

    /// What the training in a folder of [`Run::training_folders`] logged. A line that is not whole is left
    /// out: it is being written.
    ///
    /// # Errors
    /// When the log cannot be read, or the file is damaged that says what it came to.
    pub fn training_log(&self, folder: &str) -> Result<TrainingLog> {
        let path = self.root().join(folder).join(layout::TRAINING_LOG);
        let text = files::read_text(&path, MOST_BYTES)?;
        let fit: Option<Option<Fit>> =
            read_json_if_there(&self.root().join(layout::fit_of(folder)))?;
        let mut log = TrainingLog {
            folder: folder.to_owned(),
            loss: Vec::new(),
            score: Vec::new(),
            done: fit.is_some() || self.is_part_of_done(folder),
            fit: fit.flatten(),
        };
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        for Line { step, loss, score } in lines {
            let point = |value: f64| Point { step, value };
            log.loss.extend(loss.map(point));
            log.score.extend(score.map(point));
        }
        Ok(log)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_log_of_every_training_is_found_and_read() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(layout::LOCK), "{}").unwrap();
        let run = Run::open(root.path()).unwrap();
        assert!(run.training_folders().is_empty());
        let weights = "evaluate/real/seed-0/weights";
        let all = ["generator", "segmenters/fold-0-member-0", weights];
        let log = "{\"step\":1,\"epoch\":1,\"loss\":0.5,\"lr\":0.1,\"seconds\":0.1}\n\
                   {\"step\":1,\"score\":0.25,\"seconds\":0.2}\n{\"step\":2,\"lo";
        for folder in all.iter().chain(&["generator/autoencoder", "synthetic"]) {
            fs::create_dir_all(root.path().join(folder)).unwrap();
            fs::write(root.path().join(folder).join("log.jsonl"), log).unwrap();
        }
        let expected = [all[0], "generator/autoencoder", all[1], all[2]];
        assert_eq!(run.training_folders(), expected);
        let fit = r#"{"steps":9,"best_step":4,"loss":null,"metric":"dice","score":0.5,"files":{}}"#;
        fs::write(root.path().join("evaluate/real/seed-0/fit.json"), fit).unwrap();
        let log = run.training_log(weights).unwrap();
        let point = |value| Point { step: 1, value };
        assert_eq!((log.loss, log.score), (vec![point(0.5)], vec![point(0.25)]));
        assert_eq!(log.fit.unwrap().best_step, 4);
        // Nothing was there to be trained.
        fs::write(root.path().join("generator.json"), "null").unwrap();
        assert!(run.training_log("generator").unwrap().fit.is_none());
    }
}
