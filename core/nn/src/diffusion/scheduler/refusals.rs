//! Files are read and written, and what is not offered or makes no sense is named.

#![allow(clippy::unwrap_used)]

use super::*;
use serde_json::{Value, json};
use std::{collections::HashMap, fs};

#[test]
fn a_file_is_read_and_written_as_it_is() {
    let text = json!({
        "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "skip_prk_steps": true, "trained_betas": null,
        "set_alpha_to_one": false, "steps_offset": 1
    });
    let config = SchedulerConfig::parse(&text.to_string()).unwrap();
    let mut expected = text.clone();
    expected.as_object_mut().unwrap().remove("trained_betas");
    assert_eq!(serde_json::to_value(&config).unwrap(), expected);
    // Trained with, but not sampled with.
    assert!(NoiseSchedule::new(&config).is_ok());
    let error = Sampler::new(&config, 10).unwrap_err();
    assert_eq!(error.field, "_class_name");
    let expected = "`_class_name` is `PNDMScheduler`, which is not offered: use `euler`, `ddim`";
    assert!(error.message.starts_with(expected), "{error}");
    let python = "{\n  \"_class_name\": \"DPMSolverMultistepScheduler\",\n  \"lambda_min_clipped\": -Infinity\n}";
    let config = SchedulerConfig::parse(python).unwrap();
    assert_eq!(config, SchedulerConfig::new(SamplerName::Dpmpp2m));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scheduler_config.json");
    let error = SchedulerConfig::read(&path).unwrap_err().to_string();
    assert!(
        error.contains("cannot read the scheduler's configuration"),
        "{error}"
    );
    fs::write(&path, r#"{"beta_end": 0.1}"#).unwrap();
    let error = SchedulerConfig::read(&path).unwrap_err().to_string();
    assert!(
        error.contains("scheduler_config.json") && error.contains("`_class_name`"),
        "{error}"
    );
    fs::write(&path, python).unwrap();
    assert_eq!(SchedulerConfig::read(&path).unwrap(), config);
}

#[test]
fn names_are_those_of_manifests() {
    for name in SamplerName::ALL {
        assert_eq!(serde_json::to_value(name).unwrap(), name.name());
        let config = SchedulerConfig::new(name);
        assert!(Sampler::new(&config, 4).is_ok(), "{name}");
    }
    let mut config = SchedulerConfig::new(SamplerName::Euler);
    config.prediction_type = Some("v_prediction".to_owned());
    let karras = config.with_sampler(SamplerName::Dpmpp2mKarras);
    assert_eq!(karras.use_karras_sigmas, Some(true));
    assert_eq!(karras.prediction().unwrap(), Prediction::Velocity);
}

/// The error that a sampler's default with `change` leads to.
fn refused(sampler: SamplerName, change: Value, steps: usize) -> diffaug::Error {
    let mut file = serde_json::to_value(SchedulerConfig::new(sampler)).unwrap();
    let change: HashMap<String, Value> = serde_json::from_value(change).unwrap();
    file.as_object_mut().unwrap().extend(change);
    let config = SchedulerConfig::parse(&file.to_string()).unwrap();
    Sampler::new(&config, steps).unwrap_err()
}

#[test]
fn what_is_not_offered_is_named() {
    use SamplerName::*;
    let cases = [
        (Ddim, "thresholding", json!(true), "false"),
        (Ddpm, "thresholding", json!(true), "false"),
        (Dpmpp2m, "thresholding", json!(true), "false"),
        (Unipc, "thresholding", json!(true), "false"),
        (Euler, "use_exponential_sigmas", json!(true), "false"),
        (Dpmpp2m, "use_beta_sigmas", json!(true), "false"),
        (Dpmpp2m, "use_lu_lambdas", json!(true), "false"),
        (Unipc, "use_flow_sigmas", json!(true), "false"),
        (Dpmpp2m, "use_dynamic_shifting", json!(true), "false"),
        (Euler, "interpolation_type", json!("log_linear"), "linear"),
        (Euler, "timestep_type", json!("continuous"), "discrete"),
        (Unipc, "predict_x0", json!(false), "true"),
        (Unipc, "solver_p", json!({"a": 1}), "null"),
        (Unipc, "shift_terminal", json!(0.1), "null"),
        (Unipc, "solver_order", json!(3), "1` or `2"),
        (Dpmpp2m, "solver_order", json!(3), "1` or `2"),
        (Dpmpp2m, "solver_type", json!("rk4"), "midpoint` or `heun"),
        (Unipc, "solver_type", json!("rk4"), "bh2` or `bh1"),
        (
            Dpmpp2m,
            "algorithm_type",
            json!("sde-dpmsolver++"),
            "dpmsolver++",
        ),
        (Dpmpp2m, "algorithm_type", json!("dpmsolver"), "dpmsolver++"),
        (Dpmpp2m, "variance_type", json!("learned"), "fixed_small"),
        (Ddpm, "variance_type", json!("learned"), "fixed_small"),
        (
            Ddpm,
            "variance_type",
            json!("fixed_large_log"),
            "fixed_small",
        ),
        (
            Euler,
            "prediction_type",
            json!("flow_prediction"),
            "epsilon",
        ),
        (
            Ddim,
            "timestep_spacing",
            json!("even"),
            "leading` or `linspace",
        ),
        (
            Euler,
            "beta_schedule",
            json!("sigmoid"),
            "linear` or `scaled_linear",
        ),
        (
            Euler,
            "final_sigmas_type",
            json!("one"),
            "zero` or `sigma_min",
        ),
    ];
    for (sampler, field, value, expected) in cases {
        let error = refused(sampler, json!({ field: value.clone() }), 10);
        let value = value.as_str().map_or(value.to_string(), str::to_owned);
        let start = format!("`{field}` is `{value}`, which is not offered, expected `{expected}");
        assert!(error.message.starts_with(&start), "{error}");
        assert_eq!(error.field, field);
        assert_eq!(error.kind, diffaug::ErrorKind::Unsupported);
    }
    // What a class does not look at does not matter to it.
    let mut config = SchedulerConfig::new(Euler);
    config.rest.insert("thresholding".to_owned(), json!(true));
    assert!(Sampler::new(&config, 10).is_ok());
}

#[test]
fn numbers_out_of_range_are_named() {
    use SamplerName::*;
    let karras = |field: &str, value: f64| json!({"use_karras_sigmas": true, field: value});
    let zero = json!({"rescale_betas_zero_snr": true, "timestep_spacing": "trailing"});
    let cases = [
        (
            Euler,
            json!({}),
            0,
            "steps",
            "`steps` is 0, expected from 1 to 1000",
        ),
        (Euler, json!({}), 1001, "steps", "`steps` is 1001"),
        (
            Dpmpp2m,
            json!({}),
            1000,
            "steps",
            "`steps` is 1000, too many for DPMSolver",
        ),
        (
            Unipc,
            json!({"timestep_spacing": "leading"}),
            1000,
            "steps",
            "too many for UniPC",
        ),
        (
            Ddim,
            json!({"steps_offset": 1}),
            1000,
            "steps_offset",
            "leads to timestep 1000",
        ),
        (
            Euler,
            json!({"num_train_timesteps": 1}),
            1,
            "num_train_timesteps",
            "expected from 2 to 1000000",
        ),
        (
            Euler,
            json!({"beta_start": 0.0}),
            9,
            "beta_start",
            "`beta_start` is 0, expected",
        ),
        (
            Euler,
            json!({"beta_end": 1.5}),
            9,
            "beta_end",
            "a number between 0 and 1",
        ),
        (
            Euler,
            json!({"trained_betas": [0.1]}),
            9,
            "trained_betas",
            "`num_train_timesteps`, 1000",
        ),
        (
            Ddpm,
            json!({"trained_betas": vec![1.0 - f64::EPSILON; 5], "num_train_timesteps": 5}),
            1,
            "beta_end",
            "no signal is left at timestep 2 of 4",
        ),
        (
            Euler,
            json!({"trained_betas": [0.1, 0.0], "num_train_timesteps": 2}),
            1,
            "trained_betas",
            "`trained_betas` is 0, expected a number between 0 and 1",
        ),
        (
            Ddim,
            json!({"eta": 1.5}),
            9,
            "eta",
            "`eta` is 1.5, expected a number from 0 to 1",
        ),
        (
            Ddpm,
            json!({"clip_sample_range": 0.0}),
            9,
            "clip_sample_range",
            "a number above 0",
        ),
        (
            Euler,
            karras("sigma_min", -1.0),
            9,
            "sigma_min",
            "`sigma_min` is -1, expected",
        ),
        (
            Dpmpp2m,
            karras("sigma_max", 1e-3),
            9,
            "sigma_max",
            "no less than `sigma_min`",
        ),
        (
            Dpmpp2m,
            json!({"lambda_min_clipped": 99.0}),
            9,
            "lambda_min_clipped",
            "less than the",
        ),
        (
            Unipc,
            json!({"lower_order_final": false}),
            9,
            "lower_order_final",
            "first order only",
        ),
        (
            Ddim,
            zero.clone(),
            9,
            "prediction_type",
            "timestep 999 holds no signal",
        ),
        (
            Ddpm,
            zero,
            9,
            "prediction_type",
            "timestep 999 holds no signal",
        ),
    ];
    for (sampler, change, steps, field, expected) in cases {
        let error = refused(sampler, change, steps);
        assert!(error.message.contains(expected), "{error}");
        assert_eq!(error.field, field);
        assert_eq!(error.kind, diffaug::ErrorKind::Config);
    }
}
