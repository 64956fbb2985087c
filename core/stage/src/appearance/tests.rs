//! Tests of `appearance`.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    data::{Image, Mask},
    rng,
};
use rand::RngExt;

const SIDE: u32 = 96;

fn disc(cx: f64, cy: f64, radius: f64) -> Mask {
    let place = |i: u32| (f64::from(i % SIDE) - cx, f64::from(i / SIDE) - cy);
    let labels = (0..SIDE * SIDE)
        .map(|i| u8::from(place(i).0.hypot(place(i).1) <= radius))
        .collect();
    Mask::new(SIDE, SIDE, labels).unwrap()
}

/// Each pixel by its label and position.
fn paint(mask: &Mask, mut colour: impl FnMut(u8, u32, u32) -> [u8; 3]) -> Image {
    let pixels = (0..SIDE * SIDE)
        .flat_map(|i| colour(mask.labels()[i as usize], i % SIDE, i / SIDE))
        .collect();
    Image::new(SIDE, SIDE, pixels).unwrap()
}

fn of(image: &Image, mask: &Mask) -> Appearance {
    Appearance::of(image.view(), mask.view(), &[1]).unwrap()
}

/// Grey noise of that amplitude about 128 inside and outside.
fn noisy(mask: &Mask, inside: i32, outside: i32) -> Image {
    let mut rng = rng::stream(1, "test", 0);
    paint(mask, |label, _, _| {
        let reach = if label == 1 { inside } else { outside };
        [(128 + rng.random_range(-reach..=reach)) as u8; 3]
    })
}

#[test]
fn colours_are_those_of_published_tables() {
    // sRGB primaries and a grey in CIELAB (D65), as colour tables give them.
    for (rgb, expected) in [
        ([255.0, 0.0, 0.0], [53.24, 80.09, 67.20]),
        ([0.0, 255.0, 0.0], [87.73, -86.18, 83.18]),
        ([0.0, 0.0, 255.0], [32.30, 79.19, -107.86]),
        ([119.0, 119.0, 119.0], [50.03, 0.0, 0.0]),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
        ([255.0, 255.0, 255.0], [100.0, 0.0, 0.0]),
    ] {
        let found = lab(rgb);
        for k in 0..3 {
            assert!((found[k] - expected[k]).abs() < 0.02, "{rgb:?}: {found:?}");
        }
    }
}

#[test]
fn plain_colours_are_measured_exactly() {
    let mask = disc(40.0, 50.0, 15.0);
    let image = paint(&mask, |label, _, _| match label {
        1 => [200, 80, 80],
        _ => [180, 120, 100],
    });
    let found = of(&image, &mask);
    let (inside, ring) = (lab([200.0, 80.0, 80.0]), lab([180.0, 120.0, 100.0]));
    assert!((found.brightness - (0.299 * 200.0 + 0.701 * 80.0)).abs() < 1e-3);
    assert!((found.redness - (inside[1] - ring[1])).abs() < 1e-9);
    let square: f64 = (0..3).map(|k| (inside[k] - ring[k]).powi(2)).sum();
    assert!((found.contrast - square.sqrt()).abs() < 1e-9);
    assert!(found.redness > 10.0, "{found:?}");
    let same = of(&paint(&mask, |_, _, _| [90, 90, 90]), &mask);
    assert!(same.contrast < 1e-9 && same.detail < 1e-4, "{same:?}");
    assert_eq!((same.detail_ratio, same.boundary), (1.0, 1.0));
}

#[test]
fn what_is_far_away_or_dark_does_not_count() {
    let mask = disc(40.0, 50.0, 15.0);
    let colour = |label: u8| {
        if label == 1 {
            [190, 90, 90]
        } else {
            [170, 110, 100]
        }
    };
    let plain = of(&paint(&mask, |label, _, _| colour(label)), &mask);
    // The ring ends 6 pixels from the lesion, and the blur 5 beyond.
    let far = paint(&mask, |label, x, y| match x < 13 || y > 77 {
        true => [255, 255, (x * 90) as u8],
        false => colour(label),
    });
    assert_eq!(of(&far, &mask), plain);
    // A black border that cuts through the ring: its edge is no detail of the tissue.
    let mut framed = noisy(&mask, 10, 10);
    let whole = of(&framed, &mask);
    for row in framed.bytes_mut().chunks_exact_mut(3 * SIDE as usize) {
        row[..3 * 22].fill(3);
    }
    let framed = of(&framed, &mask);
    assert!(framed.contrast < 0.5, "{framed:?}");
    assert!((framed.detail_ratio / whole.detail_ratio - 1.0).abs() < 0.1);
}

#[test]
fn detail_is_the_deviation_that_a_blur_takes_away() {
    let mask = disc(48.0, 48.0, 20.0);
    let found = of(&noisy(&mask, 20, 10), &mask);
    // Uniform noise on -20..=20 has a deviation of 11.83; of white noise the blur by 1.5 pixels keeps
    // w = 1 / (4 pi 1.5^2) of the variance and 1 / (2 pi 1.5^2) of the value itself.
    let (kept, own) = (
        1.0 / (9.0 * std::f64::consts::PI),
        2.0 / (9.0 * std::f64::consts::PI),
    );
    let expected = 11.83 * (1.0 + kept - 2.0 * own).sqrt();
    assert!((found.detail / expected - 1.0).abs() < 0.05, "{found:?}");
    assert!((1.7..2.2).contains(&found.detail_ratio), "{found:?}");
    let smooth = of(&noisy(&mask, 5, 10), &mask);
    assert!((0.4..0.6).contains(&smooth.detail_ratio), "{smooth:?}");
}

#[test]
fn a_sharp_border_is_steeper_than_a_soft_one() {
    let mask = disc(48.0, 48.0, 20.0);
    let edge = |width: f64| {
        let mut rng = rng::stream(2, "test", 0);
        let image = paint(&mask, |_, x, y| {
            let r = (f64::from(x) - 48.0).hypot(f64::from(y) - 48.0);
            let share = ((20.0 - r) / width + 0.5).clamp(0.0, 1.0);
            [(100.0 + 40.0 * share + rng.random_range(-4.0..=4.0)) as u8; 3]
        });
        of(&image, &mask).boundary
    };
    let found = [1.0, 8.0, 16.0].map(edge);
    assert!(
        found[0] > 1.3 * found[1] && found[1] > 1.3 * found[2],
        "{found:?}"
    );
    let none = of(&noisy(&mask, 8, 8), &mask).boundary;
    assert!((0.8..1.2).contains(&none), "{none}");
}

#[test]
fn without_lesion_or_surroundings_there_is_nothing_to_measure() {
    let grey = |size: u32| Image::new(size, size, vec![90; 3 * (size * size) as usize]).unwrap();
    let mask = |label: u8| Mask::new(8, 8, vec![label; 64]).unwrap();
    assert_eq!(Appearance::of(grey(8).view(), mask(0).view(), &[1]), None);
    assert_eq!(Appearance::of(grey(8).view(), mask(2).view(), &[1]), None);
    assert_eq!(Appearance::of(grey(8).view(), mask(1).view(), &[1]), None);
    assert_eq!(Appearance::of(grey(9).view(), mask(1).view(), &[1]), None);
    let mut corner = mask(0);
    corner.bytes_mut()[0] = 1;
    assert!(Appearance::of(grey(8).view(), corner.view(), &[1]).is_some());
}

#[test]
fn labels_around_a_target_belong_to_the_ring() {
    // A cup (2) in its disc (1): the ring is the disc.
    let (disc, cup) = (disc(48.0, 48.0, 30.0), disc(48.0, 48.0, 15.0));
    let mut labels = disc.clone();
    for (label, &inner) in labels.bytes_mut().iter_mut().zip(cup.labels()) {
        *label += inner;
    }
    let image = paint(&labels, |label, _, _| [60 + 60 * label; 3]);
    let found = Appearance::of(image.view(), labels.view(), &[2]).unwrap();
    assert!((found.contrast - (lab([180.0; 3])[0] - lab([120.0; 3])[0])).abs() < 1e-6);
}

#[test]
fn facts_carry_every_measure() {
    let mask = disc(48.0, 48.0, 20.0);
    let found = of(&noisy(&mask, 20, 10), &mask);
    let facts = found.facts();
    assert_eq!(facts.iter().count(), 6);
    for (name, value) in found.named() {
        assert_eq!(facts.number(name), Some(value), "{name}");
    }
}
