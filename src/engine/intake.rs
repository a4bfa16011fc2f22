//! Intake: what is checked before a request is accepted, and the tokenizer pool behind it.

use std::time::Instant;

use super::device;
use super::handle::Shared;
use super::queue::EventQueue;
use super::registry::Ticket;
use super::worker::Command;
use crate::config::EngineOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{RequestId, TokenId};
use crate::metrics::Outcome;
use crate::request::{Input, Request};
use crate::sync::Arc;
use crate::sync::thread::{self, JoinHandle};
use crate::tokenizer::Tokenizer;

/// Threads that render templates and encode text.
const TOKENIZER_THREADS: usize = 2;

/// A request whose input is not yet token ids.
pub(crate) struct TokenizeJob {
    ticket: Arc<Ticket>,
    request: Request,
    deadline: Option<Instant>,
}

/// A request that the worker can schedule.
pub(crate) struct Admission {
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) request: Request,
    pub(crate) prompt: Vec<TokenId>,
    /// The prompt as text, for `echo`.
    pub(crate) prompt_text: Option<String>,
    pub(crate) bad_words: Vec<Vec<TokenId>>,
    pub(crate) deadline: Option<Instant>,
}

/// Checks a request and sends it on its way.
pub(crate) fn submit(
    shared: &Arc<Shared>,
    request: Request,
    queue: &Arc<EventQueue>,
) -> Result<RequestId> {
    if !queue.belongs_to(&shared.on_room) {
        return Err(Error::invalid("queue", "queue: it belongs to another engine"));
    }
    check_request(shared, &request)?;
    let deadline = request.deadline.and_then(|d| Instant::now().checked_add(d));
    let num_choices = request.params.n.unwrap_or(1);
    let max_queued = shared.options.max_num_queued_reqs;
    let accepted = shared.registry.accept(request.user_data, num_choices, queue, max_queued);
    let ticket = accepted.inspect_err(|error| {
        if error.kind() == ErrorKind::QueueFull {
            shared.metrics.record_rejected();
        }
    })?;
    let id = ticket.id;
    let delivered = match &request.input {
        Input::Tokens(tokens) if request.params.bad_words.is_empty() => {
            let prompt = copy_ids(tokens).inspect_err(|_| drop(shared.registry.end(id)))?;
            let bad_words = Vec::new();
            let admission =
                Admission { ticket, request, prompt, prompt_text: None, bad_words, deadline };
            shared.mailbox.send(Command::Add(Box::new(admission))).is_ok()
        }
        _ => shared.tokenize(TokenizeJob { ticket, request, deadline }),
    };
    // Not delivered means that the engine has just stopped. Either it has ended this request with
    // the others, and the host will learn that from its event, or it did not see it any more.
    if !delivered && shared.registry.end(id).is_some() {
        return Err(Error::new(ErrorKind::ShuttingDown, "the engine is closed"));
    }
    Ok(id)
}

/// Starts the tokenizer pool: adds its threads, which end when the job channel closes, to `pool`.
pub(crate) fn start_pool(shared: &Arc<Shared>, pool: &mut Vec<JoinHandle<()>>) -> Result<()> {
    for index in 0..TOKENIZER_THREADS {
        let shared = shared.clone();
        let named = thread::Builder::new().name(format!("vrust-text-{index}"));
        let started = named.spawn(move || run_pool(&shared)).map_err(|e| {
            Error::new(ErrorKind::OutOfMemory, format!("cannot start a tokenizer thread: {e}"))
        });
        pool.push(started?);
    }
    Ok(())
}

fn run_pool(shared: &Arc<Shared>) {
    while let Ok(job) = shared.jobs_received.recv() {
        let ticket = job.ticket.clone();
        if !shared.registry.is_live(ticket.id) {
            continue;
        }
        let prepared =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| prepare(shared, *job)))
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::Panic, "tokenization panicked")));
        match prepared {
            // A closed mailbox means that the worker is ending every request itself.
            Ok(admission) => drop(shared.mailbox.send(Command::Add(Box::new(admission)))),
            Err(error) => fail(shared, ticket.id, error),
        }
    }
}

/// Ends a request that was never scheduled.
pub(crate) fn fail(shared: &Shared, id: RequestId, error: Error) {
    if let Some(ticket) = shared.registry.end(id) {
        shared.metrics.record_unscheduled(Outcome::Error, ticket.num_choices);
        ticket.queue.publish([ticket.error_event(error)]);
    }
}

/// Renders and encodes.
fn prepare(shared: &Shared, job: TokenizeJob) -> Result<Admission> {
    let TokenizeJob { ticket, request, deadline } = job;
    let tokenizer = shared.tokenizer.get().ok_or_else(|| no_tokenizer("prompt"))?;
    let (prompt, prompt_text) = match &request.input {
        Input::Tokens(tokens) => (copy_ids(tokens)?, None),
        Input::Text(text) => {
            (tokenizer.encode(text, request.add_special_tokens)?, Some(text.clone()))
        }
        Input::Chat(chat) => {
            let template = shared.template.get().ok_or_else(no_template)?;
            let text = template.render(chat)?;
            (tokenizer.encode(&text, false)?, Some(text))
        }
    };
    let bad_words = bad_words(tokenizer, &request.params.bad_words)?;
    let prompt_text = prompt_text.filter(|_| request.echo);
    Ok(Admission { ticket, request, prompt, prompt_text, bad_words, deadline })
}

/// A copy of a prompt.
pub(crate) fn copy_ids(tokens: &[TokenId]) -> Result<Vec<TokenId>> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(tokens.len())?;
    copy.extend_from_slice(tokens);
    Ok(copy)
}

fn bad_words(tokenizer: &Tokenizer, words: &[String]) -> Result<Vec<Vec<TokenId>>> {
    let mut sequences = Vec::new();
    for word in words {
        sequences.extend(tokenizer.bad_word_sequences(word)?);
    }
    Ok(sequences)
}

/// Everything that can be checked without the tokenizer.
fn check_request(shared: &Shared, request: &Request) -> Result<()> {
    let limits = shared.limits();
    request.validate(&limits, shared.options.scheduling_policy)?;
    match &request.input {
        Input::Text(text) if text.is_empty() && !request.add_special_tokens => {
            return Err(Error::invalid("prompt", "prompt: must not be empty"));
        }
        Input::Text(_) | Input::Chat(_) if shared.options.skip_tokenizer => {
            return Err(no_tokenizer("prompt"));
        }
        _ => {}
    }
    let needs_text = !request.params.stop.is_empty() || !request.params.bad_words.is_empty();
    if needs_text && shared.options.skip_tokenizer {
        return Err(no_tokenizer("stop and bad_words"));
    }
    Ok(())
}

/// Ranges of an engine's options.
pub(crate) fn check_options(options: &EngineOptions) -> Result<()> {
    let at_least_one = [
        ("max_num_seqs", options.max_num_seqs),
        ("max_num_batched_tokens", options.max_num_batched_tokens),
        ("max_num_queued_reqs", options.max_num_queued_reqs),
        ("max_model_len", options.max_model_len.unwrap_or(1)),
        ("num_kv_blocks", options.num_kv_blocks.unwrap_or(1)),
        ("cpu_threads", options.cpu_threads.unwrap_or(1)),
        ("max_undrained_bytes", options.max_undrained_bytes),
    ];
    for (field, value) in at_least_one {
        if value == 0 {
            let message = format!("{field}: must be at least 1, got 0");
            return Err(Error::invalid(field, message).with("limit", 1).with("value", 0));
        }
    }
    let at_most = [
        ("max_num_seqs", options.max_num_seqs, 1 << 16),
        ("max_num_batched_tokens", options.max_num_batched_tokens, 1 << 20),
        ("cpu_threads", options.cpu_threads.unwrap_or(1), 1024),
        ("cpu_spin_us", options.cpu_spin_us, 1_000_000),
        ("block_size", options.block_size, 256),
        ("num_kv_blocks", options.num_kv_blocks.unwrap_or(1), 1 << 30),
    ];
    for (field, value, limit) in at_most {
        if value > limit {
            let message = format!("{field}: must be at most {limit}, got {value}");
            return Err(Error::invalid(field, message).with("limit", limit).with("value", value));
        }
    }
    if options.block_size == 0 || !options.block_size.is_multiple_of(8) {
        let message =
            format!("block_size: must be a multiple of 8 up to 256, got {}", options.block_size);
        return Err(Error::invalid("block_size", message).with("value", options.block_size));
    }
    device::check_options(options)
}

/// The engine runs without a tokenizer, and `field` asks for text.
pub(crate) fn no_tokenizer(field: &str) -> Error {
    let message =
        format!("{field}: this engine runs without a tokenizer (skip_tokenizer); use token ids");
    Error::new(ErrorKind::Unsupported, message).with("field", field)
}

fn no_template() -> Error {
    let message = "messages: the model has no chat template; give one with chat_template";
    Error::new(ErrorKind::Template, message).with("field", "messages")
}
