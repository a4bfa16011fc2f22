//! Which device runs a model, and what is said where none can.

use std::os::unix::fs::symlink;

use vrust::config::{Device, EngineOptions, ModelDType, Quantization};
use vrust::engine::Engine;
use vrust::error::{Error, ErrorKind};

use super::stand_in::{assert_nothing_left, in_child, library_folder, on_cuda, on_stand_in};
use crate::engine_support::{greedy, options, ready, run_one};
use crate::support::folder::TempDir;

fn refused(options: EngineOptions) -> Error {
    let engine = Engine::create(options).unwrap();
    engine.wait_ready(None).unwrap_err()
}

fn backend(engine: &Engine) -> String {
    engine.info().unwrap()["backend"].as_str().unwrap().to_owned()
}

#[test]
fn auto_is_the_gpu_where_there_is_one() {
    on_stand_in("cuda::device::auto_is_the_gpu_where_there_is_one", &[], || {
        let mut auto = options("llama3");
        auto.device = Device::Auto;
        let engine = ready(auto.clone());
        assert!(backend(&engine).starts_with("cuda:0 ("), "{}", backend(&engine));
        run_one(&engine, greedy(&[5, 9], 3));
        // What only the CPU has is done there.
        auto.quantization = Some(Quantization::Int8);
        assert!(backend(&ready(auto)).starts_with("cpu"));
        let mut explicit = on_cuda(options("llama3"));
        explicit.quantization = Some(Quantization::Int8);
        let error = refused(explicit);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("int8"), "{error}");
        drop(engine);
        assert_nothing_left("after the engines");
    });
}

#[test]
fn an_unknown_device_is_an_error_and_auto_is_the_cpu_without_one() {
    let test = "cuda::device::an_unknown_device_is_an_error_and_auto_is_the_cpu_without_one";
    on_stand_in(test, &[("VRUST_EMU_DEVICES", "0")], || {
        let error = refused(on_cuda(options("llama3")));
        assert!(error.message().contains("no CUDA-capable device"), "{error}");
        let mut auto = options("llama3");
        auto.device = Device::Auto;
        let engine = ready(auto);
        assert!(backend(&engine).starts_with("cpu"), "{}", backend(&engine));
    });
}

#[test]
fn devices_are_those_that_the_driver_shows() {
    let test = "cuda::device::devices_are_those_that_the_driver_shows";
    on_stand_in(test, &[("VRUST_EMU_DEVICES", "2")], || {
        let mut second = options("llama3");
        second.device = Device::Cuda(1);
        assert!(backend(&ready(second.clone())).starts_with("cuda:1 ("));
        second.device = Device::Cuda(2);
        let error = refused(second);
        assert_eq!(error.kind(), ErrorKind::Device);
        assert_eq!(error.detail()["field"], "device");
        assert!(error.message().contains("cuda:0 to cuda:1"), "{error}");
    });
}

/// What `CUDA_VISIBLE_DEVICES` says is the driver's business: ordinals count what it shows, also
/// where that is a part of a GPU.
#[test]
fn visible_devices_and_parts_of_a_gpu_are_the_drivers_business() {
    let test = "cuda::device::visible_devices_and_parts_of_a_gpu_are_the_drivers_business";
    if let Ok(expected) = std::env::var("VRUST_TEST_SHOWN") {
        return on_stand_in(test, &[], || {
            let expected: u32 = expected.parse().unwrap();
            for ordinal in 0..expected {
                let mut options = options("llama3");
                options.device = Device::Cuda(ordinal);
                assert!(backend(&ready(options)).starts_with(&format!("cuda:{ordinal} (")));
            }
            let mut options = options("llama3");
            options.device = Device::Cuda(expected);
            let error = refused(options);
            let said = ["no CUDA-capable device", "one device, cuda:0", "cuda:0 to cuda:1"];
            assert!(error.message().contains(said[expected as usize]), "{error}");
        });
    }
    let part = "MIG-3c1e2a80-5b9b-5a4a-9f0e-0123456789ab";
    for (shown, expected) in [("2,0", "2"), ("", "0"), ("-1", "0"), ("1,9,0", "1"), (part, "1")] {
        let env = [
            ("VRUST_EMU_DEVICES", "4"),
            ("CUDA_VISIBLE_DEVICES", shown),
            ("VRUST_TEST_SHOWN", expected),
        ];
        on_stand_in(test, &env, || ());
    }
}

#[test]
fn without_cublaslt_bfloat16_is_an_error_that_names_it_and_float32_serves() {
    let test =
        "cuda::device::without_cublaslt_bfloat16_is_an_error_that_names_it_and_float32_serves";
    let dir = TempDir::new();
    for library in ["libcuda.so.1", "libnvrtc.so.13"] {
        symlink(library_folder().join(library), dir.join(library)).unwrap();
    }
    let folder = dir.path().to_str().unwrap().to_owned();
    let env = [("VRUST_CUDA_LIB_DIR", folder.as_str()), ("LD_LIBRARY_PATH", folder.as_str())];
    in_child(test, &env, || {
        let cpu = ready(options("llama3"));
        let float32 = ready(on_cuda(options("llama3")));
        let mut bf16 = on_cuda(options("llama3"));
        bf16.dtype = ModelDType::BFloat16;
        let engine = Engine::create(bf16).unwrap();
        let Err(error) = engine.wait_ready(None) else {
            println!("cuBLASLt is installed here");
            return;
        };
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.detail()["field"], "device");
        for word in ["libcublasLt.so.13", "bfloat16", "VRUST_CUDA_LIB_DIR"] {
            assert!(error.message().contains(word), "{error}");
        }
        drop(engine);
        run_one(&cpu, greedy(&[5, 9], 3));
        run_one(&float32, greedy(&[5, 9], 3));
        drop(float32);
        assert_nothing_left("after the engines");
    });
}

#[test]
fn an_old_driver_is_an_error() {
    let env = [("VRUST_EMU_DRIVER", "12080")];
    on_stand_in("cuda::device::an_old_driver_is_an_error", &env, || {
        let error = refused(on_cuda(options("llama3")));
        assert_eq!(error.kind(), ErrorKind::Device);
        for word in ["12.8", "13.0"] {
            assert!(error.message().contains(word), "{error}");
        }
    });
}

#[test]
fn an_old_device_is_an_error() {
    on_stand_in("cuda::device::an_old_device_is_an_error", &[("VRUST_EMU_CC", "75")], || {
        let error = refused(on_cuda(options("llama3")));
        assert!(error.message().contains("7.5"), "{error}");
    });
}

/// Kernels that came with the library need no compiler: NVRTC is not there, and nobody minds.
#[cfg(feature = "prebuilt-kernels")]
#[test]
fn prebuilt_kernels_need_no_compiler() {
    use vrust::config::ModelDType::{BFloat16, Float32};

    let test = "cuda::device::prebuilt_kernels_need_no_compiler";
    let dir = TempDir::new();
    for library in ["libcuda.so.1", "libcublasLt.so.13"] {
        symlink(library_folder().join(library), dir.join(library)).unwrap();
    }
    let folder = dir.path().to_str().unwrap().to_owned();
    let env = [("VRUST_CUDA_LIB_DIR", folder.as_str()), ("LD_LIBRARY_PATH", folder.as_str())];
    in_child(test, &env, || {
        for dtype in [Float32, BFloat16] {
            let mut options = on_cuda(options("llama3"));
            options.dtype = dtype;
            run_one(&ready(options), greedy(&[5, 9, 14], 4));
        }
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!maps.contains("libnvrtc"), "NVRTC was opened");
    });
}

/// On a machine that has the libraries elsewhere they are found there: then this shows nothing.
#[cfg(not(feature = "prebuilt-kernels"))]
#[test]
fn a_missing_library_is_an_error_that_names_it() {
    let test = "cuda::device::a_missing_library_is_an_error_that_names_it";
    let dir = TempDir::new();
    let driver = "libcuda.so.1";
    symlink(library_folder().join(driver), dir.join(driver)).unwrap();
    let folder = dir.path().to_str().unwrap().to_owned();
    let env = [("VRUST_CUDA_LIB_DIR", folder.as_str()), ("LD_LIBRARY_PATH", folder.as_str())];
    in_child(test, &env, || {
        let error = refused(on_cuda(options("llama3")));
        if error.message().contains("NVRTC_ERROR") {
            println!("NVRTC is installed here: {error}");
            return;
        }
        assert_eq!(error.kind(), ErrorKind::Device);
        for word in ["libnvrtc.so.13", "VRUST_CUDA_LIB_DIR", "site-packages"] {
            assert!(error.message().contains(word), "{error}");
        }
    });
}

#[test]
fn without_a_driver_cuda_is_an_error_and_the_cpu_serves() {
    let test = "cuda::device::without_a_driver_cuda_is_an_error_and_the_cpu_serves";
    in_child(test, &[("LD_LIBRARY_PATH", "")], || {
        let created = Engine::create(on_cuda(options("llama3"))).unwrap();
        match created.wait_ready(None) {
            Ok(_) => println!("a GPU is installed here"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Device);
                assert!(error.message().contains("cuda:0"), "{error}");
            }
        }
        run_one(&ready(options("llama3")), greedy(&[5, 9], 3));
    });
}
