//! The names of all files and folders of a run folder, listed once. Names are relative to the run folder,
//! with `/` between their parts.

/// What the run is made of; a folder with this file is a run folder.
pub const LOCK: &str = "lock.json";
/// The log, and what a process holds while it works in the folder.
pub const LOG: &str = "log.jsonl";
/// The manifest with all defaults.
pub const MANIFEST: &str = "manifest.toml";
/// Which images are to train, to validate and to test.
pub const SPLIT: &str = "split.json";
/// Everything that was measured.
pub const RESULT: &str = "result.json";
/// What was painted, to be looked at.
pub const CONTACT_SHEET: &str = "contact-sheet.png";
/// All of the run on one page, for a browser.
pub const REPORT: &str = "report.html";

/// Weights of the generator.
pub const GENERATOR: &str = "generator";
/// Weights of the generator that paints what the generator begins with.
pub const START: &str = "start";
/// Weights of the validator's segmenter, where it is one.
pub const SEGMENTER: &str = "segmenter";
/// Folder of the weights of the validator's segmenters, where they are several.
pub const SEGMENTERS: &str = "segmenters";
/// The arm that is trained on real images alone.
pub const REAL: &str = "real";
/// The arm that is trained on real and synthetic images.
pub const AUGMENTED: &str = "augmented";
/// Folder of the arms.
pub const EVALUATE: &str = "evaluate";
/// Folders that trainings write to.
pub const TRAINED: [&str; 5] = [GENERATOR, START, SEGMENTER, SEGMENTERS, EVALUATE];

/// Folder of the accepted images.
pub const SYNTHETIC: &str = "synthetic";
/// Folder of the images that were turned down, where they are kept.
pub const REJECTED: &str = "rejected";
/// Folder of training images whose lesion was painted away.
pub const BACKGROUNDS: &str = "backgrounds";
/// Folders that images and lists are written to.
pub const PAINTED: [&str; 3] = [SYNTHETIC, REJECTED, BACKGROUNDS];
/// Below each of them: images.
pub const IMAGES: &str = "images";
/// Below each of them: the masks of the images, under the same names.
pub const MASKS: &str = "masks";

/// Small pictures of the first candidates, accepted or not, to be looked at.
pub const GALLERY: &str = "synthetic/gallery";
/// Every painted image; kept for other runs and not in the run folder.
pub const POOL: &str = "painted";
/// The name of every journal, in whatever folder.
pub const JOURNAL_FILE: &str = "journal.jsonl";
/// What is known of every candidate, while they are painted.
pub const JOURNAL: &str = "synthetic/journal.jsonl";
/// The accepted candidates.
pub const METADATA: &str = "synthetic/metadata.jsonl";
/// The classes of their masks.
pub const CLASSES: &str = "synthetic/classes.json";
/// The candidates that were turned down.
pub const REJECTED_LIST: &str = "rejected.jsonl";
/// Hashes of all that [`SYNTHESIS`] vouches for, as `sha256sum -c` reads them.
pub const CHECKSUMS: &str = "synthetic.sha256";
/// Says that the synthesis is done, and what it came to.
pub const SYNTHESIS: &str = "synthetic.json";

/// What a measure says of the synthetic images or the verdicts of a run.
pub fn measure(name: &str) -> String {
    format!("{MEASURES}/{name}.json")
}

/// Folder of what measures say of synthetic images and of verdicts.
pub const MEASURES: &str = "measures";

/// What is known of the backgrounds, while they are cleared.
pub const CLEARING_JOURNAL: &str = "backgrounds/journal.jsonl";
/// The cleared images.
pub const CLEARED: &str = "backgrounds/images";
/// Says that the backgrounds are cleared, and what became of each.
pub const CLEARING: &str = "backgrounds.json";

/// The file that says that the training of a folder of weights is done.
pub fn marker(folder: &str) -> String {
    format!("{folder}.json")
}

/// The folders of the weights of the validator's segmenters: `members` of each of `folds`, fold by fold.
pub fn segmenters(folds: u32, members: u32) -> Vec<String> {
    if folds == 1 && members == 1 {
        return vec![SEGMENTER.to_owned()];
    }
    let name = |fold, member| format!("{SEGMENTERS}/fold-{fold}-member-{member}");
    let of_fold = |fold| (0..members).map(move |member| name(fold, member));
    (0..folds).flat_map(of_fold).collect()
}

/// The log of a training, in its folder of weights.
pub const TRAINING_LOG: &str = "log.jsonl";

/// The file that says that the training whose weights lie in `folder` is done, whatever it was for.
pub fn fit_of(folder: &str) -> String {
    match folder.strip_suffix("/weights") {
        Some(training) => Training::at(training.to_owned()).fit(),
        None => marker(folder),
    }
}

/// Files of one folder of images; file systems and people are slow with folders of many more.
pub const FOLDER: u64 = 5_000;

/// The file of the candidate of that number, in a folder of its own for every [`FOLDER`] of them but the
/// first. Not by its id, which may hold what a file name cannot; and a word such as `train` in a file's
/// name makes Hugging Face's loader guess splits.
pub fn image(index: u64) -> String {
    numbered(index, "png")
}

/// The small picture of the candidate of that number.
pub fn strip(index: u64) -> String {
    format!("{GALLERY}/{}", numbered(index, "jpg"))
}

fn numbered(index: u64, extension: &str) -> String {
    match index / FOLDER {
        0 => format!("{index:06}.{extension}"),
        folder => format!("{folder:04}/{index:06}.{extension}"),
    }
}

/// The file of the scores of every test image.
pub const PER_IMAGE: &str = "per_image.csv";

/// The folder of an arm.
pub fn arm(name: &str) -> String {
    format!("{EVALUATE}/{name}")
}

/// The files of one training of an arm.
pub struct Training(String);

impl Training {
    /// The training of `arm` from `seed`.
    pub fn new(arm: &str, seed: u64) -> Self {
        Training::at(format!("{}/seed-{seed}", self::arm(arm)))
    }

    /// The training in a folder.
    pub fn at(folder: String) -> Self {
        Training(folder)
    }

    /// The training whose scores lie at `place`; `None` where something else lies there.
    pub fn of_scores(place: &str) -> Option<Self> {
        let folder = place.strip_suffix("/scores.json")?;
        folder
            .starts_with(EVALUATE)
            .then(|| Training::at(folder.to_owned()))
    }

    /// What was trained.
    pub fn weights(&self) -> String {
        format!("{}/weights", self.0)
    }

    /// Says that it is trained.
    pub fn fit(&self) -> String {
        format!("{}/fit.json", self.0)
    }

    /// Says that it is scored, and its scores.
    pub fn scores(&self) -> String {
        format!("{}/scores.json", self.0)
    }

    /// The scores of every test image.
    pub fn per_image(&self) -> String {
        format!("{}/{PER_IMAGE}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_training_has_a_file_that_says_that_it_is_done() {
        assert_eq!(fit_of("generator"), "generator.json");
        let name = "evaluate/real/seed-3";
        assert_eq!(
            fit_of(&format!("{name}/weights")),
            format!("{name}/fit.json")
        );
        assert_eq!(
            fit_of("segmenters/fold-0-member-1"),
            "segmenters/fold-0-member-1.json"
        );
    }

    #[test]
    fn no_folder_of_images_holds_many() {
        assert_eq!(image(0), "000000.png");
        assert_eq!(image(4_999), "004999.png");
        assert_eq!(image(5_000), "0001/005000.png");
        assert_eq!(image(1_234_567), "0246/1234567.png");
        assert_eq!(strip(7), "synthetic/gallery/000007.jpg");
        assert_eq!(strip(5_000), "synthetic/gallery/0001/005000.jpg");
    }
}
