//! cuBLASLt's algorithms: timed once, kept, and read back.

use std::fs;
use std::path::{Path, PathBuf};

use super::stand_in::{cublaslt, damage, on_cuda, on_stand_in};
use crate::engine_support::{greedy, options, ready, run_one};
use crate::support::folder::TempDir;

/// Tokens of prompts that are long enough for cuBLASLt.
fn tokens() -> Vec<Vec<u32>> {
    let engine = ready(on_cuda(options("qwen3-bf16")));
    // One after the other: every engine has the same steps.
    let request = |n: u32| greedy(&(3..3 + n).collect::<Vec<_>>(), 4);
    [19, 40].map(|n| run_one(&engine, request(n)).only().tokens.clone()).into()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("vrust")).unwrap();
    let is_choice = |path: &PathBuf| path.extension().is_some_and(|e| e == "product");
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).filter(is_choice).collect();
    files.sort();
    files
}

#[test]
fn algorithms_are_timed_kept_and_read_back() {
    let dir = TempDir::new();
    let env = [("XDG_CACHE_HOME", dir.path().to_str().unwrap())];
    on_stand_in("cuda::products::algorithms_are_timed_kept_and_read_back", &env, || {
        let folder = PathBuf::from(std::env::var_os("XDG_CACHE_HOME").unwrap());
        let uses = || [0, 1, 2].map(|id| cublaslt("vrust_emu_products", id));
        let asked = || cublaslt("vrust_emu_heuristics", 0);
        let since = |before: [u64; 3]| {
            let now = uses();
            [0, 1, 2].map(|id| now[id] - before[id])
        };
        // Of three algorithms the last is the fastest.
        cublaslt("vrust_emu_fast_algorithm", 2);
        let expected = tokens();
        let timed = uses();
        assert!(timed.iter().all(|&n| n > 0), "each was timed: {timed:?}");
        let kept = files(&folder);
        assert_eq!(asked(), kept.len() as u64, "each size once");
        assert!(kept.len() >= 4, "{kept:?}");

        // Another engine times nothing, although now it would choose another one.
        cublaslt("vrust_emu_fast_algorithm", 1);
        assert_eq!(tokens(), expected);
        let used = since(timed);
        assert!(used[0] == 0 && used[1] == 0 && used[2] > 0, "{used:?}");
        assert_eq!(asked(), kept.len() as u64);

        // Damaged files are as none.
        damage(&kept);
        assert_eq!(tokens(), expected);
        assert_eq!(asked(), 2 * kept.len() as u64);
        assert_eq!(files(&folder), kept);
        let before = uses();
        assert_eq!(tokens(), expected);
        let used = since(before);
        assert!(used[0] == 0 && used[1] > 0 && used[2] == 0, "they were written again: {used:?}");
        println!("{} sizes, timed {timed:?}", kept.len());
    });
}
