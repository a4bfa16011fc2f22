//! The scheduler: which sequences compute how many tokens in the next step. Pure logic on ids,
//! counts and blocks: it knows no tensor, text, device or clock.
//!
//! ```text
//!          add                 admit                     stop, finish
//!  caller ─────► waiting ────────────────► running ───────────────────► finished ──► gone
//!                   ▲                         │                        (until its steps
//!                   └────── preempt ──────────┘                         are back)
//!
//!  schedule(k) ─► schedule(k+1) ─► … postprocess(k) ─► schedule(k+2) ─► postprocess(k+1)
//! ```
//!
//! There is no prefill and no decode phase: a sequence's computed positions catch up with its
//! tokens. Each step has one budget of tokens; running sequences come first, in order, and waiting
//! ones only if nothing was preempted.
//!
//! **Steps in flight.** Steps run and complete in the order in which they were scheduled, and each
//! layer of a step writes the keys and values of all its rows before any row attends. What a step
//! was scheduled to compute therefore counts as computed for every row scheduled in that step or
//! later: blocks enter the prefix cache when they are scheduled, so that equal prompts share from
//! the same step on, and the blocks of a preempted sequence may go to another one while a step
//! that uses them is still in flight.
//!
//! **Failure.** That trust is undone when a step fails: it takes with it the steps scheduled after
//! it. Blocks that any of them was to complete leave the cache, their sequences go back to where
//! the failed step began, and sequences that were admitted on such blocks are preempted.

mod add;
mod admission;
mod batch;
mod complete;
mod config;
mod failure;
mod finish;
mod in_flight;
mod integrity;
mod queue;
mod running;
mod sequence;
mod sequences;
mod stats;

pub use batch::{Batch, ScheduledSequence, StepId};
pub use complete::{SampledToken, TokenOutcome};
pub use config::SchedulerConfig;
pub use sequence::{NewSequence, Sequence};
pub use stats::SchedulerStats;

use std::collections::VecDeque;

use crate::error::Result;
use crate::ids::{BlockId, SeqId};
use crate::kv_cache::{BlockPool, CacheKey};
use in_flight::{InFlightStep, Part};
use queue::WaitingQueue;
use sequences::{Sequences, Slot};

/// Decides what each step computes; owns the KV cache's bookkeeping.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    pool: BlockPool,
    sequences: Sequences,
    waiting: WaitingQueue,
    /// In order of admission.
    running: Vec<Slot>,
    /// Oldest first.
    in_flight: VecDeque<InFlightStep>,
    next_step: StepId,
    counters: stats::Counters,
    /// Preempted, and not yet told by a batch.
    preempted: Vec<SeqId>,
    /// Length of the last batch's flat block tables.
    last_table_len: usize,
    /// Scratch of `schedule`: running sequences and their rows.
    chosen: Vec<(Slot, usize)>,
    /// Scratch of admission, by group: the blocks found in the cache.
    hits: Vec<Vec<BlockId>>,
    /// Steps to be used again.
    spare: Vec<InFlightStep>,
}

impl Scheduler {
    /// A scheduler without sequences. Fails if the configuration contradicts itself or memory for
    /// the pool cannot be had.
    pub fn new(config: SchedulerConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            pool: BlockPool::new(config.num_blocks, config.shuffle_blocks)?,
            sequences: Sequences::default(),
            waiting: WaitingQueue::new(config.policy),
            running: Vec::new(),
            in_flight: VecDeque::new(),
            next_step: StepId(0),
            counters: stats::Counters::default(),
            preempted: Vec::new(),
            last_table_len: 0,
            chosen: Vec::new(),
            hits: vec![Vec::new(); config.num_groups],
            spare: Vec::new(),
            config,
        })
    }

    /// The next step, or `None` if there is nothing to do now. It may be asked for while earlier
    /// steps are in flight; `None` may then turn into a step when one of them is back.
    pub fn schedule(&mut self) -> Option<Batch> {
        let mut step = self.spare.pop().unwrap_or_default();
        let mut batch = Batch {
            step: self.next_step,
            seqs: Vec::with_capacity(self.running.len()),
            block_tables: vec![Vec::new(); self.config.num_groups],
            ..Batch::default()
        };
        for table in &mut batch.block_tables {
            // As long as the last step's, and some more: blocks fill at different times.
            table.reserve(self.last_table_len + self.last_table_len / 8);
        }
        loop {
            let mut budget = self.config.max_num_batched_tokens;
            let preempted = self.choose_running(&mut budget);
            self.commit_running(&mut step, &mut batch);
            if !preempted {
                self.admit_waiting(budget, &mut step, &mut batch);
            }
            // With nothing in flight and nothing to run, only held sequences' memory can be in
            // the way of the waiting ones: take it, the newest's first.
            let stuck = step.parts.is_empty() && self.in_flight.is_empty();
            if !stuck || !(preempted || self.preempt_newest_held()) {
                break;
            }
        }
        if step.parts.is_empty() {
            self.spare.push(step);
            return None;
        }
        step.step = self.next_step;
        self.next_step.0 += 1;
        self.last_table_len = batch.block_tables[0].len();
        batch.preempted = std::mem::take(&mut self.preempted);
        self.in_flight.push_back(step);
        Some(batch)
    }

    /// The sequence, while it is unfinished.
    pub fn sequence(&self, id: SeqId) -> Option<&Sequence> {
        self.sequences.find(id).map(|slot| &self.sequences[slot])
    }

    /// Whether any sequence waits or runs.
    pub fn has_unfinished(&self) -> bool {
        !self.sequences.is_empty()
    }

    /// Steps scheduled and not yet back.
    pub fn num_steps_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// A held sequence is not scheduled; it keeps its blocks, and its place. Only when nothing
    /// else can run for want of memory are held sequences preempted. Unknown ids are ignored.
    pub fn hold(&mut self, id: SeqId, held: bool) {
        if let Some(slot) = self.sequences.find(id) {
            self.sequences[slot].held = held;
        }
    }

    /// Empties the prefix cache; false, and nothing done, while a sequence holds a block.
    pub fn reset_prefix_cache(&mut self) -> bool {
        self.pool.reset_prefix_cache()
    }

    /// Blocks whose content became garbage since the last call (free and not cached, or evicted),
    /// each once: for tests that poison them. Ask after each `schedule`, and poison after every
    /// earlier step and before the new one: some of these blocks may be in use by it.
    pub fn take_freed_blocks(&mut self) -> Vec<BlockId> {
        self.pool.take_freed()
    }

    /// Adds `num_rows` more positions of `slot`, whose blocks it has, to the step.
    fn advance(&mut self, slot: Slot, num_rows: usize, step: &mut InFlightStep, batch: &mut Batch) {
        let block_size = self.config.block_size;
        let seq = &mut self.sequences[slot];
        let start = seq.num_computed;
        let end = start + num_rows;
        let samples = end == seq.num_tokens_with_placeholders();
        let num_blocks = end.div_ceil(block_size);
        batch.seqs.push(ScheduledSequence {
            id: seq.id(),
            num_computed_tokens: start,
            num_scheduled_tokens: num_rows,
            samples,
            block_table_start: batch.block_tables[0].len(),
            num_blocks,
        });
        for (flat, table) in batch.block_tables.iter_mut().zip(&seq.block_tables) {
            flat.extend_from_slice(&table[..num_blocks]);
        }
        batch.num_tokens += num_rows;
        seq.num_computed = end;
        seq.num_placeholders += usize::from(samples);
        seq.num_in_flight += 1;
        step.parts.push(Part { slot, id: seq.id(), epoch: seq.epoch, start, end, samples });
        self.cache_full_blocks(slot, Some(step));
    }

    /// Puts the sequence's blocks that are full of known and scheduled tokens in the cache. `step`
    /// is the newest step that may have yet to compute them, none if no step is in flight.
    fn cache_full_blocks(&mut self, slot: Slot, step: Option<&mut InFlightStep>) {
        let block_size = self.config.block_size;
        let seq = &mut self.sequences[slot];
        let full = seq.num_computed.min(seq.tokens().len()) / block_size;
        if full <= seq.num_hashed_blocks || !seq.cacheable || !self.config.enable_prefix_caching {
            return;
        }
        let first = std::mem::replace(&mut seq.num_hashed_blocks, full);
        seq.block_hashes(full, block_size);
        let mut pending = step;
        for i in first..full {
            let hashes = seq.block_hashes(full, block_size);
            let (hash, parent) = (hashes[i], i.checked_sub(1).map(|p| hashes[p]));
            for (group, table) in (0..).zip(&seq.block_tables) {
                let key = CacheKey { hash, group };
                self.pool.cache(table[i], key, parent);
                if let Some(step) = &mut pending {
                    step.hashed.push((table[i], key));
                }
            }
        }
    }
}
