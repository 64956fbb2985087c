//! Optimisers and running means on the device against the processor's kernels.

use crate::{Answer, Failure, Setting};
use candle_core::{Device, Result, Tensor, Var};
use diffaug_nn::{
    ops,
    optim::{Config, Decay, Ema, Optimizer, Rule},
    testing::{operations::difference, random},
};

/// Differences of weights after 20 steps as part of the largest weight.
const TOLERANCE: f32 = 1e-4;

fn rules() -> [(&'static str, Rule); 3] {
    [
        ("adamw", Rule::default()),
        (
            "sgd",
            Rule::Sgd {
                momentum: 0.9,
                nesterov: true,
            },
        ),
        (
            "rmsprop",
            Rule::RmsProp {
                alpha: 0.99,
                epsilon: 1e-8,
                momentum: 0.9,
                centered: true,
            },
        ),
    ]
}

/// Weights and their running mean after 20 clipped steps.
fn trained(rule: Rule, device: &Device) -> Result<[Tensor; 2]> {
    let weight = Var::from_tensor(&random("weight", &[7, 33]).to_device(device)?)?;
    let x = random("x", &[5, 33]).to_device(device)?;
    let config = Config {
        rule,
        weight_decay: 0.01,
        clip: 0.5,
        ..Config::default()
    };
    let failed = |error: diffaug::Error| candle_core::Error::Msg(error.to_string());
    let mut optimizer = Optimizer::new([("weight", &weight)], &config).map_err(failed)?;
    let mut mean = Ema::new([("weight", &weight)], Decay::Fixed { decay: 0.9 })?;
    for _ in 0..20 {
        let loss = ops::linear(&x, &weight, None)?.sqr()?.mean_all()?;
        optimizer.step(&loss.backward()?, 1e-2)?;
        mean.update()?;
    }
    let Some((_, averaged)) = mean.means().next() else {
        candle_core::bail!("there is no running mean");
    };
    let on_host = |t: &Tensor| t.to_device(&Device::Cpu);
    Ok([on_host(weight.as_tensor())?, on_host(averaged.as_tensor())?])
}

/// All rules.
pub fn check(setting: &Setting) -> std::result::Result<Answer, Failure> {
    let (mut worst, mut wrong) = (0.0f32, Vec::new());
    for (name, rule) in rules() {
        let expected = trained(rule, &Device::Cpu)?;
        let found = ops::composed(|| trained(rule, &setting.device))?;
        for ((found, expected), what) in found.iter().zip(&expected).zip(["weights", "mean"]) {
            let off = difference(found, expected)?;
            worst = worst.max(off);
            if off > TOLERANCE {
                wrong.push(format!("{name}: {what} differ by {off:.1e}"));
            }
        }
    }
    let figure = format!("20 steps of three rules: largest difference {worst:.1e}");
    Ok(Answer { figure, wrong })
}
