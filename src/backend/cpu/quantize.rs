//! Rounding of weights when they are loaded: a row of f32 to the numbers that `fill` lays out as
//! `linear::quantized` wants them.
//!
//! Int8: `scale = max|w| / 127`, so that both signs have as much room. Int4: a group's weight of
//! the greatest magnitude becomes about -8, which a two's-complement nibble has and +8 is not, as
//! in llama.cpp's Q4_0; Int6: the same, of -32. The scale that makes it so is rounded up to one of
//! 127 steps up to the greatest of its row. A byte is enough: a step of weights is then coarser by
//! less than an eighth (with 6 bits a 32nd) of a step of Int8.
//!
//! The functions work on integers where floats have rules that keep a loop from being vectorised,
//! and are inlined into functions that have the machine's features.
#![allow(unsafe_code, reason = "reads a packed weight")]

use super::linear::quantized::{Format, Int4, Int6, Int8};

/// Rounds a row to 8 bits, a byte of `out` each, and gives its scale.
#[inline(always)]
pub(super) fn int8_row(values: &[f32], out: &mut [u8]) -> f32 {
    let greatest = greatest(values);
    let inverse = if greatest > 1e-30 { 127.0 / greatest } else { 0.0 };
    for (byte, v) in out.iter_mut().zip(values) {
        *byte = (nearest(v * inverse) + Int8::ZERO) as u8;
    }
    if inverse > 0.0 { greatest / 127.0 } else { 0.0 }
}

/// The greatest magnitude.
#[inline(always)]
fn greatest(values: &[f32]) -> f32 {
    // Without its sign a float is ordered as its bits are.
    let magnitude = |v: &f32| (v.to_bits() & 0x7fff_ffff) as i32;
    f32::from_bits(values.iter().fold(0, |most, v| magnitude(v).max(most)) as u32)
}

/// Formats whose groups of 32 weights have scales of their own.
pub(super) trait Grouped: Format {
    /// Words that a group of one output takes in a panel.
    const WORDS: usize;
    /// Writes them, of weights from 0 on.
    fn pack(weights: &[u8; GROUP], words: &mut [u32]);
}

/// Inputs that share such a scale.
const GROUP: usize = 32;

impl Grouped for Int4 {
    const WORDS: usize = 4;

    #[inline(always)]
    fn pack(weights: &[u8; GROUP], words: &mut [u32]) {
        for (word, eight) in words.iter_mut().zip(weights.as_chunks::<8>().0) {
            *word = nibbles(eight);
        }
    }
}

impl Grouped for Int6 {
    const WORDS: usize = 6;

    #[inline(always)]
    fn pack(weights: &[u8; GROUP], words: &mut [u32]) {
        let lower = weights.map(|w| w & 15);
        let upper = weights.map(|w| w >> 4);
        let (lower, upper) = (lower.as_chunks::<8>().0, upper.as_chunks::<8>().0);
        let words = words.as_chunks_mut::<3>().0.iter_mut();
        for ((words, lower), upper) in words.zip(lower.chunks(2)).zip(upper.chunks(2)) {
            // The two bits of the second step of each word go next to those of the first.
            let four = |word: u32| word & 0x0303_0303 | (word >> 2) & 0x0c0c_0c0c;
            let upper = four(nibbles(&upper[0])) | four(nibbles(&upper[1])) << 4;
            *words = [nibbles(&lower[0]), nibbles(&lower[1]), upper];
        }
    }
}

/// The lower four bits of two steps of four weights, byte by byte.
#[inline(always)]
fn nibbles(eight: &[u8; 8]) -> u32 {
    let four =
        |at: usize| u32::from_le_bytes([eight[at], eight[at + 1], eight[at + 2], eight[at + 3]]);
    four(0) | four(4) << 4
}

/// Rounds a row of whole groups to what `F` holds: for each group its words and what its scale is
/// in scales of the row; gives this.
#[inline(always)]
pub(super) fn grouped_row<F: Grouped>(values: &[f32], words: &mut [u32], scales: &mut [i8]) -> f32 {
    const { assert!(F::GROUP == GROUP) };
    let greatest = greatest(values);
    let inverse = if greatest > 1e-30 { 127.0 / greatest } else { 0.0 };
    let scale = if inverse > 0.0 { greatest / (127 * F::ZERO) as f32 } else { 0.0 };
    let groups = values.as_chunks::<GROUP>().0.iter();
    for ((group, words), own) in groups.zip(words.chunks_exact_mut(F::WORDS)).zip(scales) {
        let extreme = extreme(group);
        // Rounded up, so that the extreme is never beyond what the bits hold.
        let steps = (extreme.abs() * inverse).ceil().min(127.0) * -extreme.signum();
        *own = steps as i8;
        let inverse = if steps * scale == 0.0 { 0.0 } else { 1.0 / (steps * scale) };
        let most = 2 * F::ZERO - 1;
        F::pack(&group.map(|v| (nearest(v * inverse) + F::ZERO).clamp(0, most) as u8), words);
    }
    scale
}

/// The value of the greatest magnitude, the first of equals.
#[inline(always)]
fn extreme(values: &[f32; GROUP]) -> f32 {
    // As integers, positive floats are ordered, and negative ones are once their sign is turned.
    let (mut up, mut down) = (0, 0);
    for v in values {
        let bits = v.to_bits() as i32;
        up = bits.max(up);
        down = (bits ^ i32::MIN).max(down);
    }
    let greatest = f32::from_bits(up.max(down) as u32);
    match up.cmp(&down) {
        std::cmp::Ordering::Greater => greatest,
        std::cmp::Ordering::Less => -greatest,
        // Both signs have it, or all are zeros.
        std::cmp::Ordering::Equal => {
            let first = values.iter().find(|v| v.abs() == greatest);
            first.filter(|_| greatest > 0.0).copied().unwrap_or(0.0)
        }
    }
}

/// Weight `column` of a row of a panel of `Int8`, before its scale.
///
/// # Safety
/// The panel has the column.
pub(super) unsafe fn read_int8(panel: *const u8, lane: usize, column: usize) -> f32 {
    // SAFETY: the caller's contract.
    let byte = unsafe { *panel.add(column / 4 * 64 + lane * 4 + column % 4) };
    (i32::from(byte) - Int8::ZERO) as f32
}

/// Weight `column` of a row of a panel of `Int6`, before its output's scale.
///
/// # Safety
/// The panel has the column.
pub(super) unsafe fn read_int6(panel: *const u8, lane: usize, column: usize) -> f32 {
    let (group, at) = (column / GROUP, column % GROUP);
    let (step, byte) = (at / 4, lane * 4 + at % 4);
    // SAFETY: the caller's contract; four steps lie in 192 bytes.
    unsafe {
        let weights = panel.add(Int6::weights_at(group) + step / 4 * 192 + byte);
        let lower = *weights.add(step % 4 / 2 * 64) >> (step % 2 * 4) & 15;
        let upper = *weights.add(128) >> (step % 4 * 2) & 3;
        let scale = *panel.add(Int6::scales_at(group)).cast::<i8>().add(lane);
        (i32::from(scale) * (i32::from(lower | upper << 4) - Int6::ZERO)) as f32
    }
}

/// The nearest integer, even from the middle, for |x| < 2^22; no call on any machine.
#[inline(always)]
fn nearest(x: f32) -> i32 {
    /// Between 2^23 and 2^24 a float is an integer and its last bits count.
    const MAGIC: f32 = 12_582_912.0;
    ((x + MAGIC).to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect()
    }

    #[test]
    fn eight_bits_are_within_half_a_step() {
        for len in [1, 3, 4, 130] {
            let values = row(len);
            let mut bytes = vec![0u8; len];
            let scale = int8_row(&values, &mut bytes);
            for (i, (v, byte)) in values.iter().zip(bytes).enumerate() {
                let back = (f32::from(byte) - 128.0) * scale;
                assert!((back - v).abs() <= scale * 0.5001, "{i} of {len}: {v} {back}");
            }
        }
    }

    #[test]
    fn four_bits_are_within_half_a_step_or_the_clamp() {
        let values = row(128);
        let (mut words, mut scales) = ([0u32; 16], [0i8; 4]);
        let scale = grouped_row::<Int4>(&values, &mut words, &mut scales);
        for (i, v) in values.iter().enumerate() {
            let (group, at) = (i / 32, i % 32);
            let byte = words[group * 4 + at / 8].to_le_bytes()[at % 4];
            let q = if at % 8 < 4 { byte & 15 } else { byte >> 4 };
            let step = f32::from(scales[group]) * scale;
            check(*v, (f32::from(q) - 8.0) * step, step, 7.0);
        }
    }

    #[test]
    fn six_bits_are_read_back_within_half_a_step_or_the_clamp() {
        let values = row(128);
        let (mut words, mut scales) = ([0u32; 24], [0i8; 4]);
        let scale = grouped_row::<Int6>(&values, &mut words, &mut scales);
        // As `fill` lays them out, for one lane of sixteen.
        let lane = 5;
        let mut panel = [0u8; Int6::TOGETHER_BYTES];
        for (i, word) in words.iter().enumerate() {
            let at = Int6::weights_at(i / Int6::WORDS) + i % Int6::WORDS * 64 + lane * 4;
            panel[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        for (group, scale) in scales.iter().enumerate() {
            panel[Int6::scales_at(group) + lane] = *scale as u8;
        }
        for (i, v) in values.iter().enumerate() {
            // SAFETY: the panel has 128 columns.
            let back = unsafe { read_int6(panel.as_ptr(), lane, i) } * scale;
            check(*v, back, f32::from(scales[i / 32]) * scale, 31.0);
        }
    }

    /// A weight opposite to the extreme may be one whole step away: `most + 1` is not there.
    fn check(v: f32, back: f32, step: f32, most: f32) {
        let bound = if v / step > most { 1.001 } else { 0.501 };
        assert!((back - v).abs() <= step.abs() * bound, "{v} {back} {step}");
    }

    #[test]
    fn scales_of_groups_are_the_least_steps_that_hold_them() {
        let mut values = vec![0.0; 128];
        // The row's greatest, a little less than half of it, next to nothing and nothing.
        (values[3], values[40], values[70]) = (-2.0, 0.99, 1e-6);
        let (mut words, mut scales) = ([0u32; 16], [1i8; 4]);
        let scale = grouped_row::<Int4>(&values, &mut words, &mut scales);
        assert_eq!((scale, scales), (2.0 / 127.0 / 8.0, [127, -63, -1, 0]));
        assert_eq!(words[12..], [0x8888_8888; 4]);
    }

    #[test]
    fn the_first_of_equal_magnitudes_is_the_extreme() {
        let of = |pairs: &[(usize, f32)]| {
            let mut values = [0.25; GROUP];
            pairs.iter().for_each(|&(i, v)| values[i] = v);
            extreme(&values)
        };
        assert_eq!(of(&[(3, -2.0), (7, 2.0)]), -2.0);
        assert_eq!(of(&[(7, -2.0), (3, 2.0)]), 2.0);
        assert_eq!(of(&[(7, -2.0), (3, 1.0)]), -2.0);
        assert_eq!(of(&[(31, 3.0), (0, -2.5)]), 3.0);
        assert_eq!(extreme(&[-0.0; GROUP]).to_bits(), 0);
    }

    #[test]
    fn zeros_stay_zeros() {
        let (mut words, mut scales) = ([0u32; 4], [1i8; 1]);
        assert_eq!(grouped_row::<Int4>(&[0.0; 32], &mut words, &mut scales), 0.0);
        assert_eq!((words, scales), ([0x8888_8888; 4], [0]));
        let mut bytes = [0; 128];
        assert_eq!((int8_row(&[0.0; 128], &mut bytes), bytes[0]), (0.0, 128));
    }
}
