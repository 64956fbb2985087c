//! The discrete Poisson equation with a guidance field: Pérez, Gangnet, Blake, "Poisson Image
//! Editing" (SIGGRAPH 2003), Eq. 7, solved by conjugate gradients.
//!
//! Sought is `f` on a set of cells such that its differences between neighbours are, in the least
//! squares sense, those of a guidance field, and that it meets given values around the set. Beyond
//! the border there is no neighbour and so no condition (Neumann).
//!
//! Whatever puts one picture into another uses it: pasted lesions, and the seam around painted ones.

/// What to solve, in one colour channel, on a grid of `width` x `height` cells. Each slice has one
/// entry a cell, row by row.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Whether a cell's value is sought; the others' are given.
    pub sought: &'a [bool],
    /// Cells that are treated as if they lay beyond the border; none of them is sought.
    pub outside: &'a [bool],
    /// The given values, and where to start for the sought ones.
    pub values: &'a [f32],
}

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest residual of any cell's equation, in grey levels.
    pub tolerance: f64,
    /// Most steps of the solver, should the tolerance not be met before.
    pub max_iterations: u32,
}

/// The answer, and how it was reached.
#[derive(Clone, Debug)]
pub struct Solution {
    /// All cells, the given ones unchanged.
    pub values: Vec<f32>,
    /// Steps that it took.
    pub iterations: u32,
    /// Largest residual that is left, in grey levels.
    pub residual: f64,
}

/// The grid with a rim of one cell, so that every stencil is the same four offsets.
struct Padded {
    stride: usize,
    height: usize,
    /// 1 for a sought cell, else 0.
    sought: Vec<f32>,
    /// Number of neighbours of a sought cell inside the grid, else 0.
    degree: Vec<f32>,
}

impl Padded {
    fn new(problem: &Problem<'_>) -> Self {
        let (width, height) = (problem.width, problem.height);
        let stride = width + 2;
        let mut sought = vec![0.0; stride * (height + 2)];
        let mut degree = sought.clone();
        for y in 0..height {
            for x in 0..width {
                if problem.sought[y * width + x] {
                    let at = (y + 1) * stride + x + 1;
                    sought[at] = 1.0;
                    degree[at] = problem.neighbours(x, y).count() as f32;
                }
            }
        }
        Padded {
            stride,
            height,
            sought,
            degree,
        }
    }

    /// `out = A p`, where `p` is 0 outside the sought cells.
    fn apply(&self, p: &[f32], out: &mut [f32]) {
        let s = self.stride;
        for y in 1..=self.height {
            let row = y * s;
            // Equal lengths and no branches let the compiler use vector instructions.
            let here = &p[row..row + s];
            let (up, down) = (&p[row - s..row], &p[row + s..row + 2 * s]);
            let (sought, degree) = (&self.sought[row..row + s], &self.degree[row..row + s]);
            let out = &mut out[row..row + s];
            for x in 1..s - 1 {
                let around = here[x - 1] + here[x + 1] + up[x] + down[x];
                out[x] = degree[x] * here[x] - sought[x] * around;
            }
        }
    }
}

impl Problem<'_> {
    /// The indices of a cell's neighbours within the border.
    fn neighbours(&self, x: usize, y: usize) -> impl Iterator<Item = usize> {
        [
            (x.wrapping_sub(1), y),
            (x + 1, y),
            (x, y.wrapping_sub(1)),
            (x, y + 1),
        ]
        .into_iter()
        .filter(|&(x, y)| x < self.width && y < self.height)
        .map(|(x, y)| y * self.width + x)
        .filter(|&i| !self.outside[i])
    }
}

/// Sums of products in a fixed order. Eight separate sums, so that no addition has to wait for
/// the one before it.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0f32; 8];
    let mut total = 0.0;
    for (a, b) in a.chunks(256).zip(b.chunks(256)) {
        let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
        let rest: f32 = a8
            .remainder()
            .iter()
            .zip(b8.remainder())
            .map(|(a, b)| a * b)
            .sum();
        for (a, b) in a8.zip(b8) {
            for i in 0..8 {
                sums[i] += a[i] * b[i];
            }
        }
        total += f64::from(rest) + sums.iter().map(|&s| f64::from(s)).sum::<f64>();
        sums = [0.0; 8];
    }
    total
}

fn largest(values: &[f32]) -> f64 {
    f64::from(values.iter().fold(0f32, |max, v| max.max(v.abs())))
}

/// `b - A x`: for every sought cell the sum over its neighbours of the wanted difference less the
/// difference that is there.
fn residual(
    problem: &Problem<'_>,
    guidance: impl Fn(usize, usize) -> f32,
    stride: usize,
) -> Vec<f32> {
    let (width, height) = (problem.width, problem.height);
    let mut out = vec![0.0; stride * (height + 2)];
    for y in 0..height {
        for x in 0..width {
            let p = y * width + x;
            if problem.sought[p] {
                out[(y + 1) * stride + x + 1] = problem
                    .neighbours(x, y)
                    .map(|q| guidance(p, q) - (problem.values[p] - problem.values[q]))
                    .sum();
            }
        }
    }
    out
}

/// Solves for the sought cells; `guidance(p, q)` is the wanted difference of the values at the
/// neighbouring cells `p` and `q` (indices `y * width + x`) and changes sign when they are swapped.
/// A set without any given neighbour keeps its mean.
///
/// # Panics
/// When a slice of the problem has fewer than `width * height` entries.
pub fn solve(
    problem: &Problem<'_>,
    guidance: impl Fn(usize, usize) -> f32,
    limits: Limits,
) -> Solution {
    let grid = Padded::new(problem);
    let mut r = residual(problem, guidance, grid.stride);
    let mut change = vec![0.0f32; r.len()];
    let mut p = r.clone();
    let mut ap = vec![0.0f32; r.len()];
    let mut rr = dot(&r, &r);
    let mut iterations = 0;
    while iterations < limits.max_iterations && largest(&r) > limits.tolerance {
        grid.apply(&p, &mut ap);
        let curvature = dot(&p, &ap);
        // Only a set without any given neighbour is singular, and there only by rounding.
        if curvature <= 0.0 {
            break;
        }
        let alpha = (rr / curvature) as f32;
        for i in 0..r.len() {
            change[i] += alpha * p[i];
            r[i] -= alpha * ap[i];
        }
        let next = dot(&r, &r);
        let beta = (next / rr) as f32;
        rr = next;
        for (p, r) in p.iter_mut().zip(&r) {
            *p = r + beta * *p;
        }
        iterations += 1;
    }
    let width = problem.width;
    let values = (0..width * problem.height)
        .map(|i| problem.values[i] + change[(i / width + 1) * grid.stride + i % width + 1])
        .collect();
    Solution {
        values,
        iterations,
        residual: largest(&r),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        tolerance: 1e-4,
        max_iterations: 5000,
    };
    const SIDE: usize = 40;

    fn disc() -> Vec<bool> {
        let inside = |i: usize| {
            let (x, y) = ((i % SIDE) as f64 - 19.0, (i / SIDE) as f64 - 20.0);
            x.hypot(y) < 15.0
        };
        (0..SIDE * SIDE).map(inside).collect()
    }

    fn field(f: impl Fn(f32, f32) -> f32) -> Vec<f32> {
        (0..SIDE * SIDE)
            .map(|i| f((i % SIDE) as f32, (i / SIDE) as f32))
            .collect()
    }

    /// Forgets the sought cells' values and solves for them.
    fn recover(truth: &[f32], sought: &[bool], guidance: impl Fn(usize, usize) -> f32) -> f32 {
        let values: Vec<f32> = truth
            .iter()
            .zip(sought)
            .map(|(&v, &s)| if s { 77.0 } else { v })
            .collect();
        let problem = Problem {
            width: SIDE,
            height: SIDE,
            sought,
            outside: &[false; SIDE * SIDE],
            values: &values,
        };
        let solution = solve(&problem, guidance, LIMITS);
        assert!(
            solution.residual <= LIMITS.tolerance,
            "{}",
            solution.residual
        );
        assert!(solution.iterations > 0);
        let errors = solution
            .values
            .iter()
            .zip(truth)
            .map(|(a, b)| (a - b).abs());
        errors.fold(0.0, f32::max)
    }

    #[test]
    fn without_guidance_harmonic_functions_come_back() {
        // Discretely harmonic as well: the five-point stencil is exact for these.
        let ramp = field(|x, y| 20.0 + 3.0 * x - 1.5 * y);
        let saddle = field(|x, y| 100.0 + 0.1 * ((x - 19.0).powi(2) - (y - 20.0).powi(2)));
        for truth in [ramp, saddle] {
            assert!(recover(&truth, &disc(), |_, _| 0.0) < 1e-2);
        }
    }

    #[test]
    fn its_own_gradient_gives_the_image_back() {
        let truth = field(|x, y| 128.0 + 60.0 * (0.7 * x).sin() * (0.4 * y).cos());
        let error = recover(&truth, &disc(), |p, q| truth[p] - truth[q]);
        assert!(error < 1e-2, "{error}");
    }

    #[test]
    fn the_border_of_the_grid_asks_for_nothing() {
        // A ramp along x, fixed at the left and at the right only, reaches the top and bottom rows.
        let truth = field(|x, _| 5.0 * x);
        let sought: Vec<bool> = (0..SIDE * SIDE)
            .map(|i| (1..SIDE - 1).contains(&(i % SIDE)))
            .collect();
        assert!(recover(&truth, &sought, |_, _| 0.0) < 5e-2);
    }

    #[test]
    fn a_set_without_given_neighbours_keeps_its_mean() {
        let truth = field(|x, y| 3.0 * x + y);
        let problem = Problem {
            width: SIDE,
            height: SIDE,
            sought: &[true; SIDE * SIDE],
            outside: &[false; SIDE * SIDE],
            values: &[50.0; SIDE * SIDE],
        };
        let solution = solve(&problem, |p, q| truth[p] - truth[q], LIMITS);
        let mean = |v: &[f32]| v.iter().sum::<f32>() / v.len() as f32;
        assert!((mean(&solution.values) - 50.0).abs() < 0.1);
        let step = solution.values[SIDE * 7 + 9] - solution.values[SIDE * 7 + 8];
        assert!((step - 3.0).abs() < 0.05, "{step}");
    }
}
