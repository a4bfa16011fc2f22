//! Units of the `chat` room; tests/it/text.rs has the goldens.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::ChatTemplate;
use crate::error::{Error, ErrorKind, Result};
use crate::request::ChatInput;
use crate::tokenizer::Tokenizer;

fn tokenizer() -> Tokenizer {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer-llama2");
    Tokenizer::open(&golden).unwrap()
}

fn input(messages: Value) -> ChatInput {
    ChatInput {
        messages,
        tools: None,
        template_kwargs: None,
        add_generation_prompt: false,
        continue_final_message: false,
    }
}

fn render(source: &str, messages: Value) -> Result<String> {
    ChatTemplate::from_source(source, &tokenizer())?.render(&input(messages))
}

fn hi() -> Value {
    json!([{"role": "user", "content": "Hi"}])
}

#[track_caller]
fn check(source: &str, expected: &str) {
    assert_eq!(render(source, hi()).unwrap(), expected, "{source}");
}

#[track_caller]
fn check_error(result: Result<String>, kind: ErrorKind, part: &str) -> Error {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.message().contains(part), "{error}");
    error
}

#[test]
fn values_are_spelled_as_python_does() {
    check("{{ true }} {{ none }} {{ 1.0 }} {{ 7 // 2 }} {{ undefined_one }}", "True None 1.0 3 ");
    check("{{ ['a', \"it's\", none, {'k': [true]}] }}", "['a', \"it's\", None, {'k': [True]}]");
    check("{{ none|string ~ true|string }}", "NoneTrue");
    check("{{ 'aXbX'.replace('X', '') ~ ' a '.strip() ~ 'x,y'.split(',')[-1] }}", "abay");
    check("{{ messages[0].get('name', 'nobody') }}", "nobody");
    check("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}", "<s>Hi</s>");
    check("{{ tools is none }} {{ documents is none }} {{ pad is defined }}", "True True False");
}

#[test]
fn blocks_are_trimmed() {
    check("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc");
    check("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1");
    check("a {%- generation -%} b {%- endgeneration %} c", "ab c");
}

#[test]
fn tojson_is_python_s() {
    let value = r#"{'b': 1, 'a': [1.5, none, true, "<é&'\"\\\n\u0001>"], 'e': {}, 'l': []}"#;
    check(
        &format!("{{{{ {value}|tojson }}}}"),
        r#"{"b": 1, "a": [1.5, null, true, "<é&'\"\\\n\u0001>"], "e": {}, "l": []}"#,
    );
    check(
        "{{ {'b': [1, {}], 'a': 2}|tojson(indent=2) }}",
        "{\n  \"b\": [\n    1,\n    {}\n  ],\n  \"a\": 2\n}",
    );
    check(
        "{{ {'b': 1, 'a': 2}|tojson(sort_keys=true, separators=(',', ':')) }}",
        r#"{"a":2,"b":1}"#,
    );
    check("{{ [1]|tojson(ensure_ascii=false, indent=none) }}", "[1]");
    check_error(render("{{ nothing|tojson }}", hi()), ErrorKind::Template, "not JSON serializable");
}

#[test]
fn errors_name_line_and_cause() {
    let error = check_error(
        render("\n\n{{ raise_exception('Only users may speak') }}", hi()),
        ErrorKind::Template,
        "line 3: Only users may speak",
    );
    assert_eq!(error.detail()["line"], 3);
    check_error(render("{% if %}", hi()), ErrorKind::Template, "line 1");
    check_error(render("{{ nope() }}", hi()), ErrorKind::Template, "nope");
    assert_eq!(ChatTemplate::missing().kind(), ErrorKind::Template);
    assert!(ChatTemplate::missing().message().contains("chat_template"));
}

#[test]
fn a_template_cannot_run_away() {
    let forever = "{% for a in range(9999) %}{% for b in range(9999) %}\
                   {% set _ = a * b %}{% endfor %}{% endfor %}";
    check_error(render(forever, hi()), ErrorKind::Template, "more work");
    let wide = "{% for a in range(9999) %}{{ 'x' * 100000 }}{% endfor %}";
    check_error(render(wide, hi()), ErrorKind::Template, "more work");
    let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    check_error(render(recursive, hi()), ErrorKind::Template, "");
    let deep = "{% set ns = namespace(x=[]) %}{% for i in range(200) %}\
                {% set ns.x = [ns.x] %}{% endfor %}";
    check_error(render(&format!("{deep}{{{{ ns.x }}}}"), hi()), ErrorKind::Template, "deeper");
    check_error(render(&format!("{deep}{{{{ ns.x|tojson }}}}"), hi()), ErrorKind::Template, "deep");
}

#[test]
fn a_template_cannot_overflow_the_stack() {
    let check = |source: String| {
        // Whether it renders or not: the process must survive.
        let _ = render(&source, hi());
    };
    for link in [".a", "|e", "[0]", "()", " is none"] {
        check(format!("{{{{ x{} }}}}", link.repeat(50_000 / link.len())));
    }
    // Compiling these takes time that grows with the square of their length.
    for link in ["+1", "~x", " and x", "**1"] {
        check(format!("{{{{ x{} }}}}", link.repeat(6_000 / link.len())));
    }
    for prefix in ["-", "not ", "1 if 0 else "] {
        check(format!("{{{{ {}x }}}}", prefix.repeat(6_000 / prefix.len())));
    }
    check(format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(5_000)));
    let nested = "[".repeat(100);
    let deep = format!(
        "{{% set ns = namespace(x=[], y=[]) %}}{{% for i in range(900) %}}\
         {{% set ns.x = {nested}ns.x{} %}}{{% set ns.y = {nested}ns.y{} %}}{{% endfor %}}",
        "]".repeat(100),
        "]".repeat(100)
    );
    for after in ["", "{{ ns.x == ns.y }}", "{{ ns.x ~ '' }}", "{{ [ns.x, ns.y]|sort }}"] {
        check(format!("{deep}{after}"));
    }
    let shared = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}\
                  {% set ns.x = [ns.x, ns.x] %}{% endfor %}";
    check_error(render(&format!("{shared}{{{{ ns.x }}}}"), hi()), ErrorKind::Template, "work");
    let json = format!("{shared}{{{{ ns.x|tojson }}}}");
    check_error(render(&json, hi()), ErrorKind::Template, "work");
}

#[test]
fn messages_are_checked() {
    let invalid = ErrorKind::InvalidArgument;
    let show = "{{ messages|length }}";
    let cases = [
        (json!("hello"), "messages is not an array"),
        (json!([]), "messages is empty"),
        (json!(["hello"]), "messages[0] is not an object"),
        (json!([{"content": "x"}]), "messages[0].role is missing"),
        (json!([{"role": 3, "content": "x"}]), "messages[0].role is not a string"),
        (json!([{"role": "user"}]), "messages[0].content is missing"),
        (json!([{"role": "user", "content": 5}]), "messages[0].content is neither"),
        (json!([{"role": "user", "content": [5]}]), "messages[0].content[0] has no type"),
        (json!([{"role": "user", "content": [{"type": "text"}]}]), "content[0] has no text"),
        (json!([{"role": "assistant", "tool_calls": 1}]), "tool_calls is not an array"),
        (
            json!([{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}]),
            "messages[0].tool_calls[0] has arguments that are no JSON",
        ),
    ];
    for (messages, part) in cases {
        check_error(render(show, messages), invalid, part);
    }
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]);
    check_error(render(show, image), ErrorKind::Unsupported, "image_url");
    assert_eq!(render(show, json!([{"role": "assistant", "content": null}])).unwrap(), "1");
}

#[test]
fn parts_are_joined_unless_the_template_loops_over_them() {
    let parts = json!([{"role": "user", "content": [
        {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
    let text = "{% for message in messages %}{{ message.content }}{% endfor %}";
    assert_eq!(render(text, parts.clone()).unwrap(), "a\nb");
    let list = "{% for m in messages %}{%- for part in m['content'] if part.type == 'text' %}\
                <{{ part.text }}>{% endfor %}{% endfor %}";
    assert_eq!(render(list, parts).unwrap(), "<a><b>");
}

#[test]
fn tool_arguments_become_objects() {
    let source = "{{ messages[0].tool_calls[0].function.arguments|tojson }}";
    let call = |arguments: Value| {
        let call = json!({"function": {"arguments": arguments}});
        json!([{"role": "assistant", "tool_calls": [call]}])
    };
    for (arguments, expected) in [
        (json!("{\"b\": 1, \"a\": \"é\"}"), "{\"b\": 1, \"a\": \"é\"}"),
        (json!({"x": [1]}), "{\"x\": [1]}"),
        (json!(""), "{}"),
        (json!(null), "{}"),
    ] {
        assert_eq!(render(source, call(arguments)).unwrap(), expected);
    }
}

#[test]
fn the_final_message_can_be_continued() {
    let messages = json!([{"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello. Hello "}]);
    let go_on = |source: &str| {
        let mut chat = input(messages.clone());
        chat.continue_final_message = true;
        ChatTemplate::from_source(source, &tokenizer()).unwrap().render(&chat)
    };
    let plain = "{% for m in messages %}<{{ m.content }}>{% endfor %}";
    assert_eq!(go_on(plain).unwrap(), "<Hi><Hello. Hello ");
    let stripped = "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}";
    assert_eq!(go_on(stripped).unwrap(), "<Hi><Hello. Hello");
    check_error(go_on("nothing"), ErrorKind::Template, "does not appear");
    let mut both = input(messages.clone());
    (both.continue_final_message, both.add_generation_prompt) = (true, true);
    let template = ChatTemplate::from_source(plain, &tokenizer()).unwrap();
    check_error(template.render(&both), ErrorKind::InvalidArgument, "Cannot set both");
}

#[test]
fn arguments_of_the_template() {
    let template =
        ChatTemplate::from_source("{{ thinking }}{{ bos_token }}", &tokenizer()).unwrap();
    let mut chat = input(hi());
    chat.template_kwargs = Some(json!({"thinking": "on", "bos_token": "!"}));
    assert_eq!(template.render(&chat).unwrap(), "on!");
    chat.template_kwargs = Some(json!({"messages": []}));
    check_error(template.render(&chat), ErrorKind::InvalidArgument, "messages");
    chat.template_kwargs = Some(json!([1]));
    check_error(template.render(&chat), ErrorKind::InvalidArgument, "not an object");
    chat.template_kwargs = None;
    chat.tools = Some(json!({}));
    check_error(template.render(&chat), ErrorKind::InvalidArgument, "tools is not an array");
}

#[test]
fn templates_by_name() {
    let dir = std::env::temp_dir().join(format!("vrust-chat-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let config = dir.join("tokenizer_config.json");
    let open = || ChatTemplate::from_dir(&dir, &tokenizer());
    let mut chat = input(hi());
    assert!(open().unwrap().is_none());
    std::fs::write(
        &config,
        r#"{"chat_template": [{"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "tools"}, {"name": "rag", "template": "{%"}]}"#,
    )
    .unwrap();
    assert_eq!(open().unwrap().unwrap().render(&chat).unwrap(), "plain");
    chat.tools = Some(json!([]));
    assert_eq!(open().unwrap().unwrap().render(&chat).unwrap(), "tools");
    for broken in
        [r#"{"chat_template": 7}"#, r#"{"chat_template": [{}]}"#, r#"{"chat_template": "{%"}"#]
    {
        std::fs::write(&config, broken).unwrap();
        let error = open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Template);
        assert!(error.message().contains("tokenizer_config.json"), "{error}");
    }
    // The file of its own goes first.
    std::fs::write(dir.join("chat_template.jinja"), "file").unwrap();
    assert_eq!(open().unwrap().unwrap().render(&chat).unwrap(), "file");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn clock() {
    check("{{ strftime_now('%%|%Y')[:2] }}", "%|");
    check_error(render("{{ strftime_now('%Q') }}", hi()), ErrorKind::Template, "%Q");
}
