//! How long the operations take, one by one and as networks.
//!
//! `cargo bench -p diffaug-nn --bench speed` times them with divan; behind `--` a part of a name
//! selects some. `compare.py` beside this file runs the same work in PyTorch, in turns with this
//! program, which it starts with the argument `serve`.

#![allow(clippy::print_stdout, clippy::expect_used)]

use candle_core::{DType, Device, Result, Tensor, Var};
use diffaug_nn::{
    diffusion::{PerBlock, UNet, UNetConfig},
    layers::{BatchNorm, Conv2d, ConvTranspose2x2, Mode},
    ops::{self, Activation, Attention, Convolution, PackedConv2d, PackedLinear},
    optim::{Config, Optimizer},
    params::{Params, Scope},
    testing::random,
};
use std::{io::BufRead, time::Instant};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// All cases; `compare.py` has the same.
const CASES: [&str; 41] = [
    "conv3 1x320x32",
    "conv3 4x64x128",
    "conv3 8x32x64",
    "conv3 2x128x256",
    "conv3 1x640x16",
    "conv3 backward 1x320x32",
    "conv3 backward 4x64x128",
    "conv3 backward 8x32x64",
    "conv3 backward 2x128x256",
    "conv3 backward 8x128x16",
    "conv3 stride 2 1x320x32",
    "conv3 stride 2 backward 4x64x128",
    "conv1 1x320x32",
    "conv1 4x64x128",
    "conv1 8x32x64",
    "conv1 backward 4x64x128",
    "conv3 packed 1x640x16",
    "conv3 packed bf16 1x320x32",
    "conv3 packed bf16 1x640x16",
    "conv3 packed bf16 1x1280x8",
    "conv1 packed bf16 1x320x32",
    "linear 1024x640x5120",
    "linear packed 77x2048x640",
    "linear packed bf16 77x2048x640",
    "linear packed 256x1280x1280",
    "linear packed bf16 256x1280x1280",
    "attention 1x10x1024x64",
    "attention backward 1x10x1024x64",
    "gelu tanh 1024x2560",
    "gelu 1024x2560",
    "group norm silu 1x320x32",
    "layer norm 1024x640",
    "train 8x64 width 16",
    "train 8x64 width 32",
    "train 4x128 width 32",
    "unet 64 batch 1",
    "unet 64 batch 2",
    "unet 160 batch 1",
    "unet 160 batch 2",
    "unet 64 bf16 batch 1",
    "unet 160 bf16 batch 1",
];

fn main() -> Result<()> {
    let_candle_sleep();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("serve") => serve(),
        Some("peak") => peak(&arguments[1..].join(" ")),
        _ => {
            divan::main();
            Ok(())
        }
    }
}

/// As the host does it, so that benchmarks time what users see: candle's threads sleep when they have
/// nothing to do.
#[allow(unsafe_code)]
fn let_candle_sleep() {
    // SAFETY: the first statement of the process; no other thread exists that could read the
    // environment.
    unsafe { std::env::set_var("CANDLE_BARRIER_POOL_SPIN_LIMIT", "1") };
}

#[divan::bench(args = CASES)]
fn speed(bencher: divan::Bencher<'_, '_>, name: &str) {
    let mut case = case(name).expect("the case can be set up");
    bencher.bench_local(|| case().expect("the case runs"));
}

/// Reads lines of a case and a time in seconds, and answers each with the milliseconds of every
/// run that fitted into the time, but at least three, after two that do not count.
fn serve() -> Result<()> {
    let mut present: Option<(String, Case)> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (name, seconds) = line.rsplit_once(' ').unwrap_or((&line, "1"));
        let seconds: f64 = seconds.parse().map_err(candle_core::Error::wrap)?;
        if present.as_ref().is_none_or(|(old, _)| old != name) {
            // The old one goes first: the networks are large.
            drop(present.take());
            present = Some((name.to_owned(), case(name)?));
        }
        if let Some((_, case)) = &mut present {
            case()?;
            case()?;
            let (begin, mut times) = (Instant::now(), Vec::new());
            while times.len() < 3 || begin.elapsed().as_secs_f64() < seconds {
                let start = Instant::now();
                case()?;
                times.push(format!("{:.4}", start.elapsed().as_secs_f64() * 1e3));
            }
            println!("{}", times.join(" "));
        }
    }
    Ok(())
}

/// Prints the process's size in MiB before the case is set up and the largest while it ran three
/// times.
fn peak(name: &str) -> Result<()> {
    let before = memory("VmRSS:");
    let mut case = case(name)?;
    for _ in 0..3 {
        case()?;
    }
    println!("{before} {}", memory("VmHWM:"));
    Ok(())
}

fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let size = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    size.unwrap_or(0) / 1024
}

type Case = Box<dyn FnMut() -> Result<()>>;

fn case(name: &str) -> Result<Case> {
    let numbers: Vec<usize> = name
        .split([' ', 'x'])
        .filter_map(|word| word.parse().ok())
        .collect();
    let (backward, narrow) = (name.contains("backward"), name.contains("bf16"));
    match name.split(' ').next().unwrap_or_default() {
        "conv3" if name.contains("packed") => packed_conv(&numbers, 3, narrow),
        "conv1" if name.contains("packed") => packed_conv(&numbers, 1, narrow),
        "conv3" if name.contains("stride 2") => conv(&numbers[1..], 3, 2, backward),
        "conv3" => conv(&numbers, 3, 1, backward),
        "conv1" => conv(&numbers, 1, 1, backward),
        "linear" => linear(&numbers, name.contains("packed"), narrow),
        "attention" => attention(&numbers, backward),
        "gelu" if name.contains("tanh") => pointwise(&numbers, ops::gelu_tanh),
        "gelu" => pointwise(&numbers, ops::gelu),
        "group" => group_norm(&numbers),
        "layer" => layer_norm(&numbers),
        "train" => train(&numbers),
        "unet" => unet(&numbers, narrow),
        other => candle_core::bail!("there is no case `{other}`"),
    }
}

/// `[batch, channels, side]`, to as many channels.
fn conv(numbers: &[usize], side: usize, stride: usize, backward: bool) -> Result<Case> {
    let &[batch, channels, size] = numbers else {
        candle_core::bail!("a convolution has three numbers");
    };
    let x = random("x", &[batch, channels, size, size]);
    let w = random("w", &[channels, channels, side, side]);
    let spec = Convolution::square(stride, side / 2);
    if !backward {
        return Ok(Box::new(move || {
            spec.forward(&x, &w, None)?;
            Ok(())
        }));
    }
    let (x, w) = (Var::from_tensor(&x)?, Var::from_tensor(&w)?);
    Ok(Box::new(move || {
        spec.forward(&x, &w, None)?.sum_all()?.backward()?;
        Ok(())
    }))
}

fn packed_conv(numbers: &[usize], side: usize, narrow: bool) -> Result<Case> {
    let &[batch, channels, size] = numbers else {
        candle_core::bail!("a convolution has three numbers");
    };
    let x = random("x", &[batch, channels, size, size]);
    let mut w = random("w", &[channels, channels, side, side]);
    if narrow {
        w = w.to_dtype(DType::BF16)?;
    }
    let packed = PackedConv2d::new(&w, None)?;
    Ok(Box::new(move || packed.forward(&x).map(drop)))
}

fn linear(numbers: &[usize], packed: bool, narrow: bool) -> Result<Case> {
    let &[rows, inputs, outputs] = numbers else {
        candle_core::bail!("a linear map has three numbers");
    };
    let x = random("x", &[rows, inputs]);
    let mut w = random("w", &[outputs, inputs]);
    if !packed {
        return Ok(Box::new(move || ops::linear(&x, &w, None).map(drop)));
    }
    if narrow {
        w = w.to_dtype(DType::BF16)?;
    }
    let packed = PackedLinear::new(&w, None)?;
    Ok(Box::new(move || packed.forward(&x).map(drop)))
}

fn attention(numbers: &[usize], backward: bool) -> Result<Case> {
    let &[batch, heads, tokens, width] = numbers else {
        candle_core::bail!("attention has four numbers");
    };
    let draw = |name| Var::from_tensor(&random(name, &[batch, tokens, heads * width]));
    let (q, k, v) = (draw("q")?, draw("k")?, draw("v")?);
    Ok(Box::new(move || {
        let attention = Attention::new(heads);
        if backward {
            attention.forward(&q, &k, &v)?.sum_all()?.backward()?;
        } else {
            let [q, k, v] = [&q, &k, &v].map(|t| t.as_detached_tensor());
            attention.forward(&q, &k, &v)?;
        }
        Ok(())
    }))
}

fn pointwise(shape: &[usize], f: fn(&Tensor) -> Result<Tensor>) -> Result<Case> {
    let x = random("x", shape);
    Ok(Box::new(move || f(&x).map(drop)))
}

fn group_norm(numbers: &[usize]) -> Result<Case> {
    let &[batch, channels, size] = numbers else {
        candle_core::bail!("group norm has three numbers");
    };
    let x = random("x", &[batch, channels, size, size]);
    let (w, b) = (random("w", &[channels]), random("b", &[channels]));
    Ok(Box::new(move || {
        ops::group_norm(&x, 32, &w, &b, 1e-5, Some(Activation::Silu)).map(drop)
    }))
}

fn layer_norm(shape: &[usize]) -> Result<Case> {
    let x = random("x", shape);
    let (w, b) = (random("w", &shape[1..]), random("b", &shape[1..]));
    Ok(Box::new(move || {
        ops::layer_norm(&x, &w, &b, 1e-5).map(drop)
    }))
}

/// A training step of a U-Net of four levels: forward, backward and AdamW.
fn train(numbers: &[usize]) -> Result<Case> {
    let &[batch, size, width] = numbers else {
        candle_core::bail!("training has three numbers");
    };
    let x = random("x", &[batch, 3, size, size]);
    let targets = random("y", &[batch, 1, size, size]).ge(0.0)?;
    let targets = targets.to_dtype(DType::F32)?;
    let mut params = Params::new(&Device::Cpu, 0);
    let net = Small::new(params.root(), width)?;
    let config = Config {
        weight_decay: 1e-2,
        ..Config::default()
    };
    let mut optimiser = Optimizer::new(params.trainable(), &config).map_err(wrap)?;
    Ok(Box::new(move || {
        let loss = ops::bce_with_logits(&net.forward(&x)?, &targets)?;
        optimiser.step(&loss.backward()?, 1e-3)?;
        Ok(())
    }))
}

fn wrap(error: diffaug::Error) -> candle_core::Error {
    candle_core::Error::msg(error.to_string())
}

/// Twice convolution, batch normalisation and ReLU.
struct Double([(Conv2d, BatchNorm); 2]);

impl Double {
    fn new(mut scope: Scope<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        let mut half = |i: usize, inputs| -> Result<_> {
            let conv = Conv2d::new(scope.child(&format!("conv{i}")), inputs, outputs, 3, false)?;
            Ok((
                conv,
                BatchNorm::new(scope.child(&format!("norm{i}")), outputs)?,
            ))
        };
        Ok(Double([half(0, inputs)?, half(1, outputs)?]))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [(conv, norm), (conv2, norm2)] = &self.0;
        let x = norm.forward_after(conv, x, Mode::Train)?;
        norm2.forward_after(conv2, &x, Mode::Train)
    }
}

struct Small {
    down: Vec<Double>,
    grow: Vec<ConvTranspose2x2>,
    up: Vec<Double>,
    head: Conv2d,
}

impl Small {
    fn new(mut scope: Scope<'_>, width: usize) -> Result<Self> {
        let widths = [3, width, 2 * width, 4 * width, 8 * width];
        let (mut down, mut grow, mut up) = (Vec::new(), Vec::new(), Vec::new());
        for (i, pair) in widths.windows(2).enumerate() {
            down.push(Double::new(
                scope.child(&format!("down{i}")),
                pair[0],
                pair[1],
            )?);
        }
        for (i, pair) in widths.windows(2).enumerate().skip(1) {
            let (low, high) = (pair[1], pair[0]);
            grow.push(ConvTranspose2x2::new(
                scope.child(&format!("grow{i}")),
                low,
                high,
            )?);
            up.push(Double::new(scope.child(&format!("up{i}")), 2 * high, high)?);
        }
        let head = Conv2d::new(scope.child("head"), width, 1, 1, true)?;
        Ok(Small {
            down,
            grow,
            up,
            head,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.down[0].forward(x)?;
        let mut skips = Vec::new();
        for block in &self.down[1..] {
            let smaller = ops::max_pool2x2(&x)?;
            skips.push(x);
            x = block.forward(&smaller)?;
        }
        for (grow, block) in self.grow.iter().zip(&self.up).rev() {
            let grown = grow.forward(&x)?;
            if let Some(skip) = skips.pop() {
                x = block.forward(&Tensor::cat(&[&skip, &grown], 1)?)?;
            }
        }
        self.head.forward(&x)
    }
}

/// A network of SDXL's shape on a latent of 32×32.
fn unet(numbers: &[usize], narrow: bool) -> Result<Case> {
    let &[width, batch] = numbers else {
        candle_core::bail!("a UNet has two numbers");
    };
    let (deep, heads) = match width {
        64 => (4, vec![1, 2, 4]),
        _ => (10, vec![5, 5, 10]),
    };
    let names = |names: [&str; 3]| names.map(str::to_owned).to_vec();
    let (down, up) = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D");
    let config = UNetConfig {
        in_channels: 9,
        block_out_channels: vec![width, 2 * width, 4 * width],
        down_block_types: names(["DownBlock2D", down, down]),
        up_block_types: names([up, up, "UpBlock2D"]),
        transformer_layers_per_block: PerBlock::Each(vec![1, 2, deep]),
        attention_head_dim: PerBlock::Each(heads),
        cross_attention_dim: 2048,
        use_linear_projection: true,
        ..UNetConfig::default()
    };
    let mut params = Params::new(&Device::Cpu, 0);
    UNet::new(params.root(), &config)?;
    let tensors = params.all().map(|(name, var)| {
        let dtype = if narrow { DType::BF16 } else { DType::F32 };
        Ok((name.to_owned(), var.as_detached_tensor().to_dtype(dtype)?))
    });
    let tensors = tensors.collect::<Result<_>>()?;
    drop(params);
    let net = UNet::new(Params::frozen(&Device::Cpu, tensors).root(), &config)?;
    let x = random("x", &[batch, 9, 32, 32]);
    let context = random("context", &[batch, 77, 2048]);
    let t = Tensor::new(&[10f32], &Device::Cpu)?;
    Ok(Box::new(move || {
        net.forward(&x, &t, &context, None).map(drop)
    }))
}
