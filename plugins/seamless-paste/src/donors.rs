//! The lesions that can be pasted: collecting them from a training set, listing them from a
//! folder, choosing one for a wanted outline.
//!
//! A collected folder holds `images/ID.png` and `masks/ID.png` (crops with a margin, the lesion
//! 255) and the index `donors.json`, which is written last: where it stands, the folder is whole.
//! A folder of whole images and masks without an index serves as well; its lesions are found when
//! it is opened and cut out when they are needed.

use crate::{
    blend::{Patch, quantile},
    frame,
    shape::{Nearest, Shape, patches},
};
use diffaug::{
    files::write_atomic,
    image::{self, ReadOptions},
    pairs,
    prelude::*,
    rng::Rng,
};
use rand::RngExt;
use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// Raised when the layout of the folder changes.
const VERSION: u32 = 1;
const INDEX: &str = "donors.json";
/// Smaller lesions have nothing to show, in pixels.
const MIN_PIXELS: usize = 48;
/// Longest side of a collected crop, in pixels; larger ones are shrunk.
const MAX_SIDE: u32 = 512;
/// The margin around a cut out lesion: this share of its longer side, but at least that many
/// pixels.
const MARGIN: (f64, usize) = (0.3, 12);
/// Distances from the lesion, in pixels, between which pixels count as its surroundings.
const SURROUNDINGS: (f64, f64) = (3.0, 12.0);
/// This many donors of about the wanted shape are compared by the colour of their surroundings…
const SHORTLIST: usize = 36;
/// …and the donor is drawn from this many of them that fit best.
const CHOICES: usize = 10;
/// Difference of the surroundings, summed over the channels in grey levels, that counts as much as
/// a stretch by a factor of e.
const CLASH: f64 = 100.0;
/// What it costs a donor to lie wholly in a black frame, on the same scale.
const FRAMED: f64 = 2.0;
/// Grey values of a mask above this are lesion.
const THRESHOLD: u8 = 127;

/// What is known of a donor.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Facts {
    /// Name of its files, without extension.
    id: String,
    /// Id of the sample that it comes from.
    pub(crate) source: String,
    /// The video or patient of that sample, or empty.
    group: String,
    /// Left, top, right, bottom (the last two exclusive) in that sample's image.
    bbox: [usize; 4],
    /// Share of that sample's image that it covers.
    area: f64,
    /// Its pixels in the files.
    pixels: usize,
    /// Major axis over minor axis.
    elongation: f64,
    /// Whether the image's border cuts it.
    cut: bool,
    /// What its pixels tell; none before the image was looked at.
    look: Option<Look>,
}

/// What the pixels of a patch tell.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Look {
    /// Median colour of the lesion.
    colour: [u8; 3],
    /// Median colour of what surrounds it; none where nothing does.
    surroundings: Option<[u8; 3]>,
    /// Share of its surroundings that lie in a black frame.
    framed: f64,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Index {
    version: u32,
    /// Digest of the training set that the donors come from.
    train: String,
    donors: Vec<Facts>,
}

/// What a donor has to suit.
pub(crate) struct Wanted<'a> {
    /// Id of the image that is painted into.
    pub(crate) source: &'a str,
    pub(crate) shape: &'a Shape,
    /// Size of that image in pixels.
    pub(crate) size: (u32, u32),
    /// Median colour of that image around the wanted lesion.
    pub(crate) surroundings: Option<[f32; 3]>,
}

/// A folder of donors.
pub(crate) struct Donors {
    root: PathBuf,
    all: Vec<Donor>,
    reading: ReadOptions,
}

/// A donor and where its pixels are.
struct Donor {
    facts: Facts,
    image: PathBuf,
    mask: PathBuf,
    /// Whether the files show the whole sample, from which the lesion is still to be cut out.
    whole: bool,
    /// What [`Facts::look`] does not know, once it was looked up.
    look: OnceLock<Look>,
}

impl Donor {
    fn new(facts: Facts, image: PathBuf, mask: PathBuf, whole: bool) -> Self {
        Donor {
            facts,
            image,
            mask,
            whole,
            look: OnceLock::new(),
        }
    }
}

fn cut_by(bbox: [usize; 4], (width, height): (u32, u32)) -> bool {
    let [x0, y0, x1, y1] = bbox;
    x0 == 0 || y0 == 0 || x1 == width as usize || y1 == height as usize
}

impl Donors {
    /// Opens a folder that [`collect`] made, or one with `images/` and `masks/`.
    pub(crate) fn open(root: &Path, reading: ReadOptions) -> Result<Self> {
        let all = if root.join(INDEX).is_file() {
            indexed(root)?
        } else if root.join("images").is_dir() && root.join("masks").is_dir() {
            listed(root, reading)?
        } else {
            return Err(Error::data(format!(
                "`{}` holds no donors: expected `{INDEX}` (made by `fit`) or folders `images` and `masks`",
                root.display()
            ))
            .at("weights"));
        };
        if all.is_empty() {
            return Err(Error::data(format!(
                "no mask in `{}` has a lesion of at least {MIN_PIXELS} pixels",
                root.display()
            ))
            .at("weights"));
        }
        tracing::debug!(donors = all.len(), folder = %root.display(), "opened");
        Ok(Donors {
            root: root.to_owned(),
            all,
            reading,
        })
    }

    /// Draws among the donors that need to be changed least. None comes from the wanted source
    /// and, as long as there are others, none from the same video or patient.
    pub(crate) fn choose(&self, wanted: &Wanted<'_>, rng: &mut Rng) -> Result<usize> {
        let group = self
            .all
            .iter()
            .map(|donor| &donor.facts)
            .find(|facts| facts.source == wanted.source && !facts.group.is_empty())
            .map(|facts| facts.group.as_str());
        let foreign = |i: &usize| self.all[*i].facts.source != wanted.source;
        let unrelated = |i: &usize| group.is_none_or(|group| self.all[*i].facts.group != group);
        let mut candidates: Vec<usize> = (0..self.all.len()).filter(foreign).collect();
        if candidates.iter().any(unrelated) {
            candidates.retain(unrelated);
        }
        if candidates.is_empty() {
            return Err(Error::data(format!(
                "every donor in `{}` comes from `{}` itself, and another image's lesion is needed",
                self.root.display(),
                wanted.source
            )));
        }
        let by_shape = |&i: &usize| Ok(misfit(&self.all[i].facts, wanted));
        let shortlist = best(&candidates, SHORTLIST, by_shape)?;
        let by_all = |&i: &usize| Ok(misfit(&self.all[i].facts, wanted) + self.clash(i, wanted)?);
        let choices = best(&shortlist, CHOICES, by_all)?;
        Ok(choices[rng.random_range(0..choices.len())])
    }

    /// How little the donor's surroundings suit the wanted ones, on the scale of [`misfit`].
    fn clash(&self, index: usize, wanted: &Wanted<'_>) -> Result<f64> {
        let look = self.look(index)?;
        let frame = FRAMED * look.framed;
        let (Some(there), Some(here)) = (look.surroundings, wanted.surroundings) else {
            return Ok(frame);
        };
        let difference: f32 = (0..3).map(|c| (f32::from(there[c]) - here[c]).abs()).sum();
        Ok(frame + f64::from(difference) / CLASH)
    }

    fn look(&self, index: usize) -> Result<Look> {
        let donor = &self.all[index];
        if let Some(known) = donor.facts.look.as_ref().or(donor.look.get()) {
            return Ok(*known);
        }
        let found = Look::at(&self.patch(index)?);
        // Another thread may have been first; it found the same.
        Ok(*donor.look.get_or_init(|| found))
    }

    /// What is known of a donor.
    #[cfg(test)]
    pub(crate) fn facts(&self, index: usize) -> &Facts {
        &self.all[index].facts
    }

    /// The donor's pixels.
    pub(crate) fn patch(&self, index: usize) -> Result<Patch> {
        let donor = &self.all[index];
        let image = image::open_image(&donor.image, self.reading)?;
        let lesion = lesion_mask(&donor.mask, self.reading)?;
        if image.size() != lesion.size() {
            return Err(Error::data(format!(
                "`{}` is {}x{}, but its mask `{}` is {}x{}",
                donor.image.display(),
                image.width(),
                image.height(),
                donor.mask.display(),
                lesion.width(),
                lesion.height()
            )));
        }
        let shape = patches(lesion.view(), |v| v > THRESHOLD)
            .into_iter()
            .find(|shape| !donor.whole || shape.bounds() == donor.facts.bbox)
            .ok_or_else(|| {
                Error::data(format!(
                    "`{}` changed while it was in use",
                    donor.mask.display()
                ))
            })?;
        if donor.whole {
            cut_out(image.view(), &shape)
        } else {
            let lesion = paint(lesion.size(), &shape, (0, 0))?;
            Ok(Patch { image, lesion })
        }
    }
}

/// How much a donor would have to be changed, in about the natural logarithm of a stretch.
fn misfit(facts: &Facts, wanted: &Wanted<'_>) -> f64 {
    let shape = wanted.shape;
    let frame = f64::from(wanted.size.0) * f64::from(wanted.size.1);
    let stretch = (facts.elongation / shape.elongation()).ln().abs();
    // A lesion that fills the frame looks different from one at its far end.
    let share = 0.5 * (facts.area / (shape.area() as f64 / frame)).ln().abs();
    // Enlarging blurs.
    let enlarged = 0.5 * (shape.area() as f64 / facts.pixels as f64).ln();
    let cut = facts.cut && !cut_by(shape.bounds(), wanted.size);
    stretch + 0.5 * share + (enlarged - 0.3).max(0.0) + if cut { 0.5 } else { 0.0 }
}

/// The `count` candidates with the least `cost`; of equal ones those that come first.
fn best(
    candidates: &[usize],
    count: usize,
    cost: impl Fn(&usize) -> Result<f64>,
) -> Result<Vec<usize>> {
    let costs = candidates.iter().map(|i| Ok((cost(i)?, *i)));
    let mut ranked: Vec<(f64, usize)> = costs.collect::<Result<_>>()?;
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(ranked.into_iter().take(count).map(|(_, i)| i).collect())
}

/// The donors of a collected folder.
fn indexed(root: &Path) -> Result<Vec<Donor>> {
    let donor = |facts: Facts| {
        let name = format!("{}.png", facts.id);
        let (image, mask) = (
            root.join("images").join(&name),
            root.join("masks").join(&name),
        );
        Donor::new(facts, image, mask, false)
    };
    Ok(read_index(root)?.donors.into_iter().map(donor).collect())
}

fn read_index(root: &Path) -> Result<Index> {
    let path = root.join(INDEX);
    let bytes = fs::read(&path).or_error(ErrorKind::Data, || {
        format!("cannot read `{}`", path.display())
    })?;
    let index: Index = serde_json::from_slice(&bytes).or_error(ErrorKind::Data, || {
        format!("`{}` is not an index of donors", path.display())
    })?;
    if index.version != VERSION {
        return Err(Error::data(format!(
            "`{}` has version {}, expected {VERSION}: remove it and run `fit` again",
            path.display(),
            index.version
        )));
    }
    Ok(index)
}

/// A mask of lesions as 0 and 255.
fn lesion_mask(path: &Path, reading: ReadOptions) -> Result<Mask> {
    image::open_mask(path, reading, &image::MaskRule::Auto { label: 255 })
}

/// The donors of a folder with whole images and masks.
fn listed(root: &Path, reading: ReadOptions) -> Result<Vec<Donor>> {
    let files = |folder: &str| pairs::list_files(&root.join(folder));
    let pairs = pairs::pair_up(files("images")?, files("masks")?)?;
    let per_mask: Vec<Vec<Donor>> = pairs
        .par_iter()
        .map(|(stem, image, mask)| {
            let gray = lesion_mask(mask, reading)?;
            let lesions = patches(gray.view(), |v| v > THRESHOLD);
            let donor = |(part, shape): (usize, &Shape)| {
                let facts = facts(format!("{stem}-{part}"), stem, "", shape, gray.size());
                Donor::new(facts, image.clone(), mask.clone(), true)
            };
            let large = lesions.iter().filter(|shape| shape.area() >= MIN_PIXELS);
            Ok(large.enumerate().map(donor).collect())
        })
        .collect::<Result<_>>()?;
    Ok(per_mask.into_iter().flatten().collect())
}

fn facts(id: String, source: &str, group: &str, shape: &Shape, size: (u32, u32)) -> Facts {
    let bbox = shape.bounds();
    Facts {
        id,
        source: source.into(),
        group: group.into(),
        bbox,
        area: shape.area() as f64 / (f64::from(size.0) * f64::from(size.1)),
        pixels: shape.area(),
        elongation: shape.elongation(),
        cut: cut_by(bbox, size),
        look: None,
    }
}

/// A mask of the shape alone, 255 on the lesion, whose top left pixel is `origin`.
fn paint((width, height): (u32, u32), shape: &Shape, origin: (usize, usize)) -> Result<Mask> {
    let mut labels = vec![0; width as usize * height as usize];
    for &(x, y) in &shape.pixels {
        labels[(y - origin.1) * width as usize + x - origin.0] = 255;
    }
    Mask::new(width, height, labels)
}

/// Cuts a lesion out of its image, with a margin from which its edge can be told.
fn cut_out(image: ImageRef<'_>, shape: &Shape) -> Result<Patch> {
    let [x0, y0, x1, y1] = shape.bounds();
    let margin = (MARGIN.0 * (x1 - x0).max(y1 - y0) as f64).ceil() as usize;
    let margin = margin.max(MARGIN.1);
    let (left, top) = (x0.saturating_sub(margin), y0.saturating_sub(margin));
    let width = (x1 + margin).min(image.width() as usize) - left;
    let height = (y1 + margin).min(image.height() as usize) - top;
    let size = (width as u32, height as u32);
    Ok(Patch {
        image: image::crop_image(image, left as u32, top as u32, size.0, size.1)?,
        lesion: paint(size, shape, (left, top))?,
    })
}

/// Shrinks a patch whose longer side exceeds [`MAX_SIDE`].
fn limited(patch: Patch) -> Patch {
    let (width, height) = patch.image.size();
    let longest = width.max(height);
    if longest <= MAX_SIDE {
        return patch;
    }
    let side = |n: u32| ((u64::from(n) * u64::from(MAX_SIDE)) / u64::from(longest)).max(1) as u32;
    Patch {
        image: image::resize_image(patch.image.view(), side(width), side(height)),
        lesion: image::resize_mask(patch.lesion.view(), side(width), side(height)),
    }
}

impl Look {
    fn at(patch: &Patch) -> Self {
        let (width, height) = (patch.image.width() as usize, patch.image.height() as usize);
        let labels = patch.lesion.labels();
        let nearest = Nearest::new(width, height, |x, y| labels[y * width + x] != 0);
        let distances: Vec<f64> = (0..width * height)
            .map(|i| nearest.distance(i % width, i / width))
            .collect();
        let within = |i: usize| (SURROUNDINGS.0..=SURROUNDINGS.1).contains(&distances[i]);
        let frame = frame::frame(&patch.image);
        let colour = |chosen: &dyn Fn(usize) -> bool| {
            let pixels = patch.image.pixels().chunks_exact(3).enumerate();
            let chosen = pixels.filter(|(i, _)| chosen(*i));
            let colours = chosen.map(|(_, p)| [p[0], p[1], p[2]].map(f32::from));
            quantile(colours, 0.5).map(|colour| colour.map(|v| v as u8))
        };
        let around = (0..frame.len()).filter(|&i| within(i));
        let lost = around.clone().filter(|&i| frame[i]).count();
        Look {
            colour: colour(&|i| distances[i] == 0.0).unwrap_or_default(),
            surroundings: colour(&|i| within(i) && !frame[i]),
            framed: lost as f64 / around.count().max(1) as f64,
        }
    }
}

/// Tells training sets apart: by what they list and by the first sample, since another size or
/// another treatment of the images lists the same.
fn digest(train: &BoxDataset, info: &DatasetInfo, items: &[Item]) -> Result<String> {
    let mut hash = Sha256::new();
    let mut text = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    text(&info.name);
    for item in items {
        text(&item.id);
        text(&item.group);
    }
    hash.update(info.targets());
    if !items.is_empty() {
        let sample = train.sample(0)?;
        hash.update(sample.image.width().to_le_bytes());
        hash.update(sample.image.pixels());
        hash.update(sample.mask.labels());
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Cuts the lesions of every sample out and leaves them in the folder `out`; answers how many
/// there are. A folder that is already whole is left alone.
pub(crate) fn collect(train: &BoxDataset, out: &Path, reporter: &Reporter<'_>) -> Result<u64> {
    let (info, items) = (train.info()?, train.items()?);
    let train_digest = digest(train, &info, &items)?;
    if out.join(INDEX).is_file() {
        match read_index(out) {
            Ok(index) if index.train == train_digest => return Ok(index.donors.len() as u64),
            Ok(_) => {
                tracing::info!(folder = %out.display(), "another training set: donors are collected anew");
            }
            Err(error) => tracing::warn!("{error}; it is made anew"),
        }
        // Gone before its donors are: a crash leaves nothing that looks whole.
        let index = out.join(INDEX);
        fs::remove_file(&index).or_error(ErrorKind::Data, || {
            format!("cannot remove `{}`", index.display())
        })?;
    }
    for folder in ["images", "masks"] {
        let folder = out.join(folder);
        fs::create_dir_all(&folder).or_error(ErrorKind::Data, || {
            format!("cannot make `{}`", folder.display())
        })?;
    }
    let mut donors = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let sample = train.sample(i as u64)?;
        donors.extend(keep(out, i, item, &sample, &info.targets())?);
        let note = format!("{} donors", donors.len());
        reporter.step(i as u64 + 1, items.len() as u64, &note)?;
    }
    if donors.is_empty() {
        return Err(Error::data(format!(
            "none of the {} training images of `{}` shows a lesion of at least {MIN_PIXELS} pixels",
            items.len(),
            info.name
        )));
    }
    let count = donors.len() as u64;
    remove_strays(out, &donors)?;
    write_index(
        out,
        &Index {
            version: VERSION,
            train: train_digest,
            donors,
        },
    )?;
    Ok(count)
}

/// Writes the donors of one sample.
fn keep(
    out: &Path,
    index: usize,
    item: &Item,
    sample: &Sample,
    targets: &[u8],
) -> Result<Vec<Facts>> {
    if sample.image.size() != sample.mask.size() {
        return Err(Error::data(format!(
            "sample `{}` is {}x{}, but its mask is {}x{}",
            item.id,
            sample.image.width(),
            sample.image.height(),
            sample.mask.width(),
            sample.mask.height()
        )));
    }
    let lesions = patches(sample.mask.view(), |label| targets.contains(&label));
    let mut kept = Vec::new();
    for shape in lesions.iter().filter(|shape| shape.area() >= MIN_PIXELS) {
        let id = format!("{index:05}-{}", kept.len());
        let patch = limited(cut_out(sample.image.view(), shape)?);
        let pixels = patch.lesion.view().foreground() as usize;
        if pixels < MIN_PIXELS {
            continue;
        }
        image::save_image(
            patch.image.view(),
            &out.join("images").join(format!("{id}.png")),
        )?;
        image::save_gray(
            patch.lesion.view(),
            &out.join("masks").join(format!("{id}.png")),
        )?;
        kept.push(Facts {
            pixels,
            look: Some(Look::at(&patch)),
            ..facts(id, &item.id, &item.group, shape, sample.mask.size())
        });
    }
    Ok(kept)
}

/// Removes donors that the index does not name: those of another training set, also where it was
/// left half collected.
fn remove_strays(out: &Path, donors: &[Facts]) -> Result<()> {
    let kept: HashSet<String> = donors.iter().map(|d| format!("{}.png", d.id)).collect();
    let cannot = |path: &Path| {
        format!(
            "cannot remove what is left of other donors in `{}`",
            path.display()
        )
    };
    for folder in ["images", "masks"].map(|name| out.join(name)) {
        for entry in fs::read_dir(&folder).or_error(ErrorKind::Data, || cannot(&folder))? {
            let entry = entry.or_error(ErrorKind::Data, || cannot(&folder))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".png") && !kept.contains(&name) {
                fs::remove_file(entry.path()).or_error(ErrorKind::Data, || cannot(&folder))?;
            }
        }
    }
    Ok(())
}

fn write_index(out: &Path, index: &Index) -> Result<()> {
    let text = serde_json::to_string_pretty(index)? + "\n";
    write_atomic(&out.join(INDEX), text.as_bytes())
}
