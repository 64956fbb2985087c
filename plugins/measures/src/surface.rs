//! The measure `surface`: how far the outlines of truth and prediction are apart.
//!
//! The outline of a mask is made of its pixels that are not surrounded on all four sides; what lies beyond the image is
//! outside. Distances are those from each pixel of an outline to the nearest pixel of the other one, in pixels of
//! the image, both ways.
//!
//! - `hd95`: the 95th percentile of the distances of both ways together, linear between ranks (MedPy's `hd95`).
//! - `assd`: the mean of the distances of both ways together (`assd` of MedPy 0.5.2; the mean of two means, one each
//!   way, is another figure).
//! - `surface_dice`: the share of the pixels of both outlines whose distance is at most `tolerance` (Nikolov et al.
//!   2021, doi:10.2196/26151, with an outline measured by its pixels as in MONAI's `compute_surface_dice`).
//! - `boundary_iou`, `boundary_dice`: IoU and Dice coefficient of the parts of the masks that lie within `width` of
//!   their outlines, inwards (Cheng et al. 2021, arXiv:2103.16562). The band is `width` times the diagonal, rounded
//!   to whole pixels, at least one, and is measured in steps that may be diagonal.
//!
//! Both masks empty: distances are 0, shares 1. One empty: shares are 0; distances are undefined, or the diagonal of
//! the image where `one_empty` says so. `hd95_undefined` counts the images whose distances are undefined, because
//! their means leave these out.

use crate::{
    distance::{between, depth, nearest},
    options::{check_range, check_share},
    region::{Pair, Region},
};
use diffaug::{metrics::quantile, prelude::*};
use serde::Serialize;

/// What distances are where one of the masks is empty and the other is not.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OneEmpty {
    /// Undefined, and left out of means.
    #[default]
    Undefined,
    /// The diagonal of the image, which no distance is above.
    Diagonal,
}

/// Options of the measure `surface`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SurfaceOptions {
    /// Largest distance, in pixels, at which a pixel of an outline is right for `surface_dice`.
    pub tolerance: f64,
    /// Width of the band of `boundary_iou` and `boundary_dice` as a share of the image's diagonal, above 0, at most 1.
    pub width: f64,
    /// What distances are where one of the masks is empty: `undefined`, or the `diagonal` of the image.
    pub one_empty: OneEmpty,
}

impl Default for SurfaceOptions {
    fn default() -> Self {
        SurfaceOptions {
            tolerance: 2.0,
            width: 0.02,
            one_empty: OneEmpty::Undefined,
        }
    }
}

/// Largest `tolerance`, in pixels.
const MOST_TOLERANCE: f64 = 10_000.0;

/// Compares outlines.
pub struct Surface(SurfaceOptions);

impl FromConfig for Surface {
    type Config = SurfaceOptions;

    fn validate(options: &SurfaceOptions) -> Result<()> {
        check_range("tolerance", options.tolerance, 0.0, MOST_TOLERANCE)?;
        check_share("width", options.width)
    }

    fn from_config(options: SurfaceOptions, _: &Context) -> Result<Self> {
        Ok(Surface(options))
    }
}

/// Distances from the pixels of one outline to the other, both ways; neither is empty.
struct Distances {
    from_found: Vec<f64>,
    from_truth: Vec<f64>,
}

impl Distances {
    /// Those of two masks; `None` where one is empty.
    fn of(pair: &Pair) -> Option<Self> {
        let (truth, found) = (pair.truth.border(), pair.found.border());
        let (to_truth, to_found) = (nearest(&truth)?, nearest(&found)?);
        Some(Distances {
            from_found: along(&found, &to_truth),
            from_truth: along(&truth, &to_found),
        })
    }

    fn all(&self) -> impl Iterator<Item = f64> {
        self.from_found.iter().chain(&self.from_truth).copied()
    }

    fn hd95(&self) -> Option<f64> {
        let mut sorted: Vec<f64> = self.all().collect();
        sorted.sort_by(f64::total_cmp);
        quantile(&sorted, 0.95)
    }

    fn assd(&self) -> f64 {
        self.all().sum::<f64>() / self.count()
    }

    fn within(&self, tolerance: f64) -> f64 {
        let right = self.all().filter(|distance| *distance <= tolerance).count();
        right as f64 / self.count()
    }

    fn count(&self) -> f64 {
        (self.from_found.len() + self.from_truth.len()) as f64
    }
}

/// Distances of the pixels of `outline` to those that are `nearest` to them.
fn along(outline: &Region, nearest: &[usize]) -> Vec<f64> {
    let pixels = (0..outline.inside.len()).filter(|&at| outline.inside[at]);
    pixels
        .map(|at| between(outline.width, at, nearest[at]))
        .collect()
}

/// The part of `region` that is at most `width` steps deep.
fn band(region: &Region, width: u32) -> Vec<bool> {
    let depth = depth(region).into_iter();
    depth.map(|depth| (1..=width).contains(&depth)).collect()
}

impl Surface {
    /// The figures of two masks of which none or both are empty.
    fn figures_of(&self, pair: &Pair) -> [ROption<f64>; 5] {
        let (height, width) = (pair.truth.height as f64, pair.truth.width as f64);
        let diagonal = width.hypot(height);
        let distances = match (pair.truth.is_empty(), pair.found.is_empty()) {
            (true, true) => return [0.0, 0.0, 1.0, 1.0, 1.0].map(RSome),
            (false, false) => Distances::of(pair),
            _ => None,
        };
        let (hd95, assd, dice) = match (distances, self.0.one_empty) {
            (Some(distances), _) => (
                distances.hd95().into(),
                RSome(distances.assd()),
                distances.within(self.0.tolerance),
            ),
            (None, OneEmpty::Diagonal) => (RSome(diagonal), RSome(diagonal), 0.0),
            (None, OneEmpty::Undefined) => (RNone, RNone, 0.0),
        };
        let steps = (self.0.width * diagonal).round_ties_even().max(1.0) as u32;
        let bands = (band(&pair.truth, steps), band(&pair.found, steps));
        let both = bands.0.iter().zip(&bands.1);
        let (mut common, mut sizes) = (0_u32, 0_u32);
        for (truth, found) in both {
            common += u32::from(*truth && *found);
            sizes += u32::from(*truth) + u32::from(*found);
        }
        let (common, sizes) = (f64::from(common), f64::from(sizes));
        [
            hd95,
            assd,
            RSome(dice),
            RSome(common / (sizes - common)),
            RSome(2.0 * common / sizes),
        ]
    }

    fn measure(&self, case: &Case<'_>) -> Result<Measured> {
        let figures = self.figures_of(&Pair::of(case)?);
        let undefined = f64::from(u8::from(figures[0].is_none()));
        Ok(Measured {
            figures: figures.to_vec().into(),
            sums: vec![undefined].into(),
        })
    }
}

impl Measure for Surface {
    fn subject(&self) -> Result<Subject> {
        Ok(Subject::Predictions)
    }

    fn figures(&self) -> Result<RVec<FigureInfo>> {
        let dice = format!(
            "share of both outlines that is at most {} pixels from the other",
            self.0.tolerance
        );
        let figures = vec![
            FigureInfo::new(
                "hd95",
                Better::Lower,
                "95th percentile of the distances between the outlines, in pixels",
            ),
            FigureInfo::new(
                "assd",
                Better::Lower,
                "mean distance between the outlines, in pixels",
            ),
            FigureInfo::new("surface_dice", Better::Higher, &dice),
            FigureInfo::new(
                "boundary_iou",
                Better::Higher,
                "IoU of the bands along the outlines",
            ),
            FigureInfo::new(
                "boundary_dice",
                Better::Higher,
                "Dice coefficient of the bands along the outlines",
            ),
        ];
        Ok(figures.into())
    }

    fn totals(&self) -> Result<RVec<FigureInfo>> {
        let undefined = FigureInfo::new(
            "hd95_undefined",
            Better::Lower,
            "images whose distances are undefined, because one mask is empty",
        );
        Ok(vec![undefined].into())
    }

    fn score(&self, cases: RSlice<'_, Case<'_>>) -> Result<RVec<Measured>> {
        cases.iter().map(|case| self.measure(case)).collect()
    }

    fn total(&self, sums: RSlice<'_, f64>, _: u64) -> Result<RVec<ROption<f64>>> {
        match sums.as_slice() {
            [undefined] => Ok(vec![RSome(*undefined)].into()),
            other => {
                let message = format!("`surface` was given {} sums, expected 1", other.len());
                Err(Error::internal(message))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::testing::{Answers, Sheet, against, measure, wrong_option};

    /// Made by `fixtures/make_surface.py`.
    #[test]
    fn figures_agree_with_medpy_monai_and_boundary_iou() {
        let fixture = include_str!("../fixtures/surface.json");
        let answers = against(fixture, "surface", "{}", 1e-9);
        assert_eq!(answers.total("hd95_undefined"), Some(2.0));
    }

    #[test]
    fn one_empty_mask_may_count_as_the_diagonal() {
        let surface = measure("surface", r#"{"one_empty": "diagonal"}"#).unwrap();
        let sheets = [
            Sheet::new(4, 3, "100000000000", "000000000000"),
            Sheet::new(4, 3, "000000000000", "000000000000"),
        ];
        let answers = Answers::of(&surface, &sheets);
        assert_eq!(answers.figure(0, "hd95"), Some(5.0));
        assert_eq!(answers.figure(0, "surface_dice"), Some(0.0));
        assert_eq!(answers.figure(1, "assd"), Some(0.0));
        assert_eq!(answers.figure(1, "boundary_dice"), Some(1.0));
        assert_eq!(answers.total("hd95_undefined"), Some(0.0));
    }

    #[test]
    fn options_are_checked() {
        for (options, field) in [
            (r#"{"tolerance": -1}"#, "tolerance"),
            (r#"{"width": 0}"#, "width"),
            (r#"{"width": 1.1}"#, "width"),
            (r#"{"one_empty": "zero"}"#, "one_empty"),
        ] {
            assert_eq!(wrong_option("surface", options), field);
        }
    }
}
