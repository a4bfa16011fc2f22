//! A host that uses the device itself: its context, its memory and what is current on its thread
//! are its own, whatever becomes of an engine.

use std::ffi::{c_int, c_void};
use std::mem::transmute;
use std::ptr::null_mut;

use vrust::engine::Engine;

use super::stand_in::{count, fail, on_cuda, on_stand_in, symbol};
use crate::engine_support::{greedy, options, ready, run_one};

type Init = unsafe extern "C" fn(u32) -> c_int;
type Retain = unsafe extern "C" fn(*mut *mut c_void, c_int) -> c_int;
type Set = unsafe extern "C" fn(*mut c_void) -> c_int;
type Get = unsafe extern "C" fn(*mut *mut c_void) -> c_int;
type Alloc = unsafe extern "C" fn(*mut u64, usize) -> c_int;
type CopyIn = unsafe extern "C" fn(u64, *const c_void, usize) -> c_int;
type CopyOut = unsafe extern "C" fn(*mut c_void, u64, usize) -> c_int;

const BYTES: usize = 4096;

/// Device memory of the host's, in the device's primary context.
struct Host {
    context: *mut c_void,
    memory: u64,
}

impl Host {
    fn new() -> Self {
        let (mut context, mut memory) = (null_mut(), 0);
        let data = [0x5a_u8; BYTES];
        // SAFETY: the driver's functions have these types; all that they write is there.
        unsafe {
            assert_eq!(transmute::<*mut c_void, Init>(symbol(c"cuInit"))(0), 0);
            let retain: Retain = transmute(symbol(c"cuDevicePrimaryCtxRetain"));
            assert_eq!(retain(&mut context, 0), 0);
            assert_eq!(transmute::<*mut c_void, Set>(symbol(c"cuCtxSetCurrent"))(context), 0);
            let alloc: Alloc = transmute(symbol(c"cuMemAlloc_v2"));
            assert_eq!(alloc(&mut memory, BYTES), 0);
            let copy: CopyIn = transmute(symbol(c"cuMemcpyHtoD_v2"));
            assert_eq!(copy(memory, data.as_ptr().cast(), BYTES), 0);
        }
        Self { context, memory }
    }

    /// Everything is as it was.
    fn check(&self, when: &str) {
        let (mut current, mut data) = (null_mut(), [0_u8; BYTES]);
        // SAFETY: as in `new`.
        unsafe {
            let get: Get = transmute(symbol(c"cuCtxGetCurrent"));
            assert_eq!(get(&mut current), 0, "{when}");
            let copy: CopyOut = transmute(symbol(c"cuMemcpyDtoH_v2"));
            assert_eq!(copy(data.as_mut_ptr().cast(), self.memory, BYTES), 0, "{when}");
        }
        assert_eq!(current, self.context, "{when}");
        assert!(data.iter().all(|&byte| byte == 0x5a), "{when}");
        let left = ["contexts", "allocations", "pinned", "streams", "modules"].map(count);
        assert_eq!(left, [1, 1, 0, 0, 0], "{when}");
    }
}

#[test]
fn the_hosts_context_and_memory_stay_its_own() {
    on_stand_in("cuda::host::the_hosts_context_and_memory_stay_its_own", &[], || {
        let host = Host::new();
        host.check("before any engine");
        let engine = ready(on_cuda(options("llama3")));
        run_one(&engine, greedy(&[5, 9], 6));
        drop(engine);
        host.check("after an engine");
        // One that finds no memory, and one whose step fails.
        fail("alloc", 4);
        let engine = Engine::create(on_cuda(options("llama3"))).unwrap();
        engine.wait_ready(None).unwrap_err();
        fail("alloc", 0);
        drop(engine);
        host.check("after an engine that found no memory");
        let engine = ready(on_cuda(options("llama3")));
        fail("launch", 5);
        let queue = engine.default_queue();
        engine.submit(greedy(&[5, 9], 6), queue).unwrap();
        while engine.wait_ready(None).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        fail("launch", 0);
        drop(engine);
        host.check("after an engine that failed");
    });
}
