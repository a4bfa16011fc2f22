//! Writes the C header: `vrust-header OUTPUT`. Run it by `make header`.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

/// The files that declare the ABI, in the order of the header.
const NOUNS: [&str; 14] = [
    "version",
    "status",
    "error",
    "bytes",
    "log",
    "engine_options",
    "engine",
    "queue",
    "event",
    "request",
    "tokenizer",
    "chat",
    "chat_parser",
    "stats",
];

fn main() -> Result<(), Box<dyn Error>> {
    let output = env::args().nth(1).ok_or("usage: vrust-header OUTPUT")?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let mut config = cbindgen::Config::from_file(root.join("cbindgen.toml"))?;
    config.after_includes = Some(version_macros(&fs::read_to_string(root.join("Cargo.toml"))?)?);
    let mut builder = cbindgen::Builder::new().with_config(config);
    for noun in NOUNS {
        builder = builder.with_src(root.join(format!("src/ffi/{noun}.rs")));
    }
    let mut header = Vec::new();
    builder.generate()?.write(&mut header);
    fs::write(output, header)?;
    Ok(())
}

/// The crate's version, for the preprocessor.
fn version_macros(manifest: &str) -> Result<String, Box<dyn Error>> {
    let line = manifest.lines().find_map(|line| line.strip_prefix("version = \""));
    let version = line.and_then(|l| l.strip_suffix('"')).ok_or("Cargo.toml: no version")?;
    let parts: Vec<&str> = version.split(['.', '-']).collect();
    let [major, minor, patch, ..] = parts[..] else { return Err("Cargo.toml: version".into()) };
    Ok(format!(
        "\n/// Version of the library that this header came with.\n\
         #define VRUST_VERSION \"{version}\"\n\
         #define VRUST_VERSION_MAJOR {major}\n\
         #define VRUST_VERSION_MINOR {minor}\n\
         #define VRUST_VERSION_PATCH {patch}"
    ))
}
