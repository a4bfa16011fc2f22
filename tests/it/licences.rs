//! The licences of everything that is linked: each on a list of permissive ones, each in
//! THIRD-PARTY.md. `UPDATE_LICENCES=1` rewrites that file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Licences that a library under Apache-2.0 may link.
const PERMISSIVE: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

const HEADER: &str = "# Licences of what libvrust links\n
Made by `UPDATE_LICENCES=1 cargo test --test it licences`; a test keeps it true.\n
| crate | version | licence |\n|---|---|---|\n";

#[test]
fn everything_linked_has_a_permissive_licence_and_is_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--filter-platform", target()])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let linked = linked(&metadata);
    let mut table = HEADER.to_owned();
    for package in metadata["packages"].as_array().unwrap() {
        if !linked.contains(package["id"].as_str().unwrap()) || package["name"] == "vrust" {
            continue;
        }
        let (name, version) = (package["name"].as_str(), package["version"].as_str());
        let (name, version) = (name.unwrap(), version.unwrap());
        let licence = package["license"].as_str().unwrap_or_default().replace('/', " OR ");
        assert!(is_permissive(&licence), "{name} {version} is under {licence:?}");
        table.push_str(&format!("| {name} | {version} | {licence} |\n"));
    }
    let file = root.join("THIRD-PARTY.md");
    if std::env::var_os("UPDATE_LICENCES").is_some() {
        std::fs::write(&file, &table).unwrap();
    }
    let listed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(listed == table, "THIRD-PARTY.md is not up to date: run with UPDATE_LICENCES=1");
}

/// Package ids reachable from vrust by normal dependencies, procedural macros included.
fn linked(metadata: &Value) -> BTreeSet<&str> {
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let by_id: BTreeMap<&str, &Value> =
        nodes.iter().map(|n| (n["id"].as_str().unwrap(), n)).collect();
    let mut found = BTreeSet::new();
    let mut queue = vec![metadata["resolve"]["root"].as_str().unwrap()];
    while let Some(id) = queue.pop() {
        if !found.insert(id) {
            continue;
        }
        for dep in by_id[id]["deps"].as_array().unwrap() {
            let kinds = dep["dep_kinds"].as_array().unwrap();
            if kinds.iter().any(|k| k["kind"].is_null()) {
                queue.push(dep["pkg"].as_str().unwrap());
            }
        }
    }
    found
}

/// Whether one of the alternatives, with all its parts, is on the list.
fn is_permissive(licence: &str) -> bool {
    let listed = |one: &str| PERMISSIVE.contains(&one.trim().trim_matches(['(', ')']));
    licence.split(" OR ").any(|alternative| alternative.split(" AND ").all(listed))
        || licence.split(" AND ").all(|part| part.split(" OR ").any(listed))
}

fn target() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "aarch64-unknown-linux-gnu"
    } else {
        "x86_64-unknown-linux-gnu"
    }
}

#[test]
fn a_copyleft_licence_would_be_noticed() {
    assert!(is_permissive("MIT OR Apache-2.0"));
    assert!(is_permissive("(MIT OR Apache-2.0) AND Unicode-3.0"));
    assert!(!is_permissive("GPL-3.0-only"));
    assert!(!is_permissive("MIT AND GPL-3.0-only"));
}
