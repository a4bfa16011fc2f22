//! `EventQueue`: events on their way to one consumer.
//!
//! ```text
//!  worker ──publish (once a step)──►  [Delta r1.0][Finished r2.0][Delta r3.1] ──poll──► host
//!                                        ▲ an undrained delta of the same choice is extended
//! ```
//!
//! A slow consumer costs fewer, bigger events. Past `max_undrained_bytes` the queue is *full* and
//! the worker holds its sequences until the consumer has drained it to half of that.

use std::collections::{HashMap, VecDeque};
use std::os::fd::RawFd;
use std::sync::{OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::event::{Event, EventKind};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::RequestId;
use crate::os::WakeFd;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard};

/// What a poll came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// At least one event was taken, and none is left.
    Drained,
    /// Events are left: the caller's limit was reached.
    MoreWaiting,
    /// No event came in time, or `wake` was called.
    TimedOut,
    /// No event is left and none will come.
    Closed,
}

/// Called, outside the queue's lock, when a full queue has room again.
pub(crate) type OnRoom = Arc<dyn Fn() + Send + Sync>;

/// Events on their way to one consumer. All methods may be called from any thread; only one
/// thread may poll at a time, which is checked.
pub struct EventQueue {
    state: Mutex<State>,
    readable: Condvar,
    polling: AtomicBool,
    fd: OnceLock<WakeFd>,
    max_undrained_bytes: usize,
    on_room: OnRoom,
}

#[derive(Default)]
struct State {
    entries: VecDeque<Event>,
    /// Number of the front entry, counted from the queue's beginning.
    front: u64,
    /// Number of the newest entry of a choice, while that is a delta which can be extended.
    open: HashMap<(RequestId, u32), u64>,
    bytes: usize,
    full: bool,
    woken: bool,
    closed: bool,
}

impl EventQueue {
    pub(crate) fn new(max_undrained_bytes: usize, on_room: OnRoom) -> Self {
        Self {
            state: Mutex::new(State::default()),
            readable: Condvar::new(),
            polling: AtomicBool::new(false),
            fd: OnceLock::new(),
            max_undrained_bytes,
            on_room,
        }
    }

    /// Hands waiting events to `sink`, oldest first, until it returns false: that event stays, and
    /// is the first of the next poll. Waits up to `timeout` for the first event (`None`: for
    /// ever). `sink` runs under the queue's lock: it copies and returns; it must not block or call
    /// the queue.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` while another thread polls.
    pub fn poll(
        &self,
        timeout: Option<Duration>,
        sink: &mut dyn FnMut(&Event) -> bool,
    ) -> Result<Polled> {
        let _only_poller = self.enter_poll()?;
        let mut state = self.wait_readable(timeout);
        if state.entries.is_empty() {
            return Ok(if state.closed { Polled::Closed } else { Polled::TimedOut });
        }
        let mut polled = Polled::Drained;
        while let Some(event) = state.entries.front() {
            if !sink(event) {
                polled = Polled::MoreWaiting;
                break;
            }
            state.pop();
        }
        self.after_drain(state);
        Ok(polled)
    }

    /// The same, for Rust hosts: takes up to `max` events out of the queue.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` while another thread polls.
    pub fn drain(
        &self,
        timeout: Option<Duration>,
        max: usize,
        events: &mut Vec<Event>,
    ) -> Result<Polled> {
        let _only_poller = self.enter_poll()?;
        let mut state = self.wait_readable(timeout);
        if state.entries.is_empty() {
            return Ok(if state.closed { Polled::Closed } else { Polled::TimedOut });
        }
        for _ in 0..max {
            let Some(event) = state.pop() else { break };
            events.push(event);
        }
        let polled = if state.entries.is_empty() { Polled::Drained } else { Polled::MoreWaiting };
        self.after_drain(state);
        Ok(polled)
    }

    /// A descriptor that is readable while events wait (or the queue is closed). It belongs to the
    /// queue: do not close it. Made on first use.
    ///
    /// # Errors
    /// `IO` when the operating system has no descriptor left.
    pub fn fd(&self) -> Result<RawFd> {
        if self.fd.get().is_none() {
            let made = WakeFd::new().map_err(|e| {
                Error::new(ErrorKind::Io, format!("queue: no wake descriptor: {e}"))
            })?;
            let state = self.lock();
            let fd = self.fd.get_or_init(|| made);
            if !state.entries.is_empty() || state.closed {
                fd.signal();
            }
        }
        self.fd.get().map(WakeFd::raw).ok_or_else(|| Error::new(ErrorKind::Io, "queue: no fd"))
    }

    /// Makes a blocked poll, or else the next one, return `TimedOut` early.
    pub fn wake(&self) {
        self.lock().woken = true;
        self.readable.notify_all();
    }

    /// No further event will be accepted; polls return what is left, then `Closed`. Requests that
    /// still run go on, unseen, to their end.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        // What waits for room here would wait for ever: nobody has to drain a closed queue.
        let was_full = std::mem::take(&mut state.full);
        if let Some(fd) = self.fd.get() {
            fd.signal();
        }
        drop(state);
        self.readable.notify_all();
        if was_full {
            (self.on_room)();
        }
    }

    /// Whether `close` was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Bytes of events that wait.
    pub fn undrained_bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Whether this queue was made by the engine that `on_room` wakes.
    pub(crate) fn belongs_to(&self, on_room: &OnRoom) -> bool {
        Arc::ptr_eq(&self.on_room, on_room)
    }

    /// Whether the queue is past its limit and not yet drained to half of it.
    pub(crate) fn is_full(&self) -> bool {
        self.lock().full
    }

    /// Adds a step's events in order, with one wake-up. Returns whether the queue is full.
    pub(crate) fn publish(&self, events: impl IntoIterator<Item = Event>) -> bool {
        let mut state = self.lock();
        let was_empty = state.entries.is_empty();
        if !state.closed {
            events.into_iter().for_each(|e| state.push(e));
        }
        state.full |= !state.closed && state.bytes > self.max_undrained_bytes;
        let full = state.full;
        if was_empty && !state.entries.is_empty() {
            if let Some(fd) = self.fd.get() {
                fd.signal();
            }
            drop(state);
            self.readable.notify_all();
        }
        full
    }

    fn wait_readable(&self, timeout: Option<Duration>) -> MutexGuard<'_, State> {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut state = self.lock();
        while state.entries.is_empty() && !state.closed && !state.woken {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => break,
                Some(left) => {
                    let waited = self.readable.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.readable.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        // A wake is for a poll that waits: one that finds events, or does not wait, leaves it.
        if state.entries.is_empty() && timeout != Some(Duration::ZERO) {
            state.woken = false;
        }
        state
    }

    fn after_drain(&self, mut state: MutexGuard<'_, State>) {
        if state.entries.is_empty()
            && !state.closed
            && let Some(fd) = self.fd.get()
        {
            fd.clear();
        }
        let has_room = state.full && state.bytes <= self.max_undrained_bytes / 2;
        state.full &= !has_room;
        drop(state);
        if has_room {
            (self.on_room)();
        }
    }

    fn enter_poll(&self) -> Result<PollGuard<'_>> {
        if self.polling.swap(true, Ordering::Acquire) {
            return Err(Error::invalid("queue", "queue: another thread is polling this queue"));
        }
        Ok(PollGuard(&self.polling))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, event: Event) {
        let key = (event.request_id, event.choice);
        if let EventKind::Load(_) = event.kind
            && let Some(back) = self.entries.back_mut()
            && let EventKind::Load(_) = back.kind
        {
            *back = event;
            return;
        }
        if !matches!(event.kind, EventKind::Delta(_)) {
            self.open.remove(&key);
            return self.append(event);
        }
        match self.open.get(&key).map(|number| (number - self.front) as usize) {
            Some(index) => self.extend(index, event),
            None => {
                self.open.insert(key, self.front + self.entries.len() as u64);
                self.append(event);
            }
        }
    }

    fn append(&mut self, event: Event) {
        self.bytes += event.size_bytes();
        self.entries.push_back(event);
    }

    /// Extends the undrained delta at `index` by `later`.
    fn extend(&mut self, index: usize, later: Event) {
        let entry = &mut self.entries[index];
        let before = entry.size_bytes();
        if let (EventKind::Delta(delta), EventKind::Delta(more)) = (&mut entry.kind, later.kind) {
            delta.extend(more);
        }
        entry.time_ns = later.time_ns;
        self.bytes = self.bytes - before + entry.size_bytes();
    }

    fn pop(&mut self) -> Option<Event> {
        let event = self.entries.pop_front()?;
        let key = (event.request_id, event.choice);
        if self.open.get(&key) == Some(&self.front) {
            self.open.remove(&key);
        }
        self.front += 1;
        self.bytes -= event.size_bytes();
        Some(event)
    }
}

struct PollGuard<'a>(&'a AtomicBool);

impl Drop for PollGuard<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use crate::engine::event::Delta;

    const NOW: Option<Duration> = Some(Duration::ZERO);

    fn queue(limit: usize) -> EventQueue {
        EventQueue::new(limit, Arc::new(|| ()))
    }

    fn delta(request: u64, choice: u32, text: &str) -> Event {
        let delta = Delta { text: text.into(), ..Delta::default() };
        Event {
            request_id: RequestId(request),
            user_data: 0,
            choice,
            last: false,
            time_ns: 0,
            kind: EventKind::Delta(delta),
        }
    }

    fn texts(queue: &EventQueue, max: usize) -> Vec<String> {
        let mut events = Vec::new();
        queue.drain(NOW, max, &mut events).unwrap();
        let text = |e: Event| match e.kind {
            EventKind::Delta(d) => format!("{}.{}:{}", e.request_id, e.choice, d.text),
            other => format!("{other:?}"),
        };
        events.into_iter().map(text).collect()
    }

    #[test]
    fn undrained_deltas_of_one_choice_coalesce() {
        let q = queue(1 << 20);
        q.publish([delta(1, 0, "a"), delta(2, 0, "x"), delta(1, 1, "-")]);
        q.publish([delta(1, 0, "b"), delta(2, 0, "y")]);
        assert_eq!(texts(&q, 1), ["1.0:ab"]);
        q.publish([delta(1, 0, "c"), delta(2, 0, "z")]);
        assert_eq!(texts(&q, 9), ["2.0:xyz", "1.1:-", "1.0:c"]);
        assert_eq!(q.undrained_bytes(), 0);
        assert_eq!(texts(&q, 9), [""; 0]);
    }

    #[test]
    fn a_refused_event_stays_first() {
        let q = queue(1 << 20);
        q.publish([delta(1, 0, "a"), delta(2, 0, "b")]);
        assert_eq!(q.poll(NOW, &mut |_| false).unwrap(), Polled::MoreWaiting);
        q.publish([delta(1, 0, "c")]);
        assert_eq!(texts(&q, 9), ["1.0:ac", "2.0:b"]);
    }

    #[test]
    fn a_full_queue_has_room_again_at_half() {
        let size = delta(1, 0, "a").size_bytes();
        let calls = Arc::new(AtomicBool::new(false));
        let seen = calls.clone();
        let on_room: OnRoom = Arc::new(move || seen.store(true, Ordering::SeqCst));
        let q = EventQueue::new(2 * size, on_room);
        assert!(!q.publish([delta(1, 0, "a"), delta(2, 0, "b")]));
        assert!(q.publish([delta(3, 0, "c")]));
        texts(&q, 1);
        assert!(q.is_full() && !calls.load(Ordering::SeqCst));
        texts(&q, 1);
        assert!(!q.is_full() && calls.load(Ordering::SeqCst));
    }

    #[test]
    fn a_closed_queue_holds_nobody() {
        use std::sync::atomic::AtomicUsize;
        let knocks = Arc::new(AtomicUsize::new(0));
        let counter = knocks.clone();
        let on_room: OnRoom = Arc::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let queue = EventQueue::new(1, on_room);
        assert!(queue.publish([delta(1, 0, "more than a byte")]));
        queue.close();
        assert!(!queue.is_full(), "nobody has to drain it any more");
        assert_eq!(knocks.load(Ordering::Relaxed), 1);
        assert!(!queue.publish([delta(1, 0, "dropped")]));
        assert_eq!(texts(&queue, 9).len(), 1);
    }

    #[test]
    fn wake_close_and_the_second_poller() {
        let q = Arc::new(queue(1 << 20));
        q.wake();
        assert_eq!(q.poll(None, &mut |_| true).unwrap(), Polled::TimedOut);
        let other = q.clone();
        let poller = std::thread::spawn(move || other.poll(None, &mut |_| true).unwrap());
        while q.poll(NOW, &mut |_| true).is_ok() {
            std::thread::yield_now();
        }
        q.close();
        assert_eq!(poller.join().unwrap(), Polled::Closed);
    }

    #[test]
    fn the_descriptor_follows_the_contents() {
        let q = queue(1 << 20);
        q.publish([delta(1, 0, "a")]);
        let fd = q.fd().unwrap();
        assert_eq!(fd, q.fd().unwrap());
        let readable = || q.fd.get().is_some_and(|f| f.is_readable());
        assert!(readable());
        texts(&q, 9);
        assert!(!readable());
        q.publish([delta(1, 0, "b")]);
        assert!(readable());
        q.close();
        texts(&q, 9);
        assert!(readable(), "a closed queue stays readable");
    }
}
