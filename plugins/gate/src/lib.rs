//! The validators `iou` and `accept-all`.
//!
//! `iou` is the paper's gate (its Eq. 14): a segmenter looks at the painted image, and the
//! intersection over union of what it finds and what was asked for must be strictly above a
//! threshold. `accept-all` is the ablation without a gate.

use diffaug::{Class, metrics::Confusion, prelude::*};
use serde::Serialize;

/// Options of the validator `iou`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct IouOptions {
    /// A candidate passes when its IoU is strictly above this, 0 to 1 (1 itself excluded).
    pub threshold: f64,
    /// Labels that must each pass; without it, every label of the wanted mask.
    pub classes: Option<Vec<u8>>,
}

impl Default for IouOptions {
    fn default() -> Self {
        IouOptions {
            threshold: 0.7,
            classes: None,
        }
    }
}

/// Accepts a candidate when a segmenter finds the lesion where it was asked for.
pub struct Iou(IouOptions);

impl FromConfig for Iou {
    type Config = IouOptions;

    fn validate(options: &IouOptions) -> Result<()> {
        let threshold = options.threshold;
        if !(0.0..1.0).contains(&threshold) {
            return Err(Error::config(format!(
                "`threshold` is {threshold}, expected at least 0 and below 1"
            ))
            .at("threshold"));
        }
        match options.classes.as_deref() {
            Some([]) => Err(Error::config("`classes` is empty, expected labels").at("classes")),
            Some(labels) if labels.contains(&0) => {
                Err(Error::config("`classes` names 0, which is background").at("classes"))
            }
            _ => Ok(()),
        }
    }

    fn from_config(options: IouOptions, _: &Context) -> Result<Self> {
        Ok(Iou(options))
    }
}

impl Validator for Iou {
    fn judge(
        &self,
        candidates: RSlice<'_, Candidate<'_>>,
        segmenter: &BoxSegmenter,
        reporter: &Reporter<'_>,
    ) -> Result<RVec<Verdict>> {
        let known: Vec<Class> = segmenter.classes()?.into_iter().collect();
        let labels: Vec<Vec<u8>> = candidates
            .iter()
            .map(|candidate| self.labels(candidate, &known))
            .collect::<Result<_>>()?;
        let images: Vec<ImageRef<'_>> = candidates.iter().map(|c| c.image).collect();
        let found = segmenter.segment(images.as_slice().into(), reporter)?;
        if found.len() != candidates.len() {
            return Err(Error::internal(format!(
                "the segmenter gave {} answers for {} candidates",
                found.len(),
                candidates.len()
            )));
        }
        candidates
            .iter()
            .zip(&labels)
            .zip(&found)
            .map(|((candidate, labels), found)| self.verdict(candidate, labels, &found.mask))
            .collect()
    }
}

impl Iou {
    /// The labels to compare, after checking that the comparison makes sense.
    fn labels(&self, candidate: &Candidate<'_>, known: &[Class]) -> Result<Vec<u8>> {
        let Candidate { id, image, mask } = candidate;
        if image.size() != mask.size() {
            return Err(Error::data(format!(
                "candidate `{id}`: the wanted mask is {}x{}, but the image is {}x{}",
                mask.width(),
                mask.height(),
                image.width(),
                image.height()
            )));
        }
        let wanted = mask.classes();
        if wanted.is_empty() {
            return Err(Error::data(format!(
                "candidate `{id}`: the wanted mask is empty, so there is nothing to compare"
            )));
        }
        let labels = self.0.classes.clone().unwrap_or(wanted);
        let unknown = labels
            .iter()
            .find(|&&label| !known.iter().any(|class| class.label == label));
        match unknown {
            Some(label) => Err(Error::config(format!(
                "candidate `{id}`: label {label} is to be compared, but the segmenter finds {}",
                names(known)
            ))),
            None => Ok(labels),
        }
    }

    fn verdict(&self, candidate: &Candidate<'_>, labels: &[u8], found: &Mask) -> Result<Verdict> {
        let (wanted, threshold) = (candidate.mask, self.0.threshold);
        if found.size() != wanted.size() {
            return Err(Error::internal(format!(
                "candidate `{}`: the segmenter answered {}x{} for an image of {}x{}",
                candidate.id,
                found.width(),
                found.height(),
                wanted.width(),
                wanted.height()
            )));
        }
        let each: Vec<(u8, f64)> = labels
            .iter()
            .map(|&label| Ok((label, Confusion::of(wanted, found.view(), &[label])?.iou())))
            .collect::<Result<_>>()?;
        // The worst class decides: a candidate must be right in all of them.
        let (worst, score) = each
            .iter()
            .copied()
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .ok_or_else(|| Error::internal("no label to compare"))?;
        let accepted = score > threshold;
        let whole = Confusion::of(wanted, found.view(), labels)?;
        let mut measures = Attributes::new();
        measures.set_number("iou", whole.iou());
        measures.set_number("dice", whole.dice());
        let predicted = whole.true_positive + whole.false_positive;
        measures.set_number("area", predicted as f64 / found.labels().len() as f64);
        if each.len() > 1 {
            for (label, iou) in &each {
                measures.set_number(&format!("iou_{label}"), *iou);
            }
        }
        let reason = match (accepted, each.len()) {
            (true, _) => String::new(),
            (false, 1) => format!("IoU {score:.2} is not above {threshold:.2}"),
            (false, _) => format!("IoU {score:.2} of label {worst} is not above {threshold:.2}"),
        };
        Ok(Verdict {
            accepted,
            score,
            reason: reason.into(),
            measures,
        })
    }
}

fn names(classes: &[Class]) -> String {
    if classes.is_empty() {
        return "no class yet".into();
    }
    let names = classes
        .iter()
        .map(|c| format!("{} (`{}`)", c.label, c.name));
    names.collect::<Vec<_>>().join(", ")
}

/// Options of the validator `accept-all`: there are none.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptAllOptions {}

/// Accepts everything.
pub struct AcceptAll;

impl FromConfig for AcceptAll {
    type Config = AcceptAllOptions;

    fn from_config(_: AcceptAllOptions, _: &Context) -> Result<Self> {
        Ok(AcceptAll)
    }
}

impl Validator for AcceptAll {
    fn needs_segmenter(&self) -> Result<bool> {
        Ok(false)
    }

    fn judge(
        &self,
        candidates: RSlice<'_, Candidate<'_>>,
        _: &BoxSegmenter,
        _: &Reporter<'_>,
    ) -> Result<RVec<Verdict>> {
        let accept = |_| Verdict {
            accepted: true,
            score: 1.0,
            reason: RString::new(),
            measures: Attributes::new(),
        };
        Ok(candidates.iter().map(accept).collect())
    }
}

diffaug::export_plugin! {
    validator "iou" => Iou, "accepts when a segmenter finds the lesion where it was asked for";
    validator "accept-all" => AcceptAll, "accepts everything"
}

#[cfg(test)]
mod tests;
