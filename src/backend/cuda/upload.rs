//! From the host to the device while loading: through two halves of page-locked memory, so that
//! one is filled while the other is copied.

use super::driver::{DevicePtr, Event, Pinned, Stream};
use crate::error::Result;

/// Bytes of each half.
pub(super) const HALF: usize = 16 << 20;

/// The halves, and when each was last copied.
pub(super) struct Uploader {
    memory: Pinned,
    copied: [Event; 2],
    next: usize,
}

impl Uploader {
    pub(super) fn new() -> Result<Self> {
        let copied = [Event::new()?, Event::new()?];
        Ok(Self { memory: Pinned::new(2 * HALF)?, copied, next: 0 })
    }

    /// Lets `fill` write `bytes`, at most `HALF`, which then go to `to`.
    ///
    /// # Safety
    /// `to` is device memory of at least `bytes`.
    pub(super) unsafe fn upload(
        &mut self,
        stream: &Stream,
        to: DevicePtr,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let half = self.next;
        self.next = 1 - half;
        self.copied[half].synchronize()?;
        let from = half * HALF;
        fill(&mut self.memory.bytes_mut()[from..from + bytes])?;
        // SAFETY: `to` is long enough as this function's contract says; this half is not written
        // again before its event, and lives until the backend has waited for its stream.
        unsafe { stream.copy_to_device(to, &self.memory, from, bytes)? };
        self.copied[half].record(stream)
    }

    /// Uploads values, however many.
    ///
    /// # Safety
    /// `to` is device memory of at least `values.len()` floats.
    pub(super) unsafe fn floats(
        &mut self,
        stream: &Stream,
        to: DevicePtr,
        values: &[f32],
    ) -> Result<()> {
        for (i, chunk) in values.chunks(HALF / 4).enumerate() {
            let fill = |bytes: &mut [u8]| {
                for (b, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(chunk) {
                    *b = value.to_ne_bytes();
                }
                Ok(())
            };
            // SAFETY: the chunk lies within what this function's contract gives.
            unsafe { self.upload(stream, to + (i * HALF) as u64, 4 * chunk.len(), fill)? };
        }
        Ok(())
    }
}
