//! What requests can ask for, one by one.

use std::time::Duration;

use vrust::engine::{Event, EventKind};
use vrust::error::ErrorKind;
use vrust::ids::{RequestId, TokenId};
use vrust::request::{ChatInput, FinishReason, Input, Request};

use crate::engine_support::{
    ChoiceOutcome, Consumer, greedy, options, ready, run, run_one, text, tokens,
};

const PROMPT: &[u32] = &[5, 9, 14, 33, 71];

fn reason(choice: &ChoiceOutcome) -> &FinishReason {
    &choice.finished.as_ref().unwrap().reason
}

#[test]
fn usage_and_times_are_reported() {
    let engine = ready(options("llama3"));
    let outcome = run_one(&engine, greedy(PROMPT, 7));
    let finished = outcome.only().finished.clone().unwrap();
    assert_eq!(finished.reason, FinishReason::Length);
    assert_eq!((finished.usage.prompt_tokens, finished.usage.completion_tokens), (5, 7));
    let t = finished.times;
    assert!(0 < t.arrival_ns && t.arrival_ns <= t.scheduled_ns);
    assert!(t.scheduled_ns <= t.first_token_ns && t.first_token_ns <= t.last_token_ns);
    assert!(finished.cumulative_logprob.is_none());
}

#[test]
fn text_is_the_decoded_tokens() {
    let engine = ready(options("llama3"));
    let outcome = run_one(&engine, text("Hello there, how are you?", 24));
    let choice = outcome.only();
    let tokenizer = engine.tokenizer().unwrap();
    let decoded = tokenizer.decode(&tokens(&choice.tokens), true).unwrap();
    assert_eq!(choice.text, decoded);
}

#[test]
fn without_detokenization_there_is_no_text() {
    let engine = ready(options("llama3"));
    let mut request = greedy(PROMPT, 6);
    request.params.detokenize = Some(false);
    let outcome = run_one(&engine, request);
    assert_eq!((outcome.only().text.as_str(), outcome.only().tokens.len()), ("", 6));
}

#[test]
fn a_stop_string_cuts_the_text_where_it_begins() {
    let engine = ready(options("llama3"));
    let whole = run_one(&engine, greedy(PROMPT, 24)).only().text.clone();
    let chars: Vec<(usize, char)> = whole.char_indices().collect();
    let (from, to) = (chars[chars.len() / 2].0, chars[chars.len() / 2 + 2].0);
    let stop = whole[from..to].to_owned();
    let first = whole.find(&stop).unwrap();
    for include in [false, true] {
        let mut request = greedy(PROMPT, 24);
        request.params.stop = vec![stop.clone()];
        request.params.include_stop_str_in_output = include;
        let outcome = run_one(&engine, request);
        let end = if include { first + stop.len() } else { first };
        assert_eq!(outcome.only().text, whole[..end]);
        assert_eq!(*reason(outcome.only()), FinishReason::StopString(stop.clone()));
    }
}

#[test]
fn stop_tokens_end_a_choice_and_min_tokens_bans_them_before() {
    let engine = ready(options("llama3"));
    let whole = run_one(&engine, greedy(PROMPT, 12)).only().tokens.clone();
    let stop = whole[4];
    let first = whole.iter().position(|t| *t == stop).unwrap();
    let mut request = greedy(PROMPT, 12);
    request.params.stop_token_ids = vec![TokenId(stop)];
    let outcome = run_one(&engine, request.clone());
    assert_eq!(*reason(outcome.only()), FinishReason::StopToken(TokenId(stop)));
    assert_eq!(outcome.only().tokens, whole[..=first], "the stopping token stays in the ids");
    request.params.min_tokens = Some(8);
    let outcome = run_one(&engine, request);
    assert!(outcome.only().tokens.iter().take(8).all(|t| *t != stop));
    assert!(outcome.only().tokens.len() >= 8);
}

#[test]
fn end_of_text_stops_with_every_id_of_the_generation_config() {
    // The golden of this case names where the first of its three end-of-text ids is generated.
    let engine = ready(options("llama3"));
    let golden = std::fs::read(crate::engine_support::fixture("llama3").join("golden.json"));
    let golden: serde_json::Value = serde_json::from_slice(&golden.unwrap()).unwrap();
    for prompt in golden["prompts"].as_array().unwrap() {
        let ids = |key: &str| -> Vec<u32> {
            let ids = prompt[key].as_array().unwrap();
            ids.iter().map(|v| v.as_u64().unwrap() as u32).collect()
        };
        let mut request = greedy(&ids("prompt_token_ids"), 28);
        request.params.ignore_eos = false;
        let outcome = run_one(&engine, request);
        let expected = match prompt["first_eos"].as_u64() {
            Some(index) => ids("greedy_token_ids")[..=index as usize].to_vec(),
            None => ids("greedy_token_ids"),
        };
        assert_eq!(outcome.only().tokens, expected);
        let stopped = reason(outcome.only()).as_str() == "stop";
        assert_eq!(stopped, prompt["first_eos"].is_u64());
    }
}

#[test]
fn choices_use_consecutive_seeds() {
    let engine = ready(options("llama3"));
    let sampled = |seed: i64, n: u32| {
        let mut request = greedy(PROMPT, 10);
        request.params.temperature = Some(1.5);
        request.params.seed = Some(seed);
        request.params.n = Some(n);
        run_one(&engine, request)
    };
    let together = sampled(40, 3);
    assert_eq!(together.choices.len(), 3);
    for (index, choice) in &together.choices {
        let alone = sampled(40 + i64::from(*index), 1);
        assert_eq!(choice.tokens, alone.only().tokens);
    }
    assert_ne!(together.choices[&0].tokens, together.choices[&1].tokens);
}

#[test]
fn echo_gives_the_prompt_back_with_its_logprobs() {
    let engine = ready(options("llama3"));
    let mut request = text("Hello there", 3);
    request.echo = true;
    request.params.logprobs = Some(2);
    let outcome = run_one(&engine, request.clone());
    assert_eq!(outcome.prompt_text, "Hello there");
    assert_eq!(outcome.prompt_tokens.len(), outcome.prompt_logprobs.len());
    assert_eq!(outcome.only().tokens.len(), 3);

    request.params.max_tokens = Some(0);
    let scored = run_one(&engine, request);
    assert_eq!(scored.prompt_logprobs, outcome.prompt_logprobs);
    assert!(scored.only().tokens.is_empty() && scored.only().text.is_empty());
    assert_eq!(scored.only().finished.as_ref().unwrap().usage.completion_tokens, 0);
}

#[test]
fn chat_messages_go_through_the_template() {
    let engine = ready(options("qwen3"));
    let chat = ChatInput {
        messages: serde_json::json!([{"role": "user", "content": "Hello"}]),
        tools: None,
        template_kwargs: None,
        add_generation_prompt: true,
        continue_final_message: false,
    };
    let rendered = engine.chat_template().unwrap().unwrap().render(&chat).unwrap();
    let tokenizer = engine.tokenizer().unwrap();
    let ids: Vec<u32> = tokenizer.encode(&rendered, false).unwrap().iter().map(|t| t.0).collect();
    let mut request = Request::new(Input::Chat(chat));
    request.params.temperature = Some(0.0);
    request.params.ignore_eos = true;
    request.params.max_tokens = Some(9);
    let outcome = run_one(&engine, request);
    assert_eq!(outcome.only().tokens, run_one(&engine, greedy(&ids, 9)).only().tokens);
}

#[test]
fn allowed_biased_and_banned_tokens_are_obeyed() {
    let engine = ready(options("llama3"));
    let mut allowed = greedy(PROMPT, 10);
    allowed.params.allowed_token_ids = Some(tokens(&[7, 8, 9]));
    let mut biased = greedy(PROMPT, 5);
    biased.params.logit_bias.insert(TokenId(77), 100.0);
    let whole = run_one(&engine, greedy(PROMPT, 10)).only().clone();
    let tokenizer = engine.tokenizer().unwrap();
    let as_word = |token: &u32| {
        let word = tokenizer.decode(&[TokenId(*token)], false).unwrap();
        let again = tokenizer.encode(&word, false).unwrap();
        (again == [TokenId(*token)] && !word.starts_with(' ')).then_some(word)
    };
    let word = whole.tokens.iter().find_map(as_word).expect("a token that is a word by itself");
    let mut banned = greedy(PROMPT, 10);
    banned.params.bad_words = vec![word.clone()];
    let outcomes = run(&engine, vec![allowed, biased, banned]);
    assert!(outcomes[0].only().tokens.iter().all(|t| (7..=9).contains(t)));
    assert_eq!(outcomes[1].only().tokens, [77; 5]);
    assert_ne!(outcomes[2].only().tokens, whole.tokens, "{word:?} was to be avoided");
}

#[test]
fn output_can_come_all_at_once() {
    let engine = ready(options("llama3"));
    let queue = engine.default_queue();
    let mut request = text("Hello there, how are you?", 24);
    (request.params.n, request.params.logprobs) = (Some(2), Some(1));
    (request.params.temperature, request.params.seed) = (Some(1.0), Some(7));
    let streamed = run_one(&engine, request.clone());
    request.final_only = true;
    let id = engine.submit(request, queue).unwrap();
    let (mut consumer, mut deltas, mut events) = (Consumer::default(), 0, Vec::new());
    while !events.last().is_some_and(|e: &Event| e.last) {
        queue.drain(None, 1, &mut events).unwrap();
        deltas += usize::from(matches!(events.last().unwrap().kind, EventKind::Delta(_)));
    }
    events.into_iter().for_each(|event| consumer.take(event));
    assert_eq!(deltas, 2, "one a choice");
    for (index, choice) in &consumer.outcomes[&id].choices {
        let expected = &streamed.choices[index];
        assert_eq!((&choice.text, &choice.tokens), (&expected.text, &expected.tokens));
        assert_eq!(choice.logprobs.len(), 24);
    }

    let mut request = greedy(PROMPT, 100);
    (request.final_only, request.deadline) = (true, Some(Duration::from_millis(30)));
    let cut = run_one(&engine, request);
    let counted = cut.only().finished.as_ref().unwrap().usage.completion_tokens;
    assert_eq!(cut.only().tokens.len(), counted as usize, "an early end gives what there is");
}

#[test]
fn abort_ends_a_request_and_knows_its_ids() {
    let mut options = options("llama3");
    options.num_kv_blocks = Some(64);
    let engine = ready(options);
    let queue = engine.default_queue();
    let id = engine.submit(greedy(PROMPT, 100), queue).unwrap();
    engine.abort(id).unwrap();
    let mut consumer = Consumer::default();
    consumer.wait(queue, &[id]);
    let choice = consumer.outcomes[&id].choices[&0].clone();
    assert!(matches!(reason(&choice), FinishReason::Abort | FinishReason::Length));
    engine.abort(id).unwrap();
    let unknown = engine.abort(RequestId(id.0 + 1)).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    assert_eq!(engine.abort(RequestId(0)).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn abort_all_ends_everything() {
    let engine = ready(options("llama3"));
    let queue = engine.default_queue();
    let ids: Vec<_> = (0..20).map(|_| engine.submit(greedy(PROMPT, 120), queue).unwrap()).collect();
    engine.abort_all();
    let mut consumer = Consumer::default();
    consumer.wait(queue, &ids);
}

#[test]
fn abort_all_spares_what_is_submitted_after_it() {
    let engine = ready(options("llama3"));
    let queue = engine.default_queue();
    for _ in 0..100 {
        let before = engine.submit(greedy(PROMPT, 100), queue).unwrap();
        engine.abort_all();
        let after = engine.submit(greedy(PROMPT, 3), queue).unwrap();
        let mut consumer = Consumer::default();
        consumer.wait(queue, &[before, after]);
        assert_eq!(*reason(consumer.outcomes[&after].only()), FinishReason::Length);
    }
}

#[test]
fn a_deadline_ends_a_request_with_what_it_has() {
    let mut options = options("llama3");
    options.backend = vrust::config::BackendKind::Reference;
    let engine = ready(options);
    let mut request = greedy(PROMPT, 120);
    request.deadline = Some(Duration::from_millis(4));
    let late = run_one(&engine, request);
    assert_eq!(*reason(late.only()), FinishReason::Deadline);
    assert!(late.only().tokens.len() < 120);
}

#[test]
fn bad_requests_name_field_limit_and_value_and_the_engine_goes_on() {
    let engine = ready(options("llama3"));
    let queue = engine.default_queue();
    let check = |change: &dyn Fn(&mut Request), kind: ErrorKind, words: &[&str]| {
        let mut request = greedy(PROMPT, 4);
        change(&mut request);
        let error = match engine.submit(request, queue) {
            Err(error) => error,
            Ok(id) => {
                let mut consumer = Consumer::default();
                consumer.wait(queue, &[id]);
                consumer.outcomes[&id].error.clone().expect("an error")
            }
        };
        assert_eq!(error.kind(), kind, "{error}");
        for word in words {
            assert!(error.message().contains(word), "{error} does not say {word}");
        }
    };
    use ErrorKind::{ContextLength, InvalidArgument};
    check(&|r| r.params.temperature = Some(-1.0), InvalidArgument, &["temperature", "-1"]);
    check(&|r| r.params.top_p = Some(1.5), InvalidArgument, &["top_p", "1.5"]);
    check(&|r| r.params.n = Some(0), InvalidArgument, &["n must be at least 1", "0"]);
    check(&|r| r.params.logprobs = Some(21), InvalidArgument, &["21", "20"]);
    check(&|r| r.params.max_tokens = Some(9999), InvalidArgument, &["max_tokens=9999"]);
    check(&|r| r.priority = 3, InvalidArgument, &["priority", "3"]);
    check(&|r| r.input = Input::Tokens(vec![]), InvalidArgument, &["empty"]);
    check(&|r| r.input = Input::Tokens(tokens(&[5000])), InvalidArgument, &["5000", "384"]);
    check(&|r| r.input = Input::Tokens(tokens(&[5; 999])), ContextLength, &["999", "288"]);
    let long = "long ".repeat(2000);
    check(&|r| r.input = Input::Text(long.clone()), ContextLength, &["maximum context length"]);
    check(&|r| r.params.stop = vec![String::new()], InvalidArgument, &["stop"]);
    assert_eq!(run_one(&engine, greedy(PROMPT, 4)).only().tokens.len(), 4);
    let stats = engine.stats();
    assert_eq!((stats.live_requests, stats.finished_error), (0, 1), "only the text got that far");
}

#[test]
fn a_full_waiting_queue_refuses_and_recovers() {
    let mut options = options("llama3");
    options.max_num_seqs = 1;
    options.max_num_queued_reqs = 3;
    let engine = ready(options);
    let queue = engine.default_queue();
    let mut accepted = Vec::new();
    let mut refused = None;
    for _ in 0..50 {
        match engine.submit(greedy(PROMPT, 60), queue) {
            Ok(id) => accepted.push(id),
            Err(e) => refused = Some(e),
        }
    }
    let refused = refused.expect("fifty requests at once do not fit");
    assert_eq!(refused.kind(), ErrorKind::QueueFull);
    assert!(refused.is_retryable() && refused.message().contains('3'));
    Consumer::default().wait(queue, &accepted);
    run_one(&engine, greedy(PROMPT, 2));
}

#[test]
fn a_slow_consumer_holds_its_own_sequences_only() {
    let engine = ready(options("llama3"));
    let slow = engine.create_queue(vrust::engine::QueueOptions { max_undrained_bytes: 300 });
    let mut request = greedy(PROMPT, 100);
    request.params.logprobs = Some(5);
    let slow_id = engine.submit(request.clone(), &slow).unwrap();
    for _ in 0..3 {
        run_one(&engine, greedy(PROMPT, 60));
    }
    assert!(slow.undrained_bytes() < 3_000, "it waits: {}", slow.undrained_bytes());
    assert_eq!(engine.stats().live_requests, 1);
    let mut consumer = Consumer::default();
    consumer.wait(&slow, &[slow_id]);
    let outcome = &consumer.outcomes[&slow_id];
    let fast = run_one(&engine, request);
    assert_eq!(outcome.only().tokens, fast.only().tokens, "waiting changes nothing");
}

#[test]
fn requests_may_come_while_the_engine_loads() {
    let engine = vrust::engine::Engine::create(options("llama3")).unwrap();
    let queue = engine.default_queue();
    let ids = [
        engine.submit(greedy(PROMPT, 5), queue).unwrap(),
        engine.submit(text("Hello", 5), queue).unwrap(),
    ];
    let mut consumer = Consumer::default();
    consumer.wait(queue, &ids);
    assert_eq!(consumer.outcomes[&ids[0]].only().tokens.len(), 5);
}

#[test]
fn loading_is_reported_on_the_default_queue() {
    let engine = ready(options("llama3"));
    let mut events = Vec::new();
    engine.default_queue().drain(Some(Duration::ZERO), 9, &mut events).unwrap();
    let last = events.iter().rev().find_map(|e| match e.kind {
        EventKind::Load(fraction) => Some(fraction),
        _ => None,
    });
    assert_eq!(last, Some(1.0));
}
