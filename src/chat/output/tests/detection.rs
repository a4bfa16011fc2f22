//! Formats by name, by template, and what the prompt leaves open.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{check_with, tools};
use crate::chat::ChatTemplate;
use crate::chat::output::{ChatParser, Choice, ParserOptions};
use crate::error::ErrorKind;
use crate::tokenizer::Tokenizer;

fn parser_for(source: &str, options: &ParserOptions) -> ChatParser {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer-llama2");
    let template = ChatTemplate::from_source(source, &Tokenizer::open(&golden).unwrap()).unwrap();
    ChatParser::new(options, Some(&template)).unwrap()
}

fn with_tools() -> ParserOptions {
    ParserOptions { tools: Some(tools()), ..ParserOptions::default() }
}

#[test]
fn formats_are_told_from_the_template() {
    for (source, tool_format, reasoning_format) in [
        ("plain", None, None),
        ("{# <tool_call>{...}</tool_call> #}", Some("hermes"), None),
        ("<tool_call> <think></think>", Some("hermes"), Some("think")),
        ("<tool_call><function=f><parameter=p>", Some("qwen3_xml"), None),
        ("<tool_call>f<arg_key>", None, None),
        ("[TOOL_CALLS] [THINK]", Some("mistral"), Some("mistral")),
        ("<|python_tag|>", Some("llama3_json"), None),
        ("<|start_header_id|> {\"name\": .., \"parameters\": ..}", Some("llama3_json"), None),
        ("<|python_start|> <|python_tag|>", Some("pythonic"), None),
        ("[func_name1(params_name1=1)]", Some("pythonic"), None),
        ("{{ content.split('</think>')[-1] }}", None, Some("think")),
    ] {
        let parser = parser_for(source, &with_tools());
        let found =
            (parser.tool_format().map(|f| f.name()), parser.reasoning_format().map(|f| f.name()));
        assert_eq!(found, (tool_format, reasoning_format), "{source}");
    }
    let parser = parser_for("<tool_call></think>", &ParserOptions::default());
    assert_eq!(parser.tool_format(), None, "no tools, no calls");
    let off =
        ParserOptions { tool_format: Choice::Off, reasoning_format: Choice::Off, ..with_tools() };
    let parser = parser_for("<tool_call></think>", &off);
    assert!(parser.tool_format().is_none() && parser.reasoning_format().is_none());
}

#[test]
fn the_prompt_may_open_the_reasoning() {
    let source = "{{ messages[0].content }}{% if add_generation_prompt %}<a>\
        {% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n\
        {% else %}<think>\n{% endif %}{% endif %}";
    let parser = parser_for(source, &with_tools());
    assert!(parser.starts_in_reasoning());
    check_with(&parser, "Hm.\n</think>\n\nYes", "R:Hm.|C:Yes");
    check_with(&parser, "<think>\nHm.</think>Yes", "R:Hm.|C:Yes");
    check_with(&parser, "</think>Yes", "C:Yes");
    check_with(&parser, "Hm. <think> more", "R:Hm. <think> more");
    let kwargs = Some(json!({"enable_thinking": false}));
    let quiet = ParserOptions { template_kwargs: kwargs, ..with_tools() };
    let parser = parser_for(source, &quiet);
    assert!(!parser.starts_in_reasoning());
    check_with(&parser, "Yes", "C:Yes");
    // A template that speaks of reasoning elsewhere opens none.
    let parser = parser_for("Reason in <think> and </think>, or <think>.{{ bos_token }}", &quiet);
    assert!(!parser.starts_in_reasoning());
    // A template that cannot render a minimal chat may still render the request's.
    let parser = parser_for("</think>{{ raise_exception('no') }}", &with_tools());
    assert!(!parser.starts_in_reasoning());
}

#[test]
fn names_and_tools_are_checked() {
    for (error, field) in [
        (Choice::tool_format("hermès").unwrap_err(), "tool_format"),
        (Choice::reasoning_format("").unwrap_err(), "reasoning_format"),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().starts_with(field) && error.message().contains("auto, none, "));
        assert_eq!(error.detail()["field"], field);
        assert!(error.detail()["value"].is_string() && error.detail()["choices"].is_array());
    }
    for name in ["qwen3", "deepseek_r1", "think", "mistral", "auto", "none"] {
        assert!(Choice::reasoning_format(name).is_ok(), "{name}");
    }
    for (tools, field) in [
        (json!({}), "tools"),
        (json!([5]), "tools[0].function.name"),
        (json!([{"type": "function", "function": {"name": ""}}]), "tools[0].function.name"),
    ] {
        let options = ParserOptions { tools: Some(tools), ..ParserOptions::default() };
        let error = ChatParser::new(&options, None).unwrap_err();
        assert_eq!(error.detail()["field"], field);
    }
    for tools in [Value::Null, json!([])] {
        let options = ParserOptions { tools: Some(tools), ..ParserOptions::default() };
        assert!(ChatParser::new(&options, None).unwrap().tool_format().is_none());
    }
}
