//! The shared library as the linker sees it: exported symbols, name, flags, dependencies.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Libraries that every glibc system has.
const ALLOWED_DEPENDENCIES: [&str; 4] = ["libc.so", "libm.so", "libgcc_s.so", "ld-linux"];

#[test]
fn exported_symbols_are_the_headers_functions() {
    let symbols = run("nm", &["-D", "--defined-only"]);
    let exported: BTreeSet<_> =
        symbols.lines().filter_map(|line| line.split_whitespace().last()).collect();
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/vrust/vrust.h");
    let header = fs::read_to_string(header).unwrap();
    let declared: BTreeSet<_> = header
        .lines()
        .filter(|line| !line.starts_with(['/', ' ', '#']))
        .filter_map(|line| line.split_once('('))
        .filter_map(|(before, _)| before.rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("vrust_"))
        .collect();
    assert!(declared.len() > 30, "the header declares only {declared:?}");
    assert_eq!(exported, declared);
}

#[test]
fn the_dynamic_section_is_as_promised() {
    let dynamic = run("readelf", &["-d", "--wide"]);
    let values = |tag: &str| -> Vec<String> {
        let lines = dynamic.lines().filter(|line| line.contains(&format!("({tag})")));
        lines.map(|l| l.rsplit_once(')').unwrap().1.trim().to_owned()).collect()
    };
    assert_eq!(values("SONAME"), ["Library soname: [libvrust.so.0]"]);
    assert!(values("FLAGS_1").iter().any(|flags| flags.contains("NODELETE")), "{dynamic}");
    assert_eq!(values("RUNPATH"), Vec::<String>::new());
    for needed in values("NEEDED") {
        let allowed = ALLOWED_DEPENDENCIES.iter().any(|name| needed.contains(name));
        assert!(allowed, "depends on more than libc: {needed}");
    }
}

/// A tool's output about the shared library.
fn run(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool).args(arguments).arg(library()).output();
    let output = output.unwrap_or_else(|e| panic!("{tool} (binutils) is needed: {e}"));
    assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The shared library that cargo built along with this test; built now if it did not.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let deps = test.parent().unwrap();
    let beside = deps.join("libvrust.so");
    if beside.exists() {
        return beside;
    }
    let target = deps.parent().and_then(Path::parent).unwrap();
    let built = Command::new(env!("CARGO"))
        .args(["build", "--lib", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .status();
    assert!(built.unwrap().success(), "cannot build libvrust.so");
    target.join("debug/libvrust.so")
}
