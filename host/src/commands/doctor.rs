//! `diffaug doctor`: what a run of a manifest needs, and what of that is missing, as short lists and one
//! table, all of which can be read without colour.

use super::grouped;
use crate::{
    cli::{Global, ManifestArgs},
    ui::{Ui, table},
};
use diffaug::{Error, human_bytes};
use diffaug_run::{
    failure::Failure,
    needs::{self, Asking, Component, Data, Needs, Program, Remark, Stage, Weights},
    work::wire::Wire,
};

/// Prints what a manifest needs; fails when some of it is missing.
pub fn doctor(args: &ManifestArgs, global: &Global, ui: Ui) -> Result<(), Failure> {
    let (manifest, document) = super::read(args, global)?;
    // As for a processor, so that a device that is missing does not keep the rest from being told.
    let mut plugins = super::load(&manifest, &document, "cpu", global, ui)?;
    let loaded = plugins.add_device(&manifest.device, ui.library_log_level());
    let wire = Wire {
        registry: &plugins.registry,
        document: &document,
        manifest: &manifest,
    };
    wire.check_all()?;
    let needs = needs::examine(Asking {
        program: Program {
            version: env!("CARGO_PKG_VERSION"),
            features: features(),
        },
        cuda_library: crate::plugins::cuda_library()?,
        loaded,
        wire: &wire,
    })?;
    let json = serde_json::to_value(&needs).map_err(Error::internal)?;
    ui.result(|| Text(&needs).whole(), &json);
    match needs.missing.len() {
        0 => Ok(()),
        count => {
            let things = if count == 1 { "thing is" } else { "things are" };
            let name = document.name();
            let message = format!("`{name}` cannot run here: {count} {things} missing");
            Err(Error::data(message).into())
        }
    }
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

/// The needs of a manifest, to be read.
struct Text<'a>(&'a Needs);

impl Text<'_> {
    /// All of them.
    fn whole(&self) -> String {
        let plugins = self.0.stages.iter().map(|s| (s.stage.as_str(), plugin(s)));
        let weights = self.0.stages.iter().filter_map(|stage| {
            let weights = stage.weights.as_ref()?;
            Some((stage.stage.as_str(), from(weights)))
        });
        let remark = |r: &Remark| format!("  {}: {}", r.about, r.text);
        let remarks = |all: &[Remark]| all.iter().map(remark).collect::<Vec<_>>().join("\n");
        let missing = match self.0.missing.as_slice() {
            [] => "nothing is missing".into(),
            some => section("missing", &remarks(some)),
        };
        let parts = [
            section("machine", &aligned(self.machine_lines())),
            section("stages", &aligned(plugins)),
            section("data", &aligned(self.data_line())),
            section("weights", &aligned(weights)),
            self.models(),
            section("notes", &remarks(&self.0.notes)),
            missing,
        ];
        let parts = parts.into_iter().filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join("\n\n")
    }

    fn machine_lines(&self) -> Vec<(&'static str, String)> {
        let machine = &self.0.machine;
        let cores = match machine.cores {
            1 => "1 core".into(),
            n => format!("{n} cores"),
        };
        let name = machine.processor.as_deref().unwrap_or("unknown");
        let memory = machine.memory.map(|m| {
            let [total, free] = [m.total, m.available].map(human_bytes);
            format!("{total}, {free} of it free")
        });
        let mut lines = vec![
            ("processor", format!("{name}, {cores}, {}", machine.simd)),
            ("memory", memory.unwrap_or_else(|| "unknown".into())),
            ("device", self.0.device.name.clone()),
        ];
        if let Some(gpu) = &self.0.device.gpu {
            let memory = gpu.memory.map_or_else(String::new, |m| {
                let [total, free] = [m.total, m.available].map(human_bytes);
                format!(", {total}, {free} of it free")
            });
            let text = format!("{}{memory}, driver {}", gpu.name, gpu.driver);
            lines.push(("GPU", text));
        }
        let library = self.0.device.cuda_library.display();
        let found = there(self.0.device.cuda_library_found);
        lines.push(("CUDA plugins", format!("{library} ({found})")));
        let features = match self.0.program.features.as_slice() {
            [] => "none".into(),
            some => some.join(", "),
        };
        let version = self.0.program.version;
        lines.push((
            "program",
            format!("diffaug {version}, features: {features}"),
        ));
        lines
    }

    fn data_line(&self) -> Option<(&str, String)> {
        let Data {
            name,
            train,
            validation,
            test,
        } = self.0.data.as_ref()?;
        let text = format!("{train} to train, {validation} to validate, {test} to test");
        Some((name, text))
    }

    /// The models, a network a line and, where there are several, one for all of a stage.
    fn models(&self) -> String {
        let rows: Vec<Vec<String>> = self.0.stages.iter().flat_map(rows).collect();
        if rows.is_empty() {
            return "no stage tells of a model".into();
        }
        let header = [
            "model",
            "part",
            "parameters",
            "trainable",
            "weights",
            "to run",
            "to train",
        ];
        table(&header, &rows)
    }
}

fn rows(stage: &Stage) -> Vec<Vec<String>> {
    let row = |part: &str, figures: [u64; 3], memory: [String; 2]| {
        let [parameters, trainable, bytes] = figures;
        let [run, train] = memory;
        vec![
            stage.stage.clone(),
            part.into(),
            grouped(parameters),
            grouped(trainable),
            human_bytes(bytes),
            run,
            train,
        ]
    };
    let memory = || {
        [stage.run_bytes, stage.train_bytes].map(|bytes| match bytes {
            0 => "-".into(),
            bytes => human_bytes(bytes),
        })
    };
    let figures = |c: &Component| [c.parameters, c.trainable, c.bytes];
    let parts = stage.components.as_slice();
    if let [only] = parts {
        return vec![row(&only.name, figures(only), memory())];
    }
    let blank = || [String::new(), String::new()];
    let mut rows: Vec<_> = parts
        .iter()
        .map(|c| row(&c.name, figures(c), blank()))
        .collect();
    if !rows.is_empty() || stage.run_bytes > 0 || stage.train_bytes > 0 {
        let sum = |place: usize| {
            let each = parts.iter().map(|c| figures(c)[place]);
            each.fold(0, u64::saturating_add)
        };
        rows.push(row("all", [sum(0), sum(1), sum(2)], memory()));
    }
    rows
}

fn plugin(stage: &Stage) -> String {
    let Stage {
        plugin,
        version,
        backend,
        origin,
        ..
    } = stage;
    let features = match stage.features.as_slice() {
        [] => String::new(),
        some => format!(", features: {}", some.join(", ")),
    };
    format!("{plugin} {version} for {backend}, {origin}{features}")
}

fn from(weights: &Weights) -> String {
    let path = weights.path.display();
    match (weights.from_run, weights.there) {
        (false, there_) => format!("{path} ({})", there(there_)),
        (true, true) => format!("made by the run in {path} (there)"),
        (true, false) => format!("made by the run in {path} (not yet)"),
    }
}

fn there(there: bool) -> &'static str {
    if there { "there" } else { "not there" }
}

fn section(title: &str, lines: &str) -> String {
    match lines {
        "" => String::new(),
        lines => format!("{title}\n{lines}"),
    }
}

/// Lines of a name and a text, the texts below each other.
fn aligned<'a>(lines: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let lines: Vec<_> = lines.into_iter().collect();
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = lines.iter();
    let lines = lines.map(|(name, text)| format!("  {name:width$}  {text}"));
    lines.collect::<Vec<_>>().join("\n")
}
