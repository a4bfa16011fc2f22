//! Asking memory for what is read soon. No path's features are needed for that.
#![allow(unsafe_code, reason = "the instructions have no safe form")]

/// Asks for the cache line at `p`; any address will do.
#[inline(always)]
pub(crate) fn prefetch(p: *const u8) {
    // SAFETY: a hint: it changes nothing and faults at no address.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        use std::arch::asm;
        asm!("prfm pldl1keep, [{}]", in(reg) p, options(nomem, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = p;
}

/// Asks for a cache line at every 64th of `bytes` from `p` on.
#[inline(always)]
pub(crate) fn prefetch_lines(p: *const u8, bytes: usize) {
    for at in (0..bytes).step_by(64) {
        prefetch(p.wrapping_add(at));
    }
}

/// Asks for the cache line at `p`, for later: as far as the second cache.
#[inline(always)]
pub(crate) fn prefetch_l2(p: *const u8) {
    // SAFETY: as above.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        use std::arch::asm;
        asm!("prfm pldl2keep, [{}]", in(reg) p, options(nomem, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = p;
}
