//! What a run consists of: steps, each with a key.
//!
//! A key is a hash of all that the result of a step depends on: the tables of its own stages (with hashes
//! in place of the paths of weights and files), the plugins' versions, the device, the seed, what the
//! data and its division are, and the keys of the steps that it needs. Steps of equal keys have equal
//! results, whichever run does them.

use crate::{
    layout,
    manifest::{Manifest, StageTable},
    slots::{DOWNSTREAM, GENERATOR, PROMPTS, SEGMENTER, START, Slot, VALIDATOR},
};
use diffaug::{Subject, files};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What tells keys of this layout from those of another.
const VERSION: u32 = 1;
/// Options of a synthesis that no painted image depends on.
const JUDGING: [&str; 7] = [
    "batch",
    "folds",
    "gallery",
    "judge_real",
    "keep_rejected",
    "quotas",
    "ratio",
];
/// Hexadecimal digits of a key.
const DIGITS: usize = 32;

/// A step of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What its result depends on, in hexadecimal.
    pub key: String,
    /// The same, to be read.
    pub inputs: Value,
}

impl Step {
    /// What is done: `fit a generator`, `train a segmenter`, `score`, ….
    pub fn kind(&self) -> &str {
        self.inputs["step"].as_str().unwrap_or_default()
    }

    fn new(inputs: Value) -> Self {
        let text = json!([VERSION, &inputs]).to_string();
        let mut key = files::hash(text.as_bytes());
        key.truncate(DIGITS);
        Step { key, inputs }
    }
}

/// What is known of a run before it begins, as `lock.json` has it.
pub struct Known<'a> {
    /// `dataset` of `lock.json`.
    pub dataset: &'a Value,
    /// Hash of the division.
    pub split: &'a str,
    /// The plugin of each table.
    pub plugins: &'a Value,
    /// Hashes of the weights that tables name.
    pub weights: &'a Map<String, Value>,
    /// Hashes of other files, by the option that names them.
    pub files: &'a Map<String, Value>,
    /// What each measure of the manifest is called and looks at.
    pub measures: &'a [(String, Subject)],
    /// How many segmenters the validator asks; `None` where nobody paints or judges.
    pub judges: Option<u32>,
}

/// The steps of a run, by the file or folder that each leaves.
#[derive(Debug, Default)]
pub struct Plan {
    steps: BTreeMap<String, Step>,
}

impl Plan {
    /// The steps of `manifest`.
    pub fn new(manifest: &Manifest, known: &Known<'_>) -> Self {
        let planner = Planner { manifest, known };
        let mut plan = Plan::default();
        let synthesis = known
            .judges
            .map(|judges| planner.painting(&mut plan, judges));
        if manifest.evaluate.baseline {
            planner.arm(&mut plan, layout::REAL, None);
        }
        if let Some(synthesis) = synthesis.filter(|_| manifest.paints()) {
            planner.arm(&mut plan, layout::AUGMENTED, Some(&synthesis));
        }
        plan
    }

    /// The step that leaves `place`.
    pub fn step(&self, place: &str) -> Option<&Step> {
        self.steps.get(place)
    }

    /// Every step with what it leaves.
    pub fn steps(&self) -> impl Iterator<Item = (&str, &Step)> {
        self.steps
            .iter()
            .map(|(place, step)| (place.as_str(), step))
    }

    /// The keys by what the steps leave, for `lock.json`.
    pub fn keys(&self) -> Value {
        let keys = self.steps.iter();
        keys.map(|(place, step)| (place.clone(), json!(step.key)))
            .collect::<Map<_, _>>()
            .into()
    }

    /// Adds a step; answers its key.
    fn add(&mut self, place: &str, inputs: Value) -> String {
        let step = Step::new(inputs);
        let key = step.key.clone();
        self.steps.insert(place.to_owned(), step);
        key
    }
}

struct Planner<'a> {
    manifest: &'a Manifest,
    known: &'a Known<'a>,
}

impl Planner<'_> {
    /// Everything up to the synthetic images; the key of those.
    fn painting(&self, plan: &mut Plan, judges: u32) -> String {
        let m = self.manifest;
        let generator = self.generator(plan, (GENERATOR, &m.generator), layout::GENERATOR);
        let start = m.synthesis.start.as_ref();
        let start = start.map(|table| self.generator(plan, (START, table), layout::START));
        let mut needs = json!({
            "generator": generator,
            "start": start,
            "prompts": self.stage(PROMPTS, &m.prompts),
            "validator": self.stage(VALIDATOR, &m.validator),
            "judges": self.judges(plan, judges),
            "synthesis": self.synthesis(),
        });
        if m.clears() {
            let inputs = self.inputs("clear backgrounds", &needs, m.seed);
            needs["backgrounds"] = plan.add(layout::BACKGROUNDS, inputs).into();
        }
        if m.synthesis.preview.is_none() {
            plan.add(
                layout::POOL,
                self.inputs("paint", &self.pool(&needs), m.seed),
            );
        }
        let synthetic = plan.add(layout::SYNTHETIC, self.inputs("synthesise", &needs, m.seed));
        for (name, subject) in self.known.measures {
            if *subject != Subject::Predictions {
                let needs = json!({
                    "synthetic": synthetic,
                    "name": name,
                    "measure": self.measure(name),
                });
                plan.add(
                    &layout::measure(name),
                    self.inputs("measure", &needs, m.seed),
                );
            }
        }
        synthetic
    }

    /// What painted images depend on, of all that synthetic ones do: not how they are judged, nor how many
    /// are wanted.
    fn pool(&self, needs: &Value) -> Value {
        let mut needs = needs.clone();
        if let Some(fields) = needs.as_object_mut() {
            fields.remove("validator");
            fields.remove("judges");
        }
        if let Some(options) = needs["synthesis"].as_object_mut() {
            for name in JUDGING {
                options.remove(name);
            }
        }
        needs
    }

    /// A generator, and the key of its training where it is trained.
    fn generator(&self, plan: &mut Plan, (at, table): (&str, &StageTable), place: &str) -> Value {
        let stage = self.stage(at, table);
        if table.given_weights().is_some() {
            return stage;
        }
        let needs = json!({
            "generator": stage,
            "prompts": self.stage(PROMPTS, &self.manifest.prompts),
        });
        let inputs = self.inputs("fit a generator", &needs, self.manifest.seed);
        json!({ "stage": stage, "trained": plan.add(place, inputs) })
    }

    /// The validator's segmenters.
    fn judges(&self, plan: &mut Plan, members: u32) -> Vec<Value> {
        let m = self.manifest;
        let stage = self.stage(SEGMENTER, &m.segmenter);
        let folds = m.synthesis.folds;
        let names = layout::segmenters(folds, members.max(1)).into_iter();
        let all = (0..folds).flat_map(|fold| (0..members).map(move |member| (fold, member)));
        let mut judge = |((fold, member), place): ((u32, u32), String)| {
            if m.segmenter.given_weights().is_some() {
                return stage.clone();
            }
            let part = match folds {
                1 => Value::Null,
                _ => json!({ "all but fold": fold, "of": folds, "seed": m.seed }),
            };
            let inputs = self.training(&stage, m.seed + u64::from(member), part, None);
            json!({ "stage": stage, "trained": plan.add(&place, inputs) })
        };
        all.zip(names).map(&mut judge).collect()
    }

    /// The trainings and scores of an arm.
    fn arm(&self, plan: &mut Plan, name: &str, synthetic: Option<&str>) {
        let m = self.manifest;
        let stage = self.stage(DOWNSTREAM, m.downstream());
        for seed in m.seeds() {
            let files = layout::Training::new(name, seed);
            let inputs = self.training(&stage, seed, Value::Null, synthetic);
            let trained = plan.add(&files.weights(), inputs);
            let mut needs = json!({ "trained": trained, "resolution": m.evaluate.resolution });
            if let Some(measures) = self.measures(Subject::Predictions) {
                needs["measures"] = measures;
                needs["seed"] = m.seed.into();
            }
            let inputs = json!({ "step": "score", "needs": needs });
            plan.add(&files.scores(), inputs);
        }
    }

    /// The measures that look at `subject`, by their names; `None` of none.
    fn measures(&self, subject: Subject) -> Option<Value> {
        let own = self.known.measures.iter();
        let own = own.filter(|(_, its)| *its == subject);
        let stages = own.filter_map(|(name, _)| Some((name.clone(), self.measure(name)?)));
        let stages: Map<String, Value> = stages.collect();
        (!stages.is_empty()).then(|| stages.into())
    }

    fn measure(&self, name: &str) -> Option<Value> {
        let table = self.manifest.evaluate.measures.get(name)?;
        Some(self.stage(&Slot::of_measure(name).at, table))
    }

    /// What the training of a segmenter depends on, whatever it is for.
    fn training(&self, stage: &Value, seed: u64, part: Value, synthetic: Option<&str>) -> Value {
        let needs = json!({
            "segmenter": stage,
            "augment": self.manifest.augment,
            "part": part,
            "synthetic": synthetic,
        });
        self.inputs("train a segmenter", &needs, seed)
    }

    /// The options of the synthesis, without the stage in it and with hashes in place of paths.
    fn synthesis(&self) -> Value {
        let mut options = json!(self.manifest.synthesis);
        if let Some(fields) = options.as_object_mut() {
            fields.remove("start");
        }
        if let Some(hash) = self.known.files.get("synthesis.external") {
            options["external"] = hash.clone();
        }
        options
    }

    fn inputs(&self, step: &str, needs: &Value, seed: u64) -> Value {
        let m = self.manifest;
        let mut images = json!(m.images);
        if let Some(fields) = images.as_object_mut() {
            // How much memory samples may take changes none of them.
            fields.remove("cache");
        }
        let device = m.device.split(':').next();
        json!({
            "step": step,
            // What the run itself does to images and labels changes with it.
            "diffaug": env!("CARGO_PKG_VERSION"),
            "needs": needs,
            "seed": seed,
            "device": device,
            "dataset": self.known.dataset,
            "attributes": self.known.files.get("attributes.file"),
            "split": self.known.split,
            "images": images,
        })
    }

    /// A stage: its plugin and its options, with hashes in place of paths.
    fn stage(&self, at: &str, table: &StageTable) -> Value {
        let mut options = table.json();
        for (option, hash) in self.known.files {
            let path = option.strip_prefix(at).and_then(|o| o.strip_prefix('.'));
            if let Some(value) = path.and_then(|path| options.pointer_mut(&pointer(path))) {
                *value = hash.clone();
            }
        }
        if let Some(hash) = self.known.weights.get(at) {
            options["weights"] = hash.clone();
        }
        json!({ "plugin": self.known.plugins[at], "options": options })
    }
}

/// The JSON pointer of an option such as `a.b[2]`.
fn pointer(path: &str) -> String {
    let parts = path.split(['.', '[']);
    let parts = parts.map(|part| part.trim_end_matches(']'));
    parts.map(|part| format!("/{part}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PLAIN: &str = r#"
name = "a"
[dataset]
use = "phantom"
[prompts]
use = "medical"
[generator]
use = "sdxl-inpaint"
base = "models/x"
[validator]
use = "iou"
[segmenter]
use = "unet"
"#;

    /// The plan of a manifest with lines put before its tables and behind them, and files' hashes.
    fn plan((head, tail): (&str, &str), weights: Value, files: Value) -> Plan {
        let manifest: Manifest = toml::from_str(&format!("{head}\n{PLAIN}\n{tail}")).unwrap();
        let plugin = |at: &str| (at.to_owned(), json!({ "version": "1" }));
        let plugins: Map<String, Value> =
            [PROMPTS, GENERATOR, START, VALIDATOR, SEGMENTER, DOWNSTREAM]
                .map(plugin)
                .into_iter()
                .collect();
        let known = Known {
            dataset: &json!({ "sha256": "d" }),
            split: "s",
            plugins: &plugins.into(),
            weights: weights.as_object().unwrap(),
            files: files.as_object().unwrap(),
            judges: Some(1),
            measures: &[],
        };
        Plan::new(&manifest, &known)
    }

    fn of(head: &str, tail: &str) -> Plan {
        plan((head, tail), json!({}), json!({}))
    }

    /// The places whose keys differ, or that only one of the two has.
    fn differing(a: &Plan, b: &Plan) -> Vec<String> {
        let names: std::collections::BTreeSet<_> = a.steps.keys().chain(b.steps.keys()).collect();
        let differ = |name: &&&String| {
            let key = |plan: &Plan| plan.step(name).map(|step| step.key.clone());
            key(a) != key(b)
        };
        names.iter().filter(differ).map(|n| (*n).clone()).collect()
    }

    #[test]
    fn a_key_tells_what_a_result_depends_on() {
        let plain = of("", "");
        let none: Vec<String> = Vec::new();
        assert_eq!(differing(&plain, &of("", "[images]\ncache = 1")), none);
        assert_eq!(differing(&plain, &of("output = \"x\"", "")), none);
        let all: Vec<String> = plain.steps.keys().cloned().collect();
        assert_eq!(differing(&plain, &of("seed = 5", "")).len(), all.len() + 4);
        assert_eq!(differing(&plain, &of("", "[images]\nsize = 64")), all);
        assert_eq!(differing(&plain, &of("device = \"cuda:1\"", "")), all);
        let devices = (of("device = \"cuda\"", ""), of("device = \"cuda:1\"", ""));
        assert_eq!(differing(&devices.0, &devices.1), none);
        let of_painting = [
            "evaluate/augmented/seed-0/scores.json",
            "evaluate/augmented/seed-0/weights",
            "synthetic",
        ];
        assert_eq!(
            differing(&plain, &of("", "[synthesis]\nratio = 2.0")),
            of_painting
        );
        assert_eq!(
            differing(&plain, &of("", "[evaluate]\nresolution = \"native\"")),
            [
                "evaluate/augmented/seed-0/scores.json",
                "evaluate/real/seed-0/scores.json"
            ]
        );
    }

    #[test]
    fn what_judges_paints_nothing() {
        let plain = of("", "");
        let options = "[synthesis]\nratio = 2.0\nkeep_rejected = true\nquotas = true\nfolds = 2";
        let judged = of("", options);
        let key = |plan: &Plan| plan.step("painted").unwrap().key.clone();
        assert_eq!(key(&plain), key(&judged));
        assert_ne!(key(&plain), key(&of("", "[synthesis]\nvariants = 2")));
        // What is given up at a preview is not painted.
        assert!(
            of("", "[synthesis.preview]\nat = 0.5")
                .step("painted")
                .is_none()
        );
    }

    #[test]
    fn more_trainings_are_more_steps_and_no_others() {
        let more = differing(&of("", ""), &of("", "[evaluate]\nruns = 2"));
        assert_eq!(more.len(), 4);
        assert!(more.iter().all(|name| name.contains("seed-1")), "{more:?}");
    }

    #[test]
    fn alike_steps_have_one_key() {
        let plan = of("", "");
        let key = |name: &str| plan.step(name).unwrap().key.clone();
        // The validator's segmenter is the first training on real images.
        assert_eq!(key("segmenter"), key("evaluate/real/seed-0/weights"));
        assert_ne!(key("segmenter"), key("evaluate/augmented/seed-0/weights"));
        let start = of(
            "",
            "[synthesis.start]\nuse = \"sdxl-inpaint\"\nbase = \"models/x\"",
        );
        assert_eq!(key("generator"), start.step("start").unwrap().key);
        // Each fold sees other images.
        let folds = of("", "[synthesis]\nfolds = 2");
        let fold = |n: u32| {
            &folds
                .step(&format!("segmenters/fold-{n}-member-0"))
                .unwrap()
                .key
        };
        assert_ne!(fold(0), fold(1));
    }

    #[test]
    fn content_counts_and_not_where_it_lies() {
        let base = |path: &str, hash: &str| {
            let text = PLAIN.replace("models/x", path);
            let manifest: Manifest = toml::from_str(&text).unwrap();
            let files = json!({ "generator.base": hash });
            let known = Known {
                dataset: &json!({}),
                split: "s",
                plugins: &json!({}),
                weights: &Map::new(),
                files: files.as_object().unwrap(),
                measures: &[],
                judges: Some(1),
            };
            Plan::new(&manifest, &known)
        };
        let here = base("models/x", "1");
        assert!(differing(&here, &base("elsewhere/y", "1")).is_empty());
        assert!(differing(&here, &base("models/x", "2")).contains(&"generator".to_owned()));
        let weights = |hash: &str| {
            let segmenter = json!({ "segmenter": hash });
            plan(("", ""), segmenter, json!({}))
        };
        assert!(!differing(&weights("1"), &weights("2")).is_empty());
    }

    #[test]
    fn options_deep_in_a_table_are_found() {
        assert_eq!(pointer("base"), "/base");
        assert_eq!(pointer("lora[0].path"), "/lora/0/path");
    }
}
