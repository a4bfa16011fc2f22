//! Numbers for metrics.

use super::Scheduler;
use crate::kv_cache::BlockStats;

/// The scheduler's numbers now, and its counters since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Sequences in the running list.
    pub running: usize,
    /// Sequences in the waiting queue.
    pub waiting: usize,
    /// Blocks of the KV cache.
    pub blocks: BlockStats,
    /// Preemptions so far.
    pub preemptions: u64,
    /// Tokens looked up in the prefix cache so far.
    pub prefix_cache_queries: u64,
    /// Tokens found there so far.
    pub prefix_cache_hits: u64,
}

/// What only grows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) preemptions: u64,
    pub(super) prefix_cache_queries: u64,
    pub(super) prefix_cache_hits: u64,
}

impl Scheduler {
    /// The numbers.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            blocks: self.pool.stats(),
            preemptions: self.counters.preemptions,
            prefix_cache_queries: self.counters.prefix_cache_queries,
            prefix_cache_hits: self.counters.prefix_cache_hits,
        }
    }
}
