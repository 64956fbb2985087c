//! The validators `iou`, `ensemble` and `accept-all`.
//!
//! `iou` is the paper's gate (its Eq. 14): a segmenter looks at the painted image, and the
//! intersection over union of what it finds and what was asked for must be strictly above a
//! threshold. `ensemble` asks several segmenters, of whom enough must agree. `accept-all` is the
//! ablation without a gate.
//!
//! Small lesions may have a threshold of their own and a border that does not count; and a lesion may
//! have to be as rough as what surrounds it, which no segmenter minds.

#![forbid(unsafe_code)]

mod rules;

use diffaug::{Class, metrics::Confusion, prelude::*};
use rules::{BySize, Rules, Terms, tolerant_iou};
use serde::Serialize;

/// Options of the validator `iou`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct IouOptions {
    /// A candidate passes when its IoU is strictly above this, 0 to 1 (1 itself excluded).
    pub threshold: f64,
    /// Labels that must each pass; without it, every label of the wanted mask.
    pub classes: Option<Vec<u8>>,
    /// Thresholds for small lesions, the smallest first: `[{ below = 0.01, threshold = 0.5 }]` is for
    /// those that cover less than 1 % of the image. The first that fits counts, else `threshold`.
    pub by_size: Vec<BySize>,
    /// Width, in pixels of the image, of the band on either side of the wanted border that does not count
    /// for small lesions, in rows and columns; less where it would leave nothing of a lesion. 0 is none.
    pub tolerance: u32,
    /// Lesions that cover less than this share of the image are small for `tolerance`.
    pub tolerant_below: f64,
    /// Least ratio of the fine detail inside the lesion to that of the ring around it; a painted
    /// lesion that is smoother is turned down. Without it detail is not looked at.
    pub detail: Option<f64>,
}

impl Default for IouOptions {
    fn default() -> Self {
        IouOptions {
            threshold: 0.7,
            classes: None,
            by_size: Vec::new(),
            tolerance: 0,
            tolerant_below: 0.02,
            detail: None,
        }
    }
}

impl IouOptions {
    fn rules(&self) -> Rules<'_> {
        Rules {
            threshold: self.threshold,
            by_size: &self.by_size,
            tolerance: self.tolerance,
            tolerant_below: self.tolerant_below,
            detail: self.detail,
        }
    }
}

/// Checks the labels of the option `classes`.
fn check_classes(classes: Option<&[u8]>) -> Result<()> {
    match classes {
        Some([]) => Err(Error::config("`classes` is empty, expected labels").at("classes")),
        Some(labels) if labels.contains(&0) => {
            Err(Error::config("`classes` names 0, which is background").at("classes"))
        }
        _ => Ok(()),
    }
}

/// Accepts a candidate when a segmenter finds the lesion where it was asked for.
pub struct Iou(IouOptions);

impl FromConfig for Iou {
    type Config = IouOptions;

    fn validate(options: &IouOptions) -> Result<()> {
        options.rules().check()?;
        check_classes(options.classes.as_deref())
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
        let rules = self.0.rules();
        let found = compare(&candidates, segmenters.as_slice(), labels, &rules, reporter)?;
        let answers = candidates.iter().zip(&found);
        Ok(answers
            .map(|(candidate, each)| {
                rules.rough_enough(candidate, &each[0].labels(), self.verdict(&each[0]))
            })
            .collect())
    }
}

/// How well what a segmenter finds matches what was asked for.
#[derive(Debug)]
struct Match {
    /// IoU of each label, without what is tolerated.
    each: Vec<(u8, f64)>,
    /// What counts for a lesion of this size.
    terms: Terms,
    /// All labels together.
    whole: Confusion,
    /// Share of the image that was found.
    area: f64,
    /// What was found.
    found: Mask,
}

impl Match {
    fn new(
        candidate: &Candidate<'_>,
        labels: &[u8],
        found: Mask,
        rules: &Rules<'_>,
    ) -> Result<Self> {
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
        let whole = Confusion::of(wanted, found.view(), labels)?;
        let share = |pixels: u64| pixels as f64 / found.labels().len() as f64;
        let terms = rules.terms(share(whole.true_positive + whole.false_negative));
        let iou = |label: u8| -> Result<f64> {
            match terms.tolerance {
                0 => Ok(Confusion::of(wanted, found.view(), &[label])?.iou()),
                tolerance => Ok(tolerant_iou(wanted, found.view(), label, tolerance)),
            }
        };
        let each = labels.iter().map(|&label| Ok((label, iou(label)?)));
        let each = each.collect::<Result<_>>()?;
        Ok(Match {
            each,
            terms,
            area: share(whole.true_positive + whole.false_positive),
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

    /// What was compared.
    fn labels(&self) -> Vec<u8> {
        self.each.iter().map(|(label, _)| *label).collect()
    }
}

impl Rules<'_> {
    /// `verdict` on `candidate`, turned down where the lesion is too smooth. Its score stays.
    fn rough_enough(&self, candidate: &Candidate<'_>, labels: &[u8], verdict: Verdict) -> Verdict {
        let Some((ratio, wrong)) = self.detail(candidate, labels) else {
            return verdict;
        };
        let mut verdict = verdict;
        verdict.measures.set_number("detail_ratio", ratio);
        if let Some(wrong) = wrong {
            verdict.fails_otherwise = true;
            if verdict.accepted {
                verdict.accepted = false;
                verdict.reason = wrong.into();
            }
        }
        verdict
    }
}

/// What each of `segmenters` finds of each candidate; `labels` are to be compared, or those that are
/// wanted.
fn compare(
    candidates: &[Candidate<'_>],
    segmenters: &[BoxSegmenter],
    labels: Option<&[u8]>,
    rules: &Rules<'_>,
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
            all.push(Match::new(candidate, labels, found.mask, rules)?);
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
        let (worst, score) = found.worst();
        let accepted = score > found.terms.threshold;
        let mut measures = Attributes::new();
        measures.set_number("iou", found.whole.iou());
        measures.set_number("dice", found.whole.dice());
        measures.set_number("area", found.area);
        let threshold = found.terms.words();
        let reason = match (accepted, found.each.len()) {
            (true, _) => String::new(),
            (false, 1) => format!("IoU {score:.2} is not above {threshold}"),
            (false, _) => format!("IoU {score:.2} of label {worst} is not above {threshold}"),
        };
        let each = found.each.iter();
        let classes = each.map(|&(label, score)| ClassScore { label, score });
        Verdict {
            accepted,
            score,
            limit: RSome(found.terms.threshold),
            fails_otherwise: false,
            classes: classes.collect(),
            reason: reason.into(),
            measures,
            found: RSome(found.found.clone()),
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
    /// Thresholds for small lesions, the smallest first: `[{ below = 0.01, threshold = 0.5 }]` is for
    /// those that cover less than 1 % of the image. The first that fits counts, else `threshold`.
    pub by_size: Vec<BySize>,
    /// Width, in pixels of the image, of the band on either side of the wanted border that does not count
    /// for small lesions, in rows and columns; less where it would leave nothing of a lesion. 0 is none.
    pub tolerance: u32,
    /// Lesions that cover less than this share of the image are small for `tolerance`.
    pub tolerant_below: f64,
    /// Least ratio of the fine detail inside the lesion to that of the ring around it; a painted
    /// lesion that is smoother is turned down. Without it detail is not looked at.
    pub detail: Option<f64>,
}

impl Default for EnsembleOptions {
    fn default() -> Self {
        EnsembleOptions {
            members: 3,
            agree: None,
            threshold: 0.7,
            classes: None,
            by_size: Vec::new(),
            tolerance: 0,
            tolerant_below: 0.02,
            detail: None,
        }
    }
}

impl EnsembleOptions {
    fn agree(&self) -> u32 {
        self.agree.unwrap_or(self.members / 2 + 1)
    }

    fn rules(&self) -> Rules<'_> {
        Rules {
            threshold: self.threshold,
            by_size: &self.by_size,
            tolerance: self.tolerance,
            tolerant_below: self.tolerant_below,
            detail: self.detail,
        }
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
        options.rules().check()?;
        check_classes(options.classes.as_deref())
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
        let rules = self.0.rules();
        let found = compare(&candidates, segmenters.as_slice(), labels, &rules, reporter)?;
        let answers = candidates.iter().zip(&found);
        answers
            .map(|(candidate, each)| {
                let verdict = self.verdict(each)?;
                Ok(rules.rough_enough(candidate, &each[0].labels(), verdict))
            })
            .collect()
    }
}

impl Ensemble {
    fn verdict(&self, members: &[Match]) -> Result<Verdict> {
        let (terms, agree) = (members[0].terms, self.0.agree() as usize);
        let threshold = terms.threshold;
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
        let each = members[0].each.iter().enumerate();
        let classes = each.map(|(place, &(label, _))| ClassScore {
            label,
            score: mean(&|found| found.each[place].1),
        });
        let reason = match accepted {
            true => String::new(),
            false => format!(
                "{found} of {} segmenters find it with an IoU above {}, {agree} must",
                members.len(),
                terms.words()
            ),
        };
        Ok(Verdict {
            accepted,
            score,
            limit: RSome(threshold),
            fails_otherwise: false,
            classes: classes.collect(),
            reason: reason.into(),
            measures,
            found: RSome(members[0].found.clone()),
        })
    }
}

/// Mean IoU of what any two members found, whatever was asked for.
fn agreement(members: &[Match]) -> Result<f64> {
    let mut all = Vec::new();
    for (i, a) in members.iter().enumerate() {
        for b in &members[i + 1..] {
            all.push(Confusion::of(a.found.view(), b.found.view(), &a.labels())?.iou());
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
            limit: RNone,
            fails_otherwise: false,
            classes: RVec::new(),
            reason: RString::new(),
            measures: Attributes::new(),
            found: RNone,
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
