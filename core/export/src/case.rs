//! An image on its way into an export, and what a layout does with it.

use diffaug::{MaskRef, Result, Sample};
use diffaug_run::work::{record::Record, reopen::Part};

/// An image on its way.
pub struct Case {
    /// Its number in the export, counted through all parts.
    pub number: u64,
    /// Where it belongs.
    pub part: Part,
    /// The image; its mask holds class indices.
    pub sample: Sample,
    /// What is known of a synthetic image; `None` for a real one.
    pub record: Option<Box<Record>>,
}

impl Case {
    /// Whether it was painted.
    pub fn is_synthetic(&self) -> bool {
        self.record.is_some()
    }

    /// Its class indices.
    pub fn mask(&self) -> MaskRef<'_> {
        self.sample.mask.view()
    }
}

/// How many images an export holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Real training images.
    pub real: u64,
    /// Synthetic training images.
    pub synthetic: u64,
    /// Validation images.
    pub validation: u64,
    /// Test images.
    pub test: u64,
}

impl Counts {
    /// Counts an image.
    pub fn add(&mut self, part: Part, synthetic: bool) {
        *match (part, synthetic) {
            (Part::Train, false) => &mut self.real,
            (Part::Train, true) => &mut self.synthetic,
            (Part::Validation, _) => &mut self.validation,
            (Part::Test, _) => &mut self.test,
        } += 1;
    }
}

/// The layout of an export: names of files, and what its lists say of an image.
pub trait Layout: Sync {
    /// What the lists say of an image.
    type Note: Send;

    /// The file of an image, relative to the folder, with `/` between its parts.
    fn image(&self, part: Part, number: u64) -> String;

    /// The file of its class indices, where the layout has one.
    fn label(&self, part: Part, number: u64) -> Option<String>;

    /// What is to be said of an image. Called from several threads.
    ///
    /// # Errors
    /// When a file cannot be written.
    fn note(&self, case: &Case) -> Result<Self::Note>;

    /// Says it; called in the order of the numbers.
    ///
    /// # Errors
    /// When a file cannot be written.
    fn add(&mut self, note: Self::Note) -> Result<()>;

    /// Ends all lists. The answer is what a user has to know of the export, if anything.
    ///
    /// # Errors
    /// When a file cannot be written.
    fn finish(self, counts: Counts) -> Result<Option<String>>;
}
