//! What a network will need: parameters counted by building it over shapes alone, memory estimated.

use super::{Architecture, Description, Learned, Options};
use crate::{
    budget::{self, F32, TrainingMemory},
    fit::WEIGHTS,
    params::Shapes,
    precision::Precision,
};
use diffaug::{Component, Context, Inspection, Result};
use std::path::Path;

/// Side of the images where nothing tells it.
const ASSUMED_SIDE: u32 = 256;

/// Images that a network works on at once.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Channels of the network's answer.
    pub outputs: usize,
    /// Width and height, padding included.
    pub size: (u32, u32),
    /// Images at once, however many somebody wants.
    pub batch: usize,
    /// Whether they are on a processor.
    pub on_processor: bool,
    /// What training computes in.
    pub precision: Precision,
}

impl Load {
    /// Pixels of all images.
    pub fn pixels(&self) -> u128 {
        u128::from(self.size.0) * u128::from(self.size.1) * self.batch as u128
    }
}

/// What activations take at most, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activations {
    /// In a step of training.
    pub training: u64,
    /// When answering.
    pub answering: u64,
}

impl Activations {
    /// Those of a network that keeps `values` for each pixel of an image in training, and as many while it
    /// answers: its parameters keep the graph.
    pub fn of_values(load: &Load, values: u64) -> Self {
        let wide = load.precision.dtype().size_in_bytes() as u128;
        let bytes = |wide: u128| {
            let bytes = wide * u128::from(values) * load.pixels();
            u64::try_from(bytes).unwrap_or(u64::MAX)
        };
        Activations {
            training: bytes(wide),
            answering: bytes(u128::from(F32)),
        }
    }
}

/// What a segmenter of these options needs.
///
/// # Errors
/// When the network cannot be built.
pub fn inspect<L: Learned>(
    options: &Options<L::Architecture>,
    context: &Context,
) -> Result<Inspection> {
    let device = context.device.as_str();
    let mut inspection = budget::inspection(device);
    let weights = options.weights.as_deref();
    let stored = weights.and_then(|folder| stored::<L>(folder, &mut inspection));
    let size = size(options, context, stored.as_ref(), &mut inspection);
    let architecture = options.architecture();
    let classes = match &stored {
        Some(stored) => stored.classes.clone(),
        None => {
            inspection.note("counted for one target class; the data may have more");
            vec![(1, String::new())]
        }
    };
    if let Some(base) = &options.base
        && !base.exists()
    {
        inspection.miss(format!("`base` `{}` is not there", base.display()));
    }
    let trained = Description::new(architecture, classes, size);
    let answers = stored.as_ref().unwrap_or(&trained);
    let shapes = answers.shapes::<L>()?;
    let (parameters, bytes) = (shapes.parameters(), F32.saturating_mul(shapes.values()));
    inspection.components.push(Component {
        name: L::Architecture::PLUGIN.into(),
        parameters,
        trainable: parameters,
        bytes,
    });
    let on_processor = device == "cpu";
    let load = |description: &Description<L::Architecture>, batch: usize| Load {
        outputs: description.outputs(),
        size: description.frame().whole,
        batch,
        on_processor,
        precision: options.train.precision,
    };
    // Weights are read tensor by tensor.
    let loading = bytes + 2 * F32 * largest(&shapes);
    let answering = answers
        .architecture
        .activations(&load(answers, options.images_at_once));
    inspection.run_bytes = loading.max(answering.answering.saturating_add(bytes));
    let budget = options.budget();
    let maps = trained
        .architecture
        .activations(&load(&trained, budget.batch));
    let shapes = trained.shapes::<L>()?;
    let settings = options.train.settings(&budget, 0);
    let memory = TrainingMemory::new(
        shapes.values(),
        shapes.parameters(),
        &settings.optimizer,
        settings.ema.is_some(),
    );
    inspection.train_bytes = memory.peak(maps.training, on_processor);
    let ((width, height), batch) = (size, budget.batch);
    inspection.note(format!(
        "memory is that of weights, gradients, optimizer and maps for {batch} images of {width}x{height} at once"
    ));
    if !on_processor {
        inspection
            .note("memory was measured on processors only, that of a graphics card is worked out");
    }
    Ok(inspection)
}

/// Values of the largest tensor.
fn largest(shapes: &Shapes) -> u64 {
    let values = |shape: &Vec<usize>| shape.iter().map(|side| *side as u64).product();
    shapes.trainable.values().map(values).max().unwrap_or(0)
}

/// Width and height that images are brought to.
fn size<A: Architecture>(
    options: &Options<A>,
    context: &Context,
    stored: Option<&Description<A>>,
    inspection: &mut Inspection,
) -> (u32, u32) {
    // Larger ones are no pictures, and their squares no numbers.
    let given = context.size.min(1 << 16);
    match (options.size, given, stored) {
        (Some(side), ..) => (side, side),
        (None, 1.., _) => (given, given),
        (.., Some(stored)) => stored.input,
        _ => {
            inspection.note(format!(
                "images of {ASSUMED_SIDE}x{ASSUMED_SIDE} are assumed, for neither `size` nor `images.size` is set"
            ));
            (ASSUMED_SIDE, ASSUMED_SIDE)
        }
    }
}

/// The network whose weights a folder holds, if they are there; says what is missing.
fn stored<L: Learned>(
    folder: &Path,
    inspection: &mut Inspection,
) -> Option<Description<L::Architecture>> {
    let shown = folder.display();
    if !folder.exists() {
        inspection.miss(format!("weights `{shown}` are not there"));
        return None;
    }
    let description = match Description::<L::Architecture>::read(folder) {
        Ok(description) => description,
        Err(error) => {
            inspection.miss(error);
            return None;
        }
    };
    if let Err(error) = description.check_stored::<L>(&folder.join(WEIGHTS)) {
        inspection.miss(error);
    }
    Some(description)
}
