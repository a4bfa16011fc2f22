//! The worker's side of admission: an `Admission` becomes sequences and choices.

use super::event::{Delta, Times, Usage};
use super::intake::{self, Admission};
use super::output::{Choice, PromptOutput, TextOutput};
use super::worker::{Live, Worker};
use crate::error::Result;
use crate::ids::{SeqId, TokenId};
use crate::request::{self, Limits, ResolvedParams, TokenLogprobs};
use crate::sampling::SequenceSampler;
use crate::scheduler::NewSequence;
use crate::sync::{Arc, Mutex};
use crate::tokenizer::{Detokenizer, StopStrings};

impl Worker {
    /// Takes a request in; ends it with an error if it cannot run.
    pub(crate) fn add(&mut self, admission: Admission) {
        let ticket = admission.ticket.clone();
        if !self.shared.registry.is_live(ticket.id) {
            return; // Aborted while its text was encoded.
        }
        let deadline = admission.deadline;
        let mut live = Live { ticket: ticket.clone(), running: Vec::new(), longest: 0 };
        let added = self.add_choices(admission, &mut live);
        if let Err(error) = added {
            for seq in live.running {
                self.scheduler.finish(seq, false);
                self.choices.remove(&seq);
            }
            return intake::fail(&self.shared, ticket.id, error);
        }
        let full = ticket.queue.is_full();
        self.requests.insert(ticket.id, live);
        if let Some(deadline) = deadline {
            self.set_deadline(deadline, ticket.id);
        }
        if full {
            self.hold_queue(&ticket.queue);
        }
    }

    fn add_choices(&mut self, admission: Admission, live: &mut Live) -> Result<()> {
        let Admission { ticket, request, prompt, prompt_text, bad_words, .. } = admission;
        let limits = Limits { max_model_len: self.max_model_len, ..self.shared.limits() };
        // `max_tokens` 0 asks for the prompt's scores alone: one token is made and not shown.
        let silent = !request.generates();
        request::validate_prompt(&prompt, &limits, true)?;
        let defaults = &self.shared.generation.defaults;
        let params = Arc::new(request.resolve(defaults, &limits, prompt.len())?);

        let (eos, stop_token_ids) = self.stop_ids(&params);
        for index in 0..params.n {
            let id = SeqId(self.next_seq);
            self.next_seq += 1;
            let prompt_logprobs = params.prompt_logprobs.filter(|_| index == 0);
            let choice_prompt = (index == 0 && (request.echo || prompt_logprobs.is_some()))
                .then(|| self.prompt_output(&request, &prompt, &prompt_text, prompt_logprobs))
                .transpose()?;
            let new = NewSequence {
                id,
                prompt: intake::copy_ids(&prompt)?,
                max_tokens: params.max_tokens.max(1),
                min_tokens: params.min_tokens,
                eos,
                stop_token_ids: stop_token_ids.clone(),
                priority: request.priority,
                arrival: ticket.id.0,
                cache_salt: request.cache_salt.clone(),
                skip_cache_read: prompt_logprobs.is_some(),
            };
            let mut masked_ids = stop_token_ids.clone();
            masked_ids.extend(eos);
            let seed = self.seed(&params, ticket.id.0, index);
            let sampler =
                SequenceSampler::new(&params, &prompt, &masked_ids, bad_words.clone(), seed);
            let choice = Choice {
                request: ticket.id,
                index,
                params: params.clone(),
                sampler: Mutex::new(sampler),
                text: self.text_output(&params, &prompt),
                prompt: choice_prompt,
                usage: Usage { prompt_tokens: prompt.len() as u32, ..Usage::default() },
                times: Times { arrival_ns: ticket.arrival_ns, ..Times::default() },
                preemptions: 0,
                cumulative_logprob: params.logprobs.map(|_| 0.0),
                silent,
                kept: request.final_only.then(Delta::default),
                on_host: false,
                nan_logits: self.shared.options.debug.nan_logits_for == Some(ticket.user_data),
            };
            self.scheduler.add(new)?;
            self.choices.insert(id, choice);
            live.running.push(id);
        }
        Ok(())
    }

    /// The end-of-text id, and every other id that ends a choice: the request's own, and the
    /// model's further end-of-text ids.
    fn stop_ids(&self, params: &ResolvedParams) -> (Option<TokenId>, Vec<TokenId>) {
        let mut stop = params.stop_token_ids.clone();
        if params.ignore_eos {
            return (None, stop);
        }
        let generation = &self.shared.generation.eos_token_ids;
        let config = &self.shared.config.eos_token_ids;
        let tokenizer = self.shared.tokenizer.get().and_then(|t| t.eos_token_id());
        let eos = tokenizer.or(config.first().copied()).or(generation.first().copied());
        let listed = if generation.is_empty() { config } else { generation };
        for &id in listed {
            if Some(id) != eos && !stop.contains(&id) {
                stop.push(id);
            }
        }
        (eos, stop)
    }

    fn text_output(&self, params: &ResolvedParams, prompt: &[TokenId]) -> Option<TextOutput> {
        let tokenizer = self.shared.tokenizer.get().filter(|_| params.detokenize)?;
        let detokenizer = Detokenizer::new(
            tokenizer.clone(),
            prompt,
            params.skip_special_tokens,
            params.spaces_between_special_tokens,
        );
        let stops = StopStrings::new(params.stop.clone(), params.include_stop_str_in_output);
        Some(TextOutput::new(detokenizer, stops))
    }

    fn prompt_output(
        &self,
        request: &request::Request,
        prompt: &[TokenId],
        prompt_text: &Option<String>,
        top_n: Option<usize>,
    ) -> Result<PromptOutput> {
        let mut echo = None;
        if request.echo {
            let text = match (prompt_text, self.shared.tokenizer.get()) {
                (Some(text), _) => text.clone(),
                (None, Some(tokenizer)) => tokenizer.decode(prompt, false)?,
                (None, None) => String::new(),
            };
            echo = Some((text, prompt.to_vec()));
        }
        let mut logprobs = Vec::new();
        if top_n.is_some() {
            logprobs.try_reserve(prompt.len())?;
            logprobs.push(TokenLogprobs { chosen: None, top: Vec::new() });
        }
        Ok(PromptOutput { top_n, logprobs, echo })
    }

    /// A request's own seed plus the choice, or one drawn from the engine's seed.
    fn seed(&self, params: &ResolvedParams, request: u64, choice: u32) -> u64 {
        params.seed_of_choice(choice).unwrap_or_else(|| {
            mix(self.shared.options.seed ^ mix(request.wrapping_mul(1 << 20) + u64::from(choice)))
        })
    }
}

/// splitmix64's finalizer: <https://prng.di.unimi.it/splitmix64.c>.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
