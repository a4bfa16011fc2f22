//! JSON a character at a time: checked while it streams through.

/// What a character meant to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// It belongs to the value, which goes on.
    More,
    /// It ends the value.
    Done,
    /// The value ended before it.
    EndBefore,
    /// It cannot stand here.
    Bad,
}

/// Checks one JSON value. Line breaks and other control characters in strings pass, as models
/// write them; `push_checked` escapes them.
#[derive(Clone, Debug)]
pub(super) struct JsonScanner {
    /// Whether each open container is an object.
    stack: Vec<bool>,
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Value,
    /// A value, or the end of an array.
    FirstItem,
    /// A key, or the end of an object.
    FirstKey,
    Key,
    Colon,
    Text {
        key: bool,
    },
    Escape {
        key: bool,
    },
    /// So many hexadecimal digits to come.
    Hex {
        key: bool,
        left: u8,
    },
    Number(Number),
    Word(&'static str),
    After,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

impl JsonScanner {
    pub(super) fn new() -> Self {
        Self { stack: Vec::new(), at: At::Value }
    }

    /// Whether the next character is inside a string.
    pub(super) fn in_string(&self) -> bool {
        matches!(self.at, At::Text { .. })
    }

    pub(super) fn step(&mut self, c: char) -> Scan {
        if let At::Number(number) = self.at {
            if let Some(next) = number.step(c) {
                self.at = At::Number(next);
                return Scan::More;
            }
            if !number.may_end() {
                return Scan::Bad;
            }
            if self.stack.is_empty() {
                return Scan::EndBefore;
            }
            self.at = At::After;
        }
        match self.at {
            At::Text { key } => self.text(c, key),
            At::Escape { key } => match c {
                'u' => self.go(At::Hex { key, left: 4 }),
                '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => self.go(At::Text { key }),
                _ => Scan::Bad,
            },
            At::Hex { .. } if !c.is_ascii_hexdigit() => Scan::Bad,
            At::Hex { key, left: 1 } => self.go(At::Text { key }),
            At::Hex { key, left } => self.go(At::Hex { key, left: left - 1 }),
            At::Word(rest) => match rest.strip_prefix(c) {
                Some("") => self.end(),
                Some(rest) => self.go(At::Word(rest)),
                None => Scan::Bad,
            },
            _ if is_space(c) => Scan::More,
            At::Value => self.value(c),
            At::FirstItem if c == ']' => self.close(),
            At::FirstItem => self.value(c),
            At::FirstKey if c == '}' => self.close(),
            At::FirstKey | At::Key if c == '"' => self.go(At::Text { key: true }),
            At::Colon if c == ':' => self.go(At::Value),
            At::After => match (c, self.stack.last()) {
                (',', Some(true)) => self.go(At::Key),
                (',', Some(false)) => self.go(At::Value),
                ('}', Some(true)) | (']', Some(false)) => self.close(),
                _ => Scan::Bad,
            },
            _ => Scan::Bad,
        }
    }

    fn value(&mut self, c: char) -> Scan {
        let (container, next) = match c {
            '{' => (Some(true), At::FirstKey),
            '[' => (Some(false), At::FirstItem),
            '"' => (None, At::Text { key: false }),
            't' => (None, At::Word("rue")),
            'f' => (None, At::Word("alse")),
            'n' => (None, At::Word("ull")),
            '-' => (None, At::Number(Number::Minus)),
            '0' => (None, At::Number(Number::Zero)),
            '1'..='9' => (None, At::Number(Number::Digits)),
            _ => return Scan::Bad,
        };
        self.stack.extend(container);
        self.go(next)
    }

    fn text(&mut self, c: char, key: bool) -> Scan {
        match c {
            '\\' => self.go(At::Escape { key }),
            '"' if key => self.go(At::Colon),
            '"' => self.end(),
            _ => Scan::More,
        }
    }

    fn close(&mut self) -> Scan {
        self.stack.pop();
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

impl Number {
    fn step(self, c: char) -> Option<Self> {
        Some(match (self, c) {
            (Self::Minus, '0') => Self::Zero,
            (Self::Minus, '1'..='9') | (Self::Digits, '0'..='9') => Self::Digits,
            (Self::Zero | Self::Digits, '.') => Self::Point,
            (Self::Point | Self::Fraction, '0'..='9') => Self::Fraction,
            (Self::Zero | Self::Digits | Self::Fraction, 'e' | 'E') => Self::Exponent,
            (Self::Exponent, '+' | '-') => Self::ExponentSign,
            (Self::Exponent | Self::ExponentSign | Self::ExponentDigits, '0'..='9') => {
                Self::ExponentDigits
            }
            _ => return None,
        })
    }

    fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Digits | Self::Fraction | Self::ExponentDigits)
    }
}

/// JSON's whitespace.
pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

/// Appends a character that a scanner let pass, `in_string` or not.
pub(super) fn push_checked(out: &mut String, c: char, in_string: bool) {
    if in_string && c < ' ' { push_escaped(out, c) } else { out.push(c) }
}

/// Appends a character of a string's value.
pub(super) fn push_escaped(out: &mut String, c: char) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        c => out.push(c),
    }
}
