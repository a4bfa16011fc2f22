//! The reasoning before a message: `<think>..</think>`.

use super::marker::{Matcher, Next};
use super::sink::Sink;

/// Splits the reasoning off. It comes first or not at all.
#[derive(Clone, Debug)]
pub(super) struct Reasoning {
    open: &'static str,
    close: &'static str,
    at: At,
    matcher: Matcher,
    /// Whitespace of which it is open what it belongs to.
    gap: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before anything but whitespace.
    Start,
    /// Inside, before anything but whitespace.
    Opened,
    Inside,
    Over,
}

impl Reasoning {
    pub(super) fn new(markers: (&'static str, &'static str), is_open: bool) -> Self {
        let (open, close) = markers;
        let at = if is_open { At::Opened } else { At::Start };
        Self { open, close, at, matcher: Matcher::default(), gap: String::new() }
    }

    /// Whether all that follows is no reasoning.
    pub(super) fn is_over(&self) -> bool {
        self.at == At::Over
    }

    /// Takes a character. Appends to `rest` what turns out to be no reasoning.
    pub(super) fn push(&mut self, c: char, sink: &mut Sink, rest: &mut String) {
        if self.matcher.is_empty() && c.is_whitespace() {
            return self.space(c);
        }
        self.matcher.push(c);
        loop {
            let found = match self.at {
                At::Start => self.matcher.next(&[self.open]),
                At::Opened => self.matcher.next(&[self.close, self.open]),
                At::Inside => self.matcher.next(&[self.close]),
                At::Over => return rest.push_str(&self.matcher.take()),
            };
            match (found, self.at) {
                (Next::Wait, _) => return,
                (Next::Marker(0), At::Opened | At::Inside) => {
                    self.at = At::Over;
                    self.gap.clear();
                    sink.drop_gap = true;
                }
                // The prompt has opened it, and the model does again.
                (Next::Marker(_), _) => {
                    self.at = At::Opened;
                    self.gap.clear();
                }
                (Next::Text(t), At::Start) => {
                    self.at = At::Over;
                    rest.push_str(&std::mem::take(&mut self.gap));
                    rest.push(t);
                }
                (Next::Text(t), _) if t.is_whitespace() => self.space(t),
                (Next::Text(t), _) => {
                    self.at = At::Inside;
                    self.gap.push(t);
                    sink.reasoning(&std::mem::take(&mut self.gap));
                }
            }
        }
    }

    /// The end of the text.
    pub(super) fn finish(&mut self, sink: &mut Sink, rest: &mut String) {
        let mut text = std::mem::take(&mut self.gap);
        text.push_str(&self.matcher.take());
        match self.at {
            At::Start | At::Over => rest.push_str(&text),
            At::Opened | At::Inside => sink.reasoning(&text),
        }
    }

    fn space(&mut self, c: char) {
        if self.at != At::Opened {
            self.gap.push(c);
        }
    }
}
