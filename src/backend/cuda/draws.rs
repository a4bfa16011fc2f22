//! Drawing tokens on the device: how goes there in one copy, what came of it back in another.
//!
//! ```text
//!  to the device:  rows | places of targets | targets | zeros | rules | masks | edits | seen
//!  to the host:    tokens | scales | logits | ranks | top tokens | top logits
//! ```
//!
//! Both are packed by the numbers of the step. Everything that comes back is 32 bits wide but the
//! sums in the scales.

use std::collections::VecDeque;
use std::sync::Arc;

use super::driver::{DevicePtr, Event, Pinned, Stream};
use super::step::{NOBODY, aligned, fill};
use crate::backend::{DrawRule, Drawn};
use crate::error::Result;
use crate::ids::TokenId;
use crate::request::RowScores;

/// Most of the most likely tokens that a row may ask for.
pub(super) const MAX_TOP: usize = 64;
/// Words of a `SampleRow` of kernels/README.md.
const RULE_WORDS: usize = 16;
/// Words of a `RowScale`.
pub(super) const SCALE_WORDS: usize = 4;
/// Words for the changes of one row, beside a mask, that there is always room for.
const CHANGES_ROOM: usize = 512;
/// Most words for changes.
const MAX_CHANGES_ROOM: usize = 1 << 20;

/// Sizes of the memory, in words.
#[derive(Clone, Copy)]
pub(super) struct DrawLimits {
    /// Most rows of a step.
    pub(super) rows: usize,
    changes: usize,
}

impl DrawLimits {
    /// For `rows` rows, of which `seqs` may have changes of `vocabulary` logits.
    pub(super) fn new(rows: usize, seqs: usize, vocabulary: usize) -> Self {
        let changes = seqs * (vocabulary.div_ceil(32) + CHANGES_ROOM);
        Self { rows, changes: changes.min(MAX_CHANGES_ROOM) }
    }

    /// Words that go to the device.
    pub(super) fn input(&self) -> usize {
        Input::new(self.rows, self.rows).rules + RULE_WORDS * self.rows + aligned(self.changes)
    }

    /// Words that come back.
    pub(super) fn output(&self) -> usize {
        Output::new(self.rows, Some(MAX_TOP)).end()
    }
}

/// Where the parts of the input lie that every step has.
#[derive(Clone, Copy)]
struct Input {
    places: usize,
    targets: usize,
    zeros: usize,
    rules: usize,
}

impl Input {
    fn new(rows: usize, num_targets: usize) -> Self {
        let places = aligned(rows);
        let targets = places + aligned(2 * num_targets);
        let zeros = targets + aligned(num_targets);
        Self { places, targets, zeros, rules: zeros + aligned(rows) }
    }
}

/// Where the parts of the output lie. Tokens come first: the next step finds them there.
#[derive(Clone, Copy)]
pub(super) struct Output {
    rows: usize,
    /// `None`: nobody asked for scores.
    pub(super) top: Option<usize>,
}

impl Output {
    fn new(rows: usize, top: Option<usize>) -> Self {
        Self { rows, top }
    }

    pub(super) fn scale(&self, row: usize) -> usize {
        aligned(self.rows) + SCALE_WORDS * row
    }

    pub(super) fn logit(&self, row: usize) -> usize {
        self.scale(self.rows) + row
    }

    pub(super) fn rank(&self, row: usize) -> usize {
        self.logit(self.rows) + row
    }

    pub(super) fn top_tokens(&self, row: usize) -> usize {
        self.rank(self.rows) + self.top.unwrap_or(0) * row
    }

    pub(super) fn top_logits(&self, row: usize) -> usize {
        self.top_tokens(self.rows) + self.top.unwrap_or(0) * row
    }

    fn end(&self) -> usize {
        if self.top.is_some() { self.top_logits(self.rows) } else { aligned(self.rows) }
    }
}

/// A step's draws as they lie in device memory.
#[derive(Clone, Copy)]
pub(super) struct Planned {
    pub(super) rows: DevicePtr,
    /// A row, and which target it scores.
    pub(super) places: DevicePtr,
    pub(super) targets: DevicePtr,
    pub(super) zeros: DevicePtr,
    rules: DevicePtr,
    pub(super) edits: DevicePtr,
    pub(super) seen: DevicePtr,
    pub(super) masks: DevicePtr,
    /// Of tokens and everything else that comes back.
    pub(super) output: DevicePtr,
    pub(super) parts: Output,
    /// Rows that score a given token.
    pub(super) num_targets: usize,
}

impl Planned {
    /// The rules from row `first` on.
    pub(super) fn rules(&self, first: usize) -> DevicePtr {
        self.rules + (4 * RULE_WORDS * first) as u64
    }

    /// A word of the output.
    pub(super) fn word(&self, word: usize) -> DevicePtr {
        self.output + 4 * word as u64
    }
}

/// A step that was submitted.
struct Submitted {
    parts: Output,
    turn: usize,
    /// By row: the most likely tokens to report, if it has scores.
    top_n: Vec<Option<usize>>,
}

/// The memory that draws go through. Steps use the host's two sides in turn.
pub(super) struct Draws {
    limits: DrawLimits,
    input: [Pinned; 2],
    output: [Pinned; 2],
    done: [Event; 2],
    input_device: DevicePtr,
    output_device: DevicePtr,
    turn: usize,
    submitted: VecDeque<Submitted>,
    changes: ChangeLists,
    targets: Vec<(u32, TokenId)>,
}

impl Draws {
    /// Both addresses are memory of as many words as `limits` says.
    pub(super) fn new(limits: DrawLimits, input: DevicePtr, output: DevicePtr) -> Result<Self> {
        let pinned = |words: usize| Pinned::new(4 * words);
        Ok(Self {
            limits,
            input: [pinned(limits.input())?, pinned(limits.input())?],
            output: [pinned(limits.output())?, pinned(limits.output())?],
            done: [Event::new()?, Event::new()?],
            input_device: input,
            output_device: output,
            turn: 0,
            submitted: VecDeque::new(),
            changes: ChangeLists::default(),
            targets: Vec::new(),
        })
    }

    /// Where the tokens lie that the step submitted last drew.
    pub(super) fn tokens(&self) -> DevicePtr {
        self.output_device
    }

    /// Writes what the device needs for these rows, of `vocab` logits each, and adds the copy to
    /// the stream. `None`, and nothing done, where there is no room.
    pub(super) fn plan(
        &mut self,
        stream: &Stream,
        rows: &[u32],
        rules: &[DrawRule],
        vocab: usize,
    ) -> Result<Option<Planned>> {
        assert_eq!(rows.len(), rules.len(), "each row has a rule");
        assert!(self.submitted.len() < 2, "a step is collected before the one after the next");
        let most_top = vocab.min(MAX_TOP);
        let fits = |rule: &DrawRule| rule.top_n.is_none_or(|n| n.min(vocab) <= most_top);
        if rows.len() > self.limits.rows || !rules.iter().all(fits) {
            return Ok(None);
        }
        self.changes.gather(rules, vocab);
        if self.changes.words() > self.limits.changes {
            return Ok(None);
        }
        self.targets.clear();
        let targets = (0..).zip(rules).filter_map(|(row, rule)| Some((row, rule.target?)));
        self.targets.extend(targets);
        let turn = self.turn ^ 1;
        let parts = Input::new(rows.len(), self.targets.len());
        let masks = parts.rules + RULE_WORDS * rules.len();
        let words = self.input[turn].words_mut();
        fill(&mut words[..rows.len()], rows.iter().copied(), 0);
        let places = (0..).zip(&self.targets).flat_map(|(i, &(row, _))| [row, i]);
        fill(&mut words[parts.places..][..2 * self.targets.len()], places, 0);
        let targets = self.targets.iter().map(|(_, token)| token.0);
        fill(&mut words[parts.targets..][..self.targets.len()], targets, 0);
        words[parts.zeros..parts.rules].fill(0);
        for (row, rule) in rules.iter().enumerate() {
            let to = &mut words[parts.rules + RULE_WORDS * row..][..RULE_WORDS];
            to.copy_from_slice(&rule_words(rule, &self.changes.rows[row]));
        }
        let end = self.changes.write(words, masks);
        let seen = end - 2 * self.changes.seen.len();
        let edits = seen - 2 * self.changes.edits.len();
        // SAFETY: the device's memory is as long as the host's, which is written again only after
        // this step was collected.
        unsafe { stream.copy_to_device(self.input_device, &self.input[turn], 0, 4 * end)? };
        self.turn = turn;
        let top = rules.iter().filter_map(|rule| rule.top_n).max().map(|n| n.min(vocab));
        let output = Output::new(rows.len(), top);
        let top_n = rules.iter().map(|rule| rule.top_n.map(|n| n.min(vocab))).collect();
        self.submitted.push_back(Submitted { parts: output, turn, top_n });
        let at = |word: usize| self.input_device + 4 * word as u64;
        Ok(Some(Planned {
            rows: at(0),
            places: at(parts.places),
            targets: at(parts.targets),
            zeros: at(parts.zeros),
            rules: at(parts.rules),
            edits: at(edits),
            seen: at(seen),
            masks: at(masks),
            output: self.output_device,
            parts: output,
            num_targets: self.targets.len(),
        }))
    }

    /// Adds the copy of what came of the planned rows to the stream.
    pub(super) fn copy_back(&mut self, stream: &Stream) -> Result<()> {
        let Some(last) = self.submitted.back() else { return Ok(()) };
        let bytes = 4 * last.parts.end();
        if bytes == 0 {
            return self.done[last.turn].record(stream);
        }
        // SAFETY: the device's memory is as long as the host's, which is read only after the event.
        unsafe { stream.copy_to_host(&mut self.output[last.turn], self.output_device, bytes)? };
        self.done[last.turn].record(stream)
    }

    /// Waits for the oldest step and reads what came of it.
    pub(super) fn collect(&mut self) -> Result<Vec<Drawn>> {
        let Some(Submitted { parts, turn, top_n }) = self.submitted.pop_front() else {
            return Ok(Vec::new());
        };
        self.done[turn].synchronize()?;
        let words = self.output[turn].words_mut();
        let drawn = |(row, top_n): (usize, Option<usize>)| {
            let token = Some(TokenId(words[row])).filter(|token| token.0 != NOBODY);
            Drawn { token, scores: top_n.map(|n| scores(words, &parts, row, n)) }
        };
        Ok(top_n.into_iter().enumerate().map(drawn).collect())
    }
}

fn scores(words: &[u32], parts: &Output, row: usize, top_n: usize) -> RowScores {
    let scale = &words[parts.scale(row)..][..SCALE_WORDS];
    let tokens = &words[parts.top_tokens(row)..][..top_n];
    let logits = &words[parts.top_logits(row)..][..top_n];
    let top = tokens.iter().zip(logits).map(|(&t, &x)| (TokenId(t), f32::from_bits(x))).collect();
    RowScores {
        max: f32::from_bits(scale[0]),
        sum: f64::from_bits(u64::from(scale[3]) << 32 | u64::from(scale[2])),
        logit: f32::from_bits(words[parts.logit(row)]),
        rank: words[parts.rank(row)],
        top,
    }
}

/// A row's ranges of the lists.
#[derive(Clone, Copy, Default)]
struct RowChanges {
    edits: (u32, u32),
    seen: (u32, u32),
    mask: Option<u32>,
}

/// The changes of all rows, one list a kind.
#[derive(Default)]
struct ChangeLists {
    rows: Vec<RowChanges>,
    /// Rows with the same allowed tokens share a mask.
    masks: Vec<Arc<[TokenId]>>,
    mask_words: usize,
    edits: Vec<[u32; 2]>,
    seen: Vec<[u32; 2]>,
}

impl ChangeLists {
    fn gather(&mut self, rules: &[DrawRule], vocab: usize) {
        self.rows.clear();
        self.masks.clear();
        self.edits.clear();
        self.seen.clear();
        self.mask_words = vocab.div_ceil(32);
        for rule in rules {
            let mut row = RowChanges::default();
            if let Some(changes) = &rule.changes {
                row.edits = (self.edits.len() as u32, changes.add.len() as u32);
                self.edits.extend(changes.add.iter().map(|(token, x)| [token.0, x.to_bits()]));
                row.seen = (self.seen.len() as u32, changes.seen.len() as u32);
                self.seen.extend(changes.seen.iter().map(|(token, count)| [token.0, *count]));
                row.mask = changes.allowed.as_ref().map(|allowed| self.mask(allowed));
            }
            self.rows.push(row);
        }
    }

    fn mask(&mut self, allowed: &Arc<[TokenId]>) -> u32 {
        let known = self.masks.iter().position(|mask| Arc::ptr_eq(mask, allowed));
        let place = known.unwrap_or_else(|| {
            self.masks.push(allowed.clone());
            self.masks.len() - 1
        });
        place as u32
    }

    fn words(&self) -> usize {
        self.masks.len() * self.mask_words + 2 * (self.edits.len() + self.seen.len()) + 1
    }

    /// Writes everything from word `at` on; where it ends. Pairs begin at an even word.
    fn write(&self, words: &mut [u32], at: usize) -> usize {
        let mut end = at;
        for mask in &self.masks {
            let to = &mut words[end..][..self.mask_words];
            to.fill(0);
            for token in mask.iter() {
                if let Some(word) = to.get_mut(token.index() / 32) {
                    *word |= 1 << (token.0 % 32);
                }
            }
            end += self.mask_words;
        }
        end = end.next_multiple_of(2);
        for pair in self.edits.iter().chain(&self.seen) {
            words[end..end + 2].copy_from_slice(pair);
            end += 2;
        }
        end
    }
}

/// A `SampleRow`.
fn rule_words(rule: &DrawRule, changes: &RowChanges) -> [u32; RULE_WORDS] {
    let mut words = [0; RULE_WORDS];
    (words[0], words[1]) = (rule.seed as u32, (rule.seed >> 32) as u32);
    words[2] = rule.position;
    words[3] = rule.temperature.to_bits();
    words[4] = rule.top_k;
    (words[5], words[6]) = (rule.top_p.to_bits(), rule.ln_min_p.to_bits());
    (words[7], words[8]) = changes.edits;
    (words[9], words[10]) = changes.seen;
    let penalties = rule.changes.as_ref().map(|c| [c.repetition, c.frequency, c.presence]);
    let penalties = penalties.unwrap_or([1.0, 0.0, 0.0]);
    words[11..14].copy_from_slice(&penalties.map(f32::to_bits));
    words[14] = changes.mask.unwrap_or(NOBODY);
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::LogitChanges;

    fn rule() -> DrawRule {
        DrawRule {
            seed: 1,
            position: 2,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            ln_min_p: f32::NEG_INFINITY,
            changes: None,
            top_n: None,
            target: None,
        }
    }

    #[test]
    fn changes_are_packed_and_equal_masks_shared() {
        let allowed: Arc<[TokenId]> = [TokenId(0), TokenId(33), TokenId(99)].into();
        let changes = |allowed| LogitChanges {
            allowed,
            add: vec![(TokenId(3), 1.5)],
            seen: vec![(TokenId(4), 2), (TokenId(5), 0)],
            repetition: 1.5,
            ..LogitChanges::default()
        };
        let with = |allowed| DrawRule { changes: Some(changes(allowed)), ..rule() };
        let rules = [with(Some(allowed.clone())), rule(), with(None), with(Some(allowed))];
        let mut lists = ChangeLists::default();
        lists.gather(&rules, 65);
        let mut words = [7; 40];
        let end = lists.write(&mut words, 4);
        assert!(end - 4 <= lists.words() && lists.masks.len() == 1);
        assert_eq!(words[4..7], [1, 2, 0], "token 99 is past the row");
        assert_eq!(words[8..14], [[3, 1.5_f32.to_bits()]; 3].concat());
        assert_eq!(words[14..end], [4, 2, 5, 0].repeat(3));
        let row = |i: usize| rule_words(&rules[i], &lists.rows[i]);
        assert_eq!(row(3)[7..11], [2, 1, 4, 2]);
        assert_eq!((row(0)[14], row(1)[14], row(2)[14], row(3)[14]), (0, NOBODY, NOBODY, 0));
        assert_eq!(row(1)[7..14], [0, 0, 0, 0, 1.0_f32.to_bits(), 0, 0]);
        assert_eq!(row(2)[11], 1.5_f32.to_bits());
    }

    #[test]
    fn parts_of_the_output_do_not_overlap() {
        let parts = Output::new(5, Some(3));
        let starts = [
            0,
            parts.scale(0),
            parts.logit(0),
            parts.rank(0),
            parts.top_tokens(0),
            parts.top_logits(0),
        ];
        let lengths = [5, 5 * SCALE_WORDS, 5, 5, 15, 15];
        for (pair, length) in starts.windows(2).zip(lengths) {
            assert!(pair[0] + length <= pair[1]);
        }
        assert_eq!(starts[5] + 15, parts.end());
        assert_eq!(parts.scale(0) % 4, 0);
        assert_eq!(Output::new(5, None).end(), 8);
    }
}
