//! Folders made of checkpoints that others published answer as the references do.

use diffaug::FromConfig;
use diffaug_baselines::{transunet, transunet::TransUNet, unet_resnet, unet_resnet::UNet};
use diffaug_nn::{
    Device, Tensor,
    params::Params,
    segmenter::{Architecture, Direct, Network, Options, Pass, Trained},
    testing::close,
    weights,
};
use std::{collections::HashMap, path::Path};

/// Side of the fixtures' images.
const SIDE: u32 = 64;

/// The tensors of the fixture `name` behind that prefix.
fn fixture(name: &str, prefix: &str) -> HashMap<String, Tensor> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let tensors = weights::read(&folder.join(name)).unwrap().into_iter();
    let named = tensors.filter_map(|(name, tensor)| {
        let name = name.strip_prefix(prefix)?.to_owned();
        Some((name, tensor))
    });
    named.collect()
}

/// The network in the folder that `diffaug convert` makes of published weights, asked about images of that side.
fn converted<N: Network>(
    architecture: N::Architecture,
    weights: HashMap<String, Tensor>,
    images: &Tensor,
) -> Tensor {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (
        folder.path().join("published.safetensors"),
        folder.path().join("ours"),
    );
    let counted = weights.keys().filter(|name| name.ends_with("running_mean"));
    let count = Tensor::new(&[3f32], &Device::Cpu).unwrap();
    let counts = counted.map(|name| {
        let name = name.replace("running_mean", "num_batches_tracked");
        (name, count.clone())
    });
    let all: Vec<_> = counts.chain(weights.clone()).collect();
    weights::save_tensors(&from, all, &[]).unwrap();
    let options = Options {
        architecture: Some(architecture.clone()),
        size: Some(SIDE),
        ..Options::default()
    };
    Trained::<Direct<N>>::convert(&options, &from, &to).unwrap();
    let (stored, mut params) = (
        to.join(diffaug_nn::fit::WEIGHTS),
        Params::new(&Device::Cpu, 0),
    );
    let head = format!("{}.bias", architecture.head());
    let tensors = weights::read(&stored).unwrap();
    let outputs = tensors[&head].elem_count();
    let net = N::new(params.root(), &architecture, outputs, (SIDE, SIDE)).unwrap();
    weights::load(&stored, &params).unwrap();
    net.forward(images, &Pass::ANSWER).unwrap()
}

#[test]
fn published_checkpoints_become_folders() {
    let mut all = fixture("unet_resnet.safetensors", "");
    let (images, expected) = (&all["images"].clone(), all.remove("resnet18.eval").unwrap());
    let architecture = unet_resnet::Architecture {
        encoder: unet_resnet::Encoder::ResNet18,
        width: 2,
        decoder: [8, 8, 4, 4, 4],
    };
    let weights = fixture("unet_resnet.safetensors", "resnet18.weights.");
    close(
        &converted::<UNet>(architecture, weights, images),
        &expected,
        1e-4,
    );

    let all = fixture("transunet.safetensors", "");
    let architecture = transunet::Architecture {
        width: 8,
        groups: 4,
        units: [2, 1, 1],
        hidden: 16,
        heads: 2,
        mlp: 24,
        blocks: 2,
        bridge: 12,
        decoder: [8, 8, 4, 4],
        dropout: 0.1,
    };
    let weights = fixture("transunet.safetensors", "weights.");
    // Of background and one class the logit is the difference.
    let both = &all["eval"];
    let expected = (both.narrow(1, 1, 1).unwrap() - both.narrow(1, 0, 1).unwrap()).unwrap();
    close(
        &converted::<TransUNet>(architecture, weights, &all["images"]),
        &expected,
        1e-4,
    );
}
