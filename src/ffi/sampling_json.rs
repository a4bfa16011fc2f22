//! Sampling parameters by their JSON names, which are vLLM's.

use std::collections::BTreeMap;

use serde_json::Value;

use super::json;
use crate::error::{Error, Result};
use crate::ids::TokenId;
use crate::request::SamplingParams;

/// Sets the parameter `key`, if it is one; null leaves it unset.
pub(super) fn set(params: &mut SamplingParams, key: &str, value: &Value) -> Result<bool> {
    let known = set_number(params, key, value)? || set_list_or_flag(params, key, value)?;
    Ok(known)
}

fn set_number(p: &mut SamplingParams, key: &str, value: &Value) -> Result<bool> {
    let unset = value.is_null();
    let float = || (!unset).then(|| json::float(value, key)).transpose();
    let count = || (!unset).then(|| json::integer::<u32>(value, key)).transpose();
    match key {
        "n" => p.n = count()?,
        "presence_penalty" => p.presence_penalty = float()?,
        "frequency_penalty" => p.frequency_penalty = float()?,
        "repetition_penalty" => p.repetition_penalty = float()?,
        "temperature" => p.temperature = float()?,
        "top_p" => p.top_p = float()?,
        "min_p" => p.min_p = float()?,
        "top_k" => p.top_k = (!unset).then(|| json::integer(value, key)).transpose()?,
        "seed" => p.seed = (!unset).then(|| json::integer(value, key)).transpose()?,
        "max_tokens" | "max_completion_tokens" => p.max_tokens = count()?,
        "min_tokens" => p.min_tokens = count()?,
        "logprobs" => p.logprobs = logprobs(value, key)?,
        "prompt_logprobs" => p.prompt_logprobs = logprobs(value, key)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn set_list_or_flag(p: &mut SamplingParams, key: &str, value: &Value) -> Result<bool> {
    let unset = value.is_null();
    let flag = |default| if unset { Ok(default) } else { json::boolean(value, key) };
    let ids = || if unset { Ok(Vec::new()) } else { token_ids(value, key) };
    let strings = || if unset { Ok(Vec::new()) } else { json::strings(value, key) };
    match key {
        "stop" => p.stop = strings()?,
        "stop_token_ids" => p.stop_token_ids = ids()?,
        "bad_words" => p.bad_words = strings()?,
        "allowed_token_ids" => p.allowed_token_ids = (!unset).then(ids).transpose()?,
        "logit_bias" => p.logit_bias = if unset { BTreeMap::new() } else { biases(value, key)? },
        "include_stop_str_in_output" => p.include_stop_str_in_output = flag(false)?,
        "ignore_eos" => p.ignore_eos = flag(false)?,
        "detokenize" => p.detokenize = Some(flag(true)?),
        "skip_special_tokens" => p.skip_special_tokens = Some(flag(true)?),
        "spaces_between_special_tokens" => p.spaces_between_special_tokens = Some(flag(true)?),
        _ => return Ok(false),
    }
    Ok(true)
}

/// Token ids of a JSON array.
pub(super) fn token_ids(value: &Value, key: &str) -> Result<Vec<TokenId>> {
    let items = json::array(value, key)?;
    let mut ids = Vec::new();
    ids.try_reserve_exact(items.len())?;
    for (index, item) in items.iter().enumerate() {
        let id = json::integer(item, key).map_err(|_| {
            let message = format!("{key}[{index}]: must be a token id, got {item}");
            Error::invalid(key, message).with("index", index)
        })?;
        ids.push(TokenId(id));
    }
    Ok(ids)
}

/// A number of logprobs; `true` is 1, `false` none.
fn logprobs(value: &Value, key: &str) -> Result<Option<i32>> {
    match value {
        Value::Null | Value::Bool(false) => Ok(None),
        Value::Bool(true) => Ok(Some(1)),
        _ => json::integer(value, key).map(Some),
    }
}

/// `{"token id": bias}`: JSON has only strings for keys.
fn biases(value: &Value, key: &str) -> Result<BTreeMap<TokenId, f32>> {
    let mut biases = BTreeMap::new();
    for (name, bias) in json::map(value, key)? {
        let id: u32 = name.trim().parse().map_err(|_| {
            let message = format!("{key}: keys must be token ids, got {name:?}");
            Error::invalid(key, message).with("value", name.as_str())
        })?;
        biases.insert(TokenId(id), json::float(bias, key)?);
    }
    Ok(biases)
}
