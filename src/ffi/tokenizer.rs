//! `VrustTokenizer`: text to token ids and back, with or without an engine.

use std::ffi::c_char;
use std::path::Path;
use std::sync::Arc;

use super::boundary::{boundary, destroy};
use super::engine::{ENGINES, VrustEngine};
use super::error::VrustError;
use super::handle::{Kind, Table};
use super::input::{Out, fill, slice, text, token_ids};
use super::status::{VRUST_OK, VrustStatus};
use crate::chat::ChatTemplate;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::TokenId;
use crate::tokenizer::Tokenizer;

/// `vrust_tokenizer_encode`: add the model's special tokens (bos).
pub const VRUST_ENCODE_SPECIAL_TOKENS: u32 = 1;
/// `vrust_tokenizer_decode`: leave special tokens out.
pub const VRUST_DECODE_SKIP_SPECIAL_TOKENS: u32 = 1;

/// A tokenizer and the chat template beside it.
pub struct VrustTokenizer {
    _opaque: [u8; 0],
}

pub(super) static TOKENIZERS: Table<TokenizerObject> = Table::new(Kind::Tokenizer);

pub(super) struct TokenizerObject {
    pub(super) tokenizer: Arc<Tokenizer>,
    /// A template that cannot be used is an error when it is used.
    pub(super) template: Result<Option<Arc<ChatTemplate>>>,
}

/// Opens the tokenizer and the chat template of a model folder. Needs no engine and no weights.
///
/// Any thread. VRUST_ERROR_NOT_FOUND, VRUST_ERROR_IO or VRUST_ERROR_TOKENIZER for the folder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_tokenizer_open(
    path: *const c_char,
    path_len: usize,
    tokenizer_out: *mut *mut VrustTokenizer,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `path_len` bytes of `path` are readable; `tokenizer_out` and `err` are NULL or
    // writable (header, "Pointers").
    unsafe {
        boundary(err, || {
            let out = Out::new(tokenizer_out, "tokenizer_out")?;
            let folder = text(path, path_len, "path")?;
            if folder.is_empty() {
                return Err(Error::invalid("path", "path: must not be empty"));
            }
            let folder = Path::new(folder);
            let tokenizer = Arc::new(Tokenizer::open(folder)?);
            let template = ChatTemplate::from_dir(folder, &tokenizer).map(|t| t.map(Arc::new));
            out.write(TOKENIZERS.insert(Arc::new(TokenizerObject { tokenizer, template }))?);
            Ok(VRUST_OK)
        })
    }
}

/// Writes a handle to the engine's tokenizer and chat template. It outlives the engine.
///
/// Any thread. VRUST_ERROR_INVALID_ARGUMENT before the engine is ready; VRUST_ERROR_UNSUPPORTED
/// when it runs without a tokenizer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_engine_tokenizer(
    engine: *const VrustEngine,
    tokenizer_out: *mut *mut VrustTokenizer,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `tokenizer_out` and `err` are NULL or writable (header, "Pointers").
    unsafe {
        boundary(err, || {
            let engine = ENGINES.get(engine, "engine")?;
            let out = Out::new(tokenizer_out, "tokenizer_out")?;
            let (tokenizer, template) = (engine.tokenizer()?, engine.chat_template());
            out.write(TOKENIZERS.insert(Arc::new(TokenizerObject { tokenizer, template }))?);
            Ok(VRUST_OK)
        })
    }
}

/// Writes a handle to the same tokenizer with another chat template, in Jinja, for renderings and
/// parsers of chats that bring their own. It outlives the first one.
///
/// A template reaches no files and runs no code, but a malicious one can burn time: take it only
/// from those whom you trust. Any thread. VRUST_ERROR_TEMPLATE when it cannot be parsed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_tokenizer_with_template(
    tokenizer: *const VrustTokenizer,
    chat_template: *const c_char,
    chat_template_len: usize,
    tokenizer_out: *mut *mut VrustTokenizer,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `chat_template_len` bytes of `chat_template` are readable; `tokenizer_out` and `err`
    // are NULL or writable (header, "Pointers").
    unsafe {
        boundary(err, || {
            let first = TOKENIZERS.get(tokenizer, "tokenizer")?;
            let out = Out::new(tokenizer_out, "tokenizer_out")?;
            let source = text(chat_template, chat_template_len, "chat_template")?;
            let tokenizer = Arc::clone(&first.tokenizer);
            let template = Ok(Some(Arc::new(ChatTemplate::from_source(source, &tokenizer)?)));
            out.write(TOKENIZERS.insert(Arc::new(TokenizerObject { tokenizer, template }))?);
            Ok(VRUST_OK)
        })
    }
}

/// Encodes text. Writes the number of ids to `n_ids` and the ids to `ids`, which has room for
/// `capacity`; VRUST_ERROR_BUFFER_TOO_SMALL when that is too little, with the number it needs.
/// `flags`: VRUST_ENCODE_*. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_tokenizer_encode(
    tokenizer: *const VrustTokenizer,
    text: *const c_char,
    text_len: usize,
    flags: u32,
    ids: *mut u32,
    capacity: usize,
    n_ids: *mut usize,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `text_len` bytes of `text` are readable and `capacity` of `ids` writable; `n_ids`
    // and `err` are NULL or writable (header, "Pointers").
    unsafe {
        boundary(err, || {
            let object = TOKENIZERS.get(tokenizer, "tokenizer")?;
            let count = Out::new(n_ids, "n_ids")?;
            let special = only_bit(flags, VRUST_ENCODE_SPECIAL_TOKENS)?;
            let text = super::input::text(text, text_len, "text")?;
            let encoded: Vec<u32> =
                object.tokenizer.encode(text, special)?.into_iter().map(|id| id.0).collect();
            fill(&encoded, ids, capacity, count, "ids")?;
            Ok(VRUST_OK)
        })
    }
}

/// Decodes `n_ids` ids. Writes the number of bytes of text to `text_len` and the text, not
/// NUL-terminated, to `text`, which has room for `capacity` bytes; VRUST_ERROR_BUFFER_TOO_SMALL
/// when that is too little, with the number it needs. `flags`: VRUST_DECODE_*. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_tokenizer_decode(
    tokenizer: *const VrustTokenizer,
    ids: *const u32,
    n_ids: usize,
    flags: u32,
    text: *mut c_char,
    capacity: usize,
    text_len: *mut usize,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `n_ids` of `ids` are readable and `capacity` bytes of `text` writable; `text_len`
    // and `err` are NULL or writable (header, "Pointers").
    unsafe {
        boundary(err, || {
            let object = TOKENIZERS.get(tokenizer, "tokenizer")?;
            let len = Out::new(text_len, "text_len")?;
            let skip = only_bit(flags, VRUST_DECODE_SKIP_SPECIAL_TOKENS)?;
            let ids = token_ids(slice(ids, n_ids, "ids")?)?;
            let decoded = object.tokenizer.decode(&ids, skip)?;
            fill(decoded.as_bytes(), text.cast::<u8>(), capacity, len, "text")?;
            Ok(VRUST_OK)
        })
    }
}

/// The bytes that one token stands for, which need not be whole UTF-8 scalars. Buffer and errors
/// as `vrust_tokenizer_decode`; VRUST_ERROR_NOT_FOUND for an id outside the vocabulary. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_tokenizer_token_bytes(
    tokenizer: *const VrustTokenizer,
    id: u32,
    bytes: *mut u8,
    capacity: usize,
    n_bytes: *mut usize,
    err: *mut *mut VrustError,
) -> VrustStatus {
    // SAFETY: `capacity` of `bytes` are writable; `n_bytes` and `err` are NULL or writable
    // (header, "Pointers").
    unsafe {
        boundary(err, || {
            let object = TOKENIZERS.get(tokenizer, "tokenizer")?;
            let len = Out::new(n_bytes, "n_bytes")?;
            let found = object.tokenizer.token_bytes(TokenId(id)).ok_or_else(|| {
                let message = format!("id: {id} is not a token of this vocabulary");
                Error::new(ErrorKind::NotFound, message).with("field", "id").with("value", id)
            })?;
            fill(&found, bytes, capacity, len, "bytes")?;
            Ok(VRUST_OK)
        })
    }
}

/// Destroys a tokenizer's handle. NULL is fine. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_tokenizer_destroy(tokenizer: *mut VrustTokenizer) -> VrustStatus {
    destroy(tokenizer, || TOKENIZERS.remove(tokenizer).is_some())
}

/// Whether the only bit that `flags` may have is set.
fn only_bit(flags: u32, bit: u32) -> Result<bool> {
    if flags & !bit != 0 {
        let message = format!("flags: unknown bits {:#x}", flags & !bit);
        return Err(Error::invalid("flags", message).with("limit", bit).with("value", flags));
    }
    Ok(flags & bit != 0)
}
