//! Whether the banks' texts are true, different from each other, well-formed and all reachable.

use super::*;
use crate::topic::topics;
use std::collections::{BTreeMap, BTreeSet};

/// Longer texts are cut off by CLIP, whose 77 tokens hold about this many words.
const MAX_WORDS: usize = 45;

fn facts(area: f64, elongation: f64, count: f64, cdr: f64) -> Attributes {
    let mut facts = Attributes::new();
    facts.set_number("area", area);
    facts.set_number("elongation", elongation);
    facts.set_number("count", count);
    facts.set_number("cdr", cdr);
    facts
}

/// `mask` with measures of an image.
fn looking(
    mask: &Attributes,
    brightness: f64,
    redness: f64,
    contrast: f64,
    ratio: f64,
) -> Attributes {
    let mut facts = mask.clone();
    facts.set_number("brightness", brightness);
    facts.set_number("redness", redness);
    facts.set_number("contrast", contrast);
    facts.set_number("detail", 6.0 * ratio);
    facts.set_number("detail_ratio", ratio);
    facts.set_number("boundary", 0.5 + ratio);
    facts
}

/// Lesions of every look, borders of the ranges included.
fn looks() -> Vec<Attributes> {
    let masks = [1.0, 2.0, 5.0].map(|count| facts(0.018, 1.5, count, 0.7));
    let ratios = [0.5, 0.749, 0.75, 0.849, 0.85, 1.249, 1.25, 1.3, 2.0];
    let mut all = Vec::new();
    for brightness in [60.0, 104.9, 105.0, 119.9, 120.0, 180.0] {
        for redness in [-9.0, -5.0, -1.0, 0.0, 1.0, 5.0, 6.4, 6.5, 20.0] {
            for contrast in [2.0, 8.9, 9.0, 10.9, 11.0, 18.0, 40.0] {
                let (mask, ratio) = (&masks[all.len() % 3], ratios[all.len() / 3 % 9]);
                all.push(looking(mask, brightness, redness, contrast, ratio));
            }
        }
    }
    all
}

/// Every property that a topic knows, stated by word with each of its values.
fn statements() -> Vec<Attributes> {
    let mut all = Vec::new();
    for topic in topics().unwrap() {
        for round in 0..24 {
            for (count, cdr) in [(1.0, 0.8), (2.0, 0.55)] {
                let mut stated = facts(0.05, 1.5, count, cdr);
                for (name, values) in &topic.properties {
                    if !["size", "number", "shape", "cup", "ratio"].contains(&name.as_str()) {
                        stated.set_text(name, &values[round % values.len()].tag);
                    }
                }
                if stated.text("rim").is_some_and(|rim| rim != "notching") {
                    stated.set_text("rim", "rim-thinning");
                }
                if stated.text("stage").is_some() {
                    let stage = if count == 1.0 { "advanced" } else { "early" };
                    stated.set_text("stage", &format!("{stage}-glaucoma"));
                }
                all.push(stated);
            }
        }
    }
    all
}

/// Masks of every sort, borders of the ranges included.
fn grid() -> Vec<Attributes> {
    let mut all = vec![Attributes::new()];
    for area in [
        0.0, 0.001, 0.00499, 0.005, 0.019, 0.02, 0.05, 0.119, 0.12, 0.5, 1.0,
    ] {
        for elongation in [1.0, 1.19, 1.2, 1.7, 2.4, 3.0, 9.0] {
            for count in [1.0, 2.0, 3.0, 4.0, 9.0] {
                let cdr = 0.1 + (area * 7.0 + elongation * 3.1 + count * 0.17) % 0.85;
                all.push(facts(area, elongation, count, cdr));
            }
        }
    }
    all
}

fn query<'a>(target: &'a str, attributes: &'a Attributes) -> PromptQuery<'a> {
    PromptQuery {
        target: target.into(),
        attributes,
    }
}

/// `n` prompts of one image for equal masks.
fn prompts(
    bank: &dyn PromptBank,
    target: &str,
    facts: &Attributes,
    n: usize,
    seed: u64,
) -> Vec<Prompt> {
    let queries = vec![query(target, facts); n];
    bank.draw(queries.as_slice().into(), seed).unwrap().into()
}

fn banks() -> [Box<dyn PromptBank>; 2] {
    [
        Box::new(Medical(Options::default())),
        Box::new(Basic(Options::default())),
    ]
}

/// What a tag claims, written down a second time and independently of the data files.
fn is_true(tag: &str, facts: &Attributes) -> bool {
    let called = |name: &str, tag: &str| {
        let word = facts.text(name).map(|word| word.replace(' ', "-"));
        word.as_deref() == Some(tag)
    };
    // Whether the dataset states the word, or states nothing and the measures say so.
    let seen = |name: &str, measured: bool| match facts.text(name) {
        Some(_) => called(name, tag),
        None => measured,
    };
    let within = |name: &str, from: f64, below: f64| {
        facts.number(name).is_some_and(|x| from <= x && x < below)
    };
    let one = facts.number("count") == Some(1.0);
    match tag {
        "diminutive" | "tiny" => within("area", 0.0, 0.005),
        "small" => within("area", 0.005, 0.02),
        "medium-sized" => one && within("area", 0.02, 0.12),
        "large" => one && within("area", 0.12, 1.1),
        "two" => facts.number("count") == Some(2.0),
        "three" => facts.number("count") == Some(3.0),
        "several" => within("count", 4.0, 1e9),
        "multiple" => within("count", 2.0, 1e9),
        "round" => within("elongation", 1.0, 1.3),
        "oval" => within("elongation", 1.15, 1e9),
        "elongated" => one && within("elongation", 1.8, 1e9),
        "sessile" | "pedunculated" | "flat" => called("morphology", tag),
        "regular" | "irregular" | "faint" => called("vascular", tag),
        "lobulated" | "ulcerated" => called("surface", tag),
        "smooth" => seen("surface", within("detail_ratio", 0.0, 0.85)),
        "homogeneous" => seen("texture", within("detail_ratio", 0.0, 0.85)),
        "heterogeneous" => seen("texture", within("detail_ratio", 1.25, 1e9)),
        "granular" => called("texture", tag) || seen("surface", within("detail_ratio", 1.25, 1e9)),
        "reddish" => seen("colour", within("redness", 6.5, 1e9)),
        "pink" => {
            called("pallor", tag)
                || seen(
                    "colour",
                    within("redness", 1.0, 6.5) && within("brightness", 120.0, 256.0),
                )
        }
        "pale" => seen(
            "colour",
            within("redness", -1e9, -1.0) && within("brightness", 120.0, 256.0),
        ),
        "brownish" => seen("colour", within("brightness", 0.0, 105.0)),
        "similar" => seen("colour", within("contrast", 0.0, 9.0)),
        "high-contrast" => seen("contrast", within("contrast", 18.0, 1e9)),
        "low-contrast" => seen("contrast", within("contrast", 0.0, 11.0)),
        "well-defined" => seen("margin", within("boundary", 1.8, 1e9)),
        "ill-defined" => seen("margin", within("boundary", 0.0, 1.25)),
        "regular-vessels" | "thin-vessels" | "bayoneting" => called("vessels", tag),
        "pallor" => called("pallor", tag),
        "small-cup" => within("cdr", 0.0, 0.4),
        "large-cup" => within("cdr", 0.65, 1.1),
        "early-glaucoma" => within("cdr", 0.5, 0.6),
        "moderate-glaucoma" | "advanced-glaucoma" => within("cdr", 0.6, 1.1),
        "normal-disc" | "intact-rim" => within("cdr", 0.0, 0.5),
        "notching" => called("rim", tag),
        "rim-thinning" | "mild-thinning" => within("cdr", 0.5, 1.1),
        "disc-haemorrhage" | "nerve-fibre-defect" | "peripapillary-atrophy" => called("sign", tag),
        "medium-cup" | "enlarged-cup" => within("cdr", 0.4, 0.65),
        _ => tag.starts_with("cdr-") && facts.number("cdr").is_some(),
    }
}

#[test]
fn every_text_is_true_of_its_mask() {
    for bank in banks() {
        for facts in [grid(), looks(), statements()].concat() {
            for target in ["polyp", "optic cup", "lesion"] {
                for prompt in prompts(&*bank, target, &facts, 12, 3) {
                    for tag in &prompt.tags {
                        assert!(is_true(tag, &facts), "`{tag}` of {facts:?}: {prompt:?}");
                    }
                    // "a polyp", but not "polyp tissue", which there may be any amount of.
                    let words: Vec<&str> = prompt.positive.split([' ', ',']).collect();
                    let one = words.contains(&"polyp")
                        && !words.contains(&"tissue")
                        && prompt.positive != "polyp, colonoscopy image";
                    assert!(!one || facts.number("count") == Some(1.0), "{prompt:?}");
                }
            }
        }
    }
}

#[test]
fn texts_are_well_formed_and_negatives_contradict_nothing() {
    for bank in banks() {
        for facts in [grid(), looks(), statements()].concat() {
            for target in ["polyp", "optic cup", "lesion"] {
                for Prompt {
                    positive, negative, ..
                } in prompts(&*bank, target, &facts, 12, 5)
                {
                    for text in [&positive, &negative] {
                        let count = text.split_whitespace().count();
                        assert!((1..=MAX_WORDS).contains(&count), "{count} words: {text}");
                        assert!(!text.contains("  ") && !text.contains(['{', '}']), "{text}");
                        assert_eq!(text.trim(), text.as_str());
                    }
                    let words: Vec<&str> = positive.split_whitespace().collect();
                    for pair in words
                        .windows(2)
                        .filter(|pair| matches!(pair[0], "a" | "an"))
                    {
                        let vowel = pair[1].starts_with(['a', 'e', 'i', 'o', 'u']);
                        assert_eq!(pair[0] == "an", vowel, "{positive}");
                    }
                    let denied = negative
                        .split(", ")
                        .find(|phrase| positive.contains(phrase));
                    assert_eq!(denied, None, "{positive} | {negative}");
                }
            }
        }
    }
}

/// Words that a mask alone does not carry, written down independently of the data files.
const NOT_IN_A_MASK: [&str; 46] = [
    // Colour.
    "reddish",
    "red",
    "pink",
    "salmon",
    "orange",
    "pale",
    "pallid",
    "whitish",
    "brownish",
    "dark",
    "mucosa-colored",
    "evenly", // Surface, texture and contrast.
    "smooth",
    "glistening",
    "granular",
    "lobulated",
    "nodular",
    "mulberry-like",
    "ulcerated",
    "surface",
    "texture",
    "homogeneous",
    "heterogeneous",
    "mottled",
    "uniform",
    "contrast",
    "subtle",
    "strong",
    "margin",
    "margins",
    "border",
    "sharp",
    "diffuse",
    "demarcated",
    // Vessels and signs.
    "vascular",
    "vessels",
    "capillary",
    "hemorrhage",
    "notched",
    "atrophy",
    "defect",
    // Morphology.
    "sessile",
    "pedunculated",
    "flat",
    "dome-shaped",
    "stalked",
];

#[test]
fn a_mask_alone_is_not_given_colour_surface_vessels_or_morphology() {
    for bank in banks() {
        for facts in grid() {
            for target in ["polyp", "optic cup", "lesion"] {
                for prompt in prompts(&*bank, target, &facts, 40, 11) {
                    // The negative without what no image of the topic shows.
                    let topic = topic::of_target(target).unwrap();
                    let negative = prompt.negative.replace(&topic.negative.join(", "), "");
                    for word in prompt
                        .positive
                        .split([' ', ','])
                        .chain(negative.split([' ', ',']))
                    {
                        assert!(!NOT_IN_A_MASK.contains(&word), "`{word}` in {prompt:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn measures_bring_words_of_colour_and_surface() {
    let mask = facts(0.06, 1.4, 1.0, 0.5);
    let says = |target: &str, facts: &Attributes, tag: &str| {
        let drawn = prompts(&Medical(Options::default()), target, facts, 40, 4);
        drawn.iter().any(|p| p.tags.iter().any(|t| t == tag))
    };
    let rough = looking(&mask, 150.0, 9.0, 22.0, 1.6);
    let dull = looking(&mask, 150.0, -3.0, 10.0, 0.6);
    for (facts, tags, others) in [
        (
            &rough,
            ["reddish", "granular", "well-defined", "high-contrast"],
            "smooth",
        ),
        (
            &dull,
            ["pale", "smooth", "ill-defined", "low-contrast"],
            "granular",
        ),
    ] {
        for tag in tags {
            assert!(says("polyp", facts, tag), "{tag}");
        }
        assert!(!says("polyp", facts, others), "{others}");
        assert!(!says("polyp", &mask, tags[0]));
    }
    assert!(says("lesion", &rough, "heterogeneous"));
    assert!(says("lesion", &dull, "homogeneous"));
}

#[test]
fn nothing_repeats_while_the_bank_lasts() {
    let mask = facts(0.06, 1.4, 1.0, 0.55);
    for (facts, count) in [(&mask, 6), (&looking(&mask, 150.0, 9.0, 22.0, 1.6), 40)] {
        let drawn = prompts(&Medical(Options::default()), "polyp", facts, count, 1);
        let distinct: BTreeSet<_> = drawn.iter().map(|p| p.positive.as_str()).collect();
        assert_eq!(distinct.len(), count);
    }
}

#[test]
fn an_exhausted_bank_repeats_evenly() {
    let mid = facts(0.06, 1.4, 1.0, 0.55);
    let mut uses = BTreeMap::new();
    for prompt in prompts(&Basic(Options::default()), "polyp", &mid, 70, 1) {
        *uses.entry(prompt.positive).or_insert(0) += 1;
    }
    assert_eq!(uses.len(), 7, "{uses:?}");
    assert!(uses.values().all(|&n| n == 10), "{uses:?}");
}

#[test]
fn every_entry_can_be_drawn() {
    let masks = [grid(), looks(), statements()].concat();
    let mut seen = BTreeSet::new();
    for target in ["polyp", "cup", "lesion"] {
        for bank in banks() {
            for (seed, facts) in masks.iter().enumerate() {
                for prompt in prompts(&*bank, target, facts, 8, seed as u64) {
                    seen.insert(prompt.positive);
                }
            }
        }
    }
    for topic in topics().unwrap() {
        for value in topic.properties.values().flatten() {
            for word in &value.words {
                assert!(
                    seen.iter().any(|text| text.contains(word.as_str())),
                    "{word}"
                );
            }
        }
        for template in topic.basic.iter().chain(&topic.medical) {
            let literals: Vec<&str> = template.text.split(['{', '}']).step_by(2).collect();
            let matches = |text: &RString| {
                let mut rest = text.as_str();
                literals.iter().all(|part| match rest.find(part) {
                    Some(at) => {
                        rest = &rest[at + part.len()..];
                        true
                    }
                    None => false,
                })
            };
            assert!(seen.iter().any(matches), "{}", template.text);
        }
    }
}

#[test]
fn draws_depend_on_queries_and_seed_alone() {
    let bank = Medical(Options::default());
    let mid = facts(0.06, 1.4, 1.0, 0.55);
    assert_eq!(
        prompts(&bank, "polyp", &mid, 9, 7),
        prompts(&bank, "polyp", &mid, 9, 7)
    );
    assert_ne!(
        prompts(&bank, "polyp", &mid, 9, 7),
        prompts(&bank, "polyp", &mid, 9, 8)
    );
    assert_eq!(
        prompts(&bank, "polyp", &mid, 9, 7)[..4],
        prompts(&bank, "polyp", &mid, 4, 7)
    );
}

#[test]
fn stated_properties_are_binding() {
    let mut stated = facts(0.06, 2.0, 1.0, 0.5);
    stated.set_text("morphology", "flat");
    stated.set_text("surface", "granular");
    let mut spoken = false;
    for prompt in prompts(&Medical(Options::default()), "polyp", &stated, 60, 2) {
        let says = |tag: &str| prompt.tags.iter().any(|t| t == tag);
        for tag in [
            "pedunculated",
            "sessile",
            "smooth",
            "ulcerated",
            "lobulated",
        ] {
            assert!(!says(tag), "{prompt:?}");
        }
        spoken |= says("flat") && says("granular");
    }
    assert!(spoken);
}

#[test]
fn options_are_checked_and_obeyed() {
    let bad = Options {
        topic: Some("heart".into()),
        ..Options::default()
    };
    let error = Medical::validate(&bad).unwrap_err();
    assert_eq!(error.field, "topic");
    assert_eq!(
        error.message,
        "unknown topic `heart`, expected one of `polyp`, `glaucoma`, `lesion`"
    );

    let bank = Basic(Options {
        topic: Some("lesion".into()),
        negative: Some("blood".into()),
    });
    for prompt in prompts(&bank, "ventricle", &facts(0.1, 1.0, 1.0, 0.5), 3, 0) {
        assert!(prompt.positive.contains("lesion"));
        assert_eq!(prompt.negative, "blood");
    }
    let unknown = Attributes::new();
    let error = Basic(Options::default())
        .draw([query("ventricle", &unknown)].as_slice().into(), 0)
        .unwrap_err();
    assert!(error.message.contains("`ventricle`"), "{error}");
}

/// As a manifest sees it: the registered constructors.
#[test]
fn every_bank_is_registered() {
    let entry = |name: &str| {
        diffaug::inventory::iter::<diffaug::Entry<BoxPromptBank>>()
            .find(|entry| entry.name == name)
            .unwrap()
    };
    for name in ["medical", "basic"] {
        (entry(name).check)(r#"{"topic": "polyp"}"#.into())
            .into_result()
            .unwrap();
    }
    (entry("none").check)("{}".into()).into_result().unwrap();
    let error = (entry("none").check)(r#"{"topic": "polyp"}"#.into())
        .into_result()
        .unwrap_err();
    assert_eq!(error.field, "topic");
    let error = (entry("basic").check)(r#"{"topik": "polyp"}"#.into())
        .into_result()
        .unwrap_err();
    assert_eq!(error.field, "topik");
}

/// Through the box by which a generator is handed its bank.
#[test]
fn the_bank_without_texts_says_nothing_of_anything() {
    let entry = diffaug::inventory::iter::<diffaug::Entry<BoxPromptBank>>()
        .find(|entry| entry.name == "none")
        .unwrap();
    let bank = (entry.build)("{}".into(), &Context::default())
        .into_result()
        .unwrap();
    let (plain, stated) = (Attributes::new(), statements().remove(0));
    // Even of a target that no topic covers.
    let queries = [query("polyp", &plain), query("ventricle", &stated)];
    let drawn = bank.draw(queries.as_slice().into(), 3).unwrap();
    assert_eq!(drawn.len(), 2);
    for prompt in drawn {
        assert_eq!(
            (prompt.positive.as_str(), prompt.negative.as_str()),
            ("", "")
        );
        assert!(prompt.tags.is_empty());
    }
}
