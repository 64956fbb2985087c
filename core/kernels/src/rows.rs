//! What is normalised row by row: groups of channels, the last dimension, probabilities.

use super::{
    activation::{Activation, Map, Run, exp, map_row},
    assemble, buffer, sum,
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Values below which a task is not worth its start.
const TASK: usize = 1 << 14;

/// Mean and 1 / sqrt(variance + epsilon) of a row, in two passes: one would lose the variance of
/// values that lie far from 0.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    /// The mean.
    pub mean: f32,
    /// 1 / sqrt(variance + epsilon).
    pub inverse: f32,
}

impl Moments {
    #[inline(always)]
    fn of<S: Simd>(simd: S, row: &[f32], epsilon: f32) -> Self {
        let count = row.len() as f64;
        let mean = (sums(simd, row, 0.0)[0] / count) as f32;
        let [_, squares] = sums(simd, row, mean);
        // Squares that overflow would make zeros of the row, and hide that it is none of numbers.
        let inverse = match squares.is_finite() {
            true => 1.0 / (squares / count + f64::from(epsilon)).sqrt(),
            false => f64::NAN,
        };
        Moments {
            mean,
            inverse: inverse as f32,
        }
    }
}

/// The sums of the distances of a row from `centre` and of their squares: in f32 within a piece, in
/// f64 across.
#[inline(always)]
fn sums<S: Simd>(simd: S, row: &[f32], centre: f32) -> [f64; 2] {
    let (vectors, rest) = S::as_simd_f32s(row);
    let zero = simd.splat_f32s(0.0);
    let centres = simd.splat_f32s(centre);
    let mut totals = [0.0; 2];
    for piece in vectors.chunks(256) {
        // Four sums side by side, for an addition takes four times as long as it keeps the unit.
        let mut sums = [[zero; 4]; 2];
        let (fours, ones) = piece.as_chunks::<4>();
        let ones = ones.iter().map(std::slice::from_ref);
        for group in fours.iter().map(|four| &four[..]).chain(ones) {
            for (lane, v) in group.iter().enumerate() {
                let distance = simd.sub_f32s(*v, centres);
                sums[0][lane] = simd.add_f32s(sums[0][lane], distance);
                sums[1][lane] = simd.mul_add_e_f32s(distance, distance, sums[1][lane]);
            }
        }
        for (total, [a, b, c, d]) in totals.iter_mut().zip(sums) {
            let sum = simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d));
            *total += f64::from(simd.reduce_sum_f32s(sum));
        }
    }
    for v in rest {
        let distance = f64::from(v - centre);
        totals[0] += distance;
        totals[1] += distance * distance;
    }
    totals
}

/// Normalisation of groups of channels: `[batch, channels, size]` values, of which `group`
/// channels in a row share mean and variance; an activation behind it.
#[derive(Clone, Copy)]
pub struct GroupNorm<'a, F> {
    /// The values.
    pub x: &'a [f32],
    /// Values of a channel of an image.
    pub size: usize,
    /// Channels of a group.
    pub group: usize,
    /// `[channels]` each.
    pub scale: &'a [f32],
    /// What is added in the end, of the length of `scale`.
    pub shift: &'a [f32],
    /// Added to the variance.
    pub epsilon: f32,
    /// What the results pass through.
    pub activation: F,
}

impl<F: Activation + Send> GroupNorm<'_, F> {
    fn row(&self) -> usize {
        self.group * self.size
    }

    /// The first channel of row `row`.
    fn first(&self, row: usize) -> usize {
        row * self.group % self.scale.len()
    }

    /// What multiplies and what is added to the values of a channel.
    fn affine(&self, channel: usize, moments: Moments) -> Affine<F> {
        let scale = self.scale[channel] * moments.inverse;
        Affine {
            scale,
            shift: self.shift[channel] - moments.mean * scale,
            activation: self.activation,
        }
    }

    /// The result, and the moments of every group.
    pub fn forward(&self) -> (Vec<f32>, Vec<Moments>) {
        assemble(self.x.len(), self.row(), |row, out| {
            Arch::new().dispatch(Group {
                norm: *self,
                row,
                out,
            })
        })
    }

    /// Gradients of x, scale and shift.
    pub fn backward(&self, moments: &[Moments], dy: &[f32]) -> [Vec<f32>; 3] {
        let mut dx = buffer(self.x.len());
        let row = self.row();
        let sums: Vec<Vec<(f32, f32)>> = dx
            .par_chunks_mut(row)
            .zip(self.x.par_chunks(row).zip(dy.par_chunks(row)))
            .zip(moments)
            .enumerate()
            .map(|(row, ((dx, (x, dy)), moments))| self.row_backward(row, *moments, x, dy, dx))
            .collect();
        let channels = self.scale.len();
        let (mut scale, mut shift) = (vec![0.0; channels], vec![0.0; channels]);
        for (row, sums) in sums.iter().enumerate() {
            for (channel, (by_scale, by_shift)) in sums.iter().enumerate() {
                scale[self.first(row) + channel] += by_scale;
                shift[self.first(row) + channel] += by_shift;
            }
        }
        [dx, scale, shift]
    }

    /// Writes the gradient of one group; returns those of scale and shift of its channels.
    fn row_backward(
        &self,
        row: usize,
        moments: Moments,
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
    ) -> Vec<(f32, f32)> {
        let Moments { mean, inverse } = moments;
        // First the gradient behind the activation, kept in `dx`.
        let channels = || (self.first(row)..).zip(x.chunks(self.size).zip(dy.chunks(self.size)));
        for (dx, (channel, (x, dy))) in dx.chunks_mut(self.size).zip(channels()) {
            map_row(&self.affine(channel, moments), [x, dy], [dx]);
        }
        let (mut pull, mut lean) = (0.0, 0.0);
        let mut sums = Vec::with_capacity(self.group);
        for (inner, (channel, (x, _))) in dx.chunks(self.size).zip(channels()) {
            let shift = sum([inner], |[v]| v);
            let scale = sum([inner, x], |[v, x]| v * (x - mean)) * f64::from(inverse);
            pull += shift * f64::from(self.scale[channel]);
            lean += scale * f64::from(self.scale[channel]);
            sums.push((scale as f32, shift as f32));
        }
        // Through mean and variance every value pulls at every other of its group.
        let count = x.len() as f64;
        let pull = (pull / count) as f32;
        let lean = (lean / count * f64::from(inverse)) as f32;
        for (dx, (channel, (x, _))) in dx.chunks_mut(self.size).zip(channels()) {
            let scale = self.scale[channel];
            Arch::new().dispatch(|| {
                for (dx, x) in dx.iter_mut().zip(x) {
                    *dx = inverse * (*dx * scale - pull - (x - mean) * lean);
                }
            });
        }
        sums
    }
}

/// The activation of x * scale + shift.
#[derive(Clone, Copy)]
struct Affine<F> {
    scale: f32,
    shift: f32,
    activation: F,
}

impl<F: Activation> Affine<F> {
    #[inline(always)]
    fn inner<S: Simd>(&self, simd: S, x: S::f32s) -> S::f32s {
        simd.mul_add_e_f32s(x, simd.splat_f32s(self.scale), simd.splat_f32s(self.shift))
    }
}

impl<F: Activation> Map<1, 1> for Affine<F> {
    #[inline(always)]
    fn at<S: Simd>(&self, simd: S, [x]: [S::f32s; 1]) -> [S::f32s; 1] {
        [self.activation.value(simd, self.inner(simd, x))]
    }
}

/// The gradient behind the activation.
impl<F: Activation> Map<2, 1> for Affine<F> {
    #[inline(always)]
    fn at<S: Simd>(&self, simd: S, [x, dy]: [S::f32s; 2]) -> [S::f32s; 1] {
        let slope = self.activation.slope(simd, self.inner(simd, x));
        [simd.mul_f32s(dy, slope)]
    }
}

/// A group on its way to its result.
struct Group<'a, 'b, F> {
    norm: GroupNorm<'a, F>,
    row: usize,
    out: &'b mut [f32],
}

impl<F: Activation + Send> WithSimd for Group<'_, '_, F> {
    type Output = Moments;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Moments {
        let Group { norm, row, out } = self;
        let x = &norm.x[row * norm.row()..][..norm.row()];
        let moments = Moments::of(simd, x, norm.epsilon);
        let channels = out.chunks_mut(norm.size).zip(x.chunks(norm.size));
        for (channel, (out, x)) in channels.enumerate() {
            let affine = norm.affine(norm.first(row) + channel, moments);
            let run = Run {
                f: &affine,
                sources: [x],
                outs: [out],
            };
            run.with_simd(simd);
        }
        moments
    }
}

/// Normalisation of rows of as many values as there are scales and shifts.
#[derive(Clone, Copy)]
pub struct LayerNorm<'a> {
    /// The values.
    pub x: &'a [f32],
    /// Factors, one for each place of a row.
    pub scale: &'a [f32],
    /// What is added in the end, of the length of `scale`.
    pub shift: &'a [f32],
    /// Added to the variance.
    pub epsilon: f32,
}

impl LayerNorm<'_> {
    /// Values that a task takes: whole rows.
    fn task(&self) -> usize {
        let width = self.scale.len();
        TASK.div_ceil(width) * width
    }

    /// The result, and the moments of every row.
    pub fn forward(&self) -> (Vec<f32>, Vec<Moments>) {
        assemble(self.x.len(), self.scale.len(), |row, out| {
            Arch::new().dispatch(Row {
                norm: *self,
                row,
                out,
            })
        })
    }

    /// Gradients of x, scale and shift.
    pub fn backward(&self, moments: &[Moments], dy: &[f32]) -> [Vec<f32>; 3] {
        let width = self.scale.len();
        let task = self.task();
        let mut dx = buffer(self.x.len());
        let sums: Vec<[Vec<f32>; 2]> = dx
            .par_chunks_mut(task)
            .zip(self.x.par_chunks(task).zip(dy.par_chunks(task)))
            .zip(moments.par_chunks(task / width))
            .map(|((dx, (x, dy)), moments)| {
                let mut sums = [vec![0.0; width], vec![0.0; width]];
                let rows = x.chunks(width).zip(dy.chunks(width)).zip(moments);
                for (dx, ((x, dy), moments)) in dx.chunks_mut(width).zip(rows) {
                    self.row_backward(*moments, [x, dy], dx, &mut sums);
                }
                sums
            })
            .collect();
        let mut total = [vec![0.0; width], vec![0.0; width]];
        for sums in &sums {
            for (total, sums) in total.iter_mut().zip(sums) {
                total.iter_mut().zip(sums).for_each(|(t, s)| *t += s);
            }
        }
        let [scale, shift] = total;
        [dx, scale, shift]
    }

    fn row_backward(
        &self,
        Moments { mean, inverse }: Moments,
        [x, dy]: [&[f32]; 2],
        dx: &mut [f32],
        [scale, shift]: &mut [Vec<f32>; 2],
    ) {
        let count = x.len() as f64;
        let pull = (sum([dy, self.scale], |[dy, s]| dy * s) / count) as f32;
        let lean = sum([dy, self.scale, x], |[dy, s, x]| dy * s * (x - mean)) / count;
        let lean = (lean * f64::from(inverse) * f64::from(inverse)) as f32;
        Arch::new().dispatch(|| {
            let sums = scale.iter_mut().zip(shift.iter_mut());
            let places = x.iter().zip(dy).zip(self.scale);
            for ((dx, (by_scale, by_shift)), ((x, dy), s)) in dx.iter_mut().zip(sums).zip(places) {
                let distance = x - mean;
                *dx = inverse * (dy * s - pull - distance * lean);
                *by_scale += dy * distance * inverse;
                *by_shift += dy;
            }
        });
    }
}

/// A row on its way to its result.
struct Row<'a, 'b> {
    norm: LayerNorm<'a>,
    row: usize,
    out: &'b mut [f32],
}

impl WithSimd for Row<'_, '_> {
    type Output = Moments;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Moments {
        let LayerNorm {
            x,
            scale,
            shift,
            epsilon,
        } = self.norm;
        let x = &x[self.row * scale.len()..][..scale.len()];
        let moments = Moments::of(simd, x, epsilon);
        let run = Run {
            f: &Normalise(moments),
            sources: [x, scale, shift],
            outs: [self.out],
        };
        run.with_simd(simd);
        moments
    }
}

struct Normalise(Moments);

impl Map<3, 1> for Normalise {
    #[inline(always)]
    fn at<S: Simd>(&self, simd: S, [x, scale, shift]: [S::f32s; 3]) -> [S::f32s; 1] {
        let Moments { mean, inverse } = self.0;
        let centred = simd.sub_f32s(x, simd.splat_f32s(mean));
        let normal = simd.mul_f32s(centred, simd.splat_f32s(inverse));
        [simd.mul_add_e_f32s(normal, scale, shift)]
    }
}

/// The largest value of a row; -inf of none.
pub fn largest(row: &[f32]) -> f32 {
    struct Largest<'a>(&'a [f32]);
    impl WithSimd for Largest<'_> {
        type Output = f32;
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            let (vectors, rest) = S::as_simd_f32s(self.0);
            let mut best = simd.splat_f32s(f32::NEG_INFINITY);
            for vector in vectors {
                best = simd.max_f32s(best, *vector);
            }
            rest.iter()
                .fold(simd.reduce_max_f32s(best), |a, b| a.max(*b))
        }
    }
    Arch::new().dispatch(Largest(row))
}

/// Multiplies a row and returns the largest of what it then holds; -inf of none.
pub fn scaled_largest(row: &mut [f32], factor: f32) -> f32 {
    struct ScaledLargest<'a>(&'a mut [f32], f32);
    impl WithSimd for ScaledLargest<'_> {
        type Output = f32;
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            let factor = simd.splat_f32s(self.1);
            let (vectors, rest) = S::as_mut_simd_f32s(self.0);
            // Several side by side: each waits for the one before it.
            let mut best = [simd.splat_f32s(f32::NEG_INFINITY); 4];
            for group in vectors.chunks_mut(4) {
                for (best, vector) in best.iter_mut().zip(group) {
                    *vector = simd.mul_f32s(*vector, factor);
                    *best = simd.max_f32s(*best, *vector);
                }
            }
            let [a, b, c, d] = best;
            let best = simd.max_f32s(simd.max_f32s(a, b), simd.max_f32s(c, d));
            rest.iter_mut()
                .fold(simd.reduce_max_f32s(best), |best, value| {
                    *value *= self.1;
                    best.max(*value)
                })
        }
    }
    Arch::new().dispatch(ScaledLargest(row, factor))
}

/// Turns every value v of a row into e^(v - shift) and returns their sum.
pub fn exponentials(row: &mut [f32], shift: f32) -> f32 {
    struct Exponentials<'a>(&'a mut [f32], f32);
    impl WithSimd for Exponentials<'_> {
        type Output = f32;
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            let shift = simd.splat_f32s(self.1);
            let (vectors, rest) = S::as_mut_simd_f32s(self.0);
            let mut total = simd.splat_f32s(0.0);
            for vector in vectors {
                *vector = exp(simd, simd.sub_f32s(*vector, shift));
                total = simd.add_f32s(total, *vector);
            }
            let mut total = simd.reduce_sum_f32s(total);
            if !rest.is_empty() {
                let values = simd.partial_load_f32s(rest);
                simd.partial_store_f32s(rest, exp(simd, simd.sub_f32s(values, shift)));
                total += rest.iter().sum::<f32>();
            }
            total
        }
    }
    Arch::new().dispatch(Exponentials(row, shift))
}

/// Multiplies a row.
pub fn scale(row: &mut [f32], factor: f32) {
    Arch::new().dispatch(|| row.iter_mut().for_each(|v| *v *= factor));
}

/// e^x of every row of `width` values, divided by their sum.
pub fn softmax(x: &[f32], width: usize) -> Vec<f32> {
    let mut out = x.to_vec();
    out.par_chunks_mut(width)
        .with_min_len(TASK.div_ceil(width))
        .for_each(|row| {
            let total = exponentials(row, largest(row));
            scale(row, 1.0 / total);
        });
    out
}

/// The gradient of the input of [`softmax`], given its result.
pub fn softmax_backward(y: &[f32], dy: &[f32], width: usize) -> Vec<f32> {
    let mut out = buffer(y.len());
    out.par_chunks_mut(width)
        .zip(y.par_chunks(width).zip(dy.par_chunks(width)))
        .with_min_len(TASK.div_ceil(width))
        .for_each(|(dx, (y, dy))| {
            let mean = sum([y, dy], |[y, dy]| y * dy) as f32;
            Arch::new().dispatch(|| {
                for (dx, (y, dy)) in dx.iter_mut().zip(y.iter().zip(dy)) {
                    *dx = y * (dy - mean);
                }
            });
        });
    out
}
