//! The compute threads: made once, asleep between steps, and the caller is one of them.
//!
//! ```text
//!  caller (thread 0)   set work ─► start barrier ─► work(0) ─► end barrier ─► next ...
//!  thread 1..n         ..asleep..  start barrier ─► work(i) ─► end barrier ─► ..asleep..
//! ```
//! A run holds a lease of the process's cores, so that the pools of several engines take turns.
#![allow(unsafe_code, reason = "hands a borrowed closure to threads that outlive it")]

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use super::affinity::{self, Cpus};
use super::barrier::Barrier;
use super::float_env::FloatEnv;
use super::leases::Leases;
use crate::config::CPU_SPIN_US;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, thread};

/// What the threads do, by thread number.
type Work<'a> = &'a (dyn Fn(usize) + Sync);

/// How a pool is made.
pub(crate) struct PoolOptions {
    /// Threads, the caller included.
    pub(crate) threads: usize,
    /// Whether each thread, the caller too, is bound to one CPU.
    pub(crate) pin: bool,
    /// How long a thread that waits for others looks before it sleeps.
    pub(crate) spin: Duration,
    /// The cores that its runs take.
    pub(crate) leases: Arc<Leases>,
}

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
    leases: Arc<Leases>,
    /// Claims of this pool's: 1 from before it takes a lease until after it gave it back.
    claimed: AtomicUsize,
}

// SAFETY: `work` is written only before the start barrier and read only between the start and the
// end barrier, and a barrier orders what lies on its two sides. The rest is Sync by itself.
unsafe impl Sync for Shared {}
// SAFETY: the closure behind `work` is Sync, so a reference to it may go to any thread.
unsafe impl Send for Shared {}

impl ThreadPool {
    /// Starts all threads but the caller.
    pub(crate) fn new(options: PoolOptions) -> Result<Self> {
        let PoolOptions { threads, pin, spin, leases } = options;
        let cpus = affinity::allowed();
        // With more threads than CPUs the one waited for may need this very CPU.
        let crowded = threads > cpus.as_ref().map_or(usize::MAX, Cpus::count);
        let spin = if crowded { spin.min(SPIN_WHEN_CROWDED) } else { spin };
        let shared = Arc::new(Shared {
            threads,
            barrier: Arc::new(Barrier::new(threads, spin)),
            work: UnsafeCell::new(None),
            panic: Mutex::new(None),
            leases,
            claimed: AtomicUsize::new(0),
        });
        let mut workers: Vec<thread::JoinHandle<()>> = Vec::new();
        workers.try_reserve(threads)?;
        let cpus = cpus.filter(|_| pin);
        let places = cpus.as_ref().map(|c| affinity::places(c, threads)).unwrap_or_default();
        for index in 1..threads {
            let theirs = Arc::clone(&shared);
            let cpu = places.get(index).cloned();
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
        if let Some(place) = places.first() {
            affinity::bind(place);
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
        let shared = &*self.shared;
        // In this order, so that the pool's own threads never see more claims than its own.
        shared.claimed.store(1, Ordering::SeqCst);
        let lease = shared.leases.take(shared.threads);
        let end = || {
            drop(lease);
            shared.claimed.store(0, Ordering::SeqCst);
            drop(float_env);
        };
        if shared.threads == 1 {
            let result = catch_unwind(AssertUnwindSafe(|| work(0)));
            end();
            return result.unwrap_or_else(|payload| resume_unwind(payload));
        }
        // SAFETY: the borrow is stretched only until the end barrier below, which no thread
        // passes before every one of them has finished with `work`.
        let stretched = unsafe { std::mem::transmute::<Work<'_>, Work<'static>>(work) };
        // SAFETY: all other threads wait at the start barrier.
        unsafe { *shared.work.get() = Some(stretched) };
        shared.barrier.wait();
        shared.catch(0, work);
        shared.barrier.wait();
        end();
        let panic = shared.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
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
        // Between runs a thread looks for more work only while no other engine wants the cores.
        let alone = || self.leases.claims() <= self.claimed.load(Ordering::SeqCst);
        loop {
            self.barrier.wait_while(alone);
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

/// How long a thread spins where nobody says.
pub(crate) const SPIN: Duration = Duration::from_micros(CPU_SPIN_US as u64);
/// As little as still catches who is on the way.
const SPIN_WHEN_CROWDED: Duration = Duration::from_micros(1);

#[cfg(test)]
impl PoolOptions {
    /// As for an engine, on cores of its own.
    pub(crate) fn alone(threads: usize) -> Self {
        let leases = Arc::new(Leases::new(threads));
        Self { threads, pin: false, spin: SPIN, leases }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_thread_runs_once() {
        for threads in [1, 2, 3, 7] {
            let mut pool =
                ThreadPool::new(PoolOptions { pin: threads == 2, ..PoolOptions::alone(threads) })
                    .unwrap();
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
            let mut pool = ThreadPool::new(PoolOptions::alone(3)).unwrap();
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

    #[test]
    fn two_pools_take_turns_and_both_get_on() {
        let (leases, inside) = (Arc::new(Leases::new(2)), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let (leases, inside) = (Arc::clone(&leases), &inside);
                scope.spawn(move || {
                    let options = PoolOptions { leases, ..PoolOptions::alone(2) };
                    let mut pool = ThreadPool::new(options).unwrap();
                    let sum = AtomicUsize::new(0);
                    for _ in 0..200 {
                        pool.run(&|t| {
                            let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                            assert!(now <= 2, "{now} threads on 2 cores");
                            sum.fetch_add(t + 1, Ordering::SeqCst);
                            std::thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                    assert_eq!(sum.into_inner(), 600);
                });
            }
        });
        assert_eq!(leases.claims(), 0);
    }

    #[test]
    fn a_panic_gives_the_cores_back() {
        for threads in [1, 2] {
            let leases = Arc::new(Leases::new(2));
            let theirs = Arc::clone(&leases);
            let mut pool =
                ThreadPool::new(PoolOptions { leases: theirs, ..PoolOptions::alone(threads) })
                    .unwrap();
            let work = AssertUnwindSafe(|| pool.run(&|_| panic!("of the test")));
            catch_unwind(work).unwrap_err();
            assert_eq!(leases.claims(), 0);
            drop(leases.take(2));
        }
    }

    /// Nanoseconds that a thread of this process has run.
    #[cfg(target_os = "linux")]
    fn run_time(thread: usize) -> u64 {
        let path = format!("/proc/self/task/{thread}/schedstat");
        let text = std::fs::read_to_string(path).unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn threads_without_work_take_no_time() {
        let mut pool = ThreadPool::new(PoolOptions::alone(3)).unwrap();
        let ids: [AtomicUsize; 3] = Default::default();
        pool.run(&|t| {
            // SAFETY: no arguments, and it cannot fail.
            ids[t].store(unsafe { libc::gettid() } as usize, Ordering::SeqCst);
        });
        let threads: Vec<usize> = ids[1..].iter().map(|id| id.load(Ordering::SeqCst)).collect();
        let before: Vec<u64> = threads.iter().map(|t| run_time(*t)).collect();
        std::thread::sleep(Duration::from_secs(1));
        for (thread, before) in threads.iter().zip(before) {
            let took = run_time(*thread) - before;
            assert!(took < 20_000_000, "{took} ns in a second without work");
        }
    }
}
