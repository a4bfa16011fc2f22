//! A step that is started and left to run: its tokens are drawn on the device.

use super::CudaBackend;
use super::draws::{Output, Planned};
use super::driver::Grid;
use super::launch::{BLOCK, Launcher, params};
use super::linear::Linear;
use crate::backend::{ActId, DrawRule, LinearId};
use crate::error::Result;

/// Bytes of shared memory of `sample`, `row_scale` and `top_logprobs`.
const SHARED: u32 = 18_960;
/// Threads of a block of the kernels that look at a whole row.
const ROW_BLOCK: u32 = 1024;

impl CudaBackend {
    /// Launches the step and the draws from `rows` of `x`, and how their outcome comes back. False
    /// where there is no room for the rules: nothing was launched.
    pub(super) fn run_submit(
        &mut self,
        head: LinearId,
        x: ActId,
        rows: &[u32],
        rules: &[DrawRule],
    ) -> Result<bool> {
        let limits = self.limits.expect("the engine allocates before the first step");
        let (linear, tokens) = (*self.linear_of(head), self.step.num_tokens);
        assert!(rows.iter().all(|&row| (row as usize) < tokens), "rows are the step's");
        assert!(linear.rows <= self.widest.vocabulary, "a head has the vocabulary's role");
        let memory = self.memory.as_mut().expect("the engine allocates before the first step");
        let planned = memory.draws.plan(&self.stream, rows, rules, linear.rows)?;
        let Some(planned) = planned else { return Ok(false) };
        self.counters.logits_rows += rows.len() as u64;
        self.run()?;
        // The logits of one slice make room for the next one's: the stream keeps the order.
        let most = self.drawn_rows(&limits);
        for (slice, rules) in rules.chunks(most).enumerate() {
            self.prepare_head(head, rules.len())?;
            let first = slice * most;
            Launcher::new(self, self.step.layout).draw(&linear, x, &planned, first, rules)?;
        }
        let memory = self.memory.as_mut().expect("draws were planned in it");
        memory.draws.copy_back(&self.stream)?;
        self.step.in_flight = false;
        Ok(true)
    }

    /// Notes which rows of the step take tokens that were drawn before.
    pub(super) fn feed_rows(&mut self, places: &[(u32, u32)]) {
        let limits = self.limits.expect("the engine allocates before the first step");
        assert!(places.len() <= limits.max_seqs, "a sequence takes at most one token");
        let tokens = self.step.num_tokens;
        assert!(places.iter().all(|&(row, _)| (row as usize) < tokens), "rows are the step's");
        let memory = self.memory.as_mut().expect("the engine allocates before the first step");
        memory.staging.write_fed(&self.step.layout, places);
        self.step.num_fed = places.len();
    }

    /// Puts tokens that were drawn before into the step's input.
    pub(super) fn launch_feed(&self) -> Result<()> {
        let memory = self.step_memory();
        let to = memory.staging.address(self.step.layout.token_ids());
        let places = memory.staging.address(self.step.layout.fed());
        let (from, count) = (memory.draws.tokens(), self.step.num_fed as u32);
        let grid = Grid::new(self.step.num_fed.div_ceil(BLOCK as usize), 1, BLOCK);
        let kernel = self.kernels.take_tokens;
        // SAFETY: rows are the step's; the tokens of the step before lie where they were drawn.
        unsafe { self.stream.launch(kernel, grid, params![to, from, places, count]) }
    }
}

impl Launcher<'_> {
    /// Logits of the planned rows from `first` on, as many as there are rules, and what is drawn.
    fn draw(
        &self,
        head: &Linear,
        x: ActId,
        planned: &Planned,
        first: usize,
        rules: &[DrawRule],
    ) -> Result<()> {
        self.logits(head, x, planned.rows + 4 * first as u64, rules.len())?;
        let (kernels, stream) = (&self.backend.kernels, &self.backend.stream);
        let (logits, edited, vocab) = (self.memory.logits, self.memory.edited, head.rows as u32);
        let (tokens, rules_at) = (planned.word(first), planned.rules(first));
        let mut from = logits;
        if rules.iter().any(|rule| rule.changes.is_some()) {
            let (edits, seen, masks) = (planned.edits, planned.seen, planned.masks);
            let grid = Grid::new(rules.len(), 1, BLOCK);
            let kernel = kernels.edit_logits;
            // SAFETY: both are `[rules, vocab]`; the rules' ranges are within the lists.
            unsafe {
                let params = params![edited, logits, rules_at, edits, seen, masks, vocab];
                stream.launch(kernel, grid, params)?;
            }
            from = edited;
        }
        let grid = Grid { shared: SHARED, ..Grid::new(rules.len(), 1, ROW_BLOCK) };
        // SAFETY: the logits are `[rules, vocab]`, and there is a word for each token.
        unsafe { stream.launch(kernels.sample, grid, params![tokens, from, rules_at, vocab])? };
        if rules.iter().any(|rule| rule.target.is_some()) {
            // Those of other slices too: they are taken again there.
            let (all, targets, places) = (planned.word(0), planned.targets, planned.places);
            let count = planned.num_targets as u32;
            let grid = Grid::new(planned.num_targets.div_ceil(BLOCK as usize), 1, BLOCK);
            // SAFETY: places are of the planned rows and of the targets.
            unsafe {
                stream.launch(kernels.take_tokens, grid, params![all, targets, places, count])?;
            }
        }
        match rules.iter().any(|rule| rule.top_n.is_some()) {
            true => self.scores(planned, first, rules.len(), vocab),
            false => Ok(()),
        }
    }

    /// What the logits of `count` planned rows from `first` on say about their tokens.
    fn scores(&self, planned: &Planned, first: usize, count: usize, vocab: u32) -> Result<()> {
        let (kernels, stream) = (&self.backend.kernels, &self.backend.stream);
        let (parts, logits, zeros): (&Output, _, _) =
            (&planned.parts, self.memory.logits, planned.zeros);
        let grid = Grid { shared: SHARED, ..Grid::new(count, 1, ROW_BLOCK) };
        let (tokens, scales) = (planned.word(first), planned.word(parts.scale(first)));
        let (chosen, ranks) = (planned.word(parts.logit(first)), planned.word(parts.rank(first)));
        let (best, values) =
            (planned.word(parts.top_tokens(first)), planned.word(parts.top_logits(first)));
        let top = parts.top.unwrap_or(0) as u32;
        // SAFETY: the logits are `[count, vocab]`; the output has room for each row's part, and
        // there are `count` zeros.
        unsafe {
            stream.launch(kernels.row_scale, grid, params![scales, logits, vocab])?;
            if top > 0 {
                let params = params![best, values, logits, zeros, top, vocab];
                stream.launch(kernels.top_logprobs, grid, params)?;
            }
            let params = params![chosen, ranks, logits, tokens, zeros, vocab];
            let grid = Grid::new(count, 1, ROW_BLOCK);
            stream.launch(kernels.token_logprobs, grid, params)
        }
    }
}
