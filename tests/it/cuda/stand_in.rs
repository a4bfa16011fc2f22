//! Tests in child processes that see the stand-ins.

use std::ffi::{CStr, CString, c_char, c_void};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::json;
use vrust::config::{Device, EngineOptions, LoadFormat, ModelDType};

use crate::engine_support::{fixture, options};
use crate::support::folder::{TempDir, set_fields};

/// Says to a child which test it is.
const CHILD: &str = "VRUST_TEST_ON_STAND_IN";

/// Longest that a child may take; the slowest takes some 100 s on two busy cores.
const PATIENCE: Duration = Duration::from_secs(900);

/// Runs `body` in a child process that finds the stand-ins; `test` is the caller's path, as the
/// test harness has it, and `env` goes to the child besides.
pub(super) fn on_stand_in(test: &str, env: &[(&str, &str)], body: impl FnOnce()) {
    let lib = library_folder().to_str().unwrap();
    let mut all = vec![("VRUST_CUDA_LIB_DIR", lib), ("LD_LIBRARY_PATH", lib)];
    all.extend_from_slice(env);
    in_child(test, &all, body);
}

/// Runs `body` in a child process; the parent fails if the child does or did not get there.
pub(super) fn in_child(test: &str, env: &[(&str, &str)], body: impl FnOnce()) {
    if is_child() {
        body();
        println!("{test} ran");
        return;
    }
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-cache");
    let dir = TempDir::new();
    let log = File::create(dir.join("log")).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, test)
        .env("XDG_CACHE_HOME", cache)
        .env_remove("VRUST_CUDA_LIB_DIR")
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let status = ended(&mut child);
    let told = String::from_utf8_lossy(&std::fs::read(dir.join("log")).unwrap()).into_owned();
    let status = status.unwrap_or_else(|| panic!("{test} has not ended in {PATIENCE:?}:\n{told}"));
    assert!(status.success(), "{test} failed in its process: {status}\n{told}");
    assert!(told.contains(&format!("{test} ran")), "{test} is not this test's path:\n{told}");
    println!("{told}");
}

/// How the child ended; nothing if it had to be killed, so that the test that hangs is named.
fn ended(child: &mut Child) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The folder of the stand-ins, built if they are not.
pub(super) fn library_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/build.sh");
        let output = Command::new(&script).output().unwrap_or_else(|e| {
            panic!("{} does not run: {e}; it needs bash and g++", script.display())
        });
        assert!(
            output.status.success(),
            "the stand-ins for CUDA's libraries cannot be built (they need g++ with C++20):\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        assert!(folder.join("libcuda.so.1").exists(), "no libcuda.so.1 in {}", folder.display());
        folder
    })
}

/// What the stand-in writes when its process ends; nothing in the child, which has not ended.
pub(super) struct Report {
    dir: TempDir,
    path: String,
}

impl Report {
    pub(super) fn new() -> Self {
        let dir = TempDir::new();
        let path = dir.join("report.json").to_str().unwrap().to_owned();
        Self { dir, path }
    }

    /// Where it is written, for `VRUST_EMU_REPORT`.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The kernels that were launched.
    pub(super) fn launches(&self) -> Vec<String> {
        let report = std::fs::read(self.dir.join("report.json")).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
        report["kernels"].as_object().unwrap().keys().cloned().collect()
    }
}

/// Whether this is the process of the stand-ins.
pub(super) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// The same options on the stand-in's device.
pub(super) fn on_cuda(mut options: EngineOptions) -> EngineOptions {
    options.device = Device::Cuda(0);
    options
}

/// A model with heads that the tensor cores' kernels exist for, and seeded weights.
pub(super) fn wide(dtype: ModelDType) -> (TempDir, EngineOptions) {
    let dir = TempDir::copy_of(&fixture("llama3"));
    let fields = json!({"head_dim": 64, "max_position_embeddings": 512});
    set_fields(&dir.join("config.json"), &fields);
    let model = dir.path().to_owned();
    let options =
        EngineOptions { model, dtype, load_format: LoadFormat::Dummy, ..options("llama3") };
    (dir, options)
}

/// What the driver counts: `allocations`, `graphs`, .. alive, `launches`, `allocs` so far.
pub(super) fn count(what: &str) -> u64 {
    type Count = unsafe extern "C" fn(*const c_char) -> u64;
    // SAFETY: the stand-in's function of this name has this type.
    let count: Count = unsafe { std::mem::transmute(symbol(c"vrust_emu_count")) };
    let what = CString::new(what).unwrap();
    // SAFETY: `what` ends in a zero.
    unsafe { count(what.as_ptr()) }
}

/// Makes the `nth` call of a kind from now on fail; 0: none.
pub(super) fn fail(what: &str, nth: u64) {
    type Fail = unsafe extern "C" fn(*const c_char, u64);
    // SAFETY: the stand-in's function of this name has this type.
    let fail: Fail = unsafe { std::mem::transmute(symbol(c"vrust_emu_fail")) };
    let what = CString::new(what).unwrap();
    // SAFETY: `what` ends in a zero.
    unsafe { fail(what.as_ptr(), nth) };
}

/// Asserts that the driver holds nothing of ours.
pub(super) fn assert_nothing_left(when: &str) {
    let kinds =
        ["allocations", "bytes", "pinned", "streams", "events", "graphs", "modules", "contexts"];
    for kind in kinds {
        assert_eq!(count(kind), 0, "{kind} are left {when}");
    }
}

/// Calls a function of the stand-in for cuBLASLt with a number; some give one back.
pub(super) fn cublaslt(name: &str, argument: i32) -> u64 {
    type Call = unsafe extern "C" fn(i32) -> u64;
    let name = CString::new(name).unwrap();
    // SAFETY: the stand-in's functions take a number or nothing, in the same registers.
    let call: Call = unsafe { std::mem::transmute(symbol_of("libcublasLt.so.13", &name)) };
    // SAFETY: as above.
    unsafe { call(argument) }
}

/// Programs that the stand-in for NVRTC has compiled.
#[cfg(not(feature = "prebuilt-kernels"))]
pub(super) fn nvrtc_compiled() -> u64 {
    nvrtc_count(c"vrust_emu_compiled")
}

/// The most of them that it compiled at once.
#[cfg(not(feature = "prebuilt-kernels"))]
pub(super) fn nvrtc_at_once() -> u64 {
    nvrtc_count(c"vrust_emu_compiled_at_once")
}

#[cfg(not(feature = "prebuilt-kernels"))]
fn nvrtc_count(name: &CStr) -> u64 {
    type Call = unsafe extern "C" fn() -> u64;
    // SAFETY: the stand-in's functions of these names have this type.
    let call: Call = unsafe { std::mem::transmute(symbol_of("libnvrtc.so.13", name)) };
    // SAFETY: as above.
    unsafe { call() }
}

pub(super) fn symbol(name: &CStr) -> *mut c_void {
    symbol_of("libcuda.so.1", name)
}

fn symbol_of(library: &str, name: &CStr) -> *mut c_void {
    let library = library_folder().join(library);
    let library = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: both strings end in zeros; the library stays open.
    let found = unsafe {
        let handle = libc::dlopen(library.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null(), "{library:?} does not open");
        libc::dlsym(handle, name.as_ptr())
    };
    assert!(!found.is_null(), "the stand-in has no {name:?}");
    found
}

/// Of each three files, cuts the first short, turns a bit of the second, and empties the third.
pub(super) fn damage(files: &[PathBuf]) {
    for (i, file) in files.iter().enumerate() {
        let mut bytes = std::fs::read(file).unwrap();
        match i % 3 {
            0 => bytes.truncate(bytes.len() - 1),
            1 => bytes[40] ^= 1,
            _ => bytes.clear(),
        }
        std::fs::write(file, bytes).unwrap();
    }
}
