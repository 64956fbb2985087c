//! Texts for training pictures.

use diffaug::{
    BoxPromptBank, Class, DatasetInfo, Error, PromptBank, PromptQuery, Result, Sample, rng,
};
use rand::RngExt;

/// Draws texts that are true of a sample.
pub struct Prompts<'a> {
    /// Where they come from.
    pub bank: &'a BoxPromptBank,
    /// The target classes, lowest label first.
    pub targets: Vec<Class>,
    /// How often a text is left out.
    pub dropout: f64,
    /// Of the draws.
    pub seed: u64,
}

impl<'a> Prompts<'a> {
    /// Texts for the targets of a dataset.
    pub fn new(bank: &'a BoxPromptBank, info: &DatasetInfo, dropout: f64, seed: u64) -> Self {
        let mut targets: Vec<Class> = info.classes.iter().filter(|c| c.target).cloned().collect();
        targets.sort_by_key(|class| class.label);
        Prompts {
            bank,
            targets,
            dropout,
            seed,
        }
    }

    /// The text for a sample when its lesion is painted: what it shows if `shown`, else what the
    /// bank says is to be avoided, which is how the picture looks without one; empty for draws
    /// that leave it out. `index` counts the draws.
    ///
    /// # Errors
    /// Those of the bank.
    pub fn draw(&self, sample: &Sample, shown: bool, index: u64) -> Result<String> {
        let mut rng = rng::stream(self.seed, "prompt dropout", index);
        if rng.random::<f64>() < self.dropout {
            return Ok(String::new());
        }
        self.of(sample, shown, rng.random::<u64>() >> 11)
    }

    /// A text for a sample that is never left out.
    ///
    /// # Errors
    /// Those of the bank.
    pub fn of(&self, sample: &Sample, shown: bool, seed: u64) -> Result<String> {
        let present = sample.mask.view().classes();
        let target = self
            .targets
            .iter()
            .find(|class| present.contains(&class.label));
        let target = target.or(self.targets.first());
        let target = target.ok_or_else(|| Error::data("the dataset names no target class"))?;
        let query = PromptQuery {
            target: target.name.as_str().into(),
            attributes: &sample.attributes,
        };
        let drawn = self.bank.draw([query][..].into(), seed)?.into_iter().next();
        let drawn = drawn.ok_or_else(|| Error::internal("the prompt bank answered nothing"))?;
        Ok(match shown {
            true => drawn.positive.into(),
            false => drawn.negative.into(),
        })
    }
}
