//! Which process this library belongs to: after a `fork`, threads are gone and locks may be held
//! for ever, so that the child must not go on with what it inherited.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// The process that first used the library; 0 while none has.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Whether this is a fork of the process that uses the library. Takes no lock.
pub(super) fn is_forked_child() -> bool {
    let here = process::id();
    match OWNER.compare_exchange(0, here, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => false,
        Err(owner) => owner != here,
    }
}
