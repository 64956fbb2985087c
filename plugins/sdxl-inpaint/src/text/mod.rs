//! Texts as tensors: tokenizers and text encoders of Stable Diffusion, one for 1.x and 2.x, two for
//! XL.

mod clip;
mod tokenizer;
mod vocabulary;
mod words;

pub use clip::{ClipConfig, ClipOutput, ClipText, HiddenAct};
pub use tokenizer::{Tokenizer, Tokens};
pub(crate) use words::{symbol, words};

use candle_core::{Device, Tensor};
use diffaug::{Error, Result};
use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// What a text becomes.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// For cross-attention, `[n, tokens, width]`.
    pub context: Tensor,
    /// For the time embedding, `[n, width]`; of two encoders only.
    pub pooled: Option<Tensor>,
}

/// A text encoder with the tokenizer that it was trained with.
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: Tokenizer,
    clip: ClipText,
}

impl TextEncoder {
    /// Texts become no longer than the encoder has positions.
    ///
    /// # Errors
    /// When the tokenizer has ids that the encoder does not know.
    pub fn new(tokenizer: Tokenizer, clip: ClipText) -> Result<Self> {
        let (ids, known) = (tokenizer.size(), clip.config().vocab_size);
        if ids > known {
            return Err(Error::model(format!(
                "the tokenizer has ids up to {}, but the text encoder's `vocab_size` is {known}",
                ids - 1
            )));
        }
        Ok(TextEncoder {
            tokenizer: tokenizer.limited(clip.config().max_position_embeddings),
            clip,
        })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The encoder.
    pub fn clip(&self) -> &ClipText {
        &self.clip
    }
}

/// One text encoder or two, with a memory of the last texts.
#[derive(Debug)]
pub struct TextEncoders {
    first: TextEncoder,
    second: Option<TextEncoder>,
    memory: Mutex<Memory>,
}

impl TextEncoders {
    /// One encoder, as in Stable Diffusion 1.x and 2.x, or two, as in XL.
    ///
    /// # Errors
    /// When the second one has no projection, or another number of tokens.
    pub fn new(first: TextEncoder, second: Option<TextEncoder>) -> Result<Self> {
        if let Some(second) = &second {
            if !second.clip.config().has_projection() {
                return Err(Error::model(
                    "the second text encoder has no projection, expected a `CLIPTextModelWithProjection`",
                ));
            }
            let lengths = [&first, second].map(|encoder| encoder.tokenizer.length());
            if lengths[0] != lengths[1] {
                return Err(Error::model(format!(
                    "the first text encoder reads {} tokens and the second {}, expected as many",
                    lengths[0], lengths[1]
                )));
            }
        }
        Ok(TextEncoders {
            first,
            second,
            memory: Mutex::default(),
        })
    }

    /// The encoders, in the order of their context.
    pub fn encoders(&self) -> impl Iterator<Item = &TextEncoder> {
        std::iter::once(&self.first).chain(&self.second)
    }

    /// What `prompt` becomes, with a batch of 1; from memory where it was asked for lately. Of no
    /// use while the encoders are trained: see [`TextEncoders::forward`].
    ///
    /// The end of a text that is too long is left out, which is said in the log once.
    ///
    /// # Errors
    /// When the device has no room for it.
    pub fn encode(&self, prompt: &str) -> Result<Embedding> {
        if let Some(known) = self.memory().find(prompt) {
            return Ok(known);
        }
        let Embedding { context, pooled } = self.forward(&[prompt])?;
        let embedding = Embedding {
            context: context.detach(),
            pooled: pooled.map(|pooled| pooled.detach()),
        };
        self.memory().keep(prompt, &embedding);
        Ok(embedding)
    }

    /// What `prompts` become, computed anew, with gradients for parameters that are trained.
    ///
    /// The context is that of the one encoder's last layer, normalised, or what enters the last
    /// layers of both, side by side; the second encoder's projection is the pooled text.
    ///
    /// # Errors
    /// When there are no prompts, or the device has no room for them.
    pub fn forward(&self, prompts: &[&str]) -> Result<Embedding> {
        let first = self.run(&self.first, prompts)?;
        let Some(second) = &self.second else {
            return Ok(Embedding {
                context: first.last,
                pooled: None,
            });
        };
        let second = self.run(second, prompts)?;
        Ok(Embedding {
            context: Tensor::cat(&[first.penultimate, second.penultimate], 2)?,
            pooled: Some(second.pooled),
        })
    }

    /// Zeros in the place of a text: what stands for no text where a checkpoint says
    /// `force_zeros_for_empty_prompt`.
    ///
    /// # Errors
    /// When the device has no room for it.
    pub fn zeros(&self) -> Result<Embedding> {
        let zeros = |shape: &[usize]| {
            let clip = &self.first.clip;
            Tensor::zeros(shape, clip.dtype(), clip.device())
        };
        let configs = self.encoders().map(|encoder| encoder.clip.config());
        let width = configs.map(|config| config.hidden_size).sum();
        let pooled = self.second.as_ref().map(|second| {
            let width = second.clip.config().projection_dim;
            zeros(&[1, width])
        });
        Ok(Embedding {
            context: zeros(&[1, self.first.tokenizer.length(), width])?,
            pooled: pooled.transpose()?,
        })
    }

    fn run(&self, encoder: &TextEncoder, prompts: &[&str]) -> Result<ClipOutput> {
        let tokenizer = &encoder.tokenizer;
        let mut ids = Vec::with_capacity(prompts.len() * tokenizer.length());
        for prompt in prompts {
            let tokens = tokenizer.encode(prompt)?;
            ids.extend(tokens.ids);
            if let Some(cut) = tokens.cut {
                self.say_cut(prompt, &cut, tokenizer.length());
            }
        }
        let shape = (prompts.len(), tokenizer.length());
        // On the processor, where the end of each text is looked for.
        let ids = Tensor::from_vec(ids, shape, &Device::Cpu)?;
        Ok(encoder.clip.forward(&ids)?)
    }

    /// Tells once of every prompt that is cut, and of the first aloud: a bank's are much alike.
    fn say_cut(&self, prompt: &str, cut: &str, length: usize) {
        let known = {
            let mut memory = self.memory();
            let known = memory.cut.len();
            memory.cut.insert(prompt.to_owned()).then_some(known)
        };
        let text = format!(
            "the prompt `{prompt}` is longer than {length} tokens, and `{cut}` is left out"
        );
        match known {
            Some(0) => tracing::warn!("{text} (of further ones the log tells at level info)"),
            Some(_) => tracing::info!("{text}"),
            None => {}
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last texts, and those that were too long.
#[derive(Debug, Default)]
struct Memory {
    /// The latest last.
    texts: VecDeque<(String, Embedding)>,
    cut: HashSet<String>,
}

impl Memory {
    /// Texts that are kept; of the full size one takes 0.6 MB.
    const TEXTS: usize = 128;

    fn find(&mut self, text: &str) -> Option<Embedding> {
        let at = self.texts.iter().position(|(known, _)| known == text)?;
        let found = self.texts.remove(at)?;
        let embedding = found.1.clone();
        self.texts.push_back(found);
        Some(embedding)
    }

    fn keep(&mut self, text: &str, embedding: &Embedding) {
        if self.find(text).is_none() {
            self.texts.push_back((text.to_owned(), embedding.clone()));
        }
        if self.texts.len() > Self::TEXTS {
            self.texts.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
