//! The scheduler's rules, one scenario each.

mod in_flight;

use vrust::config::SchedulingPolicy;
use vrust::error::ErrorKind;
use vrust::ids::{SeqId, TokenId};
use vrust::request::FinishReason;
use vrust::scheduler::{
    Batch, NewSequence, SampledToken, Scheduler, SchedulerConfig, StepId, TokenOutcome,
};

/// Generous limits; a scenario tightens what it is about.
fn config() -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        max_model_len: 64,
        policy: SchedulingPolicy::Fcfs,
        long_prefill_token_threshold: 0,
        enable_chunked_prefill: true,
        enable_prefix_caching: true,
        block_size: 4,
        num_blocks: 65,
        num_groups: 1,
        watermark: 0.0,
        shuffle_blocks: None,
    }
}

fn scheduler(change: impl FnOnce(&mut SchedulerConfig)) -> Scheduler {
    let mut config = config();
    change(&mut config);
    Scheduler::new(config).unwrap()
}

/// A sequence whose prompt shares nothing with those of other ids.
fn seq(id: u64, prompt_len: u32, max_tokens: usize) -> NewSequence {
    let prompt = (0..prompt_len).map(|i| TokenId(1000 * id as u32 + i)).collect();
    NewSequence { id: SeqId(id), prompt, max_tokens, arrival: id, ..NewSequence::default() }
}

/// (id, first position, rows, samples) of each part.
fn parts(batch: &Batch) -> Vec<(u64, usize, usize, bool)> {
    let part = |s: &vrust::scheduler::ScheduledSequence| {
        (s.id.0, s.num_computed_tokens, s.num_scheduled_tokens, s.samples)
    };
    batch.seqs.iter().map(part).collect()
}

/// Completes a step: every sequence that samples gets token 7.
fn complete(scheduler: &mut Scheduler, batch: &Batch) -> Vec<TokenOutcome> {
    let sampled: Vec<_> = batch.seqs.iter().filter(|s| s.samples).map(|s| sample(s.id.0)).collect();
    scheduler.check_integrity().unwrap();
    let outcomes = scheduler.postprocess(batch.step, &sampled);
    scheduler.check_integrity().unwrap();
    outcomes
}

fn sample(id: u64) -> SampledToken {
    SampledToken { id: SeqId(id), token: TokenId(7) }
}

/// Schedules and completes one step, and returns its parts.
fn step(scheduler: &mut Scheduler) -> Vec<(u64, usize, usize, bool)> {
    let Some(batch) = scheduler.schedule() else { return Vec::new() };
    complete(scheduler, &batch);
    parts(&batch)
}

fn used(scheduler: &Scheduler) -> usize {
    scheduler.stats().blocks.used
}

#[test]
fn running_first_then_waiting_and_the_last_prefill_is_cut() {
    let mut s = scheduler(|c| c.max_num_batched_tokens = 10);
    for id in 1..=3 {
        s.add(seq(id, 7, 5)).unwrap();
    }
    assert_eq!(step(&mut s), [(1, 0, 7, true), (2, 0, 3, false)]);
    assert_eq!(step(&mut s), [(1, 7, 1, true), (2, 3, 4, true), (3, 0, 5, false)]);
    assert_eq!(step(&mut s), [(1, 8, 1, true), (2, 7, 1, true), (3, 5, 2, true)]);
}

#[test]
fn without_chunked_prefill_a_prompt_waits_for_room() {
    let mut s = scheduler(|c| c.enable_chunked_prefill = false);
    for (id, len) in [(1, 40), (2, 30), (3, 5)] {
        s.add(seq(id, len, 5)).unwrap();
    }
    assert_eq!(step(&mut s), [(1, 0, 40, true)], "the third does not overtake");
    assert_eq!(step(&mut s), [(1, 40, 1, true), (2, 0, 30, true), (3, 0, 5, true)]);
}

#[test]
fn long_prefills_are_cut_unless_alone() {
    let mut s = scheduler(|c| c.long_prefill_token_threshold = 6);
    s.add(seq(1, 20, 5)).unwrap();
    assert_eq!(step(&mut s), [(1, 0, 20, true)], "alone");
    s.add(seq(2, 20, 5)).unwrap();
    assert_eq!(step(&mut s), [(1, 20, 1, true), (2, 0, 6, false)]);
    assert_eq!(step(&mut s), [(1, 21, 1, true), (2, 6, 6, false)]);
    s.finish(SeqId(1), false);
    assert_eq!(step(&mut s), [(2, 12, 8, true)], "alone again");
}

#[test]
fn admission_needs_room_for_the_whole_sequence_and_nobody_overtakes() {
    let mut s = scheduler(|c| (c.num_blocks, c.max_num_batched_tokens) = (11, 8));
    s.add(seq(1, 20, 8)).unwrap(); // 5 blocks to begin with.
    s.add(seq(2, 24, 4)).unwrap(); // 6 blocks: 10 - 5 are too few once 1 has them all.
    s.add(seq(3, 4, 4)).unwrap();
    assert_eq!(step(&mut s), [(1, 0, 8, false)]);
    assert_eq!(step(&mut s), [(1, 8, 8, false)]);
    assert_eq!(step(&mut s), [(1, 16, 4, true)], "2 does not fit, 3 must not overtake");
    s.finish(SeqId(1), false);
    assert_eq!(step(&mut s), [(2, 0, 8, false)], "the budget is spent");
}

#[test]
fn the_watermark_counts_only_while_something_runs() {
    let mut s = scheduler(|c| (c.num_blocks, c.watermark) = (11, 0.5));
    s.add(seq(1, 24, 2)).unwrap(); // 6 of 10 blocks: past the mark, but nothing runs.
    s.add(seq(2, 4, 2)).unwrap();
    assert_eq!(step(&mut s), [(1, 0, 24, true)], "3 left free would be less than 5");
    step(&mut s);
    assert_eq!(step(&mut s), [(2, 0, 4, true)]);
}

#[test]
fn the_newest_is_preempted_and_resumes_at_the_front_with_its_tokens() {
    let mut s = scheduler(|c| c.num_blocks = 5);
    s.add(seq(1, 7, 9)).unwrap();
    s.add(seq(2, 7, 9)).unwrap();
    assert_eq!(step(&mut s), [(1, 0, 7, true), (2, 0, 7, true)]);
    s.add(seq(3, 4, 1)).unwrap();
    assert_eq!(step(&mut s), [(1, 7, 1, true), (2, 7, 1, true)], "no block for 3");
    let batch = s.schedule().unwrap();
    assert_eq!(parts(&batch), [(1, 8, 1, true)]);
    assert_eq!(batch.preempted, [SeqId(2)]);
    assert_eq!(batch.admitted, [], "1 block is free, but a step that preempts admits nobody");
    complete(&mut s, &batch);
    let two = s.sequence(SeqId(2)).unwrap();
    assert_eq!((two.output_tokens().len(), two.num_preemptions()), (2, 1));
    assert_eq!(two.num_computed_tokens(), 0);
    while s.sequence(SeqId(1)).is_some() {
        assert_eq!(step(&mut s).len(), 1, "2 stands before 3 and does not fit");
    }
    let batch = s.schedule().unwrap();
    // Prompt and output are computed again; what is left of its own blocks is found in the cache.
    assert_eq!(parts(&batch)[0].0, 2);
    let (_, start, rows, samples) = parts(&batch)[0];
    assert_eq!((start + rows, samples), (9, true));
    assert_eq!(parts(&batch)[1], (3, 0, 4, true));
    complete(&mut s, &batch);
    assert_eq!(s.stats().preemptions, 1);
}

#[test]
fn a_preempted_sequence_finds_its_own_blocks() {
    let mut s = scheduler(|c| c.num_blocks = 6);
    s.add(seq(1, 7, 5)).unwrap();
    s.add(seq(2, 11, 5)).unwrap();
    step(&mut s);
    step(&mut s);
    assert_eq!(s.schedule().map(|b| b.preempted), Some(vec![SeqId(2)]));
    s.finish(SeqId(1), false);
    s.fail_step(StepId(2));
    let batch = s.schedule().unwrap();
    assert_eq!(batch.admitted, [(SeqId(2), 8)], "of three full blocks the last was evicted first");
    assert_eq!(parts(&batch), [(2, 8, 5, true)]);
}

#[test]
fn priority_decides_who_comes_and_who_goes() {
    let mut s = scheduler(|c| {
        (c.policy, c.num_blocks, c.max_num_seqs) = (SchedulingPolicy::Priority, 7, 3)
    });
    let with = |id, priority| NewSequence { priority, ..seq(id, 7, 9) };
    for (id, priority) in [(1, 1), (2, 5), (3, 0), (4, 5)] {
        s.add(with(id, priority)).unwrap();
    }
    assert_eq!(step(&mut s), [(3, 0, 7, true), (1, 0, 7, true), (2, 0, 7, true)]);
    step(&mut s);
    let batch = s.schedule().unwrap();
    assert_eq!(batch.preempted, [SeqId(2)]);
    complete(&mut s, &batch);
    s.finish(SeqId(1), false);
    s.finish(SeqId(3), false);
    let ids: Vec<_> = step(&mut s).iter().map(|part| part.0).collect();
    assert_eq!(ids, [2, 4], "equal priority: by arrival");
}

#[test]
fn a_victim_gives_back_its_share_of_the_step() {
    let mut s = scheduler(|c| {
        (c.policy, c.num_blocks) = (SchedulingPolicy::Priority, 5);
        c.max_num_batched_tokens = 14;
    });
    // The first to run is the first to go, after its rows were chosen.
    s.add(NewSequence { priority: 9, ..seq(1, 6, 5) }).unwrap();
    step(&mut s);
    s.add(NewSequence { priority: 0, ..seq(2, 8, 5) }).unwrap();
    assert_eq!(step(&mut s), [(1, 6, 1, true), (2, 0, 8, true)]);
    let batch = s.schedule().unwrap();
    assert_eq!((parts(&batch), &batch.preempted[..]), (vec![(2, 8, 1, true)], &[SeqId(1)][..]));
    complete(&mut s, &batch);
    assert_eq!(s.sequence(SeqId(1)).unwrap().output_tokens().len(), 2);
}

#[test]
fn stops_at_eos_then_stop_tokens_then_length() {
    let check = |eos: u32, stop: u32, max_tokens, min_tokens, expected: Option<FinishReason>| {
        let mut s = scheduler(|_| ());
        let new = NewSequence {
            eos: Some(TokenId(eos)),
            stop_token_ids: vec![TokenId(stop)],
            min_tokens,
            ..seq(1, 4, max_tokens)
        };
        s.add(new).unwrap();
        let batch = s.schedule().unwrap();
        let outcomes = complete(&mut s, &batch);
        assert_eq!(outcomes.len(), 1);
        assert_eq!(outcomes[0].finish, expected);
        assert_eq!(s.has_unfinished(), expected.is_none());
        assert_eq!(used(&s) > 0, expected.is_none());
    };
    check(7, 7, 1, 0, Some(FinishReason::Eos));
    check(8, 7, 1, 0, Some(FinishReason::StopToken(TokenId(7))));
    check(8, 9, 1, 0, Some(FinishReason::Length));
    check(8, 9, 2, 0, None);
    // The sampler's mask keeps stop tokens away before min_tokens, not this check.
    check(7, 7, 2, 2, Some(FinishReason::Eos));
}

#[test]
fn equal_prompts_share_from_the_same_step_on_but_not_the_last_token() {
    let mut s = scheduler(|_| ());
    let same = |id| NewSequence { id: SeqId(id), ..seq(9, 12, 2) };
    s.add(same(1)).unwrap();
    s.add(same(2)).unwrap();
    let batch = s.schedule().unwrap();
    assert_eq!(parts(&batch), [(1, 0, 12, true), (2, 8, 4, true)], "one block is computed anew");
    let table = &batch.block_tables[0];
    assert_eq!(table[..2], table[3..5]);
    assert_ne!(table[2], table[5], "each writes its own");
    assert_eq!(used(&s), 4);
    complete(&mut s, &batch);
    step(&mut s);
    assert_eq!(used(&s), 0);
    let stats = s.stats();
    assert_eq!((stats.prefix_cache_queries, stats.prefix_cache_hits), (24, 8));
    s.add(seq(9, 13, 2)).unwrap();
    assert_eq!(s.schedule().unwrap().admitted, [(SeqId(9), 12)]);
}

#[test]
fn salts_and_uncached_reads_keep_apart() {
    let mut s = scheduler(|_| ());
    let with = |id, salt: Option<&str>, skip_cache_read| NewSequence {
        id: SeqId(id),
        cache_salt: salt.map(str::to_owned),
        skip_cache_read,
        ..seq(9, 12, 2)
    };
    s.add(with(1, None, false)).unwrap();
    step(&mut s);
    s.add(with(2, Some("a"), false)).unwrap();
    s.add(with(3, Some("b"), false)).unwrap();
    s.add(with(4, Some("a"), false)).unwrap();
    s.add(with(5, None, true)).unwrap();
    let admitted: Vec<_> = s.schedule().unwrap().admitted.iter().map(|a| a.1).collect();
    assert_eq!(admitted, [0, 0, 8, 0]);
}

#[test]
fn a_held_sequence_keeps_its_blocks_and_its_place() {
    let mut s = scheduler(|c| c.max_num_seqs = 1);
    s.add(seq(1, 4, 9)).unwrap();
    s.add(seq(2, 4, 2)).unwrap();
    s.add(seq(3, 4, 2)).unwrap();
    step(&mut s);
    s.hold(SeqId(1), true);
    s.hold(SeqId(2), true);
    assert_eq!(step(&mut s), [(3, 0, 4, true)], "others go on, past those that are held");
    assert_eq!(s.sequence(SeqId(1)).unwrap().num_computed_tokens(), 4);
    step(&mut s);
    assert!(s.schedule().is_none() && s.has_unfinished());
    s.hold(SeqId(1), false);
    assert_eq!(step(&mut s), [(1, 4, 1, true)]);
}

#[test]
fn held_memory_is_taken_only_when_nothing_else_can_run() {
    let mut s = scheduler(|c| c.num_blocks = 5);
    s.add(seq(1, 12, 3)).unwrap();
    step(&mut s);
    s.hold(SeqId(1), true);
    s.add(seq(2, 12, 3)).unwrap();
    let batch = s.schedule().unwrap();
    assert_eq!((parts(&batch), &batch.preempted[..]), (vec![(2, 0, 12, true)], &[SeqId(1)][..]));
    complete(&mut s, &batch);
    s.hold(SeqId(2), true);
    assert!(s.schedule().is_none(), "nobody is helped by taking it from 2");
    assert!(s.sequence(SeqId(2)).unwrap().is_running());
}

#[test]
fn what_can_never_run_is_refused_with_numbers() {
    let check = |new: NewSequence, words: &[&str]| {
        let mut s = scheduler(|c| c.num_blocks = 9);
        s.add(seq(1, 4, 4)).unwrap();
        let error = s.add(new).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        for word in words {
            assert!(error.message().contains(word), "{error}");
        }
        s.check_integrity().unwrap();
    };
    check(seq(2, 0, 1), &["prompt"]);
    check(seq(2, 1, 0), &["max_tokens", "0"]);
    check(seq(1, 4, 4), &["id", "1"]);
    check(seq(2, 60, 5), &["65", "64"]);
    check(seq(2, 30, 4), &["30", "4", "9 KV", "8."]);
    scheduler(|c| c.num_blocks = 9).add(seq(2, 30, 3)).unwrap(); // 32 positions are 8 blocks.
}

#[test]
fn configurations_that_contradict_themselves_are_refused() {
    let check = |word: &str, change: fn(&mut SchedulerConfig)| {
        let mut config = config();
        change(&mut config);
        let error = Scheduler::new(config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains(word), "{error}");
    };
    check("max_num_seqs", |c| c.max_num_seqs = 0);
    check("block_size", |c| c.block_size = 0);
    check("num_blocks", |c| c.num_blocks = 1);
    check("watermark", |c| c.watermark = f32::NAN);
    check("chunked", |c| (c.enable_chunked_prefill, c.max_num_batched_tokens) = (false, 63));
}

#[test]
fn every_group_has_its_blocks() {
    let mut s = scheduler(|c| c.num_groups = 3);
    s.add(seq(1, 9, 2)).unwrap();
    let batch = s.schedule().unwrap();
    assert_eq!(batch.block_tables.len(), 3);
    assert!(batch.block_tables.iter().all(|table| table.len() == 3));
    assert_eq!(used(&s), 9);
    complete(&mut s, &batch);
    s.finish(SeqId(1), false);
    s.add(seq(1, 9, 2)).unwrap();
    let again = s.schedule().unwrap();
    assert_eq!(again.admitted, [(SeqId(1), 8)]);
    for (old, new) in batch.block_tables.iter().zip(&again.block_tables) {
        assert_eq!(old[..2], new[..2]);
    }
}
