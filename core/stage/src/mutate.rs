//! Mutated inputs for tests of readers: the same ones on every machine, more of them on request.
//!
//! A reader of foreign files has to answer `Ok` or `Err` to anything. Its test calls [`each`] with a
//! few valid files; a short run belongs to every `cargo test`. `DIFFAUG_MUTATIONS=N` makes it N
//! inputs, `DIFFAUG_MUTATE_SECONDS=S` as many as fit into S seconds for each reader.

use crate::rng::{self, Rng};
use rand::{Rng as _, RngExt as _};
use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

/// Numbers that lengths, counts and offsets are often wrong about.
const NUMBERS: [u64; 12] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Calls `read` with `rounds` mutations of `seeds` (or as many as the environment says), and
/// answers how many there were.
///
/// # Panics
/// When `read` does; the number of the input is in the message, and the same number makes the same
/// input again.
pub fn each(name: &str, seeds: &[Vec<u8>], rounds: u64, mut read: impl FnMut(&[u8])) -> u64 {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seconds = number("DIFFAUG_MUTATE_SECONDS").map(Duration::from_secs);
    let rounds = match seconds {
        Some(_) => u64::MAX,
        None => number("DIFFAUG_MUTATIONS").unwrap_or(rounds),
    };
    let start = Instant::now();
    for round in 0..rounds {
        if seconds.is_some_and(|limit| start.elapsed() >= limit) {
            tracing::info!("{name}: {round} inputs");
            return round;
        }
        let input = mutation(name, seeds, round);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| read(&input))) {
            tracing::error!("{name}: input {round} of {} bytes", input.len());
            let dump = std::env::temp_dir().join(format!("diffaug-{name}-{round}"));
            std::fs::write(dump, &input).ok();
            resume_unwind(panic);
        }
    }
    rounds
}

/// The mutation with the number `round`.
pub fn mutation(name: &str, seeds: &[Vec<u8>], round: u64) -> Vec<u8> {
    let mut rng = rng::stream(0, name, round);
    if seeds.is_empty() {
        return Vec::new();
    }
    let mut bytes = seeds[rng.random_range(0..seeds.len())].clone();
    for _ in 0..rng.random_range(1..=6) {
        change(&mut bytes, seeds, &mut rng);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut Rng) {
    let length = bytes.len();
    if length == 0 {
        bytes.push(rng.random());
        return;
    }
    let at = rng.random_range(0..length);
    let end = (at + rng.random_range(1..=64)).min(length);
    match rng.random_range(0..9) {
        0 => bytes[at] ^= 1 << rng.random_range(0..8),
        1 => bytes[at] = rng.random(),
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..end)),
        4 => {
            let copy = bytes[at..end].to_vec();
            let to = rng.random_range(0..=length);
            bytes.splice(to..to, copy);
        }
        5 => number(bytes, at, rng),
        6 => bytes[at..end].fill(rng.random()),
        7 => {
            // The end of another file behind the start of this one.
            let other = &seeds[rng.random_range(0..seeds.len())];
            bytes.truncate(at);
            bytes.extend(&other[at.min(other.len())..]);
        }
        _ => digits(bytes, at, rng),
    }
}

/// Overwrites a number of 1, 2, 4 or 8 bytes.
fn number(bytes: &mut [u8], at: usize, rng: &mut Rng) {
    let value = NUMBERS[rng.random_range(0..NUMBERS.len())];
    let width = 1usize << rng.random_range(0..4);
    let mut raw = value.to_le_bytes();
    if rng.next_u32().is_multiple_of(2) {
        raw[..width].reverse();
    }
    for (byte, new) in bytes[at..].iter_mut().zip(&raw[..width]) {
        *byte = *new;
    }
}

/// Writes a number in digits, for formats that are text.
fn digits(bytes: &mut Vec<u8>, at: usize, rng: &mut Rng) {
    const TEXTS: [&str; 10] = [
        "0",
        "-1",
        "1e400",
        "NaN",
        "99999999999999999999",
        "18446744073709551615",
        "[[[[",
        "\"",
        "{",
        "null",
    ];
    let text = TEXTS[rng.random_range(0..TEXTS.len())];
    let end = (at + text.len()).min(bytes.len());
    bytes.splice(at..end, text.bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_number_makes_the_same_input() {
        let seeds = [b"one file".to_vec(), b"and another".to_vec()];
        let made = |round| mutation("t", &seeds, round);
        let all: Vec<_> = (0..200).map(made).collect();
        assert_eq!(all, (0..200).map(made).collect::<Vec<_>>());
        let changed = all.iter().filter(|bytes| !seeds.contains(bytes)).count();
        assert!(changed > 180, "{changed}");
        assert!(mutation("t", &[], 3).is_empty());
    }
}
