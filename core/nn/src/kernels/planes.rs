//! Feature maps laid out for convolution: one run of pixels per channel, all images of the batch
//! behind each other, with zeros between the rows.
//!
//! In that layout a k×k window is a constant set of offsets from its first pixel, so a
//! convolution is a sum of shifted runs: no patches are gathered and no border is special. One
//! column of zeros serves as the right border of a row and the left border of the next, and the
//! rows of zeros below an image as the upper border of its successor.

use super::buffer;
use rayon::prelude::*;

/// Zeros behind the last pixel, so that whole vectors may be read there.
const SLACK: usize = 64;

/// A batch of feature maps in the padded layout.
pub(crate) struct Planes {
    data: Vec<f32>,
    geometry: Geometry,
    channels: usize,
}

/// Where a pixel of a padded run lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Images in the batch.
    pub batch: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Zeros on every side: (k - 1) / 2 for a k×k window.
    pub pad: usize,
}

impl Geometry {
    /// Distance between vertical neighbours.
    pub fn row(&self) -> usize {
        self.width + self.pad
    }

    /// Distance between the same pixel of successive images.
    pub fn image(&self) -> usize {
        (self.height + self.pad) * self.row()
    }

    /// Zeros before the first pixel.
    pub fn lead(&self) -> usize {
        self.pad * self.row() + self.pad
    }

    /// Length of the run that a window's first pixel may move over.
    pub fn span(&self) -> usize {
        self.batch * self.image()
    }

    /// Length of a channel's run, zeros included.
    pub fn stride(&self) -> usize {
        self.span() + 2 * self.lead() + SLACK
    }

    /// The offsets of a (2 pad + 1)² window, row by row.
    pub fn taps(&self) -> Vec<usize> {
        let side = 2 * self.pad + 1;
        (0..side * side)
            .map(|tap| tap / side * self.row() + tap % side)
            .collect()
    }
}

/// Row y of a phase of `source`, of shape `[batch, channels, 2 height, 2 width]`: phase 4c + 2i + j
/// holds the pixels (2y + i, 2x + j) of channel c.
pub(crate) fn read_phase(
    source: &[f32],
    channels: usize,
    Geometry { height, width, .. }: Geometry,
    [image, phase, y]: [usize; 3],
    row: &mut [f32],
) {
    let (channel, i, j) = (phase / 4, phase / 2 % 2, phase % 2);
    let start = ((image * channels + channel) * 2 * height + 2 * y + i) * 2 * width;
    let pairs = source[start..start + 2 * width].chunks_exact(2);
    for (to, pair) in row.iter_mut().zip(pairs) {
        *to = pair[j];
    }
}

impl Planes {
    /// Lays out `source`, of shape `[batch, channels, height, width]`.
    pub fn new(source: &[f32], channels: usize, geometry: Geometry) -> Self {
        let Geometry {
            batch,
            height,
            width,
            ..
        } = geometry;
        debug_assert_eq!(source.len(), batch * channels * height * width);
        Self::fill(channels, geometry, |channel, image, y, row| {
            let start = ((image * channels + channel) * height + y) * width;
            row.copy_from_slice(&source[start..start + width]);
        })
    }

    /// Lays out the four phases of `source`, of shape `[batch, channels, 2 height, 2 width]`, as
    /// [`read_phase`] numbers them.
    pub fn phases(source: &[f32], channels: usize, geometry: Geometry) -> Self {
        Self::fill(4 * channels, geometry, |phase, image, y, row| {
            read_phase(source, channels, geometry, [image, phase, y], row);
        })
    }

    fn fill(
        channels: usize,
        geometry: Geometry,
        write: impl Fn(usize, usize, usize, &mut [f32]) + Sync,
    ) -> Self {
        let mut data = buffer(channels * geometry.stride());
        let (lead, image, row) = (geometry.lead(), geometry.image(), geometry.row());
        data.par_chunks_mut(geometry.stride())
            .enumerate()
            .for_each(|(channel, run)| {
                for index in 0..geometry.batch {
                    for y in 0..geometry.height {
                        let start = lead + index * image + y * row;
                        write(channel, index, y, &mut run[start..start + geometry.width]);
                    }
                }
            });
        Planes {
            data,
            geometry,
            channels,
        }
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Where its pixels lie.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// A channel's run, zeros included.
    pub fn run(&self, channel: usize) -> &[f32] {
        let stride = self.geometry.stride();
        &self.data[channel * stride..(channel + 1) * stride]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_reads_its_neighbours_and_zeros_beyond_the_border() {
        let geometry = Geometry {
            batch: 2,
            height: 2,
            width: 3,
            pad: 1,
        };
        let source: Vec<f32> = (1..=12).map(|i| i as f32).collect();
        let planes = Planes::new(&source, 1, geometry);
        let window = |image: usize, y: usize, x: usize| -> Vec<f32> {
            let first = image * geometry.image() + y * geometry.row() + x;
            let read = |&tap: &usize| planes.run(0)[first + tap];
            geometry.taps().iter().map(read).collect()
        };
        // Image 1 is [[7, 8, 9], [10, 11, 12]].
        assert_eq!(window(1, 0, 0), [0., 0., 0., 0., 7., 8., 0., 10., 11.]);
        assert_eq!(window(1, 1, 2), [8., 9., 0., 11., 12., 0., 0., 0., 0.]);
        assert_eq!(window(0, 1, 1), [1., 2., 3., 4., 5., 6., 0., 0., 0.]);
    }

    #[test]
    fn phases_take_every_second_pixel() {
        let geometry = Geometry {
            batch: 1,
            height: 1,
            width: 2,
            pad: 0,
        };
        let planes = Planes::phases(&[1., 2., 3., 4., 5., 6., 7., 8.], 1, geometry);
        let firsts: Vec<_> = (0..4).map(|phase| &planes.run(phase)[..2]).collect();
        assert_eq!(firsts, [[1., 3.], [2., 4.], [5., 7.], [6., 8.]]);
    }
}
