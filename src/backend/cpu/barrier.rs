//! A barrier that spins for a moment and then sleeps.
//!
//! A step has hundreds of barriers, microseconds apart, so that sleeping at each would cost more
//! than the work. But a host's own threads may hold the core that the last thread needs: then
//! spinning only keeps it away longer.

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex, hint};

/// Lets `threads` threads meet again and again.
pub struct Barrier {
    threads: usize,
    spins: usize,
    arrived: AtomicUsize,
    /// Meetings so far; a change lets the waiters go.
    generation: AtomicUsize,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Barrier {
    /// A barrier of `threads` threads that hardly spins.
    pub fn new(threads: usize) -> Self {
        Self::with_spins(threads, 1)
    }

    /// A barrier that looks `spins` times before it sleeps.
    pub fn with_spins(threads: usize, spins: usize) -> Self {
        assert!(threads > 0, "a barrier needs at least one thread");
        Self {
            threads,
            spins,
            arrived: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            changed: Condvar::new(),
        }
    }

    /// Returns when all threads have called it as often as this one.
    pub fn wait(&self) {
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrive_at(generation, 1) {
            return;
        }
        for _ in 0..self.spins {
            if self.generation.load(Ordering::Acquire) != generation {
                return;
            }
            hint::spin_loop();
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

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn everyone_is_there_at_each_meeting() {
        for (threads, spins) in [(1, 0), (2, 0), (3, 50), (5, 1000)] {
            let barrier = Barrier::with_spins(threads, spins);
            let count = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        for round in 1..=200 {
                            count.fetch_add(1, Ordering::Relaxed);
                            barrier.wait();
                            assert_eq!(count.load(Ordering::Relaxed), round * threads);
                            barrier.wait();
                        }
                    });
                }
            });
        }
    }
}
