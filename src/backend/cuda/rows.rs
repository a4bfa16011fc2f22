//! Work on the host that is shared out by rows, on as many threads as pay: logits handed to the
//! samplers, weights read while loading.

use std::panic::resume_unwind;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;

/// Elements that make another thread worth starting: some tens of microseconds of sampling.
const ELEMENTS_PER_THREAD: usize = 1 << 17;
/// Most threads.
const MAX_THREADS: usize = 16;

/// Runs `f(i, row)` for each row of `width`, of which the last may be shorter; a panic in `f` is
/// passed on.
pub(super) fn for_each<T: Send>(
    data: &mut [T],
    width: usize,
    f: &(dyn Fn(usize, &mut [T]) + Sync),
) {
    let rows = data.len().div_ceil(width.max(1));
    let cores = thread::available_parallelism().map_or(1, |n| n.get());
    let threads = (data.len() / ELEMENTS_PER_THREAD).min(cores).min(rows).clamp(1, MAX_THREADS);
    let queue = Mutex::new(data.chunks_mut(width.max(1)).enumerate());
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
        for (len, width) in [(0, 4), (15, 5), (16, 5), (9 * ELEMENTS_PER_THREAD - 1, 1 << 17)] {
            let mut data = vec![0.0; len];
            for_each(&mut data, width, &|i, row| row.iter_mut().for_each(|x| *x += i as f32));
            for (i, row) in data.chunks(width).enumerate() {
                assert!(row.iter().all(|&x| x == i as f32));
            }
        }
    }
}
