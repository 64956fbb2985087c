//! What to export, and how.

use diffaug::{Error, Result};
use diffaug_run::{
    failure::{listed, nearest},
    layout,
    manifest::Manifest,
};
use std::path::PathBuf;

/// The largest number of a dataset of nnU-Net: its folders are called by three digits.
const MOST_ID: u16 = 999;
/// The arms that a run may have.
const ARMS: [&str; 2] = [layout::REAL, layout::AUGMENTED];

/// The layout of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A raw dataset of nnU-Net v2.
    Nnunet,
    /// COCO's instances.
    Coco,
    /// Ultralytics YOLO, task `segment`.
    YoloSeg,
    /// A folder that `load_dataset("imagefolder")` of Hugging Face `datasets` reads.
    Imagefolder,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 4] = [
        Format::Nnunet,
        Format::Coco,
        Format::YoloSeg,
        Format::Imagefolder,
    ];

    /// What it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::Nnunet => "nnunet",
            Format::Coco => "coco",
            Format::YoloSeg => "yolo-seg",
            Format::Imagefolder => "imagefolder",
        }
    }

    /// The format of that name.
    ///
    /// # Errors
    /// When there is none; the message lists those that there are.
    pub fn parse(name: &str) -> Result<Self> {
        let found = Format::ALL.into_iter().find(|format| format.name() == name);
        found.ok_or_else(|| {
            let names = Format::ALL.map(Format::name);
            let near = nearest(name, names).map(|near| format!("; did you mean `{near}`?"));
            Error::config(format!(
                "no format is called `{name}`, expected one of {}{}",
                listed(names),
                near.unwrap_or_default()
            ))
        })
    }
}

/// The size of real images; synthetic ones have the run's working size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Size {
    /// The size that the run works at, `images.size`: all images alike.
    #[default]
    Working,
    /// Their own.
    Native,
}

/// What to export, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The layout.
    pub format: Format,
    /// The folder to write; it must be empty or not there.
    pub output: PathBuf,
    /// The arms of the run: `real`, `augmented`. Of one arm the folder holds the images; of more it has a
    /// folder for each. Empty: `augmented` where the run paints, else `real`.
    pub arms: Vec<String>,
    /// The size of real images.
    pub size: Size,
    /// Whether the test images are exported as well.
    pub test: bool,
    /// The number of the dataset of nnU-Net, 1 to 999; further arms count up from it.
    pub dataset_id: u16,
}

impl Options {
    /// Defaults for a format and a folder: all of the run but its test images, at working size.
    pub fn new(format: Format, output: PathBuf) -> Self {
        Options {
            format,
            output,
            arms: Vec::new(),
            size: Size::default(),
            test: false,
            dataset_id: 501,
        }
    }

    /// The arms to export of the run of `manifest`.
    ///
    /// # Errors
    /// When one is unknown or named twice, or the numbers of nnU-Net do not suffice for them.
    pub(crate) fn arms(&self, manifest: &Manifest) -> Result<Vec<String>> {
        let mut arms = self.arms.clone();
        if arms.is_empty() {
            let all = if manifest.paints() {
                layout::AUGMENTED
            } else {
                layout::REAL
            };
            arms.push(all.to_owned());
        }
        for (index, arm) in arms.iter().enumerate() {
            if !ARMS.contains(&arm.as_str()) {
                return Err(Error::config(format!(
                    "no arm is called `{arm}`, expected one of {}",
                    listed(ARMS)
                )));
            }
            if arms[..index].contains(arm) {
                return Err(Error::config(format!("the arm `{arm}` is named twice")));
            }
        }
        let last = usize::from(self.dataset_id) + arms.len() - 1;
        if self.dataset_id == 0 || last > usize::from(MOST_ID) {
            return Err(Error::config(format!(
                "the dataset number is {}, expected 1 to {}",
                self.dataset_id,
                usize::from(MOST_ID) + 1 - arms.len()
            )));
        }
        Ok(arms)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_names() {
        for format in Format::ALL {
            assert_eq!(Format::parse(format.name()).unwrap(), format);
        }
        let error = Format::parse("yolo_seg").unwrap_err();
        assert!(
            error.message.ends_with("did you mean `yolo-seg`?"),
            "{error}"
        );
    }
}
