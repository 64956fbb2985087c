//! Trainings on real and synthetic images in a stated proportion.

use crate::{pipeline::tiny, util::Sandbox};
use std::fs;

/// Weights of the arm with real images alone, which are the gate's, and of the augmented one.
fn weights(sandbox: &Sandbox) -> [Vec<u8>; 2] {
    ["segmenter", "evaluate/augmented/seed-0/weights"].map(|folder| {
        let path = format!("runs/tiny/{folder}/weights.safetensors");
        fs::read(sandbox.path(&path)).unwrap()
    })
}

#[test]
fn both_arms_train_alike_and_only_one_sees_what_was_painted() {
    let plain = "--set augment.enabled=false --set segmenter.train.steps=6 --set segmenter.train.keep=last \
                 --set segmenter.train.real_statistics=true";
    let run = |more: &str| {
        let sandbox = tiny();
        sandbox.run(&format!("run m.toml {plain} {more}")).ok();
        let result = sandbox.read_json("runs/tiny/result.json");
        for arm in result["arms"].as_array().unwrap() {
            let fit = &arm["runs"][0]["fit"];
            assert_eq!(
                (&fit["steps"], &fit["best_step"]),
                (&6.into(), &6.into()),
                "{arm}"
            );
        }
        weights(&sandbox)
    };
    let [real, augmented] = run("--set segmenter.train.synthetic_share=0.3");
    assert_ne!(real, augmented);
    // With every step real, the augmented arm is the other one.
    let [real, augmented] = run("--set segmenter.train.real_last=1.0");
    assert_eq!(real, augmented);
}

#[test]
fn a_share_out_of_range_is_refused() {
    tiny()
        .run("check m.toml --set segmenter.train.synthetic_share=1.0")
        .refused("`train.synthetic_share` is 1, expected a number from 0 to below 1");
}
