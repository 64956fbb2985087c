//! `fid`: the Frechet Inception distance (Heusel et al., 2017) and the kernel Inception distance
//! (Bińkowski et al., 2018).
//!
//! The features are those of the last pooling of Inception-v3 as ported from TensorFlow, under the names
//! of pytorch-fid; nothing else is called FID here. Images are brought to 299x299 as clean-fid does
//! (Parmar et al., 2022): Pillow's bicubic filter, as wide as the pixels of the smaller side, on floating
//! point numbers.

use crate::{
    distribution::{Distance, Kind},
    frechet::frechet,
    kernel::kid,
    space::Space,
};

/// [`Kind`] of `fid`.
pub struct Fid;

impl Kind for Fid {
    const SPACE: Space = Space::Inception;
    const DISTANCES: &'static [Distance] = &[
        Distance {
            name: "fid",
            halves: "fid_halves",
            about: "Frechet Inception distance",
            of: frechet,
        },
        Distance {
            name: "kid",
            halves: "kid_halves",
            about: "squared kernel Inception distance, unbiased",
            of: |a, b| Ok(kid(a, b)),
        },
    ];
    const ABOUT: &'static str =
        "`fid` after clean-fid's resizing, `kid` over all pairs and without bias";
}
