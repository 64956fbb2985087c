//! What the script of a page knows of candidates: their cards, as JSON.

use crate::html::plain;
use diffaug::Result;
use diffaug_run::work::record::Record;
use serde::Serialize;
use std::borrow::Cow;

/// A candidate that was painted, as the script takes it.
#[derive(Serialize)]
pub struct Card<'a> {
    /// Position in the run's order.
    pub index: u64,
    /// The candidate.
    pub id: Cow<'a, str>,
    /// `accepted`, `rejected`, or `given up` where it was not finished.
    pub verdict: &'static str,
    /// The validator's figure; of what was given up, that of the preview. `None` where it is no number.
    pub score: Option<f64>,
    /// What the figure had to be above; `None` where no limit decided on a finished image.
    pub limit: Option<f64>,
    /// Whether no other limit would let it pass.
    pub fails_otherwise: bool,
    /// Further measurements of the validator that are numbers.
    pub measures: Vec<(Cow<'a, str>, f64)>,
    /// What was to be painted.
    pub prompt: Cow<'a, str>,
    /// Properties that the prompt speaks of.
    pub tags: Vec<Cow<'a, str>>,
    /// Share of the image that the wanted lesion covers, in words.
    pub size: &'a str,
    /// Seed of the generator, as text: a script's numbers have 53 bits.
    pub seed: String,
    /// Why it was turned down.
    pub reason: Cow<'a, str>,
    /// Address of its small picture; `None` where there is none.
    pub picture: Option<String>,
}

impl<'a> Card<'a> {
    /// The card of a record; `None` where nothing was painted.
    pub fn of(record: &'a Record, picture: impl FnOnce(u64) -> Option<String>) -> Option<Self> {
        if !record.painted() {
            return None;
        }
        let measures = record.measures.iter();
        let measures = measures.filter_map(|(name, value)| Some((plain(name), value.as_f64()?)));
        Some(Card {
            index: record.index,
            id: plain(&record.id),
            verdict: match (record.file_name.is_some(), record.given_up) {
                (true, _) => "accepted",
                (false, true) => "given up",
                (false, false) => "rejected",
            },
            score: record.score.is_finite().then_some(record.score),
            limit: record.limit.filter(|_| !record.given_up),
            fails_otherwise: record.fails_otherwise,
            measures: measures.collect(),
            prompt: plain(&record.prompt),
            tags: record.tags.iter().map(|tag| plain(tag)).collect(),
            size: record.size.as_deref().unwrap_or_default(),
            seed: record.seed.to_string(),
            reason: plain(&record.reason),
            picture: picture(record.index),
        })
    }
}

/// A value as JSON that may stand in a `script` element: no text in it ends the element or opens a comment.
///
/// # Errors
/// When the value cannot be serialised.
pub fn script_json(value: &impl Serialize) -> Result<String> {
    let json = serde_json::to_string(value)?;
    Ok(json.replace('<', "\\u003c").replace('>', "\\u003e"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::DatasetInfo;
    use diffaug_run::work::record::Tally;
    use serde_json::{Value, json};

    fn record(index: u64, score: f64, more: &Value) -> Record {
        let mut line = json!({
            "file_name": (score > 0.7).then(|| format!("images/{index:06}.png")),
            "id": format!("a/{index}"), "index": index, "source": "a", "variant": 0,
            "score": score, "limit": 0.7, "seed": u64::MAX, "size": "2 to 10 %",
            "measures": {"iou": score, "note": "text"},
        });
        let fields = line.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        serde_json::from_value(line).unwrap()
    }

    /// The rule by which the script tells what another limit would come to.
    fn passes(card: &Card<'_>, limit: f64) -> bool {
        card.limit.is_some()
            && card.score.is_some_and(|score| score > limit)
            && !card.fails_otherwise
    }

    #[test]
    fn other_thresholds_pass_as_many_as_the_sweep_of_a_run() {
        let mut records: Vec<Record> = (0..40)
            .map(|index| record(index, (index * 7 % 40) as f64 / 40.0, &json!({})))
            .collect();
        records.push(record(
            40,
            0.95,
            &json!({"fails_otherwise": true, "file_name": null}),
        ));
        records.push(record(
            41,
            0.9,
            &json!({"given_up": true, "file_name": null}),
        ));
        records.push(record(42, 0.9, &json!({"limit": null})));
        let mut tally = Tally::new(&DatasetInfo::single_class("d", "polyp"), None);
        records.iter().for_each(|record| tally.add(record));
        let sweep = tally.summary(9).sweep;
        assert_eq!(sweep.len(), 9);
        let cards: Vec<Card<'_>> = records
            .iter()
            .filter_map(|record| Card::of(record, |_| None))
            .collect();
        for row in sweep {
            let passing = cards.iter().filter(|card| passes(card, row.threshold));
            assert_eq!(passing.count() as u64, row.accepted, "{}", row.threshold);
        }
    }

    #[test]
    fn a_card_says_what_became_of_a_candidate() {
        let all = [
            record(0, 0.9, &json!({})),
            record(1, 0.2, &json!({})),
            record(2, 0.2, &json!({"given_up": true})),
            record(3, 0.0, &json!({"skipped": true})),
        ];
        let verdict = |record| Card::of(record, |_| None).map(|card| card.verdict);
        let verdicts: Vec<Option<&str>> = all.iter().map(verdict).collect();
        let expected = [Some("accepted"), Some("rejected"), Some("given up"), None];
        assert_eq!(verdicts, expected);
        let card = Card::of(&all[0], |index| Some(index.to_string())).unwrap();
        let json = serde_json::to_value(&card).unwrap();
        assert_eq!(json["seed"], "18446744073709551615");
        assert_eq!(json["measures"], json!([["iou", 0.9]]));
        assert_eq!(json["picture"], "0");
    }

    #[test]
    fn no_text_leaves_its_script() {
        let hostile = "</script><!--<script>alert(1)</script>\u{2028}\u{202e}";
        let record = record(0, 0.9, &json!({"prompt": hostile, "tags": [hostile]}));
        let card = Card::of(&record, |_| None).unwrap();
        let text = script_json(&card).unwrap();
        assert!(!text.contains(['<', '>', '\u{2028}', '\u{202e}']), "{text}");
        let back: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            back["prompt"],
            "</script><!--<script>alert(1)</script>\\u{2028}\\u{202e}"
        );
    }
}
