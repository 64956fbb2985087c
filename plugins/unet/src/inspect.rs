//! What the network will need: parameters counted, memory estimated.
//!
//! A level of `c` channels and `p` pixels (of all images of a batch) makes, for each of its blocks of
//! convolution, normalisation and ReLU, maps of `c p` values, which training keeps for the backward
//! pass; going up, there are the grown map and its concatenation with the one handed across besides.
//! Halving height and width and doubling the channels halves `c p`, so that the first level takes
//! half of it all. What is in use beyond the kept maps was calibrated with the memory that
//! processes took at most (`tests/memory.rs`).

use crate::{Architecture, Options, UNet};
use diffaug::{Component, Context, Inspection, Result};
use diffaug_nn::{
    budget::{self, F32, TrainingMemory},
    fit::WEIGHTS,
    precision::Precision,
};
use std::path::Path;

/// Side of the images where nothing tells it.
const ASSUMED_SIDE: u32 = 256;

/// A network at work on batches of images.
struct Network {
    outputs: usize,
    width: usize,
    depth: usize,
    /// Pixels of a batch, however large somebody wants it.
    pixels: u128,
}

/// Bytes that the maps of a pass take.
struct Maps {
    /// What a block of convolution, normalisation and ReLU keeps of each of its values.
    block: u64,
    /// What any other map takes for a value.
    plain: u64,
    /// What is in use besides, for each value of the first level's maps.
    besides: u64,
}

impl Maps {
    /// On a processor in f32 a block is one operation, which keeps the convolution's result and its
    /// own; in other types it is four, for the statistics are formed in f32, and convolutions lay
    /// out their windows. On other devices a normalisation is made of seven operations.
    fn of_training(on_processor: bool, precision: Precision) -> Self {
        let plain = precision.dtype().size_in_bytes() as u64;
        let casts = if plain == F32 { 0 } else { 2 * plain };
        let fused = on_processor && plain == F32;
        Maps {
            block: match on_processor {
                true => 2 * F32 + casts,
                false => 8 * F32 + casts,
            },
            plain,
            besides: match fused {
                true => 11 * F32,
                false => 8 * F32 + 18 * plain,
            },
        }
    }

    /// Weights that could be trained keep the maps of an answer, too, until it is given.
    fn of_answering(on_processor: bool) -> Self {
        Maps {
            block: if on_processor { 2 * F32 } else { 6 * F32 },
            plain: F32,
            besides: if on_processor { F32 } else { 20 * F32 },
        }
    }
}

impl Network {
    fn new(outputs: usize, width: usize, depth: usize, size: (u32, u32), batch: usize) -> Self {
        let up = |side: u32| u128::from(side.next_multiple_of(1 << depth));
        Network {
            outputs,
            width,
            depth,
            pixels: up(size.0) * up(size.1) * batch as u128,
        }
    }

    /// Values of a map of that level.
    fn values(&self, level: usize) -> u128 {
        // Twice the channels on a quarter of the pixels.
        ((self.width as u128) * self.pixels) >> level
    }

    /// Parameters and running statistics.
    fn count(&self) -> (u64, u64) {
        UNet::count(self.outputs, self.width, self.depth)
    }

    /// What a pass takes for its maps, at most.
    fn pass(&self, maps: &Maps) -> u64 {
        let [block, plain, besides] = [maps.block, maps.plain, maps.besides].map(u128::from);
        let down = (0..=self.depth).map(|level| {
            let pooled = if level > 0 { self.values(level) / 2 } else { 0 };
            2 * block * self.values(level) + plain * pooled
        });
        let up = (0..self.depth).map(|level| (2 * block + 3 * plain) * self.values(level));
        // Images, and the few forms of what comes out.
        let ends = (3 + 4 * self.outputs as u128) * u128::from(F32) * self.pixels;
        let all = down.chain(up).sum::<u128>() + besides * self.values(0) + ends;
        u64::try_from(all).unwrap_or(u64::MAX)
    }
}

/// What a segmenter of these options needs.
pub(crate) fn inspect(options: &Options, context: &Context) -> Result<Inspection> {
    let device = context.device.as_str();
    let mut inspection = budget::inspection(device);
    let weights = options.weights.as_deref();
    let stored = weights.and_then(|folder| stored(folder, &mut inspection));
    let size = size(options, context, stored.as_ref(), &mut inspection);
    let outputs = match &stored {
        Some(stored) => stored.outputs(),
        None => {
            inspection.note("counted for one target class; the data may have more");
            1
        }
    };
    let trained = Network::new(outputs, options.width, options.depth, size, options.batch);
    let answers = match &stored {
        Some(a) => Network::new(outputs, a.width, a.depth, a.input, options.batch),
        None => Network::new(outputs, options.width, options.depth, size, options.batch),
    };
    let (parameters, statistics) = answers.count();
    let bytes = F32 * (parameters + statistics);
    inspection.components.push(Component {
        name: "unet".into(),
        parameters,
        trainable: parameters,
        bytes,
    });
    let on_processor = device == "cpu";
    // Weights are read tensor by tensor; the largest is that of the lowest level.
    let lowest = (answers.width as u64) << answers.depth;
    let loading = bytes + 2 * F32 * 9 * lowest * lowest;
    let maps = Maps::of_answering(on_processor);
    inspection.run_bytes = loading.max(answers.pass(&maps).saturating_add(bytes));
    inspection.train_bytes = training(&trained, options, on_processor);
    let (width, height) = size;
    inspection.note(format!(
        "memory is that of weights, gradients, optimizer and maps for {} images of {width}x{height} at once",
        options.batch
    ));
    if !on_processor {
        inspection
            .note("memory was measured on processors only, that of a graphics card is worked out");
    }
    Ok(inspection)
}

fn training(network: &Network, options: &Options, on_processor: bool) -> u64 {
    let (parameters, statistics) = network.count();
    let rule = options.settings(0).optimizer;
    let memory = TrainingMemory::new(
        parameters + statistics,
        parameters,
        &rule,
        options.ema.is_some(),
    );
    let maps = Maps::of_training(on_processor, options.precision);
    memory.peak(network.pass(&maps), on_processor)
}

/// Width and height that images are brought to.
fn size(
    options: &Options,
    context: &Context,
    stored: Option<&Architecture>,
    inspection: &mut Inspection,
) -> (u32, u32) {
    match (options.size, context.size, stored) {
        (Some(side), ..) => (side, side),
        (None, 1.., _) => (context.size, context.size),
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
fn stored(folder: &Path, inspection: &mut Inspection) -> Option<Architecture> {
    let shown = folder.display();
    if !folder.exists() {
        inspection.miss(format!("weights `{shown}` are not there"));
        return None;
    }
    let architecture = match Architecture::read(folder) {
        Ok(architecture) => architecture,
        Err(error) => {
            inspection.miss(error);
            return None;
        }
    };
    let Architecture { width, depth, .. } = architecture;
    let (parameters, statistics) = UNet::count(architecture.outputs(), width, depth);
    let expected = parameters + statistics;
    match budget::stored(&folder.join(WEIGHTS)) {
        Err(error) => inspection.miss(error),
        Ok(stored) if stored.values != expected => inspection.miss(format!(
            "`{shown}/{WEIGHTS}` holds {} values, but the network has {expected}",
            stored.values
        )),
        Ok(_) => {}
    }
    Some(architecture)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug_nn::{Device, fit::CONFIG, params::Params, weights};
    use std::fs;

    fn told(options: &Options, side: u32, device: &str) -> Inspection {
        let context = Context {
            size: side,
            device: device.into(),
            ..Context::default()
        };
        inspect(options, &context).unwrap()
    }

    fn with_weights(folder: &Path) -> Inspection {
        let options = Options {
            weights: Some(folder.to_owned()),
            ..Options::default()
        };
        told(&options, 0, "cpu")
    }

    /// A folder as training leaves one, of a network with two classes.
    fn trained() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let config = r#"{"model": {"plugin": "unet", "width": 4, "depth": 2, "input": [50, 40],
            "classes": [[1, "disc"], [2, "cup"]]}}"#;
        fs::write(folder.path().join(CONFIG), config).unwrap();
        let mut params = Params::new(&Device::Cpu, 0);
        UNet::new(params.root(), 3, 4, 2).unwrap();
        weights::save(&folder.path().join(WEIGHTS), &params).unwrap();
        folder
    }

    #[test]
    fn without_weights_it_is_the_network_of_the_options() {
        let needs = told(&Options::default(), 128, "cpu");
        assert_eq!(needs.components[0].parameters, 31_037_633);
        // 11,776 running statistics come to it.
        assert_eq!(needs.components[0].bytes, 4 * (31_037_633 + 11_776));
        assert!(needs.missing.is_empty(), "{needs:?}");
        assert!(needs.notes[0].contains("one target class"));
        assert_eq!(needs.notes.len(), 2);
        let assumed = told(&Options::default(), 0, "cpu");
        assert!(assumed.notes[0].starts_with("images of 256x256 are assumed"));
        assert!(assumed.train_bytes > needs.train_bytes);
        let own = Options {
            size: Some(128),
            ..Options::default()
        };
        assert_eq!(told(&own, 0, "cpu").train_bytes, needs.train_bytes);
        let vast = Options {
            batch: usize::MAX,
            ..own
        };
        assert_eq!(told(&vast, 0, "cpu").train_bytes, u64::MAX);
    }

    #[test]
    fn weights_tell_of_their_own_network() {
        let folder = trained();
        let needs = with_weights(folder.path());
        assert!(needs.missing.is_empty(), "{needs:?}");
        let count = UNet::count(3, 4, 2);
        assert_eq!(needs.components[0].parameters, count.0);
        assert_eq!(needs.components[0].bytes, 4 * (count.0 + count.1));
        assert!(needs.notes[0].contains("of 50x40 at once"), "{needs:?}");
    }

    #[test]
    fn weights_that_cannot_be_used_are_missing() {
        let folder = trained();
        let missing = || {
            let needs = with_weights(folder.path());
            assert_eq!(needs.missing.len(), 1, "{needs:?}");
            needs.missing[0].to_string()
        };
        let path = folder.path().join(WEIGHTS);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(
            missing().contains("is not a complete safetensors file"),
            "{}",
            missing()
        );
        let mut params = Params::new(&Device::Cpu, 0);
        UNet::new(params.root(), 1, 4, 2).unwrap();
        weights::save(&path, &params).unwrap();
        assert!(
            missing().contains("values, but the network has"),
            "{}",
            missing()
        );
        fs::remove_file(&path).unwrap();
        assert!(
            missing().starts_with("cannot read the weights `"),
            "{}",
            missing()
        );
        fs::write(folder.path().join(CONFIG), "{}").unwrap();
        assert!(
            missing().contains("is no folder that training `unet` left"),
            "{}",
            missing()
        );
        let nowhere = with_weights(Path::new("nowhere"));
        assert_eq!(nowhere.missing[0], "weights `nowhere` are not there");
        assert_eq!(nowhere.components[0].parameters, 31_037_633);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_of_another_build_is_missing() {
        let needs = told(&Options::default(), 128, "cuda:0");
        assert_eq!(
            needs.missing[0],
            "device `cuda:0` needs a build with the feature `cuda`"
        );
        assert!(needs.notes[2].contains("graphics card"));
    }
}
