//! Calls as a Python list: `[f(a=1, b="x"), g()]`.

use std::sync::Arc;

use super::call::{Step, Tool};
use super::json::{Scan, push_escaped};
use super::mistral::is_name;
use super::python_literal::PythonLiteral;
use super::sink::Sink;

/// Reads one list. A call begins with its first argument's `=`, or its closing parenthesis.
#[derive(Clone, Debug)]
pub(super) struct PythonicCalls {
    at: At,
    /// The only names that are calls, where no marker says that the list is one.
    names: Option<Arc<[Tool]>>,
    name: String,
    key: String,
    begun: bool,
    literal: PythonLiteral,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Open,
    BeforeName { first: bool },
    Name,
    BeforeKey,
    Key,
    AfterKey,
    Value,
    AfterValue,
    AfterCall,
}

impl PythonicCalls {
    /// After `<|python_start|>`; or, with `names`, after the opening bracket.
    pub(super) fn new(names: Option<Arc<[Tool]>>) -> Self {
        let at = if names.is_some() { At::BeforeName { first: true } } else { At::Open };
        let literal = PythonLiteral::new();
        Self { at, names, name: String::new(), key: String::new(), begun: false, literal }
    }

    pub(super) fn step(&mut self, c: char, sink: &mut Sink) -> Step {
        match self.at {
            At::Value => return self.value(c, sink),
            At::Name if is_name(c) => self.name.push(c),
            At::Name if c == '(' && self.is_callable() => {
                self.begun = false;
                self.at = At::BeforeKey;
            }
            At::Name => return Step::Bad,
            At::Key if c == '_' || c.is_alphanumeric() => self.key.push(c),
            _ if c.is_whitespace() => {
                if self.at == At::Key {
                    self.at = At::AfterKey;
                }
            }
            At::Open if c == '[' => self.at = At::BeforeName { first: true },
            At::BeforeName { first: false } if c == ']' => return Step::Done,
            At::BeforeName { .. } if is_name(c) => {
                self.name.clear();
                self.name.push(c);
                self.at = At::Name;
            }
            At::BeforeKey | At::AfterValue if c == ')' => self.end_call(sink),
            At::BeforeKey if c == '_' || c.is_alphabetic() => {
                self.key.clear();
                self.key.push(c);
                self.at = At::Key;
            }
            At::Key | At::AfterKey if c == '=' => self.begin_value(sink),
            At::AfterValue if c == ',' => self.at = At::BeforeKey,
            At::AfterCall if c == ',' => self.at = At::BeforeName { first: false },
            At::AfterCall if c == ']' => return Step::Done,
            _ => return Step::Bad,
        }
        Step::More
    }

    /// Hands out a number or a name that had not ended.
    pub(super) fn finish(&mut self, sink: &mut Sink) {
        if self.at == At::Value {
            sink.arguments(self.literal.word());
        }
    }

    fn is_callable(&self) -> bool {
        self.names.as_ref().is_none_or(|tools| tools.iter().any(|tool| tool.name == self.name))
    }

    fn begin_value(&mut self, sink: &mut Sink) {
        let mut text = ", \"".to_owned();
        if !self.begun {
            sink.start_call(&self.name);
            self.begun = true;
            text = "{\"".to_owned();
        }
        self.key.chars().for_each(|c| push_escaped(&mut text, c));
        text.push_str("\": ");
        sink.arguments(&text);
        self.literal = PythonLiteral::new();
        self.at = At::Value;
    }

    fn value(&mut self, c: char, sink: &mut Sink) -> Step {
        let mut text = String::new();
        let scan = self.literal.step(c, &mut text);
        sink.arguments(&text);
        match scan {
            Scan::More => Step::More,
            Scan::Done => {
                self.at = At::AfterValue;
                Step::More
            }
            Scan::EndBefore => {
                // The character is not part of what was just handed out.
                sink.hold_char(c);
                self.at = At::AfterValue;
                self.step(c, sink)
            }
            Scan::Bad => Step::Bad,
        }
    }

    fn end_call(&mut self, sink: &mut Sink) {
        if self.begun {
            sink.arguments("}");
        } else {
            sink.start_call(&self.name);
            sink.arguments("{}");
        }
        self.at = At::AfterCall;
    }
}
