//! Any folder of images beside a folder of masks: the dataset to bring along.
//!
//! ```text
//! ROOT/images/NAME.jpg    PNG, JPEG, TIFF or BMP
//! ROOT/masks/NAME.png     the same name but for the extension, the same size
//! ROOT/groups.csv         (optional) columns `id` and `group`: which video or patient NAME is of
//! ```
//!
//! Masks called `NAME_segmentation.png` or the like are found with `mask_suffix = "_segmentation"`.
//!
//! Without further options the values of each mask decide: 0 and 1, 0 and 255, or white on black
//! with soft edges; anything else is an error that names the values. Palette images count by their
//! indices. Otherwise `classes` says which values mean what:
//!
//! ```toml
//! [dataset]
//! use = "folder"
//! root = "eyes"
//! classes = { rim = 128, cup = [0, 1] }   # values that mean one class stand in a list
//! background = 255
//! targets = ["cup"]                       # what is painted and scored; default: all
//! ```
//!
//! Values that are neither are an error, so that a wrong option cannot pass for an empty mask. JPEG
//! masks hold stray values: give them a `threshold`, which allows for one class only.

#![forbid(unsafe_code)]

use diffaug::{
    image::{
        MaskFault, MaskRule,
        mask::{THRESHOLD, list_values},
    },
    pairs::{Advice, MaskNames, Pair, Pairs, Table, composed, list_files, pair_up_named},
    prelude::*,
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

/// The grey values of a class.
#[derive(Deserialize, Serialize, JsonSchema, Debug, Clone)]
#[serde(untagged)]
pub enum Grays {
    /// A single value.
    One(u8),
    /// Several values.
    Many(Vec<u8>),
}

impl Grays {
    fn values(&self) -> &[u8] {
        match self {
            Grays::One(value) => std::slice::from_ref(value),
            Grays::Many(values) => values,
        }
    }
}

/// Options of the dataset `folder`.
#[derive(Deserialize, Serialize, JsonSchema, Debug, Clone)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The folder that holds the others.
    pub root: PathBuf,
    /// The folder of images, below `root` or absolute.
    #[serde(default = "images")]
    pub images: PathBuf,
    /// The folder of masks, below `root` or absolute.
    #[serde(default = "masks")]
    pub masks: PathBuf,
    /// What names of masks have more than those of their images, before the extension:
    /// `_segmentation` for `ISIC_1.jpg` with `ISIC_1_segmentation.png`.
    #[serde(default)]
    pub mask_suffix: String,
    /// Values of each class, such as `{ polyp = 255 }` or `{ disc = 128, cup = [0, 1] }`; of palette
    /// images the indices. Default: one class `lesion` where masks are 1 or white.
    #[serde(default)]
    pub classes: Option<BTreeMap<String, Grays>>,
    /// The grey value of background where `classes` are given.
    #[serde(default)]
    pub background: u8,
    /// Whatever is above this value is the one class, and all else is background. Default: with
    /// `classes`, masks hold exactly the values given; without, each mask's values decide.
    #[serde(default)]
    pub threshold: Option<u8>,
    /// The classes that are painted and scored. Default: all.
    #[serde(default)]
    pub targets: Option<Vec<String>>,
    /// A CSV file with the columns `id` (name without extension) and `group` (video or patient),
    /// below `root` or absolute. Splits can keep groups together.
    #[serde(default)]
    pub groups: Option<PathBuf>,
    /// What to call the dataset in reports. Default: the name of `root`.
    #[serde(default)]
    pub name: Option<String>,
}

fn images() -> PathBuf {
    "images".into()
}

fn masks() -> PathBuf {
    "masks".into()
}

impl Options {
    /// Names of the classes with their labels, in rising order of the labels. Labels follow the
    /// alphabet, since a table of a manifest has no order.
    fn labels(&self) -> Vec<(u8, &str)> {
        match &self.classes {
            Some(classes) => (1..=u8::MAX)
                .zip(classes.keys().map(String::as_str))
                .collect(),
            None => vec![(1, "lesion")],
        }
    }

    fn is_target(&self, class: &str) -> bool {
        let listed = |targets: &Vec<String>| targets.iter().any(|target| target == class);
        self.targets.as_ref().is_none_or(listed)
    }

    fn rule(&self) -> MaskRule {
        match (&self.classes, self.threshold) {
            (None, None) => MaskRule::Auto { label: 1 },
            (_, Some(threshold)) => MaskRule::Above {
                threshold,
                label: 1,
            },
            (Some(classes), None) => {
                let mut labels = BTreeMap::from([(self.background, 0)]);
                for (label, grays) in (1..=u8::MAX).zip(classes.values()) {
                    labels.extend(grays.values().iter().map(|&gray| (gray, label)));
                }
                MaskRule::Values(labels)
            }
        }
    }

    /// What to do about values that no option speaks of.
    fn advice(&self) -> Advice {
        match (&self.classes, self.threshold) {
            (None, None) => advise_coding,
            (_, Some(_)) => advise_threshold,
            (Some(classes), None) if classes.len() == 1 => advise_class,
            _ => advise_classes,
        }
    }

    fn check_classes(&self, classes: &BTreeMap<String, Grays>) -> Result<()> {
        let wrong = |message: String| Err(Error::config(message).at("classes"));
        if classes.is_empty() {
            return wrong("at least one class is needed".into());
        }
        let mut owners = BTreeMap::from([(self.background, "the background".to_owned())]);
        for (name, grays) in classes {
            if name.trim().is_empty() {
                return wrong("a class has no name".into());
            }
            if grays.values().is_empty() {
                return wrong(format!("the class `{name}` has no grey value"));
            }
            for &gray in grays.values() {
                if let Some(other) = owners.insert(gray, format!("`{name}`")) {
                    return wrong(format!(
                        "the grey value {gray} of `{name}` is that of {other}, too"
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_threshold(&self, threshold: u8, classes: &BTreeMap<String, Grays>) -> Result<()> {
        let wrong = |message: String| Err(Error::config(message).at("threshold"));
        if classes.len() > 1 {
            return wrong(format!(
                "a threshold tells one class from background, but there are {} classes",
                classes.len()
            ));
        }
        if self.background > threshold {
            return wrong(format!(
                "the background value {} lies above the threshold {threshold}, where the class is",
                self.background
            ));
        }
        for (name, grays) in classes {
            if let Some(gray) = grays.values().iter().find(|&&gray| gray <= threshold) {
                return wrong(format!(
                    "the value {gray} of `{name}` does not lie above the threshold {threshold}"
                ));
            }
        }
        Ok(())
    }

    fn check_targets(&self, targets: &[String]) -> Result<()> {
        let wrong = |message: String| Err(Error::config(message).at("targets"));
        if targets.is_empty() {
            return wrong("at least one target is needed".into());
        }
        let labels = self.labels();
        let known: Vec<&str> = labels.iter().map(|(_, name)| *name).collect();
        match targets
            .iter()
            .find(|target| !known.contains(&target.as_str()))
        {
            Some(target) => wrong(format!(
                "there is no class `{target}`, expected one of `{}`",
                known.join("`, `")
            )),
            None => Ok(()),
        }
    }
}

/// For masks of which nothing was said.
fn advise_coding(fault: &MaskFault) -> String {
    let soft = format!("`threshold = {THRESHOLD}`");
    match fault.values.as_slice() {
        [] => format!("write {soft}"),
        [one] => format!("write `classes = {{ lesion = {one} }}`"),
        few if few.len() <= 8 && !fault.lossy => {
            let classes = few.iter().map(|value| format!("class{value} = {value}"));
            let classes: Vec<String> = classes.collect();
            format!(
                "write `classes = {{ {} }}`, with names of yours, or {soft} if what is brighter is \
                 the lesion",
                classes.join(", ")
            )
        }
        _ => format!("write {soft} if what is brighter is the lesion"),
    }
}

/// For a stated threshold.
fn advise_threshold(fault: &MaskFault) -> String {
    let lowest = fault.values.first().copied().unwrap_or(1);
    format!("lower `threshold`, or write `classes = {{ lesion = {lowest} }}` in its place")
}

/// For one stated class.
fn advise_class(fault: &MaskFault) -> String {
    let found = format!("the file holds {} besides 0", list_values(&fault.values));
    match fault.lossy {
        true => format!("{found}, since JPEG values stray: add `threshold = {THRESHOLD}`"),
        false => format!("{found}: `threshold = {THRESHOLD}` bears soft edges"),
    }
}

/// For several stated classes.
fn advise_classes(fault: &MaskFault) -> String {
    let found = format!("the file holds {} besides 0", list_values(&fault.values));
    match fault.lossy {
        true => format!(
            "{found}, since JPEG values stray: masks of several classes have to be PNG, TIFF or BMP"
        ),
        false => format!("{found}: name what is missing in `classes`"),
    }
}

/// The dataset.
#[derive(Debug)]
pub struct Folder(Pairs);

impl FromConfig for Folder {
    type Config = Options;

    fn validate(options: &Options) -> Result<()> {
        if let Some(classes) = &options.classes {
            options.check_classes(classes)?;
        } else if options.background != 0 {
            return Err(
                Error::config("a background value needs `classes` to tell it from")
                    .at("background"),
            );
        }
        if let Some(threshold) = options.threshold {
            let none = BTreeMap::new();
            let classes = options.classes.as_ref().unwrap_or(&none);
            options.check_threshold(threshold, classes)?;
            if threshold == u8::MAX {
                return Err(Error::config("no grey value lies above 255").at("threshold"));
            }
        }
        match &options.targets {
            Some(targets) => options.check_targets(targets),
            None => Ok(()),
        }
    }

    fn from_config(options: Options, context: &Context) -> Result<Self> {
        let files = |folder: &Path, field: &str| {
            list_files(&options.root.join(folder)).map_err(|error| error.at(field))
        };
        let images = files(&options.images, "images")?;
        let masks = files(&options.masks, "masks")?;
        let names = MaskNames {
            suffix: &options.mask_suffix,
            option: Some("mask_suffix"),
        };
        let mut pairs: Vec<Pair> = pair_up_named(images, masks, names)?
            .into_iter()
            .map(|(id, image, mask)| Pair::new(&id, image, mask))
            .collect();
        if let Some(groups) = &options.groups {
            assign_groups(&mut pairs, &options.root.join(groups))
                .map_err(|error| error.at("groups"))?;
        }
        let dataset = Pairs::new(info(&options), pairs, options.rule(), context)?;
        Ok(Folder(dataset.with_advice(options.advice())))
    }
}

fn info(options: &Options) -> DatasetInfo {
    let folder = options.root.file_name().map(|name| name.to_string_lossy());
    let name = match (&options.name, folder) {
        (Some(name), _) => name.clone(),
        (None, Some(folder)) => folder.into_owned(),
        (None, None) => "folder".into(),
    };
    DatasetInfo {
        name: name.into(),
        classes: options
            .labels()
            .into_iter()
            .map(|(label, name)| Class {
                label,
                name: name.into(),
                target: options.is_target(name),
            })
            .collect(),
        splits: RVec::new(),
    }
}

fn assign_groups(pairs: &mut [Pair], path: &Path) -> Result<()> {
    let table = Table::read(path)?;
    let (id, group) = (table.need(&["id"])?, table.need(&["group"])?);
    let mut groups: HashMap<&str, &str> = HashMap::new();
    let ids: Vec<String> = table.rows().iter().map(|row| composed(&row[id])).collect();
    for (name, row) in ids.iter().zip(table.rows()) {
        if let Some(other) = groups.insert(name, &row[group])
            && other != row[group]
        {
            return Err(Error::data(format!(
                "`{}` puts `{}` into `{other}` and into `{}`",
                path.display(),
                row[id],
                row[group]
            )));
        }
    }
    for pair in pairs.iter_mut() {
        match groups.remove(pair.item.id.as_str()) {
            Some(group) if !group.is_empty() => {
                pair.item.group = group.into();
                pair.attributes.set_text("group", group);
            }
            _ => {
                return Err(Error::data(format!(
                    "`{}` has no group for `{}`",
                    path.display(),
                    pair.image.display()
                )));
            }
        }
    }
    if !groups.is_empty() {
        tracing::warn!(
            "`{}` speaks of {} ids that have no image",
            path.display(),
            groups.len()
        );
    }
    Ok(())
}

impl Dataset for Folder {
    fn info(&self) -> Result<DatasetInfo> {
        self.0.info()
    }

    fn items(&self) -> Result<RVec<Item>> {
        self.0.items()
    }

    fn check(&self, index: u64) -> Result<()> {
        self.0.check(index)
    }

    fn sample(&self, index: u64) -> Result<Sample> {
        self.0.sample(index)
    }
}

diffaug::export_plugin! { dataset "folder" => Folder, "any images/ + masks/ folders" }

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::image::{save_gray, save_image};
    use tempfile::TempDir;

    /// Images `images/ID.png` with masks of 2x2 grey values.
    fn folder(entries: &[(&str, [u8; 4])]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["images", "masks"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        for (id, grays) in entries {
            let image = Image::new(2, 2, vec![50; 12]).unwrap();
            save_image(image.view(), &dir.path().join(format!("images/{id}.png"))).unwrap();
            let mask = Mask::new(2, 2, grays.to_vec()).unwrap();
            save_gray(mask.view(), &dir.path().join(format!("masks/{id}.png"))).unwrap();
        }
        dir
    }

    fn options(json: serde_json::Value) -> Options {
        serde_json::from_value(json).unwrap()
    }

    fn open(dir: &TempDir, mut json: serde_json::Value) -> Result<Folder> {
        json["root"] = dir.path().display().to_string().into();
        let options = options(json);
        Folder::validate(&options)?;
        Folder::from_config(options, &Context::default())
    }

    fn refused(json: serde_json::Value, field: &str, words: &str) {
        let mut json = json;
        json["root"] = "x".into();
        let error = Folder::validate(&options(json)).unwrap_err();
        assert_eq!(error.field.as_str(), field, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }

    #[test]
    fn white_is_lesion_unless_said_otherwise() {
        let dir = folder(&[("a", [0, 127, 128, 255])]);
        let dataset = open(&dir, serde_json::json!({})).unwrap();
        assert_eq!(dataset.sample(0).unwrap().mask.labels(), [0, 0, 1, 1]);
        let info = dataset.info().unwrap();
        assert_eq!(info.classes[0].name.as_str(), "lesion");
        let own_name = dir.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(info.name.as_str(), own_name);
        let low = open(&dir, serde_json::json!({"threshold": 0, "name": "Mine"})).unwrap();
        assert_eq!(low.sample(0).unwrap().mask.labels(), [0, 1, 1, 1]);
        assert_eq!(low.info().unwrap().name.as_str(), "Mine");
    }

    #[test]
    fn classes_have_their_values_and_targets() {
        let dir = folder(&[("a", [0, 1, 128, 255])]);
        let json = serde_json::json!({
            "classes": {"rim": 128, "cup": [0, 1]}, "background": 255, "targets": ["cup"],
        });
        let dataset = open(&dir, json).unwrap();
        let info = dataset.info().unwrap();
        let classes: Vec<_> = info
            .classes
            .iter()
            .map(|class| (class.label, class.name.as_str(), class.target))
            .collect();
        assert_eq!(classes, [(1, "cup", true), (2, "rim", false)]);
        assert_eq!(dataset.sample(0).unwrap().mask.labels(), [1, 1, 2, 0]);
    }

    #[test]
    fn a_value_that_no_class_claims_is_an_error() {
        let dir = folder(&[("a", [0, 0, 254, 255])]);
        let exact = open(&dir, serde_json::json!({"classes": {"polyp": 255}})).unwrap();
        let error = exact.sample(0).unwrap_err().to_string();
        assert!(
            error.contains("value 254 at pixel (0, 1), expected one of 0, 255"),
            "{error}"
        );
        let json = serde_json::json!({"classes": {"polyp": 255}, "threshold": 99});
        let soft = open(&dir, json).unwrap();
        assert_eq!(soft.sample(0).unwrap().mask.labels(), [0, 0, 1, 1]);
        assert_eq!(soft.info().unwrap().classes[0].name.as_str(), "polyp");
    }

    #[test]
    fn contradictions_are_refused() {
        use serde_json::json;
        refused(json!({"classes": {}}), "classes", "at least one");
        refused(
            json!({"classes": {"a": []}}),
            "classes",
            "`a` has no grey value",
        );
        refused(
            json!({"classes": {"a": 0}}),
            "classes",
            "value 0 of `a` is that of the background",
        );
        refused(
            json!({"classes": {"a": 5, "b": [4, 5]}}),
            "classes",
            "value 5 of `b` is that of `a`",
        );
        refused(
            json!({"classes": {"a": 5, "b": 6}, "threshold": 4}),
            "threshold",
            "2 classes",
        );
        refused(
            json!({"classes": {"a": 5}, "threshold": 5}),
            "threshold",
            "value 5 of `a`",
        );
        refused(
            json!({"classes": {"a": 9}, "background": 7, "threshold": 5}),
            "threshold",
            "background value 7",
        );
        refused(json!({"threshold": 255}), "threshold", "above 255");
        refused(json!({"background": 7}), "background", "needs `classes`");
        refused(
            json!({"targets": ["polyp"]}),
            "targets",
            "no class `polyp`, expected one of `lesion`",
        );
        refused(json!({"targets": []}), "targets", "at least one");
    }

    #[test]
    fn groups_come_from_a_table() {
        let dir = folder(&[("a", [0; 4]), ("b", [0; 4])]);
        let with = |text: &str| {
            std::fs::write(dir.path().join("groups.csv"), text).unwrap();
            open(&dir, serde_json::json!({"groups": "groups.csv"}))
        };
        let items = with("id,group\nb,video 2\na,1\nz,9\n")
            .unwrap()
            .items()
            .unwrap();
        assert_eq!(
            (items[0].group.as_str(), items[1].group.as_str()),
            ("1", "video 2")
        );
        for (text, words) in [
            ("id,group\na,1\n", "no group for"),
            ("id,group\na,1\nb,\n", "no group for"),
            ("id,group\na,1\na,2\n", "puts `a` into `1` and into `2`"),
            ("id,video\na,1\n", "no column `group`"),
        ] {
            let error = with(text).unwrap_err();
            assert_eq!(error.field.as_str(), "groups");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn a_missing_folder_names_its_option() {
        let dir = folder(&[("a", [0; 4])]);
        let error = open(&dir, serde_json::json!({"masks": "truth"})).unwrap_err();
        assert_eq!(error.field.as_str(), "masks");
        assert!(
            error.to_string().ends_with("truth` does not exist"),
            "{error}"
        );
    }
}
