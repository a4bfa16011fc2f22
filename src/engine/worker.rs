//! The worker: one thread that owns scheduler, model and backend.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::deadlines::Deadlines;
use super::emit::Outbox;
use super::figures::StepFigures;
use super::handle::Shared;
use super::intake::{self, Admission};
use super::load::{self, Loaded};
use super::output::Choice;
use super::queue::EventQueue;
use super::registry::Ticket;
use super::runner::Runner;
use super::steps::Pending;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{RequestId, SeqId};
use crate::metrics::Outcome;
use crate::request::FinishReason;
use crate::scheduler::Scheduler;
use crate::sync::Arc;
use crate::sync::thread::{self, JoinHandle};

/// What the handle tells the worker.
pub(crate) enum Command {
    Add(Box<Admission>),
    Abort(RequestId),
    /// Aborts every request up to this one; those submitted later go on.
    AbortAll(RequestId),
    Stop,
}

/// A request while the worker has it.
pub(crate) struct Live {
    pub(crate) ticket: Arc<Ticket>,
    /// The choices that have not ended.
    pub(crate) running: Vec<SeqId>,
    /// Most tokens of a choice that has ended.
    pub(crate) longest: u32,
}

/// The worker's state: everything that a step reads or writes.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) scheduler: Scheduler,
    pub(crate) runner: Runner,
    pub(crate) max_model_len: usize,
    pub(crate) requests: HashMap<RequestId, Live>,
    pub(crate) choices: HashMap<SeqId, Choice>,
    /// Rows of the step at hand that logits are asked for.
    pub(crate) wanted: Vec<u32>,
    pub(crate) next_seq: u64,
    pub(crate) deadlines: Deadlines,
    pub(crate) outbox: Outbox,
    pub(crate) figures: StepFigures,
    /// Full queues, whose sequences wait.
    pub(crate) held: Vec<Arc<EventQueue>>,
    /// The step that the device has, if the host went on.
    pub(crate) pending: Option<Pending>,
    stopping: bool,
    commands: Vec<Command>,
}

/// Starts the worker: it loads, serves until it is told to stop, and ends what is left.
pub(crate) fn spawn(shared: Arc<Shared>) -> Result<JoinHandle<()>> {
    let named = thread::Builder::new().name("vrust-engine".into());
    named.spawn(move || run(&shared)).map_err(|e| {
        Error::new(ErrorKind::OutOfMemory, format!("cannot start the engine's thread: {e}"))
    })
}

fn run(shared: &Arc<Shared>) {
    let mut pool = Vec::new();
    let served = catch_unwind(AssertUnwindSafe(|| {
        load::load_text(shared)?;
        if !shared.options.skip_tokenizer {
            intake::start_pool(shared, &mut pool)?;
        }
        let loaded = load::load_model(shared)?;
        shared.set_ready(loaded.info.clone());
        Worker::new(shared.clone(), loaded).serve()
    }));
    let failure = match served {
        Ok(Ok(())) => None,
        Ok(Err(e)) if e.kind() == ErrorKind::Cancelled => {
            abort_unscheduled(shared);
            None
        }
        Ok(Err(e)) => Some(e),
        Err(panic) => Some(Error::new(ErrorKind::Panic, panic_message(&*panic))),
    };
    if let Some(error) = &failure {
        tracing::error!("the engine failed: {error}");
    }
    shared.set_exited(failure, pool);
}

impl Worker {
    fn new(shared: Arc<Shared>, loaded: Loaded) -> Self {
        Self {
            shared,
            scheduler: loaded.scheduler,
            runner: loaded.runner,
            max_model_len: loaded.max_model_len,
            requests: HashMap::new(),
            choices: HashMap::new(),
            wanted: Vec::new(),
            next_seq: 1,
            deadlines: Deadlines::default(),
            outbox: Outbox::default(),
            figures: StepFigures::default(),
            held: Vec::new(),
            pending: None,
            stopping: false,
            commands: Vec::new(),
        }
    }

    /// The engine's loop: intake, schedule, run, sample, emit. Where the device draws the tokens, a
    /// step runs while the one before it is emitted and the next one is scheduled.
    fn serve(mut self) -> Result<()> {
        let mut idle = false;
        loop {
            self.intake(idle);
            if self.stopping {
                self.abort_up_to(RequestId(u64::MAX));
                self.publish();
                return Ok(());
            }
            let batch = self.scheduler.schedule();
            idle = batch.is_none() && self.pending.is_none();
            match batch {
                Some(batch) => self.run_step(&batch)?,
                None => self.collect()?,
            }
            self.publish();
            self.check_integrity()?;
        }
    }

    /// Takes the host's commands, waiting for one when there is nothing else to do.
    fn intake(&mut self, idle: bool) {
        let timeout = match (idle, self.deadlines.next()) {
            (false, _) => Some(Duration::ZERO),
            (true, None) => None,
            (true, Some(at)) => Some(at.saturating_duration_since(Instant::now())),
        };
        let mut commands = std::mem::take(&mut self.commands);
        self.shared.mailbox.take(timeout, &mut commands);
        for command in commands.drain(..) {
            match command {
                Command::Add(admission) => self.add(*admission),
                Command::Abort(id) => self.end_request(id, &FinishReason::Abort),
                Command::AbortAll(newest) => self.abort_up_to(newest),
                Command::Stop => self.stopping = true,
            }
        }
        self.commands = commands;
        self.release_queues();
        self.end_overdue();
        self.publish();
    }

    /// Refreshes the figures and sends the step's events, one wake-up a queue. In this order: who
    /// sees an event finds it in the figures.
    fn publish(&mut self) {
        self.record_gauges();
        for queue in self.outbox.publish() {
            self.hold_queue(&queue);
        }
    }

    fn check_integrity(&self) -> Result<()> {
        if !self.shared.options.debug.check_integrity {
            return Ok(());
        }
        self.scheduler.check_integrity().map_err(|e| {
            Error::new(ErrorKind::Panic, format!("the scheduler's state is inconsistent: {e}"))
        })
    }
}

/// Ends every live request that no worker has seen, with `Abort`.
pub(crate) fn abort_unscheduled(shared: &Shared) {
    for id in shared.registry.live_ids() {
        if let Some(ticket) = shared.registry.end(id) {
            shared.metrics.record_unscheduled(Outcome::Abort, ticket.num_choices);
            ticket.queue.publish(ticket.unscheduled_end(&FinishReason::Abort));
        }
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("a bug in vrust: {}", text.unwrap_or_else(|| "panic without a message".into()))
}
