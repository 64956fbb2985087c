//! The dataset of a finished run, opened again to hand its images on.

use super::{data::Data, planning::open_data, wire::Wire};
use crate::{
    failure::Failure,
    layout,
    manifest::{Document, Manifest},
    reader,
    registry::Registry,
    session::Session,
    slots::DATASET,
};
use diffaug::{DatasetInfo, Error, Result, image::ReadOptions, split::SplitOptions, view::Shared};

/// A part of a divided dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// What models learn from.
    Train,
    /// What weights and thresholds are chosen by.
    Validation,
    /// What results are reported on.
    Test,
}

impl Part {
    /// What `split.json` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Validation => "validation",
            Part::Test => "test",
        }
    }
}

/// The dataset of a finished run, divided as the run divided it.
pub struct Reopened {
    data: Data,
    reading: ReadOptions,
}

impl Reopened {
    /// Opens the dataset that `manifest`, the one of `run`, names, and compares every sample with what the
    /// run had.
    ///
    /// # Errors
    /// When it cannot be opened, or is not the dataset that the run had.
    pub fn open(
        run: &reader::Run,
        manifest: &Manifest,
        registry: &Registry,
        session: &Session<'_>,
    ) -> Result<Self, Failure> {
        run.split()?;
        let mut manifest = manifest.clone();
        // Every sample is handed on once; kept in memory they would serve nobody.
        manifest.images.cache = 0;
        // The list of the run itself, whatever has become of the one that it was made of.
        manifest.split = SplitOptions {
            file: Some(run.root().join(layout::SPLIT)),
            ..SplitOptions::default()
        };
        let wire = Wire {
            registry,
            document: &Document::default(),
            manifest: &manifest,
        };
        let data = open_data(&wire)?;
        let step = session.begin("comparing the dataset with the run's");
        let read = |done, total| {
            step.progress(done, total, "");
            session.check_stopped()
        };
        let found = session
            .stage(|| data.fingerprint(read))
            .map_err(|error| wire.place(DATASET, &manifest.dataset, error))?;
        if found != run.dataset_sha256() {
            return Err(Error::data(format!(
                "the dataset {} on disk is not the one that run `{}` was made with: its SHA-256 is {found}, \
                 `{}` has {}",
                data.info.name,
                run.root().display(),
                layout::LOCK,
                run.dataset_sha256()
            ))
            .into());
        }
        step.finish("as it was");
        let reading = ReadOptions::from(&wire.context(manifest.seed));
        Ok(Reopened { data, reading })
    }

    /// Name and classes.
    pub fn info(&self) -> &DatasetInfo {
        &self.data.info
    }

    /// How the run reads image files.
    pub fn reading(&self) -> ReadOptions {
        self.reading
    }

    /// The real samples of a part: at their own size if `native`, else at the run's working size.
    ///
    /// # Errors
    /// When the dataset cannot be listed.
    pub fn part(&self, part: Part, native: bool) -> Result<Shared> {
        self.data.part(part, native)
    }
}
