//! Attention of one row over the cache, and what is done to queries and keys before.

use crate::backend::{Attention, RopeSpec, RopeWrite};
use crate::ids::BlockId;

use super::kv::KvCache;
use super::{ReferenceBackend, math};

/// Where a row stands.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// Attention layer.
    pub(super) layer: usize,
    /// The sequence's block table.
    pub(super) blocks: &'a [BlockId],
    /// The row's position.
    pub(super) position: usize,
}

/// Norms and rotates the query and key heads of one QKV row in place.
pub(super) fn norm_and_rotate(
    backend: &ReferenceBackend,
    spec: &RopeWrite,
    position: u32,
    qkv: &mut [f32],
) {
    let (num_heads, num_kv_heads) = (spec.heads.num_heads, spec.heads.num_kv_heads);
    let heads = qkv.chunks_exact_mut(spec.heads.head_dim).take(num_heads + num_kv_heads);
    for (i, head) in heads.enumerate() {
        if let Some((q_norm, k_norm, eps)) = spec.qk_norm {
            let weight = if i < num_heads { q_norm } else { k_norm };
            math::rms_norm_in_place(head, &backend.vectors[weight.0 as usize], eps);
        }
        if let Some(rope) = spec.rope {
            rotate(head, &backend.ropes[rope.0 as usize], position);
        }
    }
}

/// Rotates the pairs `(i, i + rotary_dim / 2)` of one head.
fn rotate(head: &mut [f32], rope: &RopeSpec, position: u32) {
    assert!((position as usize) < rope.max_positions, "the table covers the position");
    let half = rope.inv_freq.len();
    assert!(2 * half <= head.len(), "the rotation is within the head");
    for (i, frequency) in rope.inv_freq.iter().enumerate() {
        let (sin, cos) = (f64::from(position) * frequency).sin_cos();
        let magnitude = f64::from(rope.magnitude);
        let (sin, cos) = (sin * magnitude, cos * magnitude);
        let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
        head[i] = (a * cos - b * sin) as f32;
        head[i + half] = (b * cos + a * sin) as f32;
    }
}

/// `out = softmax(q K^T * scale) V` for every query head of the row. Only positions that the row
/// may see are read.
pub(super) fn attend(
    kv: &KvCache,
    spec: &Attention,
    place: Place<'_>,
    query: &[f32],
    out: &mut [f32],
) {
    let head_dim = spec.heads.head_dim;
    let per_kv_head = spec.heads.num_heads / spec.heads.num_kv_heads;
    let end = place.position + 1;
    let start = spec.sliding_window.map_or(0, |window| end.saturating_sub(window));
    for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
        let at = head / per_kv_head * head_dim..(head / per_kv_head + 1) * head_dim;
        let query = &query[head * head_dim..(head + 1) * head_dim];
        let score = |position| {
            let (keys, _) = kv.read(place.layer, place.blocks, position);
            math::dot(query, &keys[at.clone()]) * f64::from(spec.scale)
        };
        let scores: Vec<f64> = (start..end).map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut mixed = vec![0.0_f64; head_dim];
        for (position, weight) in (start..end).zip(weights) {
            let (_, values) = kv.read(place.layer, place.blocks, position);
            for (m, &v) in mixed.iter_mut().zip(&values[at.clone()]) {
                *m += weight / sum * f64::from(v);
            }
        }
        for (o, m) in out.iter_mut().zip(mixed) {
            *o = m as f32;
        }
    }
}
