//! The validators `iou`, `ensemble` and `accept-all`.
//!
//! `iou` is the paper's gate (its Eq. 14): a segmenter looks at the painted image, and the
//! intersection over union of what it finds and what was asked for must be strictly above a
//! threshold. `ensemble` asks several segmenters, of whom enough must agree. `accept-all` is the
//! ablation without a gate.

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
        segmenters: RSlice<'_, BoxSegmenter>,
        reporter: &Reporter<'_>,
    ) -> Result<RVec<Verdict>> {
        let labels = self.0.classes.as_deref();
        let found = compare(&candidates, segmenters.as_slice(), labels, reporter)?;
        Ok(found.iter().map(|each| self.verdict(&each[0])).collect())
    }
}

/// How well what a segmenter finds matches what was asked for.
#[derive(Debug)]
struct Match {
    /// IoU of each label.
    each: Vec<(u8, f64)>,
    /// All labels together.
    whole: Confusion,
    /// Share of the image that was found.
    area: f64,
    /// What was found.
    found: Mask,
}

impl Match {
    fn new(candidate: &Candidate<'_>, labels: &[u8], found: Mask) -> Result<Self> {
        let wanted = candidate.mask;
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
        let each = labels
            .iter()
            .map(|&label| Ok((label, Confusion::of(wanted, found.view(), &[label])?.iou())))
            .collect::<Result<_>>()?;
        let whole = Confusion::of(wanted, found.view(), labels)?;
        let area = whole.true_positive + whole.false_positive;
        Ok(Match {
            each,
            area: area as f64 / found.labels().len() as f64,
            whole,
            found,
        })
    }

    /// The worst class decides: a candidate must be right in all of them.
    fn worst(&self) -> (u8, f64) {
        let worst = self.each.iter().copied();
        let worst = worst.min_by(|a, b| a.1.total_cmp(&b.1));
        worst.unwrap_or((0, 0.0))
    }
}

/// What each of `segmenters` finds of each candidate; `labels` are to be compared, or those that are
/// wanted.
fn compare(
    candidates: &[Candidate<'_>],
    segmenters: &[BoxSegmenter],
    labels: Option<&[u8]>,
    reporter: &Reporter<'_>,
) -> Result<Vec<Vec<Match>>> {
    if segmenters.is_empty() {
        return Err(Error::internal("the validator was given no segmenter"));
    }
    let images: Vec<ImageRef<'_>> = candidates.iter().map(|c| c.image).collect();
    let mut all: Vec<Vec<Match>> = candidates.iter().map(|_| Vec::new()).collect();
    for segmenter in segmenters {
        let known: Vec<Class> = segmenter.classes()?.into_iter().collect();
        let compared: Vec<Vec<u8>> = candidates
            .iter()
            .map(|candidate| compared(candidate, labels, &known))
            .collect::<Result<_>>()?;
        let found = segmenter.segment(images.as_slice().into(), reporter)?;
        if found.len() != candidates.len() {
            return Err(Error::internal(format!(
                "the segmenter gave {} answers for {} candidates",
                found.len(),
                candidates.len()
            )));
        }
        let answers = candidates.iter().zip(&compared).zip(found);
        for (all, ((candidate, labels), found)) in all.iter_mut().zip(answers) {
            check_numbers(candidate, &found)?;
            all.push(Match::new(candidate, labels, found.mask)?);
        }
    }
    Ok(all)
}

/// Checks that a segmenter was able to say how probable its answer is: one that was not judges nothing.
fn check_numbers(candidate: &Candidate<'_>, found: &Segmentation) -> Result<()> {
    match found.probability.iter().position(|p| !p.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::model(format!(
            "candidate `{}` cannot be judged: the segmenter's probability at pixel {at} is {}: its weights are broken",
            candidate.id, found.probability[at]
        ))),
    }
}

/// The labels to compare, after checking that the comparison makes sense.
fn compared(candidate: &Candidate<'_>, labels: Option<&[u8]>, known: &[Class]) -> Result<Vec<u8>> {
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
    let labels = labels.map_or(wanted, <[u8]>::to_vec);
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

impl Iou {
    fn verdict(&self, found: &Match) -> Verdict {
        let threshold = self.0.threshold;
        let (worst, score) = found.worst();
        let accepted = score > threshold;
        let mut measures = Attributes::new();
        measures.set_number("iou", found.whole.iou());
        measures.set_number("dice", found.whole.dice());
        measures.set_number("area", found.area);
        if found.each.len() > 1 {
            for (label, iou) in &found.each {
                measures.set_number(&format!("iou_{label}"), *iou);
            }
        }
        let reason = match (accepted, found.each.len()) {
            (true, _) => String::new(),
            (false, 1) => format!("IoU {score:.2} is not above {threshold:.2}"),
            (false, _) => format!("IoU {score:.2} of label {worst} is not above {threshold:.2}"),
        };
        Verdict {
            accepted,
            score,
            reason: reason.into(),
            measures,
        }
    }
}

/// Options of the validator `ensemble`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct EnsembleOptions {
    /// How many segmenters are asked, alike but for their seeds.
    pub members: u32,
    /// How many of them must find the lesion; without it, more than half.
    pub agree: Option<u32>,
    /// A member finds the lesion when its IoU is strictly above this, 0 to 1 (1 itself excluded).
    pub threshold: f64,
    /// Labels that must each be found; without it, every label of the wanted mask.
    pub classes: Option<Vec<u8>>,
}

impl Default for EnsembleOptions {
    fn default() -> Self {
        EnsembleOptions {
            members: 3,
            agree: None,
            threshold: 0.7,
            classes: None,
        }
    }
}

impl EnsembleOptions {
    fn agree(&self) -> u32 {
        self.agree.unwrap_or(self.members / 2 + 1)
    }
}

/// Accepts a candidate when enough of several segmenters find the lesion where it was asked for.
pub struct Ensemble(EnsembleOptions);

impl FromConfig for Ensemble {
    type Config = EnsembleOptions;

    fn validate(options: &EnsembleOptions) -> Result<()> {
        if !(2..=64).contains(&options.members) {
            return Err(Error::config(format!(
                "`members` is {}, expected 2 to 64",
                options.members
            ))
            .at("members"));
        }
        if !(1..=options.members).contains(&options.agree()) {
            return Err(Error::config(format!(
                "`agree` is {}, expected 1 to `members`, {}",
                options.agree(),
                options.members
            ))
            .at("agree"));
        }
        let (threshold, classes) = (options.threshold, options.classes.clone());
        Iou::validate(&IouOptions { threshold, classes })
    }

    fn from_config(options: EnsembleOptions, _: &Context) -> Result<Self> {
        Ok(Ensemble(options))
    }
}

impl Validator for Ensemble {
    fn segmenters(&self) -> Result<u32> {
        Ok(self.0.members)
    }

    fn judge(
        &self,
        candidates: RSlice<'_, Candidate<'_>>,
        segmenters: RSlice<'_, BoxSegmenter>,
        reporter: &Reporter<'_>,
    ) -> Result<RVec<Verdict>> {
        let labels = self.0.classes.as_deref();
        let found = compare(&candidates, segmenters.as_slice(), labels, reporter)?;
        found.iter().map(|each| self.verdict(each)).collect()
    }
}

impl Ensemble {
    fn verdict(&self, members: &[Match]) -> Result<Verdict> {
        let (threshold, agree) = (self.0.threshold, self.0.agree() as usize);
        let mut scores: Vec<f64> = members.iter().map(|found| found.worst().1).collect();
        scores.sort_by(|a, b| b.total_cmp(a));
        // Above the threshold exactly when as many members as must agree are.
        let score = scores.get(agree - 1).copied().unwrap_or(0.0);
        let found = scores.iter().filter(|score| **score > threshold).count();
        let accepted = score > threshold;
        let mean =
            |of: &dyn Fn(&Match) -> f64| members.iter().map(of).sum::<f64>() / members.len() as f64;
        let mut measures = Attributes::new();
        measures.set_number("iou", mean(&|found| found.whole.iou()));
        measures.set_number("dice", mean(&|found| found.whole.dice()));
        measures.set_number("area", mean(&|found| found.area));
        measures.set_number("agreeing", found as f64);
        measures.set_number("agreement", agreement(members)?);
        if members[0].each.len() > 1 {
            for (place, (label, _)) in members[0].each.iter().enumerate() {
                measures.set_number(&format!("iou_{label}"), mean(&|found| found.each[place].1));
            }
        }
        let reason = match accepted {
            true => String::new(),
            false => format!(
                "{found} of {} segmenters find it with an IoU above {threshold:.2}, {agree} must",
                members.len()
            ),
        };
        Ok(Verdict {
            accepted,
            score,
            reason: reason.into(),
            measures,
        })
    }
}

/// Mean IoU of what any two members found, whatever was asked for.
fn agreement(members: &[Match]) -> Result<f64> {
    let mut all = Vec::new();
    for (i, a) in members.iter().enumerate() {
        for b in &members[i + 1..] {
            let labels: Vec<u8> = a.each.iter().map(|(label, _)| *label).collect();
            all.push(Confusion::of(a.found.view(), b.found.view(), &labels)?.iou());
        }
    }
    Ok(diffaug::metrics::mean(&all).unwrap_or(1.0))
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
    fn segmenters(&self) -> Result<u32> {
        Ok(0)
    }

    fn judge(
        &self,
        candidates: RSlice<'_, Candidate<'_>>,
        _: RSlice<'_, BoxSegmenter>,
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
    validator "ensemble" => Ensemble, "accepts when enough of several segmenters find the lesion";
    validator "accept-all" => AcceptAll, "accepts everything"
}

#[cfg(test)]
mod tests;
