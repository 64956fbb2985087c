//! Datasets that are folders of images beside folders of masks: listing, pairing and reading,
//! shared by every plugin of that kind.

use crate::{
    data::{Attributes, DatasetInfo, Item, Sample},
    error::{Error, ErrorKind, Result, ResultExt},
    image::{MaskRule, open_image, open_mask},
    split::natural_cmp,
    stage::Dataset,
};
use abi_stable::std_types::RVec;
use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

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

/// A dataset of image and mask files.
#[derive(Debug)]
pub struct Pairs {
    info: DatasetInfo,
    pairs: Vec<Pair>,
    rule: MaskRule,
    max_pixels: u64,
}

impl Pairs {
    /// A dataset of `pairs`, in that order. `rule` turns grey values of masks into labels; images
    /// of more than `max_pixels` are refused when they are read.
    ///
    /// # Errors
    /// When there are no pairs or an id occurs twice.
    pub fn new(
        info: DatasetInfo,
        pairs: Vec<Pair>,
        rule: MaskRule,
        max_pixels: u64,
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
            max_pixels,
        })
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

    fn sample(&self, index: u64) -> Result<Sample> {
        let pair = usize::try_from(index)
            .ok()
            .and_then(|index| self.pairs.get(index))
            .ok_or_else(|| {
                Error::data(format!(
                    "{} has {} samples, none at index {index}",
                    self.info.name,
                    self.pairs.len()
                ))
            })?;
        let image = open_image(&pair.image, self.max_pixels)?;
        let mask = open_mask(&pair.mask, self.max_pixels, &self.rule)?;
        if image.size() != mask.size() {
            return Err(Error::data(format!(
                "mask `{}` is {}x{}, but its image `{}` is {}x{}",
                pair.mask.display(),
                mask.width(),
                mask.height(),
                pair.image.display(),
                image.width(),
                image.height()
            )));
        }
        Ok(Sample {
            id: pair.item.id.clone(),
            image,
            mask,
            attributes: pair.attributes.clone(),
        })
    }
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

/// The name of a file without its extension, as text.
///
/// # Errors
/// When the name is not Unicode: ids go into reports and other file names.
pub fn stem(path: &Path) -> Result<String> {
    path.file_stem()
        .and_then(|stem| stem.to_str())
        .map(str::to_owned)
        .ok_or_else(|| {
            Error::data(format!(
                "the name of `{}` is not valid Unicode",
                path.display()
            ))
        })
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
    let folder = masks.first().and_then(|mask| mask.parent());
    let folder = folder.unwrap_or(Path::new("")).to_owned();
    let mut by_stem = unique_stems(masks)?;
    unique_stems(images.clone())?;
    let mut pairs = Vec::with_capacity(images.len());
    for image in images {
        let stem = stem(&image)?;
        let Some(mask) = by_stem.remove(&stem) else {
            return Err(Error::data(format!(
                "image `{}` has no mask in `{}`",
                image.display(),
                folder.display()
            )));
        };
        pairs.push((stem, image, mask));
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
    /// Reads comma-separated UTF-8 text; fields may stand in double quotes.
    ///
    /// # Errors
    /// When the file cannot be read, or a line has another number of fields than the header.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .or_error(ErrorKind::Data, || format!("cannot read `{shown}`"))?;
        let mut lines = csv_lines(text.trim_start_matches('\u{feff}')).into_iter();
        let Some((_, header)) = lines.next() else {
            return Err(Error::data(format!("`{shown}` is empty")));
        };
        let header: Vec<String> = header.iter().map(|name| name.to_lowercase()).collect();
        let mut rows = Vec::new();
        for (line, row) in lines {
            if row.len() != header.len() {
                return Err(Error::data(format!(
                    "line {line} of `{shown}` has {} fields, but the header has {}",
                    row.len(),
                    header.len()
                )));
            }
            rows.push(row);
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

/// Fields of every line that is not empty, with the number of the line that it begins on.
fn csv_lines(text: &str) -> Vec<(usize, Vec<String>)> {
    let mut lines = Vec::new();
    let (mut row, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let (mut line, mut begin) = (1, 1);
    // A last line without its end is ended here.
    let mut chars = text.chars().chain(['\n']).peekable();
    while let Some(c) = chars.next() {
        line += usize::from(c == '\n');
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if quoted || field.trim().is_empty() => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut field).trim().to_owned()),
            '\n' if !quoted || chars.peek().is_none() => {
                row.push(std::mem::take(&mut field).trim().to_owned());
                let row = std::mem::take(&mut row);
                if row.len() > 1 || !row[0].is_empty() {
                    lines.push((begin, row));
                }
                begin = line;
            }
            c => field.push(c),
        }
    }
    lines
}

#[cfg(test)]
mod tests;
