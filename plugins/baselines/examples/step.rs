//! Times a training step of the network: forward, backward and AdamW, at three sizes.
//!
//! `cargo run --release -p diffaug-baselines --example step [small] [stock]`; with `small` only the
//! first size, with `stock` the same network on candle's own operations.

#![allow(clippy::print_stdout)]

use candle_core::{Result, Tensor, Var};
use diffaug_baselines::unet::{Architecture, UNet};
use diffaug_nn::optim::{Config, Optimizer};
use diffaug_nn::segmenter::{Network, Pass};
use diffaug_nn::{DType, Device, layers::Mode, ops, params::Params, testing};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let stock = std::env::args().any(|arg| arg == "stock");
    let small = std::env::args().any(|arg| arg == "small");
    let sizes = [[8, 96, 8, 3], [8, 128, 16, 4], [4, 128, 32, 4]];
    for [batch, side, width, depth] in sizes.into_iter().take(if small { 1 } else { 3 }) {
        let images = testing::random("images", &[batch, 3, side, side]);
        let targets = testing::random("targets", &[batch, 1, side, side]).ge(0.5)?;
        let targets = targets.to_dtype(DType::F32)?;
        let mut params = Params::new(&Device::Cpu, 0);
        let architecture = Architecture {
            width,
            depth,
            ..Architecture::default()
        };
        let net = UNet::new(params.root(), &architecture, 1, (side as u32, side as u32))?;
        let learning = Pass {
            mode: Mode::Train,
            ..Pass::ANSWER
        };
        let own = Stock::new(&params, width, depth);
        let config = Config {
            weight_decay: 1e-4,
            clip: 1.0,
            ..Config::default()
        };
        let optimiser = Optimizer::new(params.trainable(), &config);
        let mut optimiser = optimiser.map_err(candle_core::Error::wrap)?;
        let mut forward = Vec::new();
        let mut whole = Vec::new();
        let steps = match (stock, small) {
            (true, _) => 4,
            (false, true) => 100,
            (false, false) => 20,
        };
        let cpu = cpu_time();
        for _ in 0..steps {
            let start = Instant::now();
            let logits = if stock {
                own.forward(&images)?
            } else {
                net.forward(&images, &learning)?
            };
            let loss = ops::dice_bce_with_logits(&logits, &targets, 1.0, 1.0)?;
            forward.push(start.elapsed().as_secs_f64() * 1e3);
            optimiser.step(&loss.backward()?, 1e-3)?;
            whole.push(start.elapsed().as_secs_f64() * 1e3);
        }
        println!(
            "[{batch}, 3, {side}, {side}] width {width} depth {depth}: {:.1} ms (fastest {:.1}), of it forward {:.1} ms; {:.1} ms of processor time; peak {} MiB",
            median(&mut whole),
            whole[0],
            median(&mut forward),
            (cpu_time() - cpu) / f64::from(steps),
            peak_memory()
        );
    }
    Ok(())
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Milliseconds that all threads of the process have been running, where the system tells: unlike
/// the time that passed it hardly depends on what else the machine is doing.
fn cpu_time() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let running = tasks.filter_map(|task| {
        let line = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        line.split(' ').next()?.parse::<f64>().ok()
    });
    running.sum::<f64>() / 1e6
}

/// The process's largest resident size so far, where the system tells.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let size = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    size.unwrap_or(0) / 1024
}

/// The same network on candle's own operations.
struct Stock {
    vars: std::collections::HashMap<String, Var>,
    depth: usize,
}

impl Stock {
    fn new(params: &Params, _width: usize, depth: usize) -> Self {
        let vars = params
            .trainable()
            .map(|(name, var)| (name.to_owned(), var.clone()));
        Stock {
            vars: vars.collect(),
            depth,
        }
    }

    fn double(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for i in 1..=2 {
            let y = x.conv2d(&self.vars[&format!("{name}.conv{i}.weight")], 1, 1, 1, 1)?;
            let mean = y.mean_keepdim((0, 2, 3))?;
            let centred = y.broadcast_sub(&mean)?;
            let variance = centred.sqr()?.mean_keepdim((0, 2, 3))?;
            let y = centred.broadcast_div(&(variance + 1e-5)?.sqrt()?)?;
            let wide = |part: &str| {
                let var = &self.vars[&format!("{name}.norm{i}.{part}")];
                var.reshape((1, (), 1, 1))
            };
            let y = y
                .broadcast_mul(&wide("weight")?)?
                .broadcast_add(&wide("bias")?)?;
            x = y.relu()?;
        }
        Ok(x)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.double("entry", x)?;
        let mut skips = Vec::new();
        for level in 1..=self.depth {
            let smaller = x.max_pool2d(2)?;
            skips.push(x);
            x = self.double(&format!("down{level}"), &smaller)?;
        }
        for level in (0..self.depth).rev() {
            let grown =
                x.conv_transpose2d(&self.vars[&format!("up{level}.grow.weight")], 0, 0, 2, 1)?;
            let bias = self.vars[&format!("up{level}.grow.bias")].reshape((1, (), 1, 1))?;
            let grown = grown.broadcast_add(&bias)?;
            let both = Tensor::cat(&[&skips[level], &grown], 1)?;
            x = self.double(&format!("up{level}"), &both)?;
        }
        let bias = self.vars["head.bias"].reshape((1, (), 1, 1))?;
        x.conv2d(&self.vars["head.weight"], 0, 1, 1, 1)?
            .broadcast_add(&bias)
    }
}
