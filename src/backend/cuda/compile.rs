//! Kernels from text to cubins: by NVRTC, all at once, and only once a machine.
//!
//! A cubin's file is named after everything that it was made from, begins with its own hash, and
//! is written under another name and renamed: any number of processes may start at once, and a
//! file cut short is compiled again.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, ptr, thread};

use cudarc::nvrtc::sys;
use sha2::{Digest, Sha256};

use super::kernels::Source;
use super::library::{Library, describe_search, preload};
use super::probe::Device;
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a hash.
const HASH: usize = 32;

/// Makes a cubin of each program, in order. Every program sees all headers.
pub(super) fn compile(
    programs: &[Source],
    headers: &[Source],
    device: &Device,
) -> Result<Vec<Vec<u8>>> {
    let version = nvrtc_version(device)?;
    let compiler = Compiler {
        headers,
        options: [format!("--gpu-architecture={}", device.architecture()), "--std=c++17".into()],
        version,
        cache: cache_folder(),
    };
    let next = AtomicUsize::new(0);
    let work = || {
        let mut made = Vec::new();
        while let Some((i, program)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            programs.get(i).map(|program| (i, program))
        } {
            made.push((i, compiler.cubin(program)));
        }
        made
    };
    let threads = thread::available_parallelism().map_or(1, |n| n.get()).min(programs.len());
    let mut made: Vec<_> = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut made = work();
        for other in others {
            match other.join() {
                Ok(more) => made.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        made
    });
    made.sort_by_key(|(i, _)| *i);
    made.into_iter().map(|(_, cubin)| cubin).collect()
}

/// What all programs are compiled with.
struct Compiler<'a> {
    headers: &'a [Source],
    options: [String; 2],
    version: (c_int, c_int),
    cache: Option<PathBuf>,
}

impl Compiler<'_> {
    /// From the cache, or compiled and put there.
    fn cubin(&self, program: &Source) -> Result<Vec<u8>> {
        let Some(cache) = &self.cache else { return self.compile(program) };
        let file = cache.join(format!("{}.cubin", self.key(program)));
        if let Some(cubin) = read_cached(&file) {
            return Ok(cubin);
        }
        let cubin = self.compile(program)?;
        if let Err(e) = write_cached(&file, &cubin) {
            tracing::debug!("{} is not cached in {}: {e}", program.name, file.display());
        }
        Ok(cubin)
    }

    /// The hash of everything that the cubin depends on.
    fn key(&self, program: &Source) -> String {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for source in std::iter::once(program).chain(self.headers) {
            add(source.name.as_bytes());
            add(source.text.as_bytes());
        }
        self.options.iter().for_each(|option| add(option.as_bytes()));
        add(format!("nvrtc {}.{}", self.version.0, self.version.1).as_bytes());
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn compile(&self, program: &Source) -> Result<Vec<u8>> {
        let texts = self.headers.iter().map(|h| c_string(h.text)).collect::<Result<Vec<_>>>()?;
        let names = self.headers.iter().map(|h| c_string(h.name)).collect::<Result<Vec<_>>>()?;
        let (text, name) = (c_string(program.text)?, c_string(program.name)?);
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|s| s.as_ptr()).collect()
        };
        let mut raw = ptr::null_mut();
        // SAFETY: all strings end in zeros and live until the program is destroyed; there are as
        // many texts as names.
        check(program.name, "nvrtcCreateProgram", unsafe {
            sys::nvrtcCreateProgram(
                &mut raw,
                text.as_ptr(),
                name.as_ptr(),
                texts.len() as c_int,
                pointers(&texts).as_ptr(),
                pointers(&names).as_ptr(),
            )
        })?;
        let raw = Program(raw);
        let options = self.options.iter().map(|o| c_string(o)).collect::<Result<Vec<_>>>()?;
        // SAFETY: the program lives, and so do the options.
        let code = unsafe {
            sys::nvrtcCompileProgram(raw.0, options.len() as c_int, pointers(&options).as_ptr())
        };
        check(program.name, "nvrtcCompileProgram", code)
            .map_err(|e| Error::new(e.kind(), format!("{}\n{}", e.message(), raw.log())))?;
        raw.cubin(program.name)
    }
}

/// NVRTC's program.
struct Program(sys::nvrtcProgram);

impl Program {
    fn cubin(&self, name: &str) -> Result<Vec<u8>> {
        let mut size = 0;
        // SAFETY: `size` is written; the program lives.
        check(name, "nvrtcGetCUBINSize", unsafe { sys::nvrtcGetCUBINSize(self.0, &mut size) })?;
        let mut cubin = vec![0_u8; size];
        // SAFETY: the buffer is as long as NVRTC asked for.
        check(name, "nvrtcGetCUBIN", unsafe {
            sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast())
        })?;
        Ok(cubin)
    }

    /// What the compiler said.
    fn log(&self) -> String {
        let mut size = 0;
        // SAFETY: `size` is written; the program lives.
        let _ = unsafe { sys::nvrtcGetProgramLogSize(self.0, &mut size) };
        let mut log = vec![0_u8; size + 1];
        // SAFETY: the buffer is longer than NVRTC asked for, and ends in a zero.
        let _ = unsafe { sys::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) };
        CStr::from_bytes_until_nul(&log)
            .map_or_else(|_| String::new(), |log| log.to_string_lossy().trim_end().to_owned())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by NVRTC, destroyed once.
        let _ = unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

fn nvrtc_version(device: &Device) -> Result<(c_int, c_int)> {
    preload(Library::Nvrtc);
    // SAFETY: opening NVRTC runs its constructors, which is what it is for.
    if !unsafe { sys::is_culib_present() } {
        let message = format!(
            "device: the kernels' compiler is missing: libnvrtc.so.13 (pip's nvidia-cuda-nvrtc, \
             or the CUDA toolkit) is in none of {}",
            describe_search()
        );
        return Err(Error::new(ErrorKind::Device, message).with("field", "device"));
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are written.
    check("NVRTC", "nvrtcVersion", unsafe { sys::nvrtcVersion(&mut major, &mut minor) })?;
    if major > device.driver / 1000 {
        let message = format!(
            "device: NVRTC {major}.{minor} makes code that the driver, of CUDA {}, cannot load",
            super::probe::version(device.driver)
        );
        return Err(Error::new(ErrorKind::Device, message).with("field", "device"));
    }
    Ok((major, minor))
}

fn check(program: &str, call: &str, code: sys::nvrtcResult) -> Result<()> {
    match code {
        sys::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        sys::nvrtcResult::NVRTC_ERROR_OUT_OF_MEMORY => {
            let message = format!("{program}: {call}: out of memory");
            Err(Error::new(ErrorKind::OutOfMemory, message))
        }
        code => Err(Error::new(ErrorKind::Device, format!("{program}: {call}: {code:?}"))),
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text)
        .map_err(|_| Error::new(ErrorKind::Panic, "a kernel's source has a zero byte"))
}

/// Where cubins are kept: nowhere if there is no home.
pub(super) fn cache_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let base = variable("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache")));
    base.map(|base| base.join("vrust"))
}

pub(super) fn read_cached(file: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(file).ok()?;
    let (hash, cubin) = bytes.split_at_checked(HASH)?;
    (Sha256::digest(cubin).as_slice() == hash).then(|| cubin.to_vec())
}

pub(super) fn write_cached(file: &Path, cubin: &[u8]) -> std::io::Result<()> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let unique = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".{}-{unique}.tmp", std::process::id()));
    let mut bytes = Sha256::digest(cubin).to_vec();
    bytes.extend_from_slice(cubin);
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, file));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::super::kernels;
    use super::*;

    fn compiler<'a>(headers: &'a [Source], arch: &str, version: (c_int, c_int)) -> Compiler<'a> {
        let options = [format!("--gpu-architecture={arch}"), "--std=c++17".into()];
        Compiler { headers, options, version, cache: None }
    }

    #[test]
    fn everything_that_a_cubin_is_made_from_is_in_its_name() {
        let source = |name, text| Source { name, text };
        let headers = [source("types.cuh", "struct A {};")];
        let program = source("a.cu", "void f() {}");
        let key = compiler(&headers, "sm_90a", (13, 0)).key(&program);
        assert_eq!(key, compiler(&headers, "sm_90a", (13, 0)).key(&program));
        let other_header = [source("types.cuh", "struct B {};")];
        let others = [
            compiler(&headers, "sm_80", (13, 0)).key(&program),
            compiler(&headers, "sm_90a", (13, 1)).key(&program),
            compiler(&other_header, "sm_90a", (13, 0)).key(&program),
            compiler(&headers, "sm_90a", (13, 0)).key(&source("b.cu", "void f() {}")),
            compiler(&headers, "sm_90a", (13, 0)).key(&source("a.cu", "void g() {}")),
        ];
        assert!(others.iter().all(|other| *other != key));
    }

    /// By the real NVRTC, which need not be on a machine of the tests.
    #[test]
    #[ignore = "needs NVRTC: VRUST_CUDA_LIB_DIR=site-packages/nvidia/cu13/lib"]
    fn nvrtc_makes_a_cubin_of_every_program() {
        for (capability, arch) in [((8, 0), "sm_80"), ((9, 0), "sm_90a"), ((12, 0), "sm_120")] {
            let name = arch.to_owned();
            let device = Device { handle: 0, name, capability, driver: 13_000, multiprocessors: 1 };
            assert_eq!(device.architecture(), arch);
            let cubins = compile(&kernels::programs(&device), kernels::HEADERS, &device).unwrap();
            assert!(cubins.iter().all(|cubin| cubin.starts_with(b"\x7fELF")));
        }
    }

    #[test]
    fn a_file_that_is_cut_short_is_no_cubin() {
        let dir = std::env::temp_dir().join(format!("vrust-cubins-{}", std::process::id()));
        let file = dir.join("a/b.cubin");
        assert_eq!(read_cached(&file), None);
        write_cached(&file, b"a cubin").unwrap();
        assert_eq!(read_cached(&file).as_deref(), Some(&b"a cubin"[..]));
        assert_eq!(fs::read_dir(dir.join("a")).unwrap().count(), 1);
        let whole = fs::read(&file).unwrap();
        for length in 0..whole.len() {
            fs::write(&file, &whole[..length]).unwrap();
            assert_eq!(read_cached(&file), None, "{length}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
