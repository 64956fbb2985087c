//! The command line, as typed.

use crate::ui::Color;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Paints synthetic lesions into medical images, keeps those that a segmenter confirms, trains
/// segmenters with them and scores the result.
#[derive(Parser, Debug)]
#[command(
    name = "diffaug",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// Options that every command takes.
    #[command(flatten)]
    pub global: Global,
}

/// Options that every command takes.
#[derive(Args, Debug)]
pub struct Global {
    /// Say more on stderr (-vv, -vvv: still more).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// Say nothing on stderr but errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Print results as JSON.
    #[arg(long, global = true)]
    pub json: bool,

    /// When to use colours.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "auto",
        value_name = "WHEN"
    )]
    pub color: Color,

    /// Where to compute, in place of the manifest's `device`: cpu, cuda, cuda:N, metal.
    #[arg(long, global = true, value_name = "DEVICE")]
    pub device: Option<String>,

    /// Load every plugin library of this folder (may be repeated; DIFFAUG_PLUGIN_PATH lists more).
    #[arg(long, global = true, value_name = "DIR")]
    pub plugin_dir: Vec<PathBuf>,
}

/// A manifest and changes to it.
#[derive(Args, Debug)]
pub struct ManifestArgs {
    /// The manifest, a TOML file.
    pub manifest: PathBuf,

    /// Change a value of the manifest, as in `--set synthesis.ratio=2` (may be repeated).
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Check a manifest: syntax, names, options; nothing is computed.
    Check {
        /// The manifest.
        #[command(flatten)]
        args: ManifestArgs,
        /// Also divide the dataset and look at every file: at its header, or with `--data=full` at
        /// all pixels. What is wrong is listed, all of it.
        #[arg(long, value_enum, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "headers")]
        data: Option<Look>,
    },
    /// Say what a manifest needs, and what of that is missing: weights, memory, device, features.
    Doctor(ManifestArgs),
    /// Run the whole pipeline; a run that was cut short goes on where it stopped.
    Run(ManifestArgs),
    /// Run the pipeline up to one training.
    #[command(subcommand)]
    Train(Train),
    /// Run the pipeline up to the synthetic images.
    Generate(GenerateArgs),
    /// Run the pipeline up to the synthetic images and print what other thresholds of the validator
    /// would have come to.
    Sweep(ManifestArgs),
    /// Run what is missing and print the scores.
    Evaluate(ManifestArgs),
    /// Run every arm of an experiment and print how they differ.
    Experiment(ExperimentArgs),
    /// Score a folder of predicted masks against a folder of true ones.
    Score(ScoreArgs),
    /// Compare arms of finished runs, image by image, with an interval and a test.
    Compare(CompareArgs),
    /// Write everything of some runs on one page for a browser.
    Report(ReportArgs),
    /// Show the page of runs in a browser of this machine, renewed while they go on; Ctrl-C ends it.
    Watch(WatchArgs),
    /// Write the images of a finished run in the layout that another tool reads.
    Export(ExportArgs),
    /// About datasets.
    #[command(subcommand)]
    Dataset(DatasetCommand),
    /// List the runs of a folder, and what is kept of their steps for others.
    Runs {
        /// The folder that runs lie in.
        #[arg(default_value = "runs")]
        store: PathBuf,
    },
    /// Remove the kept results of steps that no run of a folder refers to.
    Prune {
        /// The folder that runs lie in.
        #[arg(default_value = "runs")]
        store: PathBuf,
        /// Remove them; without it they are listed.
        #[arg(long)]
        yes: bool,
    },
    /// Try one stage on one image.
    #[command(subcommand)]
    Try(Try),
    /// Make a folder of weights of a published checkpoint, or a small one of what training left.
    Convert(ConvertArgs),
    /// List the plugins, or the options of one.
    Plugins {
        /// dataset, prompts, generator, segmenter, validator or measure.
        kind: Option<String>,
        /// The plugin whose options are wanted.
        name: Option<String>,
        /// Load this library first (may be repeated).
        #[arg(long, value_name = "FILE")]
        library: Vec<PathBuf>,
    },
    /// About manifests in general.
    #[command(subcommand)]
    Manifest(ManifestCommand),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// How files of a dataset are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Look {
    /// Whether files are there, whole, of a known format and of equal sizes.
    Headers,
    /// Also their pixels, the values of masks, and whether every class occurs.
    Full,
}

/// What to train.
#[derive(Subcommand, Debug)]
pub enum Train {
    /// The generator, on the real training images.
    Generator(ManifestArgs),
    /// The validator's segmenter, on the real training images.
    Segmenter(ManifestArgs),
}

/// About manifests in general.
#[derive(Subcommand, Debug)]
pub enum ManifestCommand {
    /// Print the JSON schema of manifests, with the options of every plugin, for editors.
    Schema,
}

/// What to score.
#[derive(Args, Debug)]
pub struct ScoreArgs {
    /// Folder of predicted masks.
    #[arg(long, value_name = "DIR")]
    pub pred: PathBuf,
    /// Folder of true masks; files belong together by their names without extension.
    #[arg(long, value_name = "DIR")]
    pub truth: PathBuf,
    /// A pixel counts when its value is above this. Without it and `--labels` each mask's values
    /// decide: 0 and 1, 0 and 255, or white on black; others are an error.
    #[arg(long, value_name = "GREY", conflicts_with = "labels")]
    pub threshold: Option<u8>,
    /// A pixel counts when its value is one of these, as in `--labels 1,2`; the values of palette
    /// images are their indices.
    #[arg(long, value_name = "GREY,…", value_delimiter = ',')]
    pub labels: Vec<u8>,
    /// What names of predictions have more than those of true masks, such as `_pred`.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub suffix: String,
    /// Write the figures of each image to this CSV file.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
}

/// How synthetic images are made.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    /// The manifest.
    #[command(flatten)]
    pub args: ManifestArgs,
    /// Paint and judge part I of N alone, counted from 0, as in `3/16`; generator and segmenter have to be
    /// trained. For processes on any number of machines with one file system.
    #[arg(long, value_name = "I/N")]
    pub shard: Option<String>,
    /// Join the parts that `--shard` left.
    #[arg(long, conflicts_with = "shard")]
    pub merge: bool,
}

/// What to run of an experiment.
#[derive(Args, Debug)]
pub struct ExperimentArgs {
    /// The experiment: a manifest with arms.
    #[command(flatten)]
    pub args: ManifestArgs,
    /// Print the steps, those that are there and those to do, and compute nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// How many processes work at once.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub jobs: u32,
    /// Make the synthetic images of each arm in so many parts, with `--jobs`, `--slurm` or `--kubernetes`.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub shards: Option<u32>,
    /// Write a script that submits the steps to Slurm, and run nothing.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dry_run", "jobs"])]
    pub slurm: Option<PathBuf>,
    /// Write a script that submits the steps to Kubernetes (1.33 or newer) and waits for each phase, and run
    /// nothing. Its `--help` says what it takes; pods see the current folder, as the root of a claim.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dry_run", "jobs", "slurm"])]
    pub kubernetes: Option<PathBuf>,
    /// Do one step of one cell and leave its result in the store: `CELL:generator`, `CELL:segmenter`,
    /// `CELL:synthetic`, `CELL:shard-I-of-N`, `CELL:merged` or `CELL:seed-N`.
    #[arg(long, value_name = "STEP", conflicts_with_all = ["dry_run", "jobs", "slurm", "kubernetes", "shards"])]
    pub step: Option<String>,
}

/// What to compare.
#[derive(Args, Debug)]
pub struct CompareArgs {
    /// Run folders, as `runs/quickstart` for all arms of a run or `runs/quickstart:augmented` for one.
    /// Every arm is compared with the first.
    #[arg(required = true, value_name = "RUN[:ARM]")]
    pub runs: Vec<String>,
    /// The figure to compare: dice, iou, sensitivity, fnr or specificity.
    #[arg(long, default_value = "dice")]
    pub metric: String,
    /// Seed of the resamples of the interval.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// Which runs to write a page of.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// Run folders; they need not be finished. Several are compared.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// The file to write.
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    pub output: PathBuf,
}

/// Which runs to serve a page of.
#[derive(Args, Debug)]
pub struct WatchArgs {
    /// Run folders; they need not be finished. Several are compared.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// The port of 127.0.0.1 to listen on; 0 takes any that is free.
    #[arg(long, default_value_t = 0)]
    pub port: u16,
}

/// What to export.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The run folder.
    pub run: PathBuf,
    /// The layout: nnunet, coco, yolo-seg or imagefolder.
    #[arg(long, value_name = "FORMAT")]
    pub to: String,
    /// The folder to write; it must be empty or not there yet.
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// The arms whose training images are wanted: `real`, `augmented` (real and synthetic ones), or both, each
    /// in a folder of its own. By default `augmented` where the run paints.
    #[arg(long, value_name = "ARM,…", value_delimiter = ',')]
    pub arms: Vec<String>,
    /// The size of real images: that of the run, or their own. Synthetic ones have the run's.
    #[arg(long, value_enum, default_value = "working", value_name = "SIZE")]
    pub size: ExportSize,
    /// Export the test images as well, where the tool expects them.
    #[arg(long)]
    pub test: bool,
    /// Number of the dataset of nnU-Net, 1 to 999; further arms count up from it.
    #[arg(long, default_value_t = 501, value_name = "N")]
    pub dataset_id: u16,
    /// Load this library first, where the dataset is a plugin of yours (may be repeated). Those that the run
    /// folder names are not loaded.
    #[arg(long, value_name = "FILE")]
    pub library: Vec<PathBuf>,
}

/// The size of exported real images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportSize {
    /// `images.size` of the run.
    Working,
    /// Their own.
    Native,
}

/// About datasets.
#[derive(Subcommand, Debug)]
pub enum DatasetCommand {
    /// Look at a copy of a dataset: whether every file is whole and the counts are those published, the
    /// hash of its files, and where it is to be had.
    Verify(VerifyArgs),
}

/// Which copy of which dataset.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// The dataset plugin, such as `kvasir-seg`.
    pub name: String,
    /// The folder of the copy: the plugin's option `root`.
    pub path: PathBuf,
    /// Another option of the plugin (may be repeated).
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Load this library first (may be repeated).
    #[arg(long, value_name = "FILE")]
    pub library: Vec<PathBuf>,
}

/// What to convert.
#[derive(Args, Debug)]
pub struct ConvertArgs {
    /// generator or segmenter.
    pub kind: String,
    /// Name of the plugin.
    pub name: String,
    /// The checkpoint: safetensors, or PyTorch files (`.ckpt`, `.pt`, or a folder with `.bin`), which are
    /// read as data and not executed; or a folder that training left, of which the weights are kept, in
    /// half precision.
    pub file: PathBuf,
    /// The folder to write; it must not be there yet.
    pub output: PathBuf,
    /// An option of the plugin, for what the file does not tell (may be repeated).
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Load this library first (may be repeated).
    #[arg(long, value_name = "FILE")]
    pub library: Vec<PathBuf>,
}

/// Which stage to try.
#[derive(Subcommand, Debug)]
pub enum Try {
    /// Paint into one image.
    Generator {
        /// Name of the plugin.
        name: String,
        /// The image to paint into.
        #[arg(long)]
        image: PathBuf,
        /// Where to paint: white, or 1 where there are but 0 and 1.
        #[arg(long)]
        mask: PathBuf,
        /// What to paint.
        #[arg(long, default_value = "")]
        prompt: String,
        /// What to avoid.
        #[arg(long, default_value = "")]
        negative: String,
        /// What all stages share.
        #[command(flatten)]
        common: TryArgs,
    },
    /// Find lesions in one image.
    Segmenter {
        /// Name of the plugin.
        name: String,
        /// The image.
        #[arg(long)]
        image: PathBuf,
        /// What all stages share.
        #[command(flatten)]
        common: TryArgs,
    },
}

/// What every `try` takes.
#[derive(Args, Debug)]
pub struct TryArgs {
    /// Seed of every random decision.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// An option of the plugin, as in `--set weights=DIR` (may be repeated).
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Load this library first (may be repeated).
    #[arg(long, value_name = "FILE")]
    pub library: Vec<PathBuf>,
    /// The file to write, in the format that its name tells: PNG, TIFF, BMP, for images also JPEG.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}
