//! REFUGE and REFUGE2: fundus photographs with masks of optic disc and cup (Orlando et al.,
//! *REFUGE Challenge*, Medical Image Analysis 2020). 400 images each for training (1634x1634 or
//! 2124x2056 pixels), validation and test.
//!
//! The archives have been packed in many ways, so folders are told by their names wherever they
//! lie below `ROOT`; upper and lower case do not matter:
//!
//! ```text
//! Training400/{Glaucoma,Non-Glaucoma}/g0001.jpg            as distributed
//! Annotation-Training400/Disc_Cup_Masks/{Glaucoma,Non-Glaucoma}/g0001.bmp
//! REFUGE-Validation400/V0001.jpg
//! REFUGE-Validation400-GT/Disc_Cup_Masks/V0001.bmp
//! Test400/T0001.jpg      (or REFUGE-Test400, REFUGE1-Test-400/Images, …)
//! REFUGE-Test-GT/Disc_Cup_Masks/{G,N}/T0001.bmp
//!
//! {train,val,test}/images/g0001.jpg                        common packs
//! {train,val,test}/mask/g0001.bmp   (or masks, gts)
//!
//! images/T0001.jpg   masks/T0001.png                       a single part
//! ```
//!
//! The *last* folder name that speaks of train, validation or test decides on the part. A folder of
//! images without any mask (REFUGE2's unreleased ones) is skipped with a warning.
//!
//! Splits, where every sample has a part: `paper` trains on training + validation and tests on the
//! test part (800 / 400, the default; a validation part is carved from train), `official` takes the
//! parts as they are (400 / 400 / 400).
//!
//! Labels are 1 for the rim of the disc and 2 for the cup. Facts of a sample: `cdr`, the vertical
//! cup-to-disc ratio; `glaucoma`, where folder or file name tell; `early_glaucoma`, a ratio from
//! 0.5 to 0.6.

#![forbid(unsafe_code)]

mod layout;
mod plausible;

use diffaug::{
    image::{MaskFault, MaskRule, mask::list_values},
    lesion::vertical_extent,
    pairs::Pairs,
    prelude::*,
    published::Published,
};
use serde::Serialize;
use std::{ops::RangeInclusive, path::PathBuf};

/// Label of the disc without the cup.
const RIM: u8 = 1;

/// Label of the cup.
const CUP: u8 = 2;

/// Vertical cup-to-disc ratios that count as a beginning glaucoma.
const EARLY: RangeInclusive<f64> = 0.5..=0.6;

/// What the grey values of a mask mean.
#[derive(Deserialize, Serialize, JsonSchema, Debug, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Coding {
    /// As distributed: 255 background, 128 rim of the disc, 0 cup.
    #[default]
    Refuge,
    /// 0 background, 1 rim, 2 cup.
    Labels,
    /// 0 background, 128 rim, 255 cup.
    Inverted,
}

impl Coding {
    const ALL: [(Coding, &str); 3] = [
        (Coding::Refuge, "refuge"),
        (Coding::Labels, "labels"),
        (Coding::Inverted, "inverted"),
    ];

    fn name(self) -> &'static str {
        let known = Self::ALL.into_iter().find(|(coding, _)| *coding == self);
        known.map_or("", |(_, name)| name)
    }

    /// The values of background, rim and cup.
    fn values(self) -> [u8; 3] {
        match self {
            Coding::Refuge => [255, 128, 0],
            Coding::Labels => [0, 1, 2],
            Coding::Inverted => [0, 128, 255],
        }
    }

    fn rule(self) -> MaskRule {
        let [background, rim, cup] = self.values();
        MaskRule::Values([(background, 0), (rim, RIM), (cup, CUP)].into())
    }
}

/// What to do about values that are not those of the coding.
fn advise(fault: &MaskFault) -> String {
    let fits = |(coding, _): &(Coding, &str)| {
        let known = coding.values();
        fault.values.iter().all(|value| known.contains(value))
    };
    match Coding::ALL.iter().find(|entry| fits(entry)) {
        Some((_, name)) => format!("its values are those of `coding = \"{name}\"`"),
        None if fault.lossy => {
            "JPEG values stray: masks of several classes have to be PNG, TIFF or BMP".into()
        }
        None => format!("the file holds {} besides 0", list_values(&fault.values)),
    }
}

/// What is painted and scored.
#[derive(Deserialize, Serialize, JsonSchema, Debug, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The optic cup.
    #[default]
    Cup,
    /// The whole optic disc: rim and cup.
    Disc,
}

/// Options of the dataset `refuge2`.
#[derive(Deserialize, Serialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-published" = published()))]
pub struct Options {
    /// The folder below which images and masks lie.
    pub root: PathBuf,
    /// What is painted and scored: `cup` or `disc` (rim and cup).
    #[serde(default)]
    pub target: Target,
    /// What the grey values of the masks mean.
    #[serde(default)]
    pub coding: Coding,
    /// Cut a square of so many pixels around the disc, black beyond the border of the image. Its
    /// centre comes from the mask, at test time as well: results then hold for a disc that has
    /// been located, as is usual in the literature, but not for whole photographs.
    #[serde(default)]
    pub crop: Option<u32>,
    /// What to call the dataset in reports.
    #[serde(default = "name")]
    pub name: String,
}

fn name() -> String {
    "REFUGE2".into()
}

/// What its authors published with masks: 400 images for each of training, validation and test.
fn published() -> Published {
    Published {
        samples: 1200,
        groups: None,
        homepage: "https://refuge.grand-challenge.org/".into(),
        terms: "research, after registration; see the page; cite Orlando et al. 2020".into(),
    }
}

/// The dataset.
#[derive(Debug)]
pub struct Refuge2 {
    pairs: Pairs,
    coding: Coding,
    crop: Option<u32>,
}

impl FromConfig for Refuge2 {
    type Config = Options;

    fn validate(options: &Options) -> Result<()> {
        match options.crop {
            Some(0) => Err(Error::config("a crop of 0 pixels shows nothing").at("crop")),
            _ => Ok(()),
        }
    }

    fn from_config(options: Options, context: &Context) -> Result<Self> {
        if let Some(side) = options.crop
            && u64::from(side) * u64::from(side) > context.max_pixels
        {
            return Err(Error::config(format!(
                "a crop of {side}x{side} pixels is over the limit of {} pixels",
                context.max_pixels
            ))
            .at("crop"));
        }
        let found = layout::find(&options.root).map_err(|error| error.at("root"))?;
        let in_parts = found.iter().all(|pair| !pair.item.part.is_empty());
        let info = info(&options, in_parts);
        let pairs = Pairs::new(info, found, options.coding.rule(), context)?;
        Ok(Refuge2 {
            pairs: pairs.with_advice(advise),
            coding: options.coding,
            crop: options.crop,
        })
    }
}

fn info(options: &Options, in_parts: bool) -> DatasetInfo {
    let disc = options.target == Target::Disc;
    let class = |label, name: &str, target| Class {
        label,
        name: name.into(),
        target,
    };
    let rim = if disc { "optic disc" } else { "optic disc rim" };
    let split = |name: &str, train, validation| NamedSplit {
        name: name.into(),
        rule: SplitRule::Parts,
        train,
        validation,
        test: 400,
    };
    DatasetInfo {
        name: match options.crop {
            Some(side) => format!("{} (disc crops of {side} pixels)", options.name).into(),
            None => options.name.as_str().into(),
        },
        classes: vec![class(RIM, rim, disc), class(CUP, "optic cup", true)].into(),
        splits: match in_parts {
            true => vec![split("paper", 800, 0), split("official", 400, 400)].into(),
            false => RVec::new(),
        },
    }
}

impl Dataset for Refuge2 {
    fn info(&self) -> Result<DatasetInfo> {
        self.pairs.info()
    }

    fn items(&self) -> Result<RVec<Item>> {
        self.pairs.items()
    }

    fn check(&self, index: u64) -> Result<()> {
        self.pairs.check(index)
    }

    fn sample(&self, index: u64) -> Result<Sample> {
        let mut sample = self.pairs.sample(index)?;
        if let Some(why) = plausible::fault(sample.mask.view()) {
            // The pairs are in the order of the samples.
            let pair = &self.pairs.pairs()[index as usize];
            return Err(plausible::refuse(
                self.coding,
                sample.mask.view(),
                &pair.mask,
                &why,
            ));
        }
        if let Some(ratio) = cup_to_disc(sample.mask.view()) {
            sample.attributes.set_number("cdr", ratio);
            let early = EARLY.contains(&ratio);
            sample.attributes.set_flag("early_glaucoma", early);
        }
        if let Some(side) = self.crop {
            crop_to_disc(&mut sample, side)?;
        }
        Ok(sample)
    }
}

/// Height of the cup over height of the disc; none without a disc.
fn cup_to_disc(mask: MaskRef<'_>) -> Option<f64> {
    let disc = vertical_extent(mask, &[RIM, CUP]);
    let cup = vertical_extent(mask, &[CUP]);
    (disc > 0).then(|| f64::from(cup) / f64::from(disc))
}

/// Mean position of the pixels that are not background, to the nearest pixel; the middle of the
/// image if there are none.
fn disc_centre(mask: MaskRef<'_>) -> (i64, i64) {
    let width = mask.width() as usize;
    let (mut count, mut x, mut y) = (0u64, 0u64, 0u64);
    for (at, _) in mask
        .labels()
        .iter()
        .enumerate()
        .filter(|(_, label)| **label != 0)
    {
        count += 1;
        x += (at % width) as u64;
        y += (at / width) as u64;
    }
    if count == 0 {
        return (i64::from(mask.width() / 2), i64::from(mask.height() / 2));
    }
    let mean = |sum: u64| ((2 * sum + count) / (2 * count)) as i64;
    (mean(x), mean(y))
}

fn crop_to_disc(sample: &mut Sample, side: u32) -> Result<()> {
    let (x, y) = disc_centre(sample.mask.view());
    let half = i64::from(side / 2);
    let window = Window {
        left: x - half,
        top: y - half,
        side,
        size: sample.image.size(),
    };
    sample.image = Image::new(side, side, window.cut(sample.image.pixels(), 3))?;
    sample.mask = Mask::new(side, side, window.cut(sample.mask.labels(), 1))?;
    Ok(())
}

/// A square that may reach beyond the image.
struct Window {
    left: i64,
    top: i64,
    side: u32,
    /// Width and height of the image.
    size: (u32, u32),
}

impl Window {
    /// The bytes inside, `channels` a pixel, 0 beyond the image.
    fn cut(&self, bytes: &[u8], channels: usize) -> Vec<u8> {
        let side = self.side as usize;
        let mut out = vec![0; side * side * channels];
        // Columns of the image that the window covers.
        let end = self.left + i64::from(self.side);
        let from = self.left.clamp(0, i64::from(self.size.0));
        let to = end.clamp(0, i64::from(self.size.0));
        for (row, line) in (self.top..).zip(out.chunks_exact_mut(side * channels)) {
            if from >= to || !(0..i64::from(self.size.1)).contains(&row) {
                continue;
            }
            let source = row as usize * self.size.0 as usize;
            let source = &bytes[(source + from as usize) * channels..];
            let length = (to - from) as usize * channels;
            let offset = (from - self.left) as usize * channels;
            line[offset..][..length].copy_from_slice(&source[..length]);
        }
        out
    }
}

diffaug::export_plugin! {
    dataset "refuge2" => Refuge2, "REFUGE2: optic disc and cup in fundus photographs"
}

#[cfg(test)]
mod tests;
