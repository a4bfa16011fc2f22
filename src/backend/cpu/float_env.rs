//! One floating-point environment on every compute thread: IEEE rounding to nearest, denormals
//! kept, exceptions masked. A host may have set others on the thread that calls us; results must
//! not depend on that, and Rust itself assumes the defaults.
#![allow(unsafe_code, reason = "reads and writes the control register")]

/// While it lives, the thread has the default environment; then the caller's is back.
pub(crate) struct FloatEnv {
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        allow(dead_code, reason = "nothing is saved there")
    )]
    saved: u64,
}

impl FloatEnv {
    pub(crate) fn enter() -> Self {
        let saved = read();
        if saved != DEFAULT {
            write(DEFAULT);
        }
        Self { saved }
    }
}

impl Drop for FloatEnv {
    fn drop(&mut self) {
        // The sticky exception flags of the run are not the host's.
        if read() != self.saved {
            write(self.saved);
        }
    }
}

/// All exceptions masked, nearest, neither flush-to-zero nor denormals-are-zero.
#[cfg(target_arch = "x86_64")]
const DEFAULT: u64 = 0x1f80;
/// Zeros mean on aarch64, too: no traps, nearest, denormals kept (f32's and halves'), NaNs that
/// propagate, IEEE halves.
#[cfg(not(target_arch = "x86_64"))]
const DEFAULT: u64 = 0;

#[cfg(target_arch = "x86_64")]
fn read() -> u64 {
    let mut value = 0u32;
    // SAFETY: stores 4 bytes to a local.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut value, options(nostack)) };
    u64::from(value)
}

#[cfg(target_arch = "x86_64")]
fn write(value: u64) {
    let value = value as u32;
    // SAFETY: the value is the default or was read from this register, so no reserved bit is set.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &value, options(nostack, readonly)) };
}

/// FPCR, and above its 32 bits FPSR, where the sticky flags are.
#[cfg(target_arch = "aarch64")]
fn read() -> u64 {
    let (control, status): (u64, u64);
    // SAFETY: reads a control and a status register. Memory is not declared untouched, so that
    // what is computed before stays before.
    unsafe {
        std::arch::asm!(
            "mrs {}, fpcr", "mrs {}, fpsr", out(reg) control, out(reg) status, options(nostack)
        );
    }
    control & 0xffff_ffff | status << 32
}

#[cfg(target_arch = "aarch64")]
fn write(value: u64) {
    let (control, status) = (value & 0xffff_ffff, value >> 32);
    // SAFETY: the values are the defaults or were read from these registers.
    unsafe {
        std::arch::asm!(
            "msr fpcr, {}", "msr fpsr, {}", in(reg) control, in(reg) status, options(nostack)
        );
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn read() -> u64 {
    DEFAULT
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn write(_value: u64) {}

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use super::*;

    /// Denormals become zero; on aarch64 numbers round towards zero as well.
    const FLUSH: u64 = if cfg!(target_arch = "x86_64") { 0x8040 } else { 1 << 24 | 3 << 22 };

    #[test]
    fn the_hosts_environment_comes_back() {
        let flush_to_zero = DEFAULT | FLUSH;
        write(flush_to_zero);
        let env = FloatEnv::enter();
        let inside = read();
        drop(env);
        let after = read();
        write(DEFAULT);
        assert_eq!((inside, after), (DEFAULT, flush_to_zero));
    }
}
