//! The CUDA backend without a GPU: the whole of it runs against stand-ins for libcuda, cuBLASLt
//! and NVRTC (`tests/cuda`), whose device runs the kernels themselves on the host.
//!
//! Each test runs in a process of its own, so that no other test sees a device.

mod ahead;
#[cfg(not(feature = "prebuilt-kernels"))]
mod cubins;
mod device;
mod draws;
mod failures;
mod goldens;
mod host;
mod products;
mod stand_in;
mod steps;
