//! Blocks of rows: a step that is cut into them gives the bits of the step that is not.

use super::*;
use crate::backend::{Activation, RopeSpec};

const HEADS: Heads = Heads { num_heads: 4, num_kv_heads: 2, head_dim: 16 };
const HIDDEN: usize = 48;
const WIDE: usize = 96;
const VOCAB: usize = 50;
const ROWS: usize = 45;

/// Two decoder layers, positions looked up, an activation in place: logits of some rows.
fn logits(b: &mut CpuBackend, block_rows: Option<usize>) -> Vec<u32> {
    let mut seed = 0;
    let mut linear = |b: &mut CpuBackend, n, k, role| {
        seed += 1;
        let halves = if role == LinearRole::GateUp { 2 } else { 1 };
        let part = |i| Matrix::random(DType::Bf16, n / halves, k, 100 * i + seed).part(None);
        let parts = (0..halves as u64).map(part).collect();
        b.pack_linear(LinearSpec { parts, role }).unwrap()
    };
    let table = linear(b, VOCAB, HIDDEN, LinearRole::Vocabulary);
    let places = linear(b, ROWS, HIDDEN, LinearRole::Positions);
    let layers: Vec<[LinearId; 4]> = (0..2)
        .map(|_| {
            [
                (HEADS.qkv_width(), HIDDEN, LinearRole::Hidden),
                (HIDDEN, HEADS.q_width(), LinearRole::Hidden),
                (2 * WIDE, HIDDEN, LinearRole::GateUp),
                (HIDDEN, WIDE, LinearRole::Hidden),
            ]
            .map(|(n, k, role)| linear(b, n, k, role))
        })
        .collect();
    let inv_freq = vec![1.0, 0.3, 0.1, 0.03];
    let rope = RopeSpec { inv_freq, magnitude: 1.0, max_positions: 64 };
    let rope = Some(b.rope_table(&rope).unwrap());
    let norm = b.vector(Numbers::new(77).take(HIDDEN)).unwrap();
    let [x, normed, qkv, attended, gates, act] =
        [HIDDEN, HIDDEN, HEADS.qkv_width(), HEADS.q_width(), 2 * WIDE, WIDE]
            .map(|width| b.activation(width));
    let limits =
        StepLimits { max_tokens: ROWS, max_seqs: 2, max_logits_rows: 8, max_block_table: 8 };
    let (num_kv_heads, head_dim) = (HEADS.num_kv_heads, HEADS.head_dim);
    let group = KvGroup { layers: vec![0, 1], num_kv_heads, head_dim };
    b.allocate(limits, &KvSpec { groups: vec![group], block_size: 16 }, 8).unwrap();
    if let Some(rows) = block_rows {
        b.block_rows = rows;
    }
    begin_prompt(b, ROWS);
    b.embed(table, x);
    b.add_position(places, x);
    for (i, [to_qkv, out, gate_up, down]) in layers.into_iter().enumerate() {
        b.rms_norm(x, norm, 1e-6, normed);
        b.linear(to_qkv, normed, qkv);
        b.rope_write_kv(i, qkv, &RopeWrite { heads: HEADS, qk_norm: None, rope });
        b.paged_attention(
            i,
            qkv,
            &Attention { heads: HEADS, scale: 0.25, sliding_window: None },
            attended,
        );
        b.linear_add(out, attended, x);
        b.rms_norm(x, norm, 1e-6, normed);
        b.linear(gate_up, normed, gates);
        b.gated_activation(gates, Activation::Silu, act);
        b.linear_add(down, act, x);
        b.activate(x, Activation::Gelu);
    }
    b.rms_norm(x, norm, 1e-6, normed);
    b.logits(table, normed, &[0, 7, 8, 31, 44]);
    b.finish_step().unwrap();
    let count = 5 * VOCAB;
    // SAFETY: the rows asked for are there, and no program runs.
    bits(unsafe { std::slice::from_raw_parts(b.workspace.logits.as_ptr(), count) })
}

#[test]
fn blocks_of_rows_do_not_change_a_bit() {
    for isa in paths() {
        for (compute, kind) in [
            (ComputeType::F32, None),
            (ComputeType::Bf16, None),
            (ComputeType::Bf16, Some(Quantization::Int8)),
            (ComputeType::Bf16, Some(Quantization::Int4)),
        ] {
            let whole = logits(&mut quantized(compute, kind, isa, 1), None);
            assert!(whole.iter().any(|bits| f32::from_bits(*bits).abs() > 1e-3));
            for (rows, threads) in [(8, 1), (16, 2), (24, 3), (40, 2)] {
                let cut = logits(&mut quantized(compute, kind, isa, threads), Some(rows));
                assert_eq!(cut, whole, "{isa:?} {compute:?} {kind:?} {rows} {threads}");
            }
        }
    }
}
