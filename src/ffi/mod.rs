//! The `ffi` room.
