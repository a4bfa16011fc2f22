//! Panics of this library: never printed, always reported.
//!
//! Rust's own hook prints to stderr, which belongs to the host. Once the C ABI is used, a hook of
//! ours sends panics of our threads and calls to the log and passes all others on. A Rust host
//! that uses the crate and not the C ABI keeps the hook that it has.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::PanicHookInfo;
use std::sync::Once;
use std::thread;

/// Every thread that the library starts has a name that begins so.
const THREAD_PREFIX: &str = "vrust-";

thread_local! {
    /// Calls through the boundary that this thread is inside of.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// What the last panic of this thread said, and where.
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Marks this thread as inside the library while it lives.
pub(super) struct Inside(());

impl Inside {
    pub(super) fn enter() -> Self {
        install_hook();
        // A thread that is past the end of its locals runs unmarked: at worst a panic is printed.
        let _ = DEPTH.try_with(|depth| depth.set(depth.get() + 1));
        Self(())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = DEPTH.try_with(|depth| depth.set(depth.get() - 1));
    }
}

/// What a caught panic said.
pub(super) fn message(payload: Box<dyn Any + Send>) -> String {
    let noted = LAST.try_with(|last| last.borrow_mut().take()).ok().flatten();
    let message = noted.unwrap_or_else(|| text_of(payload.as_ref()).to_owned());
    // Dropping a payload may panic again.
    std::mem::forget(payload);
    message
}

fn install_hook() {
    static ONCE: Once = Once::new();
    // Rust refuses a new hook while this thread panics; a later call will install it.
    if ONCE.is_completed() || thread::panicking() {
        return;
    }
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match is_ours() {
            true => note(info),
            false => previous(info),
        }));
    });
}

fn is_ours() -> bool {
    DEPTH.try_with(|depth| depth.get() > 0).unwrap_or(false)
        || thread::current().name().is_some_and(|name| name.starts_with(THREAD_PREFIX))
}

fn note(info: &PanicHookInfo<'_>) {
    let text = text_of(info.payload());
    let message = match info.location() {
        Some(at) => format!("{text} ({}:{})", at.file(), at.line()),
        None => text.to_owned(),
    };
    tracing::error!(target: "vrust", "panic: {message}");
    let _ = LAST.try_with(|last| *last.borrow_mut() = Some(message));
}

fn text_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic")
}
