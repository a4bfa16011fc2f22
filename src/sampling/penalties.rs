//! Repetition, frequency and presence penalties.
//!
//! Repetition looks at prompt and output, the other two at the output alone; output stays output
//! when a preempted sequence is computed again.

use std::collections::HashMap;

use crate::error::Result;
use crate::ids::TokenId;
use crate::request::{LogitChanges, ResolvedParams};

/// The penalties of one sequence, and the tokens that they concern.
#[derive(Debug)]
pub(super) struct Penalties {
    repetition: f32,
    frequency: f32,
    presence: f32,
    /// Each token seen, once, with its occurrences in the output (0: in the prompt only).
    seen: Vec<(TokenId, u32)>,
    /// Where in `seen`.
    index: HashMap<TokenId, usize>,
}

impl Penalties {
    /// `None` when no penalty is on, so that sequences without one keep no history.
    pub(super) fn new(params: &ResolvedParams, prompt: &[TokenId]) -> Result<Option<Self>> {
        let repetition = params.repetition_penalty;
        let (frequency, presence) = (params.frequency_penalty, params.presence_penalty);
        if repetition == 1.0 && frequency == 0.0 && presence == 0.0 {
            return Ok(None);
        }
        let (seen, index) = (Vec::new(), HashMap::new());
        let mut penalties = Self { repetition, frequency, presence, seen, index };
        if repetition != 1.0 {
            for &token in prompt {
                penalties.entry(token)?;
            }
        }
        Ok(Some(penalties))
    }

    /// Counts a generated token.
    pub(super) fn accept(&mut self, token: TokenId) -> Result<()> {
        *self.entry(token)? += 1;
        Ok(())
    }

    /// Applies the penalties: repetition, then frequency, then presence. Tokens past the row are
    /// ignored.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        for &(token, count) in &self.seen {
            let Some(x) = logits.get_mut(token.index()) else { continue };
            let repeated = if *x > 0.0 { *x / self.repetition } else { *x * self.repetition };
            let frequent = repeated - self.frequency * count as f32;
            let present = frequent - if count > 0 { self.presence } else { 0.0 };
            // A tiny repetition penalty must not make a logit infinite.
            *x = present.min(f32::MAX);
        }
    }

    /// These penalties beside other changes, for another place.
    pub(super) fn changes(&self, others: LogitChanges) -> LogitChanges {
        let Self { repetition, frequency, presence, .. } = *self;
        LogitChanges { seen: self.seen.clone(), repetition, frequency, presence, ..others }
    }

    /// The output count of `token`, which is seen from now on.
    fn entry(&mut self, token: TokenId) -> Result<&mut u32> {
        let place = match self.index.get(&token) {
            Some(&place) => place,
            None => {
                self.index.try_reserve(1)?;
                self.seen.try_reserve(1)?;
                self.index.insert(token, self.seen.len());
                self.seen.push((token, 0));
                self.seen.len() - 1
            }
        };
        Ok(&mut self.seen[place].1)
    }
}
