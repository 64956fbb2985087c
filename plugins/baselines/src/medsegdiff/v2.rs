//! The segmenter `medsegdiff-v2`, in two variants.
//!
//! `published` is MedSegDiff-V2 as the paper has it (Wu et al., AAAI 2024), of which no code is public: a
//! re-implementation, whose choices `published.rs` lists. Beyond them: the denoiser sees the image beside the
//! noisy mask, as in all released code; it learns no variance; the loss is [`Rule::Published`].
//!
//! `released` is the network that the authors' repository has under this name: the U-Net of the image runs first,
//! and the two maps below the highest of its way up, stretched to the image's size (the higher one twice, then
//! the lower one), are added to the denoiser's first map. No gradient goes back through them, so that the
//! U-Net of the image learns from its own answer alone.

use super::{
    Denoiser, Highway, Rule, fits, loss, predicted, published, reference, sides,
    sizes::{self, DenoiserSizes, HighwaySizes},
    staple,
};
use crate::check;
use candle_core::{Result, Tensor, bail};
use diffaug_nn::{
    diffusion::scheduler::{Prediction, SamplerName},
    ops,
    params::Scope,
    segmenter::{
        Activations, Architecture as Sizes, Budget, Diffusion, Fusion, Load, MaskNetwork, Noised,
        Pass, Predicted, Run,
    },
};
use published::{SpectrumTransformer, UncertainAttention};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use published::TransformerSizes;

/// Which of the two networks that go by this name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// That of the paper, re-implemented.
    #[default]
    Published,
    /// That of the authors' repository.
    Released,
}

/// The network.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// Which network it is.
    pub variant: Variant,
    /// The network that takes the noise out of masks.
    pub denoiser: DenoiserSizes,
    /// The U-Net of the image alone; it is halved as often as the denoiser. For `released` its width is a
    /// quarter of the denoiser's.
    pub highway: HighwaySizes,
    /// The transformer of spectra, which only `published` has.
    pub transformer: TransformerSizes,
    /// What the network answers with: `epsilon` as published; small ones learn `sample`, the mask itself, far
    /// faster. `released` knows `epsilon` alone, for its variances stand on it.
    pub prediction: Prediction,
}

impl Architecture {
    /// Checks what the released variant asks for.
    fn check_released(&self) -> diffaug::Result<()> {
        if self.prediction != Prediction::Epsilon {
            let expected = "`epsilon` for the variant `released`";
            let found = serde_json::to_string(&self.prediction)?;
            return check::refuse("prediction", found, expected);
        }
        if self.denoiser.halvings() < 3 {
            let levels = format!("{} numbers", self.denoiser.multipliers.len());
            let expected = "at least 4 numbers for the variant `released`";
            return check::refuse("denoiser.multipliers", levels, expected);
        }
        let (width, denoiser) = (self.highway.width, self.denoiser.width);
        if 4 * width != denoiser || self.highway.most < 2 * width {
            let expected = format!(
                "a quarter of `denoiser.width`, {denoiser}, and at most half of `highway.most`, {}, for the variant `released`",
                self.highway.most
            );
            return check::refuse("highway.width", width, &expected);
        }
        Ok(())
    }

    /// Channels of the answer.
    fn outputs(&self, masks: usize) -> usize {
        match self.variant {
            Variant::Published => masks,
            Variant::Released => 2 * masks,
        }
    }
}

impl Sizes for Architecture {
    const PLUGIN: &'static str = "medsegdiff-v2";

    fn tiny() -> Self {
        Architecture {
            variant: Variant::Published,
            // Images of 64x64 come down to 8x8, as those of 256x256 do in the published network.
            denoiser: DenoiserSizes {
                multipliers: vec![1, 2, 4, 4],
                attention: vec![3],
                ..DenoiserSizes::tiny()
            },
            highway: HighwaySizes::tiny(),
            transformer: TransformerSizes::tiny(),
            prediction: Prediction::Sample,
        }
    }

    fn check(&self) -> diffaug::Result<()> {
        self.denoiser.check()?;
        self.highway.check()?;
        match self.variant {
            Variant::Published => self.transformer.check(self.denoiser.groups)?,
            Variant::Released => self.check_released()?,
        }
        check::affordable("denoiser.width", self.denoiser.width, |scope| {
            Net::new(scope, self, 1, (0, 0))
        })
    }

    fn multiple(&self) -> u32 {
        1 << self.denoiser.halvings()
    }

    fn dropout(&self) -> f32 {
        self.highway.dropout
    }

    /// That of the repository; for `published` the paper's 32 images a step.
    fn reference(&self) -> Budget {
        match self.variant {
            Variant::Released => reference(),
            Variant::Published => Budget {
                batch: 32,
                ..reference()
            },
        }
    }

    fn small(&self) -> Budget {
        Budget::default().rarely_validated()
    }

    fn common(&self) -> Budget {
        Budget::common().rarely_validated()
    }

    fn activations(&self, load: &Load) -> Activations {
        let halvings = self.denoiser.halvings();
        let both = self.denoiser.values() + self.highway.values(halvings);
        let (width, height) = load.size;
        let own = match self.variant {
            Variant::Released => 3.0 * self.denoiser.width as f64,
            Variant::Published => {
                let entry = 2 * self.denoiser.width + 5 * self.highway.width;
                let lowest = [height, width].map(|side| (side >> halvings) as usize);
                let transformer = self.transformer.values(self.denoiser.lowest(), lowest);
                entry as f64 + transformer / (f64::from(width) * f64::from(height)).max(1.0)
            }
        };
        sizes::activations(load, both + own)
    }

    /// The layer whose outputs are the masks: the calibration's.
    fn head(&self) -> &'static str {
        "hwm.seg_outputs.0"
    }
}

/// The network.
#[derive(Clone, Debug)]
pub struct Net {
    denoiser: Denoiser,
    highway: Highway,
    guide: Guide,
    masks: usize,
    multiple: usize,
}

/// How the denoiser is told of the image.
#[derive(Clone, Debug)]
enum Guide {
    Published(Box<(UncertainAttention, SpectrumTransformer)>),
    Released,
}

/// What depends on the images alone.
#[derive(Clone, Debug)]
pub struct Condition {
    /// What the denoiser's first map is told: how strong each pixel is, or what is added.
    first: Tensor,
    /// What its deepest map is told.
    deepest: Option<Tensor>,
    logits: Tensor,
}

impl MaskNetwork for Net {
    type Architecture = Architecture;
    type Condition = Condition;

    fn new(
        mut scope: Scope<'_>,
        architecture: &Architecture,
        masks: usize,
        _: (u32, u32),
    ) -> Result<Self> {
        let Architecture {
            denoiser, highway, ..
        } = architecture;
        let pools = denoiser.halvings();
        let guide = match architecture.variant {
            Variant::Released => Guide::Released,
            Variant::Published => {
                let inputs = highway.channels(pools.saturating_sub(1));
                let sizes = &architecture.transformer;
                let place = scope.child("transformer");
                let transformer = SpectrumTransformer::new(place, sizes, denoiser, inputs)?;
                let attention =
                    UncertainAttention::new(scope.child("anchor"), highway.channels(0))?;
                Guide::Published(Box::new((attention, transformer)))
            }
        };
        let highway = Highway::new(scope.child("hwm"), highway, pools, masks, None)?;
        let outputs = architecture.outputs(masks);
        Ok(Net {
            denoiser: Denoiser::new(scope, denoiser, 3 + masks, outputs)?,
            highway,
            guide,
            masks,
            multiple: architecture.multiple() as usize,
        })
    }

    /// As the paper says, ten masks of a hundred steps each, joined by STAPLE; the variance of a step, of which it
    /// says nothing, is the smaller one of Ho et al. (2020). As what was released tests, five masks of a thousand
    /// steps each, joined by [`staple`].
    fn diffusion(architecture: &Architecture) -> Diffusion {
        let (learned_variance, steps, runs, fusion) = match architecture.variant {
            Variant::Published => (false, 100, 10, Fusion::Staple),
            Variant::Released => (true, 1000, 5, Fusion::Published),
        };
        Diffusion {
            prediction: architecture.prediction,
            values: (0.0, 1.0),
            learned_variance,
            sampler: SamplerName::Ddpm,
            steps,
            runs,
            fusion,
        }
    }

    fn condition(&self, images: &Tensor, pass: &Pass<'_>) -> Result<Condition> {
        sides(images, self.multiple)?;
        let found = self.highway.forward(images, &[], pass)?;
        let decoded = &found.decoded;
        match &self.guide {
            Guide::Published(guide) => {
                let (attention, transformer) = guide.as_ref();
                let Some(highest) = decoded.last() else {
                    bail!("a U-Net without levels guides nothing");
                };
                Ok(Condition {
                    first: attention.strength(highest)?,
                    deepest: Some(transformer.enter(&found.deepest)?),
                    logits: found.logits,
                })
            }
            Guide::Released => {
                let [.., lower, higher, _] = decoded.as_slice() else {
                    bail!("a U-Net of {} levels has too few", decoded.len());
                };
                let (_, _, height, width) = images.dims4()?;
                let stretched =
                    |x: &Tensor| ops::upsample_bilinear2d(&x.detach(), height, width, false);
                let (higher, lower) = (stretched(higher)?, stretched(lower)?);
                Ok(Condition {
                    first: Tensor::cat(&[&higher, &higher, &lower], 1)?,
                    deepest: None,
                    logits: found.logits,
                })
            }
        }
    }

    fn predict(
        &self,
        images: &Tensor,
        noisy: &Tensor,
        t: &Tensor,
        condition: &Condition,
        pass: &Pass<'_>,
    ) -> Result<Predicted> {
        fits(images, noisy, t, self.masks, self.multiple)?;
        let time = self.denoiser.time(t, images)?;
        let first = self.denoiser.enter(&Tensor::cat(&[images, noisy], 1)?)?;
        let first = match &self.guide {
            Guide::Published(guide) => guide.0.forward(&first, &condition.first)?,
            Guide::Released => ops::add(&first, &condition.first)?,
        };
        let descent = self.denoiser.descend(first, &time, pass)?;
        let lowest = match (&self.guide, &condition.deepest) {
            (Guide::Published(guide), Some(deepest)) => {
                guide.1.run(deepest, &descent.deepest, &time, pass)?
            }
            _ => descent.deepest,
        };
        let answer = self.denoiser.ascend(&lowest, descent.skips, &time, pass)?;
        predicted(&answer, self.masks, &condition.logits)
    }

    fn loss(&self, predicted: &Predicted, noised: &Noised<'_>) -> diffaug::Result<Tensor> {
        // Variances are learned by the variational bound.
        let rule = match predicted.variance {
            Some(_) => Rule::Released,
            None => Rule::Published,
        };
        Ok(loss(rule, predicted, noised)?)
    }

    fn fuse(diffusion: &Diffusion, runs: &[Run]) -> diffaug::Result<Tensor> {
        let drawn = runs.iter().map(|run| diffusion.probabilities(&run.drawn));
        Ok(staple(&drawn.collect::<Result<Vec<_>>>()?)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing;
    use super::*;
    use diffaug_nn::params::Shapes;
    use diffaug_nn::{Device, params::Params, testing::close};

    /// That of the fixture.
    fn narrow() -> Architecture {
        Architecture {
            variant: Variant::Released,
            denoiser: DenoiserSizes {
                width: 8,
                multipliers: vec![1, 1, 2, 1],
                blocks: 1,
                attention: vec![2],
                groups: 4,
            },
            highway: HighwaySizes {
                width: 2,
                most: 7,
                dropout: 0.5,
            },
            ..Architecture::default()
        }
    }

    fn answer(
        net: &Net,
    ) -> impl Fn(&Tensor, &Tensor, &Tensor, &Pass<'_>) -> Result<Predicted> + '_ {
        move |images, noisy, t, pass| {
            let condition = net.condition(images, pass)?;
            net.predict(images, noisy, t, &condition, pass)
        }
    }

    #[test]
    fn the_released_variant_has_as_many_parameters_as_the_reference() {
        let released = Architecture {
            variant: Variant::Released,
            ..Architecture::default()
        };
        let shapes = Shapes::of(|scope| Net::new(scope, &released, 1, (0, 0))).unwrap();
        assert_eq!(shapes.parameters(), 129_400_450);
        let highway = shapes.trainable.iter();
        let highway = highway.filter(|(name, _)| name.starts_with("hwm."));
        let values = |(_, shape): (&String, &Vec<usize>)| shape.iter().product::<usize>();
        assert_eq!(highway.map(values).sum::<usize>(), 15_727_232);
    }

    #[test]
    fn the_published_variant_adds_what_guides_it() {
        let shapes =
            Shapes::of(|scope| Net::new(scope, &Architecture::default(), 1, (0, 0))).unwrap();
        let linear = |from: u64, to: u64| from * to + to;
        let filter = 9 * 2 * 64 + 5 * 9 * 64 * 64 + 6 * (64 + 2 * 64 + linear(512, 128)) + 65;
        let attention = 4 * 2 * 512
            + linear(1024, 512)
            + 1024 * 512
            + 2 * linear(512, 512)
            + linear(512, 2048)
            + linear(2048, 512)
            + filter;
        let anchor = 3 + 32 + 1;
        let guides = anchor + linear(480, 512) + 2 * attention;
        // It has no variance.
        let less = 9 * 128 + 1;
        assert_eq!(shapes.parameters(), 129_400_450 - less + guides);
    }

    #[test]
    fn answers_and_gradients_are_those_of_the_reference() {
        let (architecture, fixture) = (narrow(), testing::fixture("medsegdiff_v2"));
        let tensors = testing::weights_of(&architecture, &fixture);
        let (images, noisy, t) = (&fixture["images"], &fixture["noisy"], &fixture["t"]);

        let mut params = Params::frozen(&Device::Cpu, tensors.clone());
        let net = Net::new(params.root(), &architecture, 1, (0, 0)).unwrap();
        assert!(params.left_over().is_empty());
        let output = answer(&net)(images, noisy, t, &Pass::ANSWER).unwrap();
        testing::assert_answers(&output, &fixture);

        let mut params = Params::new(&Device::Cpu, 0);
        let net = Net::new(params.root(), &architecture, 1, (0, 0)).unwrap();
        testing::fill(&params, &tensors);
        testing::assert_trains(&architecture, &params, &fixture, &answer(&net));
    }

    #[test]
    fn it_is_sound() {
        for (masks, architecture) in [(2, narrow()), (1, Architecture::tiny())] {
            let mut params = Params::new(&Device::Cpu, 0);
            let net = Net::new(params.root(), &architecture, masks, (0, 0)).unwrap();
            let rule = match architecture.variant {
                Variant::Published => Rule::Published,
                Variant::Released => Rule::Released,
            };
            testing::assert_sound(rule, &params, masks, [32, 48], &answer(&net));
        }
    }

    #[test]
    fn a_condition_serves_several_masks() {
        for architecture in [narrow(), Architecture::tiny()] {
            let mut params = Params::new(&Device::Cpu, 0);
            let net = Net::new(params.root(), &architecture, 1, (0, 0)).unwrap();
            testing::stir(&params);
            let [images, noisy, t] = testing::inputs(1, [16, 24]);
            let condition = net.condition(&images, &Pass::ANSWER).unwrap();
            let both = net.predict(&images, &noisy, &t, &condition, &Pass::ANSWER);
            let alone = [&images, &noisy, &t].map(|x| x.narrow(0, 0, 1).unwrap());
            let [image, mask, step] = &alone;
            let first = net.condition(image, &Pass::ANSWER).unwrap();
            let alone = net.predict(image, mask, step, &first, &Pass::ANSWER);
            let (both, alone) = (both.unwrap(), alone.unwrap());
            close(&alone.output, &both.output.narrow(0, 0, 1).unwrap(), 1e-5);
        }
    }

    #[test]
    fn the_released_variant_learns_nothing_through_the_denoiser() {
        let mut params = Params::new(&Device::Cpu, 0);
        let net = Net::new(params.root(), &narrow(), 1, (0, 0)).unwrap();
        testing::stir(&params);
        let [images, noisy, t] = testing::inputs(1, [16, 16]);
        let output = answer(&net)(&images, &noisy, &t, &testing::TRAIN).unwrap();
        let grads = output.output.sqr().unwrap().sum_all().unwrap();
        let grads = grads.backward().unwrap();
        for (name, var) in params.trainable() {
            assert_eq!(grads.get(var).is_none(), name.starts_with("hwm."), "{name}");
        }
    }

    #[test]
    fn a_wrong_value_names_its_option() {
        Architecture::default().check().unwrap();
        Architecture::tiny().check().unwrap();
        let refused = testing::refused::<Architecture>;
        let released = |rest: &str| format!(r#"{{"variant": "released", {rest}}}"#);
        for (json, field) in [
            (r#"{"denoiser": {"width": 0}}"#.to_owned(), "denoiser.width"),
            (
                r#"{"transformer": {"blocks": 0}}"#.to_owned(),
                "transformer.blocks",
            ),
            (
                r#"{"transformer": {"filter_blocks": 65}}"#.to_owned(),
                "transformer.filter_blocks",
            ),
            (
                r#"{"transformer": {"filter_width": 48}}"#.to_owned(),
                "transformer.filter_width",
            ),
            (released(r#""highway": {"width": 16}"#), "highway.width"),
            (released(r#""highway": {"most": 40}"#), "highway.width"),
            (
                released(r#""denoiser": {"multipliers": [1, 2, 4], "attention": [2]}"#),
                "denoiser.multipliers",
            ),
        ] {
            assert_eq!(refused(&json), format!("architecture.{field}"), "{json}");
        }
        assert!(serde_json::from_str::<Architecture>(r#"{"variant": "other"}"#).is_err());
    }
}
