//! What the arms of a run came to on the test images: figures, differences, groups, single images.

use crate::{
    content::Content,
    html::{drawing, figure, plain, table},
    svg::{self, Area, KINDS, WIDTH},
};
use diffaug::metrics::mean;
use diffaug_run::{
    compare::{self, Interval, Row},
    reader::Arm,
    statistics::LEVEL,
};
use maud::{Markup, html};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The figure that arms are compared by.
pub const METRIC: &str = "dice";
/// Seed of the resamples of intervals, as that of the tables of experiments.
pub const RESAMPLING: u64 = 0;
/// Test images in the table at most.
const MOST_IMAGES: usize = 200;
/// Characters above a bar of a drawing.
const MOST_WORDS: usize = 54;
/// Height of the row of an arm in a drawing.
const ROW: f64 = 34.0;

/// The section.
pub fn section(content: &Content) -> Markup {
    html! {
        h3 { "Scores" }
        @if content.arms.is_empty() {
            p.note { "No training is scored yet." }
        } @else {
            (figures(&content.arms))
            (differences(&content.arms))
            div.drawings {
                (drawing(
                    "Dice by arm",
                    &intervals(&content.arms),
                    &format!(
                        "Bar: mean over test images with its {:.0} % interval, images of one patient or video \
                         resampled together. Dots: the mean of each training.",
                        100.0 * LEVEL
                    ),
                ))
            }
            (groups(content))
        }
    }
}

/// Mean and deviation over trainings of a figure of an arm; a dash where no image has it.
pub fn shown(arm: &Arm, name: &str) -> String {
    match compare::compare(std::slice::from_ref(arm), name, RESAMPLING).as_deref() {
        Ok([row]) => compare::shown(row.mean, row.std, row.seeds.len()),
        _ => figure(None),
    }
}

/// The names of all figures that any of the arms has, in the order of tables.
pub fn names<'a>(arms: impl Iterator<Item = &'a Arm>) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for figure in arms.flat_map(|arm| &arm.figures) {
        if !names.contains(&figure.name.as_str()) {
            names.push(&figure.name);
        }
    }
    names
}

fn figures(arms: &[Arm]) -> Markup {
    let names = names(arms.iter());
    let row = |arm: &Arm| {
        let mut row = vec![arm.name.clone(), arm.trainings.len().to_string()];
        row.extend(names.iter().map(|name| shown(arm, name)));
        row
    };
    let mut header = vec!["trained on", "trainings"];
    header.extend(&names);
    let rows: Vec<Vec<String>> = arms.iter().map(row).collect();
    table(
        "Mean over test images, ± deviation over trainings",
        &header,
        &rows,
    )
}

/// How each arm differs from the first, and what makes that less than fair.
fn differences(arms: &[Arm]) -> Markup {
    if arms.len() < 2 {
        return Markup::default();
    }
    match compare::compare(arms, METRIC, RESAMPLING) {
        Ok(rows) => difference_table(
            "Difference in Dice from the first arm, image by image",
            &rows,
        ),
        Err(error) => html! { p.note { (plain(&error.to_string())) } },
    }
}

/// The rows of a comparison but the first, with its warnings.
pub fn difference_table(caption: &str, rows: &[Row]) -> Markup {
    let columns = compare::columns();
    let mut header = vec!["arm"];
    header.extend(columns.iter().map(String::as_str));
    let cells = |row: &Row| {
        let mut cells = vec![row.arm.clone()];
        cells.extend(row.cells());
        cells
    };
    let cells: Vec<Vec<String>> = rows.iter().skip(1).map(cells).collect();
    html! {
        (table(caption, &header, &cells))
        @for warning in compare::warnings(rows) { p.note { (plain(&warning)) } }
    }
}

/// The mean of each training of an arm.
fn means(arm: &Arm) -> Vec<f64> {
    let values = |training: &diffaug_run::reader::Training| {
        let images = training.images.values();
        let values: Vec<f64> = images
            .filter_map(|scores| scores.figures.get(METRIC).copied())
            .collect();
        mean(&values)
    };
    arm.trainings.iter().filter_map(values).collect()
}

/// A row for each arm: its mean with an interval, and each of its trainings.
pub fn intervals(arms: &[Arm]) -> Markup {
    let rows: Vec<(&Arm, Interval, Vec<f64>)> = arms
        .iter()
        .filter_map(|arm| {
            let interval = compare::interval(arm, METRIC, RESAMPLING).ok()?;
            Some((arm, interval, means(arm)))
        })
        .collect();
    let all = rows.iter().flat_map(|(_, interval, means)| {
        let ends = [interval.low, interval.high];
        ends.into_iter().chain(means.iter().copied())
    });
    let Some(x) = svg::range(all) else {
        return html! { p.note { "No test image has a Dice." } };
    };
    let area = Area {
        height: 60.0 + ROW * rows.len() as f64,
        left: 14.0,
        x,
        y: [0.0, 1.0],
    };
    let words = |(arm, interval, _): &(&Arm, Interval, Vec<f64>)| {
        let Interval { mean, low, high } = interval;
        format!("{} {mean:.3} ({low:.3} to {high:.3})", arm.name)
    };
    let words: Vec<String> = rows.iter().map(words).collect();
    let content = html! {
        (area.x_axis("Dice"))
        @for (place, (row, words)) in rows.iter().zip(&words).enumerate() {
            (interval(&area, place, row, words))
        }
    };
    area.drawing(&format!("Dice by arm: {}", words.join("; ")), &content)
}

fn interval(
    area: &Area,
    place: usize,
    (_, interval, means): &(&Arm, Interval, Vec<f64>),
    words: &str,
) -> Markup {
    let kind = place % KINDS;
    let y = 36.0 + ROW * place as f64;
    let [low, middle, high] = [interval.low, interval.mean, interval.high].map(|v| area.at_x(v));
    html! {
        text x=(WIDTH / 2.0) y=(y - 9.0) text-anchor="middle" { (plain(&end_of(words))) }
        line class=(format!("interval kind-{kind}")) x1=(low) x2=(high) y1=(y) y2=(y) {}
        @for end in [low, middle, high] {
            line class=(format!("interval kind-{kind}")) x1=(end) x2=(end) y1=(y - 5.0) y2=(y + 5.0) {}
        }
        @for value in means {
            circle class=(format!("dot kind-{kind}")) cx=(area.at_x(*value)) cy=(y) r="3.5" {}
        }
    }
}

/// The end of words that are wider than a drawing: their figures stand there.
fn end_of(words: &str) -> String {
    let count = words.chars().count();
    match count {
        ..=MOST_WORDS => words.to_owned(),
        _ => "…"
            .chars()
            .chain(words.chars().skip(count + 1 - MOST_WORDS))
            .collect(),
    }
}

/// Dice by groups of images, an arm a column.
fn groups(content: &Content) -> Markup {
    let arms = content.result.as_ref().map(|result| &result["arms"]);
    let arms: Vec<&Value> = arms
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .collect();
    let Some(groups) = arms.first().and_then(|arm| arm["groups"].as_object()) else {
        return Markup::default();
    };
    let row = |(name, group): (&String, &Value)| {
        let mut row = vec![name.clone(), group["images"].to_string()];
        let dice = |arm: &&Value| figure(arm["groups"][name]["per_image_mean"][METRIC].as_f64());
        row.extend(arms.iter().map(dice));
        row
    };
    let rows: Vec<Vec<String>> = groups.iter().map(row).collect();
    let names = arms
        .iter()
        .map(|arm| arm["name"].as_str().unwrap_or_default());
    let header: Vec<&str> = ["group", "images"].into_iter().chain(names).collect();
    html! {
        @if !rows.is_empty() {
            details {
                summary { "Dice by group of test images" }
                (table("Dice by group of test images", &header, &rows))
            }
        }
    }
}

/// The mean over trainings of each test image that an arm has the figure of, by id.
fn by_image(arm: &Arm) -> BTreeMap<&str, f64> {
    let mut all: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (id, scores) in arm.trainings.iter().flat_map(|training| &training.images) {
        let values = all.entry(id).or_default();
        values.extend(scores.figures.get(METRIC));
    }
    let means = all.into_iter();
    means
        .filter_map(|(id, values)| Some((id, mean(&values)?)))
        .collect()
}

/// Every test image with its Dice in each arm, the worst of the last arm first.
pub fn images(arms: &[Arm]) -> Markup {
    let (Some(last), columns) = (arms.last(), arms.iter().map(by_image)) else {
        return Markup::default();
    };
    let columns: Vec<BTreeMap<&str, f64>> = columns.collect();
    let trainings = arms.iter().flat_map(|arm| &arm.trainings);
    let ids: BTreeSet<&str> = trainings
        .flat_map(|training| training.images.keys().map(String::as_str))
        .collect();
    let mut ids: Vec<&str> = ids.into_iter().collect();
    let score = |id: &str| columns.last().and_then(|column| column.get(id).copied());
    // Undefined ones, of images without a lesion, come last.
    ids.sort_by(|one, other| {
        let key = |id: &str| score(id).unwrap_or(f64::INFINITY);
        key(one).total_cmp(&key(other))
    });
    let group = |id: &str| {
        let scores = last
            .trainings
            .iter()
            .find_map(|training| training.images.get(id));
        scores.map_or_else(String::new, |scores| scores.group.clone())
    };
    let row = |id: &&str| {
        let mut row = vec![(*id).to_owned(), group(id)];
        row.extend(columns.iter().map(|column| figure(column.get(id).copied())));
        row
    };
    let rows: Vec<Vec<String>> = ids.iter().take(MOST_IMAGES).map(row).collect();
    let mut header = vec!["image", "group"];
    header.extend(arms.iter().map(|arm| arm.name.as_str()));
    let caption = match ids.len() {
        all if all > MOST_IMAGES => {
            format!("Dice of the {MOST_IMAGES} worst of {all} test images; per_image.csv has all")
        }
        _ => "Dice of each test image, the worst of the last arm first".to_owned(),
    };
    html! {
        h3 { "Test images" }
        details {
            summary { (caption) }
            (table(&caption, &header, &rows))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use diffaug_run::reader::{Scores, Training};

    fn arm(name: &str, dice: &[(&str, Option<f64>)]) -> Arm {
        let scores = |(id, value): &(&str, Option<f64>)| {
            let figures = value.map(|value| (METRIC.to_owned(), value));
            let scores = Scores {
                group: "video 1".to_owned(),
                figures: figures.into_iter().collect(),
            };
            ((*id).to_owned(), scores)
        };
        Arm {
            name: name.to_owned(),
            trainings: vec![Training {
                seed: 0,
                steps: None,
                images: dice.iter().map(scores).collect(),
            }],
            figures: diffaug_run::work::scoring::basic(),
        }
    }

    #[test]
    fn the_worst_image_of_the_last_arm_comes_first() {
        let real = arm("real", &[("a", Some(0.1)), ("b", Some(0.5)), ("c", None)]);
        let more = arm("more", &[("a", Some(0.9)), ("b", Some(0.25)), ("c", None)]);
        let text = images(&[real, more]).into_string();
        let at = |cell: &str| text.find(&format!("<th scope=\"row\">{cell}</th>"));
        assert!(at("b") < at("a") && at("a") < at("c"), "{text}");
        assert!(text.contains("<td>0.500</td><td>0.250</td>"), "{text}");
        assert!(images(&[]).into_string().is_empty());
    }

    #[test]
    fn a_figure_that_no_image_has_is_a_dash() {
        let arm = arm("real", &[("a", None)]);
        assert_eq!(shown(&arm, METRIC), "–");
        assert!(
            intervals(&[arm])
                .into_string()
                .contains("No test image has a Dice.")
        );
    }

    #[test]
    fn of_long_words_the_end_is_shown() {
        assert_eq!(end_of("real 0.5"), "real 0.5");
        let long = format!("{} real 0.5", "x".repeat(80));
        let end = end_of(&long);
        assert_eq!(end.chars().count(), MOST_WORDS);
        assert!(end.starts_with('…') && end.ends_with("x real 0.5"), "{end}");
    }
}
