//! A step from its input to the end: staged, launched or replayed, waited for.

use super::CudaBackend;
use super::driver::{DevicePtr, Grid};
use super::gemm::Product;
use super::graphs::{Graphs, Plan};
use super::launch::{Launcher, params};
use super::linear::Linear;
use super::op::Op;
use super::product::product_size;
use crate::backend::{LinearId, StepInput};
use crate::error::{ErrorKind, Result};
use crate::ids::BlockId;

impl CudaBackend {
    /// Takes the step's input.
    pub(super) fn begin(&mut self, input: &StepInput<'_>) {
        self.check_input(input);
        if self.step.in_flight {
            // A step that nobody waited for may still read its input. If it failed, so will this
            // one: the driver's errors of that kind stay.
            let _ = self.wait();
        }
        let limits = self.limits.expect("check_input saw that allocate was called");
        let groups = self.kv_pool().num_groups;
        let tokens = input.token_ids.len();
        let is_decode = self.options.graphs
            && tokens > 0
            && input.seqs.len() == tokens
            && tokens <= limits.max_seqs;
        let layout = match is_decode {
            true => {
                let size = Graphs::batch_size(tokens);
                self.layout(&limits, groups, (size, size))
            }
            false => self.layout(&limits, groups, (tokens, input.seqs.len())),
        };
        let memory = self.memory.as_mut().expect("check_input saw that allocate was called");
        memory.staging.write(&layout, input);
        let step = &mut self.step;
        step.layout = layout;
        step.num_tokens = tokens;
        step.is_decode = is_decode;
        step.tables.clear();
        step.tables.extend(input.block_tables.iter().map(Vec::len));
        step.seqs.clear();
        step.seqs.extend_from_slice(input.seqs);
        step.copies.clear();
        step.copies.extend_from_slice(input.block_copies);
        step.ops.clear();
        step.logits = None;
        step.num_fed = 0;
        step.is_new = true;
        self.counters.steps += 1;
    }

    fn check_input(&self, input: &StepInput<'_>) {
        let limits = self.limits.expect("the engine allocates before the first step");
        let (tokens, kv) = (input.token_ids.len(), self.kv_pool());
        assert!(tokens <= limits.max_tokens, "a step has at most max_tokens rows");
        assert!(input.seqs.len() <= limits.max_seqs, "a step has at most max_seqs sequences");
        assert_eq!(input.positions.len(), tokens, "each row has a position");
        let last = input.positions.iter().copied().max().unwrap_or(0) as usize;
        let covered = self.ropes.iter().all(|rope| last < rope.max_positions);
        assert!(covered, "the tables of rotations cover the positions");
        for (table, slots) in input.block_tables.iter().zip(input.slot_mapping) {
            assert!(table.len() <= limits.max_block_table, "the block table is within its limit");
            assert!(table.iter().all(|b| b.index() < kv.num_blocks), "blocks are the pool's");
            assert_eq!(slots.len(), tokens, "each row has a slot");
            let end = (kv.num_blocks * kv.block_size) as u64;
            assert!(slots.iter().all(|&slot| slot < end), "slots are within the pool");
        }
    }

    /// Launches what was described and is not yet launched.
    pub(super) fn run(&mut self) -> Result<()> {
        let mut ops = std::mem::take(&mut self.step.ops);
        let ran = self.run_ops(&ops);
        ops.clear();
        self.step.ops = ops;
        ran
    }

    fn run_ops(&mut self, ops: &[Op]) -> Result<()> {
        self.step.in_flight = true;
        if std::mem::take(&mut self.step.is_new) {
            self.copy_blocks()?;
            if self.plans_attention() {
                self.work.plan(ops, &self.step.seqs, self.device.multiprocessors);
                let memory = self.memory.as_mut().expect("begin saw that allocate was called");
                memory.staging.write_work(&self.step.layout, &self.work);
            }
            let layout = &self.step.layout;
            self.step_memory().staging.copy(&self.stream, layout, &self.step.tables)?;
            self.launch_feed()?;
        }
        if ops.is_empty() || self.step.layout.rows == 0 {
            return Ok(());
        }
        self.prepare(ops)?;
        if !self.step.is_decode {
            return self.launch(ops);
        }
        let size = self.step.layout.rows;
        match self.graphs.plan(size, ops) {
            Plan::Replay(graph) => self.stream.launch_graph(graph),
            Plan::Launch => self.launch(ops),
            Plan::Capture => self.capture(size, ops),
        }
    }

    /// Captures a step of this size and runs it; without the graph where there is no memory for it.
    fn capture(&mut self, size: usize, ops: &[Op]) -> Result<()> {
        match self.stream.capture(|| self.launch(ops)) {
            Ok(graph) => {
                self.stream.launch_graph(&graph)?;
                self.graphs.insert(size, graph);
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::DeviceMemory => {
                tracing::warn!("decode steps of {size} rows run without a graph: {e}");
                self.graphs.refuse(size);
                self.launch(ops)
            }
            Err(e) => Err(e),
        }
    }

    fn launch(&self, ops: &[Op]) -> Result<()> {
        let mut launcher = Launcher::new(self, self.step.layout);
        (0..ops.len()).try_for_each(|at| launcher.launch(ops, at))
    }

    /// Chooses algorithms before anything is launched or captured.
    fn prepare(&mut self, ops: &[Op]) -> Result<()> {
        for op in ops {
            if let Op::Linear { weight, out, .. } = *op {
                let to = self.activations[out.0 as usize].memory;
                let scratch = self.step_memory().scratch;
                self.prepare_product(weight, self.step.layout.rows, (scratch, to))?;
            }
        }
        Ok(())
    }

    /// For the logits of `rows` rows.
    pub(super) fn prepare_head(&mut self, head: LinearId, rows: usize) -> Result<()> {
        let memory = self.step_memory();
        let places = (memory.gathered, memory.logits);
        self.prepare_product(head, rows, places)
    }

    /// Input and output of the product are read and written where it must be timed.
    fn prepare_product(
        &mut self,
        weight: LinearId,
        rows: usize,
        (x, y): (DevicePtr, DevicePtr),
    ) -> Result<()> {
        let linear = *self.linear_of(weight);
        if self.is_skinny(&linear, rows) {
            return Ok(());
        }
        match &mut self.gemm {
            Some(gemm) => {
                let size = product_size(&linear, rows);
                let product = Product { x, weight: linear.weight, y, size, accumulate: false };
                // SAFETY: scratch and activations have room for padded rows of every layer. What
                // they hold belongs to earlier steps, which have read it by then.
                unsafe { gemm.prepare(&self.stream, &product) }
            }
            None => Ok(()),
        }
    }

    /// In the order given: a source may be an earlier copy's destination.
    fn copy_blocks(&self) -> Result<()> {
        let kv = self.kv_pool();
        for copy in &self.step.copies {
            let (from, to) = (kv.block(copy.source.index()), kv.block(copy.destination.index()));
            if from != to {
                // SAFETY: two blocks of the pool, which do not overlap.
                unsafe { self.stream.copy_on_device(to, from, kv.block_bytes)? };
            }
        }
        Ok(())
    }

    /// Launches the logits that were asked for last; their head, and how many rows. Not for none.
    fn launch_logits(&mut self) -> Result<Option<(Linear, usize)>> {
        let count = self.step.logits_rows.len();
        let Some((head, x)) = self.step.logits.filter(|_| count > 0) else { return Ok(None) };
        let tokens = self.step.num_tokens;
        let known = self.step.logits_rows.iter().all(|&row| (row as usize) < tokens);
        assert!(known, "logits are asked for of the step's rows");
        self.prepare_head(head, count)?;
        let head = *self.linear_of(head);
        self.step.in_flight = true;
        let memory = self.memory.as_mut().expect("the engine allocates before the first step");
        let rows = self.step.logits_rows.iter().copied();
        let rows = memory.staging.copy_list(&self.stream, rows)?;
        Launcher::new(self, self.step.layout).logits(&head, x, rows, count)?;
        Ok(Some((head, count)))
    }

    /// Computes the logits that were asked for last, and waits until they are on the host: rows,
    /// and their width.
    pub(super) fn run_logits(&mut self) -> Result<(usize, usize)> {
        let Some((head, count)) = self.launch_logits()? else {
            self.wait()?;
            return Ok((0, 1));
        };
        let memory = self.memory.as_mut().expect("logits were launched in it");
        let bytes = count * head.rows * size_of::<f32>();
        // SAFETY: the logits are `[count, head.rows]`, and read after the stream was waited for.
        unsafe { self.stream.copy_to_host(&mut memory.logits_host, memory.logits, bytes)? };
        self.wait()?;
        Ok((count, head.rows))
    }

    /// Waits until everything has run.
    pub(super) fn wait(&mut self) -> Result<()> {
        self.step.in_flight = false;
        self.stream.synchronize()
    }

    /// Fills blocks with a value, and waits.
    pub(super) fn fill(&mut self, blocks: &[BlockId], value: f32) -> Result<()> {
        self.wait()?;
        let kv = self.kv_pool();
        let (pool, elements, end) = (kv.memory, kv.block_elements as u64, kv.num_blocks);
        let known = blocks.iter().all(|block| block.index() < end);
        assert!(known, "blocks are the pool's");
        let limits = self.limits.expect("the engine allocates before it fills blocks");
        let kernel = self.kernels.fill_blocks;
        for chunk in blocks.chunks(limits.max_logits_rows.max(1)) {
            let memory = self.memory.as_mut().expect("the engine allocates before it fills blocks");
            let list = chunk.iter().map(|block| block.0);
            let list = memory.staging.copy_list(&self.stream, list)?;
            // SAFETY: every block is one of the pool's.
            unsafe {
                let grid = Grid::new(64, chunk.len(), 256);
                self.stream.launch(kernel, grid, params![pool, list, elements, value])?;
            }
            self.wait()?;
        }
        Ok(())
    }
}
