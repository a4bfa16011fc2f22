//! The demo model, through the engine: the held-out prompts of its card, and the prompts that
//! every visitor tries first.

use serde_json::Value;
use vrust::engine::Engine;
use vrust::request::{ChatInput, Input, Request};

use crate::engine_support::{Outcome, ready, run, text};

/// Held-out prompts that must be right, of 30.
const FLOOR: usize = 24;

fn demo_model() -> Engine {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo-model");
    let mut options = vrust::config::EngineOptions::new(folder);
    options.cpu_threads = Some(2);
    options.num_kv_blocks = Some(1024);
    ready(options)
}

fn chat(prompt: &str) -> Request {
    let mut request = Request::new(Input::Chat(ChatInput {
        messages: serde_json::json!([{"role": "user", "content": prompt}]),
        tools: None,
        template_kwargs: None,
        add_generation_prompt: true,
        continue_final_message: false,
    }));
    request.params.temperature = Some(0.0);
    request
}

fn answer(outcome: &Outcome) -> &str {
    let choice = outcome.only();
    let reason = &choice.finished.as_ref().unwrap().reason;
    assert_eq!(reason.as_str(), "stop", "{:?} does not stop by itself", choice.text);
    choice.text.trim()
}

#[test]
fn most_held_out_prompts_are_right() {
    let file = include_bytes!("../../examples/demo-model/training/heldout.json");
    let items: Vec<Value> = serde_json::from_slice(file).unwrap();
    assert_eq!(items.len(), 30);
    let prompts = items.iter().map(|item| chat(item["prompt"].as_str().unwrap()));
    let outcomes = run(&demo_model(), prompts.collect());
    let mut right = 0;
    for (item, outcome) in items.iter().zip(&outcomes) {
        let text = answer(outcome);
        // Of a sum, what stands behind the equals sign counts.
        let said = text.rsplit('=').next().unwrap_or(text).to_lowercase();
        let words: Vec<&str> = said.split(|c: char| !c.is_alphanumeric()).collect();
        let accepted = item["accept"].as_array().unwrap().iter().any(|accepted| {
            let accepted = accepted.as_str().unwrap().to_lowercase();
            let is_word = accepted.chars().all(char::is_alphanumeric);
            words.contains(&accepted.as_str()) || !is_word && said.contains(&accepted)
        });
        println!("{} {} -> {text}", if accepted { "right" } else { "wrong" }, item["prompt"]);
        right += usize::from(accepted);
    }
    println!("{right} of 30");
    assert!(right >= FLOOR, "{right} of 30");
}

#[test]
fn the_first_prompts_of_a_visitor_are_answered() {
    let engine = demo_model();
    let cases = [
        ("What is Python?", "programming language"),
        ("Explain machine learning", "learn from data"),
        ("What is blockchain?", "records"),
        ("What is 7 + 5?", "12"),
        ("Tell me a short story.", "The end."),
        ("Write a story about AI", "AI"),
    ];
    let outcomes = run(&engine, cases.iter().map(|(prompt, _)| chat(prompt)).collect());
    for ((prompt, expected), outcome) in cases.iter().zip(&outcomes) {
        let text = answer(outcome);
        assert!(text.contains(expected), "{prompt} -> {text}");
    }
    let completed = run(&engine, vec![text("The capital of France is", 16)]);
    assert!(answer(&completed[0]).contains("Paris"));
}
