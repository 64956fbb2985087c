//! Times a segmenter beside its PyTorch (`benches/compare.py` calls it): a step of training, forward, backward
//! and AdamW, and an answer, of one step of drawing where masks are drawn, of the published network or of the `tiny` one.
//!
//! `cargo run --release -p diffaug-baselines --example time -- NAME train|answer [tiny] SIDE BATCH ROUNDS`
//! prints milliseconds of every round after the first, which warms up, and the largest size of the process.

#![allow(clippy::print_stdout)]

use diffaug::{Error, Result};
use diffaug_baselines::*;
use diffaug_nn::{
    DType, Device, Tensor,
    diffusion::scheduler::SamplerName,
    layers::Mode,
    optim::{Config, Optimizer},
    params::Params,
    recompute,
    segmenter::{
        Architecture, Denoising, Description, Direct, Fusion, Learned, Options, Pass, Sampling,
        Setting,
    },
    testing,
};
use std::{env, fs, time::Instant};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is timed.
struct Work {
    trains: bool,
    tiny: bool,
    side: u32,
    batch: usize,
    rounds: usize,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let usage = || Error::config("expected NAME train|answer [tiny] SIDE BATCH ROUNDS");
    let (name, rest) = arguments.split_first().ok_or_else(usage)?;
    let (what, rest) = rest.split_first().ok_or_else(usage)?;
    let tiny = rest.first().is_some_and(|word| word == "tiny");
    let [side, batch, rounds] = &rest[usize::from(tiny)..] else {
        return Err(usage());
    };
    let number = |text: &String| text.parse::<usize>().map_err(|_| usage());
    let work = Work {
        trains: what == "train",
        tiny,
        side: number(side)? as u32,
        batch: number(batch)?,
        rounds: number(rounds)?,
    };
    match name.as_str() {
        "unet" => time::<Direct<unet::UNet>>(&work),
        "unet-resnet50" => time::<Direct<unet_resnet::UNet>>(&work),
        "medsegdiff-v1" => time::<Denoising<medsegdiff::v1::Net>>(&work),
        "medsegdiff-v2" => time::<Denoising<medsegdiff::v2::Net>>(&work),
        "diff-unet" => time::<Denoising<diff_unet::Net>>(&work),
        "diff-trans" => time::<Denoising<diff_trans::Net>>(&work),
        "transunet" => time::<Direct<transunet::TransUNet>>(&work),
        other => Err(Error::config(format!("no segmenter is called `{other}`"))),
    }
}

/// Does the work and prints what it took.
fn time<L: Learned>(work: &Work) -> Result<()> {
    let mut options = Options::<L::Architecture>::default();
    if work.tiny {
        options.architecture = Some(L::Architecture::tiny());
    }
    if L::DRAWS {
        options.sampling = Some(Sampling {
            sampler: Some(SamplerName::Ddim),
            steps: Some(1),
            runs: Some(1),
            fusion: Some(Fusion::Mean),
        });
    }
    let size = (work.side, work.side);
    let classes = vec![(1, "target".to_owned())];
    let description = Description::new(options.architecture(), classes, size);
    let mut params = Params::new(&Device::Cpu, 0);
    let net: L = description.network(&mut params)?;
    let setting = Setting {
        description: &description,
        options: &options,
        seed: 0,
        validates: false,
        go_on: &|| Ok(()),
    };
    let side = work.side as usize;
    let images = testing::random("images", &[work.batch, 3, side, side]);
    let targets = testing::random("targets", &[work.batch, side, side]).ge(0.5)?;
    let targets = targets.to_dtype(DType::U32)?;
    let config = Config::default();
    let mut optimizer = Optimizer::new(params.trainable(), &config)?;
    let seeds: Vec<u64> = (0..work.batch as u64).collect();
    for round in 0..=work.rounds {
        let start = Instant::now();
        if work.trains {
            let pass = Pass {
                mode: Mode::Train,
                ..Pass::ANSWER
            };
            let step = round as u64;
            let loss = net.loss(&setting, &images, targets.clone(), &pass, step)?;
            optimizer.step(&recompute::backward(&loss)?, 1e-4)?;
        } else {
            let answer: Tensor = net.answer(&setting, &images, &seeds)?.probabilities;
            answer.sum_all()?.to_scalar::<f32>()?;
        }
        if round > 0 {
            println!("{:.3}", start.elapsed().as_secs_f64() * 1e3);
        }
    }
    println!("peak {}", peak());
    Ok(())
}

/// The largest size of this process so far, in bytes; 0 where the system does not say.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().split(' ').next());
    kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}
