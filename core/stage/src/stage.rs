//! The six kinds of stage, each declared once.
//!
//! `stage!` makes four things of a declaration: the trait that authors implement (plain `Result`,
//! default bodies), its twin for the ABI, an adapter that turns panics into errors, and a box
//! (`BoxDataset`, …) that implements the author's trait again whichever side it came from.

// abi_stable 0.11.3's expansion trips these (no `unsafe` is written here); plugin crates and the
// host see none of it.
#![allow(unsafe_code, non_local_definitions, non_camel_case_types, missing_docs)]

use crate::{data::*, error::*};
use abi_stable::{
    StableAbi, sabi_trait,
    sabi_trait::TD_Opaque,
    sabi_types::RRef,
    std_types::{RBox, ROption, RResult, RSlice, RStr, RString, RVec},
};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What every constructor is told about the run it works for.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct Context {
    /// Where to compute: `cpu`, `cuda:0`, `metal`.
    pub device: RString,
    /// The run's seed; every stage derives its randomness from it or from a job's own seed.
    pub seed: u64,
    /// The largest image, in pixels, that may be decoded.
    pub max_pixels: u64,
    /// How many bits of a sample are used in image files of 16 bits, 8 to 16; 0 where each file's
    /// largest value tells. See [`crate::image::ReadOptions`].
    pub bits: u8,
    /// Side in pixels of the square that the run resizes images to; 0 where they keep their own
    /// size.
    pub size: u32,
}

impl Default for Context {
    fn default() -> Self {
        Context {
            device: "cpu".into(),
            seed: 0,
            max_pixels: crate::image::DEFAULT_MAX_PIXELS,
            bits: 0,
            size: 0,
        }
    }
}

/// What the host lends to a stage while it works (the ABI form; authors see [`Reporter`]).
#[doc(hidden)]
#[sabi_trait]
pub trait ReporterAbi: Send + Sync {
    fn progress(&self, done: u64, total: u64, note: RStr<'_>);
    fn cancelled(&self) -> bool;
}

/// Takes progress and answers whether the user wants to stop.
#[repr(transparent)]
#[derive(StableAbi)]
pub struct Reporter<'a>(ReporterAbi_TO<'a, RRef<'a, ()>>);

/// The host's side of a [`Reporter`].
pub trait Progress: Send + Sync {
    /// `done` of `total` steps are finished; `note` is a short text such as the loss.
    fn progress(&self, done: u64, total: u64, note: &str);
    /// Whether the user asked to stop.
    fn cancelled(&self) -> bool;
}

/// Shows nothing and never stops: for tests and library use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn progress(&self, _: u64, _: u64, _: &str) {}
    fn cancelled(&self) -> bool {
        false
    }
}

struct Lent<P>(P);

impl<P: Progress> ReporterAbi for Lent<&P> {
    fn progress(&self, done: u64, total: u64, note: RStr<'_>) {
        // A panic must not cross the border, and a progress bar is not worth an abort.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            self.0.progress(done, total, note.as_str())
        }));
    }
    fn cancelled(&self) -> bool {
        catch_unwind(AssertUnwindSafe(|| self.0.cancelled())).unwrap_or(true)
    }
}

/// Lends `progress` to `work` as the [`Reporter`] that stages take.
pub fn with_reporter<P: Progress, T>(progress: &P, work: impl FnOnce(&Reporter<'_>) -> T) -> T {
    let lent = Lent(progress);
    work(&Reporter(ReporterAbi_TO::from_ptr(
        RRef::new(&lent),
        TD_Opaque,
    )))
}

impl Reporter<'_> {
    /// Reports that `done` of `total` steps are finished; `note` is a short text such as the loss.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] if the user asked to stop: pass it on with `?`, having kept
    /// whatever is worth keeping.
    pub fn step(&self, done: u64, total: u64, note: &str) -> Result<()> {
        self.0.progress(done, total, note.into());
        if self.0.cancelled() {
            return Err(Error::cancelled());
        }
        Ok(())
    }

    /// Whether the user asked to stop.
    pub fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

/// How a host looks at images that are being painted (the ABI form; authors see [`Watcher`]).
#[doc(hidden)]
#[sabi_trait]
pub trait WatcherAbi: Send + Sync {
    fn share(&self) -> f64;
    fn look(
        &self,
        jobs: RSlice<'_, u64>,
        previews: RSlice<'_, ImageRef<'_>>,
    ) -> RResult<RVec<bool>, Error>;
}

/// Looks at images before they are finished, and says which are not worth finishing.
#[repr(transparent)]
#[derive(StableAbi)]
pub struct Watcher<'a>(WatcherAbi_TO<'a, RRef<'a, ()>>);

/// The host's side of a [`Watcher`].
pub trait Watch: Send + Sync {
    /// After which share of its steps a generator is to show previews, above 0 and below 1.
    fn share(&self) -> f64;

    /// For each of `jobs`, by its place in the call, whether to go on; `previews` are what they look
    /// like so far, of the jobs' sizes.
    ///
    /// # Errors
    /// When they cannot be judged.
    fn look(&self, jobs: &[u64], previews: &[ImageRef<'_>]) -> Result<Vec<bool>>;
}

impl<W: Watch> WatcherAbi for Lent<&W> {
    fn share(&self) -> f64 {
        catch_unwind(AssertUnwindSafe(|| self.0.share())).unwrap_or(1.0)
    }

    fn look(
        &self,
        jobs: RSlice<'_, u64>,
        previews: RSlice<'_, ImageRef<'_>>,
    ) -> RResult<RVec<bool>, Error> {
        guard(|| self.0.look(&jobs, &previews).map(RVec::from))
    }
}

/// Lends `watch` to `work` as the [`Watcher`] that generators take.
pub fn with_watcher<W: Watch, T>(watch: &W, work: impl FnOnce(&Watcher<'_>) -> T) -> T {
    let lent = Lent(watch);
    work(&Watcher(WatcherAbi_TO::from_ptr(
        RRef::new(&lent),
        TD_Opaque,
    )))
}

impl Watcher<'_> {
    /// After which share of the steps it wants to look, above 0 and below 1.
    pub fn share(&self) -> f64 {
        self.0.share()
    }

    /// Shows previews of `jobs`, which are places in the call; the answers say which to go on with.
    ///
    /// # Errors
    /// When they cannot be judged: pass it on with `?`.
    pub fn look(&self, jobs: &[u64], previews: &[Image]) -> Result<Vec<bool>> {
        let views: Vec<ImageRef<'_>> = previews.iter().map(Image::view).collect();
        let answers = self.0.look(jobs.into(), views.as_slice().into());
        Ok(answers.into_result()?.into())
    }
}

/// Runs a plugin's code; its panic becomes an error.
pub(crate) fn guard<T>(work: impl FnOnce() -> Result<T>) -> RResult<T, Error> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.into(),
        Err(payload) => {
            let text = payload
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "a panic without a message".into());
            RResult::RErr(Error::new(ErrorKind::Panic, text))
        }
    }
}

/// What stands behind every boxed stage: the author's value, its panics caught.
#[doc(hidden)]
pub struct Guard<T>(T);

macro_rules! stage {
    ($(#[$doc:meta])* pub trait $Trait:ident as $Abi:ident, $Object:ident, $Boxed:ident {
        $($(#[$mdoc:meta])* fn $method:ident(&$this:ident $(, $arg:ident: $ty:ty)* $(,)?) -> Result<$ret:ty> $(= $default:expr)?;)+
    }) => {
        $(#[$doc])*
        pub trait $Trait: Send + Sync + 'static {
            $(stage!(@method $(#[$mdoc])* $method(&$this $(, $arg: $ty)*) -> $ret $(= $default)?);)+
        }

        #[doc(hidden)]
        #[sabi_trait]
        pub trait $Abi: Send + Sync + 'static {
            $(fn $method(&self $(, $arg: $ty)*) -> RResult<$ret, Error>;)+
        }

        impl<T: $Trait> $Abi for Guard<T> {
            $(fn $method(&self $(, $arg: $ty)*) -> RResult<$ret, Error> {
                guard(|| self.0.$method($($arg),*))
            })+
        }

        #[doc = concat!("Any [`", stringify!($Trait), "`], from either side of the ABI.")]
        #[repr(transparent)]
        #[derive(StableAbi)]
        pub struct $Boxed($Object<RBox<()>>);

        impl $Boxed {
            /// Boxes a stage; its panics come back as errors.
            pub fn new(stage: impl $Trait) -> Self {
                $Boxed($Object::from_value(Guard(stage), TD_Opaque))
            }
        }

        impl $Trait for $Boxed {
            $(fn $method(&self $(, $arg: $ty)*) -> Result<$ret> {
                self.0.$method($($arg),*).into_result()
            })+
        }
    };
    (@method $(#[$m:meta])* $method:ident(&$s:ident $(, $arg:ident: $ty:ty)*) -> $ret:ty) => {
        $(#[$m])*
        fn $method(&$s $(, $arg: $ty)*) -> Result<$ret>;
    };
    (@method $(#[$m:meta])* $method:ident(&$s:ident $(, $arg:ident: $ty:ty)*) -> $ret:ty = $default:expr) => {
        $(#[$m])*
        #[allow(unused_variables)]
        fn $method(&$s $(, $arg: $ty)*) -> Result<$ret> { $default }
    };
}

stage! {
    /// Labelled images.
    ///
    /// A dataset lists everything it has; the host divides the listing into train, validation and
    /// test and hands other stages views of the parts that they may see.
    pub trait Dataset as DatasetAbi, DatasetAbi_TO, BoxDataset {
        /// Name, classes and the divisions that the literature uses.
        fn info(&self) -> Result<DatasetInfo>;

        /// Every sample, without decoding a pixel. Ids are unique; the order may be any but must
        /// not change while the dataset lives.
        fn items(&self) -> Result<RVec<Item>>;

        /// Looks at the files of the sample at `index` of [`Dataset::items`] without decoding a
        /// pixel: whether they are there, whole, of a known format, and of equal sizes. The default
        /// looks at nothing. `diffaug check --data` calls it for every sample.
        ///
        /// # Errors
        /// What is wrong with the files; the message names them.
        fn check(&self, index: u64) -> Result<()> = Ok(());

        /// The sample at `index` of [`Dataset::items`].
        ///
        /// The training view that the host gives to `fit` goes on beyond the last index: with `n`
        /// items, index `epoch * n + i` is item `i` as augmented for that epoch.
        ///
        /// # Errors
        /// When `index` is beyond the last or a file cannot be used; the message names the file.
        fn sample(&self, index: u64) -> Result<Sample>;
    }
}

stage! {
    /// Texts that describe lesions.
    pub trait PromptBank as PromptBankAbi, PromptBankAbi_TO, BoxPromptBank {
        /// Draws one prompt for each query. All queries belong to one image, so the answers differ
        /// from each other as far as the bank allows; each is true of its query's attributes.
        ///
        /// # Errors
        /// When the bank knows nothing of a query's target.
        fn draw(&self, queries: RSlice<'_, PromptQuery<'_>>, seed: u64) -> Result<RVec<Prompt>>;
    }
}

stage! {
    /// Paints lesions into images.
    pub trait Generator as GeneratorAbi, GeneratorAbi_TO, BoxGenerator {
        /// One image for each job, of the job's size. Equal jobs give equal images, whatever
        /// stands beside them in the batch.
        fn generate(&self, jobs: RSlice<'_, Job<'_>>, reporter: &Reporter<'_>) -> Result<RVec<Image>>;

        /// [`Generator::generate`] with a look at what is being painted: jobs that `watcher` gives up
        /// are `RNone`, all others as ever. A generator without steps to look between paints all.
        fn generate_watched(
            &self,
            jobs: RSlice<'_, Job<'_>>,
            watcher: &Watcher<'_>,
            reporter: &Reporter<'_>,
        ) -> Result<RVec<ROption<Image>>> = Ok(self
            .generate(jobs, reporter)?
            .into_iter()
            .map(ROption::RSome)
            .collect());

        /// Whether what is painted goes by the text of a job. One that paints lesions whatever the
        /// text says cannot paint a healthy place, and the host does not ask it to.
        fn follows_texts(&self) -> Result<bool> = Ok(true);

        /// Learns from `train` and leaves weights in the folder `out`; the host then builds the
        /// stage anew with the option `weights = out`. A run that was cut short goes on from what
        /// `out` holds.
        ///
        /// # Errors
        /// [`ErrorKind::Unsupported`] where there is nothing to learn.
        fn fit(
            &self,
            train: &BoxDataset,
            validation: &BoxDataset,
            prompts: &BoxPromptBank,
            out: RStr<'_>,
            reporter: &Reporter<'_>,
        ) -> Result<FitReport> = Err(Error::unsupported("this generator has nothing to train"));
    }
}

stage! {
    /// Finds lesions.
    pub trait Segmenter as SegmenterAbi, SegmenterAbi_TO, BoxSegmenter {
        /// The classes that the answers may hold; empty before weights are there.
        fn classes(&self) -> Result<RVec<Class>>;

        /// One answer for each image, of the image's size.
        fn segment(&self, images: RSlice<'_, ImageRef<'_>>, reporter: &Reporter<'_>) -> Result<RVec<Segmentation>>;

        /// Learns from `train`, choosing weights by `validation`, and leaves them in the folder
        /// `out`; the host then builds the stage anew with the option `weights = out`. A run that
        /// was cut short goes on from what `out` holds.
        ///
        /// # Errors
        /// [`ErrorKind::Unsupported`] where there is nothing to learn.
        fn fit(
            &self,
            train: &BoxDataset,
            validation: &BoxDataset,
            out: RStr<'_>,
            reporter: &Reporter<'_>,
        ) -> Result<FitReport> = Err(Error::unsupported("this segmenter has nothing to train"));
    }
}

stage! {
    /// Judges generated images.
    pub trait Validator as ValidatorAbi, ValidatorAbi_TO, BoxValidator {
        /// How many segmenters [`Validator::judge`] asks. The host trains as many, alike but for
        /// their seeds, on the real training images.
        fn segmenters(&self) -> Result<u32> = Ok(1);

        /// One verdict for each candidate; `segmenters` are those of [`Validator::segmenters`].
        fn judge(
            &self,
            candidates: RSlice<'_, Candidate<'_>>,
            segmenters: RSlice<'_, BoxSegmenter>,
            reporter: &Reporter<'_>,
        ) -> Result<RVec<Verdict>>;
    }
}

stage! {
    /// Measures what a run came to.
    ///
    /// A measure looks at one [`Subject`] and has a method for it; the others are never called. Figures are
    /// known by name before anything is measured.
    pub trait Measure as MeasureAbi, MeasureAbi_TO, BoxMeasure {
        /// What it compares.
        fn subject(&self) -> Result<Subject>;

        /// Its figures, in the order of every answer. For [`Subject::Predictions`] each is of one image, and
        /// its mean over images is reported.
        fn figures(&self) -> Result<RVec<FigureInfo>>;

        /// The figures of [`Measure::total`], in its order: those of all predictions together.
        fn totals(&self) -> Result<RVec<FigureInfo>> = Ok(RVec::new());

        /// Of [`Subject::Predictions`]: one answer for each case, which depends on that case alone.
        ///
        /// # Errors
        /// When a case cannot be measured; the message names its id.
        fn score(&self, cases: RSlice<'_, Case<'_>>) -> Result<RVec<Measured>> =
            Err(Error::unsupported("this measure does not look at predictions"));

        /// Of [`Subject::Predictions`]: the figures of [`Measure::totals`], from the sums of
        /// [`Measured::sums`] over `images` images.
        fn total(&self, sums: RSlice<'_, f64>, images: u64) -> Result<RVec<ROption<f64>>> =
            Ok(RVec::new());

        /// Of [`Subject::Images`]: compares `synthetic` images with `real` ones.
        ///
        /// # Errors
        /// When an image cannot be read or there are too few.
        fn compare(
            &self,
            real: &BoxDataset,
            synthetic: &BoxDataset,
            reporter: &Reporter<'_>,
        ) -> Result<Findings> =
            Err(Error::unsupported("this measure does not look at images"));

        /// Of [`Subject::Verdicts`]: what was `judged`, beside the facts of the `real` training lesions.
        fn judge(
            &self,
            judged: RSlice<'_, Judgement>,
            real: RSlice<'_, Attributes>,
        ) -> Result<Findings> =
            Err(Error::unsupported("this measure does not look at verdicts"));
    }
}
