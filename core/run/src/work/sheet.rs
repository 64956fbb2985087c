//! The contact sheet of a run: what was there, what was asked for, what was painted, what the
//! validator said. A picture shows faults that no figure does.

use super::{
    candidates::{Candidates, PlannedCandidate},
    judging,
    overlap::StopFlag,
    painting::{self, How, Stages},
};
use crate::{layout, manifest::Synthesis, store::Store};
use diffaug::{
    Image, Mask, Result, files,
    image::{overlay_image, resize_image, resize_mask, save_image},
};

/// How many accepted and how many rejected candidates are shown.
pub const SHOWN: (usize, usize) = (6, 4);
/// How every PNG ends.
const END: &[u8] = b"IEND\xae\x42\x60\x82";
/// Candidates beside each other.
const COLUMNS: u32 = 2;
/// Tiles of a candidate.
const TILES: u32 = 4;
/// Most bytes of a sheet, which has some million pixels.
const MOST_BYTES: u64 = 64 << 20;
/// Side of a tile in pixels.
const TILE: u32 = 160;
/// Between candidates beside each other.
const GAP: u32 = 16;
/// Width of the frame around a tile.
const FRAME: u32 = 4;

const WANTED: [u8; 3] = [64, 220, 255];
const FOUND: [u8; 3] = [255, 220, 0];
const ACCEPTED: [u8; 3] = [40, 170, 80];
const REJECTED: [u8; 3] = [210, 50, 50];
const PLAIN: [u8; 3] = [32, 32, 32];

/// Whether the sheet is there and whole.
pub fn is_drawn(store: &Store) -> bool {
    let bytes = files::read(&store.path(layout::CONTACT_SHEET), MOST_BYTES);
    bytes.is_ok_and(|bytes| bytes.ends_with(END))
}

/// Draws `contact-sheet.png`; tiles of a candidate: background, wanted mask, painted image, verdict (wanted mask
/// and what the segmenter found, framed green when accepted, red when not).
///
/// The candidates are painted again, which gives the same images as before.
///
/// # Errors
/// When a stage fails or the file cannot be written.
pub fn draw(
    store: &Store,
    shown: Vec<u64>,
    candidates: &Candidates<'_>,
    stages: &Stages,
    targets: &[u8],
    options: &Synthesis,
    stop: &StopFlag<'_>,
) -> Result<()> {
    if shown.is_empty() {
        return Ok(());
    }
    let stride = TILES * TILE + GAP;
    let width = COLUMNS * stride - GAP;
    let height = (shown.len() as u32).div_ceil(COLUMNS) * TILE;
    let mut sheet = Image::new(width, height, vec![255; (width * height * 3) as usize])?;
    let shown: Vec<PlannedCandidate> = shown
        .into_iter()
        .filter_map(|index| {
            candidates
                .get(index, &stages.bank)
                .map(Result::ok)
                .transpose()
        })
        .collect::<Result<_>>()?;
    let all: Vec<&PlannedCandidate> = shown.iter().collect();
    let mut outcomes = Vec::new();
    let how = How::unseen(options);
    for some in all.chunks(options.batch as usize) {
        let painted = painting::paint(some, stages, how, stop)?;
        outcomes.extend(judging::verdicts(some, painted, stages, how, stop)?);
    }
    for ((place, candidate), outcome) in (0..).zip(all).zip(&outcomes) {
        let Some(image) = &outcome.image else {
            continue;
        };
        let verdict = &outcome.verdict;
        let found = found(candidate, image, stages, targets)?;
        let tiles = tiles(candidate, image, found.as_ref(), verdict.accepted)?;
        let (left, top) = (place % COLUMNS * stride, place / COLUMNS * TILE);
        for (column, tile) in (0..).zip(&tiles) {
            overlay_image(&mut sheet, tile.view(), left + column * TILE, top);
        }
    }
    save_image(sheet.view(), &store.path(layout::CONTACT_SHEET))
}

/// The target region that the segmenter (of several, the first) sees, where the validator has one.
fn found(
    candidate: &PlannedCandidate,
    image: &Image,
    stages: &Stages,
    targets: &[u8],
) -> Result<Option<Mask>> {
    use diffaug::{Segmenter, Silent, with_reporter};
    let Some(segmenter) = stages.judges.of(&candidate.source).first() else {
        return Ok(None);
    };
    let images = [image.view()];
    let found = with_reporter(&Silent, |reporter| {
        segmenter.segment((&images[..]).into(), reporter)
    })?;
    Ok(found.into_iter().next().map(|f| {
        let mut mask = f.mask;
        for label in mask.bytes_mut() {
            *label = u8::from(targets.contains(label));
        }
        mask
    }))
}

fn tiles(
    candidate: &PlannedCandidate,
    painted: &Image,
    found: Option<&Mask>,
    accepted: bool,
) -> Result<[Image; 4]> {
    let verdict = if accepted { ACCEPTED } else { REJECTED };
    let outlined: Vec<(&Mask, [u8; 3])> = [(&candidate.wanted, WANTED)]
        .into_iter()
        .chain(found.map(|mask| (mask, FOUND)))
        .collect();
    Ok([
        tile(&candidate.background, &[], PLAIN)?,
        tile(&white(&candidate.wanted)?, &[], PLAIN)?,
        tile(painted, &[], PLAIN)?,
        tile(painted, &outlined, verdict)?,
    ])
}

fn white(mask: &Mask) -> Result<Image> {
    let pixels = mask
        .labels()
        .iter()
        .flat_map(|&l| [255 * u8::from(l != 0); 3]);
    Image::new(mask.width(), mask.height(), pixels.collect())
}

/// An image fitted into a tile, with outlines of masks and a frame.
fn tile(image: &Image, outlines: &[(&Mask, [u8; 3])], frame: [u8; 3]) -> Result<Image> {
    let inner = TILE - 2 * FRAME;
    let scale = f64::from(inner) / f64::from(image.width().max(image.height()));
    let fit = |side: u32| ((f64::from(side) * scale).round() as u32).clamp(1, inner);
    let (width, height) = (fit(image.width()), fit(image.height()));
    let mut small = resize_image(image.view(), width, height);
    for (mask, color) in outlines {
        outline(&mut small, &resize_mask(mask.view(), width, height), *color);
    }
    let pixels = std::iter::repeat_n(frame, (TILE * TILE) as usize).flatten();
    let mut tile = Image::new(TILE, TILE, pixels.collect())?;
    let (x, y) = ((TILE - width) / 2, (TILE - height) / 2);
    overlay_image(&mut tile, small.view(), x, y);
    Ok(tile)
}

/// Colours the pixels of the mask that touch its outside.
fn outline(image: &mut Image, mask: &Mask, color: [u8; 3]) {
    let (width, height) = (mask.width() as usize, mask.height() as usize);
    let on = |x: usize, y: usize| mask.labels()[y * width + x] != 0;
    for y in 0..height {
        for x in 0..width {
            let inner = (x > 0 && y > 0 && x + 1 < width && y + 1 < height)
                && (on(x - 1, y) && on(x + 1, y) && on(x, y - 1) && on(x, y + 1));
            if on(x, y) && !inner {
                let at = 3 * (y * width + x);
                image.bytes_mut()[at..at + 3].copy_from_slice(&color);
            }
        }
    }
}
