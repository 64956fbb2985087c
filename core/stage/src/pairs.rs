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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        data::{Image, Mask},
        image::{DEFAULT_MAX_PIXELS, save_gray, save_image},
    };
    use tempfile::TempDir;

    /// A folder with images `images/ID.png` and masks `masks/ID.png` of the given sides.
    fn folder(entries: &[(&str, u32, u32)]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["images", "masks"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        for (id, image, mask) in entries {
            let (image, mask) = (*image, *mask);
            if image > 0 {
                let pixels = vec![90; (image * image * 3) as usize];
                let image = Image::new(image, image, pixels).unwrap();
                save_image(image.view(), &dir.path().join(format!("images/{id}.png"))).unwrap();
            }
            if mask > 0 {
                let labels = vec![255; (mask * mask) as usize];
                let mask = Mask::new(mask, mask, labels).unwrap();
                save_gray(mask.view(), &dir.path().join(format!("masks/{id}.png"))).unwrap();
            }
        }
        dir
    }

    fn open(dir: &TempDir, max_pixels: u64) -> Result<Pairs> {
        let files = |sub| list_files(&dir.path().join(sub));
        let pairs = pair_up(files("images")?, files("masks")?)?;
        let pairs = pairs
            .into_iter()
            .map(|(id, image, mask)| Pair::new(&id, image, mask));
        let rule = MaskRule::Above {
            threshold: 127,
            label: 1,
        };
        Pairs::new(
            DatasetInfo::single_class("D", "polyp"),
            pairs.collect(),
            rule,
            max_pixels,
        )
    }

    fn message(result: Result<impl std::fmt::Debug>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn pairs_come_in_natural_order() {
        let dir = folder(&[("10", 4, 4), ("2", 6, 6), ("1", 5, 5), ("x", 0, 3)]);
        std::fs::write(dir.path().join("images/._1.png"), "AppleDouble").unwrap();
        std::fs::write(dir.path().join("images/Thumbs.db"), "x").unwrap();
        let pairs = open(&dir, DEFAULT_MAX_PIXELS).unwrap();
        let ids: Vec<_> = pairs
            .items()
            .unwrap()
            .into_iter()
            .map(|i| i.id.to_string())
            .collect();
        assert_eq!(ids, ["1", "2", "10"]);
        let sample = pairs.sample(1).unwrap();
        assert_eq!((sample.id.as_str(), sample.image.size()), ("2", (6, 6)));
        assert_eq!(sample.mask.labels(), [1; 36]);
        assert_eq!(message(pairs.sample(3)), "D has 3 samples, none at index 3");
    }

    #[test]
    fn a_mask_of_another_size_is_named() {
        let dir = folder(&[("a", 12, 10)]);
        let message = message(open(&dir, 1000).unwrap().sample(0));
        assert!(
            message.contains("a.png` is 10x10, but its image `"),
            "{message}"
        );
        assert!(message.ends_with("a.png` is 12x12"), "{message}");
    }

    #[test]
    fn an_image_without_mask_is_named() {
        let dir = folder(&[("a", 4, 4), ("b", 4, 0)]);
        let message = message(open(&dir, 1000));
        assert!(message.contains("b.png` has no mask in `"), "{message}");
        assert!(message.ends_with("masks`"), "{message}");
    }

    #[test]
    fn the_pixel_limit_and_broken_files_show_when_read() {
        let dir = folder(&[("a", 4, 4), ("b", 40, 40)]);
        let pairs = open(&dir, 100).unwrap();
        pairs.sample(0).unwrap();
        assert!(message(pairs.sample(1)).contains("40x40 pixels, over the limit of 100 pixels"));
        let mask = dir.path().join("masks/a.png");
        let bytes = std::fs::read(&mask).unwrap();
        std::fs::write(&mask, &bytes[..bytes.len() - 20]).unwrap();
        assert!(message(pairs.sample(0)).contains(&mask.display().to_string()));
    }

    #[test]
    fn two_files_of_one_id_are_named() {
        let dir = folder(&[("a", 4, 4)]);
        std::fs::copy(
            dir.path().join("images/a.png"),
            dir.path().join("images/a.JPG"),
        )
        .unwrap();
        let text = message(open(&dir, 1000));
        assert!(text.contains("a.JPG`") && text.contains("a.png`"), "{text}");
        assert!(text.ends_with("have the same id `a`"), "{text}");
        let twice = ["x", "y"].map(|name| Pair::new("a", name.into(), name.into()));
        let info = DatasetInfo::single_class("D", "polyp");
        let rule = MaskRule::Above {
            threshold: 127,
            label: 1,
        };
        assert_eq!(
            message(Pairs::new(info, twice.into(), rule, 1)),
            "`x` and `y` have the same id `a`"
        );
    }

    #[test]
    fn folders_that_hold_nothing_are_named() {
        let dir = folder(&[]);
        assert!(message(open(&dir, 1)).ends_with("images` holds no images (png, jpg, tif, bmp)"));
        assert!(message(list_files(&dir.path().join("no"))).ends_with("no` does not exist"));
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(message(list_files(&file)).ends_with("file` is not a folder"));
        let info = DatasetInfo::single_class("D", "polyp");
        let rule = MaskRule::Above {
            threshold: 127,
            label: 1,
        };
        assert_eq!(
            message(Pairs::new(info, Vec::new(), rule, 1)),
            "D holds no samples"
        );
    }

    #[test]
    fn tables_bear_quotes_and_foreign_line_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.csv");
        std::fs::write(&path, "\u{feff}ID, Group\r\na,\"x, \"\"y\"\"\"\r\n\r\nb,2").unwrap();
        let table = Table::read(&path).unwrap();
        assert_eq!(
            (table.need(&["id"]).unwrap(), table.column(&["no", "group"])),
            (0, Some(1))
        );
        assert_eq!(table.rows(), [["a", "x, \"y\""], ["b", "2"]]);
        assert!(
            message(table.need(&["no", "nor"]))
                .ends_with("no column `no` or `nor`, but `id`, `group`")
        );
        std::fs::write(&path, "id,group\n\"a\nb\",1\nc\n").unwrap();
        assert!(message(Table::read(&path)).contains("line 4 of"));
        std::fs::write(&path, "\n").unwrap();
        assert!(message(Table::read(&path)).ends_with("t.csv` is empty"));
    }

    #[test]
    fn folders_are_found_however_they_are_spelled() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find_folder(dir.path(), &["groundtruth"]), None);
        std::fs::write(dir.path().join("groundtruth"), "a file").unwrap();
        assert_eq!(find_folder(dir.path(), &["groundtruth"]), None);
        let folder = dir.path().join("Ground Truth");
        std::fs::create_dir(&folder).unwrap();
        assert_eq!(find_folder(dir.path(), &["x", "groundtruth"]), Some(folder));
    }
}
