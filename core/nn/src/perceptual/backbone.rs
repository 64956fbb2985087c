//! The networks whose features LPIPS compares: their stages, and what their tensors are called.

use crate::{ops::Convolution, weights::Source};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A network whose features are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backbone {
    /// AlexNet (torchvision's), the fastest, and nearest to what people say.
    #[default]
    Alex,
    /// VGG-16.
    Vgg,
}

impl fmt::Display for Backbone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backbone::Alex => "AlexNet",
            Backbone::Vgg => "VGG-16",
        })
    }
}

/// A maximum over windows of that side, that far apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool {
    pub side: usize,
    pub stride: usize,
}

/// A maximum over windows, if there is one, then convolutions with the sides of their windows.
#[derive(Debug)]
pub(super) struct Plan {
    pub pool: Option<Pool>,
    pub convs: Vec<(usize, Convolution)>,
}

impl Backbone {
    /// The smallest side of an image of which something is left at the end, in pixels.
    pub fn smallest(self) -> usize {
        match self {
            Backbone::Alex => 31,
            Backbone::Vgg => 16,
        }
    }

    /// Features behind each stage.
    pub(super) fn widths(self) -> [usize; 5] {
        match self {
            Backbone::Alex => [64, 192, 384, 256, 256],
            Backbone::Vgg => [64, 128, 256, 512, 512],
        }
    }

    pub(super) fn stage(self, index: usize) -> Plan {
        let (pool, convs) = match self {
            Backbone::Alex => {
                let pool = (index == 1 || index == 2).then_some(Pool { side: 3, stride: 2 });
                let conv = match index {
                    0 => (11, Convolution::square(4, 2)),
                    1 => (5, Convolution::same(5)),
                    _ => (3, Convolution::same(3)),
                };
                (pool, vec![conv])
            }
            Backbone::Vgg => {
                let pool = (index > 0).then_some(Pool { side: 2, stride: 2 });
                let count = VGG[index].len();
                (pool, vec![(3, Convolution::same(3)); count])
            }
        };
        Plan { pool, convs }
    }
}

/// Numbers of the convolutions in torchvision's lists of layers, by stage.
const ALEX: [&[usize]; 5] = [&[0], &[3], &[6], &[8], &[10]];
const VGG: [&[usize]; 5] = [
    &[0, 2],
    &[5, 7],
    &[10, 12, 14],
    &[17, 19, 21],
    &[24, 26, 28],
];

/// What tensors are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// As in the state of the package `lpips`.
    Package,
    /// As in its port to Flax, which has AlexNet alone.
    Flax,
}

impl Names {
    /// The names that `source` has.
    pub fn of(source: &impl Source, backbone: Backbone) -> Self {
        let names = source.names();
        let flax = |name: &String| name.starts_with("AlexNet_0.");
        match backbone == Backbone::Alex && names.iter().any(flax) {
            true => Names::Flax,
            false => Names::Package,
        }
    }

    /// The place of convolution `index` of a stage.
    pub fn conv(self, backbone: Backbone, stage: usize, index: usize) -> String {
        let layers = match backbone {
            Backbone::Alex => ALEX,
            Backbone::Vgg => VGG,
        };
        match self {
            Names::Package => format!("net.slice{}.{}", stage + 1, layers[stage][index]),
            Names::Flax => format!("AlexNet_0.Conv_{stage}"),
        }
    }

    /// The place of the weights of a stage's features.
    pub fn head(self, stage: usize) -> String {
        match self {
            Names::Package => format!("lin{stage}.model.1"),
            Names::Flax => format!("NetLinLayer_{stage}.Conv_0"),
        }
    }

    /// How many features the given stages have; the published number where one is missing.
    pub fn widths(self, source: &impl Source, backbone: Backbone) -> [usize; 5] {
        let mut widths = backbone.widths();
        for (stage, width) in widths.iter_mut().enumerate() {
            let shape = source.shape(&format!("{}.weight", self.conv(backbone, stage, 0)));
            let given = shape.and_then(|shape| shape.first().copied());
            *width = given.unwrap_or(*width);
        }
        widths
    }
}
