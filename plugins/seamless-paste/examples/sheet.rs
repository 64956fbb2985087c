//! A contact sheet to judge the blending by eye:
//! `sheet FOLDER DONORS OUT.png [FIRST] [OPTIONS-JSON]`.
//!
//! FOLDER holds `images/` and `masks/`. DONORS is where `fit` leaves the lesions of every image, or
//! FOLDER itself to do without. Every pair of tiles shows a background with the wanted outline and
//! what was painted there. In odd rows the outline is the image's own, in even rows that of
//! another image.

use diffaug::{
    image::{MaskRule, open_image, open_mask, resize_image, resize_mask, save_image},
    pairs::{list_files, pair_up},
    prelude::*,
    stage::{Silent, with_reporter},
};
use diffaug_seamless_paste::{Options, SeamlessPaste};
use std::path::{Path, PathBuf};

const SIDE: u32 = 256;
const ROWS: usize = 6;
const PAIRS: usize = 2;
/// The same as [`diffaug::image::DEFAULT_MAX_PIXELS`] would be too generous for a sheet.
const MAX_PIXELS: u64 = 16_000_000;

struct Scene {
    source: String,
    image: Image,
    mask: Mask,
}

fn main() -> std::result::Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    sheet(&arguments).map_err(|error| error.to_string())
}

fn sheet(arguments: &[String]) -> Result<()> {
    let [folder, donors, out, rest @ ..] = arguments else {
        return Err(Error::config(
            "usage: sheet FOLDER DONORS OUT.png [FIRST] [OPTIONS-JSON]",
        ));
    };
    let first = rest.first().map_or(Ok(0), |text| text.parse::<usize>())?;
    let mut options: Options = serde_json::from_str(rest.get(1).map_or("{}", String::as_str))?;
    let dataset = Folder::open(Path::new(folder))?;
    let scenes = scenes(&dataset, first)?;
    if donors != folder {
        let dataset = BoxDataset::new(dataset);
        let prompts = BoxPromptBank::new(NoPrompts);
        let generator = SeamlessPaste::from_config(options.clone(), &Context::default())?;
        with_reporter(&Silent, |reporter| {
            generator.fit(
                &dataset,
                &dataset,
                &prompts,
                donors.as_str().into(),
                reporter,
            )
        })?;
    }
    options.weights = Some(PathBuf::from(donors));
    let jobs: Vec<Job<'_>> = scenes
        .iter()
        .enumerate()
        .map(|(i, scene)| Job {
            source: scene.source.as_str().into(),
            image: scene.image.view(),
            mask: scene.mask.view(),
            prompt: "".into(),
            negative: "".into(),
            seed: i as u64,
        })
        .collect();
    let generator = SeamlessPaste::from_config(options, &Context::default())?;
    let painted = with_reporter(&Silent, |reporter| {
        generator.generate(jobs.as_slice().into(), reporter)
    })?;
    let mut pixels = vec![0; (SIDE * SIDE) as usize * 3 * ROWS * PAIRS * 2];
    for (i, (scene, image)) in scenes.iter().zip(&painted).enumerate() {
        place(&mut pixels, 2 * i, &outlined(scene));
        place(&mut pixels, 2 * i + 1, image);
    }
    let size = (SIDE * 2 * PAIRS as u32, SIDE * ROWS as u32);
    save_image(Image::new(size.0, size.1, pixels)?.view(), Path::new(out))
}

/// Backgrounds with the outlines to fill, from `first` on in the order of names.
fn scenes(dataset: &Folder, first: usize) -> Result<Vec<Scene>> {
    let pick = |i: usize| dataset.sample((i % dataset.0.len()) as u64);
    (0..ROWS * PAIRS)
        .map(|i| {
            let own = (i / PAIRS).is_multiple_of(2);
            let Sample {
                id, image, mask, ..
            } = pick(first + 7 * i)?;
            let mask = if own {
                mask
            } else {
                pick(first + 7 * i + 3)?.mask
            };
            Ok(Scene {
                source: id.into(),
                image,
                mask,
            })
        })
        .collect()
}

/// The images of a folder at the size of a tile.
struct Folder(Vec<(String, PathBuf, PathBuf)>);

impl Folder {
    fn open(root: &Path) -> Result<Self> {
        let files = |name: &str| list_files(&root.join(name));
        Ok(Folder(pair_up(files("images")?, files("masks")?)?))
    }
}

impl Dataset for Folder {
    fn info(&self) -> Result<DatasetInfo> {
        Ok(DatasetInfo::single_class("sheet", "lesion"))
    }

    fn items(&self) -> Result<RVec<Item>> {
        Ok(self.0.iter().map(|(stem, ..)| Item::new(stem)).collect())
    }

    fn sample(&self, index: u64) -> Result<Sample> {
        let (stem, image, mask) = &self.0[index as usize];
        let rule = MaskRule::Above {
            threshold: 127,
            label: 1,
        };
        Ok(Sample {
            id: stem.as_str().into(),
            image: resize_image(open_image(image, MAX_PIXELS)?.view(), SIDE, SIDE),
            mask: resize_mask(open_mask(mask, MAX_PIXELS, &rule)?.view(), SIDE, SIDE),
            attributes: Attributes::new(),
        })
    }
}

/// `fit` wants a bank, but does not look at it.
struct NoPrompts;

impl PromptBank for NoPrompts {
    fn draw(&self, _: RSlice<'_, PromptQuery<'_>>, _: u64) -> Result<RVec<Prompt>> {
        Ok(RVec::new())
    }
}

/// The background with the wanted outline in green.
fn outlined(scene: &Scene) -> Image {
    let mut image = scene.image.clone();
    let side = SIDE as usize;
    let on = |x: usize, y: usize| scene.mask.labels()[y * side + x] != 0;
    for (x, y) in (0..side * side).map(|i| (i % side, i / side)) {
        let around = [
            (x.saturating_sub(1), y),
            ((x + 1).min(side - 1), y),
            (x, y.saturating_sub(1)),
            (x, (y + 1).min(side - 1)),
        ];
        if on(x, y) && around.iter().any(|&(x, y)| !on(x, y)) {
            image.bytes_mut()[(y * side + x) * 3..][..3].copy_from_slice(&[0, 255, 0]);
        }
    }
    image
}

fn place(sheet: &mut [u8], tile: usize, image: &Image) {
    let (row, column) = (tile / (2 * PAIRS), tile % (2 * PAIRS));
    let line = SIDE as usize * 3;
    for y in 0..SIDE as usize {
        let to = ((row * SIDE as usize + y) * 2 * PAIRS + column) * line;
        sheet[to..to + line].copy_from_slice(&image.pixels()[y * line..][..line]);
    }
}
