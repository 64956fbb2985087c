//! The stage: training, and answering for images of any size.

use crate::{Architecture, Options, UNet, statistics};
use candle_core::Tensor;
use diffaug::prelude::*;
use diffaug::stage::Segmenter as Stage;
use diffaug::{Class, Context, segmenting};
use diffaug_nn::{
    DType, Device, batch, device,
    finite::Witnesses,
    fit::{self, Learner, WEIGHTS},
    layers::Mode,
    ops,
    params::Params,
    precision::Precision,
    weights,
};
use rayon::prelude::*;
use std::path::Path;

/// The Dice part of the loss of several classes: over the whole batch, as that of one.
const DICE: ops::SoftDice = ops::SoftDice {
    smooth: 1e-6,
    squared: false,
    per_image: false,
};

/// The segmenter `unet`.
pub struct Segmenter {
    options: Options,
    device: Device,
    seed: u64,
    trained: Option<Network>,
}

/// A network with its parameters and what it was made for.
struct Network {
    architecture: Architecture,
    options: Options,
    params: Params,
    net: UNet,
}

impl Network {
    fn new(
        architecture: Architecture,
        options: &Options,
        device: &Device,
        seed: u64,
    ) -> Result<Self> {
        let mut params = Params::new(device, seed);
        let Architecture { width, depth, .. } = architecture;
        let net = UNet::new(params.root(), architecture.outputs(), width, depth)?;
        Ok(Network {
            architecture,
            options: options.clone(),
            params,
            net,
        })
    }

    /// The network in a folder that training left.
    fn load(folder: &Path, options: &Options, device: &Device, seed: u64) -> Result<Self> {
        let architecture = Architecture::read(folder)?;
        architecture.check_stored(&folder.join(WEIGHTS))?;
        let network = Network::new(architecture, options, device, seed)?;
        weights::load(&folder.join(WEIGHTS), &network.params)?;
        Ok(network)
    }

    /// An answer for each image, of the image's size; the first is number `first` of all.
    fn segment(&self, first: usize, images: &[ImageRef<'_>]) -> Result<Vec<Segmentation>> {
        let frame = self.architecture.frame();
        let input = batch::images(images, frame, self.params.device())?;
        let logits = self.net.forward(&input, Mode::Eval)?;
        let mut seen = Witnesses::default();
        seen.note((), &logits)?;
        if let Some(((), row)) = seen.first()? {
            return Err(Error::model(format!(
                "image {} cannot be segmented: the network answers with a value that is NaN or infinite: the weights are broken",
                first + row
            )));
        }
        let probabilities = match self.architecture.outputs() {
            1 => ops::sigmoid(&logits)?,
            _ => softmax(&logits)?,
        };
        let planes = probabilities.to_device(&Device::Cpu)?.flatten_from(2)?;
        let planes: Vec<Vec<Vec<f32>>> = planes.to_vec3()?;
        let work = planes.into_par_iter().zip(images);
        work.map(|(planes, image)| self.answer(&planes, *image))
            .collect()
    }

    /// Brings the probabilities of every channel to the image's size and decides.
    fn answer(&self, planes: &[Vec<f32>], image: ImageRef<'_>) -> Result<Segmentation> {
        let frame = self.architecture.frame();
        let size = image.size();
        let planes: Vec<Vec<f32>> = planes
            .iter()
            .map(|plane| batch::answer(plane, frame, size))
            .collect();
        let classes = &self.architecture.classes;
        let (labels, probability) = match planes.as_slice() {
            [target] => {
                let label = |p: &f32| {
                    if *p > self.options.threshold {
                        classes[0].0
                    } else {
                        0
                    }
                };
                (target.iter().map(label).collect(), target.clone())
            }
            planes => {
                let labels = (0..planes[0].len()).map(|i| {
                    // The first of equally probable classes; background comes first.
                    let best = (1..planes.len()).fold(0, |best, class| {
                        if planes[class][i] > planes[best][i] {
                            class
                        } else {
                            best
                        }
                    });
                    if best == 0 { 0 } else { classes[best - 1].0 }
                });
                (
                    labels.collect(),
                    planes[0].iter().map(|p| 1.0 - p).collect(),
                )
            }
        };
        Ok(Segmentation {
            mask: Mask::new(size.0, size.1, labels)?,
            probability: probability.into(),
        })
    }
}

/// Softmax over the channels.
fn softmax(logits: &Tensor) -> Result<Tensor> {
    let largest = logits.max_keepdim(1)?;
    let powers = logits.broadcast_sub(&largest)?.exp()?;
    Ok(powers.broadcast_div(&powers.sum_keepdim(1)?)?)
}

/// Images and, for each pixel, the index of its class (0 is background).
struct Batch {
    images: Tensor,
    targets: Tensor,
}

impl Learner for Network {
    type Batch = Batch;

    fn params(&self) -> &Params {
        &self.params
    }

    fn prepare(&self, samples: Vec<Sample>, _step: u64) -> Result<Batch> {
        let frame = self.architecture.frame();
        segmenting::check_sizes(&samples, self.options.size, frame.content)?;
        let device = self.params.device();
        let images: Vec<ImageRef<'_>> = samples.iter().map(|s| s.image.view()).collect();
        let images = batch::images(&images, frame, device)?;
        let mut index = [0u32; 256];
        for (place, (label, _)) in self.architecture.classes.iter().enumerate() {
            index[usize::from(*label)] = place as u32 + 1;
        }
        let labels = samples
            .iter()
            .flat_map(|sample| batch::labels(sample.mask.view(), frame));
        let targets: Vec<u32> = labels.map(|label| index[usize::from(label)]).collect();
        let (width, height) = (frame.whole.0 as usize, frame.whole.1 as usize);
        let shape = (samples.len(), height, width);
        // The losses of several classes look at their labels on the host.
        let device = match self.architecture.outputs() {
            1 => device,
            _ => &Device::Cpu,
        };
        let targets = Tensor::from_vec(targets, shape, device)?;
        Ok(Batch { images, targets })
    }

    fn loss(&self, batch: Batch, _step: u64) -> Result<Tensor> {
        let frame = self.architecture.frame();
        let images = self.precision().cast(&batch.images)?;
        let logits = self.net.forward(&images, Mode::Train)?;
        let (mut logits, mut targets) = (logits.to_dtype(DType::F32)?, batch.targets);
        if frame.whole != frame.content {
            // Padding is not judged.
            let (width, height) = (frame.content.0 as usize, frame.content.1 as usize);
            logits = logits.narrow(2, 0, height)?.narrow(3, 0, width)?;
            targets = targets
                .narrow(1, 0, height)?
                .narrow(2, 0, width)?
                .contiguous()?;
        }
        let (dice, cross_entropy) = self.options.loss.weights();
        if self.architecture.outputs() == 1 {
            let targets = targets.unsqueeze(1)?.to_dtype(logits.dtype())?;
            return Ok(ops::dice_bce_with_logits(
                &logits,
                &targets,
                dice,
                cross_entropy,
            )?);
        }
        let dice_part = (DICE.multiclass(&logits, &targets)? * f64::from(dice))?;
        let entropy_part = (ops::cross_entropy(&logits, &targets)? * f64::from(cross_entropy))?;
        Ok((dice_part + entropy_part)?)
    }

    fn score(&self, validation: &BoxDataset, reporter: &Reporter<'_>) -> Result<f64> {
        let labels: Vec<u8> = self.architecture.classes.iter().map(|c| c.0).collect();
        let batch = self.options.batch;
        segmenting::validation_dice(validation, &labels, batch, reporter, |images| {
            self.segment(0, images)
        })
    }

    fn metric(&self) -> &str {
        "validation dice"
    }

    fn precision(&self) -> Precision {
        self.options.precision
    }
}

impl FromConfig for Segmenter {
    type Config = Options;

    fn validate(options: &Options) -> Result<()> {
        options.check()
    }

    fn from_config(options: Options, context: &Context) -> Result<Self> {
        let device = device::open(&context.device)?;
        let seed = options.seed.unwrap_or(context.seed);
        let load = |folder| Network::load(folder, &options, &device, seed);
        let trained = options.weights.as_deref().map(load).transpose();
        Ok(Segmenter {
            trained: trained.map_err(|error| error.at("weights"))?,
            options,
            device,
            seed,
        })
    }

    fn inspect(options: &Options, context: &Context) -> Result<Inspection> {
        crate::inspect::inspect(options, context)
    }
}

impl Stage for Segmenter {
    fn classes(&self) -> Result<RVec<Class>> {
        let classes = self.trained.iter();
        let classes = classes.flat_map(|n| segmenting::classes(&n.architecture.classes));
        Ok(classes.collect())
    }

    fn segment(
        &self,
        images: RSlice<'_, ImageRef<'_>>,
        reporter: &Reporter<'_>,
    ) -> Result<RVec<Segmentation>> {
        let Some(network) = &self.trained else {
            return Err(Error::model(
                "the segmenter `unet` has no weights: train it or set `weights`",
            )
            .at("weights"));
        };
        let mut first = 0;
        segmenting::in_batches(&images, self.options.batch, reporter, |part| {
            let answers = network.segment(first, part)?;
            first += part.len();
            Ok(answers)
        })
    }

    fn fit(
        &self,
        train: &BoxDataset,
        validation: &BoxDataset,
        out: RStr<'_>,
        reporter: &Reporter<'_>,
    ) -> Result<FitReport> {
        let targets = segmenting::targets(&train.info()?)?;
        let input = segmenting::input_size(train, self.options.size)?;
        let architecture = Architecture::new(&self.options, targets, input);
        let network = Network::new(architecture, &self.options, &self.device, self.seed)?;
        let options = &self.options;
        if let Some(folder) = &options.weights {
            // Goes on training on other data.
            let load = || weights::load(&folder.join(WEIGHTS), &network.params);
            load().map_err(|error| error.at("weights"))?;
        }
        if let Some(unused) = options.unused() {
            tracing::warn!("{unused}");
        }
        let settings = options.settings(self.seed);
        let mut model = serde_json::to_value(&network.architecture)?;
        model["loss"] = serde_json::to_value(options.loss)?;
        model["threshold"] = serde_json::to_value(options.threshold)?;
        if options.real_statistics {
            model["real_statistics"] = true.into();
        }
        let out = Path::new(out.as_str());
        let report = fit::fit(
            &network, &settings, &model, train, validation, out, reporter,
        )?;
        if options.real_statistics {
            statistics::of_real(&network, train, options.batch, out, |batch| {
                let images = network.precision().cast(&batch.images)?;
                network.net.forward(&images, Mode::Train)?;
                Ok(())
            })?;
        }
        Ok(report)
    }
}
