//! Properties of the scheduler under random loads: see `scheduler_simulator` for what is checked.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use vrust::config::SchedulingPolicy;
use vrust::ids::{SeqId, TokenId};
use vrust::scheduler::{NewSequence, SchedulerConfig};

use crate::scheduler_simulator::{Outcome, Simulator, VOCAB};

/// One thing that happens.
#[derive(Clone, Debug)]
enum Event {
    Add(Arrival),
    Schedule,
    Complete(Outcome),
    Finish { nth: usize, poisoned: bool },
    Hold { nth: usize, held: bool },
    ResetCache,
}

/// A sequence to come.
#[derive(Clone, Debug)]
struct Arrival {
    /// Which of a few prompts it begins with, and how far it goes along.
    family: u32,
    common: usize,
    /// What it goes on with on its own.
    own: Vec<u32>,
    max_tokens: usize,
    eos: bool,
    stop_token: Option<u32>,
    priority: i32,
    salt: Option<bool>,
    skip_cache_read: bool,
}

fn arrival() -> impl Strategy<Value = Arrival> {
    (
        (0u32..3, 0usize..40, prop_oneof![Just(vec![]), vec(0..VOCAB, 0..6)]),
        (1usize..24, any::<bool>(), option::weighted(0.2, 0..VOCAB)),
        (-2i32..3, option::weighted(0.2, any::<bool>()), prop::bool::weighted(0.1)),
    )
        .prop_map(|((family, common, own), (max_tokens, eos, stop_token), last)| {
            let (priority, salt, skip_cache_read) = last;
            Arrival {
                family,
                common,
                own,
                max_tokens,
                eos,
                stop_token,
                priority,
                salt,
                skip_cache_read,
            }
        })
}

fn event() -> impl Strategy<Value = Event> {
    let outcome = prop_oneof![
        20 => Just(Outcome::Normal),
        2 => Just(Outcome::Fails),
        2 => any::<u64>().prop_map(Outcome::Uneven),
    ];
    prop_oneof![
        8 => arrival().prop_map(Event::Add),
        24 => Just(Event::Schedule),
        24 => outcome.prop_map(Event::Complete),
        2 => (0usize..99, prop::bool::weighted(0.3))
            .prop_map(|(nth, poisoned)| Event::Finish { nth, poisoned }),
        3 => (0usize..99, any::<bool>()).prop_map(|(nth, held)| Event::Hold { nth, held }),
        1 => Just(Event::ResetCache),
    ]
}

fn config() -> impl Strategy<Value = SchedulerConfig> {
    (
        (1usize..7, 1usize..40, 8usize..64, any::<bool>()),
        (prop_oneof![Just(0usize), 1usize..9], prop::bool::weighted(0.8)),
        (prop::bool::weighted(0.8), 1usize..6, 3usize..40, 1usize..3),
        (prop_oneof![3 => Just(0.0f32), 1 => 0.0f32..0.5], option::of(any::<u64>())),
    )
        .prop_map(|(limits, chunks, blocks, rest)| {
            let (max_num_seqs, max_num_batched_tokens, max_model_len, priority) = limits;
            let (long_prefill_token_threshold, enable_chunked_prefill) = chunks;
            let (enable_prefix_caching, block_size, num_blocks, num_groups) = blocks;
            let (watermark, shuffle_blocks) = rest;
            SchedulerConfig {
                max_num_seqs,
                max_num_batched_tokens: match enable_chunked_prefill {
                    true => max_num_batched_tokens,
                    false => max_num_batched_tokens.max(max_model_len),
                },
                max_model_len,
                policy: match priority {
                    true => SchedulingPolicy::Priority,
                    false => SchedulingPolicy::Fcfs,
                },
                long_prefill_token_threshold,
                enable_chunked_prefill,
                enable_prefix_caching,
                block_size,
                num_blocks,
                num_groups,
                watermark,
                shuffle_blocks,
            }
        })
}

fn new_sequence(id: u64, arrival: &Arrival, max_model_len: usize) -> NewSequence {
    let common = (0..arrival.common as u32).map(|i| (i * i + 7 * arrival.family) % VOCAB);
    let mut prompt: Vec<_> = common.chain(arrival.own.iter().copied()).map(TokenId).collect();
    prompt.truncate(max_model_len - 1);
    if prompt.is_empty() {
        prompt.push(TokenId(arrival.family));
    }
    NewSequence {
        id: SeqId(id),
        max_tokens: arrival.max_tokens.min(max_model_len - prompt.len()),
        prompt,
        eos: arrival.eos.then_some(TokenId(0)),
        stop_token_ids: arrival.stop_token.map(TokenId).into_iter().collect(),
        priority: arrival.priority,
        // Times may be equal.
        arrival: id / 2,
        cache_salt: arrival.salt.map(|long| if long { "salt" } else { "s" }.to_owned()),
        skip_cache_read: arrival.skip_cache_read,
        ..NewSequence::default()
    }
}

fn run(config: SchedulerConfig, depth: usize, events: &[Event]) {
    let max_model_len = config.max_model_len;
    let mut simulator = Simulator::new(config, depth);
    for (id, event) in (1..).zip(events) {
        match event {
            Event::Add(arrival) => {
                simulator.add(new_sequence(id, arrival, max_model_len));
            }
            Event::Schedule => {
                simulator.schedule();
            }
            Event::Complete(outcome) => simulator.complete(*outcome),
            Event::Finish { nth, poisoned } => simulator.finish(*nth, *poisoned),
            Event::Hold { nth, held } => simulator.hold(*nth, *held),
            Event::ResetCache => {
                let used = simulator.scheduler.stats().blocks.used;
                assert_eq!(simulator.scheduler.reset_prefix_cache(), used == 0);
            }
        }
    }
    simulator.drain();
}

proptest! {
    #![proptest_config(ProptestConfig {
        // The rarer interplays (poison, failure, sharing) need thousands of loads to be met.
        cases: ProptestConfig::default().cases.max(4096),
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    })]

    /// Whatever happens, in whatever order, with up to three steps in flight.
    #[test]
    fn any_load_any_order(
        config in config(),
        depth in 1usize..4,
        events in vec(event(), 1..200),
    ) {
        run(config, depth, &events);
    }
}
