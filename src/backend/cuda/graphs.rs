//! CUDA graphs of decode steps: one for each of a few batch sizes, captured when a size comes for
//! the second time. The first time runs launch by launch, so that everything that libraries do
//! only once has been done.

use std::collections::HashMap;

use super::driver::Graph;
use super::op::Op;

/// What is known of a batch size.
struct Entry {
    /// What was described when the size was seen last.
    ops: Vec<Op>,
    graph: Option<Graph>,
    /// There was no memory for a graph of it.
    is_refused: bool,
}

/// What to do with a step.
pub(super) enum Plan<'a> {
    /// Launch it op by op.
    Launch,
    /// Capture it.
    Capture,
    /// Replay this.
    Replay(&'a Graph),
}

/// Graphs by batch size.
#[derive(Default)]
pub(super) struct Graphs {
    entries: HashMap<usize, Entry>,
}

impl Graphs {
    /// The batch size that `rows` rows are run as: 1, 2, 4, 8, then multiples of 8 up to 256, then
    /// of 32.
    pub(super) fn batch_size(rows: usize) -> usize {
        match rows {
            0..=8 => rows.next_power_of_two(),
            9..=256 => rows.next_multiple_of(8),
            _ => rows.next_multiple_of(32),
        }
    }

    /// What to do with a step of this size that is described by `ops`.
    pub(super) fn plan(&mut self, size: usize, ops: &[Op]) -> Plan<'_> {
        let entry = self.entries.entry(size).or_insert_with(|| Entry {
            ops: Vec::new(),
            graph: None,
            is_refused: false,
        });
        if entry.ops != ops {
            // Another description: what was captured is not what is asked for.
            entry.graph = None;
            entry.ops.clear();
            entry.ops.extend_from_slice(ops);
            return Plan::Launch;
        }
        match &entry.graph {
            Some(graph) => Plan::Replay(graph),
            None if entry.is_refused => Plan::Launch,
            None => Plan::Capture,
        }
    }

    /// Notes that steps of this size are not captured again.
    pub(super) fn refuse(&mut self, size: usize) {
        if let Some(entry) = self.entries.get_mut(&size) {
            entry.is_refused = true;
        }
    }

    /// Keeps what was captured.
    pub(super) fn insert(&mut self, size: usize, graph: Graph) {
        if let Some(entry) = self.entries.get_mut(&size) {
            entry.graph = Some(graph);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{ActId, LinearId};

    #[test]
    fn batch_sizes_are_few() {
        let sizes = [1, 2, 3, 5, 8, 9, 17, 64, 250, 256, 257].map(Graphs::batch_size);
        assert_eq!(sizes, [1, 2, 4, 8, 8, 16, 24, 64, 256, 256, 288]);
    }

    #[test]
    fn a_size_is_captured_the_second_time_and_only_for_what_it_was() {
        let op = |table| Op::Embed { table: LinearId(table), out: ActId(0) };
        let mut graphs = Graphs::default();
        assert!(matches!(graphs.plan(4, &[op(0)]), Plan::Launch));
        assert!(matches!(graphs.plan(8, &[op(0)]), Plan::Launch));
        assert!(matches!(graphs.plan(4, &[op(0)]), Plan::Capture));
        assert!(matches!(graphs.plan(4, &[op(1)]), Plan::Launch));
        assert!(matches!(graphs.plan(4, &[op(1)]), Plan::Capture));
    }
}
