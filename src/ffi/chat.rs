//! Rendering a chat to the prompt that the model sees.

use serde_json::Value;
use std::ffi::c_char;

use super::boundary::boundary;
use super::bytes::{self, VrustBytes};
use super::error::VrustError;
use super::input::{Out, optional_text, text};
use super::json;
use super::status::{VRUST_OK, VrustStatus};
use super::tokenizer::{TOKENIZERS, VrustTokenizer};
use crate::chat::ChatTemplate;
use crate::error::{Error, Result};
use crate::request::ChatInput;

/// `vrust_chat_render`: end with the opening of an assistant turn.
pub const VRUST_CHAT_GENERATION_PROMPT: u32 = 1;
/// `vrust_chat_render`: leave the last message open, so that the model goes on with it.
pub const VRUST_CHAT_CONTINUE_FINAL: u32 = 2;

/// Renders a chat by the checkpoint's template, as a chat request does. `messages_json`: an array
/// of OpenAI messages; `tools_json` (may be absent): an array of tools; `kwargs_json` (may be
/// absent): an object of further variables of the template. `flags`: VRUST_CHAT_*. The caller
/// destroys the bytes.
///
/// Any thread. VRUST_ERROR_TEMPLATE when there is no template or it raises an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_chat_render(
    tokenizer: *const VrustTokenizer,
    messages_json: *const c_char,
    messages_json_len: usize,
    tools_json: *const c_char,
    tools_json_len: usize,
    kwargs_json: *const c_char,
    kwargs_json_len: usize,
    flags: u32,
    text_out: *mut *mut VrustBytes,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: each JSON pointer is NULL or readable for its length; `text_out` and `err` are NULL
    // or writable (header, "Pointers").
    unsafe {
        boundary(err, || {
            let object = TOKENIZERS.get(tokenizer, "tokenizer")?;
            let out = Out::new(text_out, "text_out")?;
            let chat = input(
                text(messages_json, messages_json_len, "messages_json")?,
                optional_text(tools_json, tools_json_len, "tools_json")?,
                optional_text(kwargs_json, kwargs_json_len, "kwargs_json")?,
                flags,
            )?;
            let template = object.template.clone()?.ok_or_else(ChatTemplate::missing)?;
            out.write(bytes::export(template.render(&chat)?)?);
            Ok(VRUST_OK)
        })
    }
}

fn input(
    messages: &str,
    tools: Option<&str>,
    kwargs: Option<&str>,
    flags: u32,
) -> Result<ChatInput> {
    let all = VRUST_CHAT_GENERATION_PROMPT | VRUST_CHAT_CONTINUE_FINAL;
    if flags & !all != 0 {
        let message = format!("flags: unknown bits {:#x}", flags & !all);
        return Err(Error::invalid("flags", message).with("limit", all).with("value", flags));
    }
    let messages = json::parse(messages, "messages_json")?;
    json::array(&messages, "messages_json")?;
    let tools = tools.map(|t| json::parse(t, "tools_json")).transpose()?;
    let tools = tools.filter(|t| !t.is_null());
    if let Some(tools) = &tools {
        json::array(tools, "tools_json")?;
    }
    Ok(ChatInput {
        messages,
        tools,
        template_kwargs: kwargs
            .map(|k| json::object(k, "kwargs_json").map(Value::Object))
            .transpose()?,
        add_generation_prompt: flags & VRUST_CHAT_GENERATION_PROMPT != 0,
        continue_final_message: flags & VRUST_CHAT_CONTINUE_FINAL != 0,
    })
}
