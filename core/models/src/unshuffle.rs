//! Latents without an autoencoder: blocks of pixels as channels. Nothing is lost and nothing is learnt.
//!
//! Each level takes 2x2 pixels (or values of the level before) apart into their mean and their three
//! differences, the Haar transform, which is orthogonal; a factor of 4 has two levels and 48 channels.
//! Channels are then shifted and scaled to mean 0 and variance 1, so that fine detail, whose values are
//! small, counts like the rest and does not drown in the noise of the first steps. This is the pixel
//! unshuffle of Hoogeboom et al. (2023, "simple diffusion") in another basis.

use crate::checkpoint::Component;
use candle_core::{DType, Device, Result as Tensors, Tensor, bail};
use diffaug::{Dataset, Error, ErrorKind, Result, ResultExt, Sample};
use diffaug_nn::weights::{self, Source};
use serde_json::{Value, json};
use std::path::Path;

/// What stands for the class in `config.json` and `model_index.json`. diffusers knows none of it.
pub const CLASS: &str = "PixelUnshuffle";
/// Samples over which channels are measured.
const MEASURED: usize = 512;
/// The least deviation of a channel, in the scale of pixels, -1 to 1: half of what rounding to bytes
/// leaves.
const LEAST: f64 = 1e-3;
/// The largest factor.
const MOST: usize = 16;

/// Pixels to normalised blocks and back.
#[derive(Clone, Debug)]
pub struct Unshuffle {
    factor: usize,
    /// `[1, channels, 1, 1]`.
    mean: Tensor,
    /// Of the same shape.
    deviation: Tensor,
}

/// Channels of blocks of `factor` by `factor` colour pixels.
pub fn channels(factor: usize) -> usize {
    3 * factor * factor
}

impl Unshuffle {
    /// Measures the channels of `pictures` `[1, 3, height, width]`, values -1 to 1.
    ///
    /// # Errors
    /// When sides are no multiple of `factor`, or there is no picture.
    pub fn measured(
        factor: usize,
        pictures: impl Iterator<Item = Result<Tensor>>,
        device: &Device,
    ) -> Result<Self> {
        let count = channels(factor);
        let (mut sums, mut squares, mut values) = (vec![0.0; count], vec![0.0; count], 0usize);
        for picture in pictures.take(MEASURED) {
            let blocks = unshuffle(&picture?, factor)?.to_device(&Device::Cpu)?;
            let rows: Vec<Vec<f32>> = blocks.flatten_from(2)?.squeeze(0)?.to_vec2()?;
            values += rows.first().map_or(0, Vec::len);
            for ((sum, square), row) in sums.iter_mut().zip(&mut squares).zip(rows) {
                *sum += row.iter().map(|v| f64::from(*v)).sum::<f64>();
                *square += row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            }
        }
        if values == 0 {
            return Err(Error::data("there are no pictures to measure"));
        }
        let means: Vec<f64> = sums.iter().map(|sum| sum / values as f64).collect();
        let deviations = squares.iter().zip(&means).map(|(square, mean)| {
            let variance = square / values as f64 - mean.powi(2);
            variance.max(0.0).sqrt().max(LEAST)
        });
        Ok(Unshuffle {
            factor,
            mean: row(&means, device)?,
            deviation: row(&deviations.collect::<Vec<_>>(), device)?,
        })
    }

    /// Whether a configuration is that of one.
    pub fn is(config: &Value) -> bool {
        config["_class_name"] == CLASS
    }

    /// Opens what [`Unshuffle::save`] left.
    ///
    /// # Errors
    /// When something is missing or of another shape.
    pub fn open(component: &Component, device: &Device) -> Result<Self> {
        let misfit = || "the configuration of `vae` cannot be used".to_owned();
        let factor = component.config["factor"].as_u64().unwrap_or(0) as usize;
        if !factor.is_power_of_two() || !(2..=MOST).contains(&factor) {
            let found = &component.config["factor"];
            let message = format!("`factor` is {found}, expected 2, 4, 8 or {MOST}");
            return Err(Error::model(message).context(misfit()));
        }
        let mut source = component.source()?;
        let shape = [1, channels(factor), 1, 1];
        let mut find = |name: &str| -> Result<Tensor> {
            let tensor = source.take(name)?;
            match tensor.filter(|tensor| tensor.dims() == shape) {
                Some(tensor) => Ok(tensor.to_dtype(DType::F32)?.to_device(device)?),
                None => Err(Error::model(format!(
                    "there is no tensor `{name}` of shape {shape:?}"
                ))
                .context("the weights of `vae` do not fit its configuration")),
            }
        };
        Ok(Unshuffle {
            factor,
            mean: find("mean")?,
            deviation: find("deviation")?,
        })
    }

    /// Writes the folder of an autoencoder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, out: &Path) -> Result<()> {
        let cannot = || format!("cannot write to `{}`", out.display());
        weights::make_folder(out).or_error(ErrorKind::Data, cannot)?;
        let tensors = [("mean", &self.mean), ("deviation", &self.deviation)];
        let tensors = tensors.map(|(name, tensor)| (name.to_owned(), tensor.clone()));
        weights::save_tensors(
            &out.join("diffusion_pytorch_model.safetensors"),
            tensors,
            &[("format", "pt")],
        )?;
        let config = json!({ "_class_name": CLASS, "factor": self.factor });
        let text = serde_json::to_string_pretty(&config)? + "\n";
        weights::write_atomically(&out.join("config.json"), text.as_bytes())
    }

    /// Pixels along a side of a block.
    pub fn factor(&self) -> usize {
        self.factor
    }

    /// Channels of a latent.
    pub fn channels(&self) -> usize {
        channels(self.factor)
    }

    /// Pixels `[n, 3, height, width]` to latents `[n, channels, height / factor, width / factor]`.
    ///
    /// # Errors
    /// When a side is no multiple of the factor.
    pub fn encode(&self, pixels: &Tensor) -> Tensors<Tensor> {
        let blocks = unshuffle(pixels, self.factor)?;
        blocks
            .broadcast_sub(&self.mean)?
            .broadcast_div(&self.deviation)
    }

    /// The reverse of [`Unshuffle::encode`].
    ///
    /// # Errors
    /// When the number of channels is another.
    pub fn decode(&self, latents: &Tensor) -> Tensors<Tensor> {
        let blocks = latents
            .broadcast_mul(&self.deviation)?
            .broadcast_add(&self.mean)?;
        shuffle(&blocks, self.factor)
    }
}

/// The plain pictures of samples, for [`Unshuffle::measured`].
pub fn plain<'a, D: Dataset>(
    dataset: &'a D,
    picture: impl Fn(&Sample) -> Result<Tensor> + 'a,
) -> Result<impl Iterator<Item = Result<Tensor>> + 'a> {
    let count = dataset.items()?.len() as u64;
    Ok((0..count).map(move |index| picture(&dataset.sample(index)?)))
}

fn row(values: &[f64], device: &Device) -> Tensors<Tensor> {
    let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
    Tensor::from_vec(values, (1, (), 1, 1), device)
}

/// Sums and differences of four tensors: the Haar transform of 2x2 values, its own inverse.
fn haar([a, b, c, d]: [Tensor; 4]) -> Tensors<[Tensor; 4]> {
    let (left, right) = ((&a + &c)?, (&b + &d)?);
    let (down, across) = ((&a - &c)?, (&b - &d)?);
    Ok([
        ((&left + &right)? * 0.5)?,
        ((left - right)? * 0.5)?,
        ((&down + &across)? * 0.5)?,
        ((down - across)? * 0.5)?,
    ])
}

/// `[n, c, h, w]` to `[n, c * factor^2, h / factor, w / factor]`.
fn unshuffle(x: &Tensor, factor: usize) -> Tensors<Tensor> {
    let mut x = x.clone();
    for _ in 0..factor.ilog2() {
        let (n, c, h, w) = x.dims4()?;
        if !h.is_multiple_of(2) || !w.is_multiple_of(2) {
            bail!("a picture of {w}x{h} cannot be cut into blocks of 2x2");
        }
        let cells = x.reshape((n, c, h / 2, 2, w / 2, 2))?;
        let cell = |dy: usize, dx: usize| {
            cells
                .narrow(3, dy, 1)?
                .narrow(5, dx, 1)?
                .contiguous()?
                .reshape((n, c, h / 2, w / 2))
        };
        let parts = haar([cell(0, 0)?, cell(0, 1)?, cell(1, 0)?, cell(1, 1)?])?;
        x = Tensor::cat(&parts, 1)?;
    }
    Ok(x)
}

/// The reverse of [`unshuffle`].
fn shuffle(x: &Tensor, factor: usize) -> Tensors<Tensor> {
    let mut x = x.clone();
    for _ in 0..factor.ilog2() {
        let (n, c, h, w) = x.dims4()?;
        if !c.is_multiple_of(4) {
            bail!("{c} channels are no blocks of 2x2");
        }
        let c = c / 4;
        let part = |at: usize| x.narrow(1, at * c, c)?.contiguous();
        let [a, b, below, d] = haar([part(0)?, part(1)?, part(2)?, part(3)?])?;
        let line = |left: &Tensor, right: &Tensor| {
            Tensor::stack(&[left, right], 4)?.reshape((n, c, h, 2 * w))
        };
        let (upper, lower) = (line(&a, &b)?, line(&below, &d)?);
        x = Tensor::stack(&[&upper, &lower], 3)?.reshape((n, c, 2 * h, 2 * w))?;
    }
    Ok(x)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug_nn::testing::{close, random};

    fn measured(factor: usize) -> (Unshuffle, Vec<Tensor>) {
        let pictures: Vec<Tensor> = (0..4)
            .map(|i| random(&format!("picture {i}"), &[1, 3, 16, 32]))
            .collect();
        let given = pictures.iter().map(|picture| Ok(picture.clone()));
        let unshuffle = Unshuffle::measured(factor, given, &Device::Cpu).unwrap();
        (unshuffle, pictures)
    }

    #[test]
    fn pixels_come_back_as_they_were() {
        for factor in [2, 4, 8] {
            let (unshuffle, pictures) = measured(factor);
            let x = Tensor::cat(&pictures, 0).unwrap();
            let z = unshuffle.encode(&x).unwrap();
            assert_eq!(z.dims(), [4, 3 * factor * factor, 16 / factor, 32 / factor]);
            close(&unshuffle.decode(&z).unwrap(), &x, 1e-5);
            let mean = z.mean_all().unwrap().to_scalar::<f32>().unwrap();
            let square = z.sqr().unwrap().mean_all().unwrap();
            let square = square.to_scalar::<f32>().unwrap();
            assert!(mean.abs() < 1e-4 && (square - 1.0).abs() < 1e-3);
        }
    }

    #[test]
    fn the_first_channels_are_means_of_blocks() {
        let x = random("x", &[1, 3, 8, 8]);
        let blocks = unshuffle(&x, 4).unwrap();
        // Each level scales the mean by 2, as an orthogonal transform does.
        let means = (x.avg_pool2d(4).unwrap() * 4.0).unwrap();
        close(&blocks.narrow(1, 0, 3).unwrap(), &means, 1e-5);
        let energy = |x: &Tensor| {
            let sum = x.sqr().unwrap().sum_all().unwrap();
            sum.to_scalar::<f32>().unwrap()
        };
        assert!((energy(&blocks) - energy(&x)).abs() < 1e-3 * energy(&x));
    }

    #[test]
    fn what_was_saved_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let (unshuffle, pictures) = measured(4);
        unshuffle.save(folder.path()).unwrap();
        let open = || {
            let component = Component::autoencoder(folder.path()).unwrap();
            assert!(Unshuffle::is(&component.config));
            Unshuffle::open(&component, &Device::Cpu)
        };
        let again = open().unwrap();
        let z = again.encode(&pictures[0]).unwrap();
        close(&z, &unshuffle.encode(&pictures[0]).unwrap(), 0.0);
        let config = folder.path().join("config.json");
        for (factor, expected) in [("3", "`factor` is 3"), ("8", "no tensor `mean`")] {
            let text = format!(r#"{{"_class_name": "PixelUnshuffle", "factor": {factor}}}"#);
            std::fs::write(&config, text).unwrap();
            let error = open().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn sides_that_do_not_fit_are_named() {
        let (unshuffle, _) = measured(4);
        let error = unshuffle.encode(&random("x", &[1, 3, 8, 6])).unwrap_err();
        assert!(error.to_string().contains("3x4"), "{error}");
    }
}
