//! Draws texts that are true of a mask, without repeats as long as there are any left.

use crate::topic::{Part, Template, Topic, Value};
use diffaug::{Attributes, Error, Result, rng::Rng};
use rand::RngExt;
use std::collections::HashMap;

/// Random draws before the bank is searched from end to end for an unused text.
const TRIES: usize = 32;

/// A template with a word in every slot.
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) tags: Vec<String>,
    opposites: Vec<String>,
}

impl Said {
    /// The topic's negative, followed by the opposites of what the text says if these are wanted.
    pub(crate) fn negative(&self, topic: &Topic, opposites: bool) -> String {
        let mut phrases = topic.negative.clone();
        for phrase in self.opposites.iter().filter(|_| opposites) {
            if !phrases.contains(phrase) {
                phrases.push(phrase.clone());
            }
        }
        phrases.join(", ")
    }
}

/// The words that may stand in a slot: a value of its property, in one wording.
type Choices<'a> = Vec<(&'a Value, &'a str)>;

/// A template that is true of a mask, with what may stand in each of its slots.
struct Open<'a> {
    template: &'a Template,
    choices: Vec<Choices<'a>>,
}

impl<'a> Open<'a> {
    /// `None` if the template is untrue of the mask or one of its slots must stay empty.
    fn new(topic: &'a Topic, template: &'a Template, facts: &Attributes) -> Option<Self> {
        if !template.when.holds(facts) {
            return None;
        }
        let fill = |slot: &str| -> Option<Choices<'a>> {
            let values = topic.properties.get(slot)?;
            let words = |&i: &usize| {
                values[i]
                    .words
                    .iter()
                    .map(move |w| (&values[i], w.as_str()))
            };
            let choices: Choices<'a> = topic.allowed(slot, facts).iter().flat_map(words).collect();
            (!choices.is_empty()).then_some(choices)
        };
        let choices = template.slots().map(fill).collect::<Option<_>>()?;
        Some(Open { template, choices })
    }

    /// In how many ways the slots can be filled.
    fn combinations(&self) -> usize {
        self.choices.iter().map(Vec::len).product()
    }

    /// The `n`-th way to fill the slots: the digits of a number whose bases are the choices.
    fn pick(&self, mut n: usize) -> impl Iterator<Item = (&'a Value, &'a str)> {
        self.choices.iter().map(move |choices| {
            let pick = choices[n % choices.len()];
            n /= choices.len();
            pick
        })
    }

    fn text(&self, n: usize) -> String {
        let mut picked = self.pick(n);
        let parts = self.template.parts.iter().map(|part| match part {
            Part::Literal(text) => text.as_str(),
            Part::Slot(_) => picked.next().map_or("", |(_, word)| word),
        });
        parts.collect()
    }

    fn say(&self, n: usize) -> Said {
        let values = || self.pick(n).map(|(value, _)| value);
        Said {
            text: self.text(n),
            tags: self
                .template
                .tags
                .iter()
                .cloned()
                .chain(values().map(|v| v.tag.clone()))
                .collect(),
            opposites: values().flat_map(|v| v.negative.clone()).collect(),
        }
    }
}

/// Remembers how often each text was drawn.
#[derive(Default)]
pub(crate) struct Deck {
    used: HashMap<String, usize>,
}

impl Deck {
    /// Draws a text that is true of a mask with these facts: an unused one if there is any, else
    /// one of the least used.
    pub(crate) fn draw(
        &mut self,
        topic: &Topic,
        templates: &[Template],
        facts: &Attributes,
        rng: &mut Rng,
    ) -> Result<Said> {
        let open: Vec<Open<'_>> = templates
            .iter()
            .filter_map(|template| Open::new(topic, template, facts))
            .collect();
        if open.is_empty() {
            return Err(Error::internal(format!(
                "topic `{}` has no text for the mask",
                topic.name
            )));
        }
        let (template, n) = match self.unused_at_random(&open, rng) {
            Some(found) => found,
            None => self.least_used(&open, rng),
        };
        let said = open[template].say(n);
        *self.used.entry(said.text.clone()).or_default() += 1;
        Ok(said)
    }

    /// Every template is as likely as any other, however many texts it stands for: else the texts
    /// of the most prolific one would crowd out the rest.
    fn unused_at_random(&self, open: &[Open<'_>], rng: &mut Rng) -> Option<(usize, usize)> {
        (0..TRIES).find_map(|_| {
            let template = rng.random_range(0..open.len());
            let n = rng.random_range(0..open[template].combinations());
            let fresh = !self.used.contains_key(&open[template].text(n));
            fresh.then_some((template, n))
        })
    }

    /// Goes through every text once, beginning anywhere, and stops at the first unused one.
    fn least_used(&self, open: &[Open<'_>], rng: &mut Rng) -> (usize, usize) {
        let mut all: Vec<(usize, usize)> = (0..open.len())
            .flat_map(|t| (0..open[t].combinations()).map(move |n| (t, n)))
            .collect();
        let start = rng.random_range(0..all.len());
        all.rotate_left(start);
        let mut best = (usize::MAX, all[0]);
        for (t, n) in all {
            let uses = self.used.get(&open[t].text(n)).copied().unwrap_or(0);
            if uses < best.0 {
                best = (uses, (t, n));
            }
            if uses == 0 {
                break;
            }
        }
        best.1
    }
}
