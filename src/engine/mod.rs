//! The engine: requests in, events out, and a worker thread of its own between them.
//!
//! ```text
//!   host threads            tokenizer pool             worker thread
//!   ────────────            ──────────────             ─────────────
//!   submit ──► registry ──► render, encode ──► mailbox ──► intake
//!   abort  ───────────────────────────────────► mailbox    schedule ──► Batch
//!                                                          run ───────► logits
//!                                                          sample ────► tokens
//!   poll ◄── EventQueue ◄───────────────────────────────── emit
//! ```
//!
//! Invariants: the handle never touches scheduler, model or backend (the worker owns them); the
//! worker never blocks on a host; every accepted request gets exactly one last event.

mod admit;
mod deadlines;
mod device;
mod emit;
mod event;
mod figures;
mod handle;
mod intake;
mod load;
mod mailbox;
#[cfg(all(test, feature = "shuttle"))]
mod models;
mod output;
mod queue;
mod registry;
mod runner;
mod sample;
mod steps;
mod worker;

pub use crate::request::{Logprob, TokenLogprobs};
pub use event::{Delta, Event, EventKind, Finished, Times, Usage};
pub use handle::{Engine, EngineState, QueueOptions, ShutdownMode};
pub use queue::{EventQueue, Polled};
