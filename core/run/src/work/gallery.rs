//! The gallery: a small picture of each of the first candidates, for the report. It shows what was painted also
//! of those that were turned down, whose images are not kept.

use super::{
    candidates::PlannedCandidate,
    tiles::{Outline, PLAIN, Tile, of_targets},
};
use diffaug::{
    Image, Result, Verdict,
    image::{encode_jpeg, overlay_image},
};

/// Tiles of a picture.
const TILES: u32 = 4;
/// Side of a tile in pixels.
const SIDE: u32 = 96;
/// Qualities of a picture, of 100: the first whose file is small enough is taken, or the last.
const QUALITIES: [u8; 4] = [80, 65, 50, 35];
/// Bytes of a picture that is small enough. Photographs take less at the first quality; noise does not.
const ENOUGH: usize = 12_000;

/// A candidate as the bytes of a JPEG file, four tiles beside each other: its background; the outline of what
/// is wanted on it; what was painted; the same with the outlines of what was wanted (cyan) and, where a
/// segmenter was asked, of what it found (yellow, dashed).
///
/// # Errors
/// When it cannot be drawn.
pub fn strip(
    candidate: &PlannedCandidate,
    painted: &Image,
    verdict: &Verdict,
    targets: &[u8],
) -> Result<Vec<u8>> {
    let found = verdict.found.as_ref().into_option();
    let found = found.map(|mask| of_targets(mask.clone(), targets));
    let wanted = || Outline::wanted(&candidate.wanted);
    let found = found.iter().map(|mask| Outline::found(mask).dashed());
    let judged: Vec<Outline<'_>> = [wanted()].into_iter().chain(found).collect();
    let tile = Tile {
        side: SIDE,
        frame: 0,
        color: PLAIN,
    };
    let tiles = [
        tile.of(&candidate.background, &[])?,
        tile.of(&candidate.background, &[wanted()])?,
        tile.of(painted, &[])?,
        tile.of(painted, &judged)?,
    ];
    let size = (TILES * SIDE, SIDE);
    let mut strip = Image::new(size.0, size.1, vec![0; (size.0 * size.1 * 3) as usize])?;
    for (column, tile) in (0..).zip(&tiles) {
        overlay_image(&mut strip, tile.view(), column * SIDE, 0);
    }
    encode(&strip)
}

/// The file of a picture, of lower quality where it would be too large.
fn encode(strip: &Image) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for quality in QUALITIES {
        bytes = encode_jpeg(strip.view(), quality)?;
        if bytes.len() <= ENOUGH {
            break;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::{
        Attributes, Mask, Prompt,
        image::open_image,
        prelude::{ROption, RString, RVec},
        rng,
    };
    use rand::RngExt;

    const TARGETS: [u8; 1] = [2];

    /// A mask of 64x48 pixels whose columns from `from` are of the class 2, the others of the class 1.
    fn mask(from: usize) -> Mask {
        let labels = (0..64 * 48).map(|i| 1 + u8::from(i % 64 >= from));
        Mask::new(64, 48, labels.collect()).unwrap()
    }

    fn candidate(background: Image) -> PlannedCandidate {
        PlannedCandidate {
            id: "a/0".to_owned(),
            source: "a".to_owned(),
            variant: 0,
            seed: 0,
            background,
            wanted: of_targets(mask(32), &TARGETS),
            label: mask(32),
            decoys: Vec::new(),
            attributes: Attributes::new(),
            prompt: Prompt {
                positive: "polyp".into(),
                negative: RString::new(),
                tags: RVec::new(),
            },
        }
    }

    fn verdict(found: Option<Mask>) -> Verdict {
        Verdict {
            accepted: true,
            score: 1.0,
            limit: ROption::RNone,
            fails_otherwise: false,
            classes: RVec::new(),
            reason: RString::new(),
            measures: Attributes::new(),
            found: found.into(),
        }
    }

    fn grey(value: u8) -> Image {
        Image::new(64, 48, vec![value; 64 * 48 * 3]).unwrap()
    }

    /// The picture as a viewer shows it.
    fn shown(strip: &[u8]) -> Image {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("strip.jpg");
        std::fs::write(&path, strip).unwrap();
        open_image(&path, 1 << 20).unwrap()
    }

    /// How many pixels of a tile are rather yellow, and how many rather cyan.
    fn lines(strip: &Image, tile: u32) -> [usize; 2] {
        let of = |is: fn(i32, i32, i32) -> bool| {
            let pixels = strip.pixels().chunks_exact(3).enumerate();
            let inside = pixels.filter(|(i, _)| (*i as u32 % strip.width()) / SIDE == tile);
            let pixel = |(_, p): &(usize, &[u8])| is(p[0].into(), p[1].into(), p[2].into());
            inside.filter(pixel).count()
        };
        [
            of(|r, g, b| r > b + 80 && g > b + 80),
            of(|r, g, b| b > r + 80 && g > r + 80),
        ]
    }

    #[test]
    fn a_picture_shows_what_was_wanted_painted_and_found() {
        let candidate = candidate(grey(60));
        let draw = |found| strip(&candidate, &grey(120), &verdict(found), &TARGETS).unwrap();
        let bytes = draw(Some(mask(48)));
        assert_eq!(bytes, draw(Some(mask(48))));
        let picture = shown(&bytes);
        assert_eq!(picture.size(), (4 * 96, 96));
        let each: Vec<[usize; 2]> = (0..4).map(|tile| lines(&picture, tile)).collect();
        assert_eq!([each[0], each[2]], [[0, 0]; 2]);
        assert!(each[1][0] == 0 && each[1][1] > 150, "{each:?}");
        assert!(each[3][0] > 40 && each[3][1] > 100, "{each:?}");
        // The second and the last tile differ by what was found alone.
        let unasked = shown(&draw(None));
        assert_eq!(lines(&unasked, 3)[0], 0);
    }

    #[test]
    fn even_noise_makes_a_small_file() {
        let mut rng = rng::stream(0, "noise", 0);
        let pixels = (0..64 * 48 * 3).map(|_| rng.random()).collect();
        let noise = Image::new(64, 48, pixels).unwrap();
        let candidate = candidate(noise.clone());
        let bytes = strip(&candidate, &noise, &verdict(None), &TARGETS).unwrap();
        assert!(bytes.len() < 15_000, "{}", bytes.len());
        assert_eq!(shown(&bytes).size(), (4 * 96, 96));
    }
}
