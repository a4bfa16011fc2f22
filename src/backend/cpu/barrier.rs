//! A barrier that spins, then lets others run between its looks, then sleeps.
//!
//! A step has hundreds of barriers, so that sleeping at each would cost more than the work: a
//! virtual machine's core that sleeps may have to wait for its turn before it goes on. But a host's
//! own threads, or the very thread that is waited for, may be in line for this core: spinning
//! without end would keep them away.

use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex, hint, thread};

/// Lets `threads` threads meet again and again.
pub struct Barrier {
    threads: usize,
    spin: Duration,
    arrived: AtomicUsize,
    /// Meetings so far; a change lets the waiters go.
    generation: AtomicUsize,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Barrier {
    /// A barrier of `threads` threads, each of which looks for `spin` before it sleeps; with zero
    /// it sleeps at once.
    pub fn new(threads: usize, spin: Duration) -> Self {
        assert!(threads > 0, "a barrier needs at least one thread");
        Self {
            threads,
            spin,
            arrived: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            changed: Condvar::new(),
        }
    }

    /// Returns when all threads have called it as often as this one.
    pub fn wait(&self) {
        self.wait_while(|| true);
    }

    /// As `wait`, but looks only as long as `may_spin` says so.
    pub fn wait_while(&self, mut may_spin: impl FnMut() -> bool) {
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrive_at(generation, 1) || self.spin(generation, &mut may_spin) {
            return;
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        // Nothing panics while it holds this lock, so it is never poisoned.
        let mut guard = self.lock.lock().unwrap_or_else(|e| e.into_inner());
        while self.generation.load(Ordering::SeqCst) == generation {
            guard = self.changed.wait(guard).unwrap_or_else(|e| e.into_inner());
        }
        drop(guard);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Arrives for `count` threads without waiting: stands in for threads that never came to be.
    pub fn arrive(&self, count: usize) {
        self.arrive_at(self.generation.load(Ordering::Acquire), count);
    }

    /// Looks for a while; true when the others have come.
    fn spin(&self, generation: usize, may_spin: &mut impl FnMut() -> bool) -> bool {
        if self.spin.is_zero() {
            return false;
        }
        // Most meetings end before the clock is asked for the first time.
        let (mut began, mut yields) = (None, false);
        loop {
            for _ in 0..LOOKS {
                if self.generation.load(Ordering::Acquire) != generation {
                    return true;
                }
                if !may_spin() {
                    return false;
                }
                if yields { thread::yield_now() } else { hint::spin_loop() }
            }
            let waited = began.get_or_insert_with(Instant::now).elapsed();
            // Shuttle explores schedules, and a clock has no place in one.
            if cfg!(feature = "shuttle") || waited >= self.spin {
                return false;
            }
            yields = waited >= ALONE;
        }
    }

    /// Counts arrivals; true when they were the last, and the others have been let go.
    fn arrive_at(&self, generation: usize, count: usize) -> bool {
        let last = self.arrived.fetch_add(count, Ordering::AcqRel) + count == self.threads;
        if last {
            // Nobody arrives anew before the generation changes, so this cannot lose an arrival.
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.store(generation.wrapping_add(1), Ordering::SeqCst);
            // A waiter counts itself before it looks at the generation a last time, both SeqCst:
            // either it sees the change, or it is seen here.
            if self.sleepers.load(Ordering::SeqCst) > 0 {
                drop(self.lock.lock());
                self.changed.notify_all();
            }
        }
        last
    }
}

/// How long a thread looks before it lets others run between its looks.
const ALONE: Duration = Duration::from_micros(10);
/// Looks between two of the clock.
const LOOKS: usize = if cfg!(feature = "shuttle") { 1 } else { 32 };

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn everyone_is_there_at_each_meeting() {
        for (threads, spin) in [(1, 0), (2, 0), (3, 5), (5, 100)] {
            let barrier = Barrier::new(threads, Duration::from_micros(spin));
            let count = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        for round in 1..=200 {
                            count.fetch_add(1, Ordering::Relaxed);
                            barrier.wait_while(|| round % 2 == 0);
                            assert_eq!(count.load(Ordering::Relaxed), round * threads);
                            barrier.wait();
                        }
                    });
                }
            });
        }
    }
}
