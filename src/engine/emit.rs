//! Emission: tokens become events, choices end, and full queues hold their sequences.

use std::time::Instant;

use super::event::{Delta, Event, EventKind};
use super::queue::EventQueue;
use super::registry::Ticket;
use super::worker::Worker;
use crate::error::Error;
use crate::ids::{RequestId, SeqId};
use crate::metrics::Outcome;
use crate::request::{FinishReason, TokenLogprobs};
use crate::scheduler::TokenOutcome;
use crate::sync::Arc;

/// Events of a step, by queue.
#[derive(Default)]
pub(crate) struct Outbox {
    queues: Vec<(Arc<EventQueue>, Vec<Event>)>,
}

impl Outbox {
    pub(crate) fn push(&mut self, queue: &Arc<EventQueue>, event: Event) {
        match self.queues.iter_mut().find(|(q, _)| Arc::ptr_eq(q, queue)) {
            Some((_, events)) => events.push(event),
            None => self.queues.push((queue.clone(), vec![event])),
        }
    }

    /// Sends everything; returns the queues that are now full.
    pub(crate) fn publish(&mut self) -> Vec<Arc<EventQueue>> {
        let full =
            |(queue, events): (Arc<EventQueue>, Vec<Event>)| queue.publish(events).then_some(queue);
        self.queues.drain(..).filter_map(full).collect()
    }
}

impl Drop for Outbox {
    /// A request whose last event is in here has left the registry: nobody else would tell its
    /// host. Matters when the worker panics within a step.
    fn drop(&mut self) {
        self.publish();
    }
}

impl Worker {
    /// Emits one token of a choice, and the choice's end if it ends.
    pub(crate) fn emit_token(&mut self, outcome: TokenOutcome, logprobs: Option<TokenLogprobs>) {
        let Some(choice) = self.choices.get_mut(&outcome.id) else { return };
        let ended_by_scheduler = outcome.finish.is_some();
        let sampler = choice.sampler.get_mut().unwrap_or_else(|e| e.into_inner());
        sampler.accept(outcome.token);
        let previous_ns = choice.times.last_token_ns;
        let accepted = choice.accept(outcome.token, logprobs, outcome.finish);
        self.figures.token(&self.shared.metrics, choice, previous_ns);
        let (delta, finish) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => return self.fail_choice(outcome.id, error),
        };
        let delta = choice.due(delta, finish.is_some());
        let Some(live) = self.requests.get(&choice.request) else { return };
        let (ticket, index) = (live.ticket.clone(), choice.index);
        let prompt_len = choice.usage.prompt_tokens as usize;
        if let Some(prompt) = choice.prompt.take_if(|p| p.is_complete(prompt_len)) {
            let kind = EventKind::Prompt(prompt.into_delta());
            self.outbox.push(&ticket.queue, ticket.event(index, kind));
        }
        if !delta.is_empty() {
            self.outbox.push(&ticket.queue, ticket.event(index, EventKind::Delta(delta)));
        }
        if let Some(reason) = finish {
            if !ended_by_scheduler {
                self.scheduler.finish(outcome.id, false);
            }
            self.end_choice(outcome.id, reason);
        }
    }

    /// Ends a choice whose sequence the scheduler has let go of.
    fn end_choice(&mut self, seq: SeqId, reason: FinishReason) {
        let Some(choice) = self.choices.remove(&seq) else { return };
        let Some(live) = self.requests.get_mut(&choice.request) else { return };
        live.running.retain(|s| *s != seq);
        live.longest = live.longest.max(choice.usage.completion_tokens);
        let last = live.running.is_empty();
        let ticket = live.ticket.clone();
        self.record_choice(&choice, Outcome::from(&reason));
        if last {
            if let Some(live) = self.requests.remove(&choice.request) {
                self.record_request(&live);
            }
            if self.shared.registry.end(ticket.id).is_none() {
                return;
            }
        }
        let finished = choice.finished(reason);
        let kind = EventKind::Finished(Box::new(finished));
        let event = Event { last, ..ticket.event(choice.index, kind) };
        self.outbox.push(&ticket.queue, event);
    }

    /// Ends a request that goes on: by the host's word or by its deadline.
    pub(crate) fn end_request(&mut self, id: RequestId, reason: &FinishReason) {
        let Some(live) = self.requests.get(&id) else {
            // Not here yet: its text is still being encoded.
            if let Some(ticket) = self.shared.registry.end(id) {
                let outcome = Outcome::from(reason);
                self.shared.metrics.record_unscheduled(outcome, ticket.num_choices);
                for event in ticket.unscheduled_end(reason) {
                    self.outbox.push(&ticket.queue, event);
                }
            }
            return;
        };
        let (ticket, running) = (live.ticket.clone(), live.running.clone());
        for seq in running {
            self.scheduler.finish(seq, false);
            self.flush_choice(seq, &ticket);
            self.end_choice(seq, reason.clone());
        }
    }

    /// Ends the whole request of a choice that failed; the others never notice.
    pub(crate) fn fail_choice(&mut self, seq: SeqId, error: Error) {
        let Some(choice) = self.choices.get(&seq) else { return };
        let Some(live) = self.requests.remove(&choice.request) else { return };
        for seq in &live.running {
            self.scheduler.finish(*seq, true);
            if let Some(choice) = self.choices.remove(seq) {
                self.record_choice(&choice, Outcome::Error);
            }
        }
        self.record_request(&live);
        if let Some(ticket) = self.shared.registry.end(live.ticket.id) {
            self.outbox.push(&ticket.queue, ticket.error_event(error));
        }
    }

    /// Ends every live request that is not newer than `newest`.
    pub(crate) fn abort_up_to(&mut self, newest: RequestId) {
        let live = self.shared.registry.live_ids();
        for id in live.into_iter().filter(|id| *id <= newest) {
            self.end_request(id, &FinishReason::Abort);
        }
    }

    /// Ends the request at `at` if it is live by then.
    pub(crate) fn set_deadline(&mut self, at: Instant, id: RequestId) {
        let requests = &self.requests;
        self.deadlines.set(at, id, requests.len(), |id| requests.contains_key(&id));
    }

    /// Ends the requests whose deadline has passed.
    pub(crate) fn end_overdue(&mut self) {
        let now = Instant::now();
        while let Some(id) = self.deadlines.pop_overdue(now) {
            if self.requests.contains_key(&id) {
                self.end_request(id, &FinishReason::Deadline);
            }
        }
    }

    /// Holds the sequences of a full queue until its consumer has caught up.
    pub(crate) fn hold_queue(&mut self, queue: &Arc<EventQueue>) {
        if !self.held.iter().any(|q| Arc::ptr_eq(q, queue)) {
            self.held.push(queue.clone());
        }
        self.set_held(queue, true);
    }

    /// Lets the sequences of queues that have room again go on.
    pub(crate) fn release_queues(&mut self) {
        let mut held = std::mem::take(&mut self.held);
        held.retain(|queue| {
            let full = queue.is_full();
            if !full {
                self.set_held(queue, false);
            }
            full
        });
        self.held = held;
    }

    fn set_held(&mut self, queue: &Arc<EventQueue>, held: bool) {
        for live in self.requests.values().filter(|l| Arc::ptr_eq(&l.ticket.queue, queue)) {
            for seq in &live.running {
                self.scheduler.hold(*seq, held);
            }
        }
    }

    fn flush_choice(&mut self, seq: SeqId, ticket: &Ticket) {
        let Some(choice) = self.choices.get_mut(&seq) else { return };
        let delta: Delta = choice.flush();
        let index = choice.index;
        if !delta.is_empty() {
            self.outbox.push(&ticket.queue, ticket.event(index, EventKind::Delta(delta)));
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use crate::engine::queue::Polled;
    use crate::engine::registry::Registry;
    use crate::error::ErrorKind;

    #[test]
    fn last_events_are_sent_even_if_the_worker_panics_before_it_publishes() {
        let queue = Arc::new(EventQueue::new(1 << 20, Arc::new(|| ())));
        let ticket = Registry::new().accept(7, 1, &queue, 1).unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut outbox = Outbox::default();
            outbox.push(&queue, ticket.error_event(Error::new(ErrorKind::Panic, "first")));
            std::panic::resume_unwind(Box::new("a bug"));
        }));
        assert!(panicked.is_err());
        let mut events = Vec::new();
        let now = Some(std::time::Duration::ZERO);
        assert_eq!(queue.drain(now, 9, &mut events).unwrap(), Polled::Drained);
        assert!(events.len() == 1 && events[0].last && events[0].user_data == 7);
    }
}
