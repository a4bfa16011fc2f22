//! Text to tokens and back.
//!
//! [`Tokenizer`] reads a checkpoint's vocabulary; [`Detokenizer`] turns one choice's tokens into
//! text as they come; [`StopStrings`] looks for stop strings in that text and holds back what may
//! still become one. The three are one path: ids -> whole scalars -> text that will stand.

mod detokenizer;
pub(crate) mod files;
mod open;
mod pieces;
mod stop;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::TokenId;

pub use detokenizer::Detokenizer;
use pieces::Pieces;
pub use stop::{StopOutcome, StopStrings};

/// A checkpoint's tokenizer. Immutable, so any thread may use it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: Pieces,
    /// Named special tokens in file order: (`bos_token`, `<s>`), ...
    named: Vec<(String, String)>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    bos_rule: BosRule,
}

/// How `add_bos_token` of tokenizer_config.json differs from what tokenizer.json does by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BosRule {
    AsIs,
    Prepend,
    Remove,
}

impl Tokenizer {
    /// Reads the tokenizer in `dir`: tokenizer.json, else vocab.json with merges.txt (GPT-2's
    /// byte-level BPE). tokenizer_config.json and special_tokens_map.json name special tokens.
    ///
    /// # Errors
    /// `TOKENIZER`, naming the file and the cause.
    pub fn open(dir: &Path) -> Result<Self> {
        open::open(dir)
    }

    /// The tokens of `text`. `add_special_tokens` adds what the model wants around a prompt,
    /// usually a leading bos. Special tokens spelled out in `text` become those tokens.
    ///
    /// # Errors
    /// `TOKENIZER` when the vocabulary cannot express the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>> {
        let encoding = guard("encode", || self.inner.encode_fast(text, add_special_tokens))?;
        let mut ids: Vec<TokenId> = encoding.get_ids().iter().map(|&id| TokenId(id)).collect();
        if add_special_tokens {
            match (self.bos_rule, self.bos) {
                (BosRule::Prepend, Some(bos)) => ids.insert(0, bos),
                (BosRule::Remove, Some(bos)) if ids.first() == Some(&bos) => {
                    ids.remove(0);
                }
                _ => {}
            }
        }
        Ok(ids)
    }

    /// The text of `ids`; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an id outside the vocabulary.
    pub fn decode(&self, ids: &[TokenId], skip_special_tokens: bool) -> Result<String> {
        if let Some(id) = ids.iter().find(|id| id.index() >= self.vocab_size()) {
            return Err(self.out_of_vocabulary(*id));
        }
        self.decode_known(ids, skip_special_tokens)
    }

    /// The bytes that a token stands for, part of a scalar perhaps. `None` for an id outside the
    /// vocabulary, and when a token's text depends on its neighbours (WordPiece, Metaspace).
    pub fn token_bytes(&self, id: TokenId) -> Option<Vec<u8>> {
        let piece = self.pieces.get(id).filter(|_| self.pieces.is_concatenative())?;
        Some(piece.bytes.to_vec())
    }

    /// One more than the largest token id. A model's own vocabulary may be padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The id of a token by its spelling in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<TokenId> {
        self.inner.token_to_id(token).map(TokenId)
    }

    /// The end-of-text token that the tokenizer names.
    pub fn eos_token_id(&self) -> Option<TokenId> {
        self.eos
    }

    /// The beginning-of-text token that the tokenizer names.
    pub fn bos_token_id(&self) -> Option<TokenId> {
        self.bos
    }

    /// The end-of-text token's spelling.
    pub fn eos_token(&self) -> Option<&str> {
        self.named("eos_token")
    }

    /// The beginning-of-text token's spelling.
    pub fn bos_token(&self) -> Option<&str> {
        self.named("bos_token")
    }

    /// Special tokens by name, as templates know them: (`eos_token`, `</s>`), ...
    pub fn named_special_tokens(&self) -> &[(String, String)] {
        &self.named
    }

    /// Whether `skip_special_tokens` leaves this token out.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.pieces.get(id).is_some_and(|piece| piece.special)
    }

    /// The token sequences that spell `word`: bare, and after a space where that gives a sequence
    /// of the same length with another first token.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an empty word.
    pub fn bad_word_sequences(&self, word: &str) -> Result<Vec<Vec<TokenId>>> {
        let trimmed = word.trim_start();
        if word.is_empty() {
            return Err(Error::invalid("bad_words", "bad_words cannot contain an empty string."));
        }
        if trimmed.is_empty() {
            return Ok(vec![self.encode(word, false)?]);
        }
        let bare = self.encode(trimmed, false)?;
        let spaced = self.encode(&format!(" {trimmed}"), false)?;
        let another = spaced.len() == bare.len() && spaced.first() != bare.first();
        Ok(if another { vec![bare, spaced] } else { vec![bare] })
    }

    fn named(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(key, _)| key == name).map(|(_, token)| token.as_str())
    }

    fn out_of_vocabulary(&self, id: TokenId) -> Error {
        let size = self.vocab_size();
        Error::invalid(
            "token_ids",
            format!("token id {id} is out of vocabulary. Vocabulary size: {size}"),
        )
        .with("limit", size)
        .with("value", id.0)
    }

    /// `decode` that, as Hugging Face's, gives unknown ids no text.
    fn decode_known(&self, ids: &[TokenId], skip_special_tokens: bool) -> Result<String> {
        let ids: Vec<u32> = ids.iter().map(|id| id.0).collect();
        guard("decode", || self.inner.decode(&ids, skip_special_tokens))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("named", &self.named)
            .finish_non_exhaustive()
    }
}

/// Runs a call of the tokenizers crate. Broken files can make it panic, which is that file's
/// error and no reason to fail the engine.
fn guard<T, E: std::fmt::Display>(
    what: &str,
    call: impl FnOnce() -> std::result::Result<T, E>,
) -> Result<T> {
    // Unwind safety: the crate's only interior mutability is a cache of finished words.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(Error::new(ErrorKind::Tokenizer, format!("tokenizer {what}: {e}"))),
        Err(panic) => {
            let cause = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("unknown panic");
            Err(Error::new(ErrorKind::Tokenizer, format!("tokenizer {what} panicked: {cause}")))
        }
    }
}
