//! Finding images and masks in the many ways in which REFUGE has been packed.

use diffaug::{
    pairs::{Pair, list_files, stem},
    prelude::*,
    split::natural_cmp,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// How deep below the root folders are looked for.
const MAX_DEPTH: usize = 6;

/// How many folders are looked into: with more, the root was a mistake (a home folder).
const MAX_FOLDERS: usize = 2000;

/// Names of folders of masks, letters and digits only.
const MASK_FOLDERS: [&str; 7] = [
    "disccupmasks",
    "mask",
    "masks",
    "gt",
    "gts",
    "groundtruth",
    "annotations",
];

/// Folders whose name has one of these hold derived or foreign pictures.
const OTHER_FOLDERS: [&str; 5] = ["crop", "square", "illustration", "macosx", "fovea"];

/// What the names of a folder and those above it (up to the root) tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Kind {
    is_mask: bool,
    /// `train`, `validation`, `test`, or empty.
    part: &'static str,
    glaucoma: Option<bool>,
}

/// Tells what a folder holds by its path below the root; none where it is of no use.
fn kind(relative: &Path) -> Option<Kind> {
    let mut kind = Kind::default();
    for component in relative.components() {
        let name = component.as_os_str().to_string_lossy().to_lowercase();
        let plain: String = name.chars().filter(|c| c.is_alphanumeric()).collect();
        if OTHER_FOLDERS.iter().any(|other| plain.contains(other)) {
            return None;
        }
        let words = || name.split(|c: char| !c.is_alphabetic());
        kind.is_mask |= MASK_FOLDERS.contains(&plain.as_str())
            || words().any(|word| word == "annotation" || word == "gt");
        // A deeper folder knows better: `REFUGE2-Training/REFUGE1-Val-400` is validation.
        if let Some(part) = words().filter_map(part).next_back() {
            kind.part = part;
        }
        match plain.as_str() {
            "glaucoma" | "g" => kind.glaucoma = Some(true),
            "nonglaucoma" | "n" => kind.glaucoma = Some(false),
            _ => {}
        }
    }
    Some(kind)
}

fn part(word: &str) -> Option<&'static str> {
    match word {
        "train" | "training" => Some("train"),
        "val" | "valid" | "validation" => Some("validation"),
        "test" | "testing" => Some("test"),
        _ => None,
    }
}

/// Every folder from `root` down, itself included, in natural order.
fn folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![root.to_owned()];
    let mut level = found.clone();
    for _ in 0..MAX_DEPTH {
        let mut next = Vec::new();
        for folder in &level {
            let entries = std::fs::read_dir(folder).or_error(ErrorKind::Data, || {
                format!("cannot list `{}`", folder.display())
            })?;
            for entry in entries {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if path.is_dir() && !name.starts_with('.') {
                    next.push(path);
                }
            }
            if found.len() + next.len() > MAX_FOLDERS {
                return Err(Error::data(format!(
                    "`{}` holds more than {MAX_FOLDERS} folders, so it is not REFUGE",
                    root.display()
                )));
            }
        }
        found.extend_from_slice(&next);
        level = next;
    }
    found.sort_by(|a, b| natural_cmp(&a.to_string_lossy(), &b.to_string_lossy()));
    Ok(found)
}

/// A folder with images right inside.
struct Folder {
    path: PathBuf,
    kind: Kind,
    files: Vec<PathBuf>,
}

fn image_folders(root: &Path) -> Result<Vec<Folder>> {
    let mut found = Vec::new();
    for path in folders(root)? {
        let relative = path.strip_prefix(root).unwrap_or(&path);
        // A folder without images is an error to the listing, but not here.
        if let (Some(kind), Ok(files)) = (kind(relative), list_files(&path)) {
            found.push(Folder { path, kind, files });
        }
    }
    Ok(found)
}

/// A mask file, and what its folder tells.
struct Found {
    path: PathBuf,
    glaucoma: Option<bool>,
}

type Masks = BTreeMap<(&'static str, String), Found>;

fn index_masks(folders: &[Folder]) -> Result<Masks> {
    let mut masks = Masks::new();
    for folder in folders.iter().filter(|folder| folder.kind.is_mask) {
        for path in &folder.files {
            let key = (folder.kind.part, stem(path)?.to_lowercase());
            let found = Found {
                path: path.clone(),
                glaucoma: folder.kind.glaucoma,
            };
            if let Some(other) = masks.insert(key, found) {
                return Err(Error::data(format!(
                    "both `{}` and `{}` could be the mask of one image; name a folder below as root",
                    other.path.display(),
                    path.display()
                )));
            }
        }
    }
    Ok(masks)
}

/// `g0001` has glaucoma and `n0001` has not; the other names (`V0001`, `T0001`) do not tell.
fn glaucoma_of(id: &str) -> Option<bool> {
    let (letter, digits) = id.split_at_checked(1)?;
    let numbered = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    match letter {
        "g" | "G" if numbered => Some(true),
        "n" | "N" if numbered => Some(false),
        _ => None,
    }
}

/// Pairs the images of one folder with their masks; nothing if it has none at all.
fn pair(folder: &Folder, masks: &Masks) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    let mut missing = None;
    for image in &folder.files {
        let id = stem(image)?;
        let key = id.to_lowercase();
        // Masks of all parts may lie in one folder.
        let mask = masks
            .get(&(folder.kind.part, key.clone()))
            .or_else(|| masks.get(&("", key)));
        let Some(mask) = mask else {
            missing.get_or_insert(image);
            continue;
        };
        let mut pair = Pair::new(&id, image.clone(), mask.path.clone());
        pair.item.part = folder.kind.part.into();
        let glaucoma = folder.kind.glaucoma.or(mask.glaucoma);
        if let Some(glaucoma) = glaucoma.or_else(|| glaucoma_of(&id)) {
            pair.attributes.set_flag("glaucoma", glaucoma);
        }
        pairs.push(pair);
    }
    match missing {
        Some(image) if !pairs.is_empty() => Err(Error::data(format!(
            "image `{}` has no mask, though others of its folder have",
            image.display()
        ))),
        Some(_) => {
            let shown = folder.path.display();
            tracing::warn!("`{shown}` is skipped: none of its images has a mask");
            Ok(pairs)
        }
        None => Ok(pairs),
    }
}

/// All images below `root` that have masks.
///
/// # Errors
/// When there are none, an image lacks the mask that its neighbours have, or two masks claim one
/// image.
pub(crate) fn find(root: &Path) -> Result<Vec<Pair>> {
    if !root.is_dir() {
        return Err(Error::data(format!("`{}` is not a folder", root.display())));
    }
    let folders = image_folders(root)?;
    let masks = index_masks(&folders)?;
    let mut pairs = Vec::new();
    for folder in folders.iter().filter(|folder| !folder.kind.is_mask) {
        pairs.extend(pair(folder, &masks)?);
    }
    if pairs.is_empty() {
        return Err(Error::data(format!(
            "`{}` holds no images with masks: expected `Training400` with `Annotation-Training400`, \
             or `images` with `masks`",
            root.display()
        )));
    }
    separate_parts(&mut pairs);
    Ok(pairs)
}

/// Some packs count anew in each part; there, ids become `train-1`, `test-1`.
fn separate_parts(pairs: &mut [Pair]) {
    let key = |pair: &Pair| (pair.item.part.to_string(), pair.item.id.to_string());
    let within: BTreeSet<_> = pairs.iter().map(key).collect();
    let overall: BTreeSet<_> = within.iter().map(|(_, id)| id).collect();
    if overall.len() == within.len() {
        return;
    }
    for pair in pairs.iter_mut().filter(|pair| !pair.item.part.is_empty()) {
        pair.item.id = format!("{}-{}", pair.item.part, pair.item.id).into();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_told_by_their_names() {
        let told = |path: &str| kind(Path::new(path)).map(|k| (k.is_mask, k.part, k.glaucoma));
        for (path, want) in [
            ("", (false, "", None)),
            ("Training400/Non-Glaucoma", (false, "train", Some(false))),
            (
                "Annotation-Training400/Annotation-Training400/Disc_Cup_Masks/Glaucoma",
                (true, "train", Some(true)),
            ),
            (
                "REFUGE-Validation400/REFUGE-Validation400",
                (false, "validation", None),
            ),
            (
                "REFUGE-Validation400-GT/Disc_Cup_Masks",
                (true, "validation", None),
            ),
            (
                "REFUGE-Test-GT/Disc_Cup_Masks/G",
                (true, "test", Some(true)),
            ),
            (
                "REFUGE2-Training/REFUGE1-Val-400/x",
                (false, "validation", None),
            ),
            (
                "REFUGE2-Training/REFUGE1-Test-400/Images",
                (false, "test", None),
            ),
            (
                "REFUGE1-Test-400/Annotation/Disc_Cup_Masks",
                (true, "test", None),
            ),
            ("Train/REFUGE1-train/Disc_Cup_Masks", (true, "train", None)),
            ("val/gts", (true, "validation", None)),
            ("test/mask", (true, "test", None)),
            ("images", (false, "", None)),
        ] {
            assert_eq!(told(path), Some(want), "{path}");
        }
        for path in [
            "__MACOSX/train/images",
            "train/Images_Cropped",
            "x-GT/Disc_Cup_Illustration",
        ] {
            assert_eq!(told(path), None, "{path}");
        }
    }

    #[test]
    fn names_tell_of_glaucoma_only_in_their_pattern() {
        assert_eq!(glaucoma_of("g0001"), Some(true));
        assert_eq!(glaucoma_of("N12"), Some(false));
        for id in ["T0001", "V0001", "g", "n1b", "glaucoma1", "", "é1"] {
            assert_eq!(glaucoma_of(id), None, "{id}");
        }
    }
}
