//! The measures `surface`, `detection`, `polyp`, `calibration` and `sizes`.
//!
//! | measure | looks at | figures |
//! | --- | --- | --- |
//! | `surface` | predictions | distances between outlines, share of the outline that is right |
//! | `detection` | predictions | lesions found and invented, free-response figures |
//! | `polyp` | predictions | the figures of PraNet's evaluation |
//! | `calibration` | predictions | whether probabilities are what they say |
//! | `sizes` | verdicts | areas of accepted and rejected lesions beside real ones |
//!
//! All labels that count are one foreground, as in `diffaug::metrics`. Every file says what its figures are when
//! a mask is empty. Figures of all images together are made of sums over the images alone.

#![forbid(unsafe_code)]

mod calibration;
mod components;
mod detection;
mod distance;
mod froc;
mod matching;
mod options;
mod polyp;
mod region;
mod sizes;
mod surface;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use calibration::{Calibration, CalibrationOptions};
pub use detection::{Detection, DetectionOptions};
pub use polyp::{Polyp, PolypOptions};
pub use sizes::{Sizes, SizesOptions};
pub use surface::{OneEmpty, Surface, SurfaceOptions};

diffaug::export_plugin! {
    measure "surface" => Surface, "distances between the outlines of truth and prediction, and their agreement";
    measure "detection" => Detection, "lesions that were found and invented, one by one, and FROC";
    measure "polyp" => Polyp, "PraNet's protocol: Dice and IoU over thresholds, S-, E- and weighted F-measure";
    measure "calibration" => Calibration, "whether probabilities are what they say: ECE, MCE, Brier score, likelihood";
    measure "sizes" => Sizes, "areas of accepted and rejected lesions beside those of real ones"
}
