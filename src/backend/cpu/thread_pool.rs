//! The compute threads: made once, asleep between steps, and the caller is one of them.
//!
//! ```text
//!  caller (thread 0)   set work ─► start barrier ─► work(0) ─► end barrier ─► next ...
//!  thread 1..n         ..asleep..  start barrier ─► work(i) ─► end barrier ─► ..asleep..
//! ```
#![allow(unsafe_code, reason = "hands a borrowed closure to threads that outlive it")]

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::affinity::{self, Cpus};
use super::barrier::Barrier;
use super::float_env::FloatEnv;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{Arc, Mutex, thread};

/// What the threads do, by thread number.
type Work<'a> = &'a (dyn Fn(usize) + Sync);

/// A persistent pool of `threads` threads, the caller included.
pub(crate) struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<thread::JoinHandle<()>>,
    /// Where the caller might run before it was pinned.
    unpinned: Option<Cpus>,
}

struct Shared {
    threads: usize,
    barrier: Arc<Barrier>,
    /// Written by the caller while all others wait at the start barrier; `None` ends them.
    work: UnsafeCell<Option<Work<'static>>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `work` is written only before the start barrier and read only between the start and the
// end barrier, and a barrier orders what lies on its two sides. The rest is Sync by itself.
unsafe impl Sync for Shared {}
// SAFETY: the closure behind `work` is Sync, so a reference to it may go to any thread.
unsafe impl Send for Shared {}

impl ThreadPool {
    /// Starts `threads - 1` threads; with `pin`, each and the caller are bound to one core.
    pub(crate) fn new(threads: usize, pin: bool) -> Result<Self> {
        let cpus = affinity::allowed();
        let cores = cpus.as_ref().map_or(usize::MAX, Cpus::count).min(default_threads());
        let spins = if threads > cores { SPINS_WHEN_CROWDED } else { SPINS };
        let shared = Arc::new(Shared {
            threads,
            barrier: Arc::new(Barrier::with_spins(threads, spins)),
            work: UnsafeCell::new(None),
            panic: Mutex::new(None),
        });
        let mut workers: Vec<thread::JoinHandle<()>> = Vec::new();
        workers.try_reserve(threads)?;
        let cpus = cpus.filter(|_| pin);
        for index in 1..threads {
            let theirs = Arc::clone(&shared);
            let cpu = cpus.as_ref().map(|c| c.nth(index));
            let builder = thread::Builder::new().name(format!("vrust-cpu-{index}"));
            match builder.spawn(move || theirs.serve(index, cpu)) {
                Ok(handle) => workers.push(handle),
                Err(e) => {
                    // Those already started wait for `threads` comers; stand in for the missing.
                    let pool = Self { shared, workers, unpinned: None };
                    pool.abandon(threads - index);
                    let message = format!("cannot start compute thread {index} of {threads}: {e}");
                    return Err(Error::new(ErrorKind::OutOfMemory, message)
                        .with("field", "cpu_threads")
                        .with("value", threads as u64));
                }
            }
        }
        if let Some(cpus) = &cpus {
            affinity::bind(&cpus.nth(0));
        }
        Ok(Self { shared, workers, unpinned: cpus })
    }

    /// Threads, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Runs `work(thread)` on every thread and returns when all are done. A panic in any of them
    /// is passed on, after all are done. `&mut`: one run at a time.
    pub(crate) fn run(&mut self, work: Work<'_>) {
        let float_env = FloatEnv::enter();
        if self.shared.threads == 1 {
            work(0);
            drop(float_env);
            return;
        }
        // SAFETY: the borrow is stretched only until the end barrier below, which no thread
        // passes before every one of them has finished with `work`.
        let stretched = unsafe { std::mem::transmute::<Work<'_>, Work<'static>>(work) };
        // SAFETY: all other threads wait at the start barrier.
        unsafe { *self.shared.work.get() = Some(stretched) };
        self.shared.barrier.wait();
        self.shared.catch(0, work);
        self.shared.barrier.wait();
        drop(float_env);
        let panic = self.shared.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// The barrier for use inside `run`: every thread must call it equally often.
    pub(crate) fn barrier(&self) -> Arc<Barrier> {
        Arc::clone(&self.shared.barrier)
    }

    /// Ends the threads of a pool of which `missing` were never started.
    fn abandon(mut self, missing: usize) {
        let shared = Arc::clone(&self.shared);
        let workers = std::mem::take(&mut self.workers);
        // SAFETY: the threads wait at the start barrier; `None` ends them behind it.
        unsafe { *shared.work.get() = None };
        shared.barrier.arrive(missing + 1);
        for worker in workers {
            let _ = worker.join();
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        if !self.workers.is_empty() {
            // SAFETY: no run is in progress, so all other threads wait at the start barrier.
            unsafe { *self.shared.work.get() = None };
            self.shared.barrier.wait();
            for worker in self.workers.drain(..) {
                // Panics were caught inside; a failed join has nothing left to say.
                let _ = worker.join();
            }
        }
        if let Some(cpus) = &self.unpinned {
            affinity::bind(cpus);
        }
    }
}

impl Shared {
    /// A thread's life.
    fn serve(&self, index: usize, cpu: Option<Cpus>) {
        if let Some(cpu) = cpu {
            affinity::bind(&cpu);
        }
        let _float_env = FloatEnv::enter();
        loop {
            self.barrier.wait();
            // SAFETY: between the start and the end barrier nobody writes `work`.
            let Some(work) = (unsafe { *self.work.get() }) else { return };
            self.catch(index, work);
            self.barrier.wait();
        }
    }

    /// Runs `work` and keeps the first panic for the caller.
    fn catch(&self, index: usize, work: Work<'_>) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| work(index))) {
            let mut slot = self.panic.lock().unwrap_or_else(|e| e.into_inner());
            slot.get_or_insert(payload);
        }
    }
}

/// One thread for each core that the process may use: affinity mask and cgroup quota.
pub(crate) fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// About 50 microseconds.
const SPINS: usize = if cfg!(feature = "shuttle") { 1 } else { 1500 };
/// With more threads than cores the one waited for may need this very core.
const SPINS_WHEN_CROWDED: usize = if cfg!(feature = "shuttle") { 1 } else { 20 };

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_thread_runs_once() {
        for threads in [1, 2, 3, 7] {
            let mut pool = ThreadPool::new(threads, threads == 2).unwrap();
            let sum = AtomicUsize::new(0);
            for _ in 0..50 {
                pool.run(&|t| _ = sum.fetch_add(t + 1, Ordering::Relaxed));
            }
            assert_eq!(sum.into_inner(), 50 * threads * (threads + 1) / 2);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        for thrower in [0, 2] {
            let mut pool = ThreadPool::new(3, false).unwrap();
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|t| assert!(t != thrower, "thrown by {t}"));
            }));
            let payload = caught.unwrap_err();
            let message = payload.downcast_ref::<String>().unwrap();
            assert_eq!(message, &format!("thrown by {thrower}"));
            let sum = AtomicUsize::new(0);
            pool.run(&|_| _ = sum.fetch_add(1, Ordering::Relaxed));
            assert_eq!(sum.into_inner(), 3);
        }
    }
}
