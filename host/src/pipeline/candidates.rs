//! Which images are to be painted: candidate `k` of a run, found without the ones before it.
//!
//! A candidate is (background, variant). Its mask, prompt and seed derive from the run's seed and
//! that pair alone, so that neither order, batches nor an interruption can change it. Variants go
//! round robin over the backgrounds, so that a quota is filled from as many as possible.

use crate::manifest::{Background, Synthesis};
use diffaug::{
    Attributes, BoxPromptBank, Dataset, Error, Image, Item, Mask, Prompt, PromptBank, PromptQuery,
    Result, Sample,
    image::{ReadOptions, crop_image, open_image, resize_image},
    lesion, pairs, rng,
    view::Shared,
};
use rand::RngExt;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

/// Attempts to find a lesion-free crop before a background is given up.
const CROP_ATTEMPTS: usize = 64;

/// An image to be painted, complete.
pub struct Candidate {
    /// `SOURCE/VARIANT`, unique in the run.
    pub id: String,
    /// Id of the image that lends the background.
    pub source: String,
    /// Which of the background's candidates this is.
    pub variant: u32,
    /// All randomness of the generator.
    pub seed: u64,
    /// What is painted into.
    pub background: Image,
    /// Where to paint: target labels alone.
    pub wanted: Mask,
    /// What the finished image is labelled with: `wanted` and the labels around it.
    pub label: Mask,
    /// Facts of `wanted`.
    pub attributes: Attributes,
    /// What to paint.
    pub prompt: Prompt,
}

/// A background with the mask that is wanted on it.
struct Scene {
    background: Image,
    label: Mask,
    attributes: Attributes,
}

/// Every candidate of a run.
pub struct Candidates<'a> {
    options: &'a Synthesis,
    size: Option<(u32, u32)>,
    reading: ReadOptions,
    seed: u64,
    train: Shared,
    items: Vec<Item>,
    external: Vec<PathBuf>,
    targets: Vec<u8>,
    target_name: String,
    /// Indices of training samples that show a lesion; filled when first needed.
    lesions: OnceLock<Vec<u64>>,
}

impl<'a> Candidates<'a> {
    /// Lists the backgrounds.
    ///
    /// # Errors
    /// When the training view or the folder of external backgrounds cannot be listed.
    pub fn new(
        train: Shared,
        options: &'a Synthesis,
        size: Option<(u32, u32)>,
        reading: ReadOptions,
        seed: u64,
    ) -> Result<Self> {
        let info = train.info()?;
        let external = match (&options.background, &options.external) {
            (Background::External, Some(folder)) => {
                pairs::list_files(folder).map_err(|e| e.at("synthesis.external"))?
            }
            _ => Vec::new(),
        };
        let target = info.classes.iter().find(|class| class.target);
        Ok(Candidates {
            options,
            size,
            reading,
            seed,
            items: train.items()?.into_iter().collect(),
            train,
            external,
            targets: info.targets(),
            target_name: target.map_or_else(String::new, |class| class.name.to_string()),
            lesions: OnceLock::new(),
        })
    }

    /// How many backgrounds there are.
    fn backgrounds(&self) -> usize {
        match self.options.background {
            Background::External => self.external.len(),
            _ => self.items.len(),
        }
    }

    /// How many candidates there are at most.
    pub fn len(&self) -> u64 {
        self.backgrounds() as u64 * u64::from(self.options.variants)
    }

    /// Candidate `index`, or why there is none (a background without a lesion-free part).
    ///
    /// # Errors
    /// When a file cannot be read or the bank has no prompt.
    pub fn get(&self, index: u64, bank: &BoxPromptBank) -> Result<Result<Candidate, Skipped>> {
        let backgrounds = self.backgrounds() as u64;
        let (source, variant) = ((index % backgrounds) as usize, (index / backgrounds) as u32);
        let name = self.name(source)?;
        let id = format!("{name}/{variant}");
        let Some(scene) = self.scene(source, &name, variant)? else {
            return Ok(Err(Skipped {
                id,
                source: name,
                variant,
            }));
        };
        let prompt = self.prompt(source, &name, variant, bank)?;
        let mut wanted = scene.label.clone();
        for label in wanted.bytes_mut() {
            if !self.targets.contains(label) {
                *label = 0;
            }
        }
        Ok(Ok(Candidate {
            seed: self.candidate_seed(&name, variant),
            id,
            source: name,
            variant,
            background: scene.background,
            wanted,
            label: scene.label,
            attributes: scene.attributes,
            prompt,
        }))
    }

    fn name(&self, source: usize) -> Result<String> {
        match self.options.background {
            Background::External => external_id(&self.external[source]),
            _ => Ok(self.items[source].id.to_string()),
        }
    }

    fn candidate_seed(&self, name: &str, variant: u32) -> u64 {
        rng::derive(self.seed, "candidate", &format!("{name}/{variant}"))
    }

    /// The prompt of a variant: drawn together with those of the background's other variants, so
    /// that they differ.
    fn prompt(
        &self,
        source: usize,
        name: &str,
        variant: u32,
        bank: &BoxPromptBank,
    ) -> Result<Prompt> {
        let facts: Vec<Option<Attributes>> = (0..self.options.variants)
            .map(|v| Ok(self.scene(source, name, v)?.map(|s| s.attributes)))
            .collect::<Result<_>>()?;
        let queries: Vec<PromptQuery<'_>> = facts
            .iter()
            .flatten()
            .map(|attributes| PromptQuery {
                target: self.target_name.as_str().into(),
                attributes,
            })
            .collect();
        let seed = rng::derive(self.seed, "prompt", name);
        let drawn = bank
            .draw(queries.as_slice().into(), seed)
            .map_err(|error| super::wire::blame("the prompt bank", error))?;
        if drawn.len() != queries.len() {
            return Err(Error::internal(format!(
                "the prompt bank drew {} prompts for {} queries",
                drawn.len(),
                queries.len()
            )));
        }
        let position = facts[..variant as usize].iter().flatten().count();
        let prompt = drawn.get(position).cloned();
        prompt.ok_or_else(|| Error::internal("the prompt bank drew too few prompts"))
    }

    fn scene(&self, source: usize, name: &str, variant: u32) -> Result<Option<Scene>> {
        let mut rng = rng::stream(self.candidate_seed(name, variant), "scene", 0);
        match self.options.background {
            Background::SameImage => {
                let sample = self.train.sample(source as u64)?;
                if has_target(&sample, &self.targets) {
                    return Ok(Some(Scene {
                        background: sample.image,
                        label: sample.mask,
                        attributes: sample.attributes,
                    }));
                }
                self.placed(sample.image, name, &mut rng).map(Some)
            }
            Background::Crop => {
                let sample = self.train.sample(source as u64)?;
                match self.lesion_free_crop(&sample, &mut rng)? {
                    Some(crop) => self.placed(crop, name, &mut rng).map(Some),
                    None => Ok(None),
                }
            }
            Background::External => {
                let image = open_image(&self.external[source], self.reading)?;
                let image = match self.size {
                    Some((width, height)) => resize_image(image.view(), width, height),
                    None => image,
                };
                self.placed(image, name, &mut rng).map(Some)
            }
        }
    }

    /// Another training image's mask, mirrored and moved, on `background`.
    fn placed(&self, background: Image, name: &str, rng: &mut rng::Rng) -> Result<Scene> {
        let lesions = self.lesions()?;
        let others: Vec<u64> = lesions
            .iter()
            .copied()
            .filter(|&i| self.items[i as usize].id.as_str() != name || lesions.len() == 1)
            .collect();
        let donor = others[rng.random_range(0..others.len())];
        let donor = self.train.sample(donor)?;
        let mask =
            diffaug::image::resize_mask(donor.mask.view(), background.width(), background.height());
        let label = moved(&mask, rng)?;
        // Words such as the morphology stay true of the shape; measurements are taken anew.
        let mut attributes = donor.attributes;
        attributes.extend(&lesion::measure(label.view(), &self.targets));
        Ok(Scene {
            background,
            label,
            attributes,
        })
    }

    /// Training samples with a lesion.
    fn lesions(&self) -> Result<&Vec<u64>> {
        if let Some(found) = self.lesions.get() {
            return Ok(found);
        }
        let mut found = Vec::new();
        for index in 0..self.items.len() as u64 {
            if has_target(&self.train.sample(index)?, &self.targets) {
                found.push(index);
            }
        }
        if found.is_empty() {
            return Err(Error::data(
                "no training image shows a lesion, so there is no mask to paint",
            ));
        }
        Ok(self.lesions.get_or_init(|| found))
    }

    /// The largest part without any label that a number of seeded attempts finds, at the image's
    /// own size and proportions.
    fn lesion_free_crop(&self, sample: &Sample, rng: &mut rng::Rng) -> Result<Option<Image>> {
        let (width, height) = sample.image.size();
        let mut best: Option<(u32, u32, u32, u32)> = None;
        for _ in 0..CROP_ATTEMPTS {
            let share = rng.random_range(self.options.min_crop..=1.0);
            let w = ((f64::from(width) * share) as u32).clamp(1, width);
            let h = ((f64::from(height) * share) as u32).clamp(1, height);
            let x = rng.random_range(0..=width - w);
            let y = rng.random_range(0..=height - h);
            if best.is_none_or(|(_, _, bw, _)| w > bw) && is_free(&sample.mask, x, y, w, h) {
                best = Some((x, y, w, h));
            }
        }
        best.map(|(x, y, w, h)| {
            let crop = crop_image(sample.image.view(), x, y, w, h)?;
            Ok(resize_image(crop.view(), width, height))
        })
        .transpose()
    }
}

/// A background on which nothing could be placed.
pub struct Skipped {
    /// The candidate's id.
    pub id: String,
    /// The background.
    pub source: String,
    /// Which of the background's candidates this would have been.
    pub variant: u32,
}

fn has_target(sample: &Sample, targets: &[u8]) -> bool {
    sample.mask.labels().iter().any(|l| targets.contains(l))
}

fn is_free(mask: &Mask, x: u32, y: u32, w: u32, h: u32) -> bool {
    let width = mask.width() as usize;
    (y..y + h).all(|row| {
        let start = row as usize * width + x as usize;
        mask.labels()[start..start + w as usize]
            .iter()
            .all(|&label| label == 0)
    })
}

/// `mask`, mirrored at random and moved at random as far as its labels stay inside.
fn moved(mask: &Mask, rng: &mut rng::Rng) -> Result<Mask> {
    let (width, height) = (mask.width() as usize, mask.height() as usize);
    let (flip_x, flip_y) = (rng.random_bool(0.5), rng.random_bool(0.5));
    let at = |x: usize, y: usize| {
        let x = if flip_x { width - 1 - x } else { x };
        let y = if flip_y { height - 1 - y } else { y };
        mask.labels()[y * width + x]
    };
    let (mut x0, mut y0, mut x1, mut y1) = (width, height, 0, 0);
    for y in 0..height {
        for x in 0..width {
            if at(x, y) != 0 {
                (x0, y0) = (x0.min(x), y0.min(y));
                (x1, y1) = (x1.max(x), y1.max(y));
            }
        }
    }
    // New top left corner of the box that holds the labels.
    let left = rng.random_range(0..=width - 1 - (x1 - x0));
    let top = rng.random_range(0..=height - 1 - (y1 - y0));
    let mut labels = vec![0; width * height];
    for y in 0..=(y1 - y0) {
        for x in 0..=(x1 - x0) {
            labels[(top + y) * width + left + x] = at(x0 + x, y0 + y);
        }
    }
    Mask::new(mask.width(), mask.height(), labels)
}

fn external_id(path: &Path) -> Result<String> {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    let stem = stem.map(str::to_owned);
    stem.ok_or_else(|| Error::data(format!("`{}` has no readable name", path.display())))
}

/// The finished images as a dataset, to be joined with the real ones.
pub fn as_dataset(
    info: diffaug::DatasetInfo,
    mut pairs: Vec<pairs::Pair>,
    rule: diffaug::image::MaskRule,
    max_pixels: u64,
) -> Result<Shared> {
    for pair in &mut pairs {
        pair.item.synthetic = true;
    }
    Ok(Arc::new(pairs::Pairs::new(info, pairs, rule, max_pixels)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_mask_keeps_every_pixel_inside() {
        let mut labels = vec![0; 20 * 10];
        for y in 2..5 {
            for x in 3..9 {
                labels[y * 20 + x] = 1 + u8::from(x > 5);
            }
        }
        let mask = Mask::new(20, 10, labels).unwrap();
        for index in 0..50 {
            let moved = moved(&mask, &mut rng::stream(1, "test", index)).unwrap();
            assert_eq!(moved.view().foreground(), 18);
            assert_eq!(moved.view().classes(), [1, 2]);
        }
    }
}
