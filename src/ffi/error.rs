//! `VrustError`: what went wrong, as an object of the call that failed.

use std::ffi::c_char;
use std::ptr;
use std::sync::Arc;

use super::boundary::{accessor, destroy};
use super::handle::{self, Kind, Lookup, Parts, Table};
use super::process;
use super::status::{
    self, VRUST_ERROR_FORKED, VRUST_ERROR_INVALID_ARGUMENT, VRUST_ERROR_OUT_OF_MEMORY, VRUST_OK,
    VrustStatus,
};
use crate::error::Error;

/// What went wrong in one call: a code, a message for people, details for programs.
pub struct VrustError {
    _opaque: [u8; 0],
}

static ERRORS: Table<ErrorObject> = Table::new(Kind::Error);

/// Both strings end with a NUL that their length does not count.
struct ErrorObject {
    code: VrustStatus,
    message: Vec<u8>,
    detail: Vec<u8>,
    retryable: bool,
}

/// Errors that can be had without memory or locks: generation 0, by slot.
const FORKED: usize = 0;
const OUT_OF_MEMORY: usize = 1;

/// The status that made this error. VRUST_ERROR_INVALID_ARGUMENT for NULL and stale handles.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_error_code(error: *const VrustError) -> VrustStatus {
    if let Some(slot) = fixed(error) {
        return if slot == FORKED { VRUST_ERROR_FORKED } else { VRUST_ERROR_OUT_OF_MEMORY };
    }
    accessor(VRUST_ERROR_FORKED, || match ERRORS.look_up(error) {
        Lookup::Live(object) => object.code,
        _ => VRUST_ERROR_INVALID_ARGUMENT,
    })
}

/// The message, UTF-8 and NUL-terminated; `*len`, unless `len` is NULL, gets its bytes without the
/// NUL. It names the field, its limit and the value given. Valid until the error is destroyed; ""
/// for NULL and stale handles.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_error_message(
    error: *const VrustError,
    len: *mut usize,
) -> *const c_char {
    let text: &'static [u8] = match fixed(error) {
        Some(FORKED) => b"vrust was used before fork(); the child must exec before it uses vrust\0",
        Some(_) => b"out of memory\0",
        None => b"\0",
    };
    // SAFETY: `len` is NULL or writable (header, "Pointers").
    unsafe { text_of(error, text, len, |object| &object.message) }
}

/// Details as a JSON object, such as {"field":"max_tokens","limit":1,"value":0}, UTF-8 and
/// NUL-terminated; `*len`, unless `len` is NULL, gets its bytes without the NUL. Valid until the
/// error is destroyed; "{}" where there are none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_error_detail_json(
    error: *const VrustError,
    len: *mut usize,
) -> *const c_char {
    // SAFETY: `len` is NULL or writable (header, "Pointers").
    unsafe { text_of(error, b"{}\0", len, |object| &object.detail) }
}

/// 1 if the same call may succeed later without a change (VRUST_ERROR_QUEUE_FULL), else 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_error_is_retryable(error: *const VrustError) -> i32 {
    if fixed(error).is_some() {
        return 0;
    }
    accessor(0, || match ERRORS.look_up(error) {
        Lookup::Live(object) => i32::from(object.retryable),
        _ => 0,
    })
}

/// Frees an error and its strings. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_error_destroy(error: *mut VrustError) -> VrustStatus {
    if fixed(error).is_some() {
        return VRUST_OK;
    }
    destroy(error, || ERRORS.remove(error).is_some())
}

/// The error of every call in a forked child.
pub(super) fn forked() -> *mut VrustError {
    handle::encode(Kind::Error, Parts { slot: FORKED, generation: 0 }) as *mut VrustError
}

/// An error's code, and a handle to it if one is wanted.
pub(super) fn export(error: &Error, wanted: bool) -> (VrustStatus, *mut VrustError) {
    let code = status::of_kind(error.kind());
    if !wanted {
        return (code, ptr::null_mut());
    }
    let object = ErrorObject {
        code,
        message: nul_terminated(error.message()),
        detail: nul_terminated(&detail_json(error)),
        retryable: error.is_retryable(),
    };
    let full = || {
        handle::encode(Kind::Error, Parts { slot: OUT_OF_MEMORY, generation: 0 }) as *mut VrustError
    };
    (code, ERRORS.insert(Arc::new(object)).unwrap_or_else(|_| full()))
}

/// An error's details as a JSON object.
pub(super) fn detail_json(error: &Error) -> String {
    serde_json::to_string(error.detail()).unwrap_or_else(|_| "{}".to_owned())
}

fn nul_terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

/// The slot of an error that is not in the table.
fn fixed(error: *const VrustError) -> Option<usize> {
    let parts = handle::decode(Kind::Error, error as usize)?;
    (parts.generation == 0 && parts.slot <= OUT_OF_MEMORY).then_some(parts.slot)
}

/// One of an error's strings, or `fallback`; both end with a NUL.
///
/// # Safety
/// `len` is NULL or writable.
unsafe fn text_of(
    error: *const VrustError,
    fallback: &'static [u8],
    len: *mut usize,
    field: impl FnOnce(&ErrorObject) -> &Vec<u8>,
) -> *const c_char {
    let outside = (fallback.as_ptr(), fallback.len());
    // The table keeps the object, and so the string, until the host destroys the error.
    let (data, size) = match fixed(error).is_some() || process::is_forked_child() {
        true => outside,
        false => accessor(outside, || match ERRORS.look_up(error) {
            Lookup::Live(object) => {
                let text = field(&object);
                (text.as_ptr(), text.len())
            }
            _ => outside,
        }),
    };
    if !len.is_null() {
        // SAFETY: not NULL, hence writable by this function's contract.
        unsafe { len.write(size - 1) };
    }
    data.cast()
}
