//! The few things asked of the operating system and the processor: a clock, a wake-up descriptor,
//! limits of memory and CPU time, wide vectors.

#![allow(unsafe_code, reason = "system calls that std does not wrap")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// `CLOCK_MONOTONIC` in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a valid timespec that outlives the call; the clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// A descriptor that becomes readable when it is signalled: an eventfd on Linux, a pipe elsewhere.
#[derive(Debug)]
pub(crate) struct WakeFd {
    read: OwnedFd,
    write: Option<OwnedFd>,
}

impl WakeFd {
    #[cfg(target_os = "linux")]
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no pointers are involved; the result is checked before it is owned.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and nothing else owns it.
        let read = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { read, write: None })
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = io::pipe()?;
        let (read, write) = (OwnedFd::from(read), OwnedFd::from(write));
        for fd in [&read, &write] {
            // SAFETY: the descriptor is open and owned; F_SETFL takes an integer.
            if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self { read, write: Some(write) })
    }

    /// The descriptor to wait on.
    pub(crate) fn raw(&self) -> RawFd {
        self.read.as_raw_fd()
    }

    /// Makes the descriptor readable.
    pub(crate) fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        let fd = self.write.as_ref().unwrap_or(&self.read).as_raw_fd();
        // SAFETY: `one` is eight readable bytes. A full counter or pipe is readable already, so a
        // failure changes nothing.
        unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
    }

    /// Whether the descriptor is readable.
    #[cfg(test)]
    pub(crate) fn is_readable(&self) -> bool {
        let mut p = libc::pollfd { fd: self.raw(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&mut p, 1, 0) == 1 }
    }

    /// Makes the descriptor unreadable.
    pub(crate) fn clear(&self) {
        let mut buffer = [0u8; 64];
        // SAFETY: `buffer` is 64 writable bytes; the descriptor does not block.
        while unsafe { libc::read(self.raw(), buffer.as_mut_ptr().cast(), 64) } == 64 {}
    }
}

/// Bytes of memory that this process may use: the machine's, or less where a cgroup says so.
pub(crate) fn memory_limit() -> u64 {
    let total = meminfo("MemTotal:").unwrap_or(u64::MAX);
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let cgroup = cgroup_memory_limit(Path::new("/sys/fs/cgroup"), &membership);
    let cgroup = cgroup.unwrap_or(u64::MAX);
    total.min(cgroup)
}

/// Bytes of memory that this process holds; 0 where nobody says.
pub(crate) fn resident_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    // SAFETY: asks for a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.saturating_mul(page.max(0) as u64)
}

/// Bytes of memory that can be had without swapping; all there can be where nobody says.
pub(crate) fn available_bytes() -> u64 {
    meminfo("MemAvailable:").unwrap_or(u64::MAX)
}

/// Lets this thread run where no other wants to.
pub(crate) fn yield_to_all() {
    #[cfg(target_os = "linux")]
    // SAFETY: a plain struct of integers, for which 0 is what this policy asks for; `0` is the
    // calling thread. Where it is refused the thread is like any other.
    unsafe {
        let parameters: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameters);
    }
}

fn meminfo(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Cores' worth of CPU time that this process's cgroup grants it, rounded up; `None` where nothing
/// limits it.
pub(crate) fn cpu_quota() -> Option<usize> {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    cgroup_cpu_quota(Path::new("/sys/fs/cgroup"), &membership)
}

/// Loops that are worth the machine's widest vectors.
pub(crate) trait Loops {
    /// What comes of them.
    type Output;
    /// Runs them; must be `#[inline(always)]`, as must be what it calls, to be compiled with the
    /// features of the function that it ends up in.
    fn run(self) -> Self::Output;
}

/// Runs `loops` compiled for the machine's vectors. The results are the same bits everywhere, for
/// no compiler reorders or fuses floating-point operations by itself.
pub(crate) fn vectorised<L: Loops>(loops: L) -> L::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
        fn avx512<L: Loops>(loops: L) -> L::Output {
            loops.run()
        }

        #[target_feature(enable = "avx2")]
        fn avx2<L: Loops>(loops: L) -> L::Output {
            loops.run()
        }

        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            // SAFETY: the features are there.
            return unsafe { avx512(loops) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature is there.
            return unsafe { avx2(loops) };
        }
    }
    loops.run()
}

/// The tightest memory limit on the path from this process's cgroup to the root.
fn cgroup_memory_limit(root: &Path, membership: &str) -> Option<u64> {
    let dirs = cgroup_dirs(root, membership, "memory");
    let limits = dirs.iter().filter_map(|(dir, v2)| {
        let file = if *v2 { "memory.max" } else { "memory.limit_in_bytes" };
        fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()
    });
    limits.min()
}

/// The tightest quota of CPU time on the same path, in cores, rounded up.
fn cgroup_cpu_quota(root: &Path, membership: &str) -> Option<usize> {
    let dirs = cgroup_dirs(root, membership, "cpu");
    let quotas = dirs.iter().filter_map(|(dir, v2)| {
        let read = |file: &str| fs::read_to_string(dir.join(file)).ok();
        let text = match v2 {
            true => read("cpu.max")?,
            false => format!("{} {}", read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?),
        };
        // "max" or -1 is no limit, and no number of this kind.
        let mut numbers = text.split_whitespace().map(str::parse::<usize>);
        let (quota, period) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        (period > 0).then(|| quota.div_ceil(period).max(1))
    });
    quotas.min()
}

/// The folders on the path from this process's cgroup to the root, in the hierarchies that have
/// `controller`, and whether each is of v2. `root` is where they are mounted, `membership` what
/// /proc/self/cgroup says.
fn cgroup_dirs(root: &Path, membership: &str, controller: &str) -> Vec<(PathBuf, bool)> {
    let mut dirs = Vec::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (hierarchy, v2) = match controllers {
            "" => (root.to_owned(), true),
            c if c.split(',').any(|c| c == controller) => (root.join(controller), false),
            _ => continue,
        };
        for dir in Path::new(path).ancestors() {
            dirs.push((hierarchy.join(dir.strip_prefix("/").unwrap_or(dir)), v2));
        }
    }
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signalled_descriptor_is_readable_until_cleared() {
        let fd = WakeFd::new().unwrap();
        assert!(!fd.is_readable());
        fd.signal();
        fd.signal();
        assert!(fd.is_readable());
        fd.clear();
        assert!(!fd.is_readable());
    }

    #[test]
    fn memory_limits_are_plausible() {
        assert!(memory_limit() > 64 << 20);
        assert!(monotonic_ns() > 0);
    }

    #[test]
    fn the_tightest_cgroup_on_the_way_up_counts() {
        let root = std::env::temp_dir().join(format!("vrust-cgroup-{}", std::process::id()));
        let write = |file: &str, text: &str| {
            let file = root.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        write("a/b/memory.max", "max\n");
        write("a/memory.max", "3000\n");
        write("memory/c/memory.limit_in_bytes", "2000\n");
        assert_eq!(cgroup_memory_limit(&root, "0::/a/b\n"), Some(3000));
        assert_eq!(cgroup_memory_limit(&root, "0::/elsewhere\n"), None);
        assert_eq!(cgroup_memory_limit(&root, "0::/a/b\n4:cpu,memory:/c\n"), Some(2000));
        assert_eq!(cgroup_memory_limit(&root, ""), None);
        write("a/b/cpu.max", "max 100000\n");
        write("a/cpu.max", "250000 100000\n");
        write("cpu/c/cpu.cfs_quota_us", "-1\n");
        write("cpu/c/cpu.cfs_period_us", "100000\n");
        write("cpu/cpu.cfs_quota_us", "50000\n");
        write("cpu/cpu.cfs_period_us", "100000\n");
        assert_eq!(cgroup_cpu_quota(&root, "0::/a/b\n"), Some(3));
        assert_eq!(cgroup_cpu_quota(&root, "0::/elsewhere\n"), None);
        assert_eq!(cgroup_cpu_quota(&root, "0::/a\n4:cpu,cpuacct:/c\n"), Some(1));
        fs::remove_dir_all(&root).unwrap();
    }
}
