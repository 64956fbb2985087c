//! What cameras and files do to an image: blur, noise and JPEG, in this order.
//!
//! Synthetic images are smoother than real ones and were never compressed. A segmenter that is to learn
//! lesions must not learn that, so these take the difference away. The mask stays as it is.

use super::{AugmentOptions, byte};
use crate::{data::Image, image::gaussian_blur, rng};
use ::image::{
    ExtendedColorType, ImageFormat,
    codecs::jpeg::{JpegEncoder, PixelDensity},
};
use rand::RngExt;

/// What was drawn for one image; `None` is off.
pub(super) struct Artifacts {
    /// Standard deviation of the blur in pixels.
    blur: Option<f32>,
    /// Standard deviation of the noise in grey levels, and the stream of its values.
    noise: Option<(f32, rng::Rng)>,
    /// Quality of JPEG, 1 to 100.
    pub(super) jpeg: Option<u8>,
}

impl Artifacts {
    /// Each of the three draws from a stream of its own that branches off `rng`, which stays as it is: so
    /// none of them changes what anything else draws.
    pub(super) fn draw(options: &AugmentOptions, rng: &rng::Rng) -> Self {
        // Stream 0 is that of `rng` itself.
        let branch = |stream: u64| {
            let mut own = rng.clone();
            own.set_stream(stream);
            let wanted = own.random_bool(options.artifacts);
            wanted.then_some(own)
        };
        let upto = |own: &mut rng::Rng, most: f64| own.random_range(0.0..=most) as f32;
        Artifacts {
            blur: (branch(1).filter(|_| options.blur > 0.0))
                .map(|mut own| upto(&mut own, options.blur)),
            noise: (branch(2).filter(|_| options.noise > 0.0))
                .map(|mut own| (upto(&mut own, options.noise), own)),
            jpeg: (branch(3).zip(options.jpeg))
                .map(|(mut own, lowest)| own.random_range(lowest..=100)),
        }
    }

    pub(super) fn apply(self, image: &mut Image) {
        if let Some(sigma) = self.blur {
            blur(image, sigma);
        }
        if let Some((deviation, rng)) = self.noise {
            noise(image, deviation, rng);
        }
        if let Some(quality) = self.jpeg {
            compress(image, quality);
        }
    }
}

/// Blurs every channel by a Gaussian of `sigma` pixels.
fn blur(image: &mut Image, sigma: f32) {
    let (width, height) = (image.width() as usize, image.height() as usize);
    for channel in 0..3 {
        let values = image.pixels().iter().skip(channel).step_by(3);
        let values: Vec<f32> = values.map(|&value| f32::from(value)).collect();
        let blurred = gaussian_blur(&values, width, height, sigma);
        let pixels = image.bytes_mut().iter_mut().skip(channel).step_by(3);
        for (pixel, value) in pixels.zip(blurred) {
            *pixel = byte(value);
        }
    }
}

/// Adds Gaussian noise to every channel of every pixel, each on its own.
fn noise(image: &mut Image, deviation: f32, mut rng: rng::Rng) {
    for values in image.bytes_mut().chunks_mut(2) {
        // Two independent values at a time, by Box and Muller.
        let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * rng.random::<f32>()).sin_cos();
        for (value, turn) in values.iter_mut().zip([sin, cos]) {
            *value = byte(f32::from(*value) + deviation * radius * turn);
        }
    }
}

/// Writes the image as JPEG and reads it back. One that JPEG cannot hold (a side above 65,535 pixels)
/// stays as it is.
pub(super) fn compress(image: &mut Image, quality: u8) {
    let (width, height) = image.size();
    let mut file = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut file, quality);
    encoder.set_pixel_density(PixelDensity::default());
    let written = encoder.encode(image.pixels(), width, height, ExtendedColorType::Rgb8);
    let read = ::image::load_from_memory_with_format(&file, ImageFormat::Jpeg);
    if let (Ok(()), Ok(read)) = (written, read) {
        let read = read.into_rgb8();
        if read.dimensions() == (width, height) {
            image.bytes_mut().copy_from_slice(read.as_raw());
        }
    }
}
