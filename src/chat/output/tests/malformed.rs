//! What models write when they go wrong, or are cut short.

use super::{check_with, parser};

/// `text` is no call at all.
#[track_caller]
fn check_content(format: &str, text: &str) {
    check_with(&parser(format, "think"), text, &format!("C:{text}"));
}

#[track_caller]
fn check(format: &str, text: &str, expected: &str) {
    check_with(&parser(format, "think"), text, expected);
}

#[test]
fn malformed_calls_are_content() {
    for inside in [
        "",
        "plain text",
        "{}",
        "[]",
        r#"{"nam": "f"}"#,
        r#"{"name": ""}"#,
        r#"{"name": 5}"#,
        r#"{"name": "f", "arguments": [1]}"#,
        r#"{"name": "f", "arguments": 5}"#,
        r#"{"name": "f", "arguments": "x"}"#,
        r#"{"name": "f", "arguments": "{\"a\""}"#,
        r#"{"arguments": {}, "arguments": {}, "name": "f"}"#,
        r#"{"name": "f", "name": "g"}"#,
        r#"{"name": "f" "arguments": {}}"#,
        r#"{'name': 'f'}"#,
        r#"{"name": "f", "arguments": }"#,
        r#"{"name": "\x"}"#,
        r#"{"name": "f", }"#,
    ] {
        check_content("hermes", &format!("so:\n<tool_call>{inside}</tool_call> end\n"));
        check_content("mistral", &format!("[TOOL_CALLS][{inside}] end"));
        check_content("llama3_json", &format!("<|python_tag|>{inside} end"));
    }
    check_content("mistral", "[TOOL_CALLS]f[ARG]{}");
    check_content("mistral", "[TOOL_CALLS]f[CALL_ID]short[ARGS]{}");
    check_content("mistral", "[TOOL_CALLS]f g{}");
    check_content("mistral", "[TOOL_CALLS]{}");
    check_content("qwen3_xml", "<tool_call>{\"name\": \"f\"}</tool_call>");
    check_content("qwen3_xml", "<tool_call><function=></function>");
    check_content("qwen3_xml", "<tool_call><function=f>text</function>");
    check_content("qwen3_xml", "<tool_call><function=f\n></function>");
    check_content("pythonic", "<|python_start|>f(a=1)<|python_end|>");
    check_content("pythonic", "<|python_start|>[f(a)]<|python_end|>");
    check_content("pythonic", "<|python_start|>[f(**x)]");
}

#[test]
fn what_follows_an_error_is_parsed_again() {
    let good = r#"<tool_call>{"name":"f"}</tool_call>"#;
    check("hermes", &format!("<tool_call>{good}"), "C:<tool_call>|T:f|A:{}");
    check(
        "hermes",
        &format!("<tool_call>oh</tool_call>{good}"),
        "C:<tool_call>oh</tool_call>|T:f|A:{}",
    );
    check("hermes", &format!("<<tool_call{good}"), "C:<<tool_call|T:f|A:{}");
}

#[test]
fn an_error_after_a_call_began_ends_the_call() {
    let begin = r#"<tool_call>{"name":"f","arguments":"#;
    check("hermes", &format!(r#"{begin}{{"a":1,x}}"#), r#"T:f|A:{"a":1,|C:x}"#);
    check("hermes", &format!(r#"{begin}{{}},"name":"g"}}"#), r#"T:f|A:{}|C:,"name":"g"}"#);
    check("hermes", &format!("{begin}{{}} oh}}</tool_call>"), "T:f|A:{}|C: oh}</tool_call>");
    check("pythonic", "[now(a=1, b=c)] d", r#"T:now|A:{"a": 1, "b": |C:c)] d"#);
    check("pythonic", "[now(a=1, 2)]", r#"T:now|A:{"a": 1|C:, 2)]"#);
    check("pythonic", "[now(), then]", "T:now|A:{}|C:, then]");
    check("mistral", "[TOOL_CALLS]f{\"a\": x}", "T:f|A:{\"a\": |C:x}");
    check("mistral", "[TOOL_CALLS][{\"name\":\"f\"} x", "T:f|A:{}|C: x");
    let begin = "<function=f><parameter=a>1</parameter>";
    check("qwen3_xml", &format!("{begin} oh"), r#"T:f|A:{"a": "1"|C: oh"#);
    check("qwen3_xml", &format!("{begin}</tool_call>"), r#"T:f|A:{"a": "1"|C:</tool_call>"#);
}

#[test]
fn text_that_ends_early_is_not_lost() {
    check("hermes", "<tool_ca", "C:<tool_ca");
    let begin = r#"<tool_call>{"name": "f", "argu"#;
    check("hermes", begin, &format!("C:{begin}"));
    for (cut, expected) in [
        (r#""#, ""),
        (r#""a": "x"#, r#""a": "x"#),
        (r#""a": "x"}"#, r#""a": "x"}"#),
        (r#""a": "x"}}</to"#, r#""a": "x"}|C:</to"#),
    ] {
        let text = format!(r#"{begin}ments": {{{cut}"#);
        check("hermes", &text, &format!("T:f|A:{{{expected}"));
    }
    check("pythonic", "[now(a=12", r#"T:now|A:{"a": 12"#);
    check("pythonic", "[now(a='1", r#"T:now|A:{"a": "1"#);
    check("pythonic", "[now(a", "C:[now(a");
    let begin = "<tool_call><function=weather>";
    check("qwen3_xml", begin, &format!("C:{begin}"));
    let text = format!("{begin}<parameter=city>Os\n</para");
    check("qwen3_xml", &text, r#"T:weather|A:{"city": "Os\n</para"#);
    check("qwen3_xml", &format!("{begin}<parameter=days>1"), r#"T:weather|A:{"days": 1"#);
    let text = format!("{begin}<parameter=days>1</parameter></func");
    check("qwen3_xml", &text, r#"T:weather|A:{"days": 1|C:</func"#);
    check("mistral", "[TOOL_CALLS]now[AR", "C:[TOOL_CALLS]now[AR");
    check("llama3_json", r#"{"name": "now", "par"#, r#"C:{"name": "now", "par"#);
    check("llama3_json", "{", "C:{");
}
