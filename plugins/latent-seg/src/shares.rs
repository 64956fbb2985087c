//! How much of the networks was taken from somewhere, in numbers of values.

use serde::Serialize;
use std::fmt;

/// Values of each part of the networks, and how many of them were taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Shares {
    parts: Vec<Part>,
}

/// A part of the networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Part {
    name: &'static str,
    values: u64,
    taken: u64,
}

impl Shares {
    /// Counts the tensor `name` of the networks, of whose `values` so many were taken.
    pub fn add(&mut self, name: &str, values: usize, taken: usize) {
        let part = part_of(name);
        let place = self.parts.iter().position(|known| known.name == part);
        let place = place.unwrap_or_else(|| {
            self.parts.push(Part {
                name: part,
                values: 0,
                taken: 0,
            });
            self.parts.len() - 1
        });
        self.parts[place].values += values as u64;
        self.parts[place].taken += taken as u64;
    }

    /// Values of all parts.
    pub fn values(&self) -> u64 {
        self.parts.iter().map(|part| part.values).sum()
    }

    /// Those that were taken.
    pub fn taken(&self) -> u64 {
        self.parts.iter().map(|part| part.taken).sum()
    }
}

/// `taken 87.5 % of 8000 values: way down 100.0 %, … ; from nothing: attention`.
impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |taken: u64, values: u64| 100.0 * taken as f64 / values.max(1) as f64;
        let (taken, values) = (self.taken(), self.values());
        let whole = percent(taken, values);
        write!(f, "taken {whole:.1} % of the networks' {values} values")?;
        let (some, none): (Vec<&Part>, Vec<&Part>) =
            self.parts.iter().partition(|part| part.taken > 0);
        let some: Vec<String> = some
            .iter()
            .map(|part| format!("{} {:.1} %", part.name, percent(part.taken, part.values)))
            .collect();
        if !some.is_empty() {
            write!(f, ": {}", some.join(", "))?;
        }
        let none: Vec<&str> = none.iter().map(|part| part.name).collect();
        if !none.is_empty() {
            write!(f, "; from nothing: {}", none.join(", "))?;
        }
        Ok(())
    }
}

/// The part of the networks that a tensor belongs to.
fn part_of(name: &str) -> &'static str {
    let Some(rest) = name.strip_prefix("denoiser.") else {
        return match name.starts_with("vision.") {
            true => "vision encoder",
            false => "fusion",
        };
    };
    if [".norm.", ".qkv.", ".proj_out."]
        .iter()
        .any(|part| rest.contains(part))
    {
        return "attention";
    }
    if rest.contains(".emb_layers.") {
        return "timesteps in the blocks";
    }
    let starts = [
        ("time_embed.", "embedding of timesteps"),
        ("input_blocks.", "way down"),
        ("middle_block.", "middle"),
        ("output_blocks.", "way up"),
    ];
    let found = starts.iter().find(|(start, _)| rest.starts_with(start));
    found.map_or("last layers", |(_, part)| part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_values_and_parts_without_any_are_named() {
        let mut shares = Shares::default();
        shares.add("denoiser.input_blocks.0.0.weight", 60, 60);
        shares.add("denoiser.input_blocks.1.0.in_layers.2.weight", 20, 0);
        shares.add("denoiser.input_blocks.1.1.qkv.weight", 10, 0);
        shares.add("denoiser.output_blocks.1.0.emb_layers.1.weight", 5, 0);
        shares.add("denoiser.out.2.weight", 3, 3);
        shares.add("vision.encoder.conv_in.weight", 1, 0);
        shares.add("fusion.weight", 1, 0);
        assert_eq!((shares.taken(), shares.values()), (63, 100));
        assert_eq!(
            shares.to_string(),
            "taken 63.0 % of the networks' 100 values: way down 75.0 %, last layers 100.0 %; from nothing: attention, timesteps in the blocks, vision encoder, fusion"
        );
    }
}
