//! `WaitingQueue`: who is admitted next.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::sequences::Slot;
use crate::config::SchedulingPolicy;
use crate::ids::SeqId;

/// A place in the waiting queue; smaller is earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueueKey {
    rank: i64,
    arrival: u64,
    id: SeqId,
}

/// The waiting sequences in order of admission.
#[derive(Debug)]
pub(super) struct WaitingQueue {
    policy: SchedulingPolicy,
    order: BTreeMap<QueueKey, Slot>,
    /// Under fcfs, ranks count down at the front and up at the back.
    front: i64,
    back: i64,
}

/// What the order goes by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) id: SeqId,
    pub(super) priority: i32,
    pub(super) arrival: u64,
}

impl WaitingQueue {
    pub(super) fn new(policy: SchedulingPolicy) -> Self {
        Self { policy, order: BTreeMap::new(), front: 0, back: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The key of a new sequence: last under fcfs, by (priority, arrival) under priority.
    pub(super) fn key_of_new(&mut self, new: Arrival) -> QueueKey {
        self.back += 1;
        self.key(new, self.back)
    }

    /// The key of a preempted sequence: first under fcfs, by (priority, arrival) under priority.
    pub(super) fn key_of_preempted(&mut self, preempted: Arrival) -> QueueKey {
        self.front -= 1;
        self.key(preempted, self.front)
    }

    pub(super) fn insert(&mut self, key: QueueKey, slot: Slot) {
        self.order.insert(key, slot);
    }

    pub(super) fn remove(&mut self, key: QueueKey) {
        self.order.remove(&key);
    }

    /// The first sequence, or the one after `after`.
    pub(super) fn next(&self, after: Option<QueueKey>) -> Option<(QueueKey, Slot)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.order.range((from, Bound::Unbounded)).next().map(|(&key, &slot)| (key, slot))
    }

    /// The sequences in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (QueueKey, Slot)> + '_ {
        self.order.iter().map(|(&key, &slot)| (key, slot))
    }

    fn key(&self, of: Arrival, fcfs_rank: i64) -> QueueKey {
        match self.policy {
            // The rank alone decides: every sequence has its own.
            SchedulingPolicy::Fcfs => QueueKey { rank: fcfs_rank, arrival: 0, id: of.id },
            SchedulingPolicy::Priority => {
                QueueKey { rank: of.priority.into(), arrival: of.arrival, id: of.id }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(queue: &WaitingQueue) -> Vec<u32> {
        queue.iter().map(|(_, slot)| slot.0).collect()
    }

    fn arrival(id: u64, priority: i32, arrival: u64) -> Arrival {
        Arrival { id: SeqId(id), priority, arrival }
    }

    #[test]
    fn fcfs_goes_by_order_of_coming_and_resumes_at_the_front() {
        let mut queue = WaitingQueue::new(SchedulingPolicy::Fcfs);
        for i in 0..3 {
            let key = queue.key_of_new(arrival(i, -(i as i32), 9 - i));
            queue.insert(key, Slot(i as u32));
        }
        // Preempted newest first, they stand in their old order.
        for i in [7, 6] {
            let key = queue.key_of_preempted(arrival(i, 0, 0));
            queue.insert(key, Slot(i as u32));
        }
        assert_eq!(order(&queue), [6, 7, 0, 1, 2]);
        let (first, _) = queue.next(None).unwrap();
        let (second, slot) = queue.next(Some(first)).unwrap();
        assert_eq!(slot, Slot(7));
        queue.remove(second);
        assert_eq!(order(&queue), [6, 0, 1, 2]);
    }

    #[test]
    fn priority_goes_by_priority_then_arrival_then_id() {
        let mut queue = WaitingQueue::new(SchedulingPolicy::Priority);
        for (id, priority, at) in [(0, 5, 1), (1, -1, 9), (2, -1, 3), (4, 5, 1)] {
            let key = queue.key_of_new(arrival(id, priority, at));
            queue.insert(key, Slot(id as u32));
        }
        let key = queue.key_of_preempted(arrival(3, 5, 0));
        queue.insert(key, Slot(3));
        assert_eq!(order(&queue), [2, 1, 3, 0, 4]);
    }
}
