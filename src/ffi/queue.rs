//! `VrustQueue`: where a host drains its events.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::boundary::{boundary, destroy};
use super::engine::{ENGINES, VrustEngine};
use super::error::VrustError;
use super::event::{MAX_STRIDE, MIN_STRIDE, Packer, VrustEvent};
use super::handle::{Kind, Lookup, Table};
use super::input::{self, Out, Versioned};
use super::status::{VRUST_CLOSED, VRUST_OK, VRUST_TIMEOUT, VRUST_TRUNCATED, VrustStatus};
use super::version::VRUST_ABI_VERSION;
use crate::engine::{Engine, EventQueue, Polled, QueueOptions};
use crate::error::{Error, ErrorKind, Result};

/// A queue of events on their way to one consumer.
pub struct VrustQueue {
    _opaque: [u8; 0],
}

/// Options of a queue. Fill it with `vrust_queue_options_init`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct VrustQueueOptions {
    /// Bytes of this struct as the program knows it. Set by the init function.
    pub struct_size: u32,
    /// VRUST_ABI_VERSION of the program's header. Set by the init function.
    pub abi_version: u32,
    /// Bytes of undrained events past which the queue's requests wait. 64 MiB.
    pub max_undrained_bytes: u64,
}

// SAFETY: repr(C) of integers whose sizes add up without padding.
unsafe impl Versioned for VrustQueueOptions {
    const NAME: &'static str = "VrustQueueOptions";
    const MIN_SIZE: usize = 16;

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>() as u32,
            abi_version: VRUST_ABI_VERSION,
            max_undrained_bytes: 64 << 20,
        }
    }
}

static QUEUES: Table<QueueHandle> = Table::new(Kind::Queue);

/// One handle to a queue. The default queue may have several; a created queue has one.
struct QueueHandle {
    queue: Arc<EventQueue>,
    /// The engine of a created queue, which lives and dies with its handle.
    creator: Option<Weak<Engine>>,
    destroyed: AtomicBool,
    /// Calls that are inside `poll` by this handle.
    polling: AtomicUsize,
}

/// Fills `options`, `size` bytes (sizeof *options), with defaults. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_queue_options_init(options: *mut VrustQueueOptions, size: usize) {
    // SAFETY: `options` is NULL or `size` bytes are writable (header, "Structs").
    unsafe { input::init(options, size) };
}

/// Writes a handle to the engine's default queue, which takes the events of requests that name no
/// queue, and those of the engine's loading. Each call makes a new handle to the same queue;
/// destroy it with `vrust_queue_destroy`. It outlives the engine. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_engine_default_queue(
    engine: *const VrustEngine,
    queue_out: *mut *mut VrustQueue,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `queue_out` and `err` are NULL or writable (header, "Pointers").
    unsafe {
        boundary(err, || {
            let engine = ENGINES.get(engine, "engine")?;
            let out = Out::new(queue_out, "queue_out")?;
            out.write(export(engine.default_queue().clone(), None)?);
            Ok(VRUST_OK)
        })
    }
}

/// Makes another queue, for another consumer. `options` may be NULL. The queue outlives the
/// engine. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_queue_create(
    engine: *const VrustEngine,
    options: *const VrustQueueOptions,
    queue_out: *mut *mut VrustQueue,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `options` is NULL or readable, `queue_out` and `err` are NULL or writable (header,
    // "Pointers", "Structs").
    unsafe {
        boundary(err, || {
            let engine = ENGINES.get(engine, "engine")?;
            let out = Out::new(queue_out, "queue_out")?;
            let options = match options.is_null() {
                true => VrustQueueOptions::defaults(),
                false => input::read(options, "options")?,
            };
            let limit = usize::try_from(options.max_undrained_bytes).unwrap_or(usize::MAX);
            if limit == 0 {
                let message = "max_undrained_bytes: must be at least 1, got 0";
                return Err(Error::invalid("max_undrained_bytes", message));
            }
            let queue = engine.create_queue(QueueOptions { max_undrained_bytes: limit });
            out.write(export(queue, Some(Arc::downgrade(&engine)))?);
            Ok(VRUST_OK)
        })
    }
}

/// Drains up to `capacity` events. Waits up to `timeout_ms` for the first one (0: does not wait;
/// -1: no limit). Writes event i at `events` + i * `stride` bytes (`stride`: sizeof(VrustEvent)),
/// what varies in size into `arena`, and how many events and bytes of the arena were written into
/// `n_events` and `n_bytes`. Align `arena` to 4 to read tokens and logprobs in place.
///
/// VRUST_OK: at least one event, and the queue is empty now. VRUST_TRUNCATED: at least one event,
/// and more are waiting. VRUST_TIMEOUT: none in time, or `vrust_queue_wake`. VRUST_CLOSED: none,
/// and none will come: the engine has ended, or this queue was destroyed.
///
/// VRUST_ERROR_BUFFER_TOO_SMALL: the first event alone needs an arena of `*n_bytes` bytes; nothing
/// was taken. Any thread, one at a time: VRUST_ERROR_INVALID_ARGUMENT while another one polls.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_queue_poll(
    queue: *mut VrustQueue,
    events: *mut VrustEvent,
    stride: usize,
    capacity: usize,
    arena: *mut u8,
    arena_capacity: usize,
    timeout_ms: i32,
    n_events: *mut usize,
    n_bytes: *mut usize,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `n_events`, `n_bytes` and `err` are NULL or writable; so are `capacity` places of
    // `stride` bytes at `events`, and `arena_capacity` bytes at `arena` (header, "Pointers").
    unsafe {
        boundary(err, || {
            let (n_events, n_bytes) =
                (Out::new(n_events, "n_events")?, Out::new(n_bytes, "n_bytes")?);
            let timeout = input::timeout(timeout_ms)?;
            check_room(events, stride, capacity, arena, arena_capacity)?;
            let mut packer = Packer::new(events, stride, capacity, arena, arena_capacity);
            let polled = match QUEUES.look_up(queue) {
                Lookup::Live(handle) => handle.poll(timeout, &mut packer)?,
                // A consumer that races with the destroying thread ends like any other.
                Lookup::Destroyed => Polled::Closed,
                Lookup::Foreign => return QUEUES.get(queue, "queue").map(|_| VRUST_CLOSED),
            };
            if polled == Polled::MoreWaiting && packer.count == 0 {
                n_events.write(0);
                n_bytes.write(packer.needed);
                return Err(too_small(packer.needed, arena_capacity));
            }
            n_events.write(packer.count);
            n_bytes.write(packer.bytes());
            Ok(match polled {
                Polled::Drained => VRUST_OK,
                Polled::MoreWaiting => VRUST_TRUNCATED,
                Polled::TimedOut => VRUST_TIMEOUT,
                Polled::Closed => VRUST_CLOSED,
            })
        })
    }
}

/// Writes a file descriptor that is readable while events wait, for poll(2), epoll and event
/// loops. It becomes readable once per change from empty to not empty: after it did, poll the
/// queue (timeout 0) until that returns something else than VRUST_TRUNCATED. It belongs to the
/// queue: wait on it, never read or close it; it is gone when the queue is destroyed. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_queue_fd(
    queue: *const VrustQueue,
    fd_out: *mut i32,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `fd_out` and `err` are NULL or writable (header, "Pointers").
    unsafe {
        boundary(err, || {
            let handle = QUEUES.get(queue, "queue")?;
            Out::new(fd_out, "fd_out")?.write(handle.queue.fd()?);
            Ok(VRUST_OK)
        })
    }
}

/// Makes the poll that is waiting, or else the next one that would, return VRUST_TIMEOUT at once.
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_queue_wake(
    queue: *const VrustQueue,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `err` is NULL or writable (header, "Errors").
    unsafe {
        boundary(err, || {
            QUEUES.get(queue, "queue")?.queue.wake();
            Ok(VRUST_OK)
        })
    }
}

/// Destroys a queue: its unfinished requests are aborted, its events are dropped, and a poll that
/// is waiting returns VRUST_CLOSED. Of the default queue it destroys this handle only. NULL is
/// fine. Any thread, at any time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_queue_destroy(queue: *mut VrustQueue) -> VrustStatus {
    destroy(queue, || match QUEUES.remove(queue) {
        Some(handle) => {
            handle.destroy();
            true
        }
        None => false,
    })
}

/// The queue that a request names, or else its engine's default queue.
pub(super) fn of_request(engine: &Engine, queue: *const VrustQueue) -> Result<Arc<EventQueue>> {
    match queue.is_null() {
        true => Ok(engine.default_queue().clone()),
        false => Ok(QUEUES.get(queue, "queue")?.queue.clone()),
    }
}

impl QueueHandle {
    fn poll(&self, timeout: Option<Duration>, packer: &mut Packer) -> Result<Polled> {
        // Either `destroy` sees that this thread is inside, or this thread sees that it came first.
        self.polling.fetch_add(1, Ordering::SeqCst);
        let polled = match self.destroyed.load(Ordering::SeqCst) {
            true => Ok(Polled::Closed),
            false => self.queue.poll(timeout, &mut |event| packer.push(event)),
        };
        self.polling.fetch_sub(1, Ordering::SeqCst);
        match polled? {
            Polled::TimedOut if self.destroyed.load(Ordering::SeqCst) => Ok(Polled::Closed),
            polled => Ok(polled),
        }
    }

    fn destroy(&self) {
        self.destroyed.store(true, Ordering::SeqCst);
        match &self.creator {
            Some(engine) => {
                self.queue.close();
                if let Some(engine) = engine.upgrade() {
                    engine.abort_queue(&self.queue);
                }
            }
            // Only a poll by this very handle has to end: a wake that nobody waits for would cut
            // short the next poll by another handle.
            None if self.polling.load(Ordering::SeqCst) > 0 => self.queue.wake(),
            None => {}
        }
    }
}

fn export(queue: Arc<EventQueue>, creator: Option<Weak<Engine>>) -> Result<*mut VrustQueue> {
    QUEUES.insert(Arc::new(QueueHandle {
        queue,
        creator,
        destroyed: AtomicBool::new(false),
        polling: AtomicUsize::new(0),
    }))
}

fn check_room(
    events: *const VrustEvent,
    stride: usize,
    capacity: usize,
    arena: *const u8,
    arena_capacity: usize,
) -> Result<()> {
    if events.is_null() || capacity == 0 {
        let message = "events: room for at least one event is required";
        return Err(Error::invalid("events", message).with("value", capacity));
    }
    if !(MIN_STRIDE..=MAX_STRIDE).contains(&stride) {
        let message = format!("stride: must be {MIN_STRIDE} to {MAX_STRIDE}, got {stride}");
        let error = Error::new(ErrorKind::AbiMismatch, message).with("field", "stride");
        return Err(error.with("limit", MIN_STRIDE).with("value", stride));
    }
    let most = isize::MAX as usize;
    if capacity > most / stride || arena_capacity > most {
        let message = "events, arena: a capacity that no memory can have";
        let error = Error::invalid("capacity", message);
        return Err(error.with("limit", most / stride).with("value", capacity));
    }
    if arena.is_null() && arena_capacity > 0 {
        let message = format!("arena: NULL with a room of {arena_capacity}");
        return Err(Error::invalid("arena", message));
    }
    Ok(())
}

fn too_small(needed: usize, given: usize) -> Error {
    let message = format!("arena: the next event needs {needed} bytes, got {given}");
    let error = Error::new(ErrorKind::BufferTooSmall, message).with("field", "arena");
    error.with("needed", needed).with("value", given)
}
