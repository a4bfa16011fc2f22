//! The two ends of a model: tokens to vectors, vectors to logits.

use crate::backend::{ActId, Backend, LinearId};
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::loader::{Loader, Part};

/// The embedding and the head; where they are tied, one packed table serves both.
pub(crate) struct Embedding {
    table: LinearId,
    /// `[vocab, hidden]`.
    pub(crate) head: LinearId,
}

impl Embedding {
    /// The table `name` and, unless tied, `lm_head`.
    pub(crate) fn load(l: &mut Loader<'_>, name: String, config: &ModelConfig) -> Result<Self> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let table = l.vocabulary(Part::new(name, vocab, hidden))?;
        let head = match config.tie_word_embeddings {
            true => table,
            false => l.vocabulary(Part::new("lm_head".to_owned(), vocab, hidden))?,
        };
        Ok(Self { table, head })
    }

    /// `out[t] = table[token_ids[t]]`.
    pub(crate) fn forward(&self, backend: &mut dyn Backend, out: ActId) {
        backend.embed(self.table, out);
    }
}
