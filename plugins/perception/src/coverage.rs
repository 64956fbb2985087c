//! `coverage`: whether painted images lie among the real ones (precision, density), and whether they reach
//! all of them (recall, coverage).

use crate::{
    distribution::{batch_size, check_batch_size},
    extract::{Both, Extraction},
    images::View,
    neighbours::manifolds,
    note,
    space::Space,
};
use diffaug::prelude::*;
use std::path::PathBuf;

/// Options of `coverage`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CoverageOptions {
    /// The weights of the features.
    pub weights: PathBuf,
    /// The features.
    #[serde(default = "alexnet")]
    pub space: Space,
    /// What is looked at of each image.
    #[serde(default)]
    pub view: View,
    /// How many nearest neighbours make up the surroundings of an image, 1 or more.
    #[serde(default = "five")]
    pub neighbours: usize,
    /// How many images pass the network at once, 1 to 1024.
    #[serde(default = "batch_size")]
    pub batch_size: usize,
}

fn alexnet() -> Space {
    Space::Alexnet
}

fn five() -> usize {
    5
}

/// Precision, recall, density and coverage.
pub struct Coverage {
    options: CoverageOptions,
    context: Context,
}

impl FromConfig for Coverage {
    type Config = CoverageOptions;

    fn validate(options: &Self::Config) -> Result<()> {
        if options.neighbours == 0 {
            let message = "`neighbours` is 0, expected 1 or more";
            return Err(Error::config(message).at("neighbours"));
        }
        check_batch_size(options.batch_size)
    }

    fn from_config(options: Self::Config, context: &Context) -> Result<Self> {
        let context = context.clone();
        Ok(Coverage { options, context })
    }

    fn inspect(options: &Self::Config, context: &Context) -> Result<Inspection> {
        options.space.inspect(&options.weights, context)
    }
}

impl Measure for Coverage {
    fn subject(&self) -> Result<Subject> {
        Ok(Subject::Images)
    }

    fn figures(&self) -> Result<RVec<FigureInfo>> {
        let all = [
            (
                "set_precision",
                "share of painted images among real ones (Kynkäänniemi et al.)",
            ),
            ("set_recall", "share of real images among painted ones"),
            (
                "density",
                "how densely real images lie around painted ones, 1 as among themselves (Naeem et al.)",
            ),
            (
                "coverage",
                "share of real images with a painted one near them",
            ),
        ];
        let figure = |(name, about)| FigureInfo::new(name, Better::Higher, about);
        Ok(all.into_iter().map(figure).collect())
    }

    fn compare(
        &self,
        real: &BoxDataset,
        synthetic: &BoxDataset,
        reporter: &Reporter<'_>,
    ) -> Result<Findings> {
        let options = &self.options;
        let extraction = Extraction {
            space: options.space,
            weights: &options.weights,
            view: options.view,
            batch_size: options.batch_size,
        };
        let both = extraction.both(real, synthetic, &self.context, reporter)?;
        Ok(findings(&both, options.space, options.neighbours))
    }
}

fn findings(both: &Both, space: Space, neighbours: usize) -> Findings {
    let (real, synthetic) = (&both.real, &both.synthetic);
    let found = manifolds(real, synthetic, neighbours);
    let figures = match found {
        Some(found) => [found.precision, found.recall, found.density, found.coverage].map(RSome),
        None => [RNone; 4],
    };
    let counts = note::counts(synthetic.len(), real.len());
    let few = match found {
        Some(_) => "",
        None => ", which are too few for so many",
    };
    let left_out = note::left_out(real.len() + synthetic.len(), both.images);
    let note = format!(
        "of {counts} by {neighbours} nearest neighbours{few} among {space}; recall and coverage depend on how many there are{left_out}"
    );
    Findings {
        figures: figures.to_vec().into(),
        pairs: RVec::new(),
        note: note.into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{Set, compare, distances, features, random_alexnet};

    #[test]
    fn figures_stand_in_their_order() {
        let case = &distances()[0];
        let both = Both {
            real: case.real.clone(),
            synthetic: case.synthetic.clone(),
            images: case.real.len() + case.synthetic.len(),
        };
        let found = findings(&both, Space::Alexnet, 3);
        let expected = case.expected.prdc[&3];
        let expected = [
            expected.precision,
            expected.recall,
            expected.density,
            expected.coverage,
        ];
        for (found, expected) in found.figures.iter().zip(expected) {
            assert!((found.unwrap() - expected).abs() < 1e-9);
        }
        assert!(found.note.contains("by 3 nearest neighbours among"));
    }

    #[test]
    fn too_few_images_have_no_figures() {
        let both = Both {
            real: features(3, 2, 1),
            synthetic: features(9, 2, 2),
            images: 12,
        };
        let found = findings(&both, Space::Alexnet, 3);
        assert!(found.figures.iter().all(|figure| figure.is_none()));
        assert!(found.note.contains("too few"), "{}", found.note);
    }

    #[test]
    fn the_real_images_themselves_are_covered() {
        let folder = tempfile::tempdir().unwrap();
        let options = CoverageOptions {
            weights: random_alexnet(folder.path()),
            space: Space::Alexnet,
            view: View::Image,
            neighbours: 2,
            batch_size: 3,
        };
        let measure = Coverage::from_config(options.clone(), &Context::default()).unwrap();
        let real = BoxDataset::new(Set::noise(5, (33, 33), 1));
        let found = compare(&measure, &real, &real).unwrap();
        let figures: Vec<f64> = found.figures.iter().map(|f| f.unwrap()).collect();
        assert_eq!((figures[0], figures[1], figures[3]), (1.0, 1.0, 1.0));
        let wrong = CoverageOptions {
            neighbours: 0,
            ..options
        };
        assert_eq!(Coverage::validate(&wrong).unwrap_err().field, "neighbours");
    }
}
