//! Tokenizer, detokenizer, stop strings and chat templates against goldens from Hugging Face.

use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::Value;
use vrust::chat::ChatTemplate;
use vrust::error::ErrorKind;
use vrust::ids::TokenId;
use vrust::request::ChatInput;
use vrust::tokenizer::{Detokenizer, StopStrings, Tokenizer};

const TOKENIZERS: [&str; 4] =
    ["tokenizer-bpe", "tokenizer-chatml", "tokenizer-gpt2", "tokenizer-llama2"];

fn dir(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn open(name: &str) -> Arc<Tokenizer> {
    Arc::new(Tokenizer::open(&dir(name)).unwrap())
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(dir(name).join("golden.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<TokenId> {
    let ids = value.as_array().unwrap();
    ids.iter().map(|id| TokenId(id.as_u64().unwrap() as u32)).collect()
}

fn id_or_none(value: &Value) -> Option<TokenId> {
    value.as_u64().map(|id| TokenId(id as u32))
}

/// The text of `output` after `prompt`, token by token.
fn stream(
    tokenizer: &Arc<Tokenizer>,
    prompt: &[TokenId],
    output: &[TokenId],
    skip: bool,
) -> String {
    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), prompt, skip, true);
    let mut text = String::new();
    for &id in output {
        text.push_str(detokenizer.push(id).unwrap());
    }
    text.push_str(&detokenizer.finish());
    text
}

#[test]
fn encode_and_decode_like_hugging_face() {
    for name in TOKENIZERS {
        let (tokenizer, golden) = (open(name), golden(name));
        assert_eq!(tokenizer.vocab_size() as u64, golden["vocab_size"].as_u64().unwrap());
        assert_eq!(tokenizer.bos_token_id(), id_or_none(&golden["bos_token_id"]), "{name}");
        assert_eq!(tokenizer.eos_token_id(), id_or_none(&golden["eos_token_id"]), "{name}");
        for case in golden["encode"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let plain = tokenizer.encode(text, false).unwrap();
            assert_eq!(plain, ids(&case["ids"]), "{name} {text:?}");
            let full = tokenizer.encode(text, true).unwrap();
            assert_eq!(full, ids(&case["ids_with_special"]), "{name} {text:?}");
            assert_eq!(tokenizer.decode(&full, false).unwrap(), case["decoded"], "{name}");
            let skipped = tokenizer.decode(&full, true).unwrap();
            assert_eq!(skipped, case["decoded_skip_special"], "{name} {text:?}");
            assert_eq!(stream(&tokenizer, &[], &full, false), case["decoded"], "{name} {text:?}");
            assert_eq!(stream(&tokenizer, &[], &full, true), skipped, "{name} {text:?}");
        }
        for case in golden["decode"].as_array().unwrap() {
            let ids = ids(&case["ids"]);
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), case["text"], "{name} {ids:?}");
            let skipped = tokenizer.decode(&ids, true).unwrap();
            assert_eq!(skipped, case["text_skip_special"], "{name} {ids:?}");
            for skip in [false, true] {
                let whole = decode_streamed(&tokenizer, &ids, skip);
                assert_eq!(stream(&tokenizer, &[], &ids, skip), whole, "{name} {ids:?}");
            }
        }
    }
}

#[test]
fn render_chats_like_hugging_face() {
    for name in TOKENIZERS {
        let (tokenizer, golden) = (open(name), golden(name));
        let cases = golden["chat"].as_array().unwrap();
        let Some(template) = ChatTemplate::from_dir(&dir(name), &tokenizer).unwrap() else {
            assert!(cases.is_empty(), "{name} has chats but no template");
            continue;
        };
        for case in cases {
            let mut kwargs = case["options"].as_object().unwrap().clone();
            let mut flag = |name| kwargs.shift_remove(name).is_some_and(|v| v == true);
            let add_generation_prompt = flag("add_generation_prompt");
            let continue_final_message = flag("continue_final_message");
            let chat = ChatInput {
                messages: case["messages"].clone(),
                tools: kwargs.shift_remove("tools"),
                template_kwargs: Some(Value::Object(kwargs)),
                add_generation_prompt,
                continue_final_message,
            };
            let what = format!("{name}: {}", case["name"]);
            match (template.render(&chat), case["error"].as_str()) {
                (Ok(text), None) => {
                    assert_eq!(text, case["text"].as_str().unwrap(), "{what}");
                    assert_eq!(
                        tokenizer.encode(&text, false).unwrap(),
                        ids(&case["ids"]),
                        "{what}"
                    );
                }
                (Err(e), Some(expected)) => {
                    assert_eq!(e.kind(), ErrorKind::Template, "{what}");
                    assert!(e.message().contains(expected), "{what}: {e}");
                    assert!(e.detail().contains_key("line"), "{what}: {e:?}");
                }
                (got, expected) => panic!("{what}: {got:?}, expected error {expected:?}"),
            }
        }
    }
}

#[test]
fn output_continues_the_prompt() {
    for name in TOKENIZERS {
        let tokenizer = open(name);
        let text = "Hello  world, it is 25 degrees: naïve 你好 😀🎉 \u{10FFFF}!\n\n the end ";
        let all = tokenizer.encode(text, true).unwrap();
        let whole = tokenizer.decode(&all, true).unwrap();
        for cut in 0..=all.len() {
            let (prompt, output) = all.split_at(cut);
            let before = decode_streamed(&tokenizer, prompt, true);
            // A prompt that ends within a scalar leaves the whole scalar to the output.
            let before = before.trim_end_matches('\u{FFFD}');
            let text = stream(&tokenizer, prompt, output, true);
            if output.is_empty() {
                assert_eq!(text, "", "{name} cut at {cut}");
            } else {
                assert_eq!(format!("{before}{text}"), whole, "{name} cut at {cut}");
            }
        }
    }
}

#[test]
fn ids_outside_the_vocabulary() {
    let tokenizer = open("tokenizer-bpe");
    let error = tokenizer.decode(&[TokenId(1), TokenId(384)], true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!((&error.detail()["limit"], &error.detail()["value"]), (&384.into(), &384.into()));
    assert!(error.message().contains("384"), "{error}");
    assert!(tokenizer.token_bytes(TokenId(u32::MAX)).is_none());
    // A model's padded vocabulary may still sample them.
    assert_eq!(stream(&tokenizer, &[TokenId(9999)], &[TokenId(71), TokenId(384)], true), "h");
}

#[test]
fn special_tokens_are_skipped_or_kept() {
    let tokenizer = open("tokenizer-bpe");
    let eot = tokenizer.token_to_id("<|eot_id|>").unwrap();
    assert!(tokenizer.is_special(eot) && !tokenizer.is_special(TokenId(71)));
    assert_eq!(tokenizer.eos_token(), Some("<|eot_id|>"));
    let output = [TokenId(71), eot, eot, TokenId(71)];
    assert_eq!(stream(&tokenizer, &[], &output, true), "hh");
    assert_eq!(stream(&tokenizer, &[], &output, false), "h<|eot_id|><|eot_id|>h");
}

#[test]
fn bad_words_are_spelled_bare_and_spaced() {
    let tokenizer = open("tokenizer-bpe");
    let sequences = tokenizer.bad_word_sequences(" the").unwrap();
    assert_eq!(sequences[0], tokenizer.encode("the", false).unwrap());
    let spaced = tokenizer.encode(" the", false).unwrap();
    let expected = spaced.len() == sequences[0].len() && spaced[0] != sequences[0][0];
    assert_eq!(sequences.get(1), expected.then_some(&spaced));
    assert_eq!(tokenizer.bad_word_sequences("  ").unwrap().len(), 1);
    let error = tokenizer.bad_word_sequences("").unwrap_err();
    assert_eq!(error.message(), "bad_words cannot contain an empty string.");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Byte-level vocabularies give back any text; byte-fallback ones too, since these fixtures
    /// neither normalize nor lack a byte.
    #[test]
    fn any_text_round_trips(text in "\\PC{0,40}|[ab \n\u{e9}\u{4f60}\u{1f600}]{0,40}") {
        for name in ["tokenizer-gpt2", "tokenizer-llama2"] {
            let tokenizer = open_cached(name);
            // The metaspace is a space by definition.
            let llama = name == "tokenizer-llama2";
            let text = if llama { text.replace('▁', " ") } else { text.clone() };
            prop_assume!(!text.contains("<"));
            let ids = tokenizer.encode(&text, false).unwrap();
            prop_assert_eq!(stream(&tokenizer, &[], &ids, false), text, "{}", name);
        }
    }

    /// Any ids at all: what is streamed is the decoding of the whole.
    #[test]
    fn any_ids_stream_to_their_decoding(
        raw in prop::collection::vec(prop_oneof![0u32..384, 100u32..260], 0..40),
        cut in 0usize..40,
        skip: bool,
    ) {
        for name in TOKENIZERS {
            let tokenizer = open_cached(name);
            let size = tokenizer.vocab_size() as u32;
            let ids: Vec<TokenId> = raw.iter().map(|id| TokenId(id % size)).collect();
            let whole = decode_streamed(&tokenizer, &ids, skip);
            prop_assert_eq!(&stream(&tokenizer, &[], &ids, skip), &whole, "{}", name);
            let (prompt, output) = ids.split_at(cut.min(ids.len()));
            let text = stream(&tokenizer, prompt, output, skip);
            prop_assert!(whole.ends_with(&text), "{name}: {whole:?} ends with {text:?}");
        }
    }

    #[test]
    fn stop_strings_match_a_search_of_the_whole_text(
        stop in prop::collection::vec("[ab\u{e9}]{1,4}", 1..4),
        chunks in prop::collection::vec(("[abc\u{e9}]{0,5}", prop::bool::weighted(0.8)), 0..12),
        include: bool,
    ) {
        let mut stops = StopStrings::new(stop.clone(), include);
        let (mut text, mut matched) = (String::new(), None);
        let mut read = String::new();
        for (chunk, active) in &chunks {
            let outcome = stops.push(chunk, *active);
            text.push_str(&outcome.text);
            read.push_str(chunk);
            matched = matched.or(outcome.matched);
            if matched.is_none() {
                // Held back is exactly what may still become a match.
                let held = &read[text.len()..];
                let longest = stop.iter().flat_map(|stop| {
                    stop.char_indices().map(|(i, _)| &stop[..i]).filter(|p| read.ends_with(*p))
                });
                prop_assert_eq!(held.len(), longest.map(str::len).max().unwrap_or(0));
            }
        }
        text.push_str(&stops.finish());
        let (expected, expected_match) = search(&stop, &chunks, include);
        prop_assert_eq!((text, matched), (expected, expected_match));
    }
}

/// Stop strings by searching every prefix of the text.
fn search(stop: &[String], chunks: &[(String, bool)], include: bool) -> (String, Option<String>) {
    let mut read = String::new();
    for (chunk, active) in chunks {
        for c in chunk.chars() {
            read.push(c);
            let found = stop.iter().find(|stop| *active && read.ends_with(stop.as_str()));
            if let Some(stop) = found {
                let cut = if include { read.len() } else { read.len() - stop.len() };
                return (read[..cut].to_owned(), Some(stop.clone()));
            }
        }
    }
    (read, None)
}

/// What a stream should add up to: `decode`, except that valid scalars within a run of byte tokens
/// survive an invalid byte in the same run, since a stream cannot take them back.
fn decode_streamed(tokenizer: &Tokenizer, ids: &[TokenId], skip: bool) -> String {
    let whole = tokenizer.decode(ids, skip).unwrap();
    let Some(zero) = tokenizer.token_to_id("<0x00>") else { return whole };
    let (mut text, mut run, mut mixed) = (String::new(), Vec::new(), false);
    let mut flush = |text: &mut String, run: &mut Vec<u8>| {
        mixed |= std::str::from_utf8(run).is_err_and(|e| e.valid_up_to() > 0 || run.len() > 1);
        for chunk in run.utf8_chunks() {
            text.push_str(chunk.valid());
            text.extend(chunk.invalid().iter().map(|_| '\u{FFFD}'));
        }
        run.clear();
    };
    for &id in ids.iter().filter(|id| !(skip && tokenizer.is_special(**id))) {
        let bytes = tokenizer.token_bytes(id).unwrap();
        if (zero.0..zero.0 + 256).contains(&id.0) {
            run.extend(bytes);
        } else {
            flush(&mut text, &mut run);
            text.push_str(&String::from_utf8(bytes).unwrap());
        }
    }
    flush(&mut text, &mut run);
    let text = text.strip_prefix(' ').map(str::to_owned).unwrap_or(text);
    if !mixed {
        assert_eq!(text, whole, "{ids:?}");
    }
    text
}

/// Opening is slow beside a property's case.
fn open_cached(name: &'static str) -> Arc<Tokenizer> {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex};
    static OPENED: LazyLock<Mutex<HashMap<&'static str, Arc<Tokenizer>>>> =
        LazyLock::new(Mutex::default);
    let mut opened = OPENED.lock().unwrap();
    Arc::clone(opened.entry(name).or_insert_with(|| open(name)))
}
