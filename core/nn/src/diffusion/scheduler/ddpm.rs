//! The reverse Markov chain of denoising diffusion (Ho et al., 2020, eq. 7).

use super::{
    config::{SchedulerConfig, pick},
    ddim::Output,
    grid::Grid,
    sampler::{Step, combine},
};
use candle_core::{Result, Tensor, bail};

/// Which of its bounds the variance of a step is.
#[derive(Clone, Copy, Debug)]
enum Variance {
    Small,
    Large,
    /// The network says where between.
    Learned,
}

#[derive(Clone, Copy, Debug)]
struct Move {
    /// ᾱ before and after.
    alpha_bars: [f64; 2],
    is_noisy: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Ddpm {
    output: Output,
    moves: Vec<Move>,
    variance: Variance,
}

impl Ddpm {
    pub(super) fn new(config: &SchedulerConfig, grid: &Grid) -> diffaug::Result<Self> {
        // The logarithm of `fixed_small_log` is taken and undone.
        let known = [
            ("fixed_small", Variance::Small),
            ("fixed_small_log", Variance::Small),
            ("fixed_large", Variance::Large),
            ("learned_range", Variance::Learned),
        ];
        let alpha_bar = |t: &f64| grid.alpha_bars[*t as usize];
        let after = grid.timesteps.iter().skip(1).map(alpha_bar).chain([1.0]);
        let moves = grid.timesteps.iter().zip(after).map(|(t, after)| Move {
            alpha_bars: [alpha_bar(t), after],
            is_noisy: *t > 0.0,
        });
        Ok(Ddpm {
            output: Output::new(config, grid)?,
            moves: moves.collect(),
            variance: pick("variance_type", &config.variance_type, known)?,
        })
    }

    pub(super) fn step(
        &self,
        output: &Tensor,
        i: usize,
        x: &Tensor,
        noise: &mut impl FnMut() -> Result<Tensor>,
    ) -> Result<Step> {
        let Move {
            alpha_bars: [now, after],
            is_noisy,
        } = self.moves[i];
        let (output, between) = match self.variance {
            Variance::Learned => halves(output, x)?,
            _ => (output.clone(), None),
        };
        let z0 = self.output.clean(&output, x, now)?;
        let alpha = now / after;
        let (beta, total) = (1.0 - alpha, 1.0 - now);
        let mut x = combine(&[
            (after.sqrt() * beta / total, &z0),
            (alpha.sqrt() * (1.0 - after) / total, x),
        ])?;
        if is_noisy {
            let small = (beta * (1.0 - after) / total).max(1e-20);
            x = match (self.variance, between) {
                (_, Some(between)) => {
                    // Half of the logarithm of the variance, from -1 to 1 of what the network says.
                    let (low, high) = (small.ln(), beta.ln());
                    let deviation = between.affine((high - low) / 4.0, (high + low) / 4.0)?;
                    (x + (deviation.exp()? * noise()?)?)?
                }
                (Variance::Large, _) => combine(&[(1.0, &x), (beta.sqrt(), &noise()?)])?,
                _ => combine(&[(1.0, &x), (small.sqrt(), &noise()?)])?,
            };
        }
        Ok(Step { x, z0 })
    }
}

/// The two halves of the channels of an answer: what is predicted, and where the variance lies.
fn halves(output: &Tensor, x: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
    let (channels, latent) = (output.dim(1)?, x.dim(1)?);
    if channels != 2 * latent {
        bail!(
            "`learned_range` needs an answer of {} channels, not {channels}",
            2 * latent
        );
    }
    let between = output.narrow(1, latent, latent)?;
    Ok((output.narrow(1, 0, latent)?, Some(between)))
}
