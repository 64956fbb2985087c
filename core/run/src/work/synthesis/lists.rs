//! The lists of a synthesis, which users and later steps read, and the images that they name.

use super::{
    super::{
        candidates,
        record::{Record, Summary, Tally},
    },
    Synthesizer, grey,
};
use crate::{journal::Line, layout};
use diffaug::{
    Result, ResultExt,
    error::ErrorKind,
    files::{self, WholeFile, hash_file},
    image::MaskRule,
    pairs::Pair,
    view::Shared,
};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
};

impl Synthesizer<'_> {
    /// The lists that users read, made also after an interruption, and the checksums of everything.
    pub(super) fn publish(&self) -> Result<(Summary, String)> {
        let mut metadata = WholeFile::create(&self.store.path(layout::METADATA))?;
        let mut rejected = WholeFile::create(&self.store.path(layout::REJECTED_LIST))?;
        let mut tally = Tally::new(self.info, self.manifest.synthesis.preview.as_ref());
        let mut checksums = String::new();
        for entry in self.journal().entries()? {
            let line = serde_json::to_string(&entry.record)? + "\n";
            let list = if entry.record.accepted() {
                &mut metadata
            } else {
                &mut rejected
            };
            list.write(line.as_bytes())?;
            tally.add(&entry.record);
            for (name, hash) in &entry.files {
                checksums += &format!("{hash}  {name}\n");
            }
        }
        metadata.finish()?;
        rejected.finish()?;
        let classes: Map<String, Value> = self
            .info
            .classes
            .iter()
            .map(|class| (class.name.to_string(), json!(grey(class.label, self.info))))
            .collect();
        self.store.write_json(layout::CLASSES, &classes)?;
        for name in [layout::METADATA, layout::REJECTED_LIST, layout::CLASSES] {
            checksums += &format!("{}  {name}\n", hash_file(&self.store.path(name))?);
        }
        let mut summary = tally.summary(self.quota.total());
        self.quota.note(&mut summary.by_size);
        summary.backgrounds.clone_from(&self.backgrounds);
        Ok((summary, checksums))
    }

    /// Calls `work` with every record of a list.
    pub(in crate::work) fn each(
        &self,
        name: &str,
        mut work: impl FnMut(Record) -> Result<()>,
    ) -> Result<()> {
        let path = self.store.path(name);
        let failed = || format!("cannot read `{}`", path.display());
        let file = files::open_regular(&path).or_error(ErrorKind::Data, failed)?;
        for line in BufReader::new(file).lines() {
            let line = line.or_error(ErrorKind::Data, failed)?;
            let record = serde_json::from_str(&line).or_error(ErrorKind::Data, failed)?;
            work(record)?;
        }
        Ok(())
    }

    /// Some candidates that were accepted and some that were turned down, evenly spread over the run:
    /// those beside each other are often painted into frames of one video.
    pub fn examples(&self, accepted: usize, rejected: usize) -> Result<Vec<u64>> {
        let mut found = Vec::new();
        for (list, count) in [
            (layout::METADATA, accepted),
            (layout::REJECTED_LIST, rejected),
        ] {
            let mut painted = Vec::new();
            self.each(list, |record| {
                painted.extend(record.painted().then_some(record.index));
                Ok(())
            })?;
            found.extend(spread(&painted, count));
        }
        Ok(found)
    }

    /// The images of a list as a dataset: the accepted ones of [`layout::METADATA`] or, as far as they are
    /// kept, the others of [`layout::REJECTED_LIST`]; `None` where there are none.
    pub fn images_of(&self, list: &str, max_pixels: u64) -> Result<Option<Shared>> {
        let folder = match list {
            layout::METADATA => layout::SYNTHETIC,
            _ => layout::REJECTED,
        };
        let place = |kind: &str, index| {
            let name = format!("{folder}/{kind}/{}", layout::image(index));
            self.store.path(name)
        };
        let mut pairs = Vec::new();
        self.each(list, |record| {
            let image = place(layout::IMAGES, record.index);
            if record.accepted() || image.exists() {
                let id = format!("synthetic/{}", record.id);
                pairs.push(Pair::new(&id, image, place(layout::MASKS, record.index)));
            }
            Ok(())
        })?;
        if pairs.is_empty() {
            return Ok(None);
        }
        let labels = self.info.classes.iter();
        let mut rule: BTreeMap<u8, u8> = labels
            .map(|c| (grey(c.label, self.info), c.label))
            .collect();
        rule.insert(0, 0);
        let rule = MaskRule::Values(rule);
        candidates::as_dataset(self.info.clone(), pairs, rule, max_pixels).map(Some)
    }
}

/// `count` of them from all over, in their order; all, should there be fewer.
fn spread(all: &[u64], count: usize) -> impl Iterator<Item = u64> {
    let count = count.min(all.len());
    (0..count).map(move |i| all[i * all.len() / count])
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn examples_come_from_all_over_a_run() {
        let some = |all: &[u64], count| spread(all, count).collect::<Vec<_>>();
        assert_eq!(some(&[0, 1, 4, 5, 8, 9, 11], 3), [0, 4, 8]);
        assert_eq!(some(&[3, 7], 4), [3, 7]);
        assert!(some(&[], 4).is_empty());
    }
}
