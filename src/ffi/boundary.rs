//! The boundary that every fallible export runs inside.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::{self, VrustError};
use super::panic::{self, Inside};
use super::process;
use super::status::{
    VRUST_ERROR_FORKED, VRUST_ERROR_INVALID_ARGUMENT, VRUST_ERROR_PANIC, VRUST_OK, VrustStatus,
};
use crate::error::{Error, ErrorKind, Result};

/// Runs `body`, catches its panics, and reports its error through `err`.
///
/// # Safety
/// `err` is NULL or writable.
pub(super) unsafe fn boundary(
    err: *mut *mut VrustError,
    body: impl FnOnce() -> Result<VrustStatus>,
) -> VrustStatus {
    if process::is_forked_child() {
        if !err.is_null() {
            // SAFETY: not NULL, hence writable by this function's contract.
            unsafe { err.write(error::forked()) };
        }
        return VRUST_ERROR_FORKED;
    }
    let _inside = Inside::enter();
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(status)) => return status,
        Ok(Err(failure)) => failure,
        Err(payload) => {
            let message = format!("a bug in vrust: {}", panic::message(payload));
            Error::new(ErrorKind::Panic, message)
        }
    };
    // Making the error object allocates and locks; should even that panic, the code must do.
    let made = catch_unwind(AssertUnwindSafe(|| error::export(&failure, !err.is_null())));
    let (code, handle) = made.unwrap_or((VRUST_ERROR_PANIC, std::ptr::null_mut()));
    if !err.is_null() {
        // SAFETY: not NULL, hence writable by this function's contract.
        unsafe { err.write(handle) };
    }
    code
}

/// Runs a destroy function's `body`, which returns whether the handle was live. In a forked child
/// it does not run: what the handle names is left alone.
pub(super) fn destroy<T>(handle: *const T, body: impl FnOnce() -> bool) -> VrustStatus {
    if handle.is_null() {
        return VRUST_OK;
    }
    if process::is_forked_child() {
        return VRUST_ERROR_FORKED;
    }
    let _inside = Inside::enter();
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(true) => VRUST_OK,
        Ok(false) => VRUST_ERROR_INVALID_ARGUMENT,
        Err(payload) => {
            drop(panic::message(payload));
            VRUST_ERROR_PANIC
        }
    }
}

/// Runs an accessor that cannot report an error: `fallback` after a panic or in a forked child.
pub(super) fn accessor<R>(fallback: R, body: impl FnOnce() -> R) -> R {
    if process::is_forked_child() {
        return fallback;
    }
    let _inside = Inside::enter();
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        drop(panic::message(payload));
        fallback
    })
}

#[cfg(test)]
mod tests {
    use std::ptr::null_mut;

    use super::*;
    use crate::ffi::error::{vrust_error_code, vrust_error_destroy, vrust_error_message};

    #[test]
    fn a_panic_becomes_an_error_that_says_where() {
        let mut err = null_mut();
        // SAFETY: `err` is a local variable.
        let status = unsafe { boundary(&mut err, || panic!("number {}", 7)) };
        assert_eq!(status, VRUST_ERROR_PANIC);
        // SAFETY: `err` is a live handle; its message is NUL-terminated and lives until destroy.
        let message = unsafe {
            assert_eq!(vrust_error_code(err), VRUST_ERROR_PANIC);
            std::ffi::CStr::from_ptr(vrust_error_message(err, null_mut())).to_str().unwrap()
        };
        assert!(message.starts_with("a bug in vrust: number 7 (src/ffi/boundary.rs:"), "{message}");
        // SAFETY: a live handle, then a stale one.
        unsafe {
            assert_eq!(vrust_error_destroy(err), VRUST_OK);
            assert_eq!(vrust_error_destroy(err), VRUST_ERROR_INVALID_ARGUMENT);
        }
    }

    #[test]
    fn errors_are_not_made_for_those_who_do_not_ask() {
        // SAFETY: NULL is allowed.
        let status = unsafe { boundary(null_mut(), || Err(Error::invalid("x", "x: bad"))) };
        assert_eq!(status, VRUST_ERROR_INVALID_ARGUMENT);
    }
}
