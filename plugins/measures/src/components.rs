//! Connected components of a region, pixel by pixel.

use crate::region::Region;

/// Which pixels touch each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connectivity {
    /// Pixels that share a side.
    Four,
    /// Pixels that share a side or a corner.
    Eight,
}

/// The components of a region, in the order in which a scan by rows meets them.
pub struct Components {
    /// For each pixel the index of its component.
    pub member: Vec<Option<usize>>,
    /// Pixels of each component.
    pub areas: Vec<usize>,
}

impl Components {
    /// The components of `region` that have at least `min_area` pixels.
    pub fn of(region: &Region, connectivity: Connectivity, min_area: usize) -> Self {
        let mut open = region.inside.clone();
        let mut components = Components {
            member: vec![None; open.len()],
            areas: Vec::new(),
        };
        for start in 0..open.len() {
            if !open[start] {
                continue;
            }
            let pixels = fill(&mut open, region.width, start, connectivity);
            if pixels.len() >= min_area {
                for &at in &pixels {
                    components.member[at] = Some(components.areas.len());
                }
                components.areas.push(pixels.len());
            }
        }
        components
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.areas.len()
    }
}

/// The pixels that are connected to `start`, which are taken from `open`.
fn fill(open: &mut [bool], width: usize, start: usize, connectivity: Connectivity) -> Vec<usize> {
    let height = open.len() / width;
    let mut pixels = vec![start];
    open[start] = false;
    let mut next = 0;
    while let Some(&at) = pixels.get(next) {
        next += 1;
        let (x, y) = (at % width, at / width);
        for v in y.saturating_sub(1)..(y + 2).min(height) {
            for u in x.saturating_sub(1)..(x + 2).min(width) {
                let aslant = u != x && v != y;
                let touches = connectivity == Connectivity::Eight || !aslant;
                let other = v * width + u;
                if touches && open[other] {
                    open[other] = false;
                    pixels.push(other);
                }
            }
        }
    }
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn areas(connectivity: Connectivity, min_area: usize) -> Vec<usize> {
        #[rustfmt::skip]
        let rows = [
            1, 0, 0, 1,
            0, 1, 0, 1,
            0, 0, 0, 1,
        ];
        let region = Region {
            width: 4,
            height: 3,
            inside: rows.iter().map(|on| *on == 1).collect(),
        };
        let components = Components::of(&region, connectivity, min_area);
        let members = components.member.iter().flatten().count();
        assert_eq!(members, components.areas.iter().sum::<usize>());
        components.areas
    }

    #[test]
    fn corners_connect_where_they_are_to() {
        assert_eq!(areas(Connectivity::Eight, 1), [2, 3]);
        assert_eq!(areas(Connectivity::Four, 1), [1, 3, 1]);
        assert_eq!(areas(Connectivity::Four, 2), [3]);
    }
}
