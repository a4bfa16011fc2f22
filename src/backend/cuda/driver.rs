//! The driver's calls that this backend makes: each a type that gives back what it took, each
//! error named after the call. Nothing here knows of models.

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::ptr;

use cudarc::driver::result::DriverError;
use cudarc::driver::sys;

use crate::error::{Error, ErrorKind, Result};

/// An address in device memory; 0 is none.
pub(super) type DevicePtr = u64;

/// What a call said, as a result.
pub(super) fn check(call: &str, code: sys::CUresult) -> Result<()> {
    if code == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let kind = match code {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => ErrorKind::DeviceMemory,
        _ => ErrorKind::Device,
    };
    let error = DriverError(code);
    let text = error.error_string().map(CStr::to_string_lossy).unwrap_or_default();
    let message = format!("the CUDA driver's {call} failed: {text} ({code:?})");
    Err(Error::new(kind, message).with("call", call).with("code", code as u32))
}

/// The device's primary context, which the host may share: retained, made current on this thread,
/// released; never reset.
pub(super) struct Context {
    device: sys::CUdevice,
}

impl Context {
    pub(super) fn retain(device: sys::CUdevice) -> Result<Self> {
        let mut context = ptr::null_mut();
        // SAFETY: `context` is written; the device is one that the driver named.
        check("cuDevicePrimaryCtxRetain", unsafe {
            sys::cuDevicePrimaryCtxRetain(&mut context, device)
        })?;
        let retained = Self { device };
        // SAFETY: the context was just retained.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(context) })?;
        Ok(retained)
    }

    /// Bytes of device memory: free, and in all.
    pub(super) fn memory(&self) -> Result<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are written; a context is current.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: this thread made the context current and retained it once. Nothing can be done
        // about a failure.
        unsafe {
            let _ = sys::cuCtxSetCurrent(ptr::null_mut());
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// Device memory.
pub(super) struct DeviceMemory {
    ptr: DevicePtr,
}

impl DeviceMemory {
    pub(super) fn new(bytes: usize) -> Result<Self> {
        let mut ptr = 0;
        // SAFETY: `ptr` is written; a context is current.
        check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut ptr, bytes) })?;
        Ok(Self { ptr })
    }

    pub(super) fn ptr(&self) -> DevicePtr {
        self.ptr
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: allocated here, freed once; the backend waits for its stream before.
        let _ = unsafe { sys::cuMemFree_v2(self.ptr) };
    }
}

/// Page-locked host memory, which copies run beside the host from; zeroed.
pub(super) struct Pinned {
    ptr: *mut u8,
    len: usize,
}

impl Pinned {
    pub(super) fn new(len: usize) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is written. No flags: write-combined memory is slow to read.
        let code = unsafe { sys::cuMemHostAlloc(&mut raw, len.max(1), 0) };
        check("cuMemHostAlloc", code).map_err(|e| {
            let kind = match e.kind() {
                ErrorKind::DeviceMemory => ErrorKind::OutOfMemory,
                other => other,
            };
            let message = format!("{len} bytes of page-locked host memory: {}", e.message());
            Error::new(kind, message).with("value", len)
        })?;
        let ptr = raw.cast::<u8>();
        // SAFETY: `len` bytes were just allocated, aligned to a page.
        unsafe { ptr.write_bytes(0, len) };
        Ok(Self { ptr, len })
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `len` initialised bytes, borrowed with self.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }

    /// The bytes as words of 32 bits.
    pub(super) fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: the memory is aligned to a page, and any bits are a u32.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.cast(), self.len / 4) }
    }

    /// The bytes as floats.
    pub(super) fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: the memory is aligned to a page, and any bits are an f32.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.cast(), self.len / 4) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated here, freed once; the backend waits for its stream before.
        let _ = unsafe { sys::cuMemFreeHost(self.ptr.cast()) };
    }
}

/// A kernel. Lives as long as its module.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Function(sys::CUfunction);

impl Function {
    /// Lets launches have `bytes` of dynamic shared memory: beyond 48 KiB they must be asked for.
    pub(super) fn allow_shared(self, bytes: u32) -> Result<()> {
        let attribute =
            sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function's module is loaded.
        check("cuFuncSetAttribute", unsafe {
            sys::cuFuncSetAttribute(self.0, attribute, bytes as c_int)
        })
    }
}

/// A loaded cubin.
pub(super) struct Module(sys::CUmodule);

impl Module {
    /// Loads a cubin.
    pub(super) fn load(cubin: &[u8]) -> Result<Self> {
        let mut module = ptr::null_mut();
        // SAFETY: `cubin` is a whole image; the driver copies what it needs.
        check("cuModuleLoadData", unsafe {
            sys::cuModuleLoadData(&mut module, cubin.as_ptr().cast())
        })?;
        Ok(Self(module))
    }

    pub(super) fn function(&self, name: &CStr) -> Result<Function> {
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded, `name` ends in a zero.
        let code = unsafe { sys::cuModuleGetFunction(&mut function, self.0, name.as_ptr()) };
        check("cuModuleGetFunction", code)
            .map_err(|e| e.context(format!("kernel {}", name.to_string_lossy())))?;
        Ok(Function(function))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded here, unloaded once; the backend waits for its stream before.
        let _ = unsafe { sys::cuModuleUnload(self.0) };
    }
}

/// Size of a launch.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) x: u32,
    pub(super) y: u32,
    /// Threads of a block.
    pub(super) block: u32,
    /// Bytes of dynamic shared memory.
    pub(super) shared: u32,
}

impl Grid {
    /// `x` by `y` blocks of `block` threads.
    pub(super) fn new(x: usize, y: usize, block: u32) -> Self {
        Self { x: x as u32, y: y as u32, block, shared: 0 }
    }
}

/// A queue of work, run in order.
pub(super) struct Stream {
    raw: sys::CUstream,
    overlaps: bool,
}

impl Stream {
    /// With `overlaps`, a kernel may begin before the kernel before it has ended: each waits for
    /// that one itself (`ptx::wait_for_previous`). Devices from 9.0 on do that.
    pub(super) fn new(overlaps: bool) -> Result<Self> {
        let mut raw = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint;
        // SAFETY: `raw` is written; a context is current.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut raw, flags) })?;
        Ok(Self { raw, overlaps })
    }

    /// The handle, for cuBLASLt.
    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Waits until everything has run.
    pub(super) fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream lives.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.raw) })
    }

    /// Launches a kernel; nothing where the grid is empty.
    ///
    /// # Safety
    /// `params` point to the kernel's parameters, in order and of its types; the addresses among
    /// them hold what the kernel reads and writes until the stream has run it.
    pub(super) unsafe fn launch(
        &self,
        function: Function,
        grid: Grid,
        params: &mut [*mut c_void],
    ) -> Result<()> {
        if grid.x == 0 || grid.y == 0 {
            return Ok(());
        }
        use sys::CUlaunchAttributeID_enum as Id;
        let mut attribute = sys::CUlaunchAttribute {
            id: Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid.x,
            gridDimY: grid.y,
            gridDimZ: 1,
            blockDimX: grid.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared,
            hStream: self.raw,
            attrs: &mut attribute,
            numAttrs: u32::from(self.overlaps),
        };
        // SAFETY: as this function's contract; the attribute outlives the call.
        check("cuLaunchKernelEx", unsafe {
            sys::cuLaunchKernelEx(&config, function.0, params.as_mut_ptr(), ptr::null_mut())
        })
    }

    /// Copies `bytes` of `source` from byte `from` on to the device.
    ///
    /// # Safety
    /// The device memory is `bytes` long, and nobody writes to or frees `source` until the stream
    /// has run the copy.
    pub(super) unsafe fn copy_to_device(
        &self,
        to: DevicePtr,
        source: &Pinned,
        from: usize,
        bytes: usize,
    ) -> Result<()> {
        assert!(from + bytes <= source.len, "a copy is within the host's buffer");
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: as this function's contract; the range is within `source`.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, source.ptr.add(from).cast(), bytes, self.raw)
        })
    }

    /// Copies `bytes` from the device to the start of `target`.
    ///
    /// # Safety
    /// The device memory is `bytes` long, and nobody touches `target` until the stream has run the
    /// copy.
    pub(super) unsafe fn copy_to_host(
        &self,
        target: &mut Pinned,
        from: DevicePtr,
        bytes: usize,
    ) -> Result<()> {
        assert!(bytes <= target.len, "a copy is within the host's buffer");
        // SAFETY: as this function's contract; the range is within `target`.
        check("cuMemcpyDtoHAsync", unsafe {
            sys::cuMemcpyDtoHAsync_v2(target.ptr.cast(), from, bytes, self.raw)
        })
    }

    /// Copies within the device.
    ///
    /// # Safety
    /// Both ranges are device memory of this context and do not overlap.
    pub(super) unsafe fn copy_on_device(
        &self,
        to: DevicePtr,
        from: DevicePtr,
        bytes: usize,
    ) -> Result<()> {
        // SAFETY: as this function's contract.
        check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.raw) })
    }

    /// Records instead of running what `launch` adds to this stream, and makes a graph of it.
    pub(super) fn capture(&self, launch: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives and is not capturing.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.raw, mode) })?;
        let launched = launch();
        let mut graph = ptr::null_mut();
        // SAFETY: this stream is capturing; the capture must end whether launches failed or not.
        let ended =
            check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.raw, &mut graph) });
        let instantiated = launched.and(ended).and_then(|()| {
            let mut exec = ptr::null_mut();
            // SAFETY: the graph was just captured.
            check("cuGraphInstantiateWithFlags", unsafe {
                sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0)
            })?;
            Ok(Graph(exec))
        });
        if !graph.is_null() {
            // SAFETY: an executable graph does not need what it was made from.
            let _ = unsafe { sys::cuGraphDestroy(graph) };
        }
        instantiated
    }

    /// Runs a graph that was captured on this device.
    pub(super) fn launch_graph(&self, graph: &Graph) -> Result<()> {
        // SAFETY: both live; the backend keeps every address that was captured.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.0, self.raw) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made here, destroyed once.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.raw) };
    }
}

/// A captured run of kernels.
pub(super) struct Graph(sys::CUgraphExec);

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made here, destroyed once; the backend waits for its stream before.
        let _ = unsafe { sys::cuGraphExecDestroy(self.0) };
    }
}

/// A place in a stream that can be waited for.
pub(super) struct Event(sys::CUevent);

impl Event {
    pub(super) fn new() -> Result<Self> {
        let mut event = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint;
        // SAFETY: `event` is written; a context is current.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags) })?;
        Ok(Self(event))
    }

    pub(super) fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both live.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.0, stream.raw) })
    }

    /// Waits for what was recorded last; at once if nothing was.
    pub(super) fn synchronize(&self) -> Result<()> {
        // SAFETY: the event lives.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.0) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made here, destroyed once.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// An attribute of a device.
pub(super) fn attribute(device: sys::CUdevice, which: sys::CUdevice_attribute) -> Result<c_int> {
    let mut value = 0;
    // SAFETY: `value` is written.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) })?;
    Ok(value)
}
