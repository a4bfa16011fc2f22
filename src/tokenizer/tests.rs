//! Units of the `tokenizer` room; tests/it/text.rs has the goldens.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A folder of the given files, removed when dropped.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("vrust-text-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for (name, content) in files {
            std::fs::write(dir.join(name), content).unwrap();
        }
        Self(dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A tokenizer.json with a word-level vocabulary and the given decoder.
fn word_level(decoder: &str) -> String {
    format!(
        r###"{{"version":"1.0","truncation":{{"direction":"Right","max_length":1,
        "strategy":"LongestFirst","stride":0}},"padding":null,
        "added_tokens":[{{"id":6,"content":"[SEP]","single_word":false,"lstrip":false,
        "rstrip":false,"normalized":false,"special":true}}],
        "normalizer":null,"pre_tokenizer":{{"type":"Whitespace"}},"post_processor":null,
        "decoder":{decoder},"model":{{"type":"WordLevel","unk_token":"[UNK]",
        "vocab":{{"[UNK]":0,"un":1,"##like":2,"▁he":3,"▁she":4,"\ufffd":5,"[SEP]":6,"x":9}}}}}}"###
    )
}

fn open(files: &[(&str, &str)]) -> Result<Tokenizer> {
    Tokenizer::open(&Folder::new(files).0)
}

fn stream(tokenizer: Tokenizer, prompt: &[u32], output: &[u32], spaces: bool) -> String {
    let ids = |ids: &[u32]| ids.iter().map(|&id| TokenId(id)).collect::<Vec<_>>();
    let mut detokenizer = Detokenizer::new(Arc::new(tokenizer), &ids(prompt), false, spaces);
    let mut text = String::new();
    for id in ids(output) {
        text.push_str(detokenizer.push(id).unwrap());
    }
    text + &detokenizer.finish()
}

#[test]
fn broken_files_are_errors_that_name_the_file() {
    let deep = "[".repeat(200_000);
    let good = word_level("null");
    let cases: &[&[(&str, &str)]] = &[
        &[],
        &[("tokenizer.json", "")],
        &[("tokenizer.json", &good[..good.len() / 2])],
        &[("tokenizer.json", "[]")],
        &[("tokenizer.json", "{}")],
        &[("tokenizer.json", r#"{"model":{"type":"BPE","vocab":7,"merges":[]}}"#)],
        &[("tokenizer.json", r#"{"model":{"type":"BPE","vocab":{},"merges":[]}}"#)],
        &[("tokenizer.json", r#"{"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}"#)],
        &[("tokenizer.json", r#"{"model":{"type":"BPE","vocab":{"a":4294967295},"merges":[]}}"#)],
        &[("tokenizer.json", &deep)],
        &[("tokenizer.json", &good), ("tokenizer_config.json", "[1]")],
        &[("tokenizer.json", &good), ("tokenizer_config.json", &deep)],
        &[("tokenizer.json", &good), ("special_tokens_map.json", "{")],
        &[("vocab.json", "{}"), ("merges.txt", "")],
        &[("vocab.json", r#"{"a":0}"#)],
        &[("vocab.json", r#"{"a":"b"}"#), ("merges.txt", "#version: 0.2\nx y")],
        &[("vocab.json", r#"{"a":0}"#), ("merges.txt", "a b c d")],
        &[
            ("vocab.json", r#"{"a":0}"#),
            ("merges.txt", ""),
            ("tokenizer_config.json", r#"{"tokenizer_class":"Qwen2Tokenizer"}"#),
        ],
        &[
            ("vocab.json", r#"{"a":0}"#),
            ("merges.txt", ""),
            ("tokenizer_config.json", r#"{"added_tokens_decoder":{"7":{"content":"<x>"}}}"#),
        ],
    ];
    for case in cases {
        let folder = Folder::new(case);
        let error = Tokenizer::open(&folder.0).unwrap_err();
        let short: Vec<_> = case.iter().map(|(n, s)| (n, &s[..s.len().min(60)])).collect();
        assert_eq!(error.kind(), ErrorKind::Tokenizer, "{short:?}: {error}");
        let place = folder.0.to_str().unwrap();
        assert!(error.message().contains(place), "{short:?}: {error}");
    }
}

#[test]
fn folders_and_missing_folders_are_errors() {
    let folder = Folder::new(&[]);
    std::fs::create_dir(folder.0.join("tokenizer.json")).unwrap();
    assert_eq!(Tokenizer::open(&folder.0).unwrap_err().kind(), ErrorKind::Tokenizer);
    assert_eq!(Tokenizer::open(&folder.0.join("no")).unwrap_err().kind(), ErrorKind::Tokenizer);
}

#[test]
fn too_large_files_are_refused() {
    let folder = Folder::new(&[("config.json", "{\"a\": 1}")]);
    let path = folder.0.join("config.json");
    let error = files::read_limited(&path, 7, ErrorKind::Tokenizer).unwrap_err();
    assert_eq!((&error.detail()["limit"], &error.detail()["value"]), (&7.into(), &8.into()));
    assert_eq!(files::read_limited(&path, 8, ErrorKind::Tokenizer).unwrap().unwrap().len(), 8);
}

#[test]
fn truncation_of_the_file_is_not_applied() {
    let tokenizer = open(&[("tokenizer.json", &word_level("null"))]).unwrap();
    assert_eq!(tokenizer.encode("x x x", false).unwrap().len(), 3);
    assert_eq!(tokenizer.vocab_size(), 10);
    // 7 and 8 are holes in the numbering.
    assert_eq!(tokenizer.decode(&[TokenId(8), TokenId(9)], false).unwrap(), "x");
    assert_eq!(tokenizer.token_bytes(TokenId(9)), None);
}

#[test]
fn config_adds_bos_or_takes_it_away() {
    let json = word_level("null");
    let open_with = |config: &str| {
        open(&[("tokenizer.json", &json), ("tokenizer_config.json", config)]).unwrap()
    };
    let tokenizer = open_with(r#"{"bos_token":{"content":"[SEP]"},"add_bos_token":true}"#);
    assert_eq!(tokenizer.bos_token(), Some("[SEP]"));
    assert_eq!(tokenizer.encode("x", true).unwrap(), [TokenId(6), TokenId(9)]);
    assert_eq!(tokenizer.encode("x", false).unwrap(), [TokenId(9)]);
    let plain = json.replace(
        r#""post_processor":null"#,
        r#""post_processor":{"type":"TemplateProcessing",
        "single":[{"SpecialToken":{"id":"[SEP]","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
        "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],
        "special_tokens":{"[SEP]":{"id":"[SEP]","ids":[6],"tokens":["[SEP]"]}}}"#,
    );
    for (config, expected) in [
        (r#"{"bos_token":"[SEP]"}"#, vec![TokenId(6), TokenId(9)]),
        (r#"{"bos_token":"[SEP]","add_bos_token":true}"#, vec![TokenId(6), TokenId(9)]),
        (r#"{"bos_token":"[SEP]","add_bos_token":false}"#, vec![TokenId(9)]),
    ] {
        let files = [("tokenizer.json", plain.as_str()), ("tokenizer_config.json", config)];
        assert_eq!(open(&files).unwrap().encode("x", true).unwrap(), expected, "{config}");
    }
}

#[test]
fn special_tokens_come_from_the_map_too() {
    let tokenizer = open(&[
        ("tokenizer.json", &word_level("null")),
        ("tokenizer_config.json", r#"{"bos_token":null}"#),
        ("special_tokens_map.json", r#"{"bos_token":"un","eos_token":{"content":"x"}}"#),
    ])
    .unwrap();
    assert_eq!(tokenizer.bos_token_id(), None);
    assert_eq!(tokenizer.eos_token_id(), Some(TokenId(9)));
    assert!(tokenizer.is_special(TokenId(9)) && !tokenizer.is_special(TokenId(1)));
}

#[test]
fn decoders_that_look_at_neighbours() {
    let word_piece = word_level(r###"{"type":"WordPiece","prefix":"##","cleanup":true}"###);
    let metaspace = word_level(r#"{"type":"Metaspace","replacement":"▁"}"#);
    let cases: &[(&str, &[u32], &[u32], &str)] = &[
        (&word_piece, &[], &[1, 2, 9, 9], "unlike x x"),
        (&word_piece, &[9], &[1, 2, 9], " unlike x"),
        (&word_piece, &[1], &[2], "like"),
        (&metaspace, &[], &[3, 4, 9], "he shex"),
        (&metaspace, &[9], &[3, 4], " he she"),
        (&metaspace, &[], &[6, 6], "[SEP][SEP]"),
        // No decoder: tokens are words.
        (&word_level("null"), &[], &[9, 1, 6, 6], "x un [SEP] [SEP]"),
        // A token that is U+FFFD holds text back for a while, not for ever.
        (
            &metaspace,
            &[],
            &[5, 5, 5, 5, 5, 5, 9],
            "\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}x",
        ),
    ];
    for (json, prompt, output, expected) in cases {
        let tokenizer = open(&[("tokenizer.json", json)]).unwrap();
        assert_eq!(stream(tokenizer, prompt, output, true), *expected, "{prompt:?} {output:?}");
    }
    let tokenizer = open(&[("tokenizer.json", &word_level("null"))]).unwrap();
    assert_eq!(stream(tokenizer, &[], &[9, 6, 6, 9], false), "x [SEP][SEP] x");
}

#[test]
fn stop_strings_hold_back_only_what_may_match() {
    let push = |stops: &mut StopStrings, text: &str| {
        let outcome = stops.push(text, true);
        (outcome.text, outcome.matched)
    };
    let mut stops = StopStrings::new(vec!["</s>".into(), "END".into()], false);
    assert_eq!(push(&mut stops, "hello <"), ("hello ".into(), None));
    assert_eq!(push(&mut stops, "b> E"), ("<b> ".into(), None));
    assert_eq!(push(&mut stops, "NE"), ("EN".into(), None));
    assert_eq!(push(&mut stops, "ND rest"), (String::new(), Some("END".into())));
    assert_eq!(push(&mut stops, "more"), (String::new(), None));
    assert_eq!(stops.finish(), "");

    let mut stops = StopStrings::new(vec!["stop".into(), String::new()], true);
    assert_eq!(push(&mut stops, "a sto"), ("a ".into(), None));
    assert_eq!(push(&mut stops, "pped"), ("stop".into(), Some("stop".into())));

    // Completing together: the list's order decides. Completing earlier: that wins.
    let mut stops = StopStrings::new(vec!["c".into(), "abc".into()], false);
    assert_eq!(push(&mut stops, "abc"), ("ab".into(), Some("c".into())));
    let mut stops = StopStrings::new(vec!["bcd".into(), "c".into()], false);
    assert_eq!(push(&mut stops, "abcd"), ("ab".into(), Some("c".into())));

    let mut stops = StopStrings::new(vec!["ab".into()], false);
    assert_eq!(stops.push("xaba", false).text, "xab");
    assert_eq!(push(&mut stops, "by"), (String::new(), Some("ab".into())));
    assert_eq!(StopStrings::new(Vec::new(), false).push("all", true).text, "all");
}
