//! The measures that compare two sets as distributions of features: `fid`, `fd-dinov2`, `fd-alexnet` and
//! `cmmd`. They differ in their [`Kind`] alone.
//!
//! Beside each distance stands that of two halves of the real images, drawn by the seed of the run: what
//! the distance is between sets of one distribution and half their number.

use crate::{
    extract::{Both, Extraction},
    images::View,
    note,
    points::Points,
    space::Space,
};
use diffaug::prelude::*;
use std::{marker::PhantomData, path::PathBuf};

/// What sets such a measure apart.
pub trait Kind: Send + Sync + 'static {
    /// The features that are compared.
    const SPACE: Space;
    /// Its distances; the first is the one that it is named for.
    const DISTANCES: &'static [Distance];
    /// What a reader of its figures has to know of how they are formed.
    const ABOUT: &'static str;
}

/// A distance of two sets of points.
pub struct Distance {
    /// The figure's name.
    pub name: &'static str,
    /// The name of the same between two halves of the real images.
    pub halves: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
    /// From real and synthetic points to the distance; `None` where there are too few.
    pub of: fn(&Points, &Points) -> Result<Option<f64>>,
}

/// Options of `fid`, `fd-dinov2`, `fd-alexnet` and `cmmd`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DistributionOptions {
    /// The weights. For `fid` the file `pt_inception-2015-12-05` of pytorch-fid (one that PyTorch wrote before
    /// 1.6 has to be saved anew by a later version, `torch.save(torch.load(old), new)`); for `fd-dinov2` a folder with
    /// `config.json` and `model.safetensors` of a DINOv2 (the measure is published with
    /// `facebook/dinov2-large`), for `cmmd` of a CLIP (`openai/clip-vit-large-patch14-336`); for `fd-alexnet`
    /// a file of LPIPS with AlexNet.
    pub weights: PathBuf,
    /// What is looked at of each image.
    #[serde(default)]
    pub view: View,
    /// How many images pass the network at once, 1 to 1024.
    #[serde(default = "batch_size")]
    pub batch_size: usize,
}

/// The default of all options of that name.
pub fn batch_size() -> usize {
    8
}

/// Checks an option of that name.
///
/// # Errors
/// When it is not 1 to 1024.
pub fn check_batch_size(batch_size: usize) -> Result<()> {
    match batch_size {
        1..=1024 => Ok(()),
        other => {
            let message = format!("`batch_size` is {other}, expected 1 to 1024");
            Err(Error::config(message).at("batch_size"))
        }
    }
}

/// A distance of distributions of features.
pub struct Distribution<K> {
    options: DistributionOptions,
    context: Context,
    kind: PhantomData<K>,
}

impl<K: Kind> FromConfig for Distribution<K> {
    type Config = DistributionOptions;

    fn validate(options: &Self::Config) -> Result<()> {
        check_batch_size(options.batch_size)
    }

    fn from_config(options: Self::Config, context: &Context) -> Result<Self> {
        Ok(Distribution {
            options,
            context: context.clone(),
            kind: PhantomData,
        })
    }

    fn inspect(options: &Self::Config, context: &Context) -> Result<Inspection> {
        K::SPACE.inspect(&options.weights, context)
    }
}

impl<K: Kind> Measure for Distribution<K> {
    fn subject(&self) -> Result<Subject> {
        Ok(Subject::Images)
    }

    fn figures(&self) -> Result<RVec<FigureInfo>> {
        let between = K::DISTANCES.iter();
        let between = between.map(|d| FigureInfo::new(d.name, Better::Lower, d.about));
        let within = K::DISTANCES.iter().map(|d| {
            let about = format!("`{}` between two halves of the real images", d.name);
            FigureInfo::new(d.halves, Better::Neither, &about)
        });
        Ok(between.chain(within).collect())
    }

    fn compare(
        &self,
        real: &BoxDataset,
        synthetic: &BoxDataset,
        reporter: &Reporter<'_>,
    ) -> Result<Findings> {
        let extraction = Extraction {
            space: K::SPACE,
            weights: &self.options.weights,
            view: self.options.view,
            batch_size: self.options.batch_size,
        };
        let both = extraction.both(real, synthetic, &self.context, reporter)?;
        findings::<K>(&both, self.context.seed)
    }
}

fn findings<K: Kind>(both: &Both, seed: u64) -> Result<Findings> {
    let Both {
        real, synthetic, ..
    } = both;
    let (first, second) = real.halves(seed);
    let between = K::DISTANCES.iter().map(|d| (d.of)(real, synthetic));
    let within = K::DISTANCES.iter().map(|d| (d.of)(&first, &second));
    let figures = between.chain(within).map(|f| f.map(ROption::from));
    let counts = note::counts(synthetic.len(), real.len());
    let (bias, about) = (note::bias(real, synthetic), K::ABOUT);
    let left_out = note::left_out(real.len() + synthetic.len(), both.images);
    Ok(Findings {
        figures: figures.collect::<Result<_>>()?,
        pairs: RVec::new(),
        note: format!("of {counts}, {about}{bias}{left_out}").into(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        fd_alexnet::FdAlexnet,
        fid::Fid,
        testing::{Set, compare, features, random_alexnet},
    };

    #[test]
    fn figures_and_note_are_of_what_was_compared() {
        let both = Both {
            real: features(30, 8, 1),
            synthetic: features(20, 8, 2),
            images: 53,
        };
        let found = findings::<Fid>(&both, 1).unwrap();
        let figures: Vec<f64> = found.figures.iter().map(|f| f.unwrap()).collect();
        let (a, b) = both.real.halves(1);
        let fid = |a, b| crate::frechet::frechet(a, b).unwrap().unwrap();
        assert_eq!(figures[0], fid(&both.real, &both.synthetic));
        assert_eq!(figures[2], fid(&a, &b));
        assert_eq!(figures[3], crate::kernel::kid(&a, &b).unwrap());
        for part in ["20 synthetic and 30 real", "(15 each)", "3 images without"] {
            assert!(found.note.contains(part), "{}", found.note);
        }
    }

    #[test]
    fn too_few_images_have_no_figures() {
        let both = Both {
            real: features(3, 8, 1),
            synthetic: features(1, 8, 2),
            images: 4,
        };
        let found = findings::<Fid>(&both, 1).unwrap();
        assert!(found.figures.iter().all(|figure| figure.is_none()));
        assert!(found.note.contains("no distance"), "{}", found.note);
    }

    #[test]
    fn like_images_are_nearer_than_unlike_ones_in_whatever_batches() {
        let folder = tempfile::tempdir().unwrap();
        let weights = random_alexnet(folder.path());
        let measure = |batch_size| {
            let options = DistributionOptions {
                weights: weights.clone(),
                view: View::Image,
                batch_size,
            };
            Distribution::<FdAlexnet>::from_config(options, &Context::default()).unwrap()
        };
        let real = || BoxDataset::new(Set::noise(8, (40, 32), 1));
        let like = BoxDataset::new(Set::noise(6, (40, 32), 2));
        let unlike = BoxDataset::new(Set::flat(6, (40, 32)));
        let figures = |batch_size, other: &BoxDataset| {
            let found = compare(&measure(batch_size), &real(), other).unwrap();
            found.figures.iter().map(|f| f.unwrap()).collect::<Vec<_>>()
        };
        let (near, far) = (figures(8, &like), figures(8, &unlike));
        assert!(near[0] < far[0], "{near:?} {far:?}");
        assert_eq!(near[1], far[1], "the halves are those of the real images");
        assert_eq!(near, figures(3, &like));
    }

    #[test]
    fn what_is_missing_is_told_by_inspection_and_by_one_error() {
        let options = DistributionOptions {
            weights: "nowhere/weights.pth".into(),
            view: View::Image,
            batch_size: 2,
        };
        let context = Context::default();
        let found = Distribution::<Fid>::inspect(&options, &context).unwrap();
        assert_eq!(found.missing.len(), 1, "{:?}", found.missing);
        assert!(found.missing[0].contains("`nowhere/weights.pth`"));
        assert_eq!(found.components[0].parameters, 21_785_568);
        let measure = Distribution::<Fid>::from_config(options, &context).unwrap();
        let set = BoxDataset::new(Set::flat(2, (8, 8)));
        let error = compare(&measure, &set, &set).unwrap_err().to_string();
        assert!(error.contains("`nowhere/weights.pth`"), "{error}");
        assert!(check_batch_size(0).is_err() && check_batch_size(1025).is_err());
    }
}
