//! Placed lesions and what is asked of them.

use super::*;
use diffaug::view::Prepared;
use std::sync::atomic::{AtomicU64, Ordering};

/// Two samples: one without lesion, and one with a red, rough one that the dataset calls sessile.
struct Donor;

impl Dataset for Donor {
    fn info(&self) -> Result<diffaug::DatasetInfo> {
        Ok(diffaug::DatasetInfo::single_class("donor", "polyp"))
    }
    fn items(&self) -> Result<diffaug::prelude::RVec<Item>> {
        Ok([Item::new("bare"), Item::new("donor")]
            .into_iter()
            .collect())
    }
    fn sample(&self, index: u64) -> Result<Sample> {
        let inside = |i: usize| index == 1 && (8..16).contains(&(i % 32)) && i / 32 < 12;
        let colour = |i: usize| match inside(i) {
            true => [200 - (i * 13 % 40) as u8, 60, 60],
            false => [150, 110, 90],
        };
        let mut attributes = Attributes::new();
        if index == 1 {
            attributes.set_text("morphology", "sessile");
        }
        Ok(Sample {
            id: ["bare", "donor"][index as usize].into(),
            image: Image::new(32, 32, (0..1024).flat_map(colour).collect())?,
            mask: Mask::new(32, 32, (0..1024).map(|i| u8::from(inside(i))).collect())?,
            attributes,
        })
    }
}

#[test]
fn a_placed_lesion_is_to_look_as_its_donor() {
    let prepared = Prepared::new(Arc::new(Donor), None, 0).unwrap();
    let donor = prepared.sample(1).unwrap().attributes;
    assert!(donor.number("redness").unwrap() > 10.0);
    assert!(
        prepared
            .sample(0)
            .unwrap()
            .attributes
            .number("redness")
            .is_none()
    );
    let options = Synthesis::default();
    let reading = ReadOptions::default();
    let prepared: Shared = Arc::new(prepared);
    let all = Candidates::new(
        prepared.clone(),
        prepared,
        &options,
        None,
        reading,
        1,
        &Cleared::new(),
    );
    let all = all.unwrap();
    let scene = all.scene(0, "bare", 0).unwrap().unwrap();
    assert_eq!(scene.label.view().foreground(), 96);
    for name in [
        "redness",
        "brightness",
        "contrast",
        "detail",
        "detail_ratio",
        "boundary",
    ] {
        assert_eq!(scene.attributes.number(name), donor.number(name), "{name}");
    }
    assert_eq!(scene.attributes.text("morphology"), Some("sessile"));
    assert_eq!(scene.attributes.number("area"), Some(96.0 / 1024.0));
}

/// Stripes of two pixels, with a lesion in the middle; counts how often it is read.
#[derive(Default)]
struct Striped(AtomicU64);

impl Dataset for Striped {
    fn info(&self) -> Result<diffaug::DatasetInfo> {
        Ok(diffaug::DatasetInfo::single_class("striped", "polyp"))
    }
    fn items(&self) -> Result<diffaug::prelude::RVec<Item>> {
        Ok([Item::new("striped")].into_iter().collect())
    }
    fn sample(&self, _: u64) -> Result<Sample> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let stripe = |i: usize| [if i % 4 < 2 { 40 } else { 200 }; 3];
        let middle = 112..144;
        let inside = |i: usize| middle.contains(&(i % 256)) && middle.contains(&(i / 256));
        Ok(Sample {
            id: "striped".into(),
            image: Image::new(256, 256, (0..65536).flat_map(stripe).collect())?,
            mask: Mask::new(256, 256, (0..65536).map(|i| u8::from(inside(i))).collect())?,
            attributes: Attributes::new(),
        })
    }
}

#[test]
fn a_crop_is_taken_before_the_image_is_made_small() {
    let options = Synthesis {
        background: Background::Crop,
        ..Synthesis::default()
    };
    let size = Some((64, 64));
    let reading = ReadOptions::default();
    let none = Cleared::new();
    let striped = Arc::new(Striped::default());
    let train: Shared = Arc::new(Prepared::new(striped.clone(), size, 1 << 20).unwrap());
    let whole = Arc::new(Prepared::originals(striped.clone()).unwrap());
    let all = Candidates::new(train.clone(), whole, &options, size, reading, 1, &none).unwrap();
    // The grey levels of a middle row, apart from the image's borders.
    let spread = |image: &Image| {
        let row = (0..48).map(|x| image.pixels()[(32 * 64 + 8 + x) * 3]);
        row.clone().max().unwrap() - row.min().unwrap()
    };
    // At a quarter of its side the whole image has lost its stripes; a part beside the lesion, which is
    // less than twice as large as wanted, has not.
    assert!(spread(&train.sample(0).unwrap().image) < 20);
    let before = striped.0.load(Ordering::Relaxed);
    let scenes = (0..20).map(|variant| all.scene(0, "striped", variant).unwrap());
    let scene = scenes.fold(None, Option::or);
    assert_eq!(striped.0.load(Ordering::Relaxed), before + 1);
    let background = scene.unwrap().background;
    assert_eq!(background.size(), (64, 64));
    assert!(spread(&background) > 20, "{}", spread(&background));
}
