//! bf16 weights multiplied by the processor's own instruction (AVX512-BF16), which adds the
//! products of two pairs of bf16 numbers to a sum in f32: twice the multiplications of f32 in half
//! the memory. What the weights are multiplied with is rounded to bf16, too.
//!
//! Numbers lie in pairs, so a sum that has an odd number of terms gets a zero. The instruction
//! takes numbers too small for a normal f32 for zero.

pub mod conv;
pub mod matrix;

use half::bf16;
use std::{arch::x86_64::*, mem::MaybeUninit};

/// Two bf16 numbers, the first in the low half.
type Pair = u32;

/// Pairs of a vector.
const LANES: usize = 16;

/// Whether this processor has the instruction, and the crate may use it.
pub fn present() -> bool {
    cfg!(feature = "x86-v4")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
}

/// The pair of the nearest numbers.
fn pair(first: f32, second: f32) -> Pair {
    let bits = |value| Pair::from(bf16::from_f32(value).to_bits());
    bits(first) | bits(second) << 16
}

/// A number of a pair.
fn of_pair(pair: Pair, second: bool) -> f32 {
    f32::from_bits(if second {
        pair & 0xffff_0000
    } else {
        pair << 16
    })
}

/// A place that several tasks write to, each to elements of its own.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: a pointer does nothing by itself; who writes through it answers for that.
#[allow(unsafe_code)]
unsafe impl Send for Shared {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Shared {}

/// Rounds successive values to pairs; `to` has room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn rounded(from: &[f32], to: &mut [MaybeUninit<Pair>]) {
    let (whole, rest) = from.as_chunks::<32>();
    let (first, last) = to.split_at_mut(whole.len() * LANES);
    let round = |values: &[f32; 32], to: &mut [MaybeUninit<Pair>; LANES]| {
        let (low, high) = values.split_at(LANES);
        // SAFETY: both halves, and the vector of results, are 16 elements of 4 bytes.
        #[allow(unsafe_code)]
        unsafe {
            let halves = [low, high].map(|half| _mm512_loadu_ps(half.as_ptr()));
            let pairs = _mm512_cvtne2ps_pbh(halves[1], halves[0]);
            to.as_mut_ptr().cast::<__m512bh>().write_unaligned(pairs);
        }
    };
    for (values, to) in whole.iter().zip(first.as_chunks_mut().0) {
        round(values, to);
    }
    if !rest.is_empty() {
        let (mut values, mut pairs) = ([0.0; 32], [MaybeUninit::uninit(); LANES]);
        values[..rest.len()].copy_from_slice(rest);
        round(&values, &mut pairs);
        let count = rest.len().div_ceil(2);
        last[..count].copy_from_slice(&pairs[..count]);
    }
}

/// Pairs of `first` and `second`, of the same length as `to`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn woven(first: &[f32], second: &[f32], to: &mut [MaybeUninit<Pair>]) {
    let weave =
        |first: &[f32; LANES], second: &[f32; LANES], to: &mut [MaybeUninit<Pair>; LANES]| {
            // SAFETY: all three are 16 elements of 4 bytes.
            #[allow(unsafe_code)]
            unsafe {
                let halves = [first, second].map(|values| _mm512_loadu_ps(values.as_ptr()));
                let [low, high] = halves.map(|half| {
                    let numbers: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(half));
                    _mm512_cvtepu16_epi32(numbers)
                });
                let pairs = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs);
            }
        };
    let (firsts, first_rest) = first.as_chunks();
    let (seconds, second_rest) = second.as_chunks();
    let (tos, to_rest) = to.as_chunks_mut();
    for ((first, second), to) in firsts.iter().zip(seconds).zip(tos) {
        weave(first, second, to);
    }
    if !to_rest.is_empty() {
        let mut values = [[0.0; LANES]; 2];
        values[0][..first_rest.len()].copy_from_slice(first_rest);
        values[1][..second_rest.len()].copy_from_slice(second_rest);
        let mut pairs = [MaybeUninit::uninit(); LANES];
        weave(&values[0], &values[1], &mut pairs);
        to_rest.copy_from_slice(&pairs[..to_rest.len()]);
    }
}

/// The vector of pairs at `from`.
///
/// # Safety
/// There are 16 pairs.
#[target_feature(enable = "avx512f,avx512bf16")]
#[allow(unsafe_code)]
unsafe fn load(from: *const Pair) -> __m512bh {
    // SAFETY: as the caller promises.
    unsafe { from.cast::<__m512bh>().read_unaligned() }
}

/// A vector of one pair.
#[target_feature(enable = "avx512f,avx512bf16")]
fn splat(pair: Pair) -> __m512bh {
    let pairs = _mm512_set1_epi32(pair.cast_signed());
    // SAFETY: both are 64 bytes of any content.
    #[allow(unsafe_code)]
    unsafe {
        std::mem::transmute(pairs)
    }
}
