//! The pipeline: a manifest in, a validated synthetic set and scored segmenters out.
//!
//! Load the dataset, fit the generator, fit the validator's segmenter on real images, paint and
//! judge candidates, train segmenters with and without what was kept, score them on the test part.
//! Each step leaves a file in the run folder and is not repeated when the run is started again.

pub mod attributes;
mod backgrounds;
mod batch;
mod candidates;
mod data;
mod evaluate;
mod gallery;
pub mod judges;
mod judging;
mod making;
pub mod measuring;
mod once;
mod outside;
mod overlap;
mod painting;
mod placing;
mod planning;
mod pool;
pub mod pool_figures;
pub mod pool_measures;
pub mod record;
pub mod reopen;
pub mod scoring;
pub mod shards;
mod sheet;
pub mod sizes;
pub mod statistics;
mod synthesis;
mod tiles;
pub mod wire;

use crate::{
    failure::Failure,
    layout,
    manifest::{Background, Document, Manifest, StageTable},
    registry::Registry,
    results::Results,
    session::Session,
    slots::{self, DOWNSTREAM, GENERATOR, PROMPTS, SEGMENTER, START},
    steps::Plan,
    store::Store,
};
use data::{Data, Examined};
use diffaug::{
    BoxDataset, BoxGenerator, BoxPromptBank, Error, ErrorKind, Generator, Reporter, Result,
    image::ReadOptions, pairs,
};
use evaluate::{Arm, Evaluation};
use judges::{Judges, Training};
use measuring::{Figure, Measures};
pub use once::Fit;
use once::Steps;
use painting::Stages;
pub use planning::plan;
use planning::{describe, open, open_data, validator};
use pool_figures::Outcomes;
use record::Summary;
use serde_json::{Value, json};
use shards::Shard;
use std::{collections::BTreeMap, path::PathBuf};
use wire::Wire;

/// How far a run goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Up to the fitted generator.
    Generator,
    /// Only the validator's segmenter.
    Segmenter,
    /// Up to the synthetic images.
    Synthesis,
    /// A part of the synthetic images, left in the store.
    Shard(Shard),
    /// Up to the synthetic images, joined from parts in the store.
    Merge,
    /// To the scores.
    Scores,
}

/// What a run came to.
pub struct RunOutcome {
    /// The run folder.
    pub folder: PathBuf,
    /// The scores, when the run went that far.
    pub result: Option<Value>,
    /// The synthesis, when the run went that far.
    pub summary: Option<Summary>,
    /// What measures say of images and verdicts, when the run went that far.
    pub measured: Outcomes,
    /// The arms, when the run went that far.
    pub arms: Vec<Arm>,
    /// The training asked for, when the goal was one.
    pub fit: Option<Fit>,
}

/// Everything that paints.
struct Painters {
    bank: BoxPromptBank,
    start: Option<BoxGenerator>,
    generator: BoxGenerator,
    /// What the generator's training came to, where there was one.
    fitted: Option<Fit>,
}

/// A run that is under way.
struct Run<'a> {
    wire: Wire<'a>,
    store: Store,
    results: Results,
    plan: Plan,
    data: Data,
    measures: Measures,
    session: &'a Session<'a>,
}

/// What `check --data` found.
pub struct Inspected {
    /// The dataset's name.
    pub name: String,
    /// Samples to train, to validate, to test.
    pub counts: [usize; 3],
    /// What a look at every file showed.
    pub examined: Examined,
}

/// Opens the dataset of a manifest, divides it and looks at every file, with `pixels` into them.
///
/// # Errors
/// When it cannot be listed or divided; faults of single samples are part of the answer.
pub fn inspect(
    manifest: &Manifest,
    document: &Document,
    registry: &Registry,
    pixels: bool,
    session: &Session<'_>,
) -> Result<Inspected, Failure> {
    let wire = Wire {
        registry,
        document,
        manifest,
    };
    let data = open_data(&wire)?;
    let backgrounds = match (&manifest.synthesis.background, &manifest.synthesis.external) {
        (Background::External, Some(folder)) => pairs::list_files(folder)
            .map_err(|error| document.failure("", error.at("synthesis.external")))?,
        _ => Vec::new(),
    };
    let reading = ReadOptions::from(&wire.context(manifest.seed));
    let step = session.begin("looking at every file");
    let examined = data.examine(&backgrounds, reading, pixels, &step)?;
    step.finish(&format!("{} samples", examined.samples));
    Ok(Inspected {
        name: data.info.name.to_string(),
        counts: data.counts(),
        examined,
    })
}

/// How many samples of `dataset` are to train, to validate and to test, and what it is called.
///
/// # Errors
/// When it cannot be listed or divided.
pub fn divide(dataset: BoxDataset, manifest: &Manifest) -> Result<([usize; 3], String)> {
    let data = Data::open(dataset, manifest)?;
    Ok((data.counts(), data.info.name.to_string()))
}

/// The figures that every test image of a run will have.
///
/// # Errors
/// When a measure cannot be built.
pub fn figures(
    manifest: &Manifest,
    document: &Document,
    registry: &Registry,
) -> Result<Vec<Figure>, Failure> {
    let wire = Wire {
        registry,
        document,
        manifest,
    };
    let mut figures = scoring::basic();
    figures.extend(Measures::build(&wire)?.figures().0);
    Ok(figures)
}

/// Runs a manifest up to `goal`.
///
/// # Errors
/// When anything fails; what was finished stays in the run folder.
pub fn run(
    manifest: &Manifest,
    document: &Document,
    registry: &Registry,
    goal: Goal,
    session: &Session<'_>,
) -> Result<RunOutcome, Failure> {
    let (wire, data) = open(manifest, document, registry)?;
    let measures = Measures::build(&wire)?;
    let results = Results::of(&manifest.store());
    let mut described = None;
    let output = match goal {
        // No two processes meet in a folder: each shard has its own, where a merge finds it.
        Goal::Shard(shard) if manifest.paints() => {
            let (lock, plan) = describe(&wire, &data, &measures, goal, session)?;
            let key = plan.step(layout::SYNTHETIC).map(|step| step.key.clone());
            described = Some((lock, plan));
            results
                .shards(&key.unwrap_or_default())
                .join(shard.folder())
        }
        _ => manifest.output(),
    };
    let opened = Store::open(&output);
    let (store, log) = opened.map_err(|error| wire.document.failure("", error))?;
    session.log_to(log);
    tracing::info!(
        name = manifest.name,
        version = env!("CARGO_PKG_VERSION"),
        "run"
    );
    let mut run = Run {
        wire,
        store,
        results,
        plan: Plan::default(),
        data,
        measures,
        session,
    };
    let start = std::time::Instant::now();
    run.lock(goal, described)?;
    let outcome = run.go(goal)?;
    tracing::info!(
        seconds = start.elapsed().as_secs_f64(),
        seconds_in_stages = session.in_stages().as_secs_f64(),
        "done"
    );
    Ok(outcome)
}

impl Run<'_> {
    fn manifest(&self) -> &Manifest {
        self.wire.manifest
    }

    /// Plans the steps and writes down what this run is made of, or refuses to go on with something else.
    fn lock(&mut self, goal: Goal, described: Option<(Value, Plan)>) -> Result<(), Failure> {
        let (lock, plan) = match described {
            Some(described) => described,
            None => describe(&self.wire, &self.data, &self.measures, goal, self.session)?,
        };
        let toml = toml::to_string_pretty(self.manifest()).map_err(Error::internal)?;
        self.store.lock(&toml, &lock)?;
        // Its hash is in the lock, so one that is there is this one, unless a disk lost it.
        let split = &self.data.split;
        let same = self.store.read_json::<diffaug::split::Split>(layout::SPLIT);
        if !same.is_ok_and(|same| same.as_ref() == Some(split)) {
            self.store.write_json(layout::SPLIT, split)?;
        }
        self.plan = plan;
        Ok(())
    }

    /// The models of a hub that this run uses, or would use where it has not begun with them.
    fn pins(&self) -> Result<BTreeMap<String, String>> {
        let mut pins = BTreeMap::new();
        for (slot, table) in slots::of_run(self.manifest()) {
            pins.extend(outside::hub_models(&slot.at, table, &[]));
        }
        pins.extend(self.store.pins()?);
        Ok(pins)
    }

    /// Notes which models of a hub the stage of table `at` has, or compares with what was noted.
    fn pin(&self, at: &str, table: &StageTable, without: &[&str]) -> Result<(), Failure> {
        for (field, commit) in outside::hub_models(at, table, without) {
            self.store.pin(&field, &commit)?;
        }
        Ok(())
    }

    fn go(&self, goal: Goal) -> Result<RunOutcome, Failure> {
        let pins = || self.pins();
        let steps = &Steps {
            store: &self.store,
            results: &self.results,
            plan: &self.plan,
            pins: &pins,
            session: self.session,
            answered: Default::default(),
        };
        let mut outcome = RunOutcome {
            folder: self.store.root().to_owned(),
            result: None,
            summary: None,
            measured: Outcomes::new(),
            arms: Vec::new(),
            fit: None,
        };
        match (goal, self.manifest().paints()) {
            (Goal::Scores, false) => {
                // The baseline alone: nobody has to be trained to paint or to judge.
                self.score(steps, &mut outcome, None, None)?;
                return Ok(outcome);
            }
            (Goal::Synthesis | Goal::Merge | Goal::Shard(_), false) => {
                let error = Error::config("`synthesis.ratio` is 0, so there is nothing to paint");
                let error = error.at("synthesis.ratio");
                return Err(self.wire.document.failure("", error));
            }
            _ => {}
        }
        let (validator, asked) = validator(&self.wire)?;
        if goal == Goal::Segmenter {
            outcome.fit = self.judges(steps, asked.max(1))?.first;
            return Ok(outcome);
        }
        if asked == 0 && self.manifest().clears() {
            let error = Error::config(format!(
                "the validator `{}` asks no segmenter, which would have to confirm that a lesion was \
                 painted away: choose another validator or background",
                self.manifest().validator.name
            ));
            let error = error.at("synthesis.background");
            return Err(self.wire.document.failure("", error));
        }
        if let Goal::Shard(_) = goal {
            self.check_trained()?;
        }
        let painters = self.painters(steps)?;
        if goal == Goal::Generator {
            outcome.fit = painters.fitted;
            return Ok(outcome);
        }
        let judges = self.judges(steps, asked)?;
        self.pin(SEGMENTER, &self.manifest().segmenter, &["base"])?;
        let weights = judges.weights.clone();
        let stages = Stages {
            bank: painters.bank,
            start: painters.start,
            generator: painters.generator,
            validator,
            judges,
        };
        if let Goal::Shard(shard) = goal {
            self.shard(steps, &stages, shard)?;
            return Ok(outcome);
        }
        let merge = goal == Goal::Merge;
        let made = self.synthesise(steps, &stages, merge)?;
        let synthetic = made.images;
        outcome.summary = Some(made.summary);
        outcome.measured = made.measured;
        if goal == Goal::Scores {
            self.score(steps, &mut outcome, synthetic, weights)?;
        }
        Ok(outcome)
    }

    /// Trains and scores with and without `synthetic`; only now does anything look at the test part.
    /// `judge` is where the validator's segmenter left its weights.
    fn score(
        &self,
        steps: &Steps<'_>,
        outcome: &mut RunOutcome,
        synthetic: Option<diffaug::view::Shared>,
        judge: Option<PathBuf>,
    ) -> Result<(), Failure> {
        let evaluation = Evaluation {
            wire: &self.wire,
            steps,
            data: &self.data,
            measures: &self.measures,
            synthetic,
            judge,
        };
        outcome.arms = evaluation.run()?;
        let downstream = self.manifest().downstream();
        self.pin(DOWNSTREAM, downstream, &["base"])?;
        let weights = self.trained_weights()?;
        let summary = json!(outcome.summary);
        let result = evaluation.result(&summary, &outcome.measured, &outcome.arms, &weights);
        self.store.write_json(layout::RESULT, &result)?;
        outcome.result = Some(result);
        Ok(())
    }

    fn build<S: crate::registry::Kind>(&self, at: &str, table: &StageTable) -> Result<S, Failure> {
        self.wire
            .build(at, table, &table.json(), self.manifest().seed)
    }

    /// Everything that paints.
    fn painters(&self, steps: &Steps<'_>) -> Result<Painters, Failure> {
        let m = self.manifest();
        let bank: BoxPromptBank = self.build(PROMPTS, &m.prompts)?;
        let start = match &m.synthesis.start {
            Some(table) => Some(self.painter(steps, (START, table), layout::START, &bank)?.0),
            None => None,
        };
        let (generator, fitted) =
            self.painter(steps, (GENERATOR, &m.generator), layout::GENERATOR, &bank)?;
        Ok(Painters {
            bank,
            start,
            generator,
            fitted,
        })
    }

    /// The generator of table `at`, fitted in `folder` where it can be.
    fn painter(
        &self,
        steps: &Steps<'_>,
        (at, table): (&str, &StageTable),
        folder: &str,
        bank: &BoxPromptBank,
    ) -> Result<(BoxGenerator, Option<Fit>), Failure> {
        let generator: BoxGenerator = self.build(at, table)?;
        if at != START {
            self.check_healthy(&generator)?;
        }
        if table.given_weights().is_some() {
            self.pin(at, table, &["base"])?;
            return Ok((generator, None));
        }
        let training = self.data.unaugmented()?;
        let validation = self.data.validation()?;
        let out = self.store.path(folder);
        let label = match at {
            START => format!("fitting start generator {}", table.name),
            _ => format!("fitting generator {}", table.name),
        };
        let marker = (layout::marker(folder), folder);
        let trains = !self.store.path(&marker.0).exists();
        let marker = (marker.0.as_str(), marker.1);
        let work = |reporter: &Reporter<'_>| {
            let out = out.to_string_lossy();
            generator.fit(&training, &validation, bank, (&*out).into(), reporter)
        };
        let fitted = steps
            .fit(marker, &label, work)
            .map_err(|error| self.wire.place(at, table, error));
        let stopped = |failure: &Failure| failure.error.kind == ErrorKind::Cancelled;
        if trains && fitted.as_ref().err().is_none_or(stopped) {
            // What it was trained from is looked up by the training alone.
            self.pin(at, table, &[])?;
        }
        let fitted = fitted?;
        if fitted.is_none() {
            self.pin(at, table, &["base"])?;
            return Ok((generator, None));
        }
        let options = table.with_weights(&out);
        let generator = self.wire.build(at, table, &options, self.manifest().seed)?;
        self.pin(at, table, &["base"])?;
        Ok((generator, fitted))
    }

    /// Checks that a generator which is to paint healthy places can be told so.
    fn check_healthy(&self, generator: &BoxGenerator) -> Result<(), Failure> {
        let m = self.manifest();
        let field = match m.synthesis.decoys {
            _ if self.manifest().clears() => "synthesis.background",
            0 => return Ok(()),
            _ => "synthesis.decoys",
        };
        let table = &m.generator;
        let follows = generator.follows_texts();
        if follows.map_err(|error| self.wire.place(GENERATOR, table, error))? {
            return Ok(());
        }
        let error = Error::config(format!(
            "the generator `{}` paints lesions whatever a text says, so it cannot paint the healthy \
             places that `{field}` asks for",
            table.name
        ));
        Err(self.wire.document.failure("", error.at(field)))
    }

    /// The segmenters that the validator asks.
    fn judges(&self, steps: &Steps<'_>, members: u32) -> Result<Judges, Failure> {
        if members == 0 {
            return Ok(Judges::default());
        }
        let training = Training {
            wire: &self.wire,
            steps,
            data: &self.data,
            members,
        };
        training.run()
    }

    /// Hashes of the weights that this run trained.
    fn trained_weights(&self) -> Result<Value> {
        let mut hashes = serde_json::Map::new();
        let m = self.manifest();
        let seeds = m.seeds();
        let shared = [
            layout::GENERATOR,
            layout::START,
            layout::SEGMENTER,
            layout::SEGMENTERS,
        ];
        let arms = [layout::REAL, layout::AUGMENTED]
            .into_iter()
            .flat_map(|arm| {
                let weights = move |seed| layout::Training::new(arm, seed).weights();
                seeds.iter().copied().map(weights)
            });
        let folders = shared.map(str::to_owned).into_iter().chain(arms);
        for name in folders {
            let folder = self.store.path(&name);
            if folder.is_dir() {
                let hash = self.store.fingerprint(&name)?;
                hashes.insert(name, hash);
            }
        }
        Ok(Value::Object(hashes))
    }
}
