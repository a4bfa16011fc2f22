//! The types that a JSON schema allows a value to have.

use serde_json::Value;

use super::json::{JsonScanner, Scan, push_checked, push_escaped};
use super::python_literal::PythonLiteral;

/// Deepest `anyOf` and its like that is looked into.
const MAX_DEPTH: usize = 8;

/// A set of types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Types(u8);

impl Types {
    const NONE: Self = Self(0);
    pub(super) const STRING: Self = Self(1);
    const INTEGER: Self = Self(2);
    /// Integers as well.
    const NUMBER: Self = Self(2 | 4);
    const BOOLEAN: Self = Self(8);
    const NULL: Self = Self(16);
    const OBJECT: Self = Self(32);
    const ARRAY: Self = Self(64);

    /// The types of the member `key` of an object with this schema. A member that the schema says
    /// nothing of is a string.
    pub(super) fn of(schema: &Value, key: &str) -> Self {
        match schema.get("properties").and_then(|members| members.get(key)) {
            Some(member) => match Self::of_schema(member, MAX_DEPTH) {
                Self::NONE => Self::STRING,
                types => types,
            },
            None => Self::STRING,
        }
    }

    /// Whether any text is a value.
    pub(super) fn is_string(self) -> bool {
        self == Self::STRING
    }

    /// The JSON of a value written as text: JSON or Python of an allowed type; else a string, if
    /// that is allowed; else whatever it is.
    pub(super) fn json(self, text: &str) -> String {
        let trimmed = text.trim();
        let value = json_value(trimmed).or_else(|| PythonLiteral::convert(trimmed));
        match value {
            Some(json) if self.allows(Self::of_json(&json)) => json,
            Some(json) if !self.allows(Self::STRING) => json,
            _ => {
                let mut json = "\"".to_owned();
                text.chars().for_each(|c| push_escaped(&mut json, c));
                json.push('"');
                json
            }
        }
    }

    fn allows(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn of_schema(schema: &Value, depth: usize) -> Self {
        let Some(schema) = schema.as_object() else { return Self::NONE };
        if depth == 0 {
            return Self::NONE;
        }
        let mut types = Self::NONE;
        match schema.get("type") {
            Some(Value::String(name)) => types = Self::named(name),
            Some(Value::Array(names)) => {
                names.iter().filter_map(Value::as_str).for_each(|n| types.0 |= Self::named(n).0);
            }
            _ => {}
        }
        if types != Self::NONE {
            return types;
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            for one in schema.get(key).and_then(Value::as_array).into_iter().flatten() {
                types.0 |= Self::of_schema(one, depth - 1).0;
            }
        }
        let values = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
        for value in values.chain(schema.get("const")) {
            types.0 |= Self::of_json(&value.to_string()).0;
        }
        types
    }

    fn named(name: &str) -> Self {
        match name {
            "string" => Self::STRING,
            "integer" => Self::INTEGER,
            "number" => Self::NUMBER,
            "boolean" => Self::BOOLEAN,
            "null" => Self::NULL,
            "object" => Self::OBJECT,
            "array" => Self::ARRAY,
            _ => Self::NONE,
        }
    }

    /// The type of a valid JSON text.
    fn of_json(json: &str) -> Self {
        match json.as_bytes().first() {
            Some(b'"') => Self::STRING,
            Some(b't' | b'f') => Self::BOOLEAN,
            Some(b'n') => Self::NULL,
            Some(b'{') => Self::OBJECT,
            Some(b'[') => Self::ARRAY,
            _ if json.contains(['.', 'e', 'E']) => Self::NUMBER,
            _ => Self::INTEGER,
        }
    }
}

/// `text` if it is one JSON value, with line breaks in strings escaped.
fn json_value(text: &str) -> Option<String> {
    let (mut scanner, mut json) = (JsonScanner::new(), String::new());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let in_string = scanner.in_string();
        let scan = scanner.step(c);
        push_checked(&mut json, c, in_string);
        match scan {
            Scan::More => {}
            Scan::Done => return chars.next().is_none().then_some(json),
            Scan::EndBefore | Scan::Bad => return None,
        }
    }
    // A number ends where its text does.
    (scanner.step(' ') == Scan::EndBefore).then_some(json)
}
