//! A request as JSON, with OpenAI's and vLLM's field names.

use std::time::Duration;

use serde_json::{Map, Value};

use super::json::{self, Ask, Neutral};
use super::sampling_json;
use crate::error::{Error, Result};
use crate::request::{ChatInput, Input, Request};

/// A whole request: the body of /v1/completions or /v1/chat/completions.
pub(super) fn request(text: &str) -> Result<Request> {
    let mut fields = json::object(text, "request")?;
    let given = |v: Option<Value>| v.filter(|v| !v.is_null());
    let (prompt, messages) = (given(fields.remove("prompt")), given(fields.remove("messages")));
    let input = match (prompt, messages) {
        (Some(prompt), None) => prompt_input(prompt)?,
        (None, Some(messages)) => Input::Chat(chat(messages)?),
        (None, None) => return Err(Error::invalid("prompt", "prompt or messages is required")),
        (Some(_), Some(_)) => {
            return Err(Error::invalid("prompt", "prompt and messages exclude each other"));
        }
    };
    let mut request = Request::new(input);
    if let Input::Chat(_) = request.input {
        set_chat_logprobs(&mut request, &mut fields)?;
    }
    set_fields(&mut request, &fields)?;
    Ok(request)
}

/// A chat: an array of messages, or an object of them and of what else the template takes.
pub(super) fn chat_input(text: &str) -> Result<Request> {
    match json::parse(text, "input")? {
        Value::Object(mut fields) => {
            let messages = fields.remove("messages").unwrap_or(Value::Null);
            let mut request = Request::new(Input::Chat(chat(messages)?));
            for (key, value) in &fields {
                if !set_chat_field(&mut request, key, value)? {
                    return Err(Error::invalid(key, format!("{key}: unknown field of a chat")));
                }
            }
            Ok(request)
        }
        messages => Ok(Request::new(Input::Chat(chat(messages)?))),
    }
}

/// Sets every field but the input itself.
pub(super) fn set_fields(request: &mut Request, fields: &Map<String, Value>) -> Result<()> {
    for (key, value) in fields {
        let known = set_request_field(request, key, value)?
            || set_chat_field(request, key, value)?
            || key == "best_of"
            || sampling_json::set(&mut request.params, key, value)?;
        if !known {
            json::check_neutral(&NEUTRAL, key, value)?;
        }
    }
    if let Some(value) = fields.get("max_completion_tokens").filter(|v| !v.is_null()) {
        sampling_json::set(&mut request.params, "max_tokens", value)?;
    }
    // `best_of` choices are made and the best `n` returned: equal to `n`, it asks for nothing.
    match fields.get("best_of") {
        None | Some(Value::Null) => Ok(()),
        Some(best_of) if best_of.as_u64() == Some(request.params.n.unwrap_or(1).into()) => Ok(()),
        Some(best_of) => Err(json::unsupported("best_of", best_of)),
    }
}

fn set_request_field(request: &mut Request, key: &str, value: &Value) -> Result<bool> {
    let unset = value.is_null();
    match key {
        "priority" => request.priority = if unset { 0 } else { json::integer(value, key)? },
        "deadline_ms" => {
            // 0 is none, as in VrustRequest.
            let ms = if unset { 0 } else { json::integer(value, key)? };
            request.deadline = (ms != 0).then(|| Duration::from_millis(ms));
        }
        "cache_salt" => {
            let salt = (!unset).then(|| json::string(value, key)).transpose()?;
            request.cache_salt = salt.map(str::to_owned);
        }
        "echo" => request.echo = !unset && json::boolean(value, key)?,
        "output_kind" => {
            let kind = if unset { "delta" } else { json::string(value, key)? };
            request.final_only = kind == "final_only";
            if !["delta", "final_only"].contains(&kind) {
                let message = "output_kind: must be delta or final_only";
                return Err(json::unsupported(key, value).context(message));
            }
        }
        "add_special_tokens" => {
            let is_chat = matches!(request.input, Input::Chat(_));
            let add = if unset { !is_chat } else { json::boolean(value, key)? };
            if add && is_chat {
                let message = "add_special_tokens: a chat template writes its own";
                return Err(json::unsupported(key, value).context(message));
            }
            request.add_special_tokens = add || is_chat;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn set_chat_field(request: &mut Request, key: &str, value: &Value) -> Result<bool> {
    let names =
        ["tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"];
    if !names.contains(&key) {
        return Ok(false);
    }
    if value.is_null() {
        return Ok(true);
    }
    let Input::Chat(chat) = &mut request.input else {
        return Err(Error::invalid(key, format!("{key}: only a chat has it")));
    };
    match key {
        "tools" => {
            json::array(value, key)?;
            chat.tools = Some(value.clone());
        }
        "chat_template_kwargs" => {
            json::map(value, key)?;
            chat.template_kwargs = Some(value.clone());
        }
        "add_generation_prompt" => chat.add_generation_prompt = json::boolean(value, key)?,
        _ => chat.continue_final_message = json::boolean(value, key)?,
    }
    Ok(true)
}

/// Chats ask with `logprobs: true` and `top_logprobs: 5`.
fn set_chat_logprobs(request: &mut Request, fields: &mut Map<String, Value>) -> Result<()> {
    let top = fields.remove("top_logprobs").unwrap_or(Value::Null);
    let top = if top.is_null() { None } else { Some(json::integer(&top, "top_logprobs")?) };
    let wanted = match fields.remove("logprobs") {
        None | Some(Value::Null) => false,
        Some(value) => json::boolean(&value, "logprobs")?,
    };
    if top.is_some_and(|top: i32| top != 0) && !wanted {
        let message = "top_logprobs: only with logprobs set to true";
        return Err(Error::invalid("top_logprobs", message));
    }
    request.params.logprobs = wanted.then(|| top.unwrap_or(0));
    Ok(())
}

fn prompt_input(prompt: Value) -> Result<Input> {
    match prompt {
        Value::String(text) => Ok(Input::Text(text)),
        Value::Array(items) if items.first().is_some_and(|v| v.is_string() || v.is_array()) => {
            let message = "prompt: one prompt a request; submit each of a list by itself";
            Err(Error::invalid("prompt", message))
        }
        ids @ Value::Array(_) => Ok(Input::Tokens(sampling_json::token_ids(&ids, "prompt")?)),
        other => Err(json::wrong("prompt", "a string or an array of token ids", &other)),
    }
}

fn chat(messages: Value) -> Result<ChatInput> {
    json::array(&messages, "messages")?;
    Ok(ChatInput {
        messages,
        tools: None,
        template_kwargs: None,
        add_generation_prompt: true,
        continue_final_message: false,
    })
}

/// Fields that a server may pass on though they ask the library for nothing, and fields of vLLM's
/// and OpenAI's that this version lacks.
const NEUTRAL: [Neutral; 43] = [
    ("model", Ask::Anything),
    ("user", Ask::Anything),
    ("stream", Ask::Anything), // Events always stream.
    ("stream_options", Ask::Anything),
    ("metadata", Ask::Anything),
    ("store", Ask::Anything),
    ("request_id", Ask::Anything),
    ("session_id", Ask::Anything),
    ("service_tier", Ask::Anything),
    ("safety_identifier", Ask::Anything),
    ("prompt_cache_key", Ask::Anything),
    ("return_token_ids", Ask::Anything), // Events always carry them.
    ("return_tokens_as_token_ids", Ask::Anything),
    ("parallel_tool_calls", Ask::Anything),
    ("use_beam_search", Ask::False),
    ("length_penalty", Ask::Number(1.0)),
    ("early_stopping", Ask::False),
    ("response_format", Ask::Type("text")),
    ("structured_outputs", Ask::Nothing),
    ("guided_json", Ask::Nothing),
    ("guided_regex", Ask::Nothing),
    ("guided_choice", Ask::Nothing),
    ("guided_grammar", Ask::Nothing),
    ("guided_json_object", Ask::False),
    ("guided_decoding_backend", Ask::Nothing),
    ("guided_whitespace_pattern", Ask::Nothing),
    ("suffix", Ask::Text("")),
    ("truncate_prompt_tokens", Ask::Nothing),
    ("tool_choice", Ask::Text("auto")),
    ("chat_template", Ask::Nothing),
    ("documents", Ask::Nothing),
    ("reasoning_effort", Ask::Nothing),
    ("include_reasoning", Ask::True),
    ("modalities", Ask::Nothing),
    ("audio", Ask::Nothing),
    ("prediction", Ask::Nothing),
    ("top_logprobs", Ask::Nothing),
    ("logprob_token_ids", Ask::Nothing),
    ("thinking_token_budget", Ask::Nothing),
    ("repetition_detection", Ask::Nothing),
    ("stream_interval", Ask::Number(1.0)),
    ("kv_transfer_params", Ask::Nothing),
    ("vllm_xargs", Ask::Nothing),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::ids::TokenId;

    fn check(json: &str, kind: ErrorKind, field: &str) {
        let error = request(json).expect_err(json);
        let found = error.detail().get("field").and_then(Value::as_str);
        assert_eq!((error.kind(), found), (kind, Some(field)), "{json}: {error}");
        let named = error.message().contains(field) || field == "request";
        assert!(named, "{json}: {error}");
    }

    #[test]
    fn a_completion_request() {
        let json = r#"{"model":"m","prompt":[1,2],"max_tokens":5,"temperature":0.5,"top_k":-1,
            "stop":"x","logprobs":2,"logit_bias":{"7":-1.5},"seed":3,
            "echo":true,"output_kind":"final_only","user":"u",
            "n":2,"best_of":2,"use_beam_search":false,"stream":true,"deadline_ms":50,
            "min_p":null}"#;
        let r = request(json).unwrap();
        assert_eq!(r.input, Input::Tokens(vec![TokenId(1), TokenId(2)]));
        assert_eq!((r.params.max_tokens, r.params.temperature), (Some(5), Some(0.5)));
        assert_eq!((r.params.top_k, r.params.min_p, r.params.seed), (Some(-1), None, Some(3)));
        assert_eq!((r.params.stop, r.params.logprobs), (vec!["x".to_owned()], Some(2)));
        assert_eq!(r.params.logit_bias[&TokenId(7)], -1.5);
        assert!(r.final_only);
        assert_eq!((r.echo, r.deadline), (true, Some(Duration::from_millis(50))));
    }

    #[test]
    fn a_chat_request() {
        let json = r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":5,
            "max_completion_tokens":9,"logprobs":true,"top_logprobs":4,
            "response_format":{"type":"text"},"chat_template_kwargs":{"a":1}}"#;
        let r = request(json).unwrap();
        assert_eq!((r.params.max_tokens, r.params.logprobs), (Some(9), Some(4)));
        let Input::Chat(chat) = r.input else { panic!("not a chat") };
        assert_eq!(chat.template_kwargs.unwrap()["a"], 1);
        assert!(chat.add_generation_prompt);
    }

    #[test]
    fn what_is_unknown_or_malformed_is_named() {
        let invalid = ErrorKind::InvalidArgument;
        check("[1]", invalid, "request");
        check("{}", invalid, "prompt");
        check(r#"{"prompt":"a","messages":[]}"#, invalid, "prompt");
        check(r#"{"prompt":["a","b"]}"#, invalid, "prompt");
        check(r#"{"prompt":[1,-2]}"#, invalid, "prompt");
        check(r#"{"prompt":"a","max_token":3}"#, invalid, "max_token");
        check(r#"{"prompt":"a","max_tokens":"3"}"#, invalid, "max_tokens");
        check(r#"{"prompt":"a","max_tokens":-3}"#, invalid, "max_tokens");
        check(r#"{"prompt":"a","temperature":"hot"}"#, invalid, "temperature");
        check(r#"{"prompt":"a","logit_bias":{"x":1}}"#, invalid, "logit_bias");
        check(r#"{"prompt":"a","tools":[]}"#, invalid, "tools");
        check(r#"{"messages":[],"logprobs":5}"#, invalid, "logprobs");
        check(r#"{"messages":[],"top_logprobs":5}"#, invalid, "top_logprobs");
        check(r#"{"messages":"hi"}"#, invalid, "messages");
    }

    #[test]
    fn what_this_version_lacks_is_unsupported() {
        let unsupported = ErrorKind::Unsupported;
        check(r#"{"prompt":"a","best_of":3}"#, unsupported, "best_of");
        check(r#"{"prompt":"a","use_beam_search":true}"#, unsupported, "use_beam_search");
        check(r#"{"prompt":"a","length_penalty":2}"#, unsupported, "length_penalty");
        check(r#"{"prompt":"a","guided_json":{}}"#, unsupported, "guided_json");
        check(r#"{"prompt":"a","structured_outputs":{}}"#, unsupported, "structured_outputs");
        let format = r#"{"prompt":"a","response_format":{"type":"json_object"}}"#;
        check(format, unsupported, "response_format");
        check(r#"{"messages":[],"add_special_tokens":true}"#, unsupported, "add_special_tokens");
    }
}
