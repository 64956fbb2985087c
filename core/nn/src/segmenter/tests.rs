//! The table `train`, recipes and presets.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::{fit::Keep, layers::Conv2d, limits};
use diffaug::{Class, DatasetInfo, segmenting};
use serde::Deserialize;

/// One convolution.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct One {
    side: usize,
}

impl Default for One {
    fn default() -> Self {
        One { side: 3 }
    }
}

impl Architecture for One {
    const PLUGIN: &'static str = "one";

    fn tiny() -> Self {
        One { side: 1 }
    }

    fn check(&self) -> diffaug::Result<()> {
        let checked = limits::within("architecture.side", self.side, 1..=9);
        checked.map_err(|error| diffaug::Error::config(error.to_string()).at("architecture.side"))
    }

    fn multiple(&self) -> u32 {
        16
    }

    fn activations(&self, load: &Load) -> Activations {
        Activations::of_values(load, 3)
    }

    fn reference(&self) -> Budget {
        Budget {
            optimizer: Optimizer::Sgd,
            momentum: Some(0.99),
            schedule: Schedule::Polynomial,
            power: 0.9,
            steps: Some(77),
            ..Budget::default()
        }
    }
}

struct Net(Conv2d);

impl Network for Net {
    type Architecture = One;

    fn new(mut scope: Scope<'_>, one: &One, outputs: usize, _: (u32, u32)) -> Result<Self> {
        let head = scope.child("head");
        Ok(Net(Conv2d::new(head, 3, outputs, one.side, true)?))
    }

    fn forward(&self, images: &Tensor, _: &Pass<'_>) -> Result<Tensor> {
        self.0.forward(images)
    }
}

fn options(json: &str) -> Options<One> {
    serde_json::from_str(json).unwrap()
}

#[test]
fn a_wrong_value_names_its_option() {
    let field = |json: &str| options(json).check().unwrap_err().field.to_string();
    options("{}").check().unwrap();
    assert_eq!(
        field(r#"{"architecture": {"side": 10}}"#),
        "architecture.side"
    );
    assert_eq!(field(r#"{"size": 2147483648}"#), "size");
    assert_eq!(field(r#"{"size": 4}"#), "size");
    assert_eq!(field(r#"{"threshold": 1}"#), "threshold");
    assert_eq!(field(r#"{"images_at_once": 0}"#), "images_at_once");
    let train = |json: &str| field(&format!(r#"{{"train": {{{json}}}}}"#));
    assert_eq!(train(r#""epochs": 18446744073709551615"#), "train.epochs");
    assert_eq!(train(r#""batch": 1000000000"#), "train.batch");
    assert_eq!(train(r#""accumulate": 1000000000"#), "train.accumulate");
    assert_eq!(train(r#""lr": 0"#), "train.lr");
    assert_eq!(train(r#""lr_end": 1.5"#), "train.lr_end");
    assert_eq!(train(r#""clip": -1"#), "train.clip");
    assert_eq!(train(r#""accumulate": 0"#), "train.accumulate");
    assert_eq!(train(r#""evaluate_epochs": 0"#), "train.evaluate_epochs");
    assert_eq!(train(r#""steps": 0"#), "train.steps");
    assert_eq!(train(r#""ema": 1"#), "train.ema");
    assert_eq!(train(r#""momentum": 0.9"#), "train.momentum");
    assert_eq!(
        train(r#""optimizer": "sgd", "momentum": 1"#),
        "train.momentum"
    );
    assert_eq!(train(r#""synthetic_share": 1.0"#), "train.synthetic_share");
    assert_eq!(train(r#""real_last": 1.1"#), "train.real_last");
    assert_eq!(train(r#""power": 0"#), "train.power");
    assert_eq!(train(r#""plateau_factor": 1"#), "train.plateau_factor");
    assert!(serde_json::from_str::<Options<One>>(r#"{"train": {"loss": "l2"}}"#).is_err());
}

#[test]
fn steps_count_where_epochs_are_set_as_well_and_that_is_said() {
    let both = options(r#"{"train": {"epochs": 2, "steps": 500}}"#);
    let said = both.train.unused().unwrap();
    assert!(said.starts_with("`train.epochs` = 2 is not used"), "{said}");
    assert_eq!(options("{}").train.unused(), None);
}

#[test]
fn every_choice_fits_the_training_loop() {
    let settings = |json: &str| {
        let options = options(json);
        options.check().unwrap();
        let settings = options.train.settings(&options.budget(), 1);
        settings.check().unwrap();
        settings
    };
    let mixed = settings(
        r#"{"train": {"synthetic_share": 0.3, "real_last": 0.4, "keep": "last", "patience": 4}}"#,
    );
    assert_eq!((mixed.keep, mixed.patience), (Keep::Last, 0));
    assert_eq!(mixed.mix, crate::fit::Mix::of(Some(0.3), 0.4));
    for optimizer in ["adamw", "sgd", "rmsprop"] {
        for schedule in ["constant", "cosine", "polynomial", "plateau"] {
            settings(&format!(
                r#"{{"train": {{"optimizer": "{optimizer}", "schedule": "{schedule}", "ema": 0.99}}}}"#
            ));
        }
    }
}

#[test]
fn without_a_recipe_the_description_of_a_run_is_short() {
    let options = options("{}");
    let settings = options.train.settings(&options.budget(), 7);
    let expected = serde_json::json!({
        "epochs": 50, "batch": 8, "learning_rate": 1e-3, "weight_decay": 1e-4, "clip": 1.0,
        "warmup": 20, "patience": 15, "evaluate_every": 1, "seed": 7
    });
    assert_eq!(serde_json::to_value(settings).unwrap(), expected);
}

#[test]
fn what_is_left_out_comes_from_the_recipe() {
    let budget = |json: &str| options(&format!(r#"{{"train": {json}}}"#)).budget();
    let common = budget(r#"{"recipe": "common", "lr": 0.5}"#);
    assert_eq!((common.lr, common.batch, common.epochs), (0.5, 16, 100));
    let reference = budget(r#"{"recipe": "reference"}"#);
    assert_eq!(
        (reference.optimizer, reference.momentum),
        (Optimizer::Sgd, Some(0.99))
    );
    assert_eq!((reference.steps, reference.power), (Some(77), 0.9));
    // Epochs that are set are not overruled by the recipe's steps, nor does its momentum go to another optimizer.
    let own = budget(r#"{"recipe": "reference", "epochs": 3, "optimizer": "rmsprop"}"#);
    assert_eq!((own.steps, own.epochs, own.momentum), (None, 3, None));
    let tiny = options(r#"{"preset": "tiny"}"#);
    assert_eq!(tiny.architecture(), One { side: 1 });
    assert_eq!(tiny.budget().steps, Some(300));
    let other = options(r#"{"preset": "tiny", "architecture": {"side": 5}}"#);
    assert_eq!(other.architecture(), One { side: 5 });
}

#[test]
fn several_targets_get_a_channel_each_and_one_for_background() {
    let mut info = DatasetInfo::single_class("d", "cup");
    let network = |info: &DatasetInfo| {
        let targets = segmenting::targets(info).unwrap();
        Description::new(One::default(), targets, (100, 60))
    };
    let one = network(&info);
    assert_eq!((one.outputs(), one.frame().whole), (1, (112, 64)));
    assert_eq!(one.shapes::<Direct<Net>>().unwrap().parameters(), 28);
    let class = |label, target| Class {
        label,
        name: "x".into(),
        target,
    };
    info.classes.push(class(4, true));
    info.classes.push(class(3, false));
    let two = network(&info);
    assert_eq!((two.outputs(), two.labels()), (3, vec![1, 4]));
}

#[test]
fn images_are_scaled_by_channel() {
    let images = Tensor::full(0.5f32, (1, 3, 2, 2), &Device::Cpu).unwrap();
    let value = |scaling: Scaling, channel: usize| {
        let scaled = scaling.apply(&images).unwrap();
        scaled
            .get(0)
            .unwrap()
            .get(channel)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()[0]
    };
    assert_eq!(value(Scaling::None, 0), 0.5);
    assert_eq!(value(Scaling::Symmetric, 1), 0.0);
    assert!((value(Scaling::ImageNet, 2) - (0.5 - 0.406) / 0.225).abs() < 1e-6);
}

#[test]
fn an_option_that_has_moved_is_told_its_place() {
    let entry =
        diffaug::Entry::segmenter::<Trained<Direct<Net>>>("one", "1", "one", diffaug::Backend::Cpu);
    let message = |json: &str| {
        let error = (entry.check)(json.into()).into_result().unwrap_err();
        (error.field.to_string(), error.message.to_string())
    };
    let told = |field: &str, message: &str| (field.to_owned(), message.to_owned());
    assert_eq!(
        message(r#"{"steps": 3}"#),
        told("steps", "`steps` is now `train.steps`")
    );
    assert_eq!(
        message(r#"{"width": 3}"#),
        told("width", "`width` is now `architecture.width`")
    );
    let batch = "`batch` is now `train.batch` (when answering: `images_at_once`)";
    assert_eq!(message(r#"{"batch": 3}"#), told("batch", batch));
    assert!(
        message(r#"{"color": 3}"#)
            .1
            .contains("unknown field `color`")
    );
}
