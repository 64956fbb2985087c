//! Real Fourier transforms of feature maps, row by row and then column by column.

use super::buffer;
use rayon::prelude::*;
use realfft::{ComplexToReal, FftError, RealFftPlanner, RealToComplex};
use rustfft::{Fft, FftDirection, FftPlanner, num_complex::Complex};
use std::sync::Arc;

/// Values that one task takes at least.
const TASK: usize = 1 << 13;

/// Maps of real values, and their spectra of `height` × (`width` / 2 + 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows of a map and of its spectrum.
    pub height: usize,
    /// Columns of a map.
    pub width: usize,
}

impl Size {
    /// Columns of a spectrum.
    pub fn half(self) -> usize {
        self.width / 2 + 1
    }

    fn map(self) -> usize {
        self.height * self.width
    }

    fn spectrum(self) -> usize {
        self.height * self.half()
    }

    /// Whether column `x` of a spectrum stands for two, itself and its conjugate.
    pub fn doubled(self, x: usize) -> bool {
        x != 0 && 2 * x != self.width
    }

    fn maps_of_a_task(self) -> usize {
        TASK.div_ceil(self.map())
    }
}

/// What spectra are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// Where a column stands for itself.
    pub single: f32,
    /// Where it stands for two.
    pub double: f32,
}

impl Factors {
    fn of(self, size: Size, x: usize) -> f32 {
        if size.doubled(x) {
            self.double
        } else {
            self.single
        }
    }
}

/// Room that one task uses again and again.
struct Room {
    /// A spectrum, column by column.
    turned: Vec<Complex<f32>>,
    /// A row of it.
    half: Vec<Complex<f32>>,
    /// A row of the map.
    row: Vec<f32>,
    scratch: Vec<Complex<f32>>,
}

impl Room {
    fn new(size: Size, scratch: usize) -> Self {
        let zeros = |length| vec![Complex::new(0.0, 0.0); length];
        Room {
            turned: zeros(size.spectrum()),
            half: zeros(size.half()),
            row: buffer(size.width),
            scratch: zeros(scratch),
        }
    }
}

struct Forward {
    size: Size,
    rows: Arc<dyn RealToComplex<f32>>,
    columns: Arc<dyn Fft<f32>>,
    factors: Factors,
}

impl Forward {
    /// The spectrum of `map`, in two parts.
    fn run(
        &self,
        room: &mut Room,
        map: &[f32],
        re: &mut [f32],
        im: &mut [f32],
    ) -> Result<(), FftError> {
        let Size { height, width } = self.size;
        for (y, row) in map.chunks_exact(width).enumerate() {
            room.row.copy_from_slice(row);
            self.rows
                .process_with_scratch(&mut room.row, &mut room.half, &mut room.scratch)?;
            let column = room.turned.iter_mut().skip(y).step_by(height);
            column.zip(&room.half).for_each(|(to, v)| *to = *v);
        }
        self.columns
            .process_with_scratch(&mut room.turned, &mut room.scratch);
        for (x, column) in room.turned.chunks_exact(height).enumerate() {
            let factor = self.factors.of(self.size, x);
            let places = (x..).step_by(self.size.half());
            for (at, v) in places.zip(column) {
                (re[at], im[at]) = (v.re * factor, v.im * factor);
            }
        }
        Ok(())
    }
}

/// The spectra of `maps` times `factors`: real parts, then imaginary parts.
pub fn forward(maps: &[f32], size: Size, factors: Factors) -> Result<Vec<f32>, FftError> {
    let plan = Forward {
        size,
        rows: RealFftPlanner::new().plan_fft_forward(size.width),
        columns: FftPlanner::new().plan_fft(size.height, FftDirection::Forward),
        factors,
    };
    let scratch = plan.rows.get_scratch_len();
    let scratch = scratch.max(plan.columns.get_inplace_scratch_len());
    let mut out = buffer(2 * (maps.len() / size.map()) * size.spectrum());
    let (re, im) = out.split_at_mut(maps.len() / size.map() * size.spectrum());
    re.par_chunks_mut(size.spectrum())
        .zip(im.par_chunks_mut(size.spectrum()))
        .zip(maps.par_chunks(size.map()))
        .with_min_len(size.maps_of_a_task())
        .try_for_each_init(
            || Room::new(size, scratch),
            |room, ((re, im), map)| plan.run(room, map, re, im),
        )?;
    Ok(out)
}

struct Inverse {
    size: Size,
    rows: Arc<dyn ComplexToReal<f32>>,
    columns: Arc<dyn Fft<f32>>,
    factors: Factors,
}

impl Inverse {
    fn run(
        &self,
        room: &mut Room,
        re: &[f32],
        im: &[f32],
        map: &mut [f32],
    ) -> Result<(), FftError> {
        let Size { height, width } = self.size;
        for (x, column) in room.turned.chunks_exact_mut(height).enumerate() {
            let factor = self.factors.of(self.size, x);
            let places = (x..).step_by(self.size.half());
            for (at, v) in places.zip(column) {
                *v = Complex::new(re[at] * factor, im[at] * factor);
            }
        }
        self.columns
            .process_with_scratch(&mut room.turned, &mut room.scratch);
        for (y, row) in map.chunks_exact_mut(width).enumerate() {
            let column = room.turned.iter().skip(y).step_by(height);
            for (x, (to, v)) in room.half.iter_mut().zip(column).enumerate() {
                // A column that is its own conjugate is real; what else it holds has no effect.
                let im = if self.size.doubled(x) { v.im } else { 0.0 };
                *to = Complex::new(v.re, im);
            }
            self.rows
                .process_with_scratch(&mut room.half, row, &mut room.scratch)?;
        }
        Ok(())
    }
}

/// The maps whose spectra are those given, times `factors`, without division by their number of
/// values.
pub fn inverse(re: &[f32], im: &[f32], size: Size, factors: Factors) -> Result<Vec<f32>, FftError> {
    let plan = Inverse {
        size,
        rows: RealFftPlanner::new().plan_fft_inverse(size.width),
        columns: FftPlanner::new().plan_fft(size.height, FftDirection::Inverse),
        factors,
    };
    let scratch = plan.rows.get_scratch_len();
    let scratch = scratch.max(plan.columns.get_inplace_scratch_len());
    let mut out = buffer(re.len() / size.spectrum() * size.map());
    out.par_chunks_mut(size.map())
        .zip(re.par_chunks(size.spectrum()))
        .zip(im.par_chunks(size.spectrum()))
        .with_min_len(size.maps_of_a_task())
        .try_for_each_init(
            || Room::new(size, scratch),
            |room, ((map, re), im)| plan.run(room, re, im, map),
        )?;
    Ok(out)
}
