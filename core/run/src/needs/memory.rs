//! Whether what the stages need fits into the memory that there is.

use super::{Needs, Stage};
use crate::{
    manifest::Manifest,
    slots::{GENERATOR, START},
};
use diffaug::human_bytes;

impl Needs {
    /// Holds every stage against the device's memory, and those that work at the same time together.
    pub(super) fn compare(&mut self, manifest: &Manifest) {
        let cache = u64::from(manifest.images.cache) << 20;
        let text = format!(
            "prepared samples take up to {} of the machine's memory besides (`images.cache`)",
            human_bytes(cache)
        );
        self.note("dataset", text);
        let Some((memory, place)) = self.memory() else {
            return;
        };
        let mut needs: Vec<(String, u64, String)> = Vec::new();
        for stage in &self.stages {
            if stage.is_trained {
                needs.push((stage.stage.clone(), stage.train_bytes, "to train".into()));
            }
            if !stage.is_trained || stage.run_bytes > stage.train_bytes {
                needs.push((stage.stage.clone(), stage.run_bytes, "to run".into()));
            }
        }
        // Candidates are judged while the generator stays where it is.
        let painting = ["generator", "segmenter"].map(|name| self.run_bytes(name));
        if painting
            .iter()
            .all(|&bytes| bytes > 0 && bytes <= memory.total)
        {
            let all = painting
                .iter()
                .sum::<u64>()
                .saturating_add(self.run_bytes(START));
            let with = match self.run_bytes(START) {
                0 => "together with `segmenter`".to_owned(),
                _ => format!("together with `{START}` and `segmenter`"),
            };
            needs.push((GENERATOR.to_owned(), all, with));
        }
        for (stage, bytes, what) in needs {
            if bytes > memory.total {
                let [bytes, total] = apart(bytes, memory.total);
                self.miss(&stage, format!("needs {bytes} {what}, {place} has {total}"));
            } else if bytes > memory.available {
                let [bytes, free] = apart(bytes, memory.available);
                let total = human_bytes(memory.total);
                let text = format!("needs {bytes} {what}, of {total} only {free} are free now");
                self.note(&stage, text);
            }
        }
    }

    fn run_bytes(&self, name: &str) -> u64 {
        let stage = self.stages.iter().find(|s: &&Stage| s.stage == name);
        stage.map_or(0, |stage| stage.run_bytes)
    }
}

/// Two amounts in words that differ.
fn apart(more: u64, less: u64) -> [String; 2] {
    let texts = [more, less].map(human_bytes);
    if texts[0] != texts[1] {
        return texts;
    }
    [more, less].map(|bytes| format!("{bytes} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_told_apart() {
        assert_eq!(apart(3 << 30, 2 << 30), ["3.0 GiB", "2.0 GiB"]);
        assert_eq!(apart(5000, 4999), ["5000 bytes", "4999 bytes"]);
    }
}
