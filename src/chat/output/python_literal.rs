//! Python literals to JSON, a character at a time.

use super::json::{JsonScanner, Scan, push_escaped};

/// Converts one literal.
#[derive(Clone, Debug)]
pub(super) struct PythonLiteral {
    stack: Vec<Container>,
    at: At,
    /// A number or a name such as `True`, until it ends.
    word: String,
    /// Of an escape: its digits so far.
    digits: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    List,
    Tuple,
    Dict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before an item or a dict's key; after a comma if not the first one.
    Item {
        comma: bool,
    },
    /// After a key's colon.
    Value,
    Colon,
    Text(Text),
    Escape(Text),
    /// So many hexadecimal digits to come.
    Hex(Text, u8),
    Word {
        key: bool,
    },
    After,
}

/// A string, and whether it is a dict's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Text {
    quote: char,
    key: bool,
}

impl PythonLiteral {
    pub(super) fn new() -> Self {
        let (word, digits) = (String::new(), String::new());
        Self { stack: Vec::new(), at: At::Value, word, digits }
    }

    /// The whole of `text` as JSON, if it is one literal.
    pub(super) fn convert(text: &str) -> Option<String> {
        let (mut literal, mut json) = (Self::new(), String::new());
        let mut chars = text.chars();
        loop {
            // A space ends a number or a name.
            let c = chars.next();
            match literal.step(c.unwrap_or(' '), &mut json) {
                Scan::More if c.is_some() => {}
                Scan::Done if chars.next().is_none() => return Some(json),
                Scan::EndBefore if c.is_none() => return Some(json),
                _ => return None,
            }
        }
    }

    /// The number or the name that has not ended.
    pub(super) fn word(&self) -> &str {
        &self.word
    }

    /// Takes a character; appends to `out` what it makes certain.
    pub(super) fn step(&mut self, c: char, out: &mut String) -> Scan {
        if let At::Word { key } = self.at {
            if is_word(c) {
                self.word.push(c);
                return Scan::More;
            }
            let Some(json) = word_to_json(&std::mem::take(&mut self.word)) else {
                return Scan::Bad;
            };
            if key && !json.starts_with('"') {
                out.push_str(&format!("\"{json}\""));
            } else {
                out.push_str(&json);
            }
            if self.stack.is_empty() {
                return Scan::EndBefore;
            }
            self.at = if key { At::Colon } else { At::After };
        }
        match self.at {
            At::Text(text) => self.text(c, text, out),
            At::Escape(text) => self.escape(c, text, out),
            At::Hex(text, left) => self.hex(c, text, left, out),
            _ if c.is_whitespace() => Scan::More,
            At::Item { comma } => {
                let container = self.stack.last().copied();
                if container.is_some_and(|open| c == open.end()) {
                    return self.close(out);
                }
                if comma {
                    out.push_str(", ");
                }
                self.begin(c, container == Some(Container::Dict), out)
            }
            At::Value => self.begin(c, false, out),
            At::Colon if c == ':' => {
                out.push_str(": ");
                self.go(At::Value)
            }
            At::After if c == ',' => self.go(At::Item { comma: true }),
            At::After if self.stack.last().is_some_and(|open| c == open.end()) => self.close(out),
            _ => Scan::Bad,
        }
    }

    fn begin(&mut self, c: char, key: bool, out: &mut String) -> Scan {
        let container = match c {
            '\'' | '"' => {
                out.push('"');
                return self.go(At::Text(Text { quote: c, key }));
            }
            _ if is_word(c) => {
                self.word.push(c);
                return self.go(At::Word { key });
            }
            '[' if !key => Container::List,
            '(' if !key => Container::Tuple,
            '{' if !key => Container::Dict,
            _ => return Scan::Bad,
        };
        out.push(if container == Container::Dict { '{' } else { '[' });
        self.stack.push(container);
        self.go(At::Item { comma: false })
    }

    fn text(&mut self, c: char, text: Text, out: &mut String) -> Scan {
        if c == '\\' {
            return self.go(At::Escape(text));
        }
        if c != text.quote {
            push_escaped(out, c);
            return Scan::More;
        }
        out.push('"');
        if text.key { self.go(At::Colon) } else { self.end() }
    }

    fn escape(&mut self, c: char, text: Text, out: &mut String) -> Scan {
        let digits = match c {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        if digits > 0 {
            self.digits.clear();
            return self.go(At::Hex(text, digits));
        }
        match c {
            'n' => out.push_str("\\n"),
            'r' => out.push_str("\\r"),
            't' => out.push_str("\\t"),
            'b' => out.push_str("\\b"),
            'f' => out.push_str("\\f"),
            'v' => push_escaped(out, '\x0b'),
            'a' => push_escaped(out, '\x07'),
            '0' => push_escaped(out, '\0'),
            '\n' => {} // A line that goes on.
            '\\' | '\'' | '"' => push_escaped(out, c),
            _ => {
                // As Python: an unknown escape stands for itself.
                push_escaped(out, '\\');
                push_escaped(out, c);
            }
        }
        self.go(At::Text(text))
    }

    fn hex(&mut self, c: char, text: Text, left: u8, out: &mut String) -> Scan {
        if !c.is_ascii_hexdigit() {
            return Scan::Bad;
        }
        self.digits.push(c);
        if left > 1 {
            return self.go(At::Hex(text, left - 1));
        }
        let Ok(code) = u32::from_str_radix(&self.digits, 16) else { return Scan::Bad };
        match (char::from_u32(code), code) {
            (Some(c), _) => push_escaped(out, c),
            // Half of a pair: its other half follows, or the text is wrong in JSON too.
            (None, 0xd800..=0xdfff) => out.push_str(&format!("\\u{code:04x}")),
            (None, _) => return Scan::Bad,
        }
        self.go(At::Text(text))
    }

    fn close(&mut self, out: &mut String) -> Scan {
        out.push(if self.stack.pop() == Some(Container::Dict) { '}' } else { ']' });
        self.end()
    }

    fn end(&mut self) -> Scan {
        self.at = At::After;
        if self.stack.is_empty() { Scan::Done } else { Scan::More }
    }

    fn go(&mut self, at: At) -> Scan {
        self.at = at;
        Scan::More
    }
}

impl Container {
    fn end(self) -> char {
        match self {
            Self::List => ']',
            Self::Tuple => ')',
            Self::Dict => '}',
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | '+' | '-')
}

fn word_to_json(word: &str) -> Option<String> {
    match word {
        "True" | "true" => return Some("true".to_owned()),
        "False" | "false" => return Some("false".to_owned()),
        "None" | "null" => return Some("null".to_owned()),
        _ => {}
    }
    let plain = word.replace('_', "");
    let (sign, digits) = match plain.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", plain.strip_prefix('+').unwrap_or(&plain)),
    };
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok().map(|n| format!("{sign}{n}"));
    }
    // JSON wants digits on both sides of the point.
    let mut number = sign.to_owned();
    if digits.starts_with('.') {
        number.push('0');
    }
    number.push_str(digits);
    if let Some(point) = number.find('.') {
        let followed = number[point + 1..].starts_with(|c: char| c.is_ascii_digit());
        let lone = digits == ".";
        if !followed && !lone {
            number.insert(point + 1, '0');
        }
    }
    is_json_number(&number).then_some(number)
}

fn is_json_number(text: &str) -> bool {
    let mut scanner = JsonScanner::new();
    text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
        && text.chars().all(|c| scanner.step(c) == Scan::More)
        && scanner.step(' ') == Scan::EndBefore
}
