//! From a manifest's table to a stage.

use crate::{
    failure::Failure,
    manifest::{Document, Manifest, StageTable},
    registry::{Kind, Offer, Registry},
};
use diffaug::{
    BoxDataset, BoxGenerator, BoxPromptBank, BoxSegmenter, BoxValidator, Context, Error, ErrorKind,
};
use serde_json::Value;

/// The table of the start generator.
pub const START: &str = "synthesis.start";

/// Everything that building a stage needs to know.
pub struct Wire<'a> {
    /// What is on offer.
    pub registry: &'a Registry,
    /// Where errors are drawn.
    pub document: &'a Document,
    /// What was typed.
    pub manifest: &'a Manifest,
}

impl Wire<'_> {
    /// What stages are told about the run.
    pub fn context(&self, seed: u64) -> Context {
        Context {
            device: self.manifest.device.as_str().into(),
            seed,
            max_pixels: u64::from(self.manifest.images.max_megapixels) * 1_000_000,
            bits: self.manifest.images.bits.unwrap_or(0),
            size: self.manifest.images.size.unwrap_or(0),
        }
    }

    /// Builds the stage of table `at`.
    ///
    /// # Errors
    /// With the caret at the table's `use` or at the option that is wrong.
    pub fn build<S: Kind>(
        &self,
        at: &str,
        table: &StageTable,
        options: &Value,
        seed: u64,
    ) -> Result<S, Failure> {
        let offer = self.find::<S>(at, table)?;
        offer
            .build(options, &self.context(seed))
            .map_err(|error| self.place(at, table, error))
    }

    /// The offer that table `at` asks for.
    ///
    /// # Errors
    /// With the caret at the table's `use`.
    pub fn find<S: Kind>(&self, at: &str, table: &StageTable) -> Result<&Offer<S>, Failure> {
        let found = self.registry.find::<S>(&table.name, &self.manifest.device);
        found.map_err(|failure| self.document.place(&format!("{at}.use"), failure))
    }

    /// Draws an error of the stage of table `at` where it belongs. Only options have a place: a
    /// broken image is not the manifest's fault.
    pub fn place(&self, at: &str, table: &StageTable, error: Error) -> Failure {
        if error.field.is_empty() && error.kind != ErrorKind::Config {
            return blame(&format!("{at} `{}`", table.name), error).into();
        }
        self.document.failure(at, error)
    }

    fn check<S: Kind>(&self, at: &str, table: &StageTable) -> Result<(), Failure> {
        self.find::<S>(at, table)?
            .check(&table.json())
            .map_err(|error| self.place(at, table, error))
    }

    /// Checks that every stage exists and takes its options; builds nothing.
    pub fn check_all(&self) -> Result<(), Failure> {
        let m = self.manifest;
        self.check::<BoxDataset>("dataset", &m.dataset)?;
        self.check::<BoxPromptBank>("prompts", &m.prompts)?;
        self.check::<BoxGenerator>("generator", &m.generator)?;
        if let Some(table) = &m.synthesis.start {
            self.check::<BoxGenerator>(START, table)?;
        }
        self.check::<BoxValidator>("validator", &m.validator)?;
        self.check::<BoxSegmenter>("segmenter", &m.segmenter)?;
        if let Some(table) = &m.evaluate.segmenter {
            self.check::<BoxSegmenter>("evaluate.segmenter", table)?;
        }
        Ok(())
    }

    /// What the lock file says of the plugins.
    pub fn plugins(&self) -> Result<Value, Failure> {
        let m = self.manifest;
        let mut all = serde_json::Map::new();
        all.insert("dataset".into(), self.plugin::<BoxDataset>(&m.dataset)?);
        all.insert("prompts".into(), self.plugin::<BoxPromptBank>(&m.prompts)?);
        all.insert(
            "generator".into(),
            self.plugin::<BoxGenerator>(&m.generator)?,
        );
        if let Some(start) = &m.synthesis.start {
            all.insert(START.into(), self.plugin::<BoxGenerator>(start)?);
        }
        all.insert(
            "validator".into(),
            self.plugin::<BoxValidator>(&m.validator)?,
        );
        all.insert(
            "segmenter".into(),
            self.plugin::<BoxSegmenter>(&m.segmenter)?,
        );
        all.insert(
            "evaluate.segmenter".into(),
            self.plugin::<BoxSegmenter>(m.downstream())?,
        );
        Ok(Value::Object(all))
    }

    fn plugin<S: Kind>(&self, table: &StageTable) -> Result<Value, Failure> {
        let offer = self
            .registry
            .find::<S>(&table.name, &self.manifest.device)?;
        let origin = match &offer.origin {
            crate::registry::Origin::BuiltIn => Value::String("built in".into()),
            crate::registry::Origin::Library { path, sha256 } => serde_json::json!({
                "file": path.file_name().map(|n| n.to_string_lossy()),
                "sha256": sha256,
            }),
        };
        Ok(serde_json::json!({
            "name": table.name,
            "version": offer.entry.version.as_str(),
            "origin": origin,
        }))
    }
}

/// Says which stage an error came from.
pub fn blame(stage: &str, error: Error) -> Error {
    match error.kind {
        ErrorKind::Cancelled => error,
        ErrorKind::Panic => error.context(format!("{stage} panicked")),
        _ => error.context(stage),
    }
}
