//! How Inception-v3 is laid out: its convolutions, branches and blocks, under the names of torchvision.

/// A convolution that is normalised and bent.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    /// Where its tensors are, below its block.
    pub name: &'static str,
    /// How many channels it makes.
    pub outputs: usize,
    /// Height and width of the window.
    pub window: [usize; 2],
    /// Pixels from one window to the next.
    pub stride: usize,
    /// Zeros above and below, left and right.
    pub padding: [usize; 2],
}

/// A convolution that keeps height and width.
const fn same(name: &'static str, outputs: usize, window: [usize; 2]) -> Plan {
    Plan {
        name,
        outputs,
        window,
        stride: 1,
        padding: [window[0] / 2, window[1] / 2],
    }
}

/// A convolution of 3x3 windows inside the map.
const fn inside(name: &'static str, outputs: usize, stride: usize) -> Plan {
    Plan {
        name,
        outputs,
        window: [3; 2],
        stride,
        padding: [0; 2],
    }
}

/// What comes before the convolutions of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pooling {
    /// Nothing.
    None,
    /// The mean of 3x3 windows, without what lies beyond the border.
    Mean,
    /// The maximum of such.
    Peak,
    /// The maximum of 3x3 windows inside the map, two apart.
    Halving,
}

/// How a branch of a block is laid out.
pub(super) struct Layout {
    /// What comes first.
    pub pooling: Pooling,
    /// Convolutions one after the other.
    pub trunk: Vec<Plan>,
    /// Convolutions of what comes of these, side by side.
    pub ends: Vec<Plan>,
}

fn plain(trunk: &[Plan]) -> Layout {
    pooled(Pooling::None, trunk)
}

fn pooled(pooling: Pooling, trunk: &[Plan]) -> Layout {
    Layout {
        pooling,
        trunk: trunk.to_vec(),
        ends: Vec::new(),
    }
}

fn forked(trunk: &[Plan], ends: [Plan; 2]) -> Layout {
    Layout {
        ends: ends.to_vec(),
        ..plain(trunk)
    }
}

/// Blocks at an eighth of the side; the pooled branch has `pool` channels.
fn block_a(pool: usize) -> Vec<Layout> {
    vec![
        plain(&[same("branch1x1", 64, [1, 1])]),
        plain(&[
            same("branch5x5_1", 48, [1, 1]),
            same("branch5x5_2", 64, [5, 5]),
        ]),
        plain(&[
            same("branch3x3dbl_1", 64, [1, 1]),
            same("branch3x3dbl_2", 96, [3, 3]),
            same("branch3x3dbl_3", 96, [3, 3]),
        ]),
        pooled(Pooling::Mean, &[same("branch_pool", pool, [1, 1])]),
    ]
}

/// To a sixteenth.
fn block_b() -> Vec<Layout> {
    vec![
        plain(&[inside("branch3x3", 384, 2)]),
        plain(&[
            same("branch3x3dbl_1", 64, [1, 1]),
            same("branch3x3dbl_2", 96, [3, 3]),
            inside("branch3x3dbl_3", 96, 2),
        ]),
        pooled(Pooling::Halving, &[]),
    ]
}

/// Blocks at a sixteenth; `narrow` channels pass the windows of seven.
fn block_c(narrow: usize) -> Vec<Layout> {
    vec![
        plain(&[same("branch1x1", 192, [1, 1])]),
        plain(&[
            same("branch7x7_1", narrow, [1, 1]),
            same("branch7x7_2", narrow, [1, 7]),
            same("branch7x7_3", 192, [7, 1]),
        ]),
        plain(&[
            same("branch7x7dbl_1", narrow, [1, 1]),
            same("branch7x7dbl_2", narrow, [7, 1]),
            same("branch7x7dbl_3", narrow, [1, 7]),
            same("branch7x7dbl_4", narrow, [7, 1]),
            same("branch7x7dbl_5", 192, [1, 7]),
        ]),
        pooled(Pooling::Mean, &[same("branch_pool", 192, [1, 1])]),
    ]
}

/// To a thirty-second.
fn block_d() -> Vec<Layout> {
    vec![
        plain(&[
            same("branch3x3_1", 192, [1, 1]),
            inside("branch3x3_2", 320, 2),
        ]),
        plain(&[
            same("branch7x7x3_1", 192, [1, 1]),
            same("branch7x7x3_2", 192, [1, 7]),
            same("branch7x7x3_3", 192, [7, 1]),
            inside("branch7x7x3_4", 192, 2),
        ]),
        pooled(Pooling::Halving, &[]),
    ]
}

/// Blocks at a thirty-second, which differ in their pooling.
fn block_e(pooling: Pooling) -> Vec<Layout> {
    vec![
        plain(&[same("branch1x1", 320, [1, 1])]),
        forked(
            &[same("branch3x3_1", 384, [1, 1])],
            [
                same("branch3x3_2a", 384, [1, 3]),
                same("branch3x3_2b", 384, [3, 1]),
            ],
        ),
        forked(
            &[
                same("branch3x3dbl_1", 448, [1, 1]),
                same("branch3x3dbl_2", 384, [3, 3]),
            ],
            [
                same("branch3x3dbl_3a", 384, [1, 3]),
                same("branch3x3dbl_3b", 384, [3, 1]),
            ],
        ),
        pooled(pooling, &[same("branch_pool", 192, [1, 1])]),
    ]
}

pub(super) fn blocks() -> [(&'static str, Vec<Layout>); 11] {
    [
        ("Mixed_5b", block_a(32)),
        ("Mixed_5c", block_a(64)),
        ("Mixed_5d", block_a(64)),
        ("Mixed_6a", block_b()),
        ("Mixed_6b", block_c(128)),
        ("Mixed_6c", block_c(160)),
        ("Mixed_6d", block_c(160)),
        ("Mixed_6e", block_c(192)),
        ("Mixed_7a", block_d()),
        ("Mixed_7b", block_e(Pooling::Mean)),
        ("Mixed_7c", block_e(Pooling::Peak)),
    ]
}

/// The convolutions before the blocks; before the fourth and after the last there is a maximum.
pub(super) const STEM: [Plan; 5] = [
    inside("Conv2d_1a_3x3", 32, 2),
    inside("Conv2d_2a_3x3", 32, 1),
    same("Conv2d_2b_3x3", 64, [3, 3]),
    same("Conv2d_3b_1x1", 80, [1, 1]),
    inside("Conv2d_4a_3x3", 192, 1),
];
/// How many of them come before the first maximum.
pub(super) const BEFORE: usize = 3;
