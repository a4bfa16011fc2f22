//! A world around the scheduler: a device that runs its steps in order, with a shadow of the KV
//! cache that knows the content of each slot, and a model whose next token is a function of the
//! sequence's own tokens. Everything that the scheduler promises is checked at each turn.

mod model;

use std::collections::{BTreeMap, HashSet, VecDeque};

use vrust::config::SchedulingPolicy;
use vrust::ids::{BlockId, SeqId, TokenId};
use vrust::scheduler::{
    Batch, NewSequence, SampledToken, ScheduledSequence, Scheduler, SchedulerConfig, TokenOutcome,
};

pub(crate) use model::VOCAB;
use model::{Simulated, alone, mix, next_token, stop};

/// How a step goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every sequence that samples gets one token.
    Normal,
    /// Nothing is computed.
    Fails,
    /// Some sequences get no token or two, chosen by this number.
    Uneven(u64),
}

pub(crate) struct Simulator {
    pub(crate) scheduler: Scheduler,
    config: SchedulerConfig,
    /// Most steps in flight.
    depth: usize,
    seqs: BTreeMap<SeqId, Simulated>,
    in_flight: VecDeque<Flight>,
    /// Counts poisonings and such.
    turn: u64,
    /// By group, block and offset: what the slot holds.
    shadow: Vec<Vec<Slot>>,
    /// What the scheduler's lists must be, as its batches tell.
    waiting: Vec<SeqId>,
    running: Vec<SeqId>,
}

struct Flight {
    batch: Batch,
    freed: Vec<BlockId>,
    void: bool,
    /// When it was scheduled.
    turn: u64,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    /// `None`: never written, or garbage.
    content: Option<u64>,
    /// Not to be trusted since this turn.
    poisoned: Option<u64>,
}

impl Simulator {
    pub(crate) fn new(config: SchedulerConfig, depth: usize) -> Self {
        let slots = config.num_blocks * config.block_size;
        Self {
            scheduler: Scheduler::new(config.clone()).unwrap(),
            depth,
            seqs: BTreeMap::new(),
            in_flight: VecDeque::new(),
            turn: 0,
            shadow: vec![vec![Slot::default(); slots]; config.num_groups],
            waiting: Vec::new(),
            running: Vec::new(),
            config,
        }
    }

    /// Adds a sequence; false if the scheduler refuses it, which it may only if it cannot fit.
    pub(crate) fn add(&mut self, new: NewSequence) -> bool {
        let positions = new.prompt.len() + new.max_tokens - 1;
        let blocks = positions.div_ceil(self.config.block_size) * self.config.num_groups;
        let fits = blocks < self.config.num_blocks;
        let added = self.scheduler.add(new.clone());
        assert_eq!(added.is_ok(), fits, "{added:?}");
        if fits {
            self.waiting.push(new.id);
            let seq = Simulated::new(new, self.config.num_groups);
            self.seqs.insert(seq.new.id, seq);
        }
        self.check();
        fits
    }

    /// Finishes the `nth` live sequence.
    pub(crate) fn finish(&mut self, nth: usize, poisoned: bool) {
        let Some(id) = self.live(nth) else { return };
        self.turn += 1;
        // A preempted sequence's last tables are others' by now.
        if poisoned && self.scheduler.sequence(id).unwrap().is_running() {
            let seq = self.seqs.get_mut(&id).unwrap();
            seq.poisoned = Some(self.turn);
            let block_size = self.config.block_size;
            for (group, table) in seq.tables.iter().enumerate() {
                for (p, content) in seq.contents.iter().take(table.len() * block_size).enumerate() {
                    let slot = &mut self.shadow[group][slot_of(table, p, block_size)];
                    if slot.content == Some(*content) {
                        slot.poisoned = earlier(slot.poisoned, seq.poisoned);
                    }
                }
            }
        }
        assert!(self.scheduler.finish(id, poisoned));
        assert!(!self.scheduler.finish(id, poisoned), "known after it finished");
        self.forget(id);
        self.check();
    }

    pub(crate) fn hold(&mut self, nth: usize, held: bool) {
        let Some(id) = self.live(nth) else { return };
        self.scheduler.hold(id, held);
        self.seqs.get_mut(&id).unwrap().held = held;
    }

    /// Schedules a step if the pipeline has room. False if there is nothing to schedule.
    pub(crate) fn schedule(&mut self) -> bool {
        if self.in_flight.len() == self.depth {
            return true;
        }
        let before = self.scheduler.stats().preemptions;
        let batch = self.scheduler.schedule();
        let none = batch.is_none();
        if let Some(batch) = batch {
            let preempted = self.scheduler.stats().preemptions > before;
            let held = self.seqs.values().any(|seq| seq.held && !seq.gone);
            assert!(!preempted || batch.admitted.is_empty() || held, "preempted and admitted");
            let freed = self.scheduler.take_freed_blocks();
            self.check_batch(&batch);
            self.in_flight.push_back(Flight { batch, freed, void: false, turn: self.turn });
        } else if self.in_flight.is_empty() {
            let idle = self.seqs.values().all(|seq| seq.gone || seq.held);
            assert!(idle, "nothing scheduled although something could run");
        }
        self.check();
        !none
    }

    /// Runs and takes back the oldest step.
    pub(crate) fn complete(&mut self, outcome: Outcome) {
        let Some(Flight { batch, freed, void, turn }) = self.in_flight.pop_front() else { return };
        for block in freed {
            let first = block.index() * self.config.block_size;
            for group in &mut self.shadow {
                group[first..first + self.config.block_size].fill(Slot::default());
            }
        }
        if void || outcome == Outcome::Fails {
            self.complete_garbage(&batch, void, outcome);
        } else {
            self.complete_good(&batch, outcome, turn);
        }
        for (id, seq) in self.seqs.iter().filter(|(_, seq)| !seq.gone) {
            let known = self.scheduler.sequence(*id).unwrap();
            assert_eq!(known.tokens(), seq.tokens, "tokens of {id}");
            assert_eq!(known.output_tokens(), seq.outputs, "outputs of {id}");
        }
        self.check();
    }

    /// Releases everything held and runs until all sequences are done; then checks their outputs.
    pub(crate) fn drain(&mut self) {
        for (id, seq) in &mut self.seqs {
            self.scheduler.hold(*id, false);
            seq.held = false;
        }
        let tokens: usize = self.seqs.values().map(|s| s.new.prompt.len() + s.new.max_tokens).sum();
        for _ in 0..1000 + 100 * tokens {
            if !self.scheduler.has_unfinished() && self.in_flight.is_empty() {
                break;
            }
            while self.in_flight.len() < self.depth && self.schedule() {}
            self.complete(Outcome::Normal);
        }
        assert!(!self.scheduler.has_unfinished(), "starved: {:?}", self.scheduler.stats());
        for (id, seq) in &self.seqs {
            let (outputs, finish) = alone(&seq.new);
            match seq.finish {
                Some(_) => {
                    assert_eq!((&seq.outputs, &seq.finish), (&outputs, &Some(finish)), "{id}")
                }
                None => assert_eq!(seq.outputs, outputs[..seq.outputs.len()], "{id}"),
            }
        }
        let stats = self.scheduler.stats();
        assert_eq!((stats.running, stats.waiting, stats.blocks.used), (0, 0, 0));
        assert!(self.scheduler.reset_prefix_cache());
        assert_eq!(self.scheduler.stats().blocks.free, self.config.num_blocks - 1);
        self.check();
    }

    fn live(&self, nth: usize) -> Option<SeqId> {
        let live: Vec<_> = self.seqs.iter().filter(|(_, seq)| !seq.gone).collect();
        (!live.is_empty()).then(|| *live[nth % live.len()].0)
    }

    fn forget(&mut self, id: SeqId) {
        self.seqs.get_mut(&id).unwrap().gone = true;
        self.waiting.retain(|&other| other != id);
        self.running.retain(|&other| other != id);
    }

    fn check(&self) {
        self.scheduler.check_integrity().unwrap();
        let blocks = self.scheduler.stats().blocks;
        assert_eq!(blocks.total, self.config.num_blocks - 1);
        assert_eq!(blocks.free + blocks.cached + blocks.used, blocks.total);
    }

    fn check_batch(&mut self, batch: &Batch) {
        self.check_lists(batch);
        let rows: usize = batch.seqs.iter().map(|s| s.num_scheduled_tokens).sum();
        assert_eq!(rows, batch.num_tokens);
        assert!(rows <= self.config.max_num_batched_tokens);
        assert!(batch.seqs.len() <= self.config.max_num_seqs);
        self.check_nobody_was_forgotten(batch);
        let stats = self.scheduler.stats();
        let mut order = self.running.iter();
        for s in &batch.seqs {
            assert!(order.any(|&id| id == s.id), "{} out of order in {batch:?}", s.id);
            let seq = self.seqs.get_mut(&s.id).unwrap();
            assert!(!seq.gone && !seq.held);
            assert!(s.num_scheduled_tokens > 0);
            let threshold = self.config.long_prefill_token_threshold;
            if threshold > 0
                && self.config.enable_chunked_prefill
                && stats.running + stats.waiting > 1
            {
                assert!(s.num_scheduled_tokens <= threshold);
            }
            let end = s.num_computed_tokens + s.num_scheduled_tokens;
            assert!(end < seq.new.prompt.len() + seq.new.max_tokens, "past its length");
            assert_eq!(s.num_blocks, end.div_ceil(self.config.block_size));
            for (group, table) in batch.block_tables.iter().enumerate() {
                seq.tables[group] = table_of(table, s).to_vec();
                assert!(!seq.tables[group].contains(&BlockId(0)), "the null block is in use");
            }
        }
        for &(id, hits) in &batch.admitted {
            let seq = &self.seqs[&id];
            assert!(hits < seq.tokens.len() && hits % self.config.block_size == 0);
            assert!(hits == 0 || self.config.enable_prefix_caching && !seq.new.skip_cache_read);
        }
    }

    /// A step with room to spare has a part of every sequence that runs and has nothing in flight.
    fn check_nobody_was_forgotten(&self, batch: &Batch) {
        if batch.num_tokens >= self.config.max_num_batched_tokens
            || batch.seqs.len() >= self.config.max_num_seqs
        {
            return;
        }
        let batches = || self.in_flight.iter().map(|flight| &flight.batch).chain([batch]);
        for id in self.running.iter().filter(|id| !self.seqs[id].held) {
            let busy = batches().any(|batch| batch.seqs.iter().any(|s| s.id == *id));
            assert!(busy, "{id} was forgotten in {batch:?}");
        }
    }

    /// Follows the lists by what the batch tells, and checks the order of admission.
    fn check_lists(&mut self, batch: &Batch) {
        for id in &batch.preempted {
            if self.seqs[id].gone {
                continue;
            }
            let at = self.running.iter().position(|other| other == id);
            self.running.remove(at.expect("preempted, but did not run"));
            self.waiting.insert(0, *id);
        }
        if self.config.policy == SchedulingPolicy::Priority {
            let key = |id: &SeqId| {
                let new = &self.seqs[id].new;
                (new.priority, new.arrival, *id)
            };
            self.waiting.sort_by_key(key);
        }
        for (id, _) in &batch.admitted {
            let first = self.waiting.iter().position(|id| !self.seqs[id].held);
            let next = self.waiting.remove(first.expect("admitted, but nobody waits"));
            assert_eq!(next, *id, "overtook");
            self.running.push(*id);
        }
    }

    /// A step that computes nothing good: what it writes is garbage, what it samples too.
    fn complete_garbage(&mut self, batch: &Batch, void: bool, outcome: Outcome) {
        for s in &batch.seqs {
            for (group, table) in batch.block_tables.iter().enumerate() {
                let end = s.num_computed_tokens + s.num_scheduled_tokens;
                for p in s.num_computed_tokens..end {
                    let slot = slot_of(table_of(table, s), p, self.config.block_size);
                    self.shadow[group][slot] = Slot::default();
                }
            }
        }
        if outcome == Outcome::Fails {
            self.scheduler.fail_step(batch.step);
            if !void {
                self.in_flight.iter_mut().for_each(|flight| flight.void = true);
            }
            return;
        }
        let samplers = batch.seqs.iter().filter(|s| s.samples);
        let sampled: Vec<_> = samplers.map(|s| SampledToken { id: s.id, token: GARBAGE }).collect();
        assert_eq!(self.scheduler.postprocess(batch.step, &sampled), []);
    }

    fn complete_good(&mut self, batch: &Batch, outcome: Outcome, turn: u64) {
        let mut written = HashSet::new();
        for s in &batch.seqs {
            self.write(batch, s, &mut written);
        }
        let mut sampled = Vec::new();
        for s in &batch.seqs {
            if self.is_void(batch, s) {
                let token = GARBAGE;
                sampled.extend(s.samples.then_some(SampledToken { id: s.id, token }));
                continue;
            }
            self.read(batch, s, turn);
            if s.samples {
                self.sample(batch, s, outcome, &mut sampled);
            }
        }
        if let Outcome::Uneven(x) = outcome
            && x % 2 == 0
        {
            // Sequences may come in any order, each one's tokens together.
            sampled.sort_by_key(|s| std::cmp::Reverse(s.id));
        }
        for outcome in self.scheduler.postprocess(batch.step, &sampled) {
            let TokenOutcome { id, token, finish } = outcome;
            let seq = self.seqs.get_mut(&id).unwrap();
            assert!(!seq.gone, "token of a finished sequence");
            seq.outputs.push(token);
            if finish.is_some() {
                seq.finish = finish;
                self.forget(id);
            }
        }
    }

    fn is_void(&self, batch: &Batch, s: &ScheduledSequence) -> bool {
        self.seqs[&s.id].void_through >= Some(batch.step)
    }

    fn write(
        &mut self,
        batch: &Batch,
        s: &ScheduledSequence,
        written: &mut HashSet<(usize, usize)>,
    ) {
        let void = self.is_void(batch, s);
        let seq = &self.seqs[&s.id];
        let (start, block_size) = (s.num_computed_tokens, self.config.block_size);
        for (group, table) in batch.block_tables.iter().enumerate() {
            let table = table_of(table, s);
            let reads = (0..start).map(|p| self.shadow[group][slot_of(table, p, block_size)]);
            let poisoned = reads.fold(seq.poisoned, |p, slot: Slot| earlier(p, slot.poisoned));
            for p in start..start + s.num_scheduled_tokens {
                let slot = slot_of(table, p, block_size);
                assert!(written.insert((group, slot)), "two writers in one step");
                // A token that the device does not know would be a step scheduled too early.
                let content = if void { None } else { Some(seq.contents[p]) };
                self.shadow[group][slot] = Slot { content, poisoned };
            }
        }
    }

    /// The heart of it: every position that the sequence attends to holds its own prefix.
    fn read(&self, batch: &Batch, s: &ScheduledSequence, turn: u64) {
        let seq = &self.seqs[&s.id];
        let admitted = batch.admitted.iter().find(|(id, _)| *id == s.id);
        let num_hits = admitted.map_or(0, |(_, num_hits)| *num_hits);
        for (group, table) in batch.block_tables.iter().enumerate() {
            for p in 0..s.num_computed_tokens + s.num_scheduled_tokens {
                let slot = slot_of(table_of(table, s), p, self.config.block_size);
                let Slot { content, poisoned } = self.shadow[group][slot];
                assert_eq!(content, Some(seq.contents[p]), "{} reads position {p}", s.id);
                let known_bad = p < num_hits && poisoned.is_some_and(|since| since <= turn);
                assert!(!known_bad, "{} was given a poisoned block at {p}", s.id);
            }
        }
    }

    fn sample(
        &mut self,
        batch: &Batch,
        s: &ScheduledSequence,
        outcome: Outcome,
        sampled: &mut Vec<SampledToken>,
    ) {
        let newest = self.in_flight.back().map_or(batch.step, |flight| flight.batch.step);
        let seq = self.seqs.get_mut(&s.id).unwrap();
        let end = s.num_computed_tokens + s.num_scheduled_tokens;
        assert!(seq.gone || end == seq.tokens.len(), "{} samples at {end}", s.id);
        let count = match outcome {
            Outcome::Uneven(x) => [0, 1, 2, 1][(mix(x ^ s.id.0) % 4) as usize],
            _ => 1,
        };
        for _ in 0..count {
            let token = next_token(seq.contents[seq.tokens.len() - 1]);
            sampled.push(SampledToken { id: s.id, token });
            // After its last token a sequence's state is of no interest.
            if seq.gone || stop(&seq.new, &seq.tokens, token).is_some() {
                seq.push(token);
                break;
            }
            seq.push(token);
        }
        if count != 1 {
            seq.void_through = Some(newest);
        }
    }
}

fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

fn table_of<'a>(flat: &'a [BlockId], s: &ScheduledSequence) -> &'a [BlockId] {
    &flat[s.block_table_start..s.block_table_start + s.num_blocks]
}

fn slot_of(table: &[BlockId], position: usize, block_size: usize) -> usize {
    table[position / block_size].index() * block_size + position % block_size
}

/// What a step yields that computed from garbage.
const GARBAGE: TokenId = TokenId(9999);
