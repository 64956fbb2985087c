//! Tests of the optimisers: values after several steps agree with PyTorch's, on both paths.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::{Fixtures, close, random};
use candle_core::Device;
use std::collections::HashMap;

const FIXTURES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/fixtures/optimisers.safetensors"
);

fn gradients(pairs: &[(&Var, Tensor)]) -> GradStore {
    let term = |(var, grad): &(&Var, Tensor)| (var.as_tensor() * grad).unwrap().sum_all().unwrap();
    let terms: Vec<Tensor> = pairs.iter().map(term).collect();
    let loss = Tensor::stack(&terms, 0).unwrap().sum_all().unwrap();
    loss.backward().unwrap()
}

fn config(rule: Rule, weight_decay: f64) -> Config {
    Config {
        rule,
        weight_decay,
        ..Config::default()
    }
}

/// Lets `config` make the fixtures' seven steps, and compares.
fn agree(case: &str, config: &Config, rate: f64) {
    let fixtures = Fixtures::open(FIXTURES);
    for on_device in [false, true] {
        let [w, b] = ["w", "b"].map(|name| Var::from_tensor(fixtures.get("start", name)).unwrap());
        let mut optimiser = Optimizer::new([("w", &w), ("b", &b)], config).unwrap();
        if on_device {
            for entry in &mut optimiser.entries {
                entry.slots = Slots::Device(entry.slots.tensors(&entry.var).unwrap());
            }
        }
        for step in 0..7 {
            let grad = |name| fixtures.get("grad", name).get(step).unwrap();
            let grads = gradients(&[(&w, grad("w")), (&b, grad("b"))]);
            optimiser.step(&grads, rate).unwrap();
        }
        close(&w, fixtures.get(case, "w"), 1e-5);
        close(&b, fixtures.get(case, "b"), 1e-5);
    }
}

#[test]
fn adamw_agrees_with_pytorch() {
    agree("adamw", &config(Rule::default(), 0.1), 0.05);
    let other = Rule::AdamW {
        beta1: 0.5,
        beta2: 0.9,
        epsilon: 1e-3,
    };
    agree("adamw_other", &config(other, 0.1), 0.05);
    let mut clipped = config(Rule::default(), 0.1);
    clipped.clip = 0.5;
    agree("adamw_clip", &clipped, 0.05);
}

#[test]
fn sgd_agrees_with_pytorch() {
    agree("sgd", &config(Rule::sgd(0.0), 0.1), 0.05);
    agree("sgd_momentum", &config(Rule::sgd(0.9), 0.1), 0.05);
    let nesterov = Rule::Sgd {
        momentum: 0.9,
        nesterov: true,
    };
    agree("sgd_nesterov", &config(nesterov, 0.1), 0.05);
}

#[test]
fn rmsprop_agrees_with_pytorch() {
    let rule = |alpha, momentum, centered| Rule::RmsProp {
        alpha,
        epsilon: 1e-8,
        momentum,
        centered,
    };
    assert_eq!(Rule::rmsprop(), rule(0.99, 0.0, false));
    agree("rmsprop", &config(Rule::rmsprop(), 0.1), 0.01);
    agree(
        "rmsprop_momentum",
        &config(rule(0.9, 0.9, false), 0.1),
        0.01,
    );
    agree(
        "rmsprop_centered",
        &config(rule(0.99, 0.5, true), 0.0),
        0.01,
    );
}

#[test]
fn groups_agree_with_pytorchs() {
    let mut config = config(Rule::sgd(0.9), 0.0);
    config.groups = vec![Group {
        names: "w*".into(),
        rate: 0.1,
        weight_decay: Some(0.3),
        frozen: false,
    }];
    agree("groups", &config, 0.05);
}

#[test]
fn what_is_frozen_stays_and_does_not_count() {
    let [a, b] = [(); 2].map(|()| Var::ones(3, DType::F32, &Device::Cpu).unwrap());
    let frozen = Group {
        names: "encoder.*".into(),
        frozen: true,
        ..Group::default()
    };
    let config = Config {
        groups: vec![frozen],
        ..Config::default()
    };
    let vars = [("encoder.w", &a), ("head.w", &b)];
    let mut optimiser = Optimizer::new(vars, &config).unwrap();
    let grads = gradients(&[(&a, random("a", &[3])), (&b, a.ones_like().unwrap())]);
    let norm = optimiser.step(&grads, 0.1).unwrap();
    assert!((norm - 3f64.sqrt()).abs() < 1e-6);
    assert_eq!(a.to_vec1::<f32>().unwrap(), [1.0; 3]);
    assert_ne!(b.to_vec1::<f32>().unwrap(), [1.0; 3]);
    assert_eq!(optimiser.vars().count(), 1);
    assert_eq!(optimiser.state().unwrap().len(), 2);
}

#[test]
fn a_group_for_nothing_is_an_error() {
    let var = Var::ones(3, DType::F32, &Device::Cpu).unwrap();
    let group = |names: &str| Group {
        names: names.into(),
        ..Group::default()
    };
    let config = Config {
        groups: vec![group("*"), group("encoder*")],
        ..Config::default()
    };
    let error = Optimizer::new([("head", &var)], &config).unwrap_err();
    assert_eq!(error.field, "groups");
    assert!(error.message.contains("group 1 (`encoder*`)"), "{error}");
}

#[test]
fn a_star_stands_for_any_characters() {
    assert!(fits("a", "a") && !fits("a", "ab") && fits("*", "") && fits("a*", "a"));
    assert!(fits("*.bias", "down.1.bias") && !fits("*.bias", "bias"));
    assert!(fits("a*b*c", "a.b.bc") && !fits("a*b*c", "a.c"));
}

#[test]
fn clipping_scales_all_gradients_alike() {
    let var = Var::zeros(4, DType::F32, &Device::Cpu).unwrap();
    let config = Config {
        clip: 1.0,
        ..Config::default()
    };
    let mut optimiser = Optimizer::new([("v", &var)], &config).unwrap();
    let grad = Tensor::new(&[3f32, 4., 0., 0.], &Device::Cpu).unwrap();
    let grads = gradients(&[(&var, grad)]);
    assert_eq!(optimiser.step(&grads, 0.1).unwrap(), 5.0);
    let first = optimiser.state().unwrap()[0].1.to_vec1::<f32>().unwrap();
    assert!((first[0] - 0.06).abs() < 1e-6 && (first[1] - 0.08).abs() < 1e-6);
}

#[test]
fn what_is_not_updated_in_place_is_clipped_too() {
    let device = Device::Cpu;
    let [a, b] = [(); 2].map(|()| Var::zeros(2, DType::F64, &device).unwrap());
    let config = Config {
        rule: Rule::sgd(0.0),
        clip: 1.0,
        ..Config::default()
    };
    let mut optimiser = Optimizer::new([("a", &a), ("b", &b)], &config).unwrap();
    let [x, y] = [[3f64, 0.], [0., 4.]].map(|values| Tensor::new(&values, &device).unwrap());
    let grads = gradients(&[(&a, x), (&b, y)]);
    assert_eq!(optimiser.step(&grads, 1.0).unwrap(), 5.0);
    let moved = [
        a.to_vec1::<f64>().unwrap()[0],
        b.to_vec1::<f64>().unwrap()[1],
    ];
    assert!((moved[0] + 0.6).abs() < 1e-6 && (moved[1] + 0.8).abs() < 1e-6);
}

#[test]
fn a_scaled_loss_makes_the_same_step() {
    let start = random("v", &[3, 2]);
    let [plain, scaled] = [1.0, 1024.0].map(|scale| {
        let var = Var::from_tensor(&start).unwrap();
        let mut optimiser = Optimizer::new([("v", &var)], &config(Rule::sgd(0.9), 0.1)).unwrap();
        let grad = (random("g", &[3, 2]) * scale).unwrap();
        let grads = gradients(&[(&var, grad)]);
        let norm = optimiser.step_scaled(&grads, 0.1, scale).unwrap();
        (norm, var.flatten_all().unwrap().to_vec1::<f32>().unwrap())
    });
    assert_eq!(plain, scaled);
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let var = Var::ones(2, DType::F32, &Device::Cpu).unwrap();
    let mut optimiser = Optimizer::new([("v", &var)], &config(Rule::default(), 0.1)).unwrap();
    let grads = gradients(&[(&var, Tensor::new(&[f32::NAN, 1.], &Device::Cpu).unwrap())]);
    assert!(optimiser.step(&grads, 0.1).unwrap().is_nan());
    assert_eq!(var.to_vec1::<f32>().unwrap(), [1.0, 1.0]);
    assert_eq!(optimiser.steps(), 0);
}

#[test]
fn what_it_remembers_comes_back() {
    let rules = [
        (Rule::default(), 2),
        (Rule::sgd(0.9), 1),
        (Rule::sgd(0.0), 0),
        (Rule::rmsprop(), 1),
    ];
    for (rule, count) in rules {
        let make = || {
            let var = Var::from_tensor(&random("v", &[3, 2])).unwrap();
            let optimiser = Optimizer::new([("v", &var)], &config(rule, 0.1)).unwrap();
            (var, optimiser)
        };
        let go = |(var, optimiser): &mut (Var, Optimizer), steps: std::ops::Range<u64>| {
            for step in steps {
                let grads = gradients(&[(var, random(&format!("g{step}"), &[3, 2]))]);
                optimiser.step(&grads, 0.1).unwrap();
            }
        };
        let mut whole = make();
        go(&mut whole, 0..3);
        let state: HashMap<String, Tensor> = whole.1.state().unwrap().into_iter().collect();
        assert_eq!(state.len(), count);
        let mut resumed = make();
        assert_eq!(resumed.1.expected().len(), count);
        resumed.0.set(&whole.0.as_detached_tensor()).unwrap();
        resumed.1.restore(3, |name| Ok(&state[name])).unwrap();
        go(&mut whole, 3..6);
        go(&mut resumed, 3..6);
        let values = |var: &Var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&whole.0), values(&resumed.0));
    }
}

#[test]
fn a_wrong_number_is_named() {
    let field = |rule: Rule| rule.check().unwrap_err().field.to_string();
    assert_eq!(field(Rule::sgd(1.0)), "optimizer.momentum");
    let nesterov = Rule::Sgd {
        momentum: 0.0,
        nesterov: true,
    };
    assert_eq!(field(nesterov), "optimizer.momentum");
    assert!(Rule::default().check().is_ok() && Rule::rmsprop().check().is_ok());
}
