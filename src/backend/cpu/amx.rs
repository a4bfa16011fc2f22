//! Whether AMX can be used: the processor has it, the system saves its registers, and the process
//! may use them, for which Linux wants to be asked first.
#![allow(unsafe_code, reason = "asks the processor and the kernel")]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether AMX instructions may be used, the machine's own or, in tests, emulated ones.
#[cfg(target_arch = "x86_64")]
pub(super) fn is_usable() -> bool {
    is_native() || ASSUMED.load(Ordering::Acquire)
}

/// Whether the machine itself has AMX with BF16 and INT8 and lets the process use it. The first
/// call asks for the permission: it holds for the process and its later threads, and makes room
/// for tiles in the signal frames of threads that use them, no others.
pub(super) fn is_native() -> bool {
    static NATIVE: OnceLock<bool> = OnceLock::new();
    *NATIVE.get_or_init(|| has_tiles() && is_permitted())
}

/// From now on AMX counts as usable when it is asked for by name.
///
/// # Safety
/// Something carries out AMX instructions in the machine's stead, on every thread: a test's
/// emulator.
pub unsafe fn assume() {
    ASSUMED.store(true, Ordering::Release);
}

static ASSUMED: AtomicBool = AtomicBool::new(false);

#[cfg(target_arch = "x86_64")]
fn has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const OSXSAVE: u32 = 1 << 27;
    /// AMX-BF16, AMX-TILE, AMX-INT8.
    const LEAF_7: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    __cpuid_count(7, 0).edx & LEAF_7 == LEAF_7 && saved_state() & TILES == TILES
}

#[cfg(not(target_arch = "x86_64"))]
fn has_tiles() -> bool {
    false
}

/// XCR0's bits of the configuration and the data of tiles.
#[cfg(target_arch = "x86_64")]
const TILES: u32 = 1 << 17 | 1 << 18;

/// The lower half of XCR0: which registers the system saves.
#[cfg(target_arch = "x86_64")]
fn saved_state() -> u32 {
    let low: u32;
    // SAFETY: reads a register, which the processor allows, as the caller saw (OSXSAVE).
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _,
            options(nomem, nostack, preserves_flags));
    }
    low
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XTILEDATA: libc::c_long = 18;
    // SAFETY: takes two numbers, and changes what the process may use, nothing that it has.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn is_permitted() -> bool {
    false
}
