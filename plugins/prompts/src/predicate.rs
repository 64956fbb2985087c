//! What has to hold of a mask before a word may be said of it.

use diffaug::Attributes;
use serde::Deserialize;
use std::collections::BTreeMap;

/// A condition on one attribute.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Condition {
    /// A flag has this value.
    Flag(bool),
    /// A number has this value.
    Number(f64),
    /// A text attribute is this word, in whatever case.
    Word(String),
    /// A number lies in a half-open interval, so that neighbours neither overlap nor leave a gap.
    Range(Range),
}

/// `from <= x < below`; an absent end is open.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Range {
    from: Option<f64>,
    below: Option<f64>,
}

impl Condition {
    fn holds(&self, name: &str, facts: &Attributes) -> bool {
        match self {
            Condition::Flag(wanted) => facts.flag(name) == Some(*wanted),
            Condition::Number(wanted) => facts.number(name) == Some(*wanted),
            Condition::Word(wanted) => facts
                .text(name)
                .is_some_and(|word| word.eq_ignore_ascii_case(wanted)),
            Condition::Range(range) => facts.number(name).is_some_and(|x| range.contains(x)),
        }
    }

    /// Why no value at all can satisfy the condition, if so.
    fn fault(&self) -> Option<String> {
        match self {
            Condition::Range(Range {
                from: None,
                below: None,
            }) => Some("a range needs `from` or `below`".into()),
            Condition::Range(Range {
                from: Some(from),
                below: Some(below),
            }) if from >= below => Some(format!("the range from {from} to below {below} is empty")),
            _ => None,
        }
    }
}

impl Range {
    fn contains(&self, x: f64) -> bool {
        self.from.is_none_or(|from| x >= from) && self.below.is_none_or(|below| x < below)
    }
}

/// Conditions by attribute; all must hold. One about an attribute that nobody stated does not
/// hold: where the area is unknown, nothing is said of the size.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(crate) struct Predicate(BTreeMap<String, Condition>);

impl Predicate {
    pub(crate) fn holds(&self, facts: &Attributes) -> bool {
        self.0
            .iter()
            .all(|(name, condition)| condition.holds(name, facts))
    }

    /// Whether it asks nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Why the predicate can never hold, if so.
    pub(crate) fn fault(&self) -> Option<String> {
        self.0
            .iter()
            .find_map(|(name, condition)| Some(format!("`{name}`: {}", condition.fault()?)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn predicate(text: &str) -> Predicate {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn ranges_are_half_open_and_absent_facts_satisfy_nothing() {
        let small = predicate("area = { from = 0.005, below = 0.02 }");
        let mut facts = Attributes::new();
        assert!(!small.holds(&facts));
        for (area, expected) in [(0.004, false), (0.005, true), (0.019, true), (0.02, false)] {
            facts.set_number("area", area);
            assert_eq!(small.holds(&facts), expected, "{area}");
        }
        facts.set_number("area", f64::NAN);
        assert!(!small.holds(&facts));
        facts.set_text("area", "0.01");
        assert!(!small.holds(&facts));
    }

    #[test]
    fn all_conditions_must_hold() {
        let both = predicate("count = 2\nshape = \"Round\"\nflat = false");
        let mut facts = Attributes::new();
        facts.set_number("count", 2.0);
        facts.set_text("shape", "round");
        assert!(!both.holds(&facts));
        facts.set_flag("flat", false);
        assert!(both.holds(&facts));
        facts.set_number("count", 3.0);
        assert!(!both.holds(&facts));
    }

    #[test]
    fn impossible_ranges_are_found() {
        assert!(
            predicate("area = { from = 0.2, below = 0.2 }")
                .fault()
                .is_some()
        );
        assert!(predicate("area = {}").fault().is_some());
        assert!(predicate("area = { below = 0.2 }").fault().is_none());
        assert!(toml::from_str::<Predicate>("area = { above = 0.2 }").is_err());
    }
}
