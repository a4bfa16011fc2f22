//! New sequences.

use super::Scheduler;
use super::queue::Arrival;
use super::sequence::{NewSequence, Sequence};
use crate::error::{Error, Result};

impl Scheduler {
    /// Puts a sequence in the waiting queue. `INVALID_ARGUMENT` if it can never run: an empty
    /// prompt, an id in use, a length past `max_model_len` or past what the whole pool holds.
    pub fn add(&mut self, new: NewSequence) -> Result<()> {
        self.check(&new)?;
        let arrival = Arrival { id: new.id, priority: new.priority, arrival: new.arrival };
        let key = self.waiting.key_of_new(arrival);
        let slot = self.sequences.insert(Sequence::new(new, &self.config, key)?);
        self.waiting.insert(key, slot);
        Ok(())
    }

    fn check(&self, new: &NewSequence) -> Result<()> {
        if new.prompt.is_empty() {
            return Err(Error::invalid("prompt", "prompt must not be empty."));
        }
        if new.max_tokens == 0 {
            let error = Error::invalid("max_tokens", "max_tokens must be at least 1, got 0.");
            return Err(error.with("limit", 1).with("value", 0));
        }
        if self.sequences.find(new.id).is_some() {
            let message = format!("sequence id {} is in use.", new.id);
            return Err(Error::invalid("id", message).with("value", new.id.0));
        }
        let (prompt, limit) = (new.prompt.len(), self.config.max_model_len);
        let length = prompt.saturating_add(new.max_tokens);
        if length > limit {
            let message = format!(
                "prompt ({prompt} tokens) and max_tokens ({}) are {length} tokens, but \
                 max_model_len is {limit}.",
                new.max_tokens
            );
            let error = Error::invalid("max_tokens", message);
            return Err(error.with("limit", limit).with("value", length));
        }
        // The last token generated is never an input: its position needs no block.
        let per_group = (length - 1).div_ceil(self.config.block_size);
        let blocks = per_group.saturating_mul(self.config.num_groups);
        let usable = self.pool.num_usable();
        if blocks > usable {
            let message = format!(
                "prompt ({prompt} tokens) and max_tokens ({}) need {blocks} KV cache blocks of {} \
                 positions, but the cache has {usable}.",
                new.max_tokens, self.config.block_size
            );
            let error = Error::invalid("max_tokens", message);
            return Err(error.with("limit", usable).with("value", blocks));
        }
        Ok(())
    }
}
