//! The formats by name, and how they are told from a chat template.

use super::tools::Place;
use crate::error::{Error, Result};

/// How a model writes tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": "f", "arguments": {}}</tool_call>`.
    Hermes,
    /// `<|python_tag|>{"name": "f", "parameters": {}}`, the tag optional, calls separated by `;`.
    Llama3Json,
    /// `[TOOL_CALLS] [{"name": "f", "arguments": {}}]`, `[TOOL_CALLS]f{}`, `[TOOL_CALLS]f[ARGS]{}`.
    Mistral,
    /// `[f(a=1, b="x"), g()]`, alone or between `<|python_start|>` and `<|python_end|>`.
    Pythonic,
    /// `<tool_call><function=f><parameter=a>1</parameter></function></tool_call>`.
    Qwen3Xml,
}

/// How a model marks its reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// `<think>..</think>`.
    Think,
    /// `[THINK]..[/THINK]`.
    Mistral,
}

/// A format, as a host chooses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice<Format> {
    /// The one that the chat template shows.
    #[default]
    Auto,
    /// None: the text stays as it is.
    Off,
    /// This one.
    Use(Format),
}

const TOOL_FORMATS: [(&str, ToolFormat); 6] = [
    ("hermes", ToolFormat::Hermes),
    ("llama3_json", ToolFormat::Llama3Json),
    ("mistral", ToolFormat::Mistral),
    ("pythonic", ToolFormat::Pythonic),
    ("qwen3_xml", ToolFormat::Qwen3Xml),
    ("qwen3_coder", ToolFormat::Qwen3Xml),
];

const REASONING_FORMATS: [(&str, ReasoningFormat); 4] = [
    ("think", ReasoningFormat::Think),
    ("mistral", ReasoningFormat::Mistral),
    ("qwen3", ReasoningFormat::Think),
    ("deepseek_r1", ReasoningFormat::Think),
];

impl Choice<ToolFormat> {
    /// The choice called `name`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an unknown name: field, value and choices.
    pub fn tool_format(name: &str) -> Result<Self> {
        choose("tool_format", name, &TOOL_FORMATS)
    }
}

impl Choice<ReasoningFormat> {
    /// The choice called `name`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an unknown name: field, value and choices.
    pub fn reasoning_format(name: &str) -> Result<Self> {
        choose("reasoning_format", name, &REASONING_FORMATS)
    }
}

impl<Format> Choice<Format> {
    /// The format to use, if any; `detect` is asked for the template's.
    pub(super) fn resolve(self, detect: impl FnOnce() -> Option<Format>) -> Option<Format> {
        match self {
            Self::Auto => detect(),
            Self::Off => None,
            Self::Use(format) => Some(format),
        }
    }
}

impl ToolFormat {
    /// The format's name.
    pub fn name(self) -> &'static str {
        name_of(self, &TOOL_FORMATS)
    }

    /// The format that a template's source shows.
    pub(super) fn of_template(source: &str) -> Option<Self> {
        let shows = |part: &str| source.contains(part);
        if shows("<function=") && shows("<parameter=") {
            return Some(Self::Qwen3Xml);
        }
        if shows("[TOOL_CALLS]") {
            return Some(Self::Mistral);
        }
        // GLM's calls are between the same tags, but are no JSON.
        if shows("<tool_call>") && !shows("<arg_key>") {
            return Some(Self::Hermes);
        }
        if shows("<|python_start|>") || shows("func_name1(") {
            return Some(Self::Pythonic);
        }
        // Llama 3.2's has no tag, only the instruction to answer with such an object.
        let is_llama = shows("<|start_header_id|>") && shows("\"parameters\"");
        (shows("<|python_tag|>") || is_llama).then_some(Self::Llama3Json)
    }

    /// The markers that text at a place may bring.
    pub(super) fn markers(self, at: Place) -> &'static [&'static str] {
        match (self, at) {
            (Self::Hermes, Place::Call) => &["<tool_call>", "</tool_call>"],
            (Self::Hermes, _) => &["<tool_call>"],
            (Self::Llama3Json, Place::Start) => &["<|python_tag|>", "{"],
            (Self::Llama3Json, Place::Call) => &["<|python_tag|>", ";"],
            (Self::Llama3Json, _) => &["<|python_tag|>"],
            (Self::Mistral, _) => &["[TOOL_CALLS]"],
            (Self::Pythonic, Place::Start) => &["<|python_start|>", "["],
            (Self::Pythonic, Place::Call) => &["<|python_start|>", "<|python_end|>"],
            (Self::Pythonic, _) => &["<|python_start|>"],
            (Self::Qwen3Xml, Place::Call) => &["<tool_call>", "<function=", "</tool_call>"],
            (Self::Qwen3Xml, _) => &["<tool_call>", "<function="],
        }
    }

    /// Whether a marker ends a call that is already complete.
    pub(super) fn is_closing(marker: &str) -> bool {
        matches!(marker, "</tool_call>" | "<|python_end|>")
    }

    /// The markers that tokenizers have as tokens of their own.
    pub(super) fn tokens(self) -> &'static [&'static str] {
        match self {
            Self::Hermes | Self::Qwen3Xml => &["<tool_call>", "</tool_call>"],
            Self::Llama3Json => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
            Self::Pythonic => &["<|python_start|>", "<|python_end|>"],
        }
    }
}

impl ReasoningFormat {
    /// The format's name.
    pub fn name(self) -> &'static str {
        name_of(self, &REASONING_FORMATS)
    }

    /// The format that a template's source shows.
    pub(super) fn of_template(source: &str) -> Option<Self> {
        if source.contains("[THINK]") {
            return Some(Self::Mistral);
        }
        source.contains("</think>").then_some(Self::Think)
    }

    /// The opening and the closing marker.
    pub(super) fn markers(self) -> (&'static str, &'static str) {
        match self {
            Self::Think => ("<think>", "</think>"),
            Self::Mistral => ("[THINK]", "[/THINK]"),
        }
    }

    /// Whether a prompt's text leaves reasoning open.
    pub(super) fn is_open_after(self, text: &str) -> bool {
        let (open, close) = self.markers();
        text.rfind(open) > text.rfind(close)
    }
}

fn choose<F: Copy>(field: &str, name: &str, formats: &[(&str, F)]) -> Result<Choice<F>> {
    match name {
        "auto" => return Ok(Choice::Auto),
        "none" => return Ok(Choice::Off),
        _ => {}
    }
    if let Some((_, format)) = formats.iter().find(|(known, _)| *known == name) {
        return Ok(Choice::Use(*format));
    }
    let choices: Vec<&str> =
        ["auto", "none"].into_iter().chain(formats.iter().map(|f| f.0)).collect();
    let message = format!("{field}: must be one of {}, got {name:?}", choices.join(", "));
    Err(Error::invalid(field, message).with("value", name).with("choices", choices))
}

/// The first name, where a format has several.
fn name_of<F: Copy + PartialEq>(format: F, formats: &[(&'static str, F)]) -> &'static str {
    formats.iter().find(|(_, known)| *known == format).map_or("", |(name, _)| name)
}
