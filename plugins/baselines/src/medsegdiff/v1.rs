//! The segmenter `medsegdiff-v1`: MedSegDiff (Wu et al., 2022) as its code has it.
//!
//! The denoiser goes down first; its halved maps gate the U-Net of the image, through a learned filter of their
//! spectra (FF-Parser), so that the network is built for images of one size. The deepest map of that U-Net is
//! added to the denoiser's.
//!
//! The reference does so through a 1×1 convolution that it makes anew, with random weights, in every pass, so
//! that it is neither trained nor stored. Here it is a layer like any other ([`Architecture::embedding`]),
//! which begins with zeros.

use super::{
    Denoiser, Findings, Highway, Rule, fits, fuse, loss, predicted, reference,
    sizes::{self, DenoiserSizes, HighwaySizes},
    staple,
};
use crate::check;
use candle_core::{Result, Tensor, bail};
use diffaug_nn::{
    diffusion::scheduler::{Prediction, SamplerName},
    layers::Conv2d,
    ops,
    params::Scope,
    segmenter::{
        Activations, Architecture as Sizes, Budget, Diffusion, Fusion, Load, MaskNetwork, Noised,
        Pass, Predicted, Run,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The network.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// The network that takes the noise out of masks.
    pub denoiser: DenoiserSizes,
    /// The U-Net of the image alone; it is halved as often as the denoiser.
    pub highway: HighwaySizes,
    /// Whether its deepest map is added to the denoiser's, through a layer that published weights do not have:
    /// set this to false to use these.
    pub embedding: bool,
}

impl Default for Architecture {
    fn default() -> Self {
        Architecture {
            denoiser: DenoiserSizes::default(),
            highway: HighwaySizes::default(),
            embedding: true,
        }
    }
}

impl Sizes for Architecture {
    const PLUGIN: &'static str = "medsegdiff-v1";

    fn tiny() -> Self {
        Architecture {
            denoiser: DenoiserSizes::tiny(),
            highway: HighwaySizes::tiny(),
            embedding: true,
        }
    }

    fn check(&self) -> diffaug::Result<()> {
        self.denoiser.check()?;
        self.highway.check()?;
        let side = 2 * self.multiple();
        check::affordable("denoiser.width", self.denoiser.width, |scope| {
            Net::new(scope, self, 1, (side, side))
        })
    }

    fn multiple(&self) -> u32 {
        1 << self.denoiser.halvings()
    }

    fn dropout(&self) -> f32 {
        self.highway.dropout
    }

    fn reference(&self) -> Budget {
        reference()
    }

    fn small(&self) -> Budget {
        Budget::default().rarely_validated()
    }

    fn common(&self) -> Budget {
        Budget::common().rarely_validated()
    }

    fn activations(&self, load: &Load) -> Activations {
        let highway = self.highway.values(self.denoiser.halvings());
        let gates = self.highway.values_of_gates(self.denoiser.halvings());
        sizes::activations(load, self.denoiser.values() + highway + gates)
    }

    /// The layer whose outputs are the masks: the calibration's.
    fn head(&self) -> &'static str {
        "hwm.seg_outputs.0"
    }
}

/// The network, for images of one size.
#[derive(Clone, Debug)]
pub struct Net {
    denoiser: Denoiser,
    highway: Highway,
    embedding: Option<Conv2d>,
    masks: usize,
    sides: [usize; 2],
    multiple: usize,
}

impl MaskNetwork for Net {
    type Architecture = Architecture;
    /// The network of the image sees what the other has found: nothing follows from the image alone.
    type Condition = ();

    fn new(
        mut scope: Scope<'_>,
        architecture: &Architecture,
        masks: usize,
        (width, height): (u32, u32),
    ) -> Result<Self> {
        let sides = [height as usize, width as usize];
        let Architecture {
            denoiser, highway, ..
        } = architecture;
        let multiple = architecture.multiple() as usize;
        if sides.iter().any(|side| *side == 0 || side % multiple != 0) {
            bail!("sides have to be multiples of {multiple}, not {sides:?}");
        }
        let pools = denoiser.halvings();
        // A halved map has the channels of the resolution before.
        let halved: Vec<usize> = (0..pools).map(|level| denoiser.channels(level)).collect();
        let embedding = architecture.embedding.then(|| {
            let place = scope.child("hwm.embedding").zeroed();
            let deepest = highway.channels(pools - 1);
            Conv2d::new(place, deepest, denoiser.lowest(), 1, true)
        });
        let embedding = embedding.transpose()?;
        let gated = Some((halved.as_slice(), sides));
        let highway = Highway::new(scope.child("hwm"), highway, pools, masks, gated)?;
        Ok(Net {
            denoiser: Denoiser::new(scope, denoiser, 3 + masks, 2 * masks)?,
            highway,
            embedding,
            masks,
            sides,
            multiple,
        })
    }

    /// Five masks of a thousand steps each, as the reference tests.
    fn diffusion(_: &Architecture) -> Diffusion {
        Diffusion {
            prediction: Prediction::Epsilon,
            values: (0.0, 1.0),
            learned_variance: true,
            sampler: SamplerName::Ddpm,
            steps: 1000,
            runs: 5,
            fusion: Fusion::Published,
        }
    }

    fn condition(&self, _: &Tensor, _: &Pass<'_>) -> Result<()> {
        Ok(())
    }

    fn predict(
        &self,
        images: &Tensor,
        noisy: &Tensor,
        t: &Tensor,
        (): &(),
        pass: &Pass<'_>,
    ) -> Result<Predicted> {
        fits(images, noisy, t, self.masks, self.multiple)?;
        let (_, _, height, width) = images.dims4()?;
        if [height, width] != self.sides {
            let [ours, across] = self.sides;
            bail!("the network is for images of {ours}×{across}, not {height}×{width}");
        }
        let time = self.denoiser.time(t, images)?;
        let first = self.denoiser.enter(&Tensor::cat(&[images, noisy], 1)?)?;
        let descent = self.denoiser.descend(first, &time, pass)?;
        let Findings {
            deepest, logits, ..
        } = self.highway.forward(images, &descent.halved, pass)?;
        let lowest = match &self.embedding {
            Some(embedding) => ops::add(&descent.deepest, &embedding.forward(&deepest)?)?,
            None => descent.deepest,
        };
        let answer = self.denoiser.ascend(&lowest, descent.skips, &time, pass)?;
        predicted(&answer, self.masks, &logits)
    }

    fn loss(&self, predicted: &Predicted, noised: &Noised<'_>) -> diffaug::Result<Tensor> {
        Ok(loss(Rule::Released, predicted, noised)?)
    }

    /// Each mask with what the network of the image says beside it, joined by [`staple`].
    fn fuse(_: &Diffusion, runs: &[Run]) -> diffaug::Result<Tensor> {
        let fused = runs.iter().map(|run| match &run.logits {
            Some(logits) => fuse(&run.drawn, &ops::sigmoid(logits)?),
            None => run.drawn.clamp(0f32, 1f32),
        });
        Ok(staple(&fused.collect::<Result<Vec<_>>>()?)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing;
    use super::*;
    use diffaug_nn::params::Shapes;
    use diffaug_nn::{Device, layers::Mode, ops::Dropping, params::Params, precision::Precision};

    /// That of the fixture.
    fn narrow() -> Architecture {
        Architecture {
            denoiser: DenoiserSizes {
                width: 4,
                multipliers: vec![1, 1, 2, 2, 3],
                blocks: 2,
                attention: vec![3],
                groups: 4,
            },
            highway: HighwaySizes {
                width: 3,
                most: 10,
                dropout: 0.5,
            },
            embedding: true,
        }
    }

    #[test]
    fn it_has_as_many_parameters_as_the_reference_and_the_layer_that_is_learned() {
        let published = Architecture::default();
        let count = |architecture: &Architecture, masks: usize| {
            let shapes =
                Shapes::of(|scope| Net::new(scope, architecture, masks, (256, 256))).unwrap();
            let of = |shape: &Vec<usize>| shape.iter().product::<usize>();
            let highway = shapes.trainable.iter();
            let highway = highway.filter(|(name, _)| name.starts_with("hwm."));
            (
                shapes.parameters(),
                highway.map(|(_, shape)| of(shape)).sum::<usize>(),
            )
        };
        let learned = 480 * 512 + 512;
        assert_eq!(
            count(&published, 1),
            (130_527_814 + learned as u64, 16_854_596 + learned)
        );
        let without = Architecture {
            embedding: false,
            ..published.clone()
        };
        assert_eq!(count(&without, 1), (130_527_814, 16_854_596));
        // One more channel goes in, and three more come out.
        let more = 9 * 128 + 2 * (9 * 128 + 1) + 32;
        assert_eq!(count(&without, 2).0, 130_527_814 + more);
    }

    #[test]
    fn answers_and_gradients_are_those_of_the_reference() {
        let (architecture, fixture) = (narrow(), testing::fixture("medsegdiff_v1"));
        let tensors = testing::weights_of(&architecture, &fixture);
        let (images, noisy, t) = (&fixture["images"], &fixture["noisy"], &fixture["t"]);

        let mut params = Params::frozen(&Device::Cpu, tensors.clone());
        let net = Net::new(params.root(), &architecture, 1, (48, 32)).unwrap();
        assert!(params.left_over().is_empty());
        let output = net.predict(images, noisy, t, &(), &Pass::ANSWER).unwrap();
        testing::assert_answers(&output, &fixture);

        // What was published has no layer between the two networks.
        let without = Architecture {
            embedding: false,
            ..architecture.clone()
        };
        let mut published = tensors.clone();
        published.retain(|name, _| !name.starts_with("hwm.embedding"));
        let mut params = Params::frozen(&Device::Cpu, published);
        Net::new(params.root(), &without, 1, (48, 32)).unwrap();
        assert!(params.left_over().is_empty());

        let mut params = Params::new(&Device::Cpu, 0);
        let net = Net::new(params.root(), &architecture, 1, (48, 32)).unwrap();
        testing::fill(&params, &tensors);
        let answer = |images: &Tensor, noisy: &Tensor, t: &Tensor, pass: &Pass<'_>| {
            net.predict(images, noisy, t, &(), pass)
        };
        testing::assert_trains(&architecture, &params, &fixture, &answer);
    }

    #[test]
    fn it_is_sound() {
        for (masks, architecture) in [(1, narrow()), (2, Architecture::tiny())] {
            let mut params = Params::new(&Device::Cpu, 0);
            let net = Net::new(params.root(), &architecture, masks, (64, 32)).unwrap();
            let answer = |images: &Tensor, noisy: &Tensor, t: &Tensor, pass: &Pass<'_>| {
                net.predict(images, noisy, t, &(), pass)
            };
            testing::assert_sound(Rule::Released, &params, masks, [32, 64], &answer);
            let [images, noisy, t] = testing::inputs(masks, [64, 32]);
            let error = net
                .predict(&images, &noisy, &t, &(), &Pass::ANSWER)
                .unwrap_err();
            assert!(
                error
                    .to_string()
                    .contains("is for images of 32×64, not 64×32")
            );
        }
    }

    #[test]
    fn a_network_that_was_not_trained_answers_with_no_noise() {
        let mut params = Params::new(&Device::Cpu, 0);
        let net = Net::new(params.root(), &Architecture::tiny(), 1, (16, 16)).unwrap();
        let [images, noisy, t] = testing::inputs(1, [16; 2]);
        let output = net
            .predict(&images, &noisy, &t, &(), &Pass::ANSWER)
            .unwrap();
        let sum = |x: &Tensor| x.abs()?.sum_all()?.to_scalar::<f32>();
        assert_eq!(sum(&output.output).unwrap(), 0.0);
        assert!(sum(&testing::calibration(&output)).unwrap() > 0.0);
    }

    #[test]
    fn nothing_falls_out_of_an_answer() {
        let mut params = Params::new(&Device::Cpu, 0);
        let net = Net::new(params.root(), &Architecture::tiny(), 1, (16, 16)).unwrap();
        testing::stir(&params);
        let [images, noisy, t] = testing::inputs(1, [16; 2]);
        let dropping = Dropping::new(0.5, 0, 0);
        let answer = |pass: Pass<'_>| {
            let output = net.predict(&images, &noisy, &t, &(), &pass).unwrap();
            let noise = output.output.flatten_all().unwrap();
            noise.to_vec1::<f32>().unwrap()
        };
        let given = |mode: Mode, dropping| Pass {
            mode,
            dropping,
            recompute: false,
        };
        let plain = answer(Pass::ANSWER);
        assert_eq!(answer(given(Mode::Eval, Some(&dropping))), plain);
        assert_ne!(
            answer(given(Mode::Train, Some(&dropping))),
            answer(given(Mode::Train, None))
        );
    }

    #[test]
    fn a_wrong_value_names_its_option() {
        Architecture::default().check().unwrap();
        Architecture::tiny().check().unwrap();
        let refused = testing::refused::<Architecture>;
        for (json, field) in [
            (r#"{"denoiser": {"width": 0}}"#, "denoiser.width"),
            (
                r#"{"denoiser": {"width": 33, "groups": 11}}"#,
                "denoiser.width",
            ),
            (r#"{"denoiser": {"width": 16384}}"#, "denoiser.width"),
            (
                r#"{"denoiser": {"multipliers": [1]}}"#,
                "denoiser.multipliers",
            ),
            (
                r#"{"denoiser": {"multipliers": [1, 0]}}"#,
                "denoiser.multipliers",
            ),
            (r#"{"denoiser": {"blocks": 0}}"#, "denoiser.blocks"),
            (r#"{"denoiser": {"attention": [6]}}"#, "denoiser.attention"),
            (r#"{"denoiser": {"groups": 48}}"#, "denoiser.groups"),
            (r#"{"highway": {"width": 0}}"#, "highway.width"),
            (r#"{"highway": {"most": 31}}"#, "highway.most"),
            (r#"{"highway": {"dropout": 1.0}}"#, "highway.dropout"),
        ] {
            assert_eq!(refused(json), format!("architecture.{field}"), "{json}");
        }
        let odd = Shapes::of(|scope| Net::new(scope, &Architecture::default(), 1, (250, 256)));
        assert!(odd.unwrap_err().to_string().contains("multiples of 32"));
    }

    #[test]
    fn memory_grows_with_the_images() {
        let load = |batch: usize, on_processor: bool| Load {
            outputs: 1,
            size: (256, 256),
            batch,
            on_processor,
            precision: Precision::F32,
        };
        let of =
            |batch, on_processor| Architecture::default().activations(&load(batch, on_processor));
        let (one, two) = (of(1, true).training, of(2, true).training);
        assert!(two.abs_diff(2 * one) < 4);
        assert!(of(1, false).training > one);
        assert_eq!(of(usize::MAX, true).training, u64::MAX);
    }
}
