//! The stage that a network becomes: training, and answering for images of any size.

use super::{
    Architecture, Description, Learned, MOVED, Options, Pass, Setting, answer::decide, convert,
    inspect, statistics,
};
use crate::{
    batch, device,
    finite::Witnesses,
    fit::{self, CONFIG, Learner, WEIGHTS},
    layers::Mode,
    ops::Dropping,
    params::Params,
    precision::Precision,
    weights::{self, Files, Source},
};
use candle_core::{DType, Device, Tensor};
use diffaug::{Class, Context, prelude::*, rng, segmenting, stage::Segmenter as Stage};
use rayon::prelude::*;
use std::path::Path;

/// The segmenter that a network makes: `Trained<Direct<UNet>>`.
pub struct Trained<L: Learned> {
    options: Options<L::Architecture>,
    device: Device,
    seed: u64,
    trained: Option<Model<L>>,
}

/// A network with its parameters and what it was made for.
struct Model<L: Learned> {
    description: Description<L::Architecture>,
    options: Options<L::Architecture>,
    params: Params,
    net: L,
    seed: u64,
}

impl<L: Learned> Model<L> {
    fn new(
        description: Description<L::Architecture>,
        options: &Options<L::Architecture>,
        mut params: Params,
        seed: u64,
    ) -> Result<Self> {
        let net = description.network(&mut params)?;
        Ok(Model {
            description,
            options: options.clone(),
            params,
            net,
            seed,
        })
    }

    /// The network in a folder that training left, to answer and no more.
    fn load(
        folder: &Path,
        options: &Options<L::Architecture>,
        device: &Device,
        seed: u64,
    ) -> Result<Self> {
        let at_weights = |error: Error| error.at("weights");
        let path = folder.join(WEIGHTS);
        let description = Description::<L::Architecture>::read(folder).map_err(at_weights)?;
        description.check_stored::<L>(&path).map_err(at_weights)?;
        L::check_stored(options, &description)?;
        let model = Model::new(description, options, Params::new(device, seed), seed)?;
        weights::load(&path, &model.params).map_err(at_weights)?;
        Ok(model)
    }

    /// What its network is asked with.
    fn setting<'a>(
        &'a self,
        go_on: &'a (dyn Fn() -> Result<()> + Sync),
    ) -> Setting<'a, L::Architecture> {
        Setting {
            description: &self.description,
            options: &self.options,
            seed: self.seed,
            validates: false,
            go_on,
        }
    }

    /// A seed for each image, where the network draws anything: it follows from the image alone.
    fn seeds(&self, images: &[ImageRef<'_>]) -> Vec<u64> {
        let seed = |image: &ImageRef<'_>| match L::DRAWS {
            true => rng::derive(self.seed, "image", &image.fingerprint()),
            false => 0,
        };
        images.iter().map(seed).collect()
    }

    /// Images as the network sees them.
    fn see(&self, images: &[ImageRef<'_>]) -> Result<Tensor> {
        let images = batch::images(images, self.description.frame(), self.params.device())?;
        Ok(self.description.architecture.scaling().apply(&images)?)
    }

    /// An answer for each image, of the image's size; the first is number `first` of all.
    fn segment(
        &self,
        setting: &Setting<'_, L::Architecture>,
        first: usize,
        images: &[ImageRef<'_>],
    ) -> Result<Vec<Segmentation>> {
        let seeds = self.seeds(images);
        let answer = self.net.answer(setting, &self.see(images)?, &seeds)?;
        let mut seen = Witnesses::default();
        seen.note((), &answer.raw)?;
        seen.note((), &answer.probabilities)?;
        if let Some(((), row)) = seen.first()? {
            return Err(Error::model(format!(
                "image {} cannot be segmented: the network answers with a value that is NaN or infinite: the weights are broken",
                first + row
            )));
        }
        let planes = answer
            .probabilities
            .to_device(&Device::Cpu)?
            .flatten_from(2)?;
        let planes: Vec<Vec<Vec<f32>>> = planes.to_vec3()?;
        let (frame, labels) = (self.description.frame(), self.description.labels());
        let threshold = self.options.threshold;
        let work = planes.into_par_iter().zip(images);
        work.map(|(planes, image)| decide(&planes, frame, *image, &labels, threshold))
            .collect()
    }
}

/// Images and, for each pixel, the index of its class (0 is background).
struct Batch {
    images: Tensor,
    targets: Tensor,
}

impl<L: Learned> Learner for Model<L> {
    type Batch = Batch;

    fn params(&self) -> &Params {
        &self.params
    }

    fn prepare(&self, samples: Vec<Sample>, _step: u64) -> Result<Batch> {
        let frame = self.description.frame();
        segmenting::check_sizes(&samples, self.options.size, frame.content)?;
        let images: Vec<ImageRef<'_>> = samples.iter().map(|s| s.image.view()).collect();
        let images = self.see(&images)?;
        let mut index = [0u32; 256];
        for (place, (label, _)) in self.description.classes.iter().enumerate() {
            index[usize::from(*label)] = place as u32 + 1;
        }
        let labels = samples
            .iter()
            .flat_map(|sample| batch::labels(sample.mask.view(), frame));
        let targets: Vec<u32> = labels.map(|label| index[usize::from(label)]).collect();
        let (width, height) = (frame.whole.0 as usize, frame.whole.1 as usize);
        let shape = (samples.len(), height, width);
        // The losses of several classes look at their labels on the host.
        let device = match self.description.outputs() {
            1 => self.params.device(),
            _ => &Device::Cpu,
        };
        let targets = Tensor::from_vec(targets, shape, device)?;
        Ok(Batch { images, targets })
    }

    fn loss(&self, batch: Batch, step: u64) -> Result<Tensor> {
        let images = self.precision().cast(&batch.images)?;
        let share = self.description.architecture.dropout();
        let seed = rng::derive(self.seed, "part", "dropout");
        let dropping = (share > 0.0).then(|| Dropping::new(share, seed, step));
        let pass = Pass {
            mode: Mode::Train,
            dropping: dropping.as_ref(),
            recompute: self.options.train.recompute,
        };
        let setting = self.setting(&|| Ok(()));
        self.net.loss(&setting, &images, batch.targets, &pass, step)
    }

    fn score(&self, validation: &BoxDataset, reporter: &Reporter<'_>) -> Result<f64> {
        let labels = self.description.labels();
        let batch = self.options.images_at_once;
        let go_on = || going_on(reporter);
        let setting = Setting {
            validates: true,
            ..self.setting(&go_on)
        };
        segmenting::validation_dice(validation, &labels, batch, reporter, |images| {
            self.segment(&setting, 0, images)
        })
    }

    fn metric(&self) -> &str {
        "validation dice"
    }

    fn precision(&self) -> Precision {
        self.options.train.precision
    }
}

impl<L: Learned> Model<L> {
    /// Begins with the weights in `base`: a folder, from which every tensor is taken that has the name and
    /// shape of one here, or a published file of a part.
    fn begin(&self, base: &Path) -> Result<String> {
        if !base.is_dir() {
            let architecture = &self.description.architecture;
            return L::begin(&self.params, architecture, base, self.params.device());
        }
        let path = base.join(WEIGHTS);
        let mut source = Files::open(&[&path])?;
        let (mut taken, mut values, mut anew) = (0, 0, Vec::new());
        for (name, var) in self.params.all() {
            values += var.elem_count();
            let fits = source.shape(name).as_deref() == Some(var.dims());
            match if fits { source.take(name)? } else { None } {
                Some(tensor) => {
                    taken += var.elem_count();
                    var.set(&tensor.to_dtype(DType::F32)?.to_device(var.device())?)?;
                }
                None => anew.push(name),
            }
        }
        if taken == 0 {
            return Err(Error::model(format!(
                "no tensor of `{}` fits the network",
                path.display()
            )));
        }
        let anew = match anew.as_slice() {
            [] => String::new(),
            [name] => format!("; `{name}` begins anew"),
            [name, rest @ ..] => format!("; `{name}` and {} more begin anew", rest.len()),
        };
        Ok(format!("{taken} of the network's {values} values{anew}"))
    }
}

/// An error once the user wants to stop.
fn going_on(reporter: &Reporter<'_>) -> Result<()> {
    match reporter.cancelled() {
        true => Err(Error::cancelled()),
        false => Ok(()),
    }
}

impl<L: Learned> FromConfig for Trained<L> {
    type Config = Options<L::Architecture>;

    fn moved() -> &'static [(&'static str, &'static str)] {
        MOVED
    }

    fn validate(options: &Self::Config) -> Result<()> {
        options.check()?;
        L::check(options)
    }

    fn from_config(options: Self::Config, context: &Context) -> Result<Self> {
        let device = device::open(&context.device)?;
        let seed = options.seed.unwrap_or(context.seed);
        let load = |folder| Model::load(folder, &options, &device, seed);
        let trained = options.weights.as_deref().map(load).transpose();
        Ok(Trained {
            trained: trained?,
            options,
            device,
            seed,
        })
    }

    fn inspect(options: &Self::Config, context: &Context) -> Result<Inspection> {
        inspect::inspect::<L>(options, context)
    }

    fn convert(options: &Self::Config, from: &Path, to: &Path) -> Result<String> {
        convert::convert::<L>(options, from, to)
    }
}

impl<L: Learned> Stage for Trained<L> {
    fn classes(&self) -> Result<RVec<Class>> {
        let classes = self.trained.iter();
        let classes = classes.flat_map(|n| segmenting::classes(&n.description.classes));
        Ok(classes.collect())
    }

    fn segment(
        &self,
        images: RSlice<'_, ImageRef<'_>>,
        reporter: &Reporter<'_>,
    ) -> Result<RVec<Segmentation>> {
        let Some(network) = &self.trained else {
            let plugin = L::Architecture::PLUGIN;
            return Err(Error::model(format!(
                "the segmenter `{plugin}` has no weights: train it or set `weights`"
            ))
            .at("weights"));
        };
        let mut first = 0;
        let go_on = || going_on(reporter);
        let setting = network.setting(&go_on);
        segmenting::in_batches(&images, self.options.images_at_once, reporter, |part| {
            let answers = network.segment(&setting, first, part)?;
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
        let options = &self.options;
        let description = Description {
            sampling: L::sampling(options),
            ..Description::new(options.architecture(), targets, input)
        };
        let params = Params::new(&self.device, self.seed);
        let model = Model::<L>::new(description, options, params, self.seed)?;
        let out = Path::new(out.as_str());
        if let Some(folder) = &options.weights {
            // Goes on training on other data.
            let load = || weights::load(&folder.join(WEIGHTS), &model.params);
            load().map_err(|error| error.at("weights"))?;
        } else if let Some(base) = &options.base {
            let taken = model.begin(base).map_err(|error| error.at("base"))?;
            if !out.join(CONFIG).exists() {
                tracing::info!("`base`: {taken}");
            }
        }
        if let Some(unused) = options.train.unused() {
            tracing::warn!("{unused}");
        }
        let budget = options.budget();
        let settings = options.train.settings(&budget, self.seed);
        let described = model.described()?;
        let report = fit::fit(
            &model, &settings, &described, train, validation, out, reporter,
        )?;
        if options.train.real_statistics {
            statistics::of_real(&model, train, budget.batch, out, |batch, number| {
                model.loss(batch, number).map(drop)
            })?;
        }
        Ok(report)
    }
}

impl<L: Learned> Model<L> {
    /// What the result depends on besides the settings, for the folder, which serves one training.
    fn described(&self) -> Result<serde_json::Value> {
        let options = &self.options;
        let mut model = serde_json::to_value(&self.description)?;
        model["loss"] = serde_json::to_value(options.loss())?;
        model["threshold"] = serde_json::to_value(options.threshold)?;
        if let Some(base) = &options.base {
            model["base"] = serde_json::to_value(base)?;
        }
        if options.train.real_statistics {
            model["real_statistics"] = true.into();
        }
        Ok(model)
    }
}
