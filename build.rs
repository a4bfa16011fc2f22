//! The shared library's link arguments, and what `vrust_build_info_json` says.

use std::process::Command;

#[cfg(feature = "prebuilt-kernels")]
mod build_kernels;

fn main() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    match variable("CARGO_CFG_TARGET_OS").as_str() {
        "macos" => cdylib_arg("-install_name,@rpath/libvrust.0.dylib"),
        "windows" => {}
        _ => {
            cdylib_arg("-soname,libvrust.so.0");
            // Rust's thread locals do not survive dlclose.
            cdylib_arg("-z,nodelete");
        }
    }
    println!("cargo::rustc-check-cfg=cfg(vrust_avx512)");
    if has_avx512(&variable("PROFILE")) {
        println!("cargo::rustc-cfg=vrust_avx512");
    }
    println!("cargo::rustc-env=VRUST_TARGET={}", variable("TARGET"));
    println!("cargo::rustc-env=VRUST_PROFILE={}", variable("PROFILE"));
    let revision = git_revision().map_or("null".to_owned(), |r| format!("\"{r}\""));
    println!("cargo::rustc-env=VRUST_GIT_REVISION={revision}");
    #[cfg(feature = "prebuilt-kernels")]
    build_kernels::build();
    println!("cargo::rerun-if-env-changed=VRUST_GIT_REVISION");
    println!("cargo::rerun-if-changed=build.rs");
}

/// Whether to compile the AVX-512 paths: in all builds that are for others, and where they can run.
/// `VRUST_ALL_PATHS` asks for them in development builds, for a test program that is to run on
/// another machine.
fn has_avx512(profile: &str) -> bool {
    println!("cargo::rerun-if-env-changed=VRUST_ALL_PATHS");
    #[cfg(target_arch = "x86_64")]
    let is_here = is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    let is_here = false;
    profile != "debug" || is_here || std::env::var_os("VRUST_ALL_PATHS").is_some()
}

fn cdylib_arg(argument: &str) {
    println!("cargo::rustc-cdylib-link-arg=-Wl,{argument}");
}

/// From the environment, for builds outside a checkout, or from git. A development build may say
/// an older revision than it has: asking git each time would rebuild each time.
fn git_revision() -> Option<String> {
    let given = std::env::var("VRUST_GIT_REVISION").ok();
    let revision = given.or_else(|| {
        let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    })?;
    let is_hex = !revision.is_empty() && revision.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex.then_some(revision)
}
