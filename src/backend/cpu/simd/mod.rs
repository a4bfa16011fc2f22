//! Sixteen f32 lanes, whatever the machine: kernels are written once over `Simd16` and
//! instantiated for each instruction path (see `kernels.rs`).
//!
//! Contract of the whole room: a type of an instruction path is used only inside functions that
//! `kernels.rs` instantiates with that path's `target_feature`s, and those are called only after
//! the machine showed the features. Every generic function is `#[inline(always)]`, so that it is
//! compiled with the features of the function it ends up in.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod hint;
pub(crate) mod integer;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;

/// Sixteen f32 lanes. Reductions add in one fixed tree on every path.
pub(crate) trait Simd16: Copy {
    /// The L2 cache of a core, as small as machines with the path have it.
    const L2_BYTES: usize;
    /// Rows up to which panels are streamed in pairs: memory brings two side by side faster than
    /// one there, and registers hold their sums.
    const PAIRED_ROWS: usize = 0;
    /// Bytes of weights, of both panels of a pair together, that a stream is asked for ahead.
    const STREAM_AHEAD: usize = 4096;
    /// All lanes `x`.
    fn splat(x: f32) -> Self;
    /// Reads 16 elements.
    unsafe fn load(p: *const f32) -> Self;
    /// Writes 16 elements.
    unsafe fn store(self, p: *mut f32);
    /// Reads 16 bf16 and widens them exactly.
    unsafe fn load_bf16(p: *const u16) -> Self;
    /// Reads 16 IEEE halves and widens them exactly.
    unsafe fn load_f16(p: *const u16) -> Self;
    /// Reads 16 pairs of bf16: the even elements, the odd elements.
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self, Self);
    /// Reads 16 pairs of signed bytes: the even elements, the odd elements.
    #[inline(always)]
    unsafe fn load_i8_pairs(p: *const i8) -> (Self, Self) {
        // SAFETY: the caller vouches for 32 elements, and the arrays have 16.
        unsafe {
            let bytes = p.cast::<[i8; 32]>().read_unaligned();
            let even: [f32; 16] = std::array::from_fn(|i| bytes[2 * i].into());
            let odd: [f32; 16] = std::array::from_fn(|i| bytes[2 * i + 1].into());
            (Self::load(even.as_ptr()), Self::load(odd.as_ptr()))
        }
    }
    /// Reads 16 signed bytes.
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: the caller vouches for 16 elements.
        unsafe { Self::load(p.cast::<[i8; 16]>().read_unaligned().map(f32::from).as_ptr()) }
    }
    /// Rounds to bf16, nearest even, and writes 16 elements.
    unsafe fn store_bf16(self, p: *mut u16);
    /// Rounds both to bf16, nearest even, and writes elements of the one and the other in turn.
    unsafe fn store_bf16_pairs(self, odd: Self, p: *mut u16);
    /// Rounds to bf16, nearest even, and stays f32.
    fn round_bf16(self) -> Self;
    /// Writes integral lanes from -128 to 127 as 16 signed bytes.
    unsafe fn store_i8(self, p: *mut i8);
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn sub(self, other: Self) -> Self;
    /// `self * other`.
    fn mul(self, other: Self) -> Self;
    /// `self / other`.
    fn div(self, other: Self) -> Self;
    /// `self * a + b`: fused where the path has it, never where it has not.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// The greater; a NaN in `self` stays.
    fn max(self, other: Self) -> Self;
    /// The less; a NaN in `self` stays.
    fn min(self, other: Self) -> Self;
    /// The nearest integer, for |x| < 2^22.
    fn round(self) -> Self;
    /// `self * 2^n`, where that is no subnormal number, of integral lanes `n` from -126 to 127.
    fn mul_pow2(self, n: Self) -> Self;
    /// `self` where `a < b`, else `other`.
    fn where_less(self, a: Self, b: Self, other: Self) -> Self;
    /// Asks for the cache line at `p`; any address will do.
    #[inline(always)]
    fn prefetch(p: *const u8) {
        hint::prefetch(p);
    }
    /// Asks for the cache line at `p`, for later.
    #[inline(always)]
    fn prefetch_l2(p: *const u8) {
        hint::prefetch_l2(p);
    }

    /// Reads `n <= 16` elements; the other lanes are 0.
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        let mut lanes = [0f32; 16];
        // SAFETY: the caller vouches for n <= 16 elements at `p`; `lanes` has 16.
        unsafe {
            if n == 16 {
                return Self::load(p);
            }
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            Self::load(lanes.as_ptr())
        }
    }

    /// Writes the first `n <= 16` lanes.
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        // SAFETY: the caller vouches for n <= 16 elements at `p`; `lanes` has 16.
        unsafe {
            if n == 16 {
                self.store(p);
            } else {
                std::ptr::copy_nonoverlapping(self.lanes().as_ptr(), p, n);
            }
        }
    }

    /// The lanes.
    #[inline(always)]
    fn lanes(self) -> [f32; 16] {
        let mut lanes = [0f32; 16];
        // SAFETY: `lanes` has 16 elements.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes
    }

    /// `self` in lanes `from <= i < to`, `other` elsewhere; selected, so that a NaN outside goes.
    #[inline(always)]
    fn keep(self, from: usize, to: usize, other: Self) -> Self {
        if from == 0 && to >= 16 {
            return self;
        }
        let (mut lanes, others) = (self.lanes(), other.lanes());
        for (i, lane) in lanes.iter_mut().enumerate() {
            if i < from || i >= to {
                *lane = others[i];
            }
        }
        // SAFETY: `lanes` has 16 elements.
        unsafe { Self::load(lanes.as_ptr()) }
    }

    /// The sum of all lanes.
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = self.lanes();
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    }

    /// The greatest lane; NaN if one may have to be seen, not necessarily.
    #[inline(always)]
    fn greatest(self) -> f32 {
        self.lanes().into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// Rounds to bf16, nearest even; NaN stays NaN.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Widens bf16 exactly.
#[inline(always)]
pub(crate) fn bf16_value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}
