//! The segmenters that the paper compares with, each a network on the frame of
//! [`diffaug_nn::segmenter`].

#![forbid(unsafe_code)]

pub mod mean_mask;
pub mod unet;

use diffaug_nn::segmenter::{Direct, Trained};

diffaug::export_plugin! {
    segmenter "mean-mask" for diffaug_nn::BACKEND => Trained<Direct<mean_mask::MeanMask>>, "one mask for all images, for comparison: what learns from images has to be better";
    segmenter "unet" for diffaug_nn::BACKEND => Trained<Direct<unet::UNet>>, "U-Net with batch normalisation, trained from scratch"
}
