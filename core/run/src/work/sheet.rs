//! The contact sheet of a run: what was there, what was asked for, what was painted, what the
//! validator said. A picture shows faults that no figure does.

use super::{
    candidates::{Candidates, PlannedCandidate},
    judging,
    overlap::StopFlag,
    painting::{self, How, Stages},
    tiles::{Outline, PLAIN, Tile, of_targets},
};
use crate::{layout, manifest::Synthesis, store::Store};
use diffaug::{
    Image, Mask, Result, files,
    image::{overlay_image, save_image},
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

const ACCEPTED: [u8; 3] = [40, 170, 80];
const REJECTED: [u8; 3] = [210, 50, 50];

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
    let first = found.into_iter().next();
    Ok(first.map(|found| of_targets(found.mask, targets)))
}

fn tiles(
    candidate: &PlannedCandidate,
    painted: &Image,
    found: Option<&Mask>,
    accepted: bool,
) -> Result<[Image; 4]> {
    let plain = Tile {
        side: TILE,
        frame: FRAME,
        color: PLAIN,
    };
    let verdict = Tile {
        color: if accepted { ACCEPTED } else { REJECTED },
        ..plain
    };
    let outlines: Vec<Outline<'_>> = [Outline::wanted(&candidate.wanted)]
        .into_iter()
        .chain(found.map(Outline::found))
        .collect();
    Ok([
        plain.of(&candidate.background, &[])?,
        plain.of(&white(&candidate.wanted)?, &[])?,
        plain.of(painted, &[])?,
        verdict.of(painted, &outlines)?,
    ])
}

fn white(mask: &Mask) -> Result<Image> {
    let pixels = mask
        .labels()
        .iter()
        .flat_map(|&l| [255 * u8::from(l != 0); 3]);
    Image::new(mask.width(), mask.height(), pixels.collect())
}
