//! Whole runs of the linked-in plugins, tiny: what they leave behind, that they can be cut short
//! anywhere, and that nothing learns from test data.

use crate::util::{Sandbox, assert_same, binary, built, cargo, root, target_dir};
use diffaug::{
    Image, Mask,
    image::{save_gray, save_image},
    rng,
};
use rand::RngExt;
use std::{
    collections::BTreeMap,
    env::consts::{DLL_PREFIX, DLL_SUFFIX, EXE_SUFFIX},
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

/// Files that tell when and in how many starts a run was made.
const TIMES: [&str; 1] = ["log.jsonl"];

/// Half a second on two cores. The network has hardly learnt, and with its low threshold takes all
/// but everything for a lesion; so the gate passes large lesions and turns small ones down.
const TINY: &str = r#"
name = "tiny"

[dataset]
use = "phantom"
size = 32
train = 8
validation = 3
test = 4

[prompts]
use = "medical"

[generator]
use = "seamless-paste"

[validator]
use = "iou"
threshold = 0.02

[segmenter]
use = "unet"
threshold = 0.3
images_at_once = 4

[segmenter.architecture]
width = 4
depth = 2

[segmenter.train]
epochs = 4
batch = 4
lr = 0.003

[synthesis]
variants = 2
batch = 3
"#;

pub fn tiny() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("m.toml", TINY);
    sandbox
}

#[test]
fn a_run_leaves_scores_images_and_what_they_were_made_of() {
    let sandbox = tiny();
    let printed = sandbox.run("run m.toml --json -q").ok().json();
    let result = sandbox.read_json("runs/tiny/result.json");
    assert_eq!(printed, result);
    assert_eq!(result["split"]["train"], 8);
    assert_eq!(result["targets"], serde_json::json!(["polyp"]));
    let arms = result["arms"].as_array().unwrap();
    let names: Vec<_> = arms
        .iter()
        .map(|arm| arm["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["real", "augmented"]);
    let dice = &arms[1]["mean"]["dice"];
    assert!((0.0..=1.0).contains(&dice.as_f64().unwrap()), "{dice}");
    let accepted = result["synthesis"]["accepted"].as_u64().unwrap();
    assert!(accepted > 0);
    assert_eq!(arms[1]["training_images"], 8 + accepted);
    // Nothing in the result tells the time or the place.
    assert!(!result.to_string().contains("/runs/"));
    let lock = sandbox.read_json("runs/tiny/lock.json");
    assert_eq!(lock["plugins"]["segmenter"]["origin"], "built in");
    assert_eq!(lock["dataset"]["samples"], 15);
}

#[test]
fn with_nothing_to_paint_only_the_baseline_is_trained() {
    let sandbox = tiny();
    let output = sandbox.run("run m.toml --set synthesis.ratio=0").ok();
    let result = sandbox.read_json("runs/tiny/result.json");
    let arms = result["arms"].as_array().unwrap();
    assert_eq!(arms.len(), 1);
    assert_eq!(arms[0]["name"], "real");
    assert!(result["synthesis"].is_null());
    assert!(!output.stderr.contains("accepted"), "{output}");
    for folder in ["synthetic", "segmenter", "generator"] {
        assert!(!sandbox.path(&format!("runs/tiny/{folder}")).exists());
    }
    let zero = "m.toml --set synthesis.ratio=0 --set output=other";
    sandbox
        .run(&format!("generate {zero}"))
        .refused("`synthesis.ratio` is 0, so there is nothing to paint");
    sandbox
        .run(&format!("run {zero} --set evaluate.baseline=false"))
        .refused("`synthesis.ratio` is 0 and `evaluate.baseline` is false");
}

#[test]
fn the_synthetic_set_is_an_image_folder() {
    let sandbox = tiny();
    sandbox.run("generate m.toml -q").ok();
    let text = sandbox.read("runs/tiny/synthetic/metadata.jsonl");
    let records = sandbox.read_lines("runs/tiny/synthetic/metadata.jsonl");
    assert!(!records.is_empty());
    for (line, record) in text.lines().zip(&records) {
        assert!(line.starts_with("{\"file_name\":\"images/"), "{line}");
        for key in ["file_name", "mask_file_name"] {
            let file = format!("runs/tiny/synthetic/{}", record[key].as_str().unwrap());
            let (width, height) = image::image_dimensions(sandbox.path(&file)).unwrap();
            assert_eq!((width, height), (32, 32));
        }
        assert_ne!(record["prompt"], "", "{line}");
    }
    let rejected = sandbox.read_lines("runs/tiny/rejected.jsonl");
    assert!(
        rejected
            .iter()
            .all(|r| r["reason"] != "" && r["file_name"].is_null())
    );
    let summary = sandbox.read_json("runs/tiny/synthetic.json");
    assert_eq!(summary["accepted"], records.len());
    assert_eq!(summary["rejected"], rejected.len());
    assert!(!sandbox.path("runs/tiny/result.json").exists());
}

#[test]
fn a_finished_run_is_not_run_again() {
    let sandbox = tiny();
    sandbox.run("run m.toml -q").ok();
    let before = sandbox.files("runs/tiny", &TIMES);
    let again = sandbox.run("run m.toml").ok();
    assert!(!again.stderr.contains("training"), "{again}");
    assert_same(&before, &sandbox.files("runs/tiny", &TIMES));
}

#[test]
fn a_run_in_steps_is_the_run_in_one() {
    let whole = tiny();
    whole.run("run m.toml -q").ok();
    let steps = tiny();
    for verb in ["train segmenter", "train generator", "generate", "evaluate"] {
        steps.run(&format!("{verb} m.toml -q")).ok();
    }
    assert_same(
        &whole.files("runs/tiny", &TIMES),
        &steps.files("runs/tiny", &TIMES),
    );
}

#[test]
fn a_folder_belongs_to_one_manifest() {
    let sandbox = tiny();
    sandbox.run("train segmenter m.toml -q").ok();
    sandbox
        .run("run m.toml --set segmenter.train.epochs=3")
        .refused("was begun with `manifest.segmenter.train.epochs` = 4, now it is 3");
    // What was not begun may still be chosen.
    let other = "run m.toml -q --set synthesis.ratio=0.5";
    sandbox.run(other).ok();
    sandbox
        .run("run m.toml -q")
        .refused("was begun with `manifest.synthesis.ratio` = 0.5, now it is 1.0");
}

#[test]
fn more_trainings_of_a_finished_run_are_all_that_is_done() {
    let sandbox = tiny();
    sandbox.run("run m.toml -q").ok();
    let before = sandbox.files("runs/tiny", &TIMES);
    let again = sandbox.run("run m.toml --set evaluate.runs=2").ok();
    let trained: Vec<&str> = again
        .stderr
        .lines()
        .filter(|line| line.starts_with("training") || line.starts_with("painting"))
        .collect();
    assert_eq!(trained.len(), 2, "{again}");
    assert!(
        trained.iter().all(|line| line.contains("seed 1")),
        "{again}"
    );
    let after = sandbox.files("runs/tiny", &TIMES);
    for (name, bytes) in before {
        let of_all = ["lock.json", "manifest.toml", "report.html", "result.json"];
        assert!(
            of_all.contains(&name.as_str()) || after[&name] == bytes,
            "{name}"
        );
    }
    let arms = sandbox.read_json("runs/tiny/result.json")["arms"].clone();
    assert_eq!(arms[1]["runs"].as_array().unwrap().len(), 2);
    // It is the run that would have been made at once.
    let whole = tiny();
    whole.run("run m.toml -q --set evaluate.runs=2").ok();
    assert_same(&whole.files("runs/tiny", &TIMES), &after);
}

#[test]
fn runs_share_what_they_have_in_common() {
    let sandbox = tiny();
    sandbox.run("run m.toml -q").ok();
    let other = "run m.toml --set output=runs/other --set synthesis.ratio=0.5";
    let output = sandbox.run(other).ok();
    let again = ["fitting generator", "training", "on real images"];
    for line in output.stderr.lines() {
        let shared = again.iter().any(|start| line.contains(start)) && !line.contains("augmented");
        assert!(!shared || line.contains("done before"), "{output}");
    }
    // The same as without anything to share.
    let alone = tiny();
    alone.run(&format!("{other} -q")).ok();
    assert_same(
        &alone.files("runs/other", &TIMES),
        &sandbox.files("runs/other", &TIMES),
    );
    // A run of its own, from what the store has alone.
    fs::remove_dir_all(sandbox.path("runs/tiny")).unwrap();
    let output = sandbox.run("run m.toml").ok();
    for line in output.stderr.lines() {
        let works = ["fitting", "training", "painting", "testing"];
        let works = works.iter().any(|start| line.starts_with(start));
        assert!(!works || line.contains("done before"), "{output}");
    }
    let whole = tiny();
    whole.run("run m.toml -q").ok();
    assert_same(
        &whole.files("runs/tiny", &TIMES),
        &sandbox.files("runs/tiny", &TIMES),
    );
}

#[test]
fn another_threshold_paints_nothing_again() {
    let sandbox = tiny();
    sandbox.run("run m.toml -q").ok();
    let list = || {
        let all = sandbox.files("runs/.steps", &[]);
        let mut lists = all
            .iter()
            .filter(|(name, _)| name.ends_with("/images.sha256"));
        let (_, text) = lists.next().unwrap();
        assert!(lists.next().is_none());
        let text = String::from_utf8(text.clone()).unwrap();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let painted = list();
    let judged = sandbox.read_json("runs/tiny/synthetic.json")["candidates"].clone();
    assert!(painted.len() as u64 >= judged.as_u64().unwrap());
    for (name, option) in [
        ("strict", "validator.threshold=0.1"),
        ("lax", "validator.use=accept-all"),
        ("more", "synthesis.ratio=1.5"),
    ] {
        let args = format!("generate m.toml -q --set output=runs/{name} --set {option}");
        sandbox.run(&args).ok();
        let alone = tiny();
        alone.run(&args).ok();
        let folder = format!("runs/{name}");
        assert_same(
            &alone.files(&folder, &TIMES),
            &sandbox.files(&folder, &TIMES),
        );
    }
    let after = list();
    assert_eq!(after[..painted.len()], painted);
    // Painted again, an image would be listed twice.
    let mut names: Vec<&str> = after
        .iter()
        .filter_map(|line| line.rsplit(' ').next())
        .collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), after.len());
}

#[test]
fn results_that_no_run_refers_to_can_be_removed() {
    let sandbox = tiny();
    sandbox.run("run m.toml -q").ok();
    let other = "run m.toml -q --set output=runs/more/other --set store=runs --set seed=1";
    sandbox.run(other).ok();
    let listed = sandbox.run("runs --json").ok().json();
    let runs = listed["runs"].as_array().unwrap();
    let folders: Vec<&str> = runs.iter().map(|r| r["folder"].as_str().unwrap()).collect();
    assert_eq!(folders, ["runs/more/other", "runs/tiny"]);
    assert_eq!(
        runs[1]["arms"],
        serde_json::json!([["augmented", 1], ["real", 1]])
    );
    // All that is kept are the runs' own files, but for what says of each result what it is.
    let of_all = runs[1]["bytes"].as_u64().unwrap();
    assert!(listed["bytes"].as_u64().unwrap() < of_all, "{listed}");
    let text = sandbox.run("runs").ok();
    assert!(text.stdout.contains("| runs/tiny       |"), "{text}");

    let none = sandbox.run("prune").ok();
    assert_eq!(none.stdout.trim(), "every kept result belongs to a run");
    fs::remove_dir_all(sandbox.path("runs/more")).unwrap();
    let steps = || fs::read_dir(sandbox.path("runs/.steps")).unwrap().count();
    let before = steps();
    let asked = sandbox.run("prune --json").ok().json();
    let count = asked["unused"].as_array().unwrap().len();
    assert!(count > 3 && asked["removed"].is_null(), "{asked}");
    assert!(asked["bytes"].as_u64().unwrap() > 10_000, "{asked}");
    assert_eq!(steps(), before);
    let done = sandbox.run("prune --yes").ok();
    assert!(
        done.stdout.contains(&format!("removed {count} results")),
        "{done}"
    );
    assert_eq!(steps(), before - count);

    // What the other run has is still there for a third.
    let output = sandbox.run("run m.toml --set output=runs/third").ok();
    assert!(!output.stderr.contains("painting: 8"), "{output}");
    sandbox
        .run("prune nowhere")
        .refused("there is no folder `nowhere`");
}

#[test]
fn a_damaged_result_of_the_store_is_made_anew() {
    let sandbox = tiny();
    sandbox.run("run m.toml -q").ok();
    let whole = sandbox.files("runs/tiny", &TIMES);
    let steps = sandbox.path("runs/.steps");
    for name in sandbox.files("runs/.steps", &[]).keys() {
        if name.ends_with(".safetensors") || name.ends_with(".png") {
            // Not in place, which would change the run's own file too.
            fs::remove_file(steps.join(name)).unwrap();
            fs::write(steps.join(name), "").unwrap();
        }
    }
    fs::remove_dir_all(sandbox.path("runs/tiny")).unwrap();
    let output = sandbox.run("run m.toml").ok();
    assert!(
        output.stderr.contains("is damaged and made anew"),
        "{output}"
    );
    assert_same(&whole, &sandbox.files("runs/tiny", &TIMES));
}

#[test]
fn a_run_does_not_depend_on_threads() {
    let outputs = ["1", "2", "3", "7"].map(|threads| {
        let sandbox = tiny();
        let mut command = sandbox.command("run m.toml -q");
        command.env("RAYON_NUM_THREADS", threads);
        sandbox.finish(command).ok();
        sandbox.files("runs/tiny", &TIMES)
    });
    for other in &outputs[1..] {
        assert_same(&outputs[0], other);
    }
}

/// Killed as soon as each of these is there, then left to finish.
const MOMENTS: [&str; 6] = [
    "lock.json",
    "segmenter",
    "segmenter.json",
    "synthetic/images",
    "synthetic.json",
    "evaluate/augmented",
];

#[test]
fn a_run_that_was_killed_goes_on_and_ends_alike() {
    let whole = tiny();
    whole.run("run m.toml -q").ok();
    let cut = tiny();
    for moment in MOMENTS {
        let mut child = cut.start("run m.toml -q");
        let there = cut.path("runs/tiny").join(moment);
        while !there.exists() && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(2));
        }
        // An error means that it has ended already.
        let _ = child.kill();
        child.wait().unwrap();
    }
    cut.run("run m.toml -q").ok();
    assert_same(
        &whole.files("runs/tiny", &TIMES),
        &cut.files("runs/tiny", &TIMES),
    );
}

/// The host without any plugin linked in. In a target folder of its own, since it has the name of
/// the binary under test; its dependencies are not optimised, which builds them in half the time.
fn bare_host() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bare");
    let mut command = cargo("build", &root().join("Cargo.toml"), &target);
    command.args(["--package", "diffaug-host", "--no-default-features"]);
    command.args(["--config", "profile.dev.package.'*'.opt-level=0"]);
    built(command);
    let profile = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    target.join(profile).join(format!("diffaug{EXE_SUFFIX}"))
}

/// The library of all plugins, built with the features that the tests are built with.
fn all_plugins() -> PathBuf {
    let mut command = cargo("build", &root().join("Cargo.toml"), target_dir());
    command.args(["--workspace", "--example", "diffaug_plugins"]);
    built(command);
    let examples = binary().parent().unwrap().join("examples");
    examples.join(format!("{DLL_PREFIX}diffaug_plugins{DLL_SUFFIX}"))
}

#[test]
#[ignore = "builds the host a second time, minutes: cargo test -- --include-ignored"]
fn plugins_work_alike_linked_in_and_loaded() {
    let linked = tiny();
    linked.run("run m.toml -q").ok();
    let loaded = Sandbox::with(bare_host());
    loaded.write("m.toml", format!("libraries = [\"./bundle.so\"]\n{TINY}"));
    fs::copy(all_plugins(), loaded.path("bundle.so")).unwrap();
    loaded.run("run m.toml -q").ok();
    let lock = loaded.read_json("runs/tiny/lock.json");
    assert_eq!(lock["plugins"]["segmenter"]["origin"]["file"], "bundle.so");
    let without = ["log.jsonl", "lock.json", "manifest.toml", "report.html"];
    assert_same(
        &linked.files("runs/tiny", &without),
        &loaded.files("runs/tiny", &without),
    );
}

/// A folder `data` of images and masks: a dark disc on a bright, uneven ground.
fn folder(sandbox: &Sandbox, count: u64) {
    for index in 0..count {
        let mut draw = rng::stream(5, "disc", index);
        let (x, y) = (draw.random_range(10..22), draw.random_range(10..22));
        let radius = draw.random_range(4..8);
        let pixel = |i: i32| {
            let (dx, dy) = (i % 32 - x, i / 32 - y);
            (i, dx * dx + dy * dy <= radius * radius)
        };
        let labels = (0..32 * 32).map(pixel);
        let grey = |(i, inside): (i32, bool)| {
            let ground = 150 + (i % 32 + index as i32) as u8;
            if inside {
                [ground - 90, ground - 110, ground - 120]
            } else {
                [ground, ground - 40, ground - 60]
            }
        };
        let pixels = labels.clone().flat_map(grey).collect();
        let mask = labels
            .map(|(_, inside)| if inside { 255 } else { 0 })
            .collect();
        save(sandbox, &format!("{index}"), pixels, mask);
    }
}

fn save(sandbox: &Sandbox, id: &str, pixels: Vec<u8>, mask: Vec<u8>) {
    for folder in ["images", "masks"] {
        fs::create_dir_all(sandbox.path("data").join(folder)).unwrap();
    }
    let image = Image::new(32, 32, pixels).unwrap();
    save_image(
        image.view(),
        &sandbox.path(&format!("data/images/{id}.png")),
    )
    .unwrap();
    let mask = Mask::new(32, 32, mask).unwrap();
    save_gray(mask.view(), &sandbox.path(&format!("data/masks/{id}.png"))).unwrap();
}

/// [`TINY`] on a folder of twelve images of which the last four are for testing.
pub fn with_folder() -> Sandbox {
    let sandbox = Sandbox::new();
    folder(&sandbox, 12);
    let split = r#"{"train": ["0","1","2","3","4","5"], "validation": ["6","7"], "test": ["8","9","10","11"]}"#;
    sandbox.write("split.json", split);
    let from = TINY.find("[dataset]").unwrap();
    let to = TINY.find("[prompts]").unwrap();
    let data = "[dataset]\nuse = \"folder\"\nroot = \"data\"\n\n[split]\nfile = \"split.json\"\n\n";
    sandbox.write("m.toml", format!("{}{data}{}", &TINY[..from], &TINY[to..]));
    sandbox
}

#[test]
fn nothing_learns_from_test_data() {
    let learnt = |sandbox: &Sandbox| -> BTreeMap<String, Vec<u8>> {
        sandbox.run("run m.toml -q").ok();
        let scores = |name: &str| {
            let file = name.rsplit('/').next().unwrap();
            [
                "log.jsonl",
                "lock.json",
                "report.html",
                "result.json",
                "scores.json",
                "per_image.csv",
            ]
            .contains(&file)
        };
        let mut files = sandbox.files("runs/tiny", &[]);
        files.retain(|name, _| !scores(name));
        files
    };
    let clean = with_folder();
    let poisoned = with_folder();
    for index in 8..12 {
        let mut noise = rng::stream(1, "poison", index);
        let pixels = (0..32 * 32 * 3).map(|_| noise.random()).collect();
        let mask = (0..32 * 32)
            .map(|_| if noise.random() { 255 } else { 0 })
            .collect();
        save(&poisoned, &format!("{index}"), pixels, mask);
    }
    let (left, right) = (learnt(&clean), learnt(&poisoned));
    assert!(
        left.keys()
            .any(|name| name.starts_with("evaluate/augmented/"))
    );
    assert!(
        left.keys()
            .any(|name| name.starts_with("synthetic/images/"))
    );
    assert_same(&left, &right);
    let scores = |sandbox: &Sandbox| sandbox.read_json("runs/tiny/result.json")["arms"].clone();
    assert_ne!(scores(&clean), scores(&poisoned));
}

#[test]
fn lesions_are_painted_on_crops() {
    let sandbox = with_folder();
    let args = "generate m.toml -q --set synthesis.background=crop --set synthesis.min_crop=0.3";
    sandbox.run(args).ok();
    let summary = sandbox.read_json("runs/tiny/synthetic.json");
    assert!(summary["candidates"].as_u64().unwrap() > 0, "{summary}");
}

#[test]
fn a_background_without_room_is_skipped() {
    let sandbox = with_folder();
    let args = "generate m.toml -q --set synthesis.background=crop --set synthesis.min_crop=1.0";
    sandbox.run(args).ok();
    let summary = sandbox.read_json("runs/tiny/synthetic.json");
    assert_eq!(
        (&summary["candidates"], &summary["skipped"]),
        (&0.into(), &12.into())
    );
}

#[test]
fn lesions_are_painted_on_other_images() {
    let sandbox = with_folder();
    for shade in [90, 200] {
        let image = Image::new(40, 36, vec![shade; 40 * 36 * 3]).unwrap();
        sandbox.write("normal/note.txt", "");
        save_image(image.view(), &sandbox.path(&format!("normal/n{shade}.png"))).unwrap();
    }
    let args =
        "generate m.toml -q --set synthesis.background=external --set synthesis.external=normal";
    sandbox
        .run(&format!(
            "{args} --set validator.threshold=0.0 --set images.size=32"
        ))
        .ok();
    let records = sandbox.read_lines("runs/tiny/synthetic/metadata.jsonl");
    let sources: Vec<_> = records
        .iter()
        .map(|r| r["source"].as_str().unwrap())
        .collect();
    assert_eq!(sources, ["n90", "n200", "n90", "n200"]);
    sandbox
        .run(&format!("{args} --set output=other").replace("=normal", "=nowhere"))
        .refused("`nowhere` does not exist");
}

/// What a user can get wrong in a folder is said in one sentence, and leaves no half-written file.
fn refuses(spoil: impl Fn(&Sandbox), sentence: &str) {
    let sandbox = with_folder();
    spoil(&sandbox);
    sandbox.run("run m.toml").refused(sentence);
    if sandbox.path("runs").exists() {
        let left: Vec<String> = sandbox.files("runs/tiny", &TIMES).into_keys().collect();
        assert_eq!(left, [""; 0]);
    }
}

#[test]
fn a_broken_folder_is_explained() {
    let truncated = |sandbox: &Sandbox| {
        let bytes = fs::read(sandbox.path("data/images/3.png")).unwrap();
        sandbox.write("data/images/3.png", &bytes[..bytes.len() / 2]);
    };
    refuses(truncated, "`data/images/3.png`");
    let maskless = |sandbox: &Sandbox| fs::remove_file(sandbox.path("data/masks/4.png")).unwrap();
    refuses(
        maskless,
        "image `data/images/4.png` has no mask in `data/masks`",
    );
    let small = |sandbox: &Sandbox| {
        let mask = Mask::new(4, 4, vec![255; 16]).unwrap();
        save_gray(mask.view(), &sandbox.path("data/masks/5.png")).unwrap();
    };
    refuses(
        small,
        "mask `data/masks/5.png` is 4x4, but its image `data/images/5.png` is 32x32",
    );
    let twins = |sandbox: &Sandbox| {
        fs::copy(
            sandbox.path("data/images/1.png"),
            sandbox.path("data/images/1.jpg"),
        )
        .unwrap();
    };
    refuses(twins, "1.png`");
    let empty = |sandbox: &Sandbox| {
        fs::remove_dir_all(sandbox.path("data/images")).unwrap();
        sandbox.write("data/images/readme.txt", "");
    };
    refuses(empty, "`data/images` holds no images");
    let missing = |sandbox: &Sandbox| fs::remove_dir_all(sandbox.path("data")).unwrap();
    refuses(missing, "`data");
    let text = |sandbox: &Sandbox| sandbox.write("data/images/2.png", "no picture");
    refuses(text, "`data/images/2.png`");
}

#[test]
fn a_stray_grey_value_is_explained() {
    let sandbox = with_folder();
    let manifest = sandbox.read("m.toml");
    let strict = "root = \"data\"\nclasses = { lesion = 255 }\n";
    sandbox.write("m.toml", manifest.replace("root = \"data\"\n", strict));
    sandbox.run("check m.toml --data").ok();
    let mut mask = vec![0; 32 * 32];
    mask[40] = 77;
    save(&sandbox, "2", vec![9; 32 * 32 * 3], mask);
    sandbox.run("run m.toml").refused("`data/masks/2.png`");
}

#[test]
fn a_header_that_promises_too_much_is_not_believed() {
    // 60000x60000 RGB in a file of a few bytes.
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    png.extend([60_000u32.to_be_bytes(), 60_000u32.to_be_bytes()].concat());
    png.extend([8, 2, 0, 0, 0]);
    png.extend(crc(&png[12..]).to_be_bytes());
    png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82");
    refuses(
        |sandbox| sandbox.write("data/images/0.png", &png),
        "60000x60000",
    );
}

/// The checksum of PNG chunks.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| {
            (c >> 1) ^ (0xEDB8_8320 & (c & 1).wrapping_neg())
        })
    })
}

/// What the README of `examples/dataset-plugin` tells its readers to do.
#[test]
fn a_third_partys_dataset_runs_by_its_manifest() {
    let example = root().join("examples/dataset-plugin");
    let mut command = cargo("build", &example.join("Cargo.toml"), target_dir());
    // As this workspace builds them, so that what both depend on is there already.
    for setting in [
        "opt-level=1",
        "package.'*'.opt-level=3",
        "package.'*'.debug=false",
        "build-override.opt-level=0",
    ] {
        command.args(["--config", &format!("profile.dev.{setting}")]);
    }
    command.arg("--locked");
    built(command);
    let profile = crate::util::binary().parent().unwrap();
    let sandbox = Sandbox::new();
    let name = format!("{}ellipses{}", DLL_PREFIX, DLL_SUFFIX);
    sandbox.write("target/release/note.txt", "");
    fs::copy(
        profile.join(&name),
        sandbox.path("target/release/libellipses.so"),
    )
    .unwrap();
    for entry in fs::read_dir(example.join("data/images")).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap();
        sandbox.write(&format!("data/images/{file}"), fs::read(&path).unwrap());
    }
    sandbox.write(
        "data/labels.csv",
        fs::read(example.join("data/labels.csv")).unwrap(),
    );
    sandbox.write(
        "manifest.toml",
        fs::read(example.join("manifest.toml")).unwrap(),
    );
    let options = sandbox
        .run("plugins dataset ellipses --library ./target/release/libellipses.so")
        .ok();
    assert!(
        options.stdout.contains("min_radius (number, default 0.0)"),
        "{options}"
    );
    let quick = "--set segmenter.train.steps=8 --set segmenter.architecture.width=4 --set validator.threshold=0.01";
    let result = sandbox
        .run(&format!("run manifest.toml -q --json {quick}"))
        .ok()
        .json();
    assert_eq!(result["dataset"], "annotated ellipses");
    assert_eq!(result["split"]["name"], "grouped");
}
