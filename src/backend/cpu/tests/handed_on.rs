//! What attention hands to the linear layer behind it in that layer's own form gives the bits of
//! what it writes whole.

use super::*;
use crate::backend::RopeWrite;

const ROWS: usize = 41;

/// The outputs of two layers that read attention. With `shared` both read the same, which is then
/// kept as it is; else each has an attention of its own, and the first may be handed on. Also how
/// many were.
fn run(b: &mut CpuBackend, heads: Heads, shared: bool) -> (Vec<u32>, usize) {
    let layer = |b: &mut CpuBackend, seed| {
        let part = Matrix::random(DType::Bf16, 33, heads.q_width(), seed).part(None);
        b.pack_linear(LinearSpec { parts: vec![part], role: LinearRole::Hidden }).unwrap()
    };
    let layers = [layer(b, 1), layer(b, 2)];
    let [qkv, attended, first, second] =
        [heads.qkv_width(), heads.q_width(), 33, 33].map(|width| b.activation(width));
    allocate(b, ROWS, heads, (16, 4));
    let mut values = Numbers::new(5).take(ROWS * heads.qkv_width());
    values.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v * 2.0).to_f32());
    write(b, qkv, &values);
    begin_prompt(b, ROWS);
    b.rope_write_kv(0, qkv, &RopeWrite { heads, qk_norm: None, rope: None });
    let attention = Attention { heads, scale: 0.25, sliding_window: None };
    b.paged_attention(0, qkv, &attention, attended);
    b.linear(layers[0], attended, first);
    if !shared {
        b.paged_attention(0, qkv, &attention, attended);
    }
    b.linear(layers[1], attended, second);
    b.find_unread();
    let is_handed_on = |op: &&Op| matches!(op, Op::Attention(a) if a.form != InputForm::F32);
    let handed_on = b.ops.iter().filter(is_handed_on).count();
    b.finish_step().unwrap();
    (bits(&[read(b, first, ROWS), read(b, second, ROWS)].concat()), handed_on)
}

#[test]
fn attention_in_the_next_layers_form_gives_the_same_bits() {
    let mut all = 0;
    for isa in paths() {
        for (compute, kind) in [
            (ComputeType::F32, None),
            (ComputeType::Bf16, None),
            (ComputeType::Bf16, Some(Quantization::Int8)),
            (ComputeType::Bf16, Some(Quantization::Int4)),
        ] {
            for (num_heads, num_kv_heads, head_dim) in
                [(2, 1, 128), (4, 2, 64), (4, 4, 80), (8, 2, 16), (3, 1, 20), (2, 2, 256)]
            {
                let heads = Heads { num_heads, num_kv_heads, head_dim };
                for threads in [1, 3] {
                    let run =
                        |shared| run(&mut quantized(compute, kind, isa, threads), heads, shared);
                    let ((kept, none), (made, some)) = (run(true), run(false));
                    let name = format!("{isa:?} {compute:?} {kind:?} {heads:?} {threads}");
                    assert_eq!((none, &kept), (0, &made), "{name}");
                    assert!(kept.iter().any(|bits| f32::from_bits(*bits).abs() > 1e-3), "{name}");
                    let wanted = match (compute, kind) {
                        (ComputeType::F32, _) => false,
                        (_, Some(Quantization::Int8)) => head_dim % 128 == 0,
                        (_, Some(Quantization::Int4)) => {
                            head_dim.is_multiple_of(32) && heads.q_width().is_multiple_of(128)
                        }
                        _ => head_dim.is_multiple_of(16) && heads.q_width().is_multiple_of(32),
                    };
                    assert_eq!(some > 0, wanted, "{name}");
                    all += some;
                }
            }
        }
    }
    assert!(all > 0);
}
