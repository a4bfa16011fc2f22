//! Which library this is.

use std::ffi::c_char;

/// Version of the ABI that this header describes: major << 16 | minor. A library serves every
/// program of its own major version whose minor version is not above its own.
pub const VRUST_ABI_VERSION: u32 = 2;

/// Version of the ABI of the loaded library: major << 16 | minor. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn vrust_abi_version() -> u32 {
    VRUST_ABI_VERSION
}

/// Version of the loaded library, such as "0.1.0". Static and NUL-terminated. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn vrust_version_string() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// How the loaded library was built, as a JSON object: version, abi_version, target, profile,
/// git_revision (null when unknown), backends. Static and NUL-terminated. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn vrust_build_info_json() -> *const c_char {
    concat!(
        r#"{"version":""#,
        env!("CARGO_PKG_VERSION"),
        r#"","abi_version":2,"target":""#,
        env!("VRUST_TARGET"),
        r#"","profile":""#,
        env!("VRUST_PROFILE"),
        r#"","git_revision":"#,
        env!("VRUST_GIT_REVISION"),
        r#","backends":["cpu","cuda","reference"]}"#,
        "\0"
    )
    .as_ptr()
    .cast()
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[test]
    fn build_info_is_json_of_this_version() {
        // SAFETY: a static, NUL-terminated string.
        let text = unsafe { CStr::from_ptr(vrust_build_info_json()) }.to_str().unwrap();
        let info: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(info["abi_version"], VRUST_ABI_VERSION);
    }
}
