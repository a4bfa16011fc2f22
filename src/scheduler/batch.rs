//! `Batch`: what one step computes, as plain data.

use crate::ids::{BlockCopy, BlockId, SeqId};

/// Number of a step, counted from 0 by the scheduler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId(pub u64);

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduledSequence {
    /// Which one.
    pub id: SeqId,
    /// Positions computed before this step (cache hits included): the first row's position.
    pub num_computed_tokens: usize,
    /// Rows of this step, at least 1.
    pub num_scheduled_tokens: usize,
    /// Whether the last row's logits yield the sequence's next token.
    pub samples: bool,
    /// First entry in each group's flat `Batch::block_tables`.
    pub block_table_start: usize,
    /// Entries: enough blocks for `num_computed_tokens + num_scheduled_tokens` positions.
    pub num_blocks: usize,
}

/// What one step computes.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Which step.
    pub step: StepId,
    /// The sequences, running ones first.
    pub seqs: Vec<ScheduledSequence>,
    /// By KV group: the sequences' block tables, one after the other.
    pub block_tables: Vec<Vec<BlockId>>,
    /// Copies to make before the forward pass.
    pub block_copies: Vec<BlockCopy>,
    /// Sequences preempted while this step was scheduled.
    pub preempted: Vec<SeqId>,
    /// Sequences admitted (again) in this step, with the positions found in the prefix cache.
    pub admitted: Vec<(SeqId, usize)>,
    /// Rows of the whole step.
    pub num_tokens: usize,
}
