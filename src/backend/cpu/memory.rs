//! Memory whose size comes from a checkpoint or a configuration: zeroed, 64-byte aligned, fallible.
//!
//! Large buffers are anonymous mappings, so that pages are committed as they are touched and given
//! back when the buffer goes; the kernel is asked for huge pages, because a matrix is read from end
//! to end and would miss the TLB every 4 KiB otherwise. Its end has small ones where a good part of
//! a huge page would be left over: many small matrices, of 4 bits, would take a quarter more.
#![allow(unsafe_code, reason = "owns raw mappings")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::error::{Error, ErrorKind, Result};

/// Element types of buffers: plain numbers for which all bits zero is a value.
pub(crate) trait Element: Copy + Send + Sync + 'static {}
impl Element for f32 {}
impl Element for i8 {}
impl Element for u16 {}
impl Element for u32 {}
impl Element for u8 {}

/// A zeroed, 64-byte aligned array of `len` elements that several threads fill in disjoint parts.
pub(crate) struct Buffer<T: Element> {
    start: NonNull<T>,
    len: usize,
    mapped: bool,
    marker: PhantomData<T>,
}

// SAFETY: the buffer owns its memory, and elements are plain numbers. Shared access through
// `as_ptr` is the caller's duty, as with any raw pointer.
unsafe impl<T: Element> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Element> Sync for Buffer<T> {}

impl<T: Element> Buffer<T> {
    /// `len` zeros; fails with OUT_OF_MEMORY that names `what` and the bytes.
    pub(crate) fn zeroed(len: usize, what: &str) -> Result<Self> {
        let fail = |bytes: usize| {
            let message = format!("{what}: cannot allocate {bytes} bytes");
            Error::new(ErrorKind::OutOfMemory, message).with("bytes", bytes as u64)
        };
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| fail(usize::MAX))?;
        if bytes == 0 {
            return Ok(Self::from_parts(NonNull::dangling(), 0, false));
        }
        if bytes >= MAP_FROM
            && let Some(start) = map(bytes)
        {
            return Ok(Self::from_parts(start.cast(), len, true));
        }
        if bytes >= MAP_FROM && cfg!(unix) {
            return Err(fail(bytes));
        }
        let layout = Layout::from_size_align(bytes, ALIGN).map_err(|_| fail(bytes))?;
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(|| fail(bytes))?;
        Ok(Self::from_parts(start.cast(), len, false))
    }

    fn from_parts(start: NonNull<T>, len: usize, mapped: bool) -> Self {
        Self { start, len, mapped, marker: PhantomData }
    }

    /// Elements.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The addresses of the huge pages that it fills, if they are its own.
    pub(crate) fn mapping(&self) -> Option<std::ops::Range<usize>> {
        let start = self.start.as_ptr() as usize;
        let bytes = self.len * size_of::<T>() / HUGE * HUGE;
        self.mapped.then_some(start..start + bytes)
    }

    /// The first element. Threads write through it, each its own part.
    pub(crate) fn as_ptr(&self) -> *mut T {
        self.start.as_ptr()
    }

    /// All elements.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: the buffer owns `len` initialised elements, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<T>();
        if bytes == 0 {
            return;
        }
        if self.mapped {
            unmap(self.start.cast(), bytes);
            return;
        }
        if let Ok(layout) = Layout::from_size_align(bytes, ALIGN) {
            // SAFETY: `zeroed` allocated it with this very layout.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) }
        }
    }
}

/// One cache line, one AVX-512 vector.
const ALIGN: usize = 64;
/// From here on a buffer is a mapping of its own.
const MAP_FROM: usize = 1 << 20;
/// A huge page of x86-64 and of the usual aarch64 kernels.
const HUGE: usize = 2 << 20;
/// Bytes at a buffer's end up to which they are given small pages.
#[cfg(target_os = "linux")]
const SMALL_END: usize = HUGE / 4 * 3;

#[cfg(unix)]
fn mapped_bytes(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(HUGE)
}

/// Commits pages, whatever they hold and whoever uses them meanwhile; false where that cannot be
/// done.
pub(crate) fn commit(pages: std::ops::Range<usize>) -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: populating changes no content; addresses that are not mapped are an error.
    unsafe {
        let start = pages.start as *mut libc::c_void;
        libc::madvise(start, pages.len(), libc::MADV_POPULATE_WRITE) == 0
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = pages;
        false
    }
}

/// Maps `len` bytes, starting at a huge page's boundary.
#[cfg(unix)]
fn map(len: usize) -> Option<NonNull<u8>> {
    let bytes = mapped_bytes(len)?;
    let whole = bytes.checked_add(HUGE)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
    // SAFETY: a fresh anonymous mapping touches no existing memory.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), whole, protection, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return None;
    }
    let lead = (base as usize).next_multiple_of(HUGE) - base as usize;
    // SAFETY: `lead <= HUGE`, so start .. start + bytes and both trimmed ends lie in the mapping,
    // which nobody else knows yet.
    unsafe {
        let start = base.cast::<u8>().add(lead);
        if lead > 0 {
            libc::munmap(base, lead);
        }
        if HUGE > lead {
            libc::munmap(start.add(bytes).cast(), HUGE - lead);
        }
        #[cfg(target_os = "linux")]
        {
            let huge = if len % HUGE <= SMALL_END { len / HUGE * HUGE } else { bytes };
            libc::madvise(start.cast(), huge, libc::MADV_HUGEPAGE);
            // Where all mappings have huge pages, unless they are asked not to.
            libc::madvise(start.add(huge).cast(), bytes - huge, libc::MADV_NOHUGEPAGE);
        }
        NonNull::new(start)
    }
}

#[cfg(unix)]
fn unmap(start: NonNull<u8>, bytes: usize) {
    if let Some(bytes) = mapped_bytes(bytes) {
        // SAFETY: `map` made exactly this mapping, and its owner is being dropped.
        unsafe { libc::munmap(start.as_ptr().cast(), bytes) };
    }
}

#[cfg(not(unix))]
fn map(_bytes: usize) -> Option<NonNull<u8>> {
    None
}

#[cfg(not(unix))]
fn unmap(_start: NonNull<u8>, _bytes: usize) {}

/// Bytes that are resident of the mappings that begin between two addresses; none where none does.
#[cfg(all(test, target_os = "linux", not(feature = "shuttle")))]
pub(super) fn resident(range: std::ops::Range<usize>) -> Option<usize> {
    let (mut within, mut bytes) = (false, None);
    for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap();
        if let Some((start, _)) = first.split_once('-') {
            within = usize::from_str_radix(start, 16).is_ok_and(|start| range.contains(&start));
        } else if within && first == "Rss:" {
            let more = words.next().unwrap().parse::<usize>().unwrap() << 10;
            bytes = Some(bytes.unwrap_or(0) + more);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_buffers_are_zeroed_and_aligned() {
        for len in [0, 1, 1000, (MAP_FROM / 4) + 3, 5 << 20] {
            let mut buffer = Buffer::<f32>::zeroed(len, "test").unwrap();
            assert_eq!(buffer.len(), len);
            assert!(len == 0 || (buffer.as_ptr() as usize).is_multiple_of(ALIGN));
            assert!(buffer.as_mut_slice().iter().all(|v| *v == 0.0));
            buffer.as_mut_slice().fill(1.0);
        }
    }

    #[test]
    #[cfg(all(target_os = "linux", not(feature = "shuttle")))]
    fn a_short_end_takes_no_huge_page() {
        let bytes = 4 * HUGE + HUGE / 4;
        let mut buffer = Buffer::<u8>::zeroed(bytes, "test").unwrap();
        buffer.as_mut_slice().fill(1);
        let start = buffer.as_ptr() as usize;
        // The end is a mapping of its own, unless the kernel has no huge pages.
        let end = resident(start + 4 * HUGE..start + 5 * HUGE);
        assert!(end.is_none_or(|bytes| bytes <= HUGE / 4), "{end:?}");
    }

    #[test]
    fn what_cannot_be_had_is_out_of_memory_with_the_size() {
        let error = Buffer::<f32>::zeroed(1 << 55, "KV cache").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert_eq!(error.detail()["bytes"], 1u64 << 57);
        assert!(Buffer::<f32>::zeroed(usize::MAX, "KV cache").is_err());
    }
}
