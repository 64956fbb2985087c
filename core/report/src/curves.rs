//! Curves over the steps of trainings.

use crate::{
    html::plain,
    svg::{self, Area, KINDS},
};
use diffaug_run::reader::Point;
use maud::{Markup, html};

/// Points of a curve at most; those beside each other are averaged where there are more.
const MOST_POINTS: usize = 200;
/// Below so many points each of them is marked.
const MARKED: usize = 40;

/// A curve and its name.
pub struct Curve<'a> {
    /// What the legend calls it.
    pub name: &'a str,
    /// Its points, by step.
    pub points: &'a [Point],
    /// A step that is marked: the one whose weights were kept.
    pub best: Option<u64>,
}

/// Curves over steps on one area, with a legend where there are several; `None` where none has a point.
pub fn draw(words: &str, curves: &[Curve<'_>]) -> Option<Markup> {
    let thinned: Vec<Vec<[f64; 2]>> = curves.iter().map(|curve| thinned(curve.points)).collect();
    let all = || thinned.iter().flatten();
    let last = all().map(|point| point[0]).fold(0.0, f64::max);
    let area = Area {
        height: 200.0,
        left: 52.0,
        x: [0.0, last.max(1.0)],
        y: svg::range(all().map(|point| point[1]))?,
    };
    let lines = curves.iter().zip(&thinned).enumerate();
    let lines = lines.map(|(place, (curve, points))| line(&area, place % KINDS, curve, points));
    let content = html! {
        (area.x_axis("steps"))
        (area.y_axis())
        @for line in lines { (line) }
    };
    Some(html! {
        (area.drawing(words, &content))
        @if curves.len() > 1 { (legend(curves)) }
    })
}

fn line(area: &Area, kind: usize, curve: &Curve<'_>, points: &[[f64; 2]]) -> Markup {
    let at = |[x, y]: [f64; 2]| (area.at_x(x), area.at_y(y));
    let places: Vec<String> = points
        .iter()
        .map(|point| at(*point))
        .map(|(x, y)| format!("{x},{y}"))
        .collect();
    let class = format!("curve kind-{kind}");
    let best = curve.best.and_then(|best| {
        let mut kept = points.iter().filter(|point| point[0] == best as f64);
        kept.next()
    });
    html! {
        polyline class=(class) points=(places.join(" ")) {}
        @if points.len() < MARKED {
            @for point in points {
                circle class=(format!("dot kind-{kind}")) cx=(at(*point).0) cy=(at(*point).1) r="2.5" {}
            }
        }
        @if let Some(best) = best {
            circle class=(format!("best kind-{kind}")) cx=(at(*best).0) cy=(at(*best).1) r="6" {}
        }
    }
}

fn legend(curves: &[Curve<'_>]) -> Markup {
    html! {
        ul.legend {
            @for (place, curve) in curves.iter().enumerate() {
                li {
                    svg.sample viewBox="0 0 36 10" aria-hidden="true" {
                        line class=(format!("curve kind-{}", place % KINDS)) x1="1" x2="35" y1="5" y2="5" {}
                    }
                    (plain(curve.name))
                }
            }
        }
    }
}

/// Finite points as pairs of step and value, so few that a drawing shows them all.
fn thinned(points: &[Point]) -> Vec<[f64; 2]> {
    let finite = points.iter().filter(|point| point.value.is_finite());
    let pairs: Vec<[f64; 2]> = finite
        .map(|point| [point.step as f64, point.value])
        .collect();
    if pairs.len() <= MOST_POINTS {
        return pairs;
    }
    let part = |place: usize| {
        let edge = |place: usize| place * pairs.len() / MOST_POINTS;
        let some = &pairs[edge(place)..edge(place + 1)];
        let mean =
            |column: usize| some.iter().map(|pair| pair[column]).sum::<f64>() / some.len() as f64;
        [mean(0), mean(1)]
    };
    (0..MOST_POINTS).map(part).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn points(count: u64) -> Vec<Point> {
        let point = |step| Point {
            step,
            value: step as f64,
        };
        (1..=count).map(point).collect()
    }

    #[test]
    fn a_long_curve_is_averaged_and_keeps_its_mean() {
        assert_eq!(thinned(&points(200)).len(), 200);
        let thin = thinned(&points(12_345));
        assert_eq!(thin.len(), 200);
        assert!(thin.iter().all(|[x, y]| x == y));
        assert!(thin.windows(2).all(|pair| pair[0][0] < pair[1][0]));
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        let curve = |points| Curve {
            name: "seed <0>",
            points,
            best: Some(2),
        };
        assert!(draw("loss", &[curve(&[])]).is_none());
        let nan = [Point {
            step: 1,
            value: f64::NAN,
        }];
        assert!(draw("loss", &[curve(&nan)]).is_none());
        let three = points(3);
        let text = draw("loss", &[curve(&three), curve(&nan)])
            .unwrap()
            .into_string();
        assert!(
            text.contains("seed &lt;0&gt;") && !text.contains("NaN"),
            "{text}"
        );
        assert_eq!(text.matches("class=\"best").count(), 1, "{text}");
    }
}
