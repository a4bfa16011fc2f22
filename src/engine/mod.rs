//! The `engine` room.

mod event;

pub use event::{Delta, Event, EventKind, Finished, Times, Usage};

pub use crate::request::{Logprob, TokenLogprobs};
