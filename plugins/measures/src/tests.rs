//! All measures together, on phantoms whose answers are known, from behind the ABI.

#![allow(clippy::unwrap_used)]

use crate::testing::{Answers, Sheet, measure};
use diffaug::{BoxDataset, prelude::*};

const PREDICTIONS: [&str; 4] = ["surface", "detection", "polyp", "calibration"];

/// Test images of the phantom with their masks as predictions, moved down by `rows`.
fn phantoms(rows: usize) -> Vec<Sheet> {
    let options = diffaug_phantom::Options {
        size: 64,
        train: 0,
        validation: 0,
        test: 4,
        ..diffaug_phantom::Options::default()
    };
    let phantom = diffaug_phantom::Phantom::from_config(options, &Context::default()).unwrap();
    let dataset = BoxDataset::new(phantom);
    let sheet = |index| {
        let sample = dataset.sample(index).unwrap();
        let labels = sample.mask.labels();
        let mut moved = vec![0; rows * 64];
        moved.extend(&labels[..labels.len() - rows * 64]);
        Sheet {
            probability: moved.iter().map(|label| f32::from(*label)).collect(),
            found: Mask::new(64, 64, moved).unwrap(),
            image: sample.image,
            truth: sample.mask,
            targets: vec![1],
        }
    };
    (0..4).map(sheet).collect()
}

#[test]
fn perfect_predictions_have_perfect_figures() {
    let sheets = phantoms(0);
    let answers = PREDICTIONS.map(|name| Answers::of(&measure(name, "{}").unwrap(), &sheets));
    let expected: [&[(&str, f64)]; 4] = [
        &[
            ("hd95", 0.0),
            ("assd", 0.0),
            ("surface_dice", 1.0),
            ("boundary_iou", 1.0),
            ("boundary_dice", 1.0),
        ],
        &[("lesion_sensitivity", 1.0), ("false_positives", 0.0)],
        &[("s_measure", 1.0), ("weighted_f", 1.0), ("mae", 0.0)],
        &[("ece", 0.0), ("mce", 0.0), ("brier", 0.0), ("nll", 1e-7)],
    ];
    for (answers, expected) in answers.iter().zip(expected) {
        for (name, expected) in expected {
            for index in 0..sheets.len() {
                let found = answers.figure(index, name).unwrap();
                assert!((found - expected).abs() < 1e-9, "{name}, {index}: {found}");
            }
        }
    }
    let totals = [
        (1, "lesion_f1"),
        (1, "froc"),
        (2, "max_dice"),
        (2, "max_iou"),
    ];
    for (measure, name) in totals {
        assert_eq!(answers[measure].total(name), Some(1.0), "{name}");
    }
}

#[test]
fn moved_predictions_are_as_far_off_as_they_were_moved() {
    let answers = Answers::of(&measure("surface", "{}").unwrap(), &phantoms(3));
    for index in 0..4 {
        let (hd95, assd) = (answers.figure(index, "hd95"), answers.figure(index, "assd"));
        // No pixel is further than three rows from where it was; sides that run up and down are nearer.
        assert!((1.0..=3.0).contains(&hd95.unwrap()), "{index}: {hd95:?}");
        assert!(assd < hd95 && assd > Some(0.5), "{index}: {assd:?}");
    }
}

#[test]
fn an_image_is_measured_alone_and_totals_add_up() {
    let once: Vec<Sheet> = phantoms(2).into_iter().chain(phantoms(0)).collect();
    let twice = || once.iter().chain(&once).map(Sheet::case);
    for name in PREDICTIONS {
        let measure = measure(name, "{}").unwrap();
        let cases: Vec<Case<'_>> = twice().collect();
        let together = measure.score(cases.as_slice().into()).unwrap();
        let alone = cases.iter().map(|case| {
            let case = std::slice::from_ref(case);
            measure.score(case.into()).unwrap()[0].clone()
        });
        assert!(together.iter().eq(&alone.collect::<Vec<_>>()), "{name}");
        let sums = |measured: &[Measured]| {
            let mut sums = measured[0].sums.to_vec();
            for one in &measured[1..] {
                sums.iter_mut()
                    .zip(&one.sums)
                    .for_each(|(sum, n)| *sum += n);
            }
            sums
        };
        let total = |measured: &[Measured]| {
            let sums = sums(measured);
            let totals = measure.total(sums.as_slice().into(), measured.len() as u64);
            totals.unwrap()
        };
        // Every image twice changes no share and no mean.
        let (half, whole) = (total(&together[..once.len()]), total(&together));
        for (half, whole) in half.iter().zip(&whole) {
            let (half, whole) = (half.into_option(), whole.into_option());
            let apart = half.zip(whole).map(|(half, whole)| (half - whole).abs());
            assert!(apart.unwrap() < 1e-12, "{name}: {half:?} {whole:?}");
        }
    }
}

#[test]
fn figures_have_names_and_measures_a_subject() {
    for name in [&PREDICTIONS[..], &["sizes"]].concat() {
        let measure = measure(name, "{}").unwrap();
        let expected = match name {
            "sizes" => Subject::Verdicts,
            _ => Subject::Predictions,
        };
        assert_eq!(measure.subject().unwrap(), expected);
        for infos in [measure.figures().unwrap(), measure.totals().unwrap()] {
            let mut names: Vec<&str> = infos.iter().map(|info| info.name.as_str()).collect();
            let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(
                names.iter().all(|name| name.chars().all(letters)),
                "{names:?}"
            );
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count);
            assert!(infos.iter().all(|info| !info.about.is_empty()));
        }
    }
}

#[test]
fn what_a_measure_does_not_look_at_and_wrong_sums_are_errors() {
    for name in PREDICTIONS {
        let measure = measure(name, "{}").unwrap();
        let error = measure.judge([][..].into(), [][..].into()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        let error = measure.total([1.0; 2][..].into(), 1).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Internal);
        assert!(error.message.contains("2 sums, expected"), "{error}");
    }
}
