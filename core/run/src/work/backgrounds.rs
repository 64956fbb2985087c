//! Pseudo-normal backgrounds: training images whose lesion the generator has painted away.
//!
//! The lesion's place, grown a little, is first filled smoothly from what is around it, so that also a
//! generator that keeps much of its source does not keep the lesion; then the generator paints a
//! healthy place there, described by the prompt's negative text. The segmenters that may judge the
//! image must then find nothing: a lesion that stayed would be one that no label tells of. What they
//! still find after some tries is never used.
//!
//! A journal makes the step resumable; `backgrounds.json` says in the end what became of each image.

use super::{
    candidates::{Cleared, lesions},
    once::{Leaves, Steps},
    overlap::StopFlag,
    painting::{self, Interrupt, Stages, healthy},
    placing::{grown, only},
    record::Backgrounds,
    wire::blame,
};
use crate::{
    journal::{Entry, Journal, Line},
    layout,
    manifest::Synthesis,
    results::Part,
    session::{Session, Step},
    store::Store,
};
use diffaug::{
    Dataset, Error, Image, ImageRef, Job, Mask, Prompt, PromptBank, PromptQuery, Result, Sample,
    Segmenter,
    files::{self, hash_file},
    image::save_image,
    poisson::{self, Limits, Problem},
    rng,
    view::Shared,
    with_reporter,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How often a lesion is painted away before the image is given up.
const TRIES: u32 = 2;
/// By how much the hole is wider than the lesion, as a share of the root of the lesion's area.
const GROW: f64 = 0.05;
/// The same in pixels, at least: the outline of a label is no sharper.
const LEAST_GROW: f64 = 2.0;
/// An image is clear when what a segmenter finds in the hole, and what of it reaches beyond, is below
/// this share of the hole.
const LIMIT: f64 = 0.05;
/// For filling holes: well below what rounding to bytes takes.
const SMOOTH: Limits = Limits {
    tolerance: 0.1,
    max_iterations: 2000,
};

/// What became of an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Verdict {
    /// The cleared image, relative to the run folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file_name: Option<String>,
    /// The training image.
    id: String,
    /// Its number among the training images.
    index: u64,
    /// What the segmenters still found after each try, as a share of the hole: the most of any of them.
    /// Empty where the lesion fills the image.
    found: Vec<f64>,
}

impl Line for Verdict {
    fn index(&self) -> u64 {
        self.index
    }

    fn accepted(&self) -> bool {
        self.file_name.is_some()
    }
}

/// What `backgrounds.json` holds.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    #[serde(flatten)]
    counts: Backgrounds,
    /// See [`LIMIT`].
    limit: f64,
    verdicts: Vec<Verdict>,
}

/// The step that paints lesions away.
pub struct Clearing<'a> {
    /// The run's options.
    pub options: &'a Synthesis,
    /// The run's seed.
    pub seed: u64,
    /// Who follows the run.
    pub session: &'a Session<'a>,
    /// The run folder.
    pub store: &'a Store,
    /// The training images.
    pub train: Shared,
    /// What is painted away.
    pub targets: &'a [u8],
    /// What the prompt bank calls it.
    pub target_name: &'a str,
}

/// A training image whose lesion is to be painted away.
struct Scene {
    index: u64,
    sample: Sample,
    /// The lesion, grown.
    hole: Mask,
    /// The image with the hole filled smoothly.
    filled: Image,
    prompt: Prompt,
    found: Vec<f64>,
    image: Option<Image>,
}

impl Clearing<'_> {
    /// The cleared images, made or, where that was done, looked up.
    ///
    /// # Errors
    /// When a stage fails, the user stops the run, or what was made is no longer what it was.
    pub fn run(&self, steps: &Steps<'_>, stages: &Stages) -> Result<(Backgrounds, Cleared)> {
        let leaves = Leaves {
            place: layout::BACKGROUNDS,
            marker: layout::CLEARING,
            parts: &[Part {
                name: layout::IMAGES,
                place: layout::CLEARED,
                listed: None,
            }],
            vouched: &[layout::CLEARED],
        };
        let found = steps.once(&leaves, "painting lesions away", || self.make(stages))?;
        // What it says stands in the list by now.
        self.journal().remove();
        let verdicts = found.verdicts.into_iter();
        let cleared = verdicts
            .filter_map(|verdict| Some((verdict.index, self.store.path(verdict.file_name?))));
        Ok((found.counts, cleared.collect()))
    }

    fn journal(&self) -> Journal<'_, Verdict> {
        Journal::new(self.store, layout::CLEARING_JOURNAL)
    }

    fn make(&self, stages: &Stages) -> Result<Found> {
        let step = self.session.begin("painting lesions away");
        files::make_folder(&self.store.path(layout::CLEARED))?;
        let all = lesions(&self.train, self.targets)?;
        let journal = self.journal();
        let done = journal.read_true(self.train.items()?.len() as u64)?.entries;
        journal.write(done.values())?;
        let left: Vec<u64> = all
            .iter()
            .copied()
            .filter(|i| !done.contains_key(i))
            .collect();
        self.rest(&left, (all.len(), stages), &*step)?;
        let verdicts: Vec<Verdict> = journal.entries()?.into_iter().map(|e| e.record).collect();
        let cleared = verdicts.iter().filter(|verdict| verdict.accepted()).count() as u64;
        let images = verdicts.len() as u64;
        let found = Found {
            counts: Backgrounds {
                images,
                cleared,
                failed: images - cleared,
                failure: (images > 0).then(|| (images - cleared) as f64 / images as f64),
            },
            limit: LIMIT,
            verdicts,
        };
        step.finish(&format!("{cleared} of {images} images are clear"));
        Ok(found)
    }

    /// Paints the lesions of the images of `left` away, a batch at once.
    fn rest(&self, left: &[u64], (all, stages): (usize, &Stages), step: &dyn Step) -> Result<()> {
        let mut done = all - left.len();
        for some in left.chunks(self.options.batch as usize) {
            step.progress(done as u64, all as u64, "");
            let cleared = self.session.stage(|| self.clear(some, stages))?;
            let entries: Vec<Entry<Verdict>> = cleared
                .into_iter()
                .map(|scene| self.save(scene))
                .collect::<Result<_>>()?;
            for entry in &entries {
                for name in entry.files.keys() {
                    files::sync_folder(files::parent(&self.store.path(name)))?;
                }
            }
            self.journal().append(&entries)?;
            done += some.len();
        }
        Ok(())
    }

    fn save(&self, scene: Scene) -> Result<Entry<Verdict>> {
        let mut entry = Entry {
            record: Verdict {
                file_name: None,
                id: scene.sample.id.to_string(),
                index: scene.index,
                found: scene.found,
            },
            files: BTreeMap::new(),
        };
        if let Some(image) = scene.image {
            let name = format!("{}/{}", layout::CLEARED, layout::image(scene.index));
            let path = self.store.path(&name);
            files::make_folder(files::parent(&path))?;
            save_image(image.view(), &path)?;
            entry.files.insert(name.clone(), hash_file(&path)?);
            entry.record.file_name = Some(name);
        }
        Ok(entry)
    }

    fn clear(&self, some: &[u64], stages: &Stages) -> Result<Vec<Scene>> {
        let scenes = some.iter().map(|&index| self.scene(index, stages));
        let mut scenes: Vec<Scene> = scenes.collect::<Result<_>>()?;
        for attempt in 0..TRIES {
            let open = scenes.iter_mut().filter(|scene| scene.is_open());
            let mut open: Vec<&mut Scene> = open.collect();
            let jobs = open.iter().map(|scene| self.job(scene, attempt));
            let jobs: Vec<Job<'_>> = jobs.collect::<Result<_>>()?;
            let stop = StopFlag::new(self.session);
            let painted = with_reporter(&Interrupt(&stop), |reporter| {
                painting::generate(&stages.generator, &jobs, None, reporter)
            })?;
            let painted: Vec<Image> = painted.into_iter().flatten().collect();
            let found = self.look(&open, &painted, stages)?;
            for ((scene, image), found) in open.iter_mut().zip(painted).zip(found) {
                scene.found.push(found);
                scene.image = (found < LIMIT).then_some(image);
            }
        }
        Ok(scenes)
    }

    fn scene(&self, index: u64, stages: &Stages) -> Result<Scene> {
        let sample = self.train.sample(index)?;
        let hole = hole(&only(&sample.mask, self.targets))?;
        let query = PromptQuery {
            target: self.target_name.into(),
            attributes: &sample.attributes,
        };
        let seed = rng::derive(self.seed, "background prompt", &sample.id);
        let drawn = stages.bank.draw([query][..].into(), seed);
        let drawn = drawn.map_err(|error| blame("the prompt bank", error))?;
        let prompt = drawn.into_iter().next();
        Ok(Scene {
            index,
            filled: filled(sample.image.view(), &hole),
            hole,
            prompt: prompt.ok_or_else(|| Error::internal("the prompt bank drew no prompt"))?,
            sample,
            found: Vec::new(),
            image: None,
        })
    }

    fn job<'a>(&self, scene: &'a Scene, attempt: u32) -> Result<Job<'a>> {
        let key = format!("{}/{attempt}", scene.sample.id);
        Ok(Job {
            source: scene.sample.id.as_rstr(),
            image: scene.filled.view(),
            mask: scene.hole.view(),
            prompt: healthy(&scene.prompt)?,
            negative: scene.prompt.positive.as_rstr(),
            seed: rng::derive(self.seed, "background", &key),
        })
    }

    /// What the segmenters of each image's fold find in its hole: the most that any of them does.
    fn look(&self, scenes: &[&mut Scene], images: &[Image], stages: &Stages) -> Result<Vec<f64>> {
        let mut by_fold: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (place, scene) in scenes.iter().enumerate() {
            let fold = stages.judges.fold(&scene.sample.id);
            by_fold.entry(fold).or_default().push(place);
        }
        let mut most = vec![0.0f64; scenes.len()];
        for places in by_fold.values() {
            let shown: Vec<ImageRef<'_>> = places.iter().map(|&p| images[p].view()).collect();
            for judge in stages.judges.of(&scenes[places[0]].sample.id) {
                let stop = StopFlag::new(self.session);
                let answers = with_reporter(&Interrupt(&stop), |reporter| {
                    judge.segment(shown.as_slice().into(), reporter)
                });
                let answers = answers.map_err(|error| blame("the segmenter", error))?;
                if answers.len() != shown.len() {
                    return Err(Error::internal(format!(
                        "the segmenter gave {} answers to {} images",
                        answers.len(),
                        shown.len()
                    )));
                }
                for (&place, answer) in places.iter().zip(&answers) {
                    let found = only(&answer.mask, self.targets);
                    let share = remains(&found, &scenes[place].hole)?;
                    most[place] = most[place].max(share);
                }
            }
        }
        Ok(most)
    }
}

impl Scene {
    /// Whether it is to be tried (again).
    fn is_open(&self) -> bool {
        let surrounded = self.hole.labels().contains(&0);
        self.image.is_none() && surrounded
    }
}

/// The place of a lesion, grown.
fn hole(lesion: &Mask) -> Result<Mask> {
    let inside: Vec<bool> = lesion.labels().iter().map(|&label| label != 0).collect();
    let area = lesion.view().foreground() as f64;
    let reach = (GROW * area.sqrt()).max(LEAST_GROW);
    let grown = grown(&inside, lesion.width() as usize, reach);
    // The labels say what is to be painted; the rim is as the first.
    let first = lesion.labels().iter().copied().find(|&label| label != 0);
    let pixels = grown.iter().zip(lesion.labels());
    let labels = pixels.map(|(inside, label)| match (inside, label) {
        (true, 0) => first.unwrap_or(0),
        (_, label) => *label,
    });
    Mask::new(lesion.width(), lesion.height(), labels.collect())
}

/// An image with a hole closed as smoothly as can be.
fn filled(image: ImageRef<'_>, hole: &Mask) -> Image {
    let mut out = image.to_owned();
    let sought: Vec<bool> = hole.labels().iter().map(|&label| label != 0).collect();
    if !sought.contains(&false) {
        return out;
    }
    let outside = vec![false; sought.len()];
    for channel in 0..3 {
        let pixels = image.pixels().iter().skip(channel).step_by(3);
        let values: Vec<f32> = pixels.map(|&value| f32::from(value)).collect();
        let problem = Problem {
            width: image.width() as usize,
            height: image.height() as usize,
            sought: &sought,
            outside: &outside,
            values: &values,
        };
        let solution = poisson::solve(&problem, |_, _| 0.0, SMOOTH);
        let found = solution.values.iter().zip(&sought).enumerate();
        for (at, (value, _)) in found.filter(|(_, (_, sought))| **sought) {
            out.bytes_mut()[3 * at + channel] = value.round_ties_even().clamp(0.0, 255.0) as u8;
        }
    }
    out
}

/// How many pixels of `found` lie in the hole or in patches that reach into it, as a share of the
/// hole's.
fn remains(found: &Mask, hole: &Mask) -> Result<f64> {
    if found.size() != hole.size() {
        return Err(Error::internal(format!(
            "the segmenter answered {found:?} for an image of {hole:?}"
        )));
    }
    let (width, height) = (found.width() as usize, found.height() as usize);
    let mut open: Vec<bool> = found.labels().iter().map(|&label| label != 0).collect();
    let mut stack: Vec<usize> = (0..open.len())
        .filter(|&at| open[at] && hole.labels()[at] != 0)
        .collect();
    stack.iter().for_each(|&at| open[at] = false);
    let mut count = 0u64;
    while let Some(at) = stack.pop() {
        count += 1;
        let (x, y) = (at % width, at / width);
        for ny in y.saturating_sub(1)..(y + 2).min(height) {
            for nx in x.saturating_sub(1)..(x + 2).min(width) {
                let next = ny * width + nx;
                if open[next] {
                    open[next] = false;
                    stack.push(next);
                }
            }
        }
    }
    Ok(count as f64 / hole.view().foreground().max(1) as f64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A box of labels in an image of 20 by 10.
    fn patch(x: std::ops::Range<usize>, y: std::ops::Range<usize>, label: u8) -> Mask {
        let inside = |at: usize| x.contains(&(at % 20)) && y.contains(&(at / 20));
        let labels = (0..200).map(|at| label * u8::from(inside(at)));
        Mask::new(20, 10, labels.collect()).unwrap()
    }

    #[test]
    fn a_hole_is_wider_than_its_lesion_and_has_its_label() {
        let hole = hole(&patch(8..10, 4..6, 2)).unwrap();
        assert_eq!(hole.view().classes(), [2]);
        // By two pixels on every side, corners rounded.
        assert_eq!(hole.view().foreground(), 36 - 4 * 3);
        assert_eq!(hole.labels()[4 * 20 + 6], 2);
        assert_eq!(hole.labels()[4 * 20 + 5], 0);
    }

    #[test]
    fn a_filled_hole_shows_nothing_of_the_lesion() {
        let lesion = patch(8..12, 3..7, 1);
        let pixels = (0..200).flat_map(|at| match lesion.labels()[at] {
            0 => [100 + (at % 20) as u8; 3],
            _ => [250, 10, 0],
        });
        let image = Image::new(20, 10, pixels.collect()).unwrap();
        let filled = filled(image.view(), &lesion);
        for (at, pixel) in filled.pixels().chunks_exact(3).enumerate() {
            let expected = 100 + (at % 20) as i32;
            // A slope goes on in the hole.
            assert!(pixel.iter().all(|v| (i32::from(*v) - expected).abs() <= 1));
        }
        let full = patch(0..20, 0..10, 1);
        assert_eq!(super::filled(image.view(), &full), image);
    }

    #[test]
    fn what_reaches_into_the_hole_counts_whole() {
        let hole = patch(0..10, 0..10, 1);
        let share = |found: Mask| remains(&found, &hole).unwrap();
        assert_eq!(share(patch(12..18, 2..6, 1)), 0.0);
        assert_eq!(share(patch(2..4, 2..4, 1)), 0.04);
        // One column of it lies inside.
        assert_eq!(share(patch(9..12, 0..4, 1)), 0.12);
    }
}
