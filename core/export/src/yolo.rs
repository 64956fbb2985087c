//! Ultralytics YOLO, task `segment`: a text file of polygons beside each image.
//!
//! ```text
//! data.yaml
//! images/train/000000.png   images/val/…   images/test/…
//! labels/train/000000.txt   CLASS X Y X Y …, a line for each connected region, from 0 to 1
//! ```
//!
//! Classes count from 0 there, for background has no line; an image without a lesion has an empty file.
//! Polygons go through the centres of pixels, holes are joined to the outline (`polygon`): drawn again at the
//! image's own size they cover the masks exactly, which is measured for every region and said in `data.yaml`.

use crate::{
    case::{Case, Counts, Layout},
    classes::Classes,
    polygon::{Overlap, Point, polygon},
    regions::Regions,
    text::TextFile,
};
use diffaug::Result;
use diffaug_run::{layout, work::reopen::Part};
use serde_json::json;
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

/// Fewer corners would be taken for a box.
const LEAST_CORNERS: usize = 3;

/// The layout.
pub struct Yolo {
    folder: PathBuf,
    classes: Classes,
    /// Of all polygons, and the least IoU of one.
    overlap: Overlap,
    least: f64,
}

/// How well the polygons of an image cover its regions: all together, and the least IoU.
pub struct Covered(Overlap, f64);

fn folder(part: Part) -> &'static str {
    match part {
        Part::Train => "train",
        Part::Validation => "val",
        Part::Test => "test",
    }
}

impl Yolo {
    /// Begins an export in `folder`.
    pub fn begin(folder: &Path, classes: Classes) -> Self {
        Yolo {
            folder: folder.to_owned(),
            classes,
            overlap: Overlap::default(),
            least: 1.0,
        }
    }
}

/// A line of a label file: the class, then each corner as shares of width and height.
fn line(class: u8, corners: &[Point], (width, height): (u32, u32)) -> String {
    let mut line = (class - 1).to_string();
    let least = LEAST_CORNERS.max(corners.len());
    for (x, y) in corners.iter().cycle().take(least) {
        let share = |at: u32, side: u32| (f64::from(at) + 0.5) / f64::from(side);
        // Writing to a text cannot fail.
        let _ = write!(line, " {:.6} {:.6}", share(*x, width), share(*y, height));
    }
    line + "\n"
}

impl Layout for Yolo {
    type Note = Covered;

    fn image(&self, part: Part, number: u64) -> String {
        format!("images/{}/{}", folder(part), layout::image(number))
    }

    fn label(&self, _: Part, _: u64) -> Option<String> {
        None
    }

    fn note(&self, case: &Case) -> Result<Covered> {
        let regions = Regions::of(case.mask());
        let name = layout::image(case.number).replace(".png", ".txt");
        let path = format!("labels/{}/{name}", folder(case.part));
        let mut file = TextFile::create(&self.folder.join(path))?;
        let mut covered = Covered(Overlap::default(), 1.0);
        for region in &regions.all {
            let corners = polygon(&regions, region);
            let overlap = Overlap::of(&corners, &regions, region);
            covered.0.add(overlap);
            covered.1 = covered.1.min(overlap.iou());
            file.write(&line(region.class, &corners, regions.size()))?;
        }
        file.finish()?;
        Ok(covered)
    }

    fn add(&mut self, Covered(overlap, least): Covered) -> Result<()> {
        self.overlap.add(overlap);
        self.least = self.least.min(least);
        Ok(())
    }

    fn finish(self, counts: Counts) -> Result<Option<String>> {
        let measured = format!(
            "drawn again at the size of the images, the polygons cover the masks with an IoU of {:.4} ({:.4} for \
             the worst region)",
            self.overlap.iou(),
            self.least
        );
        let mut file = TextFile::create(&self.folder.join("data.yaml"))?;
        file.write(&format!(
            "# {measured}\ntrain: images/train\nval: images/val\n"
        ))?;
        if counts.test > 0 {
            file.write("test: images/test\n")?;
        }
        file.write("names:\n")?;
        for (index, name) in self.classes.named() {
            // A text of JSON is one of YAML.
            file.write(&format!("  {}: {}\n", index - 1, json!(name)))?;
        }
        file.finish()?;
        Ok(Some(measured))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corners_are_centres_of_pixels_and_at_least_three() {
        let corners = [(0, 0), (0, 3), (7, 3)];
        assert_eq!(
            line(2, &corners, (8, 4)),
            "1 0.062500 0.125000 0.062500 0.875000 0.937500 0.875000\n"
        );
        let one = line(1, &[(1, 1)], (4, 4));
        assert_eq!(
            one,
            "0 0.375000 0.375000 0.375000 0.375000 0.375000 0.375000\n"
        );
    }
}
