//! `lpips`: how different pairs of images look, by LPIPS (Zhang et al., 2018).
//!
//! The mean over pairs within a set is its diversity: of painted images well below that of the real ones
//! it tells of a generator that repeats itself. Where a set has no more pairs than are asked for, all are
//! compared, else so many are drawn, each once.

use crate::{
    distribution::{batch_size, check_batch_size},
    images::{Gallery, View},
    note,
};
use candle_core::Device;
use diffaug::{metrics::mean, prelude::*, rng};
use diffaug_nn::{
    Tensor,
    batch::{self, Frame},
    perceptual::{Backbone, Lpips},
};
use rand::RngExt;
use std::{collections::BTreeSet, path::PathBuf};

/// Side of compared images where none is given, in pixels: of whole images, and of windows.
const IMAGE_SIDE: u32 = 256;
const WINDOW_SIDE: u32 = 64;
/// The largest number of pairs.
const MOST: usize = 1_000_000;

/// Options of `lpips`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LpipsOptions {
    /// The weights: the state of the package `lpips`, or AlexNet in the layout of its port to Flax.
    pub weights: PathBuf,
    /// The network whose features are compared.
    #[serde(default)]
    pub network: Backbone,
    /// What is looked at of each image.
    #[serde(default)]
    pub view: View,
    /// Side of the square that images are brought to, in pixels; by default 256 for whole images and 64 for
    /// lesions.
    #[serde(default)]
    pub side: Option<u32>,
    /// How many pairs are compared for each figure, at most.
    #[serde(default = "thousand")]
    pub pairs: usize,
    /// How many pairs pass the network at once, 1 to 1024.
    #[serde(default = "batch_size")]
    pub batch_size: usize,
}

fn thousand() -> usize {
    1000
}

impl LpipsOptions {
    fn side(&self) -> u32 {
        self.side.unwrap_or(match self.view {
            View::Image => IMAGE_SIDE,
            View::Lesion => WINDOW_SIDE,
        })
    }
}

/// LPIPS between pairs of images.
pub struct LpipsMeasure {
    options: LpipsOptions,
    context: Context,
}

impl FromConfig for LpipsMeasure {
    type Config = LpipsOptions;

    fn validate(options: &Self::Config) -> Result<()> {
        let smallest = options.network.smallest() as u32;
        let side = options.side();
        if !(smallest..=4096).contains(&side) {
            let message = format!("`side` is {side}, expected {smallest} to 4096");
            return Err(Error::config(message).at("side"));
        }
        if !(1..=MOST).contains(&options.pairs) {
            let message = format!("`pairs` is {}, expected 1 to {MOST}", options.pairs);
            return Err(Error::config(message).at("pairs"));
        }
        check_batch_size(options.batch_size)
    }

    fn from_config(options: Self::Config, context: &Context) -> Result<Self> {
        let context = context.clone();
        Ok(LpipsMeasure { options, context })
    }

    fn inspect(options: &Self::Config, context: &Context) -> Result<Inspection> {
        crate::space::inspect_lpips(options.network, &options.weights, context)
    }
}

impl Measure for LpipsMeasure {
    fn subject(&self) -> Result<Subject> {
        Ok(Subject::Images)
    }

    fn figures(&self) -> Result<RVec<FigureInfo>> {
        let all = [
            (
                "lpips_real",
                Better::Neither,
                "mean LPIPS between painted and real images",
            ),
            (
                "diversity",
                Better::Higher,
                "mean LPIPS between painted images",
            ),
            (
                "diversity_real",
                Better::Neither,
                "mean LPIPS between real images",
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
        let device = diffaug_nn::device::open(&self.context.device)?;
        let comparison = Comparison {
            lpips: Lpips::with_backbone(&options.weights, options.network, &device)?,
            device,
            side: options.side(),
            batch_size: options.batch_size,
            reporter,
        };
        let real = Set::new(real, options.view)?;
        let synthetic = Set::new(synthetic, options.view)?;
        let draw = |all: Pairs, purpose| all.draw(options.pairs, self.context.seed, purpose);
        let (n, m) = (synthetic.with.len(), real.with.len());
        let across = draw(Pairs::Across(n, m), "lpips real");
        let painted = draw(Pairs::Within(n), "lpips diversity");
        let own = draw(Pairs::Within(m), "lpips diversity real");
        let figures = [
            comparison.mean((&synthetic, &real), &across, "painted and real images")?,
            comparison.mean((&synthetic, &synthetic), &painted, "painted images")?,
            comparison.mean((&real, &real), &own, "real images")?,
        ];
        let counted = [across.len(), painted.len(), own.len()];
        let all = synthetic.gallery.len() + real.gallery.len();
        let note = format!(
            "of {}, with {}, {} and {} pairs at {side}x{side} pixels by {}{}",
            note::counts(n, m),
            counted[0],
            counted[1],
            counted[2],
            options.network,
            note::left_out(n + m, all),
            side = options.side(),
        );
        Ok(Findings {
            figures: figures.map(ROption::from).to_vec().into(),
            pairs: RVec::new(),
            note: note.into(),
        })
    }
}

/// The images of a set that show what is looked at.
struct Set<'a> {
    gallery: Gallery<'a>,
    with: Vec<usize>,
}

impl<'a> Set<'a> {
    fn new(dataset: &'a BoxDataset, view: View) -> Result<Self> {
        let gallery = Gallery::new(dataset, view)?;
        let with = gallery.present()?;
        Ok(Set { gallery, with })
    }
}

/// All pairs that there are.
#[derive(Clone, Copy, Debug)]
enum Pairs {
    /// Of one of so many and one of so many others.
    Across(usize, usize),
    /// Of two different ones of so many.
    Within(usize),
}

impl Pairs {
    fn count(self) -> usize {
        match self {
            Pairs::Across(n, m) => n.saturating_mul(m),
            Pairs::Within(n) => n.saturating_mul(n.saturating_sub(1)) / 2,
        }
    }

    /// All, or `most` different ones of them, in order.
    fn draw(self, most: usize, seed: u64, purpose: &str) -> Vec<(usize, usize)> {
        let count = self.count();
        if count <= most {
            return (0..count).map(|number| self.at(number)).collect();
        }
        let mut rng = rng::stream(seed, purpose, 0);
        let mut drawn = BTreeSet::new();
        // Floyd's way (Bentley, 1987) takes as many draws as there are to be.
        for last in count - most..count {
            let number = rng.random_range(0..=last);
            if !drawn.insert(number) {
                drawn.insert(last);
            }
        }
        drawn.into_iter().map(|number| self.at(number)).collect()
    }

    /// The pair of that number, below [`Pairs::count`].
    fn at(self, number: usize) -> (usize, usize) {
        match self {
            Pairs::Across(_, m) => (number / m, number % m),
            Pairs::Within(_) => {
                // Number b (b - 1) / 2 + a, of a < b.
                let root = ((8.0 * number as f64 + 1.0).sqrt() + 1.0) / 2.0;
                let mut b = root as usize;
                while b * (b - 1) / 2 > number {
                    b -= 1;
                }
                while (b + 1) * b / 2 <= number {
                    b += 1;
                }
                (number - b * (b - 1) / 2, b)
            }
        }
    }
}

/// A network, and how images are handed to it.
struct Comparison<'a, 'b> {
    lpips: Lpips,
    device: Device,
    side: u32,
    batch_size: usize,
    reporter: &'a Reporter<'b>,
}

impl Comparison<'_, '_> {
    /// The mean distance of pairs of an image of each set; `None` of no pair.
    fn mean(
        &self,
        (a, b): (&Set<'_>, &Set<'_>),
        pairs: &[(usize, usize)],
        what: &str,
    ) -> Result<Option<f64>> {
        let mut distances = Vec::with_capacity(pairs.len());
        for batch in pairs.chunks(self.batch_size) {
            let firsts: Vec<usize> = batch.iter().map(|pair| a.with[pair.0]).collect();
            let seconds: Vec<usize> = batch.iter().map(|pair| b.with[pair.1]).collect();
            let first = self.pixels(&a.gallery, &firsts)?;
            let second = self.pixels(&b.gallery, &seconds)?;
            let found: Vec<f32> = self.lpips.distance(&first, &second)?.to_vec1()?;
            if let Some(at) = found.iter().position(|distance| !distance.is_finite()) {
                let (a, b) = (a.gallery.id(firsts[at]), b.gallery.id(seconds[at]));
                return Err(Error::model(format!(
                    "LPIPS of `{a}` and `{b}` is {}, expected a finite number",
                    found[at]
                )));
            }
            distances.extend(found.into_iter().map(f64::from));
            let (done, total) = (distances.len() as u64, pairs.len() as u64);
            self.reporter.step(done, total, what)?;
        }
        Ok(mean(&distances))
    }

    /// Images as `[n, 3, side, side]`, values -1 to 1.
    fn pixels(&self, gallery: &Gallery<'_>, indices: &[usize]) -> Result<Tensor> {
        let images: Vec<Image> = gallery.read(indices)?.into_iter().flatten().collect();
        if images.len() != indices.len() {
            return Err(Error::data(
                "an image has lost its lesion since it was listed",
            ));
        }
        let views: Vec<_> = images.iter().map(Image::view).collect();
        let frame = Frame::padded((self.side, self.side), 1);
        Ok(batch::images(&views, frame, &self.device)?.affine(2.0, -1.0)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{self, compare, random_alexnet};

    #[test]
    fn numbers_are_pairs_and_each_is_drawn_once() {
        for pairs in [Pairs::Across(5, 7), Pairs::Within(9), Pairs::Within(2)] {
            let all = pairs.draw(usize::MAX, 0, "x");
            assert_eq!(all.len(), pairs.count());
            let different: BTreeSet<_> = all.iter().collect();
            assert_eq!(different.len(), all.len());
            match pairs {
                Pairs::Across(n, m) => assert!(all.iter().all(|(a, b)| *a < n && *b < m)),
                Pairs::Within(n) => assert!(all.iter().all(|(a, b)| a < b && *b < n)),
            }
        }
        let some = Pairs::Within(1000).draw(50, 3, "x");
        let different: BTreeSet<_> = some.iter().collect();
        assert_eq!((some.len(), different.len()), (50, 50));
        assert_eq!(some, Pairs::Within(1000).draw(50, 3, "x"));
        assert_ne!(some, Pairs::Within(1000).draw(50, 4, "x"));
        assert!(Pairs::Within(1).draw(5, 0, "x").is_empty());
        assert!(Pairs::Within(0).draw(5, 0, "x").is_empty());
    }

    #[test]
    fn drawn_pairs_come_from_everywhere() {
        let mut seen = [0; 10];
        for seed in 0..200 {
            for (a, _) in Pairs::Across(10, 100).draw(5, seed, "x") {
                seen[a] += 1;
            }
        }
        // A thousand draws, a hundred to each in the mean.
        assert!(seen.iter().all(|n| (60..150).contains(n)), "{seen:?}");
    }

    fn measure(json: serde_json::Value) -> LpipsMeasure {
        let options: LpipsOptions = serde_json::from_value(json).unwrap();
        LpipsMeasure::validate(&options).unwrap();
        LpipsMeasure::from_config(options, &Context::default()).unwrap()
    }

    #[test]
    fn equal_images_have_no_diversity_and_all_pairs_are_the_mean() {
        let folder = tempfile::tempdir().unwrap();
        let weights = random_alexnet(folder.path());
        let measure = measure(serde_json::json!({ "weights": weights, "side": 40 }));
        let real = BoxDataset::new(testing::Set::noise(3, (40, 40), 1));
        let flat = BoxDataset::new(testing::Set::flat(2, (40, 40)));
        let found = compare(&measure, &real, &flat).unwrap();
        let figures: Vec<f64> = found.figures.iter().map(|f| f.unwrap()).collect();
        assert!(figures[1].abs() < 1e-9 && figures[0] > 0.0, "{figures:?}");
        assert!(
            found.note.contains("6, 1 and 3 pairs at 40x40 pixels"),
            "{}",
            found.note
        );
        let lpips = Lpips::open(&weights, &Device::Cpu).unwrap();
        let image = |index| {
            let image = diffaug::Dataset::sample(&real, index).unwrap().image;
            let frame = Frame::padded((40, 40), 1);
            let x = batch::images(&[image.view()], frame, &Device::Cpu).unwrap();
            x.affine(2.0, -1.0).unwrap()
        };
        let pairs = [(0, 1), (0, 2), (1, 2)].map(|(a, b)| {
            let distance = lpips.distance(&image(a), &image(b)).unwrap();
            f64::from(distance.to_vec1::<f32>().unwrap()[0])
        });
        let expected = pairs.iter().sum::<f64>() / 3.0;
        assert!((figures[2] - expected).abs() < 1e-6 * expected);
    }

    #[test]
    fn one_image_has_no_diversity_and_wrong_options_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let weights = random_alexnet(folder.path());
        let json = serde_json::json!({ "weights": weights, "view": "lesion" });
        let real = BoxDataset::new(testing::Set::noise(2, (50, 40), 1));
        let one = BoxDataset::new(testing::Set::noise(1, (50, 40), 2));
        let found = compare(&measure(json), &real, &one).unwrap();
        let defined: Vec<bool> = found.figures.iter().map(|f| f.is_some()).collect();
        assert_eq!(defined, [true, false, true]);
        for (option, value) in [("side", 30), ("pairs", 0), ("batch_size", 0)] {
            let mut json = serde_json::json!({ "weights": "x" });
            json[option] = value.into();
            let options = serde_json::from_value(json).unwrap();
            assert_eq!(LpipsMeasure::validate(&options).unwrap_err().field, option);
        }
    }
}
