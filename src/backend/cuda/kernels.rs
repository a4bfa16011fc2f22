//! The kernels: their text, and the functions that come of it.

use std::ffi::CString;

use super::compile::compile;
use super::driver::{Function, Module};
use super::prebuilt;
use super::probe::Device;
use super::work::{HEAD_DIMS, tile_rows};
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

/// Each becomes a cubin, but for `HOPPER` on other devices.
pub(super) const PROGRAMS: &[Source] = sources![
    "attention.cu",
    "blocks.cu",
    "decode.cu",
    "elementwise.cu",
    "gemm.cu",
    "norm.cu",
    "prefill.cu",
    "prefill_sm90.cu",
    "rope.cu",
    "sample.cu",
    "sampling.cu",
    "skinny.cu",
];
/// For devices of compute capability 9.0 alone.
const HOPPER: &str = "prefill_sm90.cu";
/// What programs include.
pub(super) const HEADERS: &[Source] = sources![
    "args.cuh",
    "candidates.cuh",
    "histogram.cuh",
    "noise.cuh",
    "ptx.cuh",
    "reduce.cuh",
    "row.cuh",
    "sampler.cuh",
    "tensor.cuh",
    "types.cuh",
];

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

/// Kernels of bf16 that use tensor cores.
pub(super) struct Tensor {
    /// By place in `HEAD_DIMS`.
    pub(super) decode_attention: [ByOutput; HEAD_DIMS.len()],
    /// By place in `HEAD_DIMS`.
    pub(super) prefill_attention: [ByOutput; HEAD_DIMS.len()],
    /// The same for Hopper, where the device is one.
    pub(super) prefill_attention_sm90: Option<[ByOutput; HEAD_DIMS.len()]>,
    pub(super) attention_merge: ByOutput,
    /// Products of at most 8 and at most 16 rows.
    pub(super) skinny_gemm: [Function; 2],
    pub(super) skinny_sum: Function,
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
    pub(super) sample: Function,
    pub(super) edit_logits: Function,
    pub(super) row_scale: Function,
    pub(super) top_logprobs: Function,
    pub(super) token_logprobs: Function,
    pub(super) take_tokens: Function,
    /// In bfloat16.
    pub(super) tensor: Option<Tensor>,
    /// Functions live as long as these.
    _modules: Modules,
}

/// The programs that a device runs.
pub(super) fn programs(device: &Device) -> Vec<Source> {
    let runs = |source: &&Source| source.name != HOPPER || device.is_hopper();
    PROGRAMS.iter().filter(runs).copied().collect()
}

/// The cubins, loaded, by program.
struct Modules(Vec<(&'static str, Module)>);

impl Modules {
    fn find(&self, program: &str, name: &str) -> Result<Function> {
        let module = self.0.iter().find(|(name, _)| *name == program);
        let (_, module) = module.ok_or_else(|| unknown(program))?;
        module.function(&CString::new(name).map_err(|_| unknown(name))?)
    }

    fn by_weight(&self, program: &str, name: &str) -> Result<ByWeight> {
        let one = |suffix| self.find(program, &format!("{name}_{suffix}"));
        Ok(ByWeight([one("f32")?, one("bf16")?, one("f16")?]))
    }

    fn by_output(&self, program: &str, name: &str) -> Result<ByOutput> {
        let one = |suffix| self.find(program, &format!("{name}_{suffix}"));
        Ok(ByOutput([one("f32")?, one("bf16")?]))
    }

    /// By place in `HEAD_DIMS`; each may have `shared` bytes of shared memory.
    fn by_head_dim(
        &self,
        program: &str,
        name: &str,
        shared: fn(usize) -> u32,
    ) -> Result<[ByOutput; HEAD_DIMS.len()]> {
        let mut found = Vec::new();
        for head_dim in HEAD_DIMS {
            let functions = self.by_output(program, &format!("{name}_{head_dim}"))?;
            functions.0.iter().try_for_each(|f| f.allow_shared(shared(head_dim)))?;
            found.push(functions);
        }
        found.try_into().map_err(|_| unknown(name))
    }
}

impl Kernels {
    /// Compiles and loads what `compute` needs.
    pub(super) fn load(device: &Device, compute: ComputeType) -> Result<Self> {
        let programs = programs(device);
        let load = |(program, cubin): (&Source, &[u8])| Ok((program.name, Module::load(cubin)?));
        let loaded: Result<_> = match prebuilt::cubins(&programs, &device.architecture()) {
            Some(cubins) => programs.iter().zip(cubins).map(load).collect(),
            None => {
                let cubins = compile(&programs, HEADERS, device)?;
                let cubins = cubins.iter().map(Vec::as_slice);
                programs.iter().zip(cubins).map(load).collect()
            }
        };
        let modules = Modules(loaded?);
        let (cache, tensor) = match compute {
            ComputeType::F32 => ("f32", None),
            ComputeType::Bf16 => ("bf16", Some(Tensor::find(&modules, device)?)),
        };
        // There is no attention over an f32 cache for bf16 layers: that combination does not occur.
        let paged_attention = match compute {
            ComputeType::F32 => {
                ByOutput([modules.find("attention.cu", "paged_attention_f32_f32")?; 2])
            }
            ComputeType::Bf16 => modules.by_output("attention.cu", "paged_attention_bf16")?,
        };
        Ok(Self {
            embed: modules.by_weight("elementwise.cu", "embed")?,
            add_position: modules.by_weight("elementwise.cu", "add_position")?,
            activate: modules.by_output("elementwise.cu", "activate")?,
            gated_activation: modules.by_output("elementwise.cu", "gated_activation")?,
            add_bias: modules.find("elementwise.cu", "add_bias")?,
            convert_bf16: modules.find("elementwise.cu", "convert_bf16")?,
            gather_rows: modules.by_output("elementwise.cu", "gather_rows_f32")?,
            rms_norm: modules.by_output("norm.cu", "rms_norm")?,
            layer_norm: modules.by_output("norm.cu", "layer_norm")?,
            rope_write_kv: modules.find("rope.cu", &format!("rope_write_kv_{cache}"))?,
            paged_attention,
            gemm: modules.by_weight("gemm.cu", "gemm")?,
            fill_blocks: modules.find("blocks.cu", &format!("fill_blocks_{cache}"))?,
            sample: modules.find("sample.cu", "sample")?,
            edit_logits: modules.find("sample.cu", "edit_logits")?,
            row_scale: modules.find("sample.cu", "row_scale")?,
            top_logprobs: modules.find("sample.cu", "top_logprobs")?,
            token_logprobs: modules.find("sample.cu", "token_logprobs")?,
            take_tokens: modules.find("sample.cu", "take_tokens")?,
            tensor,
            _modules: modules,
        })
    }
}

impl Tensor {
    fn find(modules: &Modules, device: &Device) -> Result<Self> {
        let hopper = || modules.by_head_dim(HOPPER, "prefill_attention_sm90", prefill_sm90_shared);
        let skinny = |rows| modules.find("skinny.cu", &format!("skinny_gemm_{rows}"));
        Ok(Self {
            decode_attention: modules.by_head_dim(
                "decode.cu",
                "decode_attention",
                decode_shared,
            )?,
            prefill_attention: modules.by_head_dim(
                "prefill.cu",
                "prefill_attention",
                prefill_shared,
            )?,
            prefill_attention_sm90: device.is_hopper().then(hopper).transpose()?,
            attention_merge: modules.by_output("decode.cu", "attention_merge")?,
            skinny_gemm: [skinny(8)?, skinny(16)?],
            skinny_sum: modules.find("skinny.cu", "skinny_sum")?,
        })
    }
}

/// Threads of a block of `decode_attention_D`.
pub(super) fn decode_block(head_dim: usize) -> u32 {
    if head_dim < 192 { 128 } else { 64 }
}

/// Bytes of shared memory of `decode_attention_D`.
pub(super) fn decode_shared(head_dim: usize) -> u32 {
    (decode_block(head_dim) / 32 * 64 + 16) * (head_dim as u32 + 8) * 2
}

/// Threads of a block of `prefill_attention_D`: a warp takes 16 rows.
pub(super) fn prefill_block(head_dim: usize) -> u32 {
    tile_rows(head_dim) as u32 / 16 * 32
}

/// Bytes of shared memory of `prefill_attention_D`.
pub(super) fn prefill_shared(head_dim: usize) -> u32 {
    (if head_dim < 192 { 256 } else { 192 }) * (head_dim as u32 + 8) * 2
}

/// Threads of a block of `prefill_attention_sm90_D`.
pub(super) const PREFILL_SM90_BLOCK: u32 = 384;

/// Bytes of shared memory of `prefill_attention_sm90_D`: queries, two stages of keys and values,
/// barriers.
pub(super) fn prefill_sm90_shared(head_dim: usize) -> u32 {
    2 * (128 + 4 * positions_of_tile(head_dim)) * head_dim as u32 + 64
}

/// Positions of a tile of `prefill_attention_sm90_D`.
pub(super) fn positions_of_tile(head_dim: usize) -> u32 {
    if head_dim <= 128 { 128 } else { 64 }
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
