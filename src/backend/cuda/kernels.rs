//! The kernels: their text, and the functions that come of it.

use std::ffi::CString;

use super::compile::compile;
use super::driver::{Function, Module};
use super::probe::Device;
use crate::backend::{ComputeType, DType};
use crate::error::{Error, ErrorKind, Result};

/// A file of `kernels/`.
#[derive(Clone, Copy)]
pub(super) struct Source {
    pub(super) name: &'static str,
    pub(super) text: &'static str,
}

macro_rules! sources {
    ($($file:literal),* $(,)?) => {
        &[$(Source { name: $file, text: include_str!(concat!("../../../kernels/", $file)) }),*]
    };
}

/// Each becomes a cubin.
const PROGRAMS: &[Source] = sources![
    "attention.cu",
    "blocks.cu",
    "decode.cu",
    "elementwise.cu",
    "gemm.cu",
    "norm.cu",
    "prefill.cu",
    "rope.cu",
    "sampling.cu",
    "skinny.cu",
];
/// What programs include.
const HEADERS: &[Source] = sources!["args.cuh", "ptx.cuh", "reduce.cuh", "tensor.cuh", "types.cuh"];

/// One kernel for each type of a checkpoint's weights.
#[derive(Clone, Copy)]
pub(super) struct ByWeight([Function; 3]);

impl ByWeight {
    pub(super) fn of(self, dtype: DType) -> Function {
        match dtype {
            DType::F32 => self.0[0],
            DType::Bf16 => self.0[1],
            DType::F16 => self.0[2],
        }
    }
}

/// One kernel for each type of output: f32, and bf16 for the inputs of linear layers.
#[derive(Clone, Copy)]
pub(super) struct ByOutput([Function; 2]);

impl ByOutput {
    pub(super) fn of(self, bf16: bool) -> Function {
        self.0[usize::from(bf16)]
    }
}

/// The functions, for one type of KV cache. Named as in kernels/README.md.
pub(super) struct Kernels {
    pub(super) embed: ByWeight,
    pub(super) add_position: ByWeight,
    pub(super) activate: ByOutput,
    pub(super) gated_activation: ByOutput,
    pub(super) add_bias: Function,
    pub(super) convert_bf16: Function,
    /// f32 rows to f32 or bf16.
    pub(super) gather_rows: ByOutput,
    pub(super) rms_norm: ByOutput,
    pub(super) layer_norm: ByOutput,
    pub(super) rope_write_kv: Function,
    pub(super) paged_attention: ByOutput,
    pub(super) gemm: ByWeight,
    pub(super) fill_blocks: Function,
    /// Functions live as long as these.
    _modules: Vec<Module>,
}

impl Kernels {
    /// Compiles and loads what `compute` needs.
    pub(super) fn load(device: &Device, compute: ComputeType) -> Result<Self> {
        let cubins = compile(PROGRAMS, HEADERS, device)?;
        let modules = cubins.iter().map(|cubin| Module::load(cubin));
        let modules = modules.collect::<Result<Vec<_>>>()?;
        let find = |program: &str, name: &str| {
            let at = PROGRAMS.iter().position(|source| source.name == program);
            let module = at.and_then(|at| modules.get(at)).ok_or_else(|| unknown(program))?;
            module.function(&CString::new(name).map_err(|_| unknown(name))?)
        };
        let by_weight = |program: &str, name: &str| -> Result<ByWeight> {
            let one = |suffix| find(program, &format!("{name}_{suffix}"));
            Ok(ByWeight([one("f32")?, one("bf16")?, one("f16")?]))
        };
        let by_output = |program: &str, name: &str| -> Result<ByOutput> {
            let one = |suffix| find(program, &format!("{name}_{suffix}"));
            Ok(ByOutput([one("f32")?, one("bf16")?]))
        };
        let cache = match compute {
            ComputeType::F32 => "f32",
            ComputeType::Bf16 => "bf16",
        };
        // There is no attention over an f32 cache for bf16 layers: that combination does not occur.
        let paged_attention = match compute {
            ComputeType::F32 => ByOutput([find("attention.cu", "paged_attention_f32_f32")?; 2]),
            ComputeType::Bf16 => by_output("attention.cu", "paged_attention_bf16")?,
        };
        Ok(Self {
            embed: by_weight("elementwise.cu", "embed")?,
            add_position: by_weight("elementwise.cu", "add_position")?,
            activate: by_output("elementwise.cu", "activate")?,
            gated_activation: by_output("elementwise.cu", "gated_activation")?,
            add_bias: find("elementwise.cu", "add_bias")?,
            convert_bf16: find("elementwise.cu", "convert_bf16")?,
            gather_rows: by_output("elementwise.cu", "gather_rows_f32")?,
            rms_norm: by_output("norm.cu", "rms_norm")?,
            layer_norm: by_output("norm.cu", "layer_norm")?,
            rope_write_kv: find("rope.cu", &format!("rope_write_kv_{cache}"))?,
            paged_attention,
            gemm: by_weight("gemm.cu", "gemm")?,
            fill_blocks: find("blocks.cu", &format!("fill_blocks_{cache}"))?,
            _modules: modules,
        })
    }
}

fn unknown(name: &str) -> Error {
    Error::new(ErrorKind::Panic, format!("there is no kernel {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_kernels_is_compiled_or_included() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let known = |list: &[Source]| list.iter().any(|source| source.name == name);
            match name.rsplit('.').next().unwrap() {
                "cu" => assert!(known(PROGRAMS), "{name} is compiled"),
                "cuh" => assert!(known(HEADERS), "{name} is handed to the compiler"),
                _ => {}
            }
        }
    }
}
