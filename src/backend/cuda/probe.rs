//! Whether there is a driver and a device that this backend can use. Nothing else of the driver
//! may be called before: cudarc panics where the library or a function is missing.

use std::ffi::{CStr, c_int};

use cudarc::driver::sys;

use super::driver::{attribute, check};
use super::library::{Library, preload};
use crate::error::{Error, ErrorKind, Result};

/// The oldest driver: of CUDA 13.0, because that is what the driver's calls are declared for.
const MIN_DRIVER: c_int = 13_000;
/// The oldest devices: Ampere, compute capability 8.0.
const MIN_MAJOR: c_int = 8;

/// The driver's functions that this backend calls.
const FUNCTIONS: &[&[u8]] = &[
    b"cuInit\0",
    b"cuDriverGetVersion\0",
    b"cuGetErrorString\0",
    b"cuDeviceGetCount\0",
    b"cuDeviceGet\0",
    b"cuDeviceGetName\0",
    b"cuDeviceGetAttribute\0",
    b"cuDevicePrimaryCtxRetain\0",
    b"cuDevicePrimaryCtxRelease_v2\0",
    b"cuCtxSetCurrent\0",
    b"cuMemGetInfo_v2\0",
    b"cuMemAlloc_v2\0",
    b"cuMemFree_v2\0",
    b"cuMemHostAlloc\0",
    b"cuMemFreeHost\0",
    b"cuMemcpyHtoDAsync_v2\0",
    b"cuMemcpyDtoHAsync_v2\0",
    b"cuMemcpyDtoDAsync_v2\0",
    b"cuStreamCreate\0",
    b"cuStreamDestroy_v2\0",
    b"cuStreamSynchronize\0",
    b"cuStreamBeginCapture_v2\0",
    b"cuStreamEndCapture\0",
    b"cuEventCreate\0",
    b"cuEventDestroy_v2\0",
    b"cuEventRecord\0",
    b"cuEventSynchronize\0",
    b"cuModuleLoadData\0",
    b"cuModuleUnload\0",
    b"cuModuleGetFunction\0",
    b"cuFuncSetAttribute\0",
    b"cuLaunchKernelEx\0",
    b"cuTensorMapEncodeTiled\0",
    b"cuGraphInstantiateWithFlags\0",
    b"cuGraphDestroy\0",
    b"cuGraphExecDestroy\0",
    b"cuGraphLaunch\0",
];

/// A device that can be used.
pub(super) struct Device {
    /// The driver's handle.
    pub(super) handle: sys::CUdevice,
    /// Its name, as the driver has it.
    pub(super) name: String,
    /// Compute capability, major and minor.
    pub(super) capability: (c_int, c_int),
    /// Version of the driver, as `13000` for 13.0.
    pub(super) driver: c_int,
    /// Multiprocessors.
    pub(super) multiprocessors: usize,
}

impl Device {
    /// Whether it runs kernels for sm_90a.
    pub(super) fn is_hopper(&self) -> bool {
        self.capability == (9, 0)
    }

    /// Whether a kernel may begin before the one before it has ended.
    pub(super) fn overlaps(&self) -> bool {
        self.capability.0 >= 9
    }

    /// What NVRTC calls the device's instructions. Families of 9 and 10 have instructions that
    /// only their exact members have, which are asked for by an `a`.
    pub(super) fn architecture(&self) -> String {
        let (major, minor) = self.capability;
        let suffix = if matches!(major, 9 | 10) { "a" } else { "" };
        format!("sm_{major}{minor}{suffix}")
    }
}

/// Device `ordinal` of those that the driver shows (CUDA_VISIBLE_DEVICES is its business).
pub(super) fn device(ordinal: u32) -> Result<Device> {
    let unavailable = |message: String| {
        let message = format!("device: cuda:{ordinal} cannot be used: {message}");
        Error::new(ErrorKind::Device, message).with("field", "device").with("value", ordinal)
    };
    preload(Library::Driver);
    // SAFETY: opening the driver's library runs its constructors, which is what it is for.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable("no NVIDIA driver is installed (libcuda.so.1)".into()));
    }
    if let Some(missing) = missing_function() {
        return Err(unavailable(format!(
            "the driver is too old: it has no {missing}; {} or newer is needed",
            version(MIN_DRIVER)
        )));
    }
    // SAFETY: the library and the function are there.
    check("cuInit", unsafe { sys::cuInit(0) }).map_err(|e| unavailable(e.to_string()))?;
    let mut driver = 0;
    // SAFETY: `driver` is written.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut driver) })?;
    if driver < MIN_DRIVER {
        let error = unavailable(format!(
            "the driver is of CUDA {}; {} or newer is needed",
            version(driver),
            version(MIN_DRIVER)
        ));
        return Err(error.with("limit", version(MIN_DRIVER)));
    }
    let mut count = 0;
    // SAFETY: `count` is written.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    if i64::from(ordinal) >= i64::from(count) {
        let message = match count {
            0 => "the driver shows no device".to_owned(),
            1 => "the driver shows one device, cuda:0".to_owned(),
            _ => format!("the driver shows devices cuda:0 to cuda:{}", count - 1),
        };
        return Err(unavailable(message).with("limit", count));
    }
    describe(ordinal, driver).and_then(|device| {
        if device.capability.0 < MIN_MAJOR {
            let (major, minor) = device.capability;
            return Err(unavailable(format!(
                "{} has compute capability {major}.{minor}; {MIN_MAJOR}.0 or newer is needed",
                device.name
            )));
        }
        Ok(device)
    })
}

fn describe(ordinal: u32, driver: c_int) -> Result<Device> {
    let mut handle = 0;
    // SAFETY: `handle` is written.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut handle, ordinal as c_int) })?;
    let mut name = [0; 128];
    // SAFETY: the buffer is as long as is said; the driver ends the name with a zero.
    let code = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, handle) };
    check("cuDeviceGetName", code)?;
    name[name.len() - 1] = 0;
    // SAFETY: the last byte is a zero.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    use sys::CUdevice_attribute as Attribute;
    let major = Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
    let minor = Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
    let capability = (attribute(handle, major)?, attribute(handle, minor)?);
    let count = attribute(handle, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let multiprocessors = usize::try_from(count).unwrap_or(0).max(1);
    Ok(Device { handle, name, capability, driver, multiprocessors })
}

/// The first function that the driver lacks.
fn missing_function() -> Option<String> {
    let missing = FUNCTIONS.iter().find(|name| {
        // SAFETY: the library is there, and the symbol is only looked for, not called.
        unsafe { sys::culib().get::<*const ()>(**name) }.is_err()
    })?;
    Some(String::from_utf8_lossy(&missing[..missing.len() - 1]).into_owned())
}

/// A version as people write it.
pub(super) fn version(number: c_int) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn architecture(capability: (c_int, c_int)) -> String {
        let (name, driver) = (String::new(), MIN_DRIVER);
        Device { handle: 0, name, capability, driver, multiprocessors: 1 }.architecture()
    }

    #[test]
    fn architectures_are_nvrtcs_names() {
        assert_eq!(architecture((8, 0)), "sm_80");
        assert_eq!(architecture((8, 9)), "sm_89");
        assert_eq!(architecture((9, 0)), "sm_90a");
        assert_eq!(architecture((10, 0)), "sm_100a");
        assert_eq!(architecture((12, 0)), "sm_120");
        assert_eq!(version(13_010), "13.1");
    }
}
