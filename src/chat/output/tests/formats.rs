//! What models write when all is well.

use super::{Part, check_with, parse, parser};

#[track_caller]
fn check(format: &str, text: &str, expected: &str) {
    check_with(&parser(format, "think"), text, expected);
}

#[test]
fn text_alone_stays_as_it_is() {
    for format in ["hermes", "llama3_json", "mistral", "pythonic", "qwen3_xml", "none"] {
        check(format, " Hi,\n\n  héllo 🦀 there.\n", "C: Hi,\n\n  héllo 🦀 there.\n");
        check(format, "", "");
        check(format, " \n", "C: \n");
        check(format, "a < b <b>c</b> [1] {2} <t", "C:a < b <b>c</b> [1] {2} <t");
    }
}

#[test]
fn reasoning_comes_first() {
    check("none", "<think>\nWell, 1 < 2\n</think>\n\nYes.\n", "R:Well, 1 < 2|C:Yes.\n");
    check("none", "\n<think>a</think>b", "R:a|C:b");
    check("none", "<think>\n\n</think>\n\nYes", "C:Yes");
    check("none", "<think>never closed </thin", "R:never closed </thin");
    check("none", "Yes <think>no</think>", "C:Yes <think>no</think>");
    check("none", "<thin", "C:<thin");
    check("none", "no</think>yes", "C:no</think>yes");
    check_with(&parser("none", "mistral"), "[THINK]a [b][/THINK]c", "R:a [b]|C:c");
    check_with(&parser("none", "none"), "<think>a</think>b", "C:<think>a</think>b");
    let text = "<think>A</think>\n\n<tool_call>{\"name\":\"now\",\"arguments\":{}}</tool_call>";
    check("hermes", text, "R:A|T:now|A:{}");
}

#[test]
fn hermes() {
    let one = r#"<tool_call>
{"name": "weather", "arguments": {"city": "Par}is\" {", "days": [1, {"a": null}]}}
</tool_call>"#;
    let call = r#"T:weather|A:{"city": "Par}is\" {", "days": [1, {"a": null}]}"#;
    check("hermes", one, call);
    check(
        "hermes",
        &format!("Let me see.\n{one}\n{one}\n"),
        &format!("C:Let me see.|{call}|{call}"),
    );
    check("hermes", &format!("{one}\nDone.\n"), &format!("{call}|C:Done.\n"));
    // Members in any order, others among them, arguments in a string or missing.
    let text = r#"<tool_call>{"arguments":{"a":1},"id":[7],"name":"f"}</tool_call>"#;
    check("hermes", text, r#"T:f|A:{"a":1}"#);
    let text = r#"<tool_call>{"type":"function","name":"f","parameters":{"a":1}}</tool_call>"#;
    check("hermes", text, r#"T:f|A:{"a":1}"#);
    let text = r#"<tool_call>{"name":"f","arguments":"{\"a\":\"\\u00e9\"}"}</tool_call>"#;
    check("hermes", text, r#"T:f|A:{"a":"\u00e9"}"#);
    check("hermes", r#"<tool_call>{"name":"f","x":1}</tool_call>"#, "T:f|A:{}");
    check("hermes", r#"<tool_call>{"name":"f","arguments":null}"#, "T:f|A:{}");
    // Line breaks in strings are not JSON; they are escaped.
    let text = "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"x\n\ty\",\n\"b\":2}}</tool_call>";
    check("hermes", text, "T:f|A:{\"a\":\"x\\n\\ty\",\n\"b\":2}");
}

#[test]
fn llama3_json() {
    let one = r#"{"name": "weather", "parameters": {"city": "Oslo; {x}"}}"#;
    let call = r#"T:weather|A:{"city": "Oslo; {x}"}"#;
    check("llama3_json", one, call);
    check("llama3_json", &format!("\n<|python_tag|>{one}"), call);
    check("llama3_json", &format!("{one}; {one};{one}"), &format!("{call}|{call}|{call}"));
    check("llama3_json", &format!("Hm. <|python_tag|>{one}"), &format!("C:Hm.|{call}"));
    check("llama3_json", &format!("{one} and more"), &format!("{call}|C:and more"));
    check("llama3_json", &format!("{one}; and"), &format!("{call}|C:; and"));
    // JSON that the user asked for.
    check("llama3_json", r#"{"name": "Bob"}"#, r#"C:{"name": "Bob"}"#);
    let text = r#"{"name": "Bob", "parameters": {"a": 1}}"#;
    check("llama3_json", text, &format!("C:{text}"));
    check("llama3_json", &format!("See {one}"), &format!("C:See {one}"));
}

#[test]
fn mistral() {
    let text =
        r#"[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "[]"}}, {"name": "now"}]"#;
    check("mistral", text, r#"T:weather|A:{"city": "[]"}|T:now|A:{}"#);
    let text = r#"Hm.[TOOL_CALLS]weather{"city": "a"}[TOOL_CALLS]now[ARGS]{} ok"#;
    check("mistral", text, r#"C:Hm.|T:weather|A:{"city": "a"}|T:now|A:{}|C:ok"#);
    let text = r#"[TOOL_CALLS]now[CALL_ID]abcDEF123[ARGS]{"a": 1}"#;
    check("mistral", text, r#"T:now|A:{"a": 1}"#);
    let parts = parse(&parser("mistral", "none"), [text, "[TOOL_CALLS]now{}"]);
    let ids: Vec<&str> = parts.iter().filter_map(id).collect();
    assert_eq!((ids.len(), ids[0], ids[1].len()), (2, "abcDEF123", 9));
    assert!(ids[1].chars().all(|c| c.is_ascii_alphanumeric()), "{ids:?}");
}

#[test]
fn pythonic() {
    let text = r#"[weather(city="Oslo, (x)", days=3), now()]"#;
    let calls = r#"T:weather|A:{"city": "Oslo, (x)", "days": 3}|T:now|A:{}"#;
    check("pythonic", text, calls);
    check("pythonic", &format!("<|python_start|>{text}<|python_end|>"), calls);
    check(
        "pythonic",
        &format!("Hm. <|python_start|>{text}<|python_end|> ok"),
        &format!("C:Hm.|{calls}|C:ok"),
    );
    let text = r"[ now( a = 'it\'s é\x41\u00e9\U0001f980\n', b=[1, -2.5, .5, 1., (True, None),],
        c={'k': {1: False}, 'l': {}}, d=1_000, e=0x1F, f=true, g=1e5,) , ]";
    let json = r#"T:now|A:{"a": "it's éAé🦀\n", "b": [1, -2.5, 0.5, 1.0, [true, null]], "#;
    let rest = r#""c": {"k": {"1": false}, "l": {}}, "d": 1000, "e": 31, "f": true, "g": 1e5}"#;
    check("pythonic", text, &format!("{json}{rest}"));
    // What only looks like calls.
    for text in ["[link](http://x)", "[1, 2]", "[now", "[]", "[unknown(a=1)]", "[now(1)]"] {
        check("pythonic", text, &format!("C:{text}"));
    }
}

#[test]
fn qwen3_xml() {
    let text = "Hm.\n<tool_call>\n<function=weather>\n<parameter=city>\na\n\n\"b\" </parameterx>\n\
        </parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\nok";
    let json = r#"{"city": "a\n\n\"b\" </parameterx>", "days": 3}"#;
    check("qwen3_xml", text, &format!("C:Hm.|T:weather|A:{json}|C:ok"));
    check("qwen3_coder", "<function=now></function></tool_call>", "T:now|A:{}");
    // The schema decides what a value is.
    for (key, value, json) in [
        ("city", "12", r#""12""#),
        ("unknown", "true", r#""true""#),
        ("city", "", r#""""#),
        ("days", "12", "12"),
        ("days", "twelve", r#""twelve""#),
        ("exact", "True", "true"),
        ("exact", "false", "false"),
        ("ratio", "1.5", "1.5"),
        ("ratio", "2", "2"),
        ("where", "{\"a\": [1,\n 2]}", "{\"a\": [1,\n 2]}"),
        ("where", "{'a': True}", r#"{"a": true}"#),
        ("list", "[1, 'x']", r#"[1, "x"]"#),
        ("maybe", "null", "null"),
        ("maybe", "1", r#""1""#),
        ("either", "1", "1"),
        ("either", "one", r#""one""#),
        ("unit", "C", r#""C""#),
    ] {
        let text =
            format!("<tool_call><function=weather><parameter={key}>{value}</parameter></function>");
        check("qwen3_xml", &text, &format!("T:weather|A:{{\"{key}\": {json}}}"));
    }
}

#[test]
fn calls_are_numbered_and_have_ids() {
    let text = r#"<tool_call>{"name":"f"}</tool_call>"#;
    let mut parser = parser("hermes", "think");
    let mut parts = parser.push(&text.repeat(2)).unwrap();
    parts.extend(parser.finish());
    // The parser is as new, but does not repeat its ids.
    parts.extend(parser.push(text).unwrap());
    let ids: Vec<&str> = parts.iter().filter_map(id).collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|id| id.starts_with("call_") && id.len() == 29), "{ids:?}");
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    let indices: Vec<usize> = parts
        .iter()
        .filter_map(|part| match part {
            Part::ToolCall { index, .. } => Some(*index),
            _ => None,
        })
        .collect();
    assert_eq!(indices, [0, 1, 0]);
}

#[test]
fn parts_come_as_soon_as_they_are_certain() {
    let mut parser = parser("hermes", "think");
    let mut push = |text: &str| super::show(&parser.push(text).unwrap());
    assert_eq!(push("<thi"), "");
    assert_eq!(push("nk>Let"), "R:Let");
    assert_eq!(push(" me"), "R: me");
    assert_eq!(push("</think>\n\nHel"), "C:Hel");
    assert_eq!(push("lo <tool"), "C:lo");
    assert_eq!(push("s> "), "C: <tools>");
    assert_eq!(push(r#"<tool_call>{"name": "f", "#), "");
    assert_eq!(push(r#""arguments": {"#), "T:f|A:{");
    assert_eq!(push(r#""a": "x"#), r#"A:"a": "x"#);
    assert_eq!(push(r#"y"}}"#), r#"A:y"}"#);
    assert_eq!(push("</tool_call>"), "");
    assert_eq!(super::show(&parser.finish()), "");
}

fn id(part: &Part) -> Option<&str> {
    match part {
        Part::ToolCall { id, .. } => Some(id),
        _ => None,
    }
}
