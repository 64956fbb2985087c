//! The validators against a segmenter whose answers are known.

#![allow(clippy::unwrap_used)]

use super::*;
use diffaug::{ErrorKind, Silent, with_reporter};

/// Answers every image with the same mask.
struct Says {
    mask: Mask,
    classes: Vec<Class>,
    probability: Vec<f32>,
}

impl Segmenter for Says {
    fn classes(&self) -> Result<RVec<Class>> {
        Ok(self.classes.clone().into())
    }
    fn segment(
        &self,
        images: RSlice<'_, ImageRef<'_>>,
        _: &Reporter<'_>,
    ) -> Result<RVec<Segmentation>> {
        let answer = |_| Segmentation {
            mask: self.mask.clone(),
            probability: self.probability.clone().into(),
        };
        Ok(images.iter().map(answer).collect())
    }
}

fn class(label: u8, name: &str) -> Class {
    Class {
        label,
        name: name.into(),
        target: true,
    }
}

fn row(labels: &[u8]) -> Mask {
    Mask::new(labels.len() as u32, 1, labels.to_vec()).unwrap()
}

fn judge(options: IouOptions, wanted: &[u8], found: &[u8], classes: Vec<Class>) -> Result<Verdict> {
    let image = Image::new(wanted.len() as u32, 1, vec![0; 3 * wanted.len()])?;
    let wanted = row(wanted);
    let segmenter = BoxSegmenter::new(Says {
        probability: Vec::new(),
        mask: row(found),
        classes,
    });
    let candidates = [Candidate {
        id: "c-1".into(),
        image: image.view(),
        mask: wanted.view(),
    }];
    let verdicts = with_reporter(&Silent, |reporter| {
        Iou(options).judge(
            (&candidates[..]).into(),
            (&[segmenter][..]).into(),
            reporter,
        )
    })?;
    Ok(verdicts[0].clone())
}

fn polyp(threshold: f64, wanted: &[u8], found: &[u8]) -> Result<Verdict> {
    let options = IouOptions {
        threshold,
        ..IouOptions::default()
    };
    judge(options, wanted, found, vec![class(1, "polyp")])
}

#[test]
fn the_threshold_itself_does_not_pass() {
    // Intersection 1, union 2.
    let (wanted, found) = ([1, 1, 0, 0], [1, 0, 0, 0]);
    let below = polyp(0.5, &wanted, &found).unwrap();
    assert_eq!((below.accepted, below.score), (false, 0.5));
    assert_eq!(below.reason, "IoU 0.50 is not above 0.50");
    let above = polyp(0.49, &wanted, &found).unwrap();
    assert!(above.accepted && above.reason.is_empty());
    assert_eq!(above.measures.number("dice"), Some(2.0 / 3.0));
    assert_eq!(above.measures.number("area"), Some(0.25));
}

#[test]
fn the_worst_class_decides() {
    let classes = vec![class(1, "rim"), class(2, "cup")];
    let options = IouOptions::default();
    let verdict = judge(options, &[1, 1, 2, 2], &[1, 1, 2, 0], classes.clone()).unwrap();
    assert_eq!((verdict.accepted, verdict.score), (false, 0.5));
    assert_eq!(verdict.reason, "IoU 0.50 of label 2 is not above 0.70");
    let rim = IouOptions {
        classes: Some(vec![1]),
        ..IouOptions::default()
    };
    assert!(
        judge(rim, &[1, 1, 2, 2], &[1, 1, 2, 0], classes)
            .unwrap()
            .accepted
    );
}

#[test]
fn comparisons_without_sense_are_refused() {
    let message = |result: Result<Verdict>| result.unwrap_err().to_string();
    assert_eq!(
        message(polyp(0.7, &[0, 0], &[0, 0])),
        "candidate `c-1`: the wanted mask is empty, so there is nothing to compare"
    );
    assert_eq!(
        message(polyp(0.7, &[2, 0], &[1, 0])),
        "candidate `c-1`: label 2 is to be compared, but the segmenter finds 1 (`polyp`)"
    );
    let error = polyp(0.7, &[1, 0], &[1, 0, 0]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    assert_eq!(
        error.to_string(),
        "candidate `c-1`: the segmenter answered 3x1 for an image of 2x1"
    );
}

#[test]
fn options_are_checked() {
    for threshold in [-0.1, 1.0, f64::NAN] {
        let options = IouOptions {
            threshold,
            ..IouOptions::default()
        };
        assert_eq!(Iou::validate(&options).unwrap_err().field, "threshold");
    }
    let options = IouOptions {
        classes: Some(vec![0]),
        ..IouOptions::default()
    };
    assert_eq!(Iou::validate(&options).unwrap_err().field, "classes");
    let field = |json: &str| {
        let options: IouOptions = serde_json::from_str(json).unwrap();
        let ensemble: EnsembleOptions = serde_json::from_str(json).unwrap();
        let field = Iou::validate(&options).unwrap_err().field;
        assert_eq!(Ensemble::validate(&ensemble).unwrap_err().field, field);
        field.to_string()
    };
    let sizes = |a: f64, b: f64, threshold: f64| {
        format!(
            r#"{{"by_size": [{{"below": {a}, "threshold": 0.5}}, {{"below": {b}, "threshold": {threshold}}}]}}"#
        )
    };
    assert_eq!(field(&sizes(0.02, 0.01, 0.5)), "by_size");
    assert_eq!(field(&sizes(0.01, 1.5, 0.5)), "by_size");
    assert_eq!(field(&sizes(0.01, 0.02, 1.0)), "by_size");
    assert_eq!(field(r#"{"tolerance": 65}"#), "tolerance");
    assert_eq!(field(r#"{"tolerant_below": 2}"#), "tolerant_below");
    assert_eq!(field(r#"{"detail": -1}"#), "detail");
}

#[test]
fn small_lesions_have_their_own_threshold_and_border() {
    // Two of 100 pixels, of which one is found.
    let wanted: Vec<u8> = (0..100).map(|i| u8::from(i == 40 || i == 41)).collect();
    let found: Vec<u8> = (0..100).map(|i| u8::from(i == 41)).collect();
    let verdict = |json: &str, found: &[u8]| {
        let options: IouOptions = serde_json::from_str(json).unwrap();
        Iou::validate(&options).unwrap();
        judge(options, &wanted, found, vec![class(1, "polyp")]).unwrap()
    };
    let sizes = r#"{"threshold": 0.9, "by_size": [
        {"below": 0.02, "threshold": 0.1}, {"below": 0.03, "threshold": 0.5}]}"#;
    let plain = verdict(sizes, &found);
    assert_eq!((plain.accepted, plain.score), (false, 0.5));
    assert_eq!(
        plain.reason,
        "IoU 0.50 is not above 0.50, the threshold of lesions below 3 % of the image"
    );
    // Five wanted pixels, found one to the right: 4 of 6, and all without the border.
    let wanted: Vec<u8> = (0..100).map(|i| u8::from((40..45).contains(&i))).collect();
    let found: Vec<u8> = (0..100).map(|i| u8::from((41..46).contains(&i))).collect();
    let verdict = |json: &str| {
        let options: IouOptions = serde_json::from_str(json).unwrap();
        judge(options, &wanted, &found, vec![class(1, "polyp")]).unwrap()
    };
    let strict = verdict(r#"{"tolerance": 1, "tolerant_below": 0.05}"#);
    assert_eq!((strict.accepted, strict.score), (false, 4.0 / 6.0));
    let tolerant = verdict(r#"{"tolerance": 1, "tolerant_below": 0.06}"#);
    assert_eq!((tolerant.accepted, tolerant.score), (true, 1.0));
    // The measures stay what they are without it.
    assert_eq!(tolerant.measures.number("iou"), Some(4.0 / 6.0));
}

/// An image of 32x32 whose middle is a lesion of grey levels that alternate by `inside`, on ground that
/// does by `around`; found where it is.
fn rough(options: IouOptions, inside: u8, around: u8) -> Verdict {
    let lesion = |x: u32, y: u32| (10..22).contains(&x) && (10..22).contains(&y);
    let places = || (0..32).flat_map(|y| (0..32).map(move |x| (x, y)));
    let labels: Vec<u8> = places().map(|(x, y)| u8::from(lesion(x, y))).collect();
    let pixels: Vec<u8> = places()
        .flat_map(|(x, y)| {
            let by = if lesion(x, y) { inside } else { around };
            [if (x + y) % 2 == 0 { 120 + by } else { 120 - by }; 3]
        })
        .collect();
    let (image, mask) = (
        Image::new(32, 32, pixels).unwrap(),
        Mask::new(32, 32, labels).unwrap(),
    );
    let segmenter = BoxSegmenter::new(Says {
        probability: Vec::new(),
        mask: mask.clone(),
        classes: vec![class(1, "polyp")],
    });
    let candidates = [Candidate {
        id: "c-1".into(),
        image: image.view(),
        mask: mask.view(),
    }];
    let verdicts = with_reporter(&Silent, |reporter| {
        let segmenters = [segmenter];
        Iou(options).judge((&candidates[..]).into(), (&segmenters[..]).into(), reporter)
    });
    verdicts.unwrap()[0].clone()
}

#[test]
fn a_lesion_that_is_too_smooth_is_turned_down() {
    let options = |detail| IouOptions {
        detail,
        ..IouOptions::default()
    };
    let smooth = rough(options(Some(0.6)), 4, 20);
    assert_eq!((smooth.accepted, smooth.score), (false, 1.0));
    assert!(smooth.fails_otherwise);
    assert_eq!(smooth.accepted_above(0.5), Some(false));
    assert!(
        smooth.reason.starts_with("too smooth: "),
        "{}",
        smooth.reason
    );
    let ratio = smooth.measures.number("detail_ratio").unwrap();
    assert!((0.1..0.4).contains(&ratio), "{ratio}");
    let alike = rough(options(Some(0.6)), 20, 20);
    assert!(alike.accepted && alike.reason.is_empty());
    // Without the option detail is neither judged nor told.
    let plain = rough(options(None), 4, 20);
    assert!(plain.accepted && plain.measures.number("detail_ratio").is_none());
}

#[test]
fn accept_all_accepts_without_a_segmenter() {
    assert_eq!(AcceptAll.segmenters().unwrap(), 0);
    let (image, mask) = (Image::new(1, 1, vec![0; 3]).unwrap(), row(&[1]));
    let candidates = [Candidate {
        id: "c".into(),
        image: image.view(),
        mask: mask.view(),
    }];
    let verdicts = with_reporter(&Silent, |reporter| {
        AcceptAll.judge((&candidates[..]).into(), (&[][..]).into(), reporter)
    });
    assert!(verdicts.unwrap()[0].accepted);
}

fn ensemble(options: EnsembleOptions, wanted: &[u8], found: &[&[u8]]) -> Verdict {
    Ensemble::validate(&options).unwrap();
    let image = Image::new(wanted.len() as u32, 1, vec![0; 3 * wanted.len()]).unwrap();
    let wanted = row(wanted);
    let candidates = [Candidate {
        id: "c-1".into(),
        image: image.view(),
        mask: wanted.view(),
    }];
    let says = |found: &&[u8]| {
        BoxSegmenter::new(Says {
            probability: Vec::new(),
            mask: row(found),
            classes: vec![class(1, "polyp")],
        })
    };
    let segmenters: Vec<BoxSegmenter> = found.iter().map(says).collect();
    let verdicts = with_reporter(&Silent, |reporter| {
        let segmenters = segmenters.as_slice().into();
        Ensemble(options).judge((&candidates[..]).into(), segmenters, reporter)
    });
    verdicts.unwrap()[0].clone()
}

#[test]
fn enough_members_must_find_the_lesion() {
    let wanted: &[u8] = &[1, 1, 1, 1, 0];
    // IoU 1, 3/4 and 1/4.
    let found: [&[u8]; 3] = [wanted, &[1, 1, 1, 0, 0], &[1, 0, 0, 0, 0]];
    let options = |agree| EnsembleOptions {
        agree,
        ..EnsembleOptions::default()
    };
    let most = ensemble(options(None), wanted, &found);
    assert_eq!((most.accepted, most.score), (true, 0.75));
    assert_eq!(most.measures.number("agreeing"), Some(2.0));
    let iou = most.measures.number("iou").unwrap();
    assert!((iou - 2.0 / 3.0).abs() < 1e-12);
    // Between members: 3/4, 1/4 and 1/3.
    let agreement = most.measures.number("agreement").unwrap();
    assert!((agreement - 4.0 / 9.0).abs() < 1e-12);
    let all = ensemble(options(Some(3)), wanted, &found);
    assert_eq!((all.accepted, all.score), (false, 0.25));
    assert_eq!(
        all.reason,
        "2 of 3 segmenters find it with an IoU above 0.70, 3 must"
    );
}

#[test]
fn options_of_an_ensemble_are_checked() {
    let field = |members, agree| {
        let options = EnsembleOptions {
            members,
            agree,
            ..EnsembleOptions::default()
        };
        Ensemble::validate(&options).unwrap_err().field.to_string()
    };
    assert_eq!(field(1, None), "members");
    assert_eq!(field(3, Some(4)), "agree");
    assert_eq!(field(3, Some(0)), "agree");
}

#[test]
fn a_segmenter_whose_answer_is_no_number_judges_nothing() {
    let image = Image::new(4, 1, vec![0; 12]).unwrap();
    let mask = row(&[1, 1, 0, 0]);
    let candidates = [Candidate {
        id: "c-1".into(),
        image: image.view(),
        mask: mask.view(),
    }];
    for wrong in [f32::NAN, f32::INFINITY] {
        let says = || {
            BoxSegmenter::new(Says {
                mask: mask.clone(),
                classes: vec![class(1, "polyp")],
                probability: vec![1.0, 1.0, wrong, 0.0],
            })
        };
        let (one, three) = ([says()], [says(), says(), says()]);
        let judged = |validator: &dyn Fn(&Reporter<'_>) -> Result<RVec<Verdict>>| {
            with_reporter(&Silent, |reporter| validator(reporter)).unwrap_err()
        };
        let candidates = &candidates[..];
        let errors = [
            judged(&|r| Iou(IouOptions::default()).judge(candidates.into(), (&one[..]).into(), r)),
            judged(&|r| {
                let ensemble = Ensemble(EnsembleOptions::default());
                ensemble.judge(candidates.into(), (&three[..]).into(), r)
            }),
        ];
        for error in errors {
            assert_eq!(error.kind, ErrorKind::Model);
            let text = error.to_string();
            assert!(text.contains("candidate `c-1` cannot be judged"), "{text}");
            assert!(text.contains("at pixel 2 is"), "{text}");
        }
    }
}
