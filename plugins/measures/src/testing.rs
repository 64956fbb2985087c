//! Small cases and the fixtures for the tests of this crate.

#![allow(clippy::unwrap_used)]

use diffaug::{abi, prelude::*, stage::BoxMeasure};
use serde_json::Value;

/// An image with masks and probabilities that owns what a [`Case`] borrows.
pub struct Sheet {
    pub image: Image,
    pub truth: Mask,
    pub found: Mask,
    pub probability: Vec<f32>,
    pub targets: Vec<u8>,
}

impl Sheet {
    /// Masks written as `0` and `1`, row by row; the label 1 counts.
    pub fn new(width: u32, height: u32, truth: &str, found: &str) -> Self {
        let mask = |text: &str| {
            let labels = text.bytes().filter(|c| !c.is_ascii_whitespace());
            Mask::new(width, height, labels.map(|c| c - b'0').collect()).unwrap()
        };
        Sheet {
            image: Image::new(width, height, vec![0; (3 * width * height) as usize]).unwrap(),
            truth: mask(truth),
            found: mask(found),
            probability: Vec::new(),
            targets: vec![1],
        }
    }

    /// The case `fixture` with `width`, `height`, `truth`, `found` and `probability` in 1/1024, if there is one.
    pub fn of(fixture: &Value) -> Self {
        let side = |name: &str| fixture[name].as_u64().unwrap() as u32;
        let text = |name: &str| fixture[name].as_str().unwrap();
        let mut sheet = Sheet::new(side("width"), side("height"), text("truth"), text("found"));
        if let Some(values) = fixture["probability"].as_array() {
            let share = |value: &Value| value.as_u64().unwrap() as f32 / 1024.0;
            sheet.probability = values.iter().map(share).collect();
        }
        sheet
    }

    pub fn case(&self) -> Case<'_> {
        Case {
            id: "7".into(),
            image: self.image.view(),
            truth: self.truth.view(),
            found: self.found.view(),
            probability: self.probability.as_slice().into(),
            targets: self.targets.as_slice().into(),
        }
    }
}

/// The measure of that name, built from options as the host builds it, with a stage behind the ABI.
pub fn measure(name: &str, options: &str) -> Result<BoxMeasure> {
    let entry = abi::measures();
    let entry = entry.iter().find(|entry| entry.name == name).unwrap();
    (entry.build)(options.into(), &Context::default()).into_result()
}

/// The option that `options` have wrong.
pub fn wrong_option(name: &str, options: &str) -> String {
    measure(name, options).err().unwrap().field.to_string()
}

/// What a measure says of each sheet and of all, by name.
pub struct Answers {
    each: Vec<Vec<Option<f64>>>,
    total: Vec<Option<f64>>,
    figures: Vec<String>,
    totals: Vec<String>,
}

fn names(figures: Result<RVec<FigureInfo>>) -> Vec<String> {
    let figures = figures.unwrap().into_iter();
    figures.map(|figure| figure.name.to_string()).collect()
}

fn values(figures: &[ROption<f64>]) -> Vec<Option<f64>> {
    figures.iter().map(|value| value.into_option()).collect()
}

impl Answers {
    /// Scores the sheets one by one and adds the sums up, in `f64` as the host does.
    pub fn of(measure: &BoxMeasure, sheets: &[Sheet]) -> Self {
        let cases: Vec<Case<'_>> = sheets.iter().map(Sheet::case).collect();
        let measured = measure.score(cases.as_slice().into()).unwrap();
        assert_eq!(measured.len(), sheets.len());
        let mut sums = vec![0.0; measured[0].sums.len()];
        for one in &measured {
            assert_eq!(one.sums.len(), sums.len());
            sums.iter_mut()
                .zip(&one.sums)
                .for_each(|(sum, n)| *sum += n);
        }
        let total = measure.total(sums.as_slice().into(), sheets.len() as u64);
        let answers = Answers {
            each: measured.iter().map(|one| values(&one.figures)).collect(),
            total: values(&total.unwrap()),
            figures: names(measure.figures()),
            totals: names(measure.totals()),
        };
        assert!(
            answers
                .each
                .iter()
                .all(|f| f.len() == answers.figures.len())
        );
        assert_eq!(answers.total.len(), answers.totals.len());
        answers
    }

    /// A figure of the sheet at `index`.
    pub fn figure(&self, index: usize, name: &str) -> Option<f64> {
        let at = self.figures.iter().position(|figure| figure == name);
        self.each[index][at.unwrap()]
    }

    /// A figure of all sheets.
    pub fn total(&self, name: &str) -> Option<f64> {
        let at = self.totals.iter().position(|figure| figure == name);
        self.total[at.unwrap()]
    }

    /// Compares the figures of every sheet and the totals with `cases[i].figures` and `totals` of a fixture, null
    /// for undefined, up to `tolerance`; every figure and every total must be there.
    pub fn compare(&self, fixture: &Value, tolerance: f64) {
        for (index, case) in fixture["cases"].as_array().unwrap().iter().enumerate() {
            let place = format!("case {index}");
            same(
                &self.figures,
                &self.each[index],
                &case["figures"],
                tolerance,
                &place,
            );
        }
        same(
            &self.totals,
            &self.total,
            &fixture["totals"],
            tolerance,
            "totals",
        );
    }
}

fn same(names: &[String], ours: &[Option<f64>], theirs: &Value, tolerance: f64, place: &str) {
    let theirs = theirs.as_object().unwrap();
    assert_eq!(theirs.len(), names.len(), "{place}");
    for (name, ours) in names.iter().zip(ours) {
        let theirs = theirs[name].as_f64();
        let equal = match (ours, theirs) {
            (Some(ours), Some(theirs)) => (ours - theirs).abs() <= tolerance,
            (ours, theirs) => ours.is_none() && theirs.is_none(),
        };
        assert!(equal, "{place}, {name}: {ours:?}, reference {theirs:?}");
    }
}

/// Parses a fixture and compares the measure with it.
pub fn against(fixture: &str, name: &str, options: &str, tolerance: f64) -> Answers {
    let fixture: Value = serde_json::from_str(fixture).unwrap();
    let sheets: Vec<Sheet> = fixture["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(Sheet::of)
        .collect();
    let answers = Answers::of(&measure(name, options).unwrap(), &sheets);
    answers.compare(&fixture, tolerance);
    answers
}
