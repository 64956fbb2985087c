//! Drawings as SVG: an area with axes, onto which curves, bars and intervals are drawn. Colours are classes of the
//! page's style sheet, so that they follow a dark mode; lines differ in their dashes as well.

use maud::{Markup, html};

/// Width of a drawing in its own units; on a narrow screen a unit is a little less than a pixel.
pub const WIDTH: f64 = 400.0;
/// Room below the area, for the numbers and the name of the horizontal axis.
const BELOW: f64 = 40.0;
/// Room above the area.
const ABOVE: f64 = 10.0;
/// Room to the right of the area.
const RIGHT: f64 = 14.0;
/// How many kinds of lines the style sheet knows.
pub const KINDS: usize = 6;

/// An area with axes.
pub struct Area {
    /// Height of the drawing.
    pub height: f64,
    /// Room to the left of the area.
    pub left: f64,
    /// Least and largest value of the horizontal axis.
    pub x: [f64; 2],
    /// The same of the vertical axis.
    pub y: [f64; 2],
}

impl Area {
    /// Where a value of the horizontal axis lies.
    pub fn at_x(&self, value: f64) -> f64 {
        let share = (value - self.x[0]) / (self.x[1] - self.x[0]);
        rounded(self.left + share * (WIDTH - self.left - RIGHT))
    }

    /// Where a value of the vertical axis lies.
    pub fn at_y(&self, value: f64) -> f64 {
        let share = (value - self.y[0]) / (self.y[1] - self.y[0]);
        rounded(self.bottom() - share * (self.bottom() - ABOVE))
    }

    fn bottom(&self) -> f64 {
        self.height - BELOW
    }

    /// The horizontal axis with its numbers and lines across the area.
    pub fn x_axis(&self, name: &str) -> Markup {
        let ticks = ticks(self.x, 5);
        let digits = digits(&ticks);
        html! {
            @for tick in &ticks {
                line.grid x1=(self.at_x(*tick)) x2=(self.at_x(*tick)) y1=(ABOVE) y2=(self.bottom()) {}
                text x=(self.at_x(*tick)) y=(self.bottom() + 15.0) text-anchor="middle" {
                    (format!("{tick:.digits$}"))
                }
            }
            line.axis x1=(self.left) x2=(WIDTH - RIGHT) y1=(self.bottom()) y2=(self.bottom()) {}
            text x=((self.left + WIDTH - RIGHT) / 2.0) y=(self.height - 6.0) text-anchor="middle" { (name) }
        }
    }

    /// The vertical axis with its numbers and lines across the area.
    pub fn y_axis(&self) -> Markup {
        let ticks = ticks(self.y, 5);
        let digits = digits(&ticks);
        html! {
            @for tick in &ticks {
                line.grid x1=(self.left) x2=(WIDTH - RIGHT) y1=(self.at_y(*tick)) y2=(self.at_y(*tick)) {}
                text x=(self.left - 6.0) y=(self.at_y(*tick) + 4.0) text-anchor="end" {
                    (format!("{tick:.digits$}"))
                }
            }
        }
    }

    /// A line from top to bottom at a value of the horizontal axis.
    pub fn mark(&self, value: f64, class: &str) -> Markup {
        html! {
            line class=(class) x1=(self.at_x(value)) x2=(self.at_x(value)) y1=(ABOVE) y2=(self.bottom()) {}
        }
    }

    /// The drawing with what is drawn onto the area; `words` say what it shows to those who do not see it.
    pub fn drawing(&self, words: &str, content: &Markup) -> Markup {
        let frame = format!("0 0 {WIDTH} {}", self.height);
        html! {
            svg viewBox=(frame) role="img" aria-label=(words) {
                (content)
            }
        }
    }
}

/// Coordinates with two digits: more are not seen, and make a page larger.
pub fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// The least range that holds all finite `values`, with a little room above and below; `None` without any.
pub fn range(values: impl IntoIterator<Item = f64>) -> Option<[f64; 2]> {
    let finite = values.into_iter().filter(|value| value.is_finite());
    let [low, high] = finite.fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], value| {
        [low.min(value), high.max(value)]
    });
    if low > high {
        return None;
    }
    let room = match high - low {
        0.0 => low.abs().max(1.0) * 0.1,
        span => span * 0.04,
    };
    Some([low - room, high + room])
}

/// Round numbers within a range, about `wanted` of them.
fn ticks([low, high]: [f64; 2], wanted: usize) -> Vec<f64> {
    let rough = (high - low) / wanted as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(10.0 * power);
    let first = (low / step).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|count| count as f64 * step).collect()
}

/// Digits behind the point that tell ticks apart.
fn digits(ticks: &[f64]) -> usize {
    let step = ticks.windows(2).map(|pair| pair[1] - pair[0]).next();
    let step = step.unwrap_or(1.0);
    (-(step * 1.001).log10().floor()).clamp(0.0, 8.0) as usize
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within_their_range() {
        assert_eq!(
            ticks([0.0, 1.0], 5),
            [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
        );
        assert_eq!(digits(&ticks([0.0, 1.0], 5)), 1);
        assert_eq!(ticks([0.0, 400.0], 5), [0.0, 100.0, 200.0, 300.0, 400.0]);
        assert_eq!(digits(&[0.0, 100.0]), 0);
        let small = ticks([0.0012, 0.0031], 5);
        assert!(small.len() >= 3 && small.iter().all(|t| (0.0012..=0.0031).contains(t)));
        assert_eq!(digits(&small), 4);
    }

    #[test]
    fn a_range_holds_all_values_and_is_never_empty() {
        assert!(range([]).is_none() && range([f64::NAN]).is_none());
        let [low, high] = range([1.0, f64::NAN, 3.0]).unwrap();
        assert!(low < 1.0 && high > 3.0);
        for value in [0.0, 5.0, -2.0] {
            let [low, high] = range([value]).unwrap();
            assert!(low < value && high > value);
        }
    }

    #[test]
    fn an_area_maps_values_to_places_within_the_drawing() {
        let area = Area {
            height: 200.0,
            left: 50.0,
            x: [0.0, 1.0],
            y: [0.0, 2.0],
        };
        assert_eq!((area.at_x(0.0), area.at_x(1.0)), (50.0, WIDTH - RIGHT));
        assert_eq!((area.at_y(0.0), area.at_y(2.0)), (160.0, ABOVE));
        let text = area.drawing("a \"b\"", &area.x_axis("<x>")).into_string();
        assert!(text.contains("aria-label=\"a &quot;b&quot;\"") && text.contains("&lt;x&gt;"));
    }
}
