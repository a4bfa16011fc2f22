//! Mistral's calls, after `[TOOL_CALLS]`: an array of objects, or one call as name and arguments.

use super::call::Step;
use super::json::{JsonScanner, Scan, is_space, push_checked};
use super::marker::{Matcher, Next};
use super::object::{ObjectCall, Rules};
use super::sink::Sink;

/// Reads what follows one marker.
#[derive(Clone, Debug)]
pub(super) struct MistralCalls {
    at: At,
    name: String,
    id: String,
    matcher: Matcher,
}

#[derive(Clone, Debug)]
enum At {
    Open,
    /// In an array: one of its objects.
    Object(Box<ObjectCall>),
    AfterObject,
    Name,
    /// `[ARGS]`, `[CALL_ID]` or the arguments.
    AfterName,
    Id,
    BeforeArguments,
    Arguments(JsonScanner),
}

/// Letters and digits of a call's id.
const ID_LEN: usize = 9;

impl MistralCalls {
    pub(super) fn new() -> Self {
        Self { at: At::Open, name: String::new(), id: String::new(), matcher: Matcher::default() }
    }

    pub(super) fn step(&mut self, c: char, sink: &mut Sink) -> Step {
        match &mut self.at {
            At::Object(object) => {
                match object.step(c, sink) {
                    Step::More => {}
                    Step::Done => self.at = At::AfterObject,
                    Step::Bad => return Step::Bad,
                }
                return Step::More;
            }
            At::Arguments(scanner) => return arguments(scanner, c, sink),
            At::Name if is_name(c) => self.name.push(c),
            At::Id if c.is_ascii_alphanumeric() && self.id.len() < ID_LEN => self.id.push(c),
            At::Id if c == '[' && self.id.len() == ID_LEN => return self.after_name(c, sink),
            At::Id => return Step::Bad,
            At::Name | At::AfterName => return self.after_name(c, sink),
            _ if is_space(c) => {}
            At::Open if c == '[' => self.at = At::Object(Box::new(new_object())),
            At::Open if is_name(c) => {
                self.name.push(c);
                self.at = At::Name;
            }
            At::AfterObject if c == ',' => self.at = At::Object(Box::new(new_object())),
            At::AfterObject if c == ']' => return Step::Done,
            At::BeforeArguments if c == '{' => return self.begin(c, sink),
            _ => return Step::Bad,
        }
        Step::More
    }

    /// `{`, `[ARGS]` or `[CALL_ID]`, after whitespace.
    fn after_name(&mut self, c: char, sink: &mut Sink) -> Step {
        self.at = At::AfterName;
        if self.matcher.is_empty() && is_space(c) {
            return Step::More;
        }
        if self.matcher.is_empty() && c == '{' {
            return self.begin(c, sink);
        }
        self.matcher.push(c);
        let markers: &[&str] = match self.id.is_empty() {
            true => &["[ARGS]", "[CALL_ID]"],
            false => &["[ARGS]"],
        };
        match self.matcher.next(markers) {
            Next::Wait => Step::More,
            Next::Marker(0) => {
                self.at = At::BeforeArguments;
                Step::More
            }
            Next::Marker(_) => {
                self.at = At::Id;
                Step::More
            }
            Next::Text(_) => Step::Bad,
        }
    }

    fn begin(&mut self, c: char, sink: &mut Sink) -> Step {
        match self.id.is_empty() {
            true => sink.start_call(&self.name),
            false => sink.start_call_with_id(&self.name, self.id.clone()),
        }
        let mut scanner = JsonScanner::new();
        let step = arguments(&mut scanner, c, sink);
        self.at = At::Arguments(scanner);
        step
    }
}

fn arguments(scanner: &mut JsonScanner, c: char, sink: &mut Sink) -> Step {
    let in_string = scanner.in_string();
    let scan = scanner.step(c);
    if !matches!(scan, Scan::More | Scan::Done) {
        return Step::Bad;
    }
    let mut text = String::new();
    push_checked(&mut text, c, in_string);
    sink.arguments(&text);
    if scan == Scan::Done { Step::Done } else { Step::More }
}

fn new_object() -> ObjectCall {
    ObjectCall::new(Rules { may_lack_arguments: true, names: None })
}

/// What functions' names consist of.
pub(super) fn is_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.')
}
