//! The `scheduler` room.

mod batch;

pub use batch::{Batch, ScheduledSequence, StepId};
