//! Inputs that are nearly right: whole files with a few bytes changed, for readers that must answer
//! with a value or an error, whatever they are given. A run draws the same inputs each time; the
//! environment variable `DIFFAUG_MUTATIONS` sets how many.

/// Calls `read` with `count` mutations of `seed`, or as many as `DIFFAUG_MUTATIONS` says.
pub fn mutations(seed: &[u8], count: usize, mut read: impl FnMut(&[u8])) {
    let set = std::env::var("DIFFAUG_MUTATIONS");
    let count = set.ok().and_then(|n| n.parse().ok()).unwrap_or(count);
    let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
    for _ in 0..count {
        read(&mutated(seed, &mut draw));
    }
}

/// Marsaglia's xorshift of 64 bits.
struct Draw(u64);

impl Draw {
    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }
}

/// `seed` with one to eight changes.
fn mutated(seed: &[u8], draw: &mut Draw) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=draw.below(8) {
        change(&mut bytes, draw);
    }
    bytes
}

/// Changes a bit, a byte or a number; or cuts, repeats or leaves out a part.
fn change(bytes: &mut Vec<u8>, draw: &mut Draw) {
    const TELLING: [u8; 14] = [0, 1, 2, 9, 10, 34, 45, 48, 91, 93, 123, 127, 128, 255];
    let at = draw.below(bytes.len());
    let len = draw.below(64).min(bytes.len() - at.min(bytes.len()));
    match draw.below(8) {
        _ if bytes.is_empty() => bytes.push(draw.below(256) as u8),
        0 => bytes[at] ^= 1 << draw.below(8),
        1 => bytes[at] = draw.below(256) as u8,
        2 | 3 => bytes[at] = TELLING[draw.below(TELLING.len())],
        4 => bytes.truncate(at),
        5 => drop(bytes.drain(at..at + len)),
        6 => {
            let part = bytes[at..at + len].to_vec();
            let to = draw.below(bytes.len());
            bytes.splice(to..to, part);
        }
        _ => {
            let width = [1, 2, 4, 8][draw.below(4)].min(bytes.len() - at);
            let value = if draw.below(2) == 0 { 0xff } else { 0x7f };
            bytes[at..at + width].fill(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_differ_and_come_again() {
        let all = || {
            let mut all = Vec::new();
            mutations(b"{\"a\": 1}", 300, |bytes| all.push(bytes.to_vec()));
            all
        };
        let (first, second) = (all(), all());
        assert_eq!(first, second);
        let distinct: std::collections::HashSet<_> = first.iter().collect();
        assert!(distinct.len() > first.len() / 2);
        mutations(b"", 20, |_| {});
    }
}
