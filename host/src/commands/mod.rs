//! One file a verb. Each returns its result or a failure; none decides an exit code.

mod check;
mod compare;
mod convert;
mod dataset;
mod doctor;
mod experiment;
mod export;
mod plugins;
mod report;
mod run;
mod runs;
mod schema;
mod score;
mod try_stage;
mod watch;

use crate::{
    cli::{Cli, Command, DatasetCommand, Global, ManifestArgs, ManifestCommand, Train},
    plugins::Plugins,
    ui::Ui,
};
use clap::CommandFactory;
use diffaug::Error;
use diffaug_run::{
    failure::Failure,
    manifest::{Document, Library, Manifest, check_key, parse_value},
    registry::Registry,
    work::{Goal, shards::Shard},
};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// Runs what was typed.
///
/// # Errors
/// Whatever the command fails with.
pub fn dispatch(command: Command, global: &Global, ui: Ui) -> Result<(), Failure> {
    match command {
        Command::Check { args, data } => check::check(&args, data, global, ui),
        Command::Doctor(args) => doctor::doctor(&args, global, ui),
        Command::Run(args) | Command::Evaluate(args) => run::run(&args, Goal::Scores, global, ui),
        Command::Train(Train::Generator(args)) => run::run(&args, Goal::Generator, global, ui),
        Command::Train(Train::Segmenter(args)) => run::run(&args, Goal::Segmenter, global, ui),
        Command::Generate(args) => {
            let goal = match (&args.shard, args.merge) {
                (Some(shard), _) => Goal::Shard(Shard::parse(shard)?),
                (None, true) => Goal::Merge,
                (None, false) => Goal::Synthesis,
            };
            run::run(&args.args, goal, global, ui)
        }
        Command::Sweep(args) => run::sweep(&args, global, ui),
        Command::Experiment(args) => experiment::experiment(&args, global, ui),
        Command::Score(args) => score::score(&args, ui),
        Command::Compare(args) => compare::compare(&args, ui),
        Command::Report(args) => report::report(&args, ui),
        Command::Watch(args) => watch::watch(&args, ui),
        Command::Export(args) => export::export(&args, global, ui),
        Command::Dataset(DatasetCommand::Verify(args)) => dataset::verify(&args, global, ui),
        Command::Runs { store } => runs::runs(&store, ui),
        Command::Prune { store, yes } => runs::prune(&store, yes, ui),
        Command::Convert(args) => convert::convert(&args, global, ui),
        Command::Try(what) => try_stage::try_stage(what, global, ui),
        Command::Plugins {
            kind,
            name,
            library,
        } => plugins::plugins(kind.as_deref(), name.as_deref(), &library, global, ui),
        Command::Manifest(ManifestCommand::Schema) => schema::schema(global, ui),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "diffaug", &mut script);
            let script = String::from_utf8(script).map_err(Error::internal)?;
            ui.result(|| script.clone(), &Value::String(script.clone()));
            Ok(())
        }
    }
}

/// Reads a manifest with its overrides and loads what it names.
fn open(
    args: &ManifestArgs,
    global: &Global,
    ui: Ui,
) -> Result<(Manifest, Document, Registry), Failure> {
    let (manifest, document) = read(args, global)?;
    let plugins = load(&manifest, &document, &manifest.device, global, ui)?;
    Ok((manifest, document, plugins.registry))
}

/// Reads a manifest with its overrides.
fn read(args: &ManifestArgs, global: &Global) -> Result<(Manifest, Document), Failure> {
    Manifest::read(&args.manifest, &overrides(args, global))
}

/// The changes to a manifest from the command line.
fn overrides(args: &ManifestArgs, global: &Global) -> Vec<String> {
    let device = global
        .device
        .iter()
        .map(|device| format!("device={device}"));
    args.set.iter().cloned().chain(device).collect()
}

/// Loads what a manifest names, and what `device` needs.
fn load(
    manifest: &Manifest,
    document: &Document,
    device: &str,
    global: &Global,
    ui: Ui,
) -> Result<Plugins, Failure> {
    let plugins = Plugins::new(
        &global.plugin_dir,
        &manifest.libraries,
        device,
        ui.library_log_level(),
    );
    plugins.map_err(|failure| match failure.error.field.as_str() {
        "" => failure,
        _ => document.place("", failure),
    })
}

/// What there is without a manifest: as one would have it that names `libraries`.
fn registry(libraries: &[PathBuf], global: &Global, ui: Ui) -> Result<Registry, Failure> {
    let libraries: Vec<Library> = libraries.iter().cloned().map(Library::Path).collect();
    let level = ui.library_log_level();
    let plugins = Plugins::new(&global.plugin_dir, &libraries, device(global), level)?;
    Ok(plugins.registry)
}

/// The device that was asked for on the command line.
fn device(global: &Global) -> &str {
    global.device.as_deref().unwrap_or("cpu")
}

/// `--set key=value` options of a single stage; dots make tables.
fn options(set: &[String]) -> Result<Value, Failure> {
    let mut root = Map::new();
    for text in set {
        let Some((path, value)) = text.split_once('=') else {
            let message = format!("`--set {text}` needs the form `key=value`");
            return Err(Error::config(message).into());
        };
        check_key(path.trim())?;
        let mut at = &mut root;
        let mut keys: Vec<&str> = path.trim().split('.').collect();
        let leaf = keys.pop().unwrap_or_default();
        for key in keys {
            let next = at.entry(key).or_insert_with(|| Value::Object(Map::new()));
            at = next.as_object_mut().ok_or_else(|| {
                Error::config(format!("`--set {text}`: `{key}` is a value, not a table"))
            })?;
        }
        at.insert(leaf.into(), parse_value(value.trim())?);
    }
    Ok(Value::Object(root))
}

/// A number with commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (2_567_478_084, "2,567,478,084"),
        ];
        for (number, text) in cases {
            assert_eq!(grouped(number), text);
        }
    }
}
