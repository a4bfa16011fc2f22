//! `VrustChatParser`: a model's output to OpenAI deltas.

use std::ffi::c_char;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::boundary::{boundary, destroy};
use super::bytes::{self, VrustBytes};
use super::error::VrustError;
use super::handle::{Kind, Table};
use super::input::{Out, optional_text, text};
use super::json;
use super::status::{VRUST_OK, VrustStatus};
use super::tokenizer::{TOKENIZERS, VrustTokenizer};
use crate::chat::output::{ChatParser, Choice, ParserOptions, Part};
use crate::error::{Error, Result};

/// Splits what a chat model writes into reasoning, content and tool calls, as it streams.
pub struct VrustChatParser {
    _opaque: [u8; 0],
}

static PARSERS: Table<ParserObject> = Table::new(Kind::ChatParser);

struct ParserObject {
    parser: Mutex<ChatParser>,
    info: String,
}

/// Creates a parser for the answers to a chat of this tokenizer's model; one for each choice that
/// streams at the same time. `options_json` (may be absent): an object of
///   "tool_format": "auto" (the default: what the chat template shows, or none), "none", "hermes",
///     "llama3_json", "mistral", "pythonic", "qwen3_xml" (or "qwen3_coder");
///   "reasoning_format": "auto", "none", "think" (or "qwen3", "deepseek_r1"), "mistral";
///   "tools": the request's; absent or empty, no calls are looked for;
///   "chat_template_kwargs": the request's. A minimal chat is rendered with them to see whether
///     the prompt ends inside reasoning.
///
/// Any thread. VRUST_ERROR_INVALID_ARGUMENT for an unknown name or field, and for malformed tools;
/// VRUST_ERROR_TEMPLATE when the template beside the tokenizer cannot be used at all.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_chat_parser_create(
    tokenizer: *const VrustTokenizer,
    options_json: *const c_char,
    options_json_len: usize,
    parser_out: *mut *mut VrustChatParser,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `options_json` is NULL or readable for its length; `parser_out` and `err` are NULL or
    // writable (header, "Pointers").
    unsafe {
        boundary(err, || {
            let object = TOKENIZERS.get(tokenizer, "tokenizer")?;
            let out = Out::new(parser_out, "parser_out")?;
            let options = options(optional_text(options_json, options_json_len, "options_json")?)?;
            let template = object.template.clone()?;
            let parser = ChatParser::new(&options, template.as_deref())?;
            let info = json!({
                "tool_format": parser.tool_format().map(|format| format.name()),
                "reasoning_format": parser.reasoning_format().map(|format| format.name()),
                "starts_in_reasoning": parser.starts_in_reasoning(),
                "keep_special_tokens": parser.needs_special_tokens(&object.tokenizer),
            });
            let info = info.to_string();
            out.write(PARSERS.insert(Arc::new(ParserObject { parser: Mutex::new(parser), info }))?);
            Ok(VRUST_OK)
        })
    }
}

/// What was decided, as a JSON object: tool_format and reasoning_format (a format's first name, or
/// null when none is looked for), starts_in_reasoning (the prompt ends inside reasoning),
/// keep_special_tokens (markers are special tokens here: ask for the text with
/// VRUST_REQUEST_KEEP_SPECIAL_TOKENS). The caller destroys the bytes. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_chat_parser_info_json(
    parser: *const VrustChatParser,
    json_out: *mut *mut VrustBytes,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `json_out` and `err` are NULL or writable (header, "Pointers").
    unsafe {
        boundary(err, || {
            let object = PARSERS.get(parser, "parser")?;
            let out = Out::new(json_out, "json_out")?;
            out.write(bytes::export(super::input::owned(&object.info)?)?);
            Ok(VRUST_OK)
        })
    }
}

/// Takes text of the answer, in pieces of any size that are whole UTF-8, and writes what it makes
/// certain: a JSON array, often empty, of OpenAI delta objects, each of one kind:
///   {"reasoning":".."}
///   {"content":".."}
///   {"tool_calls":[{"index":0,"id":"..","type":"function","function":{"name":"..",
///     "arguments":""}}]}
///   {"tool_calls":[{"index":0,"function":{"arguments":".."}}]}
/// Held back is only what may still be a marker or the beginning of a call. However the text is
/// cut, the deltas join to the same. A call's arguments join to one JSON object, unless the model
/// left it unfinished. Text that is no well-formed call is content, from where it went wrong.
/// Whitespace next to a marker is part of it. The caller destroys the bytes.
///
/// Any thread; pieces that threads push at the same time are taken one after the other.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_chat_parser_push(
    parser: *mut VrustChatParser,
    text: *const c_char,
    text_len: usize,
    deltas_out: *mut *mut VrustBytes,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `text` is NULL or readable for its length; `deltas_out` and `err` are NULL or
    // writable (header, "Pointers").
    unsafe {
        boundary(err, || {
            let object = PARSERS.get(parser, "parser")?;
            let out = Out::new(deltas_out, "deltas_out")?;
            let text = self::text(text, text_len, "text")?;
            let mut parser = object.parser.lock().unwrap_or_else(PoisonError::into_inner);
            out.write(bytes::export(deltas(parser.push(text)?))?);
            Ok(VRUST_OK)
        })
    }
}

/// Ends the answer and writes what was held back, as vrust_chat_parser_push does. The parser is
/// then as new: it takes another answer to the same chat, or to one with the same tools. Any
/// thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_chat_parser_finish(
    parser: *mut VrustChatParser,
    deltas_out: *mut *mut VrustBytes,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `deltas_out` and `err` are NULL or writable (header, "Pointers").
    unsafe {
        boundary(err, || {
            let object = PARSERS.get(parser, "parser")?;
            let out = Out::new(deltas_out, "deltas_out")?;
            let mut parser = object.parser.lock().unwrap_or_else(PoisonError::into_inner);
            out.write(bytes::export(deltas(parser.finish()))?);
            Ok(VRUST_OK)
        })
    }
}

/// Destroys a parser. NULL is fine. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_chat_parser_destroy(parser: *mut VrustChatParser) -> VrustStatus {
    destroy(parser, || PARSERS.remove(parser).is_some())
}

fn options(text: Option<&str>) -> Result<ParserOptions> {
    let mut options = ParserOptions::default();
    let Some(text) = text else { return Ok(options) };
    for (key, value) in json::object(text, "options_json")? {
        let is_null = value.is_null();
        match key.as_str() {
            "tool_format" | "reasoning_format" | "tools" | "chat_template_kwargs" if is_null => {}
            "tool_format" => {
                options.tool_format = Choice::tool_format(json::string(&value, &key)?)?;
            }
            "reasoning_format" => {
                options.reasoning_format = Choice::reasoning_format(json::string(&value, &key)?)?;
            }
            "tools" => {
                json::array(&value, &key)?;
                options.tools = Some(value);
            }
            "chat_template_kwargs" => {
                json::map(&value, &key)?;
                options.template_kwargs = Some(value);
            }
            _ => return Err(Error::invalid(&key, format!("{key}: unknown field"))),
        }
    }
    Ok(options)
}

fn deltas(parts: Vec<Part>) -> String {
    let deltas = parts.into_iter().map(|part| match part {
        Part::Reasoning(text) => json!({"reasoning": text}),
        Part::Content(text) => json!({"content": text}),
        Part::ToolCall { index, id, name } => json!({"tool_calls": [{
            "index": index,
            "id": id,
            "type": "function",
            "function": {"name": name, "arguments": ""},
        }]}),
        Part::Arguments { index, text } => {
            json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
        }
    });
    Value::Array(deltas.collect()).to_string()
}
