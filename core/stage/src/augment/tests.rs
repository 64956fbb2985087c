//! Tests of `augment`.

#![allow(clippy::unwrap_used)]

use super::*;

fn off() -> AugmentOptions {
    AugmentOptions {
        flip_horizontal: 0.0,
        flip_vertical: 0.0,
        rotation: 0.0,
        scale: 0.0,
        elastic: 0.0,
        ..AugmentOptions::default()
    }
}

/// Everything that moves pixels or changes colours, at a strength one would really use.
fn strong() -> AugmentOptions {
    AugmentOptions {
        rotation: 40.0,
        scale: 0.25,
        elastic: 0.06,
        ..AugmentOptions::default()
    }
}

/// A disc and a bar off the centre, bright exactly where the mask is 3.
fn shapes(width: u32, height: u32) -> (Image, Mask) {
    let label = |i: u32| {
        let (x, y) = ((i % width) as f32, (i / width) as f32);
        let disc = (x - 0.6 * width as f32).hypot(y - 0.4 * height as f32) < 18.0;
        let bar = (10.0..22.0).contains(&x) && (40.0..70.0).contains(&y);
        if disc || bar { 3 } else { 0 }
    };
    let labels: Vec<u8> = (0..width * height).map(label).collect();
    let pixels = labels.iter().flat_map(|&l| [l * 85; 3]).collect();
    (
        Image::new(width, height, pixels).unwrap(),
        Mask::new(width, height, labels).unwrap(),
    )
}

/// No two pixels alike, so that any displacement shows.
fn noise(width: u32, height: u32) -> (Image, Mask) {
    let count = (width * height) as usize;
    let pixels = (0..count * 3).map(|i| (i * 37 % 251) as u8).collect();
    let labels = (0..count).map(|i| (i * 7 % 4) as u8).collect();
    (
        Image::new(width, height, pixels).unwrap(),
        Mask::new(width, height, labels).unwrap(),
    )
}

fn run(pair: &(Image, Mask), options: &AugmentOptions, index: u64) -> (Image, Mask) {
    let mut rng = rng::stream(5, "test", index);
    augment(pair.0.view(), pair.1.view(), options, &mut rng)
}

#[test]
fn all_off_is_the_identity() {
    let pair = noise(31, 18);
    assert_eq!(run(&pair, &off(), 0), pair);
    let disabled = AugmentOptions {
        enabled: false,
        ..strong()
    };
    assert_eq!(run(&pair, &disabled, 0), pair);
}

#[test]
fn flips_are_exact() {
    let pair = noise(31, 18);
    let flip = AugmentOptions {
        flip_horizontal: 1.0,
        ..off()
    };
    let (image, mask) = run(&pair, &flip, 0);
    for y in 0..18 {
        for x in 0..31 {
            let (to, from) = (y * 31 + x, y * 31 + 30 - x);
            assert_eq!(mask.labels()[to], pair.1.labels()[from]);
            assert_eq!(
                image.pixels()[to * 3..][..3],
                pair.0.pixels()[from * 3..][..3]
            );
        }
    }
    let both = AugmentOptions {
        flip_vertical: 1.0,
        ..flip
    };
    let (image, mask) = run(&pair, &both, 0);
    let turned: Vec<u8> = pair.1.labels().iter().rev().copied().collect();
    assert_eq!(mask.labels(), turned);
    assert_eq!(run(&(image, mask), &both, 1), pair);
}

#[test]
fn rotation_turns_about_the_centre() {
    let pair = noise(9, 9);
    // The matrix of a quarter turn maps (x, y) to (y, -x), up to rounding.
    let (sin, cos) = std::f32::consts::FRAC_PI_2.sin_cos();
    let warp = Warp {
        affine: Affine {
            centre: [4.0, 4.0],
            matrix: [cos, sin, -sin, cos],
        },
        elastic: None,
    };
    let (mut image, mut mask) = pair.clone();
    warp.image(pair.0.view(), &mut image);
    warp.mask(pair.1.view(), &mut mask);
    for (x, y) in [(0, 0), (8, 0), (4, 4), (2, 7)] {
        let (to, from) = (y * 9 + x, (8 - x) * 9 + y);
        assert_eq!(mask.labels()[to], pair.1.labels()[from]);
        assert_eq!(image.pixels()[to * 3], pair.0.pixels()[from * 3]);
    }
}

#[test]
fn image_and_mask_move_together() {
    let pair = shapes(96, 80);
    for index in 0..20 {
        let (image, mask) = run(&pair, &strong(), index);
        assert_ne!(mask, pair.1);
        let (mut both, mut either) = (0, 0);
        for (pixel, &label) in image.pixels().chunks(3).zip(mask.labels()) {
            assert!(label == 0 || label == 3);
            let (lit, marked) = (pixel[0] > 127, label != 0);
            both += u32::from(lit && marked);
            either += u32::from(lit || marked);
        }
        let iou = f64::from(both) / f64::from(either);
        assert!(iou > 0.95, "draw {index}: IoU {iou}");
    }
}

#[test]
fn the_largest_warp_does_not_fold() {
    let elastic = |index| Elastic::draw((80, 60), 0.1, &mut rng::stream(9, "fold", index)).unwrap();
    for index in 0..10 {
        let warp = Warp {
            affine: Affine {
                centre: [0.0; 2],
                matrix: [1.0, 0.0, 0.0, 1.0],
            },
            elastic: Some(elastic(index)),
        };
        let mut places = Vec::new();
        warp.each((80, 60), |_, x, y| places.push([x, y]));
        for i in (0..79 * 60).filter(|i| i % 80 != 79 && i + 80 < 80 * 60) {
            let along = |j: usize| [0, 1].map(|k| places[j][k] - places[i][k]);
            let (right, down) = (along(i + 1), along(i + 80));
            assert!(right[0] * down[1] - right[1] * down[0] > 0.0);
            let (x, y) = ((i % 80) as f32, (i / 80) as f32);
            assert!((places[i][0] - x).abs() <= 6.0 && (places[i][1] - y).abs() <= 6.0);
        }
    }
}

#[test]
fn mirroring_stays_inside() {
    let folded: Vec<usize> = (-4..9).map(|place| mirror(place, 4)).collect();
    assert_eq!(folded, [2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2]);
    assert_eq!(mirror(-7, 1), 0);
    let pixel = noise(1, 1);
    assert_eq!(run(&pixel, &strong(), 3), pixel);
}

#[test]
fn colour_jitter_leaves_the_mask_and_grey_alone() {
    let grey = shapes(40, 30);
    let hue = AugmentOptions {
        hue: 0.5,
        saturation: 1.0,
        ..off()
    };
    assert_eq!(run(&grey, &hue, 0), grey);

    let coloured = noise(40, 30);
    let (image, mask) = run(&coloured, &hue, 0);
    assert_ne!(image, coloured.0);
    assert_eq!(mask, coloured.1);

    let third = ColourDraw {
        brightness: 1.0,
        contrast: 1.0,
        saturation: 1.0,
        hue: std::f32::consts::TAU / 3.0,
    };
    let mut red = Image::new(1, 1, vec![200, 30, 90]).unwrap();
    third.apply(&mut red);
    assert_eq!(red.pixels(), [90, 200, 30]);

    let dull = ColourDraw {
        brightness: 0.5,
        contrast: 0.5,
        saturation: 1.0,
        hue: 0.0,
    };
    let mut two = Image::new(2, 1, vec![200, 200, 200, 100, 100, 100]).unwrap();
    dull.apply(&mut two);
    // Mean 150, half the spread, then half the light.
    assert_eq!(two.pixels(), [88, 88, 88, 63, 63, 63]);
}

/// Fine detail of an image, in grey levels.
fn detail(image: &Image, mask: &Mask) -> f64 {
    let found = crate::appearance::Appearance::of(image.view(), mask.view(), &[1]);
    found.unwrap().detail
}

/// Mild noise about a grey that neither blur nor noise drives out of range.
fn tissue() -> (Image, Mask) {
    let mut rng = rng::stream(4, "tissue", 0);
    let pixels = (0..3 * 64 * 48)
        .map(|_| rng.random_range(120..140))
        .collect();
    let labels = (0..64 * 48).map(|i| u8::from(i % 64 > 20)).collect();
    (
        Image::new(64, 48, pixels).unwrap(),
        Mask::new(64, 48, labels).unwrap(),
    )
}

/// Options with one artifact alone, applied to every image.
fn artifacts() -> [AugmentOptions; 3] {
    let always = AugmentOptions {
        artifacts: 1.0,
        ..off()
    };
    [
        AugmentOptions {
            blur: 2.0,
            ..always.clone()
        },
        AugmentOptions {
            noise: 20.0,
            ..always.clone()
        },
        AugmentOptions {
            jpeg: Some(10),
            ..always
        },
    ]
}

#[test]
fn artifacts_change_fine_detail_and_not_the_mask() {
    let pair = tissue();
    let before = detail(&pair.0, &pair.1);
    let [blur, noise, jpeg] = artifacts();
    for (options, most, least) in [(&blur, 1.0, 0.05), (&noise, 5.0, 1.0), (&jpeg, 1.1, 0.0)] {
        let mut total = 0.0;
        for index in 0..20 {
            let (image, mask) = run(&pair, options, index);
            assert_eq!(mask, pair.1);
            assert_eq!(run(&pair, options, index).0, image, "not replayable");
            let ratio = detail(&image, &mask) / before;
            assert!(
                (0.99 * least..=1.01 * most).contains(&ratio),
                "{options:?}: {ratio}"
            );
            total += ratio / 20.0;
        }
        assert!((total - 1.0).abs() > 0.1, "{options:?}: {total}");
    }
}

#[test]
fn jpeg_damages_more_at_lower_quality() {
    let pair = tissue();
    let loss = |quality: u8| {
        let mut image = pair.0.clone();
        artifacts::compress(&mut image, quality);
        let pixels = image.pixels().iter().zip(pair.0.pixels());
        pixels.map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>()
    };
    assert!(loss(100) < loss(60) && loss(60) < loss(5));
    assert!(loss(5) > 0);
}

#[test]
fn artifacts_come_as_often_as_asked() {
    let pair = tissue();
    for (share, expected) in [(0.0, 0..=0), (0.5, 35..=65), (1.0, 99..=100)] {
        let options = AugmentOptions {
            artifacts: share,
            ..artifacts()[1].clone()
        };
        let changed = (0..100).filter(|&i| run(&pair, &options, i).0 != pair.0);
        let changed = changed.count();
        assert!(expected.contains(&changed), "{share}: {changed}");
    }
}

#[test]
fn artifacts_leave_other_draws_alone() {
    let pair = noise(40, 30);
    let all = AugmentOptions {
        blur: 1.0,
        noise: 5.0,
        jpeg: Some(50),
        artifacts: 1.0,
        ..strong()
    };
    let mask = |options: &AugmentOptions| run(&pair, options, 3).1;
    assert_eq!(mask(&all), mask(&strong()));
    // With nothing but noise, a second artifact leaves the noise what it was.
    let [_, noisy, jpeg] = artifacts();
    let flat = Image::new(40, 30, vec![128; 3600]).unwrap();
    let noise_of = |options: &AugmentOptions| run(&(flat.clone(), pair.1.clone()), options, 3).0;
    let both = AugmentOptions {
        jpeg: jpeg.jpeg,
        ..noisy.clone()
    };
    let mut after = noise_of(&noisy);
    let quality = Artifacts::draw(&both, &rng::stream(5, "test", 3)).jpeg;
    artifacts::compress(&mut after, quality.unwrap());
    assert_eq!(noise_of(&both), after);
}

/// What these options gave before there were blur, noise and JPEG.
#[test]
fn without_artifacts_bytes_are_what_they_were() {
    let (image, mask) = run(&noise(31, 18), &strong(), 7);
    let hash = crate::files::hash(&[image.pixels(), mask.labels()].concat());
    assert_eq!(&hash[..16], "99a128de3a572b57");
}

#[test]
fn bad_options_are_named() {
    AugmentOptions::default().validate().unwrap();
    for (bad, field) in [
        (
            AugmentOptions {
                rotation: -3.0,
                ..off()
            },
            "augment.rotation",
        ),
        (
            AugmentOptions {
                flip_vertical: 1.5,
                ..off()
            },
            "augment.flip_vertical",
        ),
        (
            AugmentOptions {
                elastic: f64::NAN,
                ..off()
            },
            "augment.elastic",
        ),
        (AugmentOptions { blur: 5.1, ..off() }, "augment.blur"),
        (
            AugmentOptions {
                jpeg: Some(0),
                ..off()
            },
            "augment.jpeg",
        ),
    ] {
        let error = bad.validate().unwrap_err();
        assert_eq!(error.field.as_str(), field);
        assert_eq!(error.kind, ErrorKind::Config);
    }
    assert!(serde_json::from_str::<AugmentOptions>(r#"{"rotatoin": 3}"#).is_err());
    let some: AugmentOptions = serde_json::from_str(r#"{"rotation": 3}"#).unwrap();
    assert_eq!(some.scale, AugmentOptions::default().scale);
}

struct Two;

impl Dataset for Two {
    fn info(&self) -> Result<DatasetInfo> {
        Ok(DatasetInfo::single_class("two", "shape"))
    }
    fn items(&self) -> Result<RVec<Item>> {
        Ok(RVec::from(vec![Item::new("a"), Item::new("b")]))
    }
    fn sample(&self, index: u64) -> Result<Sample> {
        if index > 1 {
            return Err(Error::data("beyond the last"));
        }
        let (image, mask) = shapes(64, 64 + 16 * index as u32);
        let mut attributes = Attributes::new();
        attributes.set_number("area", 0.5);
        let id = ["a", "b"][index as usize].into();
        Ok(Sample {
            id,
            image,
            mask,
            attributes,
        })
    }
}

#[test]
fn an_augmented_dataset_is_replayable_and_changes_with_the_epoch() {
    let view = |seed| Augmented::new(Arc::new(Two), AugmentOptions::default(), seed).unwrap();
    let (one, other) = (view(1), view(1));
    let forwards: Vec<Sample> = (0..6).map(|i| one.sample(i).unwrap()).collect();
    for i in (0..6).rev() {
        assert_eq!(other.sample(i).unwrap(), forwards[i as usize]);
    }
    assert_eq!(forwards[4].id.as_str(), "a");
    assert_eq!(forwards[5].image.height(), 80);
    assert_eq!(forwards[5].attributes.number("area"), Some(0.5));
    assert_ne!(forwards[0].image, forwards[2].image);
    assert_ne!(view(2).sample(0).unwrap().image, forwards[0].image);
    assert_eq!(one.items().unwrap().len(), 2);
}

#[test]
fn a_disabled_view_repeats_the_samples() {
    let options = AugmentOptions {
        enabled: false,
        ..AugmentOptions::default()
    };
    let view = Augmented::new(Arc::new(Two), options, 1).unwrap();
    assert_eq!(view.sample(5).unwrap(), Two.sample(1).unwrap());
}
