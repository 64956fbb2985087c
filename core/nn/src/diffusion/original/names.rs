//! Names of modules in the original layout beside those of diffusers. Inside a transformer both are
//! the same.

use super::super::UNetConfig;
use std::collections::HashMap;

/// Which module of the one layout is which of the other, in both directions.
#[derive(Clone, Debug, Default)]
pub struct Names {
    diffusers: HashMap<String, String>,
    original: HashMap<String, String>,
}

/// Modules of a residual block of the UNet.
const UNET_RESNET: [(&str, &str); 6] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

/// Modules of a residual block of the autoencoder.
const AUTOENCODER_RESNET: [(&str, &str); 5] = [
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("nin_shortcut", "conv_shortcut"),
];

/// Modules of the attention of the autoencoder.
const AUTOENCODER_ATTENTION: [(&str, &str); 5] = [
    ("norm", "group_norm"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
];

impl Names {
    /// Those of a UNet, without the prefix `model.diffusion_model.`
    pub fn unet(config: &UNetConfig) -> Self {
        let mut names = Names::default();
        for (original, diffusers) in [
            ("time_embed.0", "time_embedding.linear_1"),
            ("time_embed.2", "time_embedding.linear_2"),
            ("label_emb.0.0", "add_embedding.linear_1"),
            ("label_emb.0.2", "add_embedding.linear_2"),
            ("input_blocks.0.0", "conv_in"),
            ("out.0", "conv_norm_out"),
            ("out.2", "conv_out"),
        ] {
            names.add(original, diffusers);
        }
        names.middle();
        let (levels, layers) = (config.block_out_channels.len(), config.layers_per_block);
        // Blocks are counted through; a step to the next resolution is one of its own on the way
        // down and a part of the last block on the way up.
        for level in 0..levels {
            let down = format!("down_blocks.{level}");
            for layer in 0..=layers {
                let block = format!("input_blocks.{}", 1 + level * (layers + 1) + layer);
                if layer < layers {
                    names.stage(&block, &down, layer);
                } else if level + 1 < levels {
                    let step = format!("{down}.downsamplers.0.conv");
                    names.add(&format!("{block}.0.op"), &step);
                }
            }
            let up = format!("up_blocks.{level}");
            for layer in 0..=layers {
                let block = format!("output_blocks.{}", level * (layers + 1) + layer);
                names.stage(&block, &up, layer);
                if layer == layers && level + 1 < levels {
                    let kind = config.up_block_types.get(level);
                    let plain = kind.is_some_and(|kind| kind == "UpBlock2D");
                    let place = if plain { 1 } else { 2 };
                    let step = format!("{up}.upsamplers.0.conv");
                    names.add(&format!("{block}.{place}.conv"), &step);
                }
            }
        }
        names
    }

    /// A residual block and the transformer behind it, if there is one.
    fn stage(&mut self, block: &str, place: &str, layer: usize) {
        let resnet = format!("{place}.resnets.{layer}");
        self.add_all(&format!("{block}.0"), &resnet, &UNET_RESNET);
        self.add(
            &format!("{block}.1"),
            &format!("{place}.attentions.{layer}"),
        );
    }

    fn middle(&mut self) {
        self.add_all("middle_block.0", "mid_block.resnets.0", &UNET_RESNET);
        self.add("middle_block.1", "mid_block.attentions.0");
        self.add_all("middle_block.2", "mid_block.resnets.1", &UNET_RESNET);
    }

    /// Those of an autoencoder of `levels` resolutions and `layers` residual blocks at each
    /// (`layers_per_block`), without the prefix `first_stage_model.`
    pub fn autoencoder(levels: usize, layers: usize) -> Self {
        let mut names = Names::default();
        for part in ["encoder", "decoder"] {
            for (original, diffusers) in [
                ("conv_in", "conv_in"),
                ("norm_out", "conv_norm_out"),
                ("conv_out", "conv_out"),
            ] {
                let under = |name: &str| format!("{part}.{name}");
                names.add(&under(original), &under(diffusers));
            }
            let (original, diffusers) = (format!("{part}.mid"), format!("{part}.mid_block"));
            for i in 0..2 {
                names.add_all(
                    &format!("{original}.block_{}", i + 1),
                    &format!("{diffusers}.resnets.{i}"),
                    &AUTOENCODER_RESNET,
                );
            }
            names.add_all(
                &format!("{original}.attn_1"),
                &format!("{diffusers}.attentions.0"),
                &AUTOENCODER_ATTENTION,
            );
        }
        names.add("quant_conv", "quant_conv");
        names.add("post_quant_conv", "post_quant_conv");
        for level in 0..levels {
            // The original counts resolutions from the highest, on the way up too.
            let down = (
                format!("encoder.down.{level}"),
                format!("encoder.down_blocks.{level}"),
            );
            let up = (
                format!("decoder.up.{}", levels - 1 - level),
                format!("decoder.up_blocks.{level}"),
            );
            names.autoencoder_level(&down, layers, "downsample");
            names.autoencoder_level(&up, layers + 1, "upsample");
        }
        names
    }

    fn autoencoder_level(
        &mut self,
        (original, diffusers): &(String, String),
        layers: usize,
        step: &str,
    ) {
        for layer in 0..layers {
            self.add_all(
                &format!("{original}.block.{layer}"),
                &format!("{diffusers}.resnets.{layer}"),
                &AUTOENCODER_RESNET,
            );
        }
        self.add(
            &format!("{original}.{step}.conv"),
            &format!("{diffusers}.{step}rs.0.conv"),
        );
    }

    fn add(&mut self, original: &str, diffusers: &str) {
        self.diffusers
            .insert(original.to_owned(), diffusers.to_owned());
        self.original
            .insert(diffusers.to_owned(), original.to_owned());
    }

    fn add_all(&mut self, original: &str, diffusers: &str, modules: &[(&str, &str)]) {
        for (ours, theirs) in modules {
            self.add(
                &format!("{original}.{ours}"),
                &format!("{diffusers}.{theirs}"),
            );
        }
    }

    /// The name that diffusers has for a module or tensor of the original layout.
    pub fn to_diffusers(&self, original: &str) -> Option<String> {
        replaced(&self.diffusers, original)
    }

    /// The name that the original layout has for a module or tensor of diffusers.
    pub fn to_original(&self, diffusers: &str) -> Option<String> {
        replaced(&self.original, diffusers)
    }
}

/// `name` with the longest of its beginnings that is known replaced; beginnings end before a dot.
fn replaced(known: &HashMap<String, String>, name: &str) -> Option<String> {
    let mut end = name.len();
    loop {
        if let Some(new) = known.get(&name[..end]) {
            return Some(format!("{new}{}", &name[end..]));
        }
        end = name[..end].rfind('.')?;
    }
}
