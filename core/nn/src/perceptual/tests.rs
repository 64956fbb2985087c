//! LPIPS against the package `lpips`, with few channels and with the published weights.

use super::*;
use crate::testing::{close, optional, random};
use candle_core::Var;
use diffaug::image::open_image;
use std::{collections::HashMap, path::PathBuf};

/// What `fixtures/make_perceptual_fixture.py` wrote.
fn fixture() -> HashMap<String, Tensor> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    weights::read(&folder.join("perceptual.safetensors")).unwrap()
}

/// The network of few channels, written to a file.
fn small(fixture: &HashMap<String, Tensor>, folder: &Path) -> PathBuf {
    let own = fixture.iter().filter_map(|(name, tensor)| {
        Some((name.strip_prefix("small.w.")?.to_owned(), tensor.clone()))
    });
    let path = folder.join("small.safetensors");
    candle_core::safetensors::save(&own.collect(), &path).unwrap();
    path
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_small_network_agrees_with_the_package() {
    let fixture = fixture();
    let folder = tempfile::tempdir().unwrap();
    let net = Lpips::open(&small(&fixture, folder.path()), &Device::Cpu).unwrap();
    let [a, b] =
        ["a", "b"].map(|name| Var::from_tensor(&fixture[&format!("small.in.{name}")]).unwrap());
    let y = net.distance(&a, &b).unwrap();
    close(&y, &fixture["small.out.y"], 1e-5);
    let loss = (y * &fixture["small.in.dy"]).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    close(grads.get(&a).unwrap(), &fixture["small.out.da"], 1e-4);
    close(grads.get(&b).unwrap(), &fixture["small.out.db"], 1e-4);
    assert_eq!(values(&net.distance(&a, &a).unwrap()), [0.0; 2]);
}

#[test]
fn one_image_is_compared_with_many_as_with_each() {
    let mut params = Params::new(&Device::Cpu, 1);
    let net = Lpips::new(params.root(), Backbone::Alex, Names::Package, [4; 5]).unwrap();
    let (one, many) = (
        random("one", &[1, 3, 32, 32]),
        random("many", &[3, 3, 32, 32]),
    );
    let features = |x: &Tensor| net.features(x).unwrap();
    let found = net.between(&features(&one), &features(&many)).unwrap();
    let repeated = one.repeat((3, 1, 1, 1)).unwrap();
    close(&found, &net.distance(&repeated, &many).unwrap(), 1e-6);
}

#[test]
fn pixels_without_features_have_gradients() {
    let x = Tensor::new(&[0f32, 0.0, 3.0, 4.0], &Device::Cpu).unwrap();
    // Two pixels of two features each: none at the first.
    let x = x.reshape((1, 2, 2)).unwrap().transpose(1, 2).unwrap();
    let x = Var::from_tensor(&x.contiguous().unwrap()).unwrap();
    let y = unit(&x).unwrap();
    assert_eq!(values(&y), [0.0, 0.6, 0.0, 0.8]);
    let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let grads = values(grads.get(&x).unwrap());
    assert!(grads.iter().all(|g| g.abs() < 1e-6), "{grads:?}");
}

#[test]
fn misfits_are_named() {
    let fixture = fixture();
    let folder = tempfile::tempdir().unwrap();
    let path = small(&fixture, folder.path());
    let net = Lpips::open(&path, &Device::Cpu).unwrap();
    let error = |a: &[usize], b: &[usize]| {
        let result = net.distance(&random("a", a), &random("b", b));
        result.unwrap_err().to_string()
    };
    assert!(error(&[1, 3, 31, 30], &[1, 3, 31, 30]).contains("sides of at least 31"));
    assert!(error(&[1, 3, 40, 40], &[2, 3, 40, 40]).contains("not [1, 3, 40, 40] and [2, "));
    assert!(error(&[1, 1, 40, 40], &[1, 1, 40, 40]).contains("[_, 3, height, width]"));
    let fit = net.distance(&random("a", &[1, 3, 31, 31]), &random("b", &[1, 3, 31, 31]));
    assert_eq!(fit.unwrap().dims(), [1]);
    let mut tensors = weights::read(&path).unwrap();
    let removed = tensors.remove("NetLinLayer_2.Conv_0.weight").unwrap();
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let error = Lpips::open(&path, &Device::Cpu).unwrap_err().to_string();
    assert!(
        error.contains("`NetLinLayer_2.Conv_0.weight` is missing"),
        "{error}"
    );
    tensors.insert("NetLinLayer_2.Conv_0.weight".to_owned(), removed.clone());
    tensors.insert("NetLinLayer_5.Conv_0.weight".to_owned(), removed);
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let error = Lpips::open(&path, &Device::Cpu).unwrap_err().to_string();
    assert!(
        error.contains("`NetLinLayer_5.Conv_0.weight` is not part"),
        "{error}"
    );
}

#[test]
fn both_networks_agree_with_the_package_under_its_own_names() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/perceptual_networks.safetensors"
    );
    let fixture = weights::read(Path::new(path)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (kind, backbone) in [("alex", Backbone::Alex), ("vgg", Backbone::Vgg)] {
        let own = fixture.iter().filter_map(|(name, tensor)| {
            let name = name.strip_prefix(&format!("{kind}.w."))?;
            Some((name.to_owned(), tensor.clone()))
        });
        let path = folder.path().join(format!("{kind}.safetensors"));
        candle_core::safetensors::save(&own.collect(), &path).unwrap();
        let net = Lpips::with_backbone(&path, backbone, &Device::Cpu).unwrap();
        let [a, b, y] =
            ["in.a", "in.b", "out.y"].map(|name| fixture[&format!("{kind}.{name}")].clone());
        close(&net.distance(&a, &b).unwrap(), &y, 1e-5);
        let [a, b] = [a, b].map(|x| net.features(&x).unwrap());
        let points = (net.points(&a).unwrap() - net.points(&b).unwrap()).unwrap();
        close(&points.sqr().unwrap().sum(1).unwrap(), &y, 1e-5);
        let other = match backbone {
            Backbone::Alex => Backbone::Vgg,
            Backbone::Vgg => Backbone::Alex,
        };
        let error = Lpips::with_backbone(&path, other, &Device::Cpu).unwrap_err();
        let expected = format!("does not hold LPIPS with {other}");
        assert!(error.to_string().contains(&expected), "{error}");
    }
}

#[test]
fn the_published_networks_have_their_number_of_parameters() {
    // As torchvision's layers up to the last that is used, and one weight for each of their features.
    let counts = [Backbone::Alex, Backbone::Vgg].map(|b| Lpips::shapes(b).unwrap().parameters());
    assert_eq!(counts, [2_469_696 + 1152, 14_714_688 + 1472]);
}

/// `ours` differs from `theirs` by 1e-5 at most.
fn near(ours: &Tensor, theirs: &Tensor) {
    let (ours, theirs) = (values(ours), values(theirs));
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(&theirs) {
        assert!((a - b).abs() <= 1e-5, "{ours:?}, expected {theirs:?}");
    }
}

#[test]
fn with_the_real_weights_it_agrees_with_the_package() {
    let Some(path) = optional("weights/lpips/lpips_alex.safetensors") else {
        return;
    };
    let net = Lpips::open(&path, &Device::Cpu).unwrap();
    let fixture = fixture();
    let pixels = |name: &str| {
        let bytes = fixture[name].to_dtype(DType::F32).unwrap();
        bytes.affine(2.0 / 255.0, -1.0).unwrap()
    };
    let (a, b) = (pixels("noise.in.a"), pixels("noise.in.b"));
    near(&net.distance(&a, &b).unwrap(), &fixture["noise.out.y"]);
    let Some(folder) = optional("data/CVC-ClinicDB/PNG/Original") else {
        return;
    };
    let frame = |number: u32| {
        let image = open_image(&folder.join(format!("{number}.png")), 1 << 20).unwrap();
        let size = (image.width() as usize, image.height() as usize);
        let x = Tensor::from_slice(image.pixels(), (1, size.1, size.0, 3), &Device::Cpu);
        let x = x.unwrap().permute((0, 3, 1, 2)).unwrap();
        let x = x.to_dtype(DType::F32).unwrap().contiguous().unwrap();
        x.affine(2.0 / 255.0, -1.0).unwrap()
    };
    let numbers = fixture["frames.in.number"].to_vec1::<u32>().unwrap();
    let pairs = numbers
        .iter()
        .map(|n| net.distance(&frame(*n), &frame(*n + 1)).unwrap());
    let ours = Tensor::cat(&pairs.collect::<Vec<_>>(), 0).unwrap();
    near(&ours, &fixture["frames.out.y"]);
}
