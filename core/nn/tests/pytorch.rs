//! The operations agree with PyTorch, forward and backward, on the fixtures that
//! `fixtures/make_fixtures.py` wrote.

#![allow(clippy::unwrap_used)]

use diffaug_nn::{
    DType, Tensor,
    ops::{self, Activation, Attention, Convolution, FourierNorm, Statistics},
    testing::Fixtures,
};
use std::path::Path;

/// What PyTorch answered for a family of operations.
fn open(family: &str) -> Fixtures {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    Fixtures::open(folder.join(family).with_extension("safetensors"))
}

#[test]
fn convolutions() {
    let fixtures = open("convolutions");
    fixtures.check("conv3", &["x", "weight"], |v| {
        ops::conv2d(&v[0], &v[1], None)
    });
    fixtures.check("conv1", &["x", "weight", "bias"], |v| {
        ops::conv2d(&v[0], &v[1], Some(&v[2]))
    });
    fixtures.check("conv_transpose", &["x", "weight", "bias"], |v| {
        ops::conv_transpose2x2(&v[0], &v[1], &v[2])
    });
    fixtures.check("strided", &["x", "weight", "bias"], |v| {
        Convolution::square(2, 1).forward(&v[0], &v[1], Some(&v[2]))
    });
    let uneven = Convolution {
        stride: [2, 1],
        padding: [1, 0],
        dilation: [1, 3],
        groups: 2,
    };
    fixtures.check("grouped", &["x", "weight"], |v| {
        uneven.forward(&v[0], &v[1], None)
    });
    let depthwise = Convolution {
        groups: 6,
        ..Convolution::same(3)
    };
    fixtures.check("depthwise", &["x", "weight", "bias"], |v| {
        depthwise.forward(&v[0], &v[1], Some(&v[2]))
    });
}

#[test]
fn linear() {
    let fixtures = open("linear");
    fixtures.check("linear", &["x", "weight", "bias"], |v| {
        ops::linear(&v[0], &v[1], Some(&v[2]))
    });
    fixtures.check("single", &["x", "weight"], |v| {
        ops::linear(&v[0], &v[1], None)
    });
}

#[test]
fn activations() {
    let fixtures = open("activations");
    fixtures.check("silu", &["x"], |v| ops::silu(&v[0]));
    fixtures.check("gelu", &["x"], |v| ops::gelu(&v[0]));
    fixtures.check("gelu_tanh", &["x"], |v| ops::gelu_tanh(&v[0]));
    fixtures.check("geglu", &["x"], |v| ops::geglu(&v[0]));
    fixtures.check("leaky_relu", &["x"], |v| ops::leaky_relu(&v[0], 0.1));
}

#[test]
fn attention() {
    let fixtures = open("attention");
    let attend = |heads, causal| {
        let attention = Attention {
            causal,
            ..Attention::new(heads)
        };
        move |v: &[Tensor]| attention.forward(&v[0], &v[1], &v[2])
    };
    fixtures.check("self", &["q", "k", "v"], attend(3, false));
    fixtures.check("cross", &["q", "k", "v"], attend(1, false));
    fixtures.check("causal", &["q", "k", "v"], attend(2, true));
    fixtures.check("softmax", &["x"], |v| ops::softmax(&v[0], 2));
}

#[test]
fn pooling() {
    let fixtures = open("pooling");
    fixtures.check("max_pool", &["x"], |v| ops::max_pool2x2(&v[0]));
    fixtures.check("max_pool_overlapping", &["x"], |v| {
        ops::max_pool2d(&v[0], (3, 3), (2, 2), (1, 1))
    });
    fixtures.check("max_pool_oblong", &["x"], |v| {
        ops::max_pool2d(&v[0], (2, 5), (3, 1), (1, 2))
    });
    fixtures.check("avg_pool", &["x"], |v| {
        ops::avg_pool2d(&v[0], (3, 3), (2, 2), (1, 1), true)
    });
    fixtures.check("avg_pool_inside", &["x"], |v| {
        ops::avg_pool2d(&v[0], (2, 5), (3, 1), (1, 2), false)
    });
}

#[test]
fn norms() {
    let fixtures = open("norms");
    fixtures.agree("batch_norm", &["x", "weight", "bias"], |v| {
        Ok(ops::batch_norm(&v[0], &v[1], &v[2], Statistics::Batch, 1e-5, true)?.0)
    });
    let affine = ["x", "weight", "bias"];
    fixtures.check("group_norm", &affine, |v| {
        ops::group_norm(&v[0], 2, &v[1], &v[2], 1e-5, None)
    });
    fixtures.check("group_norm_silu", &affine, |v| {
        ops::group_norm(&v[0], 3, &v[1], &v[2], 1e-6, Some(Activation::Silu))
    });
    fixtures.check("instance_norm", &affine, |v| {
        ops::instance_norm(&v[0], &v[1], &v[2], 1e-5)
    });
    fixtures.check("layer_norm", &affine, |v| {
        ops::layer_norm(&v[0], &v[1], &v[2], 1e-5)
    });
}

#[test]
fn losses() {
    let fixtures = open("losses");
    let targets = fixtures.get("bce", "targets");
    fixtures.check("bce", &["x"], |v| ops::bce_with_logits(&v[0], targets));
    let targets = fixtures.get("dice", "targets");
    fixtures.check("dice", &["x"], |v| {
        ops::dice_bce_with_logits(&v[0], targets, 1.0, 0.0)
    });
    let targets = fixtures
        .get("cross_entropy", "targets")
        .to_dtype(DType::U32)
        .unwrap();
    fixtures.check("cross_entropy", &["x"], |v| {
        ops::cross_entropy(&v[0], &targets)
    });
}

#[test]
fn resampling() {
    let fixtures = open("resampling");
    for (name, height, width) in [
        ("up", 6, 10),
        ("odd", 13, 9),
        ("down", 4, 3),
        ("pixel", 3, 1),
    ] {
        fixtures.check(&format!("nearest_{name}"), &["x"], |v| {
            ops::upsample_nearest2d(&v[0], height, width)
        });
        fixtures.check(&format!("bilinear_{name}"), &["x"], |v| {
            ops::upsample_bilinear2d(&v[0], height, width, false)
        });
        fixtures.check(&format!("corners_{name}"), &["x"], |v| {
            ops::upsample_bilinear2d(&v[0], height, width, true)
        });
    }
}

#[test]
fn regression_losses() {
    let fixtures = open("losses");
    let inputs = ["x", "target"];
    // The kink of the first may lie between the points of a finite difference.
    fixtures.agree("l1", &inputs, |v| ops::l1(&v[0], &v[1]));
    fixtures.check("mse", &inputs, |v| ops::mse(&v[0], &v[1]));
}

#[test]
fn soft_dice() {
    let fixtures = open("losses");
    let targets = |case| fixtures.get(case, "targets");
    let dice = ops::SoftDice::default();
    fixtures.check("dice_channels", &["x"], |v| {
        dice.binary(&v[0], targets("dice_channels"))
    });
    let squared = ops::SoftDice {
        squared: true,
        smooth: 1.0,
        per_image: true,
    };
    fixtures.check("dice_squared", &["x"], |v| {
        squared.binary(&v[0], targets("dice_squared"))
    });
    let whole = ops::SoftDice {
        squared: true,
        ..dice
    };
    let labels = targets("dice_classes");
    fixtures.check("dice_classes", &["x"], |v| whole.multiclass(&v[0], labels));
}

#[test]
fn fourier() {
    let fixtures = open("fourier");
    for (name, width) in [("even", 8), ("odd", 7), ("mixed", 9), ("pixel", 2)] {
        for (norm, by) in [
            ("ortho", FourierNorm::Ortho),
            ("backward", FourierNorm::Backward),
        ] {
            fixtures.check(&format!("rfft2_{name}_{norm}"), &["x"], |v| {
                let (re, im) = ops::rfft2(&v[0], by)?;
                Tensor::stack(&[re, im], 0)
            });
            fixtures.check(&format!("irfft2_{name}_{norm}"), &["re", "im"], |v| {
                ops::irfft2(&v[0], &v[1], width, by)
            });
        }
    }
}
