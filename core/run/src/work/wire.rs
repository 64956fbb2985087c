//! From a manifest's table to a stage.

use crate::{
    failure::Failure,
    manifest::{Document, Manifest, StageTable},
    registry::{AnyOffer, Kind, Offer, Origin, Registry},
    slots::{self, Slot},
};
use diffaug::{Context, Error, ErrorKind};
use serde_json::Value;

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
        found.map_err(|failure| self.unknown(at, failure))
    }

    fn unknown(&self, at: &str, failure: Failure) -> Failure {
        self.document.place(&format!("{at}.use"), failure)
    }

    /// Draws an error of the stage of table `at` where it belongs. Only options have a place: a
    /// broken image is not the manifest's fault.
    pub fn place(&self, at: &str, table: &StageTable, error: Error) -> Failure {
        if error.field.is_empty() && error.kind != ErrorKind::Config {
            return blame(&format!("{at} `{}`", table.name), error).into();
        }
        self.document.failure(at, error)
    }

    /// The offer that the table of a slot asks for.
    ///
    /// # Errors
    /// With the caret at the table's `use`.
    pub fn offer(&self, slot: &Slot, table: &StageTable) -> Result<&dyn AnyOffer, Failure> {
        let found = self
            .registry
            .find_any(slot.kind, &table.name, &self.manifest.device);
        found.map_err(|failure| self.unknown(&slot.at, failure))
    }

    /// Checks that every stage exists and takes its options; builds nothing.
    ///
    /// # Errors
    /// With the caret at what is wrong first.
    pub fn check_all(&self) -> Result<(), Failure> {
        for slot in slots::of_manifest(self.manifest) {
            let Some(table) = slot.table(self.manifest) else {
                continue;
            };
            self.offer(&slot, table)?
                .check(&table.json())
                .map_err(|error| self.place(&slot.at, table, error))?;
        }
        Ok(())
    }

    /// What the lock file says of the plugins.
    ///
    /// # Errors
    /// When one is not there.
    pub fn plugins(&self) -> Result<Value, Failure> {
        let mut all = serde_json::Map::new();
        for (slot, table) in slots::of_run(self.manifest) {
            let offer = self.offer(&slot, table)?;
            let origin = match offer.origin() {
                Origin::BuiltIn => Value::String("built in".into()),
                Origin::Library { path, sha256 } => serde_json::json!({
                    "file": path.file_name().map(|n| n.to_string_lossy()),
                    "sha256": sha256,
                }),
            };
            let plugin = serde_json::json!({
                "name": table.name,
                "version": offer.version(),
                "origin": origin,
            });
            all.insert(slot.at.into_owned(), plugin);
        }
        Ok(Value::Object(all))
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
