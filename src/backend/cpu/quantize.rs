//! Rounding of weights when they are loaded: a row of f32 to the layouts of `linear::quantized`.
//!
//! Int8: `scale = max|w| / 127`, so that both signs have as much room. Int4: the weight of the
//! greatest magnitude becomes -8, which a two's-complement nibble has and +8 is not, as
//! llama.cpp's Q4_0 does it.
#![allow(unsafe_code, reason = "threads fill disjoint rows of one buffer")]

use super::linear::quantized::{Format, Int4, Int8};

/// Rounds one row of a layer to 8 bits and gives its scale. `panel` is the start of the row's
/// panel, `lane` its place there.
///
/// # Safety
/// The panel has `values.len()` inputs, padded to whole groups, and no other thread has the row.
pub(super) unsafe fn write_int8(panel: *mut u8, lane: usize, values: &[f32]) -> f32 {
    let greatest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    let inverse = if greatest > 1e-30 { 127.0 / greatest } else { 0.0 };
    let (fours, rest) = values.as_chunks::<4>();
    let byte = |v: f32| (nearest(v * inverse) + Int8::ZERO) as u8;
    // SAFETY: step `i` has its 64 bytes, four of them this lane's.
    unsafe {
        let lane = panel.add(lane * 4).cast::<[u8; 4]>();
        for (i, four) in fours.iter().enumerate() {
            *lane.add(i * 16) = four.map(byte);
        }
        for (i, v) in rest.iter().enumerate() {
            *lane.add(fours.len() * 16).cast::<u8>().add(i) = byte(*v);
        }
    }
    if inverse > 0.0 { greatest / 127.0 } else { 0.0 }
}

/// Rounds one row of a layer to 4 bits.
///
/// # Safety
/// As for [`write_int8`].
pub(super) unsafe fn write_int4(panel: *mut u8, lane: usize, values: &[f32]) {
    for (group, values) in values.chunks(Int4::GROUP).enumerate() {
        let extreme = values.iter().fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
        let scale = half::f16::from_f32(extreme / -8.0);
        let inverse = if scale.to_f32() == 0.0 { 0.0 } else { 1.0 / scale.to_f32() };
        let mut nibbles = [Int4::ZERO as u8; Int4::GROUP];
        for (q, v) in nibbles.iter_mut().zip(values) {
            *q = (nearest(v * inverse) + Int4::ZERO).clamp(0, 15) as u8;
        }
        // SAFETY: the group has its four loads of 64 bytes and sixteen scales.
        unsafe {
            let own = panel.add(Int4::weights_at(group) + lane * 4);
            for (i, eight) in nibbles.as_chunks::<8>().0.iter().enumerate() {
                let bytes: [u8; 4] = std::array::from_fn(|j| eight[j] | eight[j + 4] << 4);
                own.add(i * 64).cast::<[u8; 4]>().write(bytes);
            }
            let scales = panel.add(Int4::scales_at(group)).cast::<u16>();
            *scales.add(lane) = scale.to_bits();
        }
    }
}

/// Weight `column` of a row that `write_int8` wrote, before its scale.
///
/// # Safety
/// The panel has the column.
pub(super) unsafe fn read_int8(panel: *const u8, lane: usize, column: usize) -> f32 {
    // SAFETY: the caller's contract.
    let byte = unsafe { *panel.add(column / 4 * 64 + lane * 4 + column % 4) };
    (i32::from(byte) - Int8::ZERO) as f32
}

/// The nearest integer, even from the middle, of what is small; no call on any machine.
fn nearest(x: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    ((x + MAGIC) - MAGIC) as i32
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
            let mut panel = vec![0u8; 256 * 16];
            // SAFETY: the panel has 256 inputs.
            let scale = unsafe { write_int8(panel.as_mut_ptr(), 5, &values) };
            for (i, v) in values.iter().enumerate() {
                // SAFETY: as above.
                let back = unsafe { read_int8(panel.as_ptr(), 5, i) } * scale;
                assert!((back - v).abs() <= scale * 0.5001, "{i} of {len}: {v} {back}");
            }
        }
    }

    #[test]
    fn four_bits_are_within_a_step_and_the_greatest_is_kept() {
        let values = row(100);
        let mut panel = vec![0u8; 2 * Int4::PAIR_BYTES];
        // SAFETY: the panel has 128 inputs.
        unsafe { write_int4(panel.as_mut_ptr(), 9, &values) };
        for (i, v) in values.iter().enumerate() {
            let (group, at) = (i / 32, i % 32);
            let byte = panel[Int4::weights_at(group) + at / 8 * 64 + 9 * 4 + at % 4];
            let q = if at % 8 < 4 { byte & 15 } else { byte >> 4 };
            let scale = Int4::scales_at(group) + 2 * 9;
            let scale = half::f16::from_le_bytes([panel[scale], panel[scale + 1]]).to_f32();
            let back = (f32::from(q) - 8.0) * scale;
            // The weight opposite to the greatest may be one whole step away: +8 is not there.
            assert!((back - v).abs() <= scale.abs() * 1.01, "{i}: {v} {back}");
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        let mut panel = vec![0u8; Int4::PAIR_BYTES];
        // SAFETY: the panel has 64 inputs.
        unsafe { write_int4(panel.as_mut_ptr(), 0, &[0.0; 64]) };
        assert_eq!(panel[..4], [0x88; 4]);
        let mut panel = vec![0u8; 16 * 128];
        // SAFETY: the panel has 128 inputs.
        let scale = unsafe { write_int8(panel.as_mut_ptr(), 0, &[0.0; 128]) };
        assert_eq!((scale, panel[0]), (0.0, 128));
    }
}
