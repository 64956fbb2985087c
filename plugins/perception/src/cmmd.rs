//! `cmmd`: the maximum mean discrepancy of CLIP's embeddings (Jayasumana et al., *Rethinking FID*, 2024).
//!
//! Unlike a Frechet distance it takes no set for a normal distribution, and says something of a few
//! hundred images. Embeddings are projected and of length 1; published figures are of ViT-L/14 at 336
//! pixels.

use crate::{
    distribution::{Distance, Kind},
    kernel::cmmd,
    space::Space,
};

/// [`Kind`] of `cmmd`.
pub struct Cmmd;

impl Kind for Cmmd {
    const SPACE: Space = Space::Clip;
    const DISTANCES: &'static [Distance] = &[Distance {
        name: "cmmd",
        halves: "cmmd_halves",
        about: "maximum mean discrepancy of CLIP's embeddings, times 1000",
        of: |a, b| Ok(cmmd(a, b)),
    }];
    const ABOUT: &'static str =
        "by the estimate of its authors, which counts each image with itself";
}
