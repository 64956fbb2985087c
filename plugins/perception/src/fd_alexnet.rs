//! `fd-alexnet`: the Frechet distance of AlexNet's features, for where no weights of Inception or DINOv2 are
//! at hand. It is no FID and cannot be compared with one.
//!
//! The features are those that LPIPS compares: after each of five stages, at length 1 and averaged over
//! the pixels, 1152 together. Images are brought to 224x224.

use crate::{
    distribution::{Distance, Kind},
    frechet::frechet,
    space::Space,
};

/// [`Kind`] of `fd-alexnet`.
pub struct FdAlexnet;

impl Kind for FdAlexnet {
    const SPACE: Space = Space::Alexnet;
    const DISTANCES: &'static [Distance] = &[Distance {
        name: "fd_alexnet",
        halves: "fd_alexnet_halves",
        about: "Frechet distance of pooled features of LPIPS' AlexNet; no FID",
        of: frechet,
    }];
    const ABOUT: &'static str = "which is no FID";
}
