//! Randomness that depends on what is drawn, never on when: every draw comes from
//! (seed, purpose, key), so that neither order, batch size nor thread count can change a result.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// The generator of every random decision; its stream is stable across versions and platforms.
pub type Rng = ChaCha8Rng;

fn digest(seed: u64, purpose: &str, key: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    // The length keeps ("ab", "c") and ("a", "bc") apart.
    hash.update((purpose.len() as u64).to_le_bytes());
    hash.update(purpose.as_bytes());
    hash.update(key);
    hash.finalize().into()
}

/// The random stream for the `index`-th thing done for `purpose`.
pub fn stream(seed: u64, purpose: &str, index: u64) -> Rng {
    Rng::from_seed(digest(seed, purpose, &index.to_le_bytes()))
}

/// A seed for whatever is called `key`, to be handed on to a stage.
pub fn derive(seed: u64, purpose: &str, key: &str) -> u64 {
    let hash = digest(seed, purpose, key.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    // 53 bits survive JSON and TOML readers that know only doubles.
    u64::from_le_bytes(first) >> 11
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

    #[test]
    fn draws_depend_on_seed_purpose_and_index_alone() {
        let draw = |seed, purpose, index| stream(seed, purpose, index).random::<u64>();
        assert_eq!(draw(1, "mask", 2), draw(1, "mask", 2));
        assert_ne!(draw(1, "mask", 2), draw(1, "mask", 3));
        assert_ne!(draw(1, "mask", 2), draw(1, "prompt", 2));
        assert_ne!(draw(1, "mask", 2), draw(2, "mask", 2));
        assert_ne!(derive(0, "ab", "c"), derive(0, "a", "bc"));
    }

    #[test]
    fn the_stream_is_fixed_forever() {
        assert_eq!(derive(7, "candidate", "frame/3"), 516_614_263_579_666);
    }
}
