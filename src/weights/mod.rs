//! Checkpoints: published safetensors folders as named tensors.
//!
//! ```text
//!  model.safetensors                        ┐
//!  model.safetensors.index.json + shards    ├─► Checkpoint ─► Weights ─► RowSource ─► backend
//!                        seed (dummy)       ┘    (names)     (checked)   (by rows)
//! ```
//!
//! Headers are read and checked when a checkpoint is opened; the data is read by `pread`, a few
//! rows at a time and once, while a backend packs it. Nothing is mapped into memory: a file that is
//! cut short is an error, not a signal. This room knows names, shapes and element types, but no
//! model.

mod checkpoint;
mod dummy;
mod element;
mod header;
mod json;
mod source;

pub use checkpoint::{Checkpoint, Tensor};
pub use dummy::DummyRows;
pub use element::ElementType;
pub use json::{MAX_CONFIG_BYTES, read_json_object};
pub use source::{TensorRows, TransposedRows};

use std::cell::RefCell;
use std::collections::HashSet;

use crate::backend::{DType, RowSource};
use crate::error::{Error, ErrorKind, Result};

/// Where a model's parameters come from. Every request for one states the shape that the model's
/// configuration implies; a checkpoint that has another one is refused.
pub enum Weights {
    /// A folder's tensors.
    Checkpoint {
        /// The tensors.
        checkpoint: Checkpoint,
        /// Names that were asked for.
        used: RefCell<HashSet<String>>,
    },
    /// Seeded random values of any shape.
    Dummy {
        /// Every value follows from it.
        seed: u64,
        /// Element type of the matrices.
        dtype: DType,
    },
}

/// How a weight lies in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[out, in]`, as `torch.nn.Linear` has it.
    OutIn,
    /// `[in, out]`, as GPT-2's `Conv1D` has it.
    InOut,
}

/// What a vector holds; only dummy weights care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorKind {
    /// A norm's weight: about one.
    Scale,
    /// A bias: about zero.
    Bias,
}

impl Weights {
    /// The tensors of a checkpoint.
    pub fn from_checkpoint(checkpoint: Checkpoint) -> Self {
        Self::Checkpoint { checkpoint, used: RefCell::default() }
    }

    /// Seeded random weights; matrices are of type `dtype`.
    pub fn dummy(seed: u64, dtype: DType) -> Self {
        Self::Dummy { seed, dtype }
    }

    /// Whether there is a tensor of this name; always so for dummy weights.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Checkpoint { checkpoint, .. } => checkpoint.get(name).is_some(),
            Self::Dummy { .. } => true,
        }
    }

    /// A matrix as rows `[out, in]`, whatever its layout in the file. Nothing is read yet. Fails
    /// with `MODEL_FORMAT` when the tensor is missing or has another shape or element type.
    pub fn matrix(
        &self,
        name: &str,
        out: usize,
        inputs: usize,
        layout: Layout,
    ) -> Result<Box<dyn RowSource>> {
        let shape = match layout {
            Layout::OutIn => [out, inputs],
            Layout::InOut => [inputs, out],
        };
        Ok(match self {
            Self::Dummy { seed, dtype } => {
                Box::new(DummyRows::new(*seed, name, *dtype, out, inputs))
            }
            Self::Checkpoint { .. } => match layout {
                Layout::OutIn => Box::new(TensorRows::new(self.expect(name, &shape)?)?),
                Layout::InOut => Box::new(TransposedRows::new(self.expect(name, &shape)?)?),
            },
        })
    }

    /// Checks that a vector of this name and length exists.
    pub fn check_vector(&self, name: &str, len: usize) -> Result<()> {
        match self {
            Self::Dummy { .. } => Ok(()),
            Self::Checkpoint { .. } => TensorRows::new(self.expect(name, &[len])?).map(|_| ()),
        }
    }

    /// Reads a vector of `len` elements as f32.
    pub fn vector(&self, name: &str, len: usize, kind: VectorKind) -> Result<Vec<f32>> {
        match self {
            Self::Dummy { seed, .. } => dummy::vector(*seed, name, len, kind),
            Self::Checkpoint { .. } => source::read_vector(self.expect(name, &[len])?),
        }
    }

    /// Names in the checkpoint that nobody asked for.
    pub fn unused(&self) -> Vec<String> {
        match self {
            Self::Dummy { .. } => Vec::new(),
            Self::Checkpoint { checkpoint, used } => {
                let used = used.borrow();
                checkpoint.names().filter(|name| !used.contains(*name)).map(str::to_owned).collect()
            }
        }
    }

    /// The tensor `name`, marked as used, if it has this shape.
    fn expect(&self, name: &str, shape: &[usize]) -> Result<&Tensor> {
        let Self::Checkpoint { checkpoint, used } = self else {
            unreachable!("dummy weights have no tensors; every caller handles them first");
        };
        let tensor = checkpoint.get(name).ok_or_else(|| {
            Error::new(ErrorKind::ModelFormat, format!("tensor {name} is missing"))
                .with("tensor", name)
        })?;
        if tensor.shape != shape {
            let message = format!(
                "{}: tensor {name} has shape {:?}, the configuration implies {shape:?}",
                tensor.file.path().display(),
                tensor.shape
            );
            return Err(Error::new(ErrorKind::ModelFormat, message)
                .with("tensor", name)
                .with("limit", shape)
                .with("value", tensor.shape.as_slice()));
        }
        used.borrow_mut().insert(name.to_owned());
        Ok(tensor)
    }
}
