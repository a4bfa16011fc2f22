//! Which backend an engine runs on.

use std::time::Duration;

use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::cuda::{CudaBackend, CudaOptions};
use crate::backend::reference::ReferenceBackend;
use crate::backend::{Backend, ComputeType};
use crate::config::{BackendKind, Device, EngineOptions};
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

fn cpu(options: &EngineOptions, compute: ComputeType) -> Result<Box<dyn Backend>> {
    Ok(Box::new(CpuBackend::new(CpuOptions {
        compute,
        quantization: options.quantization,
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
    Ok(Box::new(ReferenceBackend::new(compute)))
}

fn cuda(options: &EngineOptions, compute: ComputeType, ordinal: u32) -> Result<Box<dyn Backend>> {
    if let Some(quantization) = options.quantization {
        let message = format!(
            "quantization: {} is not there on CUDA in this version; the CPU has it",
            quantization.name()
        );
        return Err(Error::new(ErrorKind::Unsupported, message).with("field", "quantization"));
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
