//! What other devices than the processor compute: every operation made of candle's own, in each type,
//! against the kernels.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::operations::operations;

fn agree(dtype: DType) {
    let wrong = operations().into_iter().filter_map(|operation| {
        let deviation = operation.deviation(dtype, &Device::Cpu, true);
        let deviation = deviation.unwrap_or_else(|e| panic!("{operation:?}: {e}"));
        (deviation > 1.0).then(|| format!("{operation:?} differs {deviation} times too much"))
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "in {dtype:?}:\n{}", wrong.join("\n"));
}

#[test]
fn composed_operations_agree_in_f64() {
    agree(DType::F64);
}

#[test]
fn composed_operations_agree_in_f32() {
    agree(DType::F32);
}

#[test]
fn composed_operations_agree_in_bf16() {
    agree(DType::BF16);
}

#[test]
fn composed_operations_agree_in_f16() {
    agree(DType::F16);
}

#[test]
fn composing_ends_with_the_work() {
    let x = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
    assert!(fused(&x));
    composed(|| assert!(!fused(&x)));
    let panicked = std::panic::catch_unwind(|| composed(|| panic!("on purpose")));
    assert!(panicked.is_err() && fused(&x));
}
