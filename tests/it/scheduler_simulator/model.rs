//! The model of the simulator: its next token is a function of the sequence's own tokens.

use vrust::ids::{BlockId, TokenId};
use vrust::request::FinishReason;
use vrust::scheduler::{NewSequence, StepId};

/// A sequence, as the device and the host outside the scheduler know it.
pub(super) struct Simulated {
    pub(super) new: NewSequence,
    /// Prompt and sampled tokens, as the device knows them.
    pub(super) tokens: Vec<TokenId>,
    /// By position: hash of salt and tokens up to there. What the position's slots must hold.
    pub(super) contents: Vec<u64>,
    pub(super) outputs: Vec<TokenId>,
    pub(super) finish: Option<FinishReason>,
    pub(super) gone: bool,
    pub(super) poisoned: Option<u64>,
    pub(super) held: bool,
    /// Steps up to this one computed from a wrong input for this sequence.
    pub(super) void_through: Option<StepId>,
    /// The last block tables that a batch had, by group.
    pub(super) tables: Vec<Vec<BlockId>>,
}

impl Simulated {
    pub(super) fn new(new: NewSequence, num_groups: usize) -> Self {
        let mut seq = Self {
            tokens: Vec::new(),
            contents: Vec::new(),
            outputs: Vec::new(),
            finish: None,
            gone: false,
            poisoned: None,
            held: false,
            void_through: None,
            tables: vec![Vec::new(); num_groups],
            new,
        };
        for token in seq.new.prompt.clone() {
            seq.push(token);
        }
        seq
    }

    /// Appends a token that the device knows.
    pub(super) fn push(&mut self, token: TokenId) {
        let salt = self.new.cache_salt.as_ref().map_or(1, |salt| salt.len() as u64 + 2);
        let before = self.contents.last().copied().unwrap_or(salt);
        self.tokens.push(token);
        self.contents.push(mix(before ^ u64::from(token.0 + 1).wrapping_mul(0x5851_f42d)));
    }
}

/// What a sequence yields when it runs alone.
pub(super) fn alone(new: &NewSequence) -> (Vec<TokenId>, FinishReason) {
    let mut seq = Simulated::new(new.clone(), 0);
    loop {
        let token = next_token(*seq.contents.last().unwrap());
        seq.outputs.push(token);
        if let Some(finish) = stop(new, &seq.tokens, token) {
            return (seq.outputs, finish);
        }
        seq.push(token);
    }
}

/// Whether `token` after `tokens` ends the sequence.
pub(super) fn stop(new: &NewSequence, tokens: &[TokenId], token: TokenId) -> Option<FinishReason> {
    if new.eos == Some(token) {
        Some(FinishReason::Eos)
    } else if new.stop_token_ids.contains(&token) {
        Some(FinishReason::StopToken(token))
    } else {
        let length = tokens.len() + 1 - new.prompt.len() >= new.max_tokens;
        length.then_some(FinishReason::Length)
    }
}

/// The token that follows this content.
pub(super) fn next_token(content: u64) -> TokenId {
    TokenId((mix(content ^ 0xabcd) % u64::from(VOCAB)) as u32)
}

/// Scatters bits.
pub(super) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// Few tokens, so that prompts repeat and stops are met.
pub(crate) const VOCAB: u32 = 24;
