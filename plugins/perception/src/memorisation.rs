//! `memorisation`: how near painted lesions come to the lesions that the generator learned from.
//!
//! For each painted lesion the nearest training lesion is looked for. What counts as near is what the
//! training lesions say of each other: a painted one is a near-copy if its nearest training lesion is nearer
//! than all but one in a hundred of those are to their nearest other one. Frames of one video are near
//! each other by themselves, which makes that limit strict.

use crate::{
    distribution::{batch_size, check_batch_size},
    extract::{Both, Extraction},
    images::View,
    neighbours::{Nearest, nearest, nearest_others, percentile},
    note,
    space::Space,
};
use diffaug::{metrics::mean, prelude::*};
use std::path::PathBuf;

/// How many pairs are shown.
const SHOWN: usize = 12;

/// Options of `memorisation`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemorisationOptions {
    /// The weights of the features.
    pub weights: PathBuf,
    /// The features.
    #[serde(default = "lpips")]
    pub space: Space,
    /// What is looked at of each image.
    #[serde(default = "lesion")]
    pub view: View,
    /// A painted lesion is a near-copy if its distance is below this percentile of the distances of training
    /// lesions from their nearest other one, 0 to 100; or if it is exactly a training lesion.
    #[serde(default = "one")]
    pub percentile: f64,
    /// How many images pass the network at once, 1 to 1024.
    #[serde(default = "batch_size")]
    pub batch_size: usize,
}

fn lpips() -> Space {
    Space::Lpips
}

fn lesion() -> View {
    View::Lesion
}

fn one() -> f64 {
    1.0
}

/// Distances from the nearest training lesions.
pub struct Memorisation {
    options: MemorisationOptions,
    context: Context,
}

impl FromConfig for Memorisation {
    type Config = MemorisationOptions;

    fn validate(options: &Self::Config) -> Result<()> {
        if !(0.0..=100.0).contains(&options.percentile) {
            let message = format!("`percentile` is {}, expected 0 to 100", options.percentile);
            return Err(Error::config(message).at("percentile"));
        }
        check_batch_size(options.batch_size)
    }

    fn from_config(options: Self::Config, context: &Context) -> Result<Self> {
        let context = context.clone();
        Ok(Memorisation { options, context })
    }

    fn inspect(options: &Self::Config, context: &Context) -> Result<Inspection> {
        options.space.inspect(&options.weights, context)
    }
}

impl Measure for Memorisation {
    fn subject(&self) -> Result<Subject> {
        Ok(Subject::Images)
    }

    fn figures(&self) -> Result<RVec<FigureInfo>> {
        let all = [
            (
                "nearest",
                Better::Neither,
                "mean distance of a painted lesion from the nearest training lesion",
            ),
            (
                "nearest_real",
                Better::Neither,
                "mean distance of a training lesion from the nearest other one",
            ),
            (
                "near_copies",
                Better::Lower,
                "share of painted lesions nearer to a training lesion than training lesions are to each other",
            ),
        ];
        Ok(FigureInfo::list(&all))
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
        Ok(findings(&both, options.space, options.percentile))
    }
}

fn findings(both: &Both, space: Space, percent: f64) -> Findings {
    let (real, synthetic) = (&both.real, &both.synthetic);
    let found = nearest(synthetic, real);
    let distance = |nearest: &Nearest| space.distance(nearest.squared);
    let distances: Vec<f64> = found.iter().map(distance).collect();
    let among_real: Vec<f64> = nearest_others(real).iter().map(distance).collect();
    let limit = percentile(&among_real, percent);
    let near = |limit: f64| {
        distances
            .iter()
            .filter(|d| **d < limit || **d == 0.0)
            .count()
    };
    let copies = limit.filter(|_| !distances.is_empty());
    let copies = copies.map(|limit| near(limit) as f64 / distances.len() as f64);
    let figures = [mean(&distances), mean(&among_real), copies];
    let counts = note::counts(synthetic.len(), real.len());
    let limit = match limit {
        Some(limit) => format!("near-copies are those below {limit:.4}, and exact copies"),
        None => "one real image alone has no nearest other one".to_owned(),
    };
    let left_out = note::left_out(real.len() + synthetic.len(), both.images);
    Findings {
        figures: figures.map(ROption::from).to_vec().into(),
        pairs: closest(both, &found, &distances),
        note: format!("of {counts} by {space}; {limit}{left_out}").into(),
    }
}

/// The pairs that are nearest to each other.
fn closest(both: &Both, found: &[Nearest], distances: &[f64]) -> RVec<ImagePair> {
    let pair = |(index, (found, distance)): (usize, (&Nearest, &f64))| ImagePair {
        synthetic: both.synthetic.of(index),
        real: both.real.of(found.place),
        value: *distance,
    };
    let mut pairs: Vec<ImagePair> = found.iter().zip(distances).enumerate().map(pair).collect();
    pairs.sort_by(|a, b| a.value.total_cmp(&b.value));
    pairs.truncate(SHOWN);
    pairs.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{Set, compare, features, random_alexnet};
    use diffaug_nn::testing::optional;

    fn options(weights: PathBuf) -> MemorisationOptions {
        let json = serde_json::json!({ "weights": weights });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_copy_is_found_and_stands_first() {
        let folder = tempfile::tempdir().unwrap();
        let weights = random_alexnet(folder.path());
        let measure = Memorisation::from_config(options(weights), &Context::default()).unwrap();
        let real = Set::noise(14, (48, 40), 1);
        let mut synthetic = Set::noise(13, (48, 40), 2);
        synthetic.samples[5].image = real.samples[9].image.clone();
        synthetic.samples[5].mask = real.samples[9].mask.clone();
        synthetic.samples[0].mask.bytes_mut().fill(0);
        let (real, synthetic) = (BoxDataset::new(real), BoxDataset::new(synthetic));
        let found = compare(&measure, &real, &synthetic).unwrap();
        assert_eq!(found.pairs.len(), 12);
        let first = found.pairs[0];
        assert_eq!((first.synthetic, first.real, first.value), (5, 9, 0.0));
        assert!(found.pairs.windows(2).all(|p| p[0].value <= p[1].value));
        assert!(found.pairs.iter().all(|pair| pair.synthetic != 0));
        let figures: Vec<f64> = found.figures.iter().map(|f| f.unwrap()).collect();
        assert!(figures[0] > 0.0 && figures[1] > 0.0, "{figures:?}");
        assert!(figures[2] >= 1.0 / 12.0, "{figures:?}");
        assert!(found.note.contains("1 image without a lesion was left out"));
    }

    #[test]
    fn the_share_of_copies_goes_by_the_percentile() {
        let both = Both {
            real: features(40, 3, 1),
            synthetic: features(30, 3, 1),
            images: 70,
        };
        // The same numbers: each is the copy of a real one.
        let share = |percent| findings(&both, Space::Alexnet, percent).figures[2].unwrap();
        assert_eq!(share(1.0), 1.0);
        let other = Both {
            synthetic: features(30, 3, 2),
            ..both
        };
        let share = |percent| findings(&other, Space::Alexnet, percent).figures[2].unwrap();
        assert!(share(0.0) <= share(50.0) && share(50.0) < 1.0);
        assert_eq!(share(50.0) * 30.0 % 1.0, 0.0);
    }

    #[test]
    fn without_others_there_are_no_figures() {
        let both = |real, synthetic| Both {
            real: features(real, 3, 1),
            synthetic: features(synthetic, 3, 2),
            images: real + synthetic,
        };
        let defined = |both: &Both| -> Vec<bool> {
            let found = findings(both, Space::Alexnet, 1.0);
            found.figures.iter().map(|f| f.is_some()).collect()
        };
        assert_eq!(defined(&both(1, 4)), [true, false, false]);
        assert_eq!(defined(&both(4, 0)), [false, true, false]);
        assert_eq!(defined(&both(0, 0)), [false; 3]);
    }

    #[test]
    fn with_the_real_weights_a_real_frame_is_its_own_copy() {
        let Some(weights) = optional("weights/lpips/lpips_alex.safetensors") else {
            return;
        };
        let Some(folder) = optional("data/CVC-ClinicDB/PNG/Original") else {
            return;
        };
        let mut options = options(weights);
        options.view = View::Image;
        let measure = Memorisation::from_config(options, &Context::default()).unwrap();
        // Frames of different videos.
        let real = BoxDataset::new(Set::files(&folder, &[1, 60, 130, 200]));
        let synthetic = BoxDataset::new(Set::files(&folder, &[130, 300]));
        let found = compare(&measure, &real, &synthetic).unwrap();
        let first = found.pairs[0];
        assert_eq!((first.synthetic, first.real, first.value), (0, 2, 0.0));
        assert_eq!(found.figures[2], RSome(0.5));
        assert!(found.pairs[1].value > 0.05);
    }
}
