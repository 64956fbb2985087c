//! What a run of a manifest needs, and what of that is missing.
//!
//! No weights are loaded: stages say what they need through `inspect`, and what they say is held
//! against the machine. Only the dataset is opened, to count its images.

mod memory;

use crate::{
    failure::Failure,
    layout,
    machine::{self, Gpu, Machine, Memory, NoGpus},
    manifest::{Background, StageTable},
    registry,
    slots::{self, Slot},
    work::{self, wire::Wire},
};
use diffaug::{Backend, BoxDataset, BoxValidator, Inspection, Validator as _};
use serde::Serialize;
use std::path::PathBuf;

/// Everything that is known before a run.
#[derive(Debug, Serialize)]
pub struct Needs {
    /// Its file.
    pub manifest: String,
    /// Where it would run.
    pub machine: Machine,
    /// What it computes on.
    pub device: Device,
    /// What would run it.
    pub program: Program,
    /// Where the dataset is there.
    pub data: Option<Data>,
    /// All that a run would build.
    pub stages: Vec<Stage>,
    /// What is good to know.
    pub notes: Vec<Remark>,
    /// What keeps it from running.
    pub missing: Vec<Remark>,
}

/// What is computed on.
#[derive(Debug, Serialize)]
pub struct Device {
    /// As the manifest has it.
    pub name: String,
    /// For CUDA: the GPU that this is, where `nvidia-smi` tells.
    pub gpu: Option<Gpu>,
    /// Where the plugins for CUDA are looked for.
    pub cuda_library: PathBuf,
    /// Whether they are there.
    pub cuda_library_found: bool,
}

/// The program itself.
#[derive(Debug, Serialize)]
pub struct Program {
    /// Its version.
    pub version: &'static str,
    /// Cargo features that concern devices.
    pub features: Vec<&'static str>,
}

/// What the dataset holds.
#[derive(Debug, Serialize)]
pub struct Data {
    /// What it is called.
    pub name: String,
    /// Images to train on.
    pub train: usize,
    /// Images to choose weights by.
    pub validation: usize,
    /// Images to score.
    pub test: usize,
}

/// A stage of the manifest.
#[derive(Debug, Serialize)]
pub struct Stage {
    /// Its table: `generator`, `evaluate.segmenter`.
    pub stage: String,
    /// The plugin.
    pub plugin: String,
    /// The version of the plugin.
    pub version: String,
    /// What it was built for.
    pub backend: &'static str,
    /// `built in`, or the library's path.
    pub origin: String,
    /// Cargo features of the plugin.
    pub features: Vec<String>,
    /// For stages that may be trained.
    pub weights: Option<Weights>,
    /// Its networks.
    pub components: Vec<Component>,
    /// Bytes; 0 where there is no telling.
    pub run_bytes: u64,
    /// Bytes; 0 where it cannot be trained.
    pub train_bytes: u64,
    /// Whether the run trains it.
    pub is_trained: bool,
}

/// Where a stage's weights come from.
#[derive(Debug, Serialize)]
pub struct Weights {
    /// The manifest's option `weights`, or the folder that the run leaves them in.
    pub path: PathBuf,
    /// Whether it is the run that makes them.
    pub from_run: bool,
    /// Whether they are there.
    pub there: bool,
}

/// A network of a stage.
#[derive(Debug, Serialize)]
pub struct Component {
    /// What it is called.
    pub name: String,
    /// Numbers in it.
    pub parameters: u64,
    /// Those that training changes.
    pub trainable: u64,
    /// What its weights take.
    pub bytes: u64,
}

/// A sentence about a stage, or about something else that is named.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// The stage or thing.
    pub about: String,
    /// The sentence.
    pub text: String,
}

/// What the program that asks knows of itself.
pub struct Asking<'a> {
    /// Its version and features.
    pub program: Program,
    /// Where it looks for its plugins for CUDA.
    pub cuda_library: PathBuf,
    /// Whether the plugins for the manifest's device could be loaded.
    pub loaded: Result<(), Failure>,
    /// The manifest and the plugins that were loaded.
    pub wire: &'a Wire<'a>,
}

/// Asks every stage of a manifest what it needs, and holds that against the machine.
///
/// # Errors
/// When a stage does not exist, or a plugin fails by a fault of its own.
pub fn examine(asking: Asking<'_>) -> Result<Needs, Failure> {
    let wire = asking.wire;
    let mut needs = Needs {
        manifest: wire.document.name().to_owned(),
        machine: Machine::here(),
        device: Device {
            name: wire.manifest.device.clone(),
            gpu: None,
            cuda_library_found: asking.cuda_library.exists(),
            cuda_library: asking.cuda_library,
        },
        program: asking.program,
        data: None,
        stages: Vec::new(),
        notes: Vec::new(),
        missing: Vec::new(),
    };
    needs.device(wire, asking.loaded)?;
    needs.stages(wire)?;
    needs.data(wire)?;
    needs.compare(wire.manifest);
    Ok(needs)
}

impl Needs {
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
        let needed = slots::of_manifest(wire.manifest);
        let needed = needed.filter(|slot| slot.is_needed(wire.manifest));
        for slot in needed {
            if let Some(table) = slot.table(wire.manifest) {
                self.stage(wire, &slot, table)?;
            }
        }
        Ok(())
    }

    fn stage(&mut self, wire: &Wire<'_>, slot: &Slot, table: &StageTable) -> Result<(), Failure> {
        let at = &*slot.at;
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
            stage: at.to_owned(),
            plugin: table.name.clone(),
            version: offer.version().to_owned(),
            backend: registry::backend_name(offer.backend()),
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
