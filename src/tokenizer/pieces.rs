//! What each token contributes to the text, looked up once when the tokenizer is opened.
//!
//! Most vocabularies decode by plain concatenation: byte-level ones of bytes, byte-fallback ones
//! of text and single bytes. For these a token's piece is known in advance, and detokenizing is a
//! copy. All others (WordPiece, Metaspace, BPE suffixes) are decoded in a window of tokens.

use serde_json::Value;
use tokenizers::Model;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::TokenId;

/// Largest accepted token id: a table is indexed by it.
const MAX_TOKEN_ID: u32 = (1 << 22) - 1;

/// How the tokenizer's decoder joins tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Joining {
    /// Bytes, then lossy UTF-8.
    Bytes,
    /// Text pieces, where runs of byte tokens are UTF-8. `strip_space` removes one space at the
    /// very start.
    Text { strip_space: bool },
    /// Only the decoder knows.
    Opaque,
}

/// Pieces of all tokens, by id.
pub(super) struct Pieces {
    pub(super) joining: Joining,
    bytes: Vec<u8>,
    /// End of each token's bytes; its start is its predecessor's end.
    ends: Vec<u32>,
    flags: Vec<u8>,
}

/// One token's contribution.
pub(super) struct Piece<'a> {
    /// The bytes it stands for.
    pub(super) bytes: &'a [u8],
    /// A byte-fallback token, `<0x0A>`.
    pub(super) byte_token: bool,
    /// Left out by `skip_special_tokens`.
    pub(super) special: bool,
    /// Added to the model's vocabulary, special or not.
    pub(super) added: bool,
}

const BYTE_TOKEN: u8 = 1;
const SPECIAL: u8 = 2;
const ADDED: u8 = 4;

impl Pieces {
    /// The table for `tokenizer`, whose largest id must be below a limit.
    pub(super) fn new(tokenizer: &tokenizers::Tokenizer) -> Result<Self> {
        let vocab = tokenizer.get_vocab(true);
        let Some(&largest) = vocab.values().max() else {
            return Err(Error::new(ErrorKind::Tokenizer, "the vocabulary is empty"));
        };
        if largest > MAX_TOKEN_ID {
            let message = format!("token id {largest} is above the limit of {MAX_TOKEN_ID}");
            return Err(Error::new(ErrorKind::Tokenizer, message)
                .with("limit", MAX_TOKEN_ID)
                .with("value", largest));
        }
        drop(vocab);
        let rules = Rules::of(tokenizer);
        let mut pieces =
            Self { joining: rules.joining, bytes: Vec::new(), ends: Vec::new(), flags: Vec::new() };
        let len = largest as usize + 1;
        pieces.ends.try_reserve_exact(len)?;
        pieces.flags.try_reserve_exact(len)?;
        let added = tokenizer.get_added_vocabulary();
        for id in 0..=largest {
            let from_added = added.simple_id_to_token(id);
            let is_added = from_added.is_some();
            // A hole in the numbering decodes to nothing, as it does for Hugging Face.
            let token = from_added.or_else(|| tokenizer.get_model().id_to_token(id));
            let mut flags = if is_added { ADDED } else { 0 };
            if let Some(token) = token {
                flags |= if added.is_special_token(&token) { SPECIAL } else { 0 };
                flags |= if rules.push_piece(&token, &mut pieces.bytes)? { BYTE_TOKEN } else { 0 };
            }
            let end = u32::try_from(pieces.bytes.len()).map_err(|_| {
                Error::new(ErrorKind::Tokenizer, "the vocabulary's text is above 4 GiB")
            })?;
            pieces.ends.push(end);
            pieces.flags.push(flags);
        }
        Ok(pieces)
    }

    /// Tokens in the table.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether pieces joined in order are the text.
    pub(super) fn is_concatenative(&self) -> bool {
        self.joining != Joining::Opaque
    }

    /// The piece of `id`; `None` outside the vocabulary.
    pub(super) fn get(&self, id: TokenId) -> Option<Piece<'_>> {
        let i = id.index();
        let end = *self.ends.get(i)? as usize;
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        let flags = self.flags[i];
        Some(Piece {
            bytes: &self.bytes[start..end],
            byte_token: flags & BYTE_TOKEN != 0,
            special: flags & SPECIAL != 0,
            added: flags & ADDED != 0,
        })
    }
}

/// The parts of a decoder that act on one token at a time.
struct Rules {
    joining: Joining,
    replace: Vec<(String, String)>,
    byte_fallback: bool,
}

impl Rules {
    fn opaque() -> Self {
        Self { joining: Joining::Opaque, replace: Vec::new(), byte_fallback: false }
    }

    /// Recognizes the decoders whose effect is a concatenation of pieces, from their JSON form.
    fn of(tokenizer: &tokenizers::Tokenizer) -> Self {
        let decoder = match tokenizer.get_decoder().map(serde_json::to_value) {
            Some(Ok(decoder)) => decoder,
            _ => return Self::opaque(),
        };
        let single = std::slice::from_ref(&decoder);
        let steps = match decoder.get("type").and_then(Value::as_str) {
            Some("Sequence") => decoder["decoders"].as_array().map_or(single, Vec::as_slice),
            _ => single,
        };
        Self::of_steps(steps).unwrap_or_else(Self::opaque)
    }

    /// `[ByteLevel]`, or `Replace* ByteFallback? Fuse? Strip?` in this order, which is Llama's,
    /// Mistral's and Gemma's.
    fn of_steps(steps: &[Value]) -> Option<Self> {
        let mut rules = Self {
            joining: Joining::Text { strip_space: false },
            replace: Vec::new(),
            byte_fallback: false,
        };
        let mut fused = false;
        for (i, step) in steps.iter().enumerate() {
            let before_fallback = !rules.byte_fallback && !fused;
            match step.get("type").and_then(Value::as_str)? {
                "ByteLevel" if steps.len() == 1 => rules.joining = Joining::Bytes,
                "Replace" if before_fallback => {
                    let pattern = step["pattern"].get("String")?.as_str()?;
                    rules.replace.push((pattern.to_owned(), step["content"].as_str()?.to_owned()));
                }
                "ByteFallback" if before_fallback => rules.byte_fallback = true,
                "Fuse" if !fused => fused = true,
                "Strip" if fused && i + 1 == steps.len() => {
                    let one_space =
                        step["content"] == " " && step["start"] == 1 && step["stop"] == 0;
                    rules.joining = Joining::Text { strip_space: one_space.then_some(true)? };
                }
                _ => return None,
            }
        }
        Some(rules)
    }

    /// Appends the piece of `token`; true when it is a byte-fallback token.
    fn push_piece(&self, token: &str, out: &mut Vec<u8>) -> Result<bool> {
        out.try_reserve(token.len())?;
        match self.joining {
            Joining::Opaque => Ok(false),
            Joining::Bytes => {
                let start = out.len();
                for c in token.chars() {
                    if let Some(byte) = byte_of(c) {
                        out.push(byte);
                    } else {
                        // Not spelled in the byte alphabet: an added token, which is plain text.
                        out.truncate(start);
                        out.extend_from_slice(token.as_bytes());
                        break;
                    }
                }
                Ok(false)
            }
            Joining::Text { .. } => {
                let mut text = token.to_owned();
                for (pattern, content) in &self.replace {
                    text = text.replace(pattern.as_str(), content);
                }
                let byte = if self.byte_fallback { fallback_byte(&text) } else { None };
                match byte {
                    Some(byte) => out.push(byte),
                    None => out.extend_from_slice(text.as_bytes()),
                }
                Ok(byte.is_some())
            }
        }
    }
}

/// The byte of a token spelled `<0x0A>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}

/// The byte that a character of GPT-2's byte alphabet stands for: printable Latin-1 is itself, and
/// the 68 others are U+0100 and up, in byte order.
fn byte_of(c: char) -> Option<u8> {
    let code = c as u32;
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => Some(code as u8),
        // 0x00..=0x20
        0x100..=0x120 => Some((code - 0x100) as u8),
        // 0x7F..=0xA0
        0x121..=0x142 => Some((code - 0x121) as u8 + 0x7F),
        0x143 => Some(0xAD),
        _ => None,
    }
}
