//! The segmenters that the paper compares with, each a network on the frame of
//! [`diffaug_nn::segmenter`].

#![forbid(unsafe_code)]

mod begin;
mod check;
mod conv;
pub mod diff_trans;
pub mod diff_unet;
#[cfg(test)]
mod fixture;
pub mod learned_range;
mod maps;
pub mod mean_mask;
pub mod medsegdiff;
pub mod transunet;
pub mod unet;
pub mod unet_resnet;
mod unit;

use diffaug_nn::segmenter::{Denoising, Direct, Trained};

diffaug::export_plugin! {
    segmenter "mean-mask" for diffaug_nn::BACKEND => Trained<Direct<mean_mask::MeanMask>>, "one mask for all images, for comparison: what learns from images has to be better";
    segmenter "unet" for diffaug_nn::BACKEND => Trained<Direct<unet::UNet>>, "U-Net with batch normalisation, trained from scratch";
    segmenter "unet-resnet50" for diffaug_nn::BACKEND => Trained<Direct<unet_resnet::UNet>>, "U-Net on a ResNet (18, 34 or 50), which may begin with the weights that others trained on ImageNet";
    segmenter "transunet" for diffaug_nn::BACKEND => Trained<Direct<transunet::TransUNet>>, "TransUNet: a residual network, a transformer and a way up, which may begin with Google's R50+ViT-B_16";
    segmenter "medsegdiff-v1" for diffaug_nn::BACKEND => Trained<Denoising<medsegdiff::v1::Net>>, "MedSegDiff: masks are denoised, on what a U-Net finds whose maps are filtered by frequency";
    segmenter "medsegdiff-v2" for diffaug_nn::BACKEND => Trained<Denoising<medsegdiff::v2::Net>>, "MedSegDiff-V2 as published, of which there is no code, or as released (`architecture.variant`)";
    segmenter "diff-unet" for diffaug_nn::BACKEND => Trained<Denoising<diff_unet::Net>>, "Diff-UNet in two dimensions: masks are denoised, and joined by their uncertainty";
    segmenter "diff-trans" for diffaug_nn::BACKEND => Trained<Denoising<diff_trans::Net>>, "Diff-Trans, of which no code was published: a re-implementation without a reference"
}
