//! CLIP's image encoder (Radford et al., 2021) with its projection, as `CLIPVisionModelWithProjection` of
//! transformers; of a whole CLIP the half for texts is passed over.

use super::{
    Extractor, config,
    vit::{Bend, Block, Embedding, Names, Sizes, first, normalised},
};
use candle_core::{Device, Result, Tensor, bail};
use diffaug::{ImageRef, image::Filter};
use diffaug_nn::{
    batch::{self, Frame},
    layers::{LayerNorm, Linear},
    params::{Params, Scope, Shapes},
};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// What the images of its training had, red to blue.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

const NAMES: Names = Names {
    norms: ["layer_norm1", "layer_norm2"],
    attention: [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
    ],
    maps: ["mlp.fc1", "mlp.fc2"],
    scales: None,
};

/// Tensors of a whole CLIP that are not of images.
const PASSED_OVER: &[&str] = &[
    "text_model.",
    "text_projection.",
    "logit_scale",
    "vision_model.embeddings.position_ids",
];

/// The sizes of an image encoder: its `config.json`, with the defaults of transformers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClipConfig {
    /// Width of a token.
    pub hidden_size: usize,
    /// Width inside the map that follows each attention.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of each attention.
    pub num_attention_heads: usize,
    /// Side of images, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// What bends the values inside that map.
    pub hidden_act: Bend,
    /// Added to the variance by each normalisation.
    pub layer_norm_eps: f64,
    /// Width of the embedding.
    pub projection_dim: usize,
}

impl Default for ClipConfig {
    fn default() -> Self {
        ClipConfig {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            hidden_act: Bend::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: 512,
        }
    }
}

impl ClipConfig {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// When it is not there or says something else.
    pub fn open(folder: &Path) -> diffaug::Result<Self> {
        let mut written = config::read(folder)?;
        let part = written.get_mut("vision_config").map(Value::take);
        let is_whole = part.is_some();
        let own = match is_whole {
            true => written.get("projection_dim").and_then(Value::as_u64),
            false => None,
        };
        let mut config: ClipConfig = config::parse(folder, part.unwrap_or(written))?;
        if is_whole {
            // The projection is the whole model's, whatever its half says.
            let width = own.and_then(|width| usize::try_from(width).ok());
            config.projection_dim = width.unwrap_or(ClipConfig::default().projection_dim);
        }
        let misfit = |error| config::misfit(folder, "a CLIP", error);
        config.check().map_err(misfit)?;
        Ok(config)
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            width: self.hidden_size,
            inner: self.intermediate_size,
            depth: self.num_hidden_layers,
            heads: self.num_attention_heads,
            patch: self.patch_size,
            epsilon: self.layer_norm_eps,
        }
    }

    fn check(&self) -> Result<()> {
        self.sizes().check()?;
        diffaug_nn::limits::within("image_size", self.image_size, self.patch_size..=4096)?;
        let width = self.projection_dim;
        diffaug_nn::limits::within("projection_dim", width, 1..=diffaug_nn::limits::CHANNELS)
    }
}

/// The image encoder.
#[derive(Clone, Debug)]
pub struct Clip {
    side: u32,
    device: Device,
    embedding: Embedding,
    enter: LayerNorm,
    blocks: Vec<Block>,
    leave: LayerNorm,
    projection: Linear,
}

impl Clip {
    /// Reads a folder with `config.json` and `model.safetensors`.
    ///
    /// # Errors
    /// When they are missing or broken, or hold another network.
    pub fn open(folder: &Path, device: &Device) -> diffaug::Result<Self> {
        let config = ClipConfig::open(folder)?;
        let mut params = Params::from_source(device, config::tensors(folder, PASSED_OVER)?);
        let misfit = |error| config::misfit(folder, "a CLIP", error);
        let net = Clip::new(params.root(), &config, device).map_err(|e| misfit(e.into()))?;
        config::nothing_left(&params.left_over()).map_err(misfit)?;
        Ok(net)
    }

    /// Names and shapes of the tensors that the folder's configuration tells.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn shapes(folder: &Path) -> diffaug::Result<Shapes> {
        let config = ClipConfig::open(folder)?;
        Ok(Clip::shapes_of(&config)?)
    }

    pub(crate) fn shapes_of(config: &ClipConfig) -> Result<Shapes> {
        Shapes::of(|scope| Clip::new(scope, config, &Device::Cpu))
    }

    fn new(mut scope: Scope<'_>, config: &ClipConfig, device: &Device) -> Result<Self> {
        let sizes = config.sizes();
        let width = sizes.width;
        let tokens = 1 + (config.image_size / sizes.patch).pow(2);
        let mut vision = scope.child("vision_model");
        let mut place = vision.child("embeddings");
        let class = place.uniform("class_embedding", &[width], 0.02)?;
        let mut positions = place.child("position_embedding");
        let positions = positions.uniform("weight", &[tokens, width], 0.02)?;
        let patches = place.child("patch_embedding");
        let positions = positions.unsqueeze(0)?;
        let embedding = Embedding::new(patches, false, &class, positions, &sizes)?;
        let blocks = (0..sizes.depth).map(|i| {
            let place = vision.child(&format!("encoder.layers.{i}"));
            Block::new(place, &sizes, &NAMES, config.hidden_act)
        });
        let blocks = blocks.collect::<Result<_>>()?;
        // The name is misspelt where it was published.
        let enter = sizes.norm(vision.child("pre_layrnorm"))?;
        let leave = sizes.norm(vision.child("post_layernorm"))?;
        let place = scope.child("visual_projection");
        Ok(Clip {
            side: config.image_size as u32,
            device: device.clone(),
            embedding,
            enter,
            blocks,
            leave,
            projection: Linear::new(place, width, config.projection_dim, false)?,
        })
    }

    /// Embeddings at length 1 of images `[n, 3, side, side]` with values 0 to 1: `[n, values]`.
    ///
    /// # Errors
    /// When the side is another, or an embedding is nothing.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.embedding.forward(&normalised(x, MEAN, DEVIATION)?)?;
        let mut x = self.enter.forward(&x)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        let y = self.projection.forward(&self.leave.forward(&first(&x)?)?)?;
        let lengths = y.sqr()?.sum_keepdim(1)?.sqrt()?;
        if lengths.flatten_all()?.min(0)?.to_scalar::<f32>()? <= 0.0 {
            bail!("an embedding of CLIP has no length");
        }
        y.broadcast_div(&lengths)
    }
}

impl Extractor for Clip {
    fn points(&self, images: &[ImageRef<'_>]) -> diffaug::Result<Tensor> {
        let frame = Frame::padded((self.side, self.side), 1);
        let x = batch::resized_images(images, frame, Filter::Bicubic, &self.device)?;
        Ok(self.forward(&x)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{Reference, close_rows, formula, images, reference, write_folder};
    use diffaug_nn::weights::Source;
    use std::fs;

    #[test]
    fn both_layouts_agree_with_transformers() {
        for case in ["clip_alone", "clip_whole"] {
            let Reference {
                config,
                side,
                tensors,
                features,
            } = reference(case);
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
            let shapes = Clip::shapes(folder.path()).unwrap();
            let mut weights = formula(&shapes);
            assert_eq!(weights.names().len(), tensors, "{case}");
            let text = Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap();
            weights.insert("text_model.x".to_owned(), text.clone());
            write_folder(folder.path(), &config, &weights);
            let net = Clip::open(folder.path(), &Device::Cpu).unwrap();
            let y = net.forward(&images(2, side, side)).unwrap();
            close_rows(&y, &features, 1e-4);
            weights.insert("vision_model.x".to_owned(), text);
            write_folder(folder.path(), &config, &weights);
            let error = Clip::open(folder.path(), &Device::Cpu).unwrap_err();
            let expected = "does not hold a CLIP: tensor `vision_model.x` is not part of it";
            assert!(error.to_string().ends_with(expected), "{error}");
        }
    }

    #[test]
    fn the_published_encoder_has_its_number_of_parameters() {
        // ViT-L/14 at 336 pixels.
        let config = ClipConfig {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            image_size: 336,
            patch_size: 14,
            projection_dim: 768,
            ..ClipConfig::default()
        };
        let shapes = Clip::shapes_of(&config).unwrap();
        assert_eq!(shapes.parameters(), 304_293_888);
    }

    #[test]
    fn wrong_configurations_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = |text: &str| {
            fs::write(folder.path().join("config.json"), text).unwrap();
            ClipConfig::open(folder.path()).unwrap_err().to_string()
        };
        let text = error(r#"{ "num_attention_heads": 7 }"#);
        assert!(text.contains("`num_attention_heads` is 7"), "{text}");
        let text = error(r#"{ "patch_size": 0 }"#);
        assert!(text.contains("`patch_size` is 0"), "{text}");
        assert!(error("{").contains("config.json`"));
        assert!(error(r#"{ "vision_config": { "hidden_act": "relu" } }"#).contains("config.json`"));
        assert!(error(r#"{ "vision_config": 3 }"#).contains("config.json`"));
        assert!(error("[]").contains("config.json`"));
        let nowhere = ClipConfig::open(Path::new("nowhere")).unwrap_err();
        assert!(nowhere.to_string().contains("nowhere/config.json"));
    }
}
