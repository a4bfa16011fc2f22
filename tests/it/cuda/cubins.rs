//! Cubins: compiled once, kept on disk, and read back by any number of processes.

use std::fs;
use std::path::{Path, PathBuf};

use super::stand_in::{damage, is_child, nvrtc_at_once, nvrtc_compiled, on_cuda, on_stand_in};
use crate::engine_support::{greedy, options, ready, run_one};
use crate::support::folder::TempDir;

/// Files of the cache; all of them are cubins.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("vrust")).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in &files {
        assert!(file.extension().is_some_and(|e| e == "cubin"), "{} is left", file.display());
    }
    files
}

fn tokens() -> Vec<u32> {
    let engine = ready(on_cuda(options("llama3")));
    run_one(&engine, greedy(&[5, 9, 14], 6)).only().tokens.clone()
}

#[test]
fn kernels_are_compiled_once_and_kept() {
    let dir = TempDir::new();
    let env = [("XDG_CACHE_HOME", dir.path().to_str().unwrap()), ("VRUST_EMU_COMPILE_MS", "20")];
    on_stand_in("cuda::cubins::kernels_are_compiled_once_and_kept", &env, || {
        let folder = PathBuf::from(std::env::var_os("XDG_CACHE_HOME").unwrap());
        let expected = tokens();
        let kept = files(&folder);
        let cold = nvrtc_compiled();
        assert!(cold > 5 && kept.len() as u64 == cold, "{cold} programs, {} files", kept.len());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        assert!(nvrtc_at_once() > 1 || cores == 1, "compiled one after the other");
        let whole: Vec<_> = kept.iter().map(|file| fs::read(file).unwrap()).collect();
        assert_eq!(tokens(), expected);
        assert_eq!(nvrtc_compiled(), cold, "warm");

        // Damaged files are as none, and are written again.
        damage(&kept);
        assert_eq!(tokens(), expected);
        assert_eq!(nvrtc_compiled(), 2 * cold);
        for (file, whole) in files(&folder).iter().zip(&whole) {
            assert!(fs::read(file).unwrap() == *whole, "{} is whole again", file.display());
        }
        // A folder that cannot be written costs the time, and nothing else.
        fs::remove_dir_all(folder.join("vrust")).unwrap();
        fs::write(folder.join("vrust"), "a file").unwrap();
        assert_eq!(tokens(), expected);
        assert_eq!(nvrtc_compiled(), 3 * cold);
    });
}

/// Processes that start together over an empty cache: each runs, and whole files are left.
#[test]
fn many_processes_share_a_cache() {
    let test = "cuda::cubins::many_processes_share_a_cache";
    if is_child() {
        return on_stand_in(test, &[], || {
            assert_eq!(tokens().len(), 6);
        });
    }
    let dir = TempDir::new();
    let env = [("XDG_CACHE_HOME", dir.path().to_str().unwrap())];
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| on_stand_in(test, &env, || ()));
        }
    });
    let kept = files(dir.path());
    assert!(kept.len() > 5, "{kept:?}");
    for file in kept {
        let bytes = fs::read(&file).unwrap();
        assert!(bytes[32..].starts_with(b"vrust-emulated-cubin"), "{}", file.display());
    }
}
