//! Markers such as `<tool_call>`, found in text that comes a character at a time.

/// The end of the text so far, as long as it may be the beginning of a marker.
#[derive(Clone, Debug, Default)]
pub(super) struct Matcher {
    held: String,
}

/// What a matcher knows.
pub(super) enum Next {
    /// Nothing more before another character comes.
    Wait,
    /// A marker, by its place in the list.
    Marker(usize),
    /// A character that belongs to no marker.
    Text(char),
}

impl Matcher {
    pub(super) fn push(&mut self, c: char) {
        self.held.push(c);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Takes out what comes first. Ask until `Wait`; the markers may change in between.
    pub(super) fn next(&mut self, markers: &[&str]) -> Next {
        let Some(first) = self.held.chars().next() else { return Next::Wait };
        if let Some(i) = markers.iter().position(|m| self.held.starts_with(m)) {
            self.held.drain(..markers[i].len());
            return Next::Marker(i);
        }
        if markers.iter().any(|m| m.starts_with(&self.held)) {
            return Next::Wait;
        }
        self.held.drain(..first.len_utf8());
        Next::Text(first)
    }

    /// Takes out everything.
    pub(super) fn take(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}
