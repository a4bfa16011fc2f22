//! The process's cores, lent to the compute threads of its engines.
//!
//! Two engines with as many threads as there are cores would only get in each other's way: the
//! threads of one spin where those of the other are to work. So a parallel region takes a lease of
//! as many cores as it has threads, and waits for its turn where there are not enough. Turns are
//! given in the order in which they were asked for. An engine alone never waits.

use std::sync::OnceLock;

use super::affinity;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Condvar, Mutex};

/// Cores that can be taken.
pub(crate) struct Leases {
    cores: usize,
    turns: Mutex<Turns>,
    changed: Condvar,
    /// Regions that run or wait.
    claims: AtomicUsize,
}

struct Turns {
    free: usize,
    /// The number that the next comer gets.
    next: u64,
    /// The number whose turn it is.
    current: u64,
}

/// Cores that are taken, until it is dropped.
pub(crate) struct Lease<'a> {
    leases: &'a Leases,
    cores: usize,
}

impl Leases {
    /// `cores` of them, all free.
    pub(crate) fn new(cores: usize) -> Self {
        let turns = Turns { free: cores, next: 0, current: 0 };
        let (turns, changed) = (Mutex::new(turns), Condvar::new());
        Self { cores, turns, changed, claims: AtomicUsize::new(0) }
    }

    /// Those of this process, as the first engine found them.
    pub(crate) fn of_process() -> Arc<Self> {
        static LEASES: OnceLock<Arc<Leases>> = OnceLock::new();
        Arc::clone(LEASES.get_or_init(|| Arc::new(Self::new(affinity::default_threads()))))
    }

    /// Takes a core for each of `threads`, or all there are, and waits for them in turn.
    pub(crate) fn take(&self, threads: usize) -> Lease<'_> {
        let cores = threads.min(self.cores);
        self.claims.fetch_add(1, Ordering::SeqCst);
        // Nothing panics while it holds this lock, so it is never poisoned.
        let mut turns = self.turns.lock().unwrap_or_else(|e| e.into_inner());
        let mine = turns.next;
        turns.next += 1;
        while turns.current != mine || turns.free < cores {
            turns = self.changed.wait(turns).unwrap_or_else(|e| e.into_inner());
        }
        turns.free -= cores;
        turns.current += 1;
        // What is left may be enough for who comes next.
        let others_wait = turns.current != turns.next;
        drop(turns);
        if others_wait {
            self.changed.notify_all();
        }
        Lease { leases: self, cores }
    }

    /// Regions that run or wait for their turn.
    pub(crate) fn claims(&self) -> usize {
        self.claims.load(Ordering::SeqCst)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut turns = self.leases.turns.lock().unwrap_or_else(|e| e.into_inner());
        turns.free += self.cores;
        let others_wait = turns.current != turns.next;
        drop(turns);
        self.leases.claims.fetch_sub(1, Ordering::SeqCst);
        if others_wait {
            self.leases.changed.notify_all();
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn no_more_cores_are_taken_than_there_are_and_everyone_has_a_turn() {
        let (leases, taken) = (Leases::new(3), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for threads in [1, 1, 2, 3, 7] {
                let (leases, taken) = (&leases, &taken);
                scope.spawn(move || {
                    for _ in 0..500 {
                        let lease = leases.take(threads);
                        let now = taken.fetch_add(lease.cores, Ordering::SeqCst) + lease.cores;
                        assert!(now <= 3, "{now} of 3 cores");
                        taken.fetch_sub(lease.cores, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!((leases.claims(), taken.into_inner()), (0, 0));
    }
}
