//! Synchronisation primitives: std's, or shuttle's when its models explore schedules.

#[cfg(not(feature = "shuttle"))]
pub(crate) use std::{
    sync::Arc, sync::Condvar, sync::Mutex, sync::MutexGuard, sync::atomic, thread,
};

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::{
    sync::Arc, sync::Condvar, sync::Mutex, sync::MutexGuard, sync::atomic, thread,
};
