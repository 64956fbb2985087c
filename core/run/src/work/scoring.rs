//! Scores masks: image by image, over all, and by groups of attributes.

use super::measuring::{Figure, Values};
use diffaug::{
    AttributeKind, Attributes, Better, Error, MaskRef, Result, ResultExt,
    error::ErrorKind,
    lesion::SizeGroup,
    metrics::{Confusion, Scores, mean, std_dev},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// A word attribute with more values than this identifies rather than groups.
const MOST_GROUPS: usize = 8;

/// The columns of a file of scores that count pixels; those before them are figures.
pub const PIXELS: [&str; 4] = [
    "true_positive",
    "false_positive",
    "false_negative",
    "true_negative",
];

/// The figures that every run has, in the order of every table.
pub fn basic() -> Vec<Figure> {
    use Better::{Higher, Lower};
    let about = [
        ("dice", Higher, "Dice coefficient"),
        ("iou", Higher, "intersection over union"),
        (
            "sensitivity",
            Higher,
            "share of the target's pixels that were found",
        ),
        (
            "fnr",
            Lower,
            "share of the target's pixels that were missed",
        ),
        (
            "specificity",
            Higher,
            "share of the background's pixels that were left alone",
        ),
    ];
    about
        .map(|(name, better, about)| Figure::new(name, better, about))
        .to_vec()
}

/// The comparison of one image.
pub struct Scored {
    /// The image.
    pub id: String,
    /// The patient or video that the image is of; empty where unknown.
    pub group: String,
    /// Pixel counts.
    pub counts: Confusion,
    /// What measures say of it, by the names of their figures, in their order; `None` where undefined.
    pub measured: Values,
    /// Facts, for groups.
    pub attributes: Attributes,
}

impl Scored {
    /// Every figure by its name.
    fn figures(&self) -> Figures {
        let mut figures = Figures::from(self.counts.scores());
        figures.0.extend(self.measured.iter().cloned());
        figures
    }
}

/// Figures as they are stored; `None` where undefined.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures(pub BTreeMap<String, Option<f64>>);

impl From<Scores> for Figures {
    fn from(scores: Scores) -> Self {
        let named = scores.named().into_iter();
        Figures(named.map(|(name, value)| (name.into(), value)).collect())
    }
}

impl Figures {
    /// The figure of that name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied().flatten()
    }

    /// Folds each figure over `all`, leaving out where it is undefined.
    pub fn fold<'a>(
        all: impl IntoIterator<Item = &'a Figures>,
        fold: impl Fn(&[f64]) -> Option<f64>,
    ) -> Figures {
        let mut columns: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for figures in all {
            for (name, value) in &figures.0 {
                columns.entry(name.clone()).or_default().extend(value);
            }
        }
        let folded = columns.into_iter();
        Figures(folded.map(|(name, values)| (name, fold(&values))).collect())
    }
}

/// The scores of a set of images.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// How many images.
    pub images: usize,
    /// Mean over images.
    pub per_image_mean: Figures,
    /// Sample standard deviation over images.
    pub per_image_std: Figures,
    /// Of the pixels of all images together.
    pub dataset_level: Figures,
    /// Mean over the images of a group (`small`, `morphology = flat`, `size: below 2 %`).
    pub groups: BTreeMap<String, GroupReport>,
}

/// The scores of a group of images.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupReport {
    /// How many images.
    pub images: usize,
    /// Mean over images.
    pub per_image_mean: Figures,
}

/// Compares one image.
///
/// # Errors
/// When the sizes differ; the message names `id`.
pub fn score(
    id: &str,
    truth: MaskRef<'_>,
    prediction: MaskRef<'_>,
    targets: &[u8],
    attributes: Attributes,
) -> Result<Scored> {
    let counts = Confusion::of(truth, prediction, targets)
        .or_error(ErrorKind::Data, || format!("cannot score `{id}`"))?;
    Ok(Scored {
        id: id.to_owned(),
        group: String::new(),
        counts,
        measured: Vec::new(),
        attributes,
    })
}

/// Averages; `totals` are figures of all images together besides those of all pixels.
pub fn report(all: &[Scored], totals: Values) -> Report {
    let figures: Vec<Figures> = all.iter().map(Scored::figures).collect();
    let mut total = Confusion::default();
    for scored in all {
        total.add(&scored.counts);
    }
    let mut dataset_level = Figures::from(total.scores());
    dataset_level.0.extend(totals);
    let groups = groups(all)
        .into_iter()
        .map(|(name, members)| {
            let figures: Vec<Figures> = members.iter().map(|s| s.figures()).collect();
            let report = GroupReport {
                images: members.len(),
                per_image_mean: Figures::fold(&figures, mean),
            };
            (name, report)
        })
        .collect();
    Report {
        images: all.len(),
        per_image_mean: Figures::fold(&figures, mean),
        per_image_std: Figures::fold(&figures, std_dev),
        dataset_level,
        groups,
    }
}

/// The group of lesions that cover the fraction `area` of their image; `None` where there is none.
pub fn size_group(area: f64) -> Option<SizeGroup> {
    (area > 0.0).then(|| SizeGroup::of(area))
}

/// What reports call a group of lesions by size.
pub fn size_name(group: SizeGroup) -> String {
    format!("size: {}", group.name())
}

/// Images by flag (those for which it holds), by word, where the words are few, and by the size of the
/// lesion ([`SizeGroup`]); images without lesion are in no group of size.
fn groups(all: &[Scored]) -> BTreeMap<String, Vec<&Scored>> {
    let mut words: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for attribute in all.iter().flat_map(|s| s.attributes.iter()) {
        if attribute.kind == AttributeKind::Text {
            let seen = words.entry(&attribute.name).or_default();
            seen.insert(&attribute.text);
        }
    }
    let mut groups: BTreeMap<String, Vec<&Scored>> = BTreeMap::new();
    for scored in all {
        for attribute in scored.attributes.iter() {
            let name = &attribute.name;
            let group = match attribute.kind {
                AttributeKind::Flag if attribute.number != 0.0 => name.to_string(),
                AttributeKind::Text
                    if (2..=MOST_GROUPS)
                        .contains(&words.get(name.as_str()).map_or(0, |w| w.len())) =>
                {
                    format!("{name} = {}", attribute.text)
                }
                _ => continue,
            };
            groups.entry(group).or_default().push(scored);
        }
        if let Some(size) = scored.attributes.number("area").and_then(size_group) {
            groups.entry(size_name(size)).or_default().push(scored);
        }
    }
    groups
}

/// One line an image: id, group where any has one, figures, pixel counts, attributes. Undefined figures
/// are empty.
pub fn csv(all: &[Scored]) -> Result<String> {
    let names: BTreeSet<&str> = all
        .iter()
        .flat_map(|s| s.attributes.iter())
        .map(|a| a.name.as_str())
        .collect();
    let failed = |e: csv::Error| Error::internal(e);
    let mut writer = csv::Writer::from_writer(Vec::new());
    let basic = Scores::default().named().map(|(name, _)| name);
    let measured = all.first().map_or(&[][..], |scored| &scored.measured);
    let measured: Vec<&str> = measured.iter().map(|(name, _)| name.as_str()).collect();
    let counts = PIXELS;
    let grouped = all.iter().any(|scored| !scored.group.is_empty());
    let first = if grouped {
        &["id", "group"][..]
    } else {
        &["id"]
    };
    let figures = basic.iter().chain(&measured);
    let header = first.iter().chain(figures).chain(&counts).chain(&names);
    writer.write_record(header).map_err(failed)?;
    for scored in all {
        let c = &scored.counts;
        let mut row = vec![scored.id.clone()];
        if grouped {
            row.push(scored.group.clone());
        }
        let basic = c.scores().named().map(|(_, value)| value);
        let measured = scored.measured.iter().map(|(_, value)| *value);
        for value in basic.into_iter().chain(measured) {
            row.push(value.map_or_else(String::new, |v| v.to_string()));
        }
        let pixels = [
            c.true_positive,
            c.false_positive,
            c.false_negative,
            c.true_negative,
        ];
        row.extend(pixels.map(|n| n.to_string()));
        for name in &names {
            let cell = scored.attributes.get(name).map(|a| match a.kind {
                AttributeKind::Text => a.text.to_string(),
                _ => a.number.to_string(),
            });
            row.push(cell.unwrap_or_default());
        }
        writer.write_record(&row).map_err(failed)?;
    }
    let bytes = writer.into_inner().map_err(Error::internal)?;
    String::from_utf8(bytes).map_err(Error::internal)
}

/// Writes [`csv`] to a file, whole.
pub fn write_csv(path: &Path, all: &[Scored]) -> Result<()> {
    diffaug::files::write_atomic(path, csv(all)?.as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::Mask;

    fn scored(id: &str, truth: [u8; 4], prediction: [u8; 4], morphology: &str) -> Scored {
        let mut attributes = Attributes::new();
        attributes.set_text("morphology", morphology);
        attributes.set_text("frame", id);
        attributes.set_flag("small", id == "a,1");
        let area = truth.iter().filter(|&&label| label == 1).count() as f64 / 4.0;
        attributes.set_number("area", area);
        let truth = Mask::new(2, 2, truth.to_vec()).unwrap();
        let prediction = Mask::new(2, 2, prediction.to_vec()).unwrap();
        score(id, truth.view(), prediction.view(), &[1], attributes).unwrap()
    }

    #[test]
    fn groups_are_flags_that_hold_and_words_that_repeat() {
        let all: Vec<Scored> = (0..10)
            .map(|i| {
                let morphology = if i % 2 == 0 { "flat" } else { "sessile" };
                let id = if i == 0 { "a,1".into() } else { i.to_string() };
                scored(&id, [1, 0, 0, 0], [1, 0, 0, u8::from(i == 0)], morphology)
            })
            .collect();
        let report = report(&all, Vec::new());
        let names: Vec<&str> = report.groups.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "morphology = flat",
                "morphology = sessile",
                "size: above 10 %",
                "small"
            ]
        );
        assert_eq!(report.groups["size: above 10 %"].images, 10);
        assert_eq!(report.groups["small"].images, 1);
        let flat = report.groups["morphology = flat"]
            .per_image_mean
            .get("dice");
        assert!((flat.unwrap() - (4.0 + 2.0 / 3.0) / 5.0).abs() < 1e-12);
        let text = csv(&all).unwrap();
        assert!(
            text.lines().nth(1).unwrap().starts_with("\"a,1\",0.666"),
            "{text}"
        );
    }

    #[test]
    fn groups_of_images_are_a_column_where_there_are_any() {
        let mut all = vec![scored("a", [1, 0, 0, 0], [1, 0, 0, 0], "flat")];
        assert!(csv(&all).unwrap().starts_with("id,dice,"));
        all.push(scored("b", [1, 0, 0, 0], [1, 0, 0, 0], "flat"));
        all[1].group = "video 3".into();
        let text = csv(&all).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("id,group,dice,"), "{text}");
        assert!(lines[1].starts_with("a,,1,"), "{text}");
        assert!(lines[2].starts_with("b,video 3,1,"), "{text}");
    }

    #[test]
    fn images_are_grouped_by_size_unless_there_is_no_lesion() {
        let all: Vec<Scored> = [0.0, 0.01, 0.02, 0.1, 0.3, 0.4]
            .iter()
            .enumerate()
            .map(|(i, &area)| {
                let mut scored = scored(&i.to_string(), [1, 0, 0, 0], [1, 0, 0, 0], "flat");
                scored.attributes.set_number("area", area);
                scored
            })
            .collect();
        let groups = report(&all, Vec::new()).groups;
        let sizes = groups.iter().filter(|(name, _)| name.starts_with("size: "));
        let sizes: Vec<(&str, usize)> = sizes.map(|(n, g)| (n.as_str(), g.images)).collect();
        let expected = [
            ("size: 2 to 10 %", 2),
            ("size: above 10 %", 2),
            ("size: below 2 %", 1),
        ];
        assert_eq!(sizes, expected);
    }
}
