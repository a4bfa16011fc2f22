//! The CPU backend; for now the reference loops under its name.

use super::ComputeType;
use super::reference::ReferenceBackend;
use crate::config::CpuIsa;
use crate::error::Result;

/// How the CPU backend runs.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Precision.
    pub compute: ComputeType,
    /// Threads.
    pub threads: Option<usize>,
    /// Instruction path.
    pub isa: Option<CpuIsa>,
    /// Binds threads to cores.
    pub pin: bool,
}

/// The CPU backend.
#[derive(Debug)]
pub struct CpuBackend;

impl CpuBackend {
    /// Makes one.
    ///
    /// # Errors
    /// None.
    #[allow(clippy::new_ret_no_self, reason = "a stand-in")]
    pub fn new(options: CpuOptions) -> Result<ReferenceBackend> {
        Ok(ReferenceBackend::new(options.compute))
    }
}
