//! The C ABI: the only exported symbols of the library. Each export converts, makes one call to
//! `engine`, `tokenizer` or `chat`, and converts back; it decides nothing.
//!
//! ```text
//!   vrust_noun_verb(handle, inputs.., *outputs, **err)
//!        │ boundary: fork check, catch_unwind, Error -> VrustError
//!        │ handle:   slot + generation -> Arc          (nothing is ever dereferenced)
//!        │ input:    pointers -> owned, checked values
//!        ▼
//!      one call ──► outputs, written only on success
//! ```
//!
//! One file per noun of the header, `include/vrust/vrust.h`, which `tests/tools/header` generates
//! from these files: their documentation is the header's. Handles are never addresses, so that no
//! misuse of one is undefined behaviour.

#![allow(
    clippy::missing_safety_doc,
    reason = "the header states the rules for pointers once, for every function"
)]
#![allow(
    clippy::too_many_arguments,
    reason = "flat arguments: Go may not pass a struct that holds Go pointers"
)]
#![allow(
    unreachable_pub,
    reason = "what is pub here is reached by its C name; cbindgen reads it from the source"
)]

mod boundary;
mod bytes;
mod chat;
mod chat_parser;
mod engine;
mod engine_options;
mod error;
mod event;
mod handle;
mod input;
mod json;
mod log;
mod panic;
mod process;
mod queue;
mod request;
mod request_json;
mod sampling_json;
mod stats;
mod status;
mod tokenizer;
mod version;
