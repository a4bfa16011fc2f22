//! Ranges of a request's parameters, with vLLM's messages.

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Most positions of a sequence.
    pub max_model_len: usize,
    /// Most logprobs a request may ask for (-1 asks for `vocab_size`).
    pub max_logprobs: usize,
}
