//! The calls of each tool format, behind one shape.

use std::sync::Arc;

use serde_json::Value;

use super::format::ToolFormat;
use super::mistral::MistralCalls;
use super::object::{ObjectCall, Rules};
use super::pythonic::PythonicCalls;
use super::qwen3_xml::Qwen3XmlCall;
use super::sink::Sink;

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tool {
    pub(super) name: String,
    /// The JSON schema of its arguments; null if it has none.
    pub(super) parameters: Value,
}

/// What a character meant to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The call goes on.
    More,
    /// The character ends the call, or the list of calls.
    Done,
    /// The character cannot stand here. What the sink holds is content.
    Bad,
}

/// A call, or a list of calls, being read.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Object(ObjectCall),
    Mistral(MistralCalls),
    Pythonic(PythonicCalls),
    Qwen3Xml(Qwen3XmlCall),
}

impl Call {
    /// What begins after `marker`.
    pub(super) fn after(marker: &str, format: ToolFormat, tools: &Arc<[Tool]>) -> Self {
        // Text that only looks like a call must at least name a tool.
        let is_marked = marker.len() > 1;
        let names = (!is_marked).then(|| tools.clone());
        match format {
            ToolFormat::Hermes => {
                Self::Object(ObjectCall::new(Rules { may_lack_arguments: true, names: None }))
            }
            ToolFormat::Llama3Json => {
                let mut call = ObjectCall::new(Rules { may_lack_arguments: false, names });
                if marker == "{" {
                    call.open();
                }
                Self::Object(call)
            }
            ToolFormat::Mistral => Self::Mistral(MistralCalls::new()),
            ToolFormat::Pythonic => Self::Pythonic(PythonicCalls::new(names)),
            ToolFormat::Qwen3Xml => {
                Self::Qwen3Xml(Qwen3XmlCall::new(tools.clone(), marker == "<function="))
            }
        }
    }

    pub(super) fn step(&mut self, c: char, sink: &mut Sink) -> Step {
        match self {
            Self::Object(call) => call.step(c, sink),
            Self::Mistral(calls) => calls.step(c, sink),
            Self::Pythonic(calls) => calls.step(c, sink),
            Self::Qwen3Xml(call) => call.step(c, sink),
        }
    }

    /// The text ends here: hands out the arguments that waited for more.
    pub(super) fn finish(&mut self, sink: &mut Sink) {
        match self {
            Self::Object(_) | Self::Mistral(_) => {}
            Self::Pythonic(calls) => calls.finish(sink),
            Self::Qwen3Xml(call) => call.finish(sink),
        }
    }
}
