//! Log probabilities of tokens, as events carry them and `sampling` makes them.

use crate::ids::TokenId;

/// The log probability of a token, and of the most likely ones at its place.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token itself. A prompt's first token has none.
    pub chosen: Option<Logprob>,
    /// The most likely tokens, best first.
    pub top: Vec<Logprob>,
}

/// A token's log probability under the model's own distribution (before penalties and such).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logprob {
    /// The token.
    pub token_id: TokenId,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// 1 for the most likely token.
    pub rank: u32,
}
