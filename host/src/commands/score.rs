//! `diffaug score`: metrics of any two folders of masks.

use crate::{
    cli::ScoreArgs,
    ui::{Ui, table},
};
use diffaug::{
    Attributes, Error, Mask, Result,
    image::{
        DEFAULT_MAX_PIXELS, MaskFault, MaskRule, MaskValues,
        mask::{THRESHOLD, list_values},
        read_values,
    },
    pairs::{MaskNames, list_files, pair_up_named},
};
use diffaug_run::{
    failure::Failure,
    work::scoring::{self, Figures, Scored},
};
use rayon::prelude::*;
use serde_json::json;
use std::{collections::BTreeSet, path::Path};

/// An image's figures, and the values other than 0 that its two masks hold.
type Compared = (Scored, BTreeSet<u8>);

/// Compares files of the same name and prints the averages.
pub fn score(args: &ScoreArgs, ui: Ui) -> Result<(), Failure> {
    let truths = list_files(&args.truth)?;
    let predictions = list_files(&args.pred)?;
    let names = MaskNames {
        suffix: &args.suffix,
        option: Some("--suffix"),
    };
    let pairs = pair_up_named(truths, predictions, names).map_err(|e| {
        let (pred, truth) = (args.pred.display(), args.truth.display());
        e.context(format!("cannot match `{pred}` with `{truth}`"))
    })?;
    let compared: Vec<Compared> = pairs
        .par_iter()
        .map(|(id, truth, prediction)| {
            let (truth, mut values) = read(truth, args)?;
            let (prediction, others) = read(prediction, args)?;
            values.extend(others);
            let facts = Attributes::new();
            let scored = scoring::score(id, truth.view(), prediction.view(), &[1], facts)?;
            Ok((scored, values))
        })
        .collect::<Result<_>>()?;
    let (scored, values): (Vec<Scored>, Vec<BTreeSet<u8>>) = compared.into_iter().unzip();
    check_labels(&args.labels, &values.into_iter().flatten().collect())?;
    if let Some(path) = &args.csv {
        scoring::write_csv(path, &scored)?;
    }
    let report = scoring::report(&scored, Vec::new());
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

/// A label that no file of either side holds would be scored as found and missed nowhere.
fn check_labels(labels: &[u8], found: &BTreeSet<u8>) -> Result<()> {
    let held = |label: &&u8| **label == 0 || found.contains(label);
    let Some(absent) = labels.iter().find(|label| !held(label)) else {
        return Ok(());
    };
    let found: Vec<u8> = found.iter().copied().collect();
    Err(Error::config(format!(
        "no mask of either folder holds the label {absent}; the values found besides 0 are {}",
        list_values(&found)
    )))
}

/// A mask as 0 and 1, and the values other than 0 in the file.
fn read(path: &Path, args: &ScoreArgs) -> Result<(Mask, BTreeSet<u8>)> {
    let found = read_values(path, DEFAULT_MAX_PIXELS)?;
    let values = found.values.labels().iter().copied().filter(|&v| v > 0);
    let values: BTreeSet<u8> = values.collect();
    let mask = match (args.labels.as_slice(), args.threshold) {
        ([], Some(threshold)) => {
            let rule = MaskRule::Above {
                threshold,
                label: 1,
            };
            apply(rule, found, path)
        }
        ([], None) => apply(MaskRule::Auto { label: 1 }, found, path),
        (labels, _) => {
            let mut mask = found.values;
            for value in mask.bytes_mut() {
                *value = u8::from(labels.contains(value));
            }
            Ok(mask)
        }
    };
    Ok((mask?, values))
}

fn apply(rule: MaskRule, found: MaskValues, path: &Path) -> Result<Mask> {
    rule.apply(found).map_err(|fault: MaskFault| {
        let mut error = fault.at(path);
        let advice = format!(
            "name the labels to score (`--labels {}`), or set `--threshold {THRESHOLD}` if what is brighter counts",
            list_values(&fault.values).replace(' ', "")
        );
        error.message = format!("{}: {advice}", error.message).into();
        error
    })
}
