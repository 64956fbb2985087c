//! Convolution of any stride, padding, dilation and number of groups, and its transpose, as
//! products of the weights with the matrix of all windows.
//!
//! That matrix, a row for each input channel and tap and a column for each place of the window, is
//! never built: its panels are read out of the feature map when a product needs them. A transposed
//! convolution is the gradient of a convolution with respect to its input and the reverse, so
//! three routines serve both: [`Windows::correlate`], [`Windows::scatter`] and
//! [`Windows::weight_gradient`].

use super::{
    buffer,
    matrix::{self, Left, Product, Right, Rows, Start, multiply, multiply_block},
    strided::Planes,
};
use rayon::prelude::*;
use std::ops::Range;

/// Columns of the window matrix that [`Windows::scatter`] computes before it adds them up.
const COLUMNS: usize = 256;
/// Rows of the window matrix that one task of [`Windows::scatter`] takes, about.
const ROWS: usize = 144;

/// Where the windows of a convolution lie: pairs are vertical, horizontal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Images.
    pub batch: usize,
    /// Channels of the feature map.
    pub inputs: usize,
    /// Channels of the result.
    pub outputs: usize,
    /// Parts that channels are cut into.
    pub groups: usize,
    /// Size of the feature map that windows move over.
    pub size: [usize; 2],
    /// Number of places that a window takes.
    pub places: [usize; 2],
    /// Size of a window.
    pub kernel: [usize; 2],
    /// Pixels from one place to the next.
    pub stride: [usize; 2],
    /// Zeros on either side.
    pub padding: [usize; 2],
    /// Pixels from one tap to the next.
    pub dilation: [usize; 2],
}

impl Windows {
    /// The windows of a convolution with 1×1 taps, which moves over all pixels as if they were one
    /// row.
    pub fn pointwise(batch: usize, [inputs, outputs]: [usize; 2], area: usize) -> Self {
        Windows {
            batch,
            inputs,
            outputs,
            groups: 1,
            size: [1, area],
            places: [1, area],
            kernel: [1; 2],
            stride: [1; 2],
            padding: [0; 2],
            dilation: [1; 2],
        }
    }

    /// Whether the matrix of windows is the feature map itself.
    pub(super) fn is_plain(&self) -> bool {
        let free = self.stride == [1; 2] && self.padding == [0; 2];
        free && self.kernel == [1; 2] && self.size == self.places
    }

    fn area(&self) -> usize {
        self.size[0] * self.size[1]
    }

    fn count(&self) -> usize {
        self.places[0] * self.places[1]
    }

    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Input channels of a group.
    fn group_inputs(&self) -> usize {
        self.inputs / self.groups
    }

    /// Output channels of a group.
    fn group_outputs(&self) -> usize {
        self.outputs / self.groups
    }

    /// Rows of a group's window matrix: what a place is summed over.
    fn depth(&self) -> usize {
        self.group_inputs() * self.taps()
    }

    /// The window matrix of a group of one image, `x` being that group's channels.
    fn matrix<'a>(&'a self, x: &'a [f32]) -> Matrix<'a> {
        Matrix { windows: self, x }
    }

    /// Convolves: `x` is `[batch, inputs, size]`, `weight` `[outputs, inputs / groups, kernel]`,
    /// `bias` empty or `[outputs]`; the result is `[batch, outputs, places]`.
    pub fn correlate(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        match Planes::new(self) {
            Some(planes) => planes.correlate(x, weight, bias),
            _ => self.multiply(x, weight, bias),
        }
    }

    /// [`Windows::correlate`] as a product of matrices.
    pub(super) fn multiply(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let (outputs, depth) = (self.group_outputs(), self.depth());
        let mut out = buffer(self.batch * self.outputs * self.count());
        if out.is_empty() {
            return out;
        }
        let inputs = x.chunks_exact(self.group_inputs() * self.area());
        let products = inputs.zip(out.chunks_exact_mut(outputs * self.count()));
        let products = products.enumerate().map(|(at, (x, out))| {
            let group = at % self.groups;
            Product {
                left: Left {
                    data: &weight[group * outputs * depth..][..outputs * depth],
                    row: depth,
                    depth: 1,
                },
                right: self.matrix(x),
                start: match bias {
                    [] => Start::Zero,
                    bias => Start::Rows(&bias[group * outputs..]),
                },
                out,
            }
        });
        multiply(products.collect());
        out
    }

    /// The transpose of [`Windows::correlate`], its gradient with respect to `x`: every value of
    /// `dy`, of shape `[batch, outputs, places]`, is spread over its window. `bias`, empty or
    /// `[inputs]`, is where the result starts.
    pub fn scatter(&self, dy: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let mut out = buffer(self.batch * self.inputs * self.area());
        if out.is_empty() {
            return out;
        }
        let (inputs, outputs) = (self.group_inputs(), self.group_outputs());
        if self.is_plain() {
            self.scatter_plain(dy, weight, bias, &mut out);
            return out;
        }
        let channels = (ROWS / self.taps()).clamp(1, inputs);
        let groups = out.chunks_exact_mut(inputs * self.area()).enumerate();
        let tasks: Vec<(usize, usize, &mut [f32])> = groups
            .flat_map(|(group, out)| {
                let parts = out.chunks_mut(channels * self.area()).enumerate();
                parts.map(move |(part, out)| (group, part * channels, out))
            })
            .collect();
        tasks.into_par_iter().for_each(|(at, first, out)| {
            let group = at % self.groups;
            if let Some(bias) = bias.get(group * inputs + first..) {
                let planes = out.chunks_exact_mut(self.area());
                planes.zip(bias).for_each(|(plane, bias)| plane.fill(*bias));
            }
            let weight = &weight[group * outputs * self.depth()..][first * self.taps()..];
            let dy = &dy[at * outputs * self.count()..][..outputs * self.count()];
            self.scatter_channels(dy, weight, out);
        });
        out
    }

    /// [`Windows::scatter`] where no two windows overlap and none leaves the feature map.
    fn scatter_plain(&self, dy: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
        let (inputs, outputs, area) = (self.group_inputs(), self.group_outputs(), self.area());
        let products = dy.chunks_exact(outputs * area);
        let products = products
            .zip(out.chunks_exact_mut(inputs * area))
            .enumerate();
        let products = products.map(|(at, (dy, out))| {
            let group = at % self.groups;
            Product {
                left: Left {
                    data: &weight[group * outputs * inputs..][..outputs * inputs],
                    row: 1,
                    depth: inputs,
                },
                right: Rows {
                    data: dy,
                    depth: outputs,
                    columns: area,
                    stride: area,
                },
                start: match bias {
                    [] => Start::Zero,
                    bias => Start::Rows(&bias[group * inputs..]),
                },
                out,
            }
        });
        multiply(products.collect());
    }

    /// [`Windows::scatter`] of one image and group to the channels of `out`; `weight` begins with
    /// the first of them.
    fn scatter_channels(&self, dy: &[f32], weight: &[f32], out: &mut [f32]) {
        let rows = out.len() / self.area() * self.taps();
        let left = Left {
            data: weight,
            row: 1,
            depth: self.depth(),
        };
        let right = Rows {
            data: dy,
            depth: self.group_outputs(),
            columns: self.count(),
            stride: self.count(),
        };
        let step = COLUMNS.next_multiple_of(matrix::width());
        let mut sums = buffer(rows * step);
        for first in (0..self.count()).step_by(step) {
            let columns = first..(first + step).min(self.count());
            let target = (&mut sums[..], step);
            multiply_block(
                left,
                &right,
                (0..right.depth, columns.clone()),
                target,
                false,
            );
            let taps = sums.chunks_exact(step).enumerate();
            for (row, sums) in taps {
                let plane = &mut out[row / self.taps() * self.area()..][..self.area()];
                self.segments(row % self.taps(), columns.clone(), |segment| {
                    let from = &sums[segment.place - first..][..segment.count];
                    let to = plane[segment.pixel..].iter_mut().step_by(self.stride[1]);
                    to.zip(from).for_each(|(to, from)| *to += from);
                });
            }
        }
    }

    /// The gradient of [`Windows::correlate`] with respect to the weights, in their shape.
    pub fn weight_gradient(&self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let (outputs, depth, count) = (self.group_outputs(), self.depth(), self.count());
        let mut gradient = buffer(self.outputs * depth);
        if self.batch == 0 || gradient.is_empty() {
            return gradient;
        }
        let images = x.chunks_exact(self.inputs * self.area());
        let images = images.zip(dy.chunks_exact(self.outputs * count));
        for (image, (x, dy)) in images.enumerate() {
            let groups = x.chunks_exact(self.group_inputs() * self.area());
            let groups = groups.zip(dy.chunks_exact(outputs * count));
            let products = groups.zip(gradient.chunks_exact_mut(outputs * depth));
            let products = products.map(|((x, dy), out)| Product {
                left: Left {
                    data: dy,
                    row: count,
                    depth: 1,
                },
                right: Turned(self.matrix(x)),
                start: if image == 0 { Start::Zero } else { Start::Kept },
                out,
            });
            multiply(products.collect());
        }
        gradient
    }

    /// Calls `visit` for every run of `places` in which the pixel under `tap` lies on the feature
    /// map: successive places see pixels that are the horizontal stride apart.
    #[inline(always)]
    fn segments(&self, tap: usize, places: Range<usize>, mut visit: impl FnMut(Segment)) {
        let [height, width] = self.size;
        let shift = |axis: usize, index: usize| {
            (index * self.dilation[axis]) as isize - self.padding[axis] as isize
        };
        let down = shift(0, tap / self.kernel[1]);
        let across = shift(1, tap % self.kernel[1]);
        // The places of a row whose pixel is on the map: 0 <= place * stride + across < width.
        let stride = self.stride[1] as isize;
        let columns = self.places[1] as isize;
        let ceil = |value: isize| (value + stride - 1).div_euclid(stride).clamp(0, columns);
        let (left, right) = (ceil(-across), ceil(width as isize - across));
        if left >= right || places.is_empty() {
            return;
        }
        let (left, right) = (left as usize, right as usize);
        let rows = places.start / self.places[1]..=(places.end - 1) / self.places[1];
        for row in rows {
            let y = (row * self.stride[0]) as isize + down;
            if y < 0 || y >= height as isize {
                continue;
            }
            let begin = row * self.places[1];
            let start = (begin + left).max(places.start);
            let end = (begin + right).min(places.end);
            if start < end {
                let x = ((start - begin) * self.stride[1]) as isize + across;
                visit(Segment {
                    place: start,
                    count: end - start,
                    pixel: y as usize * width + x as usize,
                });
            }
        }
    }
}

/// Places of a window in a row, and the pixel that the first of them sees.
struct Segment {
    place: usize,
    count: usize,
    pixel: usize,
}

/// The matrix of windows: a row for each channel and tap, a column for each place.
struct Matrix<'a> {
    windows: &'a Windows,
    x: &'a [f32],
}

impl Matrix<'_> {
    fn plane(&self, row: usize) -> &[f32] {
        let area = self.windows.area();
        &self.x[row / self.windows.taps() * area..][..area]
    }
}

impl Right for Matrix<'_> {
    fn depth(&self) -> usize {
        self.windows.depth()
    }

    fn columns(&self) -> usize {
        self.windows.count()
    }

    fn panel<'a>(
        &'a self,
        first: usize,
        width: usize,
        depths: Range<usize>,
        scratch: &'a mut [f32],
    ) -> &'a [f32] {
        let windows = self.windows;
        let places = first..(first + width).min(windows.count());
        let rows = depths.len();
        for (row, to) in depths.zip(scratch.chunks_exact_mut(width)) {
            let plane = self.plane(row);
            to.fill(0.0);
            windows.segments(row % windows.taps(), places.clone(), |segment| {
                let to = &mut to[segment.place - first..][..segment.count];
                match windows.stride[1] {
                    1 => to.copy_from_slice(&plane[segment.pixel..][..segment.count]),
                    stride => {
                        let from = plane[segment.pixel..].iter().step_by(stride);
                        to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                    }
                }
            });
        }
        &scratch[..rows * width]
    }
}

/// The same with a row for each place.
struct Turned<'a>(Matrix<'a>);

// Rows and columns change places.
#[allow(clippy::misnamed_getters)]
impl Right for Turned<'_> {
    fn depth(&self) -> usize {
        self.0.columns()
    }

    fn columns(&self) -> usize {
        self.0.depth()
    }

    fn panel<'a>(
        &'a self,
        first: usize,
        width: usize,
        depths: Range<usize>,
        scratch: &'a mut [f32],
    ) -> &'a [f32] {
        let windows = self.0.windows;
        let count = width.min(self.columns() - first);
        let (rows, end) = (depths.len(), depths.end);
        // In pieces that stay in the L1 cache while they are filled column by column.
        let pieces = depths.step_by(64).zip(scratch.chunks_mut(64 * width));
        for (start, piece) in pieces {
            let places = start..end.min(start + 64);
            piece[..places.len() * width].fill(0.0);
            for column in 0..count {
                let plane = self.0.plane(first + column);
                let tap = (first + column) % windows.taps();
                windows.segments(tap, places.clone(), |segment| {
                    let from = plane[segment.pixel..].iter().step_by(windows.stride[1]);
                    let to = piece[(segment.place - start) * width..].chunks_exact_mut(width);
                    let pairs = to.zip(from).take(segment.count);
                    pairs.for_each(|(to, from)| to[column] = *from);
                });
            }
        }
        &scratch[..rows * width]
    }
}
