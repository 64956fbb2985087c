//! Every differentiable operation with inputs to try it on: sizes that are no multiples of anything,
//! one image and seven, masks without a lesion, values whose squares and sums f16 does not hold.
//!
//! The processor's kernels answer first, in f32; then whatever is to be tried has to give the same
//! results and gradients, in its own type. It is tried on other devices, and on the processor inside
//! [`ops::composed`].

use super::random;
use crate::ops::{self, Activation, Attention, Convolution, FourierNorm, SoftDice, Statistics};
use candle_core::{DType, Device, Result, Tensor, Var};

type Function = dyn Fn(&[Tensor]) -> Result<Tensor>;

/// An operation and what it is tried on.
pub struct Operation {
    /// Kind, to name it by.
    pub kind: &'static str,
    /// What it is.
    pub name: String,
    shapes: Vec<Vec<usize>>,
    /// Largest value of the first input; of the others 1.
    largest: f64,
    /// Whether it is that of all inputs.
    all_large: bool,
    /// How many times the usual tolerance its gradients need in half precision.
    slack: f32,
    op: Box<Function>,
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {:?}", self.kind, self.name, self.shapes)
    }
}

/// Results in a type may differ from those in f32 by this part of the largest value.
pub fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => 2e-2,
        DType::F16 => 4e-3,
        _ => 1e-4,
    }
}

impl Operation {
    /// The result where no gradient is wanted, that where one is, and the gradients of all inputs, f32
    /// on the processor. The inputs are rounded to `rounded` before they are cast to `dtype`.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn run(&self, rounded: DType, dtype: DType, device: &Device) -> Result<Vec<Tensor>> {
        let draw = |name: &str, shape: &[usize], largest: f64| {
            let values = (random(name, shape) * largest)?.to_dtype(rounded)?;
            values.to_device(device)?.to_dtype(dtype)
        };
        let vars = self.shapes.iter().enumerate().map(|(at, shape)| {
            let name = format!("{} {at}", self.name);
            // The first input is what is large, not what it is scaled and shifted by.
            let largest = if at == 0 || self.all_large {
                self.largest
            } else {
                1.0
            };
            Var::from_tensor(&draw(&name, shape, largest)?)
        });
        let vars = vars.collect::<Result<Vec<Var>>>()?;
        let detached: Vec<Tensor> = vars.iter().map(Var::as_detached_tensor).collect();
        let answer = (self.op)(&detached)?;
        let inputs: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let y = (self.op)(&inputs)?;
        let dy = draw("dy", y.dims(), 1.0)?.to_dtype(y.dtype())?;
        let grads = (&y * dy)?.to_dtype(DType::F32)?.sum_all()?.backward()?;
        let grads = vars.iter().map(|var| match grads.get(var) {
            Some(grad) => Ok(grad.clone()),
            None => candle_core::bail!("an input of {} has no gradient", self.name),
        });
        [Ok(answer), Ok(y)]
            .into_iter()
            .chain(grads)
            .map(|t| t?.to_dtype(DType::F32)?.to_device(&Device::Cpu))
            .collect()
    }

    /// The largest part of what it may differ by from the kernels' results that `device` does in
    /// `dtype`: above 1 it is wrong.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn deviation(&self, dtype: DType, device: &Device, composed: bool) -> Result<f32> {
        let expected = self.run(dtype, DType::F32, &Device::Cpu)?;
        let run = || self.run(dtype, dtype, device);
        let found = if composed { ops::composed(run) } else { run() }?;
        let tolerance = tolerance(dtype);
        let half = dtype == DType::BF16 || dtype == DType::F16;
        let mut worst = 0.0f32;
        for (found, expected) in found.iter().zip(&expected) {
            let slack = if half { self.slack } else { 1.0 };
            worst = worst.max(difference(found, expected)? / (tolerance * slack));
        }
        Ok(worst)
    }
}

/// The largest difference of two tensors as part of the second's largest value (at least 1e-3);
/// infinite where shapes differ or a value is no number.
///
/// # Errors
/// Those of candle.
pub fn difference(found: &Tensor, expected: &Tensor) -> Result<f32> {
    if found.dims() != expected.dims() {
        return Ok(f32::INFINITY);
    }
    let flat = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
    let (found, expected) = (flat(found)?, flat(expected)?);
    let largest = expected.iter().fold(1e-3f32, |a, v| a.max(v.abs()));
    let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    Ok(differences.fold(0.0f32, |worst, d| match d.is_finite() {
        true => worst.max(d / largest),
        false => f32::INFINITY,
    }))
}

/// Builds the list.
struct List(Vec<Operation>);

impl List {
    fn add(
        &mut self,
        kind: &'static str,
        name: impl Into<String>,
        shapes: &[&[usize]],
        op: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
    ) -> &mut Operation {
        self.0.push(Operation {
            kind,
            name: name.into(),
            shapes: shapes.iter().map(|shape| shape.to_vec()).collect(),
            largest: 1.0,
            all_large: false,
            slack: 1.0,
            op: Box::new(op),
        });
        let last = self.0.len() - 1;
        &mut self.0[last]
    }
}

/// All of them.
pub fn operations() -> Vec<Operation> {
    let mut list = List(Vec::new());
    activations(&mut list);
    sums(&mut list);
    attention(&mut list);
    convolutions(&mut list);
    linear_maps(&mut list);
    norms(&mut list);
    pooling(&mut list);
    resampling(&mut list);
    fourier(&mut list);
    losses(&mut list);
    list.0
}

type Unary = fn(&Tensor) -> Result<Tensor>;

fn activations(list: &mut List) {
    let ops: [(&str, Unary); 7] = [
        ("relu", ops::relu),
        ("leaky relu", |x| ops::leaky_relu(x, 0.1)),
        ("sigmoid", ops::sigmoid),
        ("silu", ops::silu),
        ("gelu", ops::gelu),
        ("gelu tanh", ops::gelu_tanh),
        ("geglu", ops::geglu),
    ];
    for (name, op) in ops {
        list.add("activations", name, &[&[3, 7, 10]], move |v| op(&v[0]));
        let large = list.add(
            "activations",
            format!("{name} of large values"),
            &[&[1, 5, 66]],
            move |v| op(&v[0]),
        );
        large.largest = 200.0;
    }
    list.add("activations", "softmax", &[&[2, 77, 5]], |v| {
        ops::softmax(&v[0], 1)
    });
    let large = list.add("activations", "softmax of large values", &[&[2, 9]], |v| {
        ops::softmax(&v[0], 1)
    });
    // A share near 1 has a gradient that is the difference of two numbers near each other.
    (large.largest, large.slack) = (100.0, 4.0);
    list.add("activations", "dropout", &[&[7, 3, 5]], |v| {
        ops::dropout(&v[0], 0.3, 7, "layer", 3)
    });
    list.add("activations", "clamp", &[&[7, 3, 5]], |v| {
        ops::clamp_leading_back(&v[0], -0.25, 0.5)
    });
}

fn sums(list: &mut List) {
    let x: &[usize] = &[7, 6, 5, 3];
    list.add("sums", "add", &[x, x], |v| ops::add(&v[0], &v[1]));
    list.add("sums", "shift channels", &[x, &[7, 6]], |v| {
        ops::shift_channels(&v[0], &v[1])
    });
    list.add("sums", "modulate channels", &[x, &[7, 6], &[7, 6]], |v| {
        ops::modulate_channels(&v[0], &v[1], &v[2])
    });
    list.add("sums", "pixels to tokens", &[x], |v| {
        ops::pixels_to_tokens(&v[0])
    });
    list.add("sums", "tokens to pixels", &[&[1, 15, 6]], |v| {
        ops::tokens_to_pixels(&v[0], 5, 3)
    });
}

fn attention(list: &mut List) {
    for (shape, heads, causal) in [
        ([1, 5, 7, 6], 2, false),
        ([7, 64, 77, 40], 5, false),
        ([2, 77, 77, 64], 4, true),
        ([1, 130, 530, 20], 2, false),
        ([1, 33, 65, 9], 3, true),
    ] {
        let [batch, queries, keys, all] = shape;
        let attention = Attention {
            causal,
            ..Attention::new(heads)
        };
        let k: &[usize] = &[batch, keys, all];
        let name = format!("{shape:?} of {heads} heads, causal {causal}");
        let op = list.add("attention", name, &[&[batch, queries, all], k, k], {
            move |v| attention.forward(&v[0], &v[1], &v[2])
        });
        (op.largest, op.all_large, op.slack) = (2.0, true, 2.0);
    }
}

fn convolutions(list: &mut List) {
    for (batch, height, width) in [(1, 6, 5), (7, 9, 3), (2, 16, 16)] {
        let x: &[usize] = &[batch, 3, height, width];
        let at = |name: &str| format!("{name} of {batch}x3x{height}x{width}");
        let weight: &[usize] = &[4, 3, 3, 3];
        list.add("convolutions", at("3x3"), &[x, weight], |v| {
            ops::conv2d(&v[0], &v[1], None)
        });
        list.add("convolutions", at("3x3 and bias"), &[x, weight, &[4]], {
            |v| ops::conv2d(&v[0], &v[1], Some(&v[2]))
        });
        list.add("convolutions", at("1x1"), &[x, &[5, 3, 1, 1]], |v| {
            ops::conv2d(&v[0], &v[1], None)
        });
        list.add("convolutions", at("stride 2"), &[x, weight, &[4]], |v| {
            Convolution::square(2, 1).forward(&v[0], &v[1], Some(&v[2]))
        });
        list.add(
            "convolutions",
            at("transposed 2x2"),
            &[x, &[3, 4, 2, 2], &[4]],
            |v| ops::conv_transpose2x2(&v[0], &v[1], &v[2]),
        );
        let block = list.add(
            "convolutions",
            at("with batch norm and relu"),
            &[x, weight, &[4], &[4]],
            |v| Ok(ops::conv_batch_norm_relu(&v[0], &v[1], &v[2], &v[3], 1e-5)?.0),
        );
        // Where the rounded result crosses 0, a gradient is there or not.
        block.slack = 30.0;
    }
    list.add(
        "convolutions",
        "dilated",
        &[&[1, 2, 9, 8], &[3, 2, 3, 3]],
        {
            |v| {
                let spec = Convolution {
                    dilation: [2, 2],
                    padding: [2, 2],
                    ..Default::default()
                };
                spec.forward(&v[0], &v[1], None)
            }
        },
    );
    list.add(
        "convolutions",
        "grouped",
        &[&[2, 4, 5, 7], &[6, 2, 3, 3]],
        {
            |v| {
                let spec = Convolution {
                    groups: 2,
                    padding: [1, 1],
                    ..Default::default()
                };
                spec.forward(&v[0], &v[1], None)
            }
        },
    );
}

fn linear_maps(list: &mut List) {
    for rows in [1, 77] {
        let x: &[usize] = &[7, rows, 33];
        list.add("linear maps", format!("{rows} rows"), &[x, &[5, 33]], {
            |v| ops::linear(&v[0], &v[1], None)
        });
        let name = format!("{rows} rows and bias");
        list.add("linear maps", name, &[x, &[65, 33], &[65]], |v| {
            ops::linear(&v[0], &v[1], Some(&v[2]))
        });
    }
}

fn norms(list: &mut List) {
    for (largest, of) in [(1.0, ""), (300.0, " of large values")] {
        let x: &[usize] = &[7, 6, 5, 3];
        let affine: &[usize] = &[6];
        let mut add = |name: &str, op: fn(&[Tensor]) -> Result<Tensor>| {
            let name = format!("{name}{of}");
            let op = list.add("norms", name, &[x, affine, affine], op);
            (op.largest, op.slack) = (largest, 4.0);
        };
        add("batch norm", |v| {
            Ok(ops::batch_norm(&v[0], &v[1], &v[2], Statistics::Batch, 1e-5, false)?.0)
        });
        add("batch norm, given statistics", |v| {
            let given = Tensor::full(0.5f32, 6, v[0].device())?;
            let statistics = Statistics::Given(&given, &given);
            Ok(ops::batch_norm(&v[0], &v[1], &v[2], statistics, 1e-5, false)?.0)
        });
        add("group norm", |v| {
            ops::group_norm(&v[0], 3, &v[1], &v[2], 1e-5, None)
        });
        add("group norm and silu", |v| {
            ops::group_norm(&v[0], 3, &v[1], &v[2], 1e-5, Some(Activation::Silu))
        });
        add("instance norm", |v| {
            ops::instance_norm(&v[0], &v[1], &v[2], 1e-5)
        });
    }
    for largest in [1.0, 300.0] {
        let name = format!("layer norm of values up to {largest}");
        let shapes: &[&[usize]] = &[&[7, 5, 33], &[33], &[33]];
        let op = list.add("norms", name, shapes, |v| {
            ops::layer_norm(&v[0], &v[1], &v[2], 1e-5)
        });
        (op.largest, op.slack) = (largest, 4.0);
    }
}

fn pooling(list: &mut List) {
    let x: &[usize] = &[7, 2, 7, 9];
    list.add("pooling", "largest of 2x2", &[x], |v| {
        ops::max_pool2x2(&v[0])
    });
    list.add("pooling", "largest of 3x3", &[x], |v| {
        ops::max_pool2d(&v[0], (3, 3), (2, 2), (1, 1))
    });
    list.add("pooling", "mean of 3x3", &[x], |v| {
        ops::avg_pool2d(&v[0], (3, 3), (2, 2), (1, 1), false)
    });
}

fn resampling(list: &mut List) {
    for (from, to) in [((5, 7), (10, 14)), ((5, 7), (13, 9)), ((6, 8), (3, 4))] {
        let x: &[usize] = &[7, 2, from.0, from.1];
        let name = |kind: &str| format!("{kind}, {from:?} to {to:?}");
        list.add("resampling", name("nearest"), &[x], move |v| {
            ops::upsample_nearest2d(&v[0], to.0, to.1)
        });
        for align in [false, true] {
            let name = name(if align {
                "bilinear, aligned"
            } else {
                "bilinear"
            });
            list.add("resampling", name, &[x], move |v| {
                ops::upsample_bilinear2d(&v[0], to.0, to.1, align)
            });
        }
    }
}

fn fourier(list: &mut List) {
    for (height, width) in [(6, 5), (7, 8)] {
        let name = format!("there and back, {height}x{width}");
        let op = list.add("fourier", name, &[&[2, 3, height, width]], move |v| {
            let (re, im) = ops::rfft2(&v[0], FourierNorm::Ortho)?;
            ops::irfft2(&(re * 2.0)?, &im, width, FourierNorm::Ortho)
        });
        op.slack = 4.0;
    }
}

/// Zeros and ones of the shape of `x`; all zeros for the first image, which has no lesion.
fn mask(x: &Tensor) -> Result<Tensor> {
    let values = random("mask", x.dims()).ge(0.2)?.to_dtype(DType::F32)?;
    let lesion = Tensor::from_iter(
        (0..x.dim(0)?).map(|image| f32::from(u8::from(image > 0))),
        &Device::Cpu,
    )?;
    let mut first = vec![1; x.rank()];
    first[0] = x.dim(0)?;
    let values = values.broadcast_mul(&lesion.reshape(first)?)?;
    values.to_device(x.device())?.to_dtype(x.dtype())
}

/// A label below `classes` for each pixel of `x`, `[batch, classes, height, width]`.
fn labels(x: &Tensor) -> Result<Tensor> {
    let (batch, classes, height, width) = x.dims4()?;
    let label = |at: usize| (at * 7 % 11 % classes) as u32;
    let labels = (0..batch * height * width).map(label);
    Tensor::from_iter(labels, x.device())?.reshape((batch, height, width))
}

fn losses(list: &mut List) {
    type Loss = fn(&Tensor) -> Result<Tensor>;
    let binary: [(&str, Loss); 8] = [
        ("cross-entropy with logits", |x| {
            ops::bce_with_logits(x, &mask(x)?)
        }),
        ("dice", |x| {
            ops::dice_bce_with_logits(x, &mask(x)?, 1.0, 0.0)
        }),
        ("dice of an empty mask", |x| {
            ops::dice_bce_with_logits(x, &x.zeros_like()?, 1.0, 0.0)
        }),
        ("dice and cross-entropy", |x| {
            ops::dice_bce_with_logits(x, &mask(x)?, 0.4, 0.6)
        }),
        ("soft dice of images", |x| {
            let dice = SoftDice {
                per_image: true,
                squared: true,
                ..SoftDice::default()
            };
            dice.binary(x, &mask(x)?)
        }),
        ("soft dice of an empty mask", |x| {
            SoftDice::default().binary(x, &x.zeros_like()?)
        }),
        ("l1", |x| ops::l1(x, &mask(x)?)),
        ("mse", |x| ops::mse(x, &mask(x)?)),
    ];
    for (name, loss) in binary {
        for (batch, largest) in [(1, 1.0), (7, 4.0)] {
            let name = format!("{name}, batch {batch}");
            let shape: &[usize] = &[batch, 1, 37, 31];
            let op = list.add("losses", name, &[shape], move |v| loss(&v[0]));
            (op.largest, op.slack) = (largest, 2.0);
        }
    }
    let classes: [(&str, Loss); 2] = [
        ("cross-entropy of classes", |x| {
            ops::cross_entropy(x, &labels(x)?)
        }),
        ("soft dice of classes", |x| {
            SoftDice::default().multiclass(x, &labels(x)?)
        }),
    ];
    for (name, loss) in classes {
        for batch in [1, 7] {
            let name = format!("{name}, batch {batch}");
            let shape: &[usize] = &[batch, 3, 13, 11];
            let op = list.add("losses", name, &[shape], move |v| loss(&v[0]));
            (op.largest, op.slack) = (3.0, 2.0);
        }
    }
    // The sum of the sigmoids of such a map is beyond f16.
    let large = list.add("losses", "dice of a large map", &[&[1, 1, 300, 300]], |x| {
        ops::dice_bce_with_logits(&x[0], &x[0].ones_like()?, 1.0, 1.0)
    });
    large.slack = 2.0;
}
