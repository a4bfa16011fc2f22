//! The habits of this repository, as a test: arrows between rooms, sizes, where `unsafe` and
//! exported symbols may stand.

use std::fs;
use std::path::{Path, PathBuf};

/// Longest line, in characters.
const MAX_LINE: usize = 100;
/// Longest file, in lines.
const MAX_FILE: usize = 500;
/// Longest function, in lines, from `fn` to its closing brace.
const MAX_FUNCTION: usize = 70;

/// Leaf nouns that every room may use.
const LEAVES: &[&str] = &["config", "error", "ids", "os", "request", "sync"];

/// Room, and the rooms that it may use besides the leaves. Nothing points back.
const ARROWS: &[(&str, &[&str])] = &[
    ("backend", &[]),
    ("chat", &["tokenizer"]),
    (
        "engine",
        &["backend", "chat", "kv_cache", "metrics", "model", "sampling", "scheduler", "tokenizer"],
    ),
    ("ffi", &["chat", "engine", "metrics", "tokenizer"]),
    ("kv_cache", &[]),
    ("metrics", &["backend", "scheduler"]),
    ("model", &["backend", "weights"]),
    ("sampling", &["tokenizer"]),
    ("scheduler", &["kv_cache"]),
    ("tokenizer", &[]),
    ("weights", &["backend"]),
];

/// Where `unsafe` may stand.
const UNSAFE_MAY_STAND_IN: &[&str] =
    &["src/ffi/", "src/backend/cpu/", "src/backend/cuda/", "src/os.rs"];
/// Where exported symbols may stand.
const EXPORTS_STAND_IN: &str = "src/ffi/";

#[test]
fn arrows_between_rooms_point_one_way() {
    let mut problems = Vec::new();
    for (path, text) in rust_sources("src") {
        let room = room_of(&path);
        if room == "lib" || LEAVES.contains(&room.as_str()) {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(r, _)| *r == room) else {
            problems.push(format!("{}: room {room} is not in the list", path.display()));
            continue;
        };
        for (number, line) in code_lines(&text) {
            for used in rooms_used(line) {
                let known = ARROWS.iter().any(|(r, _)| *r == used);
                if known && used != room && !allowed.contains(&used.as_str()) {
                    let at = format!("{}:{number}", path.display());
                    problems.push(format!("{at}: {room} must not use {used}"));
                }
            }
        }
    }
    report(&problems);
}

#[test]
fn leaves_use_only_leaves() {
    let mut problems = Vec::new();
    for (path, text) in rust_sources("src") {
        if !LEAVES.contains(&room_of(&path).as_str()) {
            continue;
        }
        for (number, line) in code_lines(&text) {
            for used in rooms_used(line).iter().filter(|u| !LEAVES.contains(&u.as_str())) {
                problems.push(format!("{}:{number}: a leaf uses {used}", path.display()));
            }
        }
    }
    report(&problems);
}

#[test]
fn files_lines_and_functions_stay_small() {
    let mut problems = Vec::new();
    for (path, text) in ["src", "tests", "benches"].iter().flat_map(|d| rust_sources(d)) {
        let count = text.lines().count();
        if count > MAX_FILE {
            problems.push(format!("{}: {count} lines, limit {MAX_FILE}", path.display()));
        }
        for (number, line) in text.lines().enumerate() {
            let width = line.chars().count();
            if width > MAX_LINE {
                let at = format!("{}:{}", path.display(), number + 1);
                problems.push(format!("{at}: {width} characters, limit {MAX_LINE}"));
            }
        }
        for (number, length) in functions(&text) {
            if length > MAX_FUNCTION {
                let at = format!("{}:{number}", path.display());
                problems.push(format!("{at}: a function of {length} lines, limit {MAX_FUNCTION}"));
            }
        }
    }
    report(&problems);
}

#[test]
fn files_of_other_languages_stay_small() {
    let mut problems = Vec::new();
    let mut files = Vec::new();
    for dir in ["bindings", "examples", "tests", "packaging"] {
        walk(&root().join(dir), &mut files);
    }
    for path in files {
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        if !["c", "cpp", "css", "go", "h", "hpp", "js", "mjs", "py", "sh", "ts"]
            .contains(&extension.as_str())
        {
            continue;
        }
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let count = text.lines().count();
        if count > MAX_FILE {
            problems.push(format!("{}: {count} lines, limit {MAX_FILE}", path.display()));
        }
        for (number, line) in text.lines().enumerate() {
            let width = line.chars().count();
            if width > MAX_LINE {
                let at = format!("{}:{}", path.display(), number + 1);
                problems.push(format!("{at}: {width} characters, limit {MAX_LINE}"));
            }
        }
    }
    report(&problems);
}

#[test]
fn unsafe_and_exports_stay_in_their_rooms() {
    let mut problems = Vec::new();
    for (path, text) in rust_sources("src") {
        let name = path.to_string_lossy().replace('\\', "/");
        let may_be_unsafe = UNSAFE_MAY_STAND_IN.iter().any(|p| name.contains(p));
        for (number, line) in code_lines(&text) {
            let is_unsafe = line.contains("unsafe ") && !line.contains("unsafe_");
            if is_unsafe && !may_be_unsafe {
                problems.push(format!("{name}:{number}: unsafe"));
            }
            if line.contains("no_mangle") && !name.contains(EXPORTS_STAND_IN) {
                problems.push(format!("{name}:{number}: an exported symbol"));
            }
        }
    }
    report(&problems);
}

/// A device and the emulation run the same text: the preprocessor decides nothing in a kernel but
/// whether a header was read before, and nothing asks what it runs on. Only the header of
/// instructions may: not every device has all of them, and the emulation has that header's twin.
#[test]
fn kernels_have_no_conditional_for_the_emulation() {
    let mut files = Vec::new();
    walk(&root().join("kernels"), &mut files);
    files.retain(|f| f.extension().is_some_and(|e| e == "cu" || e == "cuh"));
    assert!(files.len() > 10, "the kernels");
    let mut problems = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let guard = name.replace('.', "_").to_uppercase();
        for (number, line) in text.lines().enumerate() {
            let mut words = line.split_whitespace();
            let directive = words.next().unwrap_or("").to_owned();
            let directive = match directive.as_str() {
                "#" => format!("#{}", words.next().unwrap_or("")),
                _ => directive,
            };
            let is_guard = line == format!("#ifndef VRUST_{guard}");
            let decides = directive.starts_with("#if") || directive.starts_with("#el");
            let code = line.split("//").next().unwrap_or("").to_lowercase();
            let asks = code.contains("__cuda_arch") && name != "ptx.cuh";
            if decides && !is_guard || code.contains("emu") || asks {
                problems.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    report(&problems);
}

#[test]
fn the_repository_speaks_of_itself_alone() {
    // Spelled in halves, so that this list does not find itself.
    let banned =
        [["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/"], ["farm-", "bench"]].map(|h| h.concat());
    let mut problems = Vec::new();
    for dir in [
        "src",
        "tests",
        "benches",
        "examples",
        "bindings",
        "include",
        "kernels",
        "packaging",
        ".ci",
    ] {
        let mut files = Vec::new();
        walk(&root().join(dir), &mut files);
        for path in files {
            let Ok(text) = fs::read_to_string(&path) else { continue };
            for (number, line) in text.lines().enumerate() {
                for word in banned.iter().filter(|w| line.contains(w.as_str())) {
                    problems.push(format!("{}:{}: {word}", path.display(), number + 1));
                }
            }
        }
    }
    report(&problems);
}

fn report(problems: &[String]) {
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_sources(dir: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    walk(&root().join(dir), &mut files);
    files.retain(|f| f.extension().is_some_and(|e| e == "rs"));
    files
        .into_iter()
        .map(|f| (f.strip_prefix(root()).unwrap().to_owned(), fs::read_to_string(&f).unwrap()))
        .collect()
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut entries: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "target" | "node_modules" | "__pycache__" | "build") {
                walk(&path, files);
            }
        } else {
            files.push(path);
        }
    }
}

/// `src/engine/queue.rs` is in the room `engine`, `src/error.rs` is the room `error`.
fn room_of(path: &Path) -> String {
    let inside = path.strip_prefix("src").unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// The lines that are code, without trailing comments, numbered from 1.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(i, line)| (i + 1, line.split("//").next().unwrap_or_default()))
        .filter(|(_, line)| !line.trim().is_empty())
}

/// The rooms that a line names as `crate::room`.
fn rooms_used(line: &str) -> Vec<String> {
    let after = line.split("crate::").skip(1);
    let mut used = Vec::new();
    for rest in after {
        // `use crate::{a::B, c::D}` names several.
        let names: Vec<&str> = match rest.strip_prefix('{') {
            Some(list) => list.split(',').collect(),
            None => vec![rest],
        };
        for name in names {
            let word: String =
                name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            used.push(word);
        }
    }
    used
}

/// Line and length of each function with a body.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        let is_function = code.starts_with("fn ")
            || (code.starts_with("pub") || code.starts_with("unsafe") || code.starts_with("const"))
                && code.contains(" fn ")
                && !code.contains(" = ");
        if !is_function {
            continue;
        }
        let closing = format!("{}}}", " ".repeat(indent));
        let end = lines[start..].iter().position(|l| {
            *l == closing || l.trim_end().ends_with(';') && l.len() - l.trim_start().len() == indent
        });
        if let Some(length) = end {
            found.push((start + 1, length + 1));
        }
    }
    found
}
