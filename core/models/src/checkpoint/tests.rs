#![allow(clippy::unwrap_used)]

use super::*;
use candle_core::{DType, Device, Tensor};
use diffaug_nn::{
    diffusion::{UNet, original::Names},
    params::Params,
    testing::random,
    weights::save_tensors,
};
use serde_json::json;
use std::{collections::HashMap, fs};

/// A small UNet of SDXL, and its tensors.
fn unet() -> (Value, HashMap<String, Tensor>) {
    let config = json!({
        "in_channels": 9,
        "block_out_channels": [4, 8],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": [1, 2],
        "cross_attention_dim": 6,
        "use_linear_projection": true,
        "norm_num_groups": 2,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 2,
        "projection_class_embeddings_input_dim": 16,
    });
    let mut params = Params::new(&Device::Cpu, 1);
    UNet::new(
        params.root(),
        &serde_json::from_value(config.clone()).unwrap(),
    )
    .unwrap();
    let owned =
        |(name, var): (&str, &candle_core::Var)| (name.to_owned(), var.as_detached_tensor());
    (config, params.all().map(owned).collect())
}

fn save(path: &Path, tensors: impl IntoIterator<Item = (String, Tensor)>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    save_tensors(path, tensors, &[("format", "pt")]).unwrap();
}

fn write(path: &Path, value: &Value) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, value.to_string()).unwrap();
}

fn tensors(names: &[&str]) -> Vec<(String, Tensor)> {
    names
        .iter()
        .map(|name| ((*name).to_owned(), random(name, &[2, 2])))
        .collect()
}

/// A folder in the layout of diffusers; but for the UNet what is in it is of no use.
fn folder(place: &Path) {
    let class = |library: &str, class: &str| json!([library, class]);
    write(
        &place.join("model_index.json"),
        &json!({
            "_class_name": "StableDiffusionXLInpaintPipeline",
            "force_zeros_for_empty_prompt": true,
            "unet": class("diffusers", "UNet2DConditionModel"),
            "vae": class("diffusers", "AutoencoderKL"),
            "text_encoder": class("transformers", "CLIPTextModel"),
            "text_encoder_2": class("transformers", "CLIPTextModelWithProjection"),
        }),
    );
    write(
        &place.join("scheduler/scheduler_config.json"),
        &json!({"_class_name": "DDIMScheduler"}),
    );
    for name in ["tokenizer", "tokenizer_2"] {
        write(&place.join(name).join("vocab.json"), &json!({}));
        fs::write(place.join(name).join("merges.txt"), "").unwrap();
    }
    let (config, weights) = unet();
    write(&place.join("unet/config.json"), &config);
    save(
        &place.join("unet/diffusion_pytorch_model.safetensors"),
        weights,
    );
    for name in ["vae", "text_encoder", "text_encoder_2"] {
        write(&place.join(name).join("config.json"), &json!({}));
    }
    save(
        &place.join("vae/diffusion_pytorch_model.safetensors"),
        tensors(&[
            "encoder.mid_block.attentions.0.query.weight",
            "quant_conv.weight",
        ]),
    );
    save(
        &place.join("text_encoder/model.safetensors"),
        tensors(&[
            "text_model.embeddings.position_ids",
            "text_model.x.weight",
            "text_projection.weight",
        ]),
    );
    save(
        &place.join("text_encoder_2/model.safetensors"),
        tensors(&["encoder.y.weight", "text_projection.weight", "logit_scale"]),
    );
}

fn open(path: &Path) -> Result<Checkpoint> {
    Checkpoint::open(path, &OpenOptions::default())
}

#[test]
fn a_folder_of_diffusers_is_read() {
    let place = tempfile::tempdir().unwrap();
    folder(place.path());
    let checkpoint = open(place.path()).unwrap();
    assert!(checkpoint.xl && checkpoint.force_zeros_for_empty_prompt);
    assert_eq!(checkpoint.scheduler["_class_name"], "DDIMScheduler");
    assert!(checkpoint.tokenizer_2.unwrap().ends_with("tokenizer_2"));
    let source = checkpoint.unet.source().unwrap();
    let mut params = Params::from_source(&Device::Cpu, source);
    UNet::new(params.root(), &checkpoint.unet.unet_config().unwrap()).unwrap();
    assert!(params.left_over().is_empty());
    let names = |component: &Component| component.source().unwrap().names();
    let attention = "encoder.mid_block.attentions.0.to_q.weight";
    assert_eq!(names(&checkpoint.vae), [attention, "quant_conv.weight"]);
    assert_eq!(names(&checkpoint.text_encoder), ["text_model.x.weight"]);
    let second = checkpoint.text_encoder_2.unwrap();
    let expected = ["text_model.encoder.y.weight", "text_projection.weight"];
    assert_eq!(names(&second), expected);
}

#[test]
fn variants_and_shards_are_found() {
    let place = tempfile::tempdir().unwrap();
    folder(place.path());
    let unet_place = place.path().join("unet");
    let (_, weights) = unet();
    let mut weights: Vec<_> = weights.into_iter().collect();
    weights.sort_by(|a, b| a.0.cmp(&b.0));
    let half =
        |(name, tensor): &(String, Tensor)| (name.clone(), tensor.to_dtype(DType::F16).unwrap());
    let parts = weights.split_at(weights.len() / 2);
    let mut map = serde_json::Map::new();
    for (i, part) in [parts.0, parts.1].into_iter().enumerate() {
        let file = format!(
            "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors",
            i + 1
        );
        save(&unet_place.join(&file), part.iter().map(half));
        map.extend(part.iter().map(|(name, _)| (name.clone(), json!(file))));
    }
    let list = unet_place.join("diffusion_pytorch_model.safetensors.index.fp16.json");
    write(&list, &json!({"metadata": {}, "weight_map": map}));

    let dtype = |variant: Option<&str>| {
        let options = OpenOptions {
            variant: variant.map(str::to_owned),
            tokenizer: None,
        };
        let checkpoint = Checkpoint::open(place.path(), &options)?;
        let mut source = checkpoint.unet.source()?;
        assert_eq!(source.names().len(), weights.len());
        Ok::<_, Error>(source.take("conv_in.weight")?.unwrap().dtype())
    };
    assert_eq!(dtype(None).unwrap(), DType::F32);
    assert_eq!(dtype(Some("fp16")).unwrap(), DType::F16);
    let error = dtype(Some("int8")).unwrap_err();
    assert_eq!(error.field, "variant");
    assert!(
        error
            .message
            .ends_with("has no weights of the variant `int8`")
    );
    fs::remove_file(unet_place.join("diffusion_pytorch_model.safetensors")).unwrap();
    assert_eq!(dtype(None).unwrap(), DType::F16);

    fs::remove_file(unet_place.join("diffusion_pytorch_model.fp16-00002-of-00002.safetensors"))
        .unwrap();
    let error = dtype(None).unwrap_err().to_string();
    assert!(
        error.contains("lacks `diffusion_pytorch_model.fp16-00002-of-00002.safetensors`"),
        "{error}"
    );
    write(&list, &json!({"weight_map": {"x": "../x.safetensors"}}));
    let error = dtype(None).unwrap_err().to_string();
    assert!(
        error.contains("names \"../x.safetensors\", expected"),
        "{error}"
    );
}

#[test]
fn what_is_missing_or_foreign_in_a_folder_is_named() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    let error = || open(root).unwrap_err().to_string();
    assert!(error().contains("has no `model_index.json`"));
    let missing = open(&root.join("none")).unwrap_err().to_string();
    assert!(missing.contains("there is no checkpoint `"), "{missing}");
    folder(root);
    let index = root.join("model_index.json");
    let good: Value = read_json(&index).unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut value = good.clone();
        change(&mut value);
        write(&index, &value);
        error()
    };
    let text = with(&|v| v["_class_name"] = json!("FluxPipeline"));
    assert!(
        text.contains("a pipeline of class `FluxPipeline`, expected"),
        "{text}"
    );
    let text = with(&|v| v["text_encoder"] = json!([null, null]));
    assert!(
        text.contains("`text_encoder` in `") && text.contains("is `null`, expected"),
        "{text}"
    );
    let text = with(&|v| v["requires_aesthetics_score"] = json!(true));
    assert!(text.contains("it is a refiner"), "{text}");
    fs::write(&index, "{").unwrap();
    assert!(error().contains("is not valid JSON"));
    write(&index, &good);

    fs::remove_file(root.join("tokenizer_2/merges.txt")).unwrap();
    assert!(error().contains("tokenizer_2` has no tokenizer: expected `vocab.json`"));
    fs::remove_file(root.join("scheduler/scheduler_config.json")).unwrap();
    assert!(error().contains("scheduler_config.json`: No such file"));
    let weights = root.join("text_encoder_2/model.safetensors");
    fs::rename(&weights, root.join("text_encoder_2/pytorch_model.bin")).unwrap();
    assert!(error().contains("`pytorch_model.bin`, a pickle, which is not opened"));
    fs::remove_dir_all(root.join("unet")).unwrap();
    assert!(error().contains("cannot read `") && error().contains("unet/config.json"));
}

/// The small UNet, and what else a single file holds, in the original layout.
fn single(path: &Path, extra: &[(&str, &[usize])]) {
    let (config, weights) = unet();
    let names = Names::unet(&serde_json::from_value(config).unwrap());
    let mut all: Vec<(String, Tensor)> = weights
        .into_iter()
        .map(|(name, tensor)| {
            let old = names.to_original(&name).unwrap();
            (format!("model.diffusion_model.{old}"), tensor)
        })
        .collect();
    all.extend(
        extra
            .iter()
            .map(|(name, shape)| ((*name).to_owned(), random(name, shape))),
    );
    save(path, all);
}

const XL: [(&str, &[usize]); 5] = [
    (
        "first_stage_model.encoder.mid.attn_1.q.weight",
        &[2, 2, 1, 1],
    ),
    (
        "conditioner.embedders.0.transformer.text_model.x.weight",
        &[2],
    ),
    ("conditioner.embedders.1.model.text_projection", &[2, 3]),
    (
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
        &[6, 2],
    ),
    ("model_ema.decay", &[1]),
];

#[test]
fn a_single_file_gives_each_network_its_own_under_the_names_of_diffusers() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model.safetensors");
    single(&path, &XL);
    folder(&place.path().join("pipeline"));
    let options = OpenOptions {
        variant: None,
        tokenizer: Some(place.path().join("pipeline")),
    };
    let family = families::Family::Xl;
    let configs = single::Configs {
        family,
        unet: unet().0,
        vae: json!({"block_out_channels": [2, 2], "layers_per_block": 1}),
        text_encoder: json!({}),
        text_encoder_2: Some(json!({"num_hidden_layers": 1})),
        scheduler: family.scheduler(9),
    };
    let checkpoint = single::assemble(&path, configs, &options).unwrap();
    let mut params = Params::from_source(&Device::Cpu, checkpoint.unet.source().unwrap());
    UNet::new(params.root(), &checkpoint.unet.unet_config().unwrap()).unwrap();
    assert!(params.left_over().is_empty());
    let shapes = |component: &Component| {
        let source = component.source().unwrap();
        let shape = |name: String| (source.shape(&name).unwrap(), name);
        source.names().into_iter().map(shape).collect::<Vec<_>>()
    };
    let expect = |shape: &[usize], name: &str| (shape.to_vec(), name.to_owned());
    let attention = "encoder.mid_block.attentions.0.to_q.weight";
    assert_eq!(shapes(&checkpoint.vae), [expect(&[2, 2], attention)]);
    assert_eq!(
        shapes(&checkpoint.text_encoder),
        [expect(&[2], "text_model.x.weight")]
    );
    let layer = |part: &str| format!("text_model.encoder.layers.0.self_attn.{part}_proj.weight");
    let mut expected: Vec<_> = ["k", "q", "v"]
        .map(|part| expect(&[2, 2], &layer(part)))
        .into();
    expected.push(expect(&[3, 2], "text_projection.weight"));
    assert_eq!(shapes(&checkpoint.text_encoder_2.unwrap()), expected);
}

#[test]
fn a_single_file_is_recognised_or_refused_with_a_sentence() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model.safetensors");
    let first = "model.diffusion_model.input_blocks.0.0.weight";
    let cross = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight";
    let vae = "first_stage_model.quant_conv.weight";
    let open = |tensors: &[(&str, &[usize])]| {
        save(
            &path,
            tensors
                .iter()
                .map(|(name, shape)| ((*name).to_owned(), random(name, shape))),
        );
        single::recognise(&Files::open(&[&path]).unwrap())
    };
    for (text, family, context) in [
        (
            "cond_stage_model.transformer.text_model.x",
            families::Family::One,
            768,
        ),
        (
            "cond_stage_model.model.ln_final.bias",
            families::Family::Two,
            1024,
        ),
        (
            "conditioner.embedders.1.model.ln_final.bias",
            families::Family::Xl,
            2048,
        ),
    ] {
        for channels in [4, 9] {
            let configs = open(&[
                (first, &[2, channels, 1, 1]),
                (cross, &[2, context]),
                (vae, &[1]),
                (text, &[1]),
            ]);
            let configs = configs.unwrap();
            assert_eq!(
                (configs.family, &configs.unet["in_channels"]),
                (family, &json!(channels))
            );
            assert_eq!(
                configs.text_encoder_2.is_some(),
                family == families::Family::Xl
            );
            let v = family == families::Family::Two && channels == 4;
            assert_eq!(configs.scheduler["prediction_type"] == "v_prediction", v);
        }
    }
    let error = |tensors: &[(&str, &[usize])]| open(tensors).err().unwrap().to_string();
    let text = "conditioner.embedders.1.model.ln_final.bias";
    let rest: [(&str, &[usize]); 2] = [(vae, &[1]), (text, &[1])];
    let eight = error(&[
        (first, &[2, 8, 1, 1]),
        (cross, &[2, 2048]),
        rest[0],
        rest[1],
    ]);
    assert!(eight.contains("takes 8 channels, expected 9"), "{eight}");
    let width = error(&[(first, &[2, 4, 1, 1]), (cross, &[2, 768]), rest[0], rest[1]]);
    assert!(
        width.contains("texts of width 768, expected 2048"),
        "{width}"
    );
    assert!(error(&[(first, &[2, 4, 1, 1]), (text, &[1])]).contains("has no autoencoder"));
    assert!(error(&[(first, &[2, 4, 1, 1]), (vae, &[1])]).contains("no text encoder"));
    assert!(error(&[(first, &[1]), rest[0], rest[1]]).contains("lacks `input_blocks.0.0.weight`"));
    let refiner = "conditioner.embedders.0.model.ln_final.bias";
    assert!(error(&[(first, &[1]), (refiner, &[1])]).contains("SDXL's refiner"));
    assert!(error(&[("lora_unet_x.alpha", &[1])]).contains("it is a LoRA"));
    assert!(error(&[("down_blocks.0.x", &[1])]).contains("one network in the layout of diffusers"));
    assert!(error(&[("x", &[1])]).contains("no Stable Diffusion checkpoint"));
}

#[test]
fn a_single_file_needs_tokenizers() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model.safetensors");
    let cross = "model.diffusion_model.a.attn2.to_k.weight";
    let mut tensors: Vec<_> = XL
        .iter()
        .map(|(name, shape)| ((*name).to_owned(), random(name, shape)))
        .collect();
    tensors.push((cross.to_owned(), random("c", &[1, 2048])));
    let first = "model.diffusion_model.input_blocks.0.0.weight";
    tensors.push((first.to_owned(), random("f", &[1, 9, 1, 1])));
    save(&path, tensors);
    let error = open(&path).unwrap_err();
    assert_eq!(error.field, "tokenizer");
    assert!(error.message.contains("brings no tokenizer"), "{error}");
    let mut options = OpenOptions {
        variant: None,
        tokenizer: Some(place.path().to_owned()),
    };
    let error = Checkpoint::open(&path, &options).unwrap_err();
    assert!(
        error.message.contains("tokenizer_2` has no tokenizer"),
        "{error}"
    );
    folder(&place.path().join("pipeline"));
    options.tokenizer = Some(place.path().join("pipeline"));
    let checkpoint = Checkpoint::open(&path, &options).unwrap();
    assert!(checkpoint.xl && checkpoint.tokenizer.ends_with("pipeline/tokenizer"));
    assert_eq!(checkpoint.unet.config["cross_attention_dim"], 2048);
    fs::write(&path, b"PK\x03\x04 and more").unwrap();
    assert!(
        open(&path)
            .unwrap_err()
            .to_string()
            .contains("is a PyTorch file")
    );
}
