//! Every operation on the device against the processor's kernels, in three types.

use crate::{Answer, Failure, Setting};
use candle_core::DType;
use diffaug_nn::testing::operations::operations;

/// Those of one kind, results and gradients.
pub fn check(kind: &str, setting: &Setting) -> Result<Answer, Failure> {
    let ours: Vec<_> = operations()
        .into_iter()
        .filter(|operation| operation.kind == kind)
        .collect();
    if ours.is_empty() {
        return Err(format!("there are no operations of the kind `{kind}`").into());
    }
    let (mut figures, mut wrong) = (Vec::new(), Vec::new());
    for (dtype, name) in [
        (DType::F32, "f32"),
        (DType::BF16, "bf16"),
        (DType::F16, "f16"),
    ] {
        let mut worst = 0.0f32;
        for operation in &ours {
            // On a processor, too, what a GPU computes with is to be tried.
            match operation.deviation(dtype, &setting.device, true) {
                Ok(deviation) => {
                    worst = worst.max(deviation);
                    if deviation > 1.0 {
                        wrong.push(format!("{name}: {operation:?}: {deviation:.2}"));
                    }
                }
                Err(error) => wrong.push(format!("{name}: {operation:?}: {error}")),
            }
        }
        figures.push(format!("{name} {worst:.2}"));
    }
    let figure = format!(
        "{} cases; largest difference as part of the tolerance: {}",
        ours.len(),
        figures.join(", ")
    );
    Ok(Answer { figure, wrong })
}
