//! `diffaug doctor`: what does a run of this manifest need, and what of that is missing?
//!
//! No weights are loaded: stages say what they need through `inspect`, and what they say is held
//! against the machine. Only the dataset is opened, as by `check --data`.

mod fit;
mod text;

use super::plugins::backend;
use crate::{
    cli::{Global, ManifestArgs},
    machine::{self, Gpu, Machine, Memory, NoGpus},
    ui::Ui,
};
use diffaug::{Backend, BoxDataset, BoxValidator, Error, Inspection, Validator as _};
use diffaug_run::{
    failure::Failure,
    layout,
    manifest::{Background, StageTable},
    registry,
    slots::{self, SLOTS, Slot},
    work::{self, wire::Wire},
};
use serde::Serialize;
use std::path::PathBuf;

/// Everything that is known before a run.
#[derive(Debug, Serialize)]
struct Report {
    manifest: String,
    machine: Machine,
    device: Device,
    program: Program,
    /// Where the dataset is there.
    data: Option<Data>,
    stages: Vec<Stage>,
    notes: Vec<Remark>,
    missing: Vec<Remark>,
}

/// What is computed on.
#[derive(Debug, Serialize)]
struct Device {
    /// As the manifest has it.
    name: String,
    /// For CUDA: the GPU that this is, where `nvidia-smi` tells.
    gpu: Option<Gpu>,
    /// Where the plugins for CUDA are looked for.
    cuda_library: PathBuf,
    /// Whether they are there.
    cuda_library_found: bool,
}

/// The program itself.
#[derive(Debug, Serialize)]
struct Program {
    version: &'static str,
    /// Cargo features that concern devices.
    features: Vec<&'static str>,
}

/// What the dataset holds.
#[derive(Debug, Serialize)]
struct Data {
    name: String,
    train: usize,
    validation: usize,
    test: usize,
}

/// A stage of the manifest.
#[derive(Debug, Serialize)]
struct Stage {
    /// Its table: `generator`, `evaluate.segmenter`.
    stage: &'static str,
    plugin: String,
    version: String,
    backend: &'static str,
    /// `built in`, or the library's path.
    origin: String,
    features: Vec<String>,
    /// For stages that may be trained.
    weights: Option<Weights>,
    components: Vec<Component>,
    /// Bytes; 0 where there is no telling.
    run_bytes: u64,
    /// Bytes; 0 where it cannot be trained.
    train_bytes: u64,
    /// Whether the run trains it.
    is_trained: bool,
}

/// Where a stage's weights come from.
#[derive(Debug, Serialize)]
struct Weights {
    /// The manifest's option `weights`, or the folder that the run leaves them in.
    path: PathBuf,
    /// Whether it is the run that makes them.
    from_run: bool,
    there: bool,
}

/// A network of a stage.
#[derive(Debug, Serialize)]
struct Component {
    name: String,
    parameters: u64,
    trainable: u64,
    bytes: u64,
}

/// A sentence about a stage, or about something else that is named.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Remark {
    about: String,
    text: String,
}

/// Prints what a manifest needs; fails when some of it is missing.
pub fn doctor(args: &ManifestArgs, global: &Global, ui: Ui) -> Result<(), Failure> {
    let (manifest, document) = super::read(args, global)?;
    // As for a processor, so that a device that is missing does not keep the rest from being told.
    let mut plugins = super::load(&manifest, &document, "cpu", global, ui)?;
    let device = plugins.add_device(&manifest.device, ui.library_log_level());
    let wire = Wire {
        registry: &plugins.registry,
        document: &document,
        manifest: &manifest,
    };
    wire.check_all()?;
    let report = examine(&wire, device)?;
    let json = serde_json::to_value(&report).map_err(Error::internal)?;
    ui.result(|| report.text(), &json);
    match report.missing.len() {
        0 => Ok(()),
        count => {
            let things = if count == 1 { "thing is" } else { "things are" };
            let name = document.name();
            let message = format!("`{name}` cannot run here: {count} {things} missing");
            Err(Error::data(message).into())
        }
    }
}

fn examine(wire: &Wire<'_>, loaded: Result<(), Failure>) -> Result<Report, Failure> {
    let path = crate::plugins::cuda_library()?;
    let mut report = Report {
        manifest: wire.document.name().to_owned(),
        machine: Machine::here(),
        device: Device {
            name: wire.manifest.device.clone(),
            gpu: None,
            cuda_library_found: path.exists(),
            cuda_library: path,
        },
        program: Program {
            version: env!("CARGO_PKG_VERSION"),
            features: features(),
        },
        data: None,
        stages: Vec::new(),
        notes: Vec::new(),
        missing: Vec::new(),
    };
    report.device(wire, loaded)?;
    report.stages(wire)?;
    report.data(wire)?;
    report.compare(wire.manifest);
    Ok(report)
}

/// What this program was compiled with.
fn features() -> Vec<&'static str> {
    let all = [
        ("builtin", cfg!(feature = "builtin")),
        ("cuda", cfg!(feature = "cuda")),
        ("cudnn", cfg!(feature = "cudnn")),
        ("flash-attn", cfg!(feature = "flash-attn")),
        ("metal", cfg!(feature = "metal")),
        ("mkl", cfg!(feature = "mkl")),
    ];
    let there = all.into_iter().filter(|(_, there)| *there);
    there.map(|(name, _)| name).collect()
}

impl Report {
    fn note(&mut self, about: &str, text: impl ToString) {
        self.notes.push(Remark {
            about: about.into(),
            text: text.to_string(),
        });
    }

    fn miss(&mut self, about: &str, text: impl ToString) {
        self.missing.push(Remark {
            about: about.into(),
            text: text.to_string(),
        });
    }

    /// Whether plugins for the device are there, and the device itself.
    fn device(&mut self, wire: &Wire<'_>, loaded: Result<(), Failure>) -> Result<(), Failure> {
        if let Err(failure) = loaded {
            if failure.error.is_fault() {
                return Err(failure);
            }
            self.miss("device", &failure.error);
            if let Some(hint) = &failure.hint {
                self.note("device", hint);
            }
        }
        let name = wire.manifest.device.as_str();
        let offered = wire.registry.list();
        match registry::backend(name) {
            Backend::Cuda => self.gpu(name),
            Backend::Metal if offered.iter().all(|l| l.backend != Backend::Metal) => {
                let text = "no plugin is there that was built with the feature `metal`";
                self.miss("device", text);
            }
            _ => {}
        }
        Ok(())
    }

    fn gpu(&mut self, name: &str) {
        let index = name.split_once(':').map_or("0", |(_, index)| index);
        // Another word is for the plugins to refuse.
        let Ok(index) = index.parse() else { return };
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let index = machine::listed_at(index, visible.as_deref());
        let all = match machine::gpus() {
            Ok(all) => all,
            Err(NoGpus::NoTool) => {
                let text = "`nvidia-smi` is not there, so nothing is known of GPU and driver";
                return self.note("device", text);
            }
            Err(NoGpus::Says(text)) => {
                return self.miss("device", format!("`nvidia-smi` says `{text}`"));
            }
        };
        let count = all.len();
        self.device.gpu = all.into_iter().find(|gpu| Some(gpu.index) == index);
        if self.device.gpu.is_none() {
            let text = format!("`{name}` is not among what `nvidia-smi` lists ({count})");
            self.miss("device", text);
        }
    }

    fn stages(&mut self, wire: &Wire<'_>) -> Result<(), Failure> {
        let needed = SLOTS
            .into_iter()
            .filter(|slot| slot.is_needed(wire.manifest));
        for slot in needed {
            if let Some(table) = slot.table(wire.manifest) {
                self.stage(wire, slot, table)?;
            }
        }
        Ok(())
    }

    fn stage(&mut self, wire: &Wire<'_>, slot: Slot, table: &StageTable) -> Result<(), Failure> {
        let at = slot.at;
        let offer = wire.offer(slot, table)?;
        let context = wire.context(wire.manifest.seed);
        let needs = match offer.inspect(&table.json(), &context) {
            Ok(needs) => needs,
            Err(error) if error.is_fault() => return Err(wire.place(at, table, error)),
            Err(error) => {
                let mut nothing = Inspection::default();
                nothing.miss(error);
                nothing
            }
        };
        let weights = weights(wire, at, table, &needs)?;
        // A stage that says nothing of itself still gets a path.
        if let Some(weights) = &weights
            && needs == Inspection::default()
            && !weights.from_run
            && !weights.there
        {
            self.miss(
                at,
                format!("weights `{}` are not there", weights.path.display()),
            );
        }
        needs.notes.iter().for_each(|text| self.note(at, text));
        needs.missing.iter().for_each(|text| self.miss(at, text));
        let from_run = weights.as_ref().is_some_and(|weights| weights.from_run);
        let is_trained = match at {
            slots::DOWNSTREAM => true,
            // Without one of its own, the evaluation trains this one.
            slots::SEGMENTER => from_run || wire.manifest.evaluate.segmenter.is_none(),
            _ => from_run,
        };
        let component = |c: &diffaug::Component| Component {
            name: c.name.to_string(),
            parameters: c.parameters,
            trainable: c.trainable,
            bytes: c.bytes,
        };
        self.stages.push(Stage {
            stage: at,
            plugin: table.name.clone(),
            version: offer.version().to_owned(),
            backend: backend(offer.backend()),
            origin: offer.origin().to_string(),
            features: needs.features.iter().map(ToString::to_string).collect(),
            weights,
            components: needs.components.iter().map(component).collect(),
            run_bytes: needs.run_bytes,
            train_bytes: needs.train_bytes,
            is_trained: is_trained && needs.train_bytes > 0,
        });
        Ok(())
    }

    /// Whether there is something to learn from and to paint on; no image is decoded.
    fn data(&mut self, wire: &Wire<'_>) -> Result<(), Failure> {
        let m = wire.manifest;
        let offer = wire.find::<BoxDataset>("dataset", &m.dataset)?;
        let dataset = offer.build(&m.dataset.json(), &wire.context(m.seed));
        match dataset.and_then(|dataset| work::divide(dataset, m)) {
            Ok(([train, validation, test], name)) => {
                self.data = Some(Data {
                    name,
                    train,
                    validation,
                    test,
                });
            }
            Err(error) if error.is_fault() => {
                return Err(wire.place("dataset", &m.dataset, error));
            }
            Err(error) => self.miss("dataset", error),
        }
        let external = m.synthesis.external.as_deref();
        if let Some(folder) = external.filter(|_| m.synthesis.background == Background::External)
            && !folder.is_dir()
        {
            self.miss(
                "synthesis",
                format!("folder `{}` is not there", folder.display()),
            );
        }
        Ok(())
    }

    /// The memory that the device has, and what has it.
    fn memory(&self) -> Option<(Memory, &'static str)> {
        if registry::backend(&self.device.name) == Backend::Cuda {
            let gpu = self.device.gpu.as_ref()?;
            if let Some(memory) = gpu.memory {
                return Some((memory, "this GPU"));
            }
        }
        Some((self.machine.memory?, "this machine"))
    }
}

/// Where the weights of a stage come from.
fn weights(
    wire: &Wire<'_>,
    at: &str,
    table: &StageTable,
    needs: &Inspection,
) -> Result<Option<Weights>, Failure> {
    if let Some(given) = table.given_weights() {
        let path = PathBuf::from(given);
        // What is no path is one to the plugin, which would say if it were missing.
        let known = !needs.components.is_empty() && needs.missing.is_empty();
        return Ok(Some(Weights {
            there: path.exists() || known,
            path,
            from_run: false,
        }));
    }
    let (folder, done) = match at {
        slots::GENERATOR => (layout::GENERATOR, vec![layout::marker(layout::GENERATOR)]),
        slots::START => (layout::START, vec![layout::marker(layout::START)]),
        slots::SEGMENTER => segmenters(wire)?,
        slots::DOWNSTREAM => (layout::EVALUATE, vec![layout::RESULT.to_owned()]),
        _ => return Ok(None),
    };
    let within = |name: &str| wire.manifest.output().join(name);
    Ok(Some(Weights {
        path: within(folder),
        from_run: true,
        there: done.iter().all(|name| within(name).exists()),
    }))
}

/// The folder of the weights of all segmenters that the validator asks, and what says that they are
/// trained; one segmenter where the validator cannot be made, which a run would tell.
fn segmenters(wire: &Wire<'_>) -> Result<(&'static str, Vec<String>), Failure> {
    let m = wire.manifest;
    let offer = wire.find::<BoxValidator>("validator", &m.validator)?;
    let validator = offer.build(&m.validator.json(), &wire.context(m.seed));
    let members = match validator.and_then(|validator| validator.segmenters()) {
        Ok(members) => members,
        Err(error) if error.is_fault() => {
            return Err(wire.place("validator", &m.validator, error));
        }
        Err(_) => 1,
    };
    // One that asks nobody leaves one to be trained by `train segmenter`.
    let folders = layout::segmenters(m.synthesis.folds, members.max(1));
    let folder = match folders.as_slice() {
        [single] if single == layout::SEGMENTER => layout::SEGMENTER,
        _ => layout::SEGMENTERS,
    };
    let done = folders.iter().map(|name| layout::marker(name));
    Ok((folder, done.collect()))
}
