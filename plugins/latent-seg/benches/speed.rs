//! What a verdict takes: images are segmented one by one, as a gate would, and compared with a mask.
//!
//! `cargo bench -p diffaug-latent-seg -- WEIGHTS STEPS IMAGES` prints the milliseconds of an image, the
//! median of IMAGES after two that do not count. `compare.py` calls it.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use diffaug::{
    Context, Image, Mask, Silent, metrics::Confusion, prelude::*, stage::Segmenter as Stage,
    with_reporter,
};
use diffaug_latent_seg::{LatentSeg, Options};
use rand::RngExt;
use serde_json::json;
use std::time::Instant;

// The allocator of the host, so that users see the same.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SIDE: u32 = 256;

fn main() {
    let_candle_sleep();
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let [weights, steps, images] = arguments.as_slice() else {
        println!("usage: WEIGHTS STEPS IMAGES");
        return;
    };
    let (steps, count): (usize, u64) = (steps.parse().unwrap(), images.parse().unwrap());
    let options = json!({ "weights": weights, "steps": steps });
    let options: Options = serde_json::from_value(options).unwrap();
    let stage = LatentSeg::from_config(options, &Context::default()).unwrap();
    let mut times: Vec<f64> = (0..count + 2)
        .map(|index| verdict(&stage, index))
        .skip(2)
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{:.3}", times[times.len() / 2]);
}

/// Milliseconds from image to IoU.
fn verdict(stage: &LatentSeg, index: u64) -> f64 {
    let mut rng = diffaug::rng::stream(0, "image", index);
    let pixels = (0..3 * SIDE * SIDE).map(|_| rng.random()).collect();
    let image = Image::new(SIDE, SIDE, pixels).unwrap();
    let labels = (0..SIDE * SIDE)
        .map(|i| u8::from(i % SIDE < SIDE / 3))
        .collect();
    let wanted = Mask::new(SIDE, SIDE, labels).unwrap();
    let begin = Instant::now();
    let images = [image.view()];
    let found = with_reporter(&Silent, |r| stage.segment((&images[..]).into(), r)).unwrap();
    let iou = Confusion::of(wanted.view(), found[0].mask.view(), &[1])
        .unwrap()
        .iou();
    std::hint::black_box(iou);
    begin.elapsed().as_secs_f64() * 1e3
}

/// As the host does it: candle's threads sleep when they have nothing to do.
#[allow(unsafe_code)]
fn let_candle_sleep() {
    // SAFETY: the first statement of the process; no other thread exists that could read the
    // environment.
    unsafe { std::env::set_var("CANDLE_BARRIER_POOL_SPIN_LIMIT", "1") };
}
