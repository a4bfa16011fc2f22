//! Committing the KV pool's pages behind the engine's start.
//!
//! A page that was never touched costs the request that first writes to it: the kernel clears it,
//! and in a virtual machine the host may have to find it first, at a gigabyte a second. A thread of
//! the lowest priority takes that over while the engine is idle, in the order in which blocks are
//! handed out; a page that a step needs earlier is committed by the step, as ever.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::memory::commit;
use crate::os;

/// The thread; dropping it ends it.
pub(crate) struct Committer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Committer {
    /// Commits these mappings side by side, from their beginnings on. They must stay mapped until
    /// this is dropped. Without a thread all goes on as if it had not been asked for.
    pub(crate) fn start(mappings: Vec<Range<usize>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let work = move || {
            os::yield_to_all();
            commit_all(&mappings, &stopped);
        };
        let thread = std::thread::Builder::new().name("vrust-commit".into()).spawn(work).ok();
        Self { stop, thread }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, there would be nothing left to do either.
            let _ = thread.join();
        }
    }
}

fn commit_all(mappings: &[Range<usize>], stop: &AtomicBool) {
    let limit = os::memory_limit();
    let longest = mappings.iter().map(Range::len).max().unwrap_or(0);
    for offset in (0..longest).step_by(PIECE) {
        // The rest of the process, and whoever shares its limit, come first.
        if os::resident_bytes().saturating_add(MARGIN) > limit || os::available_bytes() < MARGIN {
            return;
        }
        for mapping in mappings.iter().filter(|m| offset < m.len()) {
            let start = mapping.start + offset;
            let piece = start..mapping.end.min(start + PIECE);
            if stop.load(Ordering::Relaxed) || !commit(piece) {
                return;
            }
        }
    }
}

/// Bytes that are committed at once: a huge page, so that nobody waits long behind it.
const PIECE: usize = 2 << 20;
/// Bytes of memory that are left to others.
const MARGIN: u64 = 512 << 20;

#[cfg(all(test, target_os = "linux", not(feature = "shuttle")))]
mod tests {
    use super::super::memory::{Buffer, resident};
    use super::*;

    #[test]
    fn pages_are_committed_and_keep_what_they_hold() {
        let mut buffers: Vec<_> =
            [5 << 20, 9 << 20].map(|n| Buffer::<u8>::zeroed(n, "test").unwrap()).into();
        buffers[0].as_mut_slice()[4 << 20] = 7;
        let mappings: Vec<_> = buffers.iter().map(|b| b.mapping().unwrap()).collect();
        assert_eq!(mappings[1].len(), 8 << 20, "huge pages that it fills");
        let mut committer = Committer::start(mappings.clone());
        committer.thread.take().expect("a thread").join().unwrap();
        // A kernel before 5.14 cannot; an emulator of other machines says that it did.
        if !commit(mappings[0].clone()) || cfg!(not(target_arch = "x86_64")) {
            return;
        }
        for mapping in &mappings {
            // Neighbouring mappings may stand as one.
            let bytes = resident(mapping.clone()).expect("the mapping");
            assert!(bytes >= mapping.len(), "{mapping:?}");
        }
        assert_eq!(buffers[0].as_mut_slice()[4 << 20], 7);
        assert_eq!(buffers[1].as_mut_slice().iter().find(|b| **b != 0), None);
    }

    #[test]
    fn a_drop_ends_it() {
        let buffer = Buffer::<u8>::zeroed(4 << 30, "test").unwrap();
        let mapping = buffer.mapping().unwrap();
        drop(Committer::start(vec![mapping.clone()]));
        assert!(resident(mapping).expect("the mapping") < 1 << 30);
    }
}
