//! Chat messages to a prompt, by the checkpoint's Jinja template; and a model's output back to the
//! parts of a message (`output`).
//!
//! The same text as Hugging Face's `apply_chat_template`, with vLLM's treatment of content parts
//! and of tool calls. A template is the model author's program: it runs with a budget of work,
//! output and recursion, and can fail only its own request.

mod messages;
pub mod output;
mod python;
mod sandbox;
mod template;
#[cfg(test)]
mod tests;

pub use template::ChatTemplate;
