//! Low and high bands of pictures, parted by a Gaussian: a picture put together of the low band of one
//! and the high band of another.

use crate::{
    data::{Image, ImageRef, MaskRef},
    error::{Error, Result},
    image::gaussian_blur,
};

/// `low` with the high band of `high` under the mask: there the picture is
/// `blur(low) + high - blur(high)`, with a standard deviation of `sigma` pixels. Towards the inner
/// edge of the mask it fades to `low` over about `sigma`; outside of the mask it is `low` to the byte.
///
/// # Errors
/// When the three differ in size.
pub fn mix(low: ImageRef<'_>, high: ImageRef<'_>, mask: MaskRef<'_>, sigma: f64) -> Result<Image> {
    let size = low.size();
    if high.size() != size || mask.size() != size {
        return Err(Error::internal(format!(
            "bands of pictures of different sizes: {size:?}, {:?}, mask {:?}",
            high.size(),
            mask.size()
        )));
    }
    let (width, height) = (size.0 as usize, size.1 as usize);
    let shares = shares(mask, sigma);
    let mut out = low.to_owned();
    for channel in 0..3 {
        let plane = |image: ImageRef<'_>| -> Vec<f32> {
            let pixels = image.pixels().iter().skip(channel).step_by(3);
            pixels.map(|&value| f32::from(value)).collect()
        };
        let (low, high) = (plane(low), plane(high));
        // The blur is linear: one of the difference does for both.
        let apart: Vec<f32> = high.iter().zip(&low).map(|(h, l)| h - l).collect();
        let coarse = gaussian_blur(&apart, width, height, sigma as f32);
        for (at, share) in shares.iter().enumerate().filter(|(_, share)| **share > 0.0) {
            let mixed = low[at] + share * (apart[at] - coarse[at]);
            out.bytes_mut()[3 * at + channel] = mixed.round_ties_even().clamp(0.0, 255.0) as u8;
        }
    }
    Ok(out)
}

/// How much of the high band each pixel takes: none outside of the mask; inside twice what the blurred
/// mask exceeds one half by, which grows from 0 at a straight edge to about 1 within two `sigma`.
fn shares(mask: MaskRef<'_>, sigma: f64) -> Vec<f32> {
    let inside: Vec<f32> = mask
        .labels()
        .iter()
        .map(|&label| f32::from(u8::from(label != 0)))
        .collect();
    let (width, height) = (mask.width() as usize, mask.height() as usize);
    let soft = gaussian_blur(&inside, width, height, sigma as f32);
    let share = |(inside, soft): (&f32, f32)| match *inside {
        0.0 => 0.0,
        _ => (2.0 * soft - 1.0).clamp(0.0, 1.0),
    };
    inside.iter().zip(soft).map(share).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{data::Mask, rng};
    use rand::RngExt;

    const SIDE: u32 = 48;
    const SIGMA: f64 = 1.5;

    /// Noise of 70 grey levels; the brighter, the larger `seed`.
    fn noise(seed: u8) -> Image {
        let mut draw = rng::stream(seed.into(), "noise", 0);
        let from = 60 * seed;
        let pixels = (0..SIDE * SIDE * 3).map(|_| draw.random_range(from..from + 70));
        Image::new(SIDE, SIDE, pixels.collect()).unwrap()
    }

    /// A square from 10 to 38 in both directions.
    fn square() -> Mask {
        let inside = |at: u32| (10..38).contains(&(at % SIDE)) && (10..38).contains(&(at / SIDE));
        Mask::new(
            SIDE,
            SIDE,
            (0..SIDE * SIDE).map(|at| u8::from(inside(at))).collect(),
        )
        .unwrap()
    }

    fn plane(image: &Image) -> Vec<f32> {
        let pixels = image.pixels().iter().step_by(3);
        pixels.map(|&value| f32::from(value)).collect()
    }

    fn blur(plane: &[f32]) -> Vec<f32> {
        gaussian_blur(plane, SIDE as usize, SIDE as usize, SIGMA as f32)
    }

    #[test]
    fn the_low_band_is_the_ones_and_the_high_band_the_others() {
        let (low, high, mask) = (noise(1), noise(2), square());
        let mixed = mix(low.view(), high.view(), mask.view(), SIGMA).unwrap();
        let bands = |image: &Image| {
            let all = plane(image);
            let coarse = blur(&all);
            let fine: Vec<f32> = all.iter().zip(&coarse).map(|(a, c)| a - c).collect();
            (coarse, fine)
        };
        let (mixed, low, high) = (bands(&mixed), bands(&low), bands(&high));
        // The Gaussian is no sharp filter, so that a second one parts the bands a little otherwise.
        let distance = |a: &[f32], b: &[f32]| {
            let inner = (18..30).flat_map(|y| (18..30).map(move |x| y * SIDE as usize + x));
            let all: Vec<f32> = inner.map(|at| (a[at] - b[at]).powi(2)).collect();
            (all.iter().sum::<f32>() / all.len() as f32).sqrt()
        };
        assert!(distance(&mixed.0, &low.0) < 0.3 * distance(&mixed.0, &high.0));
        assert!(distance(&mixed.1, &high.1) < 0.4 * distance(&mixed.1, &low.1));
    }

    #[test]
    fn a_smooth_picture_takes_on_the_detail_exactly() {
        // What is flat has no high band, so the sum of both bands is known.
        let flat = Image::new(SIDE, SIDE, vec![120; (SIDE * SIDE * 3) as usize]).unwrap();
        let (high, mask) = (noise(2), square());
        let mixed = plane(&mix(flat.view(), high.view(), mask.view(), SIGMA).unwrap());
        let all = plane(&high);
        let coarse = blur(&all);
        for y in 18..30 {
            for x in 18..30 {
                let at = y * SIDE as usize + x;
                let expected = 120.0 + all[at] - coarse[at];
                assert!((mixed[at] - expected).abs() <= 0.51, "{x} {y}");
            }
        }
    }

    #[test]
    fn nothing_changes_outside_of_the_mask() {
        let (low, high, mask) = (noise(1), noise(2), square());
        let mixed = mix(low.view(), high.view(), mask.view(), SIGMA).unwrap();
        let pixels = mixed
            .pixels()
            .chunks_exact(3)
            .zip(low.pixels().chunks_exact(3));
        for ((mixed, low), label) in pixels.zip(mask.labels()) {
            assert!(*label != 0 || mixed == low);
        }
        assert_ne!(mixed, low);
        // The edge fades: less changes there than in the middle.
        let change = |range: std::ops::Range<usize>| -> f32 {
            let (a, b) = (plane(&mixed), plane(&low));
            let count = range.len() as f32;
            let each = range.map(|x| (a[24 * SIDE as usize + x] - b[24 * SIDE as usize + x]).abs());
            each.sum::<f32>() / count
        };
        assert!(change(10..11) < change(18..30));
    }

    #[test]
    fn sizes_have_to_agree() {
        let small = Image::new(2, 2, vec![0; 12]).unwrap();
        assert!(mix(small.view(), noise(1).view(), square().view(), 1.0).is_err());
    }
}
