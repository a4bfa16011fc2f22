//! What README prints is what works: the C example is the file, and it compiles as printed.

use std::path::Path;
use std::process::Command;

#[test]
fn the_c_example_is_the_file_and_compiles() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let start = readme.find("```c\n").expect("a C example") + 5;
    let end = start + readme[start..].find("```").unwrap();
    let printed = &readme[start..end];
    let file = root.join("examples/c/quickstart.c");
    assert_eq!(printed, std::fs::read_to_string(&file).unwrap());
    assert!(printed.lines().count() <= 60);
    let compiled = Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"])
        .arg("-I")
        .arg(root.join("include"))
        .arg(&file)
        .output()
        .expect("a C compiler");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
}
