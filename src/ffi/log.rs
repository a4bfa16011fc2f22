//! The log: the library's `tracing` events, to a function of the host's.

use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use super::boundary::boundary;
use super::error::VrustError;
use super::status::{VRUST_OK, VrustStatus};
use crate::error::{Error, ErrorKind, Result};

/// Nothing.
pub const VRUST_LOG_OFF: u32 = 0;
/// What went wrong.
pub const VRUST_LOG_ERROR: u32 = 1;
/// What may be wrong.
pub const VRUST_LOG_WARN: u32 = 2;
/// What happens once: loading, shutting down.
pub const VRUST_LOG_INFO: u32 = 3;
/// What happens to each request.
pub const VRUST_LOG_DEBUG: u32 = 4;
/// What happens in each step.
pub const VRUST_LOG_TRACE: u32 = 5;

/// Receives one record: its level, where it comes from and what it says. Neither string is
/// NUL-terminated, and both end with the call. Runs on any thread of the library or of the host's
/// that is inside a call, one or several at a time: it must not block, and it may not
/// call vrust_log_set, vrust_engine_wait_ready, vrust_engine_shutdown or vrust_engine_destroy
/// (VRUST_ERROR_INVALID_ARGUMENT).
pub type VrustLogCallback = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        level: u32,
        target: *const c_char,
        target_len: usize,
        message: *const c_char,
        message_len: usize,
    ),
>;

/// Sends the library's log, up to `level` (VRUST_LOG_ERROR .. VRUST_LOG_TRACE), to `callback`,
/// for the whole process. A NULL callback or VRUST_LOG_OFF ends that. Returns only when no thread
/// is inside the previous callback any more, so that its `user_data` may be freed. Without a
/// callback the library is silent.
///
/// Any thread, but not from inside the callback. VRUST_ERROR_UNSUPPORTED in a Rust program that
/// has a `tracing` subscriber of its own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_log_set(
    level: u32,
    callback: VrustLogCallback,
    user_data: *mut c_void,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `err` is NULL or writable (header, "Errors").
    unsafe {
        boundary(err, || {
            if level > VRUST_LOG_TRACE {
                let message = format!("level: must be 0 to {VRUST_LOG_TRACE}, got {level}");
                return Err(Error::invalid("level", message).with("value", level));
            }
            let sink = callback.map(|call| Sink { call, user_data });
            set(level, sink.filter(|_| level > VRUST_LOG_OFF))?;
            Ok(VRUST_OK)
        })
    }
}

struct Sink {
    call: unsafe extern "C" fn(*mut c_void, u32, *const c_char, usize, *const c_char, usize),
    user_data: *mut c_void,
}

// SAFETY: the header says that the callback runs on any thread; what `user_data` points to is the
// host's, which promises that with vrust_log_set.
unsafe impl Send for Sink {}
// SAFETY: as above, and several threads at once.
unsafe impl Sync for Sink {}

/// Held for reading during a callback, so that replacing it waits for the calls in flight.
static SINK: RwLock<Option<Sink>> = RwLock::new(None);
static MAX_LEVEL: AtomicU32 = AtomicU32::new(VRUST_LOG_OFF);

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Refuses calls that wait for threads which may themselves wait for this callback's return.
pub(super) fn check_not_in_callback(call: &str) -> Result<()> {
    if IN_CALLBACK.try_with(Cell::get).unwrap_or(false) {
        let message = format!("{call}: must not be called from inside the log callback");
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    Ok(())
}

fn set(level: u32, sink: Option<Sink>) -> Result<()> {
    check_not_in_callback("vrust_log_set")?;
    if sink.is_some() {
        static INSTALLED: OnceLock<bool> = OnceLock::new();
        let install = || tracing::subscriber::set_global_default(Forwarder).is_ok();
        if !INSTALLED.get_or_init(install) {
            let message = "vrust_log_set: this process has a tracing subscriber of its own";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
    }
    let mut current = SINK.write().unwrap_or_else(PoisonError::into_inner);
    MAX_LEVEL.store(if sink.is_some() { level } else { VRUST_LOG_OFF }, Ordering::Relaxed);
    *current = sink;
    Ok(())
}

/// The subscriber: formats events, ignores spans.
struct Forwarder;

impl Subscriber for Forwarder {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes() // The level may change.
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && number(*metadata.level()) <= MAX_LEVEL.load(Ordering::Relaxed)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let metadata = event.metadata();
        forward(number(*metadata.level()), metadata.target(), &text.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn forward(level: u32, target: &str, message: &str) {
    // A callback may call the library, whose records are then dropped: they would come back here.
    if IN_CALLBACK.try_with(|inside| inside.replace(true)).unwrap_or(true) {
        return;
    }
    let current = SINK.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(sink) = &*current {
        let (name, text) = (target.as_ptr().cast(), message.as_ptr().cast());
        // SAFETY: the host gave this function and its `user_data` to vrust_log_set and has not
        // replaced them: replacing waits for the lock that is held here.
        unsafe { (sink.call)(sink.user_data, level, name, target.len(), text, message.len()) };
    }
    drop(current);
    IN_CALLBACK.set(false);
}

fn number(level: Level) -> u32 {
    match level {
        Level::ERROR => VRUST_LOG_ERROR,
        Level::WARN => VRUST_LOG_WARN,
        Level::INFO => VRUST_LOG_INFO,
        Level::DEBUG => VRUST_LOG_DEBUG,
        _ => VRUST_LOG_TRACE,
    }
}

/// `message key=value key=value`.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let space = if self.0.is_empty() { "" } else { " " };
        // Writing to a String does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{space}{value:?}"),
            name => write!(self.0, "{space}{name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.0.push_str(value),
            _ => self.record_debug(field, &value),
        }
    }
}
