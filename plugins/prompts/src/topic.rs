//! What can be said of one kind of lesion: the data files' format, its reading and its checking.
//!
//! A topic (`data/NAME.toml`) holds templates for each bank and the properties that fill their
//! slots. Every template and every property value says of which lesions it is true: through `when` and
//! `measured` by numbers, or through `stated` that it must come from the dataset. Nothing is said that
//! the data does not carry; a template with a slot that nothing fills is not drawn.
//!
//! A property shares its name with the text attribute by which a dataset may state it
//! (`morphology = "flat"`), and a value's tag with the flag by which it may be affirmed or denied
//! (`flat` = no). What a dataset states so is binding, and if no value matches it, nothing is said
//! of that property.

use crate::predicate::Predicate;
use diffaug::{AttributeKind, Attributes, Error, Result};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
};

/// Name and source of every topic, in the order in which a target is looked up.
const SOURCES: [(&str, &str); 3] = [
    ("polyp", include_str!("../data/polyp.toml")),
    ("glaucoma", include_str!("../data/glaucoma.toml")),
    ("lesion", include_str!("../data/lesion.toml")),
];

/// Everything that can be said of one kind of lesion.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Topic {
    #[serde(skip)]
    pub(crate) name: &'static str,
    /// Targets whose name contains one of these belong here.
    contains: Vec<String>,
    /// Targets with exactly one of these names belong here, too.
    #[serde(default)]
    names: Vec<String>,
    /// What no image of this topic should show.
    pub(crate) negative: Vec<String>,
    pub(crate) basic: Vec<Template>,
    pub(crate) medical: Vec<Template>,
    #[serde(rename = "property")]
    pub(crate) properties: BTreeMap<String, Vec<Value>>,
}

/// A text with slots: `{size} polyp with {surface} surface`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Template {
    pub(crate) text: String,
    /// Of which masks the text is true, slots aside.
    #[serde(default)]
    pub(crate) when: Predicate,
    /// What the text says beside its slots.
    #[serde(default)]
    pub(crate) tags: Vec<String>,
    /// `text` taken apart.
    #[serde(skip)]
    pub(crate) parts: Vec<Part>,
}

/// A piece of a template.
#[derive(Debug)]
pub(crate) enum Part {
    /// Stands in the text as it is.
    Literal(String),
    /// The name of the property that stands here.
    Slot(String),
}

/// One value of a property: `granular`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Value {
    /// Its name for machines.
    pub(crate) tag: String,
    /// Ways to say it; none means that the tag is the word.
    #[serde(default)]
    pub(crate) words: Vec<String>,
    /// Other names by which a dataset may state it.
    #[serde(default)]
    also: Vec<String>,
    /// Of which masks it is true, whatever the dataset states.
    #[serde(default)]
    when: Predicate,
    /// What measures must say before it is true; not asked where the dataset states the property.
    #[serde(default)]
    measured: Predicate,
    /// Whether it cannot be measured, and is said only where the dataset states the property.
    #[serde(default)]
    stated: bool,
    /// What an image with this value does not show.
    #[serde(default)]
    pub(crate) negative: Vec<String>,
}

impl Value {
    /// Why it can never be said, or might be said of anything.
    fn fault(&self) -> Option<String> {
        let always = self.when.is_empty() && self.measured.is_empty() && !self.stated;
        let anything = always.then(|| "nothing says of which lesions it is true".into());
        self.when
            .fault()
            .or_else(|| self.measured.fault())
            .or(anything)
    }

    /// `early_glaucoma`, `early-glaucoma` and `Early glaucoma` are the same name.
    fn is_called(&self, word: &str) -> bool {
        let plain = |name: &str| name.to_lowercase().replace(['_', '-'], " ");
        let word = plain(word);
        std::iter::once(&self.tag)
            .chain(&self.also)
            .any(|name| plain(name) == word)
    }
}

impl Template {
    /// The properties in the text, from left to right.
    pub(crate) fn slots(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Slot(name) => Some(name.as_str()),
            Part::Literal(_) => None,
        })
    }
}

impl Topic {
    fn parse(name: &'static str, source: &str) -> Result<Self, String> {
        let mut topic: Topic = toml::from_str(source).map_err(|e| e.to_string())?;
        topic.name = name;
        for template in topic.basic.iter_mut().chain(&mut topic.medical) {
            template.parts = parts(&template.text)?;
        }
        for value in topic.properties.values_mut().flatten() {
            if value.words.is_empty() {
                value.words.push(value.tag.clone());
            }
        }
        topic.check()?;
        Ok(topic)
    }

    /// Finds what is wrong with the data: unknown slots, conditions that cannot hold or are missing,
    /// words about a property outside its slot.
    fn check(&self) -> Result<(), String> {
        let mut tags = BTreeSet::new();
        for value in self.properties.values().flatten() {
            if !tags.insert(value.tag.as_str()) {
                return Err(format!("two values have the tag `{}`", value.tag));
            }
            if let Some(fault) = value.fault() {
                return Err(format!("value `{}`: {fault}", value.tag));
            }
        }
        for (bank, templates) in [("basic", &self.basic), ("medical", &self.medical)] {
            let nothing = Attributes::new();
            let plain = |t: &Template| t.slots().next().is_none() && t.when.holds(&nothing);
            if !templates.iter().any(plain) {
                return Err(format!("bank `{bank}` has no text for an unmeasured mask"));
            }
            for template in templates {
                self.check_template(template)
                    .map_err(|fault| format!("template `{}`: {fault}", template.text))?;
            }
        }
        Ok(())
    }

    fn check_template(&self, template: &Template) -> Result<(), String> {
        if let Some(fault) = template.when.fault() {
            return Err(fault);
        }
        if let Some(slot) = template
            .slots()
            .find(|slot| !self.properties.contains_key(*slot))
        {
            return Err(format!("no property `{slot}`"));
        }
        let literal = |part: &Part| match part {
            Part::Literal(text) => text
                .split(|c: char| !c.is_alphanumeric() && c != '-')
                .map(str::to_owned)
                .collect(),
            Part::Slot(_) => Vec::new(),
        };
        let loose: BTreeSet<String> = template.parts.iter().flat_map(literal).collect();
        match self
            .properties
            .values()
            .flatten()
            .find(|v| loose.contains(&v.tag))
        {
            Some(value) => Err(format!("says `{}` without asking for it", value.tag)),
            None => Ok(()),
        }
    }

    /// Whether a target of that name belongs here.
    fn covers(&self, target: &str) -> bool {
        let target = target.trim().to_lowercase().replace(['_', '-'], " ");
        self.contains
            .iter()
            .any(|part| target.contains(part.as_str()))
            || self.names.contains(&target)
    }

    /// The positions of the values of `property` that are true of a mask with these facts.
    pub(crate) fn allowed(&self, property: &str, facts: &Attributes) -> Vec<usize> {
        let values = self.properties.get(property).map_or(&[][..], Vec::as_slice);
        let stated = Stated::of(property, values, facts);
        (0..values.len())
            .filter(|&i| {
                let value = &values[i];
                value.when.holds(facts)
                    && stated.permits(value)
                    && (stated.affirms() || (!value.stated && value.measured.holds(facts)))
            })
            .collect()
    }
}

/// What a dataset states of one property.
struct Stated<'a> {
    word: Option<&'a str>,
    yes: Vec<&'a str>,
    no: Vec<&'a str>,
}

impl<'a> Stated<'a> {
    fn of(property: &str, values: &[Value], facts: &'a Attributes) -> Self {
        let flags = |wanted: f64| {
            facts
                .iter()
                .filter(|a| a.kind == AttributeKind::Flag && a.number == wanted)
                .map(|a| a.name.as_str())
                .filter(|name| values.iter().any(|v| v.is_called(name)))
                .collect()
        };
        Stated {
            word: facts.text(property),
            yes: flags(1.0),
            no: flags(0.0),
        }
    }

    fn permits(&self, value: &Value) -> bool {
        self.word.is_none_or(|word| value.is_called(word))
            && self.yes.iter().all(|flag| value.is_called(flag))
            && !self.no.iter().any(|flag| value.is_called(flag))
    }

    fn affirms(&self) -> bool {
        self.word.is_some() || !self.yes.is_empty()
    }
}

/// Takes `a {size} polyp` apart.
fn parts(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((literal, tail)) = rest.split_once('{') {
        let (slot, tail) = tail
            .split_once('}')
            .ok_or_else(|| format!("a brace is not closed in `{text}`"))?;
        parts.push(Part::Literal(literal.into()));
        parts.push(Part::Slot(slot.into()));
        rest = tail;
    }
    parts.push(Part::Literal(rest.into()));
    Ok(parts)
}

/// Every topic, read once.
pub(crate) fn topics() -> Result<&'static [Topic]> {
    static TOPICS: OnceLock<Result<Vec<Topic>, String>> = OnceLock::new();
    let read = || {
        SOURCES
            .iter()
            .map(|(name, source)| {
                Topic::parse(name, source).map_err(|fault| format!("topic `{name}`: {fault}"))
            })
            .collect()
    };
    match TOPICS.get_or_init(read) {
        Ok(topics) => Ok(topics),
        Err(fault) => Err(Error::internal(fault)),
    }
}

fn names(topics: &[Topic]) -> String {
    let names: Vec<String> = topics.iter().map(|t| format!("`{}`", t.name)).collect();
    names.join(", ")
}

/// The topic of that name.
pub(crate) fn named(name: &str) -> Result<&'static Topic> {
    let topics = topics()?;
    topics.iter().find(|t| t.name == name).ok_or_else(|| {
        Error::config(format!(
            "unknown topic `{name}`, expected one of {}",
            names(topics)
        ))
        .at("topic")
    })
}

/// The topic that a target class belongs to.
pub(crate) fn of_target(target: &str) -> Result<&'static Topic> {
    let topics = topics()?;
    topics.iter().find(|t| t.covers(target)).ok_or_else(|| {
        Error::config(format!(
            "no prompts for the target `{target}`: set `topic` to one of {}",
            names(topics)
        ))
        .at("topic")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_parses_and_checks() {
        let read: Vec<_> = topics().unwrap().iter().map(|t| t.name).collect();
        assert_eq!(read, ["polyp", "glaucoma", "lesion"]);
    }

    #[test]
    fn targets_find_their_topic() {
        for (target, topic) in [
            ("polyp", "polyp"),
            ("Colon_Polyps", "polyp"),
            ("optic cup", "glaucoma"),
            ("Optic-Disc", "glaucoma"),
            ("cup", "glaucoma"),
            ("skin lesion", "lesion"),
        ] {
            assert_eq!(of_target(target).unwrap().name, topic, "{target}");
        }
        let error = of_target("discoloured occupation").unwrap_err();
        assert_eq!(
            error.message,
            "no prompts for the target `discoloured occupation`: set `topic` to one of `polyp`, `glaucoma`, `lesion`"
        );
        assert_eq!(error.field, "topic");
    }

    const SOUND: &str = r#"
        contains = ["x"]
        negative = []
        basic = [{ text = "a thing" }]
        medical = [{ text = "a {hue} thing" }, { text = "some thing" }]
        [[property.hue]]
        tag = "red"
        stated = true
    "#;

    #[test]
    fn faults_in_the_data_are_found() {
        Topic::parse("x", SOUND).unwrap();
        for (from, to, fault) in [
            ("{hue}", "{size}", "no property `size`"),
            ("{hue}", "{hue", "not closed"),
            ("a thing", "a red thing", "says `red`"),
            ("tag =", "when = { area = {} }\n tag =", "needs `from`"),
            ("stated = true", "", "nothing says of which"),
            ("tag =", "tagg =", "unknown field `tagg`"),
            (
                "\"a thing\"",
                "\"a thing\", when = { count = 1 }",
                "unmeasured mask",
            ),
            ("a thing", "a {hue}", "unmeasured mask"),
        ] {
            let error = Topic::parse("x", &SOUND.replace(from, to)).unwrap_err();
            assert!(error.contains(fault), "{error}");
        }
    }

    fn tags(topic: &str, property: &str, facts: &Attributes) -> Vec<&'static str> {
        let topic = named(topic).unwrap();
        let values = &topic.properties[property];
        let allowed = topic.allowed(property, facts);
        allowed.iter().map(|&i| values[i].tag.as_str()).collect()
    }

    #[test]
    fn what_cannot_be_measured_is_said_where_the_dataset_states_it() {
        let mut facts = Attributes::new();
        facts.set_number("count", 1.0);
        facts.set_number("elongation", 1.05);
        assert!(tags("polyp", "morphology", &facts).is_empty());
        facts.set_text("morphology", "Pedunculated");
        assert_eq!(tags("polyp", "morphology", &facts), ["pedunculated"]);
        facts.set_text("morphology", "slightly elevated");
        assert_eq!(tags("polyp", "morphology", &facts), ["flat"]);
        facts.set_text("morphology", "serrated");
        assert!(tags("polyp", "morphology", &facts).is_empty());
    }

    #[test]
    fn statements_win_over_measures() {
        let mut facts = Attributes::new();
        facts.set_number("brightness", 150.0);
        facts.set_number("redness", 12.0);
        facts.set_number("contrast", 20.0);
        facts.set_number("detail_ratio", 0.5);
        assert_eq!(tags("polyp", "colour", &facts), ["reddish"]);
        assert_eq!(tags("polyp", "surface", &facts), ["smooth"]);
        facts.set_text("colour", "pale");
        facts.set_text("surface", "granular");
        assert_eq!(tags("polyp", "colour", &facts), ["pale"]);
        assert_eq!(tags("polyp", "surface", &facts), ["granular"]);
    }

    #[test]
    fn flags_affirm_and_deny() {
        let mut facts = Attributes::new();
        facts.set_number("count", 1.0);
        facts.set_number("elongation", 1.5);
        facts.set_flag("flat", false);
        // What a polyp is not does not tell what it is.
        assert!(tags("polyp", "morphology", &facts).is_empty());
        facts.set_flag("flat", true);
        assert_eq!(tags("polyp", "morphology", &facts), ["flat"]);
        facts.set_number("redness", 12.0);
        facts.set_flag("reddish", false);
        assert!(tags("polyp", "colour", &facts).is_empty());
        facts.set_number("area", 0.001);
        facts.set_flag("small", true);
        assert_eq!(tags("polyp", "size", &facts), ["diminutive"]);
        facts.set_number("area", 0.2);
        assert!(tags("polyp", "size", &facts).is_empty());
    }

    #[test]
    fn a_healthy_eye_is_not_called_ill() {
        let mut eye = Attributes::new();
        eye.set_number("cdr", 0.55);
        assert_eq!(tags("glaucoma", "stage", &eye), ["early-glaucoma"]);
        eye.set_flag("early_glaucoma", true);
        assert_eq!(tags("glaucoma", "stage", &eye), ["early-glaucoma"]);
        assert_eq!(tags("glaucoma", "cup", &eye), ["enlarged-cup"]);
        eye.set_flag("early_glaucoma", false);
        eye.set_flag("glaucoma", false);
        assert!(tags("glaucoma", "stage", &eye).is_empty());
        eye.set_text("sign", "disc-haemorrhage");
        assert!(tags("glaucoma", "sign", &eye).is_empty());
        eye.set_flag("glaucoma", true);
        assert_eq!(tags("glaucoma", "sign", &eye), ["disc-haemorrhage"]);
    }
}
