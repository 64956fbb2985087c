//! What a call across the plugin border costs: `cargo bench -p diffaug`.
//!
//! A boxed stage goes through the same vtable, guard and result conversion whether it was linked in
//! or loaded, so no library is needed to measure it.

use diffaug::{
    BoxGenerator, Generator, Image, Job, Mask, Reporter, Result, Silent,
    abi_stable::std_types::{RSlice, RVec},
    with_reporter,
};
use divan::{Bencher, black_box};

struct Nothing;

impl Generator for Nothing {
    fn generate(&self, jobs: RSlice<'_, Job<'_>>, _: &Reporter<'_>) -> Result<RVec<Image>> {
        black_box(jobs);
        Ok(RVec::new())
    }
}

fn main() {
    divan::main();
}

fn call(bencher: Bencher<'_, '_>, generator: &impl Generator) {
    let side = 1024;
    let (Ok(image), Ok(mask)) = (
        Image::new(side, side, vec![0; (side * side * 3) as usize]),
        Mask::new(side, side, vec![1; (side * side) as usize]),
    ) else {
        return;
    };
    let jobs = [Job {
        source: "frame".into(),
        image: image.view(),
        mask: mask.view(),
        prompt: "a polyp".into(),
        negative: "".into(),
        seed: 7,
    }];
    with_reporter(&Silent, |reporter| {
        bencher.bench_local(|| generator.generate(black_box(&jobs[..]).into(), reporter));
    });
}

/// `generate` on a borrowed 1024x1024 image through the border.
#[divan::bench]
fn across_the_border(bencher: Bencher<'_, '_>) {
    call(bencher, &BoxGenerator::new(Nothing));
}

/// The same call on the plain trait.
#[divan::bench]
fn directly(bencher: Bencher<'_, '_>) {
    call(bencher, &Nothing);
}

/// What copying that image would cost instead.
#[divan::bench]
fn copying_the_image(bencher: Bencher<'_, '_>) {
    let image = vec![0_u8; 1024 * 1024 * 3];
    bencher.bench_local(|| black_box(&image).clone());
}
