//! `allowed_token_ids` and `logit_bias`.

use crate::ids::TokenId;

/// Masks every token that is not in `allowed`, which is ascending. Ids past the row are ignored.
pub(super) fn keep_only(logits: &mut [f32], allowed: &[TokenId]) {
    let vocab_size = logits.len();
    let mut next = 0;
    for id in allowed.iter().map(|id| id.index()).take_while(|&id| id < vocab_size) {
        logits[next..id].fill(f32::NEG_INFINITY);
        next = id + 1;
    }
    logits[next..].fill(f32::NEG_INFINITY);
}

/// Adds each token's bias. Ids past the row are ignored.
pub(super) fn add(logits: &mut [f32], bias: &[(TokenId, f32)]) {
    for &(id, bias) in bias {
        if let Some(x) = logits.get_mut(id.index()) {
            // A logit near the type's end must not become infinite.
            *x = (*x + bias).min(f32::MAX);
        }
    }
}
