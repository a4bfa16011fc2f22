//! The backends that tests run on.

use vrust::backend::cpu::{CpuBackend, CpuOptions, isa};
use vrust::backend::reference::ReferenceBackend;
use vrust::backend::{Backend, ComputeType};
use vrust::config::CpuIsa;
use vrust::error::{ErrorKind, Result};

/// Makes the backend under test.
pub(crate) type MakeBackend<'a> = &'a dyn Fn(ComputeType) -> Box<dyn Backend>;

pub(crate) fn reference(compute: ComputeType) -> Box<dyn Backend> {
    Box::new(ReferenceBackend::new(compute))
}

/// Calls `f` with the name and maker of every instruction path that this machine can run; prints
/// the names of the others.
pub(crate) fn for_each_cpu_path(f: impl Fn(&str, MakeBackend<'_>)) {
    for isa in isa::ALL {
        match cpu(ComputeType::F32, isa) {
            Ok(_) => f(&format!("cpu {isa:?}"), &|compute| Box::new(cpu(compute, isa).unwrap())),
            Err(e) if e.kind() == ErrorKind::Unsupported => println!("skipped: {e}"),
            Err(e) => panic!("{isa:?}: {e}"),
        }
    }
}

fn cpu(compute: ComputeType, isa: CpuIsa) -> Result<CpuBackend> {
    CpuBackend::new(CpuOptions { threads: Some(2), isa: Some(isa), ..CpuOptions::new(compute) })
}
