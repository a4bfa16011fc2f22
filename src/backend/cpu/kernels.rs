//! The kernels of each instruction path, instantiated with its features, as one table.
#![allow(unsafe_code, reason = "kernels work through pointers and need CPU features")]

use std::ops::Range;

use super::attention::cached::Twos;
use super::attention::plan::Work;
use super::attention::{AttentionArgs, Scratch};
use super::elementwise::{ActivateArgs, GatedArgs};
use super::kv::{KvType, LayerKv};
use super::linear::quantized::{Int4, Int6, Int8, Quantized};
use super::linear::tiles::{Chain, run};
use super::linear::{ConvertArgs, LinearArgs, Wide};
use super::norm::NormArgs;
use super::rope::RopeArgs;
use super::simd::portable::Portable;
use super::{attention, elementwise, linear, norm, rope};
use crate::config::CpuIsa;

/// A kernel over a range of units (rows, panels, heads): safe to call when the pointers in its
/// arguments hold what their types say, no other thread works on the same units, and the machine
/// has the path's features.
pub(crate) type Kernel<A> = unsafe fn(&A, Range<usize>);

/// A kernel over a work of attention's plan, with the calling thread's memory.
pub(crate) type Attend = unsafe fn(&AttentionArgs<'_>, Work, &mut Scratch);

/// Attention with products of one type.
#[derive(Clone, Copy)]
struct Attends {
    /// Over a cache of that type.
    plain: Attend,
    /// Over one of int8.
    int8: Attend,
}

/// One path's kernels.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    /// Linear layers, by `pack::Storage` as an index; units are panels.
    pub(crate) linear: [Kernel<LinearArgs>; 7],
    /// Whether linear layers in bf16 take their inputs as bf16 (else as f32 holding bf16 values).
    pub(crate) bf16_inputs: bool,
    /// Rounds, copies or gathers the inputs of linear layers; units are rows.
    pub(crate) convert: Kernel<ConvertArgs>,
    /// RMS norm and layer norm; units are rows.
    pub(crate) rms_norm: Kernel<NormArgs>,
    pub(crate) layer_norm: Kernel<NormArgs>,
    /// Rope and the writing of K and V; units are heads of rows.
    pub(crate) rope_write: Kernel<RopeArgs>,
    /// Gated activation; units are rows.
    pub(crate) gated: Kernel<GatedArgs>,
    /// Activation in place; units are elements.
    pub(crate) activate: Kernel<ActivateArgs>,
    /// One work item of attention for one KV head, by `LayerKv::bf16`.
    attend: [Attends; 2],
    /// Merges the spans of one split tile for a range of query heads.
    pub(crate) merge: unsafe fn(&AttentionArgs<'_>, usize, Range<usize>),
}

impl Kernels {
    /// Attention over a cache.
    pub(crate) fn attend_of(&self, kv: &LayerKv) -> Attend {
        let attends = &self.attend[usize::from(kv.bf16)];
        if kv.kind == KvType::Int8 { attends.int8 } else { attends.plain }
    }

    /// With what bf16 products replace: linear layers, which take their inputs so, and attention.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    const fn with_bf16(self, linear: Kernel<LinearArgs>, attends: Attends) -> Self {
        let [_, f32, f16, bf16_wide, int8, int4, int6] = self.linear;
        Self {
            linear: [linear, f32, f16, bf16_wide, int8, int4, int6],
            bf16_inputs: true,
            attend: [self.attend[0], attends],
            ..self
        }
    }

    /// With other layers of 8, 4 and 6 bits.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    const fn with_integers(self, [int8, int4, int6]: [Kernel<LinearArgs>; 3]) -> Self {
        let [bf16, f32, f16, bf16_wide, ..] = self.linear;
        Self { linear: [bf16, f32, f16, bf16_wide, int8, int4, int6], ..self }
    }
}

/// Whether this build has the paths of AVX-512 and what builds on it. They are most of what the
/// compiler has to do, so that a development build on a machine without them has shells that
/// nobody calls (`build.rs`).
pub(crate) const HAS_AVX512: bool = cfg!(vrust_avx512);

/// Instantiates every generic kernel inside functions that have the path's features, where
/// `compiled` says so.
///
/// `rows x panels` is the register tile of linear layers, `int_rows x int_panels` that of quantized
/// ones, which sum twice, beside each the tile of gated ones, as `linear::tiles::run` wants it, and
/// `vectors x groups` that of attention. `int` are the lanes that sum products of whole bytes,
/// `nibbles` those of a group of nibbles.
macro_rules! instantiate {
    ($name:ident, $compiled:expr, [$($feature:meta),*], $simd:ty, $int:ty, $nibbles:ty,
     $bf16:ty, $bf16_inputs:literal,
     $rows:literal x $panels:literal, $g_rows:literal x $g_panels:literal,
     $int_rows:literal x $int_panels:literal, $ig_rows:literal x $ig_panels:literal,
     $vectors:literal x $groups:literal) => {
        mod $name {
            use super::*;

            instantiate!(@kernels $compiled, [$(#[$feature])*] {
                linear_bf16(LinearArgs) = run::<Chain<$bf16>, $rows, $panels, $g_rows, $g_panels>;
                linear_f32(LinearArgs) =
                    run::<Chain<Wide<$simd, f32>>, $rows, $panels, $g_rows, $g_panels>;
                linear_f16(LinearArgs) =
                    run::<Chain<Wide<$simd, half::f16>>, $rows, $panels, $g_rows, $g_panels>;
                linear_bf16_wide(LinearArgs) =
                    run::<Chain<Wide<$simd, half::bf16>>, $rows, $panels, $g_rows, $g_panels>;
                linear_int8(LinearArgs) =
                    run::<Quantized<$int, Int8>, $int_rows, $int_panels, $ig_rows, $ig_panels>;
                linear_int4(LinearArgs) =
                    run::<Quantized<$nibbles, Int4>, $int_rows, $int_panels, $ig_rows, $ig_panels>;
                linear_int6(LinearArgs) =
                    run::<Quantized<$int, Int6>, $int_rows, $int_panels, $ig_rows, $ig_panels>;
                convert(ConvertArgs) = linear::convert::<$simd>;
                rms_norm(NormArgs) = norm::rms_norm::<$simd>;
                layer_norm(NormArgs) = norm::layer_norm::<$simd>;
                rope_write(RopeArgs) = rope::rope_write::<$simd>;
                gated(GatedArgs) = elementwise::gated::<$simd>;
                activate(ActivateArgs) = elementwise::activate::<$simd>;
            });

            instantiate!(@attend $compiled, [$(#[$feature])*] {
                attend_f32 = Wide<$simd, f32>, $vectors, $groups;
                attend_bf16 = $bf16, $vectors, $groups;
                attend_int8 = Twos<$simd, i8>, $vectors, $groups;
            });

            $(#[$feature])*
            unsafe fn merge(a: &AttentionArgs<'_>, tile: usize, heads: Range<usize>) {
                // SAFETY: the caller keeps the contract of `Kernel`.
                instantiate!(@body $compiled, unsafe { attention::merge::<$simd>(a, tile, heads) })
            }

            pub(super) const KERNELS: Kernels = Kernels {
                linear: [
                    linear_bf16, linear_f32, linear_f16, linear_bf16_wide, linear_int8, linear_int4,
                    linear_int6,
                ],
                bf16_inputs: $bf16_inputs,
                convert,
                rms_norm,
                layer_norm,
                rope_write,
                gated,
                activate,
                attend: [
                    Attends { plain: attend_f32, int8: attend_int8 },
                    Attends { plain: attend_bf16, int8: attend_int8 },
                ],
                merge,
            };
        }
    };
    (@body $compiled:expr, $body:expr) => {
        if $compiled { $body } else { unreachable!("a path that this build does not have") }
    };
    (@attend $compiled:expr, $features:tt
        { $($name:ident = $panel:ty, $vectors:literal, $groups:literal;)* }) => {
        $(instantiate!(@attend_one $compiled, $features $name = $panel, $vectors, $groups);)*
    };
    (@attend_one $compiled:expr, [$(#[$feature:meta])*]
        $name:ident = $panel:ty, $vectors:literal, $groups:literal) => {
        $(#[$feature])*
        unsafe fn $name(a: &AttentionArgs<'_>, work: Work, s: &mut Scratch) {
            // SAFETY: the caller keeps the contract of `Kernel`.
            instantiate!(@body $compiled, unsafe {
                attention::attend::<$panel, $vectors, $groups>(a, work, s)
            })
        }
    };
    (@kernels $compiled:expr, $features:tt { $($kernel:ident($args:ty) = $body:expr;)* }) => {
        $(instantiate!(@kernel $compiled, $features $kernel($args) = $body);)*
    };
    (@kernel $compiled:expr, [$(#[$feature:meta])*] $kernel:ident($args:ty) = $body:expr) => {
        $(#[$feature])*
        unsafe fn $kernel(args: &$args, units: Range<usize>) {
            // SAFETY: the caller keeps the contract of `Kernel`.
            instantiate!(@body $compiled, unsafe { $body(args, units) })
        }
    };
}

instantiate!(
    portable, true, [],
    Portable, [i32; 16], [i32; 16],
    linear::Pairs<Portable>, false, 2 x 1, 2 x 1, 2 x 1, 2 x 1, 2 x 1
);

#[cfg(target_arch = "x86_64")]
use super::simd::integer::{Avx2Integer, Avx2Nibbles, Avx512Integer};
#[cfg(target_arch = "x86_64")]
use super::simd::{avx2::Avx2, avx512::Avx512};

#[cfg(target_arch = "x86_64")]
instantiate!(
    avx2, true, [target_feature(enable = "avx2,fma,f16c")],
    Avx2, Avx2Integer, Avx2Nibbles,
    linear::Pairs<Avx2>, false, 5 x 1, 5 x 1, 5 x 1, 5 x 1, 5 x 1
);
#[cfg(target_arch = "x86_64")]
instantiate!(
    avx512, HAS_AVX512,
    [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")],
    Avx512, Avx512Integer, Avx512Integer,
    linear::Pairs<Avx512>, false, 8 x 3, 8 x 2, 6 x 2, 6 x 2, 8 x 2
);

/// What bf16 products replace.
#[cfg(target_arch = "x86_64")]
mod avx512bf16 {
    use super::attention::cached::DotBytes;
    use super::linear::avx512bf16::Dot;
    use super::*;

    instantiate!(@kernels HAS_AVX512, [
        #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    ] {
        linear_bf16(LinearArgs) = run::<Chain<Dot<false>>, 8, 3, 6, 4>;
    });
    instantiate!(@attend HAS_AVX512, [
        #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    ] {
        attend_bf16 = Dot<false>, 8, 2;
        attend_int8 = DotBytes, 8, 2;
    });

    pub(super) const KERNELS: Kernels =
        avx512::KERNELS.with_bf16(linear_bf16, Attends { plain: attend_bf16, int8: attend_int8 });
}

/// What VNNI replaces, on whichever AVX-512 path: integer sums are the same bits.
#[cfg(target_arch = "x86_64")]
mod vnni {
    use super::*;
    use crate::backend::cpu::simd::integer::Vnni;

    instantiate!(@kernels HAS_AVX512, [
        #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    ] {
        int8(LinearArgs) = run::<Quantized<Vnni, Int8>, 6, 2, 6, 2>;
        int4(LinearArgs) = run::<Quantized<Vnni, Int4>, 6, 2, 6, 2>;
        int6(LinearArgs) = run::<Quantized<Vnni, Int6>, 6, 2, 6, 2>;
    });

    pub(super) const INTEGERS: [Kernel<LinearArgs>; 3] = [int8, int4, int6];
}

/// Linear layers and, in bf16, attention by tiles; the rest is as on AVX-512.
#[cfg(target_arch = "x86_64")]
mod amx {
    use super::linear::amx::{Bf16, run};
    use super::linear::amx_int8::Bytes;
    use super::linear::avx512bf16::Dot;
    use super::*;

    instantiate!(@kernels HAS_AVX512, [
        #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    ] {
        linear_bf16(LinearArgs) = run::<Bf16>;
    });
    instantiate!(@kernels HAS_AVX512, [
        #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    ] {
        linear_int8(LinearArgs) = run::<Bytes<Int8>>;
        linear_int4(LinearArgs) = run::<Bytes<Int4>>;
        linear_int6(LinearArgs) = run::<Bytes<Int6>>;
    });

    instantiate!(@attend HAS_AVX512, [
        #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    ] {
        attend_tiles = Dot<true>, 8, 2;
    });

    /// Few rows go through vectors, which have them done before the weights are there; the bits
    /// are the same.
    unsafe fn either<const FORMAT: usize>(a: &LinearArgs, units: Range<usize>) {
        let kernels = if a.rows <= FEW { &vnni::INTEGERS } else { &INTEGERS };
        // SAFETY: the caller keeps the contract of `Kernel`.
        unsafe { kernels[FORMAT](a, units) }
    }

    const INTEGERS: [Kernel<LinearArgs>; 3] = [linear_int8, linear_int4, linear_int6];

    /// Rows up to which vectors multiply bytes faster than memory brings them.
    const FEW: usize = 8;

    /// The tiles have no int8 keys and values.
    const ATTENDS: Attends = Attends { plain: attend_tiles, ..avx512bf16::KERNELS.attend[1] };

    /// Tiles for everything.
    pub(super) const PLAIN: Kernels =
        avx512::KERNELS.with_bf16(linear_bf16, ATTENDS).with_integers(INTEGERS);
    pub(super) const KERNELS: Kernels =
        PLAIN.with_integers([either::<0>, either::<1>, either::<2>]);
}

#[cfg(target_arch = "aarch64")]
use super::simd::{integer::NeonDot, integer::NeonInteger, neon::Neon};

#[cfg(target_arch = "aarch64")]
instantiate!(
    neon, true, [target_feature(enable = "neon")],
    Neon, NeonInteger, NeonInteger,
    linear::Pairs<Neon>, false, 4 x 1, 4 x 1, 4 x 1, 4 x 1, 4 x 1
);

/// What bf16 products replace.
#[cfg(target_arch = "aarch64")]
mod neon_bf16 {
    use super::attention::cached::DotBytes;
    use super::linear::neon_bf16::Dot;
    use super::*;

    instantiate!(@kernels true, [#[target_feature(enable = "neon,bf16")]] {
        linear_bf16(LinearArgs) = run::<Chain<Dot>, 6, 1, 6, 1>;
    });
    instantiate!(@attend true, [#[target_feature(enable = "neon,bf16")]] {
        attend_bf16 = Dot, 4, 1;
        attend_int8 = DotBytes, 4, 1;
    });

    pub(super) const KERNELS: Kernels =
        neon::KERNELS.with_bf16(linear_bf16, Attends { plain: attend_bf16, int8: attend_int8 });
}

/// What DotProd replaces, on either NEON path: integer sums are the same bits.
#[cfg(target_arch = "aarch64")]
mod dotprod {
    use super::*;

    instantiate!(@kernels true, [#[target_feature(enable = "neon,dotprod")]] {
        int8(LinearArgs) = run::<Quantized<NeonDot, Int8>, 4, 1, 4, 1>;
        int4(LinearArgs) = run::<Quantized<NeonDot, Int4>, 4, 1, 4, 1>;
        int6(LinearArgs) = run::<Quantized<NeonDot, Int6>, 4, 1, 4, 1>;
    });

    pub(super) const INTEGERS: [Kernel<LinearArgs>; 3] = [int8, int4, int6];
}

/// The kernels of a path that `isa::choose` returned, with what else this machine has.
pub(crate) fn of(isa: CpuIsa) -> Kernels {
    let kernels = plain(isa);
    #[cfg(target_arch = "x86_64")]
    if isa == CpuIsa::Amx {
        return amx::KERNELS;
    }
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, CpuIsa::Avx512 | CpuIsa::Avx512Bf16) && is_x86_feature_detected!("avx512vnni")
    {
        return kernels.with_integers(vnni::INTEGERS);
    }
    #[cfg(target_arch = "aarch64")]
    if matches!(isa, CpuIsa::Neon | CpuIsa::NeonBf16)
        && std::arch::is_aarch64_feature_detected!("dotprod")
    {
        return kernels.with_integers(dotprod::INTEGERS);
    }
    kernels
}

/// The kernels of a path and nothing more.
pub(crate) fn plain(isa: CpuIsa) -> Kernels {
    match isa {
        #[cfg(target_arch = "x86_64")]
        CpuIsa::Amx => amx::PLAIN,
        #[cfg(target_arch = "x86_64")]
        CpuIsa::Avx512Bf16 => avx512bf16::KERNELS,
        #[cfg(target_arch = "x86_64")]
        CpuIsa::Avx512 => avx512::KERNELS,
        #[cfg(target_arch = "x86_64")]
        CpuIsa::Avx2 => avx2::KERNELS,
        #[cfg(target_arch = "aarch64")]
        CpuIsa::NeonBf16 => neon_bf16::KERNELS,
        #[cfg(target_arch = "aarch64")]
        CpuIsa::Neon => neon::KERNELS,
        _ => portable::KERNELS,
    }
}
