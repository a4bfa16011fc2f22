//! Synchronisation primitives: std's, or shuttle's when its models explore schedules.

#[cfg(not(feature = "shuttle"))]
pub(crate) use std::{
    hint, sync::Arc, sync::Condvar, sync::Mutex, sync::MutexGuard, sync::atomic, thread,
};

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::{
    hint, sync::Arc, sync::Condvar, sync::Mutex, sync::MutexGuard, sync::atomic, thread,
};
