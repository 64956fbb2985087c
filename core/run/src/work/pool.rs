//! Every image that was painted, accepted or not, kept for runs that judge them otherwise.
//!
//! A pool grows: its list has a line for each image, written after the image is on the disk. An image
//! that is not as the list says is painted again.

use crate::{
    layout,
    results::{About, Taken},
    store,
};
use diffaug::{
    Image, Result, ResultExt,
    error::ErrorKind,
    files::{self, hash_file, is_sha256},
    image::{ReadOptions, open_image, save_image},
};
use rayon::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// The list of a pool, as `sha256sum -c` reads it.
const LIST: &str = "images.sha256";

/// The painted images of one generator.
pub struct Pool {
    taken: Taken,
    reading: ReadOptions,
    /// Hashes by the number of the candidate.
    listed: Mutex<BTreeMap<u64, String>>,
    /// Set when something could not be written: the run goes on without it.
    closed: AtomicBool,
}

impl Pool {
    /// The pool of the step `taken`; `about` says what it is where it is new.
    ///
    /// # Errors
    /// When it can be neither read nor made.
    pub fn open(taken: Taken, about: &About, reading: ReadOptions) -> Result<Self> {
        let pool = Pool {
            taken,
            reading,
            listed: Mutex::default(),
            closed: AtomicBool::new(false),
        };
        pool.taken.begin(about)?;
        let failed = || format!("cannot make `{}`", pool.folder().display());
        files::make_folder(&pool.folder().join(layout::IMAGES))
            .or_error(ErrorKind::Data, failed)?;
        store::sweep_folder(&pool.folder().join(layout::IMAGES), files::is_partial, true)
            .or_error(ErrorKind::Data, failed)?;
        let list = pool.folder().join(LIST);
        if list.exists() {
            let text = files::read_text(&list, u64::MAX)?;
            // Behind the last end of a line there is nothing, or a line that a kill cut short.
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            if whole < text.len() {
                files::write_atomic(&list, &text.as_bytes()[..whole])?;
            }
            *pool.listed() = text[..whole].lines().filter_map(entry).collect();
        }
        Ok(pool)
    }

    fn folder(&self) -> &Path {
        self.taken.folder()
    }

    fn listed(&self) -> MutexGuard<'_, BTreeMap<u64, String>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the image of a candidate lies, if it is there.
    fn path(&self, index: u64) -> PathBuf {
        self.folder()
            .join(layout::IMAGES)
            .join(layout::image(index))
    }

    /// The image of a candidate, where it is there as it was painted.
    pub fn get(&self, index: u64) -> Option<Image> {
        let hash = self.listed().get(&index).cloned()?;
        let path = self.path(index);
        let whole = hash_file(&path).is_ok_and(|found| found == hash);
        let image = whole
            .then(|| open_image(&path, self.reading).ok())
            .flatten();
        if image.is_none() {
            self.listed().remove(&index);
        }
        image
    }

    /// Keeps what was painted. Where that fails the pool is closed: the run needs it no more.
    pub fn add(&self, painted: &[(u64, &Image)]) {
        if painted.is_empty() || self.closed.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.write(painted) {
            tracing::warn!("painted images are no longer kept for other runs: {error}");
            self.closed.store(true, Ordering::Relaxed);
        }
    }

    fn write(&self, painted: &[(u64, &Image)]) -> Result<()> {
        let paths = painted.iter().map(|(index, _)| self.path(*index));
        let folders: BTreeSet<PathBuf> =
            paths.map(|path| files::parent(&path).to_owned()).collect();
        for folder in &folders {
            files::make_folder(folder)?;
        }
        let hashes: Vec<(u64, String)> = painted
            .par_iter()
            .map(|(index, image)| {
                let path = self.path(*index);
                save_image(image.view(), &path)?;
                Ok((*index, hash_file(&path)?))
            })
            .collect::<Result<_>>()?;
        for folder in &folders {
            files::sync_folder(folder)?;
        }
        let line = |(index, hash): &(u64, String)| {
            format!("{hash}  {}/{}\n", layout::IMAGES, layout::image(*index))
        };
        let lines: String = hashes.iter().map(line).collect();
        let list = self.folder().join(LIST);
        let append = || {
            let mut file = File::options().create(true).append(true).open(&list)?;
            file.write_all(lines.as_bytes())?;
            file.sync_data()
        };
        append().or_error(ErrorKind::Data, || {
            format!("cannot write `{}`", list.display())
        })?;
        self.listed().extend(hashes);
        Ok(())
    }

    /// Makes `to` the same file as the image of a candidate; `false` where that cannot be.
    pub fn link(&self, index: u64, to: &Path) -> bool {
        if self.closed.load(Ordering::Relaxed) || !self.listed().contains_key(&index) {
            return false;
        }
        let _ = fs::remove_file(to);
        fs::hard_link(self.path(index), to).is_ok()
    }
}

/// The candidate and hash of a line of the list; `None` where it is damaged.
fn entry(line: &str) -> Option<(u64, String)> {
    let (hash, name) = line.split_once("  ")?;
    let name = name.rsplit('/').next()?.strip_suffix(".png")?;
    Some((name.parse().ok()?, hash.to_owned())).filter(|(_, hash)| is_sha256(hash))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{results::Results, session::Session};
    use diffaug::Silent;

    fn open(root: &Path) -> Pool {
        let session = Session::new(&Silent);
        let taken = Results::of(root).take("ab", "painting", &session);
        let about = About::default();
        Pool::open(taken.unwrap().unwrap(), &about, (1 << 20).into()).unwrap()
    }

    fn picture(grey: u8) -> Image {
        Image::new(4, 4, vec![grey; 48]).unwrap()
    }

    #[test]
    fn what_was_painted_is_there_next_time() {
        let dir = tempfile::tempdir().unwrap();
        let (one, seven, many) = (picture(1), picture(7), picture(9));
        let pool = open(dir.path());
        assert!(pool.get(1).is_none() && !pool.link(1, &dir.path().join("x.png")));
        pool.add(&[(1, &one), (7, &seven), (12_345, &many)]);
        drop(pool);
        let left = dir.path().join(".steps/ab/images/.abcdef.partial");
        fs::write(&left, "").unwrap();
        let pool = open(dir.path());
        assert!(!left.exists());
        assert_eq!(pool.get(7).unwrap(), seven);
        assert_eq!(pool.get(12_345).unwrap(), many);
        let linked = dir.path().join("x.png");
        assert!(pool.link(1, &linked) && pool.link(7, &linked));
        assert_eq!(
            open_image(&linked, ReadOptions::from(1 << 20)).unwrap(),
            seven
        );
    }

    #[test]
    fn damage_costs_what_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let images = [0, 1, 2].map(picture);
        let all: Vec<(u64, &Image)> = (0..).zip(&images).collect();
        open(dir.path()).add(&all);
        let folder = dir.path().join(".steps/ab");
        fs::write(folder.join("images/000001.png"), "").unwrap();
        let list = folder.join(LIST);
        let cut = fs::read_to_string(&list).unwrap().len() - 5;
        File::options()
            .write(true)
            .open(&list)
            .unwrap()
            .set_len(cut as u64)
            .unwrap();
        let pool = open(dir.path());
        let there = [0, 1, 2].map(|index| pool.get(index).is_some());
        assert_eq!(there, [true, false, false]);
        pool.add(&all[1..]);
        drop(pool);
        let pool = open(dir.path());
        assert!((0..3).all(|index| pool.get(index).as_ref() == Some(&images[index as usize])));
    }

    #[test]
    fn a_pool_that_cannot_be_written_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let pool = open(dir.path());
        fs::create_dir(dir.path().join(".steps/ab").join(LIST)).unwrap();
        pool.add(&[(0, &picture(0))]);
        assert!(pool.get(0).is_none() && pool.closed.load(Ordering::Relaxed));
    }
}
