//! `fd-dinov2`: the Frechet distance of DINOv2's features (Stein et al., *Exposing flaws of generative model
//! evaluation metrics*, 2023), which agrees better with people than FID does.
//!
//! The feature of an image is its normalised class token; images are brought to 224x224. Published figures
//! are of ViT-L/14; figures of different sizes of the network cannot be compared.

use crate::{
    distribution::{Distance, Kind},
    frechet::frechet,
    space::Space,
};

/// [`Kind`] of `fd-dinov2`.
pub struct FdDinov2;

impl Kind for FdDinov2 {
    const SPACE: Space = Space::Dinov2;
    const DISTANCES: &'static [Distance] = &[Distance {
        name: "fd_dinov2",
        halves: "fd_dinov2_halves",
        about: "Frechet distance of DINOv2's class tokens",
        of: frechet,
    }];
    const ABOUT: &'static str = "published figures are of ViT-L/14";
}
