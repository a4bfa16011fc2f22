//! `VrustStats`: an engine's figures.

use super::boundary::boundary;
use super::bytes::{self, VrustBytes};
use super::engine::{ENGINES, VrustEngine};
use super::error::VrustError;
use super::input::Out;
use super::status::{VRUST_OK, VrustStatus};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Stats;

/// A snapshot of an engine's figures. Counters count from the engine's start. Fields are only ever
/// appended.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct VrustStats {
    /// Sequences that have blocks and are being computed.
    pub num_requests_running: u64,
    /// Sequences waiting for their (next) turn.
    pub num_requests_waiting: u64,
    /// Requests accepted and not ended, in any state.
    pub live_requests: u64,
    /// Rows of tokens that the backend computed, counted inside it.
    pub token_rows: u64,
    /// Rows of logits that the backend computed, counted inside it.
    pub logits_rows: u64,
    /// KV blocks that may hold data; the null block is not one.
    pub kv_blocks_total: u64,
    /// Of those, blocks that a sequence holds.
    pub kv_blocks_used: u64,
    /// Blocks that no sequence holds but the prefix cache may still serve.
    pub kv_blocks_cached: u64,
    /// Blocks that hold nothing of use. Free, used and cached add up to the total.
    pub kv_blocks_free: u64,
    /// `kv_blocks_used / kv_blocks_total`, 0 to 1.
    pub kv_cache_usage: f64,
    /// Tokens looked up in the prefix cache.
    pub prefix_cache_queries: u64,
    /// Tokens found there.
    pub prefix_cache_hits: u64,
    /// Sequences that lost their blocks to others.
    pub num_preemptions: u64,
    /// Prompt tokens of the sequences whose prefill is done, cached ones included.
    pub prompt_tokens: u64,
    /// Of those, tokens that came from the prefix cache.
    pub prompt_tokens_cached: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Choices that ended at end-of-text, a stop token or a stop string.
    pub finished_stop: u64,
    /// Choices that ended at `max_tokens` or the end of the context.
    pub finished_length: u64,
    /// Choices that the host aborted.
    pub finished_abort: u64,
    /// Choices whose deadline passed.
    pub finished_deadline: u64,
    /// Choices of requests that failed.
    pub finished_error: u64,
    /// Requests turned away because the waiting queue was full.
    pub rejected_queue_full: u64,
    /// Bytes of events that the host has not drained.
    pub undrained_bytes: u64,
    /// Steps done.
    pub steps: u64,
    /// Seconds of all steps.
    pub step_seconds: f64,
    /// Seconds of the newest step.
    pub last_step_seconds: f64,
}

/// Size of the first version: less cannot be meant.
const MIN_SIZE: usize = 208;

const _: () = assert!(size_of::<VrustStats>() == MIN_SIZE);

/// Writes the engine's figures to `stats`, as many bytes as `size` (sizeof *stats) says; what this
/// library does not know is zero. Never waits for a step. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_stats_get(
    engine: *const VrustEngine,
    stats: *mut VrustStats,
    size: usize,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `size` bytes of `stats` are writable unless it is NULL, and so is `err` (header,
    // "Pointers").
    unsafe {
        boundary(err, || {
            let engine = ENGINES.get(engine, "engine")?;
            Out::new(stats, "stats")?;
            check_size(size)?;
            write(&engine, stats.cast(), size);
            Ok(VRUST_OK)
        })
    }
}

/// Writes the engine's figures in Prometheus' text format, under vLLM's names. The caller destroys
/// the bytes. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_stats_prometheus(
    engine: *const VrustEngine,
    text_out: *mut *mut VrustBytes,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `text_out` and `err` are NULL or writable (header, "Pointers").
    unsafe {
        boundary(err, || {
            let engine = ENGINES.get(engine, "engine")?;
            let out = Out::new(text_out, "text_out")?;
            out.write(bytes::export(engine.prometheus())?);
            Ok(VRUST_OK)
        })
    }
}

/// # Safety
/// `size` bytes at `place` are writable.
unsafe fn write(engine: &Engine, place: *mut u8, size: usize) {
    let stats = VrustStats::from(engine.stats());
    let known = size.min(size_of::<VrustStats>());
    // SAFETY: as this function's contract; the struct has no padding.
    unsafe {
        place.copy_from_nonoverlapping((&raw const stats).cast(), known);
        place.add(known).write_bytes(0, size - known);
    }
}

fn check_size(size: usize) -> Result<()> {
    if (MIN_SIZE..=4096).contains(&size) {
        return Ok(());
    }
    let message = format!("size: must be {MIN_SIZE} to 4096, got {size}; pass sizeof(VrustStats)");
    let error = Error::new(ErrorKind::AbiMismatch, message).with("field", "size");
    Err(error.with("limit", MIN_SIZE).with("value", size))
}

impl From<Stats> for VrustStats {
    fn from(stats: Stats) -> Self {
        Self {
            num_requests_running: stats.num_requests_running,
            num_requests_waiting: stats.num_requests_waiting,
            live_requests: stats.live_requests,
            token_rows: stats.token_rows,
            logits_rows: stats.logits_rows,
            kv_blocks_total: stats.kv_blocks_total,
            kv_blocks_used: stats.kv_blocks_used,
            kv_blocks_cached: stats.kv_blocks_cached,
            kv_blocks_free: stats.kv_blocks_free,
            kv_cache_usage: stats.kv_cache_usage,
            prefix_cache_queries: stats.prefix_cache_queries,
            prefix_cache_hits: stats.prefix_cache_hits,
            num_preemptions: stats.num_preemptions,
            prompt_tokens: stats.prompt_tokens,
            prompt_tokens_cached: stats.prompt_tokens_cached,
            generation_tokens: stats.generation_tokens,
            finished_stop: stats.finished_stop,
            finished_length: stats.finished_length,
            finished_abort: stats.finished_abort,
            finished_deadline: stats.finished_deadline,
            finished_error: stats.finished_error,
            rejected_queue_full: stats.rejected_queue_full,
            undrained_bytes: stats.undrained_bytes,
            steps: stats.steps,
            step_seconds: stats.step_seconds,
            last_step_seconds: stats.last_step_seconds,
        }
    }
}
