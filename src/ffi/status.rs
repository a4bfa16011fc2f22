//! `VrustStatus`: how a call ended.

use std::ffi::c_char;

use crate::error::ErrorKind;

/// How a call ended: `VRUST_OK`, a positive value that is not an error, or a negative one that is.
/// Numbers are permanent. Treat a negative number that you do not know as a plain error.
pub type VrustStatus = i32;

/// Done.
pub const VRUST_OK: VrustStatus = 0;
/// The time was up, or `vrust_queue_wake` was called, before anything happened.
pub const VRUST_TIMEOUT: VrustStatus = 1;
/// Events were delivered and more are waiting: poll again.
pub const VRUST_TRUNCATED: VrustStatus = 2;
/// The queue is finished: no event is left and none will come.
pub const VRUST_CLOSED: VrustStatus = 3;

/// A parameter is out of range or malformed, or a handle is NULL, stale or of another kind.
pub const VRUST_ERROR_INVALID_ARGUMENT: VrustStatus = -1;
/// The program was compiled against a header that this library cannot serve.
pub const VRUST_ERROR_ABI_MISMATCH: VrustStatus = -2;
/// Well-formed, but this build or model cannot do it.
pub const VRUST_ERROR_UNSUPPORTED: VrustStatus = -3;
/// No such thing: an id that the engine never issued, a file that does not exist.
pub const VRUST_ERROR_NOT_FOUND: VrustStatus = -4;
/// The operating system refused, or cut short, an operation on a file.
pub const VRUST_ERROR_IO: VrustStatus = -5;
/// A checkpoint or its configuration is malformed.
pub const VRUST_ERROR_MODEL_FORMAT: VrustStatus = -6;
/// The tokenizer is missing, malformed, or failed on this input.
pub const VRUST_ERROR_TOKENIZER: VrustStatus = -7;
/// The chat template is missing, malformed, or raised an error on these messages.
pub const VRUST_ERROR_TEMPLATE: VrustStatus = -8;
/// A grammar for structured output is malformed.
pub const VRUST_ERROR_GRAMMAR: VrustStatus = -9;
/// The prompt does not fit the model's context.
pub const VRUST_ERROR_CONTEXT_LENGTH: VrustStatus = -10;
/// The waiting queue is full. The one retryable error.
pub const VRUST_ERROR_QUEUE_FULL: VrustStatus = -11;
/// Host memory could not be had.
pub const VRUST_ERROR_OUT_OF_MEMORY: VrustStatus = -12;
/// Device memory could not be had.
pub const VRUST_ERROR_DEVICE_MEMORY: VrustStatus = -13;
/// The device reported a failure.
pub const VRUST_ERROR_DEVICE: VrustStatus = -14;
/// The engine failed earlier and serves no more requests. Destroy it.
pub const VRUST_ERROR_ENGINE_FAILED: VrustStatus = -15;
/// The engine is draining or closed.
pub const VRUST_ERROR_SHUTTING_DOWN: VrustStatus = -16;
/// The caller's buffer cannot hold the result; the size it needs was written.
pub const VRUST_ERROR_BUFFER_TOO_SMALL: VrustStatus = -17;
/// A bug in this library, caught at the boundary. The message says where.
pub const VRUST_ERROR_PANIC: VrustStatus = -18;
/// The library was used before `fork` and this is the child.
pub const VRUST_ERROR_FORKED: VrustStatus = -19;
/// The operation was cancelled by the host.
pub const VRUST_ERROR_CANCELLED: VrustStatus = -20;

/// The name of a status without its prefix, such as "TIMEOUT" or "INVALID_ARGUMENT"; "UNKNOWN" for
/// a number this library does not know. Static and NUL-terminated. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn vrust_status_name(status: VrustStatus) -> *const c_char {
    let name = match status {
        VRUST_OK => c"OK",
        VRUST_TIMEOUT => c"TIMEOUT",
        VRUST_TRUNCATED => c"TRUNCATED",
        VRUST_CLOSED => c"CLOSED",
        VRUST_ERROR_INVALID_ARGUMENT => c"INVALID_ARGUMENT",
        VRUST_ERROR_ABI_MISMATCH => c"ABI_MISMATCH",
        VRUST_ERROR_UNSUPPORTED => c"UNSUPPORTED",
        VRUST_ERROR_NOT_FOUND => c"NOT_FOUND",
        VRUST_ERROR_IO => c"IO",
        VRUST_ERROR_MODEL_FORMAT => c"MODEL_FORMAT",
        VRUST_ERROR_TOKENIZER => c"TOKENIZER",
        VRUST_ERROR_TEMPLATE => c"TEMPLATE",
        VRUST_ERROR_GRAMMAR => c"GRAMMAR",
        VRUST_ERROR_CONTEXT_LENGTH => c"CONTEXT_LENGTH",
        VRUST_ERROR_QUEUE_FULL => c"QUEUE_FULL",
        VRUST_ERROR_OUT_OF_MEMORY => c"OUT_OF_MEMORY",
        VRUST_ERROR_DEVICE_MEMORY => c"DEVICE_MEMORY",
        VRUST_ERROR_DEVICE => c"DEVICE",
        VRUST_ERROR_ENGINE_FAILED => c"ENGINE_FAILED",
        VRUST_ERROR_SHUTTING_DOWN => c"SHUTTING_DOWN",
        VRUST_ERROR_BUFFER_TOO_SMALL => c"BUFFER_TOO_SMALL",
        VRUST_ERROR_PANIC => c"PANIC",
        VRUST_ERROR_FORKED => c"FORKED",
        VRUST_ERROR_CANCELLED => c"CANCELLED",
        _ => c"UNKNOWN",
    };
    name.as_ptr()
}

/// The status of an error kind: the numbers are the same by definition.
pub(super) fn of_kind(kind: ErrorKind) -> VrustStatus {
    kind as VrustStatus
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[test]
    fn every_kind_has_its_number_and_name() {
        let kinds = [
            (ErrorKind::InvalidArgument, VRUST_ERROR_INVALID_ARGUMENT),
            (ErrorKind::AbiMismatch, VRUST_ERROR_ABI_MISMATCH),
            (ErrorKind::Unsupported, VRUST_ERROR_UNSUPPORTED),
            (ErrorKind::NotFound, VRUST_ERROR_NOT_FOUND),
            (ErrorKind::Io, VRUST_ERROR_IO),
            (ErrorKind::ModelFormat, VRUST_ERROR_MODEL_FORMAT),
            (ErrorKind::Tokenizer, VRUST_ERROR_TOKENIZER),
            (ErrorKind::Template, VRUST_ERROR_TEMPLATE),
            (ErrorKind::Grammar, VRUST_ERROR_GRAMMAR),
            (ErrorKind::ContextLength, VRUST_ERROR_CONTEXT_LENGTH),
            (ErrorKind::QueueFull, VRUST_ERROR_QUEUE_FULL),
            (ErrorKind::OutOfMemory, VRUST_ERROR_OUT_OF_MEMORY),
            (ErrorKind::DeviceMemory, VRUST_ERROR_DEVICE_MEMORY),
            (ErrorKind::Device, VRUST_ERROR_DEVICE),
            (ErrorKind::EngineFailed, VRUST_ERROR_ENGINE_FAILED),
            (ErrorKind::ShuttingDown, VRUST_ERROR_SHUTTING_DOWN),
            (ErrorKind::BufferTooSmall, VRUST_ERROR_BUFFER_TOO_SMALL),
            (ErrorKind::Panic, VRUST_ERROR_PANIC),
            (ErrorKind::Forked, VRUST_ERROR_FORKED),
            (ErrorKind::Cancelled, VRUST_ERROR_CANCELLED),
        ];
        for (kind, status) in kinds {
            assert_eq!(of_kind(kind), status);
            // SAFETY: the function returns static, NUL-terminated strings.
            let name = unsafe { CStr::from_ptr(vrust_status_name(status)) };
            assert_eq!(name.to_str(), Ok(kind.name()));
        }
    }
}
