//! Which instruction path this machine can run, asked of it at run time.

use super::amx;
use crate::config::CpuIsa;
use crate::error::{Error, ErrorKind, Result};

/// The paths, best first.
pub const ALL: [CpuIsa; 7] = [
    CpuIsa::Amx,
    CpuIsa::Avx512Bf16,
    CpuIsa::Avx512,
    CpuIsa::Avx2,
    CpuIsa::NeonBf16,
    CpuIsa::Neon,
    CpuIsa::Portable,
];

pub use super::amx::assume as assume_amx;

/// Whether this machine can run `isa`.
pub fn is_available(isa: CpuIsa) -> bool {
    match isa {
        CpuIsa::Portable => true,
        #[cfg(target_arch = "x86_64")]
        CpuIsa::Avx2 => has_avx2(),
        #[cfg(target_arch = "x86_64")]
        CpuIsa::Avx512 => has_avx512(),
        #[cfg(target_arch = "x86_64")]
        CpuIsa::Avx512Bf16 => has_avx512() && is_x86_feature_detected!("avx512bf16"),
        #[cfg(target_arch = "x86_64")]
        CpuIsa::Amx => {
            has_avx512()
                && is_x86_feature_detected!("avx512bf16")
                && is_x86_feature_detected!("avx512vnni")
                && amx::is_usable()
        }
        #[cfg(target_arch = "aarch64")]
        CpuIsa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
        #[cfg(target_arch = "aarch64")]
        CpuIsa::NeonBf16 => std::arch::is_aarch64_feature_detected!("bf16"),
        _ => false,
    }
}

/// The path's name, as options and logs spell it.
pub fn name(isa: CpuIsa) -> &'static str {
    match isa {
        CpuIsa::Amx => "amx",
        CpuIsa::Avx512Bf16 => "avx512-bf16",
        CpuIsa::Avx512 => "avx512",
        CpuIsa::Avx2 => "avx2",
        CpuIsa::NeonBf16 => "neon-bf16",
        CpuIsa::Neon => "neon",
        CpuIsa::Portable => "portable",
    }
}

/// The wanted path, or the best one; UNSUPPORTED when the machine lacks the wanted one.
pub(crate) fn choose(wanted: Option<CpuIsa>) -> Result<CpuIsa> {
    match wanted {
        Some(isa) if is_available(isa) => Ok(isa),
        Some(isa) => {
            let message = format!("cpu_isa: this machine cannot run {}", name(isa));
            let error = Error::new(ErrorKind::Unsupported, message);
            Err(error.with("field", "cpu_isa").with("value", name(isa)))
        }
        None => {
            let best = |isa: &CpuIsa| {
                is_available(*isa)
                    && match isa {
                        CpuIsa::Amx => amx::is_native(),
                        CpuIsa::Avx512Bf16 => !dot_is_slow(),
                        _ => true,
                    }
            };
            // The last one is always available.
            Ok(ALL.into_iter().find(best).unwrap_or(CpuIsa::Portable))
        }
    }
}

/// Intel's cores start a `vdpbf16ps` only every other cycle but two FMAs in each: widening and
/// multiplying in f32 is 1.6 times faster there (181 against 113 GFLOP/s on Sapphire Rapids), and
/// exact. Others do one in a cycle, so that it beats their FMAs.
#[cfg(target_arch = "x86_64")]
fn dot_is_slow() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn dot_is_slow() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    super::kernels::HAS_AVX512
        && has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_path_is_unsupported_and_named() {
        assert!(is_available(choose(None).unwrap()));
        assert_eq!(choose(Some(CpuIsa::Portable)).unwrap(), CpuIsa::Portable);
        for isa in ALL {
            match choose(Some(isa)) {
                Ok(chosen) => assert_eq!(chosen, isa),
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Unsupported);
                    assert!(e.message().contains(name(isa)), "{e}");
                }
            }
        }
    }
}
