//! The parser of one message.

use std::sync::Arc;

use serde_json::{Value, json};

use super::call::Tool;
use super::format::{Choice, ReasoningFormat, ToolFormat};
use super::reasoning::Reasoning;
use super::sink::{IdStyle, Part, Sink};
use super::tools::Tools;
use crate::chat::ChatTemplate;
use crate::error::{Error, ErrorKind, Result};
use crate::request::ChatInput;
use crate::tokenizer::Tokenizer;

/// Bytes of parts that a byte of text can become: `f(),` is a call.
const GROWTH: usize = 64;

/// What a chat request says about its answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParserOptions {
    /// How the model writes tool calls. Without tools, none are looked for.
    pub tool_format: Choice<ToolFormat>,
    /// How the model marks its reasoning.
    pub reasoning_format: Choice<ReasoningFormat>,
    /// The request's tools, an array.
    pub tools: Option<Value>,
    /// The request's variables of the template, an object.
    pub template_kwargs: Option<Value>,
}

/// Parses the text of one message after the other.
#[derive(Clone, Debug)]
pub struct ChatParser {
    tool_format: Option<ToolFormat>,
    reasoning_format: Option<ReasoningFormat>,
    tools: Arc<[Tool]>,
    starts_in_reasoning: bool,
    reasoning: Option<Reasoning>,
    content: Tools,
    sink: Sink,
}

impl ChatParser {
    /// A parser for what the model answers to a chat by `template`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for malformed tools or variables.
    pub fn new(options: &ParserOptions, template: Option<&ChatTemplate>) -> Result<Self> {
        let tools: Arc<[Tool]> = tools(options.tools.as_ref())?.into();
        let source = template.map(|t| t.source(!tools.is_empty())).unwrap_or_default();
        let tool_format = match tools.is_empty() {
            true => None,
            false => options.tool_format.resolve(|| ToolFormat::of_template(&source)),
        };
        let reasoning_format =
            options.reasoning_format.resolve(|| ReasoningFormat::of_template(&source));
        let starts_in_reasoning = match (template, reasoning_format) {
            (Some(template), Some(format)) => opens_reasoning(template, format, options)?,
            _ => false,
        };
        let id_style = match tool_format {
            Some(ToolFormat::Mistral) => IdStyle::Nine,
            _ => IdStyle::OpenAi,
        };
        let mut parser = Self {
            tool_format,
            reasoning_format,
            starts_in_reasoning,
            reasoning: None,
            content: Tools::new(tool_format, tools.clone()),
            tools,
            sink: Sink::new(id_style),
        };
        parser.reset();
        Ok(parser)
    }

    /// Takes text, in cuts of any size. Returns the parts that it makes certain.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`.
    pub fn push(&mut self, text: &str) -> Result<Vec<Part>> {
        Vec::<u8>::new().try_reserve_exact(text.len().saturating_mul(GROWTH))?;
        let mut rest = String::new();
        for (at, c) in text.char_indices() {
            match &mut self.reasoning {
                Some(reasoning) if !reasoning.is_over() => {
                    reasoning.push(c, &mut self.sink, &mut rest);
                    for c in rest.drain(..) {
                        self.content.push(c, &mut self.sink);
                    }
                }
                _ if self.content.is_off(&self.sink) => {
                    self.sink.content(&text[at..]);
                    break;
                }
                _ => self.content.push(c, &mut self.sink),
            }
        }
        Ok(self.sink.take())
    }

    /// Ends the message: returns what was held back. The parser is ready for another one.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut rest = String::new();
        if let Some(reasoning) = &mut self.reasoning {
            reasoning.finish(&mut self.sink, &mut rest);
        }
        for c in rest.chars() {
            self.content.push(c, &mut self.sink);
        }
        self.content.finish(&mut self.sink);
        let parts = self.sink.take();
        self.reset();
        parts
    }

    /// How tool calls are written; `None` when none are looked for.
    pub fn tool_format(&self) -> Option<ToolFormat> {
        self.tool_format
    }

    /// How reasoning is marked; `None` when none is looked for.
    pub fn reasoning_format(&self) -> Option<ReasoningFormat> {
        self.reasoning_format
    }

    /// Whether the prompt ends inside reasoning, so that the output begins there.
    pub fn starts_in_reasoning(&self) -> bool {
        self.starts_in_reasoning
    }

    /// Whether the text must be decoded with special tokens, as the formats' markers are among
    /// them.
    pub fn needs_special_tokens(&self, tokenizer: &Tokenizer) -> bool {
        let tools = self.tool_format.map_or(&[][..], ToolFormat::tokens);
        let reasoning = self.reasoning_format.map(ReasoningFormat::markers);
        let reasoning = reasoning.into_iter().flat_map(|(open, close)| [open, close]);
        tools.iter().copied().chain(reasoning).any(|marker| {
            tokenizer.token_to_id(marker).is_some_and(|token| tokenizer.is_special(token))
        })
    }

    fn reset(&mut self) {
        self.sink.reset();
        self.content = Tools::new(self.tool_format, self.tools.clone());
        let is_open = self.starts_in_reasoning;
        self.reasoning = self.reasoning_format.map(|f| Reasoning::new(f.markers(), is_open));
    }
}

/// The functions among a request's tools.
fn tools(tools: Option<&Value>) -> Result<Vec<Tool>> {
    let list = match tools {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(Error::invalid("tools", "tools: must be an array")),
    };
    let mut found = Vec::new();
    for (i, tool) in list.iter().enumerate() {
        let function = &tool["function"];
        let Some(name) = function["name"].as_str().filter(|name| !name.is_empty()) else {
            let field = format!("tools[{i}].function.name");
            return Err(Error::invalid(&field, format!("{field}: must be a name")));
        };
        found.push(Tool { name: name.to_owned(), parameters: function["parameters"].clone() });
    }
    Ok(found)
}

/// Whether the prompt for a chat leaves reasoning open: looked up in a minimal one, in what the
/// generation prompt adds to it.
fn opens_reasoning(
    template: &ChatTemplate,
    format: ReasoningFormat,
    options: &ParserOptions,
) -> Result<bool> {
    let tools = options.tools.as_ref().filter(|t| t.as_array().is_some_and(|t| !t.is_empty()));
    let mut chat = ChatInput {
        messages: json!([{"role": "user", "content": "Hi"}]),
        tools: tools.cloned(),
        template_kwargs: options.template_kwargs.clone(),
        add_generation_prompt: true,
        continue_final_message: false,
    };
    // A template may refuse such a chat and still render the request's.
    let mut render = |with_prompt| {
        chat.add_generation_prompt = with_prompt;
        match template.render(&chat) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == ErrorKind::Template => Ok(None),
            Err(e) => Err(e),
        }
    };
    let (Some(prompt), before) = (render(true)?, render(false)?) else { return Ok(false) };
    let before = before.unwrap_or_default();
    Ok(format.is_open_after(prompt.strip_prefix(before.as_str()).unwrap_or(&prompt)))
}
