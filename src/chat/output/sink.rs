//! Where the parts of a message are put together.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// A part of a message, in the order of the model's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Reasoning, to be appended.
    Reasoning(String),
    /// Content, to be appended.
    Content(String),
    /// A tool call begins.
    ToolCall {
        /// 0 for the first call of a message.
        index: usize,
        /// Made up by the parser, as the model names none.
        id: String,
        /// The function's name, whole.
        name: String,
    },
    /// Arguments of the newest tool call, to be appended: together they are one JSON object.
    Arguments {
        /// The call's index.
        index: usize,
        /// A fragment of JSON.
        text: String,
    },
}

/// How a format spells the ids of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IdStyle {
    /// `call_` and 24 letters and digits, as OpenAI's.
    OpenAi,
    /// Nine letters and digits: Mistral's templates refuse anything else.
    Nine,
}

/// The parts so far, and the text whose part is not decided.
#[derive(Clone, Debug)]
pub(super) struct Sink {
    parts: Vec<Part>,
    /// Whitespace that is content if content follows, and framing if a call does.
    pub(super) gap: String,
    /// The gap follows a marker: it is framing in any case.
    pub(super) drop_gap: bool,
    /// A call's text since the last part: content, should the call be malformed.
    held: String,
    num_calls: usize,
    id_style: IdStyle,
    ids: u64,
}

impl Sink {
    pub(super) fn new(id_style: IdStyle) -> Self {
        let ids = RandomState::new().build_hasher().finish();
        Self {
            parts: Vec::new(),
            gap: String::new(),
            drop_gap: false,
            held: String::new(),
            num_calls: 0,
            id_style,
            ids,
        }
    }

    /// The parts since the last time.
    pub(super) fn take(&mut self) -> Vec<Part> {
        std::mem::take(&mut self.parts)
    }

    /// Ready for another message, whose ids are other ones.
    pub(super) fn reset(&mut self) {
        *self = Self { ids: self.ids, ..Self::new(self.id_style) };
    }

    pub(super) fn reasoning(&mut self, text: &str) {
        match self.parts.last_mut() {
            _ if text.is_empty() => {}
            Some(Part::Reasoning(last)) => last.push_str(text),
            _ => self.parts.push(Part::Reasoning(text.to_owned())),
        }
    }

    /// Content, after the gap before it.
    pub(super) fn content(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let gap = match self.drop_gap {
            true => "",
            false => self.gap.as_str(),
        };
        match self.parts.last_mut() {
            Some(Part::Content(last)) => {
                last.push_str(gap);
                last.push_str(text);
            }
            _ => self.parts.push(Part::Content(format!("{gap}{text}"))),
        }
        self.gap.clear();
        self.drop_gap = false;
    }

    /// Text of a call that no part has yet.
    pub(super) fn hold(&mut self, text: &str) {
        self.held.push_str(text);
    }

    /// The same of one character.
    pub(super) fn hold_char(&mut self, c: char) {
        self.held.push(c);
    }

    /// Takes the last held character back.
    pub(super) fn unhold_char(&mut self) {
        self.held.pop();
    }

    /// The held text was framing.
    pub(super) fn forget(&mut self) {
        self.held.clear();
    }

    /// The held text was no call: it is content.
    pub(super) fn release(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.content(&held);
    }

    /// A call begins: what was held belongs to it.
    pub(super) fn start_call(&mut self, name: &str) {
        let id = self.next_id();
        self.start_call_with_id(name, id);
    }

    /// The same, of a call that has an id.
    pub(super) fn start_call_with_id(&mut self, name: &str, id: String) {
        let index = self.num_calls;
        self.num_calls += 1;
        self.parts.push(Part::ToolCall { index, id, name: name.to_owned() });
        self.gap.clear();
        self.held.clear();
    }

    /// Arguments of the newest call.
    pub(super) fn arguments(&mut self, fragment: &str) {
        if fragment.is_empty() {
            return;
        }
        let index = self.num_calls.saturating_sub(1);
        match self.parts.last_mut() {
            Some(Part::Arguments { text, .. }) => text.push_str(fragment),
            _ => self.parts.push(Part::Arguments { index, text: fragment.to_owned() }),
        }
        self.held.clear();
    }

    /// Names need not be secret, only unlikely to meet: splitmix64 from a random seed.
    fn next_id(&mut self) -> String {
        const LETTERS: &[u8; 62] =
            b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let (mut id, len) = match self.id_style {
            IdStyle::OpenAi => ("call_".to_owned(), 24),
            IdStyle::Nine => (String::new(), 9),
        };
        for _ in 0..len {
            self.ids = self.ids.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.ids;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            id.push(char::from(LETTERS[((z ^ (z >> 31)) % 62) as usize]));
        }
        id
    }
}
