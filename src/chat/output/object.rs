//! A call as a JSON object: `{"name": "f", "arguments": {"a": 1}}`.

use std::sync::Arc;

use serde::de::IgnoredAny;

use super::call::{Step, Tool};
use super::json::{JsonScanner, Scan, is_space, push_checked};
use super::sink::Sink;

/// Reads one such object. The call begins when its name is known and its arguments begin; members
/// may come in any order, and others than these are passed over.
#[derive(Clone, Debug)]
pub(super) struct ObjectCall {
    at: At,
    rules: Rules,
    /// The member being read: its key with quotes, and its value unless that streams.
    key: String,
    value: String,
    scanner: JsonScanner,
    /// The value goes straight to the sink.
    streams: bool,
    name: Option<String>,
    /// Arguments that came before the name.
    arguments: Option<String>,
    begun: bool,
}

/// What makes an object a call.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// Whether a call without arguments is one.
    pub(super) may_lack_arguments: bool,
    /// The only names that are calls, where no marker says that the object is one.
    pub(super) names: Option<Arc<[Tool]>>,
}

#[derive(Clone, Copy, Debug)]
enum At {
    Open,
    FirstKey,
    NextKey,
    Key,
    Colon,
    BeforeValue,
    Value,
    AfterValue,
}

impl ObjectCall {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            at: At::Open,
            rules,
            key: String::new(),
            value: String::new(),
            scanner: JsonScanner::new(),
            streams: false,
            name: None,
            arguments: None,
            begun: false,
        }
    }

    /// The opening brace was the marker.
    pub(super) fn open(&mut self) {
        self.at = At::FirstKey;
    }

    pub(super) fn step(&mut self, c: char, sink: &mut Sink) -> Step {
        match self.at {
            At::Key => return self.key(c),
            At::Value => return self.value(c, sink),
            _ if is_space(c) => return Step::More,
            At::Open if c == '{' => self.at = At::FirstKey,
            At::FirstKey | At::AfterValue if c == '}' => return self.close(sink),
            At::FirstKey | At::NextKey if c == '"' => {
                self.key.clear();
                self.scanner = JsonScanner::new();
                self.at = At::Key;
                return self.key(c);
            }
            At::Colon if c == ':' => self.at = At::BeforeValue,
            At::BeforeValue => {
                self.begin_value(c, sink);
                return self.value(c, sink);
            }
            At::AfterValue if c == ',' => self.at = At::NextKey,
            _ => return Step::Bad,
        }
        Step::More
    }

    fn key(&mut self, c: char) -> Step {
        self.key.push(c);
        match self.scanner.step(c) {
            Scan::More => Step::More,
            Scan::Done => {
                self.at = At::Colon;
                Step::More
            }
            _ => Step::Bad,
        }
    }

    fn begin_value(&mut self, c: char, sink: &mut Sink) {
        self.value.clear();
        self.scanner = JsonScanner::new();
        self.at = At::Value;
        if let (Some(name), '{', true, false) = (&self.name, c, self.is_arguments(), self.begun) {
            sink.start_call(name);
            (self.streams, self.begun) = (true, true);
        }
    }

    fn value(&mut self, c: char, sink: &mut Sink) -> Step {
        let in_string = self.scanner.in_string();
        let scan = self.scanner.step(c);
        if matches!(scan, Scan::More | Scan::Done) {
            push_checked(&mut self.value, c, in_string);
            if self.streams {
                sink.arguments(&self.value);
                self.value.clear();
            }
        }
        match scan {
            Scan::More => return Step::More,
            Scan::Bad => return Step::Bad,
            Scan::Done | Scan::EndBefore => {}
        }
        self.at = At::AfterValue;
        if !std::mem::take(&mut self.streams) && !self.end_value(sink) {
            return Step::Bad;
        }
        if scan == Scan::EndBefore { self.step(c, sink) } else { Step::More }
    }

    fn is_arguments(&self) -> bool {
        matches!(self.key.as_str(), r#""arguments""# | r#""parameters""#)
    }

    /// Keeps a member's value. False if the object is no call.
    fn end_value(&mut self, sink: &mut Sink) -> bool {
        if self.key == r#""name""# {
            let name = serde_json::from_str::<String>(&self.value).unwrap_or_default();
            let known = |tools: &Arc<[Tool]>| tools.iter().any(|tool| tool.name == name);
            let is_callable = self.rules.names.as_ref().is_none_or(known);
            if name.is_empty() || self.name.is_some() || !is_callable {
                return false;
            }
            if let Some(arguments) = self.arguments.take() {
                self.begin_whole(&name, &arguments, sink);
            }
            self.name = Some(name);
        } else if self.is_arguments() {
            let Some(arguments) = whole_arguments(&self.value) else { return false };
            match &self.name {
                _ if self.begun || self.arguments.is_some() => return false,
                Some(name) => self.begin_whole(&name.clone(), &arguments, sink),
                None => self.arguments = Some(arguments),
            }
        }
        true
    }

    fn begin_whole(&mut self, name: &str, arguments: &str, sink: &mut Sink) {
        sink.start_call(name);
        sink.arguments(arguments);
        self.begun = true;
    }

    fn close(&mut self, sink: &mut Sink) -> Step {
        match &self.name {
            _ if self.begun => Step::Done,
            Some(name) if self.rules.may_lack_arguments => {
                self.begin_whole(&name.clone(), "{}", sink);
                Step::Done
            }
            _ => Step::Bad,
        }
    }
}

/// Arguments that did not stream: an object, an object in a string, or null.
fn whole_arguments(value: &str) -> Option<String> {
    match value.as_bytes().first()? {
        b'{' => Some(value.to_owned()),
        b'"' => {
            let text = serde_json::from_str::<String>(value).ok()?;
            let is_object = text.trim_start().starts_with('{')
                && serde_json::from_str::<IgnoredAny>(&text).is_ok();
            is_object.then_some(text)
        }
        b'n' => Some("{}".to_owned()),
        _ => None,
    }
}
