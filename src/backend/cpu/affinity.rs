//! Which cores a thread may run on, and how many of them there really are.
#![allow(unsafe_code, reason = "sched_getaffinity and sched_setaffinity")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::os;

/// A set of logical CPUs, as the kernel's mask.
#[derive(Clone)]
pub(crate) struct Cpus(#[cfg(target_os = "linux")] libc::cpu_set_t);

/// Compute threads where nobody says: one for each physical core that the process may use, by its
/// affinity and its cgroup's quota of CPU time.
pub(crate) fn default_threads() -> usize {
    let Some(allowed) = allowed() else {
        return std::thread::available_parallelism().map_or(1, usize::from);
    };
    let cores = physical(Path::new("/sys/devices/system/cpu"), &allowed.list()).len();
    cores.min(os::cpu_quota().unwrap_or(usize::MAX)).max(1)
}

/// Where each of `threads` threads is bound, round and round: physical cores first, for two threads
/// on one core are little faster than one.
pub(crate) fn places(allowed: &Cpus, threads: usize) -> Vec<Cpus> {
    let cores = physical(Path::new("/sys/devices/system/cpu"), &allowed.list());
    let widest = cores.iter().map(Vec::len).max().unwrap_or(0);
    let order = (0..widest).flat_map(|sibling| cores.iter().filter_map(move |c| c.get(sibling)));
    let order: Vec<usize> = order.copied().collect();
    (0..threads).map(|t| order.get(t % order.len().max(1)).map_or(allowed.clone(), one)).collect()
}

/// The calling thread's CPUs; `None` where the system does not say.
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
    /// CPUs in the set.
    pub(crate) fn count(&self) -> usize {
        // SAFETY: reads the bit array.
        unsafe { libc::CPU_COUNT(&self.0) as usize }
    }

    /// Their numbers.
    fn list(&self) -> Vec<usize> {
        // SAFETY: the numbers are below CPU_SETSIZE.
        let is_set = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &self.0) };
        (0..libc::CPU_SETSIZE as usize).filter(is_set).collect()
    }
}

/// One CPU alone, below CPU_SETSIZE because it was in a set.
#[cfg(target_os = "linux")]
fn one(cpu: &usize) -> Cpus {
    // SAFETY: zeros are a value of the bit array, and `cpu` is in range.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(*cpu, &mut set);
        Cpus(set)
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

    fn list(&self) -> Vec<usize> {
        Vec::new()
    }
}

#[cfg(not(target_os = "linux"))]
fn one(_cpu: &usize) -> Cpus {
    Cpus()
}

/// `cpus` by physical core. `root` is where the kernel describes them; one that it says nothing of
/// counts as a core.
fn physical(root: &Path, cpus: &[usize]) -> Vec<Vec<usize>> {
    let mut cores: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for &cpu in cpus {
        let topology = root.join(format!("cpu{cpu}/topology"));
        let read = |name: &str| fs::read_to_string(topology.join(name)).ok();
        // The newer name first.
        let siblings = read("core_cpus_list").or_else(|| read("thread_siblings_list"));
        let first = siblings.and_then(|text| {
            text.split([',', '-']).filter_map(|n| n.trim().parse::<usize>().ok()).min()
        });
        cores.entry(first.unwrap_or(cpu)).or_default().push(cpu);
    }
    cores.into_values().collect()
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn siblings_are_one_core() {
        let root = std::env::temp_dir().join(format!("vrust-topology-{}", std::process::id()));
        let files = [
            (0, "core_cpus_list", "0,4\n"),
            (1, "core_cpus_list", "1,5\n"),
            (2, "thread_siblings_list", "2-3\n"),
            (3, "thread_siblings_list", "2-3\n"),
            (4, "core_cpus_list", "0,4\n"),
            (5, "core_cpus_list", "1,5\n"),
        ];
        for (cpu, name, text) in files {
            let dir = root.join(format!("cpu{cpu}/topology"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(name), text).unwrap();
        }
        let of = |cpus: &[usize]| physical(&root, cpus);
        assert_eq!(of(&[0, 1, 2, 3, 4, 5]), [vec![0, 4], vec![1, 5], vec![2, 3]]);
        // One of a pair that the process may not use changes nothing.
        assert_eq!(of(&[1, 3, 4]), [vec![4], vec![1], vec![3]]);
        assert_eq!(of(&[7, 9]), [vec![7], vec![9]]);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn threads_are_bound_within_what_is_allowed() {
        let Some(allowed) = allowed() else { return };
        assert!((1..=allowed.count()).contains(&default_threads()));
        let places = places(&allowed, 2 * allowed.count());
        let mut numbers: Vec<usize> = places.iter().flat_map(Cpus::list).collect();
        assert!(places.iter().all(|p| p.count() == 1));
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers, allowed.list());
    }
}
