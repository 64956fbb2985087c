//! What `inspect` says of options and of folders of weights, and folders made of published checkpoints.

use diffaug::{Context, FromConfig, Inspection};
use diffaug_baselines::unet::{Architecture, UNet};
use diffaug_nn::{
    Device, Tensor,
    fit::{CONFIG, WEIGHTS},
    params::{Params, Shapes},
    segmenter::{Direct, Network, Options, Pass, Trained},
    testing::{self, close},
    weights,
};
use std::{collections::HashMap, fs, path::Path};

fn told(options: &Options<Architecture>, side: u32, device: &str) -> Inspection {
    let context = Context {
        size: side,
        device: device.into(),
        ..Context::default()
    };
    Trained::<Direct<UNet>>::inspect(options, &context).unwrap()
}

fn with_weights(folder: &Path) -> Inspection {
    let options = Options {
        weights: Some(folder.to_owned()),
        ..Options::default()
    };
    told(&options, 0, "cpu")
}

fn narrow() -> Architecture {
    Architecture {
        width: 4,
        depth: 2,
        ..Architecture::default()
    }
}

fn shapes(architecture: &Architecture, outputs: usize) -> Shapes {
    Shapes::of(|scope| UNet::new(scope, architecture, outputs, (64, 64))).unwrap()
}

/// A folder as training leaves one, of a network with two classes.
fn trained() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"model": {"plugin": "unet", "architecture": {"width": 4, "depth": 2},
        "input": [50, 40], "classes": [[1, "disc"], [2, "cup"]]}}"#;
    fs::write(folder.path().join(CONFIG), config).unwrap();
    let mut params = Params::new(&Device::Cpu, 0);
    UNet::new(params.root(), &narrow(), 3, (52, 40)).unwrap();
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
    let mut vast = own;
    vast.train.batch = Some(usize::MAX);
    assert_eq!(told(&vast, 0, "cpu").train_bytes, u64::MAX);
}

#[test]
fn weights_tell_of_their_own_network() {
    let folder = trained();
    let needs = with_weights(folder.path());
    assert!(needs.missing.is_empty(), "{needs:?}");
    let shapes = shapes(&narrow(), 3);
    assert_eq!(needs.components[0].parameters, shapes.parameters());
    assert_eq!(needs.components[0].bytes, 4 * shapes.values());
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
    let message = missing();
    assert!(
        message.contains("is not a complete safetensors file"),
        "{message}"
    );
    let mut params = Params::new(&Device::Cpu, 0);
    UNet::new(params.root(), &narrow(), 1, (52, 40)).unwrap();
    weights::save(&path, &params).unwrap();
    let message = missing();
    assert!(message.contains("values, but the network has"), "{message}");
    fs::remove_file(&path).unwrap();
    assert!(missing().starts_with("cannot read the weights `"));
    fs::write(folder.path().join(CONFIG), "{}").unwrap();
    assert!(missing().contains("is no folder that training `unet` left"));
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

/// A checkpoint as the reference's trainer writes it, of a narrow network with two classes.
fn published(architecture: &Architecture) -> HashMap<String, Tensor> {
    let shapes = shapes(architecture, 2);
    let depth = architecture.depth;
    let reference = |name: &str| {
        let (place, rest) = name.split_once('.').unwrap();
        let place = match (place, place.strip_prefix("up")) {
            ("entry", _) => "inc".to_owned(),
            ("head", _) => return format!("outc.conv.{rest}"),
            (_, Some(level)) => format!("up{}", depth - level.parse::<usize>().unwrap()),
            (down, None) => down.to_owned(),
        };
        if let Some(rest) = rest.strip_prefix("grow.") {
            return format!("{place}.up.{rest}");
        }
        let inside = match () {
            () if place.starts_with("down") => "maxpool_conv.1.",
            () if place.starts_with("up") => "conv.",
            () => "",
        };
        let rest = rest.replace("conv1", "0").replace("norm1", "1");
        let rest = rest.replace("conv2", "3").replace("norm2", "4");
        format!("{place}.{inside}double_conv.{rest}")
    };
    let all = shapes.trainable.iter().chain(&shapes.buffers);
    let mut tensors: HashMap<String, Tensor> = all
        .map(|(name, shape)| {
            let tensor = testing::random(name, shape);
            let tensor = match name.ends_with("running_var") {
                true => (tensor.abs().unwrap() + 0.5).unwrap(),
                false => tensor,
            };
            (reference(name), tensor)
        })
        .collect();
    let count = Tensor::new(3i64, &Device::Cpu).unwrap();
    tensors.insert("inc.double_conv.1.num_batches_tracked".to_owned(), count);
    tensors
}

#[test]
fn published_checkpoints_become_folders_of_weights() {
    let folder = tempfile::tempdir().unwrap();
    for bilinear in [false, true] {
        let architecture = Architecture {
            bilinear,
            ..narrow()
        };
        let tensors = published(&architecture);
        let file = folder.path().join("model.safetensors");
        candle_core::safetensors::save(&tensors, &file).unwrap();
        let options = Options {
            architecture: Some(architecture.clone()),
            size: Some(32),
            ..Options::default()
        };
        let to = folder.path().join(format!("converted-{bilinear}"));
        let said = Trained::<Direct<UNet>>::convert(&options, &file, &to).unwrap();
        assert!(said.ends_with("for 1 target class at 32x32"), "{said}");
        let options = Options {
            weights: Some(to.clone()),
            ..Options::default()
        };
        Trained::<Direct<UNet>>::from_config(options, &Context::default()).unwrap();
        // The probability of one channel is that of the second of two.
        let mut one = Params::frozen(&Device::Cpu, weights::read(&to.join(WEIGHTS)).unwrap());
        let one = UNet::new(one.root(), &architecture, 1, (32, 32)).unwrap();
        let sizes: diffaug_nn::weights::Renamed<_> =
            weights::Renamed::new(tensors, |name| match name.contains("num_batches") {
                true => None,
                false => diffaug_nn::segmenter::Architecture::renamed(&architecture, name),
            })
            .unwrap();
        let mut both = Params::from_source(&Device::Cpu, sizes);
        let both = UNet::new(both.root(), &architecture, 2, (32, 32)).unwrap();
        let x = testing::random("images", &[2, 3, 32, 32]);
        let one = one.forward(&x, &Pass::ANSWER).unwrap();
        let both = both.forward(&x, &Pass::ANSWER).unwrap();
        let difference = (both.narrow(1, 1, 1).unwrap() - both.narrow(1, 0, 1).unwrap()).unwrap();
        close(&one, &difference, 1e-4);
    }
}

#[test]
fn a_checkpoint_of_another_network_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    let convert = |tensors: &HashMap<String, Tensor>, options: Options<Architecture>| {
        candle_core::safetensors::save(tensors, &file).unwrap();
        let to = folder.path().join("to");
        let error = Trained::<Direct<UNet>>::convert(&options, &file, &to).unwrap_err();
        assert!(!to.exists());
        error.to_string()
    };
    let narrow = Options {
        architecture: Some(narrow()),
        ..Options::default()
    };
    let mut tensors = published(&self::narrow());
    let wide = convert(&tensors, Options::default());
    assert!(
        wide.contains("is missing") || wide.contains("has shape"),
        "{wide}"
    );
    tensors.remove("down1.maxpool_conv.1.double_conv.3.weight");
    let message = convert(&tensors, narrow.clone());
    assert!(
        message.contains("`down1.conv2.weight` is missing"),
        "{message}"
    );
    tensors.remove("outc.conv.weight");
    let message = convert(&tensors, narrow);
    assert!(
        message.contains("tensor `head.weight` is missing"),
        "{message}"
    );
}
