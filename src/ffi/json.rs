//! Strict reading of the host's JSON: unknown keys and wrong types are errors that name the key.

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};

/// Longest JSON text that is parsed. serde_json bounds the depth (128).
const MAX_JSON_BYTES: usize = 16 << 20;
/// Bytes of values that a byte of JSON can become: `1,` is a 32-byte value.
const GROWTH: usize = 16;

/// A key that this version knows of but has no use for, and the value that asks for nothing.
pub(super) type Neutral = (&'static str, Ask);

/// The value by which a key asks for nothing; null always does.
#[derive(Clone, Copy)]
pub(super) enum Ask {
    /// Only null.
    Nothing,
    /// `false`.
    False,
    /// `true`.
    True,
    /// This number.
    Number(f64),
    /// This string.
    Text(&'static str),
    /// An object whose `type` is this.
    Type(&'static str),
    /// Whatever it says changes nothing here.
    Anything,
}

/// Parses an object.
pub(super) fn object(text: &str, name: &str) -> Result<Map<String, Value>> {
    match parse(text, name)? {
        Value::Object(map) => Ok(map),
        other => Err(wrong(name, "an object", &other)),
    }
}

/// Parses any value.
pub(super) fn parse(text: &str, name: &str) -> Result<Value> {
    if text.len() > MAX_JSON_BYTES {
        let message = format!("{name}: at most {MAX_JSON_BYTES} bytes, got {}", text.len());
        let error = Error::invalid(name, message);
        return Err(error.with("limit", MAX_JSON_BYTES).with("value", text.len()));
    }
    // serde_json cannot fail softly: see first whether there is memory for what comes of it.
    Vec::<u8>::new().try_reserve_exact(GROWTH * text.len())?;
    serde_json::from_str(text)
        .map_err(|e| Error::invalid(name, format!("{name}: not valid JSON: {e}")))
}

/// A key that nothing above knew: fine if it asks for nothing, UNSUPPORTED if it asks for
/// something this version lacks, INVALID_ARGUMENT if it is unknown.
pub(super) fn check_neutral(known: &[Neutral], key: &str, value: &Value) -> Result<()> {
    let Some((_, ask)) = known.iter().find(|(name, _)| *name == key) else {
        return Err(Error::invalid(key, format!("{key}: unknown field")));
    };
    let asks_nothing = match ask {
        Ask::Nothing => false,
        Ask::False => value == false,
        Ask::True => value == true,
        Ask::Number(number) => value.as_f64() == Some(*number),
        Ask::Text(text) => value == text,
        Ask::Type(name) => value.get("type").is_some_and(|t| t == name),
        Ask::Anything => true,
    };
    if asks_nothing || value.is_null() { Ok(()) } else { Err(unsupported(key, value)) }
}

/// This version cannot do what `key` asks for.
pub(super) fn unsupported(key: &str, value: &Value) -> Error {
    let message = format!("{key}: this version does not support {}", brief(value));
    Error::new(ErrorKind::Unsupported, message).with("field", key)
}

pub(super) fn boolean(value: &Value, key: &str) -> Result<bool> {
    value.as_bool().ok_or_else(|| wrong(key, "true or false", value))
}

pub(super) fn string<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value.as_str().ok_or_else(|| wrong(key, "a string", value))
}

pub(super) fn array<'a>(value: &'a Value, key: &str) -> Result<&'a [Value]> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| wrong(key, "an array", value))
}

pub(super) fn map<'a>(value: &'a Value, key: &str) -> Result<&'a Map<String, Value>> {
    value.as_object().ok_or_else(|| wrong(key, "an object", value))
}

pub(super) fn float(value: &Value, key: &str) -> Result<f32> {
    value.as_f64().map(|v| v as f32).ok_or_else(|| wrong(key, "a number", value))
}

pub(super) fn double(value: &Value, key: &str) -> Result<f64> {
    value.as_f64().ok_or_else(|| wrong(key, "a number", value))
}

/// A whole number of the wanted type; `3.0` is one.
pub(super) fn integer<T: TryFrom<i128>>(value: &Value, key: &str) -> Result<T> {
    let whole = |v: f64| (v.fract() == 0.0 && v.abs() < 9e15).then_some(v as i128);
    let number = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
    let number = number.or_else(|| value.as_f64().and_then(whole));
    let in_range = number.and_then(|n| T::try_from(n).ok());
    in_range.ok_or_else(|| wrong(key, "an integer within range", value))
}

/// A string, or an array of strings.
pub(super) fn strings(value: &Value, key: &str) -> Result<Vec<String>> {
    if let Some(one) = value.as_str() {
        return Ok(vec![one.to_owned()]);
    }
    array(value, key)?.iter().map(|v| Ok(string(v, key)?.to_owned())).collect()
}

/// `key` has a value of the wrong type or range.
pub(super) fn wrong(key: &str, expected: &str, value: &Value) -> Error {
    Error::invalid(key, format!("{key}: must be {expected}, got {}", brief(value)))
}

/// A value as it can stand in a message.
fn brief(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) if text.chars().count() > 40 => {
            format!("a string of {} bytes", text.len())
        }
        other => other.to_string(),
    }
}
