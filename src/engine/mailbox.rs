//! `Mailbox`: the command channel to the worker. Many senders, one receiver that takes everything
//! at once, so a step costs one lock however many commands came.
//!
//! Its length is bounded by the engine's own limits: a command adds a request (at most
//! `max_num_queued_reqs` wait), aborts one (once each), or changes the engine's state.

use std::sync::PoisonError;
use std::time::Duration;

use crate::sync::{Condvar, Mutex, MutexGuard};

/// A queue that is emptied in one go.
pub(crate) struct Mailbox<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
}

struct State<T> {
    letters: Vec<T>,
    knocked: bool,
    closed: bool,
}

impl<T> Mailbox<T> {
    pub(crate) fn new() -> Self {
        let state = State { letters: Vec::new(), knocked: false, closed: false };
        Self { state: Mutex::new(state), arrived: Condvar::new() }
    }

    /// Sends; gives the letter back when the receiver is gone.
    pub(crate) fn send(&self, letter: T) -> Result<(), T> {
        let mut state = self.lock();
        if state.closed {
            return Err(letter);
        }
        state.letters.push(letter);
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Wakes the receiver without a letter.
    pub(crate) fn knock(&self) {
        self.lock().knocked = true;
        self.arrived.notify_one();
    }

    /// Moves everything that has arrived into `letters`; waits for the first, or for a knock, up
    /// to `timeout` (`None`: for ever).
    pub(crate) fn take(&self, timeout: Option<Duration>, letters: &mut Vec<T>) {
        let mut state = self.lock();
        if timeout != Some(Duration::ZERO) {
            while state.letters.is_empty() && !state.knocked {
                state = match timeout {
                    // One timed wait is enough: the receiver looks at its clock and comes back.
                    Some(timeout) => {
                        let waited = self.arrived.wait_timeout(state, timeout);
                        state = waited.unwrap_or_else(PoisonError::into_inner).0;
                        break;
                    }
                    None => self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
                };
            }
        }
        state.knocked = false;
        letters.append(&mut state.letters);
    }

    /// Refuses further letters and returns what was never taken.
    pub(crate) fn close(&self) -> Vec<T> {
        let mut state = self.lock();
        state.closed = true;
        std::mem::take(&mut state.letters)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn takes_everything_at_once_and_refuses_after_close() {
        let mailbox = Mailbox::new();
        let mut taken = Vec::new();
        mailbox.take(Some(Duration::ZERO), &mut taken);
        assert!(taken.is_empty());
        mailbox.send(1).unwrap();
        mailbox.send(2).unwrap();
        mailbox.take(None, &mut taken);
        assert_eq!(taken, [1, 2]);
        mailbox.knock();
        mailbox.take(None, &mut taken);
        mailbox.send(3).unwrap();
        assert_eq!(mailbox.close(), [3]);
        assert_eq!(mailbox.send(4), Err(4));
    }
}
