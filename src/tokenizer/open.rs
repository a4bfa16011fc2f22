//! Reading a tokenizer from a checkpoint's folder.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Model};

use super::files::{MAX_VOCABULARY_BYTES, read_limited, read_object};
use super::pieces::Pieces;
use super::{BosRule, Tokenizer, guard};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::TokenId;

/// The token that GPT-2 begins and ends texts with when no file says otherwise.
const GPT2_END_OF_TEXT: &str = "<|endoftext|>";

pub(super) fn open(dir: &Path) -> Result<Tokenizer> {
    let config_path = dir.join("tokenizer_config.json");
    let config = read_object(&config_path, ErrorKind::Tokenizer)?;
    let map = read_object(&dir.join("special_tokens_map.json"), ErrorKind::Tokenizer)?;
    let mut named = named_tokens(&config);
    for (name, token) in named_tokens(&map) {
        if !named.iter().any(|(known, _)| *known == name) && !config.contains_key(&name) {
            named.push((name, token));
        }
    }
    let json = dir.join("tokenizer.json");
    let (mut inner, source) = match read_limited(&json, MAX_VOCABULARY_BYTES, ErrorKind::Tokenizer)?
    {
        Some(bytes) => {
            let inner = guard("file", || tokenizers::Tokenizer::from_bytes(&bytes))
                .map_err(|e| e.context(json.display()))?;
            (inner, json)
        }
        None => (open_gpt2(dir, &config, &mut named)?, dir.join("vocab.json")),
    };
    finish(&mut inner, &config, &named)
        .and_then(|()| assemble(inner, &config, named))
        .map_err(|e| e.context(source.display()))
}

/// GPT-2's byte-level BPE from vocab.json and merges.txt.
fn open_gpt2(
    dir: &Path,
    config: &Map<String, Value>,
    named: &mut Vec<(String, String)>,
) -> Result<tokenizers::Tokenizer> {
    let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
    if !vocab.exists() || !merges.exists() {
        let message = format!(
            "{}: no tokenizer.json, and no vocab.json with merges.txt instead",
            dir.display()
        );
        return Err(Error::new(ErrorKind::Tokenizer, message));
    }
    // Other models have these two files too, but split words in other ways.
    let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("GPT2Tokenizer");
    if !class.starts_with("GPT2Tokenizer") {
        let message = format!("{}: a {class} needs a tokenizer.json", dir.display());
        return Err(Error::new(ErrorKind::Tokenizer, message));
    }
    let mut paths = Vec::with_capacity(2);
    for path in [&vocab, &merges] {
        // The crate reads the files itself; this is for the limit on their size.
        read_limited(path, MAX_VOCABULARY_BYTES, ErrorKind::Tokenizer)?;
        paths.push(path.to_str().ok_or_else(|| {
            let message = format!("{}: the path is no UTF-8", path.display());
            Error::new(ErrorKind::Tokenizer, message)
        })?);
    }
    let model = guard("file", || BPE::from_file(paths[0], paths[1]).build())
        .map_err(|e| e.context(format!("{} or merges.txt", vocab.display())))?;
    let mut inner = tokenizers::Tokenizer::new(model);
    let prefix_space = config.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(false);
    inner.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(prefix_space)));
    inner.with_decoder(Some(ByteLevel::default()));
    for name in ["bos_token", "eos_token", "unk_token"] {
        if !config.contains_key(name) && !named.iter().any(|(known, _)| known == name) {
            named.push((name.to_owned(), GPT2_END_OF_TEXT.to_owned()));
        }
    }
    let added = declared_tokens(config);
    for (id, token) in added {
        let content = token.content.clone();
        add_token(&mut inner, token)?;
        if inner.token_to_id(&content) != Some(id) {
            let message = format!(
                "added_tokens_decoder gives {content:?} the id {id}, but the next free one is {}",
                inner.token_to_id(&content).unwrap_or_default()
            );
            return Err(Error::new(ErrorKind::Tokenizer, message).context(dir.display()));
        }
    }
    for (_, token) in named.iter() {
        if inner.token_to_id(token).is_none() {
            add_token(&mut inner, AddedToken::from(token.as_str(), true).normalized(false))?;
        }
    }
    Ok(inner)
}

/// What transformers does after reading a tokenizer, whatever it was read from.
fn finish(
    inner: &mut tokenizers::Tokenizer,
    config: &Map<String, Value>,
    named: &[(String, String)],
) -> Result<()> {
    // Truncation and padding in the file are somebody's training set-up.
    guard("file", || inner.with_truncation(None).map(|_| ()))?;
    inner.with_padding(None);
    if inner.get_model().get_vocab_size() == 0 {
        return Err(Error::new(ErrorKind::Tokenizer, "the vocabulary is empty"));
    }
    // The config may call tokens special that the file has as ordinary ones.
    for (id, token) in declared_tokens(config) {
        let known = inner.token_to_id(&token.content) == Some(id);
        let special = inner.get_added_vocabulary().is_special_token(&token.content);
        if known && token.special && !special {
            add_token(inner, token)?;
        }
    }
    for (_, token) in named {
        let special = inner.get_added_vocabulary().is_special_token(token);
        if inner.token_to_id(token).is_some() && !special {
            add_token(inner, AddedToken::from(token.as_str(), true).normalized(false))?;
        }
    }
    Ok(())
}

fn assemble(
    inner: tokenizers::Tokenizer,
    config: &Map<String, Value>,
    named: Vec<(String, String)>,
) -> Result<Tokenizer> {
    let pieces = guard("file", || Pieces::new(&inner))?;
    let id_of = |name: &str| {
        let (_, token) = named.iter().find(|(known, _)| known == name)?;
        inner.token_to_id(token).map(TokenId)
    };
    let (bos, eos) = (id_of("bos_token"), id_of("eos_token"));
    let mut tokenizer = Tokenizer { inner, pieces, named, bos, eos, bos_rule: BosRule::AsIs };
    let by_itself = bos.is_some() && tokenizer.encode("", true)?.first().copied() == bos;
    tokenizer.bos_rule = match config.get("add_bos_token").and_then(Value::as_bool) {
        Some(true) if !by_itself => BosRule::Prepend,
        Some(false) if by_itself => BosRule::Remove,
        _ => BosRule::AsIs,
    };
    Ok(tokenizer)
}

fn add_token(inner: &mut tokenizers::Tokenizer, token: AddedToken) -> Result<()> {
    guard("file", || inner.add_tokens([token]).map(|_| ()))
}

/// Keys that end in `_token` with a spelling: a string, or an object with `content`.
fn named_tokens(object: &Map<String, Value>) -> Vec<(String, String)> {
    let spelling = |value: &Value| {
        let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
        (!text.is_empty()).then(|| text.to_owned())
    };
    object
        .iter()
        .filter(|(name, _)| name.ends_with("_token"))
        .filter_map(|(name, value)| Some((name.clone(), spelling(value)?)))
        .collect()
}

/// The entries of `added_tokens_decoder`, by id.
fn declared_tokens(config: &Map<String, Value>) -> Vec<(u32, AddedToken)> {
    let Some(object) = config.get("added_tokens_decoder").and_then(Value::as_object) else {
        return Vec::new();
    };
    let mut tokens: Vec<_> = object
        .iter()
        .filter_map(|(id, token)| {
            let flag = |name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
            let added = AddedToken::from(token.get("content")?.as_str()?, flag("special"))
                .single_word(flag("single_word"))
                .lstrip(flag("lstrip"))
                .rstrip(flag("rstrip"))
                .normalized(flag("normalized"));
            Some((id.parse().ok()?, added))
        })
        .collect();
    tokens.sort_by_key(|(id, _)| *id);
    tokens
}
