//! Which cores a thread may run on.
#![allow(unsafe_code, reason = "sched_getaffinity and sched_setaffinity")]

/// A set of cores, as the kernel's mask.
#[derive(Clone)]
pub(crate) struct Cpus(#[cfg(target_os = "linux")] libc::cpu_set_t);

/// The calling thread's cores; `None` where the system does not say.
#[cfg(target_os = "linux")]
pub(crate) fn allowed() -> Option<Cpus> {
    // SAFETY: a cpu_set_t is a plain bit array, for which zeros are a value, and the call writes
    // at most the size that it is told.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let size = size_of::<libc::cpu_set_t>();
        (libc::sched_getaffinity(0, size, &raw mut set) == 0).then_some(Cpus(set))
    }
}

/// Binds the calling thread. A refusal is ignored: pinning is a hint.
#[cfg(target_os = "linux")]
pub(crate) fn bind(cpus: &Cpus) {
    // SAFETY: the mask is a whole cpu_set_t, as the size says.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const cpus.0) };
}

#[cfg(target_os = "linux")]
impl Cpus {
    /// Cores in the set.
    pub(crate) fn count(&self) -> usize {
        // SAFETY: reads the bit array.
        unsafe { libc::CPU_COUNT(&self.0) as usize }
    }

    /// The `n`-th core alone, counted round and round.
    pub(crate) fn nth(&self, n: usize) -> Self {
        let mut left = n % self.count().max(1);
        for cpu in 0..libc::CPU_SETSIZE as usize {
            // SAFETY: `cpu` is below CPU_SETSIZE.
            if unsafe { libc::CPU_ISSET(cpu, &self.0) } {
                if left == 0 {
                    // SAFETY: zeros are a value of the bit array, and `cpu` is in range.
                    return unsafe {
                        let mut one: libc::cpu_set_t = std::mem::zeroed();
                        libc::CPU_SET(cpu, &mut one);
                        Self(one)
                    };
                }
                left -= 1;
            }
        }
        self.clone()
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn allowed() -> Option<Cpus> {
    None
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn bind(_cpus: &Cpus) {}

#[cfg(not(target_os = "linux"))]
impl Cpus {
    pub(crate) fn count(&self) -> usize {
        usize::MAX
    }

    pub(crate) fn nth(&self, _n: usize) -> Self {
        Self()
    }
}
