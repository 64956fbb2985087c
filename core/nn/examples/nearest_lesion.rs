//! How far painted lesions are from the nearest real one, by LPIPS: near 0 where a generator repeats
//! what it has seen.
//!
//! ```sh
//! cargo run --release -p diffaug-nn --example nearest_lesion -- \
//!     path/to/lpips_alex.safetensors RUN/synthetic path/to/Kvasir-SEG [RUN/split.json]
//! ```
//!
//! Both folders hold `images` and `masks`; with a split only its training images count as real. Of
//! every image the square around its lesion is compared, at 64x64. The distances of real lesions from
//! the nearest other real one are printed beside, as a measure.

#![allow(clippy::print_stdout)]

use candle_core::{Device, Tensor};
use diffaug::{
    Error, ErrorKind, Image, Result, ResultExt,
    image::{DEFAULT_MAX_PIXELS, crop_image, open_gray, open_image, resize_image, resize_mask},
    metrics::mean,
    pairs::{list_files, pair_up},
};
use diffaug_nn::{
    batch::{self, Frame},
    perceptual::{Features, Lpips},
};
use std::{collections::HashSet, fs, path::Path, process::ExitCode};

/// Side of the compared windows.
const SIDE: u32 = 64;
/// Share of the lesion's longer side that a window shows on every side of it.
const MARGIN: f64 = 0.1;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (weights, synthetic, real, split) = match args.as_slice() {
        [weights, synthetic, real] => (weights, synthetic, real, None),
        [weights, synthetic, real, split] => (weights, synthetic, real, Some(split)),
        _ => {
            println!("expected WEIGHTS SYNTHETIC REAL [SPLIT]");
            return ExitCode::FAILURE;
        }
    };
    match report(weights, synthetic, real, split.map(Path::new)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn report(
    weights: impl AsRef<Path>,
    synthetic: impl AsRef<Path>,
    real: impl AsRef<Path>,
    split: Option<&Path>,
) -> Result<()> {
    let lpips = Lpips::open(weights.as_ref(), &Device::Cpu)?;
    let only = split.map(training_ids).transpose()?;
    let painted = windows(synthetic.as_ref(), None)?;
    let real = windows(real.as_ref(), only.as_ref())?;
    let known = features(&lpips, &real)?;
    show(
        "painted to nearest real",
        nearest(&lpips, &painted, &known, false)?,
    );
    show(
        "real to nearest other real",
        nearest(&lpips, &real, &known, true)?,
    );
    Ok(())
}

fn show(what: &str, mut distances: Vec<f64>) {
    distances.sort_by(f64::total_cmp);
    let at = |share: f64| distances[((distances.len() - 1) as f64 * share) as usize];
    println!(
        "{what}: mean {:.3}, smallest {:.3}, median {:.3} of {}",
        mean(&distances).unwrap_or(f64::NAN),
        at(0.0),
        at(0.5),
        distances.len()
    );
}

/// The ids of a split's training images.
fn training_ids(path: &Path) -> Result<HashSet<String>> {
    let cannot = || format!("cannot read `{}`", path.display());
    let text = fs::read(path).or_error(ErrorKind::Data, cannot)?;
    let split: serde_json::Value =
        serde_json::from_slice(&text).or_error(ErrorKind::Data, cannot)?;
    let train = split["train"].as_array();
    let train = train.ok_or_else(|| Error::data(format!("`{}` has no `train`", path.display())))?;
    let ids = train.iter().filter_map(|id| id.as_str().map(str::to_owned));
    Ok(ids.collect())
}

/// The squares around the lesions of a folder.
fn windows(folder: &Path, only: Option<&HashSet<String>>) -> Result<Vec<Image>> {
    let list = |name: &str| list_files(&folder.join(name));
    let mut all = Vec::new();
    for (id, image, mask) in pair_up(list("images")?, list("masks")?)? {
        if only.is_none_or(|only| only.contains(&id)) {
            all.extend(window(&image, &mask)?);
        }
    }
    match all.is_empty() {
        true => Err(Error::data(format!("no lesion in `{}`", folder.display()))),
        false => Ok(all),
    }
}

fn window(image: &Path, mask: &Path) -> Result<Option<Image>> {
    let image = open_image(image, DEFAULT_MAX_PIXELS)?;
    let (width, height) = image.size();
    let mask = resize_mask(open_gray(mask, DEFAULT_MAX_PIXELS)?.view(), width, height);
    let inside = (0..width * height).filter(|at| mask.labels()[*at as usize] > 127);
    let bounds = inside.fold(None, |bounds, at| {
        let (x, y) = (at % width, at / width);
        let (left, top, right, bottom) = bounds.unwrap_or((x, y, x, y));
        Some((left.min(x), top.min(y), right.max(x), bottom.max(y)))
    });
    let Some((left, top, right, bottom)) = bounds else {
        return Ok(None);
    };
    let longer = (right - left).max(bottom - top) + 1;
    let side = (f64::from(longer) * (1.0 + 2.0 * MARGIN)) as u32;
    let side = side.min(width).min(height);
    let place = |from: u32, to: u32, whole: u32| {
        ((from + to) / 2).saturating_sub(side / 2).min(whole - side)
    };
    let (x, y) = (place(left, right, width), place(top, bottom, height));
    let part = crop_image(image.view(), x, y, side, side)?;
    Ok(Some(resize_image(part.view(), SIDE, SIDE)))
}

fn features(lpips: &Lpips, images: &[Image]) -> Result<Features> {
    let views: Vec<_> = images.iter().map(Image::view).collect();
    let pixels: Tensor = batch::images(&views, Frame::padded((SIDE, SIDE), 1), &Device::Cpu)?;
    Ok(lpips.features(&pixels.affine(2.0, -1.0)?)?)
}

/// The distance of each image from the nearest of `known`, `besides_itself` where it is one of them.
fn nearest(
    lpips: &Lpips,
    images: &[Image],
    known: &Features,
    besides_itself: bool,
) -> Result<Vec<f64>> {
    let one = |(place, image): (usize, &Image)| {
        let own = features(lpips, std::slice::from_ref(image))?;
        let distances: Vec<f32> = lpips.between(&own, known)?.to_vec1()?;
        let others = distances.iter().enumerate();
        let others = others.filter(|(other, _)| !(besides_itself && *other == place));
        Ok(others
            .map(|(_, d)| f64::from(*d))
            .fold(f64::INFINITY, f64::min))
    };
    images.iter().enumerate().map(one).collect()
}
