//! Which backend an engine runs on.

use std::time::Duration;

use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::cuda::{CudaBackend, CudaOptions};
use crate::backend::reference::ReferenceBackend;
use crate::backend::{Backend, ComputeType};
use crate::config::{BackendKind, Device, EngineOptions, KvCacheDType};
use crate::error::{Error, ErrorKind, Result};

/// Options that contradict each other or are out of range.
pub(super) fn check_options(options: &EngineOptions) -> Result<()> {
    let utilization = options.gpu_memory_utilization;
    if !(utilization > 0.0 && utilization <= 1.0) {
        let message =
            format!("gpu_memory_utilization: must be above 0 and at most 1, got {utilization}");
        let error = Error::invalid("gpu_memory_utilization", message);
        return Err(error.with("limit", 1.0).with("value", utilization));
    }
    let Device::Cuda(ordinal) = options.device else { return Ok(()) };
    let backend = match options.backend {
        BackendKind::Auto => return Ok(()),
        BackendKind::Cpu => "cpu",
        BackendKind::Reference => "reference",
    };
    let message = format!("device: cuda:{ordinal} contradicts backend {backend}");
    Err(Error::invalid("device", message).with("value", ordinal))
}

/// The backend that `options` ask for, with nothing loaded.
pub(super) fn make_backend(
    options: &EngineOptions,
    compute: ComputeType,
) -> Result<Box<dyn Backend>> {
    check_kv_cache_dtype(options, compute)?;
    match (options.backend, options.device) {
        (BackendKind::Reference, _) => reference(options, compute),
        (BackendKind::Cpu, _) | (BackendKind::Auto, Device::Cpu) => cpu(options, compute),
        (BackendKind::Auto, Device::Cuda(ordinal)) => cuda(options, compute, ordinal),
        (BackendKind::Auto, Device::Auto) => match cuda(options, compute, 0) {
            Ok(backend) => Ok(backend),
            Err(e) => {
                tracing::info!("device: auto is the CPU: {e}");
                cpu(options, compute)
            }
        },
    }
}

/// Refuses a KV cache of another precision than the model's, int8 excepted.
fn check_kv_cache_dtype(options: &EngineOptions, compute: ComputeType) -> Result<()> {
    let asked = options.kv_cache_dtype;
    let own = match compute {
        ComputeType::F32 => KvCacheDType::Float32,
        ComputeType::Bf16 => KvCacheDType::BFloat16,
    };
    if [KvCacheDType::Auto, KvCacheDType::Int8, own].contains(&asked) {
        return Ok(());
    }
    let (asked, own) = (asked.name(), own.name());
    let message = format!(
        "kv_cache_dtype: must be auto, {own} or int8 where the model runs in {own}, got {asked}"
    );
    let error = Error::new(ErrorKind::Unsupported, message);
    Err(error.with("field", "kv_cache_dtype").with("limit", own).with("value", asked))
}

fn cpu(options: &EngineOptions, compute: ComputeType) -> Result<Box<dyn Backend>> {
    Ok(Box::new(CpuBackend::new(CpuOptions {
        compute,
        quantization: options.quantization,
        int8_kv: options.kv_cache_dtype == KvCacheDType::Int8,
        // Who says how many bytes has put them aside.
        commit_kv: options.cpu_commit_kv.unwrap_or(options.kv_cache_memory_bytes.is_some()),
        threads: options.cpu_threads,
        isa: options.cpu_isa,
        pin: options.cpu_pin_threads,
        spin: Duration::from_micros(options.cpu_spin_us as u64),
    })?))
}

fn reference(options: &EngineOptions, compute: ComputeType) -> Result<Box<dyn Backend>> {
    if options.quantization.is_some() {
        let message = "quantization: the reference backend keeps weights as they are";
        return Err(Error::new(ErrorKind::Unsupported, message).with("field", "quantization"));
    }
    Ok(Box::new(match options.kv_cache_dtype {
        KvCacheDType::Int8 => ReferenceBackend::with_int8_kv(compute),
        _ => ReferenceBackend::new(compute),
    }))
}

fn cuda(options: &EngineOptions, compute: ComputeType, ordinal: u32) -> Result<Box<dyn Backend>> {
    if let Some(quantization) = options.quantization {
        let message = format!(
            "quantization: {} is not there on CUDA in this version; the CPU has it",
            quantization.name()
        );
        return Err(Error::new(ErrorKind::Unsupported, message).with("field", "quantization"));
    }
    if options.kv_cache_dtype == KvCacheDType::Int8 {
        let message = "kv_cache_dtype: int8 is not there on CUDA in this version; the CPU has it";
        let error = Error::new(ErrorKind::Unsupported, message);
        return Err(error.with("field", "kv_cache_dtype").with("value", "int8"));
    }
    Ok(Box::new(CudaBackend::new(CudaOptions {
        compute,
        ordinal,
        memory_utilization: options.gpu_memory_utilization,
        graphs: !options.enforce_eager,
        batch_invariant: options.batch_invariant,
    })?))
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_of_the_models_precision_or_of_int8() {
        use KvCacheDType::{Auto, BFloat16, Float32, Int8};
        let (f32, bf16) = (ComputeType::F32, ComputeType::Bf16);
        let mut options = EngineOptions::new("m");
        for backend in [BackendKind::Cpu, BackendKind::Reference] {
            options.backend = backend;
            for (compute, dtype) in [(f32, Auto), (f32, Float32), (bf16, Auto), (bf16, BFloat16)] {
                options.kv_cache_dtype = dtype;
                let name = make_backend(&options, compute).unwrap().describe();
                assert!(!name.contains("int8"), "{name}");
            }
            for compute in [f32, bf16] {
                options.kv_cache_dtype = Int8;
                let name = make_backend(&options, compute).unwrap().describe();
                assert!(name.ends_with(", int8 KV)"), "{name}");
            }
            for (compute, dtype) in [(f32, BFloat16), (bf16, Float32)] {
                options.kv_cache_dtype = dtype;
                let error = make_backend(&options, compute).err().unwrap();
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                assert_eq!(error.detail()["field"], "kv_cache_dtype");
                assert_eq!(error.detail()["value"], dtype.name());
            }
        }
        (options.backend, options.device) = (BackendKind::Auto, Device::Cuda(0));
        options.kv_cache_dtype = Int8;
        let error = make_backend(&options, bf16).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.detail()["field"], "kv_cache_dtype", "{error}");
    }

    #[test]
    fn contradictions_and_ranges_name_the_field() {
        let mut options = EngineOptions::new("m");
        check_options(&options).unwrap();
        options.device = Device::Cuda(0);
        check_options(&options).unwrap();
        options.backend = BackendKind::Reference;
        let error = check_options(&options).unwrap_err();
        assert!(error.message().contains("cuda:0 contradicts backend reference"), "{error}");
        options.device = Device::Cpu;
        check_options(&options).unwrap();
        for bad in [0.0, -0.1, 1.01, f64::NAN] {
            options.gpu_memory_utilization = bad;
            let error = check_options(&options).unwrap_err();
            assert_eq!(error.detail()["field"], "gpu_memory_utilization", "{bad}");
        }
    }
}
