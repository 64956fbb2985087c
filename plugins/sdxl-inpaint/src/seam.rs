//! The seam between painted and real pixels.

use crate::options::Composite;
use diffaug::{
    MaskRef,
    poisson::{self, Limits, Problem},
};

/// When the colours of a painting meet those of the image well enough: a tenth of a grey level is
/// below what rounding to bytes takes.
const LIMITS: Limits = Limits {
    tolerance: 0.1,
    max_iterations: 2000,
};

/// How a painting is put into the part of an image that it was made for.
pub struct Seam {
    width: usize,
    /// How much of each pixel is taken from the painting, 0 to 1.
    shares: Vec<f32>,
    /// Whether the painting's colours are first moved towards those around it.
    blended: bool,
}

impl Seam {
    /// Around the lesion of `mask`, `feather` pixels wide.
    pub fn new(mask: MaskRef<'_>, composite: Composite, feather: u32) -> Self {
        let width = mask.width() as usize;
        let inside: Vec<bool> = mask.labels().iter().map(|&label| label != 0).collect();
        let near = |share: fn(f32, f32) -> f32| -> Vec<f32> {
            let distances = distances(&inside, width, feather);
            let shares = distances.into_iter().map(|d| share(d, feather as f32));
            shares.collect()
        };
        let shares = match composite {
            Composite::None => vec![1.0; inside.len()],
            Composite::Hard => inside.iter().map(|&inside| f32::from(inside)).collect(),
            Composite::Feather => near(|distance, reach| (1.0 - distance / (reach + 1.0)).max(0.0)),
            Composite::Poisson => near(|distance, reach| f32::from(distance <= reach)),
        };
        Seam {
            width,
            shares,
            blended: composite == Composite::Poisson,
        }
    }

    /// One colour channel, 0 to 255, of the image with the painting in it. Where nothing is taken
    /// from the painting it is `own`, to the last bit.
    pub fn join(&self, own: &[f32], painted: &[f32]) -> Vec<f32> {
        let levelled = self.blended.then(|| self.levelled(own, painted));
        let painted = levelled.as_deref().unwrap_or(painted);
        let pixels = self.shares.iter().zip(own).zip(painted);
        pixels
            .map(|((share, own), painted)| match *share {
                // Also where a model has painted what is no number.
                0.0 => *own,
                share => own + share * (painted - own),
            })
            .collect()
    }

    /// The painting's own gradients, and the image's colours where the painting ends: what differs
    /// at the border is spread over the inside as smoothly as can be.
    fn levelled(&self, own: &[f32], painted: &[f32]) -> Vec<f32> {
        let sought: Vec<bool> = self.shares.iter().map(|&share| share > 0.0).collect();
        let cells = sought.iter().zip(own).zip(painted);
        let values: Vec<f32> = cells
            .map(|((sought, own), painted)| if *sought { *painted } else { *own })
            .collect();
        let problem = Problem {
            width: self.width,
            height: own.len() / self.width,
            sought: &sought,
            outside: &vec![false; own.len()],
            values: &values,
        };
        let solution = poisson::solve(&problem, |p, q| painted[p] - painted[q], LIMITS);
        if solution.residual > LIMITS.tolerance {
            tracing::debug!(
                residual = solution.residual,
                "the seam's colours did not meet as well as they should"
            );
        }
        let values = solution.values.into_iter();
        values.map(|value| value.clamp(0.0, 255.0)).collect()
    }
}

/// The distance of every pixel from the nearest one inside, as far as it is at most `reach` along
/// either axis; infinite beyond.
pub fn distances(inside: &[bool], width: usize, reach: u32) -> Vec<f32> {
    let (width, height) = (width as i64, (inside.len() / width) as i64);
    let reach = i64::from(reach);
    let mut nearest = vec![f32::INFINITY; inside.len()];
    for y in 0..height {
        for x in 0..width {
            let at = (y * width + x) as usize;
            if !inside[at] {
                continue;
            }
            nearest[at] = 0.0;
            if !on_edge(inside, (x, y), (width, height)) {
                continue;
            }
            for down in -reach..=reach {
                for across in -reach..=reach {
                    let (to_x, to_y) = (x + across, y + down);
                    if (0..width).contains(&to_x) && (0..height).contains(&to_y) {
                        let to = &mut nearest[(to_y * width + to_x) as usize];
                        *to = to.min(((down * down + across * across) as f32).sqrt());
                    }
                }
            }
        }
    }
    nearest
}

/// Whether a neighbour of a pixel that lies inside does not.
fn on_edge(inside: &[bool], (x, y): (i64, i64), (width, height): (i64, i64)) -> bool {
    [(0, 1), (0, -1), (1, 0), (-1, 0)]
        .into_iter()
        .any(|(across, down)| {
            let (x, y) = (x + across, y + down);
            let there = (0..width).contains(&x) && (0..height).contains(&y);
            there && !inside[(y * width + x) as usize]
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::Mask;

    const SIDE: usize = 24;

    /// A square lesion of 8 pixels in the middle of [`SIDE`].
    fn lesion() -> Mask {
        let inside = |at: usize| (8..16).contains(&(at % SIDE)) && (8..16).contains(&(at / SIDE));
        let labels = (0..SIDE * SIDE).map(|at| u8::from(inside(at))).collect();
        Mask::new(SIDE as u32, SIDE as u32, labels).unwrap()
    }

    /// A channel that grows from left to right.
    fn ramp() -> Vec<f32> {
        let value = |at: usize| 60.0 + 4.0 * (at % SIDE) as f32;
        (0..SIDE * SIDE).map(value).collect()
    }

    #[test]
    fn a_feather_falls_off_outside_the_mask() {
        let mut labels = vec![0; 11 * 11];
        labels[5 * 11 + 5] = 1;
        let dot = Mask::new(11, 11, labels).unwrap();
        let seam = Seam::new(dot.view(), Composite::Feather, 3);
        let row = &seam.shares[5 * 11..6 * 11];
        assert_eq!(row, [0., 0., 0.25, 0.5, 0.75, 1., 0.75, 0.5, 0.25, 0., 0.]);
        let whole = Mask::new(4, 4, vec![1; 16]).unwrap();
        let seam = Seam::new(whole.view(), Composite::Feather, 2);
        assert!(seam.shares.iter().all(|share| *share == 1.0));
    }

    #[test]
    fn a_painting_of_another_light_meets_the_colours_around_it() {
        let (mask, own) = (lesion(), ramp());
        // Darker throughout, with a spot in the middle of the lesion.
        let spot = SIDE * 12 + 12;
        let mut painted: Vec<f32> = own.iter().map(|value| value - 30.0).collect();
        painted[spot] += 50.0;
        let blended = Seam::new(mask.view(), Composite::Poisson, 2).join(&own, &painted);
        for (at, (blended, own)) in blended.iter().zip(&own).enumerate() {
            let wanted = if at == spot { own + 50.0 } else { *own };
            assert!(
                (blended - wanted).abs() < 0.5,
                "{at}: {blended}, not {wanted}"
            );
        }
        // Beyond the seam nothing has changed at all; a soft one keeps the darkness.
        assert_eq!(blended[0..SIDE * 6], own[0..SIDE * 6]);
        let soft = Seam::new(mask.view(), Composite::Feather, 2).join(&own, &painted);
        assert!((soft[spot + 1] - own[spot + 1] + 30.0).abs() < 1e-3);
    }

    #[test]
    fn what_is_no_number_stays_inside_the_seam() {
        let (mask, own) = (lesion(), ramp());
        for composite in [Composite::Hard, Composite::Feather, Composite::Poisson] {
            let seam = Seam::new(mask.view(), composite, 2);
            let joined = seam.join(&own, &[f32::NAN; SIDE * SIDE]);
            assert_eq!(joined[..SIDE * 6], own[..SIDE * 6], "{composite:?}");
        }
    }

    #[test]
    fn a_part_that_is_all_lesion_stays_as_it_was_painted() {
        let mask = Mask::new(SIDE as u32, SIDE as u32, vec![1; SIDE * SIDE]).unwrap();
        let own = vec![200.0; SIDE * SIDE];
        let joined = Seam::new(mask.view(), Composite::Poisson, 3).join(&own, &ramp());
        assert_eq!(joined, ramp());
    }
}
