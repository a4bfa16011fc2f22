//! A checkpoint's chat template, compiled.

use std::io::Write;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as Jinja};
use minijinja::{AutoEscape, Environment};
use serde_json::{Map, Value};

use super::messages::{self, ContentFormat};
use super::{python, sandbox};
use crate::error::{Error, ErrorKind, Result};
use crate::request::ChatInput;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::files::{read_limited, read_object};

/// Most bytes of a template's source. The longest published ones have 30 kB.
const MAX_SOURCE_BYTES: u64 = 256 << 10;
/// Most bytes of a rendered prompt.
const MAX_OUTPUT_BYTES: usize = 64 << 20;
/// Most nested macros, includes and blocks.
const RECURSION_LIMIT: usize = 100;
/// Names that the template gets from the request itself.
const RESERVED: [&str; 4] =
    ["messages", "tools", "add_generation_prompt", "continue_final_message"];
/// Marks the end of the message to continue; the template may strip the space.
const CONTINUE_MARK: &str = "VRUST_CONTINUES_FINAL_MESSAGE_HERE ";

/// The template for chats without tools, and the one for chats with them.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// A checkpoint's chat template, compiled. Any thread may render with it.
pub struct ChatTemplate {
    environment: Environment<'static>,
    default: Option<ContentFormat>,
    tool_use: Option<ContentFormat>,
    /// `bos_token` and its kin, as the template's variables.
    special_tokens: Vec<(String, String)>,
}

impl ChatTemplate {
    /// The template in `dir`: chat_template.jinja (and additional_chat_templates/tool_use.jinja),
    /// else `chat_template` of tokenizer_config.json, a source or a list of `{name, template}`.
    /// `None` when there is none.
    ///
    /// # Errors
    /// `TEMPLATE`, naming file, line and cause.
    pub fn from_dir(dir: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let mut template = Self::empty(tokenizer);
        let file = dir.join("chat_template.jinja");
        if let Some(source) = read_source(&file)? {
            template.add(DEFAULT, &source).map_err(|e| e.context(file.display()))?;
            let file = dir.join("additional_chat_templates").join("tool_use.jinja");
            if let Some(source) = read_source(&file)? {
                template.add(TOOL_USE, &source).map_err(|e| e.context(file.display()))?;
            }
            return Ok(Some(template));
        }
        let file = dir.join("tokenizer_config.json");
        match read_object(&file, ErrorKind::Template)?.get("chat_template") {
            Some(Value::String(source)) => template.add(DEFAULT, source),
            Some(Value::Array(list)) => template.add_list(list),
            Some(Value::Null) | None => return Ok(None),
            Some(_) => {
                Err(template_error("chat_template is neither a string nor a list of templates"))
            }
        }
        .map_err(|e| e.context(file.display()))?;
        Ok(Some(template))
    }

    /// The template in `source`.
    ///
    /// # Errors
    /// `TEMPLATE`, naming line and cause.
    pub fn from_source(source: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let mut template = Self::empty(tokenizer);
        template.add(DEFAULT, source)?;
        Ok(template)
    }

    /// What to answer a chat when the checkpoint has no template.
    pub fn missing() -> Error {
        template_error(
            "the model has no chat template: put a chat_template.jinja into its folder, set \
             chat_template in the engine's options, or send the prompt as text",
        )
    }

    /// The prompt for `chat`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for malformed messages, `UNSUPPORTED` for content other than text,
    /// `TEMPLATE` for what the template raises or runs into, with line and cause.
    pub fn render(&self, chat: &ChatInput) -> Result<String> {
        let with_tools = chat.tools.is_some();
        let (name, format) = match (with_tools, self.tool_use, self.default) {
            (true, Some(format), _) => (TOOL_USE, format),
            (_, _, Some(format)) => (DEFAULT, format),
            _ => {
                return Err(template_error(
                    "the model's only chat template is for chats with tools: send tools, or set \
                     chat_template in the engine's options",
                ));
            }
        };
        if chat.continue_final_message && chat.add_generation_prompt {
            return Err(Error::invalid(
                "continue_final_message",
                "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
            ));
        }
        let mut messages = messages::prepare(&chat.messages, format)?;
        let final_message = match chat.continue_final_message {
            true => Some(messages::mark_final(&mut messages, CONTINUE_MARK)?),
            false => None,
        };
        let context = self.context(chat, &messages)?;
        let inputs = messages.iter().chain(&chat.tools).chain(&chat.template_kwargs);
        let fuel = sandbox::fuel_for(messages.len(), inputs);
        let text = sandbox::render(fuel, || self.run(name, context, fuel))?;
        match final_message {
            Some(message) => cut_at_mark(text, &message),
            None => Ok(text),
        }
    }

    /// The source of the template for chats with or without tools.
    pub(super) fn source(&self, with_tools: bool) -> String {
        let name = if with_tools && self.tool_use.is_some() { TOOL_USE } else { DEFAULT };
        let found = self.environment.get_template(name);
        found.map(|template| template.source().to_owned()).unwrap_or_default()
    }

    fn empty(tokenizer: &Tokenizer) -> Self {
        let mut environment = Environment::new();
        // The delimiters are the defaults, so that the builder has nothing to refuse.
        if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
            environment.set_syntax(syntax);
        }
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_recursion_limit(RECURSION_LIMIT);
        python::install(&mut environment);
        let special_tokens = tokenizer.named_special_tokens().to_vec();
        Self { environment, default: None, tool_use: None, special_tokens }
    }

    fn add(&mut self, name: &'static str, source: &str) -> Result<()> {
        if source.len() as u64 > MAX_SOURCE_BYTES {
            return Err(template_error(format!(
                "the chat template is larger than the limit of {MAX_SOURCE_BYTES} bytes"
            ))
            .with("limit", MAX_SOURCE_BYTES)
            .with("value", source.len()));
        }
        let format = ContentFormat::of(source);
        let source = python::without_generation_tags(source);
        let environment = &mut self.environment;
        sandbox::compile(source.len(), || {
            environment.add_template_owned(name, source).map_err(|e| jinja_error(&e))
        })?;
        match name {
            TOOL_USE => self.tool_use = Some(format),
            _ => self.default = Some(format),
        }
        Ok(())
    }

    fn add_list(&mut self, list: &[Value]) -> Result<()> {
        for entry in list {
            let (Some(name), Some(source)) = (entry["name"].as_str(), entry["template"].as_str())
            else {
                return Err(template_error("chat_template has an entry without name or template"));
            };
            match name {
                DEFAULT => self.add(DEFAULT, source)?,
                TOOL_USE => self.add(TOOL_USE, source)?,
                _ => {}
            }
        }
        if self.default.is_none() && self.tool_use.is_none() {
            return Err(template_error("chat_template lists no template named default"));
        }
        Ok(())
    }

    /// The template's variables.
    fn context(&self, chat: &ChatInput, messages: &[Value]) -> Result<Jinja> {
        let mut variables: Vec<(String, Jinja)> = Vec::new();
        let mut set = |name: &str, value: Jinja| match variables.iter_mut().find(|v| v.0 == name) {
            Some(variable) => variable.1 = value,
            None => variables.push((name.to_owned(), value)),
        };
        set("documents", Jinja::from(()));
        for (name, token) in &self.special_tokens {
            set(name, Jinja::from(token.as_str()));
        }
        let none = Map::new();
        let kwargs = match &chat.template_kwargs {
            None | Some(Value::Null) => &none,
            Some(Value::Object(kwargs)) => kwargs,
            Some(_) => {
                return Err(Error::invalid("template_kwargs", "template_kwargs is not an object"));
            }
        };
        for (name, value) in kwargs {
            if RESERVED.contains(&name.as_str()) {
                let message = format!("template_kwargs cannot set {name}: the request has it");
                return Err(Error::invalid("template_kwargs", message));
            }
            set(name, Jinja::from(Serde(value)));
        }
        match &chat.tools {
            None | Some(Value::Null) => set("tools", Jinja::from(())),
            Some(tools @ Value::Array(_)) => set("tools", Jinja::from(Serde(tools))),
            Some(_) => return Err(Error::invalid("tools", "tools is not an array")),
        }
        set("messages", Jinja::from(Serde(messages)));
        set("add_generation_prompt", Jinja::from(chat.add_generation_prompt));
        Ok(Jinja::from_pairs(variables))
    }

    fn run(&self, name: &str, context: Jinja, fuel: u64) -> Result<String> {
        // The budget belongs to the environment; its templates and filters are shared.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let template = environment.get_template(name).map_err(|e| jinja_error(&e))?;
        let mut output = Limited { bytes: Vec::new(), exceeded: false };
        let rendered = template.render_captured_to(context, &mut output).map(|_| ());
        if output.exceeded {
            return Err(template_error(format!(
                "the chat template wrote more than the limit of {MAX_OUTPUT_BYTES} bytes"
            ))
            .with("limit", MAX_OUTPUT_BYTES));
        }
        rendered.map_err(|e| jinja_error(&e))?;
        String::from_utf8(output.bytes).map_err(|e| template_error(e.to_string()))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("default", &self.default)
            .field("tool_use", &self.tool_use)
            .finish_non_exhaustive()
    }
}

/// Output that refuses to grow beyond the limit.
struct Limited {
    bytes: Vec<u8>,
    exceeded: bool,
}

impl Write for Limited {
    fn write(&mut self, chunk: &[u8]) -> std::io::Result<usize> {
        let room = MAX_OUTPUT_BYTES - self.bytes.len();
        if chunk.len() > room || self.bytes.try_reserve(chunk.len()).is_err() {
            self.exceeded = true;
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(chunk);
        Ok(chunk.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Cuts a rendering where the message to continue ends.
fn cut_at_mark(mut text: String, message: &str) -> Result<String> {
    let mark = CONTINUE_MARK.trim_end();
    let at = text.rfind(mark).filter(|_| text.contains(message.trim())).ok_or_else(|| {
        template_error(
            "continue_final_message is set but the final message does not appear in the chat \
             after applying the chat template",
        )
    })?;
    // A template that strips the message's end strips the mark's space as well.
    let preserved = text[at..].starts_with(CONTINUE_MARK);
    text.truncate(at);
    if !preserved {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

fn read_source(path: &Path) -> Result<Option<String>> {
    let Some(bytes) = read_limited(path, MAX_SOURCE_BYTES, ErrorKind::Template)? else {
        return Ok(None);
    };
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|e| template_error(format!("{}: {e}", path.display())))
}

fn template_error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Template, message)
}

/// A minijinja error with its line and its innermost cause.
fn jinja_error(error: &minijinja::Error) -> Error {
    let mut cause = error;
    let mut line = error.line();
    while let Some(inner) =
        std::error::Error::source(cause).and_then(|e| e.downcast_ref::<minijinja::Error>())
    {
        cause = inner;
        line = inner.line().or(line);
    }
    let what = match (cause.kind(), cause.detail()) {
        (minijinja::ErrorKind::OutOfFuel, _) => {
            "the template does more work than a chat of this size may take".to_owned()
        }
        // What a template raises is meant for the reader as it stands.
        (minijinja::ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    match line {
        Some(line) => {
            template_error(format!("chat template, line {line}: {what}")).with("line", line)
        }
        None => template_error(format!("chat template: {what}")),
    }
}
