//! What the single files of Stable Diffusion 1.x, 2.x and SDXL do not say: the architectures of
//! their networks, in the words of diffusers' and transformers' configurations.

use serde_json::{Value, json};

/// Which model a single file holds, by its text encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Stable Diffusion 1.x: CLIP ViT-L.
    One,
    /// Stable Diffusion 2.x: OpenCLIP ViT-H.
    Two,
    /// SDXL: CLIP ViT-L and OpenCLIP ViT-bigG.
    Xl,
}

impl Family {
    pub fn name(self) -> &'static str {
        match self {
            Family::One => "Stable Diffusion 1.x",
            Family::Two => "Stable Diffusion 2.x",
            Family::Xl => "SDXL",
        }
    }

    /// Width of a token of the text.
    pub fn context(self) -> usize {
        match self {
            Family::One => 768,
            Family::Two => 1024,
            Family::Xl => 2048,
        }
    }

    /// The UNet, for 4 input channels or the 9 of inpainting.
    pub fn unet(self, in_channels: usize) -> Value {
        let (down, up) = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D");
        let mut config = json!({
            "_class_name": "UNet2DConditionModel",
            "in_channels": in_channels,
            "out_channels": 4,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "norm_eps": 1e-5,
            "cross_attention_dim": self.context(),
            "use_linear_projection": self != Family::One,
        });
        let own = match self {
            Family::One | Family::Two => json!({
                "sample_size": 64,
                "block_out_channels": [320, 640, 1280, 1280],
                "down_block_types": [down, down, down, "DownBlock2D"],
                "up_block_types": ["UpBlock2D", up, up, up],
                "attention_head_dim": if self == Family::One { json!(8) } else { json!([5, 10, 20, 20]) },
            }),
            Family::Xl => json!({
                "sample_size": 128,
                "block_out_channels": [320, 640, 1280],
                "down_block_types": ["DownBlock2D", down, down],
                "up_block_types": [up, up, "UpBlock2D"],
                "attention_head_dim": [5, 10, 20],
                "transformer_layers_per_block": [1, 2, 10],
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            }),
        };
        merge(&mut config, own);
        config
    }

    /// The autoencoder, one architecture for all. SDXL's overflows in half precision.
    pub fn vae(self) -> Value {
        let xl = self == Family::Xl;
        json!({
            "_class_name": "AutoencoderKL",
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": vec!["DownEncoderBlock2D"; 4],
            "up_block_types": vec!["UpDecoderBlock2D"; 4],
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "sample_size": if xl { 1024 } else { 512 },
            "scaling_factor": if xl { 0.13025 } else { 0.18215 },
            "force_upcast": xl,
        })
    }

    /// The first text encoder.
    pub fn text_encoder(self) -> Value {
        match self {
            // The last of 24 layers is not used.
            Family::Two => clip("CLIPTextModel", [1024, 4096, 23, 16, 512], "gelu"),
            Family::One | Family::Xl => {
                clip("CLIPTextModel", [768, 3072, 12, 12, 768], "quick_gelu")
            }
        }
    }

    /// The second text encoder of SDXL.
    pub fn text_encoder_2(self) -> Option<Value> {
        let class = "CLIPTextModelWithProjection";
        (self == Family::Xl).then(|| clip(class, [1280, 5120, 32, 20, 1280], "gelu"))
    }

    /// The noise schedule, with what the published models are sampled with by default; 2.x for
    /// painting on from noise alone predicts v.
    pub fn scheduler(self, in_channels: usize) -> Value {
        let v = self == Family::Two && in_channels == 4;
        let mut config = json!({
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": if v { "v_prediction" } else { "epsilon" },
            "timestep_spacing": "leading",
            "steps_offset": 1,
        });
        let own = match self {
            Family::Xl => json!({
                "_class_name": "EulerDiscreteScheduler",
                "interpolation_type": "linear",
                "use_karras_sigmas": false,
            }),
            Family::One | Family::Two => json!({
                "_class_name": "DDIMScheduler",
                "clip_sample": false,
                "set_alpha_to_one": false,
            }),
        };
        merge(&mut config, own);
        config
    }
}

/// A text encoder of `sizes` width, inner width, layers, heads and width of the projection.
fn clip(class: &str, [width, inner, layers, heads, projection]: [usize; 5], act: &str) -> Value {
    json!({
        "architectures": [class],
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": projection,
        "hidden_act": act,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    })
}

/// Adds the entries of `more`, an object like `value`, to it.
fn merge(value: &mut Value, more: Value) {
    if let (Value::Object(value), Value::Object(more)) = (value, more) {
        value.extend(more);
    }
}
