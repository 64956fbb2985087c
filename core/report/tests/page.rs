//! Pages of whole run folders: what is on them, what is said where something is missing, and that nothing from a
//! file becomes markup.

#![allow(clippy::unwrap_used)]

mod sample;

use diffaug_report::{leave, open, page};
use diffaug_run::layout;
use sample::{HOSTILE, begun, finished, write};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

fn page_of(folders: &[&Path]) -> String {
    let folders: Vec<PathBuf> = folders.iter().map(|path| path.to_path_buf()).collect();
    page(&open(&folders).unwrap()).unwrap()
}

/// A finished run of the name `sample`.
fn sample_run(candidates: u64) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    finished(folder.path(), "sample", candidates, 0.08);
    folder
}

#[track_caller]
fn has(page: &str, texts: &[&str]) {
    for text in texts {
        assert!(page.contains(text), "`{text}` is not on the page");
    }
}

/// The data of the script of the first gallery.
fn data(page: &str) -> serde_json::Value {
    let (_, rest) = page
        .split_once("<script type=\"application/json\">")
        .unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

#[test]
fn a_page_has_all_of_a_run_and_needs_nothing_else() {
    let run = sample_run(40);
    let page = page_of(&[run.path()]);
    has(
        &page,
        &[
            "phantom &lt;b&gt;",
            "64 train, 8 validation, 24 test",
            "sdxl-inpaint",
            "Scores",
            "Difference in Dice from the first arm",
            "gain",
            "Scores of the candidates",
            "Acceptance by size",
            "How lesions look",
            "Other thresholds",
            "Contact sheet",
            "evaluate/augmented: validation dice",
            "generator: loss",
            "Dice of each test image",
            "Manifest, with all defaults",
            "name = &quot;sample&quot;",
            &"12".repeat(32),
        ],
    );
    // Nothing is fetched: no address but of data and of places on the page.
    for word in [
        "http:",
        "https:",
        "src=\"/",
        "url(",
        "@import",
        "rel=\"stylesheet",
    ] {
        assert!(!page.contains(word), "{word}");
    }
    assert!(page.matches("src=\"").count() == page.matches("src=\"data:image/").count());
    let data = data(&page);
    assert_eq!(data["threshold"], 0.7);
    let cards = data["cards"].as_array().unwrap();
    assert_eq!(cards.len(), 40);
    let picture = cards[0]["picture"].as_str().unwrap();
    assert!(
        picture.starts_with("data:image/jpeg;base64,/9j/"),
        "{picture:.60}"
    );
    let accepted = cards
        .iter()
        .filter(|card| card["verdict"] == "accepted")
        .count();
    let lines = fs::read_to_string(run.path().join(layout::METADATA)).unwrap();
    assert_eq!(accepted, lines.lines().count());
}

#[test]
fn what_files_say_never_becomes_markup() {
    let run = sample_run(6);
    let root = run.path();
    let log = root.join("generator/log.jsonl");
    let fit = fs::read_to_string(root.join("generator.json")).unwrap();
    write(
        root,
        "generator.json",
        fit.replace("validation loss", "<script>alert(1)</script>"),
    );
    assert!(log.is_file());
    let csv = root.join("evaluate/real/seed-3/per_image.csv");
    let text = fs::read_to_string(&csv).unwrap();
    fs::write(&csv, text.replace("test-0,", "<script>alert(1)</script>,")).unwrap();
    fs::rename(
        root.join("evaluate/augmented"),
        root.join("evaluate/<script>x<b>"),
    )
    .unwrap();
    let page = page_of(&[root]);
    assert!(!page.contains("<script>alert") && !page.contains("<img src=x"));
    assert!(!page.contains("<script>x"));
    // The data and the script of the page itself.
    assert_eq!(
        (
            page.matches("<script").count(),
            page.matches("</script>").count()
        ),
        (2, 2)
    );
    assert_eq!(data(&page)["cards"][3]["prompt"], HOSTILE);
    has(
        &page,
        &[
            "script-src 'sha256-",
            "&lt;script&gt;alert(1)&lt;/script&gt;",
        ],
    );
}

#[test]
fn equal_runs_have_equal_pages() {
    let (one, other) = (sample_run(9), sample_run(9));
    let text = page_of(&[one.path()]);
    assert_eq!(text, page_of(&[other.path()]));
    assert!(!text.contains(one.path().to_str().unwrap()));
    let path = leave(one.path()).unwrap();
    assert_eq!(path, one.path().join("report.html"));
    assert_eq!(fs::read_to_string(path).unwrap(), text);
    // Its own page is no part of it.
    assert_eq!(page_of(&[one.path()]), text);
}

#[test]
fn a_page_says_what_is_missing() {
    let run = tempfile::tempdir().unwrap();
    begun(run.path(), "begun", 1.0);
    let page = page_of(&[run.path()]);
    has(
        &page,
        &[
            "the run is not finished",
            "no candidate is painted yet",
            "No training is scored yet.",
            "No training has left a log.",
            "No candidate is painted.",
        ],
    );
    fs::remove_file(run.path().join(layout::SPLIT)).unwrap();
    fs::remove_file(run.path().join(layout::MANIFEST)).unwrap();
    let page = page_of(&[run.path()]);
    has(
        &page,
        &[
            "the images are not divided yet",
            "the manifest is not there",
        ],
    );

    begun(run.path(), "baseline", 0.0);
    has(&page_of(&[run.path()]), &["nothing is painted in this run"]);

    let run = sample_run(12);
    for folder in ["synthetic/images", layout::GALLERY] {
        fs::remove_dir_all(run.path().join(folder)).unwrap();
    }
    fs::remove_file(run.path().join(layout::CONTACT_SHEET)).unwrap();
    let page = page_of(&[run.path()]);
    has(
        &page,
        &[
            "accepted images are no longer in the run folder",
            "there is no contact sheet",
            "12 candidates have no picture",
        ],
    );
    fs::remove_dir_all(run.path().join(layout::SYNTHETIC)).unwrap();
    has(
        &page_of(&[run.path()]),
        &["`synthetic/metadata.jsonl` is not there"],
    );
}

#[test]
fn what_is_damaged_is_said_and_the_rest_is_shown() {
    let run = sample_run(12);
    let root = run.path();
    write(root, "evaluate/real/seed-3/per_image.csv", "no table\n1");
    write(root, layout::RESULT, "{");
    write(root, layout::CONTACT_SHEET, "no image");
    write(root, &layout::strip(0), "<svg onload=alert(1)>");
    let page = page_of(&[root]);
    has(
        &page,
        &[
            "per_image.csv` is damaged",
            "result.json` is damaged",
            "augmented",
            "Gallery",
        ],
    );
    assert!(data(&page)["cards"][0]["picture"].is_null());
    assert!(!data(&page)["cards"][1]["picture"].is_null());
}

#[test]
fn several_runs_are_compared() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    finished(one.path(), "first", 9, 0.02);
    finished(other.path(), "second", 9, 0.12);
    let page = page_of(&[one.path(), other.path()]);
    has(
        &page,
        &[
            "<title>2 runs",
            "second: augmented",
            "Difference in Dice from first: real",
            "id=\"run-1-gallery\"",
        ],
    );
    let split = fs::read_to_string(other.path().join(layout::SPLIT)).unwrap();
    write(
        other.path(),
        layout::SPLIT,
        split.replace("test-0", "else-0"),
    );
    let page = page_of(&[one.path(), other.path()]);
    has(
        &page,
        &["second is not compared with the first run: it has other test images."],
    );
    // Runs of one name are told apart by their folders, and one that is named twice by a number.
    finished(&other.path().join("a/x"), "first", 9, 0.02);
    let page = page_of(&[one.path(), &other.path().join("a/x")]);
    has(&page, &["<h2>x</h2>"]);
    let page = page_of(&[one.path(), one.path()]);
    has(&page, &["<h2>first (1)</h2>", "<h2>first (2)</h2>"]);
}

#[test]
fn a_folder_that_is_no_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = open(&[folder.path().to_owned()]).unwrap_err();
    assert!(error.message.contains("is no folder of a run"), "{error:?}");
    assert!(leave(folder.path()).is_err() && page(&[]).is_err());
}

#[test]
fn a_thousand_candidates_make_a_page_below_20_megabytes() {
    // A quarter of that, each with the largest picture that a run keeps.
    let run = sample_run(250);
    let mut large = fs::read(run.path().join(layout::strip(0))).unwrap();
    large.resize(12_000, 0);
    for index in 0..250 {
        write(run.path(), &layout::strip(index), &large);
    }
    let page = page_of(&[run.path()]);
    assert!(page.len() < 5_000_000, "{}", page.len());
}
