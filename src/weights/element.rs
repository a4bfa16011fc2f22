//! Element types as safetensors names them: all known ones have a size, three can be computed with.

use crate::backend::DType;

/// An element type of a safetensors file. Tensors that a model does not use (masks, buffers) may
/// have any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElementType {
    name: &'static str,
    bits: u32,
}

impl ElementType {
    /// The type that safetensors calls `name`, if it is a known one.
    pub fn from_name(name: &str) -> Option<Self> {
        KNOWN.iter().find(|(known, _)| *known == name).map(|&(name, bits)| Self { name, bits })
    }

    /// The name that safetensors uses, such as `BF16`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Bytes of `count` elements; absent when that is no whole number or overflows.
    pub fn bytes(self, count: u64) -> Option<u64> {
        let bits = count.checked_mul(u64::from(self.bits))?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// The type as one that backends take.
    pub fn dtype(self) -> Option<DType> {
        match self.name {
            "F32" => Some(DType::F32),
            "F16" => Some(DType::F16),
            "BF16" => Some(DType::Bf16),
            _ => None,
        }
    }
}

/// Names and bits of one element.
const KNOWN: &[(&str, u32)] = &[
    ("BOOL", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("U8", 8),
    ("I8", 8),
    ("F8_E4M3", 8),
    ("F8_E5M2", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("U16", 16),
    ("I16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("U32", 32),
    ("I32", 32),
    ("F32", 32),
    ("U64", 64),
    ("I64", 64),
    ("F64", 64),
    ("C64", 64),
];
