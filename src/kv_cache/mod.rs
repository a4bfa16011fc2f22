//! The `kv_cache` room.
