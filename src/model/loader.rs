//! `Loader`: what an architecture's `build` asks for its parameters.
//!
//! `build` runs twice over the same code. The first run only checks that every tensor is there and
//! has the right shape, so that a bad checkpoint is refused before gigabytes are read; the second
//! reads and packs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::{
    ActId, Backend, DType, LinearId, LinearPart, LinearRole, LinearSpec, RopeId, RopeSpec,
    RowSource, VectorId,
};
use crate::error::{Error, ErrorKind, Result};
use crate::weights::{Layout, VectorKind, Weights};

/// Hands out a model's parameters as a backend's handles.
pub(super) struct Loader<'a> {
    weights: &'a Weights,
    stage: Stage<'a>,
}

/// Called by any thread with the share of the matrices' bytes that has been read, `0..=1`; an error
/// ends the loading.
pub(super) type Progress = dyn Fn(f32) -> Result<()> + Send + Sync;

/// Counts what is read of all matrices.
struct Watch {
    done: AtomicU64,
    total: u64,
    progress: Box<Progress>,
}

/// Rows whose reading is watched: a backend's threads report, and learn that loading is over, after
/// every piece and not only after every matrix.
struct Watched {
    rows: Box<dyn RowSource>,
    watch: Arc<Watch>,
}

enum Stage<'a> {
    Check {
        /// Names that the checkpoint lacks.
        missing: Vec<String>,
        /// Bytes of all matrices.
        bytes: u64,
    },
    Load {
        backend: &'a mut dyn Backend,
        watch: Arc<Watch>,
    },
}

/// One tensor (with its bias) of a linear layer, or an embedding table.
pub(super) struct Part {
    /// Name without `.weight` or `.bias`.
    name: String,
    /// Output features, or rows of a table.
    out: usize,
    /// Input features, or width of a table.
    inputs: usize,
    bias: bool,
    layout: Layout,
}

impl Part {
    /// `name.weight`, `[out, inputs]`.
    pub(super) fn new(name: String, out: usize, inputs: usize) -> Self {
        Self { name, out, inputs, bias: false, layout: Layout::OutIn }
    }

    /// With `name.bias`, `[out]`, if so.
    pub(super) fn bias(self, bias: bool) -> Self {
        Self { bias, ..self }
    }

    /// In this layout.
    pub(super) fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }
}

impl<'a> Loader<'a> {
    /// A loader that only checks.
    pub(super) fn check(weights: &'a Weights) -> Self {
        Self { weights, stage: Stage::Check { missing: Vec::new(), bytes: 0 } }
    }

    /// A loader that packs `total` bytes of matrices into `backend`.
    pub(super) fn load(
        weights: &'a Weights,
        backend: &'a mut dyn Backend,
        progress: Box<Progress>,
        total: u64,
    ) -> Self {
        let watch = Arc::new(Watch { done: AtomicU64::new(0), total, progress });
        Self { weights, stage: Stage::Load { backend, watch } }
    }

    /// Ends a check: the bytes of all matrices, or `MODEL_FORMAT` naming the missing tensors.
    pub(super) fn finish_check(self) -> Result<u64> {
        match self.stage {
            Stage::Check { missing, bytes } if missing.is_empty() => Ok(bytes),
            Stage::Check { mut missing, .. } => {
                let message = format!("the checkpoint lacks {}", name_some(&missing));
                missing.truncate(MAX_DETAIL_NAMES);
                Err(Error::new(ErrorKind::ModelFormat, message).with("tensor", missing))
            }
            Stage::Load { .. } => unreachable!("only a loader that checks is asked"),
        }
    }

    /// Whether the checkpoint has this tensor.
    pub(super) fn has(&self, name: &str) -> bool {
        self.weights.has(name)
    }

    /// A linear layer of parts stacked along the outputs.
    pub(super) fn linear(&mut self, parts: &[Part]) -> Result<LinearId> {
        self.matrix(parts, LinearRole::Hidden)
    }

    /// The gate and the up projection of a gated layer.
    pub(super) fn gate_up(&mut self, parts: &[Part; 2]) -> Result<LinearId> {
        self.matrix(parts, LinearRole::GateUp)
    }

    /// The embedding of tokens, or the head.
    pub(super) fn vocabulary(&mut self, part: Part) -> Result<LinearId> {
        self.matrix(&[part], LinearRole::Vocabulary)
    }

    /// A table of learned positions.
    pub(super) fn positions(&mut self, part: Part) -> Result<LinearId> {
        self.matrix(&[part], LinearRole::Positions)
    }

    fn matrix(&mut self, parts: &[Part], role: LinearRole) -> Result<LinearId> {
        match &mut self.stage {
            Stage::Check { missing, bytes } => {
                for part in parts {
                    *bytes += check_part(self.weights, part, missing)?;
                }
                Ok(LinearId(0))
            }
            Stage::Load { backend, watch } => {
                let mut spec = LinearSpec { parts: Vec::with_capacity(parts.len()), role };
                for part in parts {
                    let LinearPart { weight: rows, bias } = open_part(self.weights, part)?;
                    let weight = Box::new(Watched { rows, watch: Arc::clone(watch) });
                    spec.parts.push(LinearPart { weight, bias });
                }
                backend.pack_linear(spec)
            }
        }
    }

    /// A vector of `len` elements.
    pub(super) fn vector(
        &mut self,
        name: String,
        len: usize,
        kind: VectorKind,
    ) -> Result<VectorId> {
        match &mut self.stage {
            Stage::Check { missing, .. } => {
                check_vector(self.weights, name, len, missing)?;
                Ok(VectorId(0))
            }
            Stage::Load { backend, .. } => backend.vector(self.weights.vector(&name, len, kind)?),
        }
    }

    /// A rotary embedding's table.
    pub(super) fn rope(&mut self, spec: &RopeSpec) -> Result<RopeId> {
        match &mut self.stage {
            Stage::Check { .. } => Ok(RopeId(0)),
            Stage::Load { backend, .. } => backend.rope_table(spec),
        }
    }

    /// An activation of `width` columns.
    pub(super) fn activation(&mut self, width: usize) -> ActId {
        match &mut self.stage {
            Stage::Check { .. } => ActId(0),
            Stage::Load { backend, .. } => backend.activation(width),
        }
    }
}

/// Most names in an error's details.
const MAX_DETAIL_NAMES: usize = 16;

/// The first few names and how many there are: for messages.
pub(super) fn name_some(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len() {
        0..=SHOWN => shown,
        more => format!("{shown} and {} more", more - SHOWN),
    }
}

fn check_part(weights: &Weights, part: &Part, missing: &mut Vec<String>) -> Result<u64> {
    if part.bias {
        check_vector(weights, format!("{}.bias", part.name), part.out, missing)?;
    }
    let name = format!("{}.weight", part.name);
    if !weights.has(&name) {
        missing.push(name);
        return Ok(0);
    }
    let source = weights.matrix(&name, part.out, part.inputs, part.layout)?;
    Ok(part.out as u64 * part.inputs as u64 * source.dtype().size() as u64)
}

fn check_vector(
    weights: &Weights,
    name: String,
    len: usize,
    missing: &mut Vec<String>,
) -> Result<()> {
    if weights.has(&name) {
        weights.check_vector(&name, len)
    } else {
        missing.push(name);
        Ok(())
    }
}

fn open_part(weights: &Weights, part: &Part) -> Result<LinearPart> {
    let name = format!("{}.weight", part.name);
    let weight = weights.matrix(&name, part.out, part.inputs, part.layout)?;
    let bias = match part.bias {
        true => Some(weights.vector(&format!("{}.bias", part.name), part.out, VectorKind::Bias)?),
        false => None,
    };
    Ok(LinearPart { weight, bias })
}

impl RowSource for Watched {
    fn name(&self) -> &str {
        self.rows.name()
    }

    fn dtype(&self) -> DType {
        self.rows.dtype()
    }

    fn rows(&self) -> usize {
        self.rows.rows()
    }

    fn cols(&self) -> usize {
        self.rows.cols()
    }

    fn read_rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        self.rows.read_rows(rows, out)?;
        let bytes = out.len() as u64;
        let done = self.watch.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.watch.progress)((done as f64 / self.watch.total.max(1) as f64).min(1.0) as f32)
    }

    fn piece_bytes(&self) -> usize {
        self.rows.piece_bytes()
    }
}
