//! Kvasir-SEG: 1000 images of polyps from colonoscopies (Jha et al., *Kvasir-SEG: A Segmented
//! Polyp Dataset*, MMM 2020).
//!
//! As distributed:
//!
//! ```text
//! ROOT/
//!   images/cju0qkwl35piu0993l0dewei2.jpg   332x487 to 1920x1072 pixels
//!   masks/cju0qkwl35piu0993l0dewei2.jpg    white where the polyp is, of the image's size
//! ```
//!
//! The masks are JPEG files, so they hold more than two grey values: above 127 is polyp. Copies
//! that were saved with 0 and 1, or as palette images, are understood too. A folder
//! that the archive unpacks to (`ROOT/Kvasir-SEG/`) is found, too. Nothing tells which images show
//! the same patient.
//!
//! Splits: `paper` (800 / 200, the default), `pranet` (900 / 100; PraNet and the many that compare
//! with it) and `sdseg` (800 / 100 / 100). The published lists of ids are not part of this crate;
//! the sizes are theirs, the draw is ours, from a fixed seed. Use `split.file` for a list of ids.

#![forbid(unsafe_code)]

use diffaug::{
    image::MaskRule,
    pairs::{Pair, Pairs, find_folder, list_files, pair_up},
    prelude::*,
    published::Published,
};
use serde::Serialize;
use std::path::PathBuf;

/// Options of the dataset `kvasir-seg`.
#[derive(Deserialize, Serialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-published" = published()))]
pub struct Options {
    /// The folder that holds `images` and `masks`.
    pub root: PathBuf,
}

/// What its authors published; the terms are those of the page.
fn published() -> Published {
    Published {
        samples: 1000,
        groups: None,
        homepage: "https://datasets.simula.no/kvasir-seg/".into(),
        terms: "research and education; other uses need permission; cite Jha et al. 2020".into(),
    }
}

/// The dataset.
#[derive(Debug)]
pub struct KvasirSeg(Pairs);

impl FromConfig for KvasirSeg {
    type Config = Options;

    fn from_config(options: Options, context: &Context) -> Result<Self> {
        let unpacked = options.root.join("Kvasir-SEG");
        let root = if unpacked.is_dir() {
            unpacked
        } else {
            options.root
        };
        let folder = |name: &str| find_folder(&root, &[name]).unwrap_or_else(|| root.join(name));
        let images = list_files(&folder("images")).map_err(|error| error.at("root"))?;
        let masks = list_files(&folder("masks")).map_err(|error| error.at("root"))?;
        let pairs = pair_up(images, masks)?
            .into_iter()
            .map(|(id, image, mask)| Pair::new(&id, image, mask))
            .collect();
        let rule = MaskRule::Auto { label: 1 };
        Pairs::new(info(), pairs, rule, context).map(KvasirSeg)
    }
}

fn info() -> DatasetInfo {
    let mut info = DatasetInfo::single_class("Kvasir-SEG", "polyp");
    let sizes = [
        ("paper", 800, 0, 200),
        ("pranet", 900, 0, 100),
        ("sdseg", 800, 100, 100),
    ];
    for (name, train, validation, test) in sizes {
        info.splits.push(NamedSplit {
            name: name.into(),
            rule: SplitRule::Shuffled,
            train,
            validation,
            test,
        });
    }
    info
}

impl Dataset for KvasirSeg {
    fn info(&self) -> Result<DatasetInfo> {
        self.0.info()
    }

    fn items(&self) -> Result<RVec<Item>> {
        self.0.items()
    }

    fn check(&self, index: u64) -> Result<()> {
        self.0.check(index)
    }

    fn sample(&self, index: u64) -> Result<Sample> {
        self.0.sample(index)
    }
}

diffaug::export_plugin! { dataset "kvasir-seg" => KvasirSeg, "Kvasir-SEG: 1000 polyp images" }

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::{
        image::{save_gray, save_image},
        split::{SplitOptions, split},
    };
    use std::path::Path;

    fn write(root: &Path, id: &str, grays: [u8; 4]) {
        for folder in ["images", "masks"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        let image = Image::new(2, 2, vec![7; 12]).unwrap();
        save_image(image.view(), &root.join(format!("images/{id}.jpg"))).unwrap();
        // PNG under the name of a JPEG: the content counts, and the grey values stay exact.
        let (png, jpeg) = (root.join("m.png"), root.join(format!("masks/{id}.jpg")));
        let mask = Mask::new(2, 2, grays.to_vec()).unwrap();
        save_gray(mask.view(), &png).unwrap();
        std::fs::rename(png, jpeg).unwrap();
    }

    fn open(root: &Path) -> Result<KvasirSeg> {
        let root = root.to_owned();
        KvasirSeg::from_config(Options { root }, &Context::default())
    }

    #[test]
    fn masks_are_polyp_above_127() {
        let dir = tempfile::tempdir().unwrap();
        // Once right in the root, once in the folder that the archive makes.
        for root in [dir.path().join("a"), dir.path().join("b/Kvasir-SEG")] {
            write(&root, "cju1", [0, 127, 128, 250]);
        }
        for root in ["a", "b"] {
            let sample = open(&dir.path().join(root)).unwrap().sample(0).unwrap();
            assert_eq!(sample.id.as_str(), "cju1");
            assert_eq!(sample.mask.labels(), [0, 0, 1, 1]);
        }
    }

    #[test]
    fn splits_have_the_sizes_of_the_literature() {
        let items: Vec<Item> = (0..1000).map(|i| Item::new(&format!("cju{i}"))).collect();
        let sizes = |name: Option<&str>| {
            let options = SplitOptions {
                name: name.map(str::to_owned),
                ..SplitOptions::default()
            };
            let split = split(&info(), &items, &options).unwrap();
            [split.train.len(), split.validation.len(), split.test.len()]
        };
        assert_eq!(sizes(None), [720, 80, 200]);
        assert_eq!(sizes(Some("pranet")), [810, 90, 100]);
        assert_eq!(sizes(Some("sdseg")), [800, 100, 100]);
    }

    #[test]
    fn a_wrong_root_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = open(dir.path()).unwrap_err();
        assert_eq!(error.field.as_str(), "root");
        assert!(
            error.to_string().ends_with("images` does not exist"),
            "{error}"
        );
        write(dir.path(), "a", [0; 4]);
        std::fs::remove_file(dir.path().join("masks/a.jpg")).unwrap();
        let error = open(dir.path()).unwrap_err();
        assert!(
            error.to_string().contains("masks` holds no images"),
            "{error}"
        );
    }
}
