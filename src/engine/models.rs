//! Models of the concurrent parts, explored by shuttle: every run is another schedule.
//!
//! `cargo test --features shuttle --lib models`

use std::collections::HashMap;
use std::time::Duration;

use super::event::{Delta, Event, EventKind};
use super::mailbox::Mailbox;
use super::queue::{EventQueue, Polled};
use super::registry::Registry;
use crate::error::{Error, ErrorKind};
use crate::ids::{RequestId, TokenId};
use crate::request::FinishReason;
use crate::sync::{Arc, thread};

/// Schedules explored of each model.
const ITERATIONS: usize = 2_000;

fn explore(model: impl Fn() + Send + Sync + 'static) {
    shuttle::check_random(model, ITERATIONS);
}

fn queue() -> Arc<EventQueue> {
    Arc::new(EventQueue::new(1 << 20, Arc::new(|| ())))
}

#[test]
fn every_letter_is_taken_returned_or_refused() {
    explore(|| {
        let mailbox = Arc::new(Mailbox::new());
        let sender = |first: u32| {
            let mailbox = mailbox.clone();
            thread::spawn(move || {
                (first..first + 3).filter(|n| mailbox.send(*n).is_err()).collect::<Vec<_>>()
            })
        };
        let senders = [sender(0), sender(10)];
        let receiver = {
            let mailbox = mailbox.clone();
            thread::spawn(move || {
                let mut taken = Vec::new();
                mailbox.take(None, &mut taken);
                mailbox.take(Some(Duration::ZERO), &mut taken);
                taken.extend(mailbox.close());
                taken
            })
        };
        let mut all = receiver.join().unwrap();
        senders.into_iter().for_each(|s| all.extend(s.join().unwrap()));
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 10, 11, 12]);
    });
}

#[test]
fn deltas_arrive_whole_and_in_order() {
    explore(|| {
        let queue = queue();
        let publisher = {
            let queue = queue.clone();
            thread::spawn(move || {
                for n in 0..4u32 {
                    let token_ids = vec![TokenId(n)];
                    let delta = Delta { token_ids, ..Delta::default() };
                    queue.publish((0..2).map(|c| event(1, c, EventKind::Delta(delta.clone()))));
                }
            })
        };
        let mut seen = HashMap::<u32, Vec<u32>>::new();
        // Nothing but the publisher's own wake-ups ends a wait: a lost one is a deadlock.
        while seen.values().map(Vec::len).sum::<usize>() < 8 {
            let mut take = |e: &Event| {
                if let EventKind::Delta(d) = &e.kind {
                    seen.entry(e.choice).or_default().extend(d.token_ids.iter().map(|t| t.0));
                }
                true
            };
            assert_eq!(queue.poll(None, &mut take).unwrap(), Polled::Drained);
        }
        publisher.join().unwrap();
        assert_eq!(seen[&0], [0, 1, 2, 3]);
        assert_eq!(seen[&1], [0, 1, 2, 3]);
    });
}

#[test]
fn a_wake_is_never_lost() {
    explore(|| {
        let queue = queue();
        let waker = {
            let queue = queue.clone();
            thread::spawn(move || queue.wake())
        };
        assert_eq!(queue.poll(None, &mut |_| true).unwrap(), Polled::TimedOut);
        waker.join().unwrap();
    });
}

#[test]
fn a_second_poller_is_refused_and_the_first_goes_on() {
    explore(|| {
        let queue = queue();
        let pollers: Vec<_> = (0..2)
            .map(|_| {
                let queue = queue.clone();
                thread::spawn(move || queue.poll(None, &mut |_| true).is_ok())
            })
            .collect();
        queue.close();
        let served = pollers.into_iter().map(|p| p.join().unwrap()).filter(|ok| *ok).count();
        assert!(served >= 1);
    });
}

/// Submitters race an abort and the engine's end. Each accepted request has exactly one last
/// event, and a drain sees the end of all of them.
#[test]
fn each_accepted_request_ends_once_whatever_races_with_shutdown() {
    explore(|| {
        let (queue, registry) = (queue(), Arc::new(Registry::new()));
        let mailbox = Arc::new(Mailbox::<RequestId>::new());
        let submit = || {
            let (queue, registry, mailbox) = (queue.clone(), registry.clone(), mailbox.clone());
            thread::spawn(move || {
                let ticket = registry.accept(0, 1, &queue, 8).ok()?;
                match mailbox.send(ticket.id) {
                    Ok(()) => Some(ticket.id),
                    // Refused after all, unless the worker has ended it meanwhile.
                    Err(id) => registry.end(id).is_none().then_some(id),
                }
            })
        };
        let submitters = [submit(), submit()];
        let aborter = {
            let (queue, registry) = (queue.clone(), registry.clone());
            thread::spawn(move || end(&registry, &queue, RequestId(1)))
        };
        let worker = {
            let (queue, registry, mailbox) = (queue.clone(), registry.clone(), mailbox.clone());
            thread::spawn(move || {
                let mut arrived = Vec::new();
                mailbox.take(Some(Duration::ZERO), &mut arrived);
                arrived.into_iter().for_each(|id| end(&registry, &queue, id));
                registry.refuse(Error::new(ErrorKind::ShuttingDown, "closed"));
                mailbox.close();
                registry.live_ids().into_iter().for_each(|id| end(&registry, &queue, id));
            })
        };
        let accepted: Vec<_> = submitters.into_iter().filter_map(|s| s.join().unwrap()).collect();
        aborter.join().unwrap();
        worker.join().unwrap();
        assert!(registry.wait_empty(None));
        queue.close();
        let mut events = Vec::new();
        while queue.drain(None, 8, &mut events).unwrap() != Polled::Closed {}
        for id in &accepted {
            let ends = events.iter().filter(|e| e.request_id == *id && e.last).count();
            assert_eq!(ends, 1, "request {id}");
        }
        assert_eq!(registry.num_live(), 0);
    });
}

fn end(registry: &Registry, queue: &EventQueue, id: RequestId) {
    if let Some(ticket) = registry.end(id) {
        queue.publish(ticket.unscheduled_end(&FinishReason::Abort));
    }
}

fn event(request: u64, choice: u32, kind: EventKind) -> Event {
    let request_id = RequestId(request);
    Event { request_id, user_data: 0, choice, last: false, time_ns: 0, kind }
}
