//! `VrustRequest`, and submitting and aborting requests.

use std::ffi::c_char;
use std::ffi::c_void;
use std::time::Duration;

use serde_json::Value;

use super::boundary::boundary;
use super::engine::{ENGINES, VrustEngine};
use super::error::VrustError;
use super::input::{self, Out, Versioned, optional_text, owned, slice, text, token_ids, zeroed};
use super::json;
use super::queue::{self, VrustQueue};
use super::request_json;
use super::status::{VRUST_OK, VrustStatus};
use super::version::VRUST_ABI_VERSION;
use crate::error::{Error, Result};
use crate::ids::RequestId;
use crate::request::{Input, Request, SamplingParams};

/// `input_kind`: text, which the tokenizer encodes.
pub const VRUST_INPUT_TEXT: u32 = 0;
/// `input_kind`: token ids, an array of uint32_t; `input_len` counts ids.
pub const VRUST_INPUT_TOKENS: u32 = 1;
/// `input_kind`: JSON, an array of OpenAI chat messages, or an object with `messages` and
/// optionally `tools`, `chat_template_kwargs`, `add_generation_prompt`, `continue_final_message`.
pub const VRUST_INPUT_CHAT_JSON: u32 = 2;

/// `present`: `temperature` is set.
pub const VRUST_REQUEST_HAS_TEMPERATURE: u64 = 1;
/// `present`: `top_p` is set.
pub const VRUST_REQUEST_HAS_TOP_P: u64 = 2;
/// `present`: `top_k` is set.
pub const VRUST_REQUEST_HAS_TOP_K: u64 = 4;
/// `present`: `min_p` is set.
pub const VRUST_REQUEST_HAS_MIN_P: u64 = 8;
/// `present`: `repetition_penalty` is set.
pub const VRUST_REQUEST_HAS_REPETITION_PENALTY: u64 = 16;
/// `present`: `frequency_penalty` is set.
pub const VRUST_REQUEST_HAS_FREQUENCY_PENALTY: u64 = 32;
/// `present`: `presence_penalty` is set.
pub const VRUST_REQUEST_HAS_PRESENCE_PENALTY: u64 = 64;
/// `present`: `n` is set.
pub const VRUST_REQUEST_HAS_N: u64 = 128;
/// `present`: `max_tokens` is set.
pub const VRUST_REQUEST_HAS_MAX_TOKENS: u64 = 256;
/// `present`: `min_tokens` is set.
pub const VRUST_REQUEST_HAS_MIN_TOKENS: u64 = 512;
/// `present`: `seed` is set.
pub const VRUST_REQUEST_HAS_SEED: u64 = 1024;
/// `present`: `logprobs` is set.
pub const VRUST_REQUEST_HAS_LOGPROBS: u64 = 2048;
/// `present`: `prompt_logprobs` is set.
pub const VRUST_REQUEST_HAS_PROMPT_LOGPROBS: u64 = 4096;

/// `flags`: put the prompt's text and token ids before the first choice's output.
pub const VRUST_REQUEST_ECHO: u32 = 1;
/// `flags`: go on past end-of-text tokens.
pub const VRUST_REQUEST_IGNORE_EOS: u32 = 2;
/// `flags`: keep the stop string in the output.
pub const VRUST_REQUEST_INCLUDE_STOP: u32 = 4;
/// `flags`: do not add the model's special tokens (bos) to a text prompt.
pub const VRUST_REQUEST_NO_SPECIAL_TOKENS: u32 = 8;
/// `flags`: keep special tokens in the output's text.
pub const VRUST_REQUEST_KEEP_SPECIAL_TOKENS: u32 = 16;
/// `flags`: no space between adjacent special tokens that stay in the text.
pub const VRUST_REQUEST_NO_SPECIAL_SPACES: u32 = 32;
/// `flags`: token ids only, no text.
pub const VRUST_REQUEST_NO_TEXT: u32 = 64;

/// A request. Fill it with `vrust_request_options_init`, then set `input` and what else should
/// differ. An optional number counts only when its bit of `present` is set; otherwise the model's
/// generation_config.json decides where it can, and the default given here where it does not.
/// Everything is copied before `vrust_submit` returns.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct VrustRequest {
    /// Bytes of this struct as the program knows it. Set by the init function.
    pub struct_size: u32,
    /// VRUST_ABI_VERSION of the program's header. Set by the init function.
    pub abi_version: u32,
    /// VRUST_REQUEST_HAS_* bits of the optional numbers that are set.
    pub present: u64,
    /// Echoed in every event of the request. May arrive before `vrust_submit` returns its id.
    pub user_data: u64,
    /// Where its events go, a queue of the same engine; NULL: the engine's default queue.
    pub queue: *const VrustQueue,
    /// What to continue; `input_kind` says what it is.
    pub input: *const c_void,
    /// Bytes of `input`, or its number of ids.
    pub input_len: usize,
    /// VRUST_INPUT_TEXT, VRUST_INPUT_TOKENS or VRUST_INPUT_CHAT_JSON.
    pub input_kind: u32,
    /// VRUST_REQUEST_* flags.
    pub flags: u32,
    /// Stop strings: a JSON string or array of up to 4 strings.
    pub stop_json: *const c_char,
    /// Bytes of `stop_json`.
    pub stop_json_len: usize,
    /// Token ids that end a choice.
    pub stop_token_ids: *const u32,
    /// Number of `stop_token_ids`.
    pub num_stop_token_ids: usize,
    /// Only requests with an equal salt share cached blocks; 1 to 128 bytes, or absent.
    pub cache_salt: *const c_char,
    /// Bytes of `cache_salt`.
    pub cache_salt_len: usize,
    /// JSON object of any further field that `vrust_submit_json` knows, such as logit_bias,
    /// allowed_token_ids or bad_words. Applied last.
    pub extra_json: *const c_char,
    /// Bytes of `extra_json`.
    pub extra_json_len: usize,
    /// The request ends with VRUST_FINISH_DEADLINE this long after it was submitted; 0: never.
    pub deadline_ms: u64,
    /// Seed of the noise; choice i uses seed + i; -1 is unset. Drawn from the engine's seed.
    pub seed: i64,
    /// Lower runs earlier under VRUST_SCHEDULING_PRIORITY; else it must be 0.
    pub priority: i32,
    /// Choices to generate, 1 to 16384. 1.
    pub n: u32,
    /// Most tokens to generate. 16 for text and tokens, the rest of the context for chats.
    pub max_tokens: u32,
    /// End-of-text and stop tokens cannot be chosen before this many tokens. 0.
    pub min_tokens: u32,
    /// 0 to 2; below 1e-5 greedy. 1.
    pub temperature: f32,
    /// Above 0, up to 1. 1.
    pub top_p: f32,
    /// 0 to 1. 0.
    pub min_p: f32,
    /// Above 0; divides positive and multiplies negative logits of tokens seen. 1.
    pub repetition_penalty: f32,
    /// -2 to 2; subtracted per occurrence among generated tokens. 0.
    pub frequency_penalty: f32,
    /// -2 to 2; subtracted once from tokens already generated. 0.
    pub presence_penalty: f32,
    /// 0 or -1: off. Off.
    pub top_k: i32,
    /// Logprobs of each token and of this many most likely ones; -1: the whole vocabulary. Off.
    pub logprobs: i32,
    /// The same for each token of the prompt. Off.
    pub prompt_logprobs: i32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: repr(C) of numbers and pointers, whose sizes add up without padding (checked below).
unsafe impl Versioned for VrustRequest {
    const NAME: &'static str = "VrustRequest";
    const MIN_SIZE: usize = 192;

    fn defaults() -> Self {
        // SAFETY: numbers and pointers may be zero.
        let zero: Self = unsafe { zeroed() };
        Self {
            struct_size: size_of::<Self>() as u32,
            abi_version: VRUST_ABI_VERSION,
            seed: -1,
            n: 1,
            max_tokens: 16,
            temperature: 1.0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            ..zero
        }
    }
}

const _: () = assert!(size_of::<VrustRequest>() == VrustRequest::MIN_SIZE);

/// Fills `request`, `size` bytes (sizeof *request), with defaults and no optional number set.
/// NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_request_options_init(request: *mut VrustRequest, size: usize) {
    // SAFETY: `request` is NULL or `size` bytes are writable (header, "Structs").
    unsafe { input::init(request, size) };
}

/// Submits a request and writes its id, which is never 0 and never used again by this engine.
/// Copies everything, and never waits for the model: text is tokenized on the library's threads,
/// and a failure of that is the request's VRUST_EVENT_ERROR. Works while the engine loads.
/// From now on the request owes exactly one event with VRUST_EVENT_LAST.
///
/// Any thread. VRUST_ERROR_INVALID_ARGUMENT names the field; VRUST_ERROR_UNSUPPORTED,
/// VRUST_ERROR_CONTEXT_LENGTH, VRUST_ERROR_QUEUE_FULL (retryable), VRUST_ERROR_SHUTTING_DOWN,
/// VRUST_ERROR_ENGINE_FAILED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_submit(
    engine: *const VrustEngine,
    request: *const VrustRequest,
    id_out: *mut u64,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `id_out` and `err` are NULL or writable, `request` is NULL or readable, and so are
    // the pointers in it (header, "Pointers", "Structs").
    unsafe {
        boundary(err, || {
            let engine = ENGINES.get(engine, "engine")?;
            let id = Out::new(id_out, "id_out")?;
            let c = input::read(request, "request")?;
            let queue = queue::of_request(&engine, c.queue)?;
            id.write(engine.submit(convert(&c)?, &queue)?.0);
            Ok(VRUST_OK)
        })
    }
}

/// The same from JSON: the body of an OpenAI /v1/completions (`prompt`: a string or token ids) or
/// /v1/chat/completions (`messages`) request, with vLLM's further fields, `deadline_ms`, and
/// `output_kind` ("delta", the default; "final_only": each choice's output comes in one delta, when
/// it ends; an error leaves none).
/// Fields that concern only a server (model, user, stream, stream_options, metadata, store ..)
/// are passed over; what this version lacks (best_of, beam search, structured output ..) is
/// VRUST_ERROR_UNSUPPORTED unless its value asks for nothing; any other unknown field is
/// VRUST_ERROR_INVALID_ARGUMENT and named. `queue` NULL: the engine's default queue.
///
/// Any thread. Errors as `vrust_submit`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_submit_json(
    engine: *const VrustEngine,
    queue: *const VrustQueue,
    json: *const c_char,
    json_len: usize,
    user_data: u64,
    id_out: *mut u64,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `id_out` and `err` are NULL or writable; `json_len` bytes of `json` are readable
    // (header, "Pointers").
    unsafe {
        boundary(err, || {
            let engine = ENGINES.get(engine, "engine")?;
            let id = Out::new(id_out, "id_out")?;
            let mut request = request_json::request(text(json, json_len, "json")?)?;
            request.user_data = user_data;
            let queue = queue::of_request(&engine, queue)?;
            id.write(engine.submit(request, &queue)?.0);
            Ok(VRUST_OK)
        })
    }
}

/// Ends a request within one step: each unfinished choice gets its VRUST_EVENT_FINISHED with
/// VRUST_FINISH_ABORT. Aborting a request that has ended is VRUST_OK and does nothing.
///
/// Any thread. VRUST_ERROR_NOT_FOUND for an id that this engine never issued.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_abort(
    engine: *const VrustEngine,
    id: u64,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `err` is NULL or writable (header, "Errors").
    unsafe {
        boundary(err, || {
            ENGINES.get(engine, "engine")?.abort(RequestId(id))?;
            Ok(VRUST_OK)
        })
    }
}

/// Aborts every request that has not ended. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_abort_all(
    engine: *const VrustEngine,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `err` is NULL or writable (header, "Errors").
    unsafe {
        boundary(err, || {
            ENGINES.get(engine, "engine")?.abort_all();
            Ok(VRUST_OK)
        })
    }
}

/// The engine's own request from the host's.
///
/// # Safety
/// The pointers in `c` are NULL or readable for their lengths.
unsafe fn convert(c: &VrustRequest) -> Result<Request> {
    check_bits(c)?;
    // SAFETY: as this function's contract.
    let (mut request, salt, extra) = unsafe {
        let mut request = base(c)?;
        set_stops(&mut request.params, c)?;
        let salt = optional_text(c.cache_salt, c.cache_salt_len, "cache_salt")?;
        (request, salt, optional_text(c.extra_json, c.extra_json_len, "extra_json")?)
    };
    request.user_data = c.user_data;
    request.priority = c.priority;
    request.deadline = (c.deadline_ms != 0).then(|| Duration::from_millis(c.deadline_ms));
    request.cache_salt = salt.map(owned).transpose()?;
    set_numbers(&mut request.params, c);
    set_flags(&mut request, c.flags);
    if let Some(extra) = extra {
        request_json::set_fields(&mut request, &json::object(extra, "extra_json")?)?;
    }
    Ok(request)
}

/// A request with its input and nothing else.
///
/// # Safety
/// `c.input` is NULL or readable for `c.input_len`.
unsafe fn base(c: &VrustRequest) -> Result<Request> {
    // SAFETY: as this function's contract.
    unsafe {
        match c.input_kind {
            VRUST_INPUT_TEXT => {
                let text = text(c.input.cast(), c.input_len, "input")?;
                Ok(Request::new(Input::Text(owned(text)?)))
            }
            VRUST_INPUT_TOKENS => {
                let ids = slice(c.input.cast(), c.input_len, "input")?;
                Ok(Request::new(Input::Tokens(token_ids(ids)?)))
            }
            VRUST_INPUT_CHAT_JSON => {
                request_json::chat_input(text(c.input.cast(), c.input_len, "input")?)
            }
            other => {
                let message = format!("input_kind: must be 0 to 2, got {other}");
                Err(Error::invalid("input_kind", message).with("limit", 2).with("value", other))
            }
        }
    }
}

fn check_bits(c: &VrustRequest) -> Result<()> {
    let all = 2 * VRUST_REQUEST_HAS_PROMPT_LOGPROBS - 1;
    if c.present & !all != 0 {
        let message = format!("present: unknown bits {:#x}", c.present & !all);
        return Err(Error::invalid("present", message).with("limit", all).with("value", c.present));
    }
    let all = 2 * VRUST_REQUEST_NO_TEXT - 1;
    if c.flags & !all != 0 {
        let message = format!("flags: unknown bits {:#x}", c.flags & !all);
        return Err(Error::invalid("flags", message).with("limit", all).with("value", c.flags));
    }
    if c.reserved != 0 {
        return Err(Error::invalid("reserved", format!("reserved: must be 0, got {}", c.reserved)));
    }
    Ok(())
}

/// # Safety
/// The stop pointers of `c` are NULL or readable for their lengths.
unsafe fn set_stops(params: &mut SamplingParams, c: &VrustRequest) -> Result<()> {
    // SAFETY: as this function's contract.
    let (stop, ids) = unsafe {
        (
            optional_text(c.stop_json, c.stop_json_len, "stop_json")?,
            slice(c.stop_token_ids, c.num_stop_token_ids, "stop_token_ids")?,
        )
    };
    params.stop_token_ids = token_ids(ids)?;
    if let Some(stop) = stop {
        params.stop = match json::parse(stop, "stop_json")? {
            Value::Null => Vec::new(),
            value => json::strings(&value, "stop_json")?,
        };
    }
    Ok(())
}

fn set_numbers(params: &mut SamplingParams, c: &VrustRequest) {
    let has = |bit: u64| c.present & bit != 0;
    params.temperature = has(VRUST_REQUEST_HAS_TEMPERATURE).then_some(c.temperature);
    params.top_p = has(VRUST_REQUEST_HAS_TOP_P).then_some(c.top_p);
    params.top_k = has(VRUST_REQUEST_HAS_TOP_K).then_some(c.top_k);
    params.min_p = has(VRUST_REQUEST_HAS_MIN_P).then_some(c.min_p);
    let repetition = has(VRUST_REQUEST_HAS_REPETITION_PENALTY);
    params.repetition_penalty = repetition.then_some(c.repetition_penalty);
    let frequency = has(VRUST_REQUEST_HAS_FREQUENCY_PENALTY);
    params.frequency_penalty = frequency.then_some(c.frequency_penalty);
    let presence = has(VRUST_REQUEST_HAS_PRESENCE_PENALTY);
    params.presence_penalty = presence.then_some(c.presence_penalty);
    params.n = has(VRUST_REQUEST_HAS_N).then_some(c.n);
    params.max_tokens = has(VRUST_REQUEST_HAS_MAX_TOKENS).then_some(c.max_tokens);
    params.min_tokens = has(VRUST_REQUEST_HAS_MIN_TOKENS).then_some(c.min_tokens);
    params.seed = has(VRUST_REQUEST_HAS_SEED).then_some(c.seed);
    params.logprobs = has(VRUST_REQUEST_HAS_LOGPROBS).then_some(c.logprobs);
    params.prompt_logprobs = has(VRUST_REQUEST_HAS_PROMPT_LOGPROBS).then_some(c.prompt_logprobs);
}

fn set_flags(request: &mut Request, flags: u32) {
    let has = |bit: u32| flags & bit != 0;
    request.echo = has(VRUST_REQUEST_ECHO);
    request.add_special_tokens = !has(VRUST_REQUEST_NO_SPECIAL_TOKENS);
    let params = &mut request.params;
    params.ignore_eos = has(VRUST_REQUEST_IGNORE_EOS);
    params.include_stop_str_in_output = has(VRUST_REQUEST_INCLUDE_STOP);
    params.skip_special_tokens = has(VRUST_REQUEST_KEEP_SPECIAL_TOKENS).then_some(false);
    params.spaces_between_special_tokens = has(VRUST_REQUEST_NO_SPECIAL_SPACES).then_some(false);
    params.detokenize = has(VRUST_REQUEST_NO_TEXT).then_some(false);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_request(text: &str) -> VrustRequest {
        let input = text.as_ptr().cast();
        VrustRequest { input, input_len: text.len(), ..VrustRequest::defaults() }
    }

    #[test]
    fn defaults_set_nothing() {
        // SAFETY: the pointers are to static strings.
        let request = unsafe { convert(&text_request("hi")) }.unwrap();
        assert_eq!(request, Request::new(Input::Text("hi".to_owned())));
    }

    #[test]
    fn numbers_count_only_when_present() {
        let extra = r#"{"bad_words":["x"],"top_k":3}"#;
        let c = VrustRequest {
            present: VRUST_REQUEST_HAS_TEMPERATURE | VRUST_REQUEST_HAS_N,
            temperature: 0.5,
            top_p: 0.1,
            n: 2,
            flags: VRUST_REQUEST_NO_TEXT | VRUST_REQUEST_IGNORE_EOS,
            stop_json: b"[\"a\"]".as_ptr().cast(),
            stop_json_len: 5,
            extra_json: extra.as_ptr().cast(),
            extra_json_len: extra.len(),
            ..text_request("hi")
        };
        // SAFETY: the pointers are to static strings.
        let params = unsafe { convert(&c) }.unwrap().params;
        assert_eq!((params.temperature, params.top_p), (Some(0.5), None));
        assert_eq!((params.n, params.top_k), (Some(2), Some(3)));
        assert_eq!((params.detokenize, params.ignore_eos), (Some(false), true));
        assert_eq!((params.stop.len(), params.bad_words.len()), (1, 1));
    }

    #[test]
    fn bad_structs_name_their_field() {
        let cases = [
            ("present", VrustRequest { present: 1 << 13, ..text_request("a") }),
            ("flags", VrustRequest { flags: 128, ..text_request("a") }),
            ("input_kind", VrustRequest { input_kind: 3, ..text_request("a") }),
            ("reserved", VrustRequest { reserved: 1, ..text_request("a") }),
            ("input", VrustRequest { input_len: 1, ..VrustRequest::defaults() }),
            ("input", text_request("x[").to_chat()),
        ];
        for (field, c) in cases {
            // SAFETY: the pointers are to static strings or NULL.
            let error = unsafe { convert(&c) }.unwrap_err();
            assert_eq!(error.detail()["field"], field, "{error}");
        }
    }

    impl VrustRequest {
        fn to_chat(self) -> Self {
            Self { input_kind: VRUST_INPUT_CHAT_JSON, ..self }
        }
    }
}
