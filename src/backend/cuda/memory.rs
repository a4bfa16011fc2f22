//! The arena: all device memory of an engine, taken from the driver in a few large pieces and
//! given back when the engine ends. Nothing in it is freed alone.

use super::driver::{Context, DeviceMemory, DevicePtr};
use crate::error::{Error, ErrorKind, Result};

/// Every address is a multiple of this: cuBLASLt's algorithms for aligned matrices apply.
pub(super) const ALIGNMENT: usize = 256;
/// First piece taken for weights; each further one is twice as large.
const FIRST_PIECE: usize = 4 << 20;
/// Largest piece that several tensors share; a larger tensor has its own.
const LARGEST_PIECE: usize = 64 << 20;

/// Device memory, handed out from the front.
#[derive(Default)]
pub(super) struct Arena {
    pieces: Vec<DeviceMemory>,
    /// Where the last piece's free part begins, and its bytes.
    free: (DevicePtr, usize),
    /// Bytes taken from the driver.
    taken: usize,
}

impl Arena {
    /// `bytes` for `what`, which messages name.
    pub(super) fn take(
        &mut self,
        context: &Context,
        bytes: usize,
        what: &str,
    ) -> Result<DevicePtr> {
        let bytes = aligned(bytes).ok_or_else(|| too_large(what))?;
        if self.free.1 < bytes {
            let usual = (FIRST_PIECE << self.pieces.len().min(16)).min(LARGEST_PIECE);
            if bytes > usual {
                // Of its own, so that what is left of the last piece still serves.
                return self.new_piece(context, bytes, bytes, what).map(|(ptr, _)| ptr);
            }
            self.free = self.new_piece(context, usual, bytes, what)?;
        }
        let ptr = self.free.0;
        self.free = (ptr + bytes as u64, self.free.1 - bytes);
        Ok(ptr)
    }

    /// One piece of exactly `bytes`, so that what is taken next comes from it.
    pub(super) fn reserve(&mut self, context: &Context, bytes: usize, what: &str) -> Result<()> {
        if self.free.1 < bytes {
            self.free = self.new_piece(context, bytes, bytes, what)?;
        }
        Ok(())
    }

    /// Bytes taken from the driver so far.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    /// A piece of `wanted` bytes, or of `needed` where there is no room: its address and size.
    fn new_piece(
        &mut self,
        context: &Context,
        wanted: usize,
        needed: usize,
        what: &str,
    ) -> Result<(DevicePtr, usize)> {
        let mut size = wanted;
        let piece = match DeviceMemory::new(wanted) {
            Err(e) if e.kind() == ErrorKind::DeviceMemory && needed < wanted => {
                size = needed;
                DeviceMemory::new(needed)
            }
            other => other,
        };
        let piece = piece.map_err(|e| match e.kind() {
            ErrorKind::DeviceMemory => out_of_memory(context, needed, what),
            _ => e,
        })?;
        let ptr = piece.ptr();
        self.taken += size;
        self.pieces.push(piece);
        Ok((ptr, size))
    }
}

/// `bytes`, rounded up to the alignment.
pub(super) fn aligned(bytes: usize) -> Option<usize> {
    bytes.max(1).checked_next_multiple_of(ALIGNMENT)
}

fn out_of_memory(context: &Context, bytes: usize, what: &str) -> Error {
    let takes = format!("out of device memory: {what} takes {bytes} bytes");
    let error = |message| Error::new(ErrorKind::DeviceMemory, message).with("value", bytes);
    match context.memory() {
        Ok((free, total)) => {
            error(format!("{takes}; {free} of the device's {total} bytes are free"))
                .with("limit", free)
        }
        Err(e) => error(format!("{takes}; {e}")),
    }
}

/// A size that no address space holds.
pub(super) fn too_large(what: &str) -> Error {
    let message = format!("out of device memory: {what} would not fit the address space");
    Error::new(ErrorKind::DeviceMemory, message)
}
