//! Where painting made a value that is no number, and how that is told: black pictures of autoencoders
//! in half precision are the best known of such.

use diffaug::{Error, Result};
use diffaug_nn::finite::Witnesses;
use std::fmt;

/// Where a value was made that may be no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A text encoder, counted from 1.
    Text(usize),
    /// What the autoencoder makes of the source, or of the source without the hole.
    Encoded,
    /// A step, counted from 1, of so many.
    Step(usize, usize),
    /// The preview after a step.
    Preview(usize, usize),
    /// The end.
    Pixels(usize),
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stage::Text(which) => write!(f, "text encoder {which}"),
            Stage::Encoded => write!(f, "the latents that the autoencoder's encoder made"),
            Stage::Step(step, total) => write!(f, "denoising step {step} of {total}"),
            Stage::Preview(step, total) => {
                write!(
                    f,
                    "the preview that was decoded after step {step} of {total}"
                )
            }
            Stage::Pixels(total) => write!(f, "the decoded pixels, after {total} denoising steps"),
        }
    }
}

impl Stage {
    /// What usually helps.
    fn cure(self) -> &'static str {
        match self {
            Stage::Text(_) | Stage::Step(..) => {
                "another `dtype` (`f32` or `bf16`) is the usual cure; with `f32` it is the weights that are broken"
            }
            Stage::Encoded | Stage::Preview(..) | Stage::Pixels(_) => {
                "another `dtype` (`f32` or `bf16`) or an autoencoder that is made for half precision (`vae = \"madebyollin/sdxl-vae-fp16-fix\"` for SDXL) is the usual cure; with `f32` it is the weights that are broken"
            }
        }
    }
}

/// What was computed: the stage, and the place of its first row among the scenes that go on.
pub type Seen = Witnesses<(Stage, usize)>;

/// Checks that all values that were made are numbers; `name` tells what the scene of a row is called.
///
/// # Errors
/// Naming the scene and the stage of the first one that is none.
pub fn check(seen: &mut Seen, name: impl Fn(usize) -> String) -> Result<()> {
    let Some(((stage, start), row)) = seen.first()? else {
        return Ok(());
    };
    Err(Error::model(format!(
        "image `{}` cannot be painted: in {stage} a value became NaN or infinite; {}",
        name(start + row),
        stage.cure()
    )))
}
