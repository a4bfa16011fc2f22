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

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "../../amx/emulator.rs"]
mod amx_emulator;

/// All instruction paths; AMX is emulated on a machine that lacks it but could run the rest of the
/// path. Tests ask for them here, before anything else.
pub(crate) fn cpu_paths() -> [CpuIsa; 7] {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            if isa::is_available(CpuIsa::Amx) || !isa::is_available(CpuIsa::Avx512) {
                return;
            }
            println!("this machine has no AMX: the path amx runs emulated");
            amx_emulator::install();
            // SAFETY: the emulator is there, for all threads.
            unsafe { isa::assume_amx() };
        });
    }
    isa::ALL
}

/// Those of them that run here.
pub(crate) fn available_cpu_paths() -> impl Iterator<Item = CpuIsa> {
    cpu_paths().into_iter().filter(|isa| isa::is_available(*isa))
}

/// Calls `f` with the name and maker of every instruction path that this machine can run; prints
/// the names of the others.
pub(crate) fn for_each_cpu_path(f: impl Fn(&str, MakeBackend<'_>)) {
    for isa in cpu_paths() {
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
