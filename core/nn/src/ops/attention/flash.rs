//! FlashAttention-2's kernel (Dao, 2023) by `candle-flash-attn`: for NVIDIA GPUs of compute capability
//! 8.0 and newer, in half precision. It has no backward pass; that is [`super::blocks`]'s.

use super::Sizes;
use candle_core::{D, DType, Result, Tensor};

/// The widest head that the kernel knows.
const WIDEST: usize = 512;
/// Its heads are multiples of this wide; others are padded with zeros, which add nothing to a score.
const STEP: usize = 8;

/// Whether the kernel takes queries such as `q` with heads of that width.
pub(super) fn takes(q: &Tensor, width: usize) -> bool {
    q.device().is_cuda() && matches!(q.dtype(), DType::F16 | DType::BF16) && width <= WIDEST
}

/// Attention of `[q, k, v]`, shaped as in [`super::Attention::forward`].
pub(super) fn forward(
    shape: Sizes,
    scale: f32,
    causal: bool,
    [q, k, v]: [Tensor; 3],
) -> Result<Tensor> {
    let Sizes {
        batch,
        heads,
        queries,
        keys,
        width,
    } = shape;
    let missing = width.next_multiple_of(STEP) - width;
    let cut = |t: &Tensor, rows: usize| {
        let t = t.reshape((batch, rows, heads, width))?;
        t.pad_with_zeros(D::Minus1, 0, missing)?.contiguous()
    };
    let (q, k, v) = (cut(&q, queries)?, cut(&k, keys)?, cut(&v, keys)?);
    let y = candle_flash_attn::flash_attn(&q, &k, &v, scale, causal)?;
    y.narrow(D::Minus1, 0, width)?
        .reshape((batch, queries, heads * width))
}
