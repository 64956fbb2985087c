//! Times of operations and networks on the device; `tests/gpu/torch_side.py` times the same in
//! PyTorch.

use crate::{Answer, Failure, Setting};
use candle_core::{DType, Device, Result, Var};
use diffaug_nn::{
    ops::{self, Activation, Attention, Convolution},
    testing::random,
};
use std::time::Instant;

type Case = Box<dyn Fn() -> Result<()>>;

/// The cases by name; `tiny` ones have a sixteenth of the channels or rows.
fn cases(device: &Device, tiny: bool) -> Result<Vec<(String, Case)>> {
    let part = if tiny { 16 } else { 1 };
    let mut cases: Vec<(String, Case)> = Vec::new();
    for (name, dtype) in [("bf16", DType::BF16), ("f32", DType::F32)] {
        let draw = |key: &str, shape: &[usize]| {
            // Drawn on the host: small, and repeated where more is wanted.
            random(key, shape).to_dtype(dtype)?.to_device(device)
        };
        let mut add = |what: &str, case: Case| cases.push((format!("{what} {name}"), case));
        let side = 4096 / part;
        let (a, b) = (draw("a", &[side, side])?, draw("b", &[side, side])?);
        add("matmul 4096", Box::new(move || a.matmul(&b).map(drop)));
        let (x, w) = (
            draw("x", &[4096 / part, 640])?,
            draw("w", &[5120 / part, 640])?,
        );
        add("linear 4096x640x5120", {
            Box::new(move || ops::linear(&x, &w, None).map(drop))
        });
        for (channels, side) in [(320, 128), (640, 64), (1280, 32)] {
            let channels = channels / part;
            let x = draw("x", &[2, channels, side, side])?;
            let w = draw("w", &[channels, channels, 3, 3])?;
            let what = format!("conv3 2x{}x{side}", channels * part);
            add(&what, Box::new(move || ops::conv2d(&x, &w, None).map(drop)));
        }
        let (x, w) = (
            draw("x", &[2, 320 / part, 128, 128])?,
            draw("w", &[320 / part, 320 / part, 3, 3])?,
        );
        add("conv3 stride 2 2x320x128", {
            Box::new(move || {
                let spec = Convolution::square(2, 1);
                spec.forward(&x, &w, None).map(drop)
            })
        });
        for (rows, heads) in [(1024, 20), (4096, 10)] {
            let rows = rows / part;
            let [q, k, v] = ["q", "k", "v"].map(|key| draw(key, &[2, rows, heads * 64]));
            let (q, k, v) = (q?, k?, v?);
            let what = format!("attention 2x{heads}x{}x64", rows * part);
            add(&what, {
                Box::new(move || Attention::new(heads).forward(&q, &k, &v).map(drop))
            });
            let vars =
                ["q", "k", "v"].map(|key| Var::from_tensor(&draw(key, &[2, rows, heads * 64])?));
            let [q, k, v] = vars;
            let (q, k, v) = (q?, k?, v?);
            let what = format!("attention backward 2x{heads}x{}x64", rows * part);
            add(&what, {
                Box::new(move || {
                    let y = Attention::new(heads).forward(&q, &k, &v)?;
                    y.to_dtype(DType::F32)?.sum_all()?.backward().map(drop)
                })
            });
        }
        let (x, w, b) = (
            draw("x", &[2, 320, 128 / part, 128])?,
            draw("w", &[320])?,
            draw("b", &[320])?,
        );
        add("group norm silu 2x320x128", {
            Box::new(move || {
                ops::group_norm(&x, 32, &w, &b, 1e-5, Some(Activation::Silu)).map(drop)
            })
        });
        let (x, w, b) = (
            draw("x", &[8192 / part, 640])?,
            draw("w", &[640])?,
            draw("b", &[640])?,
        );
        add("layer norm 8192x640", {
            Box::new(move || ops::layer_norm(&x, &w, &b, 1e-5).map(drop))
        });
        let x = draw("x", &[8192 / part, 5120])?;
        add(
            "geglu 8192x5120",
            Box::new(move || ops::geglu(&x).map(drop)),
        );
        let x = draw("x", &[2, 640 / part, 64, 64])?;
        add("nearest 2x640x64", {
            Box::new(move || ops::upsample_nearest2d(&x, 128, 128).map(drop))
        });
    }
    Ok(cases)
}

/// Milliseconds of one run, the median of five groups, each long enough to be timed.
fn timed(device: &Device, case: &Case, tiny: bool) -> Result<f64> {
    let group = |count: usize| -> Result<f64> {
        let begin = Instant::now();
        for _ in 0..count {
            case()?;
        }
        device.synchronize()?;
        Ok(begin.elapsed().as_secs_f64() * 1e3 / count as f64)
    };
    group(2)?;
    let once = group(3)?;
    let aim = if tiny { 2.0 } else { 40.0 };
    let count = ((aim / once.max(1e-3)) as usize).clamp(1, 200);
    let mut times = (0..5).map(|_| group(count)).collect::<Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[2])
}

/// `NAME=MILLISECONDS` of every case, separated by semicolons.
pub fn check(setting: &Setting) -> std::result::Result<Answer, Failure> {
    let figures = cases(&setting.device, setting.tiny)?
        .into_iter()
        .map(|(name, case)| {
            let time = ops::composed(|| timed(&setting.device, &case, setting.tiny))?;
            Ok(format!("{name}={time:.4}"))
        })
        .collect::<Result<Vec<String>>>()?;
    Ok(Answer::measured(figures.join(";")))
}
