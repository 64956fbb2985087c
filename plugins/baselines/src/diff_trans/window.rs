//! Attention inside of windows, of several sizes at once.

use super::Architecture;
use candle_core::{DType, Device, Result, Tensor, bail};
use diffaug_nn::{layers::Linear, ops, params::Scope};

/// Bound of the even distribution that the tables are drawn from: its deviation is 0.02, as in Swin.
const BOUND: f32 = 0.034_641;
/// What is added to the score of a key that a query does not see.
const UNSEEN: f64 = -1e30;

/// Attention whose heads are split in groups, each with windows of its own size.
#[derive(Clone)]
pub(super) struct WindowAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    groups: Vec<Group>,
    shifted: bool,
}

/// The heads of a window size.
#[derive(Clone)]
struct Group {
    window: usize,
    heads: usize,
    /// What is added to scores: for each relative place and head.
    places: Tensor,
}

impl WindowAttention {
    /// At a level; `shifted` by half a window.
    pub(super) fn new(
        mut scope: Scope<'_>,
        architecture: &Architecture,
        level: usize,
        shifted: bool,
    ) -> Result<Self> {
        let channels = architecture.channels(level);
        let windows = &architecture.windows;
        let heads = architecture.heads_at(level) / windows.len().max(1);
        // A bias of the keys would add the same to all scores of a query, of which the softmax sees nothing.
        let mut linear = |name| Linear::new(scope.child(name), channels, channels, name != "key");
        let [query, key, value, out] = ["query", "key", "value", "out"].map(&mut linear);
        let group = |(index, window): (usize, &usize)| {
            let places = (2 * window).saturating_sub(1).pow(2);
            let name = format!("places{index}");
            Ok(Group {
                window: *window,
                heads,
                places: scope.uniform(&name, &[places, heads], BOUND)?,
            })
        };
        Ok(WindowAttention {
            query: query?,
            key: key?,
            value: value?,
            out: out?,
            groups: windows
                .iter()
                .enumerate()
                .map(group)
                .collect::<Result<_>>()?,
            shifted,
        })
    }

    /// `x` asks, `context` answers: both `[n, rows, columns, channels]`, and so is the result.
    pub(super) fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        if x.dims() != context.dims() {
            bail!(
                "attention in windows needs maps of one shape, not {:?} and {:?}",
                x.dims(),
                context.dims()
            );
        }
        let (q, k) = (self.query.forward(x)?, self.key.forward(context)?);
        let v = self.value.forward(context)?;
        let channels = x.dim(3)? / self.groups.len().max(1);
        let attended = |(index, group): (usize, &Group)| {
            let part = |map: &Tensor| map.narrow(3, index * channels, channels);
            group.attend([&part(&q)?, &part(&k)?, &part(&v)?], self.shifted)
        };
        let parts = self.groups.iter().enumerate().map(attended);
        let parts = parts.collect::<Result<Vec<Tensor>>>()?;
        self.out.forward(&Tensor::cat(&parts, 3)?)
    }
}

impl Group {
    /// Attention of `[q, k, v]`, the group's channels of maps.
    fn attend(&self, [q, k, v]: [&Tensor; 3], shifted: bool) -> Result<Tensor> {
        let (batch, rows, columns, channels) = q.dims4()?;
        let windows = Windows {
            rows: Axis::new(rows, self.window, shifted),
            columns: Axis::new(columns, self.window, shifted),
        };
        let [q, k, v] = [q, k, v].map(|map| windows.cut(map, self.heads));
        let width = channels / self.heads.max(1);
        let q = (q? * (1.0 / (width as f64).sqrt()))?;
        let scores = q.matmul(&k?.t()?)?.to_dtype(DType::F32)?;
        let shape = scores.shape().clone();
        let added = self.added(&windows, q.device())?;
        let (several, heads, size, _) = added.dims4()?;
        let scores = scores.reshape(((), several * heads, size, size))?;
        let added = added.reshape((1, several * heads, size, size))?;
        let shares = ops::softmax(&scores.broadcast_add(&added)?, 3)?;
        let shares = shares.reshape(shape)?.to_dtype(q.dtype())?;
        windows.join(&shares.matmul(&v?)?, (batch, self.heads))
    }

    /// What is added to scores, `[1 or windows, heads, size, size]`, f32.
    fn added(&self, windows: &Windows, device: &Device) -> Result<Tensor> {
        let size = windows.size();
        let index = Tensor::new(windows.relative(self.window), device)?;
        let places = self.places.to_dtype(DType::F32)?.index_select(&index, 0)?;
        let places = places.reshape((size, size, self.heads))?;
        let places = places.permute((2, 0, 1))?.contiguous()?.unsqueeze(0)?;
        match windows.unseen(device)? {
            None => Ok(places),
            Some(unseen) => places.broadcast_add(&unseen),
        }
    }
}

/// How windows lie along an axis.
#[derive(Clone, Copy)]
struct Axis {
    /// Places of the map.
    side: usize,
    /// Places of a window.
    window: usize,
    /// Places that the windows are shifted by.
    shift: usize,
}

impl Axis {
    fn new(side: usize, window: usize, shifted: bool) -> Self {
        let window = window.min(side).max(1);
        let shift = if shifted && side > window {
            window / 2
        } else {
            0
        };
        Axis {
            side,
            window,
            shift,
        }
    }

    /// Windows.
    fn count(&self) -> usize {
        self.side.div_ceil(self.window)
    }

    /// Places of all windows.
    fn padded(&self) -> usize {
        self.count() * self.window
    }

    /// `x` with zeros for what is missing behind dimension `dim`, turned by the shift.
    fn turn(&self, x: &Tensor, dim: usize) -> Result<Tensor> {
        let x = x.pad_with_zeros(dim, 0, self.padded() - self.side)?;
        rotate(x, dim, self.shift)
    }

    /// The inverse of [`Axis::turn`].
    fn turn_back(&self, x: Tensor, dim: usize) -> Result<Tensor> {
        let back = (self.padded() - self.shift) % self.padded().max(1);
        rotate(x, dim, back)?.narrow(dim, 0, self.side)
    }

    /// Which window a place is in, for each place of the turned axis: one that is shifted out at one end is not
    /// that of the other end, though the turn puts both together. 0 stands for what the map lacks.
    fn windows(&self) -> Vec<u32> {
        let window = |turned: usize| {
            let place = (turned + self.shift) % self.padded();
            match place < self.side {
                true => 1 + ((place + self.window - self.shift) / self.window) as u32,
                false => 0,
            }
        };
        (0..self.padded()).map(window).collect()
    }
}

/// The places from `by` on, then those before.
fn rotate(x: Tensor, dim: usize, by: usize) -> Result<Tensor> {
    match by {
        0 => Ok(x),
        by => {
            let behind = x.narrow(dim, by, x.dim(dim)? - by)?;
            Tensor::cat(&[behind, x.narrow(dim, 0, by)?], dim)
        }
    }
}

/// The windows of a map.
struct Windows {
    rows: Axis,
    columns: Axis,
}

impl Windows {
    /// Places of a window.
    fn size(&self) -> usize {
        self.rows.window * self.columns.window
    }

    /// `[n, rows, columns, channels]` to `[n * windows * heads, size, width of a head]`.
    fn cut(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let (batch, _, _, channels) = x.dims4()?;
        let x = self.columns.turn(&self.rows.turn(x, 1)?, 2)?;
        let width = channels / heads.max(1);
        let [rows, columns] = [&self.rows, &self.columns].map(|axis| [axis.count(), axis.window]);
        let apart = [&[batch], &rows[..], &columns, &[heads, width]].concat();
        x.reshape(apart)?
            .permute([0, 1, 3, 5, 2, 4, 6])?
            .reshape(((), self.size(), width))
    }

    /// The inverse of [`Windows::cut`].
    fn join(&self, x: &Tensor, (batch, heads): (usize, usize)) -> Result<Tensor> {
        let width = x.dim(2)?;
        let (rows, columns) = (&self.rows, &self.columns);
        let counts = [batch, rows.count(), columns.count(), heads];
        let apart = [&counts[..], &[rows.window, columns.window, width]].concat();
        let map = x.reshape(apart)?.permute([0, 1, 4, 2, 5, 3, 6])?.reshape((
            batch,
            rows.padded(),
            columns.padded(),
            heads * width,
        ))?;
        rows.turn_back(columns.turn_back(map, 2)?, 1)
    }

    /// For each query and key of a window, the place of the key as seen from the query in a table of windows of
    /// side `most`.
    fn relative(&self, most: usize) -> Vec<u32> {
        let width = self.columns.window;
        let along = |from: usize, to: usize| from + most - 1 - to;
        let mut index = Vec::with_capacity(self.size().pow(2));
        for query in 0..self.size() {
            for key in 0..self.size() {
                let row = along(query / width, key / width);
                let column = along(query % width, key % width);
                index.push((row * (2 * most - 1) + column) as u32);
            }
        }
        index
    }

    /// What hides keys from queries: `[windows, 1, size, size]`, f32; `None` where all see all.
    fn unseen(&self, device: &Device) -> Result<Option<Tensor>> {
        let whole = |axis: &Axis| axis.shift == 0 && axis.padded() == axis.side;
        if whole(&self.rows) && whole(&self.columns) {
            return Ok(None);
        }
        let (rows, columns) = (self.rows.windows(), self.columns.windows());
        let several = self.columns.count() as u32 + 2;
        let mut numbers = Vec::with_capacity(rows.len() * columns.len());
        for rows in rows.chunks(self.rows.window) {
            for columns in columns.chunks(self.columns.window) {
                let both = rows
                    .iter()
                    .flat_map(|row| columns.iter().map(move |column| (row, column)));
                numbers.extend(both.map(|(row, column)| match (*row, *column) {
                    (0, _) | (_, 0) => 0,
                    (row, column) => row * several + column,
                }));
            }
        }
        let numbers = Tensor::from_vec(numbers, ((), self.size()), device)?;
        let seen = numbers.unsqueeze(2)?.broadcast_eq(&numbers.unsqueeze(1)?)?;
        let unseen = seen.to_dtype(DType::F32)?.affine(-UNSEEN, UNSEEN)?;
        Ok(Some(unseen.unsqueeze(1)?))
    }
}
