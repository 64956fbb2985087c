//! Convolution of any stride, padding and dilation with the tiles of [`super::conv`].
//!
//! Rows that lie as far apart as windows do form planes of their own, and every column of a window
//! has its copy of them that holds what it sees. In a plane every tap sees successive pixels from
//! successive places, so that the sum is again one of shifted runs.

use super::{
    buffer,
    conv::{Band, lines, sum, write_rows},
    conv_packed::Packed,
    strips::{Geometry, SLACK, Strip},
    windows::Windows,
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Outputs below which a block would be half empty.
const OUTPUTS: usize = 8;
/// Lines below a strip, beyond which too many are copied for it.
const REACH: usize = 8;

/// Inputs and their values beyond which a product of matrices is faster for 1×1 taps.
const POINTWISE: [usize; 2] = [64, 1 << 18];

/// A convolution's windows on planes.
pub(super) struct Planes<'a> {
    windows: &'a Windows,
    /// Of the places; windows reach as many lines further as there are zeros below.
    geometry: Geometry,
    /// Remainders of the rows that some tap sees.
    rows: Vec<usize>,
}

impl<'a> Planes<'a> {
    /// For windows for which this is faster than reading them one by one.
    pub fn new(windows: &'a Windows) -> Option<Self> {
        let ([stride, _], [dilation, _]) = (windows.stride, windows.dilation);
        let mut rows: Vec<usize> = (0..windows.kernel[0])
            .map(|row| row * dilation % stride)
            .collect();
        rows.sort_unstable();
        rows.dedup();
        let geometry = Geometry {
            batch: windows.batch,
            height: windows.places[0],
            width: windows.places[1],
            pad: windows.kernel[0].saturating_sub(1) * dilation / stride,
            margin: 0,
        };
        let [inputs, values] = POINTWISE;
        let small = windows.inputs <= inputs && windows.inputs * geometry.width <= values;
        if windows.is_plain() && !small {
            return None;
        }
        let pays = windows.groups == 1 && windows.outputs >= OUTPUTS && geometry.pad <= REACH;
        pays.then_some(Planes {
            windows,
            geometry,
            rows,
        })
    }

    fn planes(&self) -> usize {
        self.rows.len() * self.windows.kernel[1]
    }

    /// What [`Windows::correlate`] does.
    pub fn correlate(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let windows = self.windows;
        let (geometry, width) = (self.geometry, windows.places[1]);
        let mut out = buffer(windows.batch * windows.outputs * windows.places[0] * width);
        if out.is_empty() {
            return out;
        }
        let [k, l] = windows.kernel;
        let packed = Packed::<f32>::new([windows.outputs, windows.inputs, k * l], weight);
        let lines = lines(geometry, &packed, self.planes());
        let strips = geometry.strips(lines).into_iter();
        let most = strips.map(|strip| strip.lines).max().unwrap_or(0);
        let stride = self.stride(most);
        let fill = |strip| self.fill(x, strip, stride);
        let taps = self.taps(stride);
        let write = |out: &mut [&mut [f32]], band: &Band<'_>| write_rows(out, band, width, bias);
        sum(
            geometry,
            lines,
            (&taps, fill),
            &packed,
            (&mut out, 1),
            write,
        );
        out
    }

    /// The offset of every tap, with planes `stride` apart.
    fn taps(&self, stride: usize) -> Vec<usize> {
        let [k, l] = self.windows.kernel;
        let ([down, _], [dilation, _]) = (self.windows.stride, self.windows.dilation);
        let taps = (0..k * l).map(|tap| {
            let y = tap / l * dilation;
            let row = self.rows.binary_search(&(y % down)).unwrap_or(0);
            (row * l + tap % l) * stride + y / down * self.geometry.row()
        });
        taps.collect()
    }

    /// Distance between planes of `lines` lines of places.
    fn stride(&self, lines: usize) -> usize {
        let size = (lines + self.geometry.pad) * self.geometry.row() + SLACK;
        // Planes a multiple of a page apart would fight for the same places of the cache.
        let stride = size.next_multiple_of(16);
        stride + 16 * usize::from(stride.is_multiple_of(256))
    }

    /// A run for each input, plane after plane, and the distance between them.
    fn fill(&self, x: &[f32], strip: Strip, stride: usize) -> (Vec<f32>, usize) {
        let size = self.windows.inputs * self.planes() * stride;
        let mut data = vec![0.0; size];
        let runs = data.par_chunks_exact_mut(stride).enumerate();
        // One alone is little work.
        runs.with_min_len(16).for_each(|(run, to)| {
            let (channel, plane) = (run / self.planes(), run % self.planes());
            let [columns, dilation] = [self.windows.kernel[1], self.windows.dilation[1]];
            Arch::new().dispatch(Plane {
                planes: self,
                x,
                strip,
                channel,
                row: self.rows[plane / columns],
                column: plane % columns * dilation,
                to,
            });
        });
        (data, self.planes() * stride)
    }
}

/// A strip of a plane, to be copied to `to`.
struct Plane<'a> {
    planes: &'a Planes<'a>,
    x: &'a [f32],
    strip: Strip,
    channel: usize,
    /// The first pixel, on the map with its padding.
    row: usize,
    column: usize,
    /// Zeros.
    to: &'a mut [f32],
}

impl WithSimd for Plane<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) {
        let to = std::mem::take(&mut self.to);
        let geometry = self.planes.geometry;
        let lines = to.chunks_exact_mut(geometry.row());
        let lines = lines.take(self.strip.lines + geometry.pad);
        for (line, to) in (self.strip.line..).zip(lines) {
            self.read(line, to);
        }
    }
}

impl Plane<'_> {
    /// Copies what is on the map of a line, counted from the strip's first image.
    #[inline(always)]
    fn read(&self, line: usize, to: &mut [f32]) {
        let windows = self.planes.windows;
        let Windows {
            inputs,
            size: [height, width],
            stride: [down, across],
            padding,
            ..
        } = *windows;
        let period = self.planes.geometry.period();
        let image = self.strip.image + line / period;
        let y = (line % period * down + self.row).checked_sub(padding[0]);
        let Some(y) = y.filter(|y| image < windows.batch && *y < height) else {
            return;
        };
        // The first place whose pixel is not left of the map, and that pixel.
        let first = padding[1].saturating_sub(self.column).div_ceil(across);
        let pixel = first * across + self.column - padding[1];
        if first >= to.len() || pixel >= width {
            return;
        }
        let plane = (image * inputs + self.channel) * height;
        let from = &self.x[(plane + y) * width..][pixel..width];
        let to = &mut to[first..];
        match across {
            1 => {
                let count = to.len().min(from.len());
                to[..count].copy_from_slice(&from[..count]);
            }
            2 => {
                let (pairs, rest) = from.as_chunks::<2>();
                to.iter_mut()
                    .zip(pairs)
                    .for_each(|(to, pair)| *to = pair[0]);
                if let Some((to, from)) = to.get_mut(pairs.len()).zip(rest.first()) {
                    *to = *from;
                }
            }
            _ => {
                let from = from.iter().step_by(across);
                to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::conv_weights::tests::{assert_close, values};

    /// Windows that leave the map on either side, dilated ones, strides beyond the window.
    #[test]
    fn planes_agree_with_windows_read_one_by_one() {
        for (size, kernel, stride, padding, dilation) in [
            ([21, 34], [3, 3], [2, 2], [1, 1], [1, 1]),
            ([16, 16], [4, 4], [2, 2], [1, 1], [1, 1]),
            ([9, 40], [7, 3], [4, 1], [3, 0], [1, 2]),
            ([12, 11], [1, 2], [3, 3], [0, 2], [1, 5]),
            ([2, 3], [3, 3], [1, 2], [2, 5], [1, 1]),
            ([130, 9], [3, 3], [1, 1], [4, 4], [4, 4]),
        ] {
            let places = [0, 1].map(|axis| {
                let reach = dilation[axis] * (kernel[axis] - 1) + 1;
                (size[axis] + 2 * padding[axis] - reach) / stride[axis] + 1
            });
            let windows = Windows {
                batch: 3,
                inputs: 45,
                outputs: 19,
                groups: 1,
                size,
                places,
                kernel,
                stride,
                padding,
                dilation,
            };
            let x = values(3 * 45 * size[0] * size[1]);
            let w = values(19 * 45 * kernel[0] * kernel[1]);
            let planes = Planes::new(&windows).unwrap();
            let ours = planes.correlate(&x, &w, &w[..19]);
            assert_close(&ours, &windows.multiply(&x, &w, &w[..19]));
        }
    }
}
