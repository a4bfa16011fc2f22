//! Finding NVIDIA's libraries where pip and the toolkit put them.
//!
//! cudarc opens libraries by bare names. A library that is opened here first, by its full path, is
//! then found under its SONAME. NVRTC looks for its builtins the same way, and has no path of its
//! own to them, so they are opened before it.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Names a folder to look in before all others.
const VARIABLE: &str = "VRUST_CUDA_LIB_DIR";

/// A library, as its file's name begins, and what it must be opened after.
#[derive(Clone, Copy)]
pub(super) enum Library {
    /// The driver: only from the folder that the variable names, else where the system has it.
    Driver,
    /// The compiler.
    Nvrtc,
    /// Matrix products.
    CublasLt,
}

impl Library {
    /// Beginnings of file names, in the order of opening.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Driver => &["libcuda.so.1"],
            Self::Nvrtc => &["libnvrtc-builtins.so.", "libnvrtc.so."],
            Self::CublasLt => &["libcublasLt.so."],
        }
    }
}

/// Opens `library` from the first folder that has it. Where none has, the loader's own search
/// remains.
pub(super) fn preload(library: Library) {
    // One at a time: a second engine must not find a half of it open.
    static OPENING: Mutex<()> = Mutex::new(());
    let _opening = OPENING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folders = match library {
        Library::Driver => named_folder().into_iter().collect(),
        Library::Nvrtc | Library::CublasLt => folders(),
    };
    for folder in folders {
        // The builtins may be linked into NVRTC; the last one is the library itself.
        let mut is_open = false;
        for name in library.names() {
            is_open = open_in(&folder, name);
        }
        if is_open {
            return;
        }
    }
}

/// Where libraries are looked for: said on request, so that an error can name it.
pub(super) fn describe_search() -> String {
    format!(
        "{VARIABLE}, site-packages/nvidia/cu13/lib, /usr/local/cuda/lib64 and the loader's path"
    )
}

fn named_folder() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = named_folder().into_iter().collect();
    folders.extend(site_packages().into_iter().map(|dir| dir.join("nvidia/cu13/lib")));
    folders.push("/usr/local/cuda/lib64".into());
    folders
}

/// Python's folders of packages: the one this library lies in, the active environment's, the
/// system's.
fn site_packages() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let is_packages = |dir: &Path| {
        dir.file_name().is_some_and(|name| name == "site-packages" || name == "dist-packages")
    };
    if let Some(own) = own_path() {
        found.extend(own.ancestors().filter(|dir| is_packages(dir)).map(Path::to_owned));
    }
    let prefixes = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(std::env::var_os);
    let prefixes = prefixes.map(PathBuf::from).chain(["/usr/local".into(), "/usr".into()]);
    for prefix in prefixes {
        let Ok(entries) = std::fs::read_dir(prefix.join("lib")) else { continue };
        for entry in entries.flatten() {
            if entry.file_name().as_bytes().starts_with(b"python3") {
                found.push(entry.path().join("site-packages"));
                found.push(entry.path().join("dist-packages"));
            }
        }
    }
    found
}

/// The file that this code was loaded from.
fn own_path() -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the address is of this function, `info` is written where the call succeeds.
    let known = unsafe { libc::dladdr(own_path as *const libc::c_void, info.as_mut_ptr()) };
    if known == 0 {
        return None;
    }
    // SAFETY: zeroed, and filled by a call that succeeded.
    let name = unsafe { info.assume_init() }.dli_fname;
    if name.is_null() {
        return None;
    }
    // SAFETY: the loader's own string, which lives as long as this code.
    let name = unsafe { CStr::from_ptr(name) };
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes())))
}

/// Opens the newest file of `folder` whose name begins with `name`; whether there was one that
/// opens. It stays open: what uses it is not told when it goes.
fn open_in(folder: &Path, name: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let is_it = |file: &Path| {
        let file = file.file_name().unwrap_or_default().as_bytes();
        file.starts_with(name.as_bytes()) && !file.windows(5).any(|w| w == b".alt.")
    };
    files.retain(|file| is_it(file));
    // Shorter first: libnvrtc.so.13 is the SONAME, libnvrtc.so.13.0.88 what it points to.
    files.sort_by_key(|file| (file.as_os_str().len(), std::cmp::Reverse(file.clone())));
    files.iter().any(|file| {
        let Ok(path) = CString::new(file.as_os_str().as_bytes()) else { return false };
        // SAFETY: `path` ends in a zero. The library's constructors run: that is what opening a
        // library of NVIDIA's means.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        !handle.is_null()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_not_opened() {
        assert!(!open_in(Path::new("/nowhere"), "libcuda.so.1"));
        let dir = std::env::temp_dir().join(format!("vrust-libraries-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("libnvrtc.so.13"), b"no library").unwrap();
        assert!(!open_in(&dir, "libnvrtc.so."));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn this_code_knows_where_it_lies() {
        assert!(own_path().unwrap().exists());
    }
}
