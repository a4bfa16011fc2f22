//! Rows of logits handed to the samplers, on as many threads as pay.

use std::panic::resume_unwind;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;

/// Elements that make another thread worth starting: some tens of microseconds of sampling.
const ELEMENTS_PER_THREAD: usize = 1 << 17;
/// Most threads.
const MAX_THREADS: usize = 8;

/// Runs `f(i, row)` for each row of `width`; a panic in `f` is passed on.
pub(super) fn for_each(data: &mut [f32], width: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    let rows = data.len() / width.max(1);
    let cores = thread::available_parallelism().map_or(1, |n| n.get());
    let threads = (data.len() / ELEMENTS_PER_THREAD).min(cores).min(rows).clamp(1, MAX_THREADS);
    let queue = Mutex::new(data.chunks_exact_mut(width.max(1)).enumerate());
    let work = || {
        while let Some((i, row)) = {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.next()
        } {
            f(i, row);
        }
    };
    if threads == 1 {
        return work();
    }
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        work();
        for other in others {
            if let Err(panic) = other.join() {
                resume_unwind(panic);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_visited_once_on_any_number_of_threads() {
        for (rows, width) in [(0, 4), (3, 5), (9, ELEMENTS_PER_THREAD)] {
            let mut data = vec![0.0; rows * width];
            for_each(&mut data, width, &|i, row| row.iter_mut().for_each(|x| *x += i as f32));
            for (i, row) in data.chunks_exact(width).enumerate() {
                assert!(row.iter().all(|&x| x == i as f32));
            }
        }
    }
}
