//! Reading and packing a layer's weights, by all threads at once.
//!
//! ```text
//!  a thread's panels ─► pieces of rows, read into its cache ─► sixteen rows, rounded ─► turned
//! ```
//! A thread fills the panels that it will multiply, so that their pages are first touched, and on a
//! machine with several memories lie, where they are used.
#![allow(unsafe_code, reason = "threads fill disjoint panels of one buffer")]

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::linear::quantized::{Format, Int4, Int6, WHOLE};
use super::memory::Buffer;
use super::pack::{Packed, Storage};
use super::quantize::{self, Grouped};
use super::share;
use super::simd::bf16_bits;
use super::thread_pool::ThreadPool;
use crate::backend::{DType, LinearPart};
use crate::error::{Error, Result};

/// Where a layer's panels lie.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub(super) storage: Storage,
    /// Inputs.
    pub(super) k: usize,
    /// The first panel.
    pub(super) data: *mut u8,
    /// Quantized outputs' scales, from the first panel's on.
    pub(super) scales: *mut f32,
    /// Every how many of the layer's panels is one of these.
    pub(super) apart: usize,
    /// Of one panel.
    pub(super) bytes: usize,
}

// SAFETY: threads write disjoint panels and scales through it while the layer that owns them waits.
unsafe impl Sync for Panels {}

/// Reads and packs `parts`, stacked along the outputs. Of several faults the one in the lowest rows
/// is told.
pub(super) fn fill(packed: &Packed, parts: &[LinearPart], pool: &mut ThreadPool) -> Result<()> {
    let threads = pool.threads();
    let fault: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    pool.run(&|thread| {
        let fill = |side: Option<usize>, parts: &[LinearPart], outputs: usize| {
            let own = share(outputs.div_ceil(16), thread, threads);
            let rows = own.start * 16..(own.end * 16).min(outputs);
            fill_rows(&packed.target(side), parts, rows)
        };
        let filled = match parts {
            [gate, up] if packed.gated => fill(Some(0), std::slice::from_ref(gate), packed.n / 2)
                .and_then(|()| fill(Some(1), std::slice::from_ref(up), packed.n / 2)),
            _ => fill(None, parts, packed.n),
        };
        if let Err(e) = filled {
            let mut fault = fault.lock().unwrap_or_else(PoisonError::into_inner);
            if fault.as_ref().is_none_or(|(other, _)| thread < *other) {
                *fault = Some((thread, e));
            }
        }
    });
    let fault = fault.into_inner().unwrap_or_else(PoisonError::into_inner);
    fault.map_or(Ok(()), |(_, e)| Err(e))
}

/// Reads and packs a thread's rows, which begin with a panel.
fn fill_rows(panels: &Panels, parts: &[LinearPart], rows: Range<usize>) -> Result<()> {
    let mut staging = Staging::new(panels)?;
    let mut first = 0;
    for part in parts {
        let weight = &part.weight;
        let row_bytes = panels.k * weight.dtype().size();
        let whole = (weight.piece_bytes() / row_bytes.max(1)).max(16) / 16 * 16;
        let (mut at, end) = (rows.start.max(first), rows.end.min(first + weight.rows()));
        let bytes = whole.min(end.saturating_sub(at)).saturating_mul(row_bytes);
        let mut piece = Buffer::<u8>::zeroed(bytes, "staging of weights")?;
        while at < end {
            // Pieces end where panels do, but for the last.
            let until = (at / 16 * 16 + whole).min(end);
            let piece = &mut piece.as_mut_slice()[..(until - at) * row_bytes];
            weight.read_rows(at - first..until - first, piece)?;
            panels.pack(at..until, weight.dtype(), piece, &mut staging);
            at = until;
        }
        first += weight.rows();
    }
    Ok(())
}

/// Rows on their way into a panel; what lies beyond K stays 0.
struct Staging {
    /// One row, widened, `[k]`, padded where groups have scales; where a panel holds f32, sixteen.
    values: Buffer<f32>,
    /// Sixteen rows as a panel holds them, `[16][row_words]`.
    words: Buffer<u32>,
    row_words: usize,
    /// Scales of groups, `[16][groups]`.
    scales: Buffer<i8>,
    groups: usize,
}

impl Staging {
    fn new(panels: &Panels) -> Result<Self> {
        let (k, whole) = (panels.k, panels.k.next_multiple_of(WHOLE));
        let (row_words, groups) = match panels.storage {
            Storage::Bf16Pairs => (k.div_ceil(2), 0),
            Storage::Int8 => (k.div_ceil(4), 0),
            Storage::Int4 => (whole / Int4::GROUP * Int4::WORDS, whole / Int4::GROUP),
            Storage::Int6 => (whole / Int6::GROUP * Int6::WORDS, whole / Int6::GROUP),
            Storage::F32 | Storage::F16 | Storage::Bf16 => (0, 0),
        };
        let values = match panels.storage {
            Storage::F32 => k.saturating_mul(16),
            Storage::Int4 | Storage::Int6 => whole,
            _ => k,
        };
        let zeroed = "staging of weights";
        Ok(Self {
            values: Buffer::zeroed(values, zeroed)?,
            words: Buffer::zeroed(row_words.saturating_mul(16), zeroed)?,
            row_words,
            scales: Buffer::zeroed(groups * 16, zeroed)?,
            groups,
        })
    }
}

impl Panels {
    /// The panel of output `row`, and where its scale is.
    #[inline(always)]
    fn at(&self, row: usize) -> (*mut u8, *mut f32) {
        let panel = row / 16 * self.apart;
        let scale = self.scales.wrapping_add(panel * 16 + row % 16);
        (self.data.wrapping_add(panel * self.bytes), scale)
    }

    /// Packs `rows`, whose elements are in `source`, panel by panel.
    fn pack(&self, rows: Range<usize>, dtype: DType, source: &[u8], staging: &mut Staging) {
        let lanes = fastest();
        let row_bytes = self.k * dtype.size();
        let mut row = rows.start;
        while row < rows.end {
            let until = ((row / 16 + 1) * 16).min(rows.end);
            let source = &source[(row - rows.start) * row_bytes..][..(until - row) * row_bytes];
            // SAFETY: `fastest` saw the features; the rows are the layer's and this thread's own.
            unsafe { lanes(self, row..until, dtype, source, staging) };
            row = until;
        }
    }
}

/// Packs rows of one panel.
type Lanes = unsafe fn(&Panels, Range<usize>, DType, &[u8], &mut Staging);

/// `lanes` with the machine's features; the bits are the same on all.
fn fastest() -> Lanes {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")]
        unsafe fn avx512(p: &Panels, r: Range<usize>, d: DType, b: &[u8], s: &mut Staging) {
            // SAFETY: the caller's contract.
            unsafe { lanes(p, r, d, b, s) }
        }

        #[target_feature(enable = "avx2,f16c")]
        unsafe fn avx2(p: &Panels, r: Range<usize>, d: DType, b: &[u8], s: &mut Staging) {
            // SAFETY: the caller's contract.
            unsafe { lanes(p, r, d, b, s) }
        }

        let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
        let has_avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match (has_avx2, has_avx512) {
            (true, true) => return avx512,
            (true, false) => return avx2,
            (false, _) => {}
        }
    }
    lanes
}

/// Packs `rows`, all of one panel.
///
/// # Safety
/// The rows are the layer's, `source` holds them, and no other thread has their panel.
#[inline(always)]
unsafe fn lanes(
    p: &Panels,
    rows: Range<usize>,
    dtype: DType,
    source: &[u8],
    staging: &mut Staging,
) {
    let (k, count, lane) = (p.k, rows.len(), rows.start % 16);
    let raw = Rows { start: source.as_ptr(), stride: k * dtype.size(), count, lane };
    let row = |i: usize| &source[i * raw.stride..][..raw.stride];
    let values = staging.values.as_mut_slice();
    let words = staging.words.as_mut_slice();
    let row_words = staging.row_words;
    let staged = Rows { start: words.as_ptr().cast(), stride: row_words * 4, count, lane };
    // SAFETY: by the contract; the elements of a panel are as many as its rows have, padded.
    unsafe {
        let (panel, scales) = p.at(rows.start);
        match (p.storage, dtype) {
            (Storage::Bf16Pairs, DType::Bf16) if k.is_multiple_of(2) => {
                turn::<u32, 16>(raw, k / 2, panel.cast());
            }
            (Storage::Bf16Pairs, _) => {
                for i in 0..count {
                    widen(dtype, row(i), values);
                    let to = &mut words[i * row_words..][..row_words];
                    for (word, pair) in to.iter_mut().zip(values.chunks(2)) {
                        let high = pair.get(1).map_or(0, |v| bf16_bits(*v));
                        *word = u32::from(bf16_bits(pair[0])) | u32::from(high) << 16;
                    }
                }
                turn::<u32, 16>(staged, row_words, panel.cast());
            }
            (Storage::F32, DType::F32) => turn::<u32, 16>(raw, k, panel.cast()),
            (Storage::F32, _) => {
                for i in 0..count {
                    widen(dtype, row(i), &mut values[i * k..][..k]);
                }
                let wide = Rows { start: values.as_ptr().cast(), stride: k * 4, count, lane };
                turn::<u32, 16>(wide, k, panel.cast());
            }
            (Storage::F16 | Storage::Bf16, _) => turn::<u16, 32>(raw, k, panel.cast()),
            (Storage::Int8, _) => {
                for i in 0..count {
                    widen(dtype, row(i), values);
                    let bytes = words[i * row_words..].as_mut_ptr().cast();
                    let bytes = std::slice::from_raw_parts_mut(bytes, k);
                    *scales.add(i) = quantize::int8_row(values, bytes);
                }
                turn::<u32, 16>(staged, row_words, panel.cast());
            }
            (Storage::Int4, _) => grouped::<Int4>(&raw, dtype, staging, (panel, scales)),
            (Storage::Int6, _) => grouped::<Int6>(&raw, dtype, staging, (panel, scales)),
        }
    }
}

/// Rounds and packs rows of one panel whose groups have scales.
///
/// # Safety
/// That of `lanes`.
#[inline(always)]
unsafe fn grouped<F: Grouped>(
    raw: &Rows,
    dtype: DType,
    staging: &mut Staging,
    (panel, outputs): (*mut u8, *mut f32),
) {
    let (words, row_words) = (staging.words.as_mut_slice(), staging.row_words);
    let (scales, groups) = (staging.scales.as_mut_slice(), staging.groups);
    // SAFETY: by the contract; a panel has room for all groups of its rows.
    unsafe {
        for i in 0..raw.count {
            let row = std::slice::from_raw_parts(raw.start.add(i * raw.stride), raw.stride);
            let values = staging.values.as_mut_slice();
            widen(dtype, row, &mut values[..raw.stride / dtype.size()]);
            let to = &mut words[i * row_words..][..row_words];
            let scales = &mut scales[i * groups..][..groups];
            *outputs.add(i) = quantize::grouped_row::<F>(values, to, scales);
        }
        let staged = Rows { start: words.as_ptr().cast(), stride: row_words * 4, ..*raw };
        let scales = Rows { start: scales.as_ptr().cast(), stride: groups, ..*raw };
        for group in (0..groups).step_by(4) {
            let at = panel.add(F::weights_at(group)).cast();
            match const { F::WORDS } {
                4 => turn::<u32, 16>(staged.from(group * 16), 16, at),
                _ => turn::<u32, 12>(staged.from(group * 24), 24, at),
            }
            let at = panel.add(F::scales_at(group));
            turn::<u8, 4>(scales.from(group), 4, at.cast());
        }
    }
}

/// `DType::widen`, inlined.
#[inline(always)]
fn widen(dtype: DType, raw: &[u8], out: &mut [f32]) {
    match dtype {
        DType::Bf16 => {
            for (o, b) in out.iter_mut().zip(raw.as_chunks::<2>().0) {
                *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        _ => dtype.widen(raw, out),
    }
}

/// Rows that become lanes of a panel, from `lane` on.
#[derive(Clone, Copy)]
struct Rows {
    start: *const u8,
    /// Bytes from row to row.
    stride: usize,
    count: usize,
    lane: usize,
}

impl Rows {
    /// The rows from byte `at` on.
    #[inline(always)]
    fn from(self, at: usize) -> Self {
        Self { start: self.start.wrapping_add(at), ..self }
    }
}

/// `out[i][lane + row] = rows[row][i]` for `i < len`. Sixteen rows go `B` elements, a cache line,
/// at a time: rows whose lengths are powers of two push each other out of the nearest cache.
///
/// # Safety
/// Each row has `len` elements, and `out` has room for as many steps.
#[inline(always)]
unsafe fn turn<T: Copy, const B: usize>(rows: Rows, len: usize, out: *mut [T; 16]) {
    let mut done = 0;
    // SAFETY: by the contract; `done + B <= len`.
    unsafe {
        while rows.count == 16 && done + B <= len {
            let at = |row: usize| rows.start.add(row * rows.stride).cast::<T>().add(done);
            let block: [[T; B]; 16] =
                std::array::from_fn(|row| at(row).cast::<[T; B]>().read_unaligned());
            let step = |i: usize| std::array::from_fn(|row| block[row][i]);
            for i in 0..B {
                *out.add(done + i) = step(i);
            }
            done += B;
        }
        for row in 0..rows.count {
            let from = rows.start.add(row * rows.stride).cast::<T>();
            for i in done..len {
                (*out.add(i))[rows.lane + row] = from.add(i).read_unaligned();
            }
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::super::pack::Precision;
    use super::super::thread_pool::PoolOptions;
    use super::*;
    use crate::backend::{ComputeType, LinearRole, LinearSpec, RowSource};
    use crate::config::Quantization;
    use crate::error::ErrorKind;

    /// Element `i` of the layer is `value(i)`; reading row `bad` fails.
    struct Numbers {
        dtype: DType,
        first: usize,
        rows: usize,
        cols: usize,
        bad: Option<usize>,
    }

    /// A multiple of 1/64, exact in every type.
    fn value(i: usize) -> f32 {
        ((i * 7919) % 255) as f32 / 64.0 - 2.0
    }

    impl RowSource for Numbers {
        fn name(&self) -> &str {
            "numbers"
        }

        fn dtype(&self) -> DType {
            self.dtype
        }

        fn rows(&self) -> usize {
            self.rows
        }

        fn cols(&self) -> usize {
            self.cols
        }

        fn read_rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
            if let Some(bad) = self.bad.filter(|bad| rows.contains(bad)) {
                return Err(Error::new(ErrorKind::Io, format!("row {}", self.first + bad)));
            }
            let first = (self.first + rows.start) * self.cols;
            let size = self.dtype.size();
            for (i, out) in out.chunks_exact_mut(size).enumerate() {
                let v = value(first + i);
                match self.dtype {
                    DType::F32 => out.copy_from_slice(&v.to_le_bytes()),
                    DType::F16 => out.copy_from_slice(&half::f16::from_f32(v).to_le_bytes()),
                    DType::Bf16 => out.copy_from_slice(&half::bf16::from_f32(v).to_le_bytes()),
                }
            }
            Ok(())
        }

        fn piece_bytes(&self) -> usize {
            self.cols * self.dtype.size() * 20
        }
    }

    /// Parts of 5, 70 and 30 rows; `bad` rows of them cannot be read.
    fn spec(cols: usize, dtypes: [DType; 3], bad: [Option<usize>; 3]) -> LinearSpec {
        let mut first = 0;
        let parts = [5, 70, 30].into_iter().zip(dtypes).zip(bad).map(|((rows, dtype), bad)| {
            let weight = Box::new(Numbers { dtype, first, rows, cols, bad });
            first += rows;
            LinearPart { weight, bias: None }
        });
        LinearSpec { parts: parts.collect(), role: LinearRole::Hidden }
    }

    fn pack(spec: &LinearSpec, precision: Precision, threads: usize) -> Result<Packed> {
        Packed::new(spec, precision, &mut ThreadPool::new(PoolOptions::alone(threads))?)
    }

    fn bytes(packed: &Packed) -> &[u8] {
        let panels = packed.target(None);
        // SAFETY: the layer owns its panels and nobody writes to them.
        unsafe { std::slice::from_raw_parts(panels.data, panels.bytes * packed.n.div_ceil(16)) }
    }

    #[test]
    fn every_element_is_where_it_is_looked_for() {
        let types = [DType::F32, DType::F16, DType::Bf16];
        for cols in [1, 37, 64] {
            for dtypes in [types, [DType::F32; 3], [DType::F16; 3], [DType::Bf16; 3]] {
                for compute in [ComputeType::F32, ComputeType::Bf16] {
                    let precision = Precision { compute, quantization: None };
                    for threads in [1, 2, 5] {
                        let spec = spec(cols, dtypes, [None; 3]);
                        let packed = pack(&spec, precision, threads).unwrap();
                        let mut row = vec![0.0; cols];
                        for r in 0..105 {
                            packed.gather(r, &mut row, false);
                            let wanted = (0..cols).map(|c| value(r * cols + c));
                            assert!(row.iter().copied().eq(wanted), "{dtypes:?} {compute:?} {r}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn rounded_panels_do_not_depend_on_threads_pieces_or_types() {
        for quantization in [Quantization::Int8, Quantization::Int4] {
            let precision =
                Precision { compute: ComputeType::Bf16, quantization: Some(quantization) };
            for cols in [31, 96, 130] {
                let exact = spec(cols, [DType::F32; 3], [None; 3]);
                let alone = pack(&exact, precision, 1).unwrap();
                assert!(bytes(&alone).iter().any(|b| *b != 0));
                for (dtype, threads) in [(DType::Bf16, 1), (DType::F16, 2), (DType::Bf16, 5)] {
                    let other = pack(&spec(cols, [dtype; 3], [None; 3]), precision, threads);
                    assert!(bytes(&alone) == bytes(&other.unwrap()), "{cols} {dtype:?}");
                }
            }
        }
    }

    #[test]
    fn the_lowest_fault_is_told() {
        let precision = Precision { compute: ComputeType::Bf16, quantization: None };
        for threads in [1, 2, 4] {
            let spec = spec(8, [DType::Bf16; 3], [None, Some(20), Some(25)]);
            let error = pack(&spec, precision, threads).err().unwrap();
            assert_eq!(error.message(), "row 25");
        }
    }
}
