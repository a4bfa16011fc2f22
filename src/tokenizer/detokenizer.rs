//! Tokens to text as they come, without ever splitting a scalar.

use std::sync::Arc;

use super::Tokenizer;
use super::pieces::{Joining, Piece};
use crate::error::Result;
use crate::ids::TokenId;

/// Tokens of context that the window of an opaque decoder starts with.
const WINDOW: usize = 6;
/// Tokens after which an opaque decoder's text is let go though it ends in U+FFFD: four bytes are
/// the longest scalar.
const MAX_HELD_TOKENS: usize = 4;

/// Turns the tokens of one choice into text. All that `push` returns and what `finish` returns,
/// joined, is the text that the tokens add to the prompt's: a leading space that belongs between
/// prompt and output stays, one that the tokenizer only writes at a text's start goes.
///
/// Bytes that are no UTF-8 become U+FFFD as soon as it is certain, which is at most three bytes
/// later. For byte-fallback vocabularies Hugging Face replaces valid scalars too when they share a
/// run of byte tokens with an invalid byte; text already handed out is not taken back here.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    spaces_between_special_tokens: bool,
    /// What `push` hands out.
    out: String,
    /// Whether the text so far, prompt included, is empty.
    at_start: bool,
    /// A scalar's first bytes.
    pending: Vec<u8>,
    /// How many of `pending` are the prompt's.
    pending_of_prompt: usize,
    window: Window,
}

/// The last tokens of an opaque decoder's text.
#[derive(Default)]
struct Window {
    /// Context, then tokens whose text is not handed out yet.
    ids: Vec<TokenId>,
    /// How many of `ids` are context.
    num_context: usize,
    /// Text of the context.
    prefix: String,
    last_was_added: bool,
}

impl Detokenizer {
    /// A detokenizer for a choice that continues `prompt`, whose text it does not repeat.
    ///
    /// `spaces_between_special_tokens` false removes the spaces that a decoder puts between
    /// adjacent added tokens (byte-level and byte-fallback vocabularies put none).
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        prompt: &[TokenId],
        skip_special_tokens: bool,
        spaces_between_special_tokens: bool,
    ) -> Self {
        let mut detokenizer = Self {
            tokenizer,
            skip_special_tokens,
            spaces_between_special_tokens: skip_special_tokens || spaces_between_special_tokens,
            out: String::new(),
            at_start: true,
            pending: Vec::new(),
            pending_of_prompt: 0,
            window: Window::default(),
        };
        detokenizer.prime(prompt);
        detokenizer
    }

    /// Takes the next token and returns the text that is certain now, whole scalars only. An id
    /// outside the vocabulary has no text: models pad their vocabulary beyond the tokenizer's.
    ///
    /// # Errors
    /// `TOKENIZER` when the decoder fails.
    pub fn push(&mut self, id: TokenId) -> Result<&str> {
        self.out.clear();
        let tokenizer = Arc::clone(&self.tokenizer);
        let Some(piece) = self.kept(&tokenizer, id) else {
            return Ok("");
        };
        match tokenizer.pieces.joining {
            Joining::Bytes => {
                self.pending.extend_from_slice(piece.bytes);
                self.take_scalars(false);
            }
            Joining::Text { .. } if piece.byte_token => {
                self.pending.extend_from_slice(piece.bytes);
                self.take_scalars(true);
            }
            Joining::Text { .. } => {
                self.flush_pending(true);
                // The table was made from strings, so this is a copy.
                self.out.push_str(&String::from_utf8_lossy(piece.bytes));
            }
            Joining::Opaque => self.push_opaque(&tokenizer, id, piece.added)?,
        }
        self.strip_start(tokenizer.pieces.joining);
        Ok(&self.out)
    }

    /// The text that was held back; what never became a scalar is U+FFFD.
    pub fn finish(&mut self) -> String {
        self.out.clear();
        let joining = self.tokenizer.pieces.joining;
        match joining {
            Joining::Bytes => self.flush_pending(false),
            Joining::Text { .. } => self.flush_pending(true),
            Joining::Opaque => {
                // A decoder that fails here failed for the tokens' `push` too.
                if let Ok(text) = self.tokenizer.decode_known(&self.window.ids, false) {
                    self.out.push_str(after(&self.window.prefix, &text));
                }
                self.window = Window::default();
            }
        }
        self.strip_start(joining);
        std::mem::take(&mut self.out)
    }

    /// The piece of `id` unless it has none or is skipped.
    fn kept<'a>(&self, tokenizer: &'a Tokenizer, id: TokenId) -> Option<Piece<'a>> {
        tokenizer.pieces.get(id).filter(|piece| !(self.skip_special_tokens && piece.special))
    }

    /// Takes what the output depends on from the prompt's last tokens.
    fn prime(&mut self, prompt: &[TokenId]) {
        let tokenizer = Arc::clone(&self.tokenizer);
        if tokenizer.pieces.joining == Joining::Opaque {
            let kept = prompt.iter().rev().filter(|id| self.kept(&tokenizer, **id).is_some());
            self.window.ids = kept.take(WINDOW).copied().collect();
            self.window.ids.reverse();
            self.window.num_context = self.window.ids.len();
            // A decoder that fails on the prompt will fail on the output too, where it is said.
            self.window.prefix =
                tokenizer.decode_known(&self.window.ids, false).unwrap_or_default();
            let last = self.window.ids.last().and_then(|id| tokenizer.pieces.get(*id));
            self.window.last_was_added = last.is_some_and(|piece| piece.added);
            return;
        }
        // The last three bytes decide whether the prompt ends within a scalar.
        let mut tail: Vec<u8> = Vec::with_capacity(3);
        for id in prompt.iter().rev() {
            let Some(piece) = self.kept(&tokenizer, *id) else { continue };
            self.at_start &= piece.bytes.is_empty();
            if tokenizer.pieces.joining != Joining::Bytes && !piece.byte_token {
                break;
            }
            tail.extend(piece.bytes.iter().rev().take(3 - tail.len()));
            if tail.len() == 3 {
                break;
            }
        }
        tail.reverse();
        let start = incomplete_from(&tail);
        self.pending.extend_from_slice(&tail[start..]);
        self.pending_of_prompt = self.pending.len();
    }

    /// Moves whole scalars from `pending` to `out`, and what can no longer become one as U+FFFD.
    fn take_scalars(&mut self, one_mark_per_byte: bool) {
        let mut pending = std::mem::take(&mut self.pending);
        let mut start = 0;
        loop {
            let rest = &pending[start..];
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.out.push_str(text);
                    start = pending.len();
                    break;
                }
                Err(e) => {
                    let valid = e.valid_up_to();
                    self.out.push_str(&String::from_utf8_lossy(&rest[..valid]));
                    start += valid;
                    let Some(len) = e.error_len() else { break };
                    self.mark(len, start, one_mark_per_byte);
                    start += len;
                }
            }
        }
        self.pending_of_prompt = self.pending_of_prompt.saturating_sub(start);
        pending.drain(..start);
        self.pending = pending;
    }

    /// Gives up on `pending`, which is the start of one scalar.
    fn flush_pending(&mut self, one_mark_per_byte: bool) {
        self.mark(self.pending.len(), 0, one_mark_per_byte);
        self.pending.clear();
        self.pending_of_prompt = 0;
    }

    /// Writes U+FFFD for `len` bad bytes at `start` of `pending`, except for the prompt's own.
    fn mark(&mut self, len: usize, start: usize, one_mark_per_byte: bool) {
        let ours = len.saturating_sub(self.pending_of_prompt.saturating_sub(start));
        let marks = if one_mark_per_byte { ours } else { ours.min(1) };
        self.out.extend(std::iter::repeat_n('\u{FFFD}', marks));
    }

    /// Removes the space that the decoder strips from the start of a text.
    fn strip_start(&mut self, joining: Joining) {
        if !self.at_start || self.out.is_empty() {
            return;
        }
        self.at_start = false;
        if joining == (Joining::Text { strip_space: true }) && self.out.starts_with(' ') {
            self.out.remove(0);
        }
    }

    /// Decodes the window with the new token and takes what goes beyond its context's text.
    fn push_opaque(&mut self, tokenizer: &Tokenizer, id: TokenId, added: bool) -> Result<()> {
        let window = &mut self.window;
        window.ids.push(id);
        let adjacent = added && window.last_was_added && !self.spaces_between_special_tokens;
        window.last_was_added = added;
        let text = tokenizer.decode_known(&window.ids, false)?;
        let held = window.ids.len() - window.num_context;
        if text.ends_with('\u{FFFD}') && held < MAX_HELD_TOKENS {
            return Ok(());
        }
        let fresh = after(&window.prefix, &text);
        self.out.push_str(if adjacent { fresh.trim_start_matches(' ') } else { fresh });
        if fresh.is_empty() {
            // The token may show only with its successor: keep it as context.
            window.prefix = text;
            window.num_context = window.ids.len();
            let excess = window.ids.len().saturating_sub(2 * WINDOW);
            if excess > 0 {
                window.ids.drain(..excess);
                window.num_context = window.ids.len();
                window.prefix = tokenizer.decode_known(&window.ids, false)?;
            }
            return Ok(());
        }
        // What was just handed out is the next context, and enough: decoders look one token back.
        window.ids.drain(..window.num_context);
        window.num_context = window.ids.len();
        window.prefix = tokenizer.decode_known(&window.ids, false)?;
        Ok(())
    }
}

/// Where an incomplete scalar at the end of `tail` starts; its length when there is none.
fn incomplete_from(tail: &[u8]) -> usize {
    (0..tail.len())
        .find(|&start| match std::str::from_utf8(&tail[start..]) {
            Ok(_) => false,
            Err(e) => e.valid_up_to() == 0 && e.error_len().is_none(),
        })
        .unwrap_or(tail.len())
}

/// What `text` has beyond `prefix`. A decoder may rewrite the end of a text when it goes on; what
/// was handed out stays, so the common part counts.
fn after<'a>(prefix: &str, text: &'a str) -> &'a str {
    if let Some(rest) = text.strip_prefix(prefix) {
        return rest;
    }
    let same = text.bytes().zip(prefix.bytes()).take_while(|(a, b)| a == b).count();
    let cut = (0..=same).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    &text[cut..]
}
