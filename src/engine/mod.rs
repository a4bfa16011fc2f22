//! The `engine` room.

mod event;

pub use event::{Delta, Event, EventKind, Finished, Logprob, Times, TokenLogprobs, Usage};
