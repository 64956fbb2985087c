//! Feature maps as sequences of tokens, one for each pixel, and back.

use super::{fused, like};
use crate::operation::{Apply, Operand, Operation, with_values};
use candle_core::{Result, Shape, Tensor};
use diffaug_kernels::transpose::transpose;

/// `[batch, channels, height, width]` to `[batch, height * width, channels]`.
///
/// # Errors
/// When `x` has another number of dimensions.
pub fn pixels_to_tokens(x: &Tensor) -> Result<Tensor> {
    turn(&x.flatten_from(2)?)
}

/// `[batch, height * width, channels]` to `[batch, channels, height, width]`.
///
/// # Errors
/// When `x` has another number of dimensions or of tokens.
pub fn tokens_to_pixels(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (batch, _, channels) = x.dims3()?;
    turn(x)?.reshape((batch, channels, height, width))
}

/// Exchanges the last two of three dimensions, in memory too.
fn turn(x: &Tensor) -> Result<Tensor> {
    match fused(x) {
        true => [x].apply(Turn),
        false => x.transpose(1, 2)?.contiguous(),
    }
}

struct Turn;

impl Operation<1> for Turn {
    fn name(&self) -> &'static str {
        "transpose"
    }

    fn forward(&self, [x]: [Operand<'_>; 1]) -> Result<(Vec<f32>, Shape)> {
        let (batch, rows, columns) = x.shape.dims3()?;
        let turned = transpose(x.values, rows, columns);
        Ok((turned, (batch, columns, rows).into()))
    }

    fn backward(&self, [x]: [&Tensor; 1], _: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let (_, rows, columns) = x.dims3()?;
        let dx = with_values([dy], |[dy]| transpose(dy, columns, rows))?;
        Ok([Some(like(dx, x)?)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, close, random};

    #[test]
    fn there_and_back() {
        let x = random("x", &[2, 5, 3, 7]);
        let tokens = pixels_to_tokens(&x).unwrap();
        let expected = x.flatten_from(2).unwrap().transpose(1, 2).unwrap();
        close(&tokens, &expected.contiguous().unwrap(), 0.0);
        close(&tokens_to_pixels(&tokens, 3, 7).unwrap(), &x, 0.0);
        assert!(tokens_to_pixels(&tokens, 4, 7).is_err());
        check_gradients(&[x], |v| pixels_to_tokens(&v[0])?.sqr());
    }
}
