//! `diffaug score`: metrics of any two folders of masks.

use crate::{
    cli::ScoreArgs,
    failure::Failure,
    pipeline::scoring::{self, Figures, Scored},
    ui::{Ui, table},
};
use diffaug::{
    Attributes, Error, Mask, Result,
    image::{DEFAULT_MAX_PIXELS, open_gray},
    pairs::{list_files, pair_up},
};
use rayon::prelude::*;
use serde_json::json;
use std::path::Path;

/// Masks drawn by people and saved as pictures are white on black.
const DEFAULT_THRESHOLD: u8 = 127;

/// Compares files of the same name and prints the averages.
pub fn score(args: &ScoreArgs, ui: Ui) -> Result<(), Failure> {
    let truths = list_files(&args.truth)?;
    let predictions = list_files(&args.pred)?;
    let pairs = pair_up(truths, predictions).map_err(|e| {
        let (pred, truth) = (args.pred.display(), args.truth.display());
        e.context(format!("cannot match `{pred}` with `{truth}`"))
    })?;
    let scored: Vec<Scored> = pairs
        .par_iter()
        .map(|(id, truth, prediction)| {
            let truth = read(truth, args)?;
            let prediction = read(prediction, args)?;
            let facts = Attributes::new();
            scoring::score(id, truth.view(), prediction.view(), &[1], facts)
        })
        .collect::<Result<_>>()?;
    if let Some(path) = &args.csv {
        scoring::write_csv(path, &scored)?;
    }
    let report = scoring::report(&scored);
    let text = || {
        let row = |name: &str, figures: &Figures| {
            let mut row = vec![name.to_owned()];
            for name in ["dice", "iou", "sensitivity", "fnr", "specificity"] {
                row.push(figures.get(name).map_or("-".into(), |v| format!("{v:.4}")));
            }
            row
        };
        let header = ["", "Dice", "IoU", "sensitivity", "FNR", "specificity"];
        let rows = [
            row("mean over images", &report.per_image_mean),
            row("std over images", &report.per_image_std),
            row("all pixels together", &report.dataset_level),
        ];
        format!("{} images\n{}", report.images, table(&header, &rows))
    };
    ui.result(text, &json!(report));
    Ok(())
}

/// A mask as 0 and 1.
fn read(path: &Path, args: &ScoreArgs) -> Result<Mask> {
    let mut mask = open_gray(path, DEFAULT_MAX_PIXELS)?;
    let threshold = args.threshold.unwrap_or(DEFAULT_THRESHOLD);
    if args.labels.is_empty() && args.threshold.is_none() {
        let highest = mask.labels().iter().copied().max().unwrap_or(0);
        if (1..=DEFAULT_THRESHOLD).contains(&highest) {
            return Err(Error::data(format!(
                "`{}` has no value above {highest}: if its values are labels, name the ones to \
                 score (`--labels {highest}`), otherwise set `--threshold`",
                path.display()
            )));
        }
    }
    for value in mask.bytes_mut() {
        *value = u8::from(if args.labels.is_empty() {
            *value > threshold
        } else {
            args.labels.contains(value)
        });
    }
    Ok(mask)
}
