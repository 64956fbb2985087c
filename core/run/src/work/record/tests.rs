//! Records added up.

use super::*;

/// A record as the journal has it, with a score that is an IoU.
fn record(score: f64, accepted: bool, preview: Option<f64>, given_up: bool) -> Record {
    let line = json!({
        "file_name": accepted.then_some("a.png"), "id": "a", "index": 0, "source": "a",
        "variant": 0, "score": score, "preview": preview, "given_up": given_up,
        "limit": 0.7, "classes": {"1": score}, "size": "2 to 10 %",
    });
    serde_json::from_value(line).unwrap()
}

#[test]
fn what_was_given_up_counts_but_its_preview_is_no_score() {
    let preview = Preview::default();
    let info = DatasetInfo::single_class("d", "polyp");
    let mut tally = Tally::new(&info, Some(&preview));
    tally.add(&record(0.9, true, Some(0.4), false));
    tally.add(&record(0.3, false, Some(0.5), false));
    tally.add(&record(0.1, false, Some(0.1), true));
    let summary = tally.summary(5);
    assert_eq!((summary.accepted, summary.rejected), (1, 2));
    assert_eq!(summary.score_rejected, Some(0.3));
    assert_eq!(summary.by_class["polyp"].candidates, 2);
    assert_eq!(
        (summary.by_size[1].candidates, summary.by_size[1].accepted),
        (3, 1)
    );
    let previews = summary.preview.unwrap();
    assert_eq!((previews.given_up, previews.lost), (1, None));
    assert!((previews.saved - 0.5 / 3.0).abs() < 1e-12);
    // Strictly above the threshold.
    let at = |threshold| summary.sweep.iter().find(|row| row.threshold == threshold);
    assert_eq!(at(0.9).unwrap().accepted, 0);
    assert_eq!(at(0.85).unwrap().accepted, 1);
}

#[test]
fn what_failed_otherwise_stays_turned_down() {
    let info = DatasetInfo::single_class("d", "polyp");
    let mut tally = Tally::new(&info, None);
    tally.add(&record(0.9, true, None, false));
    tally.add(&Record {
        fails_otherwise: true,
        ..record(0.6, false, None, false)
    });
    let summary = tally.summary(5);
    let lowest = &summary.sweep[0];
    assert_eq!(
        (lowest.threshold, lowest.accepted, lowest.acceptance),
        (0.5, 1, 0.5)
    );
}

#[test]
fn an_audit_tells_what_giving_up_would_lose() {
    let preview = Preview {
        audit: true,
        ..Preview::default()
    };
    let info = DatasetInfo::single_class("d", "polyp");
    let mut tally = Tally::new(&info, Some(&preview));
    tally.add(&record(0.9, true, Some(0.1), false));
    tally.add(&record(0.2, false, Some(0.1), false));
    let previews = tally.summary(5).preview.unwrap();
    assert_eq!((previews.given_up, previews.lost), (2, Some(1)));
}
