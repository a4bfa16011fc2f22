//! Models of the thread pool's concurrent parts, explored by shuttle.
//!
//! `cargo test --features shuttle --lib models`

use std::time::Duration;

use super::barrier::Barrier;
use super::leases::Leases;
use super::leftover::Leftover;
use super::thread_pool::{PoolOptions, ThreadPool};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, thread};

/// Schedules explored of each model.
const ITERATIONS: usize = 2_000;

#[test]
fn nobody_passes_a_barrier_before_everybody_has_come() {
    for spins in [0, 1] {
        let model = move || {
            let barrier = Arc::new(Barrier::new(3, Duration::from_micros(spins)));
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
fn each_unit_is_taken_once() {
    let model = || {
        let mut left = Leftover::default();
        left.reserve(3, 1).unwrap();
        left.fill(0, 7, 3);
        let (left, taken) = (Arc::new(left), Arc::new(AtomicUsize::new(0)));
        let threads: Vec<_> = (0..3)
            .map(|thread| {
                let (left, taken) = (left.clone(), taken.clone());
                thread::spawn(move || {
                    while let Some(units) = left.take(0, thread, 3, 1) {
                        for unit in units {
                            // A digit for each unit.
                            taken.fetch_add(1 << (4 * unit), Ordering::SeqCst);
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(taken.load(Ordering::SeqCst), 0x111_1111);
    };
    shuttle::check_random(model, ITERATIONS);
}

#[test]
fn the_pool_runs_every_thread_once_and_ends() {
    let model = || {
        let mut pool = ThreadPool::new(PoolOptions::alone(3)).unwrap();
        let sum = AtomicUsize::new(0);
        for round in 1..=2 {
            pool.run(&|t| _ = sum.fetch_add(t + 1, Ordering::SeqCst));
            assert_eq!(sum.load(Ordering::SeqCst), round * 6, "run returns when all are done");
        }
        drop(pool);
    };
    shuttle::check_random(model, ITERATIONS);
}

#[test]
fn leases_never_exceed_the_cores_and_everyone_has_a_turn() {
    let model = || {
        let (leases, taken) = (Arc::new(Leases::new(2)), Arc::new(AtomicUsize::new(0)));
        let others: Vec<_> = [1, 1, 2]
            .into_iter()
            .map(|cores| {
                let (leases, taken) = (leases.clone(), taken.clone());
                thread::spawn(move || {
                    for _ in 0..2 {
                        let lease = leases.take(cores);
                        let now = taken.fetch_add(cores, Ordering::SeqCst) + cores;
                        assert!(now <= 2, "{now} of 2 cores");
                        taken.fetch_sub(cores, Ordering::SeqCst);
                        drop(lease);
                    }
                })
            })
            .collect();
        others.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(leases.claims(), 0);
    };
    shuttle::check_random(model, ITERATIONS);
}

#[test]
fn two_pools_share_the_cores() {
    let model = || {
        let leases = Arc::new(Leases::new(2));
        let run = |leases: Arc<Leases>| {
            let options = PoolOptions { leases, ..PoolOptions::alone(2) };
            let mut pool = ThreadPool::new(options).unwrap();
            let sum = AtomicUsize::new(0);
            for round in 1..=2 {
                pool.run(&|t| _ = sum.fetch_add(t + 1, Ordering::SeqCst));
                assert_eq!(sum.load(Ordering::SeqCst), round * 3);
            }
        };
        let theirs = leases.clone();
        let other = thread::spawn(move || run(theirs));
        run(leases.clone());
        other.join().unwrap();
        assert_eq!(leases.claims(), 0);
    };
    shuttle::check_random(model, ITERATIONS);
}
