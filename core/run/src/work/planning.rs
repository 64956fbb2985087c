//! What a run is made of, before anything is done: the dataset opened and divided, the hashes of everything,
//! the steps with their keys.

use super::{Goal, attributes, data::Data, measuring::Measures, outside, wire::Wire};
use crate::{
    failure::Failure,
    fingerprint::Step,
    manifest::{Document, Manifest},
    registry::Registry,
    session::Session,
    slots::{DATASET, VALIDATOR},
    steps::{Known, Plan},
};
use diffaug::{
    BoxDataset, BoxValidator, Error, ErrorKind, Progress, Result, Validator, files, human_bytes,
};
use serde_json::{Value, json};

/// A list of ids is far smaller.
const MOST_SPLIT: u64 = 256 << 20;

/// Checks that the file of ids can be read to its end.
fn check_split(wire: &Wire<'_>) -> Result<(), Failure> {
    let Some(path) = &wire.manifest.split.file else {
        return Ok(());
    };
    // What is not there is told by who reads it.
    if !path.exists() {
        return Ok(());
    }
    let length = files::open_regular(path).and_then(|file| Ok(file.metadata()?.len()));
    let refused = match length {
        Ok(length) if length <= MOST_SPLIT => return Ok(()),
        Ok(_) => Error::data(format!("it is larger than {}", human_bytes(MOST_SPLIT))),
        Err(error) => error,
    };
    let mut error = refused.context(format!("cannot read the split `{}`", path.display()));
    error.kind = ErrorKind::Data;
    Err(wire.document.failure("", error.at("split.file")))
}

pub(super) fn open_data(wire: &Wire<'_>) -> Result<Data, Failure> {
    check_split(wire)?;
    let table = &wire.manifest.dataset;
    let dataset: BoxDataset = wire.build(DATASET, table, &table.json(), wire.manifest.seed)?;
    Data::open(dataset, wire.manifest).map_err(|error| {
        // These fields are the manifest's own, not the dataset's.
        if error.field.starts_with("split") || error.field.as_str() == attributes::FIELD {
            wire.document.failure("", error)
        } else {
            wire.place(DATASET, table, error)
        }
    })
}

/// A manifest whose stages take their options, and its dataset.
///
/// # Errors
/// When a stage, an option or the dataset cannot be used.
pub(super) fn open<'a>(
    manifest: &'a Manifest,
    document: &'a Document,
    registry: &'a Registry,
) -> Result<(Wire<'a>, Data), Failure> {
    let wire = Wire {
        registry,
        document,
        manifest,
    };
    wire.check_all()?;
    let data = open_data(&wire)?;
    Ok((wire, data))
}

/// The steps of a manifest's run, with their keys; nothing is computed but those, and nothing written.
///
/// # Errors
/// When a stage, an option or the dataset cannot be used.
pub fn plan(
    manifest: &Manifest,
    document: &Document,
    registry: &Registry,
    session: &Session<'_>,
) -> Result<Plan, Failure> {
    let (wire, data) = open(manifest, document, registry)?;
    let measures = Measures::build(&wire)?;
    Ok(describe(&wire, &data, &measures, Goal::Scores, session)?.1)
}

/// What a run is made of, for `lock.json`, and its steps.
pub(super) fn describe(
    wire: &Wire<'_>,
    data: &Data,
    measures: &Measures,
    goal: Goal,
    session: &Session<'_>,
) -> Result<(Value, Plan), Failure> {
    let manifest = wire.manifest;
    let step = session.begin("reading the dataset");
    let read = |done, total| {
        step.progress(done, total, "");
        session.check_stopped()
    };
    let fingerprint = session
        .stage(|| data.fingerprint(read))
        .map_err(|e| wire.place(DATASET, &manifest.dataset, e))?;
    let [train, validation, test] = data.counts();
    step.finish(&format!(
        "{train} to train, {validation} to validate, {test} to test"
    ));
    let stop = || session.check_stopped();
    let step = Step::new(&stop);
    let dataset = json!({
        "name": data.info.name.as_str(),
        "samples": train + validation + test,
        "sha256": fingerprint,
    });
    let plugins = wire.plugins()?;
    let split_hash = data.split.sha256();
    let weights = outside::weights(wire, &step)?;
    let files = outside::files(wire, &step)?;
    let known = Known {
        dataset: &dataset,
        split: &split_hash,
        plugins: &plugins,
        weights: &weights,
        files: &files,
        measures: &measures.subjects(),
        judges: match goal == Goal::Scores && !manifest.paints() {
            true => None,
            false => Some(validator(wire)?.1),
        },
    };
    let plan = Plan::new(manifest, &known);
    let lock = json!({
        "diffaug": env!("CARGO_PKG_VERSION"),
        "manifest": manifest,
        "plugins": plugins,
        "dataset": dataset,
        "split": { "name": data.split.name, "sha256": split_hash },
        "weights": weights,
        "files": files,
        "steps": plan.keys(),
    });
    Ok((lock, plan))
}

/// The validator, and how many segmenters it asks.
pub(super) fn validator(wire: &Wire<'_>) -> Result<(BoxValidator, u32), Failure> {
    let table = &wire.manifest.validator;
    let validator: BoxValidator =
        wire.build(VALIDATOR, table, &table.json(), wire.manifest.seed)?;
    let asked = validator
        .segmenters()
        .map_err(|e| wire.place(VALIDATOR, table, e))?;
    Ok((validator, asked))
}
