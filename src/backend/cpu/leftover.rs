//! Who computes which units of an op where threads are not equally fast.
//!
//! ```text
//!  thread 0  ██████▓▓▒░·······    thread 1  ██████▓▓▒░·······
//!            front ─►   ◄─ back             its own share, from the front
//! ```
//! A thread takes its own share from the front, half of what is left each time, so that memory is
//! read in one direction; one that is done takes from the back of what another has not begun. A
//! core that something else uses as well then costs what it does not do, and not as much again of
//! the others' time.

use std::ops::Range;

use super::share;
use crate::error::Result;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Units that nobody has begun, by thread and op.
#[derive(Default)]
pub(crate) struct Leftover {
    /// `[threads][ops]`: the first unit in the lower half, the end in the upper. Threads' own ones
    /// lie together.
    left: Vec<AtomicU64>,
    ops: usize,
}

impl Leftover {
    /// Makes room for the ops of a step, before any is filled.
    pub(crate) fn reserve(&mut self, threads: usize, ops: usize) -> Result<()> {
        if self.ops < ops {
            // A multiple of a cache line.
            let ops = ops.next_multiple_of(64 / size_of::<u64>());
            self.left.try_reserve(threads * ops - self.left.len())?;
            self.left.resize_with(threads * ops, AtomicU64::default);
            self.ops = ops;
        }
        Ok(())
    }

    /// Shares the `units` of op `op` between `threads`; nobody may be taking of it.
    pub(crate) fn fill(&self, op: usize, units: usize, threads: usize) {
        for thread in 0..threads {
            let packed = pack(share(units, thread, threads));
            self.left[thread * self.ops + op].store(packed, Ordering::Relaxed);
        }
    }

    /// Some units for `thread`, `least` of them unless fewer are left; none when all have begun.
    pub(crate) fn take(
        &self,
        op: usize,
        thread: usize,
        threads: usize,
        least: usize,
    ) -> Option<Range<usize>> {
        (0..threads).find_map(|other| {
            let left = &self.left[(thread + other) % threads * self.ops + op];
            // Relaxed: what was computed is handed over at the barrier behind the op.
            let mut packed = left.load(Ordering::Relaxed);
            loop {
                let Range { start, end } = unpack(packed);
                let some = ((end - start) / 2).max(least).min(end - start);
                if some == 0 {
                    return None;
                }
                let (mine, rest) = match other {
                    0 => (start..start + some, start + some..end),
                    _ => (end - some..end, start..end - some),
                };
                match left.compare_exchange_weak(
                    packed,
                    pack(rest),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => return Some(mine),
                    Err(now) => packed = now,
                }
            }
        })
    }
}

fn pack(units: Range<usize>) -> u64 {
    debug_assert!(units.end < 1 << 32, "units of an op");
    units.start as u64 | (units.end as u64) << 32
}

fn unpack(packed: u64) -> Range<usize> {
    (packed as u32) as usize..(packed >> 32) as usize
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    fn all(left: &Leftover, op: usize, thread: usize, threads: usize) -> Vec<Range<usize>> {
        std::iter::from_fn(|| left.take(op, thread, threads, 2)).collect()
    }

    #[test]
    fn one_thread_alone_takes_its_own_share_and_then_the_others() {
        let mut left = Leftover::default();
        left.reserve(2, 3).unwrap();
        left.fill(1, 21, 2);
        assert!(all(&left, 0, 0, 2).is_empty());
        assert_eq!(all(&left, 1, 0, 2), [0..5, 5..7, 7..9, 9..10, 16..21, 13..16, 11..13, 10..11]);
        assert!(all(&left, 1, 1, 2).is_empty());
        left.fill(1, 1, 2);
        assert_eq!(left.take(1, 0, 2, 2), Some(0..1));
    }

    #[test]
    fn each_unit_is_taken_once() {
        for (threads, units) in [(2, 1000), (3, 7), (5, 999), (4, 0)] {
            let mut left = Leftover::default();
            left.reserve(threads, 1).unwrap();
            left.fill(0, units, threads);
            let mut taken: Vec<usize> = std::thread::scope(|scope| {
                let left = &left;
                let one = |thread| move || all(left, 0, thread, threads);
                let threads: Vec<_> = (0..threads).map(|t| scope.spawn(one(t))).collect();
                threads.into_iter().flat_map(|t| t.join().unwrap()).flatten().collect()
            });
            taken.sort_unstable();
            assert_eq!(taken, (0..units).collect::<Vec<_>>());
        }
    }
}
