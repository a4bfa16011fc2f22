//! What templates written for Python's Jinja2 take for granted: Python's spelling of values,
//! `tojson` as `json.dumps` writes it, methods of strings and dicts, a clock.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

/// Deepest nesting of a value that is written out.
const MAX_DEPTH: usize = 128;

/// Adds all of it to `environment`.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out, state, value| {
        match value.as_str() {
            Some(text) => out.write_str(text),
            None => out.write_str(&to_str(state, value)?),
        }
        .map_err(Error::from)
    });
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |state: &State, value: &Value| to_str(state, value));
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: &str| -> Result<String, Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        strftime(format, now)
    });
}

/// The source without `{% generation %}` tags, which mark the assistant's text for training and
/// are unknown to minijinja. Blocks that are always taken keep lines and whitespace control.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        match tag.trim_matches(['{', '}', '%', '-', '+']).trim() {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Python's `str(value)`.
fn to_str(state: &State, value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => {
            let mut out = String::new();
            repr(state, value, &mut out, 0)?;
            Ok(out)
        }
    }
}

/// Python's `repr(value)`; undefined is nothing, as Jinja prints it.
fn repr(state: &State, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    check_depth(depth)?;
    // A shared value may be reached along many paths, so each visit is paid for.
    state.consume_fuel(1 + value.as_str().map_or(0, |text| text.len() as u64 / 64))?;
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::String => repr_str(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.push(open);
            let mut count = 0;
            for item in value.try_iter()? {
                out.push_str(if count > 0 { ", " } else { "" });
                repr(state, &item, out, depth + 1)?;
                count += 1;
            }
            out.push_str(if value.is_tuple() && count == 1 { "," } else { "" });
            out.push(close);
        }
        // Macros, namespaces and loops are objects too, but have no text that anyone relies on.
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(state, &key, out, depth + 1)?;
                out.push_str(": ");
                repr(state, &value.get_item(&key)?, out, depth + 1)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// A string as Python quotes it: in single quotes unless only those occur inside.
fn repr_str(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || (0x7f..0xa0).contains(&(c as u32)) => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// `json.dumps(value, ensure_ascii=False, indent=..., separators=..., sort_keys=...)`, which is
/// what transformers makes of `tojson`: keys in order, nothing escaped for HTML.
fn tojson(
    state: &State,
    value: &Value,
    indent: Option<Value>,
    kw: Kwargs,
) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => kw.get::<Option<Value>>("indent")?,
    };
    let indent = match indent {
        None => None,
        Some(value) if value.is_none() || value.is_undefined() => None,
        Some(value) => match value.as_str() {
            Some(text) => Some(text.to_owned()),
            // More than anyone indents by, and no way to ask for gigabytes.
            None => Some(" ".repeat(usize::try_from(value)?.min(64))),
        },
    };
    let separators: Option<Vec<String>> = kw.get("separators")?;
    let (comma, colon) = match separators.as_deref() {
        Some([comma, colon]) => (comma.clone(), colon.clone()),
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "separators is a pair of strings"));
        }
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let sort_keys = kw.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let _ensure_ascii: Option<bool> = kw.get("ensure_ascii")?;
    kw.assert_all_used()?;
    let mut json = Json { state, out: String::new(), indent, comma, colon, sort_keys, charged: 0 };
    json.value(value, 0)?;
    Ok(json.out)
}

/// A JSON text being written.
struct Json<'a, 'vm, 'env> {
    state: &'a State<'vm, 'env>,
    out: String,
    indent: Option<String>,
    comma: String,
    colon: String,
    sort_keys: bool,
    /// Bytes of `out` that the template's budget has paid for.
    charged: usize,
}

impl Json<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        check_depth(depth)?;
        self.charge()?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&value.to_string()),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.block('[', ']', depth, &items, |json, item| json.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.block('{', '}', depth, &keys, |json, key| {
                    json.string(&key.to_string());
                    json.out.push_str(&json.colon.clone());
                    json.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            kind => {
                let message = format!("tojson: a value of type {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn block(
        &mut self,
        open: char,
        close: char,
        depth: usize,
        items: &[Value],
        mut write_item: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.comma.clone());
            }
            self.new_line(depth + 1);
            write_item(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20 => {
                    // Writing to a String cannot fail.
                    let _ = write!(self.out, "\\u{:04x}", c as u32);
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    /// Pays for what was written since: a shared value may be reached along many paths.
    fn charge(&mut self) -> Result<(), Error> {
        let units = 1 + (self.out.len() - self.charged) / 64;
        self.charged = self.out.len();
        self.state.consume_fuel(units as u64)
    }
}

fn check_depth(depth: usize) -> Result<(), Error> {
    if depth <= MAX_DEPTH {
        return Ok(());
    }
    let message = format!("a value is nested deeper than the limit of {MAX_DEPTH}");
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// C's `strftime` for `seconds` since 1970, in UTC, for the directives that templates use.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let (days, time) = ((seconds / 86_400) as i64, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let weekday = WEEKDAYS[(days + 4).rem_euclid(7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = chars.next();
        }
        let number = |n: u64| if unpadded { n.to_string() } else { format!("{n:02}") };
        match directive {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&number(year.rem_euclid(100) as u64)),
            Some('m') => out.push_str(&number(month)),
            Some('d') => out.push_str(&number(day)),
            Some('e') => out.push_str(&format!("{day:2}")),
            Some('H') => out.push_str(&number(hour)),
            Some('I') => out.push_str(&number((hour + 11) % 12 + 1)),
            Some('M') => out.push_str(&number(minute)),
            Some('S') => out.push_str(&number(second)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('j') => {
                let of_year = (days - days_of(year, 1, 1) + 1) as u64;
                out.push_str(&if unpadded { of_year.to_string() } else { format!("{of_year:03}") });
            }
            Some('F') => out.push_str(&format!("{year}-{month:02}-{day:02}")),
            Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('Z') => out.push_str("UTC"),
            Some('z') => out.push_str("+0000"),
            Some('s') => out.push_str(&seconds.to_string()),
            Some('%') => out.push('%'),
            other => {
                let name = other.map_or(String::new(), String::from);
                let message = format!("strftime_now does not know the directive %{name}");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
    }
    Ok(out)
}

/// Year, month and day of a day counted from 1970-01-01.
fn civil(days: i64) -> (i64, u64, u64) {
    let mut year = 1970 + days / 366;
    while days_of(year + 1, 1, 1) <= days {
        year += 1;
    }
    let month = (1..=12).rev().find(|&month| days_of(year, month, 1) <= days).unwrap_or(1);
    (year, month, (days - days_of(year, month, 1) + 1) as u64)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days_of(year: i64, month: u64, day: u64) -> i64 {
    const BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let past = year - 1;
    let leap_days = past / 4 - past / 100 + past / 400 - (1969 / 4 - 1969 / 100 + 1969 / 400);
    let in_year = BEFORE[month as usize - 1] + i64::from(leap && month > 2) + day as i64 - 1;
    (year - 1970) * 365 + leap_days + in_year
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let at = |seconds, format| strftime(format, seconds).unwrap();
        assert_eq!(at(0, "%F %T %A %j"), "1970-01-01 00:00:00 Thursday 001");
        assert_eq!(at(951_827_696, "%d %b %Y, %H:%M:%S"), "29 Feb 2000, 12:34:56");
        assert_eq!(
            at(1_735_689_599, "%A %B %-d, %y %I %p %j"),
            "Tuesday December 31, 24 11 PM 366"
        );
        assert_eq!(at(4_107_542_400, "%F"), "2100-03-01");
    }
}
