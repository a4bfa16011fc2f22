//! Runs a model on a backend directly: one sequence, no engine.

use std::path::Path;

use vrust::backend::{Backend, SeqInput, StepInput, StepLimits};
use vrust::config::LoadFormat;
use vrust::error::Result;
use vrust::ids::{BlockId, TokenId};
use vrust::model::{self, LoadOptions, Model, ModelConfig};

/// Positions of a block: small, so that short prompts use several.
const BLOCK_SIZE: usize = 8;
/// Blocks for every position that the goldens use.
const NUM_BLOCKS: usize = 40;
const MAX_TOKENS: usize = 160;

/// A model on a backend, and the one sequence that runs.
pub(crate) struct Runner<'a> {
    backend: &'a mut dyn Backend,
    model: Box<dyn Model>,
    vocab_size: usize,
    /// All blocks but the null block, shuffled.
    blocks: Vec<BlockId>,
    /// Positions computed so far.
    computed: usize,
}

impl<'a> Runner<'a> {
    /// Loads the folder's weights.
    pub(crate) fn load(
        dir: &Path,
        config: &ModelConfig,
        backend: &'a mut dyn Backend,
    ) -> Result<Self> {
        let load_format = LoadFormat::Auto;
        let options = LoadOptions { dir, load_format, seed: 0, max_model_len: None };
        Self::load_with(&options, config, backend)
    }

    /// Loads as `options` say.
    pub(crate) fn load_with(
        options: &LoadOptions<'_>,
        config: &ModelConfig,
        backend: &'a mut dyn Backend,
    ) -> Result<Self> {
        let model = model::load(config, options, backend, |_| Ok(()))?;
        let limits = StepLimits {
            max_tokens: MAX_TOKENS,
            max_seqs: 1,
            max_logits_rows: MAX_TOKENS,
            max_block_table: NUM_BLOCKS,
        };
        backend.allocate(limits, &config.kv_spec(BLOCK_SIZE), NUM_BLOCKS)?;
        let mut blocks: Vec<BlockId> = (1..NUM_BLOCKS as u32).map(BlockId).collect();
        // Swaps with far neighbours: a fixed shuffle.
        for i in 0..blocks.len() {
            blocks.swap(i, (i * 17 + 5) % (NUM_BLOCKS - 1));
        }
        Ok(Self { backend, model, vocab_size: config.vocab_size, blocks, computed: 0 })
    }

    /// Forgets the sequence. What it wrote, and every other block, becomes NaN.
    pub(crate) fn restart(&mut self) {
        self.computed = 0;
        let all: Vec<BlockId> = (0..NUM_BLOCKS as u32).map(BlockId).collect();
        self.backend.fill_blocks(&all, f32::NAN);
    }

    /// Computes the next tokens in steps of `chunk`; returns the logits of each.
    pub(crate) fn extend(&mut self, tokens: &[TokenId], chunk: usize) -> Vec<Vec<f32>> {
        tokens.chunks(chunk).flat_map(|chunk| self.step(chunk)).collect()
    }

    /// Goes on greedily: the tokens chosen, and the logits that each was chosen by.
    pub(crate) fn greedy(
        &mut self,
        prompt: &[TokenId],
        chunk: usize,
        count: usize,
    ) -> (Vec<TokenId>, Vec<Vec<f32>>) {
        self.restart();
        let mut logits = self.extend(prompt, chunk);
        let mut chosen = Vec::new();
        loop {
            chosen.push(argmax(&logits[logits.len() - 1]));
            if chosen.len() == count {
                return (chosen, logits);
            }
            logits.extend(self.step(&[chosen[chosen.len() - 1]]));
        }
    }

    fn step(&mut self, tokens: &[TokenId]) -> Vec<Vec<f32>> {
        let end = self.computed + tokens.len();
        let positions: Vec<u32> = (self.computed as u32..end as u32).collect();
        let num_blocks = end.div_ceil(BLOCK_SIZE);
        let table = self.blocks[..num_blocks].to_vec();
        let slot = |p: usize| (table[p / BLOCK_SIZE].index() * BLOCK_SIZE + p % BLOCK_SIZE) as u64;
        let slots: Vec<u64> = (self.computed..end).map(slot).collect();
        let seq = SeqInput {
            query_start: 0,
            query_len: tokens.len(),
            context_len: self.computed,
            block_table_start: 0,
            num_blocks,
        };
        self.backend.begin_step(&StepInput {
            token_ids: tokens,
            positions: &positions,
            seqs: &[seq],
            block_tables: &[table],
            slot_mapping: &[slots],
            block_copies: &[],
            wanted: None,
        });
        self.model.forward(self.backend);
        let rows: Vec<u32> = (0..tokens.len() as u32).collect();
        self.backend.logits(self.model.head(), self.model.hidden(), &rows);
        self.computed = end;
        self.read_logits(tokens.len())
    }

    fn read_logits(&mut self, rows: usize) -> Vec<Vec<f32>> {
        let all = std::sync::Mutex::new(vec![Vec::new(); rows]);
        let keep = |i: usize, logits: &mut [f32]| all.lock().unwrap()[i] = logits.to_vec();
        self.backend.map_logits(&keep).unwrap();
        self.backend.finish_step().unwrap();
        let all = all.into_inner().unwrap();
        assert!(all.iter().all(|row| row.len() == self.vocab_size), "each row was visited");
        all
    }
}

/// The most likely token, the lowest of equals.
pub(crate) fn argmax(logits: &[f32]) -> TokenId {
    let mut best = 0;
    for (i, &x) in logits.iter().enumerate() {
        assert!(x.is_finite(), "logit {i} is {x}");
        if x > logits[best] {
            best = i;
        }
    }
    TokenId(best as u32)
}

/// Natural log of the softmax.
pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = |x: &f32| f64::from(*x) - f64::from(max);
    let log_sum = logits.iter().map(|x| shifted(x).exp()).sum::<f64>().ln();
    logits.iter().map(|x| shifted(x) - log_sum).collect()
}
