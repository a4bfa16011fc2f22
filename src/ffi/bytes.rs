//! `VrustBytes`: a result whose size the host cannot know beforehand.

use std::sync::Arc;

use super::boundary::{accessor, destroy};
use super::handle::{Kind, Lookup, Table};
use super::status::VrustStatus;
use crate::error::Result;

/// A block of bytes that the library made: JSON or text, UTF-8 and NUL-terminated.
pub struct VrustBytes {
    _opaque: [u8; 0],
}

/// The contents, and a NUL that `vrust_bytes_len` does not count.
static BYTES: Table<Vec<u8>> = Table::new(Kind::Bytes);

/// The bytes, followed by a NUL. Valid until destroyed. NULL for NULL and stale handles.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_bytes_data(bytes: *const VrustBytes) -> *const u8 {
    accessor(std::ptr::null(), || match BYTES.look_up(bytes) {
        Lookup::Live(data) => data.as_ptr(),
        _ => std::ptr::null(),
    })
}

/// Number of bytes, without the NUL. 0 for NULL and stale handles.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_bytes_len(bytes: *const VrustBytes) -> usize {
    accessor(0, || match BYTES.look_up(bytes) {
        Lookup::Live(data) => data.len() - 1,
        _ => 0,
    })
}

/// Frees the bytes. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_bytes_destroy(bytes: *mut VrustBytes) -> VrustStatus {
    destroy(bytes, || BYTES.remove(bytes).is_some())
}

/// Hands `text` to the host.
pub(super) fn export(text: String) -> Result<*mut VrustBytes> {
    let mut data = text.into_bytes();
    data.try_reserve_exact(1)?;
    data.push(0);
    BYTES.insert(Arc::new(data))
}
