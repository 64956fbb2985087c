//! The generator `sdxl-inpaint`: paints lesions with Stable Diffusion XL (and 1.x, 2.x) inpainting
//! models in the layout of diffusers, and fine-tunes or trains them.

pub mod text;
