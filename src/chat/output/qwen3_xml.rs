//! Qwen3-Coder's calls: tags around each value, whose types only the tool's schema tells.

use std::sync::Arc;

use super::call::{Step, Tool};
use super::json::{is_space, push_escaped};
use super::marker::{Matcher, Next};
use super::schema::Types;
use super::sink::Sink;

/// Reads `<function=f>..</function>`. The call begins with its first parameter, or its end.
#[derive(Clone, Debug)]
pub(super) struct Qwen3XmlCall {
    at: At,
    tools: Arc<[Tool]>,
    name: String,
    key: String,
    matcher: Matcher,
    /// The value, unless it streams.
    value: String,
    types: Types,
    begun: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Open,
    Name,
    Body,
    Key,
    /// A value; its first line break belongs to the tag.
    Value {
        first: bool,
    },
}

/// A value's end; the line break before it belongs to the tag.
const VALUE_ENDS: [&str; 2] = ["\n</parameter>", "</parameter>"];

impl Qwen3XmlCall {
    /// After `<tool_call>`, or `in_name` after `<function=`, as models forget the former.
    pub(super) fn new(tools: Arc<[Tool]>, in_name: bool) -> Self {
        Self {
            at: if in_name { At::Name } else { At::Open },
            tools,
            name: String::new(),
            key: String::new(),
            matcher: Matcher::default(),
            value: String::new(),
            types: Types::STRING,
            begun: false,
        }
    }

    pub(super) fn step(&mut self, c: char, sink: &mut Sink) -> Step {
        match self.at {
            At::Open | At::Body => self.tag(c, sink),
            At::Name | At::Key => self.attribute(c, sink),
            At::Value { first: true } if c == '\n' => {
                self.at = At::Value { first: false };
                Step::More
            }
            At::Value { .. } => self.value(c, sink),
        }
    }

    /// Hands out a value that had not ended.
    pub(super) fn finish(&mut self, sink: &mut Sink) {
        if let At::Value { .. } = self.at {
            let rest = self.matcher.take();
            if self.types.is_string() {
                sink.arguments(&escaped(&rest));
            } else {
                sink.arguments(&self.value);
                sink.arguments(&rest);
            }
        }
    }

    /// Whitespace, then one of the tags that may come.
    fn tag(&mut self, c: char, sink: &mut Sink) -> Step {
        if self.matcher.is_empty() && is_space(c) {
            return Step::More;
        }
        self.matcher.push(c);
        let tags: &[&str] = match self.at {
            At::Open => &["<function="],
            _ => &["<parameter=", "</function>"],
        };
        match (self.matcher.next(tags), self.at) {
            (Next::Wait, _) => {}
            (Next::Text(_), _) => return Step::Bad,
            (Next::Marker(_), At::Open) => self.at = At::Name,
            (Next::Marker(0), _) => {
                self.key.clear();
                self.at = At::Key;
            }
            (Next::Marker(_), _) => {
                if !self.begun {
                    sink.start_call(&self.name);
                }
                sink.arguments(if self.begun { "}" } else { "{}" });
                return Step::Done;
            }
        }
        Step::More
    }

    /// The rest of a tag: a name and `>`.
    fn attribute(&mut self, c: char, sink: &mut Sink) -> Step {
        let is_name = self.at == At::Name;
        let text = if is_name { &mut self.name } else { &mut self.key };
        match c {
            '<' | '\n' | '\r' => return Step::Bad,
            '>' if text.trim().is_empty() => return Step::Bad,
            '>' if is_name => {
                self.name = self.name.trim().to_owned();
                self.at = At::Body;
            }
            '>' => self.begin_value(sink),
            _ => text.push(c),
        }
        Step::More
    }

    fn begin_value(&mut self, sink: &mut Sink) {
        let key = self.key.trim().to_owned();
        let mut text = if self.begun { ", \"" } else { "{\"" }.to_owned();
        text.push_str(&escaped(&key));
        text.push_str("\": ");
        if !self.begun {
            sink.start_call(&self.name);
            self.begun = true;
        }
        let tool = self.tools.iter().find(|tool| tool.name == self.name);
        self.types = tool.map_or(Types::STRING, |tool| Types::of(&tool.parameters, &key));
        if self.types.is_string() {
            text.push('"');
        }
        sink.arguments(&text);
        self.value.clear();
        self.at = At::Value { first: true };
    }

    fn value(&mut self, c: char, sink: &mut Sink) -> Step {
        self.at = At::Value { first: false };
        self.matcher.push(c);
        let mut text = String::new();
        loop {
            match self.matcher.next(&VALUE_ENDS) {
                Next::Wait => break,
                Next::Text(t) if self.types.is_string() => push_escaped(&mut text, t),
                Next::Text(t) => self.value.push(t),
                Next::Marker(_) => {
                    if self.types.is_string() {
                        text.push('"');
                    } else {
                        text.push_str(&self.types.json(&self.value));
                    }
                    self.at = At::Body;
                    break;
                }
            }
        }
        sink.arguments(&text);
        Step::More
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    text.chars().for_each(|c| push_escaped(&mut out, c));
    out
}
