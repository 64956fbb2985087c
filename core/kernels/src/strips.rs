//! Strips of feature maps laid out for convolution: for each channel some rows behind each other,
//! with zeros around.
//!
//! In that layout a k×k window is a constant set of offsets from its first pixel, so a convolution
//! is a sum of shifted runs: no patches are gathered and no border is special. One column of zeros
//! serves as the right border of a row and the left border of the next, and the lines of zeros
//! below an image as the upper border of its successor, so that a strip may hold several images.

use rayon::prelude::*;

/// Zeros behind the last pixel, so that whole vectors may be read there.
pub(super) const SLACK: usize = 64;

/// How images become lines: their rows, and behind each image as many lines of zeros as a window
/// reaches beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Images in the batch.
    pub batch: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Zeros on every side: (k - 1) / 2 for a k×k window.
    pub pad: usize,
    /// Zeros between the last column of a row and the first of the next.
    pub margin: usize,
}

impl Geometry {
    /// Distance between vertical neighbours.
    pub fn row(&self) -> usize {
        self.width + self.margin
    }

    /// Lines from one image to the next.
    pub fn period(&self) -> usize {
        self.height + self.pad
    }

    /// The offsets of a (2 pad + 1)² window, row by row.
    pub fn taps(&self) -> Vec<usize> {
        let side = 2 * self.pad + 1;
        (0..side * side)
            .map(|tap| tap / side * self.row() + tap % side)
            .collect()
    }

    /// Cuts the batch into strips of about `lines` lines: of whole images or of parts of one.
    pub fn strips(&self, lines: usize) -> Vec<Strip> {
        let mut strips = Vec::new();
        let images = (lines + self.pad) / self.period();
        if images > 0 {
            for image in (0..self.batch).step_by(images) {
                let count = images.min(self.batch - image);
                strips.push(Strip {
                    image,
                    line: 0,
                    lines: count * self.period() - self.pad,
                });
            }
            return strips;
        }
        for image in 0..self.batch {
            for line in (0..self.height).step_by(lines.max(1)) {
                strips.push(Strip {
                    image,
                    line,
                    lines: lines.max(1).min(self.height - line),
                });
            }
        }
        strips
    }
}

/// Successive lines of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strip {
    /// The image of the first line.
    pub image: usize,
    /// The first line, counted from that image's first row.
    pub line: usize,
    /// Number of lines.
    pub lines: usize,
}

impl Strip {
    /// The images that it holds rows of: which line of the strip each begins at, and how many rows
    /// there are.
    pub fn images(&self, geometry: Geometry) -> impl Iterator<Item = (usize, usize)> {
        let (first, last) = (self.line, self.line + self.lines);
        let period = geometry.period();
        (0..last.div_ceil(period)).map(move |image| {
            let start = (image * period).max(first);
            let end = (image * period + geometry.height).min(last);
            (start - first, end - start)
        })
    }
}

/// Feature maps as they lie in memory.
#[derive(Clone, Copy)]
pub struct Maps<'a> {
    data: &'a [f32],
    channels: usize,
    phases: bool,
}

impl<'a> Maps<'a> {
    /// `[batch, channels, height, width]`.
    pub fn new(data: &'a [f32], channels: usize) -> Self {
        Maps {
            data,
            channels,
            phases: false,
        }
    }

    /// The four phases of maps of shape `[batch, channels, 2 height, 2 width]`: channel 4c + 2i + j
    /// holds the pixels (2y + i, 2x + j) of channel c.
    pub fn phases(data: &'a [f32], channels: usize) -> Self {
        Maps {
            data,
            channels: 4 * channels,
            phases: true,
        }
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// A row of pixels; phases have none.
    pub fn row(&self, geometry: Geometry, image: usize, channel: usize, y: usize) -> &'a [f32] {
        debug_assert!(!self.phases);
        let Geometry { height, width, .. } = geometry;
        let start = ((image * self.channels + channel) * height + y) * width;
        &self.data[start..start + width]
    }

    fn read(&self, geometry: Geometry, image: usize, channel: usize, y: usize, to: &mut [f32]) {
        let Geometry { height, width, .. } = geometry;
        if !self.phases {
            to.copy_from_slice(self.row(geometry, image, channel, y));
            return;
        }
        let (i, j) = (channel / 2 % 2, channel % 2);
        let plane = (image * self.channels + channel) / 4;
        let start = (plane * 2 * height + 2 * y + i) * 2 * width;
        let pairs = self.data[start..start + 2 * width].chunks_exact(2);
        for (to, pair) in to.iter_mut().zip(pairs) {
            *to = pair[j];
        }
    }
}

/// A strip of some channels in the padded layout: a run for each channel.
pub struct Input {
    /// The runs.
    pub data: Vec<f32>,
    /// Distance between them.
    pub stride: usize,
    geometry: Geometry,
    lines: usize,
    halo: usize,
}

impl Input {
    /// Room for `channels` channels of strips of up to `lines` lines, with `halo` lines and
    /// columns of zeros or of neighbours before and after them.
    pub fn new(geometry: Geometry, channels: usize, lines: usize, halo: usize) -> Self {
        let size = (lines + 2 * halo) * geometry.row() + 2 * halo + SLACK;
        // Runs a multiple of a page apart would fight for the same places of the cache.
        let stride = size.next_multiple_of(16);
        let stride = stride + 16 * usize::from(stride.is_multiple_of(256));
        Input {
            data: vec![0.0; channels * stride],
            stride,
            geometry,
            lines,
            halo,
        }
    }

    /// Fills it with the channels of `maps` from `first` on.
    pub fn fill(&mut self, maps: Maps<'_>, first: usize, strip: Strip) {
        let (geometry, row) = (self.geometry, self.geometry.row());
        let (halo, period) = (self.halo, geometry.period());
        let most = self.lines;
        let runs = self.data.par_chunks_exact_mut(self.stride).enumerate();
        // One alone is little work.
        runs.with_min_len(16).for_each(|(channel, run)| {
            let lines = run[halo..].chunks_mut(row).take(most + 2 * halo);
            for (at, to) in lines.enumerate() {
                let to = &mut to[..geometry.width];
                // Counted from the first row of the strip's first image.
                let line = (strip.line + at).checked_sub(halo);
                let place = line.map(|line| (strip.image + line / period, line % period));
                match place {
                    Some((image, y))
                        if at < strip.lines + 2 * halo
                            && image < geometry.batch
                            && y < geometry.height =>
                    {
                        maps.read(geometry, image, first + channel, y, to);
                    }
                    _ => to.fill(0.0),
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry {
        batch: 2,
        height: 2,
        width: 3,
        pad: 1,
        margin: 1,
    };

    fn window(source: &[f32], strip: Strip, line: usize, x: usize) -> Vec<f32> {
        let mut input = Input::new(GEOMETRY, 1, 5, 1);
        input.data.fill(f32::NAN);
        for (at, value) in input.data.iter_mut().enumerate() {
            if at < 1 || at % GEOMETRY.row() == 0 {
                *value = 0.0;
            }
        }
        input.fill(Maps::new(source, 1), 0, strip);
        let first = line * GEOMETRY.row() + x;
        let read = |tap: usize| input.data[first + tap];
        GEOMETRY.taps().into_iter().map(read).collect()
    }

    #[test]
    fn a_window_reads_its_neighbours_and_zeros_beyond_the_border() {
        let source: Vec<f32> = (1..=12).map(|i| i as f32).collect();
        let whole = GEOMETRY.strips(100)[0];
        assert_eq!((whole.image, whole.line, whole.lines), (0, 0, 5));
        // Image 1 is [[7, 8, 9], [10, 11, 12]]; its first row is line 3.
        let zero = 0.0;
        assert_eq!(
            window(&source, whole, 3, 0),
            [zero, zero, zero, zero, 7., 8., zero, 10., 11.]
        );
        assert_eq!(
            window(&source, whole, 1, 1),
            [1., 2., 3., 4., 5., 6., zero, zero, zero]
        );
        // A part of an image sees the rows beside it.
        let parts = GEOMETRY.strips(1);
        assert_eq!(parts.len(), 4);
        assert_eq!(
            window(&source, parts[3], 0, 1),
            [7., 8., 9., 10., 11., 12., zero, zero, zero]
        );
    }

    #[test]
    fn strips_hold_every_row_once() {
        let geometry = Geometry {
            batch: 5,
            height: 7,
            ..GEOMETRY
        };
        for lines in [1, 3, 6, 7, 15, 100] {
            let mut rows = 0;
            for strip in geometry.strips(lines) {
                for (start, count) in strip.images(geometry) {
                    assert!(count > 0 && start + count <= strip.lines);
                    rows += count;
                }
            }
            assert_eq!(rows, 5 * 7, "{lines}");
        }
    }

    #[test]
    fn phases_take_every_second_pixel() {
        let geometry = Geometry {
            batch: 1,
            height: 1,
            width: 2,
            pad: 0,
            margin: 0,
        };
        let source = [1., 2., 3., 4., 5., 6., 7., 8.];
        let mut input = Input::new(geometry, 4, 1, 0);
        input.fill(Maps::phases(&source, 1), 0, geometry.strips(1)[0]);
        let firsts: Vec<&[f32]> = input
            .data
            .chunks(input.stride)
            .map(|run| &run[..2])
            .collect();
        assert_eq!(firsts, [[1., 3.], [2., 4.], [5., 7.], [6., 8.]]);
    }
}
