//! `VrustEvent`, and packing events into the host's memory.

use super::error::detail_json;
use super::status::{self, VRUST_OK, VrustStatus};
use crate::engine::{Delta, Event, EventKind, Finished, TokenLogprobs};
use crate::request::FinishReason;

/// `kind`: new output of one choice: text, tokens, logprobs.
pub const VRUST_EVENT_DELTA: u32 = 1;
/// `kind`: of the prompt, before any delta: logprobs if asked for; text and tokens with echo.
pub const VRUST_EVENT_PROMPT: u32 = 2;
/// `kind`: a choice ended: reason, token counts, times.
pub const VRUST_EVENT_FINISHED: u32 = 3;
/// `kind`: the whole request failed: `status`, message in text, details as JSON.
pub const VRUST_EVENT_ERROR: u32 = 4;
/// `kind`: the engine is loading: `value` is the fraction done; 1: ready. On the default queue.
pub const VRUST_EVENT_LOAD: u32 = 5;
/// `kind`: the engine failed: `status`, message in text, details as JSON. On every queue.
pub const VRUST_EVENT_ENGINE_FAILED: u32 = 6;

/// `flags`: nothing more comes for this request.
pub const VRUST_EVENT_LAST: u32 = 1;

/// `finish_reason`: the end-of-text token.
pub const VRUST_FINISH_EOS: u32 = 1;
/// `finish_reason`: a token of `stop_token_ids`, given in `stop_token_id`.
pub const VRUST_FINISH_STOP_TOKEN: u32 = 2;
/// `finish_reason`: a stop string, given in detail.
pub const VRUST_FINISH_STOP_STRING: u32 = 3;
/// `finish_reason`: `max_tokens` or the model's context.
pub const VRUST_FINISH_LENGTH: u32 = 4;
/// `finish_reason`: the host aborted the request, or destroyed its queue or its engine.
pub const VRUST_FINISH_ABORT: u32 = 5;
/// `finish_reason`: the request's deadline passed.
pub const VRUST_FINISH_DEADLINE: u32 = 6;

/// One event. It holds no pointers: what varies in size lies in the arena of the same poll, at the
/// offsets given (in bytes from the arena's beginning; tokens and logprobs at multiples of 4).
/// Fields that a kind does not use are 0.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct VrustEvent {
    /// The request; 0 for events of the engine.
    pub request_id: u64,
    /// The request's own `user_data`.
    pub user_data: u64,
    /// CLOCK_MONOTONIC time, in nanoseconds, of the newest part of the event.
    pub time_ns: u64,
    /// VRUST_EVENT_*. Skip kinds that you do not know.
    pub kind: u32,
    /// The choice, 0 to n - 1.
    pub choice: u32,
    /// VRUST_EVENT_LAST.
    pub flags: u32,
    /// Of ERROR and ENGINE_FAILED: why.
    pub status: VrustStatus,
    /// Where the text begins. Whole UTF-8 scalars, not NUL-terminated.
    pub text_offset: u32,
    /// Bytes of text. May be 0 while a scalar or a possible stop string is incomplete.
    pub text_len: u32,
    /// Where the token ids begin, each a uint32_t. Their text may come with a later event.
    pub tokens_offset: u32,
    /// Number of token ids.
    pub num_tokens: u32,
    /// Where the VrustLogprob records begin.
    pub logprobs_offset: u32,
    /// Number of records.
    pub num_logprobs: u32,
    /// Where the detail begins: the stop string of FINISHED, the JSON object of an error.
    pub detail_offset: u32,
    /// Bytes of detail.
    pub detail_len: u32,
    /// Of FINISHED: VRUST_FINISH_*.
    pub finish_reason: u32,
    /// Of FINISHED by VRUST_FINISH_STOP_TOKEN: the token.
    pub stop_token_id: u32,
    /// Of FINISHED: tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of FINISHED: those of them that were found in the prefix cache.
    pub cached_tokens: u32,
    /// Of FINISHED: tokens generated for this choice.
    pub completion_tokens: u32,
    /// Of LOAD: the fraction done. Of FINISHED: the sum of the chosen tokens' logprobs, if asked
    /// for.
    pub value: f32,
    /// Of FINISHED: when the request was submitted, as `time_ns`.
    pub arrival_ns: u64,
    /// Of FINISHED: when the choice was first scheduled; 0: never.
    pub scheduled_ns: u64,
    /// Of FINISHED: when its first token was sampled; 0: never.
    pub first_token_ns: u64,
    /// Of FINISHED: when its last token was sampled; 0: never.
    pub last_token_ns: u64,
}

/// The log probability of one token at one place, before penalties, bias and temperature. The
/// records of a place stand together: first the token that was chosen (of a prompt: that is
/// there), then the most likely tokens, best first, which may repeat it. The first token of a
/// prompt has no records.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct VrustLogprob {
    /// The place: index into the event's tokens, or of VRUST_EVENT_PROMPT into the prompt.
    pub position: u32,
    /// The token.
    pub token_id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// 1 for the most likely token.
    pub rank: u32,
}

/// Size of the first version of `VrustEvent`: a smaller `stride` cannot be meant.
pub(super) const MIN_STRIDE: usize = 128;
/// Largest `stride` that can be meant: the places are written to their end.
pub(super) const MAX_STRIDE: usize = 4096;

const _: () = assert!(size_of::<VrustEvent>() == MIN_STRIDE);

/// Packs events into the host's array and arena.
pub(super) struct Packer {
    events: *mut u8,
    stride: usize,
    capacity: usize,
    arena: Arena,
    /// Events packed.
    pub(super) count: usize,
    /// Bytes that the first event needs, when it did not fit.
    pub(super) needed: usize,
}

impl Packer {
    /// # Safety
    /// `capacity * stride` bytes at `events` and `arena_capacity` bytes at `arena` are writable
    /// while the packer lives.
    pub(super) unsafe fn new(
        events: *mut VrustEvent,
        stride: usize,
        capacity: usize,
        arena: *mut u8,
        arena_capacity: usize,
    ) -> Self {
        // Offsets are u32.
        let capacity_bytes = arena_capacity.min(u32::MAX as usize);
        let arena = Arena { data: arena, used: 0, capacity: capacity_bytes };
        Self { events: events.cast(), stride, capacity, arena, count: 0, needed: 0 }
    }

    /// Packs one event; false if there is no room for it.
    pub(super) fn push(&mut self, event: &Event) -> bool {
        if self.count == self.capacity {
            return false;
        }
        let detail = detail(&event.kind);
        let payload = payload(&event.kind);
        let needed = self.arena.used_after(&payload, &detail);
        if needed > self.arena.capacity {
            if self.count == 0 {
                self.needed = needed;
            }
            return false;
        }
        let mut record = header(event);
        self.arena.put(&mut record, &payload, &detail);
        self.write(&record);
        self.count += 1;
        true
    }

    /// Bytes of the arena in use.
    pub(super) fn bytes(&self) -> usize {
        self.arena.used
    }

    /// Writes as much of the record as the host knows of, and zeros past what we know.
    fn write(&mut self, record: &VrustEvent) {
        let known = size_of::<VrustEvent>().min(self.stride);
        // SAFETY: `new`'s caller promised `capacity` places of `stride` bytes, and `count` is
        // below `capacity`. Bytes, as the place may be unaligned; the record has no padding.
        unsafe {
            let place = self.events.add(self.count * self.stride);
            place.copy_from_nonoverlapping((&raw const *record).cast(), known);
            place.add(known).write_bytes(0, self.stride - known);
        }
    }
}

/// The parts of an event that vary in size.
#[derive(Default)]
struct Payload<'a> {
    text: &'a str,
    delta: Option<&'a Delta>,
}

impl Payload<'_> {
    fn num_tokens(&self) -> usize {
        self.delta.map_or(0, |d| d.token_ids.len())
    }

    fn num_logprobs(&self) -> usize {
        self.delta.map_or(0, |d| d.logprobs.iter().map(num_records).sum())
    }
}

fn num_records(at: &TokenLogprobs) -> usize {
    usize::from(at.chosen.is_some()) + at.top.len()
}

/// The host's arena. Every write is within `capacity`, which `used_after` is checked against.
struct Arena {
    data: *mut u8,
    used: usize,
    capacity: usize,
}

impl Arena {
    /// Bytes in use once an event is added: text, detail, then what is aligned.
    fn used_after(&self, payload: &Payload<'_>, detail: &str) -> usize {
        let text_end = self.used + payload.text.len() + detail.len();
        let (tokens, logprobs) = (payload.num_tokens(), payload.num_logprobs());
        if tokens + logprobs == 0 {
            return text_end;
        }
        text_end.next_multiple_of(4) + 4 * tokens + size_of::<VrustLogprob>() * logprobs
    }

    fn put(&mut self, record: &mut VrustEvent, payload: &Payload<'_>, detail: &str) {
        (record.text_offset, record.text_len) = self.put_bytes(payload.text.as_bytes());
        (record.detail_offset, record.detail_len) = self.put_bytes(detail.as_bytes());
        let Some(delta) = payload.delta else { return };
        record.num_tokens = payload.num_tokens() as u32;
        record.num_logprobs = payload.num_logprobs() as u32;
        if record.num_tokens + record.num_logprobs == 0 {
            return;
        }
        self.used = self.used.next_multiple_of(4);
        record.tokens_offset = self.used as u32;
        for id in &delta.token_ids {
            self.put_bytes(&id.0.to_ne_bytes());
        }
        record.logprobs_offset = self.used as u32;
        for (position, at) in delta.logprobs.iter().enumerate() {
            for entry in at.chosen.iter().chain(&at.top) {
                self.put_bytes(&(position as u32).to_ne_bytes());
                self.put_bytes(&entry.token_id.0.to_ne_bytes());
                self.put_bytes(&entry.logprob.to_ne_bytes());
                self.put_bytes(&entry.rank.to_ne_bytes());
            }
        }
    }

    /// Appends bytes; returns where, and how many.
    fn put_bytes(&mut self, bytes: &[u8]) -> (u32, u32) {
        if bytes.is_empty() {
            return (0, 0);
        }
        let offset = self.used;
        assert!(offset + bytes.len() <= self.capacity, "used_after was checked");
        // SAFETY: within `capacity` (asserted), which `Packer::new`'s caller promised writable;
        // the engine's memory and the host's do not overlap.
        unsafe {
            let place = self.data.add(offset);
            place.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        self.used += bytes.len();
        (offset as u32, bytes.len() as u32)
    }
}

fn payload(kind: &EventKind) -> Payload<'_> {
    match kind {
        EventKind::Delta(d) | EventKind::Prompt(d) => Payload { text: &d.text, delta: Some(d) },
        EventKind::Error(e) | EventKind::EngineFailed(e) => {
            Payload { text: e.message(), delta: None }
        }
        EventKind::Finished(_) | EventKind::Load(_) => Payload::default(),
    }
}

fn detail(kind: &EventKind) -> String {
    match kind {
        EventKind::Error(e) | EventKind::EngineFailed(e) => detail_json(e),
        EventKind::Finished(finished) => match &finished.reason {
            FinishReason::StopString(stop) => stop.clone(),
            _ => String::new(),
        },
        _ => String::new(),
    }
}

/// Everything but what lies in the arena.
fn header(event: &Event) -> VrustEvent {
    let record = VrustEvent {
        request_id: event.request_id.0,
        user_data: event.user_data,
        time_ns: event.time_ns,
        choice: event.choice,
        flags: if event.last { VRUST_EVENT_LAST } else { 0 },
        status: VRUST_OK,
        ..VrustEvent::default()
    };
    match &event.kind {
        EventKind::Delta(_) => VrustEvent { kind: VRUST_EVENT_DELTA, ..record },
        EventKind::Prompt(_) => VrustEvent { kind: VRUST_EVENT_PROMPT, ..record },
        EventKind::Finished(finished) => finished_record(finished, record),
        EventKind::Error(e) => {
            VrustEvent { kind: VRUST_EVENT_ERROR, status: status::of_kind(e.kind()), ..record }
        }
        EventKind::Load(fraction) => {
            VrustEvent { kind: VRUST_EVENT_LOAD, value: *fraction, ..record }
        }
        EventKind::EngineFailed(e) => {
            let status = status::of_kind(e.kind());
            VrustEvent { kind: VRUST_EVENT_ENGINE_FAILED, status, ..record }
        }
    }
}

fn finished_record(finished: &Finished, record: VrustEvent) -> VrustEvent {
    let (finish_reason, stop_token_id) = match &finished.reason {
        FinishReason::Eos => (VRUST_FINISH_EOS, 0),
        FinishReason::StopToken(id) => (VRUST_FINISH_STOP_TOKEN, id.0),
        FinishReason::StopString(_) => (VRUST_FINISH_STOP_STRING, 0),
        FinishReason::Length => (VRUST_FINISH_LENGTH, 0),
        FinishReason::Abort => (VRUST_FINISH_ABORT, 0),
        FinishReason::Deadline => (VRUST_FINISH_DEADLINE, 0),
    };
    VrustEvent {
        kind: VRUST_EVENT_FINISHED,
        finish_reason,
        stop_token_id,
        prompt_tokens: finished.usage.prompt_tokens,
        cached_tokens: finished.usage.cached_tokens,
        completion_tokens: finished.usage.completion_tokens,
        value: finished.cumulative_logprob.unwrap_or(0.0),
        arrival_ns: finished.times.arrival_ns,
        scheduled_ns: finished.times.scheduled_ns,
        first_token_ns: finished.times.first_token_ns,
        last_token_ns: finished.times.last_token_ns,
        ..record
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Logprob;
    use crate::error::Error;
    use crate::ids::{RequestId, TokenId};

    fn event(kind: EventKind) -> Event {
        let request_id = RequestId(7);
        Event { request_id, user_data: 8, choice: 1, last: true, time_ns: 9, kind }
    }

    fn delta() -> Event {
        let entry = |id, rank| Logprob { token_id: TokenId(id), logprob: -0.5, rank };
        event(EventKind::Delta(Delta {
            text: "abc".to_owned(),
            token_ids: vec![TokenId(5), TokenId(6)],
            logprobs: vec![
                TokenLogprobs { chosen: None, top: vec![] },
                TokenLogprobs { chosen: Some(entry(6, 2)), top: vec![entry(1, 1)] },
            ],
        }))
    }

    fn pack(events: &[Event], stride: usize, arena: &mut [u8]) -> (Vec<u8>, usize, usize, usize) {
        let mut places = vec![0xaa; 4 * stride];
        let pointer = places.as_mut_ptr().cast();
        // SAFETY: four places of `stride` bytes, and an arena, that outlive the packer.
        let mut packer =
            unsafe { Packer::new(pointer, stride, 4, arena.as_mut_ptr(), arena.len()) };
        events.iter().take_while(|e| packer.push(e)).count();
        let (count, used, needed) = (packer.count, packer.bytes(), packer.needed);
        (places, count, used, needed)
    }

    fn record(places: &[u8], stride: usize, index: usize) -> VrustEvent {
        let bytes = &places[index * stride..][..MIN_STRIDE];
        // SAFETY: the bytes of a packed record, of which every bit pattern is valid.
        unsafe { bytes.as_ptr().cast::<VrustEvent>().read_unaligned() }
    }

    #[test]
    fn a_delta_lies_in_the_arena() {
        let mut arena = [0u8; 64];
        let (places, count, used, _) = pack(&[delta(), delta()], 136, &mut arena);
        assert_eq!((count, used), (1, 44)); // 3 bytes, 1 of padding, 2 x 4, 2 x 16
        let r = record(&places, 136, 0);
        assert_eq!((r.kind, r.request_id, r.user_data, r.choice), (VRUST_EVENT_DELTA, 7, 8, 1));
        assert_eq!((r.flags, r.text_offset, r.text_len), (VRUST_EVENT_LAST, 0, 3));
        assert_eq!((r.tokens_offset, r.num_tokens), (4, 2));
        assert_eq!((r.logprobs_offset, r.num_logprobs), (12, 2));
        let word = |at: usize| u32::from_ne_bytes(arena[at..at + 4].try_into().unwrap());
        assert_eq!((word(4), word(8)), (5, 6));
        assert_eq!((word(12), word(16), word(24)), (1, 6, 2));
        assert_eq!((word(28), word(32), word(40)), (1, 1, 1));
        assert_eq!(places[MIN_STRIDE..136], [0; 8], "a newer host's fields are zeros");
    }

    #[test]
    fn an_event_that_does_not_fit_says_what_it_needs() {
        assert_eq!(pack(&[delta()], MIN_STRIDE, &mut [0; 43]).1, 0);
        assert_eq!(pack(&[delta()], MIN_STRIDE, &mut [0; 43]).3, 44);
        assert_eq!(pack(&[delta()], MIN_STRIDE, &mut [0; 44]).1, 1);
        assert_eq!(pack(&[event(EventKind::Load(0.5))], MIN_STRIDE, &mut []).1, 1);
    }

    #[test]
    fn an_error_has_message_and_detail() {
        let mut arena = [0u8; 64];
        let failure = EventKind::Error(Error::invalid("x", "bad"));
        let (places, _, used, _) = pack(&[event(failure)], MIN_STRIDE, &mut arena);
        let r = record(&places, MIN_STRIDE, 0);
        assert_eq!((r.status, r.kind), (-1, VRUST_EVENT_ERROR));
        let detail = &arena[r.detail_offset as usize..][..r.detail_len as usize];
        assert_eq!((&arena[..3], detail, used), (&b"bad"[..], &b"{\"field\":\"x\"}"[..], 16));
    }
}
