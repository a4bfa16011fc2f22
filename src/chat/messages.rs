//! Messages of a chat: checked, and brought into the shape that templates expect.

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};

/// How a template takes a message's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentFormat {
    /// As text: lists of parts are joined by newlines.
    Text,
    /// As text or as a list of parts: it iterates over contents.
    Parts,
}

impl ContentFormat {
    /// Looks for a loop over something called content: `{% for part in message['content'] %}`.
    pub(super) fn of(source: &str) -> Self {
        let mut rest = source;
        while let Some(at) = rest.find("{%") {
            rest = &rest[at + 2..];
            let end = rest.find("%}").unwrap_or(rest.len());
            if loops_over_content(&rest[..end]) {
                return Self::Parts;
            }
        }
        Self::Text
    }
}

/// Whether the inside of a tag is `for x in EXPRESSION` with `content` in the expression.
fn loops_over_content(tag: &str) -> bool {
    let mut words = tag
        .trim_start_matches(['-', '+'])
        .split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .filter(|word| !word.is_empty());
    if words.next() != Some("for") {
        return false;
    }
    words
        .skip_while(|word| *word != "in")
        .skip(1)
        .take_while(|word| *word != "if")
        .any(|word| word == "content")
}

/// The messages as the template gets them.
pub(super) fn prepare(messages: &Value, format: ContentFormat) -> Result<Vec<Value>> {
    let Some(list) = messages.as_array() else {
        return Err(Error::invalid("messages", "messages is not an array"));
    };
    if list.is_empty() {
        return Err(Error::invalid("messages", "messages is empty"));
    }
    let mut prepared = Vec::new();
    prepared.try_reserve_exact(list.len())?;
    for (i, message) in list.iter().enumerate() {
        prepared.push(Value::Object(prepare_one(message, format, i)?));
    }
    Ok(prepared)
}

fn prepare_one(message: &Value, format: ContentFormat, i: usize) -> Result<Map<String, Value>> {
    let Some(message) = message.as_object() else {
        return Err(invalid(i, "", "is not an object"));
    };
    let role = match message.get("role") {
        Some(Value::String(role)) => role.as_str(),
        Some(_) => return Err(invalid(i, ".role", "is not a string")),
        None => return Err(invalid(i, ".role", "is missing")),
    };
    let mut message = message.clone();
    match message.get("content") {
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => {
            let texts = part_texts(parts, i)?;
            if format == ContentFormat::Text {
                let text = texts.join("\n");
                message.insert("content".to_owned(), Value::String(text));
            }
        }
        // An assistant's turn may consist of tool calls alone.
        Some(Value::Null) | None if role == "assistant" => {}
        Some(Value::Null) | None => return Err(invalid(i, ".content", "is missing")),
        Some(_) => return Err(invalid(i, ".content", "is neither a string nor a list of parts")),
    }
    if let Some(calls) = message.get_mut("tool_calls") {
        prepare_tool_calls(calls, i)?;
    }
    alias_reasoning(&mut message);
    Ok(message)
}

/// The texts of content parts.
fn part_texts(parts: &[Value], i: usize) -> Result<Vec<&str>> {
    let mut texts = Vec::with_capacity(parts.len());
    for (j, part) in parts.iter().enumerate() {
        let at = format!(".content[{j}]");
        match part.get("type").and_then(Value::as_str) {
            Some("text") => match part.get("text").and_then(Value::as_str) {
                Some(text) => texts.push(text),
                None => return Err(invalid(i, &at, "has no text")),
            },
            Some(other) => {
                let message = format!("messages[{i}]{at} is of type {other:?}: only text is");
                return Err(Error::new(ErrorKind::Unsupported, format!("{message} supported"))
                    .with("field", format!("messages[{i}]{at}"))
                    .with("value", other));
            }
            None => return Err(invalid(i, &at, "has no type")),
        }
    }
    Ok(texts)
}

/// Parses each call's arguments where they come as JSON text, which is OpenAI's way: templates
/// write them as objects.
fn prepare_tool_calls(calls: &mut Value, i: usize) -> Result<()> {
    let calls = match calls {
        Value::Null => return Ok(()),
        Value::Array(calls) => calls,
        _ => return Err(invalid(i, ".tool_calls", "is not an array")),
    };
    for (j, call) in calls.iter_mut().enumerate() {
        let at = format!(".tool_calls[{j}]");
        let Some(call) = call.as_object_mut() else {
            return Err(invalid(i, &at, "is not an object"));
        };
        let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) else {
            continue;
        };
        let parsed = match function.get("arguments") {
            Some(Value::String(text)) if !text.trim().is_empty() => {
                match serde_json::from_str::<Value>(text) {
                    Ok(object @ Value::Object(_)) => object,
                    Ok(_) => return Err(invalid(i, &at, "has arguments that are no JSON object")),
                    Err(e) => {
                        return Err(invalid(
                            i,
                            &at,
                            &format!("has arguments that are no JSON: {e}"),
                        ));
                    }
                }
            }
            Some(Value::String(_)) | Some(Value::Null) | None => Value::Object(Map::new()),
            Some(_) => continue,
        };
        function.insert("arguments".to_owned(), parsed);
    }
    Ok(())
}

/// Gives reasoning under all names in use, as transformers does: templates read one of them.
fn alias_reasoning(message: &mut Map<String, Value>) {
    let names = ["reasoning_content", "thinking", "reasoning"];
    let Some(reasoning) = names.iter().find_map(|name| message.get(*name).filter(|v| !v.is_null()))
    else {
        return;
    };
    let reasoning = reasoning.clone();
    message.entry("thinking").or_insert_with(|| reasoning.clone());
    message.insert("reasoning_content".to_owned(), reasoning);
}

/// Puts `mark` behind the last message's text; returns that text.
pub(super) fn mark_final(messages: &mut [Value], mark: &str) -> Result<String> {
    let i = messages.len().saturating_sub(1);
    let nothing = || invalid(i, ".content", "has no text to continue (continue_final_message)");
    let content = messages.last_mut().and_then(|m| m.get_mut("content")).ok_or_else(nothing)?;
    let text = match content {
        Value::Array(parts) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        other => Some(other),
    };
    match text {
        Some(Value::String(text)) => {
            let original = text.clone();
            text.push_str(mark);
            Ok(original)
        }
        _ => Err(nothing()),
    }
}

fn invalid(i: usize, at: &str, what: &str) -> Error {
    let field = format!("messages[{i}]{at}");
    Error::invalid(&field, format!("{field} {what}"))
}
