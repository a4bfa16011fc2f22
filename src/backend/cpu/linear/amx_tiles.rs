//! AMX itself: the shapes of tiles, and the loops that multiply them.
//!
//! Stable Rust has no intrinsics for it: each loop is one `asm!` block from the sums it begins
//! with to the sums it leaves, so that no tile has to live between blocks. A thread's tiles have a
//! shape from `Config::load` to `release`; between kernels no thread has any, so that the system
//! saves nothing of them while a thread waits.
#![allow(unsafe_code, reason = "tiles are loaded through pointers")]

use std::arch::asm;

/// Rows of a tile.
pub(crate) const TILE: usize = 16;
/// Rows that are multiplied together: two tiles.
pub(crate) const STRIP: usize = 2 * TILE;

/// The shapes of all eight tiles, as `ldtilecfg` reads them.
#[repr(C, align(64))]
pub(crate) struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row.
    colsb: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// For `rows` rows, up to `STRIP`, whose A tiles have rows of `depth` bytes: as `Loops` uses
    /// the tiles.
    pub(crate) fn new(rows: usize, depth: u16) -> Self {
        let mut config =
            Self { palette: 1, start_row: 0, reserved: [0; 14], colsb: [0; 16], rows: [0; 16] };
        let mut set = |tile: usize, rows: usize, colsb: u16| {
            (config.rows[tile], config.colsb[tile]) = (rows as u8, colsb);
        };
        let b_rows = usize::from(depth / 4);
        let first = rows.min(TILE);
        set(0, first, 64);
        set(1, first, 64);
        set(4, first, depth);
        set(6, b_rows, 64);
        set(7, b_rows, 64);
        if rows > TILE {
            set(2, rows - TILE, 64);
            set(3, rows - TILE, 64);
            set(5, rows - TILE, depth);
        } else {
            set(2, first, 64);
            set(3, first, 64);
            set(5, b_rows, 64);
        }
        config
    }

    /// Gives this thread's tiles these shapes and zeros.
    pub(crate) fn load(&self) {
        // SAFETY: the path's instructions are there; the shapes are within what palette 1 allows.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) self,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly));
        }
    }
}

/// Frees this thread's tiles.
pub(crate) fn release() {
    // SAFETY: the path's instructions are there.
    unsafe {
        asm!("tilerelease",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem));
    }
}

/// What is multiplied, and where the sums go.
#[derive(Clone, Copy)]
pub(crate) struct Feed {
    /// Inputs: rows that are `a_stride` bytes apart, 64 bytes of each a tile.
    pub(crate) a: *const u8,
    pub(crate) a_stride: usize,
    /// Weights: tiles of 1 KiB one behind the other, panels `panel_bytes` apart.
    pub(crate) b: *const u8,
    pub(crate) panel_bytes: usize,
    /// Tiles along K, not 0.
    pub(crate) depth: usize,
    /// Sums `[panels][STRIP][16]`.
    pub(crate) c: *mut u8,
    /// Sums begin from 0, not from what is there.
    pub(crate) anew: bool,
    /// Asked for meanwhile, `AHEAD` bytes for each tile of K; null: the panels' own next bytes.
    pub(crate) ahead: *const u8,
}

/// The loops of one instruction, by shape: tiles of rows, panels.
#[derive(Clone, Copy)]
pub(crate) struct Loops {
    one_by_four: Loop,
    one_by_two: Loop,
    one_by_one: Loop,
    two_by_two: Loop,
    two_by_one: Loop,
}

/// A loop that asks for its own weights, and one that asks for others.
type Loop = [unsafe fn(&Feed); 2];

impl Loops {
    /// Adds the product of `rows` rows by 1, 2 or, of one tile of rows, 4 panels.
    ///
    /// # Safety
    /// The tiles have the shapes of `Config::new(rows, _)`, and `feed` holds what it says.
    #[inline(always)]
    pub(crate) unsafe fn multiply(&self, feed: &Feed, rows: usize, panels: usize) {
        let both = match (rows > TILE, panels) {
            (true, 2) => &self.two_by_two,
            (true, _) => &self.two_by_one,
            (false, 4) => &self.one_by_four,
            (false, 2) => &self.one_by_two,
            (false, _) => &self.one_by_one,
        };
        // SAFETY: the caller's contract.
        unsafe { both[usize::from(!feed.ahead.is_null())](feed) }
    }
}

/// Sixteen lines of weights, two tiles ahead of where they are at.
macro_rules! ask_own {
    ($b:literal) => {
        concat!(
            "prefetcht0 [{",
            $b,
            "}+2048]\nprefetcht0 [{",
            $b,
            "}+2112]\n",
            "prefetcht0 [{",
            $b,
            "}+2176]\nprefetcht0 [{",
            $b,
            "}+2240]\n",
            "prefetcht0 [{",
            $b,
            "}+2304]\nprefetcht0 [{",
            $b,
            "}+2368]\n",
            "prefetcht0 [{",
            $b,
            "}+2432]\nprefetcht0 [{",
            $b,
            "}+2496]\n",
            "prefetcht0 [{",
            $b,
            "}+2560]\nprefetcht0 [{",
            $b,
            "}+2624]\n",
            "prefetcht0 [{",
            $b,
            "}+2688]\nprefetcht0 [{",
            $b,
            "}+2752]\n",
            "prefetcht0 [{",
            $b,
            "}+2816]\nprefetcht0 [{",
            $b,
            "}+2880]\n",
            "prefetcht0 [{",
            $b,
            "}+2944]\nprefetcht0 [{",
            $b,
            "}+3008]\n",
        )
    };
}

/// `AHEAD` bytes of other weights, for later.
macro_rules! ask_ahead {
    () => {
        concat!(
            "prefetcht1 [{q}]\nprefetcht1 [{q}+64]\nprefetcht1 [{q}+128]\n",
            "prefetcht1 [{q}+192]\nprefetcht1 [{q}+256]\nprefetcht1 [{q}+320]\n",
            "prefetcht1 [{q}+384]\nprefetcht1 [{q}+448]\nadd {q}, 512\n",
        )
    };
}

/// A whole loop: `$zero`, `$load` and `$store` are about the sums; `$body` is one tile along K,
/// asking included.
macro_rules! tile_loop {
    ($name:ident, $stride:literal, $zero:expr, $load:expr, $store:expr, $body:expr) => {
        unsafe fn $name(f: &Feed) {
            // SAFETY: the caller vouches for the tiles' shapes and for the pointers.
            unsafe {
                asm!(
                    "test {anew}, {anew}",
                    "jz 3f",
                    $zero,
                    "jmp 2f",
                    "3:",
                    $load,
                    "2:",
                    $body,
                    "add {a0}, 64",
                    "add {a1}, 64",
                    "add {b}, 1024",
                    "dec {k}",
                    "jnz 2b",
                    $store,
                    // Not every shape needs all of them.
                    "/* {a1} {sa} {p} {t} {q} {s} {c} {sc} */",
                    a0 = inout(reg) f.a => _,
                    a1 = inout(reg) f.a.wrapping_add(TILE * f.a_stride) => _,
                    sa = in(reg) f.a_stride,
                    b = inout(reg) f.b => _,
                    p = in(reg) f.panel_bytes,
                    t = out(reg) _,
                    q = inout(reg) f.ahead => _,
                    s = in(reg) 64usize,
                    k = inout(reg) f.depth => _,
                    c = in(reg) f.c,
                    sc = in(reg) $stride as usize,
                    anew = in(reg) usize::from(f.anew),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

/// Both loops of a shape. `$ask1` and so on stand where the panel's address is in reach.
macro_rules! shape {
    ($stride:literal, $own:ident, $other:ident, $zero:expr, $load:expr, $store:expr,
     $part1:expr, $ask1:expr $(, $part:expr, $ask:expr)*) => {
        tile_loop!($own, $stride, $zero, $load, $store, concat!($part1, $ask1 $(, $part, $ask)*));
        tile_loop!($other, $stride, $zero, $load, $store,
            concat!($part1 $(, $part)*, ask_ahead!()));
    };
}

/// Loads a tile of sums.
macro_rules! load {
    ($tile:literal, $at:literal) => {
        concat!("tileloadd ", $tile, ", [{c}+{sc}+", $at, "]\n")
    };
}

/// Stores a tile of sums.
macro_rules! store {
    ($tile:literal, $at:literal) => {
        concat!("tilestored [{c}+{sc}+", $at, "], ", $tile, "\n")
    };
}

/// All loops of one instruction, for sums whose rows are `$stride` bytes apart, panels `$p1` (`$p2`
/// is two of them, `$p3` three), tiles of rows `$r`; `$pr` is both.
macro_rules! loops {
    ($module:ident, $dot:literal, $stride:literal, [$p1:literal, $p2:literal, $p3:literal],
     $r:literal, $pr:literal) => {
        mod $module {
            use super::*;

            shape!(
                $stride,
                one_by_four,
                one_by_four_ahead,
                "tilezero tmm0\ntilezero tmm1\ntilezero tmm2\ntilezero tmm3",
                concat!(
                    load!("tmm0", 0),
                    load!("tmm1", $p1),
                    load!("tmm2", $p2),
                    load!("tmm3", $p3)
                ),
                concat!(
                    store!("tmm0", 0),
                    store!("tmm1", $p1),
                    store!("tmm2", $p2),
                    store!("tmm3", $p3)
                ),
                concat!(
                    "tileloadd tmm4, [{a0}+{sa}]\ntileloadd tmm5, [{b}+{s}]\n",
                    $dot,
                    " tmm0, tmm4, tmm5\nlea {t}, [{b}+{p}]\n"
                ),
                ask_own!("b"),
                concat!("tileloadd tmm6, [{t}+{s}]\n", $dot, " tmm1, tmm4, tmm6\n"),
                ask_own!("t"),
                concat!(
                    "lea {t}, [{b}+2*{p}]\ntileloadd tmm7, [{t}+{s}]\n",
                    $dot,
                    " tmm2, tmm4, tmm7\n"
                ),
                ask_own!("t"),
                concat!("add {t}, {p}\ntileloadd tmm5, [{t}+{s}]\n", $dot, " tmm3, tmm4, tmm5\n"),
                ask_own!("t")
            );
            shape!(
                $stride,
                one_by_two,
                one_by_two_ahead,
                "tilezero tmm0\ntilezero tmm1",
                concat!(load!("tmm0", 0), load!("tmm1", $p1)),
                concat!(store!("tmm0", 0), store!("tmm1", $p1)),
                concat!(
                    "tileloadd tmm4, [{a0}+{sa}]\ntileloadd tmm5, [{b}+{s}]\n",
                    $dot,
                    " tmm0, tmm4, tmm5\nlea {t}, [{b}+{p}]\n"
                ),
                ask_own!("b"),
                concat!("tileloadd tmm6, [{t}+{s}]\n", $dot, " tmm1, tmm4, tmm6\n"),
                ask_own!("t")
            );
            shape!(
                $stride,
                one_by_one,
                one_by_one_ahead,
                "tilezero tmm0",
                load!("tmm0", 0),
                store!("tmm0", 0),
                concat!(
                    "tileloadd tmm4, [{a0}+{sa}]\ntileloadd tmm5, [{b}+{s}]\n",
                    $dot,
                    " tmm0, tmm4, tmm5\n"
                ),
                ask_own!("b")
            );
            shape!(
                $stride,
                two_by_two,
                two_by_two_ahead,
                "tilezero tmm0\ntilezero tmm1\ntilezero tmm2\ntilezero tmm3",
                concat!(
                    load!("tmm0", 0),
                    load!("tmm2", $r),
                    load!("tmm1", $p1),
                    load!("tmm3", $pr)
                ),
                concat!(
                    store!("tmm0", 0),
                    store!("tmm2", $r),
                    store!("tmm1", $p1),
                    store!("tmm3", $pr)
                ),
                concat!(
                    "tileloadd tmm4, [{a0}+{sa}]\ntileloadd tmm6, [{b}+{s}]\n",
                    $dot,
                    " tmm0, tmm4, tmm6\ntileloadd tmm5, [{a1}+{sa}]\n",
                    $dot,
                    " tmm2, tmm5, tmm6\nlea {t}, [{b}+{p}]\n"
                ),
                ask_own!("b"),
                concat!(
                    "tileloadd tmm7, [{t}+{s}]\n",
                    $dot,
                    " tmm1, tmm4, tmm7\n",
                    $dot,
                    " tmm3, tmm5, tmm7\n"
                ),
                ask_own!("t")
            );
            shape!(
                $stride,
                two_by_one,
                two_by_one_ahead,
                "tilezero tmm0\ntilezero tmm2",
                concat!(load!("tmm0", 0), load!("tmm2", $r)),
                concat!(store!("tmm0", 0), store!("tmm2", $r)),
                concat!(
                    "tileloadd tmm4, [{a0}+{sa}]\ntileloadd tmm6, [{b}+{s}]\n",
                    $dot,
                    " tmm0, tmm4, tmm6\ntileloadd tmm5, [{a1}+{sa}]\n",
                    $dot,
                    " tmm2, tmm5, tmm6\n"
                ),
                ask_own!("b")
            );

            pub(super) const LOOPS: Loops = Loops {
                one_by_four: [one_by_four, one_by_four_ahead],
                one_by_two: [one_by_two, one_by_two_ahead],
                one_by_one: [one_by_one, one_by_one_ahead],
                two_by_two: [two_by_two, two_by_two_ahead],
                two_by_one: [two_by_one, two_by_one_ahead],
            };
        }
    };
}

loops!(bf16, "tdpbf16ps", 64, [2048, 4096, 6144], 1024, 3072);
loops!(bf16_scores, "tdpbf16ps", 1024, [64, 128, 192], 16384, 16448);
loops!(bytes, "tdpbsud", 64, [2048, 4096, 6144], 1024, 3072);

/// bf16 by bf16, summed in f32.
pub(crate) const SUMS: Loops = bf16::LOOPS;
/// The same, but sums lie `[STRIP][256]`: panels are sixteen of each row's.
pub(crate) const SCORES: Loops = bf16_scores::LOOPS;
/// Signed bytes (A, inputs) by unsigned bytes (B, weights), summed in i32, as `SUMS`.
pub(crate) const BYTES: Loops = bytes::LOOPS;
