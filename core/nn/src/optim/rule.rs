//! How gradients become changes of the weights, and for which tensors otherwise.

use diffaug::Error;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How gradients become changes of the weights; definitions and defaults are PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Rule {
    /// AdamW (Loshchilov & Hutter, 2019); weight decay is apart from the gradient.
    AdamW {
        /// How much of the mean gradient stays, from 0 to below 1.
        beta1: f64,
        /// How much of the mean square stays, from 0 to below 1.
        beta2: f64,
        /// Added to the root of the mean square, above 0.
        epsilon: f64,
    },
    /// Stochastic gradient descent; weight decay is added to the gradient.
    Sgd {
        /// How much of the last change goes on, from 0 to below 1.
        momentum: f64,
        /// Whether the gradient is taken where momentum leads (Sutskever et al., 2013).
        nesterov: bool,
    },
    /// RMSprop (Hinton, 2012); weight decay is added to the gradient.
    RmsProp {
        /// How much of the mean square stays, from 0 to below 1.
        alpha: f64,
        /// Added to its root, above 0.
        epsilon: f64,
        /// How much of the last change goes on, from 0 to below 1.
        momentum: f64,
        /// Whether the variance takes the place of the mean square (Graves, 2013).
        centered: bool,
    },
}

impl Default for Rule {
    fn default() -> Self {
        Rule::AdamW {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
        }
    }
}

impl Rule {
    /// SGD with that momentum, without Nesterov's change.
    pub fn sgd(momentum: f64) -> Self {
        Rule::Sgd {
            momentum,
            nesterov: false,
        }
    }

    /// RMSprop with PyTorch's defaults.
    pub fn rmsprop() -> Self {
        Rule::RmsProp {
            alpha: 0.99,
            epsilon: 1e-8,
            momentum: 0.0,
            centered: false,
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// Naming the one that is out of range as `optimizer.NAME`.
    pub fn check(&self) -> diffaug::Result<()> {
        let share = |field, value| (field, value, (0.0..1.0).contains(&value));
        let above = |field, value: f64| (field, value, value > 0.0 && value.is_finite());
        let numbers = match *self {
            Rule::AdamW {
                beta1,
                beta2,
                epsilon,
            } => vec![
                share("beta1", beta1),
                share("beta2", beta2),
                above("epsilon", epsilon),
            ],
            Rule::Sgd { momentum, nesterov } => vec![
                share("momentum", momentum),
                ("momentum", momentum, !nesterov || momentum > 0.0),
            ],
            Rule::RmsProp {
                alpha,
                epsilon,
                momentum,
                ..
            } => vec![
                share("alpha", alpha),
                above("epsilon", epsilon),
                share("momentum", momentum),
            ],
        };
        let Some((field, value, _)) = numbers.into_iter().find(|(.., fine)| !fine) else {
            return Ok(());
        };
        let expected = match field {
            "epsilon" => "a number above 0",
            "momentum" => "a number from 0 to below 1 (above 0 with `nesterov`)",
            _ => "a number from 0 to below 1",
        };
        let field = format!("optimizer.{field}");
        Err(Error::config(format!("`{field}` is {value}, expected {expected}")).at(&field))
    }

    /// What is remembered of every tensor: the prefixes of its names in a checkpoint.
    pub(crate) fn slots(&self) -> Vec<&'static str> {
        match *self {
            Rule::AdamW { .. } => vec!["first", "second"],
            Rule::Sgd { momentum, .. } if momentum > 0.0 => vec!["momentum"],
            Rule::Sgd { .. } => vec![],
            Rule::RmsProp {
                momentum, centered, ..
            } => {
                let optional = [(centered, "mean"), (momentum > 0.0, "momentum")];
                let optional = optional
                    .into_iter()
                    .filter_map(|(on, name)| on.then_some(name));
                std::iter::once("square").chain(optional).collect()
            }
        }
    }
}

/// What is peculiar about some tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Group {
    /// Which tensors: their whole name, where `*` stands for any characters, dots too. The first
    /// group that fits counts.
    pub names: String,
    /// What the learning rate is multiplied by.
    pub rate: f64,
    /// Weight decay of all of them, whatever their shape; without it, as elsewhere.
    pub weight_decay: Option<f64>,
    /// Whether they stay as they are.
    pub frozen: bool,
}

impl Default for Group {
    fn default() -> Self {
        Group {
            names: "*".into(),
            rate: 1.0,
            weight_decay: None,
            frozen: false,
        }
    }
}

/// Whether `name` is of the form `pattern`, in which `*` stands for any characters.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(name) = name.strip_prefix(head) else {
        return false;
    };
    let starts = name.char_indices().map(|(at, _)| at).chain([name.len()]);
    starts.into_iter().any(|at| fits(rest, &name[at..]))
}
