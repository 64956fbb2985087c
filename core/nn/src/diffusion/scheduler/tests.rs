//! Whole trajectories agree with diffusers', and training noise too.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::{Fixtures, check_gradients, close, random};
use candle_core::{DType, Device, Result, Tensor};
use serde::Deserialize;
use std::{fs, path::PathBuf};

#[derive(Deserialize)]
struct Case {
    name: String,
    config: SchedulerConfig,
    sampler: Option<SamplerName>,
    steps: usize,
    strength: f64,
    eta: f64,
    draws: usize,
}

#[derive(Deserialize)]
struct Training {
    name: String,
    config: SchedulerConfig,
}

/// What `fixtures/make_scheduler_fixtures.py` lists.
#[derive(Deserialize)]
struct Listing {
    t: Vec<u32>,
    cases: Vec<Case>,
    training: Vec<Training>,
}

fn fixtures() -> (Listing, Fixtures) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let listing = fs::read_to_string(folder.join("scheduler.json")).unwrap();
    (
        serde_json::from_str(&listing).unwrap(),
        Fixtures::open(folder.join("scheduler.safetensors")),
    )
}

fn vector(values: &[f64]) -> Tensor {
    let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
    Tensor::new(values, &Device::Cpu).unwrap()
}

/// The network of the fixtures.
fn network(x: &Tensor, t: f64) -> Tensor {
    x.affine(0.7, 1.3 * t / 1000.0).unwrap().tanh().unwrap()
}

fn no_noise() -> Result<Tensor> {
    candle_core::bail!("noise was drawn")
}

impl Case {
    fn sampler(&self) -> Sampler {
        let mut config = match self.sampler {
            Some(name) => self.config.with_sampler(name),
            None => self.config.clone(),
        };
        config.eta = (self.eta > 0.0).then_some(self.eta);
        Sampler::new(&config, self.steps).unwrap()
    }

    /// Goes down as the pipelines of diffusers do, and compares every step.
    fn check(&self, sampler: &mut Sampler, fixtures: &Fixtures) {
        let get = |name: &str| fixtures.get(&self.name, name);
        let start = |name: &str| fixtures.get("start", name);
        close(&vector(sampler.timesteps()), get("timesteps"), 1e-6);
        if !sampler.sigmas().is_empty() {
            close(&vector(sampler.sigmas()), get("sigmas"), 1e-5);
        }
        close(&vector(&[sampler.init_noise_sigma()]), get("init"), 1e-5);
        // From 4096 times as much noise as signal Euler's first step cancels all but a hundredth,
        // and diffusers takes it in single precision: that alone is off by 1.3e-5.
        let cancels = sampler.init_noise_sigma() > 1000.0;
        let tolerance = if cancels { 2e-5 } else { 1e-5 };
        let first = sampler.start_at(self.strength);
        sampler.begin(first);
        let mut x = match self.strength < 1.0 {
            true => sampler.noised(start("z0"), start("noise"), first),
            false => start("noise") * sampler.init_noise_sigma(),
        }
        .unwrap();
        let mut draws = 0;
        for i in first..sampler.timesteps().len() {
            let input = sampler.scale_input(&x, i).unwrap();
            let mut output = network(&input, sampler.timesteps()[i]);
            if self.config.variance_type.as_deref() == Some("learned_range") {
                let between = input.affine(1.1, -0.4).unwrap().tanh().unwrap();
                output = Tensor::cat(&[output, between], 1).unwrap();
            }
            let draw = || {
                draws += 1;
                start("draws").get(draws - 1)
            };
            let step = sampler.step(&output, i, &x, draw).unwrap();
            close(&step.x, &get("x").get(i - first).unwrap(), tolerance);
            close(&step.z0, &get("z0").get(i - first).unwrap(), tolerance);
            x = step.x;
        }
        assert_eq!(draws, self.draws);
        assert_eq!(get("x").dim(0).unwrap(), sampler.timesteps().len() - first);
    }
}

#[test]
fn trajectories_agree_with_diffusers() {
    let (listing, fixtures) = fixtures();
    for case in &listing.cases {
        case.check(&mut case.sampler(), &fixtures);
    }
    assert_eq!(listing.cases.len(), 80);
}

#[test]
fn a_sampler_serves_again_whatever_it_did_before() {
    let (listing, fixtures) = fixtures();
    let strong = |case: &&Case| case.name.starts_with("sdxl_") && case.strength == 0.6;
    for case in listing.cases.iter().filter(strong) {
        let mut sampler = case.sampler();
        let x = fixtures.get("start", "noise");
        let draw = || Ok(x.clone());
        for i in 0..3 {
            sampler.step(x, i, x, draw).unwrap();
        }
        case.check(&mut sampler, &fixtures);
        case.check(&mut sampler, &fixtures);
    }
}

/// As in `scheduler_config.json` of SDXL.
fn sdxl() -> SchedulerConfig {
    let (listing, _) = fixtures();
    listing.cases[0].config.clone()
}

#[test]
fn the_figures_of_sdxl() {
    let sampler = Sampler::new(&sdxl(), 50).unwrap();
    let timesteps: Vec<f64> = (0..50).rev().map(|i| f64::from(20 * i + 1)).collect();
    assert_eq!(sampler.timesteps(), timesteps);
    assert!((sampler.sigmas()[0] - 13.1204).abs() < 5e-5);
    assert!((sampler.init_noise_sigma() - 13.1585).abs() < 5e-5);
    assert_eq!(sampler.sigmas()[50], 0.0);
    let starts = [1.0, 0.9999, 0.5, 0.02, 0.01, 0.0].map(|s| sampler.start_at(s));
    assert_eq!(starts, [0, 1, 25, 49, 50, 50]);
}

#[test]
fn steps_of_a_solver_that_remembers_follow_each_other() {
    let x = random("x", &[1, 2]);
    for name in SamplerName::ALL {
        let mut config = sdxl().with_sampler(name);
        config.eta = None;
        let mut sampler = Sampler::new(&config, 5).unwrap();
        let mut step = |i| sampler.step(&x, i, &x, || Ok(x.clone())).map(|_| ());
        step(0).unwrap();
        let again = step(0).map_err(|e| e.to_string());
        let remembers = !matches!(
            name,
            SamplerName::Euler | SamplerName::Ddim | SamplerName::Ddpm
        );
        assert_eq!(again.is_err(), remembers, "{name}");
        if let Err(message) = again {
            let expected = "step 0 was asked for, but 1 is next; `begin` starts anew";
            assert!(message.contains(expected), "{message}");
        }
        let beyond = step(5).unwrap_err().to_string();
        assert!(beyond.contains("step 5 was asked for, but there are 5"));
        assert!(sampler.scale_input(&x, 5).is_err());
        assert!(sampler.noised(&x, &x, 5).is_err());
    }
}

#[test]
fn half_precision_goes_in_and_single_comes_out() {
    let x = random("x", &[1, 2, 3]);
    let half = |t: &Tensor| t.to_dtype(DType::BF16).unwrap();
    for name in [SamplerName::Euler, SamplerName::Unipc] {
        let mut sampler = Sampler::new(&sdxl().with_sampler(name), 5).unwrap();
        let step = sampler.step(&half(&x), 0, &half(&x), no_noise).unwrap();
        assert_eq!((step.x.dtype(), step.z0.dtype()), (DType::F32, DType::F32));
        assert_eq!(
            sampler.scale_input(&half(&x), 0).unwrap().dtype(),
            DType::BF16
        );
        sampler.begin(0);
        let whole = sampler.step(&x, 0, &x, no_noise).unwrap();
        close(&step.x, &whole.x, 1e-2);
    }
}

#[test]
fn training_noise_agrees_with_diffusers() {
    let (listing, fixtures) = fixtures();
    let (z0, noise) = (fixtures.get("train", "z0"), fixtures.get("train", "noise"));
    for Training { name, config } in &listing.training {
        let schedule = NoiseSchedule::new(config).unwrap();
        let (t, get) = (&listing.t, |what: &str| fixtures.get(name, what));
        let alpha_bars: Vec<f64> = t
            .iter()
            .map(|t| schedule.alpha_bars()[*t as usize])
            .collect();
        close(&vector(&alpha_bars), get("alpha_bars"), 1e-6);
        close(
            &schedule.add_noise(z0, noise, t).unwrap(),
            get("noisy"),
            1e-5,
        );
        close(
            &schedule.velocity(z0, noise, t).unwrap(),
            get("velocity"),
            1e-5,
        );
        // Over five orders of magnitude, so each against itself.
        let expected = get("snr").to_vec1::<f32>().unwrap();
        for (ours, theirs) in schedule.snr(t).unwrap().into_iter().zip(expected) {
            let theirs = f64::from(theirs);
            assert!((ours - theirs).abs() <= 1e-3 * theirs, "{ours}, {theirs}");
        }
    }
    assert_eq!(listing.training.len(), 4);
}

const KINDS: [Prediction; 3] = [
    Prediction::Epsilon,
    Prediction::Velocity,
    Prediction::Sample,
];

#[test]
fn what_the_network_should_answer_leads_back_to_latent_and_noise() {
    let (z0, noise) = (random("z0", &[4, 2, 3]), random("noise", &[4, 2, 3]));
    let t = [0, 10, 500, 998];
    let schedule = NoiseSchedule::new(&sdxl()).unwrap();
    let x = schedule.add_noise(&z0, &noise, &t).unwrap();
    for kind in KINDS {
        let output = schedule.target(kind, &z0, &noise, &t).unwrap();
        close(&schedule.clean(kind, &output, &x, &t).unwrap(), &z0, 1e-5);
        close(
            &schedule.noise(kind, &output, &x, &t).unwrap(),
            &noise,
            1e-5,
        );
    }
}

#[test]
fn a_timestep_without_signal_tells_the_latent_unless_noise_is_predicted() {
    let mut config = sdxl();
    config.rescale_betas_zero_snr = Some(true);
    let schedule = NoiseSchedule::new(&config).unwrap();
    assert_eq!(schedule.snr(&[999]).unwrap(), [0.0]);
    let (z0, noise) = (random("z0", &[2, 3]), random("noise", &[2, 3]));
    let t = [998, 999];
    let x = schedule.add_noise(&z0, &noise, &t).unwrap();
    for kind in KINDS {
        let output = schedule.target(kind, &z0, &noise, &t).unwrap();
        close(
            &schedule.noise(kind, &output, &x, &t).unwrap(),
            &noise,
            1e-5,
        );
        let clean = schedule.clean(kind, &output, &x, &t);
        if kind == Prediction::Epsilon {
            let message = clean.unwrap_err().to_string();
            let expected = "sample 1 of the batch has timestep 999, which holds no signal";
            assert!(message.contains(expected), "{message}");
        } else {
            close(&clean.unwrap(), &z0, 1e-5);
        }
    }
}

#[test]
fn gradients_pass_through_the_schedule_and_a_step() {
    let schedule = NoiseSchedule::new(&sdxl()).unwrap();
    let t = [3, 700, 200];
    let pair = [random("a", &[3, 2, 2]), random("b", &[3, 2, 2])];
    check_gradients(&pair, |p| schedule.add_noise(&p[0], &p[1], &t));
    check_gradients(&pair, |p| schedule.velocity(&p[0], &p[1], &t));
    check_gradients(&pair, |p| {
        schedule.clean(Prediction::Epsilon, &p[0], &p[1], &t)
    });
    check_gradients(&pair, |p| {
        schedule.clean(Prediction::Velocity, &p[0], &p[1], &t)
    });
    for kind in [Prediction::Velocity, Prediction::Sample] {
        check_gradients(&pair, |p| schedule.noise(kind, &p[0], &p[1], &t));
    }
    let mut config = sdxl().with_sampler(SamplerName::Ddim);
    config.timestep_spacing = Some("trailing".to_owned());
    let sampler = Sampler::new(&config, 1).unwrap();
    assert_eq!(sampler.timesteps(), [999.0]);
    check_gradients(&pair, |p| {
        Ok(sampler.clone().step(&p[0], 0, &p[1], no_noise)?.z0)
    });
}

#[test]
fn shapes_and_timesteps_that_do_not_fit_are_named() {
    let schedule = NoiseSchedule::new(&sdxl()).unwrap();
    let (a, b) = (random("a", &[2, 3]), random("b", &[2, 4]));
    let message = schedule.add_noise(&a, &b, &[1, 2]).unwrap_err().to_string();
    assert!(message.contains("[2, 3] and [2, 4] with 2 timesteps"));
    assert!(schedule.velocity(&a, &a, &[1]).is_err());
    let message = schedule.add_noise(&a, &a, &[1, 1000]).unwrap_err();
    let expected = "timestep 1000 is not one of 0 to 999";
    assert!(message.to_string().contains(expected), "{message}");
    assert!(schedule.snr(&[1000]).is_err());
}
