//! The feature `prebuilt-kernels`: machine code of every kernel for every architecture, made when
//! the library is built, by nvcc or by an NVRTC that VRUST_NVRTC names.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, ptr, thread};

/// What the kernels are compiled for; VRUST_PREBUILT_ARCHS may name fewer.
const ARCHITECTURES: &[&str] = &["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120"];

type Result<T> = std::result::Result<T, String>;

/// Writes `prebuilt.rs`: a list of architecture, file and machine code. What goes wrong ends the
/// build with a line that says what to do.
pub(crate) fn build() {
    for variable in ["NVCC", "VRUST_NVRTC", "VRUST_PREBUILT_ARCHS", "CUDA_HOME", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-changed=build_kernels.rs");
    if let Err(message) = build_all() {
        println!("cargo::error=prebuilt-kernels: {message}");
    }
}

fn build_all() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo gives no OUT_DIR")?);
    let compiler = Compiler::find()?;
    let listed = env::var("VRUST_PREBUILT_ARCHS").unwrap_or_else(|_| ARCHITECTURES.join(","));
    let mut jobs = Vec::new();
    for arch in listed.split(',').map(str::trim) {
        if !ARCHITECTURES.contains(&arch) {
            let known = ARCHITECTURES.join(", ");
            return Err(format!("VRUST_PREBUILT_ARCHS: {arch:?} is none of {known}"));
        }
        // A file for one architecture says so in its name.
        let runs = |file: &&PathBuf| !is_for_hopper(file) || arch == "sm_90a";
        jobs.extend(files("cu")?.iter().filter(runs).map(|file| (arch.to_owned(), file.clone())));
    }
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some((arch, file)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            compiler.compile(arch, file, &cubin(&out, arch, file))?;
        }
        Ok(())
    };
    let threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter().try_for_each(|one| one.join().map_err(|_| "a thread panicked")?)
    })?;
    let entry = |(arch, file): &(String, PathBuf)| {
        format!("({arch:?}, {:?}, include_bytes!({:?})),\n", name(file), cubin(&out, arch, file))
    };
    let entries: String = jobs.iter().map(entry).collect();
    let text = format!("const PREBUILT: &[(&str, &str, &[u8])] = &[\n{entries}];\n");
    fs::write(out.join("prebuilt.rs"), text).map_err(|e| format!("prebuilt.rs: {e}"))
}

enum Compiler {
    Nvcc(PathBuf),
    Nvrtc(Nvrtc),
}

impl Compiler {
    fn find() -> Result<Self> {
        let given = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(path) = given("VRUST_NVRTC") {
            return Nvrtc::open(&path).map(Self::Nvrtc);
        }
        let home = given("CUDA_HOME").map(|home| home.join("bin/nvcc"));
        let candidates = [given("NVCC"), home, Some("nvcc".into())];
        for nvcc in candidates.into_iter().flatten() {
            let version = Command::new(&nvcc).arg("--version").output();
            if version.is_ok_and(|output| output.status.success()) {
                return Ok(Self::Nvcc(nvcc));
            }
        }
        Err("no CUDA compiler: set NVCC to an nvcc of CUDA 13, or VRUST_NVRTC to a libnvrtc.so.13 \
             (pip's nvidia-cuda-nvcc or nvidia-cuda-nvrtc); without this feature kernels are \
             compiled when an engine starts"
            .into())
    }

    fn compile(&self, arch: &str, source: &Path, to: &Path) -> Result<()> {
        match self {
            Self::Nvcc(nvcc) => {
                let mut command = Command::new(nvcc);
                command.args(["-cubin", "--std=c++17", &format!("-arch={arch}"), "-I", "kernels"]);
                let output = command.arg("-o").arg(to).arg(source).output();
                let output = output.map_err(|e| format!("{}: {e}", nvcc.display()))?;
                if output.status.success() {
                    return Ok(());
                }
                let log = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
                Err(format!("{} for {arch} does not compile: {log}", name(source)))
            }
            Self::Nvrtc(nvrtc) => {
                let cubin = nvrtc.compile(arch, source)?;
                fs::write(to, cubin).map_err(|e| format!("{}: {e}", to.display()))
            }
        }
    }
}

/// NVRTC by its functions, as its header declares them.
struct Nvrtc(libloading::Library);

type Program = *mut c_void;

impl Nvrtc {
    fn open(path: &Path) -> Result<Self> {
        // Its other half, which it would look for by name.
        let builtins = path.with_file_name("libnvrtc-builtins.so.13.0");
        // SAFETY: opening a library runs its constructors, which is what its owner asked for.
        let open = |path: &Path| unsafe { libloading::Library::new(path) };
        if let Ok(builtins) = open(&builtins) {
            std::mem::forget(builtins);
        }
        let library = open(path).map_err(|e| format!("VRUST_NVRTC: {}: {e}", path.display()))?;
        Ok(Self(library))
    }

    fn function<F: Copy>(&self, function: &str) -> Result<F> {
        // SAFETY: the callers give NVRTC's declarations as F.
        let found = unsafe { self.0.get::<F>(function.as_bytes()) };
        found.map(|symbol| *symbol).map_err(|e| format!("VRUST_NVRTC: {e}"))
    }

    fn compile(&self, arch: &str, source: &Path) -> Result<Vec<u8>> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        let headers = files("cuh")?;
        let texts = headers.iter().map(|file| text(file)).collect::<Result<Vec<_>>>()?;
        let names = headers.iter().map(|file| c_string(name(file))).collect::<Result<Vec<_>>>()?;
        let options = [c_string(format!("--gpu-architecture={arch}"))?, c_string("--std=c++17")?];
        let pointers = |all: &[CString]| all.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (own, own_name) = (text(source)?, c_string(name(source))?);
        let mut program = ptr::null_mut();
        let create = self.function::<Create>("nvrtcCreateProgram")?;
        let count = headers.len() as c_int;
        let (texts, names) = (pointers(&texts), pointers(&names));
        // SAFETY: strings end in zeros and outlive the calls; there are as many texts as names.
        let created = unsafe {
            let own = (own.as_ptr(), own_name.as_ptr());
            create(&mut program, own.0, own.1, count, texts.as_ptr(), names.as_ptr())
        };
        let compile = self.function::<Compile>("nvrtcCompileProgram")?;
        // SAFETY: the program was made above, the options outlive the call.
        let compiled = unsafe { compile(program, 2, pointers(&options).as_ptr()) };
        if created != 0 || compiled != 0 {
            let log = self.bytes(program, "ProgramLog")?;
            let log = String::from_utf8_lossy(&log).replace('\n', " ");
            return Err(format!("{} for {arch} does not compile: {log}", name(source)));
        }
        self.bytes(program, "CUBIN")
    }

    /// What `nvrtcGet<what>` gives.
    fn bytes(&self, program: Program, what: &str) -> Result<Vec<u8>> {
        type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Get = unsafe extern "C" fn(Program, *mut u8) -> c_int;
        let size = self.function::<Size>(&format!("nvrtcGet{what}Size"))?;
        let get = self.function::<Get>(&format!("nvrtcGet{what}"))?;
        let mut length = 0;
        // SAFETY: the program lives; the buffer is as long as NVRTC asks for.
        unsafe { size(program, &mut length) };
        let mut bytes = vec![0; length];
        // SAFETY: as above.
        match unsafe { get(program, bytes.as_mut_ptr()) } {
            0 => Ok(bytes),
            code => Err(format!("nvrtcGet{what}: error {code}")),
        }
    }
}

/// The files of `kernels` that end so, in order.
fn files(extension: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir("kernels").map_err(|e| format!("kernels: {e}"))?;
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut found: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    found.sort();
    Ok(found)
}

fn is_for_hopper(file: &Path) -> bool {
    name(file).contains("sm90")
}

fn name(file: &Path) -> &str {
    file.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn cubin(out: &Path, arch: &str, file: &Path) -> PathBuf {
    out.join(format!("{}.{arch}.cubin", name(file)))
}

fn text(file: &Path) -> Result<CString> {
    c_string(fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?)
}

fn c_string(text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text).map_err(|_| "a kernel's source has a zero byte".into())
}
