//! What rules do to a row of logits, and what a row says: as plain data, for whoever has the row.

use std::sync::Arc;

use crate::ids::TokenId;

/// Rules that change a row's logits, in the order in which they apply. Tokens past the row are
/// ignored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogitChanges {
    /// All others are masked; ascending.
    pub allowed: Option<Arc<[TokenId]>>,
    /// Added to the logits of distinct tokens; -inf masks one.
    pub add: Vec<(TokenId, f32)>,
    /// Distinct tokens that penalties concern, with their occurrences in the output.
    pub seen: Vec<(TokenId, u32)>,
    /// 1 is off.
    pub repetition: f32,
    /// 0 is off.
    pub frequency: f32,
    /// 0 is off.
    pub presence: f32,
}

/// What a row's logits say about a token, before changes.
#[derive(Clone, Debug, PartialEq)]
pub struct RowScores {
    /// The largest logit; NaN where the logits are none that a healthy model gives.
    pub max: f32,
    /// The sum of `exp(logit - max)`, bit for bit as `sampling` adds it.
    pub sum: f64,
    /// The token's logit.
    pub logit: f32,
    /// 1 and how many logits are larger.
    pub rank: u32,
    /// The most likely tokens and their logits, best first.
    pub top: Vec<(TokenId, f32)>,
}
