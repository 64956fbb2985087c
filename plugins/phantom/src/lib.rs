//! The dataset `phantom`: procedural colonoscopy frames and fundus photographs with exact masks.
//!
//! Nothing is downloaded and nothing is stored: every sample is painted when it is asked for, from
//! a stream of draws that depends on the seed, the part and the index alone. It is meant for trying
//! the pipeline and for tests whose answer is known, not for clinical claims.
//!
//! In the colon's `train` and `validation` parts flat (8 %) and small (10 %) polyps are rare, as
//! they are in real collections; the `test` part is balanced (a third of each morphology, a third
//! small), so that every group can be scored.

#![forbid(unsafe_code)]

mod clutter;
mod colon;
mod draw;
mod film;
mod frame;
mod fundus;
mod lesion;
mod noise;
mod shade;
mod tube;
mod vessels;

use diffaug::{prelude::*, rng};
use serde::Serialize;

/// Smallest and largest side, in pixels.
const SIZES: std::ops::RangeInclusive<u32> = 32..=1024;

/// Most samples of a part.
const MOST: u32 = 100_000;

/// What is painted.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Colonoscopy frames; the class is `polyp`.
    Colon,
    /// Fundus photographs; label 1 is the rim of the optic disc, label 2 the optic cup.
    Fundus,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Colon => "colon",
            Kind::Fundus => "fundus",
        }
    }
}

/// Options of the dataset `phantom`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// What is painted: `colon` or `fundus`.
    pub kind: Kind,
    /// Width and height in pixels, 32 to 1024.
    pub size: u32,
    /// Number of training samples, at most 100,000.
    pub train: u32,
    /// Number of validation samples, at most 100,000.
    pub validation: u32,
    /// Number of test samples, at most 100,000.
    pub test: u32,
    /// Which data set is painted; it does not follow the run's seed, so that runs share their data.
    pub seed: u64,
    /// Fraction of colon frames without a polyp, 0 to 1.
    pub normal: f64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            kind: Kind::Colon,
            size: 256,
            train: 200,
            validation: 40,
            test: 100,
            seed: 0,
            normal: 0.0,
        }
    }
}

/// A part of the data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Train,
    Validation,
    Test,
}

impl Part {
    fn word(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Validation => "validation",
            Part::Test => "test",
        }
    }
}

/// The data set; holds its options and no pixels.
#[derive(Clone, Debug)]
pub struct Phantom {
    options: Options,
}

impl FromConfig for Phantom {
    type Config = Options;

    fn validate(options: &Options) -> Result<()> {
        if !SIZES.contains(&options.size) {
            return Err(Error::config(format!(
                "`size` is `{}`, expected {} to {} pixels",
                options.size,
                SIZES.start(),
                SIZES.end()
            ))
            .at("size"));
        }
        let parts = [
            ("train", options.train),
            ("validation", options.validation),
            ("test", options.test),
        ];
        for (part, count) in parts {
            if count > MOST {
                let message = format!("`{part}` is `{count}`, expected at most {MOST} samples");
                return Err(Error::config(message).at(part));
            }
        }
        if !(0.0..=1.0).contains(&options.normal) {
            return Err(Error::config(format!(
                "`normal` is `{}`, expected a fraction between 0 and 1",
                options.normal
            ))
            .at("normal"));
        }
        if options.kind == Kind::Fundus && options.normal > 0.0 {
            return Err(Error::config(
                "`normal` is for kind `colon`: every fundus has an optic cup, expected 0",
            )
            .at("normal"));
        }
        if u64::from(options.train) + u64::from(options.validation) + u64::from(options.test) == 0 {
            return Err(Error::config(
                "`train`, `validation` and `test` are all 0, expected at least one sample",
            )
            .at("train"));
        }
        Ok(())
    }

    fn from_config(options: Options, _: &Context) -> Result<Self> {
        Ok(Phantom { options })
    }
}

impl Phantom {
    /// The parts in the order of the listing, with their sizes.
    fn parts(&self) -> [(Part, u32); 3] {
        [
            (Part::Train, self.options.train),
            (Part::Validation, self.options.validation),
            (Part::Test, self.options.test),
        ]
    }

    fn id(&self, part: Part, index: u64) -> String {
        format!("{}-{}-{index:04}", self.options.kind.word(), part.word())
    }

    /// Part and index within it.
    fn find(&self, index: u64) -> Result<(Part, u64)> {
        let mut rest = index;
        for (part, size) in self.parts() {
            if rest < u64::from(size) {
                return Ok((part, rest));
            }
            rest -= u64::from(size);
        }
        Err(Error::data(format!(
            "there is no sample `{index}`: the phantom has {}",
            index - rest
        )))
    }
}

impl Dataset for Phantom {
    fn info(&self) -> Result<DatasetInfo> {
        let mut info = match self.options.kind {
            Kind::Colon => DatasetInfo::single_class("phantom colon", "polyp"),
            Kind::Fundus => DatasetInfo {
                name: "phantom fundus".into(),
                classes: RVec::from(vec![
                    Class {
                        label: fundus::DISC,
                        name: "optic disc".into(),
                        target: false,
                    },
                    Class {
                        label: fundus::CUP,
                        name: "optic cup".into(),
                        target: true,
                    },
                ]),
                splits: RVec::new(),
            },
        };
        info.splits.push(NamedSplit {
            name: "official".into(),
            rule: SplitRule::Parts,
            train: self.options.train,
            validation: self.options.validation,
            test: self.options.test,
        });
        Ok(info)
    }

    fn items(&self) -> Result<RVec<Item>> {
        let list = |(part, size): (Part, u32)| {
            (0..u64::from(size)).map(move |index| Item {
                part: part.word().into(),
                ..Item::new(&self.id(part, index))
            })
        };
        Ok(self.parts().into_iter().flat_map(list).collect())
    }

    fn sample(&self, index: u64) -> Result<Sample> {
        let (part, index) = self.find(index)?;
        let Options {
            kind, size, seed, ..
        } = self.options;
        let purpose = format!("phantom/{}/{}", kind.word(), part.word());
        let mut rng = rng::stream(seed, &purpose, index);
        let (image, mask, attributes) = match kind {
            Kind::Colon => {
                let scene = colon::render(size, part, index, self.options.normal, &mut rng)?;
                (scene.image, scene.mask, scene.attributes)
            }
            Kind::Fundus => {
                let scene = fundus::render(size, &mut rng)?;
                (scene.image, scene.mask, scene.attributes)
            }
        };
        Ok(Sample {
            id: self.id(part, index).into(),
            image,
            mask,
            attributes,
        })
    }
}

diffaug::export_plugin! {
    dataset "phantom" => Phantom, "painted colonoscopy and fundus images with exact masks; nothing to download"
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::{
        appearance::Appearance,
        lesion::{SMALL_AREA, vertical_extent},
    };

    fn phantom(change: impl FnOnce(&mut Options)) -> Phantom {
        let mut options = Options {
            size: 64,
            train: 6,
            validation: 3,
            test: 9,
            ..Options::default()
        };
        change(&mut options);
        Phantom::validate(&options).unwrap();
        Phantom::from_config(options, &Context::default()).unwrap()
    }

    fn contrast(sample: &Sample) -> f64 {
        let (image, mask) = (sample.image.view(), sample.mask.view());
        Appearance::of(image, mask, &[colon::POLYP])
            .unwrap()
            .contrast
    }

    fn area(sample: &Sample) -> f64 {
        let (width, height) = sample.mask.size();
        sample.mask.view().foreground() as f64 / f64::from(width * height)
    }

    fn all(phantom: &Phantom) -> Vec<Sample> {
        let count = phantom.items().unwrap().len() as u64;
        (0..count).map(|i| phantom.sample(i).unwrap()).collect()
    }

    #[test]
    fn the_listing_follows_the_parts() {
        let phantom = phantom(|_| {});
        let items = phantom.items().unwrap();
        assert_eq!(items.len(), 18);
        assert_eq!(items[0].id.as_str(), "colon-train-0000");
        assert_eq!(items[7].id.as_str(), "colon-validation-0001");
        assert_eq!(items[7].part.as_str(), "validation");
        assert_eq!(items[17].id.as_str(), "colon-test-0008");
        let split = &phantom.info().unwrap().splits[0];
        assert_eq!((split.train, split.validation, split.test), (6, 3, 9));
        for (item, sample) in items.iter().zip(all(&phantom)) {
            assert_eq!(item.id, sample.id);
        }
        let error = phantom.sample(18).unwrap_err();
        assert_eq!(
            error.message.as_str(),
            "there is no sample `18`: the phantom has 18"
        );
    }

    #[test]
    fn samples_depend_on_seed_part_and_index_alone() {
        for kind in [Kind::Colon, Kind::Fundus] {
            let one = phantom(|options| options.kind = kind);
            let forwards = all(&one);
            // Other sizes of the parts, another order: the same samples.
            let other = phantom(|options| {
                options.kind = kind;
                options.train = 2;
                options.validation = 0;
            });
            for i in (0..9).rev() {
                assert_eq!(other.sample(2 + i).unwrap(), forwards[9 + i as usize]);
            }
            let reseeded = phantom(|options| {
                options.kind = kind;
                options.seed = 1;
            });
            assert_ne!(reseeded.sample(0).unwrap().image, forwards[0].image);
            assert_ne!(forwards[0].image, forwards[6].image);
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let phantom = phantom(|_| {});
        let alone = all(&phantom);
        let together: Vec<Vec<Sample>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..3).map(|_| scope.spawn(|| all(&phantom))).collect();
            workers.into_iter().map(|w| w.join().unwrap()).collect()
        });
        assert!(together.iter().all(|samples| *samples == alone));
    }

    #[test]
    fn every_test_group_is_there_and_fits_its_mask() {
        let phantom = phantom(|options| {
            options.train = 0;
            options.validation = 0;
            options.test = 45;
        });
        let mut small = 0;
        for (i, sample) in all(&phantom).iter().enumerate() {
            let area = area(sample);
            assert!((0.004..0.25).contains(&area), "{}: area {area}", sample.id);
            small += usize::from(area < SMALL_AREA);
            let morphology = sample.attributes.text("morphology").unwrap();
            assert_eq!(morphology, ["sessile", "pedunculated", "flat"][i % 3]);
            assert_eq!(sample.attributes.flag("flat"), Some(morphology == "flat"));
            assert_eq!(sample.mask.view().classes(), [colon::POLYP]);
            let contrast = contrast(sample);
            assert!(
                (0.0..70.0).contains(&contrast),
                "{}: contrast {contrast}",
                sample.id
            );
        }
        assert_eq!(small, 15);
    }

    #[test]
    fn flat_and_small_polyps_are_rare_in_training() {
        let phantom = phantom(|options| {
            options.size = 32;
            options.train = 300;
        });
        let samples: Vec<Sample> = (0..300).map(|i| phantom.sample(i).unwrap()).collect();
        let share = |test: &dyn Fn(&Sample) -> bool| {
            samples.iter().filter(|sample| test(sample)).count() as f64 / 300.0
        };
        let flat = share(&|sample| sample.attributes.flag("flat") == Some(true));
        let small = share(&|sample| area(sample) < SMALL_AREA);
        assert!((0.04..0.12).contains(&flat), "flat {flat}");
        assert!((0.05..0.16).contains(&small), "small {small}");
        let mean = samples.iter().map(contrast).sum::<f64>() / 300.0;
        assert!((5.0..25.0).contains(&mean), "mean contrast {mean}");
    }

    #[test]
    fn normal_frames_have_neither_mask_nor_lesion_attributes() {
        let healthy = phantom(|options| options.normal = 1.0);
        for sample in all(&healthy) {
            assert_eq!(sample.mask.view().foreground(), 0);
            assert_eq!(sample.attributes, Attributes::new());
        }
        let mixed = phantom(|options| options.normal = 0.5);
        let empty = all(&mixed).iter().filter(|s| area(s) == 0.0).count();
        assert!((4..15).contains(&empty), "{empty} of 18");
    }

    #[test]
    fn the_cup_to_disc_ratio_can_be_measured() {
        let phantom = phantom(|options| {
            options.kind = Kind::Fundus;
            options.size = 256;
            options.train = 24;
        });
        for i in 0..24 {
            let sample = phantom.sample(i).unwrap();
            let mask = sample.mask.view();
            assert_eq!(mask.classes(), [fundus::DISC, fundus::CUP]);
            let tall = |labels: &[u8]| f64::from(vertical_extent(mask, labels));
            let measured = tall(&[fundus::CUP]) / tall(&[fundus::DISC, fundus::CUP]);
            let stated = sample.attributes.number("cdr").unwrap();
            assert!((measured - stated).abs() < 0.03, "{measured} for {stated}");
            assert_eq!(sample.attributes.flag("glaucoma"), Some(stated > 0.6));
            let early = (0.5..=0.6).contains(&stated);
            assert_eq!(sample.attributes.flag("early_glaucoma"), Some(early));
        }
    }

    #[test]
    fn the_cup_lies_in_the_disc() {
        let phantom = phantom(|options| {
            options.kind = Kind::Fundus;
            options.size = 128;
            options.train = 60;
        });
        for i in 0..60 {
            let sample = phantom.sample(i).unwrap();
            let labels = sample.mask.labels();
            for at in 129..labels.len() - 129 {
                if labels[at] == fundus::CUP {
                    let around = [at - 1, at + 1, at - 128, at + 128];
                    assert!(around.iter().all(|&n| labels[n] != 0), "{}", sample.id);
                }
            }
        }
    }

    #[test]
    fn extreme_sizes_work() {
        for (kind, size) in [(Kind::Colon, 32), (Kind::Fundus, 32), (Kind::Colon, 400)] {
            let phantom = phantom(|options| {
                options.kind = kind;
                options.size = size;
            });
            let sample = phantom.sample(0).unwrap();
            assert_eq!(sample.image.size(), (size, size));
            assert!(sample.mask.view().foreground() > 0);
        }
    }

    #[test]
    fn bad_options_are_named() {
        type Change = fn(&mut Options);
        let cases: [(Change, &str); 8] = [
            (|o| o.train = MOST + 1, "train"),
            (|o| o.validation = u32::MAX, "validation"),
            (|o| o.test = 100_000_000, "test"),
            (|o| o.size = 16, "size"),
            (|o| o.size = 2000, "size"),
            (|o| o.normal = -0.5, "normal"),
            (
                |o| {
                    o.kind = Kind::Fundus;
                    o.normal = 0.5;
                },
                "normal",
            ),
            (
                |o| {
                    o.train = 0;
                    o.validation = 0;
                    o.test = 0;
                },
                "train",
            ),
        ];
        for (change, field) in cases {
            let mut options = Options::default();
            change(&mut options);
            let error = Phantom::validate(&options).unwrap_err();
            assert_eq!(error.field.as_str(), field);
            assert_eq!(error.kind, ErrorKind::Config);
        }
        assert!(serde_json::from_str::<Options>(r#"{"kind": "brain"}"#).is_err());
        assert!(serde_json::from_str::<Options>(r#"{"sise": 64}"#).is_err());
        let some: Options = serde_json::from_str(r#"{"kind": "fundus"}"#).unwrap();
        assert_eq!((some.kind, some.size), (Kind::Fundus, 256));
    }
}
