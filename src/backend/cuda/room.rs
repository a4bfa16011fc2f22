//! How much memory steps and the KV pool get.

use super::boxes::all_boxes;
use super::draws::{DrawLimits, Draws};
use super::driver::Pinned;
use super::graphs::Graphs;
use super::kv::KvPool;
use super::linear::Linear;
use super::step::{Layout, Staging};
use super::work::Room;
use super::{CudaBackend, StepMemory, gemm, memory, product};
use crate::backend::{Backend, ComputeType, KvSpec, StepLimits};
use crate::error::Result;

/// Most rows that tokens are drawn from at once: the head's weights are read once for so many.
const DRAWN_ROWS: usize = 256;

impl CudaBackend {
    /// Bytes left for the KV pool.
    pub(super) fn memory_for_kv(&self, limits: &StepLimits, kv: &KvSpec) -> Result<u64> {
        let bytes = self.step_bytes(limits, kv.groups.len());
        let bytes = bytes.ok_or_else(|| memory::too_large("a step's memory"))?;
        let steps: u64 = bytes.iter().map(|&bytes| bytes as u64).sum();
        let budget = (self.free_at_start as f64 * self.options.memory_utilization) as u64;
        // The null block is the pool's too, and nobody counts it.
        let steps = steps + self.kv_block_bytes(kv) as u64;
        let used = self.arena.taken() as u64 + steps;
        // Others may have taken memory since.
        let (free, _) = self.context.memory()?;
        Ok(budget.saturating_sub(used).min(free.saturating_sub(steps)))
    }

    /// Everything that steps need, and the KV pool.
    pub(super) fn allocate_all(
        &mut self,
        limits: StepLimits,
        kv: &KvSpec,
        num_blocks: usize,
    ) -> Result<()> {
        assert!(self.kv.is_none(), "allocate is called once");
        let tickets = self.packer().floats(&[0.0], "tickets")?;
        // Everything is on the device before its staging memory goes.
        self.stream.synchronize()?;
        self.uploader = None;
        let groups = kv.groups.len();
        let bytes = self.step_bytes(&limits, groups);
        let bytes = bytes.ok_or_else(|| memory::too_large("a step's memory"))?;
        let words = self.largest_layout(&limits, groups).end();
        let draw_limits = self.draw_limits(&limits);
        self.arena.reserve(&self.context, bytes.iter().sum(), "a step's activations")?;
        let mut taken = bytes
            .iter()
            .map(|&bytes| self.arena.take(&self.context, bytes, "a step's activations"));
        let mut next = || taken.next().expect("step_bytes counts each part");
        for activation in &mut self.activations {
            activation.memory = next()?;
        }
        let (staging, scratch) = (Staging::new(next()?, words)?, next()?);
        let (gathered, logits, partial, edited) = (next()?, next()?, next()?, next()?);
        let draws = Draws::new(draw_limits, next()?, next()?)?;
        let logits_bytes = limits.max_logits_rows * self.widest.vocabulary * 4;
        let logits_host = Pinned::new(logits_bytes)?;
        self.memory = Some(StepMemory {
            staging,
            scratch,
            gathered,
            logits,
            partial,
            tickets,
            edited,
            logits_host,
            draws,
        });
        let pool = self.kv_block_bytes(kv).checked_mul(num_blocks);
        let pool = pool.ok_or_else(|| memory::too_large("kv_cache_memory_bytes"))?;
        let pool = self.arena.take(&self.context, pool, "the KV cache").map_err(|e| {
            e.context("kv_cache_memory_bytes").with("field", "kv_cache_memory_bytes")
        })?;
        let mut pool = KvPool::new(kv, self.compute(), num_blocks, pool)?;
        let tensor = self.kernels.tensor.as_ref();
        if tensor.is_some_and(|t| t.prefill_attention_sm90.is_some()) && self.plans_attention() {
            pool.boxes = all_boxes(&pool, kv)?;
        }
        self.kv = Some(pool);
        self.limits = Some(limits);
        Ok(())
    }

    /// Whether attention in this precision may run by lists of work.
    pub(super) fn plans_attention(&self) -> bool {
        self.compute() == ComputeType::Bf16 && !self.options.batch_invariant
    }

    /// The layout of a step of so many rows and sequences.
    pub(super) fn layout(
        &self,
        limits: &StepLimits,
        groups: usize,
        rows_and_seqs: (usize, usize),
    ) -> Layout {
        let multiprocessors = if self.plans_attention() { self.device.multiprocessors } else { 0 };
        Layout::new(limits, groups, rows_and_seqs, multiprocessors)
    }

    /// The layout of the largest step.
    fn largest_layout(&self, limits: &StepLimits, groups: usize) -> Layout {
        let rows = gemm::padded_rows(limits.max_tokens);
        self.layout(limits, groups, (rows, Graphs::batch_size(limits.max_seqs)))
    }

    /// Rows that tokens are drawn from at once. Their logits stay on the device.
    pub(super) fn drawn_rows(&self, limits: &StepLimits) -> usize {
        limits.max_logits_rows.max(limits.max_seqs.min(limits.max_tokens).min(DRAWN_ROWS))
    }

    /// Every row of a step may be asked for: a prompt's tokens are scored one by one.
    fn draw_limits(&self, limits: &StepLimits) -> DrawLimits {
        let rows = limits.max_tokens.max(limits.max_seqs);
        DrawLimits::new(rows, limits.max_seqs, self.widest.vocabulary)
    }

    /// Floats of partial results that a step may need.
    fn partial_floats(&self, limits: &StepLimits) -> usize {
        if self.compute() == ComputeType::F32 {
            return 1;
        }
        let multiprocessors = self.device.multiprocessors;
        let of_product = |linear: &Linear| match product::splits(linear, multiprocessors) {
            1 => 0,
            splits => splits * product::SKINNY_ROWS * linear.rows,
        };
        let of_products = self.linears.iter().map(of_product).max().unwrap_or(0);
        // Of each head `head_dim + 2`: no more than 33/32 of a row, heads being 64 wide or wider.
        let seqs = Graphs::batch_size(limits.max_seqs);
        let places = Room::new(limits.max_tokens, seqs, multiprocessors).pieces;
        let width = self.activations.iter().map(|a| a.width).max().unwrap_or(0);
        let of_attention = if self.plans_attention() { places * (width + width / 32) } else { 0 };
        of_products.max(of_attention)
    }

    /// Bytes of each part of the memory of steps: activations in order, then those of
    /// `StepMemory` in order, the two of draws last.
    fn step_bytes(&self, limits: &StepLimits, groups: usize) -> Option<Vec<usize>> {
        let rows = gemm::padded_rows(limits.max_tokens);
        let logits_rows = gemm::padded_rows(self.drawn_rows(limits));
        let matrix = |rows: usize, width: usize, element: usize| {
            rows.checked_mul(width)?.checked_mul(element).and_then(memory::aligned)
        };
        let mut bytes = Vec::new();
        for activation in &self.activations {
            bytes.push(matrix(rows, activation.width, 4)?);
        }
        bytes.push(matrix(self.largest_layout(limits, groups).end(), 1, 4)?);
        bytes.push(match self.compute() {
            ComputeType::F32 => memory::ALIGNMENT,
            ComputeType::Bf16 => matrix(rows, self.widest.input, 2)?,
        });
        bytes.push(matrix(logits_rows, self.widest.input, 4)?);
        bytes.push(matrix(logits_rows, self.widest.vocabulary, 4)?);
        bytes.push(matrix(self.partial_floats(limits), 1, 4)?);
        bytes.push(matrix(logits_rows, self.widest.vocabulary, 4)?);
        let draws = self.draw_limits(limits);
        bytes.push(matrix(draws.input(), 1, 4)?);
        bytes.push(matrix(draws.output(), 1, 4)?);
        Some(bytes)
    }
}
