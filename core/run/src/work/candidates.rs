//! Which images are to be painted: candidate `k` of a run, found without the ones before it.
//!
//! A candidate is (background, variant). Its mask, prompt and seed derive from the run's seed and
//! that pair alone, so that neither order, batches nor an interruption can change it. Variants go
//! round robin over the backgrounds, so that a quota is filled from as many as possible.

use super::{
    placing::{self, Room, only},
    sizes,
};
use crate::manifest::{Background, Synthesis};
use diffaug::{
    Attributes, BoxPromptBank, Dataset, Error, Image, Item, Mask, Prompt, PromptBank, PromptQuery,
    Result, Sample,
    image::{ReadOptions, open_image, resize_image},
    lesion::{self, SizeGroup},
    pairs, rng,
    view::Shared,
};
use rand::RngExt;
use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// An image to be painted, complete.
pub struct PlannedCandidate {
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
    /// Healthy holes to be painted besides, away from all labels: outlines of other lesions.
    pub decoys: Vec<Mask>,
    /// Facts of `wanted`, and how the lesion is to look: as the donor's of the mask.
    pub attributes: Attributes,
    /// What to paint.
    pub prompt: Prompt,
}

/// Where a background comes from.
enum Place {
    /// The training sample of this number.
    Sample(usize),
    /// The training sample of this number with its lesion painted away, in a file.
    Cleared(usize, PathBuf),
    /// A file from elsewhere.
    File(PathBuf),
}

/// Training samples whose lesion was painted away, by their number, and the images that this left.
pub type Cleared = BTreeMap<u64, PathBuf>;

/// A background with the mask that is wanted on it.
struct Scene {
    background: Image,
    label: Mask,
    attributes: Attributes,
}

/// The prompts of a background's variants.
type Drawn = Arc<Vec<Option<Prompt>>>;

/// Every candidate of a run.
pub struct Candidates<'a> {
    options: &'a Synthesis,
    size: Option<(u32, u32)>,
    reading: ReadOptions,
    seed: u64,
    train: Shared,
    /// The same samples at their own size.
    originals: Shared,
    /// The one that was read last, with its number: all variants of a background need the same.
    last: Mutex<Option<(u64, Arc<Sample>)>>,
    /// The prompts of all variants of the backgrounds that were met.
    prompts: Mutex<HashMap<usize, Drawn>>,
    items: Vec<Item>,
    places: Vec<Place>,
    targets: Vec<u8>,
    target_name: String,
    /// Indices of training samples that show a lesion; filled when first needed.
    lesions: OnceLock<Vec<u64>>,
}

impl<'a> Candidates<'a> {
    /// Lists the backgrounds of the samples of `train`; `originals` are the same ones at their own size, so
    /// that a part of one is as sharp as the whole. With [`Background::PseudoNormal`] they are the training images without a
    /// lesion and those of `cleared`.
    ///
    /// # Errors
    /// When the training view or the folder of external backgrounds cannot be listed, or nothing is
    /// left to paint on.
    pub fn new(
        train: Shared,
        originals: Shared,
        options: &'a Synthesis,
        size: Option<(u32, u32)>,
        reading: ReadOptions,
        seed: u64,
        cleared: &Cleared,
    ) -> Result<Self> {
        let info = train.info()?;
        let target = info.classes.iter().find(|class| class.target);
        let mut candidates = Candidates {
            options,
            size,
            reading,
            seed,
            items: train.items()?.into_iter().collect(),
            train,
            originals,
            last: Mutex::default(),
            prompts: Mutex::default(),
            places: Vec::new(),
            targets: info.targets(),
            target_name: target.map_or_else(String::new, |class| class.name.to_string()),
            lesions: OnceLock::new(),
        };
        candidates.places = candidates.list(cleared)?;
        Ok(candidates)
    }

    /// The real training images, from which masks are taken.
    pub fn train(&self) -> &Shared {
        &self.train
    }

    fn list(&self, cleared: &Cleared) -> Result<Vec<Place>> {
        let all = 0..self.items.len();
        let places: Vec<Place> = match (self.options.background, &self.options.external) {
            (Background::External, Some(folder)) => {
                let files = pairs::list_files(folder).map_err(|e| e.at("synthesis.external"))?;
                files.into_iter().map(Place::File).collect()
            }
            (Background::PseudoNormal, _) => {
                let lesions = self.lesions()?;
                let place = |index: usize| match cleared.get(&(index as u64)) {
                    Some(path) => Some(Place::Cleared(index, path.clone())),
                    // One that could not be cleared shows a lesion that no label would tell of.
                    None if lesions.contains(&(index as u64)) => None,
                    None => Some(Place::Sample(index)),
                };
                all.filter_map(place).collect()
            }
            _ => all.map(Place::Sample).collect(),
        };
        if places.is_empty() && self.options.background == Background::PseudoNormal {
            return Err(Error::data(
                "no training image could be cleared of its lesion (`backgrounds.json` says why), so \
                 there is nothing to paint on",
            )
            .at("synthesis.background"));
        }
        Ok(places)
    }

    /// How many candidates there are at most.
    pub fn len(&self) -> u64 {
        self.places.len() as u64 * u64::from(self.options.variants)
    }

    /// PlannedCandidate `index`, or why there is none (a background on which nothing can be placed).
    ///
    /// # Errors
    /// When a file cannot be read or the bank has no prompt.
    pub fn get(
        &self,
        index: u64,
        bank: &BoxPromptBank,
    ) -> Result<Result<PlannedCandidate, Skipped>> {
        let backgrounds = self.places.len() as u64;
        let (source, variant) = ((index % backgrounds) as usize, (index / backgrounds) as u32);
        let name = self.name(source)?;
        let id = format!("{name}/{variant}");
        let Some(scene) = self.scene(source, &name, variant)? else {
            let reason = "the image has no lesion-free part of the size wanted".to_owned();
            return Ok(Err(Skipped {
                id,
                source: name,
                variant,
                reason,
                full: None,
            }));
        };
        let prompt = self.prompt(source, &name, variant, bank)?;
        let seed = self.candidate_seed(&name, variant);
        Ok(Ok(PlannedCandidate {
            seed,
            id,
            decoys: self.decoys(&name, &scene.label, seed)?,
            source: name,
            variant,
            background: scene.background,
            wanted: only(&scene.label, &self.targets),
            label: scene.label,
            attributes: scene.attributes,
            prompt,
        }))
    }

    fn name(&self, source: usize) -> Result<String> {
        match &self.places[source] {
            Place::File(path) => external_id(path),
            Place::Sample(index) | Place::Cleared(index, _) => {
                Ok(self.items[*index].id.to_string())
            }
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
        let known = || self.prompts.lock().unwrap_or_else(PoisonError::into_inner);
        let drawn = known().get(&source).cloned();
        let drawn = match drawn {
            Some(drawn) => drawn,
            None => {
                let drawn = Arc::new(self.draw(source, name, bank)?);
                known().insert(source, drawn.clone());
                drawn
            }
        };
        let prompt = drawn.get(variant as usize).cloned().flatten();
        prompt.ok_or_else(|| Error::internal("a prompt for what cannot be painted"))
    }

    /// The prompts of all variants of a background; `None` for those that cannot be painted.
    fn draw(&self, source: usize, name: &str, bank: &BoxPromptBank) -> Result<Vec<Option<Prompt>>> {
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
        let mut drawn = drawn.into_iter();
        Ok(facts
            .iter()
            .map(|facts| facts.as_ref().and_then(|_| drawn.next()))
            .collect())
    }

    fn scene(&self, source: usize, name: &str, variant: u32) -> Result<Option<Scene>> {
        let mut rng = rng::stream(self.candidate_seed(name, variant), "scene", 0);
        let index = match &self.places[source] {
            Place::File(path) => {
                let image = self.sized(open_image(path, self.reading)?);
                return self.placed(image, None, name, &mut rng);
            }
            Place::Cleared(index, path) => {
                let image = self.sized(open_image(path, self.reading)?);
                let around = self.train.sample(*index as u64)?.mask;
                return self.placed(image, Some(around), name, &mut rng);
            }
            Place::Sample(index) => *index as u64,
        };
        if self.options.background == Background::Crop {
            let whole = self.original(index)?;
            return match placing::lesion_free_crop(&whole, self.options.min_crop, &mut rng)? {
                Some(crop) => {
                    let (width, height) = self.size.unwrap_or(whole.image.size());
                    let background = resize_image(crop.view(), width, height);
                    self.placed(background, None, name, &mut rng)
                }
                None => Ok(None),
            };
        }
        let sample = self.train.sample(index)?;
        if !has_target(&sample, &self.targets) {
            return self.placed(sample.image, Some(sample.mask), name, &mut rng);
        }
        Ok(Some(Scene {
            background: sample.image,
            label: sample.mask,
            attributes: sample.attributes,
        }))
    }

    /// A training sample at its own size.
    fn original(&self, index: u64) -> Result<Arc<Sample>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, sample)) = last.as_ref().filter(|(known, _)| *known == index) {
            return Ok(sample.clone());
        }
        let sample = Arc::new(self.originals.sample(index)?);
        *last = Some((index, sample.clone()));
        Ok(sample)
    }

    fn sized(&self, image: Image) -> Image {
        match self.size {
            Some((width, height)) => resize_image(image.view(), width, height),
            None => image,
        }
    }

    /// Another training image's lesion, mirrored and moved, on `background`; `around` are the labels
    /// that the background has besides lesions. `None` where nothing is left of the lesion at the
    /// background's size.
    fn placed(
        &self,
        background: Image,
        around: Option<Mask>,
        name: &str,
        rng: &mut rng::Rng,
    ) -> Result<Option<Scene>> {
        let donor = self.donor(name, rng)?;
        let Some(mut label) = self.outline(&donor, background.size(), rng)? else {
            return Ok(None);
        };
        // The donor's words and looks stay: they are the wish for the lesion to be painted. What the mask
        // itself shows is measured anew.
        let mut attributes = donor.attributes;
        attributes.extend(&lesion::measure(label.view(), &self.targets));
        if let Some(around) = around {
            for (label, around) in label.bytes_mut().iter_mut().zip(around.labels()) {
                if *label == 0 && !self.targets.contains(around) {
                    *label = *around;
                }
            }
        }
        Ok(Some(Scene {
            background,
            label,
            attributes,
        }))
    }

    /// A training sample with a lesion, another than the one called `name` unless that is the only one.
    fn donor(&self, name: &str, rng: &mut rng::Rng) -> Result<Sample> {
        let lesions = self.lesions()?;
        let others: Vec<u64> = lesions
            .iter()
            .copied()
            .filter(|&i| self.items[i as usize].id.as_str() != name || lesions.len() == 1)
            .collect();
        self.train.sample(others[rng.random_range(0..others.len())])
    }

    /// The lesion of `donor` in an image of that size, mirrored and moved.
    fn outline(
        &self,
        donor: &Sample,
        (width, height): (u32, u32),
        rng: &mut rng::Rng,
    ) -> Result<Option<Mask>> {
        let mask = diffaug::image::resize_mask(donor.mask.view(), width, height);
        placing::moved(&only(&mask, &self.targets), rng)
    }

    /// As many healthy holes as the manifest wants and as have room beside `label`.
    fn decoys(&self, name: &str, label: &Mask, seed: u64) -> Result<Vec<Mask>> {
        if self.options.decoys == 0 {
            return Ok(Vec::new());
        }
        let mut room = Room::beside(label.view());
        let mut found = Vec::new();
        for which in 0..u64::from(self.options.decoys) {
            let mut rng = rng::stream(seed, "decoy", which);
            let hole = room.take(|| {
                let donor = self.donor(name, &mut rng)?;
                self.outline(&donor, label.size(), &mut rng)
            })?;
            found.extend(hole);
        }
        Ok(found)
    }

    /// How many training samples show lesions of each size, in the order of [`SizeGroup::ALL`].
    ///
    /// # Errors
    /// When a sample cannot be read.
    pub fn sizes(&self) -> Result<[u64; 3]> {
        let mut counts = [0; 3];
        for &index in self.lesions()? {
            let mask = self.train.sample(index)?.mask;
            counts[sizes::group(only(&mask, &self.targets).view()) as usize] += 1;
        }
        Ok(counts)
    }

    /// Training samples with a lesion.
    fn lesions(&self) -> Result<&Vec<u64>> {
        if let Some(found) = self.lesions.get() {
            return Ok(found);
        }
        let found = lesions(&self.train, &self.targets)?;
        if found.is_empty() {
            return Err(Error::data(
                "no training image shows a lesion, so there is no mask to paint",
            ));
        }
        Ok(self.lesions.get_or_init(|| found))
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
    /// Why nothing is painted.
    pub reason: String,
    /// The size of the lesion, where there were enough of it.
    pub full: Option<SizeGroup>,
}

impl Skipped {
    /// A candidate whose lesion has a size of which there are enough.
    pub fn full(id: String, source: String, variant: u32, size: SizeGroup) -> Self {
        let reason = format!("enough lesions of its size ({}) were accepted", size.name());
        Skipped {
            id,
            source,
            variant,
            reason,
            full: Some(size),
        }
    }
}

/// The numbers of the samples that show a target.
///
/// # Errors
/// When one cannot be read.
pub fn lesions(samples: &Shared, targets: &[u8]) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    for index in 0..samples.items()?.len() as u64 {
        if has_target(&samples.sample(index)?, targets) {
            found.push(index);
        }
    }
    Ok(found)
}

fn has_target(sample: &Sample, targets: &[u8]) -> bool {
    sample.mask.labels().iter().any(|l| targets.contains(l))
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
mod tests;
