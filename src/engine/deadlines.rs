//! Deadlines of the requests that the worker has.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use crate::ids::RequestId;

/// Deadlines up to which those of ended requests are left where they are.
const MANY: usize = 64;

/// When which request ends at the latest, soonest first.
#[derive(Default)]
pub(crate) struct Deadlines {
    heap: BinaryHeap<Reverse<(Instant, RequestId)>>,
}

impl Deadlines {
    /// Adds one. `num_live` requests are live, and `is_live` says which: deadlines of requests that
    /// have ended would stay until they pass, which may take hours, and are cleared out once they
    /// are the most of it.
    pub(crate) fn set(
        &mut self,
        at: Instant,
        id: RequestId,
        num_live: usize,
        is_live: impl Fn(RequestId) -> bool,
    ) {
        if self.heap.len() >= MANY.max(2 * num_live) {
            self.heap.retain(|Reverse((_, id))| is_live(*id));
        }
        self.heap.push(Reverse((at, id)));
    }

    /// The soonest.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out a request whose deadline has passed at `now`.
    pub(crate) fn pop_overdue(&mut self, now: Instant) -> Option<RequestId> {
        self.next().filter(|at| *at <= now)?;
        self.heap.pop().map(|Reverse((_, id))| id)
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn overdue_requests_come_soonest_first() {
        let now = Instant::now();
        let mut deadlines = Deadlines::default();
        for (id, after) in [(1, 30), (2, 10), (3, 20)] {
            deadlines.set(now + Duration::from_secs(after), RequestId(id), 3, |_| true);
        }
        assert_eq!(deadlines.next(), Some(now + Duration::from_secs(10)));
        assert_eq!(deadlines.pop_overdue(now), None);
        let later = now + Duration::from_secs(20);
        assert_eq!(deadlines.pop_overdue(later), Some(RequestId(2)));
        assert_eq!(deadlines.pop_overdue(later), Some(RequestId(3)));
        assert_eq!(deadlines.pop_overdue(later), None);
    }

    #[test]
    fn those_of_ended_requests_do_not_pile_up() {
        let hour = Instant::now() + Duration::from_secs(3600);
        let mut deadlines = Deadlines::default();
        for id in 1..10_000 {
            // Ten at a time are live.
            deadlines.set(hour, RequestId(id), 10, |other| other.0 + 10 > id);
            assert!(deadlines.heap.len() <= MANY + 1);
        }
        for live in 9_990..10_000 {
            assert!(deadlines.heap.iter().any(|Reverse((_, id))| id.0 == live));
        }
    }
}
