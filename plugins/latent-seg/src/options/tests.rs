//! Options that are wrong, and what presets fill in.

#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn defaults_are_fine_and_a_wrong_value_names_its_option() {
    Options::default().check().unwrap();
    let field = |json: &str| {
        let options: Options = serde_json::from_str(json).unwrap();
        options.check().unwrap_err().field.to_string()
    };
    assert_eq!(field(r#"{"steps": 0}"#), "steps");
    assert_eq!(field(r#"{"threshold": 1.0}"#), "threshold");
    assert_eq!(field(r#"{"zero_terminal_snr": true}"#), "zero_terminal_snr");
    assert_eq!(
        field(r#"{"architecture": {"heads": 7}}"#),
        "architecture.heads"
    );
    assert_eq!(
        field(r#"{"architecture": {"vision": [8, 8]}}"#),
        "architecture.vision"
    );
    let dropout = r#"{"architecture": {"dropout": 1.0}}"#;
    assert_eq!(field(dropout), "architecture.dropout");
    assert_eq!(field(r#"{"train": {"loss": "bce"}}"#), "train.loss");
    assert_eq!(field(r#"{"objective": {"last": 2}}"#), "objective.last");
    let share = r#"{"train": {"synthetic_share": 1.0}}"#;
    assert_eq!(field(share), "train.synthetic_share");
    assert_eq!(field(r#"{"train": {"real_last": -1}}"#), "train.real_last");
    for (name, value) in [
        ("layers", "1000000000"),
        ("vision_layers", "65"),
        ("width", "1000000000"),
        ("width", "4096"),
        ("multipliers", "[1, 18446744073709551615]"),
        ("autoencoder", "[32, 100000]"),
        ("vision", "[16385]"),
    ] {
        let json = format!(r#"{{"architecture": {{"{name}": {value}}}}}"#);
        assert_eq!(field(&json), format!("architecture.{name}"));
    }
    assert_eq!(
        field(r#"{"train": {"steps": 1000000000000}}"#),
        "train.steps"
    );
    assert_eq!(field(r#"{"train": {"batch": 100000}}"#), "train.batch");
    assert_eq!(
        field(r#"{"autoencoder": {"steps": 2000000000}}"#),
        "autoencoder.steps"
    );
    assert_eq!(
        field(r#"{"autoencoder": {"batch": 0}}"#),
        "autoencoder.batch"
    );
}

#[test]
fn presets_fill_in_what_is_not_said() {
    let options = |json: &str| serde_json::from_str::<Options>(json).unwrap();
    let (ours, theirs) = (options("{}"), options(r#"{"preset": "sdseg"}"#));
    theirs.check().unwrap();
    assert_eq!(ours.resolved().vision_input, VisionInput::Latent);
    assert!(ours.resolved().fused && !theirs.resolved().fused);
    assert_eq!(theirs.vision().len(), 4);
    let (a, b) = (ours.settings(0), theirs.settings(0));
    assert_eq!((a.accumulate, a.learning_rate, a.warmup), (4, 1e-5, 0));
    assert_eq!((b.accumulate, b.learning_rate, b.warmup), (1, 4e-5, 10_000));
    assert!(a.ema.is_none());
    assert_eq!(b.ema.unwrap().only, Some("denoiser."));
    let said =
        options(r#"{"preset": "sdseg", "train": {"lr": 0.1}, "objective": {"lambda_dice": 1.0}}"#);
    assert_eq!(said.settings(0).learning_rate, 0.1);
    assert_eq!(said.resolved().lambda_dice, 1.0);
}
