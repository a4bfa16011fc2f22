//! `VrustEngine`: a model being served.

use std::sync::Arc;

use super::boundary::{boundary, destroy};
use super::bytes::{self, VrustBytes};
use super::engine_options::{self, VrustEngineOptions};
use super::error::VrustError;
use super::handle::{Kind, Table};
use super::input::{self, Out};
use super::log;
use super::status::{VRUST_OK, VRUST_TIMEOUT, VrustStatus};
use crate::engine::{Engine, EngineState, ShutdownMode};
use crate::error::{Error, Result};

/// `vrust_engine_state`: reading weights; requests are accepted and wait.
pub const VRUST_STATE_LOADING: u32 = 0;
/// `vrust_engine_state`: serving.
pub const VRUST_STATE_READY: u32 = 1;
/// `vrust_engine_state`: finishing what it has; new requests are refused.
pub const VRUST_STATE_DRAINING: u32 = 2;
/// `vrust_engine_state`: failed; every request was ended with an error.
pub const VRUST_STATE_FAILED: u32 = 3;
/// `vrust_engine_state`: shut down.
pub const VRUST_STATE_CLOSED: u32 = 4;

/// `vrust_engine_shutdown`: finish the live requests.
pub const VRUST_SHUTDOWN_DRAIN: u32 = 0;
/// `vrust_engine_shutdown`: abort the live requests.
pub const VRUST_SHUTDOWN_ABORT: u32 = 1;

/// A model being served: scheduler, worker thread, weights, KV cache.
pub struct VrustEngine {
    _opaque: [u8; 0],
}

pub(super) static ENGINES: Table<Engine> = Table::new(Kind::Engine);

/// Makes an engine. Checks the options, reads the model's configuration, starts a thread that
/// loads the weights, and returns at once. Progress comes as VRUST_EVENT_LOAD on the default
/// queue; requests may be submitted meanwhile. End it with `vrust_engine_destroy`.
///
/// Any thread. VRUST_ERROR_INVALID_ARGUMENT, VRUST_ERROR_UNSUPPORTED or VRUST_ERROR_ABI_MISMATCH
/// for the options; VRUST_ERROR_NOT_FOUND, VRUST_ERROR_IO, VRUST_ERROR_MODEL_FORMAT for the folder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_engine_create(
    options: *const VrustEngineOptions,
    engine_out: *mut *mut VrustEngine,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `options` is NULL or readable, and so are the pointers in it; `engine_out` and `err`
    // are NULL or writable (header, "Pointers", "Structs").
    unsafe {
        boundary(err, || {
            let out = Out::new(engine_out, "engine_out")?;
            let c = input::read(options, "options")?;
            let engine = Engine::create(engine_options::convert(&c)?)?;
            out.write(ENGINES.insert(Arc::new(engine))?);
            Ok(VRUST_OK)
        })
    }
}

/// Waits until the engine has loaded; VRUST_TIMEOUT when `timeout_ms` (-1: no limit) passes.
///
/// Any thread. The reason, when loading failed; VRUST_ERROR_SHUTTING_DOWN when it was cancelled.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_engine_wait_ready(
    engine: *const VrustEngine,
    timeout_ms: i32,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `err` is NULL or writable (header, "Errors").
    unsafe {
        boundary(err, || {
            log::check_not_in_callback("vrust_engine_wait_ready")?;
            let ready = ENGINES.get(engine, "engine")?.wait_ready(input::timeout(timeout_ms)?)?;
            Ok(if ready { VRUST_OK } else { VRUST_TIMEOUT })
        })
    }
}

/// Writes the engine's state, VRUST_STATE_*. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_engine_state(
    engine: *const VrustEngine,
    state_out: *mut u32,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `state_out` and `err` are NULL or writable (header, "Pointers").
    unsafe {
        boundary(err, || {
            let engine = ENGINES.get(engine, "engine")?;
            Out::new(state_out, "state_out")?.write(match engine.state() {
                EngineState::Loading => VRUST_STATE_LOADING,
                EngineState::Ready => VRUST_STATE_READY,
                EngineState::Draining => VRUST_STATE_DRAINING,
                EngineState::Failed => VRUST_STATE_FAILED,
                EngineState::Closed => VRUST_STATE_CLOSED,
            });
            Ok(VRUST_OK)
        })
    }
}

/// Writes facts about the loaded engine, a JSON object: model, max_model_len, vocab_size, eos
/// token ids, dtype, KV blocks, backend .. The caller destroys the bytes.
///
/// Any thread. VRUST_ERROR_INVALID_ARGUMENT before the engine is ready.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_engine_info_json(
    engine: *const VrustEngine,
    json_out: *mut *mut VrustBytes,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `json_out` and `err` are NULL or writable (header, "Pointers").
    unsafe {
        boundary(err, || {
            let engine = ENGINES.get(engine, "engine")?;
            let out = Out::new(json_out, "json_out")?;
            out.write(bytes::export(engine.info()?.to_string())?);
            Ok(VRUST_OK)
        })
    }
}

/// Refuses new requests from now on. VRUST_SHUTDOWN_DRAIN waits until the live ones have ended,
/// VRUST_SHUTDOWN_ABORT ends them; then the engine stops and its queues are closed, once drained.
/// VRUST_TIMEOUT when `timeout_ms` (-1: no limit) passes first: the engine goes on ending, and the
/// call may be repeated, in either mode. Requests of a queue past its `max_undrained_bytes` wait to
/// be drained also now: drain without a limit only while another thread polls. Any thread, at any
/// time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_engine_shutdown(
    engine: *const VrustEngine,
    mode: u32,
    timeout_ms: i32,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `err` is NULL or writable (header, "Errors").
    unsafe {
        boundary(err, || {
            let engine = ENGINES.get(engine, "engine")?;
            log::check_not_in_callback("vrust_engine_shutdown")?;
            let ended = engine.shutdown(shutdown_mode(mode)?, input::timeout(timeout_ms)?)?;
            Ok(if ended { VRUST_OK } else { VRUST_TIMEOUT })
        })
    }
}

/// Ends the engine at once, cancels its loading, aborts its requests, waits for its threads and
/// gives back its memory, which calls still inside other threads hold until they return. Queues
/// and tokenizers that came from it stay valid: drain the last events, then poll says
/// VRUST_CLOSED. NULL is fine. Any thread, at any time; not from the log callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_engine_destroy(engine: *mut VrustEngine) -> VrustStatus {
    let may_wait = || log::check_not_in_callback("vrust_engine_destroy").is_ok();
    destroy(engine, || match may_wait().then(|| ENGINES.remove(engine)).flatten() {
        Some(engine) => {
            // Calls of other threads return soon once it is down. It cannot fail without a limit.
            let _ = engine.shutdown(ShutdownMode::Abort, None);
            drop(engine);
            true
        }
        None => false,
    })
}

fn shutdown_mode(mode: u32) -> Result<ShutdownMode> {
    match mode {
        VRUST_SHUTDOWN_DRAIN => Ok(ShutdownMode::Drain),
        VRUST_SHUTDOWN_ABORT => Ok(ShutdownMode::Abort),
        _ => {
            let message = format!("mode: must be 0 or 1, got {mode}");
            Err(Error::invalid("mode", message).with("limit", 1).with("value", mode))
        }
    }
}
