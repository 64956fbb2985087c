//! Hands the images of a finished run on to other tools: the real training and validation images and the
//! accepted synthetic ones, with their labels, in the layout that a tool reads.
//!
//! | format | tool | labels |
//! | --- | --- | --- |
//! | [`Format::Nnunet`] | nnU-Net v2, as a raw dataset | PNG of class indices |
//! | [`Format::Coco`] | what reads COCO's instances | uncompressed run lengths of each connected region |
//! | [`Format::YoloSeg`] | Ultralytics YOLO, task `segment` | polygons |
//! | [`Format::Imagefolder`] | Hugging Face `datasets` | PNG of class indices |
//!
//! Class indices count the classes of the dataset by their labels from 1, and 0 is background. Every export
//! says in `provenance.jsonl`, and every PNG file in its texts, where an image comes from and whether it is
//! synthetic ([`provenance`]). Test images are left out unless asked for.
//!
//! Images are handed on one after the other, so memory does not grow with their pixels; of each no more than
//! its id is kept. The folder appears whole or not at all. Equal runs give equal bytes.

#![forbid(unsafe_code)]

mod case;
mod classes;
mod coco;
mod folder;
mod imagefolder;
mod nnunet;
mod options;
mod picture;
mod polygon;
pub mod provenance;
mod regions;
mod text;
mod work;
mod yolo;

pub use options::{Format, Options, Size};
pub use work::{Exported, ExportedArm, export};
