//! DINOv2 (Oquab et al., 2023), as `Dinov2Model` of transformers: the normalised class token of images at 224
//! pixels, as dgm-eval takes it for its FD-DINOv2.
//!
//! The published models were trained last at 518 pixels; their positions are stretched to the smaller
//! side as transformers does it, by PyTorch's bicubic interpolation between the centres of the patches.
//! (The code of its authors, which dgm-eval loads, places them by a tenth of a patch differently.)

use super::{
    Extractor, config,
    vit::{Bend, Block, Embedding, Names, Sizes, first, normalised},
};
use candle_core::{Device, Result, Tensor, bail};
use diffaug::{ImageRef, image::Filter};
use diffaug_nn::{
    batch::{self, Frame},
    layers::LayerNorm,
    limits,
    params::{Params, Scope, Shapes},
};
use serde::Deserialize;
use std::path::Path;

/// Side of images, in pixels.
const SIDE: usize = 224;
/// What ImageNet's images have, red to blue.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

const NAMES: Names = Names {
    norms: ["norm1", "norm2"],
    attention: [
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
        "attention.output.dense",
    ],
    maps: ["mlp.fc1", "mlp.fc2"],
    scales: Some(["layer_scale1", "layer_scale2"]),
};

/// What stands for hidden patches in training.
const PASSED_OVER: &[&str] = &["embeddings.mask_token"];

/// The sizes of a DINOv2: its `config.json`, with the defaults of transformers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Dinov2Config {
    /// `dinov2`; models with registers have another name.
    pub model_type: String,
    /// Width of a token.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of each attention.
    pub num_attention_heads: usize,
    /// The width inside the map that follows each attention, over that of a token.
    pub mlp_ratio: usize,
    /// What bends the values inside that map.
    pub hidden_act: Bend,
    /// Added to the variance by each normalisation.
    pub layer_norm_eps: f64,
    /// Side of the images that the positions are of, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Whether queries, keys and values have a bias; models without are not read.
    pub qkv_bias: bool,
    /// Whether that map is gated, as in the largest model, which is not read.
    pub use_swiglu_ffn: bool,
}

impl Default for Dinov2Config {
    fn default() -> Self {
        Dinov2Config {
            model_type: "dinov2".to_owned(),
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            mlp_ratio: 4,
            hidden_act: Bend::Gelu,
            layer_norm_eps: 1e-6,
            image_size: 224,
            patch_size: 14,
            qkv_bias: true,
            use_swiglu_ffn: false,
        }
    }
}

impl Dinov2Config {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// When it is not there or says something else.
    pub fn open(folder: &Path) -> diffaug::Result<Self> {
        let config: Dinov2Config = config::parse(folder, config::read(folder)?)?;
        let misfit = |error| config::misfit(folder, "a DINOv2 that is read here", error);
        config.check().map_err(misfit)?;
        Ok(config)
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            width: self.hidden_size,
            inner: self.hidden_size.saturating_mul(self.mlp_ratio),
            depth: self.num_hidden_layers,
            heads: self.num_attention_heads,
            patch: self.patch_size,
            epsilon: self.layer_norm_eps,
        }
    }

    fn check(&self) -> Result<()> {
        if self.model_type != "dinov2" {
            bail!("`model_type` is `{}`, expected `dinov2`", self.model_type);
        }
        if self.use_swiglu_ffn || !self.qkv_bias {
            bail!("`use_swiglu_ffn` has to be false and `qkv_bias` true");
        }
        self.sizes().check()?;
        limits::within("image_size", self.image_size, self.patch_size..=4096)?;
        match SIDE.is_multiple_of(self.patch_size) {
            true => Ok(()),
            false => bail!(
                "`patch_size` is {}, which does not divide the {SIDE} pixels of an image",
                self.patch_size
            ),
        }
    }
}

/// The network.
#[derive(Clone, Debug)]
pub struct Dinov2 {
    device: Device,
    embedding: Embedding,
    blocks: Vec<Block>,
    leave: LayerNorm,
}

impl Dinov2 {
    /// Reads a folder with `config.json` and `model.safetensors`.
    ///
    /// # Errors
    /// When they are missing or broken, or hold another network.
    pub fn open(folder: &Path, device: &Device) -> diffaug::Result<Self> {
        let config = Dinov2Config::open(folder)?;
        let mut params = Params::from_source(device, config::tensors(folder, PASSED_OVER)?);
        let misfit = |error| config::misfit(folder, "the DINOv2 of its `config.json`", error);
        let net = Dinov2::new(params.root(), &config, device).map_err(|e| misfit(e.into()))?;
        config::nothing_left(&params.left_over()).map_err(misfit)?;
        Ok(net)
    }

    /// Names and shapes of the tensors that the folder's configuration tells.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn shapes(folder: &Path) -> diffaug::Result<Shapes> {
        let config = Dinov2Config::open(folder)?;
        Ok(Dinov2::shapes_of(&config)?)
    }

    pub(crate) fn shapes_of(config: &Dinov2Config) -> Result<Shapes> {
        Shapes::of(|scope| Dinov2::new(scope, config, &Device::Cpu))
    }

    fn new(mut scope: Scope<'_>, config: &Dinov2Config, device: &Device) -> Result<Self> {
        let sizes = config.sizes();
        let width = sizes.width;
        let grid = config.image_size / sizes.patch;
        let mut place = scope.child("embeddings");
        let class = place.uniform("cls_token", &[1, 1, width], 0.02)?;
        let positions = [1, 1 + grid * grid, width];
        let positions = place.uniform("position_embeddings", &positions, 0.02)?;
        let positions = stretched(&positions, grid, SIDE / sizes.patch)?;
        let patches = place.child("patch_embeddings.projection");
        let embedding = Embedding::new(patches, true, &class, positions, &sizes)?;
        let blocks = (0..sizes.depth).map(|i| {
            let place = scope.child(&format!("encoder.layer.{i}"));
            Block::new(place, &sizes, &NAMES, config.hidden_act)
        });
        Ok(Dinov2 {
            device: device.clone(),
            embedding,
            blocks: blocks.collect::<Result<_>>()?,
            leave: sizes.norm(scope.child("layernorm"))?,
        })
    }

    /// The normalised class token of images `[n, 3, 224, 224]` with values 0 to 1: `[n, width]`.
    ///
    /// # Errors
    /// When the side is another.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.embedding.forward(&normalised(x, MEAN, DEVIATION)?)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        self.leave.forward(&first(&x)?)
    }
}

impl Extractor for Dinov2 {
    fn points(&self, images: &[ImageRef<'_>]) -> diffaug::Result<Tensor> {
        let frame = Frame::padded((SIDE as u32, SIDE as u32), 1);
        let x = batch::resized_images(images, frame, Filter::Bicubic, &self.device)?;
        Ok(self.forward(&x)?)
    }
}

/// Positions `[1, 1 + from * from, width]` with those of the patches stretched to `to * to`.
fn stretched(positions: &Tensor, from: usize, to: usize) -> Result<Tensor> {
    if from == to {
        return Ok(positions.clone());
    }
    let (_, tokens, width) = positions.dims3()?;
    let class = positions.narrow(1, 0, 1)?;
    let grid = positions.narrow(1, 1, tokens - 1)?.contiguous()?;
    let matrix = interpolation(from, to);
    let matrix = Tensor::from_vec(matrix, (to, from), positions.device())?;
    // Rows first, then columns.
    let grid = matrix.matmul(&grid.reshape((from, from * width))?)?;
    let columns = grid
        .reshape((to, from, width))?
        .transpose(0, 1)?
        .contiguous()?;
    let columns = matrix.matmul(&columns.reshape((from, to * width))?)?;
    let grid = columns
        .reshape((to, to, width))?
        .transpose(0, 1)?
        .contiguous()?;
    Tensor::cat(&[&class, &grid.reshape((1, to * to, width))?], 1)
}

/// What each of `to` places is made of, out of `from`, row by row: PyTorch's bicubic interpolation, cubic
/// convolution with a slope of -0.75 over four neighbours, whatever the scale.
fn interpolation(from: usize, to: usize) -> Vec<f32> {
    const SLOPE: f64 = -0.75;
    let weight = |distance: f64| {
        let x = distance.abs();
        match x {
            _ if x <= 1.0 => ((SLOPE + 2.0) * x - (SLOPE + 3.0)) * x * x + 1.0,
            _ if x < 2.0 => ((SLOPE * x - 5.0 * SLOPE) * x + 8.0 * SLOPE) * x - 4.0 * SLOPE,
            _ => 0.0,
        }
    };
    let mut matrix = vec![0.0; to * from];
    for (index, row) in matrix.chunks_exact_mut(from).enumerate() {
        let centre = (index as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let first = centre.floor() as i64 - 1;
        for at in first..first + 4 {
            // Beyond the border the last place is repeated.
            let place = at.clamp(0, from as i64 - 1) as usize;
            row[place] += weight(centre - at as f64) as f32;
        }
    }
    matrix
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{Reference, close_rows, formula, images, reference, write_folder};
    use diffaug_nn::weights::Source;
    use std::fs;

    #[test]
    fn a_small_network_agrees_with_transformers() {
        let Reference {
            config,
            tensors,
            features,
            ..
        } = reference("dinov2");
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let weights = formula(&Dinov2::shapes(folder.path()).unwrap());
        assert_eq!(weights.names().len(), tensors);
        write_folder(folder.path(), &config, &weights);
        let net = Dinov2::open(folder.path(), &Device::Cpu).unwrap();
        let y = net.forward(&images(2, SIDE, SIDE)).unwrap();
        close_rows(&y, &features, 1e-4);
    }

    #[test]
    fn the_published_network_has_its_number_of_parameters() {
        // ViT-L/14, less the token for hidden patches.
        let config = Dinov2Config {
            hidden_size: 1024,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            image_size: 518,
            ..Dinov2Config::default()
        };
        let shapes = Dinov2::shapes_of(&config).unwrap();
        assert_eq!(shapes.parameters(), 304_367_616);
    }

    #[test]
    fn other_models_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let error = |text: &str| {
            fs::write(folder.path().join("config.json"), text).unwrap();
            Dinov2Config::open(folder.path()).unwrap_err().to_string()
        };
        let text = error(r#"{ "model_type": "dinov2_with_registers" }"#);
        assert!(text.contains("expected `dinov2`"), "{text}");
        assert!(error(r#"{ "use_swiglu_ffn": true }"#).contains("`use_swiglu_ffn`"));
        assert!(error(r#"{ "patch_size": 15 }"#).contains("`patch_size` is 15"));
        assert!(error(r#"{ "patch_size": 0 }"#).contains("`patch_size` is 0"));
        assert!(error(r#"{ "hidden_act": "relu" }"#).contains("config.json`"));
    }
}
