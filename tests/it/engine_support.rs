//! What the engine's tests share: fixtures, a consumer, and the outcome of a request.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vrust::config::{Device, EngineOptions};
use vrust::engine::{Engine, Event, EventKind, EventQueue, Finished, Polled};
use vrust::error::Error;
use vrust::ids::{RequestId, TokenId};
use vrust::request::{Input, Request, TokenLogprobs};

/// Longest a test waits for events.
const PATIENCE: Duration = Duration::from_secs(120);

/// A model folder of the goldens.
pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Options for a fixture: two threads of the CPU, checked after every step.
pub(crate) fn options(name: &str) -> EngineOptions {
    let mut options = EngineOptions::new(fixture(name));
    options.device = Device::Cpu;
    options.cpu_threads = Some(2);
    options.num_kv_blocks = Some(256);
    options.debug.check_integrity = true;
    let has = |file: &str| options.model.join(file).exists();
    options.skip_tokenizer = !has("tokenizer.json") && !has("vocab.json");
    options
}

/// An engine that has loaded.
pub(crate) fn ready(options: EngineOptions) -> Engine {
    let engine = Engine::create(options).unwrap();
    assert!(engine.wait_ready(Some(PATIENCE)).unwrap());
    engine
}

/// A greedy request for `max_tokens` tokens after `prompt`, whatever the end-of-text token.
pub(crate) fn greedy(prompt: &[u32], max_tokens: u32) -> Request {
    let mut request = Request::new(Input::Tokens(tokens(prompt)));
    request.params.temperature = Some(0.0);
    request.params.max_tokens = Some(max_tokens);
    request.params.ignore_eos = true;
    request
}

/// A text request.
pub(crate) fn text(prompt: &str, max_tokens: u32) -> Request {
    let mut request = Request::new(Input::Text(prompt.to_owned()));
    request.params.temperature = Some(0.0);
    request.params.max_tokens = Some(max_tokens);
    request
}

pub(crate) fn tokens(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().map(|&id| TokenId(id)).collect()
}

/// What a choice came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChoiceOutcome {
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    pub(crate) finished: Option<Finished>,
}

/// What a request came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) choices: BTreeMap<u32, ChoiceOutcome>,
    pub(crate) prompt_text: String,
    pub(crate) prompt_tokens: Vec<u32>,
    pub(crate) prompt_logprobs: Vec<TokenLogprobs>,
    pub(crate) error: Option<Error>,
    pub(crate) last_events: usize,
    pub(crate) user_data: u64,
}

impl Outcome {
    pub(crate) fn only(&self) -> &ChoiceOutcome {
        assert!(self.error.is_none(), "failed: {:?}", self.error);
        assert_eq!(self.choices.len(), 1);
        &self.choices[&0]
    }
}

/// Gathers events by request and checks their order.
#[derive(Default)]
pub(crate) struct Consumer {
    pub(crate) outcomes: HashMap<RequestId, Outcome>,
}

impl Consumer {
    /// Polls until each of `ids` has had its last event.
    pub(crate) fn wait(&mut self, queue: &EventQueue, ids: &[RequestId]) {
        let patience = Instant::now() + PATIENCE;
        let done = |outcomes: &HashMap<RequestId, Outcome>| {
            ids.iter().all(|id| outcomes.get(id).is_some_and(|o| o.last_events == 1))
        };
        while !done(&self.outcomes) {
            assert!(Instant::now() < patience, "not all requests ended in {PATIENCE:?}");
            let mut events = Vec::new();
            let polled = queue.drain(Some(Duration::from_millis(200)), 64, &mut events).unwrap();
            events.into_iter().for_each(|e| self.take(e));
            assert!(polled != Polled::Closed || done(&self.outcomes), "closed before the end");
        }
    }

    pub(crate) fn take(&mut self, event: Event) {
        if event.request_id == RequestId(0) {
            return;
        }
        let outcome = self.outcomes.entry(event.request_id).or_default();
        assert_eq!(outcome.last_events, 0, "an event after the last one: {event:?}");
        outcome.last_events += usize::from(event.last);
        outcome.user_data = event.user_data;
        let choice = outcome.choices.entry(event.choice).or_default();
        assert!(choice.finished.is_none(), "an event after the choice ended: {event:?}");
        match event.kind {
            EventKind::Delta(delta) => {
                choice.text.push_str(&delta.text);
                choice.tokens.extend(delta.token_ids.iter().map(|t| t.0));
                choice.logprobs.extend(delta.logprobs);
            }
            EventKind::Prompt(prompt) => {
                assert!(choice.tokens.is_empty(), "the prompt event comes first");
                outcome.prompt_text = prompt.text;
                outcome.prompt_tokens = prompt.token_ids.iter().map(|t| t.0).collect();
                outcome.prompt_logprobs = prompt.logprobs;
            }
            EventKind::Finished(finished) => choice.finished = Some(*finished),
            EventKind::Error(error) => outcome.error = Some(error),
            EventKind::Load(_) | EventKind::EngineFailed(_) => {}
        }
    }
}

/// Runs requests together on the default queue.
pub(crate) fn run(engine: &Engine, requests: Vec<Request>) -> Vec<Outcome> {
    let queue = engine.default_queue();
    let ids: Vec<_> =
        requests.into_iter().map(|r| engine.submit(r, queue).expect("submit")).collect();
    let mut consumer = Consumer::default();
    consumer.wait(queue, &ids);
    ids.iter().map(|id| consumer.outcomes.remove(id).unwrap()).collect()
}

/// Runs one request.
pub(crate) fn run_one(engine: &Engine, request: Request) -> Outcome {
    run(engine, vec![request]).remove(0)
}

/// A small generator of test data: splitmix64.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number of `low..high`.
    pub(crate) fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.range(0, 100) < percent
    }
}
