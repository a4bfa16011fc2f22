//! `Engine`: the handle that hosts hold. Cheap, `Send + Sync`, and never blocked by a step.

use std::sync::{OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, unbounded};
use serde_json::Value;

use super::event::{Event, EventKind};
use super::intake::{self, TokenizeJob};
use super::mailbox::Mailbox;
use super::queue::{EventQueue, OnRoom};
use super::registry::Registry;
use super::worker::{self, Command};
use crate::chat::ChatTemplate;
use crate::config::EngineOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::RequestId;
use crate::metrics::{Metrics, Outcome, Stats};
use crate::model::{GenerationConfig, ModelConfig};
use crate::os::monotonic_ns;
use crate::request::{Limits, Request};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread::JoinHandle;
use crate::sync::{Arc, Condvar, Mutex, MutexGuard};
use crate::tokenizer::Tokenizer;

/// An engine's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EngineState {
    /// Reading weights; requests are accepted and wait.
    Loading = 0,
    /// Serving.
    Ready = 1,
    /// Finishing what it has; new requests are refused.
    Draining = 2,
    /// Failed; every request was ended with an error.
    Failed = 3,
    /// Shut down.
    Closed = 4,
}

/// How to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownMode {
    /// Refuse new requests and finish the live ones.
    Drain,
    /// Abort the live requests.
    Abort,
}

/// Options of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// Bytes of undrained events past which this queue's sequences wait.
    pub max_undrained_bytes: usize,
}

/// A running engine. Dropping it aborts what is live, joins its threads and frees its memory;
/// queues stay valid and report `Closed` once drained.
pub struct Engine {
    shared: Arc<Shared>,
    worker: Mutex<Option<JoinHandle<()>>>,
    default_queue: Arc<EventQueue>,
}

/// What the handle, the tokenizer pool and the worker share.
pub(crate) struct Shared {
    pub(crate) options: EngineOptions,
    pub(crate) config: ModelConfig,
    pub(crate) generation: GenerationConfig,
    pub(crate) registry: Registry,
    pub(crate) mailbox: Arc<Mailbox<Command>>,
    pub(crate) metrics: Metrics,
    pub(crate) tokenizer: OnceLock<Arc<Tokenizer>>,
    pub(crate) template: OnceLock<Arc<ChatTemplate>>,
    pub(crate) on_room: OnRoom,
    pub(crate) default_queue: Arc<EventQueue>,
    jobs: Mutex<Option<Sender<Box<TokenizeJob>>>>,
    pub(crate) jobs_received: Receiver<Box<TokenizeJob>>,
    status: Mutex<Status>,
    changed: Condvar,
    queues: Mutex<Vec<Weak<EventQueue>>>,
    stopping: AtomicBool,
    process: u32,
}

struct Status {
    state: EngineState,
    /// Why the engine failed.
    failure: Option<Error>,
    /// Facts of the loaded engine.
    info: Option<Value>,
    /// The worker has exited.
    exited: bool,
}

impl Engine {
    /// Makes an engine: reads the model's configuration, starts the worker, which loads the
    /// weights, and returns at once. Requests may be submitted while it loads.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for options out of range; `NOT_FOUND`, `IO`, `MODEL_FORMAT` or
    /// `UNSUPPORTED` for a model folder whose configuration cannot be used.
    pub fn create(options: EngineOptions) -> Result<Self> {
        intake::check_options(&options)?;
        let config = ModelConfig::from_dir(&options.model)?;
        let generation = match options.use_generation_config {
            true => GenerationConfig::from_dir(&options.model)?,
            false => GenerationConfig::default(),
        };
        let mailbox = Arc::new(Mailbox::new());
        let knock = mailbox.clone();
        let on_room: OnRoom = Arc::new(move || knock.knock());
        let default_queue = Arc::new(EventQueue::new(options.max_undrained_bytes, on_room.clone()));
        let (jobs, jobs_received) = unbounded();
        let status =
            Status { state: EngineState::Loading, failure: None, info: None, exited: false };
        let shared = Arc::new(Shared {
            metrics: Metrics::new(),
            options,
            config,
            generation,
            registry: Registry::new(),
            mailbox,
            tokenizer: OnceLock::new(),
            template: OnceLock::new(),
            on_room,
            default_queue: default_queue.clone(),
            jobs: Mutex::new(Some(jobs)),
            jobs_received,
            status: Mutex::new(status),
            changed: Condvar::new(),
            queues: Mutex::new(vec![Arc::downgrade(&default_queue)]),
            stopping: AtomicBool::new(false),
            process: std::process::id(),
        });
        let worker = worker::spawn(shared.clone())?;
        Ok(Self { shared, worker: Mutex::new(Some(worker)), default_queue })
    }

    /// Waits until the engine has loaded; `Ok(false)` when `timeout` (`None`: no limit) passes.
    ///
    /// # Errors
    /// The reason, when loading failed; `SHUTTING_DOWN` when the engine was shut down first.
    pub fn wait_ready(&self, timeout: Option<Duration>) -> Result<bool> {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        // An engine that drains may still have to load: what it accepted waits for that.
        let ended = |s: &Status| matches!(s.state, EngineState::Failed | EngineState::Closed);
        let status = self.shared.wait_status(deadline, |s| s.info.is_some() || ended(s));
        match status.state {
            EngineState::Loading | EngineState::Ready | EngineState::Draining => {
                Ok(status.info.is_some())
            }
            EngineState::Failed => Err(status.failure.clone().unwrap_or_else(unknown_failure)),
            EngineState::Closed => Err(closed()),
        }
    }

    /// Where the engine is in its life.
    pub fn state(&self) -> EngineState {
        self.shared.lock_status().state
    }

    /// Facts about the loaded engine: model, limits, dtype, KV cache, backend.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` before it has loaded; the reason when it failed.
    pub fn info(&self) -> Result<Value> {
        let status = self.shared.lock_status();
        match (&status.info, &status.failure) {
            (Some(info), _) => Ok(info.clone()),
            (None, Some(failure)) => Err(failure.clone()),
            (None, None) => Err(Error::invalid("engine", "engine: still loading")),
        }
    }

    /// Takes a request. Never blocks on a step: tokenization runs on the engine's own threads and
    /// its failure is an `Error` event.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, `UNSUPPORTED` or `CONTEXT_LENGTH` for the request; `QUEUE_FULL`
    /// (retryable); `SHUTTING_DOWN` or `ENGINE_FAILED` for the engine's state.
    pub fn submit(&self, request: Request, queue: &Arc<EventQueue>) -> Result<RequestId> {
        let id = intake::submit(&self.shared, request, queue)?;
        if queue.is_closed() {
            // Its consumer has just gone, perhaps after `abort_queue` looked.
            self.send_abort(id);
        }
        Ok(id)
    }

    /// Ends a request within one step. Each of its unfinished choices gets its `Finished` event.
    /// Aborting a request that has ended is fine.
    ///
    /// # Errors
    /// `NOT_FOUND` for an id that this engine never issued.
    pub fn abort(&self, id: RequestId) -> Result<()> {
        if !self.shared.registry.issued(id) {
            let message = format!("request {id}: this engine issued no such id");
            return Err(Error::new(ErrorKind::NotFound, message).with("value", id.0));
        }
        self.send_abort(id);
        Ok(())
    }

    fn send_abort(&self, id: RequestId) {
        if self.shared.registry.begin_abort(id) {
            // A closed mailbox means that the worker is ending every request itself.
            let _ = self.shared.mailbox.send(Command::Abort(id));
        }
    }

    /// Ends every live request whose events go to `queue`, for a consumer that goes away.
    pub fn abort_queue(&self, queue: &Arc<EventQueue>) {
        self.shared.registry.live_ids_of(queue).into_iter().for_each(|id| self.send_abort(id));
    }

    /// Ends every live request.
    pub fn abort_all(&self) {
        let newest = self.shared.registry.newest();
        // A closed mailbox means that the worker is ending every request itself.
        let _ = self.shared.mailbox.send(Command::AbortAll(newest));
    }

    /// Refuses new requests, then waits until the live ones have ended (`Drain`) or ends them
    /// (`Abort`), and stops the worker. `Ok(false)` when `timeout` passes first: the engine goes
    /// on draining.
    ///
    /// # Errors
    /// None today.
    pub fn shutdown(&self, mode: ShutdownMode, timeout: Option<Duration>) -> Result<bool> {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        self.shared.start_draining();
        if mode == ShutdownMode::Drain && !self.shared.registry.wait_empty(deadline) {
            return Ok(false);
        }
        self.shared.stop();
        Ok(self.shared.wait_status(deadline, |s| s.exited).exited)
    }

    /// The queue of requests that name none, and of `Load` and `EngineFailed` events.
    pub fn default_queue(&self) -> &Arc<EventQueue> {
        &self.default_queue
    }

    /// Another queue, for another consumer.
    pub fn create_queue(&self, options: QueueOptions) -> Arc<EventQueue> {
        let on_room = self.shared.on_room.clone();
        let queue = Arc::new(EventQueue::new(options.max_undrained_bytes, on_room));
        let mut queues = self.shared.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|q| q.strong_count() > 0);
        queues.push(Arc::downgrade(&queue));
        drop(queues);
        if matches!(self.state(), EngineState::Failed | EngineState::Closed) {
            queue.close();
        }
        queue
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` before it has loaded, `UNSUPPORTED` when the engine runs without one.
    pub fn tokenizer(&self) -> Result<Arc<Tokenizer>> {
        if self.shared.options.skip_tokenizer {
            return Err(intake::no_tokenizer("tokenizer"));
        }
        let loaded = self.shared.tokenizer.get().cloned();
        loaded.ok_or_else(|| Error::invalid("engine", "engine: the tokenizer is not loaded yet"))
    }

    /// The chat template, if there is one.
    ///
    /// # Errors
    /// As `tokenizer`.
    pub fn chat_template(&self) -> Result<Option<Arc<ChatTemplate>>> {
        self.tokenizer()?;
        Ok(self.shared.template.get().cloned())
    }

    /// A snapshot of the engine's figures.
    pub fn stats(&self) -> Stats {
        let queues = self.shared.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let undrained = queues.iter().filter_map(Weak::upgrade).map(|q| q.undrained_bytes()).sum();
        let undrained: usize = undrained;
        self.shared.metrics.set_undrained_bytes(undrained as u64);
        self.shared.metrics.set_live_requests(self.shared.registry.num_live() as u64);
        self.shared.metrics.stats()
    }

    /// The figures in Prometheus' text format, under vLLM's names.
    pub fn prometheus(&self) -> String {
        self.stats(); // Refreshes what is only known here.
        self.shared.metrics.prometheus()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.shared.process != std::process::id() {
            return; // In a forked child the worker does not exist: there is nothing to join.
        }
        self.shared.start_draining();
        self.shared.stop();
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(worker) = worker {
            // The worker catches its own panics.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Refuses new requests from now on.
    fn start_draining(&self) {
        self.registry.refuse(Error::new(ErrorKind::ShuttingDown, "the engine is shutting down"));
        let mut status = self.lock_status();
        if matches!(status.state, EngineState::Loading | EngineState::Ready) {
            status.state = EngineState::Draining;
        }
        drop(status);
        self.changed.notify_all();
    }

    /// The engine has loaded.
    pub(crate) fn set_ready(&self, info: Value) {
        tracing::info!("ready: {info}");
        let mut status = self.lock_status();
        if status.state == EngineState::Loading {
            status.state = EngineState::Ready;
        }
        status.info = Some(info);
        // Under the lock: whoever sees the state or the event first finds the other.
        self.default_queue.publish([engine_event(EventKind::Load(1.0))]);
        drop(status);
        self.changed.notify_all();
    }

    /// Tells the worker to end everything and exit, even while it loads.
    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        // A closed mailbox means that the worker is on its way out already.
        let _ = self.mailbox.send(Command::Stop);
    }

    /// Whether the engine was told to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The worker is gone, by failure or by order. Ends what is live, joins the tokenizer `pool`
    /// and closes the queues.
    pub(crate) fn set_exited(&self, failure: Option<Error>, pool: Vec<JoinHandle<()>>) {
        let refusal = match &failure {
            Some(e) => Error::new(ErrorKind::EngineFailed, format!("the engine failed: {e}")),
            None => closed(),
        };
        self.registry.refuse(refusal.clone());
        self.metrics.set_ended();
        let mut status = self.lock_status();
        status.state = match failure {
            Some(_) => EngineState::Failed,
            None => EngineState::Closed,
        };
        status.failure.clone_from(&failure);
        drop(status);
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.mailbox.close();
        for id in self.registry.live_ids() {
            if let Some(ticket) = self.registry.end(id) {
                self.metrics.record_unscheduled(Outcome::Error, ticket.num_choices);
                ticket.queue.publish([ticket.error_event(refusal.clone())]);
            }
        }
        for thread in pool {
            // A thread that has just taken a request's ticket publishes its last event first. The
            // pool catches its own panics.
            let _ = thread.join();
        }
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        for queue in queues.iter().filter_map(Weak::upgrade) {
            if let Some(error) = &failure {
                queue.publish([engine_event(EventKind::EngineFailed(error.clone()))]);
            }
            queue.close();
        }
        drop(queues);
        tracing::info!("closed");
        self.lock_status().exited = true;
        self.changed.notify_all();
    }

    /// Sends a job to the tokenizer pool; false when the pool is gone.
    pub(crate) fn tokenize(&self, job: TokenizeJob) -> bool {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.as_ref().is_some_and(|jobs| jobs.send(Box::new(job)).is_ok())
    }

    /// What requests are checked against before anything is loaded.
    pub(crate) fn limits(&self) -> Limits {
        let model_len = self.config.max_position_embeddings;
        Limits {
            vocab_size: self.config.vocab_size,
            max_model_len: self.options.max_model_len.unwrap_or(model_len).min(model_len),
            max_logprobs: self.options.max_logprobs,
        }
    }

    fn wait_status(
        &self,
        deadline: Option<Instant>,
        done: impl Fn(&Status) -> bool,
    ) -> MutexGuard<'_, Status> {
        let mut status = self.lock_status();
        while !done(&status) {
            status = match deadline {
                None => self.changed.wait(status).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left == Duration::ZERO {
                        return status;
                    }
                    let waited = self.changed.wait_timeout(status, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        status
    }

    fn lock_status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An event that belongs to no request.
pub(crate) fn engine_event(kind: EventKind) -> Event {
    Event {
        request_id: RequestId(0),
        user_data: 0,
        choice: 0,
        last: false,
        time_ns: monotonic_ns(),
        kind,
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::ShuttingDown, "the engine is closed")
}

fn unknown_failure() -> Error {
    Error::new(ErrorKind::EngineFailed, "the engine failed")
}
