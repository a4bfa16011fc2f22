//! `Registry`: every request that was accepted and has not had its last event.
//!
//! Whoever ends a request takes its ticket out of the registry, and only the holder of the ticket
//! may publish the last event. That is how there is exactly one, whatever races: abort against
//! finish, failure against shutdown.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::event::{Event, EventKind, Finished, Times, Usage};
use super::queue::EventQueue;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::RequestId;
use crate::os::monotonic_ns;
use crate::request::FinishReason;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard};

/// What is needed to speak to the host about a request.
pub(crate) struct Ticket {
    pub(crate) id: RequestId,
    pub(crate) user_data: u64,
    pub(crate) num_choices: u32,
    pub(crate) queue: Arc<EventQueue>,
    pub(crate) arrival_ns: u64,
    /// Still counted as queued.
    queued: AtomicBool,
    /// The worker was told to abort it.
    aborted: AtomicBool,
}

/// Every live request.
pub(crate) struct Registry {
    state: Mutex<State>,
    emptied: Condvar,
}

struct State {
    live: HashMap<RequestId, Arc<Ticket>>,
    /// Ids issued so far: `1..=issued`.
    issued: u64,
    /// Accepted and not yet scheduled for the first time.
    queued: usize,
    /// Set once: requests are refused with this.
    refused: Option<Error>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        let state = State { live: HashMap::new(), issued: 0, queued: 0, refused: None };
        Self { state: Mutex::new(state), emptied: Condvar::new() }
    }

    /// Accepts a request: issues its id, or says why not.
    pub(crate) fn accept(
        &self,
        user_data: u64,
        num_choices: u32,
        queue: &Arc<EventQueue>,
        max_queued: usize,
    ) -> Result<Arc<Ticket>> {
        let mut state = self.lock();
        if let Some(error) = &state.refused {
            return Err(error.clone());
        }
        if state.queued >= max_queued {
            let message = format!(
                "the waiting queue is full: {} requests wait, max_num_queued_reqs is {max_queued}",
                state.queued
            );
            return Err(Error::new(ErrorKind::QueueFull, message)
                .with("field", "max_num_queued_reqs")
                .with("limit", max_queued)
                .with("value", state.queued));
        }
        state.live.try_reserve(1)?;
        state.issued += 1;
        state.queued += 1;
        let ticket = Arc::new(Ticket {
            id: RequestId(state.issued),
            user_data,
            num_choices,
            queue: queue.clone(),
            arrival_ns: monotonic_ns(),
            queued: AtomicBool::new(true),
            aborted: AtomicBool::new(false),
        });
        state.live.insert(ticket.id, ticket.clone());
        Ok(ticket)
    }

    /// A queued request was scheduled for the first time.
    pub(crate) fn dequeued(&self, ticket: &Ticket) {
        if ticket.queued.swap(false, Ordering::Relaxed) {
            self.lock().queued -= 1;
        }
    }

    /// Whether the id was ever issued.
    pub(crate) fn issued(&self, id: RequestId) -> bool {
        id.0 != 0 && id.0 <= self.lock().issued
    }

    /// The newest id issued; 0 before the first.
    pub(crate) fn newest(&self) -> RequestId {
        RequestId(self.lock().issued)
    }

    /// Whether the request still waits for its last event.
    pub(crate) fn is_live(&self, id: RequestId) -> bool {
        self.lock().live.contains_key(&id)
    }

    /// Whether the worker is still to be told that this request is aborted: once, and only while it
    /// is live. A host that repeats itself must not fill the mailbox.
    pub(crate) fn begin_abort(&self, id: RequestId) -> bool {
        let state = self.lock();
        state.live.get(&id).is_some_and(|t| !t.aborted.swap(true, Ordering::Relaxed))
    }

    /// Ends a request: whoever gets the ticket publishes the last event.
    pub(crate) fn end(&self, id: RequestId) -> Option<Arc<Ticket>> {
        let mut state = self.lock();
        let ticket = state.live.remove(&id)?;
        if ticket.queued.swap(false, Ordering::Relaxed) {
            state.queued -= 1;
        }
        if state.live.is_empty() {
            self.emptied.notify_all();
        }
        Some(ticket)
    }

    /// Refuses further requests with `error`; the first refusal stays, unless it is a failure.
    pub(crate) fn refuse(&self, error: Error) {
        let mut state = self.lock();
        if state.refused.is_none() || error.kind() != ErrorKind::ShuttingDown {
            state.refused = Some(error);
        }
    }

    /// The ids of all live requests, oldest first.
    pub(crate) fn live_ids(&self) -> Vec<RequestId> {
        let mut ids: Vec<_> = self.lock().live.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// The ids of the live requests whose events go to `queue`.
    pub(crate) fn live_ids_of(&self, queue: &Arc<EventQueue>) -> Vec<RequestId> {
        let state = self.lock();
        let live = state.live.values().filter(|ticket| Arc::ptr_eq(&ticket.queue, queue));
        live.map(|ticket| ticket.id).collect()
    }

    /// Live requests.
    pub(crate) fn num_live(&self) -> usize {
        self.lock().live.len()
    }

    /// Waits until no request is live; false when `deadline` passes first.
    pub(crate) fn wait_empty(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.lock();
        while !state.live.is_empty() {
            state = match deadline {
                None => self.emptied.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left == Duration::ZERO {
                        return false;
                    }
                    let waited = self.emptied.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// An event of this request.
    pub(crate) fn event(&self, choice: u32, kind: EventKind) -> Event {
        let (request_id, user_data) = (self.id, self.user_data);
        Event { request_id, user_data, choice, last: false, time_ns: monotonic_ns(), kind }
    }

    /// The last event of a failed request.
    pub(crate) fn error_event(&self, error: Error) -> Event {
        Event { last: true, ..self.event(0, EventKind::Error(error)) }
    }

    /// The events that end a request which never produced anything.
    pub(crate) fn unscheduled_end(&self, reason: &FinishReason) -> Vec<Event> {
        let finished = |choice| {
            let finished = Finished {
                reason: reason.clone(),
                usage: Usage::default(),
                times: Times { arrival_ns: self.arrival_ns, ..Times::default() },
                cumulative_logprob: None,
            };
            let last = choice + 1 == self.num_choices;
            Event { last, ..self.event(choice, EventKind::Finished(Box::new(finished))) }
        };
        (0..self.num_choices).map(finished).collect()
    }
}
