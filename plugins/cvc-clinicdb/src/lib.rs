//! CVC-ClinicDB: 612 frames with polyps from 29 colonoscopy videos, 384x288 pixels (Bernal et al.,
//! *WM-DOVA maps for accurate polyp highlighting in colonoscopy*, 2015).
//!
//! Layouts, the first that is there; upper and lower case, blanks and `_` in names do not matter:
//!
//! ```text
//! ROOT/PNG/Original/17.png    ROOT/PNG/Ground Truth/17.png    (packs with both formats)
//! ROOT/Original/17.tif        ROOT/Ground Truth/17.tif        (official; or PNG files)
//! ROOT/TIF/Original/17.tif    ROOT/TIF/Ground Truth/17.tif
//! ROOT/metadata.csv           (optional) columns `sequence_id` and `png_image_path` or `frame_id`
//! ```
//!
//! Edges of the masks are soft: above 127 is polyp.
//!
//! **Which split?** Neighbouring frames of a video are near-duplicates, so a random split tests on
//! what was trained on. The default `sequence` keeps each of the 29 videos on one side, as near to
//! 488 / 124 as whole videos allow. For comparison with the literature, which draws frames at
//! random, there are `paper` (488 / 124), `pranet` (550 / 62) and `sdseg` (492 / 60 / 60). The
//! published lists of ids are not part of this crate: sizes are theirs, the draw is ours, from a
//! fixed seed. Use `split.file` for a list of ids.

#![forbid(unsafe_code)]

use diffaug::{
    image::{MaskRule, mask::THRESHOLD},
    pairs::{Pair, Pairs, Table, find_folder, list_files, pair_up, stem},
    prelude::*,
    published::Published,
};
use serde::Serialize;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// The last frame of each of the 29 sequences, from the dataset's README.
const LAST_FRAMES: [u32; 29] = [
    25, 50, 67, 78, 103, 126, 151, 177, 199, 205, 227, 252, 277, 297, 317, 342, 363, 383, 408, 428,
    447, 466, 478, 503, 528, 546, 571, 591, 612,
];

/// Which files to read where a pack has both.
#[derive(Deserialize, Serialize, JsonSchema, Debug, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// PNG if there, else TIFF.
    #[default]
    Auto,
    /// PNG files.
    Png,
    /// TIFF files, as officially distributed.
    Tif,
}

/// Options of the dataset `cvc-clinicdb`.
#[derive(Deserialize, Serialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-published" = published()))]
pub struct Options {
    /// The folder that holds `Original` and `Ground Truth`, or `PNG` or `TIF` with these.
    pub root: PathBuf,
    /// Which files to read where a pack has both.
    #[serde(default)]
    pub format: Format,
}

/// What its authors published; the terms are those of the page.
fn published() -> Published {
    Published {
        samples: 612,
        groups: Some(LAST_FRAMES.len() as u64),
        homepage: "https://polyp.grand-challenge.org/CVCClinicDB/".into(),
        terms: "research; see the page; cite Bernal et al. 2015".into(),
    }
}

/// The dataset.
#[derive(Debug)]
pub struct CvcClinicDb(Pairs);

impl FromConfig for CvcClinicDb {
    type Config = Options;

    fn from_config(options: Options, context: &Context) -> Result<Self> {
        let found = find_files(&options).map_err(|error| error.at("root"))?;
        let sequences = Sequences::find(&options.root)?;
        let mut pairs = Vec::with_capacity(found.images.len());
        for (id, image, mask) in pair_up(found.images, found.masks)? {
            let sequence = sequences.of(&id, &image)?;
            let mut pair = Pair::new(&id, image, mask);
            pair.attributes.set_text("sequence", &sequence);
            pair.item.group = sequence.into();
            pairs.push(pair);
        }
        // White on black throughout, but the published files hold specks of near-black, some over whole
        // areas, which values alone would not tell from a class.
        let rule = MaskRule::Above {
            threshold: THRESHOLD,
            label: 1,
        };
        Pairs::new(info(found.format), pairs, rule, context).map(CvcClinicDb)
    }
}

/// Images and masks in one format.
struct Files {
    images: Vec<PathBuf>,
    masks: Vec<PathBuf>,
    format: Format,
}

fn find_files(options: &Options) -> Result<Files> {
    let root = &options.root;
    if !root.is_dir() {
        return Err(Error::data(format!("`{}` is not a folder", root.display())));
    }
    let bases = [
        find_folder(root, &["png"]),
        Some(root.clone()),
        find_folder(root, &["tif", "tiff"]),
    ];
    for base in bases.into_iter().flatten() {
        let (Some(original), Some(truth)) = (
            find_folder(&base, &["original"]),
            find_folder(&base, &["groundtruth"]),
        ) else {
            continue;
        };
        let (images, masks) = (list_files(&original)?, list_files(&truth)?);
        let wanted = match options.format {
            Format::Auto => [Format::Png, Format::Tif].as_slice(),
            Format::Png => &[Format::Png],
            Format::Tif => &[Format::Tif],
        };
        for &format in wanted {
            let of_format = |files: &[PathBuf]| {
                files
                    .iter()
                    .filter(|file| is(file, format))
                    .cloned()
                    .collect()
            };
            let images: Vec<PathBuf> = of_format(&images);
            if !images.is_empty() {
                return Ok(Files {
                    images,
                    masks: of_format(&masks),
                    format,
                });
            }
        }
    }
    let what = match options.format {
        Format::Auto => "PNG or TIFF",
        Format::Png => "PNG",
        Format::Tif => "TIFF",
    };
    Err(Error::data(format!(
        "`{}` has no `Original` and `Ground Truth` with {what} files, \
         neither directly nor in `PNG` or `TIF`",
        root.display()
    )))
}

fn is(file: &Path, format: Format) -> bool {
    let extension = file.extension().unwrap_or_default().to_string_lossy();
    match extension.to_ascii_lowercase().as_str() {
        "png" => format == Format::Png,
        "tif" | "tiff" => format == Format::Tif,
        _ => false,
    }
}

/// Which video a frame comes from.
struct Sequences {
    /// By frame, from `metadata.csv`; without that file, the README's table holds.
    table: Option<(PathBuf, HashMap<String, String>)>,
}

impl Sequences {
    fn find(root: &Path) -> Result<Self> {
        let path = root.join("metadata.csv");
        if !path.is_file() {
            return Ok(Sequences { table: None });
        }
        let table = Table::read(&path)?;
        let sequence = table.need(&["sequence_id", "sequence"])?;
        // The name of the file says which sample is meant; a frame number may count within a video.
        let frame = table.need(&["png_image_path", "tif_image_path", "frame_id", "frame"])?;
        let mut by_frame = HashMap::new();
        for row in table.rows() {
            by_frame.insert(stem(Path::new(&row[frame]))?, row[sequence].clone());
        }
        Ok(Sequences {
            table: Some((path, by_frame)),
        })
    }

    fn of(&self, id: &str, image: &Path) -> Result<String> {
        if let Some((path, by_frame)) = &self.table {
            return by_frame.get(id).cloned().ok_or_else(|| {
                Error::data(format!(
                    "`{}` does not say which sequence `{}` belongs to",
                    path.display(),
                    image.display()
                ))
            });
        }
        let frame: Option<u32> = id.parse().ok();
        frame
            .and_then(sequence_of)
            .map(|sequence| sequence.to_string())
            .ok_or_else(|| {
                Error::data(format!(
                    "`{}` is not one of the frames 1 to 612, \
                     and no `metadata.csv` says which sequence it belongs to",
                    image.display()
                ))
            })
    }
}

/// The sequence (1 to 29) of a frame (1 to 612).
fn sequence_of(frame: u32) -> Option<usize> {
    let index = LAST_FRAMES.partition_point(|&last| last < frame);
    (frame > 0 && index < LAST_FRAMES.len()).then_some(index + 1)
}

fn info(format: Format) -> DatasetInfo {
    let name = match format {
        Format::Tif => "CVC-ClinicDB (TIFF)",
        _ => "CVC-ClinicDB (PNG)",
    };
    let mut info = DatasetInfo::single_class(name, "polyp");
    let splits = [
        ("sequence", SplitRule::Grouped, 488, 0, 124),
        ("paper", SplitRule::Shuffled, 488, 0, 124),
        ("pranet", SplitRule::Shuffled, 550, 0, 62),
        ("sdseg", SplitRule::Shuffled, 492, 60, 60),
    ];
    for (name, rule, train, validation, test) in splits {
        info.splits.push(NamedSplit {
            name: name.into(),
            rule,
            train,
            validation,
            test,
        });
    }
    info
}

impl Dataset for CvcClinicDb {
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

diffaug::export_plugin! {
    dataset "cvc-clinicdb" => CvcClinicDb, "CVC-ClinicDB: 612 polyp frames of 29 videos"
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::{
        image::{save_gray, save_image},
        split::{SplitOptions, split},
    };
    use std::collections::HashSet;

    /// Frames below `base`, with masks of a black and a white pixel.
    fn write(base: &Path, frames: &[&str], extension: &str) {
        for folder in ["Original", "Ground Truth"] {
            std::fs::create_dir_all(base.join(folder)).unwrap();
        }
        for frame in frames {
            let image = Image::new(2, 1, vec![50; 6]).unwrap();
            let path = base.join(format!("Original/{frame}.{extension}"));
            save_image(image.view(), &path).unwrap();
            let mask = Mask::new(2, 1, vec![0, 255]).unwrap();
            let path = base.join(format!("Ground Truth/{frame}.{extension}"));
            save_gray(mask.view(), &path).unwrap();
        }
    }

    fn open(root: &Path, format: Format) -> Result<CvcClinicDb> {
        let root = root.to_owned();
        CvcClinicDb::from_config(Options { root, format }, &Context::default())
    }

    fn name(dataset: &CvcClinicDb) -> String {
        dataset.info().unwrap().name.to_string()
    }

    #[test]
    fn the_table_of_sequences_is_that_of_the_readme() {
        let known = [
            (1, 1),
            (25, 1),
            (26, 2),
            (78, 4),
            (200, 10),
            (205, 10),
            (592, 29),
            (612, 29),
        ];
        for (frame, sequence) in known {
            assert_eq!(sequence_of(frame), Some(sequence), "{frame}");
        }
        assert_eq!(sequence_of(0), None);
        assert_eq!(sequence_of(613), None);
        assert!(LAST_FRAMES.is_sorted());
    }

    #[test]
    fn the_official_layout_is_read() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &["2", "10", "26"], "tif");
        let dataset = open(dir.path(), Format::Auto).unwrap();
        assert_eq!(name(&dataset), "CVC-ClinicDB (TIFF)");
        let items = dataset.items().unwrap();
        let listed: Vec<_> = items
            .iter()
            .map(|i| (i.id.as_str(), i.group.as_str()))
            .collect();
        assert_eq!(listed, [("2", "1"), ("10", "1"), ("26", "2")]);
        let sample = dataset.sample(2).unwrap();
        assert_eq!(sample.mask.labels(), [0, 1]);
        assert_eq!(sample.attributes.text("sequence"), Some("2"));
    }

    #[test]
    fn specks_of_near_black_are_background_and_other_codings_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &["1"], "png");
        let path = dir.path().join("Ground Truth/1.png");
        let value = |at: u32, values: [u8; 4]| match (at % 24, at / 24) {
            (x, y) if x < 6 && y < 6 => values[0],
            (x, y) if x < 6 && y < 8 => values[1],
            (x, _) if x > 14 => values[2],
            _ => values[3],
        };
        let save = |values: [u8; 4]| {
            let labels = (0..24 * 12).map(|at| value(at, values)).collect();
            save_gray(Mask::new(24, 12, labels).unwrap().view(), &path).unwrap();
            let image = Image::new(24, 12, vec![90; 3 * 24 * 12]).unwrap();
            save_image(image.view(), &dir.path().join("Original/1.png")).unwrap();
            open(dir.path(), Format::Auto).unwrap().sample(0)
        };
        let sample = save([12, 13, 255, 0]).unwrap();
        assert_eq!(sample.mask.view().foreground(), 9 * 12);
        let error = save([0, 0, 1, 0]).unwrap_err().to_string();
        assert!(
            error.contains("none of them above the threshold 127"),
            "{error}"
        );
    }

    #[test]
    fn packs_with_both_formats_let_the_user_choose() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("TIF"), &["1"], "tif");
        assert_eq!(
            name(&open(dir.path(), Format::Auto).unwrap()),
            "CVC-ClinicDB (TIFF)"
        );
        let error = open(dir.path(), Format::Png).unwrap_err();
        assert_eq!(error.field.as_str(), "root");
        assert!(error.to_string().contains("with PNG files"), "{error}");
        write(&dir.path().join("PNG"), &["1"], "png");
        assert_eq!(
            name(&open(dir.path(), Format::Auto).unwrap()),
            "CVC-ClinicDB (PNG)"
        );
        assert_eq!(
            name(&open(dir.path(), Format::Tif).unwrap()),
            "CVC-ClinicDB (TIFF)"
        );
    }

    #[test]
    fn metadata_goes_before_the_built_in_table() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("PNG"), &["1", "2"], "png");
        let metadata = dir.path().join("metadata.csv");
        let header = "frame_id,sequence_id,png_image_path";
        std::fs::write(
            &metadata,
            format!("{header}\n7,5,PNG/Original/1.png\n8,6,PNG/Original/2.png\n"),
        )
        .unwrap();
        let items = open(dir.path(), Format::Auto).unwrap().items().unwrap();
        assert_eq!(
            (items[0].group.as_str(), items[1].group.as_str()),
            ("5", "6")
        );
        std::fs::write(&metadata, "frame,sequence\n1,3\n").unwrap();
        let error = open(dir.path(), Format::Auto).unwrap_err().to_string();
        assert!(
            error.contains("metadata.csv` does not say") && error.contains("2.png"),
            "{error}"
        );
        std::fs::write(&metadata, "frame,video\n1,3\n").unwrap();
        let error = open(dir.path(), Format::Auto).unwrap_err().to_string();
        assert!(
            error.contains("no column `sequence_id` or `sequence`"),
            "{error}"
        );
    }

    #[test]
    fn foreign_frames_and_folders_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = open(dir.path(), Format::Auto).unwrap_err().to_string();
        assert!(
            error.contains("has no `Original` and `Ground Truth`"),
            "{error}"
        );
        write(dir.path(), &["613"], "png");
        let error = open(dir.path(), Format::Auto).unwrap_err().to_string();
        assert!(
            error.contains("613.png` is not one of the frames 1 to 612"),
            "{error}"
        );
        let error = open(&dir.path().join("no"), Format::Auto)
            .unwrap_err()
            .to_string();
        assert!(error.ends_with("no` is not a folder"), "{error}");
    }

    #[test]
    fn the_default_split_keeps_videos_together() {
        let items: Vec<Item> = (1..=612)
            .map(|frame| {
                let mut item = Item::new(&frame.to_string());
                item.group = sequence_of(frame).unwrap().to_string().into();
                item
            })
            .collect();
        let info = info(Format::Png);
        let drawn = split(&info, &items, &SplitOptions::default()).unwrap();
        assert_eq!(drawn.name, "sequence");
        let videos = |ids: &[String]| -> HashSet<usize> {
            ids.iter()
                .filter_map(|id| sequence_of(id.parse().unwrap()))
                .collect()
        };
        assert!(videos(&drawn.train).is_disjoint(&videos(&drawn.test)));
        assert!(videos(&drawn.train).is_disjoint(&videos(&drawn.validation)));
        assert!(drawn.test.len().abs_diff(124) <= 12, "{}", drawn.test.len());
        let sizes = |name: &str| {
            let options = SplitOptions {
                name: Some(name.into()),
                ..SplitOptions::default()
            };
            let drawn = split(&info, &items, &options).unwrap();
            [drawn.train.len(), drawn.validation.len(), drawn.test.len()]
        };
        assert_eq!(sizes("paper"), [439, 49, 124]);
        assert_eq!(sizes("pranet"), [495, 55, 62]);
        assert_eq!(sizes("sdseg"), [492, 60, 60]);
    }

    #[test]
    fn options_read_from_a_manifest() {
        let options: Options = serde_json::from_str(r#"{"root": "x", "format": "tif"}"#).unwrap();
        assert_eq!(options.format, Format::Tif);
        serde_json::from_str::<Options>(r#"{"root": "x", "format": "gif"}"#).unwrap_err();
        serde_json::from_str::<Options>("{}").unwrap_err();
    }
}
