#![allow(clippy::unwrap_used)]

use super::*;
use candle_core::Device;
use diffaug_nn::{
    diffusion::UNetConfig,
    testing::{close, random},
    weights,
};
use std::path::Path;

fn fixture(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/lora");
    folder.join(format!("{name}.safetensors"))
}

fn lora(path: impl Into<PathBuf>, scale: f64) -> LoraFile {
    LoraFile {
        path: path.into(),
        scale,
    }
}

/// What the fixture's names stand for: the tensors of `prefix`, without it.
fn under(tensors: &HashMap<String, Tensor>, prefix: &str) -> HashMap<String, Tensor> {
    let named = |(name, tensor): (&String, &Tensor)| {
        Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
    };
    tensors.iter().filter_map(named).collect()
}

/// The names of the fixture's UNet in the original layout.
fn names() -> Names {
    Names::unet(&UNetConfig {
        block_out_channels: vec![4, 8],
        down_block_types: vec!["DownBlock2D".into(), "CrossAttnDownBlock2D".into()],
        up_block_types: vec!["CrossAttnUpBlock2D".into(), "UpBlock2D".into()],
        layers_per_block: 1,
        ..UNetConfig::default()
    })
}

#[test]
fn fused_weights_are_those_of_diffusers() {
    let base = weights::read(&fixture("base")).unwrap();
    let fused = weights::read(&fixture("fused")).unwrap();
    let names = names();
    for (case, count) in [
        ("peft", 16),
        ("described", 16),
        ("original", 16),
        ("flat", 16),
        ("oldest", 6),
    ] {
        let mut loras = Loras::open(&[lora(fixture(case), 0.7)]).unwrap();
        let mut changed = 0;
        for part in [Part::Unet, Part::TextEncoder, Part::TextEncoder2] {
            let base = under(&base, &format!("{part}."));
            let expected = under(&fused, &format!("{case}.{part}."));
            let mut source = loras.fuse(part, base.clone(), Some(&names)).unwrap();
            for (name, plain) in &base {
                assert_eq!(source.shape(name).as_deref(), Some(plain.dims()));
                let ours = source.take(name).unwrap().unwrap();
                changed += usize::from(expected.contains_key(name));
                close(&ours, expected.get(name).unwrap_or(plain), 1e-6);
            }
        }
        assert_eq!(changed, count, "{case}");
        loras.finish().unwrap();
    }
}

/// What PEFT makes of its own folders (`make_peft_fixture.py`).
#[test]
fn folders_of_peft_are_read_with_their_scales() {
    let folder = |case: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/lora/peft");
        folder.join(case)
    };
    let known = weights::read(&folder("expected.safetensors")).unwrap();
    for (case, part) in [
        ("plain", Part::Unet),
        ("rslora", Part::Unet),
        ("patterns", Part::Unet),
        ("text", Part::TextEncoder),
        ("projecting", Part::TextEncoder2),
    ] {
        let base = under(&known, &format!("{part}.base."));
        let expected = under(&known, &format!("{case}."));
        assert!(!expected.is_empty(), "{case}");
        for path in [folder(case), folder(case).join("adapter_model.safetensors")] {
            let mut loras = Loras::open(&[lora(path, 1.0)]).unwrap();
            let mut source = loras.fuse(part, base.clone(), None).unwrap();
            loras.finish().unwrap();
            for (name, plain) in &base {
                let ours = source.take(name).unwrap().unwrap();
                close(&ours, expected.get(name).unwrap_or(plain), 1e-5);
            }
        }
    }
}

#[test]
fn what_peft_says_is_needed_and_has_to_fit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/lora/peft/plain");
    std::fs::copy(from.join("adapter_model.safetensors"), &path).unwrap();
    let message = || Loras::open(&[lora(&path, 1.0)]).unwrap_err().to_string();
    assert!(
        message().contains("`adapter_config.json`, which is not beside it"),
        "{}",
        message()
    );
    let text = std::fs::read_to_string(from.join("adapter_config.json")).unwrap();
    let good: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (field, value, expected) in [
        (
            "lora_alpha",
            serde_json::json!(null),
            "`lora_alpha` is null, expected a number",
        ),
        (
            "r",
            serde_json::json!(3),
            "has rank 4, but its configuration says 3",
        ),
        (
            "peft_type",
            serde_json::json!("LOHA"),
            "`peft_type` is `LOHA`, expected `LORA`",
        ),
        ("use_dora", serde_json::json!(true), "of DoRA"),
    ] {
        let mut changed = good.clone();
        changed[field] = value;
        std::fs::write(
            folder.path().join("adapter_config.json"),
            changed.to_string(),
        )
        .unwrap();
        assert!(message().contains(expected), "{}", message());
    }
    let endless = text.replace("\"lora_alpha\": 6", "\"lora_alpha\": 1e999");
    assert_ne!(endless, text);
    std::fs::write(folder.path().join("adapter_config.json"), endless).unwrap();
    assert!(
        message().contains("at `lora_alpha`: number out of range"),
        "{}",
        message()
    );
}

#[test]
fn changes_add_up_and_keep_the_type_of_the_weights() {
    let base = under(&weights::read(&fixture("base")).unwrap(), "unet.");
    let fused = under(&weights::read(&fixture("fused")).unwrap(), "peft.unet.");
    let twice = [lora(fixture("peft"), 0.5), lora(fixture("peft"), 0.2)];
    let mut loras = Loras::open(&twice).unwrap();
    let narrow = weights::Cast::new(base, DType::BF16);
    let mut source = loras.fuse(Part::Unet, narrow, None).unwrap();
    let weight = source.take("conv_in.weight").unwrap().unwrap();
    assert_eq!(weight.dtype(), DType::BF16);
    close(
        &weight.to_dtype(DType::F32).unwrap(),
        &fused["conv_in.weight"],
        1e-2,
    );
}

#[test]
fn what_fits_nowhere_is_named() {
    let base = under(&weights::read(&fixture("base")).unwrap(), "unet.");
    let open = || Loras::open(&[lora(fixture("peft"), 1.0)]).unwrap();
    let mut less = base.clone();
    less.remove("conv_in.weight");
    let error = open().fuse(Part::Unet, less, None).unwrap_err().to_string();
    assert!(
        error.contains("`unet.conv_in.lora_B.weight` in `"),
        "{error}"
    );
    assert!(error.ends_with("fits no layer of `unet`"), "{error}");

    let mut other = base.clone();
    other.insert("conv_in.weight".to_owned(), random("w", &[4, 5, 3, 3]));
    let error = open()
        .fuse(Part::Unet, other, None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("does not fit `unet.conv_in.weight`"),
        "{error}"
    );
    assert!(
        error.contains("[4, 2, 1, 1] and [2, 4, 3, 3], the weights [4, 5, 3, 3]"),
        "{error}"
    );

    let mut loras = open();
    loras.fuse(Part::Unet, base, None).unwrap();
    let error = loras.finish().unwrap_err().to_string();
    assert!(
        error.contains("is meant for `text_encoder`, which this model has not"),
        "{error}"
    );
}

#[test]
fn broken_files_are_refused_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    let error = |names: &[&str], metadata: &[(&str, &str)]| {
        let tensors = names.iter().map(|n| ((*n).to_owned(), random(n, &[2, 2])));
        weights::save_tensors(&path, tensors, metadata).unwrap();
        let error = Loras::open(&[lora(&path, 1.0)]).unwrap_err().to_string();
        assert!(
            error.contains("lora.safetensors` cannot be used"),
            "{error}"
        );
        error
    };
    assert!(error(&["unet.a.lora_A.weight"], &[]).contains("`a` lacks its other factor"));
    let twice = ["unet.a.lora_A.weight", "unet.a.lora.down.weight"];
    assert!(error(&twice, &[]).contains("is there in two layouts"));
    assert!(error(&["unet.a.hada_w1_a"], &[]).contains("is of LoHa"));
    let both = ["unet.a.lora_A.weight", "unet.a.lora_B.weight"];
    let dora = r#"{"unet.use_dora": true}"#;
    assert!(error(&both, &[("lora_adapter_metadata", dora)]).contains("of DoRA"));
    assert!(error(&both, &[("lora_adapter_metadata", "{")]).contains("EOF while parsing"));
    let error = Loras::open(&[lora(folder.path().join("none"), 1.0)]).unwrap_err();
    assert!(error.to_string().contains("cannot read the weights"));
}

#[test]
fn what_is_written_is_read_with_every_alpha_and_rank() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    let tensors = weights::read(&fixture("described")).unwrap();
    let mut layers: Vec<LoraLayer> = Vec::new();
    for (name, a) in &tensors {
        let Some(layer) = name.strip_suffix(".lora_A.weight") else {
            continue;
        };
        let (part, module) = layer.split_once('.').unwrap();
        let part = [Part::Unet, Part::TextEncoder, Part::TextEncoder2]
            .into_iter()
            .find(|p| p.name() == part)
            .unwrap();
        layers.push(LoraLayer {
            part,
            module: module.to_owned(),
            a: a.clone(),
            b: tensors[&format!("{layer}.lora_B.weight")].clone(),
            alpha: if module == "conv_in" { 5.0 } else { 3.0 },
        });
    }
    // One layer of another rank: half of it is zeros, so that nothing is changed by the first two.
    let wide = layers
        .iter_mut()
        .find(|l| l.module.ends_with("proj_in"))
        .unwrap();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    wide.a = Tensor::cat(&[&wide.a, &zeros(wide.a.dims())], 0).unwrap();
    wide.b = Tensor::cat(&[&wide.b, &zeros(wide.b.dims())], 1).unwrap();
    wide.alpha = 6.0;
    save_lora(&path, layers.clone()).unwrap();
    let first = std::fs::read(&path).unwrap();
    layers.reverse();
    save_lora(&path, layers).unwrap();
    assert_eq!(first, std::fs::read(&path).unwrap());

    let files = Files::open(&[&path]).unwrap();
    let mut expected: Vec<&String> = tensors.keys().collect();
    expected.sort_unstable();
    assert_eq!(files.names().iter().collect::<Vec<_>>(), expected);
    assert_eq!(files.metadata()["format"], "pt");

    let base = weights::read(&fixture("base")).unwrap();
    let fused = weights::read(&fixture("fused")).unwrap();
    let mut loras = Loras::open(&[lora(&path, 0.7)]).unwrap();
    for part in [Part::Unet, Part::TextEncoder, Part::TextEncoder2] {
        let base = under(&base, &format!("{part}."));
        let expected = under(&fused, &format!("described.{part}."));
        let mut source = loras.fuse(part, base, None).unwrap();
        for (name, expected) in &expected {
            close(&source.take(name).unwrap().unwrap(), expected, 1e-6);
        }
    }
    loras.finish().unwrap();
}
