//! Measures of painted images as a set, beside the real training images.
//!
//! | measure | what it says |
//! | --- | --- |
//! | `lpips` | how different pairs of images look: painted and real, and within each set |
//! | `fid` | Frechet and kernel Inception distance |
//! | `fd-dinov2`, `fd-alexnet` | Frechet distance of other features |
//! | `cmmd` | maximum mean discrepancy of CLIP's embeddings |
//! | `coverage` | precision, recall, density and coverage among nearest neighbours |
//! | `memorisation` | how near painted lesions come to those of the training images |
//!
//! Each is built without its weights and reads them when it compares. Features come from a [`space`];
//! all further figures are formed of them in f64, in an order that no number of threads changes.

#![forbid(unsafe_code)]

mod cmmd;
mod coverage;
mod distribution;
mod extract;
mod fd_alexnet;
mod fd_dinov2;
mod fid;
mod frechet;
mod images;
mod kernel;
mod lpips;
mod memorisation;
mod neighbours;
mod note;
mod points;
pub mod space;
#[cfg(test)]
mod testing;

pub use cmmd::Cmmd;
pub use coverage::{Coverage, CoverageOptions};
pub use distribution::{Distribution, DistributionOptions};
pub use fd_alexnet::FdAlexnet;
pub use fd_dinov2::FdDinov2;
pub use fid::Fid;
pub use images::View;
pub use lpips::{LpipsMeasure, LpipsOptions};
pub use memorisation::{Memorisation, MemorisationOptions};

diffaug::export_plugin! {
    measure "lpips" for diffaug_nn::BACKEND => LpipsMeasure, "how different pairs of painted and real images look, and how diverse each set is (LPIPS)";
    measure "fid" for diffaug_nn::BACKEND => Distribution<Fid>, "Frechet and kernel Inception distance (FID, KID) of painted and real images";
    measure "fd-dinov2" for diffaug_nn::BACKEND => Distribution<FdDinov2>, "Frechet distance of painted and real images by features of DINOv2";
    measure "cmmd" for diffaug_nn::BACKEND => Distribution<Cmmd>, "maximum mean discrepancy of painted and real images by CLIP's embeddings";
    measure "fd-alexnet" for diffaug_nn::BACKEND => Distribution<FdAlexnet>, "Frechet distance of painted and real images by pooled features of LPIPS' AlexNet";
    measure "coverage" for diffaug_nn::BACKEND => Coverage, "precision, recall, density and coverage of painted images among real ones";
    measure "memorisation" for diffaug_nn::BACKEND => Memorisation, "how near painted lesions come to training lesions, and the share of near-copies"
}
