//! Prompt banks `medical` and `basic`: texts that describe a lesion, and say no more of it than its data
//! carries; and `none`, which says nothing.
//!
//! `medical` composes texts from properties that clinicians grade (Paris, NICE and Kudo
//! classifications for polyps; cup-to-disc ratio, rim and disc signs for glaucoma); `basic` has a
//! handful of plain texts and serves as the ablation "without diverse prompts", `none` as that "without
//! text guidance". The words live in
//! `data/*.toml` with the conditions under which each is true: "large" is never said of a small
//! mask, "two polyps" only of two, "reddish" only of what is measured or stated to be so, "irregular
//! vessels" only where the dataset states them. A word whose condition speaks of an attribute that the
//! query lacks is not said.

#![forbid(unsafe_code)]

mod draw;
mod predicate;
mod topic;

use diffaug::prelude::*;
use draw::Deck;
use serde::Serialize;
use topic::{Template, Topic};

diffaug::export_plugin! {
    prompts "medical" => Medical, "composed clinical descriptions: size, shape, surface, vessels, colour; cup, rim, signs";
    prompts "basic" => Basic, "a few plain texts such as `a polyp`";
    prompts "none" => Silent, "no text at all: positive and negative are empty"
}

/// The options of both banks.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// What the texts speak of: `polyp`, `glaucoma` or `lesion`. Normally the name of the target
    /// class decides.
    #[serde(default)]
    pub topic: Option<String>,
    /// The negative prompt of every text, in place of the bank's own.
    #[serde(default)]
    pub negative: Option<String>,
}

/// Composed clinical descriptions.
pub struct Medical(Options);

/// A few plain texts.
pub struct Basic(Options);

/// No text at all.
pub struct Silent;

/// The bank without texts has no options.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoOptions {}

impl FromConfig for Silent {
    type Config = NoOptions;
    fn from_config(_: NoOptions, _: &Context) -> Result<Self> {
        Ok(Silent)
    }
}

impl PromptBank for Silent {
    fn draw(&self, queries: RSlice<'_, PromptQuery<'_>>, _: u64) -> Result<RVec<Prompt>> {
        let empty = Prompt {
            positive: RString::new(),
            negative: RString::new(),
            tags: RVec::new(),
        };
        Ok(vec![empty; queries.len()].into())
    }
}

fn validate(options: &Options) -> Result<()> {
    topic::topics()?;
    options
        .topic
        .as_deref()
        .map_or(Ok(()), |name| topic::named(name).map(drop))
}

macro_rules! bank {
    ($bank:ident, $templates:ident, opposites: $opposites:literal) => {
        impl FromConfig for $bank {
            type Config = Options;
            fn validate(options: &Options) -> Result<()> {
                validate(options)
            }
            fn from_config(options: Options, _: &Context) -> Result<Self> {
                Ok($bank(options))
            }
        }

        impl PromptBank for $bank {
            fn draw(
                &self,
                queries: RSlice<'_, PromptQuery<'_>>,
                seed: u64,
            ) -> Result<RVec<Prompt>> {
                draw(
                    &self.0,
                    |topic| &topic.$templates,
                    $opposites,
                    &queries,
                    seed,
                )
            }
        }
    };
}

// Opposites of what a text says go to its negative only where texts say much: `basic` is to differ
// from image to image as little as possible.
bank!(Medical, medical, opposites: true);
bank!(Basic, basic, opposites: false);

fn draw(
    options: &Options,
    templates: impl Fn(&'static Topic) -> &'static [Template],
    opposites: bool,
    queries: &[PromptQuery<'_>],
    seed: u64,
) -> Result<RVec<Prompt>> {
    let mut deck = Deck::default();
    let mut prompts = RVec::with_capacity(queries.len());
    for (index, query) in queries.iter().enumerate() {
        let topic = match &options.topic {
            Some(name) => topic::named(name)?,
            None => topic::of_target(&query.target)?,
        };
        let mut rng = diffaug::rng::stream(seed, "prompt", index as u64);
        let said = deck.draw(topic, templates(topic), query.attributes, &mut rng)?;
        let negative = match &options.negative {
            Some(text) => text.clone(),
            None => said.negative(topic, opposites),
        };
        prompts.push(Prompt {
            positive: said.text.into(),
            negative: negative.into(),
            tags: said.tags.into_iter().map(RString::from).collect(),
        });
    }
    Ok(prompts)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
