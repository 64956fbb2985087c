//! `log.jsonl`: an object per line, for steps and for evaluations. When a run goes on, what was
//! written after its last checkpoint is cut off first, so that no step is there twice.

use super::events::Events;
use crate::weights;
use diffaug::{ErrorKind, Result, ResultExt};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind as Io, Write},
    path::{Path, PathBuf},
    time::Instant,
};

/// The log in a run's folder.
pub const LOG: &str = "log.jsonl";

/// A step, or an evaluation after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Line {
    /// Steps made so far, this one included.
    pub step: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Learning rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Norm of the gradient before clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// There in the lines of evaluations alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Time that training took so far, in all sessions together.
    pub seconds: f64,
}

/// The open log.
pub(super) struct Log {
    path: PathBuf,
    file: File,
    events: Option<Events>,
    start: Instant,
    /// Seconds of earlier sessions.
    before: f64,
}

impl Log {
    /// Opens the log of a run that goes on after `step` steps, the last of them with an evaluation
    /// being `evaluated`.
    pub fn open(out: &Path, step: u64, evaluated: u64, tensorboard: bool) -> Result<Self> {
        let path = out.join(LOG);
        let old = match fs::read(&path) {
            // What is broken in a line costs that line alone.
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == Io::NotFound => String::new(),
            Err(error) => Err(error).or_error(ErrorKind::Data, || {
                format!("cannot read `{}`", path.display())
            })?,
        };
        let kept = kept(&old, step, evaluated);
        let texts = kept
            .iter()
            .map(|line| Ok(serde_json::to_string(line)? + "\n"));
        let text: String = texts.collect::<Result<_>>()?;
        weights::write_atomically(&path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path);
        let file = file.or_error(ErrorKind::Data, || {
            format!("cannot write `{}`", path.display())
        })?;
        let before = kept.last().map_or(0.0, |line| line.seconds);
        let events = tensorboard.then(|| Events::create(out, before, &kept));
        Ok(Log {
            path,
            file,
            events: events.transpose()?,
            start: Instant::now(),
            before,
        })
    }

    /// Appends `line`, with the time.
    pub fn write(&mut self, mut line: Line) -> Result<()> {
        let seconds = self.before + self.start.elapsed().as_secs_f64();
        line.seconds = (seconds * 1e3).round() / 1e3;
        let text = serde_json::to_string(&line)? + "\n";
        let written = self.file.write_all(text.as_bytes());
        written.or_error(ErrorKind::Data, || {
            format!("cannot write `{}`", self.path.display())
        })?;
        match &mut self.events {
            Some(events) => events.write(&line),
            None => Ok(()),
        }
    }
}

/// The lines that a run after `step` steps has behind it. A kill may leave half a line.
fn kept(text: &str, step: u64, evaluated: u64) -> Vec<Line> {
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let last = |line: &Line| {
        if line.score.is_some() {
            evaluated
        } else {
            step
        }
    };
    lines.filter(|line| line.step <= last(line)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn step(step: u64) -> Line {
        Line {
            step,
            loss: Some(0.5),
            ..Line::default()
        }
    }

    fn evaluation(step: u64) -> Line {
        Line {
            step,
            score: Some(0.5),
            ..Line::default()
        }
    }

    #[test]
    fn what_is_done_again_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::open(folder.path(), 0, 0, false).unwrap();
        for line in [step(1), step(2), evaluation(2), step(3), step(4)] {
            log.write(line).unwrap();
        }
        drop(log);
        let path = folder.path().join(LOG);
        let torn = fs::read_to_string(&path).unwrap() + "{\"step\":5,\"lo";
        fs::write(&path, torn).unwrap();
        let steps = |at: u64, evaluated: u64| {
            drop(Log::open(folder.path(), at, evaluated, false).unwrap());
            let lines = kept(&fs::read_to_string(&path).unwrap(), 9, 9);
            let pair = |line: &Line| (line.step, line.score.is_some());
            lines.iter().map(pair).collect::<Vec<_>>()
        };
        let all = [(1, false), (2, false), (2, true), (3, false), (4, false)];
        assert_eq!(steps(9, 9), all);
        assert_eq!(steps(3, 2), all[..4]);
        assert_eq!(steps(2, 0), all[..2]);
        assert_eq!(steps(0, 0), []);
    }
}
