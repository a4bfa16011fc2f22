//! `bad_words`: the last token of a word cannot follow the word's other tokens.

use crate::error::{Error, Result};
use crate::ids::TokenId;
use crate::request::MAX_BAD_WORDS;

/// Turns words into the token sequences to forbid: each word as it stands, and after a space where
/// that gives as many tokens but another first one (most vocabularies hold both ` cat` and `cat`).
/// `encode` tokenizes without special tokens.
///
/// # Errors
/// `INVALID_ARGUMENT` for more than 128 sequences; what `encode` says.
pub fn bad_word_sequences(
    words: &[String],
    encode: &mut dyn FnMut(&str) -> Result<Vec<TokenId>>,
) -> Result<Vec<Vec<TokenId>>> {
    let mut sequences = Vec::new();
    for word in words {
        let trimmed = word.trim_start();
        // A word of nothing but white space is taken literally.
        let bare = encode(if trimmed.is_empty() { word } else { trimmed })?;
        if bare.is_empty() {
            continue;
        }
        if !trimmed.is_empty() {
            let spaced = encode(&format!(" {trimmed}"))?;
            if spaced.len() == bare.len() && spaced[0] != bare[0] {
                sequences.push(spaced);
            }
        }
        sequences.push(bare);
    }
    if sequences.len() > MAX_BAD_WORDS {
        let count = sequences.len();
        let message =
            format!("bad_words must become at most {MAX_BAD_WORDS} token sequences, got {count}.");
        return Err(Error::invalid("bad_words", message)
            .with("limit", MAX_BAD_WORDS)
            .with("value", count));
    }
    Ok(sequences)
}

/// The forbidden sequences, and as much of the output as the longest one looks back on.
#[derive(Debug)]
pub(super) struct BadWords {
    /// None empty.
    sequences: Vec<Vec<TokenId>>,
    /// Most tokens before a sequence's last one.
    lookback: usize,
    /// The output's last tokens, at most `2 * lookback`.
    tail: Vec<TokenId>,
}

impl BadWords {
    pub(super) fn new(mut sequences: Vec<Vec<TokenId>>) -> Self {
        sequences.retain(|s| !s.is_empty());
        let lookback = sequences.iter().map(|s| s.len() - 1).max().unwrap_or(0);
        Self { sequences, lookback, tail: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Whether the output decides which tokens are masked.
    pub(super) fn look_back(&self) -> bool {
        self.lookback > 0
    }

    /// The tokens that are masked now.
    pub(super) fn hidden(&self) -> impl Iterator<Item = TokenId> {
        self.sequences.iter().filter_map(|sequence| {
            let (last, before) = sequence.split_last()?;
            self.tail.ends_with(before).then_some(*last)
        })
    }

    /// One more token was generated.
    pub(super) fn accept(&mut self, token: TokenId) {
        if self.lookback == 0 {
            return;
        }
        self.tail.push(token);
        if self.tail.len() >= 2 * self.lookback {
            self.tail.drain(..self.tail.len() - self.lookback);
        }
    }

    /// Masks each word's last token where the output ends with its other tokens.
    pub(super) fn mask(&self, logits: &mut [f32]) {
        for token in self.hidden() {
            if let Some(x) = logits.get_mut(token.index()) {
                *x = f32::NEG_INFINITY;
            }
        }
    }
}
