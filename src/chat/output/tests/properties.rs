//! Random texts of what matters to the formats: however they are cut, the same parts come out, and
//! no letter of them is lost.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::select;

use super::{Part, arguments, parse, parser, show};

const TOOL_FORMATS: [&str; 6] =
    ["hermes", "llama3_json", "mistral", "pythonic", "qwen3_xml", "none"];
const REASONING_FORMATS: [&str; 3] = ["think", "mistral", "none"];

/// Pieces of calls, sound and broken. Upper-case letters are payload: nothing else has any.
const PIECES: [&str; 72] = [
    "<tool_call>",
    "</tool_call>",
    "<tool_call>\n{\"name\": \"now\", \"arguments\": {",
    "}}",
    "<|python_tag|>",
    "{\"name\": \"now\", \"parameters\": {",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "<",
    ">",
    "</",
    "\"",
    "'",
    ",",
    ":",
    "=",
    ";",
    " ",
    "\n",
    "\\",
    "\\u00e9",
    "\\\"",
    "\"name\"",
    "\"arguments\"",
    "\"now\"",
    "\"a\": ",
    "now",
    "weather",
    "[now(",
    "now(a=",
    "a=",
    ", b=",
    "<|",
    "<|python_start|>",
    "<|python_end|>",
    "<function=",
    "<function=weather>",
    "<function=now>\n",
    "<parameter=",
    "<parameter=city>",
    "<parameter=days>\n",
    "</parameter>",
    "\n</parameter>\n",
    "</function>",
    "</func",
    "<think>",
    "</think>",
    "</thi",
    "<think>\n",
    "\n</think>\n\n",
    "1",
    "-2.5",
    "1e5",
    "null",
    "true",
    "{}",
    "[]",
    "{\"a\": [{\"b\": 1}]}",
    "é",
    "🦀",
    "\u{2028}",
    "X",
    "Y Z",
    "\"Q\"",
    "W\n",
    "\t",
    "\u{1}",
    "[[",
];
const MISTRAL: [&str; 8] = [
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "[CALL_ID]abcdefghi",
    "[/",
    "[TOOL_CALLS] [{",
    "now{",
    "[TOOL_CALLS]now[ARGS]{",
];

fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![6 => select(&PIECES[..]), 1 => select(&MISTRAL[..])];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// The payload letters, of which markers with capitals have none once they are taken out.
fn payload(text: &str) -> String {
    let mut text = text.to_owned();
    for marker in ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"] {
        text = text.replace(marker, "");
    }
    text.chars().filter(|c| matches!(c, 'Q' | 'X' | 'Y' | 'Z' | 'W')).collect()
}

fn text_of(parts: &[Part]) -> String {
    let texts = parts.iter().map(|part| match part {
        Part::Reasoning(text) | Part::Content(text) | Part::Arguments { text, .. } => text,
        Part::ToolCall { name, .. } => name,
    });
    texts.cloned().collect()
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn cuts_change_nothing_and_nothing_is_lost(
        text in texts(),
        tool_format in select(&TOOL_FORMATS[..]),
        reasoning_format in select(&REASONING_FORMATS[..]),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let parser = parser(tool_format, reasoning_format);
        let whole = parse(&parser, [text.as_str()]);
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        at.retain(|at| text.is_char_boundary(*at));
        at.extend([0, text.len()]);
        at.sort_unstable();
        let pieces = at.windows(2).map(|pair| &text[pair[0]..pair[1]]);
        prop_assert_eq!(show(&parse(&parser, pieces)), show(&whole), "{:?} at {:?}", &text, &at);
        prop_assert_eq!(&parse(&parser, text.split_inclusive(|_| true)), &whole, "{:?}", &text);
        // Other members than name and arguments are passed over, name and value.
        let found = text_of(&whole);
        let only_known = !matches!(tool_format, "hermes" | "llama3_json" | "mistral");
        if only_known || !whole.iter().any(|part| matches!(part, Part::ToolCall { .. })) {
            prop_assert_eq!(payload(&found), payload(&text), "{:?}: {}", &text, show(&whole));
        }
        // Without a call, nothing but whitespace and the markers of reasoning is missing.
        if !whole.iter().any(|p| matches!(p, Part::ToolCall { .. } | Part::Reasoning(_))) {
            let open = text.trim_start().starts_with("<think>");
            prop_assert!(open || found == text, "{:?}: {:?}", &text, &found);
        }
    }

    #[test]
    fn sound_calls_come_out_as_they_went_in(value in values(), content in "[a-zé .,\n]{0,12}") {
        let json = serde_json::to_string(&value).unwrap();
        let args = format!("{{\"a\": {json}}}");
        let python = format!("[now(a={})]", python(&value));
        let object = format!("{{\"name\": \"now\", \"arguments\": {args}}}");
        let parameters = object.replacen("arguments", "parameters", 1);
        let xml = format!("<tool_call>\n<function=weather>\n<parameter=where>\n\
            {json}\n</parameter>\n</function>\n</tool_call>");
        let content = content.trim();
        for (format, text) in [
            ("hermes", format!("{content}<tool_call>\n{object}\n</tool_call>")),
            ("llama3_json", parameters),
            ("mistral", format!("{content}[TOOL_CALLS] [{object}]")),
            ("mistral", format!("{content}[TOOL_CALLS]now[ARGS]{args}")),
            ("pythonic", python),
            ("qwen3_xml", format!("{content}{xml}")),
        ] {
            let parts = parse(&parser(format, "none"), text.split_inclusive(|_| true));
            let given = arguments(&parts);
            prop_assert_eq!(given.len(), 1, "{}", &text);
            let key = if format == "qwen3_xml" { "where" } else { "a" };
            prop_assert_eq!(&given[0][key], &value, "{}", &text);
            let has_content = !content.is_empty() && text.starts_with(content);
            prop_assert_eq!(parts.len(), 2 + usize::from(has_content), "{}", show(&parts));
        }
    }
}

/// Nested values, with text that looks like the formats' own.
fn values() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i32>().prop_map(Into::into),
        select(vec![
            "",
            "}",
            "]}",
            "\"",
            "\\",
            "\n\t\u{1}",
            "</tool_call>",
            "é🦀\u{2028}",
            "'",
            ")]"
        ])
        .prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::vec(("[a-c\"{ ]{1,3}", inner), 0..4)
                .prop_map(|m| serde_json::Value::Object(m.into_iter().collect())),
        ]
    })
}

fn python(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "None".to_owned(),
        serde_json::Value::Bool(true) => "True".to_owned(),
        serde_json::Value::Bool(false) => "False".to_owned(),
        serde_json::Value::Array(items) => {
            format!("[{}]", items.iter().map(python).collect::<Vec<_>>().join(", "))
        }
        serde_json::Value::Object(map) => {
            let text = |key: &str| serde_json::to_string(key).unwrap();
            let members = map.iter().map(|(key, v)| format!("{}: {}", text(key), python(v)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// A megabyte takes the same time as a thousand kilobytes; a quadratic parser takes minutes.
#[test]
fn time_is_linear() {
    let began = Instant::now();
    for (format, begin, filling) in [
        ("hermes", "", "<tool_call"),
        ("hermes", "", "<tool_call>"),
        ("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"", "text } "),
        ("hermes", "<tool_call>{\"x\": \"", "<tool_call>"),
        ("hermes", "<tool_call>", "{\"a\":"),
        ("hermes", "", "\n\n <"),
        ("hermes", "<think>", "\n\n</think"),
        ("llama3_json", "{\"name\": \"now\", \"parameters\": {}}", ";"),
        ("mistral", "[TOOL_CALLS]", "[[TOOL_CALLS]"),
        ("mistral", "[TOOL_CALLS]f", "name"),
        ("pythonic", "[now(a=", "[1, {'a': "),
        ("pythonic", "[", "now(), "),
        ("pythonic", "[now(a=", "123"),
        ("qwen3_xml", "<function=weather><parameter=city>", "\n</parameter"),
        ("qwen3_xml", "<function=weather><parameter=days>", "1, "),
        ("qwen3_xml", "<function=", "now"),
    ] {
        let parser = parser(format, "think");
        let text = format!("{begin}{}", filling.repeat((1 << 20) / filling.len()));
        let whole = parse(&parser, [text.as_str()]);
        assert!(!whole.is_empty(), "{format} {begin}{filling}");
        let mut pieces = Vec::new();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(7));
            pieces.push(piece);
            rest = after;
        }
        assert_eq!(parse(&parser, pieces), whole, "{format} {begin}{filling}");
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(60), "32 MB took {took:?}");
}
