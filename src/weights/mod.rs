//! The `weights` room.
