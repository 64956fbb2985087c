//! Facts of lesions in whole runs: from a side file, from measures; where they go to.

use crate::{
    pipeline::{tiny, with_folder},
    util::Sandbox,
};
use serde_json::Value;

/// A folder of lesions whose textures a side file states, and which of the test images are flat.
fn stated() -> Sandbox {
    let sandbox = with_folder();
    let mut text = "image,key,value\n".to_owned();
    for id in 0..8 {
        text += &format!("{id},texture,granular\n");
    }
    for (id, flat) in [(8, "yes"), (9, "no"), (10, "yes"), (11, "no")] {
        text += &format!("{id},flat,{flat}\n{id},grade,g{}\n", id % 2);
    }
    sandbox.write("attributes.csv", text);
    let manifest = sandbox.read("m.toml") + "\n[attributes]\nfile = \"attributes.csv\"\n";
    sandbox.write("m.toml", manifest);
    sandbox
}

fn tags(records: &[Value]) -> Vec<&str> {
    let tags = records.iter().flat_map(|r| r["tags"].as_array().unwrap());
    tags.map(|tag| tag.as_str().unwrap()).collect()
}

#[test]
fn facts_of_a_file_reach_prompts_and_groups() {
    let sandbox = stated();
    sandbox.run("check m.toml --data").ok();
    sandbox.run("run m.toml -q").ok();
    let mut records = sandbox.read_lines("runs/tiny/synthetic/metadata.jsonl");
    records.extend(sandbox.read_lines("runs/tiny/rejected.jsonl"));
    assert!(
        records
            .iter()
            .all(|r| r["attributes"]["texture"] == "granular")
    );
    let said = tags(&records);
    assert!(said.contains(&"granular"), "{said:?}");
    assert!(!said.contains(&"homogeneous") && !said.contains(&"heterogeneous"));
    let result = sandbox.read_json("runs/tiny/result.json");
    let groups = &result["arms"][0]["groups"];
    assert_eq!(groups["flat"]["images"], 2, "{groups}");
    assert_eq!(groups["grade = g0"]["images"], 2, "{groups}");
    let sizes = groups.as_object().unwrap().iter();
    let sizes = sizes.filter(|(name, _)| name.starts_with("size: "));
    let images: u64 = sizes.map(|(_, g)| g["images"].as_u64().unwrap()).sum();
    assert_eq!(images, 4, "every test image shows a lesion");
}

#[test]
fn a_changed_file_of_facts_is_noticed() {
    let sandbox = stated();
    sandbox.run("train generator m.toml -q").ok();
    sandbox.run("train generator m.toml -q").ok();
    let text = sandbox
        .read("attributes.csv")
        .replace("8,flat,yes", "8,flat,no");
    sandbox.write("attributes.csv", text);
    sandbox
        .run("train generator m.toml")
        .refused("was begun with `files.attributes.file` = ");
}

#[test]
fn faults_of_a_file_of_facts_are_explained() {
    let sandbox = stated();
    let sound = sandbox.read("attributes.csv");
    for (from, to, sentence) in [
        (
            "image,key",
            "id,key",
            "line 1 of `attributes.csv` is `id,key,value`",
        ),
        (
            "3,texture,granular",
            "3,texture",
            "line 5 of `attributes.csv` has 2 fields",
        ),
        (
            "3,texture",
            "2,texture",
            "line 5 of `attributes.csv` states `texture` of `2`",
        ),
    ] {
        sandbox.write("attributes.csv", sound.replace(from, to));
        for command in ["check m.toml", "check m.toml --data", "run m.toml"] {
            let output = sandbox.run(command);
            output.refused(sentence);
            assert!(
                output.stderr.contains("file = \"attributes.csv\""),
                "{output}"
            );
        }
    }
    // Which images there are is known to the dataset alone.
    sandbox.write("attributes.csv", sound.replace("3,texture", "33,texture"));
    sandbox.run("check m.toml").ok();
    for command in ["check m.toml --data", "run m.toml"] {
        let sentence = "line 5 of `attributes.csv` speaks of `33`, which is no image of";
        sandbox.run(command).refused(sentence);
    }
    let missing = "check m.toml --set attributes.file=none.csv";
    sandbox.run(missing).refused("cannot read `none.csv`");
}

#[test]
fn a_file_that_is_not_named_is_not_read() {
    let sandbox = with_folder();
    sandbox.write("data/attributes.csv", "nonsense");
    sandbox.run("check m.toml --data").ok();
    sandbox.run("train generator m.toml -q").ok();
    let manifest = sandbox.read("runs/tiny/manifest.toml");
    assert!(!manifest.contains("attributes.csv"), "{manifest}");
}

#[test]
fn pools_are_set_beside_each_other() {
    let sandbox = tiny();
    let printed = sandbox.run("run m.toml").ok().stdout;
    assert!(printed.contains("fine detail"), "{printed}");
    assert!(
        printed.contains("accepted by size of the lesion: "),
        "{printed}"
    );
    let synthesis = &sandbox.read_json("runs/tiny/result.json")["synthesis"];
    let pools = &synthesis["pools"];
    assert_eq!(pools["real"]["images"], 8);
    for pool in ["accepted", "rejected"] {
        assert_eq!(pools[pool]["images"], synthesis[pool], "{pools}");
        let list = match pool {
            "accepted" => "synthetic/metadata.jsonl",
            _ => "rejected.jsonl",
        };
        let records = sandbox.read_lines(&format!("runs/tiny/{list}"));
        let detail = records
            .iter()
            .map(|r| r["look"]["detail"].as_f64().unwrap());
        let mean = detail.sum::<f64>() / records.len() as f64;
        let found = pools[pool]["detail"]["mean"].as_f64().unwrap();
        assert!(
            (found - mean).abs() < 1e-9 && mean > 0.0,
            "{pool}: {found}, {mean}"
        );
    }
    let sizes = synthesis["by_size"].as_array().unwrap();
    let all: u64 = sizes
        .iter()
        .map(|g| g["candidates"].as_u64().unwrap())
        .sum();
    assert_eq!(all, synthesis["candidates"].as_u64().unwrap());
}

#[test]
fn a_bank_without_texts_paints_all_the_same() {
    let sandbox = tiny();
    let args = "generate m.toml -q --set prompts.use=none";
    sandbox.run(args).ok();
    let records = sandbox.read_lines("runs/tiny/synthetic/metadata.jsonl");
    assert!(!records.is_empty());
    for record in &records {
        assert_eq!(record["prompt"], "");
        assert_eq!(record["negative"], "");
        assert_eq!(record["tags"], serde_json::json!([]));
    }
}

#[test]
fn segmenters_train_on_images_with_artifacts() {
    let sandbox = tiny();
    let set = "--set augment.blur=1 --set augment.noise=8 --set augment.jpeg=60";
    sandbox
        .run(&format!("run m.toml -q --set synthesis.ratio=0 {set}"))
        .ok();
    let manifest = sandbox.read("runs/tiny/manifest.toml");
    assert!(manifest.contains("jpeg = 60"), "{manifest}");
    let plain = "run m.toml -q --set synthesis.ratio=0 --set output=plain";
    sandbox.run(plain).ok();
    let scores = |folder: &str| sandbox.read_json(&format!("{folder}/result.json"))["arms"].clone();
    assert_ne!(scores("runs/tiny"), scores("plain"));
    for (set, sentence) in [
        ("augment.blur=6", "`blur` is `6`, expected 0 to 5"),
        ("augment.jpeg=0", "`jpeg` is `0`, expected 1 to 100"),
        ("augment.artifacts=2", "`artifacts` is `2`, expected 0 to 1"),
    ] {
        let output = sandbox.run(&format!("check m.toml --set {set}"));
        output.refused(sentence);
    }
}
