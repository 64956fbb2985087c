//! Scaled dot-product attention.

use super::{fused, like};
use crate::kernels::{
    attention::{Attention as Kernel, Shape as Sizes},
    values, with_values,
};
use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor, bail};
use std::sync::{Arc, OnceLock};

/// How queries meet keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Parts that the last dimension is cut into; each attends on its own.
    pub heads: usize,
    /// What scores are multiplied by; by default 1 / sqrt(width of a head).
    pub scale: Option<f32>,
    /// Whether query i sees only the keys up to i, counted from the last of both.
    pub causal: bool,
}

impl Attention {
    /// Attention of that many heads, every query to every key.
    pub fn new(heads: usize) -> Self {
        Attention {
            heads,
            scale: None,
            causal: false,
        }
    }

    /// softmax(q kᵀ scale) v for each head: `q` is `[batch, queries, heads * width]`, `k` and `v`
    /// are `[batch, keys, heads * width]`; the result has the shape of `q`.
    ///
    /// # Errors
    /// When the shapes do not fit each other, and when there are more queries than keys under a
    /// causal mask.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let shape = self.sizes(q, k, v)?;
        let scale = self.scale.unwrap_or(1.0 / (shape.width as f32).sqrt());
        if !fused(q) {
            return composed(shape, scale, self.causal, q, k, v);
        }
        let op = Op {
            shape,
            scale,
            causal: self.causal,
            logs: Arc::default(),
        };
        q.contiguous()?
            .apply_op3(&k.contiguous()?, &v.contiguous()?, op)
    }

    fn sizes(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Sizes> {
        let (batch, queries, all) = q.dims3()?;
        let keys = k.dim(1)?;
        if self.heads == 0 || all % self.heads != 0 {
            bail!(
                "attention of {} heads cannot cut {all} values evenly",
                self.heads
            );
        }
        if k.dims() != [batch, keys, all] || v.dims() != k.dims() {
            bail!(
                "attention needs keys and values of shape [{batch}, _, {all}] both, not {:?} and {:?}",
                k.dims(),
                v.dims()
            );
        }
        if keys == 0 || self.causal && queries > keys {
            bail!("attention of {queries} queries to {keys} keys leaves a query without a key");
        }
        Ok(Sizes {
            batch,
            heads: self.heads,
            queries,
            keys,
            width: all / self.heads,
        })
    }
}

/// The same of candle's operations, with all scores at once.
fn composed(
    shape: Sizes,
    scale: f32,
    causal: bool,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<Tensor> {
    let Sizes {
        batch,
        heads,
        queries,
        keys,
        width,
    } = shape;
    let cut = |t: &Tensor, rows: usize| {
        let t = t.reshape((batch, rows, heads, width))?;
        t.transpose(1, 2)?.contiguous()
    };
    let (q, k, v) = (cut(q, queries)?, cut(k, keys)?, cut(v, keys)?);
    let scores = (q.matmul(&k.transpose(2, 3)?)? * f64::from(scale))?;
    let scores = if causal {
        let hidden = (0..queries * keys).map(|at| {
            let seen = at % keys <= at / keys + keys - queries;
            if seen { 0.0 } else { f32::NEG_INFINITY }
        });
        let hidden = Tensor::from_iter(hidden, q.device())?.reshape((queries, keys))?;
        scores.broadcast_add(&hidden.to_dtype(q.dtype())?)?
    } else {
        scores
    };
    let shares = candle_nn::ops::softmax(&scores, D::Minus1)?;
    let mixed = shares.matmul(&v)?.transpose(1, 2)?;
    mixed.reshape((batch, queries, heads * width))
}

struct Op {
    shape: Sizes,
    scale: f32,
    causal: bool,
    /// What the forward pass leaves to the backward pass.
    logs: Arc<OnceLock<Vec<f32>>>,
}

impl Op {
    fn kernel<'a>(&self, [q, k, v]: [&'a [f32]; 3]) -> Kernel<'a> {
        Kernel {
            shape: self.shape,
            q,
            k,
            v,
            scale: self.scale,
            causal: self.causal,
        }
    }
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sources = [
            values(q, q_layout)?,
            values(k, k_layout)?,
            values(v, v_layout)?,
        ];
        let (out, logs) = self.kernel(sources).forward();
        self.logs.get_or_init(|| logs);
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(logs) = self.logs.get() else {
            bail!("attention went backward before it went forward");
        };
        let [dq, dk, dv] = with_values(q, |q| {
            with_values(k, |k| {
                with_values(v, |v| {
                    with_values(y, |y| {
                        with_values(dy, |dy| Ok(self.kernel([q, k, v]).backward(y, logs, dy)))
                    })
                })
            })
        })?;
        Ok((Some(like(dq, q)?), Some(like(dk, k)?), Some(like(dv, v)?)))
    }
}

/// The shares of e^x along dimension `dim`: they sum to 1.
///
/// # Errors
/// When there is no such dimension.
pub fn softmax(x: &Tensor, dim: impl candle_core::shape::Dim) -> Result<Tensor> {
    let dim = dim.to_index(x.shape(), "softmax")?;
    if !(fused(x) && x.dtype() == DType::F32) {
        return candle_nn::ops::softmax(x, dim);
    }
    let last = x.rank() - 1;
    let turned = x.transpose(dim, last)?.contiguous()?;
    turned
        .apply_op1(Softmax)?
        .transpose(dim, last)?
        .contiguous()
}

struct Softmax;

impl candle_core::CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = layout.dims().last().copied().unwrap_or(1);
        let y = crate::kernels::rows::softmax(values(x, layout)?, width.max(1));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let width = x.dim(D::Minus1)?;
        let dx = with_values(y, |y| {
            with_values(dy, |dy| {
                Ok(crate::kernels::rows::softmax_backward(y, dy, width.max(1)))
            })
        })?;
        Ok(Some(like(dx, x)?))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, close, random};
    use candle_core::Var;

    fn inputs([batch, queries, keys, all]: [usize; 4]) -> [Tensor; 3] {
        let part = |name, rows| (random(name, &[batch, rows, all]) * 2.0).unwrap();
        [part("q", queries), part("k", keys), part("v", keys)]
    }

    /// More than one block of queries and of keys, rows that are not full, odd widths.
    const CASES: [([usize; 4], usize, bool); 6] = [
        ([2, 5, 7, 6], 2, false),
        ([1, 1, 1, 3], 1, false),
        ([1, 130, 530, 20], 2, false),
        ([1, 77, 77, 128], 2, true),
        ([2, 70, 300, 9], 3, true),
        ([1, 300, 300, 40], 1, true),
    ];

    #[test]
    fn fused_and_composed_agree() {
        for (sizes, heads, causal) in CASES {
            let vars = inputs(sizes).map(|t| Var::from_tensor(&t).unwrap());
            let [q, k, v] = &vars;
            let attention = Attention {
                heads,
                scale: Some(0.6),
                causal,
            };
            let shape = attention.sizes(q, k, v).unwrap();
            let ours = attention.forward(q, k, v).unwrap();
            let theirs = composed(shape, 0.6, causal, q, k, v).unwrap();
            close(&ours, &theirs, 1e-5);
            let dy = random("dy", q.dims());
            let [ours, theirs] =
                [ours, theirs].map(|y| (y * &dy).unwrap().sum_all().unwrap().backward().unwrap());
            for var in &vars {
                close(ours.get(var).unwrap(), theirs.get(var).unwrap(), 1e-4);
            }
        }
    }

    #[test]
    fn large_scores_stay_finite() {
        let [q, k, v] = inputs([1, 4, 300, 8]).map(|t| (t * 300.0).unwrap());
        let y = Attention::new(1).forward(&q, &k, &v).unwrap();
        let y: Vec<f32> = y.flatten_all().unwrap().to_vec1().unwrap();
        assert!(y.iter().all(|v| v.abs() <= 600.0), "{y:?}");
    }

    #[test]
    fn softmax_along_any_dimension() {
        let x = (random("x", &[3, 5, 4]) * 5.0).unwrap();
        for dim in 0..3 {
            let ours = softmax(&x, dim).unwrap();
            close(&ours, &candle_nn::ops::softmax(&x, dim).unwrap(), 1e-6);
            check_gradients(std::slice::from_ref(&x), |v| softmax(&v[0], dim));
        }
    }

    #[test]
    fn a_misfit_is_named() {
        let [q, k, v] = inputs([2, 5, 7, 6]);
        let message = |attention: Attention, k: &Tensor| {
            attention.forward(&q, k, &v).unwrap_err().to_string()
        };
        assert!(message(Attention::new(4), &k).contains("4 heads cannot cut 6"));
        assert!(message(Attention::new(2), &q).contains("not [2, 5, 6] and [2, 7, 6]"));
        let causal = Attention {
            causal: true,
            ..Attention::new(2)
        };
        let error = causal.forward(&k, &q, &q).unwrap_err().to_string();
        assert!(error.contains("7 queries to 5 keys"), "{error}");
    }
}
