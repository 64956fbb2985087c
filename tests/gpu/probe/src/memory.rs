//! Memory of attention: what the definition needs, which holds all scores, and what is needed in
//! blocks.

use crate::{Answer, Failure, Setting};
use candle_core::{D, DType, Device, Result, Tensor, Var};
use diffaug_nn::{
    device::memory_in_use,
    ops::{self, Attention},
    testing::random,
};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

const WIDTH: usize = 64;

/// softmax(q kᵀ) v, all scores at once.
fn whole(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, rows, all) = q.dims3()?;
    let cut = |t: &Tensor| {
        let t = t.reshape((batch, rows, heads, all / heads))?;
        t.transpose(1, 2)?.contiguous()
    };
    let scores = (cut(q)?.matmul(&cut(k)?.t()?)? / (WIDTH as f64).sqrt())?;
    let mixed = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&cut(v)?)?;
    mixed.transpose(1, 2)?.reshape((batch, rows, all))
}

/// MiB that `work` needs at most beyond what there was before.
fn peak(device: &Device, work: impl Fn() -> Result<()>) -> std::result::Result<u64, Failure> {
    let on_host = || process_memory("VmHWM:");
    let Some(before) = memory_in_use(device) else {
        let before = process_memory("VmRSS:");
        work()?;
        return Ok(on_host().saturating_sub(before) / 1024);
    };
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(before));
    let outcome: Result<()> = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(memory_in_use(device).unwrap_or(0), Ordering::Relaxed);
                thread::sleep(Duration::from_micros(200));
            }
        });
        // Often enough that the other thread sees it.
        let outcome = (0..10).try_for_each(|_| work());
        let outcome = outcome.and_then(|()| device.synchronize());
        most.fetch_max(memory_in_use(device).unwrap_or(0), Ordering::Relaxed);
        done.store(true, Ordering::Relaxed);
        outcome
    });
    outcome?;
    Ok((most.into_inner() - before) >> 20)
}

/// KiB of this process.
fn process_memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let size = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    size.unwrap_or(0)
}

/// `FORM/POSITIONS/HEADS`: `whole` or `blocks`, or either with `-backward`; the figure is in MiB.
pub fn check(what: &str, setting: &Setting) -> std::result::Result<Answer, Failure> {
    let mut words = what.split('/');
    let form = words.next().unwrap_or_default();
    let mut number = || words.next().and_then(|word| word.parse::<usize>().ok());
    let (Some(positions), Some(heads)) = (number(), number()) else {
        return Err(format!("expected `memory/FORM/POSITIONS/HEADS`, not `{what}`").into());
    };
    let dtype = match setting.device.is_cpu() {
        true => DType::F32,
        false => DType::BF16,
    };
    let draw = |name: &str| {
        let drawn = random(name, &[1, positions, heads * WIDTH]).to_dtype(dtype)?;
        drawn.to_device(&setting.device)
    };
    let vars = [draw("q")?, draw("k")?, draw("v")?].map(|t| Var::from_tensor(&t));
    let [q, k, v] = vars;
    let (q, k, v) = (q?, k?, v?);
    setting.device.synchronize()?;
    let (form, backward) = match form.strip_suffix("-backward") {
        Some(form) => (form, true),
        None => (form, false),
    };
    let attend = || -> Result<()> {
        let tensors = [&q, &k, &v].map(|var| match backward {
            true => var.as_tensor().clone(),
            false => var.as_detached_tensor(),
        });
        let [q, k, v] = &tensors;
        let y = match form {
            "whole" => whole(q, k, v, heads)?,
            _ => Attention::new(heads).forward(q, k, v)?,
        };
        if backward {
            y.to_dtype(DType::F32)?.sum_all()?.backward()?;
        }
        Ok(())
    };
    let mebibytes = peak(&setting.device, || ops::composed(attend))?;
    Ok(Answer::measured(format!("{mebibytes}")))
}
