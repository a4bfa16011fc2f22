//! A model's output to the parts of an OpenAI message, as it streams in.
//!
//! ```text
//!   push(text) ──► Reasoning ──► Tools ──► Sink ──► parts
//!                  <think>..     │  text: a marker, or content
//!                  </think>      └─ Call: one format's calls, a character at a time
//! ```
//!
//! Every decision is taken at a character and from the characters before it, so that the parts do
//! not depend on how the text was cut. What may still be a marker or a call's beginning is held
//! back; a call that turns out malformed is content, from where its last part ended. No text is
//! read twice: the work is linear.

mod call;
mod format;
mod json;
mod marker;
mod mistral;
mod object;
mod parser;
mod python_literal;
mod pythonic;
mod qwen3_xml;
mod reasoning;
mod schema;
mod sink;
#[cfg(test)]
mod tests;
mod tools;

pub use format::{Choice, ReasoningFormat, ToolFormat};
pub use parser::{ChatParser, ParserOptions};
pub use sink::Part;
