//! Units of `output`: each text is parsed whole and in every kind of cut.

mod detection;
mod formats;
mod malformed;
mod properties;

use serde_json::{Value, json};

use super::{ChatParser, Choice, ParserOptions, Part};

/// The tools of every test here.
fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "ratio": {"type": "number"},
        "where": {"type": "object"},
        "list": {"type": "array"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "either": {"type": ["integer", "string"]},
        "unit": {"enum": ["C", "F"]},
    }});
    json!([
        {"type": "function", "function": {"name": "weather", "parameters": parameters}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

fn parser(tool_format: &str, reasoning_format: &str) -> ChatParser {
    let options = ParserOptions {
        tool_format: Choice::tool_format(tool_format).unwrap(),
        reasoning_format: Choice::reasoning_format(reasoning_format).unwrap(),
        tools: Some(tools()),
        template_kwargs: None,
    };
    ChatParser::new(&options, None).unwrap()
}

/// Parses `pieces`; adjacent parts merged.
fn parse<'a>(parser: &ChatParser, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Part> {
    // Clones make up the same ids.
    let mut parser = parser.clone();
    let mut merged: Vec<Part> = Vec::new();
    let mut add = |part: Part| match (merged.last_mut(), part) {
        (Some(Part::Reasoning(last)), Part::Reasoning(text))
        | (Some(Part::Content(last)), Part::Content(text))
        | (Some(Part::Arguments { text: last, .. }), Part::Arguments { text, .. }) => {
            last.push_str(&text);
        }
        (_, part) => merged.push(part),
    };
    for piece in pieces {
        parser.push(piece).unwrap().into_iter().for_each(&mut add);
    }
    parser.finish().into_iter().for_each(&mut add);
    merged
}

/// Parts in a line: `R:reasoning|C:content|T:name|A:arguments`.
fn show(parts: &[Part]) -> String {
    let shown = parts.iter().map(|part| match part {
        Part::Reasoning(text) => format!("R:{text}"),
        Part::Content(text) => format!("C:{text}"),
        Part::ToolCall { name, .. } => format!("T:{name}"),
        Part::Arguments { text, .. } => format!("A:{text}"),
    });
    shown.collect::<Vec<_>>().join("|")
}

/// Checks that `text` becomes `expected`, however it is cut.
#[track_caller]
fn check_with(parser: &ChatParser, text: &str, expected: &str) {
    let whole = parse(parser, [text]);
    assert_eq!(show(&whole), expected, "{text}");
    check_cuts(parser, text, &whole);
}

/// Checks every single cut, and one character at a time.
#[track_caller]
fn check_cuts(parser: &ChatParser, text: &str, whole: &[Part]) {
    let cuts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    for &at in &cuts {
        let parts = parse(parser, [&text[..at], &text[at..]]);
        assert_eq!(show(&parts), show(whole), "{text:?} cut at {at}");
        assert_eq!(parts, whole);
    }
    assert_eq!(parse(parser, text.split_inclusive(|_| true)), whole, "{text:?} in characters");
}

/// The calls' arguments, which must be JSON.
#[track_caller]
fn arguments(parts: &[Part]) -> Vec<Value> {
    let texts = parts.iter().filter_map(|part| match part {
        Part::Arguments { text, .. } => Some(text),
        _ => None,
    });
    texts.map(|text| serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))).collect()
}
