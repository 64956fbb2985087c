//! What is painted besides lesions on their own images: hybrids, healthy holes, images cleared of
//! their lesion, quotas by size. What stages paint and find here is known to the pixel.

use crate::{
    pipeline::tiny,
    util::{Sandbox, assert_same, misbehave, root},
};
use diffaug::{Image, image::open_image};
use serde_json::Value;
use std::{collections::BTreeMap, fs, thread::sleep, time::Duration};

/// Files that tell when and in how many starts a run was made.
const TIMES: [&str; 1] = ["log.jsonl"];
/// Those that hold the manifest besides.
const MANIFEST: [&str; 3] = ["log.jsonl", "lock.json", "manifest.toml"];

fn squares() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.library("diffaug-misbehave", "misbehave.so");
    sandbox.write("m.toml", misbehave());
    sandbox
}

/// [`tiny`], whose lesions are filled with one colour; every image is kept.
fn filled() -> Sandbox {
    let sandbox = tiny();
    sandbox.library("diffaug-misbehave", "misbehave.so");
    let text = sandbox.read("m.toml");
    let text = text.replace("use = \"seamless-paste\"", "use = \"misbehave\"");
    let text = text.replace("use = \"iou\"\nthreshold = 0.02", "use = \"accept-all\"");
    sandbox.write(
        "m.toml",
        format!("libraries = [\"./misbehave.so\"]\n{text}"),
    );
    sandbox
}

fn image(sandbox: &Sandbox, name: &str) -> Image {
    open_image(&sandbox.path(name), 1 << 20).unwrap()
}

/// The pixels of an image whose mask is labelled, and the others.
fn parts(sandbox: &Sandbox, run: &str, record: &Value) -> [Vec<[u8; 3]>; 2] {
    let open = |key: &str| {
        let file = record[key].as_str().unwrap();
        image(sandbox, &format!("runs/{run}/synthetic/{file}"))
    };
    let (painted, mask) = (open("file_name"), open("mask_file_name"));
    let pixels = painted.pixels().chunks_exact(3).map(|p| [p[0], p[1], p[2]]);
    let labels = mask.pixels().chunks_exact(3).map(|p| p[0] != 0);
    let all: Vec<([u8; 3], bool)> = pixels.zip(labels).collect();
    [true, false].map(|inside| {
        let some = all.iter().filter(|(_, label)| *label == inside);
        some.map(|(pixel, _)| *pixel).collect()
    })
}

fn records(sandbox: &Sandbox, run: &str) -> Vec<Value> {
    sandbox.read_lines(&format!("runs/{run}/synthetic/metadata.jsonl"))
}

/// Runs `args` to its end, killed now and then on the way as soon as one of `moments` is there.
fn cut_short(sandbox: &Sandbox, args: &str, run: &str, moments: &[&str]) {
    for moment in moments {
        let mut child = sandbox.start(args);
        let there = sandbox.path(&format!("runs/{run}")).join(moment);
        while !there.exists() && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_millis(25));
        // An error means that it has ended already.
        let _ = child.kill();
        child.wait().unwrap();
    }
    sandbox.run(args).ok();
}

/// Asserts that a run leaves the same whether or not it was killed, and whatever its batch.
fn same_however(new: fn() -> Sandbox, set: &str, run: &str, moments: &[&str]) -> Sandbox {
    let args = |batch: u32| format!("generate m.toml -q {set} --set synthesis.batch={batch}");
    let whole = new();
    whole.run(&args(3)).ok();
    let cut = new();
    cut_short(&cut, &args(3), run, moments);
    let folder = format!("runs/{run}");
    assert_same(&whole.files(&folder, &TIMES), &cut.files(&folder, &TIMES));
    let other = new();
    other.run(&args(5)).ok();
    let files =
        |sandbox: &Sandbox| -> BTreeMap<String, Vec<u8>> { sandbox.files(&folder, &MANIFEST) };
    assert_same(&files(&whole), &files(&other));
    whole
}

const HYBRID: &str = "--set synthesis.start.use=seamless-paste";

#[test]
fn a_hybrid_begins_with_what_the_start_generator_painted() {
    let sandbox = filled();
    let run = |name: &str, set: &str| {
        let args = format!("generate m.toml -q {set} --set output=runs/{name}");
        sandbox.run(&args).ok();
        records(&sandbox, name)
    };
    let (plain, hybrid) = (run("plain", ""), run("hybrid", HYBRID));
    let mut seams = 0;
    for (plain, hybrid) in plain.iter().zip(&hybrid) {
        let [inside, around] = parts(&sandbox, "hybrid", hybrid);
        let [_, background] = parts(&sandbox, "plain", plain);
        assert!(inside.iter().all(|pixel| *pixel == inside[0]));
        // The paste's seam reaches beyond the mask; the generator was given the image with it.
        let changed = around.iter().zip(&background).filter(|(a, b)| a != b);
        let changed = changed.count();
        assert!(changed < background.len() / 2, "{changed}");
        seams += changed;
    }
    assert!(seams > 0);
    for name in ["start.json", "start", "generator.json"] {
        assert!(
            sandbox.path(&format!("runs/hybrid/{name}")).exists(),
            "{name}"
        );
    }
    let lock = sandbox.read_json("runs/hybrid/lock.json");
    assert_eq!(lock["plugins"]["synthesis.start"]["name"], "seamless-paste");
    let lock = sandbox.read_json("runs/plain/lock.json");
    assert!(lock["plugins"]["synthesis.start"].is_null());
}

#[test]
fn a_hybrid_keeps_the_fine_detail_of_its_start() {
    let set = format!("{HYBRID} --set synthesis.detail=1.5");
    let sandbox = same_however(filled, &set, "tiny", &["start.json", "synthetic/images"]);
    let mut varied = 0;
    for record in records(&sandbox, "tiny") {
        let [inside, _] = parts(&sandbox, "tiny", &record);
        // All would be of one colour; a lesion of a few pixels has no inside.
        varied += usize::from(inside.iter().any(|pixel| *pixel != inside[0]));
        let mean = inside.iter().map(|p| f64::from(p[0])).sum::<f64>() / inside.len() as f64;
        assert!((mean - 220.0).abs() < 15.0, "{mean}");
    }
    assert!(varied > 4, "{varied}");
}

/// The smaller the strength, the more of the pasted lesion is left.
#[test]
fn a_diffusion_model_goes_on_from_what_was_pasted() {
    let sandbox = Sandbox::new();
    sandbox.library("diffaug-misbehave", "misbehave.so");
    let weights = |name: &str| root().join("manifests/weights").join(name);
    let base = root().join("manifests/quickstart.toml");
    let text = format!(
        "base = \"{}\"\nlibraries = [\"./misbehave.so\"]\n\
         dataset = {{ use = \"phantom\", train = 6, validation = 2, test = 2 }}\n\
         validator = {{ use = \"accept-all\" }}\n\
         segmenter = {{ use = \"latent-seg\", weights = \"{}\" }}\n\
         synthesis = {{ variants = 1, start = {{ use = \"seamless-paste\" }} }}\n",
        base.display(),
        weights("segmenter").display(),
    );
    sandbox.write("m.toml", text);
    let model = weights("generator").display().to_string();
    let run = |name: &str, set: &str| -> Vec<Vec<[u8; 3]>> {
        sandbox
            .run(&format!(
                "generate m.toml -q {set} --set output=runs/{name}"
            ))
            .ok();
        let all = records(&sandbox, name);
        let insides = all.iter().map(|record| parts(&sandbox, name, record));
        insides.map(|[inside, _]| inside).collect()
    };
    let start = run(
        "start",
        "--set generator.use=misbehave --set generator.mode=idle",
    );
    let apart = |strength: f64| -> f64 {
        let set = format!(
            "--set generator.weights={model} --set generator.steps=6 --set generator.strength={strength}"
        );
        let painted = run(&format!("at-{strength}"), &set);
        let pixels = painted
            .iter()
            .zip(&start)
            .flat_map(|(a, b)| a.iter().zip(b));
        let differences = pixels.flat_map(|(a, b)| a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)));
        let all: Vec<f64> = differences.map(f64::from).collect();
        all.iter().sum::<f64>() / all.len() as f64
    };
    let (little, all) = (apart(0.34), apart(1.0));
    assert!(little > 0.5 && little < 0.8 * all, "{little} {all}");
}

#[test]
fn what_a_hybrid_needs_is_told() {
    let sandbox = tiny();
    sandbox
        .run("check m.toml --set synthesis.detail=2")
        .refused("there is no `synthesis.start`");
    sandbox
        .run(&format!("check m.toml {HYBRID} --set synthesis.detail=99"))
        .refused("`synthesis.detail` must be a number of pixels from 0 to 32");
    sandbox
        .run(&format!(
            "check m.toml {HYBRID} --set synthesis.start.feather=99"
        ))
        .refused("`feather` is 99, expected 1 to 64 pixels");
    sandbox
        .run("check m.toml --set synthesis.start.use=no-such")
        .refused("no-such");
    sandbox.run(&format!("check m.toml {HYBRID}")).ok();
    let doctor = sandbox.run(&format!("doctor m.toml {HYBRID}")).ok();
    let line = "synthesis.start  made by the run in runs/tiny/start (not yet)";
    assert!(doctor.stdout.contains(line), "{doctor}");
}

const DECOYS: &str = "--set synthesis.decoys=2 --set synthesis.ratio=9 --set dataset.count=12";

#[test]
fn healthy_holes_are_painted_beside_lesions_and_stay_background() {
    let sandbox = same_however(
        squares,
        DECOYS,
        "m",
        &["synthetic/images", "synthetic.json"],
    );
    let summary = sandbox.read_json("runs/m/synthetic.json");
    let mut painted = 0;
    for record in records(&sandbox, "m") {
        let decoys = record["decoys"].as_array().cloned().unwrap_or_default();
        painted += decoys.len();
        let file = |key: &str| format!("runs/m/synthetic/{}", record[key].as_str().unwrap());
        let (image, mask) = (
            image(&sandbox, &file("file_name")),
            image(&sandbox, &file("mask_file_name")),
        );
        for decoy in &decoys {
            let [x0, y0, x1, y1] = [0, 1, 2, 3].map(|i| decoy[i].as_u64().unwrap() as usize);
            assert_eq!((x1 - x0, y1 - y0), (8, 8));
            for (x, y) in (y0..y1).flat_map(|y| (x0..x1).map(move |x| (x, y))) {
                let at = 3 * (24 * y + x);
                // The colour of a healthy place, which no background has.
                assert_eq!((image.pixels()[at], image.pixels()[at + 2]), (40, 60));
                assert_eq!(mask.pixels()[at], 0);
            }
        }
        let [lesion, _] = parts(&sandbox, "m", &record);
        assert!(lesion.iter().all(|pixel| (pixel[0], pixel[2]) == (220, 30)));
        assert_eq!(lesion.len(), 64);
        assert_eq!(record["score"], 1.0);
    }
    assert!(painted > 0);
    assert_eq!(summary["decoys"], painted);
    // A decoy that looks like a lesion is seen by the gate.
    let sandbox = squares();
    let set = format!("{DECOYS} --set generator.mode=stubborn");
    sandbox.run(&format!("generate m.toml -q {set}")).ok();
    let mut all = records(&sandbox, "m");
    all.extend(sandbox.read_lines("runs/m/rejected.jsonl"));
    assert!(
        all.iter()
            .any(|record| record["score"].as_f64().unwrap() < 0.8)
    );
}

const CLEARED: &str = "--set synthesis.background=pseudo-normal --set dataset.count=20 \
                       --set synthesis.ratio=9";

#[test]
fn lesions_are_painted_away_and_others_placed() {
    let moments = ["backgrounds/images", "backgrounds.json", "synthetic/images"];
    let sandbox = same_however(squares, CLEARED, "m", &moments);
    let found = sandbox.read_json("runs/m/backgrounds.json");
    let images = found["images"].as_u64().unwrap();
    assert_eq!(
        (&found["cleared"], &found["failed"]),
        (&images.into(), &0.into())
    );
    let summary = sandbox.read_json("runs/m/synthetic.json");
    assert_eq!(summary["backgrounds"]["cleared"], images);
    assert_eq!(summary["accepted"], 5 * images);
    for record in records(&sandbox, "m") {
        let [lesion, around] = parts(&sandbox, "m", &record);
        assert_eq!(lesion.len(), 64);
        // The one lesion there is has a label.
        assert!(around.iter().all(|pixel| pixel[0] < 128));
    }
}

#[test]
fn what_cannot_be_cleared_is_never_painted_on() {
    let set = format!("{CLEARED} --set generator.mode=stubborn");
    let sandbox = same_however(
        squares,
        &set,
        "m",
        &["backgrounds/images", "backgrounds.json"],
    );
    let found = sandbox.read_json("runs/m/backgrounds.json");
    let number = |key: &str| found[key].as_u64().unwrap();
    let (cleared, failed) = (number("cleared"), number("failed"));
    assert!(cleared > 0 && failed > 0, "{found}");
    let verdicts = found["verdicts"].as_array().unwrap();
    let failures = verdicts.iter().filter(|v| v["file_name"].is_null());
    let failures: Vec<&Value> = failures.map(|v| &v["id"]).collect();
    assert_eq!(failures.len() as u64, failed);
    for verdict in verdicts {
        let tries: Vec<f64> = verdict["found"]
            .as_array()
            .unwrap()
            .iter()
            .map(|found| found.as_f64().unwrap())
            .collect();
        let limit = found["limit"].as_f64().unwrap();
        let last = tries.last().unwrap();
        assert_eq!(*last < limit, !verdict["file_name"].is_null(), "{verdict}");
        assert!(tries.len() == 1 || tries[0] >= limit, "{verdict}");
    }
    // Half of the lesions stay unlabelled at the first try; none of them is in the set.
    let mut all = records(&sandbox, "m");
    all.extend(sandbox.read_lines("runs/m/rejected.jsonl"));
    assert_eq!(all.len() as u64, 5 * cleared);
    assert!(
        all.iter()
            .all(|record| !failures.contains(&&record["source"]))
    );
    let images = fs::read_dir(sandbox.path("runs/m/backgrounds/images")).unwrap();
    assert_eq!(images.count() as u64, cleared);
    let again = sandbox
        .run(&format!("generate m.toml {set} --set synthesis.batch=3"))
        .ok();
    let share = format!(
        "painted away in {cleared} of {} training images",
        cleared + failed
    );
    assert!(again.stdout.contains(&share), "{again}");
}

#[test]
fn healthy_places_need_a_generator_that_reads_and_a_gate_that_looks() {
    let sandbox = tiny();
    sandbox
        .run("generate m.toml --set synthesis.decoys=1")
        .refused("the generator `seamless-paste` paints lesions whatever a text says");
    sandbox
        .run("generate m.toml --set synthesis.background=pseudo-normal --set output=other")
        .refused("cannot paint the healthy places that `synthesis.background` asks for");
    let sandbox = filled();
    sandbox
        .run("generate m.toml --set synthesis.background=pseudo-normal")
        .refused("the validator `accept-all` asks no segmenter");
    sandbox
        .run("check m.toml --set synthesis.decoys=5")
        .refused("`synthesis.decoys` is 5, must be from 0 to 4");
    sandbox
        .run("generate m.toml --set prompts.negative= --set synthesis.decoys=1 --set output=other")
        .refused("the prompt bank gives no negative text");
}

/// The sizes of a summary as (name, wanted, candidates, accepted).
fn sizes(summary: &Value) -> Vec<(String, Option<u64>, u64, u64)> {
    let all = summary["by_size"].as_array().unwrap().iter();
    let each = all.map(|size| {
        (
            size["size"].as_str().unwrap().to_owned(),
            size["wanted"].as_u64(),
            size["candidates"].as_u64().unwrap(),
            size["accepted"].as_u64().unwrap(),
        )
    });
    each.collect()
}

#[test]
fn quotas_give_the_sizes_of_the_real_lesions() {
    let set = "--set synthesis.quotas=true --set synthesis.variants=6 --set synthesis.ratio=1.5 \
               --set synthesis.background=crop --set synthesis.min_crop=0.2";
    let moments = ["synthetic/images", "synthetic/images", "synthetic.json"];
    let sandbox = same_however(filled, set, "tiny", &moments);
    let summary = sandbox.read_json("runs/tiny/synthetic.json");
    let sizes = sizes(&summary);
    let wanted: u64 = sizes.iter().filter_map(|(_, wanted, ..)| *wanted).sum();
    assert_eq!(summary["wanted"], wanted);
    // Each is filled and no more: all that is painted is kept here.
    for (name, wanted, candidates, accepted) in &sizes {
        assert!(Some(*accepted) <= *wanted, "{name}: {summary}");
        assert_eq!(candidates, accepted, "{name}: {summary}");
    }
    assert!(summary["passed_over"].as_u64().unwrap() > 0, "{summary}");
    // What was passed over says so.
    let rejected = sandbox.read_lines("runs/tiny/rejected.jsonl");
    let over = rejected.iter().filter(|r| r["passed_over"] == true);
    let over: Vec<&Value> = over.collect();
    assert_eq!(summary["passed_over"], over.len());
    assert!(
        over.iter()
            .all(|r| r["reason"].as_str().unwrap().contains("were accepted"))
    );
}

#[test]
fn a_size_of_which_there_are_too_few_is_told() {
    let sandbox = tiny();
    let set = "--set synthesis.quotas=true --set synthesis.ratio=4";
    let output = sandbox.run(&format!("generate m.toml {set}")).ok();
    let summary = sandbox.read_json("runs/tiny/synthetic.json");
    let short = sizes(&summary)
        .into_iter()
        .find(|(_, wanted, _, accepted)| *wanted > Some(*accepted));
    let (name, wanted, _, accepted) = short.unwrap();
    let told = format!("{accepted} of {} {name}", wanted.unwrap());
    assert!(output.stderr.contains(&told), "{output}");
}

#[test]
fn real_lesions_of_the_validation_part_are_judged_alike() {
    let sandbox = squares();
    let set = "--set dataset.count=40";
    let output = sandbox.run(&format!("generate m.toml {set}")).ok();
    let real = &sandbox.read_json("runs/m/synthetic.json")["real_acceptance"];
    let split = sandbox.read_json("runs/m/split.json");
    let validation = split["validation"].as_array().unwrap().len();
    // The threshold finds every bright square.
    assert_eq!(real["n"], validation);
    assert_eq!(
        (&real["accepted"], &real["acceptance"]),
        (&real["n"], &1.0.into())
    );
    let told = format!("{validation} of {validation} real lesions of the validation part pass");
    assert!(output.stdout.contains(&told), "{output}");
    let run = |more: &str, name: &str| {
        let args = format!("generate m.toml -q {set} {more} --set output=runs/{name}");
        sandbox.run(&args).ok();
        sandbox.read_json(&format!("runs/{name}/synthetic.json"))
    };
    let off = run("--set synthesis.judge_real=false", "off");
    let strict = run("--set validator.mode=reject", "strict");
    assert!(off["real_acceptance"].is_null());
    assert_eq!(strict["real_acceptance"]["acceptance"], 0.0);
    let sandbox = filled();
    sandbox.run("generate m.toml -q").ok();
    let summary = sandbox.read_json("runs/tiny/synthetic.json");
    assert!(summary["real_acceptance"].is_null(), "{summary}");
}

#[test]
fn shards_joined_are_what_one_process_makes() {
    for options in [
        "--set synthesis.batch=1",
        "--set synthesis.batch=1 --set synthesis.keep_rejected=true --set synthesis.quotas=true",
        "--set synthesis.batch=2 --set synthesis.ratio=2",
    ] {
        let (whole, cut) = (crate::pipeline::tiny(), crate::pipeline::tiny());
        whole.run(&format!("generate m.toml -q {options}")).ok();
        let args = format!("generate m.toml -q {options}");
        let untrained = crate::pipeline::tiny();
        untrained
            .run(&format!("{args} --shard 0/3"))
            .refused("needs what is trained to be in `runs/.steps`, and the generator is not");
        for verb in ["generator", "segmenter"] {
            let train = format!("train {verb} m.toml -q --set output=runs/trained {options}");
            cut.run(&train).ok();
        }
        cut.run(&format!("{args} --merge"))
            .refused("there are no shards of this synthesis");
        cut.run(&format!("{args} --shard 1/3")).ok();
        cut.run(&format!("{args} --merge"))
            .refused("candidate 0 is missing: shard 0/3 has not come so far");
        // One is killed, all at once are started again.
        let mut killed = cut.start(&format!("{args} --shard 0/3"));
        std::thread::sleep(std::time::Duration::from_millis(150));
        killed.kill().unwrap();
        killed.wait().unwrap();
        let all: Vec<_> = (0..3)
            .map(|shard| cut.start(&format!("{args} --shard {shard}/3")))
            .collect();
        for mut one in all {
            assert!(one.wait().unwrap().success());
        }
        cut.run(&format!("{args} --merge")).ok();
        let times = ["log.jsonl"];
        assert_same(
            &whole.files("runs/tiny", &times),
            &cut.files("runs/tiny", &times),
        );
        let left = cut.files("runs/.steps", &[]);
        assert!(!left.keys().any(|name| name.contains("-of-")), "{left:?}");
    }
}

#[test]
fn what_is_no_shard_is_told() {
    let sandbox = crate::pipeline::tiny();
    sandbox
        .run("generate m.toml --shard 3/3")
        .refused("`3/3` is no shard: expected I/N with I from 0 to N - 1");
    sandbox
        .run("generate m.toml --shard 0/3 --set synthesis.ratio=0")
        .refused("`synthesis.ratio` is 0");
}
