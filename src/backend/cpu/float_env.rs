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

#[cfg(target_arch = "aarch64")]
fn read() -> u64 {
    let value: u64;
    // SAFETY: reads a control register.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) value, options(nomem, nostack)) };
    value
}

#[cfg(target_arch = "aarch64")]
fn write(value: u64) {
    // SAFETY: the value is the default or was read from this register.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) value, options(nomem, nostack)) };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn read() -> u64 {
    DEFAULT
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn write(_value: u64) {}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_environment_comes_back() {
        let flush_to_zero = DEFAULT | 0x8040;
        write(flush_to_zero);
        let env = FloatEnv::enter();
        let inside = read();
        drop(env);
        let after = read();
        write(DEFAULT);
        assert_eq!((inside, after), (DEFAULT, flush_to_zero));
    }
}
