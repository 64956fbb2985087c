//! The segmenters that the paper compares with, each a network on the frame of
//! [`diffaug_nn::segmenter`].

#![forbid(unsafe_code)]

pub mod unet;

use diffaug_nn::segmenter::{Direct, Trained};

diffaug::export_plugin! {
    segmenter "unet" for diffaug_nn::BACKEND => Trained<Direct<unet::UNet>>, "U-Net with batch normalisation, trained from scratch"
}
