//! A stack of its own for a template.
//!
//! The template engine recurses over expressions when it compiles, and over nested values when it
//! compares, prints or drops them; a few kilobytes of template can nest as deep as the budget of
//! work allows. On a stack that is large enough for that, the host's thread cannot overflow. The
//! memory is only reserved: what is never touched costs nothing.

use std::thread;

use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};

/// Stack that any template gets.
const BASE_STACK: usize = 2 << 20;
/// Stack for each byte of source: `-` nests an expression by one. About 300 were seen.
const STACK_PER_SOURCE_BYTE: usize = 1024;
/// Stack for each unit of work: a unit nests a value by one. Below 560 were seen.
const STACK_PER_FUEL: usize = 640;
/// Work that any chat may take, about an instruction or 64 bytes of data a unit.
const BASE_FUEL: u64 = 200_000;
/// Further work for each message; published templates take about 100.
const FUEL_PER_MESSAGE: u64 = 1000;
/// Most work, whatever the chat.
const MAX_FUEL: u64 = 5_000_000;

/// Compiles a template of `source_len` bytes.
pub(super) fn compile<T: Send>(
    source_len: usize,
    call: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    on_stack(BASE_STACK + source_len * STACK_PER_SOURCE_BYTE, call)
}

/// Renders a template that may do `fuel` units of work.
pub(super) fn render<T: Send>(fuel: u64, call: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_stack(BASE_STACK + fuel as usize * STACK_PER_FUEL, call)
}

/// The work that rendering `inputs`, `num_messages` of them messages, may take.
pub(super) fn fuel_for<'a>(num_messages: usize, inputs: impl Iterator<Item = &'a Value>) -> u64 {
    let data: u64 = inputs.map(weight).sum();
    (BASE_FUEL + num_messages as u64 * FUEL_PER_MESSAGE + data / 4).min(MAX_FUEL)
}

/// About the bytes of a value's JSON form.
fn weight(value: &Value) -> u64 {
    8 + match value {
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(weight).sum(),
        Value::Object(map) => map.iter().map(|(key, v)| key.len() as u64 + weight(v)).sum(),
        _ => 0,
    }
}

fn on_stack<T: Send>(bytes: usize, call: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("vrust-template".to_owned())
            .stack_size(bytes)
            .spawn_scoped(scope, call)
            .map_err(|e| {
                let message = format!("cannot reserve {bytes} bytes of stack for a template: {e}");
                Error::new(ErrorKind::OutOfMemory, message)
            })?;
        thread.join().unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Template, "the template engine panicked"))
        })
    })
}
