//! `min_tokens`: the tokens that would end the sequence cannot be chosen too early.

use crate::ids::TokenId;

/// Tokens still to generate before any stop token may be chosen.
#[derive(Debug)]
pub(super) struct MinTokens {
    remaining: usize,
    stop_ids: Vec<TokenId>,
}

impl MinTokens {
    pub(super) fn new(min_tokens: usize, stop_ids: &[TokenId]) -> Self {
        let stop_ids = if min_tokens > 0 { stop_ids.to_vec() } else { Vec::new() };
        Self { remaining: min_tokens, stop_ids }
    }

    /// What is masked after `pending` more tokens.
    pub(super) fn hidden(&self, pending: usize) -> &[TokenId] {
        if self.remaining > pending { &self.stop_ids } else { &[] }
    }

    /// One more token was generated.
    pub(super) fn accept(&mut self) {
        self.remaining = self.remaining.saturating_sub(1);
    }

    /// Masks the stop tokens while it is too early for them.
    pub(super) fn mask(&self, logits: &mut [f32]) {
        for id in self.hidden(0) {
            if let Some(x) = logits.get_mut(id.index()) {
                *x = f32::NEG_INFINITY;
            }
        }
    }
}
