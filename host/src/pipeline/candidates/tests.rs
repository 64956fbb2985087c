//! Placed lesions and what is asked of them.

use super::*;

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
    let prepared = diffaug::view::Prepared::new(Arc::new(Donor), None, 0).unwrap();
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
    let all = Candidates::new(
        Arc::new(prepared),
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
