//! Rounding of weights when they are loaded: a row of f32 to the numbers that `fill` lays out as
//! `linear::quantized` wants them.
//!
//! Int8: `scale = max|w| / 127`, so that both signs have as much room. Int4: the weight of the
//! greatest magnitude becomes -8, which a two's-complement nibble has and +8 is not, as
//! llama.cpp's Q4_0 does it.
//!
//! The functions work on integers where floats have rules that keep a loop from being vectorised,
//! and are inlined into functions that have the machine's features.
#![allow(unsafe_code, reason = "reads a packed weight")]

use super::linear::quantized::{Format, Int4, Int8};

/// Rounds a row to 8 bits, a byte of `out` each, and gives its scale.
#[inline(always)]
pub(super) fn int8_row(values: &[f32], out: &mut [u8]) -> f32 {
    // Without its sign a float is ordered as its bits are.
    let magnitude = |v: &f32| (v.to_bits() & 0x7fff_ffff) as i32;
    let greatest = values.iter().fold(0, |most, v| magnitude(v).max(most));
    let greatest = f32::from_bits(greatest as u32);
    let inverse = if greatest > 1e-30 { 127.0 / greatest } else { 0.0 };
    for (byte, v) in out.iter_mut().zip(values) {
        *byte = (nearest(v * inverse) + Int8::ZERO) as u8;
    }
    if inverse > 0.0 { greatest / 127.0 } else { 0.0 }
}

/// Rounds a row to 4 bits: for each group of 32 weights four words, whose bytes hold two weights
/// each, and a scale, f16.
#[inline(always)]
pub(super) fn int4_row(values: &[f32], words: &mut [u32], scales: &mut [u16]) {
    let (groups, rest) = values.as_chunks::<{ Int4::GROUP }>();
    let (to, to_rest) = words.as_chunks_mut::<4>().0.split_at_mut(groups.len());
    for ((group, words), scale) in groups.iter().zip(to).zip(&mut *scales) {
        (*words, *scale) = int4_group(group);
    }
    if !rest.is_empty() {
        let mut group = [0.0; Int4::GROUP];
        group[..rest.len()].copy_from_slice(rest);
        (to_rest[0], scales[groups.len()]) = int4_group(&group);
    }
}

#[inline(always)]
fn int4_group(values: &[f32; Int4::GROUP]) -> ([u32; 4], u16) {
    let scale = half::f16::from_f32(extreme(values) / -8.0);
    let inverse = if scale.to_f32() == 0.0 { 0.0 } else { 1.0 / scale.to_f32() };
    let nibbles: [u8; Int4::GROUP] =
        values.map(|v| (nearest(v * inverse) + Int4::ZERO).clamp(0, 15) as u8);
    let eights = nibbles.as_chunks::<8>().0;
    let words = std::array::from_fn(|i| {
        let [low, high] = [0, 4].map(|half| {
            let e = &eights[i];
            u32::from_le_bytes([e[half], e[half + 1], e[half + 2], e[half + 3]])
        });
        low | high << 4
    });
    (words, scale.to_bits())
}

/// The value of the greatest magnitude, the first of equals.
#[inline(always)]
fn extreme(values: &[f32; Int4::GROUP]) -> f32 {
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
    fn four_bits_are_within_a_step_and_the_greatest_is_kept() {
        let values = row(100);
        let (mut words, mut scales) = ([0u32; 16], [0u16; 4]);
        int4_row(&values, &mut words, &mut scales);
        for (i, v) in values.iter().enumerate() {
            let (group, at) = (i / 32, i % 32);
            let byte = words[group * 4 + at / 8].to_le_bytes()[at % 4];
            let q = if at % 8 < 4 { byte & 15 } else { byte >> 4 };
            let scale = half::f16::from_bits(scales[group]).to_f32();
            let back = (f32::from(q) - 8.0) * scale;
            // The weight opposite to the greatest may be one whole step away: +8 is not there.
            assert!((back - v).abs() <= scale.abs() * 1.01, "{i}: {v} {back}");
        }
    }

    #[test]
    fn the_first_of_equal_magnitudes_is_the_extreme() {
        let of = |pairs: &[(usize, f32)]| {
            let mut values = [0.25; Int4::GROUP];
            pairs.iter().for_each(|&(i, v)| values[i] = v);
            extreme(&values)
        };
        assert_eq!(of(&[(3, -2.0), (7, 2.0)]), -2.0);
        assert_eq!(of(&[(7, -2.0), (3, 2.0)]), 2.0);
        assert_eq!(of(&[(7, -2.0), (3, 1.0)]), -2.0);
        assert_eq!(of(&[(31, 3.0), (0, -2.5)]), 3.0);
        assert_eq!(extreme(&[-0.0; Int4::GROUP]).to_bits(), 0);
    }

    #[test]
    fn zeros_stay_zeros() {
        let (mut words, mut scales) = ([0u32; 4], [1u16; 1]);
        int4_row(&[0.0; 32], &mut words, &mut scales);
        assert_eq!((words, scales), ([0x8888_8888; 4], [0x8000]));
        let mut bytes = [0; 128];
        assert_eq!((int8_row(&[0.0; 128], &mut bytes), bytes[0]), (0.0, 128));
    }
}
