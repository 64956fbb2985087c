//! The manifest: what to run, as typed by the user.
//!
//! This is the one place where its fields are declared; parsing, defaults, help in editors
//! (`diffaug manifest schema`) and the resolved copy in the run folder come from here.

mod document;

pub use document::{Document, check_key, parse_value};

use crate::failure::Failure;
use diffaug::{Error, augment::AugmentOptions, files, split::SplitOptions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// The tables that make a manifest an experiment.
pub const EXPERIMENT: [&str; 3] = ["experiment", "arms", "matrix"];

/// A run of DiffAug: its stages and how they work together.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Name of the run; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Where to compute: `cpu`, `cuda`, `cuda:0`, `metal`.
    #[serde(default = "cpu")]
    pub device: String,
    /// Seed of every random decision.
    #[serde(default)]
    pub seed: u64,
    /// The run folder, relative to the folder in which `diffaug` runs; `runs/NAME` by default.
    // Not part of the resolved manifest: the folder that holds it is the answer.
    #[serde(default, skip_serializing)]
    pub output: Option<PathBuf>,
    /// The folder that keeps the results of finished steps in `.steps`, so that other runs need not make
    /// them again; by default the folder in which the run folder lies.
    #[serde(default, skip_serializing)]
    pub store: Option<PathBuf>,
    /// Plugin libraries to load. They are programs: load only what you trust.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub libraries: Vec<Library>,
    /// Where labelled images come from.
    pub dataset: StageTable,
    /// Facts of the images that the dataset itself does not state.
    #[serde(default)]
    pub attributes: AttributeFile,
    /// How they are divided into train, validation and test.
    #[serde(default)]
    pub split: SplitOptions,
    /// How images are read.
    #[serde(default)]
    pub images: Images,
    /// Augmentation of the training images, for every arm alike.
    #[serde(default)]
    pub augment: AugmentOptions,
    /// Where texts come from.
    pub prompts: StageTable,
    /// What paints lesions.
    pub generator: StageTable,
    /// What judges them.
    pub validator: StageTable,
    /// The segmenter that the validator asks, trained on the real training images.
    pub segmenter: StageTable,
    /// How many images are painted, and on what.
    #[serde(default)]
    pub synthesis: Synthesis,
    /// What is trained on the result, and how it is scored.
    #[serde(default)]
    pub evaluate: Evaluate,
}

/// A stage: which plugin, and its options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(expecting = "a table with `use`")]
pub struct StageTable {
    /// Name of the plugin; `diffaug plugins` lists them.
    #[serde(rename = "use")]
    pub name: String,
    /// The plugin's own options; `diffaug plugins KIND NAME` lists them.
    #[serde(flatten)]
    pub options: Map<String, Value>,
}

impl StageTable {
    /// The options as one JSON value.
    pub fn json(&self) -> Value {
        Value::Object(self.options.clone())
    }

    /// The options with `weights` set to `folder`.
    pub fn with_weights(&self, folder: &Path) -> Value {
        let mut options = self.options.clone();
        let folder = folder.to_string_lossy().into_owned();
        options.insert("weights".into(), Value::String(folder));
        Value::Object(options)
    }

    /// The weights that the manifest itself names.
    pub fn given_weights(&self) -> Option<&str> {
        self.options.get("weights").and_then(Value::as_str)
    }
}

/// A plugin library: a path, or a file name that is searched in the plugin folders.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "a library must be a path, or a table of `path` and `sha256`"
)]
pub enum Library {
    /// The path or file name alone.
    Path(PathBuf),
    /// With the SHA-256 that the file must have.
    Pinned(PinnedLibrary),
}

/// A plugin library that is loaded only if its SHA-256 is the expected one.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PinnedLibrary {
    /// The path or file name.
    pub path: PathBuf,
    /// SHA-256 of the file, 64 hexadecimal digits.
    pub sha256: String,
}

/// Facts of images from a file besides the dataset.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AttributeFile {
    /// CSV file with the header `image,key,value`, relative to the folder in which `diffaug` runs: a fact of
    /// an image a line. `yes` and `no` are flags, what reads as a number is one, all else is a word. These
    /// facts win over those of the dataset and over measures. Only a file that is named here is read.
    pub file: Option<PathBuf>,
}

/// How images are read.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Images {
    /// Side in pixels to which images and masks are resized (square, as the field does); without
    /// it they keep their own size.
    pub size: Option<u32>,
    /// The largest image that is decoded, in megapixels: a guard against decompression bombs.
    pub max_megapixels: u32,
    /// How many bits of a sample are used in image files of 16 bits, 8 to 16; scanners and endoscopes
    /// store 10 or 12. Without it each file's largest value tells, which is warned of.
    pub bits: Option<u8>,
    /// How much memory prepared samples may take, in MiB.
    pub cache: u32,
}

impl Default for Images {
    fn default() -> Self {
        Images {
            size: None,
            max_megapixels: 64,
            bits: None,
            cache: 2048,
        }
    }
}

/// What the lesions are painted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Background {
    /// The training image itself: its lesion is painted anew under its own mask. An image without a
    /// lesion gets the mask of another.
    SameImage,
    /// A part of a training image that shows no lesion; the mask is another image's.
    Crop,
    /// Images without lesions from the folder `external`; the mask is a training image's.
    External,
    /// Training images whose lesion the generator has painted away, which the validator's segmenter
    /// has to confirm, and training images without one; the mask is another image's.
    PseudoNormal,
}

/// How many images are painted, and on what.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Synthesis {
    /// What the lesions are painted on.
    pub background: Background,
    /// Folder of lesion-free images, for `background = "external"`.
    pub external: Option<PathBuf>,
    /// How many candidates are painted for each background at most.
    pub variants: u32,
    /// When to stop: so many accepted images for each real training image. At 0 `run` and `evaluate`
    /// train the baseline alone, without anything to paint or judge.
    pub ratio: f64,
    /// Candidates in one call of the generator and the validator.
    pub batch: u32,
    /// For `background = "crop"`: the smallest side of a crop, as a fraction of the image's.
    pub min_crop: f64,
    /// With `start`: the finer detail of the lesion is taken from the start generator's image, the rest
    /// from the main one's. What is finer is told apart by a Gaussian of this standard deviation in
    /// pixels, 0 (off) to 32.
    pub detail: f64,
    /// How many healthy holes are painted into each image besides its lesion, 0 to 4: of the shape of
    /// other lesions, away from all labels, described by the prompt's negative text, and labelled as
    /// background. Where there is no room for one it is left out.
    pub decoys: u32,
    /// Whether the accepted images are to have the sizes of the real lesions: `ratio` is wanted of each
    /// group of sizes (below 2 %, 2 to 10 %, above 10 % of the image), and nothing more is painted for
    /// one that has it.
    pub quotas: bool,
    /// Whether the validator also judges the real lesions of the validation part, to tell how many of
    /// those pass. It does not where it asks no segmenter.
    pub judge_real: bool,
    /// Whether rejected images are kept too, in `rejected/`.
    pub keep_rejected: bool,
    /// Of how many candidates, the first ones, a small picture is kept for the report, in
    /// `synthetic/gallery/`, accepted or not: 0 (none) to 100,000. Each takes about 10 kB. A candidate that is
    /// given up at a preview has none.
    pub gallery: u32,
    /// Into how many parts the training images are cut for cross-fitting: a candidate is judged by a
    /// segmenter that never saw its source. 1 trains one segmenter on all of them.
    pub folds: u32,
    /// A generator whose image the main one begins with, instead of the background. The main one's
    /// option `strength`, where it has one, says how much of it is painted over: 0.3 to 0.5 keeps
    /// what a pasted lesion looks like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<StageTable>,
    /// A look at candidates that are still being painted, to give up the hopeless ones; without it
    /// all are finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preview: Option<Preview>,
}

/// When candidates are given up before they are finished.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Preview {
    /// After which share of the steps the validator is shown what there is, above 0 and below 1.
    pub at: f64,
    /// A candidate whose score is below this then is given up.
    pub below: f64,
    /// Nothing is given up, but it is counted how many of those that would have been pass when they
    /// are finished: to find out what a choice of `at` and `below` costs.
    pub audit: bool,
}

impl Default for Preview {
    fn default() -> Self {
        Preview {
            at: 0.5,
            below: 0.2,
            audit: false,
        }
    }
}

impl Default for Synthesis {
    fn default() -> Self {
        Synthesis {
            background: Background::SameImage,
            external: None,
            variants: 5,
            ratio: 1.0,
            batch: 8,
            min_crop: 0.4,
            detail: 0.0,
            decoys: 0,
            quotas: false,
            judge_real: true,
            keep_rejected: false,
            gallery: 2_000,
            folds: 1,
            start: None,
            preview: None,
        }
    }
}

/// At which size predictions are compared with the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Resolution {
    /// At `images.size`.
    Working,
    /// At each image's own size.
    Native,
}

/// What is trained on the result, and how it is scored.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluate {
    /// The segmenter to train; by default as the validator's.
    pub segmenter: Option<StageTable>,
    /// How many trainings, with seeds `seed`, `seed + 1`, …; mean and spread are over them.
    pub runs: u32,
    /// The seeds of the trainings, in place of `runs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seeds: Option<Vec<u64>>,
    /// Whether a segmenter is also trained on the real images alone, for comparison.
    pub baseline: bool,
    /// The size at which masks are compared.
    pub resolution: Resolution,
    /// What is measured besides Dice, IoU, sensitivity, false negative rate and specificity: stages of the
    /// kind `measure`, each under a name of its own. A figure is called as the measure calls it where the name
    /// is that of the plugin, and `NAME.figure` otherwise.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub measures: BTreeMap<String, StageTable>,
}

impl Default for Evaluate {
    fn default() -> Self {
        Evaluate {
            segmenter: None,
            runs: 1,
            seeds: None,
            baseline: true,
            resolution: Resolution::Working,
            measures: BTreeMap::new(),
        }
    }
}

fn cpu() -> String {
    "cpu".into()
}

impl Manifest {
    /// Reads a manifest with its bases and overrides and checks what needs no plugin.
    ///
    /// # Errors
    /// With the place in the file.
    pub fn read(file: &Path, overrides: &[String]) -> Result<(Manifest, Document), Failure> {
        let document = Document::read(file, overrides)?;
        if let Some(table) = EXPERIMENT.iter().find(|table| document.has(table)) {
            let shown = file.display();
            let error = Error::config(format!("`{shown}` is an experiment")).at(table);
            let failure = document.failure("", error);
            return Err(failure.hint(format!("`diffaug experiment {shown}` runs it")));
        }
        let manifest = Manifest::of(&document)?;
        Ok((manifest, document))
    }

    /// The manifest of a document, with what needs no plugin checked.
    ///
    /// # Errors
    /// With the place in the file.
    pub fn of(document: &Document) -> Result<Manifest, Failure> {
        let manifest: Manifest = document.parse()?;
        manifest
            .validate()
            .map_err(|error| document.failure("", error))?;
        Ok(manifest)
    }

    /// The run folder.
    pub fn output(&self) -> PathBuf {
        match &self.output {
            Some(output) => output.clone(),
            None => Path::new("runs").join(&self.name),
        }
    }

    /// The folder that keeps results of steps for other runs.
    pub fn store(&self) -> PathBuf {
        match &self.store {
            Some(store) => store.clone(),
            None => files::parent(&self.output()).to_owned(),
        }
    }

    /// Whether anything is painted; otherwise only the baseline is trained.
    pub fn paints(&self) -> bool {
        self.synthesis.ratio > 0.0
    }

    /// Whether lesions of training images are painted away.
    pub fn clears(&self) -> bool {
        self.synthesis.background == Background::PseudoNormal
    }

    /// The segmenter that is trained on the result.
    pub fn downstream(&self) -> &StageTable {
        self.evaluate.segmenter.as_ref().unwrap_or(&self.segmenter)
    }

    /// The seeds of the trainings that are scored.
    pub fn seeds(&self) -> Vec<u64> {
        match &self.evaluate.seeds {
            Some(seeds) => seeds.clone(),
            None => (self.seed..self.seed + u64::from(self.evaluate.runs)).collect(),
        }
    }

    /// Working size (width, height), if one is set.
    pub fn size(&self) -> Option<(u32, u32)> {
        self.images.size.map(|side| (side, side))
    }

    fn validate(&self) -> Result<(), Error> {
        if !names_folder(&self.name) {
            return wrong(
                "name",
                "must be letters, digits, `-`, `_` and `.`, for it becomes a folder's name",
            );
        }
        let device = self.device.split(':').next().unwrap_or_default();
        if !["cpu", "cuda", "metal"].contains(&device) {
            let message = document::one_of("device", ["cpu", "cuda", "cuda:N", "metal"]);
            return Err(Error::config(message).at("device"));
        }
        if self
            .images
            .size
            .is_some_and(|side| !(16..=8192).contains(&side))
        {
            return wrong("images.size", "must be from 16 to 8192");
        }
        let images = &self.images;
        within("images.max_megapixels", images.max_megapixels, 1, 4_000)?;
        within("images.cache", images.cache, 0, 16 << 20)?;
        within("evaluate.runs", self.evaluate.runs, 1, 1_000)?;
        // The seeds of all trainings are counted up from it.
        if self.seed > u64::MAX / 2 {
            return wrong("seed", "must be below 2^63");
        }
        if let Some(seeds) = &self.evaluate.seeds {
            let distinct: BTreeSet<&u64> = seeds.iter().collect();
            if seeds.is_empty() || distinct.len() < seeds.len() {
                return wrong("evaluate.seeds", "must be one or more seeds that differ");
            }
        }
        if let Some(name) = self
            .evaluate
            .measures
            .keys()
            .find(|name| !names_measure(name))
        {
            let field = format!("evaluate.measures.{name}");
            return wrong(&field, "must be called by letters, digits, `-` and `_`");
        }
        if let Some(bits) = images.bits {
            within("images.bits", bits.into(), 8, 16)?;
        }
        for (index, library) in self.libraries.iter().enumerate() {
            if let Library::Pinned(pinned) = library
                && !files::is_sha256(&pinned.sha256)
            {
                let field = format!("libraries[{index}].sha256");
                return wrong(&field, "must be a SHA-256, 64 hexadecimal digits");
            }
        }
        if self.synthesis.folds > 1 && self.segmenter.given_weights().is_some() {
            return wrong(
                "synthesis.folds",
                "is above 1, but `segmenter.weights` leaves no segmenter to be trained",
            );
        }
        self.augment.validate()?;
        self.synthesis.validate()?;
        if !self.paints() && !self.evaluate.baseline {
            return wrong(
                "synthesis.ratio",
                "is 0 and `evaluate.baseline` is false: nothing is left to train",
            );
        }
        Ok(())
    }
}

impl Synthesis {
    fn validate(&self) -> Result<(), Error> {
        within("synthesis.variants", self.variants, 1, 1_000)?;
        within("synthesis.batch", self.batch, 1, 1_024)?;
        if let Some(preview) = &self.preview {
            if !(preview.at > 0.0 && preview.at < 1.0) {
                return wrong("synthesis.preview.at", "must be above 0 and below 1");
            }
            if !(0.0..=1.0).contains(&preview.below) {
                return wrong("synthesis.preview.below", "must be from 0 to 1");
            }
        }
        if !(1..=64).contains(&self.folds) {
            return wrong("synthesis.folds", "must be from 1 to 64");
        }
        if !(0.0..=1_000.0).contains(&self.ratio) {
            return wrong("synthesis.ratio", "must be a number from 0 to 1000");
        }
        if !(self.min_crop > 0.0 && self.min_crop <= 1.0) {
            return wrong("synthesis.min_crop", "must be above 0 and at most 1");
        }
        within("synthesis.decoys", self.decoys, 0, 4)?;
        within("synthesis.gallery", self.gallery, 0, 100_000)?;
        if !(0.0..=32.0).contains(&self.detail) {
            return wrong(
                "synthesis.detail",
                "must be a number of pixels from 0 to 32",
            );
        }
        if self.detail > 0.0 && self.start.is_none() {
            return wrong(
                "synthesis.detail",
                "takes fine detail from a start generator, but there is no `synthesis.start`",
            );
        }
        if self.background == Background::External && self.external.is_none() {
            return wrong(
                "synthesis.background",
                "is `external`, which needs `synthesis.external` (a folder of images)",
            );
        }
        Ok(())
    }
}

/// Whether a character may stand in the name of a run, which becomes a folder's.
pub fn fits_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.".contains(c)
}

/// Whether a text may be the name of a run.
pub fn names_folder(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && name.chars().all(fits_name)
}

/// Whether a text may be what a manifest calls a measure: no dot, which stands before the name of a figure.
fn names_measure(name: &str) -> bool {
    names_folder(name) && !name.contains('.')
}

fn within(field: &str, value: u32, least: u32, most: u32) -> Result<(), Error> {
    match (least..=most).contains(&value) {
        true => Ok(()),
        false => wrong(
            field,
            &format!("is {value}, must be from {least} to {most}"),
        ),
    }
}

fn wrong(field: &str, message: &str) -> Result<(), Error> {
    Err(Error::config(format!("`{field}` {message}")).at(field))
}
