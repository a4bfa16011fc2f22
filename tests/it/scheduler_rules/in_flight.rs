//! Steps in flight: what comes back late, in other numbers, wrong or not at all.

use vrust::ids::{SeqId, TokenId};
use vrust::request::FinishReason;
use vrust::scheduler::{NewSequence, StepId, TokenOutcome};

use super::{complete, parts, sample, scheduler, seq, step, used};

#[test]
fn the_next_step_counts_on_tokens_in_flight() {
    let mut s = scheduler(|_| ());
    s.add(seq(1, 4, 3)).unwrap();
    s.add(NewSequence { eos: Some(TokenId(7)), ..seq(2, 4, 9) }).unwrap();
    let first = s.schedule().unwrap();
    let second = s.schedule().unwrap();
    assert_eq!(parts(&second), [(1, 4, 1, true), (2, 4, 1, true)]);
    let third = s.schedule().unwrap();
    assert_eq!(s.schedule().map(|b| parts(&b)), Some(vec![(2, 6, 1, true)]), "1 will be full");
    assert_eq!(complete(&mut s, &first).len(), 2);
    assert!(s.sequence(SeqId(2)).is_none(), "stopped by its first token");
    assert_eq!(complete(&mut s, &second), [outcome(1, None)], "what comes after a stop is dropped");
    assert_eq!(complete(&mut s, &third), [outcome(1, Some(FinishReason::Length))]);
    assert_eq!(used(&s), 2, "2 has a step in flight");
    assert_eq!(s.postprocess(StepId(3), &[sample(2)]), []);
    assert_eq!(used(&s), 0);
}

#[test]
fn a_token_in_flight_of_a_preempted_sequence_is_kept() {
    let mut s = scheduler(|c| c.num_blocks = 5);
    s.add(seq(1, 7, 9)).unwrap();
    s.add(seq(2, 7, 2)).unwrap();
    s.add(seq(3, 2, 2)).unwrap();
    let first = s.schedule().unwrap();
    let second = s.schedule().unwrap();
    let third = s.schedule().unwrap();
    assert_eq!((parts(&third), &third.preempted[..]), (vec![(1, 8, 1, true)], &[SeqId(2)][..]));
    assert_eq!(
        s.schedule().map(|b| parts(&b)),
        Some(vec![(1, 9, 1, true)]),
        "its steps come first"
    );
    complete(&mut s, &first);
    assert_eq!(s.sequence(SeqId(2)).unwrap().output_tokens(), [TokenId(7)]);
    let outcomes = complete(&mut s, &second);
    assert_eq!(outcomes[1], outcome(2, Some(FinishReason::Length)), "it ends while it waits");
    assert!(s.sequence(SeqId(2)).is_none());
    complete(&mut s, &third);
    s.postprocess(StepId(3), &[sample(1)]);
    assert_eq!(step(&mut s), [(1, 10, 1, true), (3, 0, 2, true)]);
}

#[test]
fn a_failed_step_is_undone_with_what_was_built_on_it() {
    let mut s = scheduler(|_| ());
    s.add(seq(1, 12, 3)).unwrap();
    s.add(seq(2, 5, 3)).unwrap();
    let first = s.schedule().unwrap();
    s.add(NewSequence { id: SeqId(3), ..seq(1, 12, 3) }).unwrap();
    let second = s.schedule().unwrap();
    assert_eq!(second.admitted, [(SeqId(3), 8)]);
    s.fail_step(first.step);
    s.check_integrity().unwrap();
    assert_eq!(s.sequence(SeqId(1)).unwrap().num_computed_tokens(), 0);
    assert!(!s.sequence(SeqId(3)).unwrap().is_running(), "was admitted on blocks of the step");
    assert_eq!(complete(&mut s, &second), [], "computed from what the first should have left");
    let third = s.schedule().unwrap();
    assert_eq!(third.preempted, [SeqId(3)]);
    assert_eq!(parts(&third), [(1, 0, 12, true), (2, 0, 5, true), (3, 8, 4, true)]);
    assert_eq!(complete(&mut s, &third).len(), 3);
}

#[test]
fn a_poisoned_sequence_leaves_nothing_in_the_cache() {
    let mut s = scheduler(|c| c.num_blocks = 7);
    s.add(seq(1, 7, 9)).unwrap();
    s.add(seq(2, 15, 9)).unwrap();
    for _ in 0..3 {
        step(&mut s);
    }
    assert!(!s.sequence(SeqId(2)).unwrap().is_running(), "preempted: its blocks are cached");
    assert!(s.stats().blocks.cached > 0);
    s.finish(SeqId(2), true);
    assert_eq!(s.stats().blocks.cached, 0);
    s.add(seq(3, 4, 9)).unwrap();
    s.add(NewSequence { id: SeqId(4), ..seq(3, 9, 9) }).unwrap();
    step(&mut s);
    assert_eq!(s.sequence(SeqId(4)).unwrap().num_cached_tokens(), 4);
    s.finish(SeqId(3), true);
    s.finish(SeqId(4), false);
    s.finish(SeqId(1), false);
    s.add(NewSequence { id: SeqId(5), ..seq(3, 9, 9) }).unwrap();
    assert_eq!(s.schedule().unwrap().admitted, [(SeqId(5), 0)], "4 had read 3's block");
}

#[test]
fn finish_waits_for_steps_in_flight() {
    let mut s = scheduler(|_| ());
    s.add(seq(1, 6, 9)).unwrap();
    let batch = s.schedule().unwrap();
    assert!(s.finish(SeqId(1), false));
    assert!(!s.finish(SeqId(1), false) && !s.has_unfinished());
    assert_eq!((used(&s), s.stats().running), (2, 0));
    assert!(!s.reset_prefix_cache());
    assert_eq!(complete(&mut s, &batch), []);
    let blocks = s.stats().blocks;
    assert_eq!((blocks.used, blocks.cached), (0, 1));
    assert!(s.reset_prefix_cache());
    assert_eq!(s.take_freed_blocks().len(), 2);
}

#[test]
fn a_step_may_bring_several_tokens_or_none() {
    let mut s = scheduler(|_| ());
    s.add(seq(1, 4, 5)).unwrap();
    let first = s.schedule().unwrap();
    let second = s.schedule().unwrap();
    assert_eq!(s.postprocess(first.step, &[sample(1), sample(1)]).len(), 2);
    assert_eq!(s.postprocess(second.step, &[sample(1)]), [], "it counted on one");
    let third = s.schedule().unwrap();
    assert_eq!(parts(&third), [(1, 4, 2, true)]);
    assert_eq!(s.postprocess(third.step, &[]), []);
    let fourth = s.schedule().unwrap();
    assert_eq!(parts(&fourth), [(1, 5, 1, true)], "the last position once more");
    let outcomes = s.postprocess(fourth.step, &[sample(1); 9]);
    assert_eq!(outcomes.len(), 3, "nothing after the end");
    assert_eq!(outcomes[2].finish, Some(FinishReason::Length));
}

#[test]
fn who_shares_a_poisoned_block_caches_nothing_more() {
    let mut s = scheduler(|_| ());
    let like_1 = |id, prompt_len| NewSequence { id: SeqId(id), ..seq(1, prompt_len, 9) };
    s.add(like_1(1, 9)).unwrap();
    s.add(like_1(2, 9)).unwrap();
    step(&mut s);
    assert_eq!(s.sequence(SeqId(2)).unwrap().num_cached_tokens(), 8);
    s.finish(SeqId(1), true);
    for _ in 0..5 {
        step(&mut s); // Fills 2's third block, from bad ones.
    }
    let whole = s.sequence(SeqId(2)).unwrap().tokens().to_vec();
    s.finish(SeqId(2), false);
    s.add(like_1(3, 9)).unwrap();
    assert_eq!(step(&mut s), [(3, 0, 9, true)]);
    s.finish(SeqId(3), false);
    s.add(NewSequence { prompt: whole, ..like_1(4, 9) }).unwrap();
    assert_eq!(s.schedule().unwrap().admitted, [(SeqId(4), 8)], "3's blocks, and no further");
}

#[test]
fn a_block_that_fills_in_flight_leaves_the_cache_when_its_step_fails() {
    let mut s = scheduler(|_| ());
    s.add(seq(1, 3, 9)).unwrap();
    let first = s.schedule().unwrap();
    let second = s.schedule().unwrap();
    complete(&mut s, &first); // Now the token of position 3 is known: the block is full.
    let mut prompt = s.sequence(SeqId(1)).unwrap().tokens().to_vec();
    prompt.push(TokenId(5));
    s.add(NewSequence { prompt, ..seq(2, 1, 9) }).unwrap();
    let third = s.schedule().unwrap();
    assert_eq!(third.admitted, [(SeqId(2), 4)]);
    s.fail_step(second.step);
    s.check_integrity().unwrap();
    assert!(!s.sequence(SeqId(2)).unwrap().is_running());
    assert_eq!(s.sequence(SeqId(1)).unwrap().num_computed_tokens(), 3);
    assert_eq!(complete(&mut s, &third), []);
    assert_eq!(step(&mut s), [(1, 3, 1, true), (2, 4, 1, true)]);
}

fn outcome(id: u64, finish: Option<FinishReason>) -> TokenOutcome {
    TokenOutcome { id: SeqId(id), token: TokenId(7), finish }
}
