//! One step as a program: plain descriptors, run by every thread in the same order.
//!
//! ```text
//!  for each op, for each of its phases:   my share of the work ─► barrier
//! ```
//! Ops that work row by row go through a long step in blocks of rows, all of them over one block
//! before the next, because what a whole step makes would fit in no cache.
//! Work is shared by thread number or taken from a cursor; either way a result does not depend on
//! who computed it.
#![allow(unsafe_code, reason = "calls kernels")]

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::attention::plan::Plan;
use super::attention::{AttentionArgs, Scratch};
use super::barrier::Barrier;
use super::elementwise::{ActivateArgs, GatedArgs};
use super::input::Input;
use super::kept::{KeepRowsArgs, keep_rows};
use super::kernels::{Kernel, Kernels};
use super::kv::{KvCache, LayerKv};
use super::leftover::Leftover;
use super::linear::{ConvertArgs, InputForm, LinearArgs};
use super::memory::Buffer;
use super::norm::NormArgs;
use super::pack::{Packed, gather_rows};
use super::rope::RopeArgs;
use super::share;
use super::simd::hint::prefetch_lines;
use super::upcoming::Upcoming;
use crate::backend::{Heads, LinearId};

/// One op, with its pointers resolved; buffers do not move while a step lasts.
#[derive(Clone, Copy)]
pub(crate) enum Op {
    /// Copies blocks.
    CopyBlocks,
    /// Rows of a table by token id.
    Embed { table: LinearId, out: *mut f32 },
    /// Brings rows of an activation together; the ops behind it have no others.
    KeepRows(KeepRowsArgs),
    /// Rows of a table by position, added.
    AddPosition { table: LinearId, x: *mut f32 },
    /// RMS norm, and its rows brought to the form that the next linear layer reads.
    RmsNorm(NormArgs, Option<ConvertRows>),
    /// Layer norm, likewise.
    LayerNorm(NormArgs, Option<ConvertRows>),
    /// A linear layer.
    Linear(LinearOp),
    /// Query and key norms, rope, writing K and V.
    RopeWrite(RopeArgs),
    /// Attention, after `plan`.
    Attention(AttentionOp),
    /// Gated activation, where no linear layer does it.
    Gated(GatedArgs),
    /// Activation in place.
    Activate(ActivateArgs),
}

/// What a linear op must remember.
#[derive(Clone, Copy)]
pub(crate) struct LinearOp {
    /// Inputs are converted first, unless that was done or they are taken as they are.
    pub(crate) convert: Option<ConvertArgs>,
    /// Inputs are taken as they are, in their form: rows of an activation, not of the workspace.
    pub(crate) direct: Option<InputForm>,
    pub(crate) kernel: Kernel<LinearArgs>,
    pub(crate) args: LinearArgs,
}

/// A conversion that follows row by row what makes the rows, while each is in the nearest cache.
#[derive(Clone, Copy)]
pub(crate) struct ConvertRows {
    pub(crate) args: ConvertArgs,
    /// Nobody else reads the rows: they need not be kept.
    pub(crate) only: bool,
}

/// What an attention op must remember.
#[derive(Clone, Copy)]
pub(crate) struct AttentionOp {
    pub(crate) qkv: *const f32,
    /// Queries are bf16, each in the first half of its place.
    pub(crate) narrow: bool,
    pub(crate) out: *mut f32,
    /// Elements (quantized: bytes) from one row of `out` to the next.
    pub(crate) ldo: usize,
    pub(crate) form: InputForm,
    pub(crate) heads: Heads,
    pub(crate) scale: f32,
    pub(crate) window: usize,
    pub(crate) kv: LayerKv,
    pub(crate) group: usize,
    /// Index of the step's plan.
    pub(crate) plan: usize,
}

impl Op {
    /// Phases, with a barrier after each; the same for every thread.
    fn phases(&self, plans: &[Plan]) -> usize {
        match self {
            Self::Linear(LinearOp { convert: Some(_), .. }) => 2,
            Self::Attention(op) if !plans[op.plan].split.is_empty() => 2,
            _ => 1,
        }
    }

    /// Whether threads take its units from `Leftover`, as a whole.
    pub(crate) fn takes_leftover(&self) -> bool {
        matches!(self, Self::Linear(op) if op.args.takes_leftover())
    }

    /// What follows this op row by row, and the rows that it makes.
    pub(crate) fn then(&mut self) -> Option<(*mut f32, &mut Option<ConvertRows>)> {
        match self {
            Self::RmsNorm(args, then) | Self::LayerNorm(args, then) => Some((args.out, then)),
            _ => None,
        }
    }

    /// Form and distance of the rows that it makes, where it can make them as `convert` wants them.
    pub(crate) fn shape_of_rows(
        &mut self,
        convert: &ConvertArgs,
    ) -> Option<(&mut InputForm, &mut usize)> {
        let x = convert.x;
        match self {
            Self::Linear(LinearOp { args, .. }) => {
                (args.gate.is_some() && args.out.cast_const() == x && convert.fits_in_place())
                    .then_some((&mut args.form, &mut args.ldo))
            }
            Self::Attention(op) => (op.out.cast_const() == x
                && convert.fits_heads(op.heads.head_dim))
            .then_some((&mut op.form, &mut op.ldo)),
            _ => None,
        }
    }

    /// Whether it reads the activation at `x`, changing it or not.
    pub(crate) fn reads(&self, x: *const f32) -> bool {
        let (one, other): (*const f32, *const f32) = match self {
            Self::CopyBlocks | Self::Embed { .. } => return false,
            Self::KeepRows(args) => (args.x, args.x),
            Self::AddPosition { x, .. } => (*x, *x),
            Self::RmsNorm(args, _) | Self::LayerNorm(args, _) => (args.x, args.x),
            Self::Linear(LinearOp { convert, args, .. }) => {
                let input = convert.as_ref().map_or(args.x.cast(), |c| c.x);
                (input, if args.add { args.out } else { input })
            }
            Self::RopeWrite(args) => (args.qkv, args.qkv),
            Self::Attention(op) => (op.qkv, op.qkv),
            Self::Gated(args) => (args.gate_up, args.gate_up),
            Self::Activate(args) => (args.x, args.x),
        };
        one == x || other == x
    }

    /// Whether it writes the whole activation at `x` anew.
    pub(crate) fn overwrites(&self, x: *const f32) -> bool {
        let out: *const f32 = match self {
            Self::Embed { out, .. } => *out,
            Self::RmsNorm(args, _) | Self::LayerNorm(args, _) => args.out,
            Self::Linear(LinearOp { args, .. }) if !args.add => args.out,
            Self::Attention(op) => op.out,
            Self::Gated(args) => args.out,
            _ => return false,
        };
        out == x
    }

    /// Whether each row of it depends on that row of other activations alone.
    fn is_row_wise(&self) -> bool {
        match self {
            Self::CopyBlocks | Self::KeepRows(_) | Self::Attention(_) => false,
            // The head takes some rows only.
            Self::Linear(op) => op.convert.is_none_or(|c| c.rows.is_null()),
            _ => true,
        }
    }

    /// The same for `rows` alone, of a row-wise op. Converted inputs lie in the workspace from its
    /// beginning on, whichever rows they are.
    fn of_rows(mut self, rows: &Range<usize>) -> Self {
        let first = rows.start;
        match &mut self {
            Self::CopyBlocks | Self::KeepRows(_) | Self::Attention(_) => {
                unreachable!("not row-wise")
            }
            Self::Embed { .. } | Self::AddPosition { .. } => {}
            Self::RmsNorm(args, _) | Self::LayerNorm(args, _) => {
                args.x = args.x.wrapping_add(first * args.width);
                args.out = args.out.wrapping_add(first * args.width);
            }
            Self::Linear(LinearOp { convert, direct, args, .. }) => {
                if let Some(convert) = convert {
                    convert.x = convert.x.wrapping_add(first * convert.width);
                } else if let Some(form) = direct {
                    args.x = args.x.wrapping_add(first * args.ldx * form.bytes());
                }
                args.rows = rows.len();
                args.out = args.out.wrapping_byte_add(first * args.ldo * args.form.bytes());
            }
            Self::RopeWrite(args) => {
                args.qkv = args.qkv.wrapping_add(first * args.heads.qkv_width());
                args.positions = args.positions.wrapping_add(first);
                args.slots = args.slots.wrapping_add(first);
            }
            Self::Gated(args) => {
                args.gate_up = args.gate_up.wrapping_add(first * 2 * args.width);
                args.out = args.out.wrapping_add(first * args.width);
            }
            Self::Activate(args) => {
                args.x = args.x.wrapping_add(first * args.width);
                args.len = rows.len() * args.width;
            }
        }
        self
    }
}

/// Memory that ops share, one of each.
pub(crate) struct Workspace {
    /// Converted inputs of linear layers.
    pub(crate) inputs: Buffer<f32>,
    /// Results of split attention tiles.
    pub(crate) partials: Buffer<f32>,
    /// Rows of the last `logits` call.
    pub(crate) logits_rows: Vec<u32>,
    /// `[max_logits_rows, vocab]`.
    pub(crate) logits: Buffer<f32>,
    /// By thread: one row of the widest activation.
    pub(crate) rows: Vec<Buffer<f32>>,
    /// By thread.
    pub(crate) scratch: Vec<ThreadScratch>,
}

/// One thread's scratch: only thread `i` touches entry `i`.
pub(crate) struct ThreadScratch(pub(crate) UnsafeCell<Scratch>);

// SAFETY: entry `i` is used by thread `i` alone while a program runs.
unsafe impl Sync for ThreadScratch {}

/// All that a program reads while it runs.
pub(crate) struct Context<'a> {
    pub(crate) kernels: &'a Kernels,
    pub(crate) ops: &'a [Op],
    pub(crate) cursors: &'a [AtomicUsize],
    pub(crate) leftover: &'a Leftover,
    pub(crate) tables: &'a [Packed],
    pub(crate) input: &'a Input,
    pub(crate) plans: &'a [Plan],
    pub(crate) kv: &'a KvCache,
    pub(crate) workspace: &'a Workspace,
    pub(crate) barrier: &'a Barrier,
    pub(crate) threads: usize,
    /// Rows that go through a run of row-wise ops together, so that what they make and read stays
    /// in a cache.
    pub(crate) block_rows: usize,
    /// Set by a panic: the rest of the program is skipped, barrier by barrier.
    pub(crate) failed: &'a AtomicBool,
}

// SAFETY: the raw pointers in the ops lead to buffers that live as long as the borrows beside
// them, and threads write disjoint parts between barriers, as the kernels' contract says.
unsafe impl Sync for Context<'_> {}

impl Context<'_> {
    /// Runs the program as thread `thread`. A panic of one thread stops all at the next barrier.
    pub(crate) fn run(&self, thread: usize) {
        let (mut panic, mut first) = (None, 0);
        let mut tokens = self.input.token_ids.len();
        while first < self.ops.len() {
            let blocks = tokens.div_ceil(self.block_rows);
            let block = tokens.div_ceil(blocks.max(1)).next_multiple_of(8);
            let row_wise = self.ops[first..].iter().take_while(|op| op.is_row_wise()).count();
            let (step, together) = if row_wise > 0 { (block, row_wise) } else { (tokens, 1) };
            for start in (0..tokens).step_by(step) {
                let rows = start..(start + step).min(tokens);
                for index in first..first + together {
                    let op = match row_wise {
                        0 => self.ops[index],
                        _ => self.ops[index].of_rows(&rows),
                    };
                    self.run_op(&op, index, &rows, thread, &mut panic);
                }
            }
            match &self.ops[first] {
                Op::KeepRows(KeepRowsArgs { count: 0, .. }) => break,
                Op::KeepRows(args) => tokens = args.count,
                _ => {}
            }
            first += together;
        }
        if let Some(payload) = panic {
            std::panic::resume_unwind(payload);
        }
    }

    fn run_op(
        &self,
        op: &Op,
        index: usize,
        rows: &Range<usize>,
        thread: usize,
        panic: &mut Option<Box<dyn Any + Send>>,
    ) {
        let phases = op.phases(self.plans);
        for phase in 0..phases {
            if !self.failed.load(Ordering::Relaxed) {
                let work = || self.run_phase(op, index, phase, thread, rows);
                if let Err(payload) = catch_unwind(AssertUnwindSafe(work)) {
                    self.failed.store(true, Ordering::Relaxed);
                    *panic = Some(payload);
                }
            }
            if self.threads > 1 {
                let done = matches!(op, Op::Linear(_)) && phase + 1 == phases;
                let mut upcoming =
                    Upcoming::of(&self.ops[index + usize::from(done)..], thread, self.threads);
                self.barrier.wait_while(|| upcoming.ask());
            }
        }
    }

    /// `rows` are those that a row-wise op was cut to.
    fn run_phase(&self, op: &Op, index: usize, phase: usize, thread: usize, rows: &Range<usize>) {
        let tokens = rows.len();
        let part = |units: usize| share(units, thread, self.threads);
        let part_of = |rows: &Range<usize>| {
            let part = part(rows.len());
            rows.start + part.start..rows.start + part.end
        };
        let k = self.kernels;
        // SAFETY: `isa::choose` saw the features of these kernels. The ops' pointers were resolved
        // from live buffers whose shapes were asserted; `part` gives each unit to one thread.
        unsafe {
            match op {
                Op::CopyBlocks => {
                    self.kv.copy(&self.input.block_copies, thread, self.threads);
                }
                Op::KeepRows(args) => keep_rows(args, part(args.width.div_ceil(16))),
                Op::Embed { table, out } => {
                    let id = |row: usize| self.input.token_ids[row].index();
                    gather_rows(&self.tables[table.0 as usize], id, *out, part_of(rows), false);
                }
                Op::AddPosition { table, x } => {
                    let id = |row: usize| self.input.positions[row] as usize;
                    gather_rows(&self.tables[table.0 as usize], id, *x, part_of(rows), true);
                }
                Op::RmsNorm(args, then) => self.norm(k.rms_norm, args, then, part(tokens), thread),
                Op::LayerNorm(args, then) => {
                    self.norm(k.layer_norm, args, then, part(tokens), thread);
                }
                Op::Linear(LinearOp { convert: Some(convert), args, .. }) if phase == 0 => {
                    (k.convert)(convert, part(args.rows));
                }
                Op::Linear(op) if self.ops[index].takes_leftover() => {
                    let least = op.args.least_units();
                    while let Some(units) = self.leftover.take(index, thread, self.threads, least) {
                        (op.kernel)(&op.args, units);
                    }
                }
                Op::Linear(op) => (op.kernel)(&op.args, part(op.args.units())),
                Op::RopeWrite(args) => (k.rope_write)(args, part(tokens * args.per_row())),
                Op::Attention(op) => self.attention(op, index, phase, thread),
                Op::Gated(args) => (k.gated)(args, part(tokens * args.width.div_ceil(16))),
                Op::Activate(args) => (k.activate)(args, part(args.len.div_ceil(16))),
            }
        }
    }

    /// This thread's rows of a norm, each converted at once where a linear layer follows.
    unsafe fn norm(
        &self,
        kernel: Kernel<NormArgs>,
        args: &NormArgs,
        then: &Option<ConvertRows>,
        rows: Range<usize>,
        thread: usize,
    ) {
        // SAFETY: as in `run_phase`; the rows are this thread's own, and so is its scratch.
        unsafe {
            let Some(ConvertRows { args: then, only }) = then else { return kernel(args, rows) };
            let scratch = only.then(|| self.workspace.rows[thread].as_ptr());
            for row in rows.clone() {
                // Other threads may have had a part of each row last.
                if row + 1 < rows.end {
                    let next = args.x.wrapping_add((row + 1) * args.width);
                    prefetch_lines(next.cast(), args.width * size_of::<f32>());
                }
                let out = scratch.unwrap_or_else(|| args.out.add(row * args.width));
                kernel(&NormArgs { x: args.x.add(row * args.width), out, ..*args }, 0..1);
                let target = then.out.add(row * then.ldo * then.form.bytes());
                (self.kernels.convert)(&ConvertArgs { x: out, out: target, ..*then }, 0..1);
            }
        }
    }

    /// Items are taken from a cursor, for their lengths differ; merging is shared evenly.
    fn attention(&self, op: &AttentionOp, index: usize, phase: usize, thread: usize) {
        let plan = &self.plans[op.plan];
        let args = AttentionArgs {
            qkv: op.qkv,
            narrow: op.narrow,
            out: op.out.cast(),
            ldo: op.ldo,
            form: op.form,
            heads: op.heads,
            scale: op.scale,
            window: op.window,
            kv: op.kv,
            seqs: self.input.kept.seqs().filter(|_| plan.kept).unwrap_or(&self.input.seqs),
            table: &self.input.block_tables[op.group],
            plan,
            partials: self.workspace.partials.as_ptr(),
        };
        if phase == 1 {
            for (tile, split) in plan.split.iter().enumerate() {
                let vectors: Range<usize> =
                    share(split.rows * op.heads.num_heads, thread, self.threads);
                // SAFETY: as in `run_phase`; each vector has one thread.
                unsafe { (self.kernels.merge)(&args, tile, vectors) };
            }
            return;
        }
        let attend = self.kernels.attend_of(&op.kv);
        // SAFETY: entry `thread` is this thread's own.
        let scratch = unsafe { &mut *self.workspace.scratch[thread].0.get() };
        let count = plan.works();
        let take = || {
            let next = self.cursors[index].fetch_add(1, Ordering::Relaxed);
            (next < count).then(|| plan.work(next))
        };
        let mut mine = take();
        while let Some(work) = mine {
            // The next one is taken early, so that its keys can be asked for; the last ones are
            // not: a thread may be done before another begins with what it took.
            let many = self.cursors[index].load(Ordering::Relaxed) + 2 * self.threads < count;
            scratch.next = if many { take() } else { None };
            // SAFETY: as in `run_phase`; the cursor gives each item and head to one thread.
            unsafe { attend(&args, work, scratch) };
            mine = scratch.next.or_else(take);
        }
    }
}
