//! Datasets that are folders of images beside folders of masks: listing, pairing and reading,
//! shared by every plugin of that kind.

use crate::{
    data::{Attributes, DatasetInfo, Item, Mask, Sample},
    error::{Error, ErrorKind, Result, ResultExt},
    files::{MAX_TEXT, read_text},
    image::{MaskFault, MaskRule, ReadOptions, open_image, read_header, read_values},
    records::{Record, records},
    split::natural_cmp,
    stage::Dataset,
};
use abi_stable::std_types::RVec;
use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};
use unicode_normalization::UnicodeNormalization;

/// What image files are called, in lower case.
const EXTENSIONS: [&str; 6] = ["png", "jpg", "jpeg", "tif", "tiff", "bmp"];

/// An image file and its mask file.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Its entry in the listing.
    pub item: Item,
    /// The image file.
    pub image: PathBuf,
    /// The mask file.
    pub mask: PathBuf,
    /// What is known without decoding (`sequence`, `glaucoma`).
    pub attributes: Attributes,
}

impl Pair {
    /// A pair with neither group, part nor attributes.
    pub fn new(id: &str, image: PathBuf, mask: PathBuf) -> Self {
        Pair {
            item: Item::new(id),
            image,
            mask,
            attributes: Attributes::new(),
        }
    }
}

/// What a user of the dataset may do about values that fit no rule, as the end of a sentence.
pub type Advice = fn(&MaskFault) -> String;

/// A dataset of image and mask files.
#[derive(Debug)]
pub struct Pairs {
    info: DatasetInfo,
    pairs: Vec<Pair>,
    rule: MaskRule,
    options: ReadOptions,
    advice: Option<Advice>,
}

impl Pairs {
    /// A dataset of `pairs`, in that order. `rule` turns the values of masks into labels; `options`
    /// say how files are read (a [`Context`](crate::Context) holds those of the run).
    ///
    /// # Errors
    /// When there are no pairs or an id occurs twice.
    pub fn new(
        info: DatasetInfo,
        pairs: Vec<Pair>,
        rule: MaskRule,
        options: impl Into<ReadOptions>,
    ) -> Result<Self> {
        if pairs.is_empty() {
            return Err(Error::data(format!("{} holds no samples", info.name)));
        }
        let mut seen: HashMap<&str, &Path> = HashMap::new();
        for pair in &pairs {
            if let Some(other) = seen.insert(&pair.item.id, &pair.image) {
                return Err(Error::data(format!(
                    "`{}` and `{}` have the same id `{}`",
                    other.display(),
                    pair.image.display(),
                    pair.item.id
                )));
            }
        }
        Ok(Pairs {
            info,
            pairs,
            rule,
            options: options.into(),
            advice: None,
        })
    }

    /// Adds to errors about the values of a mask what can be done about them.
    #[must_use]
    pub fn with_advice(mut self, advice: Advice) -> Self {
        self.advice = Some(advice);
        self
    }

    /// The pairs, in the order of [`Dataset::items`].
    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }
}

impl Dataset for Pairs {
    fn info(&self) -> Result<DatasetInfo> {
        Ok(self.info.clone())
    }

    fn items(&self) -> Result<RVec<Item>> {
        Ok(self.pairs.iter().map(|pair| pair.item.clone()).collect())
    }

    fn check(&self, index: u64) -> Result<()> {
        let pair = self.pair(index)?;
        let image = read_header(&pair.image)?;
        image.check_size(&pair.image, self.options.max_pixels)?;
        let mask = read_header(&pair.mask)?;
        same_size(pair, image.size(), mask.size())
    }

    fn sample(&self, index: u64) -> Result<Sample> {
        let pair = self.pair(index)?;
        let image = open_image(&pair.image, self.options)?;
        let mask = self.mask(pair)?;
        same_size(pair, image.size(), mask.size())?;
        Ok(Sample {
            id: pair.item.id.clone(),
            image,
            mask,
            attributes: pair.attributes.clone(),
        })
    }
}

impl Pairs {
    fn pair(&self, index: u64) -> Result<&Pair> {
        let pair = usize::try_from(index)
            .ok()
            .and_then(|index| self.pairs.get(index));
        pair.ok_or_else(|| {
            Error::data(format!(
                "{} has {} samples, none at index {index}",
                self.info.name,
                self.pairs.len()
            ))
        })
    }

    fn mask(&self, pair: &Pair) -> Result<Mask> {
        let found = read_values(&pair.mask, self.options)?;
        self.rule.apply(found).map_err(|fault| {
            let mut error = fault.at(&pair.mask);
            if let Some(advice) = self.advice {
                error.message = format!("{}: {}", error.message, advice(&fault)).into();
            }
            error
        })
    }
}

/// Checks that image and mask have the same size; an orientation that was applied is named.
fn same_size(pair: &Pair, image: (u32, u32), mask: (u32, u32)) -> Result<()> {
    if image == mask {
        return Ok(());
    }
    let turned = |path: &Path| {
        let orientation = read_header(path).ok()?.orientation()?;
        Some(format!(
            " (`{}` carries the EXIF orientation {orientation}, which is applied as viewers do)",
            path.display()
        ))
    };
    let turned = turned(&pair.image).or_else(|| turned(&pair.mask));
    Err(Error::data(format!(
        "mask `{}` is {}x{}, but its image `{}` is {}x{}{}",
        pair.mask.display(),
        mask.0,
        mask.1,
        pair.image.display(),
        image.0,
        image.1,
        turned.unwrap_or_default()
    )))
}

/// The image files right inside `dir`, in natural order of their names. Hidden files are left out,
/// and with them the `._x.png` that macOS leaves on foreign disks.
///
/// # Errors
/// When `dir` is missing, not a folder, or holds no images.
pub fn list_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let shown = dir.display();
    if !dir.is_dir() {
        let what = if dir.exists() {
            "is not a folder"
        } else {
            "does not exist"
        };
        return Err(Error::data(format!("`{shown}` {what}")));
    }
    let cannot = || format!("cannot list `{shown}`");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).or_error(ErrorKind::Data, cannot)? {
        let path = entry.or_error(ErrorKind::Data, cannot)?.path();
        if is_image_name(&path) && path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::data(format!(
            "`{shown}` holds no images (png, jpg, tif, bmp)"
        )));
    }
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    files.sort_by_cached_key(|path| Natural(name(path)));
    Ok(files)
}

fn is_image_name(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.to_string_lossy().starts_with('.'));
    let extension = path
        .extension()
        .map(|e| e.to_string_lossy().to_ascii_lowercase());
    !hidden && extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
}

/// Orders strings by [`natural_cmp`].
#[derive(PartialEq, Eq)]
struct Natural(String);

impl Ord for Natural {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        natural_cmp(&self.0, &other.0)
    }
}

impl PartialOrd for Natural {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A text with accents composed (Unicode's form NFC). Some file systems store names with letters
/// and accents apart (NFD); both forms look the same and mean the same file.
pub fn composed(text: &str) -> String {
    text.nfc().collect()
}

/// The name of a file without its extension, as text with accents [`composed`].
///
/// # Errors
/// When the name is not Unicode: ids go into reports and other file names.
pub fn stem(path: &Path) -> Result<String> {
    path.file_stem()
        .and_then(|stem| stem.to_str())
        .map(composed)
        .ok_or_else(|| {
            Error::data(format!(
                "the name of `{}` is not valid Unicode",
                path.display()
            ))
        })
}

/// How the names of masks differ from those of their images.
#[derive(Clone, Copy, Debug, Default)]
pub struct MaskNames<'a> {
    /// What stands at the end of a mask's name, before its extension: `_segmentation`.
    pub suffix: &'a str,
    /// The option by which a user states it, for the error that suggests one.
    pub option: Option<&'a str>,
}

/// Pairs images with masks of the same file stem: `(stem, image, mask)` in the order of `images`.
/// A mask without an image is only warned of.
///
/// # Errors
/// When an image has no mask, or two files of one list share a stem.
pub fn pair_up(
    images: Vec<PathBuf>,
    masks: Vec<PathBuf>,
) -> Result<Vec<(String, PathBuf, PathBuf)>> {
    pair_up_named(images, masks, MaskNames::default())
}

/// As [`pair_up`], for masks whose names have a suffix. Files without it are no masks.
///
/// # Errors
/// As for [`pair_up`]; a suffix that would help is named.
pub fn pair_up_named(
    images: Vec<PathBuf>,
    masks: Vec<PathBuf>,
    names: MaskNames<'_>,
) -> Result<Vec<(String, PathBuf, PathBuf)>> {
    let folder = masks.first().and_then(|mask| mask.parent());
    let folder = folder.unwrap_or(Path::new("")).to_owned();
    let suffix = composed(names.suffix);
    let mut by_stem = BTreeMap::new();
    for (stem, mask) in unique_stems(masks)? {
        if let Some(name) = stem.strip_suffix(&suffix) {
            by_stem.insert(name.to_owned(), mask);
        }
    }
    unique_stems(images.clone())?;
    let all: Vec<String> = by_stem.keys().cloned().collect();
    let mut pairs = Vec::with_capacity(images.len());
    let mut missing: Vec<&Path> = Vec::new();
    for image in &images {
        let stem = stem(image)?;
        match by_stem.remove(&stem) {
            Some(mask) => pairs.push((stem, image.clone(), mask)),
            None => missing.push(image),
        }
    }
    if !missing.is_empty() {
        let suffix = common_suffix(&images, &all);
        return Err(no_masks(&missing, &folder, suffix, names.option));
    }
    if let Some(mask) = by_stem.values().next() {
        tracing::warn!(
            "{} masks in `{}` have no image, `{}` among them",
            by_stem.len(),
            folder.display(),
            mask.display()
        );
    }
    Ok(pairs)
}

/// The error for images without masks; all are named, as far as a sentence can hold them.
fn no_masks(missing: &[&Path], folder: &Path, suffix: Option<&str>, option: Option<&str>) -> Error {
    const SHOWN: usize = 8;
    let mut message = String::new();
    if let [first, others @ ..] = missing {
        message = format!(
            "image `{}` has no mask in `{}`",
            first.display(),
            folder.display()
        );
        let shown = others.iter().take(SHOWN).map(|path| {
            let name = path.file_name().unwrap_or_default();
            format!("`{}`", name.to_string_lossy())
        });
        let shown: Vec<String> = shown.collect();
        if !shown.is_empty() {
            let more = if others.len() > SHOWN { ", …" } else { "" };
            let list = shown.join(", ");
            message += &format!(" (and {} more: {list}{more})", others.len());
        }
    }
    if let Some(suffix) = suffix {
        message += &format!("; names of masks end in `{suffix}`");
        if let Some(option) = option {
            message += &format!(", which `{option}` can say");
        }
    }
    Error::data(message)
}

/// What has to be added to the name of every image to get that of a mask, if anything does.
fn common_suffix<'a>(images: &[PathBuf], masks: &'a [String]) -> Option<&'a str> {
    let stems: Vec<String> = images
        .iter()
        .map(|image| stem(image).ok())
        .collect::<Option<_>>()?;
    let first = stems.first()?;
    let suffixes = masks
        .iter()
        .filter_map(|mask| mask.strip_prefix(first.as_str()));
    let known: std::collections::HashSet<&str> = masks.iter().map(String::as_str).collect();
    let fits = |suffix: &&str| {
        let named = |stem: &String| known.contains(format!("{stem}{suffix}").as_str());
        !suffix.is_empty() && stems.iter().all(named)
    };
    suffixes.into_iter().find(fits)
}

fn unique_stems(files: Vec<PathBuf>) -> Result<BTreeMap<String, PathBuf>> {
    let mut by_stem: BTreeMap<String, PathBuf> = BTreeMap::new();
    for file in files {
        let stem = stem(&file)?;
        if let Some(other) = by_stem.get(&stem) {
            return Err(Error::data(format!(
                "`{}` and `{}` have the same id `{stem}`",
                other.display(),
                file.display()
            )));
        }
        by_stem.insert(stem, file);
    }
    Ok(by_stem)
}

/// The folder right inside `dir` that has one of `names`, given in lower case without anything but
/// letters and digits: `groundtruth` finds `Ground Truth`, `ground_truth` and `GroundTruth`.
pub fn find_folder(dir: &Path, names: &[&str]) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && names.contains(&plain_name(path).as_str()))
        .collect();
    // Of several spellings, the same one on every file system.
    found.sort();
    found.into_iter().next()
}

/// The last component of a path in lower case, letters and digits only.
fn plain_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let kept = name.chars().filter(|c| c.is_alphanumeric());
    kept.flat_map(char::to_lowercase).collect()
}

/// A small table with a header line, from a CSV file.
#[derive(Debug)]
pub struct Table {
    path: PathBuf,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Reads comma-separated UTF-8 text, as [`records`] does; fields may stand in double quotes.
    ///
    /// # Errors
    /// When the file cannot be read, or a line has another number of fields than the header.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = read_text(path, MAX_TEXT)
            .or_error(ErrorKind::Data, || format!("cannot read `{shown}`"))?;
        let mut records = records(&shown.to_string(), &text)?.into_iter();
        let Some(Record { fields: header, .. }) = records.next() else {
            return Err(Error::data(format!("`{shown}` is empty")));
        };
        let header: Vec<String> = header.iter().map(|name| name.to_lowercase()).collect();
        let mut rows = Vec::new();
        for Record { line, fields } in records {
            if fields.len() != header.len() {
                return Err(Error::data(format!(
                    "line {line} of `{shown}` has {} fields, but the header has {}",
                    fields.len(),
                    header.len()
                )));
            }
            rows.push(fields);
        }
        Ok(Table {
            path: path.to_owned(),
            header,
            rows,
        })
    }

    /// The position of the first of `names` (lower case) that is a column.
    pub fn column(&self, names: &[&str]) -> Option<usize> {
        names
            .iter()
            .find_map(|name| self.header.iter().position(|column| column == name))
    }

    /// As [`Table::column`], for a column that must be there.
    ///
    /// # Errors
    /// When none of `names` is a column.
    pub fn need(&self, names: &[&str]) -> Result<usize> {
        self.column(names).ok_or_else(|| {
            Error::data(format!(
                "`{}` has no column `{}`, but {}",
                self.path.display(),
                names.join("` or `"),
                self.header
                    .iter()
                    .map(|name| format!("`{name}`"))
                    .collect::<Vec<_>>()
                    .join(", ")
            ))
        })
    }

    /// The lines below the header; each has one field for each column.
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }
}

#[cfg(test)]
mod tests;
