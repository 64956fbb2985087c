//! `diffaug dataset verify`: a copy of a dataset, looked at.

use crate::{
    cli::{Global, VerifyArgs},
    ui::Ui,
};
use diffaug::Error;
use diffaug_run::{
    failure::Failure,
    session::Session,
    verify::{self, Verified},
};
use serde_json::{Map, json};

/// Faults that are printed one by one; with `--json` all are.
const SHOWN: usize = 20;

/// Says what is there, and fails where something is wrong.
pub fn verify(args: &VerifyArgs, global: &Global, ui: Ui) -> Result<(), Failure> {
    let registry = super::registry(&args.library, global, ui)?;
    let options = super::options(&args.set)?;
    let options = options.as_object().map_or_else(Map::new, Clone::clone);
    let session = Session::new(&ui);
    let found = verify::verify(&registry, &args.name, &args.path, &options, &session)?;
    ui.result(|| text(&found), &json!(found));
    match found.faults.len() {
        0 => Ok(()),
        1 => Err(Error::data(format!("{} has 1 fault", found.dataset)).into()),
        many => Err(Error::data(format!("{} has {many} faults", found.dataset)).into()),
    }
}

fn text(found: &Verified) -> String {
    let mut lines = vec![format!(
        "{}: {} images with masks{}",
        found.dataset,
        found.samples,
        counts(found)
    )];
    let faults = found.faults.iter().take(SHOWN);
    lines.extend(faults.map(|fault| format!("{}: {}", fault.id, fault.error)));
    let more = found.faults.len().saturating_sub(SHOWN);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines.push(format!("SHA-256 of the listing  {}", found.listing_sha256));
    lines.push(format!("SHA-256 of the files    {}", found.files_sha256));
    match &found.published {
        None => lines.push("the plugin does not state what was published".to_owned()),
        Some(published) => {
            lines.push(format!(
                "published: {} images{}, {}",
                published.samples,
                published
                    .groups
                    .map_or_else(String::new, |n| format!(" in {n} groups")),
                published.homepage
            ));
            lines.push(format!("terms: {}", published.terms));
        }
    }
    lines.join("\n")
}

/// Groups and parts, where there are any.
fn counts(found: &Verified) -> String {
    let groups = (found.groups > 0).then(|| format!(" in {} groups", found.groups));
    let parts = found
        .parts
        .iter()
        .map(|(part, count)| format!(", {count} {part}"));
    groups.into_iter().chain(parts).collect()
}
