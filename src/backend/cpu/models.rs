//! Models of the thread pool's concurrent parts, explored by shuttle.
//!
//! `cargo test --features shuttle --lib models`

use super::barrier::Barrier;
use super::thread_pool::ThreadPool;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, thread};

/// Schedules explored of each model.
const ITERATIONS: usize = 2_000;

#[test]
fn nobody_passes_a_barrier_before_everybody_has_come() {
    for spins in [0, 2] {
        let model = move || {
            let barrier = Arc::new(Barrier::with_spins(3, spins));
            let count = Arc::new(AtomicUsize::new(0));
            let meet = move |barrier: &Barrier, count: &AtomicUsize| {
                for round in 1..=2 {
                    count.fetch_add(1, Ordering::SeqCst);
                    barrier.wait();
                    assert_eq!(count.load(Ordering::SeqCst), round * 3);
                    barrier.wait();
                }
            };
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let (barrier, count) = (barrier.clone(), count.clone());
                    thread::spawn(move || meet(&barrier, &count))
                })
                .collect();
            meet(&barrier, &count);
            others.into_iter().for_each(|t| t.join().unwrap());
        };
        shuttle::check_random(model, ITERATIONS);
    }
}

#[test]
fn the_pool_runs_every_thread_once_and_ends() {
    let model = || {
        let mut pool = ThreadPool::new(3, false).unwrap();
        let sum = AtomicUsize::new(0);
        for round in 1..=2 {
            pool.run(&|t| _ = sum.fetch_add(t + 1, Ordering::SeqCst));
            assert_eq!(sum.load(Ordering::SeqCst), round * 6, "run returns when all are done");
        }
        drop(pool);
    };
    shuttle::check_random(model, ITERATIONS);
}
