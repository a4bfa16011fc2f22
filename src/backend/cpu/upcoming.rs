//! What a thread asks memory for while it waits for others.
//!
//! Between two linear layers memory would be idle: one thread is done before another, and norms,
//! rotations and short attention read next to nothing. So whoever waits asks for the first of the
//! weights that it will multiply next, as far as its own cache holds them.

use super::program::{LinearOp, Op};
use super::share;
use super::simd::hint::prefetch_l2;

/// The first weights of a thread's next linear layer that it has not asked for.
pub(crate) struct Upcoming {
    at: *const u8,
    /// Cache lines.
    left: usize,
}

impl Upcoming {
    /// Of the ops that follow, for thread `thread` of `threads`.
    pub(crate) fn of(ops: &[Op], thread: usize, threads: usize) -> Self {
        let next = ops.iter().take(NEAR).find_map(|op| match op {
            Op::Linear(LinearOp { args, .. }) => Some(args),
            _ => None,
        });
        let Some(args) = next else { return Self { at: std::ptr::null(), left: 0 } };
        let bytes = args.panels / args.units().max(1) * args.panel_bytes;
        let units = share(args.units(), thread, threads);
        let at = args.weights.wrapping_add(units.start * bytes);
        Self { at, left: (units.len() * bytes).min(MOST_BYTES) / LINE }
    }

    /// Asks for some lines more; always true, so that the wait goes on.
    #[inline]
    pub(crate) fn ask(&mut self) -> bool {
        let lines = self.left.min(LINES);
        for line in 0..lines {
            prefetch_l2(self.at.wrapping_add(LINE * line));
        }
        self.at = self.at.wrapping_add(LINE * lines);
        self.left -= lines;
        true
    }
}

/// Ops between two linear layers, and the next one.
const NEAR: usize = 4;
/// A part of a second cache of 1 MiB: what is at hand stays there, too.
const MOST_BYTES: usize = 128 << 10;
/// Lines between two looks at whether the others have come.
const LINES: usize = 4;
/// Bytes of a cache line.
const LINE: usize = 64;
