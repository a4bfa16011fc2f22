//! Stop strings: the earliest match over text that comes in chunks.

/// What to do with a chunk of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that no later chunk can take back.
    pub text: String,
    /// The stop string that matched; nothing is emitted after it.
    pub matched: Option<String>,
}

/// Looks for stop strings in the text of one choice. The match that completes first wins, and of
/// those that complete together the first in the list. Text is held back only while it may still
/// be the beginning of a match.
///
/// Each stop string is followed by its own Knuth-Morris-Pratt automaton over bytes, so the cost is
/// linear in the text. UTF-8 synchronizes itself: matches and cuts fall on whole scalars.
pub struct StopStrings {
    automata: Vec<Automaton>,
    include: bool,
    held: String,
    done: bool,
}

struct Automaton {
    stop: String,
    /// `fallback[n]`: length of the longest proper border of the first `n + 1` bytes.
    fallback: Vec<usize>,
    /// Bytes of `stop` that the text ends with.
    state: usize,
}

impl StopStrings {
    /// Looks for the strings of `stop`; empty ones never match. `include` keeps the match in the
    /// text.
    pub fn new(stop: Vec<String>, include: bool) -> Self {
        let stop = stop.into_iter().filter(|stop| !stop.is_empty());
        Self {
            automata: stop.map(Automaton::new).collect(),
            include,
            held: String::new(),
            done: false,
        }
    }

    /// Takes the next chunk. Only matches that complete while `active` count (`min_tokens`): they
    /// may begin in earlier text.
    pub fn push(&mut self, text: &str, active: bool) -> StopOutcome {
        if self.done {
            return StopOutcome { text: String::new(), matched: None };
        }
        if self.automata.is_empty() {
            return StopOutcome { text: text.to_owned(), matched: None };
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (i, byte) in text.bytes().enumerate() {
            let mut matched = None;
            for automaton in &mut self.automata {
                if automaton.step(byte, active) && matched.is_none() {
                    matched = Some(automaton.stop.clone());
                }
            }
            if let Some(stop) = matched {
                let end = before + i + 1;
                // Its first byte is held: the state kept at least as many bytes back.
                let cut = if self.include { end } else { end - stop.len() };
                self.held.truncate(cut);
                self.done = true;
                return StopOutcome { text: std::mem::take(&mut self.held), matched: Some(stop) };
            }
        }
        let hold = self.automata.iter().map(|automaton| automaton.state).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - hold);
        StopOutcome { text: std::mem::replace(&mut self.held, rest), matched: None }
    }

    /// The text that was held back, when the output ends without a match.
    pub fn finish(&mut self) -> String {
        self.done = true;
        std::mem::take(&mut self.held)
    }
}

impl Automaton {
    fn new(stop: String) -> Self {
        let bytes = stop.as_bytes();
        let mut fallback = vec![0; bytes.len()];
        let mut len = 0;
        for i in 1..bytes.len() {
            while len > 0 && bytes[i] != bytes[len] {
                len = fallback[len - 1];
            }
            len += usize::from(bytes[i] == bytes[len]);
            fallback[i] = len;
        }
        Self { stop, fallback, state: 0 }
    }

    /// Takes a byte; true when the text now ends with the whole stop string and that counts.
    fn step(&mut self, byte: u8, active: bool) -> bool {
        let bytes = self.stop.as_bytes();
        while self.state > 0 && bytes[self.state] != byte {
            self.state = self.fallback[self.state - 1];
        }
        self.state += usize::from(bytes[self.state] == byte);
        if self.state < bytes.len() {
            return false;
        }
        // Matched or not, the next byte extends the longest proper border.
        self.state = self.fallback[self.state - 1];
        active
    }
}
