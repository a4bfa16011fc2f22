//! The one error type: a kind, a message that names field, limit and value, and details as JSON.

use std::fmt;

use serde_json::{Map, Value};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, as a closed set. The numbers are the C ABI's `VrustStatus` values and are
/// never renumbered; a retired one stays reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum ErrorKind {
    /// A parameter is out of range, malformed, or a handle is NULL or stale.
    InvalidArgument = -1,
    /// The caller was compiled against a header that this library cannot serve.
    AbiMismatch = -2,
    /// The request is well-formed, but this build or model cannot honour it.
    Unsupported = -3,
    /// No such thing: an id this engine never issued, a file that does not exist.
    NotFound = -4,
    /// The operating system refused or cut short an operation on a file.
    Io = -5,
    /// A checkpoint or its configuration is malformed or contradicts itself.
    ModelFormat = -6,
    /// The tokenizer is missing, malformed, or failed on this input.
    Tokenizer = -7,
    /// The chat template is missing, malformed, or raised an error on these messages.
    Template = -8,
    /// A grammar for structured output is malformed.
    Grammar = -9,
    /// The prompt does not fit the model's context.
    ContextLength = -10,
    /// The waiting queue is full; try again later.
    QueueFull = -11,
    /// Host memory could not be had.
    OutOfMemory = -12,
    /// Device memory could not be had.
    DeviceMemory = -13,
    /// The device reported a failure.
    Device = -14,
    /// The engine failed earlier and serves no more requests.
    EngineFailed = -15,
    /// The engine is draining or closed.
    ShuttingDown = -16,
    /// The caller's buffer cannot hold even one item; the needed size is reported.
    BufferTooSmall = -17,
    /// A bug in this library, caught at the boundary.
    Panic = -18,
    /// The handle was made before `fork` and is used in the child.
    Forked = -19,
    /// The operation was cancelled by the host.
    Cancelled = -20,
}

impl ErrorKind {
    /// The kind's stable upper-case name, as the C header spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::AbiMismatch => "ABI_MISMATCH",
            Self::Unsupported => "UNSUPPORTED",
            Self::NotFound => "NOT_FOUND",
            Self::Io => "IO",
            Self::ModelFormat => "MODEL_FORMAT",
            Self::Tokenizer => "TOKENIZER",
            Self::Template => "TEMPLATE",
            Self::Grammar => "GRAMMAR",
            Self::ContextLength => "CONTEXT_LENGTH",
            Self::QueueFull => "QUEUE_FULL",
            Self::OutOfMemory => "OUT_OF_MEMORY",
            Self::DeviceMemory => "DEVICE_MEMORY",
            Self::Device => "DEVICE",
            Self::EngineFailed => "ENGINE_FAILED",
            Self::ShuttingDown => "SHUTTING_DOWN",
            Self::BufferTooSmall => "BUFFER_TOO_SMALL",
            Self::Panic => "PANIC",
            Self::Forked => "FORKED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

/// An error: kind, message, and machine-readable details such as
/// `{"field":"prompt","limit":8192,"value":9001}`.
#[derive(Clone, Debug)]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    detail: Map<String, Value>,
}

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), detail: Map::new() }))
    }

    /// `INVALID_ARGUMENT` about `field`, the commonest of all.
    pub fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message).with("field", field)
    }

    /// Adds a detail, e.g. `.with("limit", 8192).with("value", 9001)`.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.detail.insert(key.to_owned(), value.into());
        self
    }

    /// Puts `context` in front of the message: `model.safetensors: header ends early`.
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.0.message = format!("{context}: {}", self.0.message);
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The message, for people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The details, for programs, as a JSON object.
    pub fn detail(&self) -> &Map<String, Value> {
        &self.0.detail
    }

    /// Whether the same call may succeed later without a change.
    pub fn is_retryable(&self) -> bool {
        self.kind() == ErrorKind::QueueFull
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {}

/// An allocation whose size comes from input or configuration failed.
impl From<std::collections::TryReserveError> for Error {
    fn from(e: std::collections::TryReserveError) -> Self {
        Self::new(ErrorKind::OutOfMemory, format!("out of memory: {e}"))
    }
}
