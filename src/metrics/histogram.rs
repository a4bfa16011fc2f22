//! A histogram that any thread may feed without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of observations by bucket, and their sum.
#[derive(Debug)]
pub(super) struct Histogram {
    /// Upper bounds, inclusive and ascending.
    bounds: &'static [f64],
    /// By bucket, not cumulative; the last one is for what is above every bound.
    counts: Box<[AtomicU64]>,
    /// Bits of the f64 sum.
    sum: AtomicU64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0.0f64.to_bits()) }
    }

    /// Counts `value` `times` times. What is not a number is not counted.
    pub(super) fn observe(&self, value: f64, times: u64) {
        if value.is_nan() || times == 0 {
            return;
        }
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        self.counts[bucket].fetch_add(times, Ordering::Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value * times as f64).to_bits());
        // `add` always returns something, so this cannot fail.
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// The bounds.
    pub(super) fn bounds(&self) -> &'static [f64] {
        self.bounds
    }

    /// Observations by bucket, one more than there are bounds.
    pub(super) fn counts(&self) -> impl Iterator<Item = u64> {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed))
    }

    /// The sum of all observations.
    pub(super) fn sum(&self) -> f64 {
        f64::from_bits(self.sum.load(Ordering::Relaxed))
    }
}
