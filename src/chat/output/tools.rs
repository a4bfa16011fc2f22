//! Content and tool calls, told apart.

use std::sync::Arc;

use super::call::{Call, Step, Tool};
use super::format::ToolFormat;
use super::marker::{Matcher, Next};
use super::sink::Sink;

/// Looks for calls of one format in what follows the reasoning.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    format: Option<ToolFormat>,
    tools: Arc<[Tool]>,
    at: Place,
    matcher: Matcher,
    call: Option<Call>,
}

/// Where in the message the next text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Before anything but whitespace.
    Start,
    /// After content.
    Content,
    /// After a call, whose closing marker may come.
    Call,
    /// After a closing marker.
    Closed,
}

impl Tools {
    pub(super) fn new(format: Option<ToolFormat>, tools: Arc<[Tool]>) -> Self {
        Self { format, tools, at: Place::Start, matcher: Matcher::default(), call: None }
    }

    /// Whether all that follows is content, as it is.
    pub(super) fn is_off(&self, sink: &Sink) -> bool {
        self.format.is_none() && sink.gap.is_empty() && !sink.drop_gap
    }

    /// Takes a character.
    pub(super) fn push(&mut self, c: char, sink: &mut Sink) {
        let Some(call) = &mut self.call else { return self.text(c, sink) };
        sink.hold_char(c);
        match call.step(c, sink) {
            Step::More => {}
            Step::Done => {
                sink.forget();
                sink.drop_gap = true;
                (self.call, self.at) = (None, Place::Call);
            }
            Step::Bad => {
                sink.unhold_char();
                sink.release();
                (self.call, self.at) = (None, Place::Content);
                self.text(c, sink);
            }
        }
    }

    /// The end of the text.
    pub(super) fn finish(&mut self, sink: &mut Sink) {
        if let Some(mut call) = self.call.take() {
            call.finish(sink);
            sink.release();
        }
        sink.content(&self.matcher.take());
        if !sink.drop_gap {
            let gap = std::mem::take(&mut sink.gap);
            sink.content(&gap);
        }
    }

    fn text(&mut self, c: char, sink: &mut Sink) {
        if self.matcher.is_empty() && c.is_whitespace() {
            return self.space(c, sink);
        }
        self.matcher.push(c);
        loop {
            let markers = self.format.map_or(&[][..], |format| format.markers(self.at));
            match self.matcher.next(markers) {
                Next::Wait => return,
                Next::Text(t) if t.is_whitespace() => self.space(t, sink),
                Next::Text(t) => {
                    sink.content(t.encode_utf8(&mut [0; 4]));
                    self.at = Place::Content;
                }
                Next::Marker(i) => return self.marker(markers[i], sink),
            }
        }
    }

    fn marker(&mut self, marker: &str, sink: &mut Sink) {
        match self.format {
            Some(format) if !ToolFormat::is_closing(marker) => {
                sink.hold(marker);
                self.call = Some(Call::after(marker, format, &self.tools));
            }
            _ => {
                sink.gap.clear();
                self.at = Place::Closed;
            }
        }
        for c in self.matcher.take().chars() {
            self.push(c, sink);
        }
    }

    /// Whitespace waits for what follows it, where a call may follow.
    fn space(&mut self, c: char, sink: &mut Sink) {
        if self.format.is_some() || sink.drop_gap {
            sink.gap.push(c);
        } else {
            sink.content(c.encode_utf8(&mut [0; 4]));
        }
    }
}
