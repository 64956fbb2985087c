//! Attention of candle's operations, for other devices and types than the kernel's.
//!
//! Where a gradient is wanted, blocks of keys pass all queries, which keep a running maximum and sum
//! (Milakov & Gimelshein, 2018; Dao et al., FlashAttention, 2022); the backward pass forms the scores
//! of each block again. Where none is, blocks of queries pass all keys, for which candle has a softmax
//! in one kernel. Either way memory grows with one side times a block of the other.
//!
//! Maxima, sums and what is summed over blocks are f32 where the inputs are of half precision.

use super::{
    super::{softmax, wide},
    Sizes,
};
use crate::{
    given::Given,
    operation::{ApplyComputed, Computed},
};
use candle_core::{D, Result, Tensor};

/// Scores that a block may have, over all heads and images: 256 MiB of f32.
const SCORES: usize = 1 << 26;
/// Queries or keys of a block at least: products with fewer rows waste a graphics card.
const SIDE: usize = 64;

/// Attention of `[q, k, v]`, shaped as in [`super::Attention::forward`].
pub(super) fn attend(
    shape: Sizes,
    scale: f32,
    causal: bool,
    tensors: [&Tensor; 3],
) -> Result<Tensor> {
    in_blocks(shape, scale, causal, SCORES, tensors)
}

/// [`attend`] in blocks of `most` scores.
pub(super) fn in_blocks(
    shape: Sizes,
    scale: f32,
    causal: bool,
    most: usize,
    tensors: [&Tensor; 3],
) -> Result<Tensor> {
    let blocks = Blocks {
        shape,
        scale: f64::from(scale),
        causal,
        most,
    };
    let trained = tensors.iter().any(|t| t.track_op());
    #[cfg(feature = "flash-attn")]
    if super::flash::takes(tensors[0], shape.width) {
        let out = super::flash::forward(shape, scale, causal, tensors.map(Tensor::detach))?;
        return match trained {
            true => blocks.with_gradient(out, None, tensors),
            false => Ok(out),
        };
    }
    if !trained {
        return blocks.answer(tensors);
    }
    let (out, logs) = blocks.forward(tensors.map(Tensor::detach))?;
    blocks.with_gradient(out, Some(logs), tensors)
}

#[derive(Clone, Copy)]
struct Blocks {
    shape: Sizes,
    scale: f64,
    causal: bool,
    /// Scores of a block.
    most: usize,
}

/// Queries with the scale in them, keys and values: `[batch * heads, rows, width]`.
struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Blocks {
    /// `out` as the result of an operation on the inputs.
    fn with_gradient(
        self,
        out: Tensor,
        logs: Option<Tensor>,
        tensors: [&Tensor; 3],
    ) -> Result<Tensor> {
        let op = Op {
            blocks: self,
            logs,
            out: Given::new(out),
        };
        tensors.apply_computed(op)
    }

    /// `[batch, rows, heads * width]` as `[batch * heads, rows, width]`.
    fn cut(&self, t: &Tensor, rows: usize) -> Result<Tensor> {
        let Sizes {
            batch,
            heads,
            width,
            ..
        } = self.shape;
        let t = t.reshape((batch, rows, heads, width))?.transpose(1, 2)?;
        t.contiguous()?.reshape((batch * heads, rows, width))
    }

    /// The inverse of [`Blocks::cut`].
    fn join(&self, t: &Tensor, rows: usize) -> Result<Tensor> {
        let Sizes {
            batch,
            heads,
            width,
            ..
        } = self.shape;
        let t = t.reshape((batch, heads, rows, width))?.transpose(1, 2)?;
        t.reshape((batch, rows, heads * width))
    }

    fn heads(&self, [q, k, v]: [&Tensor; 3]) -> Result<Heads> {
        let Sizes { queries, keys, .. } = self.shape;
        Ok(Heads {
            // Scores of f16 could overflow before they are scaled.
            q: (self.cut(q, queries)? * self.scale)?,
            k: self.cut(k, keys)?,
            v: self.cut(v, keys)?,
        })
    }

    /// Start and length of the blocks that `side` is cut into, each with all of the `other` side.
    fn ranges(&self, side: usize, other: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let each = (self.shape.batch * self.shape.heads * other).max(1);
        let block = (self.most / each / SIDE * SIDE).max(SIDE);
        (0..side)
            .step_by(block)
            .map(move |first| (first, block.min(side - first)))
    }

    /// The result, of the shape of `q`.
    fn answer(&self, tensors: [&Tensor; 3]) -> Result<Tensor> {
        let Heads { q, k, v } = self.heads(tensors)?;
        let Sizes { queries, keys, .. } = self.shape;
        let mut parts = Vec::new();
        for (first, count) in self.ranges(queries, keys) {
            let scores = self.scores(&q.narrow(1, first, count)?, &k, (first, 0))?;
            parts.push(softmax(&scores, D::Minus1)?.matmul(&v)?);
        }
        self.join(&Tensor::cat(&parts, 1)?, queries)
    }

    /// The scores of a block; -inf where a query does not see a key. `at` counts the queries and
    /// keys before it.
    fn scores(&self, q: &Tensor, k: &Tensor, at: (usize, usize)) -> Result<Tensor> {
        let scores = q.matmul(&k.t()?)?;
        let (queries, keys) = (q.dim(1)?, k.dim(1)?);
        // The last key that the block's first query sees.
        let sees = at.0 + self.shape.keys.saturating_sub(self.shape.queries);
        if !self.causal || at.1 + keys <= sees + 1 {
            return Ok(scores);
        }
        let device = scores.device();
        let last = Tensor::arange(sees as u32, (sees + queries) as u32, device)?;
        let key = Tensor::arange(at.1 as u32, (at.1 + keys) as u32, device)?;
        let seen = key
            .reshape((1, 1, keys))?
            .broadcast_le(&last.reshape((1, queries, 1))?)?;
        let hidden = Tensor::new(f32::NEG_INFINITY, device)?.to_dtype(scores.dtype())?;
        seen.broadcast_as(scores.shape())?
            .where_cond(&scores, &hidden.broadcast_as(scores.shape())?)
    }

    /// The result, of the shape of `q`, and the logarithm of the sum of the exponentials of each
    /// query's scores, `[batch * heads, queries, 1]`.
    fn forward(&self, tensors: [Tensor; 3]) -> Result<(Tensor, Tensor)> {
        let heads = self.heads(tensors.each_ref())?;
        let mut running: Option<Running> = None;
        for (first, count) in self.ranges(self.shape.keys, self.shape.queries) {
            let v = heads.v.narrow(1, first, count)?;
            let k = heads.k.narrow(1, first, count)?;
            let scores = wide(&self.scores(&heads.q, &k, (0, first))?)?;
            let next = |shares: &Tensor| wide(&shares.to_dtype(v.dtype())?.matmul(&v)?);
            running = Some(Running::after(running, scores, next)?);
        }
        let Some(Running { peak, total, mixed }) = running else {
            candle_core::bail!("attention needs at least one key");
        };
        let out = mixed.broadcast_div(&total)?.to_dtype(heads.v.dtype())?;
        Ok((self.join(&out, self.shape.queries)?, (peak + total.log()?)?))
    }

    /// The logarithms that [`Blocks::forward`] gives, alone.
    fn logs(&self, heads: &Heads) -> Result<Tensor> {
        let mut running: Option<Running> = None;
        for (first, count) in self.ranges(self.shape.keys, self.shape.queries) {
            let k = heads.k.narrow(1, first, count)?;
            let scores = wide(&self.scores(&heads.q, &k, (0, first))?)?;
            running = Some(Running::after(running, scores, |shares| {
                shares.narrow(2, 0, 1)?.zeros_like()
            })?);
        }
        match running {
            Some(Running { peak, total, .. }) => peak + total.log()?,
            None => candle_core::bail!("attention needs at least one key"),
        }
    }

    /// The gradients of the inputs, given the result, what [`Blocks::forward`] gave beside it if it
    /// was computed, and the result's gradient.
    fn backward(
        &self,
        tensors: [&Tensor; 3],
        out: &Tensor,
        logs: Option<&Tensor>,
        dy: &Tensor,
    ) -> Result<[Tensor; 3]> {
        let heads = self.heads(tensors)?;
        let logs = match logs {
            Some(logs) => logs.clone(),
            None => self.logs(&heads)?,
        };
        let Sizes { queries, keys, .. } = self.shape;
        let (out, dy) = (self.cut(out, queries)?, self.cut(dy, queries)?);
        // What each query's shares pull at each other through their sum.
        let pull = (wide(&out)? * wide(&dy)?)?.sum_keepdim(D::Minus1)?;
        let dtype = dy.dtype();
        let (mut dq, mut dk, mut dv) = (None, Vec::new(), Vec::new());
        for (first, count) in self.ranges(keys, queries) {
            let k = heads.k.narrow(1, first, count)?;
            let v = heads.v.narrow(1, first, count)?;
            let shares = wide(&self.scores(&heads.q, &k, (0, first))?)?;
            let shares = shares.broadcast_sub(&logs)?.exp()?;
            dv.push(shares.to_dtype(dtype)?.t()?.matmul(&dy)?);
            let flow = wide(&dy.matmul(&v.t()?)?)?.broadcast_sub(&pull)?;
            let flow = (shares * flow)?.to_dtype(dtype)?;
            dk.push(flow.t()?.matmul(&heads.q)?);
            let part = wide(&flow.matmul(&k)?)?;
            dq = Some(match dq {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        let Some(dq) = dq else {
            candle_core::bail!("attention needs at least one key");
        };
        let dq = (dq * self.scale)?.to_dtype(dtype)?;
        Ok([
            self.join(&dq, queries)?,
            self.join(&Tensor::cat(&dk, 1)?, keys)?,
            self.join(&Tensor::cat(&dv, 1)?, keys)?,
        ])
    }
}

/// What queries keep while blocks of keys pass: `[batch * heads, queries, 1]` the largest score and
/// the sum of exponentials, and the weighted sum of values, `[batch * heads, queries, width]`.
struct Running {
    peak: Tensor,
    total: Tensor,
    mixed: Tensor,
}

impl Running {
    /// Takes in a block; `mix` gives the sum of values weighted by exponentials.
    fn after(
        before: Option<Self>,
        scores: Tensor,
        mix: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        let mut peak = scores.max_keepdim(D::Minus1)?;
        if let Some(before) = &before {
            peak = peak.maximum(&before.peak)?;
        }
        let shares = scores.broadcast_sub(&peak)?.exp()?;
        drop(scores);
        let (total, mixed) = (shares.sum_keepdim(D::Minus1)?, mix(&shares)?);
        let Some(before) = before else {
            return Ok(Running { peak, total, mixed });
        };
        let faded = (before.peak - &peak)?.exp()?;
        Ok(Running {
            total: ((before.total * &faded)? + total)?,
            mixed: (before.mixed.broadcast_mul(&faded)? + mixed)?,
            peak,
        })
    }
}

struct Op {
    blocks: Blocks,
    /// Of the forward pass, if it gave them.
    logs: Option<Tensor>,
    out: Given,
}

impl Computed<3> for Op {
    fn name(&self) -> &'static str {
        "attention in blocks"
    }

    fn result(&self) -> &Given {
        &self.out
    }

    fn backward(
        &self,
        operands: [&Tensor; 3],
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let tensors = operands.map(Tensor::detach);
        let (y, dy) = (y.detach(), dy.detach());
        let grads = self
            .blocks
            .backward(tensors.each_ref(), &y, self.logs.as_ref(), &dy)?;
        Ok(grads.map(Some))
    }
}
