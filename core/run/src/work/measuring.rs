//! The measures of a manifest, built and asked; what they answer is checked.

use super::{scoring, wire::Wire};
use crate::{failure::Failure, slots::Slot};
use diffaug::{
    Better, BoxMeasure, Case, Error, FigureInfo, Findings, Measure, Measured, Result, Subject,
    prelude::{ROption, RVec},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Columns of a file of scores that are no figures.
const TAKEN: [&str; 2] = ["id", "group"];

/// A figure, as results tell of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figure {
    /// Its name, unique in a run.
    pub name: String,
    /// What it is, in a few words.
    pub about: String,
    /// `higher`, `lower` or `neither`: which way it improves.
    pub better: String,
    /// The table of the measure that it is of: figures of other options are other figures. Null for those
    /// that every run has.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub measure: Value,
}

impl Figure {
    /// A figure of that name.
    pub fn new(name: &str, better: Better, about: &str) -> Self {
        let better = match better {
            Better::Higher => "higher",
            Better::Lower => "lower",
            Better::Neither => "neither",
        };
        Figure {
            name: name.to_owned(),
            about: about.to_owned(),
            better: better.to_owned(),
            measure: Value::Null,
        }
    }
}

/// A measure of the manifest.
pub struct Named {
    /// What the manifest calls it.
    pub name: String,
    /// What it looks at.
    pub subject: Subject,
    /// Its figures, of an image where it looks at predictions.
    pub figures: Vec<Figure>,
    /// Those of all predictions together.
    pub totals: Vec<Figure>,
    measure: BoxMeasure,
}

/// Figures by their names; `None` where undefined.
pub type Values = Vec<(String, Option<f64>)>;

/// The measures of a manifest, by their names.
#[derive(Default)]
pub struct Measures(Vec<Named>);

impl Measures {
    /// Builds the measures of a manifest.
    ///
    /// # Errors
    /// When one cannot be built, or two of their figures have one name.
    pub fn build(wire: &Wire<'_>) -> Result<Self, Failure> {
        let mut all = Vec::new();
        let basic = scoring::basic().into_iter().map(|figure| figure.name);
        let reserved = TAKEN.into_iter().chain(scoring::PIXELS);
        let reserved = reserved.map(str::to_owned).chain(basic);
        let reserved = reserved.map(|name| (name, "every run".to_owned()));
        let reserved: BTreeMap<String, String> = reserved.collect();
        // Figures of images and those of all images together stand in places of their own.
        let mut taken = [reserved.clone(), reserved];
        for (name, table) in &wire.manifest.evaluate.measures {
            let at = Slot::of_measure(name).at;
            let seed = wire.manifest.seed;
            let measure: BoxMeasure = wire.build(&at, table, &table.json(), seed)?;
            let placed = |error| wire.place(&at, table, error);
            let prefix = match *name == table.name {
                true => String::new(),
                false => format!("{name}."),
            };
            let named = Named::of(name, &prefix, &json!(table), measure).map_err(placed)?;
            for (taken, figures) in taken.iter_mut().zip([&named.figures, &named.totals]) {
                for figure in figures {
                    let Some(other) = taken.insert(figure.name.clone(), format!("`{name}`")) else {
                        continue;
                    };
                    let error = Error::config(format!(
                        "the measure `{name}` has a figure `{}`, and so has {other}",
                        figure.name
                    ));
                    return Err(wire.document.failure("", error.at(&at)));
                }
            }
            all.push(named);
        }
        Ok(Measures(all))
    }

    /// Those that look at `subject`.
    pub fn of(&self, subject: Subject) -> impl Iterator<Item = &Named> {
        self.0.iter().filter(move |named| named.subject == subject)
    }

    /// What each is called and looks at.
    pub fn subjects(&self) -> Vec<(String, Subject)> {
        let each = self.0.iter();
        each.map(|named| (named.name.clone(), named.subject))
            .collect()
    }

    /// The figures of each image, and those of all together.
    pub fn figures(&self) -> (Vec<Figure>, Vec<Figure>) {
        let all = || self.of(Subject::Predictions);
        let each = all().flat_map(|named| named.figures.clone());
        let totals = all().flat_map(|named| named.totals.clone());
        (each.collect(), totals.collect())
    }

    /// The figures of each of `cases`; what is to be added up goes to `sums`.
    ///
    /// # Errors
    /// Those of a measure, and when its answer is not as it promised.
    pub fn score(&self, cases: &[Case<'_>], sums: &mut Sums) -> Result<Vec<Values>> {
        let mut rows: Vec<Values> = cases.iter().map(|_| Vec::new()).collect();
        for named in self.of(Subject::Predictions) {
            let found = named.ask(named.measure.score(cases.into()))?;
            if found.len() != cases.len() {
                let message = format!("{} answers for {} images", found.len(), cases.len());
                return Err(named.wrong(&message));
            }
            for ((row, found), case) in rows.iter_mut().zip(found).zip(cases) {
                let Measured { figures, sums: own } = found;
                row.extend(named.named(&named.figures, &figures, case.id.as_str())?);
                sums.add(named, &own)?;
            }
        }
        sums.images += cases.len() as u64;
        Ok(rows)
    }

    /// The figures of all images together.
    ///
    /// # Errors
    /// Those of a measure, and when its answer is not as it promised.
    pub fn total(&self, sums: &Sums) -> Result<Values> {
        let mut all = Vec::new();
        for named in self.of(Subject::Predictions) {
            let own = sums.of.get(&named.name).map_or(&[][..], Vec::as_slice);
            let found = named.ask(named.measure.total(own.into(), sums.images))?;
            all.extend(named.named(&named.totals, &found, "all images")?);
        }
        Ok(all)
    }
}

impl Named {
    fn of(name: &str, prefix: &str, table: &Value, measure: BoxMeasure) -> Result<Self> {
        let figures = |all: RVec<FigureInfo>| -> Vec<Figure> {
            let figure = |info: &FigureInfo| {
                let name = format!("{prefix}{}", info.name);
                Figure {
                    measure: table.clone(),
                    ..Figure::new(&name, info.better, info.about.as_str())
                }
            };
            all.iter().map(figure).collect()
        };
        Ok(Named {
            name: name.to_owned(),
            subject: measure.subject()?,
            figures: figures(measure.figures()?),
            totals: figures(measure.totals()?),
            measure,
        })
    }

    /// The stage itself.
    pub fn measure(&self) -> &BoxMeasure {
        &self.measure
    }

    /// An answer, or the error with the name of the measure.
    ///
    /// # Errors
    /// The one given.
    pub fn ask<T>(&self, answer: Result<T>) -> Result<T> {
        answer.map_err(|error| super::wire::blame(&format!("the measure `{}`", self.name), error))
    }

    pub(super) fn wrong(&self, message: &str) -> Error {
        Error::internal(format!("the measure `{}` gave {message}", self.name))
    }

    /// Values with the names of their figures.
    fn named(&self, figures: &[Figure], values: &[ROption<f64>], of: &str) -> Result<Values> {
        if values.len() != figures.len() {
            let message = format!("{} values for {} figures", values.len(), figures.len());
            return Err(self.wrong(&message));
        }
        let value = |(figure, value): (&Figure, &ROption<f64>)| match value.into_option() {
            Some(value) if !value.is_finite() => {
                let name = &figure.name;
                Err(self.wrong(&format!("{value} as `{name}` of `{of}`")))
            }
            value => Ok((figure.name.clone(), value)),
        };
        figures.iter().zip(values).map(value).collect()
    }

    /// The figures of findings by their names.
    ///
    /// # Errors
    /// When they are not as promised.
    pub fn figures_of(
        &self,
        findings: &Findings,
        of: &str,
    ) -> Result<BTreeMap<String, Option<f64>>> {
        let named = self.named(&self.figures, &findings.figures, of)?;
        Ok(named.into_iter().collect())
    }
}

/// Numbers that measures add up over images.
#[derive(Debug, Default)]
pub struct Sums {
    of: BTreeMap<String, Vec<f64>>,
    images: u64,
}

impl Sums {
    fn add(&mut self, named: &Named, own: &[f64]) -> Result<()> {
        if let Some(value) = own.iter().find(|value| !value.is_finite()) {
            return Err(named.wrong(&format!("{value} to be added up")));
        }
        let Some(sums) = self.of.get_mut(&named.name) else {
            self.of.insert(named.name.clone(), own.to_vec());
            return Ok(());
        };
        if sums.len() != own.len() {
            let message = format!("{} sums, and {} of another image", own.len(), sums.len());
            return Err(named.wrong(&message));
        }
        sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
        Ok(())
    }
}
