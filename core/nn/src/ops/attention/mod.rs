//! Scaled dot-product attention: the processor's kernel here, what other devices compute in modules
//! of its own. None of them holds the scores of all pairs at once.

mod blocks;
#[cfg(feature = "flash-attn")]
mod flash;

use super::{fused, like};
use crate::operation::{Apply, Operand, Operation, with_values};
use candle_core::{Result, Shape, Tensor, bail};
use diffaug_kernels::attention::{Attention as Kernel, Shape as Sizes};
use std::sync::OnceLock;

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
            return blocks::attend(shape, scale, self.causal, [q, k, v]);
        }
        let op = Op {
            shape,
            scale,
            causal: self.causal,
            logs: OnceLock::new(),
        };
        [q, k, v].apply(op)
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

struct Op {
    shape: Sizes,
    scale: f32,
    causal: bool,
    /// What the forward pass leaves to the backward pass.
    logs: OnceLock<Vec<f32>>,
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

impl Operation<3> for Op {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn forward(&self, operands: [Operand<'_>; 3]) -> Result<(Vec<f32>, Shape)> {
        let (out, logs) = self
            .kernel(operands.map(|operand| operand.values))
            .forward();
        self.logs.get_or_init(|| logs);
        Ok((out, operands[0].shape.clone()))
    }

    fn backward(
        &self,
        [q, k, v]: [&Tensor; 3],
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let Some(logs) = self.logs.get() else {
            bail!("attention went backward before it went forward");
        };
        let [dq, dk, dv] = with_values([q, k, v, y, dy], |[q, k, v, y, dy]| {
            self.kernel([q, k, v]).backward(y, logs, dy)
        })?;
        Ok([Some(like(dq, q)?), Some(like(dk, k)?), Some(like(dv, v)?)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{close, random};
    use candle_core::{D, DType, Var};

    /// The definition, with all scores at once.
    fn whole(attention: &Attention, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let Sizes {
            batch,
            heads,
            queries,
            keys,
            width,
        } = attention.sizes(q, k, v)?;
        let cut = |t: &Tensor, rows: usize| {
            let t = t.reshape((batch, rows, heads, width))?;
            t.transpose(1, 2)?.contiguous()
        };
        let (q, k, v) = (cut(q, queries)?, cut(k, keys)?, cut(v, keys)?);
        let scale = attention.scale.unwrap_or(1.0 / (width as f32).sqrt());
        let mut scores = (q.matmul(&k.transpose(2, 3)?)? * f64::from(scale))?;
        if attention.causal {
            let hidden = (0..queries * keys).map(|at| {
                let seen = at % keys <= at / keys + keys - queries;
                if seen { 0.0 } else { f32::NEG_INFINITY }
            });
            let hidden = Tensor::from_iter(hidden, q.device())?.reshape((queries, keys))?;
            scores = scores.broadcast_add(&hidden.to_dtype(q.dtype())?)?;
        }
        let shares = candle_nn::ops::softmax(&scores, D::Minus1)?;
        let mixed = shares.matmul(&v)?.transpose(1, 2)?;
        mixed.reshape((batch, queries, heads * width))
    }

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

    /// The result and the gradients of the three inputs.
    fn run(
        vars: &[Var; 3],
        f: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let [q, k, v] = vars;
        let y = f(q, k, v)?;
        let dy = random("dy", q.dims()).to_dtype(q.dtype())?;
        let grads = (&y * dy)?.to_dtype(DType::F32)?.sum_all()?.backward()?;
        let grads = vars.iter().map(|var| grads.get(var).unwrap().clone());
        std::iter::once(y)
            .chain(grads)
            .map(|t| t.to_dtype(DType::F32))
            .collect()
    }

    #[test]
    fn all_forms_agree_with_the_definition() {
        for (sizes, heads, causal) in CASES {
            let vars = inputs(sizes).map(|t| Var::from_tensor(&t).unwrap());
            let attention = Attention {
                heads,
                scale: Some(0.6),
                causal,
            };
            let theirs = run(&vars, |q, k, v| whole(&attention, q, k, v)).unwrap();
            let kernel = run(&vars, |q, k, v| attention.forward(q, k, v)).unwrap();
            let [q, k, v] = &vars;
            let shape = attention.sizes(q, k, v).unwrap();
            // All in one block, and in the smallest blocks that there are.
            let blocks = [1 << 26, 1].map(|most| {
                let f = |q: &Tensor, k: &Tensor, v: &Tensor| {
                    blocks::in_blocks(shape, 0.6, causal, most, [q, k, v])
                };
                let [q, k, v] = vars.each_ref().map(|var| var.as_detached_tensor());
                close(&f(&q, &k, &v).unwrap(), &theirs[0], 1e-5);
                run(&vars, f).unwrap()
            });
            for ours in [kernel].iter().chain(&blocks) {
                for (which, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                    close(ours, theirs, if which == 0 { 1e-5 } else { 1e-4 });
                }
            }
        }
    }

    #[test]
    fn blocks_in_half_precision_stay_near_the_definition() {
        for (sizes, heads, causal) in CASES {
            if sizes[2] == 1 {
                // Of a single key the gradient is 0, and what is found is rounding alone.
                continue;
            }
            let exact = inputs(sizes).map(|t| (t * 0.5).unwrap());
            let attention = Attention {
                causal,
                ..Attention::new(heads)
            };
            for (dtype, tolerance) in [(DType::BF16, 1e-2), (DType::F16, 2e-3)] {
                let round = |t: &Tensor| t.to_dtype(dtype).unwrap();
                let narrow = exact
                    .each_ref()
                    .map(|t| Var::from_tensor(&round(t)).unwrap());
                let wide = narrow
                    .each_ref()
                    .map(|t| Var::from_tensor(&t.to_dtype(DType::F32).unwrap()).unwrap());
                let theirs = run(&wide, |q, k, v| whole(&attention, q, k, v)).unwrap();
                let [q, k, v] = &narrow;
                let shape = attention.sizes(q, k, v).unwrap();
                let scale = 1.0 / (shape.width as f32).sqrt();
                let f = |q: &Tensor, k: &Tensor, v: &Tensor| {
                    blocks::in_blocks(shape, scale, causal, 1, [q, k, v])
                };
                let [q, k, v] = narrow.each_ref().map(|var| var.as_detached_tensor());
                let answer = f(&q, &k, &v).unwrap().to_dtype(DType::F32).unwrap();
                close(&answer, &theirs[0], tolerance);
                let ours = run(&narrow, f);
                for (which, (ours, theirs)) in ours.unwrap().iter().zip(&theirs).enumerate() {
                    // Gradients pass through twice as many rounded values.
                    close(
                        ours,
                        theirs,
                        if which == 0 {
                            tolerance
                        } else {
                            2.0 * tolerance
                        },
                    );
                }
            }
        }
    }

    /// The products of queries and keys are beyond 65504, the scores are not.
    #[test]
    fn large_products_of_half_precision_stay_finite() {
        let [q, k, v] = inputs([1, 4, 300, 64]).map(|t| {
            let t = (t * 100.0).unwrap();
            (t.to_dtype(DType::F16).unwrap(), t)
        });
        let products = q.1.matmul(&k.1.t().unwrap()).unwrap().abs().unwrap();
        let largest = products.max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(largest > 65504.0, "{largest}");
        let y = Attention::new(1).forward(&q.0, &k.0, &v.0).unwrap();
        let y = y.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
        let y: Vec<f32> = y.to_vec1().unwrap();
        assert!(y.iter().all(|v| v.abs() <= 200.5), "{y:?}");
    }

    #[test]
    fn large_scores_stay_finite() {
        let [q, k, v] = inputs([1, 4, 300, 8]).map(|t| (t * 300.0).unwrap());
        let y = Attention::new(1).forward(&q, &k, &v).unwrap();
        let y: Vec<f32> = y.flatten_all().unwrap().to_vec1().unwrap();
        assert!(y.iter().all(|v| v.abs() <= 600.0), "{y:?}");
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
