//! All plugins of this repository in one crate.
//!
//! A dependency that nobody names registers nothing, hence one line for each plugin. The host links
//! this crate in (feature `builtin`); built with `--crate-type cdylib` it is the library from which
//! a bare host loads everything.

#![forbid(unsafe_code)]

#[cfg(feature = "data")]
use {
    diffaug_cvc_clinicdb as _, diffaug_folder as _, diffaug_gate as _, diffaug_kvasir_seg as _,
    diffaug_measures as _, diffaug_phantom as _, diffaug_prompts as _, diffaug_refuge2 as _,
    diffaug_seamless_paste as _,
};

#[cfg(feature = "models")]
use {
    diffaug_baselines as _, diffaug_latent_seg as _, diffaug_perception as _,
    diffaug_sdxl_inpaint as _,
};
