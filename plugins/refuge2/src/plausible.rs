//! Whether labels can be those of an eye: a wrong coding turns the background into disc or cup.

use crate::{CUP, Coding, RIM};
use diffaug::prelude::*;
use std::path::Path;

/// The share of the border that a disc may touch: that of a tight crop.
const BORDER: f64 = 0.5;

/// Why labels cannot be those of an eye; none where they can.
pub(crate) fn fault(mask: MaskRef<'_>) -> Option<String> {
    let touched = border(mask);
    if touched > BORDER {
        let share = touched * 100.0;
        return Some(format!(
            "disc and cup would cover {share:.0} % of the border"
        ));
    }
    let [to_rim, to_background] = contacts(mask);
    (to_rim > 0 && to_background > to_rim)
        .then(|| "the cup would lie around the rim of the disc, not inside it".to_owned())
}

/// The error for labels that `coding` made of the file `path`, with a coding that would fit.
pub(crate) fn refuse(coding: Coding, mask: MaskRef<'_>, path: &Path, why: &str) -> Error {
    let value = |label: u8| coding.values()[usize::from(label)];
    let fits = |other: Coding| {
        let label = |label: &u8| other.values().iter().position(|v| *v == value(*label));
        let labels: Option<Vec<u8>> = mask
            .labels()
            .iter()
            .map(|l| label(l).map(|label| label as u8))
            .collect();
        let mask = labels.and_then(|l| Mask::new(mask.width(), mask.height(), l).ok());
        mask.is_some_and(|mask| fault(mask.view()).is_none() && mask.view().foreground() > 0)
    };
    let others = Coding::ALL
        .into_iter()
        .filter(|(other, _)| *other != coding);
    let other = others.into_iter().find(|(other, _)| fits(*other));
    let advice = match other {
        Some((_, name)) => format!("`coding = \"{name}\"` fits"),
        None => "none of the codings fits".to_owned(),
    };
    let name = coding.name();
    Error::data(format!(
        "mask `{}` cannot have the coding `{name}`: {why}; {advice}",
        path.display()
    ))
    .at("coding")
}

/// The share of the pixels on the border that are not background.
fn border(mask: MaskRef<'_>) -> f64 {
    let (width, height) = (mask.width() as usize, mask.height() as usize);
    let labels = mask.labels();
    let rows = [0, height - 1]
        .into_iter()
        .flat_map(|y| (0..width).map(move |x| (x, y)));
    let columns = [0, width - 1]
        .into_iter()
        .flat_map(|x| (0..height).map(move |y| (x, y)));
    let (mut all, mut touched) = (0u32, 0u32);
    for (x, y) in rows.chain(columns) {
        all += 1;
        touched += u32::from(labels[y * width + x] != 0);
    }
    f64::from(touched) / f64::from(all)
}

/// How many pairs of neighbours are cup and rim, and cup and background.
fn contacts(mask: MaskRef<'_>) -> [u64; 2] {
    let (width, height) = (mask.width() as usize, mask.height() as usize);
    let labels = mask.labels();
    let mut count = [0; 2];
    let mut look = |a: u8, b: u8| match (a, b) {
        (CUP, RIM) | (RIM, CUP) => count[0] += 1,
        (CUP, 0) | (0, CUP) => count[1] += 1,
        _ => {}
    };
    for y in 0..height {
        for x in 0..width {
            let label = labels[y * width + x];
            if x + 1 < width {
                look(label, labels[y * width + x + 1]);
            }
            if y + 1 < height {
                look(label, labels[(y + 1) * width + x]);
            }
        }
    }
    count
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A square of 12 pixels with rings of the given labels, from the outside in, 2 pixels each.
    fn rings(labels: [u8; 3]) -> Mask {
        let ring = |i: u32| i.min(11 - i) / 2;
        let pixels = (0..144u32).map(|i| labels[ring(i % 12).min(ring(i / 12)) as usize]);
        Mask::new(12, 12, pixels.collect()).unwrap()
    }

    #[test]
    fn an_eye_has_a_cup_in_a_disc_in_a_background() {
        assert_eq!(fault(rings([0, RIM, CUP]).view()), None);
        assert_eq!(fault(rings([0, RIM, RIM]).view()), None);
        assert_eq!(fault(rings([0, 0, CUP]).view()), None);
        assert_eq!(fault(rings([0, 0, 0]).view()), None);
        let outside = fault(rings([CUP, RIM, 0]).view()).unwrap();
        assert!(outside.contains("100 % of the border"), "{outside}");
        let around = fault(rings([0, CUP, RIM]).view()).unwrap();
        assert!(around.contains("around the rim"), "{around}");
    }

    #[test]
    fn the_coding_that_fits_is_named() {
        let text =
            |coding, mask: Mask| refuse(coding, mask.view(), Path::new("m.png"), "why").to_string();
        let inverted = text(Coding::Refuge, rings([CUP, RIM, 0]));
        assert_eq!(
            inverted,
            "mask `m.png` cannot have the coding `refuge`: why; `coding = \"inverted\"` fits"
        );
        let none = text(Coding::Labels, rings([0, CUP, RIM]));
        assert!(none.ends_with("none of the codings fits"), "{none}");
    }
}
