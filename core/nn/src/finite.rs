//! Whether all values of a tensor are numbers, told without waiting for the device: what tells it stays
//! there until everything is done and is read at once.

use candle_core::{DType, Result, Tensor};

/// For each row of `x` `[n, …]` an f32 that is 0 where all its values are finite, else NaN: `[n]`.
///
/// It is the sum of the values times 0, which is 0 for whatever is finite and cannot overflow in any
/// type.
///
/// # Errors
/// Those of the device.
pub fn witness(x: &Tensor) -> Result<Tensor> {
    let rows = x.detach().flatten_from(1)?;
    rows.affine(0.0, 0.0)?.sum(1)?.to_dtype(DType::F32)
}

/// Witnesses of what was computed, in the order of its computing, each with what it is.
#[derive(Debug)]
pub struct Witnesses<W> {
    all: Vec<(W, Tensor)>,
}

impl<W> Default for Witnesses<W> {
    fn default() -> Self {
        Witnesses { all: Vec::new() }
    }
}

impl<W: Clone> Witnesses<W> {
    /// Notes the rows of `x` `[n, …]`, which is `what`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn note(&mut self, what: W, x: &Tensor) -> Result<()> {
        self.all.push((what, witness(x)?));
        Ok(())
    }

    /// What was noted first among what holds a value that is no number, and its row; the rest is
    /// forgotten. Waits for the device once.
    ///
    /// # Errors
    /// Those of the device.
    pub fn first(&mut self) -> Result<Option<(W, usize)>> {
        if self.all.is_empty() {
            return Ok(None);
        }
        let all = std::mem::take(&mut self.all);
        let sums: Vec<&Tensor> = all.iter().map(|(_, sum)| sum).collect();
        let values: Vec<f32> = Tensor::cat(&sums, 0)?.to_vec1()?;
        let mut values = values.into_iter();
        for (what, sums) in &all {
            let mut row = values.by_ref().take(sums.elem_count());
            if let Some(at) = row.position(|value| !value.is_finite()) {
                return Ok(Some((what.clone(), at)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn only_what_is_no_number_is_told() {
        for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
            let tell = |value: f64| {
                let mut values = vec![1.0; 3 * 700];
                values[700 + 5] = value;
                let x = Tensor::from_vec(values, (3, 7, 100), &Device::Cpu).unwrap();
                let x = x.to_dtype(dtype).unwrap();
                let mut witnesses = Witnesses::default();
                witnesses.note("before", &x.ones_like().unwrap()).unwrap();
                witnesses.note("x", &x).unwrap();
                witnesses.note("after", &x).unwrap();
                let first = witnesses.first().unwrap();
                assert!(witnesses.first().unwrap().is_none());
                first
            };
            // The greatest values, of which a sum would overflow.
            let most = if dtype == DType::F16 { 65504.0 } else { 3e38 };
            for fine in [0.0, -0.0, -1.0, most, -most, 1e-40] {
                assert_eq!(tell(fine), None, "{fine} in {dtype:?}");
            }
            for wrong in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                assert_eq!(tell(wrong), Some(("x", 1)), "{wrong} in {dtype:?}");
            }
        }
    }
}
