//! The few things asked of the operating system: a clock, a wake-up descriptor, memory limits.

#![allow(unsafe_code, reason = "system calls that std does not wrap")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

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

fn meminfo(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The tightest memory limit on the path from this process's cgroup to the root, v2 then v1.
/// `root` is where the hierarchies are mounted, `membership` what /proc/self/cgroup says.
fn cgroup_memory_limit(root: &Path, membership: &str) -> Option<u64> {
    let mut limit = None;
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (hierarchy, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            c if c.split(',').any(|c| c == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for dir in Path::new(path).ancestors() {
            let dir = dir.strip_prefix("/").unwrap_or(dir);
            let file = hierarchy.join(dir).join(file);
            let value = fs::read_to_string(file).ok().and_then(|t| t.trim().parse::<u64>().ok());
            limit = limit.into_iter().chain(value).min();
        }
    }
    limit
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
        fs::remove_dir_all(&root).unwrap();
    }
}
