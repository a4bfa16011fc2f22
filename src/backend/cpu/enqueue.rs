//! How the backend's ops become descriptors: shapes asserted, pointers resolved, and the program
//! handed to the pool.
#![allow(unsafe_code, reason = "gives each row of logits to one thread")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::CpuBackend;
use super::attention::plan::Plan;
use super::elementwise::GatedArgs;
use super::kept::KeepRowsArgs;
use super::kv::LayerKv;
use super::linear::{ConvertArgs, InputForm, quantized};
use super::norm::NormArgs;
use super::program::{Context, ConvertRows, LinearOp, Op};
use crate::backend::{ActId, Attention, LinearId, StepInput, VectorId};

/// A caller's closure over the rows of logits: row, logits.
type MapLogits<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);

impl CpuBackend {
    /// Rows that ops work on.
    pub(super) fn rows(&self) -> usize {
        self.input.kept.rows_of(self.input.token_ids.len())
    }

    /// An activation's rows.
    pub(super) fn act(&self, id: ActId) -> (*mut f32, usize) {
        let act = &self.acts[id.0 as usize];
        let rows = act.rows.as_ref().expect("activations are allocated before a step begins");
        (rows.as_ptr(), act.width)
    }

    /// A small parameter of `width` elements.
    pub(super) fn param(&self, id: VectorId, width: usize) -> *const f32 {
        let vector = &self.vectors[id.0 as usize];
        assert_eq!(vector.len(), width, "width of vector {}", id.0);
        vector.as_ptr()
    }

    pub(super) fn push_linear(
        &mut self,
        weight: LinearId,
        x: ActId,
        out: (*mut f32, usize),
        add: bool,
    ) {
        let (x, width) = self.act(x);
        let rows = self.rows();
        self.push_linear_rows(weight, (x, width), rows, std::ptr::null(), out, add);
    }

    /// Linear over rows `0..rows`, or over the rows listed in `index`.
    pub(super) fn push_linear_rows(
        &mut self,
        weight: LinearId,
        (x, width): (*mut f32, usize),
        rows: usize,
        index: *const u32,
        (out, ldo): (*mut f32, usize),
        add: bool,
    ) {
        let packed = &self.linears[weight.0 as usize];
        assert_eq!(width, packed.k, "input width of linear {}", weight.0);
        assert_eq!(ldo, packed.n, "output width of linear {}", weight.0);
        let form = packed.storage.input_form(self.kernels.bf16_inputs);
        let mut args = packed.args();
        (args.rows, args.out, args.ldo, args.add) = (rows, out, ldo, add);
        (args.x, args.ldx) = (x.cast::<u8>().cast_const(), width);
        let direct = (form == InputForm::F32 && index.is_null()).then_some(form);
        let mut convert = None;
        if direct.is_none() {
            let target = self.workspace.inputs.as_ptr().cast::<u8>();
            let ldx = match form {
                InputForm::Int8 { group, .. } => quantized::row_bytes(packed.k_padded, group),
                _ => form.row_len(width),
            };
            (args.x, args.ldx) = (target, ldx);
            let args = ConvertArgs { x, width, rows: index, out: target, ldo: args.ldx, form };
            convert = Some(args);
            if let Some((made, then @ None)) = self.ops.last_mut().and_then(Op::then)
                && made == x
                && index.is_null()
            {
                *then = Some(ConvertRows { args, only: false });
                convert = None;
            }
        }
        let kernel = self.kernels.linear[packed.storage as usize];
        self.push(Op::Linear(LinearOp { convert, direct, kernel, args }));
    }

    /// As a part of the linear layer before it, if that made both sides side by side.
    pub(super) fn push_gated(&mut self, args: GatedArgs) {
        match self.ops.last_mut() {
            Some(Op::Linear(LinearOp { args: linear, .. }))
                if linear.gated && !linear.add && linear.out.cast_const() == args.gate_up =>
            {
                linear.gate = Some(args.kind);
                (linear.out, linear.ldo) = (args.out, args.width);
            }
            _ => self.push(Op::Gated(args)),
        }
    }

    pub(super) fn push_norm(
        &mut self,
        x: ActId,
        weight: VectorId,
        bias: Option<VectorId>,
        eps: f32,
        out: ActId,
    ) {
        let ((x, width), (out, out_width)) = (self.act(x), self.act(out));
        assert_eq!(width, out_width, "width of a norm's output");
        let bias = bias.map(|b| self.param(b, width));
        let weight = self.param(weight, width);
        let args = NormArgs { x, out, width, weight, bias: bias.unwrap_or(weight), eps };
        self.push(match bias {
            Some(_) => Op::LayerNorm(args, None),
            None => Op::RmsNorm(args, None),
        });
    }

    /// Goes on with the rows that are wanted, where some are not. Where none is, what follows is
    /// described all the same: how a layer's rows are made depends on who reads them.
    pub(super) fn push_keep_rows(&mut self, acts: &[ActId]) {
        let Some(wanted) = self.input.kept.wanted() else { return };
        let (rows, count) = (wanted.as_ptr(), wanted.len());
        for act in acts {
            let (x, width) = self.act(*act);
            self.push(Op::KeepRows(KeepRowsArgs { x, width, rows, count }));
        }
        self.input.kept.keep(&self.input.seqs);
    }

    pub(super) fn push(&mut self, op: Op) {
        self.ops.push(op);
        if self.cursors.len() < self.ops.len() {
            self.cursors.push(AtomicUsize::new(0));
            let reserved = self.leftover.reserve(self.pool.threads(), self.ops.len());
            reserved.expect("the units of one step fit in memory");
        }
    }

    /// The step's plan for this kind of attention, made when first asked for.
    pub(super) fn plan(&mut self, spec: &Attention, window: usize, dim_padded: usize) -> usize {
        let threads = self.pool.threads();
        let tokens = self.limits.map_or(0, |l| l.max_tokens);
        let kept = self.input.kept.seqs();
        let kind = (spec.heads, window, kept.is_some());
        if let Some(i) = self.plans[..self.planned].iter().position(|p| p.serves(kind)) {
            return i;
        }
        let at = self.planned;
        if let Some(i) = self.plans[at..].iter().position(|p| p.serves(kind)) {
            self.plans.swap(at, at + i);
        } else {
            let plan = Plan::new(kind, tokens, threads);
            let plan = plan.expect("ids of the work of one step fit in memory");
            self.plans.insert(at, plan);
        }
        let room = self.workspace.partials.len();
        let seqs = kept.unwrap_or(&self.input.seqs);
        self.plans[at].make(seqs, threads, dim_padded, room);
        self.planned += 1;
        at
    }

    /// Has queries rounded to bf16 where they are made, if attention multiplies them so.
    pub(super) fn narrow_queries(&mut self, qkv: *const f32, kv: &LayerKv) -> bool {
        if !(kv.bf16 && self.kernels.bf16_inputs && kv.dim.is_multiple_of(16)) {
            return false;
        }
        let made = self.ops.iter_mut().rev().find_map(|op| match op {
            Op::RopeWrite(args) if args.qkv.cast_const() == qkv => Some(args),
            _ => None,
        });
        made.map(|args| args.narrow = true).is_some()
    }

    /// Finds converted rows that nobody else reads before they are made anew: they are made in the
    /// form in which they are read.
    pub(super) fn find_unread(&mut self) {
        for i in 0..self.ops.len() {
            let (made, later) = self.ops.split_at_mut(i + 1);
            if let Some((x, Some(then))) = made[i].then() {
                then.only = is_unread(x, later);
            }
            if let [Op::Linear(next), after @ ..] = later
                && let Some(convert) = next.convert
                && convert.rows.is_null()
                && let Some((form, ldo)) = made[i].shape_of_rows(&convert)
                && is_unread(convert.x, after)
            {
                (*form, *ldo) = (convert.form, convert.ldo);
                (next.convert, next.direct) = (None, Some(convert.form));
                next.args.x = convert.x.cast();
            }
        }
    }

    /// Runs what was described, and then `map` over the rows of the last `logits` call: one
    /// parallel region for all of it.
    pub(super) fn run_program(&mut self, map: Option<MapLogits<'_>>) {
        if self.ops.is_empty() && map.is_none() {
            return;
        }
        self.find_unread();
        for cursor in &self.cursors {
            cursor.store(0, Ordering::Relaxed);
        }
        for (i, op) in self.ops.iter().enumerate() {
            if let Op::Linear(linear) = op
                && op.takes_leftover()
            {
                self.leftover.fill(i, linear.args.units(), self.pool.threads());
            }
        }
        // The barrier is shared with the pool, which is borrowed to run.
        let barrier = self.pool.barrier();
        let context = Context {
            kernels: &self.kernels,
            ops: &self.ops,
            cursors: &self.cursors,
            leftover: &self.leftover,
            tables: &self.linears,
            input: &self.input,
            plans: &self.plans,
            kv: &self.kv,
            workspace: &self.workspace,
            barrier: &barrier,
            threads: self.pool.threads(),
            block_rows: self.block_rows,
            failed: &AtomicBool::new(false),
        };
        let (next_row, width) = (AtomicUsize::new(0), self.logits_width);
        let work = |thread: usize| {
            context.run(thread);
            if let Some(map) = map {
                map_rows(&context, map, &next_row, width);
            }
        };
        let run = std::panic::AssertUnwindSafe(|| self.pool.run(&work));
        let result = std::panic::catch_unwind(run);
        self.ops.clear();
        if let Err(payload) = result {
            std::panic::resume_unwind(payload);
        }
    }

    /// Asserts that the step keeps within the limits and within the cache.
    pub(super) fn check_input(&self, input: &StepInput<'_>) {
        let limits = self.limits.expect("a backend is allocated before its first step");
        assert!(input.token_ids.len() <= limits.max_tokens, "more tokens than max_tokens");
        assert!(input.seqs.len() <= limits.max_seqs, "more sequences than max_seqs");
        for seq in input.seqs {
            assert!(seq.query_start + seq.query_len <= input.token_ids.len(), "rows of a sequence");
        }
        for table in input.block_tables {
            assert!(table.len() <= limits.max_block_table, "longer than max_block_table");
            assert!(table.iter().all(|b| b.index() < self.kv.num_blocks()), "block out of range");
        }
        for slots in input.slot_mapping {
            let end = (self.kv.num_blocks() * self.kv.block_size()) as u64;
            assert!(slots.iter().all(|slot| *slot < end), "slot out of range");
        }
    }
}

/// Whether no op reads the activation at `x` before one makes it anew.
fn is_unread(x: *const f32, ops: &[Op]) -> bool {
    let next = ops.iter().find(|op| op.reads(x) || op.overwrites(x));
    next.is_some_and(|op| !op.reads(x))
}

/// Takes rows of logits, one after the other, as long as there are any. `next` is shared by all
/// threads, which have passed the program's last barrier.
fn map_rows(context: &Context<'_>, map: MapLogits<'_>, next: &AtomicUsize, width: usize) {
    let workspace = context.workspace;
    // Whoever finds the program failed has no logits to map.
    while !context.failed.load(Ordering::Relaxed) {
        let row = next.fetch_add(1, Ordering::Relaxed);
        if row >= workspace.logits_rows.len() {
            return;
        }
        // SAFETY: rows lie in the buffer, and the cursor gives each to one thread.
        let logits = unsafe {
            std::slice::from_raw_parts_mut(workspace.logits.as_ptr().add(row * width), width)
        };
        map(row, logits);
    }
}
